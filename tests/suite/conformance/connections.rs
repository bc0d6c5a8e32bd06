//! Connections: those that fall silent, those that are too many.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use codebeaker_client::Error;
use serde_json::json;

use crate::support::{Server, Setup, eventually, page};

pub fn trials() -> Vec<libtest_mimic::Trial> {
    page(
        "connections",
        &[
            ("a peer that answers no ping is dropped after two, one that answers is not", silent_peer),
            ("a peer that does not read its answers is dropped all the same", deaf_peer),
            ("connections past the bound are told so, and a place is free again after one ends", too_many),
            ("a request head that never ends is given up", slow_head),
        ],
    )
}

fn pinging() -> Setup {
    Setup::plain().with_config("[server]\nping_interval_s = 1\n")
}

/// An upgraded connection that nobody reads frames from.
fn upgraded(server: &Server) -> TcpStream {
    let mut stream = TcpStream::connect(server.address).expect("the server listens");
    stream.set_read_timeout(Some(Duration::from_secs(30))).expect("a timeout can be set");
    let head = format!(
        "GET / HTTP/1.1\r\nHost: {}\r\nAuthorization: Bearer {}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n",
        server.address, server.token
    );
    stream.write_all(head.as_bytes()).expect("the server reads");
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).expect("the head of the answer");
        answer.extend(byte);
    }
    assert!(answer.starts_with(b"HTTP/1.1 101"), "{}", String::from_utf8_lossy(&answer));
    stream
}

fn silent_peer() {
    let server = pinging().shared();
    let mut silent = upgraded(&server);
    let begin = Instant::now();
    let mut frames = Vec::new();
    silent.read_to_end(&mut frames).expect("the end of the connection, not the end of the wait");
    let lived = begin.elapsed();
    assert!((Duration::from_millis(1500)..Duration::from_secs(6)).contains(&lived), "it was dropped after {lived:?}");
    // A ping without contents is these two bytes.
    let pings = frames.chunks(2).filter(|frame| *frame == [0x89, 0]).count();
    assert!(pings >= 2, "{pings} pings in {frames:?}");
    // The control answers pings while it waits; it has seen several by then.
    let mut polite = server.client();
    let quiet = polite.read(Duration::from_secs(4));
    assert!(matches!(quiet, Err(Error::Deadline(_))), "{quiet:?}");
    polite.ok("language.list", &json!({}));
}

/// A masked text frame, as a client sends it; the mask is zero.
fn frame(text: &str) -> Vec<u8> {
    let length = u16::try_from(text.len()).expect("a short text");
    let mut bytes = vec![0x81, 0xfe];
    bytes.extend(length.to_be_bytes());
    bytes.extend([0; 4]);
    bytes.extend(text.as_bytes());
    bytes
}

fn websockets(server: &Server) -> u64 {
    let bearer = format!("Bearer {}", server.token);
    let metrics = crate::support::http::request(server.address, "/metrics", &[("Authorization", &bearer)], None).body;
    let line = metrics.lines().find_map(|line| line.strip_prefix("codebeaker_websockets "));
    line.and_then(|number| number.trim().parse::<f64>().ok()).unwrap_or_default() as u64
}

fn deaf_peer() {
    let server = pinging().with_config("ping_misses_max = 3\n").shared();
    let mut deaf = upgraded(&server);
    let request = frame(&json!({"jsonrpc": "2.0", "id": 1, "method": "rpc.discover"}).to_string());
    // Counted before it falls silent: afterwards it may be gone at any moment.
    assert!(eventually(Duration::from_secs(5), || websockets(&server) == 1), "the connection is counted");
    deaf.set_write_timeout(Some(Duration::from_secs(2))).expect("a timeout can be set");
    for _ in 0..200 {
        // The server may stop to read, or end the connection, which is what is claimed.
        if deaf.write_all(&request).is_err() {
            break;
        }
    }
    assert!(eventually(Duration::from_secs(40), || websockets(&server) == 0), "a connection that nobody reads stays");
}

fn too_many() {
    let server = Setup::bare().with_config("[server]\nconnections_max = 2\n").shared();
    let (mut first, second) = (server.client(), server.client());
    let third = codebeaker_client::Connect::to(server.address).bearer(&server.token).open();
    let Err(Error::Http { status, body }) = third else { panic!("a third connection was taken") };
    assert_eq!(status, 503, "{body}");
    let body: serde_json::Value = serde_json::from_str(&body).expect("the body is JSON");
    assert_eq!((&body["error"]["code"], &body["error"]["data"]["kind"]), (&json!(1302), &json!("server_busy")), "{body}");
    first.ok("language.list", &json!({}));
    drop(second);
    let free = || codebeaker_client::Connect::to(server.address).bearer(&server.token).open().is_ok();
    assert!(eventually(Duration::from_secs(5), free), "the place of the ended connection stays taken");
}

fn slow_head() {
    let server = Setup::plain().shared();
    let mut stream = TcpStream::connect(server.address).expect("the server listens");
    stream.set_read_timeout(Some(Duration::from_secs(20))).expect("a timeout can be set");
    stream.write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\n").expect("the server reads");
    let begin = Instant::now();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).expect("the end of the connection, not the end of the wait");
    assert!(begin.elapsed() < Duration::from_secs(15), "{:?}", begin.elapsed());
    server.client().ok("language.list", &json!({}));
}
