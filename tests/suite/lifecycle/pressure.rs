//! A server that lacks descriptors, and clients that come in crowds and leave in the middle of a word.

use std::io::Write;
use std::net::TcpStream;
use std::time::Duration;

use serde_json::{Value, json};

use super::end;
use crate::support::{Client, Server, Session, Setup, eventually, page};

pub(super) fn trials() -> Vec<libtest_mimic::Trial> {
    page(
        "lifecycle",
        &[
            ("a server with 64 descriptors refuses sessions with a typed error and recovers", few_descriptors),
            ("1,000 connections opened and dropped leave no descriptor, no thread and no memory", connections_dropped),
            ("clients that stop in the middle of a handshake hold up nobody and leave nothing", half_open),
        ],
    )
}

pub(super) fn create(client: &mut Client) -> Result<Value, i64> {
    match client.call("session.create", &json!({"language": "bash", "memoryLimitMB": 32})) {
        Ok(session) => Ok(session["sessionId"].clone()),
        Err(codebeaker_client::Error::Rpc(error)) => Err(error.code),
        Err(error) => panic!("the connection must live: {error}"),
    }
}

fn few_descriptors() {
    let server = Server::start(&Setup::plain().with_open_files(64));
    let mut client = server.client();
    for round in 0..3 {
        let mut sessions = Vec::new();
        let mut refused = Vec::new();
        for _ in 0..70 {
            match create(&mut client) {
                Ok(session) => sessions.push(session),
                Err(code) => refused.push(code),
            }
        }
        server.observe();
        assert!(sessions.len() >= 5, "round {round}: {} sessions only, the refusals: {refused:?}", sessions.len());
        assert!(!refused.is_empty(), "round {round}: the control: 70 sessions do not fit into 64 descriptors");
        assert!(refused.iter().all(|code| [1300, 1302].contains(code)), "round {round}: {refused:?}");
        // A program needs pipes; where there is no room for them that is said, and nothing hangs.
        let command = json!({"type": "execute_shell", "commandName": "echo", "args": ["x"]});
        let answer = client.ok("session.execute", &json!({"sessionId": sessions[0], "command": command}));
        assert!(answer["success"] == true || answer["errorKind"] == "io_error", "{answer}");
        for session in sessions.drain(..) {
            client.ok("session.close", &json!({"sessionId": session}));
        }
    }
    let mut session = Session::open_by(&server, client, &json!({"language": "bash"}));
    assert_eq!(session.bash("echo x"), "x");
    session.close();
    end(server);
}

/// Waits until the server has no more descriptors and threads than `before`.
fn expect_baseline(server: &Server, before: (usize, usize)) {
    let now = || (server.open_descriptors(), server.threads());
    let back = || now().0 <= before.0 && now().1 <= before.1;
    assert!(eventually(Duration::from_secs(10), back), "{before:?} descriptors and threads before, {:?} after", now());
}

/// Descriptors and threads of a server that has done everything once.
fn baseline(server: &Server) -> (usize, usize) {
    let mut session = Session::python(server);
    session.run("print(1)");
    session.close();
    std::thread::sleep(Duration::from_secs(1));
    (server.open_descriptors(), server.threads())
}

/// Opens and drops connections without a closing handshake, some of them in the middle of a call.
fn crowd(server: &Server, rounds: usize) {
    for _ in 0..rounds {
        let mut clients: Vec<Client> = (0..50).map(|_| server.client()).collect();
        for (number, client) in clients.iter_mut().enumerate() {
            if number % 2 == 0 {
                client.ok("session.list", &json!({}));
            } else {
                client.send("session.list", &json!({})).expect("sent");
            }
        }
        for client in &clients {
            client.abort();
        }
    }
}

fn connections_dropped() {
    let server = Server::start(&Setup::plain());
    let before = baseline(&server);
    // The allocator keeps what the first crowd needed; a second one needs no more.
    crowd(&server, 4);
    expect_baseline(&server, before);
    let resident = server.resident_kib();
    crowd(&server, 20);
    expect_baseline(&server, before);
    let now = server.resident_kib();
    assert!(now < resident + resident / 4, "{resident} KiB after 200 connections, {now} KiB after 1,000 more");
    end(server);
}

fn half_open() {
    let server = Server::start(&Setup::plain());
    let before = baseline(&server);
    let words: [&[u8]; 4] = [
        b"",
        b"GET / HT",
        b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\n",
        b"POST / HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n{\"jsonrpc\"",
    ];
    let crowd: Vec<TcpStream> = (0..300)
        .map(|number| {
            let mut stream = TcpStream::connect(server.address).expect("the server accepts");
            stream.write_all(words[number % words.len()]).expect("a fresh connection takes a word");
            stream
        })
        .collect();
    let mut session = Session::python(&server);
    assert_eq!(session.run("print(1)"), "1", "an honest client is served meanwhile");
    session.close();
    drop(crowd);
    expect_baseline(&server, before);
    end(server);
}
