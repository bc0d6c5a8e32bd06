//! What a call can fail with.

use std::fmt;

use serde_json::Value;

/// The `error` of a reply.
#[derive(Debug, Clone, PartialEq)]
pub struct RpcError {
    /// The code.
    pub code: i64,
    /// The message.
    pub message: String,
    /// `data`, null when absent.
    pub data: Value,
}

impl RpcError {
    /// Reads the `error` member of a reply; what is missing is left empty.
    pub fn from_wire(error: &Value) -> Self {
        Self {
            code: error["code"].as_i64().unwrap_or_default(),
            message: error["message"].as_str().unwrap_or_default().to_owned(),
            data: error["data"].clone(),
        }
    }

    /// `data.kind`, empty when absent.
    pub fn kind(&self) -> &str {
        self.data["kind"].as_str().unwrap_or_default()
    }
}

impl fmt::Display for RpcError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {}", self.code, self.message, self.data)
    }
}

/// Why a call gave no result.
#[derive(Debug)]
pub enum Error {
    /// The server's reply is an error.
    Rpc(RpcError),
    /// The upgrade was refused.
    Http {
        /// HTTP status.
        status: u16,
        /// The body, as far as it is text.
        body: String,
    },
    /// The connection is closed.
    Closed,
    /// A wait took too long; the text says for what.
    Deadline(&'static str),
    /// The caller asked for what can't be sent.
    Usage(&'static str),
    /// The TCP connection could not be made or set up.
    Connect(std::io::Error),
    /// The WebSocket failed.
    Socket(Box<tungstenite::Error>),
    /// The server sent what is no JSON.
    NotJson(serde_json::Error),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Rpc(error) => write!(f, "the server answered with the error {error}"),
            Self::Http { status, body } => write!(f, "the upgrade was refused with HTTP {status}: {body}"),
            Self::Closed => write!(f, "the connection is closed"),
            Self::Deadline(what) => write!(f, "no end to the wait for {what}"),
            Self::Usage(what) => write!(f, "{what}"),
            Self::Connect(_) => write!(f, "the TCP connection failed"),
            Self::Socket(_) => write!(f, "the WebSocket failed"),
            Self::NotJson(_) => write!(f, "the server sent a frame that is no JSON"),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Connect(source) => Some(source),
            Self::Socket(source) => Some(source),
            Self::NotJson(source) => Some(source),
            Self::Rpc(_) | Self::Http { .. } | Self::Closed | Self::Deadline(_) | Self::Usage(_) => None,
        }
    }
}
