//! Refused calls are named in the result, whoever of a program makes them and however often, and naming them can't be turned
//! against init: it answers, whatever a program does about the answer.

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::{Value, json};

use super::PROFILES;
use crate::support::http::request;
use crate::support::{Feature, Session, Setup, eventually, host, page, python};

pub fn trials() -> Vec<libtest_mimic::Trial> {
    page(
        "escape",
        &[
            ("calls that a profile refuses are named in the result, and a program without any has no such field", named),
            ("refused calls of threads, children and descendants that left the session of processes are named", descendants),
            (
                "a stream tells of a refused call while the program runs, once; metrics and the audit log have it too",
                told_at_once,
            ),
            ("a flood of refused calls starves neither file commands nor executions nor another session", flood),
            ("signals in the middle of a refused call leave it refused, and with SA_RESTART are not seen", signals),
            ("a program that is killed in the middle of a refused call leaves init as it was", killed_while_waiting),
            (
                "a profile that audits lets through and names what it refuses, says so loudly, and keeps the floor shut",
                audit_only,
            ),
            ("a program can't have a listener of its own, a filter of its own it can", own_listener),
        ],
    )
}

/// Refuses nothing of itself: calls by name through the C library, `refused(f)` gives the errno's name.
const CALLS: &str = r#"
def errno_of(function, *args):
    ctypes.set_errno(0)
    return errno.errorcode.get(ctypes.get_errno(), "ok") if function(*args) == -1 else "ok"
def mount(): return errno_of(_libc.mount, b"none", b"/tmp", b"tmpfs", 0, None)
def unshare(): return errno_of(_libc.unshare, 0x10000000)
def umount(): return errno_of(_libc.umount2, b"/proc", 2)
"#;

fn command(code: &str) -> Value {
    json!({"type": "execute_code", "language": "python", "code": python::probe(&format!("{CALLS}\n{code}")), "timeoutSeconds": 60})
}

/// The names in a CommandResult; empty when the field is not there.
fn names(answer: &Value) -> Vec<&str> {
    let list = answer["result"].get("blockedSyscalls");
    let names: Vec<&str> = list.iter().flat_map(|list| list.as_array().expect("a list")).filter_map(Value::as_str).collect();
    assert!(list.is_none() || !names.is_empty(), "the field is not there rather than empty: {answer}");
    names
}

fn session<'a>(server: &'a crate::support::Server, profile: &str) -> Session<'a> {
    Session::open(server, &json!({"profile": profile}))
}

fn named() {
    host().need(Feature::Python);
    let server = Setup::plain().shared();
    for profile in PROFILES {
        let mut session = session(&server, profile);
        let row = session.created["enforcement"]["walls"]
            .as_array()
            .and_then(|rows| rows.iter().find(|row| row["name"] == "seccomp"));
        let detail = row.map(|row| row["detail"].to_string()).unwrap_or_default();
        assert!(detail.contains("named in `blockedSyscalls`"), "{profile}: {detail}");
        let control = session.execute(&command("print(errno_of(_libc.getpid))"));
        assert_eq!((names(&control).len(), &control["success"]), (0, &json!(true)), "{profile}: {control}");
        let told = session.fails(&command("print(mount(), unshare(), mount()); sys.exit(3)"), "nonzero_exit");
        assert_eq!(told["result"]["stdout"], "EPERM EPERM EPERM\n", "{profile}");
        assert_eq!(names(&told), ["mount", "unshare"], "{profile}: sorted, each once");
        assert!(
            told["error"].as_str().is_some_and(|error| error.contains("3; ") && error.contains("mount, unshare")),
            "{told}"
        );
        let success = session.execute(&command("print(umount())"));
        assert_eq!(
            (names(&success), &success["success"]),
            (vec!["umount2"], &json!(true)),
            "{profile}: of this execution alone"
        );
        let (subscription, execution) = session.stream(&command("unshare()\nprint('refused', flush=True)\nwhile True: pass"));
        while session.client.event(&subscription).expect("it prints")["type"] != "stdout" {}
        session.client.ok("session.cancel", &json!({"sessionId": session.id, "executionId": execution}));
        let ended = session.client.events(&subscription).pop().expect("exited");
        assert_eq!(
            (names(&ended["result"]), &ended["result"]["errorKind"]),
            (vec!["unshare"], &json!("cancelled")),
            "{profile}: whatever ended it"
        );
        let sockets = "import socket\nsocket.socket(socket.AF_UNIX).close()\nprint(errno_of(_libc.socket, 38, 5, 0))";
        assert_eq!(names(&session.execute(&command(sockets))), ["socket"], "{profile}: refused for its arguments");
        assert_eq!(names(&session.program("true", &[])), Vec::<&str>::new());
    }
}

