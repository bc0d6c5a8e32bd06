//! `session.stream` and what goes with it: events, input, signals, cancel, background executions.

use std::time::Duration;

use serde_json::{Value, json};

use crate::support::{Session, Setup, eventually, page};

pub fn trials() -> Vec<libtest_mimic::Trial> {
    page(
        "stream",
        &[
            ("events are started, output with rising seq, and exited once and last", events),
            ("output comes while the program runs", output_comes_early),
            ("session.input reaches the program and eof ends its input", input),
            ("base64 input carries any bytes, and base64 output any bytes", binary),
            ("a character cut between two writes arrives whole", cut_character),
            ("a file command can be streamed too", file_command),
            ("session.signal reaches the program", signal),
            ("session.cancel ends the program with the verdict cancelled", cancel),
            ("session.cancel without an id ends everything of the session", cancel_all),
            ("session.unstream ends the events, not the program", unstream),
            ("background answers at once and execution.status tells the end", background),
            ("input, signal and cancel of what is not there tell so", nothing_there),
            ("a slow reader gets dropped and then exited, and the program never waits", slow_reader),
        ],
    )
}

fn text_of(events: &[Value], stream: &str) -> String {
    events.iter().filter(|event| event["type"] == stream).filter_map(|event| event["data"].as_str()).collect()
}

fn bash(line: &str) -> Value {
    json!({"type": "execute_shell", "commandName": "bash", "args": ["-c", line]})
}

fn events() {
    let server = Setup::plain().shared();
    let mut session = Session::python(&server);
    let (subscription, execution) = session.stream(&bash("echo a; echo e >&2; echo b; exit 4"));
    let events = session.client.events(&subscription);
    assert_eq!((text_of(&events, "stdout"), text_of(&events, "stderr")), ("a\nb\n".into(), "e\n".into()));
    assert!(events.iter().all(|event| event["executionId"] == execution.as_str()), "{events:?}");
    let numbers: Vec<u64> = events.iter().filter_map(|event| event["seq"].as_u64()).collect();
    assert!(numbers.is_sorted_by(|a, b| a < b) && numbers.len() + 1 == events.len(), "{events:?}");
    let end = &events.last().expect("exited")["result"];
    assert_eq!((&end["executionId"], &end["errorKind"]), (&json!(execution), &json!("nonzero_exit")));
    assert_eq!((&end["result"]["exitCode"], &end["result"]["stdout"]), (&json!(4), &json!("a\nb\n")), "{end}");
    session.client.set_timeout(Duration::from_millis(300));
    assert!(session.client.event(&subscription).is_err(), "nothing comes after exited");
}

fn output_comes_early() {
    let server = Setup::plain().shared();
    let mut session = Session::python(&server);
    let (subscription, _) = session.stream(&bash("echo early; read -r line; echo late"));
    let event = session.client.event(&subscription).expect("an event");
    assert_eq!((&event["type"], &event["data"]), (&json!("stdout"), &json!("early\n")), "the program waits for input");
    session.client.ok("session.cancel", &json!({"sessionId": session.id}));
    session.client.events(&subscription);
}

fn input() {
    let server = Setup::plain().shared();
    let mut session = Session::python(&server);
    let (subscription, execution) = session.stream(&json!({"type": "execute_shell", "commandName": "cat"}));
    let id = session.id.clone();
    for data in ["one\n", "two\n"] {
        let reply = session.client.ok("session.input", &json!({"sessionId": id, "executionId": execution, "data": data}));
        assert_eq!(reply, json!({"accepted": true}));
    }
    session.client.ok("session.input", &json!({"sessionId": id, "executionId": execution, "data": "end", "eof": true}));
    let events = session.client.events(&subscription);
    assert_eq!(text_of(&events, "stdout"), "one\ntwo\nend");
    assert_eq!(events.last().expect("exited")["result"]["success"], true);
    let given = json!({"type": "execute_shell", "commandName": "cat", "stdin": "given"});
    let (subscription, _) = session.stream(&given);
    assert_eq!(text_of(&session.client.events(&subscription), "stdout"), "given", "stdin of the command ends by itself");
}

