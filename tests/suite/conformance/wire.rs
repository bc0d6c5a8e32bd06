//! JSON-RPC 2.0 as its specification says it: the examples, batches, notifications, broken input, order.

use std::time::Duration;

use codebeaker_client::Error;
use serde_json::{Value, json};

use crate::support::{Session, Setup, page};

pub fn trials() -> Vec<libtest_mimic::Trial> {
    page(
        "wire",
        &[
            ("what differs from the specification is as docs/protocol.md says", differences),
            ("a reply carries result or error, never both, and the id as it was sent", reply_shapes),
            ("broken JSON is -32700 with a null id, and the connection lives on", broken_json),
            ("JSON that is no request is -32600", not_a_request),
            ("an unknown method is -32601", unknown_method),
            ("pretty-printed JSON works", pretty_printed),
            ("a notification gets no reply, and is carried out", notification),
            ("a batch is answered as a batch, without its notifications", batch),
            ("a batch of notifications gets no reply", batch_of_notifications),
            ("an empty batch and a batch of nonsense are -32600, as in the specification", bad_batches),
            ("an unknown field is -32602 and is named", unknown_fields),
            ("a wrong type is -32602 and the field is named", wrong_types),
            ("JSON nested 100,000 deep gets a typed error, and the connection lives on", deep_json),
            ("500 commands pipelined on one connection are carried out in order", pipelined_order),
            ("a slow command of one session does not hold up another session", sessions_in_parallel),
            ("initialize is not needed before other calls", no_initialize),
        ],
    )
}

fn reply_shapes() {
    let server = Setup::plain().shared();
    let mut client = server.client();
    for id in [json!(1), json!("text"), json!(0), json!("")] {
        let good = client.raw(&json!({"jsonrpc": "2.0", "id": id, "method": "language.list"}).to_string());
        assert_eq!((&good["id"], &good["jsonrpc"]), (&id, &json!("2.0")));
        assert!(good.get("result").is_some() && good.get("error").is_none(), "{good}");
        let bad = client.raw(&json!({"jsonrpc": "2.0", "id": id, "method": "foobar"}).to_string());
        assert_eq!((&bad["id"], &bad["jsonrpc"]), (&id, &json!("2.0")));
        assert!(bad.get("result").is_none() && bad["error"]["message"].is_string(), "{bad}");
    }
}

fn broken_json() {
    let server = Setup::plain().shared();
    let mut client = server.client();
    for text in ["{\"jsonrpc\": \"2.0\", \"method\": \"foobar, \"params\": \"bar\", \"baz]", "{", "nonsense", ""] {
        let reply = client.raw(text);
        assert_eq!((&reply["error"]["code"], &reply["id"]), (&json!(-32700), &Value::Null), "{text:?}: {reply}");
    }
    let batch =
        "[{\"jsonrpc\": \"2.0\", \"method\": \"sum\", \"params\": [1,2,4], \"id\": \"1\"}, {\"jsonrpc\": \"2.0\", \"method\"]";
    assert_eq!(client.raw(batch)["error"]["code"], -32700);
    client.ok("language.list", &json!({}));
}

fn not_a_request() {
    let server = Setup::plain().shared();
    let mut client = server.client();
    let not_a_request =
        ["{\"foo\": \"boo\"}", "1", "\"text\"", "null", "{\"jsonrpc\": \"2.0\", \"method\": 1, \"params\": \"bar\"}"];
    for text in not_a_request {
        // jsonrpsee's parser takes some of these for broken JSON; docs/protocol.md lists them, as PROTOCOL section 1 lets it.
        let reply = client.raw(text);
        assert!([json!(-32600), json!(-32700)].contains(&reply["error"]["code"]), "{text}: {reply}");
    }
    client.ok("language.list", &json!({}));
}

fn unknown_method() {
    let server = Setup::plain().shared();
    let mut client = server.client();
    for method in ["foobar", "session", "session.Create", "rpc.unknown", ""] {
        assert_eq!(client.error(method, &json!({})).code, -32601, "{method}");
    }
}

fn pretty_printed() {
    let server = Setup::plain().shared();
    let request = json!({"jsonrpc": "2.0", "id": 5, "method": "initialize", "params": {"clientInfo": {"name": "t"}}});
    let text = serde_json::to_string_pretty(&request).expect("a value is printable");
    assert_eq!(server.client().raw(&format!("\n  {text}\r\n\t"))["id"], 5);
}

fn notification() {
    let server = Setup::plain().shared();
    let mut session = Session::python(&server);
    let command = json!({"type": "write_file", "path": "told", "content": "yes"});
    let parameters = json!({"sessionId": session.id, "command": command});
    session.client.notify("session.execute", &parameters).expect("the connection is open");
    session.client.notify("foobar", &json!({})).expect("the connection is open");
    assert_eq!(session.read("told"), "yes", "the queue keeps the order of notifications and calls");
    let silent = session.client.read(Duration::from_millis(200));
    assert!(matches!(silent, Err(Error::Deadline(_))), "{silent:?}");
}