fn descendants() {
    host().need(Feature::Python);
    let server = Setup::plain().shared();
    let mut session = session(&server, "default");
    let code = r#"
import subprocess, threading
thread = threading.Thread(target=mount); thread.start(); thread.join()
child = "import ctypes; ctypes.CDLL(None).unshare(0x10000000)"
subprocess.run([sys.executable, "-c", child], check=True)
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        umount()
        open("done", "w").close()
    os._exit(0)
os.wait()
import time
while not os.path.exists("done"): time.sleep(0.01)"#;
    let answer = session.execute(&command(code));
    assert_eq!((names(&answer), &answer["success"]), (vec!["mount", "umount2", "unshare"], &json!(true)), "{answer}");
    let background =
        session.execute(&json!({"type": "execute_shell", "commandName": "sleep", "args": ["5555"], "background": true}));
    assert_eq!(names(&session.execute(&command("print(1)"))).len(), 0, "another execution's calls are not this one's");
    session.client.ok("session.cancel", &json!({"sessionId": session.id, "executionId": background["executionId"]}));
}

fn told_at_once() {
    host().need(Feature::Python);
    let server = Setup::plain().shared();
    let mut session = session(&server, "default");
    let profile = &session.created["enforcement"]["profile"];
    for field in ["sha256", "seccompSha256", "bpfSha256"] {
        assert_eq!(profile[field].as_str().map(str::len), Some(64), "{field}: {profile}");
    }
    let digest = profile["bpfSha256"].as_str().expect("text").to_owned();
    let code = python::probe(&format!("{CALLS}\nfor n in range(50): umount()\nsys.stdin.readline()\nprint('went on')"));
    let (subscription, execution) = session.stream(&json!({"type": "execute_code", "language": "python", "code": code}));
    let event = session.client.event(&subscription).expect("the program waits for its input, so no other event comes");
    assert_eq!(event, json!({"type": "blocked", "executionId": execution, "syscall": "umount2"}));
    session.client.ok("session.input", &json!({"sessionId": session.id, "executionId": execution, "data": "\n", "eof": true}));
    let rest = session.client.events(&subscription);
    assert!(rest.iter().all(|event| event["type"] != "blocked"), "told once: {rest:?}");
    let last = rest.last().expect("exited");
    assert_eq!((&last["result"]["result"]["blockedSyscalls"], &last["result"]["success"]), (&json!(["umount2"]), &json!(true)));
    let token = format!("Bearer {}", server.token);
    let metrics = request(server.address, "/metrics", &[("Authorization", &token)], None).body;
    assert!(metrics.contains("codebeaker_blocked_syscalls_total{syscall=\"umount2\"}"), "{metrics}");
    let log = server.log();
    let has = |words: &[&str]| log.lines().any(|line| words.iter().all(|word| line.contains(word)));
    assert!(
        has(&["codebeaker::audit", "system call against the profile", "umount2", execution.as_str(), session.id.as_str()]),
        "{log}"
    );
    assert!(has(&["codebeaker::audit", "session created", digest.as_str(), session.id.as_str()]), "the profile is in the log");
    let quiet = session.stream(&json!({"type": "execute_code", "language": "python", "code": "print(1)", "stdin": ""})).0;
    assert!(session.client.events(&quiet).iter().all(|event| event["type"] != "blocked"), "the control");
}

