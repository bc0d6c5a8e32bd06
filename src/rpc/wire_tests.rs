//! The whole server over real loopback sockets, with a fake session service below it.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use serde_json::{Value, json};

use super::auth::{Tokens, first_token};
use super::server::{Authentication, ServeError, Server, ServerParts};
use super::testing::{FLOOD_BYTES, Running, SESSION};
use crate::config::ServerConfig;

fn shell(program: &str) -> Value {
    json!({"sessionId": SESSION, "command": {"type": "shell", "command": program}})
}

fn request(id: &Value, method: &str, params: &Value) -> Value {
    json!({"jsonrpc": "2.0", "id": id, "method": method, "params": params})
}

#[tokio::test]
async fn every_method_answers_in_its_shape() {
    let server = Running::plain();
    let mut client = server.connect().await;
    let session = json!({"sessionId": SESSION});
    let execution = |more: Value| {
        let mut params = json!({"sessionId": SESSION, "executionId": "exe_1"});
        params.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
        params
    };
    let cases = [
        ("initialize", json!({}), "/protocolVersion", json!("1.0")),
        ("language.list", json!({}), "/languages", json!([])),
        ("runtime.list", json!({}), "/runtimes", json!([])),
        ("session.create", json!({"language": "python"}), "/containerId", json!("env_1")),
        ("session.execute", shell("ls"), "/result/stdout", json!("ls")),
        ("session.input", execution(json!({"data": "aGk=", "encoding": "base64", "eof": true})), "/accepted", json!(true)),
        ("session.signal", execution(json!({"signal": "SIGINT"})), "/delivered", json!(true)),
        ("session.cancel", session.clone(), "/cancelled", json!(false)),
        ("session.get", session.clone(), "/config/onDisconnect", json!("keep")),
        ("session.list", json!({"state": "Active"}), "/count", json!(1)),
        ("session.close", session, "/closed", json!(true)),
        ("execution.run", json!({"language": "python", "code": "1"}), "/status", json!("queued")),
        ("execution.status", json!({"executionId": "exe_1"}), "/status", json!("completed")),
        ("execution.status", json!({"executionId": "exe_2"}), "/status", json!("not_found")),
        ("rpc.discover", json!({}), "/info/title", json!("CodeBeaker")),
    ];
    for (method, params, pointer, expected) in cases {
        let reply = client.call(method, params).await;
        assert_eq!(reply["result"].pointer(pointer), Some(&expected), "{method}: {reply}");
        assert!(reply.get("error").is_none());
    }
    let journal = server.fake.journal();
    for line in ["input exe_1 hi true", "signal exe_1 2", "cancel false", "run 30"] {
        assert!(journal.iter().any(|noted| noted == line), "{line}: {journal:?}");
    }
}

#[tokio::test]
async fn a_stream_ends_with_exited_and_never_cuts_a_character() {
    let server = Running::plain();
    let mut client = server.connect().await;
    let subscription = client.call("session.stream", shell("ls")).await["result"].clone();
    let mut events = Vec::new();
    for _ in 0..5 {
        let message = client.next().await;
        assert_eq!((&message["method"], &message["params"]["subscription"]), (&"session.output".into(), &subscription));
        events.push(message["params"]["result"].clone());
    }
    let types: Vec<&str> = events.iter().filter_map(|event| event["type"].as_str()).collect();
    assert_eq!(types, ["started", "stdout", "stdout", "dropped", "exited"]);
    assert_eq!((&events[1]["data"], &events[2]["data"]), (&"a".into(), &"éb".into()));
    assert_eq!(events[4]["result"]["success"], true);
    client.expect_alive().await;
    let unknown = client.call("session.unstream", json!({"subscription": "nothing"})).await;
    assert_eq!(unknown["result"], false);
    let refused =
        client.call("session.stream", json!({"sessionId": "ses_2", "command": {"type": "read_file", "path": "a"}})).await;
    assert_eq!(refused["error"]["code"], 1001);
}

#[tokio::test]
async fn a_thousand_pipelined_calls_stand_in_the_queue_as_they_were_sent() {
    let server = Running::start(|config| config.requests_in_flight_max = 2000, Authentication::Off);
    let mut client = server.connect().await;
    for number in 0..1000 {
        let method = if number % 10 == 9 { "session.stream" } else { "session.execute" };
        client.send(request(&json!(number), method, &shell(&number.to_string())).to_string()).await;
    }
    let mut answers = 0;
    while answers < 1000 {
        answers += usize::from(client.next().await.get("id").is_some());
    }
    let order: Vec<String> =
        server.fake.journal().iter().filter_map(|line| line.split(' ').nth(1).map(str::to_owned)).collect();
    let sent: Vec<String> = (0..1000).map(|number| number.to_string()).collect();
    assert_eq!(order, sent);
}

