//! `execute_shell` and the execution result: arguments, streams, environment, ends of every kind.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::{Session, Setup, pace, page};

pub fn trials() -> Vec<libtest_mimic::Trial> {
    page(
        "programs",
        &[
            ("an execution result has every promised field", shape),
            ("one array element is one argument, without a shell in between", arguments),
            ("stdin is given and then ends, and without one it ends at once", stdin),
            ("working directory and environment are as asked", surroundings),
            ("a program's own exit code is a result, not an RPC error", exit_codes),
            ("a signal is 128+n with its name", signals),
            ("a timeout is a timeout, also for a program that ignores SIGTERM", timeouts),
            ("a missing program and one that can't be executed have their own verdicts", cannot_start),
            ("output that is no UTF-8 comes as base64", binary_output),
            ("stdout and stderr are kept apart", both_streams),
            ("a program moves and links files from one directory into another under every profile", moves),
            ("output past the limit keeps its first and last part and says so", truncated),
            ("what a command ends takes its children along, also after setsid", descendants_end),
            ("the answer comes when the program ends, not when its children close their pipes", open_pipe),
            ("nothing runs outside the image when persistFilesystem is false", not_persistent),
        ],
    )
}

fn shape() {
    let server = Setup::plain().shared();
    let mut session = Session::python(&server);
    let answer = session.program("true", &[]);
    assert_eq!((&answer["success"], &answer["error"]), (&json!(true), &Value::Null));
    let result = &answer["result"];
    assert_eq!((&result["stdout"], &result["stderr"], &result["exitCode"]), (&json!(""), &json!(""), &json!(0)), "{result}");
    assert_eq!(
        (&result["timedOut"], &result["oomKilled"], &result["signal"]),
        (&json!(false), &json!(false), &Value::Null),
        "{result}"
    );
    assert_eq!(result["truncated"], json!({"stdout": false, "stderr": false}));
    let usage = result["usage"].as_object().expect("usage");
    assert!(["cpuMs", "memoryPeakBytes", "pidsPeak"].iter().all(|field| usage.contains_key(*field)), "{result}");
}

fn arguments() {
    let server = Setup::plain().shared();
    let mut session = Session::python(&server);
    let words = ["a b", "", "$HOME", "*", "ü", "'\"", "-n", "line\nend"];
    let mut all = vec!["-c", "import sys, json; print(json.dumps(sys.argv[1:]))"];
    all.extend(words);
    let answer = session.program("python3", &all);
    let told: Value = serde_json::from_str(answer["result"]["stdout"].as_str().expect("text")).expect("JSON");
    assert_eq!(told, json!(words));
    let id = session.id.clone();
    let bad = json!({"sessionId": id, "command": {"type": "execute_shell", "commandName": "echo", "args": ["a\0b"]}});
    session.client.invalid("session.execute", &bad, "args");
}

fn stdin() {
    let server = Setup::plain().shared();
    let mut session = Session::python(&server);
    let large = "line\n".repeat(100_000);
    for text in ["", "word", large.as_str()] {
        let result = session.ok(&json!({"type": "execute_shell", "commandName": "wc", "args": ["-c"], "stdin": text}));
        assert_eq!(result["stdout"].as_str().map(str::trim), Some(text.len().to_string().as_str()));
    }
    assert_eq!(session.ok(&json!({"type": "execute_shell", "commandName": "cat"}))["stdout"], "");
    let unread = session.ok(&json!({"type": "execute_shell", "commandName": "true", "stdin": large}));
    assert_eq!(unread["exitCode"], 0, "a program need not read its input");
}