fn batch() {
    let server = Setup::plain().shared();
    let text = json!([
        {"jsonrpc": "2.0", "method": "language.list", "id": "1"},
        {"jsonrpc": "2.0", "method": "language.list"},
        {"jsonrpc": "2.0", "method": "foo.get", "params": {"name": "myself"}, "id": "5"},
        {"foo": "boo"},
        {"jsonrpc": "2.0", "method": "runtime.list", "id": "9"},
    ]);
    let reply = server.client().raw(&text.to_string());
    let replies = reply.as_array().unwrap_or_else(|| panic!("not a batch: {reply}"));
    assert_eq!(replies.len(), 4, "{reply}");
    let of = |id: &Value| replies.iter().find(|reply| reply["id"] == *id).unwrap_or_else(|| panic!("no {id} in {reply}"));
    assert!(of(&json!("1"))["result"]["languages"].is_array());
    assert_eq!(of(&json!("5"))["error"]["code"], -32601);
    assert_eq!(of(&Value::Null)["error"]["code"], -32600);
    assert!(of(&json!("9"))["result"]["runtimes"].is_array());
}

fn batch_of_notifications() {
    let server = Setup::plain().shared();
    let mut session = Session::python(&server);
    let write = |name: &str| {
        let command = json!({"type": "write_file", "path": name, "content": name});
        json!({"jsonrpc": "2.0", "method": "session.execute", "params": {"sessionId": session.id, "command": command}})
    };
    let text = json!([write("one"), write("two")]).to_string();
    session.client.send_text(&text).expect("the connection is open");
    let silent = session.client.read(Duration::from_millis(300));
    assert!(matches!(silent, Err(Error::Deadline(_))), "{silent:?}");
    assert_eq!((session.read("one"), session.read("two")), ("one".into(), "two".into()));
}

fn bad_batches() {
    let server = Setup::plain().shared();
    let mut client = server.client();
    let empty = client.raw("[]");
    assert_eq!((&empty["error"]["code"], &empty["id"]), (&json!(-32600), &Value::Null), "{empty}");
    for (text, count) in [("[1]", 1), ("[1,2,3]", 3)] {
        let reply = client.raw(text);
        let replies = reply.as_array().unwrap_or_else(|| panic!("not a batch: {reply}"));
        assert_eq!(replies.len(), count, "{reply}");
        assert!(replies.iter().all(|reply| reply["error"]["code"] == -32600), "{reply}");
    }
}