fn flood() {
    host().need(Feature::Python);
    let server = Setup::plain().shared();
    let mut session = session(&server, "default");
    let mut sibling = Session::python(&server);
    let code = python::probe(&format!(
        r#"{CALLS}
import threading
def flood():
    while True:
        for n in range(100): mount()
        with open("progress", "a") as file: file.write(".")
for n in range(3):
    if os.fork() == 0: break
for n in range(3): threading.Thread(target=flood).start()
flood()"#
    ));
    session.write("flood.py", &code);
    let start = json!({"type": "execute_shell", "commandName": "python3", "args": ["flood.py"], "background": true});
    let flooding = session.execute(&start)["executionId"].clone();
    let mut progress = 0;
    let grown = eventually(Duration::from_secs(60), || {
        let result = session.execute(&json!({"type": "read_file", "path": "progress"}));
        progress = result["result"]["size"].as_u64().unwrap_or(0);
        progress > 0
    });
    assert!(grown, "the flood goes on beside the file commands that see it");
    for round in 0..20 {
        session.write("file", &format!("round {round}"));
        assert_eq!(session.read("file"), format!("round {round}"));
    }
    let beside = session.execute(&command("print(umount())"));
    assert_eq!(names(&beside), ["umount2"], "each program has its own: {beside}");
    assert_eq!(sibling.run("print(1)"), "1");
    let size =
        |session: &mut Session<'_>| session.ok(&json!({"type": "read_file", "path": "progress"}))["size"].as_u64().unwrap_or(0);
    assert!(eventually(Duration::from_secs(60), || size(&mut session) > progress), "it still floods");
    session.client.ok("session.cancel", &json!({"sessionId": session.id, "executionId": flooding}));
    assert_eq!(session.run("print(2)"), "2");
}

fn signals() {
    host().need(Feature::Python);
    let server = Setup::plain().shared();
    let mut session = session(&server, "default");
    let code = r"
def answers(restart):
    heard, answers, rounds = [], set(), 0
    signal.signal(signal.SIGALRM, lambda *_: heard.append(1))
    signal.siginterrupt(signal.SIGALRM, not restart)
    signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0005)
    while len(heard) < 50 or rounds < 2000:
        answers.add(mount())
        rounds += 1
    signal.setitimer(signal.ITIMER_REAL, 0)
    return sorted(answers)
print(json.dumps([answers(True), answers(False)]))";
    let answer = session.execute(&command(code));
    assert_eq!(names(&answer), ["mount"], "{answer}");
    let told: [BTreeSet<String>; 2] =
        serde_json::from_str(answer["result"]["stdout"].as_str().expect("text")).expect("two lists");
    assert_eq!(told[0], BTreeSet::from(["EPERM".to_owned()]), "a handler with SA_RESTART is not seen");
    // Without SA_RESTART a call that waits ends with EINTR, this one as any other.
    let expected = ["EPERM", "EINTR"].map(str::to_owned);
    assert!(told[1].contains("EPERM") && told[1].iter().all(|errno| expected.contains(errno)), "{told:?}");
}

fn killed_while_waiting() {
    host().need(Feature::Python);
    let server = Setup::plain().shared();
    let mut session = session(&server, "default");
    let code = r"
import random, threading, time
for n in range(150):
    child = os.fork()
    if child == 0:
        for m in range(3):
            threading.Thread(target=lambda: [mount() for k in range(10000)]).start()
        while True: unshare()
    time.sleep(random.random() * 0.01)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
print(umount())";
    for _ in 0..2 {
        let answer = session.execute(&command(code));
        let seen: BTreeSet<&str> = names(&answer).into_iter().collect();
        assert_eq!((&answer["result"]["stdout"], seen.contains("umount2")), (&json!("EPERM\n"), true), "{answer}");
        session.write("file", "init answers");
        assert_eq!(session.read("file"), "init answers");
    }
}