fn surroundings() {
    let server = Setup::plain().shared();
    let mut session = Session::python(&server);
    session.ok(&json!({"type": "create_directory", "path": "sub"}));
    for (directory, told) in [("sub", "/workspace/sub"), ("/tmp", "/tmp"), (".", "/workspace")] {
        let command = json!({"type": "execute_shell", "commandName": "pwd", "workingDirectory": directory});
        assert_eq!(session.ok(&command)["stdout"], format!("{told}\n"));
    }
    let absent = session.execute(&json!({"type": "execute_shell", "commandName": "pwd", "workingDirectory": "absent"}));
    assert_eq!(absent["success"], false, "{absent}");
    let command = json!({"type": "execute_shell", "commandName": "printenv", "args": ["WORD"], "env": {"WORD": "a=b\nc"}});
    assert_eq!(session.ok(&command)["stdout"], "a=b\nc\n");
    assert!(session.bash("echo $PATH").contains("/usr/bin"));
}

fn exit_codes() {
    let server = Setup::plain().shared();
    let mut session = Session::python(&server);
    for code in [1, 2, 77, 125, 126, 127, 255] {
        let command = json!({"type": "execute_shell", "commandName": "bash", "args": ["-c", format!("echo out; exit {code}")]});
        let answer = session.fails(&command, "nonzero_exit");
        assert_eq!((&answer["result"]["exitCode"], &answer["result"]["stdout"]), (&json!(code), &json!("out\n")), "{answer}");
        assert_eq!((&answer["success"], &answer["result"]["signal"]), (&json!(false), &Value::Null));
    }
}

fn signals() {
    let server = Setup::plain().shared();
    let mut session = Session::python(&server);
    for (name, number) in [("SIGKILL", 9), ("SIGTERM", 15), ("SIGSEGV", 11), ("SIGABRT", 6)] {
        let code = format!("import os, signal; os.kill(os.getpid(), signal.{name})");
        let command = json!({"type": "execute_shell", "commandName": "python3", "args": ["-c", code]});
        let answer = session.fails(&command, "signaled");
        assert_eq!(
            (&answer["result"]["signal"], &answer["result"]["exitCode"]),
            (&json!(name), &json!(128 + number)),
            "{answer}"
        );
    }
}

fn timeouts() {
    let server = Setup::plain().shared();
    let mut session = Session::python(&server);
    for line in ["echo before; sleep 60", "trap '' TERM; echo before; while true; do :; done"] {
        let begin = Instant::now();
        let command = json!({"type": "execute_shell", "commandName": "bash", "args": ["-c", line], "timeoutSeconds": pace()});
        let answer = session.fails(&command, "timeout");
        assert_eq!((&answer["result"]["timedOut"], &answer["success"]), (&json!(true), &json!(false)), "{answer}");
        assert_eq!(answer["result"]["stdout"], "before\n", "what came before the end is kept");
        assert!(begin.elapsed() < Duration::from_secs(15) * pace(), "{line}: {:?}", begin.elapsed());
    }
    session.write("after", "the session lives on");
    let id = session.id.clone();
    let too_long = json!({"type": "execute_shell", "commandName": "true", "timeoutSeconds": 1_000_000});
    session.client.error_is("session.execute", &json!({"sessionId": id, "command": too_long}), 1202, "policy_denied");
}

fn cannot_start() {
    let server = Setup::plain().shared();
    let mut session = Session::python(&server);
    for program in ["no-such-program", "./absent", "/absent/program"] {
        session.fails(&json!({"type": "execute_shell", "commandName": program}), "program_not_found");
    }
    session.write("plain.txt", "not a program");
    session.fails(&json!({"type": "execute_shell", "commandName": "./plain.txt"}), "permission_denied");
    session.fails(&json!({"type": "execute_shell", "commandName": "/workspace"}), "permission_denied");
}

fn binary_output() {
    let server = Setup::plain().shared();
    let mut session = Session::python(&server);
    let answer = session.program("printf", &["\\377\\000x"]);
    let result = &answer["result"];
    assert_eq!((&result["stdout"], &result["stdoutEncoding"]), (&json!("/wB4"), &json!("base64")), "{result}");
    assert_eq!(session.bash("printf 'ü'"), "ü");
}

fn both_streams() {
    let server = Setup::plain().shared();
    let mut session = Session::python(&server);
    let result = session.ok(
        &json!({"type": "execute_shell", "commandName": "bash", "args": ["-c", "echo o1; echo e1 >&2; echo o2; echo e2 >&2"]}),
    );
    assert_eq!((&result["stdout"], &result["stderr"]), (&json!("o1\no2\n"), &json!("e1\ne2\n")));
}