fn differences() {
    let server = Setup::plain().shared();
    let mut session = Session::python(&server);
    for (text, id, code) in [
        (r#"{"foo":"boo"}"#, Value::Null, -32700),
        (r#"{"jsonrpc":"2.0","method":1,"params":"bar"}"#, Value::Null, -32700),
        (r#""x""#, Value::Null, -32700),
        (r#"{"id":3,"foo":"boo"}"#, json!(3), -32600),
        (r#"{"jsonrpc":"1.0","id":"a","method":"session.list"}"#, json!("a"), -32600),
    ] {
        let reply = session.client.raw(text);
        assert_eq!((&reply["id"], error_code(&reply)), (&id, code), "{text}: {reply}");
    }
    for (number, id) in ["-1", "1.5", "{}", "true", "18446744073709551616"].into_iter().enumerate() {
        let command = json!({"type": "write_file", "path": format!("told{number}"), "content": id});
        let params = json!({"sessionId": session.id, "command": command});
        let text = format!(r#"{{"jsonrpc":"2.0","id":{id},"method":"session.execute","params":{params}}}"#);
        session.client.send_text(&text).expect("the connection is open");
        assert_eq!(session.read(&format!("told{number}")), id, "it is carried out");
    }
    let silent = session.client.read(Duration::from_millis(200));
    assert!(matches!(silent, Err(Error::Deadline(_))), "{silent:?}");
}

fn unknown_fields() {
    let server = Setup::plain().shared();
    let mut session = Session::python(&server);
    let id = session.id.clone();
    let client = &mut session.client;
    client.invalid("session.create", &json!({"language": "python", "memoryLimitMb": 1}), "memoryLimitMb");
    client.invalid("session.get", &json!({"sessionId": id, "bogus": 1}), "bogus");
    client.invalid("session.list", &json!({"bogus": 1}), "bogus");
    client.invalid("session.close", &json!({"sessionId": id, "bogus": 1}), "bogus");
    client.invalid("initialize", &json!({"bogus": 1}), "bogus");
    client.invalid("execution.status", &json!({"executionId": "exe_1", "bogus": 1}), "bogus");
    client.invalid("execution.run", &json!({"language": "python", "code": "", "bogus": 1}), "bogus");
    client.invalid(
        "session.execute",
        &json!({"sessionId": id, "command": {"type": "read_file", "path": "x", "bogus": 1}}),
        "bogus",
    );
    client.invalid("session.execute", &json!({"sessionId": id, "command": {"type": "no_such"}}), "type");
    client.invalid("session.execute", &json!({"sessionId": id, "command": {"path": "x"}}), "type");
}

fn wrong_types() {
    let server = Setup::plain().shared();
    let mut session = Session::python(&server);
    let id = session.id.clone();
    let client = &mut session.client;
    client.invalid("session.create", &json!({}), "language");
    client.invalid("session.create", &json!({"language": 1}), "language");
    for (field, value) in [
        ("memoryLimitMB", json!("512")),
        ("memoryLimitMB", json!(-1)),
        ("idleTimeoutMinutes", json!(-1)),
        ("idleTimeoutMinutes", json!("soon")),
        ("cpuLimit", json!(-0.5)),
        ("pidsLimit", json!([])),
        ("persistFilesystem", json!("yes")),
        ("runtimePreference", json!("Fast")),
        ("runtimeType", json!("Jail")),
        ("onDisconnect", json!("explode")),
        ("env", json!({"A": 1})),
        ("packages", json!("numpy")),
    ] {
        client.invalid("session.create", &json!({"language": "python", (field): value}), field);
    }
    for (command, field) in [
        (json!({"type": "read_file"}), "path"),
        (json!({"type": "read_file", "path": 7}), "path"),
        (json!({"type": "read_file", "path": "x", "offset": -1}), "offset"),
        (json!({"type": "read_file", "path": "x", "encoding": "latin1"}), "encoding"),
        (json!({"type": "write_file", "path": "x", "content": "!!", "encoding": "base64"}), "content"),
        (json!({"type": "write_file", "path": "x", "content": "", "mode": "Truncate"}), "mode"),
        (json!({"type": "write_file", "path": "x", "content": "", "permissions": "9"}), "permissions"),
        (json!({"type": "execute_shell", "commandName": "true", "args": "x"}), "args"),
        (json!({"type": "execute_shell", "commandName": "true", "timeoutSeconds": 0}), "timeout"),
        (json!({"type": "execute_shell", "commandName": "a\0b"}), "commandName"),
        (json!({"type": "execute_shell", "commandName": "true", "env": {"A=B": "c"}}), "env"),
        (json!({"type": "list_directory", "pattern": "[a"}), "pattern"),
    ] {
        client.invalid("session.execute", &json!({"sessionId": id, "command": command}), field);
    }
    client.invalid("session.execute", &json!({"sessionId": id}), "command");
    client.invalid("session.execute", &json!({"command": {"type": "list_directory"}}), "sessionId");
    client.invalid("session.signal", &json!({"sessionId": id, "executionId": "exe_1", "signal": "SIGNOTHING"}), "signal");
}

fn deep_json() {
    let server = Setup::plain().shared();
    let mut client = server.client();
    let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    let whole = client.raw(&deep);
    assert!(error_code(&whole) <= -32600, "{whole}");
    let inside = client.raw(&format!(r#"{{"jsonrpc":"2.0","id":1,"method":"session.create","params":{{"metadata":{deep}}}}}"#));
    assert!(error_code(&inside) <= -32600, "{inside}");
    client.ok("language.list", &json!({}));
}

/// The code of an error reply, alone or as the only one of a batch.
fn error_code(reply: &Value) -> i64 {
    let error = reply.get(0).unwrap_or(reply);
    error["error"]["code"].as_i64().unwrap_or_default()
}

fn pipelined_order() {
    let server = Setup::plain().shared();
    let mut session = Session::python(&server);
    let id = session.id.clone();
    // Fewer in flight than the bound of 256 requests; the rest follows as replies come.
    let mut sent = Vec::new();
    for number in 0..500 {
        let command = json!({"type": "write_file", "path": "log", "content": format!("{number}\n"), "mode": "Append"});
        sent.push(session.client.send("session.execute", &json!({"sessionId": id, "command": command})).expect("sent"));
        if number >= 200 {
            let done = session.client.wait(sent[number - 200]).expect("a reply");
            assert_eq!(done["success"], true, "{done}");
        }
    }
    for request in &sent[300..] {
        assert_eq!(session.client.wait(*request).expect("a reply")["success"], true);
    }
    let lines: Vec<u32> = session.read("log").lines().map(|line| line.parse().expect("a number")).collect();
    assert_eq!(lines, (0..500).collect::<Vec<u32>>());
}

fn sessions_in_parallel() {
    let server = Setup::plain().shared();
    let mut slow = Session::python(&server);
    let mut quick = Session::python(&server);
    let command = json!({"type": "execute_shell", "commandName": "sleep", "args": ["3"]});
    let request = slow.client.send("session.execute", &json!({"sessionId": slow.id, "command": command})).expect("sent");
    let begin = std::time::Instant::now();
    quick.write("x", "y");
    assert!(begin.elapsed() < Duration::from_millis(2500), "the other session waited {:?}", begin.elapsed());
    assert_eq!(slow.client.wait(request).expect("a reply")["success"], true);
}

fn no_initialize() {
    let server = Setup::plain().shared();
    assert_eq!(server.client().ok("session.list", &json!({"language": "no such language"}))["count"], 0);
}