fn audit_only() {
    host().need(Feature::Python);
    let directory = tempfile::tempdir().expect("a temporary directory");
    let text =
        include_str!("../../../profiles/default.toml").replace("name = \"default\"", "name = \"watch\"\naudit_only = true");
    std::fs::write(directory.path().join("watch.toml"), text).expect("written");
    let config = format!("[sandbox]\nprofiles = [\"default\", \"watch\"]\nprofile_dir = \"{}\"\n", directory.path().display());
    let file = directory.path().join("config");
    std::fs::write(&file, &config).expect("written");
    let server = crate::support::Server::start(&Setup { config, ..Setup::bare() });
    // ADDR_NO_RANDOMIZE: the default profile refuses it, and the kernel lets anybody have it.
    let code = command("print(errno_of(_libc.personality, 0x0040000), mount(), unshare())");
    let told = |profile: &str| {
        let mut session = session(&server, profile);
        let answer = session.execute(&code);
        assert_eq!(answer["success"], true, "{answer}");
        let names: Vec<String> = names(&answer).into_iter().map(str::to_owned).collect();
        let enforcement = session.created["enforcement"].clone();
        session.close();
        let row = enforcement["walls"].as_array().and_then(|rows| rows.iter().find(|row| row["name"] == "seccomp")).cloned();
        (answer["result"]["stdout"].clone(), names, enforcement["profile"]["auditOnly"].clone(), row.expect("a row"))
    };
    let (said, names, audits, row) = told("default");
    assert_eq!((said, audits, &row["state"]), (json!("EPERM EPERM EPERM\n"), json!(false), &json!("enforced")), "the control");
    assert_eq!(names, ["mount", "personality", "unshare"]);
    let (said, names, audits, row) = told("watch");
    assert_eq!((said, audits), (json!("ok EPERM EPERM\n"), json!(true)), "mount and unshare no profile may open");
    assert_eq!(names, ["personality"], "what the kernel itself refuses is not told");
    assert!(
        row["state"] == "degraded" && row["detail"].as_str().is_some_and(|detail| detail.starts_with("AUDIT ONLY")),
        "{row}"
    );
    assert!(server.log().lines().any(|line| line.contains("audits only") && line.contains("watch")), "{}", server.log());
    let doctor = server.cli(&["doctor", "--config", file.to_str().expect("text")]);
    assert!(doctor.stdout.contains("profile watch") && doctor.stdout.contains("AUDIT ONLY"), "{doctor:?}");
    assert_eq!(server.end_and_check(), Vec::<String>::new());
}

fn own_listener() {
    host().need(Feature::Python).need(Feature::X86);
    let server = Setup::plain().shared();
    let mut session = session(&server, "default");
    // One instruction: everything is allowed. 8 is SECCOMP_FILTER_FLAG_NEW_LISTENER.
    let code = r"
import struct
program = ctypes.create_string_buffer(struct.pack('HBBI', 6, 0, 0, 0x7fff0000))
header = ctypes.create_string_buffer(struct.pack('HxxxxxxP', 1, ctypes.addressof(program)))
print(json.dumps([call(317, 1, flags, ctypes.c_void_p(ctypes.addressof(header)))[1] for flags in (8, 0)] + [mount()]))
print(sorted(os.listdir('/proc/self/fd'))[:3], [os.readlink('/proc/self/fd/' + n) for n in '012' if 'seccomp' in os.readlink('/proc/self/fd/' + n)])";
    let answer = session.ok(&command(code));
    assert_eq!(answer["stdout"], "[\"EBUSY\", \"ok\", \"EPERM\"]\n['0', '1', '2'] []\n", "{answer}");
    assert_eq!(answer["blockedSyscalls"], json!(["mount"]), "a filter of its own takes nothing from ours");
}