fn binary() {
    let server = Setup::plain().shared();
    let mut session = Session::python(&server);
    let (subscription, execution) =
        session.stream(&json!({"type": "execute_shell", "commandName": "od", "args": ["-An", "-tx1"]}));
    let id = session.id.clone();
    let parameters = json!({"sessionId": id, "executionId": execution, "data": "/wA=", "encoding": "base64", "eof": true});
    session.client.ok("session.input", &parameters);
    assert_eq!(text_of(&session.client.events(&subscription), "stdout").trim(), "ff 00");
    let (subscription, _) = session.stream(&json!({"type": "execute_shell", "commandName": "printf", "args": ["\\377"]}));
    let events = session.client.events(&subscription);
    let data = events.iter().find(|event| event["type"] == "stdout").expect("output");
    assert_eq!((&data["data"], &data["encoding"]), (&json!("/w=="), &json!("base64")));
}

fn cut_character() {
    let server = Setup::plain().shared();
    let mut session = Session::python(&server);
    let (subscription, _) = session.stream(&bash("printf 'a\\303'; sleep 0.3; printf '\\274b'"));
    let events = session.client.events(&subscription);
    assert!(events.iter().filter(|event| event["type"] == "stdout").all(|event| event["encoding"] == "utf8"), "{events:?}");
    assert_eq!(text_of(&events, "stdout"), "aüb");
}

fn file_command() {
    let server = Setup::plain().shared();
    let mut session = Session::python(&server);
    let command = json!({"type": "write_file", "path": "f", "content": "x"});
    let subscription = session.client.ok("session.stream", &json!({"sessionId": session.id, "command": command}));
    let events = session.client.events(&subscription);
    let end = events.last().expect("exited");
    assert_eq!((&end["result"]["success"], &end["result"]["result"]["bytes"]), (&json!(true), &json!(1)), "{events:?}");
}

fn signal() {
    let server = Setup::plain().shared();
    let mut session = Session::python(&server);
    let (subscription, execution) =
        session.stream(&bash("trap 'echo got; exit 9' USR1; echo ready; while :; do sleep 0.05; done"));
    assert_eq!(session.client.event(&subscription).expect("ready")["data"], "ready\n");
    let id = session.id.clone();
    let reply = session.client.ok("session.signal", &json!({"sessionId": id, "executionId": execution, "signal": "SIGUSR1"}));
    assert_eq!(reply, json!({"delivered": true}));
    let events = session.client.events(&subscription);
    assert_eq!(text_of(&events, "stdout"), "got\n");
    assert_eq!(events.last().expect("exited")["result"]["result"]["exitCode"], 9);
    let late = session.client.ok("session.signal", &json!({"sessionId": id, "executionId": execution, "signal": "SIGTERM"}));
    assert_eq!(late, json!({"delivered": false}), "it has ended");
}

fn cancel() {
    let server = Setup::plain().shared();
    let mut session = Session::python(&server);
    let (subscription, execution) =
        session.stream(&bash("trap '' TERM INT; echo ready; setsid sleep 777 & sleep 888; sleep 999"));
    assert_eq!(session.client.event(&subscription).expect("ready")["data"], "ready\n");
    let id = session.id.clone();
    let reply = session.client.ok("session.cancel", &json!({"sessionId": id, "executionId": execution}));
    assert_eq!(reply, json!({"cancelled": true}));
    let events = session.client.events(&subscription);
    assert_eq!(events.last().expect("exited")["result"]["errorKind"], "cancelled", "{events:?}");
    let left = session.bash("for p in /proc/[0-9]*; do tr '\\0' ' ' < $p/cmdline; echo; done");
    assert!(!left.contains("sleep"), "{left}");
}

