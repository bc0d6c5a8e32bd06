//! The main job as an ordinary user: the same binary, another plan, and `enforcement` says what is weaker.

use serde_json::{Value, json};

use crate::support::fixture_user::{ORDINARY_UID, directory_of};
use crate::support::{Feature, Server, Session, Setup, cli, host, page};

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
