//! The main job as an ordinary user: the same binary, another plan, and `enforcement` says what is weaker.

use std::path::Path;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::support::fixture_user::{ORDINARY_UID, binary_for, directory_of};
use crate::support::residue::{Process, descendants, process};
use crate::support::{Feature, Server, Session, Setup, cli, eventually, host, page};

pub fn trials() -> Vec<libtest_mimic::Trial> {
    page(
        "rootless",
        &[
            ("the main job runs as an ordinary user", main_job),
            ("enforcement tells what degrades, and as root it is enforced", degraded_rows),
            ("the walls that need no root stand", walls),
            ("an engine runs as an ordinary user, on a root of its own", engine),
            ("doctor and run work as an ordinary user", command_line),
            ("root of a user namespace only is served as an ordinary user is", root_of_a_namespace),
            ("a launcher that dies while it waits for newuidmap leaves neither the helper nor a zombie", helper_in_flight),
        ],
    )
}

fn ordinary() -> Setup {
    host().need(Feature::Root).need(Feature::OrdinaryUser);
    Setup { uid: Some(ORDINARY_UID), ..Setup::plain() }
}

fn main_job() {
    let server = ordinary().shared();
    let mut session = Session::python(&server);
    session.write("program.py", "import sys; print(sys.stdin.read().upper(), end='')");
    let command = json!({"type": "execute_shell", "commandName": "python3", "args": ["program.py"], "stdin": "word"});
    assert_eq!(session.ok(&command)["stdout"], "WORD");
    let (subscription, _) = session.stream(&json!({"type": "execute_code", "code": "print('streamed')"}));
    let events = session.client.events(&subscription);
    // How the bytes are cut into events is the moment's affair.
    let streamed: String = events.iter().filter_map(|event| event["data"].as_str()).collect();
    assert_eq!(streamed, "streamed\n", "{events:?}");
    session.fails(&json!({"type": "execute_code", "code": "while True: pass", "timeoutSeconds": 1}), "timeout");
    assert_eq!(session.read("program.py").len(), 51);
    session.close();
}

fn state_of<'a>(created: &'a Value, list: &str, name: &str) -> &'a Value {
    let rows = created["enforcement"][list].as_array().expect("rows");
    rows.iter().find(|row| row["name"] == name).unwrap_or_else(|| panic!("no row {name} in {created}"))
}

fn degraded_rows() {
    let server = ordinary().shared();
    let session = Session::python(&server);
    assert_eq!(session.created["enforcement"]["rootless"], true);
    let rows = ["walls", "limits"].map(|list| session.created["enforcement"][list].as_array().expect("rows").clone()).concat();
    let weaker: Vec<&Value> = rows.iter().filter(|row| row["state"] != "enforced").collect();
    assert!(!weaker.is_empty(), "an ordinary user can't have everything that root has: {rows:?}");
    assert!(
        weaker.iter().all(|row| row["detail"].as_str().is_some_and(|detail| !detail.is_empty())),
        "each says how: {weaker:?}"
    );
    let as_root = Setup::plain().shared();
    let control = Session::python(&as_root);
    assert_eq!(control.created["enforcement"]["rootless"], false);
    assert_eq!(state_of(&control.created, "walls", "user")["state"], "enforced");
}

fn walls() {
    let server = ordinary().shared();
    let mut session = Session::python(&server);
    for wall in ["mount", "pid", "network", "ipc", "uts", "capabilities", "no_new_privs", "seccomp"] {
        assert_eq!(state_of(&session.created, "walls", wall)["state"], "enforced", "{wall}");
    }
    let status = session.read_status();
    assert!(status.contains("NoNewPrivs:\t1") && status.contains("Seccomp:\t2"), "{status}");
    assert!(status.contains("CapEff:\t0000000000000000"), "{status}");
    let refused = "import ctypes\nctypes.CDLL(None).unshare(0x10000000)";
    let answer = session.ok(&json!({"type": "execute_code", "code": refused}));
    assert_eq!(answer["blockedSyscalls"], json!(["unshare"]), "{answer}");
    assert!(session.ok(&json!({"type": "execute_code", "code": "import ctypes"}))["blockedSyscalls"].is_null(), "the control");
}

impl Session<'_> {
    /// /proc/self/status of a program of the session.
    pub fn read_status(&mut self) -> String {
        self.run("print(open('/proc/self/status').read())")
    }
}

fn engine() {
    host().need(Feature::Node);
    let server = ordinary().shared();
    let mut session = Session::open(&server, &json!({"language": "javascript", "runtimeType": "NodeJs"}));
    let result = session.ok(&json!({"type": "execute_code", "code": "console.log(6 * 7);"}));
    assert_eq!(result["stdout"], "42\n");
    session.fails(&json!({"type": "execute_shell", "commandName": "ls"}), "program_not_found");
}