fn cancel_all() {
    let server = Setup::plain().shared();
    let mut session = Session::python(&server);
    let id = session.id.clone();
    let background = json!({"type": "execute_shell", "commandName": "sleep", "args": ["60"], "background": true});
    let background = session.execute(&background)["executionId"].clone();
    let sleep = json!({"sessionId": id, "command": {"type": "execute_shell", "commandName": "sleep", "args": ["60"]}});
    let running = session.client.send("session.execute", &sleep).expect("sent");
    let queued = session.client.send("session.execute", &sleep).expect("sent");
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(session.client.ok("session.cancel", &json!({"sessionId": id})), json!({"cancelled": true}));
    for request in [running, queued] {
        assert_eq!(session.client.wait(request).expect("a reply")["errorKind"], "cancelled");
    }
    let mut failed = || session.client.ok("execution.status", &json!({"executionId": background}))["status"] == "failed";
    assert!(eventually(Duration::from_secs(5), &mut failed));
    assert_eq!(session.client.ok("session.cancel", &json!({"sessionId": id})), json!({"cancelled": false}));
}

fn unstream() {
    let server = Setup::plain().shared();
    let mut session = Session::python(&server);
    let (subscription, execution) = session.stream(&bash("sleep 1; echo done > marker"));
    assert_eq!(session.client.ok("session.unstream", &json!([subscription])), json!(true));
    let mut ended = || session.client.ok("execution.status", &json!({"executionId": execution}))["status"] == "completed";
    assert!(eventually(Duration::from_secs(10), &mut ended), "the program goes on without a listener");
    assert_eq!(session.read("marker"), "done\n");
}

fn background() {
    let server = Setup::plain().shared();
    let mut session = Session::python(&server);
    let mut command = bash("echo began; while ! test -e go; do sleep 0.05; done; echo ended; exit 3");
    command["background"] = json!(true);
    let answer = session.execute(&command);
    assert_eq!(answer["success"], true, "it was started: {answer}");
    let execution = json!({"executionId": answer["executionId"]});
    assert_eq!(session.client.ok("execution.status", &execution)["status"], "running");
    session.write("go", "the queue is free meanwhile");
    let mut status = Value::Null;
    let ended = eventually(Duration::from_secs(10), || {
        status = session.client.ok("execution.status", &execution);
        status["status"] == "failed"
    });
    assert!(ended, "{status}");
    assert_eq!((&status["exitCode"], &status["stdout"]), (&json!(3), &json!("began\nended\n")), "{status}");
}

fn nothing_there() {
    let server = Setup::plain().shared();
    let mut session = Session::python(&server);
    let id = session.id.clone();
    let unknown = "exe_00000000000000000000000000000000";
    let client = &mut session.client;
    client.error_is(
        "session.input",
        &json!({"sessionId": id, "executionId": unknown, "data": "x"}),
        1003,
        "execution_not_found",
    );
    client.error_is(
        "session.signal",
        &json!({"sessionId": id, "executionId": unknown, "signal": "SIGTERM"}),
        1003,
        "execution_not_found",
    );
    client.error_is("session.cancel", &json!({"sessionId": id, "executionId": unknown}), 1003, "execution_not_found");
    let ended = session.program("true", &[])["executionId"].clone();
    let input = json!({"sessionId": id, "executionId": ended, "data": "x"});
    assert_eq!(session.client.ok("session.input", &input), json!({"accepted": false}));
}

fn slow_reader() {
    let server = Setup::plain().with_config("[session]\nstream_buffer_bytes_max = 65536\n").shared();
    let mut session = Session::python(&server);
    // More than every socket buffer on the way holds, and less than the program may print.
    let command = json!({"type": "execute_shell", "commandName": "bash", "args": ["-c", "head -c 40000000 /dev/zero | tr '\\0' x; touch ended"]});
    let (subscription, execution) = session.stream(&command);
    let mut watcher = server.client();
    let ended = || watcher.ok("execution.status", &json!({"executionId": execution}))["status"] != "running";
    assert!(eventually(Duration::from_secs(50), ended), "the program waits for its reader");
    let events = session.client.events(&subscription);
    let lost: u64 = events.iter().filter(|event| event["type"] == "dropped").filter_map(|event| event["bytes"].as_u64()).sum();
    assert!(lost > 0, "{} events, none dropped", events.len());
    let kept = text_of(&events, "stdout").len() as u64;
    assert_eq!(kept + lost, 40_000_000, "every byte is either told or counted as lost");
    assert_eq!(events.last().expect("exited")["result"]["success"], true);
}