fn moves() {
    let server = Setup::plain().shared();
    let code = "import os\nos.makedirs('a/b'); os.mkdir('c'); open('f', 'w').write('text')\n\
                os.link('f', 'a/linked'); os.rename('f', 'a/b/moved'); os.rename('a', 'c/a')\n\
                print(open('c/a/b/moved').read(), os.stat('c/a/linked').st_nlink)";
    for profile in ["strict", "default", "permissive"] {
        let mut session = Session::open(&server, &json!({"profile": profile}));
        assert_eq!(session.run(code), "text 2", "{profile}");
        let across = "import errno, os, shutil\nopen('/tmp/x', 'w').write('text')\n\
                      try: os.rename('/tmp/x', 'x')\n\
                      except OSError as error: print(errno.errorcode[error.errno])\n\
                      shutil.move('/tmp/x', 'x'); print(open('x').read())";
        assert_eq!(session.run(across), "EXDEV\ntext", "{profile}");
    }
}

fn truncated() {
    let server = Setup::plain().shared();
    let mut session = Session::open(&server, &json!({"profile": "strict"}));
    let result = session.ok(&json!({"type": "execute_code", "code": "print('first', 'x' * (3 << 20), 'last')"}));
    let stdout = result["stdout"].as_str().expect("text");
    assert_eq!(result["truncated"], json!({"stdout": true, "stderr": false}));
    assert!(
        stdout.starts_with("first") && stdout.trim_end().ends_with("last") && stdout.len() < 3 << 20,
        "{} bytes",
        stdout.len()
    );
}

/// Command lines of the session's processes, from inside.
fn running(session: &mut Session<'_>) -> String {
    session.bash("for p in /proc/[0-9]*; do tr '\\0' ' ' < $p/cmdline; echo; done")
}

fn descendants_end() {
    let server = Setup::plain().shared();
    let mut session = Session::python(&server);
    let background = json!({"type": "execute_shell", "commandName": "sleep", "args": ["1111"], "background": true});
    let background = session.execute(&background)["executionId"].clone();
    session.bash("setsid sleep 2222 >/dev/null 2>&1 & (setsid sleep 3333 >/dev/null 2>&1 &) ; echo done");
    let command = json!({"type": "execute_shell", "commandName": "bash", "args": ["-c", "setsid sleep 4444 & sleep 60"], "timeoutSeconds": pace()});
    session.fails(&command, "timeout");
    let left = running(&mut session);
    for gone in ["2222", "3333", "4444"] {
        assert!(!left.contains(&format!("sleep {gone}")), "{left}");
    }
    assert!(left.contains("sleep 1111"), "the background execution is another's: {left}");
    let status = session.client.ok("execution.status", &json!({"executionId": background}));
    assert_eq!(status["status"], "running", "{status}");
}

fn open_pipe() {
    let server = Setup::plain().shared();
    let mut session = Session::python(&server);
    let begin = Instant::now();
    assert_eq!(session.bash("sleep 50 & echo parent"), "parent");
    assert!(begin.elapsed() < Duration::from_secs(10) * pace(), "it waited for the child's pipe: {:?}", begin.elapsed());
}

fn not_persistent() {
    let server = Setup::plain().shared();
    let mut session = Session::open(&server, &json!({"persistFilesystem": false}));
    session.bash("echo one > by-program; echo tmp > /tmp/by-program");
    session.write("by-command", "kept for the next");
    assert_eq!(
        session.bash("cat by-command; test -e by-program || echo gone; test -e /tmp/by-program || echo gone"),
        "kept for the nextgone\ngone"
    );
    assert_eq!(session.bash("test -e by-command || echo gone"), "gone", "it was kept for one execution only");
    let mut persistent = Session::python(&server);
    persistent.bash("echo one > by-program");
    assert_eq!(persistent.bash("cat by-program"), "one");
}