fn command_line() {
    ordinary();
    let state = directory_of(Some(ORDINARY_UID));
    let call = |arguments: &[&str]| {
        cli::Invocation::new(arguments).state_dir(&state.path().join("state")).user(Some(ORDINARY_UID)).run()
    };
    assert_eq!(call(&["run", "--language", "bash", "-e", "echo $((6 * 7))"]).expect_code(0).stdout, "42\n");
    let doctor = call(&["doctor", "--json"]);
    assert!(doctor.json().is_object() || doctor.json().is_array(), "{doctor:?}");
    assert_eq!(doctor.code, 0, "the main job runs here, so doctor says so: {doctor:?}");
}

fn root_of_a_namespace() {
    host().need(Feature::Root).need(Feature::OrdinaryUser);
    // uid 0, but of one id: files can be given to nobody else, and no range can be mapped.
    let server = Server::start(&Setup { wrapper: vec!["/usr/bin/unshare".into(), "-Ur".into()], ..Setup::plain() });
    let mut session = Session::python(&server);
    assert_eq!(session.created["enforcement"]["rootless"], true);
    assert_eq!(state_of(&session.created, "walls", "user")["state"], "degraded");
    assert_eq!(session.run("import os; print(os.getuid())"), "1000");
    session.close();
    let left = server.end_and_check();
    assert!(left.is_empty(), "{}", left.join("; "));
}

/// Gives the server, and nobody else, an account with ranges, and a newuidmap that waits as long as `hold` is there. `$1` is the
/// fixture's directory, `$2` the user's number, `$3` a binary that the user can execute; the rest is the server's command line.
const SLOW_HELPER: &str = r#"
directory=$1 user=$2 binary=$3; shift 4
cd "$directory"
install -m 4755 /usr/bin/newuidmap real
printf '#!/bin/sh\nwhile [ -e %s/hold ]; do sleep 0.05; done\nexec %s/real "$@"\n' "$directory" "$directory" > slow
chmod 755 slow
{ cat /etc/passwd; echo "trial:x:$user:$user::/:/bin/sh"; } > passwd
echo "trial:500000:65536" > ranges
chmod 644 passwd ranges
mount --bind slow /usr/bin/newuidmap && mount --bind passwd /etc/passwd
for file in /etc/subuid /etc/subgid; do mount --bind ranges $file || exit 1; done
exec setpriv --reuid "$user" --regid "$user" --clear-groups "$binary" "$@"
"#;

fn helper_in_flight() {
    host().need(Feature::Root).need(Feature::OrdinaryUser);
    host().need_that("newuidmap", Path::new("/usr/bin/newuidmap").exists(), "there is no /usr/bin/newuidmap (package uidmap)");
    let (directory, user) = (directory_of(Some(ORDINARY_UID)), ORDINARY_UID.to_string());
    let (place, binary) = (directory.path().display().to_string(), binary_for(Some(ORDINARY_UID)).display().to_string());
    let wrapper =
        ["/usr/bin/unshare", "--mount", "--propagation", "private", "/bin/sh", "-c", SLOW_HELPER, "sh", &place, &user, &binary];
    let server = Server::start_in(&Setup { wrapper: wrapper.map(str::to_owned).to_vec(), ..Setup::plain() }, directory);
    let mut client = server.client();
    let created = client.ok("session.create", &json!({"language": "bash"}));
    let detail = &state_of(&created, "walls", "user")["detail"];
    assert!(detail.as_str().is_some_and(|detail| detail.starts_with("subordinate ids")), "newuidmap does its work: {detail}");
    let launcher = server.launcher().expect("a launcher");
    let hold = server.outside().join("hold");
    std::fs::write(&hold, "").expect("root may write there");
    let waiting = client.send("session.create", &json!({"language": "bash"})).expect("sent");
    let name = |pid: i32| std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    let mut below = Vec::new();
    let helped = eventually(Duration::from_secs(10), || {
        below = descendants(launcher);
        below.iter().any(|process| name(process.identity.0).trim() == "newuidmap")
    });
    assert!(helped, "the launcher has started its helper");
    server.observe();
    kill(Pid::from_raw(launcher), Signal::SIGKILL).expect("a process below the trial's own server");
    // A zombie has its number and its start time as well.
    let there = |old: &Process| process(old.identity.0).is_some_and(|now| now.identity == old.identity);
    let gone = eventually(Duration::from_secs(10), || !below.iter().any(there));
    assert!(
        gone,
        "what was below the launcher is still there: {:?}",
        below.iter().filter(|old| there(old)).collect::<Vec<_>>()
    );
    std::fs::remove_file(hold).expect("the trial's own file");
    // The call in flight is refused, or was taken over by the next launcher.
    if let Err(error) = client.wait(waiting) {
        assert!(error.to_string().contains("1302"), "{error}");
    }
    let mut session = Session::open(&server, &json!({"language": "bash"}));
    assert_eq!(session.bash("echo x"), "x");
    session.close();
    let left = server.end_and_check();
    assert!(left.is_empty(), "{}", left.join("; "));
}