#[tokio::test]
async fn batches_hold_calls_notifications_and_refusals() {
    let server = Running::plain();
    let mut client = server.connect().await;
    let batch = json!([
        request(&json!(1), "session.execute", &shell("first")),
        {"jsonrpc": "2.0", "method": "session.execute", "params": shell("second")},
        request(&json!("c"), "session.execute", &shell("third")),
        {"foo": "boo"},
        request(&json!(5), "foo.get", &json!({})),
        request(&json!(6), "session.stream", &shell("fourth")),
    ]);
    let reply = client.ask(batch.to_string()).await;
    let codes: Vec<Value> = reply.as_array().expect("an array").iter().map(|answer| answer["error"]["code"].clone()).collect();
    assert_eq!(codes, [Value::Null, Value::Null, (-32600).into(), (-32601).into(), (-32600).into()], "{reply}");
    assert_eq!(server.fake.journal(), ["execute first", "execute second", "execute third"]);
    // A batch of notifications alone gets no answer: the next one is the next call's.
    client.send(json!([{"jsonrpc": "2.0", "method": "session.close", "params": {"sessionId": SESSION}}]).to_string()).await;
    client.expect_alive().await;
    assert_eq!(server.fake.journal().len(), 4);
    let many: Vec<Value> = (0..65).map(|id| request(&json!(id), "session.list", &json!({}))).collect();
    assert_eq!(client.ask(Value::from(many).to_string()).await["error"]["code"], -32010);
    client.expect_alive().await;
}

#[tokio::test]
async fn a_notification_is_executed_without_an_answer() {
    let server = Running::plain();
    let mut client = server.connect().await;
    for method in ["session.execute", "session.stream"] {
        client.send(json!({"jsonrpc": "2.0", "method": method, "params": shell(method)}).to_string()).await;
    }
    client.expect_alive().await;
    assert_eq!(server.fake.journal(), ["execute session.execute", "stream session.stream"]);
}

