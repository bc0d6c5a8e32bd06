//! The least of HTTP/1.1: one request on one connection, bytes as they are, so that any `Host` can be sent.

use std::fmt::Write as _;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use serde_json::Value;

/// One answer.
#[derive(Debug)]
pub struct Answer {
    /// HTTP status.
    pub status: u16,
    /// Head, lower-cased.
    pub head: String,
    /// Body, with chunks joined.
    pub body: String,
}

impl Answer {
    /// The body as JSON.
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }
}

/// One request; a body makes it a POST of JSON. `headers` replace `Host` when they hold one.
pub fn request(address: SocketAddr, target: &str, headers: &[(&str, &str)], body: Option<&str>) -> Answer {
    let method = if body.is_some() { "POST" } else { "GET" };
    let mut head = format!("{method} {target} HTTP/1.1\r\nConnection: close\r\n");
    if !headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("host")) {
        write!(head, "Host: {address}\r\n").expect("a string takes every text");
    }
    for (name, value) in headers {
        write!(head, "{name}: {value}\r\n").expect("a string takes every text");
    }
    if let Some(body) = body {
        write!(head, "Content-Type: application/json\r\nContent-Length: {}\r\n", body.len())
            .expect("a string takes every text");
    }
    raw(address, format!("{head}\r\n{}", body.unwrap_or_default()).as_bytes())
}

/// Sends these bytes and reads the answer to its end.
pub fn raw(address: SocketAddr, bytes: &[u8]) -> Answer {
    let mut stream = TcpStream::connect(address).expect("the server listens");
    stream.set_read_timeout(Some(Duration::from_secs(30) * super::pace())).expect("a timeout can be set");
    // A server may refuse from the head alone and close, so that the rest of a large body can't be written.
    let written = stream.write_all(bytes);
    let mut answer = Vec::new();
    let read = stream.read_to_end(&mut answer);
    assert!(!answer.is_empty(), "no answer: write {written:?}, read {read:?}");
    parse(&answer)
}

fn parse(bytes: &[u8]) -> Answer {
    let text = String::from_utf8_lossy(bytes);
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
    let status = head.split(' ').nth(1).and_then(|word| word.parse().ok()).unwrap_or_else(|| panic!("no HTTP: {text}"));
    let head = head.to_lowercase();
    let body = if head.contains("transfer-encoding: chunked") { joined(body) } else { body.to_owned() };
    Answer { status, head, body }
}

fn joined(mut chunks: &str) -> String {
    let mut body = String::new();
    while let Some((size, rest)) = chunks.split_once("\r\n") {
        let size = usize::from_str_radix(size.trim(), 16).expect("a chunk begins with its size");
        if size == 0 {
            break;
        }
        body.push_str(&rest[..size]);
        chunks = rest[size..].trim_start_matches("\r\n");
    }
    body
}

/// The claims of this page.
pub fn trials() -> Vec<libtest_mimic::Trial> {
    vec![super::trial("harness", "an HTTP answer is read whole, in chunks or with a length", || {
        let plain = parse(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}");
        assert_eq!((plain.status, plain.body.as_str()), (200, "{}"));
        let chunked = parse(b"HTTP/1.1 403 No\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n1\r\nd\r\n0\r\n\r\n");
        assert_eq!((chunked.status, chunked.body.as_str()), (403, "abcd"));
    })]
}
