//! What the server and an engine of isolates say to each other: one JSON value a line.
//!
//! Invariant: an engine is untrusted; a line has a bound, and what can't be read as an event ends the engine.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

/// Longest line of an engine: a piece of output is 64 KiB at most.
pub const LINE_BYTES_MAX: usize = 1 << 20;

/// Number of a cell or of an execution; one row of numbers for both.
pub type Id = u64;

/// Server → engine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "op", rename_all = "lowercase")]
pub enum Request {
    /// A place whose directory is `root`, each of whose isolates may have `memory` bytes. A spare one is open when its first isolate
    /// waits for a program, and runs none before it is claimed.
    Open { cell: Id, root: String, memory: u64, spare: bool },
    /// A spare one is a session's now. Answered like its opening.
    Claim { cell: Id },
    /// Run the module at `url` in a fresh isolate.
    Run { cell: Id, run: Id, url: String, args: Vec<String>, env: BTreeMap<String, String>, memory: u64 },
    /// Standard input, as base64.
    Input { run: Id, data: String, eof: bool },
    /// End an isolate.
    End { run: Id },
    /// End a session and all its isolates.
    Close { cell: Id },
}

impl Request {
    /// Input of these bytes.
    pub fn input(run: Id, data: &[u8], eof: bool) -> Self {
        Self::Input { run, data: STANDARD.encode(data), eof }
    }

    /// As it is sent.
    pub fn line(&self) -> Vec<u8> {
        let mut line = serde_json::to_vec(self).unwrap_or_default();
        line.push(b'\n');
        line
    }
}

/// Engine → server.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(tag = "ev", rename_all = "lowercase", deny_unknown_fields)]
pub enum Event {
    /// It takes requests.
    Up,
    /// An isolate could not be cleared away: no further session is to come.
    Worn,
    /// A session can run something.
    Opened {
        /// Which.
        cell: Id,
    },
    /// No isolate of a session lives.
    Closed {
        /// Which.
        cell: Id,
    },
    /// An isolate has begun.
    Started {
        /// Which.
        run: Id,
    },
    /// It wrote something.
    Out {
        /// Which.
        run: Id,
        /// 1 or 2.
        stream: u8,
        /// Base64.
        data: String,
    },
    /// It is over, and its thread with it.
    Ended {
        /// Which.
        run: Id,
        /// How.
        #[serde(flatten)]
        end: RunEnd,
    },
}

/// How an isolate ended.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RunEnd {
    /// Its exit code.
    pub code: Option<i32>,
    /// Time of its thread in microseconds.
    pub cpu_us: u64,
    /// The most memory that it had, in bytes.
    pub memory: u64,
    /// It needed more memory than it may have.
    pub oom: bool,
    /// The engine's disk was full at its end.
    pub full: bool,
}

impl Event {
    /// Of one line; none when it is no event.
    pub fn parse(line: &[u8]) -> Option<Self> {
        serde_json::from_slice(line).ok()
    }

    /// Whom it is for.
    pub fn id(&self) -> Option<Id> {
        match self {
            Self::Up | Self::Worn => None,
            Self::Opened { cell } | Self::Closed { cell } => Some(*cell),
            Self::Started { run } | Self::Out { run, .. } | Self::Ended { run, .. } => Some(*run),
        }
    }
}

/// The bytes of a piece of output; none when they are none.
pub fn bytes(data: &str) -> Option<Vec<u8>> {
    STANDARD.decode(data).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_engine_says_is_read_and_what_is_no_event_is_not() {
        let ended = br#"{"ev":"ended","run":7,"code":3,"cpuUs":10,"memory":20,"oom":false,"full":true}"#;
        let end = RunEnd { code: Some(3), cpu_us: 10, memory: 20, oom: false, full: true };
        assert_eq!(Event::parse(ended), Some(Event::Ended { run: 7, end }));
        assert_eq!(Event::parse(br#"{"ev":"up"}"#), Some(Event::Up));
        for line in [&b""[..], b"{", br#"{"ev":"other"}"#, br#"{"ev":"out","run":-1,"stream":1,"data":""}"#, b"\xff"] {
            assert_eq!(Event::parse(line), None, "{line:?}");
        }
    }

    #[test]
    fn input_of_any_bytes_is_one_line() {
        let line = Request::input(1, b"a\nb\0\xff", true).line();
        assert_eq!(line.iter().position(|byte| *byte == b'\n'), Some(line.len() - 1));
        assert_eq!(bytes("!"), None);
    }
}