#[tokio::test]
async fn the_examples_of_the_specification_and_bad_json_get_their_codes() {
    let server = Running::plain();
    let mut client = server.connect().await;
    let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    let deep_params = format!(r#"{{"jsonrpc":"2.0","id":1,"method":"session.list","params":{{"a":{deep}}}}}"#);
    let cases = [
        (r#"{"jsonrpc": "2.0", "method": "foobar", "id": "1"}"#, -32601),
        (r#"{"jsonrpc": "2.0", "method": "foobar, "params": "bar", "baz]"#, -32700),
        (r#"[{"jsonrpc": "2.0", "method": "sum", "params": [1,2,4], "id": "1"},{"jsonrpc": "2.0", "method"]"#, -32700),
        ("[]", -32600),
        ("hello", -32700),
        ("", -32700),
        (deep_params.as_str(), -32602),
        (r#"{"jsonrpc":"2.0","id":1,"method":"session.list","params":[1]}"#, -32602),
        (r#"{"jsonrpc":"2.0","id":1,"method":"session.get","params":{"sessionId":"ses_2"}}"#, 1001),
        (r#"{"jsonrpc":"2.0","id":1,"method":"session.get","params":{"sessionid":"x"}}"#, -32602),
    ];
    for (text, code) in cases {
        let reply = client.ask(text).await;
        assert_eq!(reply["error"]["code"], code, "{}: {reply}", &text[..text.len().min(80)]);
        assert!(reply.get("result").is_none());
    }
    let invalid = client.ask("[1,2,3]").await;
    assert_eq!(invalid.as_array().map(Vec::len), Some(3));
    assert_eq!(invalid[0], json!({"jsonrpc": "2.0", "error": {"code": -32600, "message": "Invalid request"}, "id": null}));
    let pretty = serde_json::to_string_pretty(&request(&json!(1), "session.list", &json!({}))).expect("JSON");
    assert_eq!(client.ask(format!("\n  {pretty}\n")).await["result"]["count"], 1);
}

#[tokio::test]
async fn a_request_past_the_bound_gets_a_typed_error_and_the_connection_lives_on() {
    let server = Running::start(|config| config.request_bytes_max = 100_000, Authentication::Off);
    let mut client = server.connect().await;
    let large = request(&json!(1), "session.list", &json!({"language": "x".repeat(150_000)})).to_string();
    assert_eq!(client.ask(large.clone()).await["error"]["code"], -32007);
    client.expect_alive().await;
    let (status, body) = server.http("POST / HTTP/1.1", &large).await;
    assert_eq!(status, 413, "{body}");
}

#[tokio::test]
async fn in_flight_and_rate_bounds_hold_for_batches_and_notifications_too() {
    let server = Running::start(|config| config.requests_in_flight_max = 2, Authentication::Off);
    let mut client = server.connect().await;
    client.send(json!({"jsonrpc": "2.0", "method": "session.execute", "params": shell("hang")}).to_string()).await;
    let hang = |id: u32| request(&json!(id), "session.execute", &shell("hang"));
    client.send(hang(2).to_string()).await;
    let reply = client.ask(hang(3).to_string()).await;
    assert_eq!((&reply["id"], &reply["error"]["code"]), (&3.into(), &1302.into()));
    assert_eq!(client.ask(json!([hang(4)]).to_string()).await[0]["error"]["code"], 1302);
    assert_eq!(server.fake.journal().len(), 2);

    let limited = Running::start(|config| config.rate_limit_per_s = 3, Authentication::Off);
    let mut client = limited.connect().await;
    client.send(json!([{"jsonrpc": "2.0", "method": "session.close", "params": {"sessionId": "a"}}]).to_string()).await;
    client.expect_alive().await;
    let pair = [hang(1), request(&json!(2), "session.list", &json!({}))];
    let list = request(&json!(3), "session.list", &json!({}));
    let reply = client.ask(json!([list, pair[1]]).to_string()).await;
    assert_eq!((&reply[0]["result"]["count"], &reply[1]["error"]["code"]), (&1.into(), &1301.into()), "{reply}");
    assert!(reply[1]["error"]["data"]["retryAfterMs"].as_u64().is_some_and(|ms| (1..1000).contains(&ms)));
}

#[tokio::test]
async fn only_a_good_token_upgrades_and_posts() {
    let dir = tempfile::tempdir().expect("a directory for the test");
    let tokens = Arc::new(Tokens::open(dir.path()).expect("a first start"));
    let text = first_token(dir.path()).expect("the first token");
    let server = Running::start(|_| (), Authentication::Tokens(tokens));
    assert_eq!(server.connect_with(&[]).await.err(), Some(401));
    assert_eq!(server.connect_with(&[("authorization", "Bearer no")]).await.err(), Some(401));
    let pair = format!("codebeaker, bearer.{text}");
    let (mut client, response) = server.connect_with(&[("sec-websocket-protocol", &pair)]).await.expect("a good pair");
    assert_eq!(response.headers()["sec-websocket-protocol"], "codebeaker");
    client.expect_alive().await;
    let bearer = format!("Bearer {text}");
    let (mut client, _) = server.connect_with(&[("authorization", &bearer)]).await.expect("a good header");
    client.call("session.create", json!({"language": "python"})).await;
    assert!(server.fake.journal()[0].starts_with("create default python Some("));
    let list = request(&json!(1), "session.list", &json!({})).to_string();
    assert_eq!(server.http("POST / HTTP/1.1", &list).await.0, 401);
    let (status, body) = server.http(&format!("POST / HTTP/1.1\r\nAuthorization: {bearer}"), &list).await;
    assert_eq!(status, 200, "{body}");
    assert_eq!(server.http("GET /health/live HTTP/1.1", "").await.0, 200);
}

#[tokio::test]
async fn a_foreign_host_or_origin_is_turned_away_without_tokens_too() {
    let server = Running::plain();
    assert_eq!(server.connect_with(&[("origin", "https://evil.example")]).await.err(), Some(403));
    assert_eq!(server.connect_with(&[("host", "evil.example")]).await.err(), Some(403));
    assert!(server.connect_with(&[("host", "localhost:1")]).await.is_ok());
}

#[tokio::test]
async fn http_serves_calls_health_and_the_document_but_no_streams() {
    let server = Running::plain();
    let (status, body) =
        server.http("POST /ws/jsonrpc HTTP/1.1", &request(&json!(1), "session.list", &json!({})).to_string()).await;
    assert!(status == 200 && body.contains("\"count\":1"), "{status} {body}");
    let (_, body) = server.http("POST / HTTP/1.1", &request(&json!(1), "session.stream", &shell("ls")).to_string()).await;
    assert!(body.contains("-32601"), "{body}");
    let close = request(&json!(1), "session.create", &json!({"language": "python", "onDisconnect": "close"}));
    assert!(server.http("POST / HTTP/1.1", &close.to_string()).await.1.contains("onDisconnect"));
    for (path, status) in
        [("/health/live", 200), ("/health/ready", 200), ("/health", 503), ("/openrpc.json", 200), ("/nope", 404)]
    {
        assert_eq!(server.http(&format!("GET {path} HTTP/1.1"), "").await.0, status, "{path}");
    }
}

#[tokio::test]
async fn one_connection_too_many_is_told_so() {
    let server = Running::start(|config| config.connections_max = 1, Authentication::Off);
    let mut client = server.connect().await;
    client.expect_alive().await;
    assert_eq!(server.connect_with(&[]).await.err(), Some(503));
    drop(client);
    for _ in 0..100 {
        if server.connect_with(&[]).await.is_ok() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("the place of the closed connection is not free");
}

#[tokio::test]
async fn the_end_of_a_connection_is_told_and_shutdown_closes_the_rest() {
    let mut server = Running::plain();
    let mut client = server.connect().await;
    client.expect_alive().await;
    drop(client);
    let mut told = false;
    for _ in 0..100 {
        told = server.fake.journal().iter().any(|line| line.starts_with("disconnected"));
        if told {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(told);
    let mut client = server.connect().await;
    client.send(request(&json!(7), "session.execute", &shell("hang")).to_string()).await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    tokio::task::spawn_blocking(move || {
        server.stop();
        server
    })
    .await
    .expect("the server ends");
    let reply = client.next().await;
    assert_eq!((&reply["id"], &reply["error"]["code"]), (&7.into(), &1302.into()));
}

#[test]
fn without_tokens_only_a_loopback_address_is_served() {
    let config = ServerConfig { listen: ([0, 0, 0, 0], 0).into(), ..ServerConfig::default() };
    let (_stop, shutdown) = tokio::sync::watch::channel(false);
    let service = Arc::new(super::testing::Fake::default());
    let parts = ServerParts { config, service, authentication: Authentication::Off, metrics: None, shutdown, pulse: None };
    assert!(matches!(Server::bind(parts), Err(ServeError::NoAuthBeyondLoopback(_))));
}

#[tokio::test]
async fn a_slow_reader_keeps_the_room_of_what_it_has_not_taken() {
    let server = Running::plain();
    let mut client = server.connect().await;
    client.send(request(&json!(1), "session.stream", &shell("flood")).to_string()).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    let given_back = || server.fake.given_back.load(Ordering::Acquire);
    let unread = given_back();
    assert!(unread < FLOOD_BYTES / 2, "{unread} bytes went into buffers");
    // The server answers others meanwhile, and a reader gets all of it.
    server.connect().await.expect_alive().await;
    while client.next().await["params"]["result"]["type"] != "exited" {}
    assert!(given_back() > FLOOD_BYTES);
}

#[tokio::test]
async fn unstream_ends_the_notifications_and_gives_the_rest_back() {
    let server = Running::plain();
    let mut client = server.connect().await;
    let subscription = client.call("session.stream", shell("flood")).await["result"].clone();
    client.send(request(&json!("end"), "session.unstream", &json!({"subscription": subscription})).to_string()).await;
    let mut events = 0;
    loop {
        let message = client.next().await;
        if message["id"] == "end" {
            assert_eq!(message["result"], true);
            break;
        }
        events += 1;
    }
    assert!(events < 1000, "{events}");
    client.expect_alive().await;
    assert!(server.fake.given_back.load(Ordering::Acquire) > FLOOD_BYTES);
}

#[tokio::test]
async fn a_peer_that_is_silent_for_two_pings_is_dropped_and_one_that_answers_is_not() {
    let server = Running::start(|config| config.ping_interval_s = 1, Authentication::Off);
    let silent = server.connect().await;
    let mut answering = server.connect().await;
    let dropped = || server.fake.journal().iter().filter(|line| line.starts_with("disconnected")).count();
    assert!(tokio::time::timeout(Duration::from_millis(3500), answering.next()).await.is_err());
    assert_eq!(dropped(), 1);
    answering.expect_alive().await;
    drop(silent);
}
