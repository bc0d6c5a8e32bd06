//! A client of a running server: JSON-RPC 2.0 over one WebSocket.
//!
//! Invariant: calls go out one at a time; events that arrive while an answer is awaited are kept in order. Used by `exec`,
//! `ps` and `close`.

use std::collections::VecDeque;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::tungstenite::{self, Message};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream};

use super::error::chain;
use super::{CliError, CommonArgs};

/// How long connecting may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Largest answer taken; above the server's default bound of 64 MiB, because an operator may raise it.
const MESSAGE_BYTES_MAX: usize = 256 << 20;

/// Which server, as whom.
#[derive(Debug, Clone, Default, Args)]
pub(super) struct ServerArgs {
    /// The server [default: $CODEBEAKER_URL, else the configured listen address, ws://127.0.0.1:5000]
    #[arg(long, value_name = "URL", env = "CODEBEAKER_URL", hide_env = true, help_heading = "Server")]
    url: Option<String>,
    /// Token to connect with; better kept in $CODEBEAKER_TOKEN or a file than on the command line
    #[arg(long, value_name = "T", env = "CODEBEAKER_TOKEN", hide_env = true, help_heading = "Server")]
    token: Option<String>,
    /// File that holds the token [default: `token` in the state directory]
    #[arg(long, value_name = "FILE", conflicts_with = "token", help_heading = "Server")]
    token_file: Option<PathBuf>,
}

/// A connection.
pub(super) struct Client {
    socket: WebSocketStream<MaybeTlsStream<TcpStream>>,
    last_id: u64,
    events: VecDeque<Value>,
}

/// What the server sent.
#[derive(Debug, PartialEq)]
pub(super) enum Incoming {
    /// The answer to the call of that id.
    Answer(u64, Result<Value, CliError>),
    /// An EVENT of a subscription.
    Event(Value),
}

impl Client {
    /// Connects and authenticates.
    pub async fn connect(common: &CommonArgs, args: &ServerArgs) -> Result<Self, CliError> {
        let (url, token) = args.resolve(common)?;
        let mut request = url.as_str().into_client_request().map_err(|error| {
            CliError::usage(format!("`{url}` is no server address: {error}")).hint("write it as ws://HOST:PORT")
        })?;
        if let Some(token) = token {
            let value = format!("Bearer {token}")
                .parse()
                .map_err(|_| CliError::usage("the token holds characters that no token has"))?;
            request.headers_mut().insert("authorization", value);
        }
        let config =
            WebSocketConfig::default().max_message_size(Some(MESSAGE_BYTES_MAX)).max_frame_size(Some(MESSAGE_BYTES_MAX));
        let connecting = tokio_tungstenite::connect_async_with_config(request, Some(config), true);
        match tokio::time::timeout(CONNECT_TIMEOUT, connecting).await {
            Ok(Ok((socket, _))) => Ok(Self { socket, last_id: 0, events: VecDeque::new() }),
            Ok(Err(error)) => Err(connect_error(&url, &error)),
            Err(_) => Err(CliError::new(format!("{url} did not answer within {} s", CONNECT_TIMEOUT.as_secs()))),
        }
    }

    /// Sends a call and gives its id.
    pub async fn send(&mut self, method: &str, params: Value) -> Result<u64, CliError> {
        self.last_id += 1;
        let text = json!({ "jsonrpc": "2.0", "id": self.last_id, "method": method, "params": params }).to_string();
        self.socket.send(Message::text(text)).await.map_err(|error| lost(&error))?;
        Ok(self.last_id)
    }

    /// The next answer or event; dropping the future loses nothing.
    pub async fn receive(&mut self) -> Result<Incoming, CliError> {
        if let Some(event) = self.events.pop_front() {
            return Ok(Incoming::Event(event));
        }
        loop {
            match self.socket.next().await {
                Some(Ok(Message::Text(text))) => return parse(&text),
                Some(Ok(Message::Close(frame))) => {
                    let reason = frame.map(|frame| frame.reason.to_string()).filter(|reason| !reason.is_empty());
                    let reason = reason.unwrap_or_else(|| "no reason was given".to_owned());
                    return Err(CliError::new(format!("the server closed the connection: {reason}")));
                }
                Some(Ok(Message::Binary(_) | Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => {}
                Some(Err(error)) => return Err(lost(&error)),
                None => return Err(CliError::new("the server closed the connection")),
            }
        }
    }

    /// Sends a call and waits for its answer.
    pub async fn call(&mut self, method: &str, params: Value) -> Result<Value, CliError> {
        let id = self.send(method, params).await?;
        let mut kept = std::mem::take(&mut self.events);
        loop {
            match self.receive().await? {
                Incoming::Answer(answered, outcome) if answered == id => {
                    kept.append(&mut self.events);
                    self.events = kept;
                    return outcome;
                }
                // An answer that nobody waits for any more.
                Incoming::Answer(..) => {}
                Incoming::Event(event) => kept.push_back(event),
            }
        }
    }

    /// Ends the connection; a server that is already gone is no error.
    pub async fn close(mut self) {
        self.socket.close(None).await.ok();
    }
}

impl ServerArgs {
    /// For tests.
    #[cfg(test)]
    pub fn to_url(url: &str) -> Self {
        Self { url: Some(url.to_owned()), ..Self::default() }
    }

    /// Where to connect and the token to show there, if there is one.
    fn resolve(&self, common: &CommonArgs) -> Result<(String, Option<String>), CliError> {
        let config = common.load()?.config;
        let url = match &self.url {
            Some(url) => checked_url(url)?,
            None => format!("ws://{}", reachable(config.server.listen)),
        };
        let token = match (&self.token, &self.token_file) {
            (Some(token), _) => Some(token.trim().to_owned()),
            (None, Some(file)) => Some(read_token(file)?),
            (None, None) => {
                let usual = config.state_dir.join("token");
                match usual.try_exists() {
                    Ok(true) => Some(read_token(&usual)?),
                    // None there, or not ours to see: the server says whether it needs one.
                    Ok(false) | Err(_) => None,
                }
            }
        };
        Ok((url, token))
    }
}

fn checked_url(url: &str) -> Result<String, CliError> {
    if url.starts_with("wss://") {
        return Err(CliError::usage("TLS is not spoken here").hint("connect through a tunnel: ssh -L 5000:127.0.0.1:5000 HOST"));
    }
    if !url.starts_with("ws://") {
        return Err(CliError::usage(format!("`{url}` is no server address")).hint("write it as ws://HOST:PORT"));
    }
    Ok(url.to_owned())
}

/// A server that listens on every address is reached over loopback.
fn reachable(listen: SocketAddr) -> SocketAddr {
    let ip = match listen.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
        ip => ip,
    };
    SocketAddr::new(ip, listen.port())
}

fn read_token(path: &Path) -> Result<String, CliError> {
    let text = std::fs::read_to_string(path).map_err(|error| {
        CliError::new(format!("the token in {} can't be read: {error}", path.display()))
            .hint("run as the user the server runs as, or give --token-file, --token or CODEBEAKER_TOKEN")
    })?;
    Ok(text.trim().to_owned())
}

fn connect_error(url: &str, error: &tungstenite::Error) -> CliError {
    if let tungstenite::Error::Http(response) = error {
        let status = response.status();
        let failed = CliError::new(format!("{url} refused the connection: HTTP {status}"));
        return match status.as_u16() {
            401 => {
                failed.hint("its token is `token` in the server's state directory: give --state-dir, --token-file or --token")
            }
            403 => failed.hint("the name in the URL must be among server.allowed_hosts of the server"),
            429 | 503 => failed.hint("the server is full; try again"),
            _ => failed,
        };
    }
    CliError::new(format!("can't connect to {url}: {}", chain(error)))
        .hint("is the server running? `codebeaker serve` starts it, --url or CODEBEAKER_URL names another")
}

fn lost(error: &tungstenite::Error) -> CliError {
    CliError::new(format!("the connection to the server was lost: {}", chain(error)))
}

fn parse(text: &str) -> Result<Incoming, CliError> {
    let not_understood = || CliError::new("the server sent a message that is not understood");
    let mut message: Value = serde_json::from_str(text).map_err(|_| not_understood())?;
    if message.get("method").is_some() {
        return Ok(Incoming::Event(message["params"]["result"].take()));
    }
    if let Some(error) = message.get("error") {
        return Ok(match message["id"].as_u64() {
            Some(id) => Incoming::Answer(id, Err(rpc_error(error))),
            // Not about one call: nothing that follows can be trusted.
            None => return Err(rpc_error(error)),
        });
    }
    let id = message["id"].as_u64().ok_or_else(not_understood)?;
    Ok(Incoming::Answer(id, Ok(message["result"].take())))
}

/// An error object of JSON-RPC, with our own `data.hint` when there is one.
fn rpc_error(error: &Value) -> CliError {
    let message = error["message"].as_str().unwrap_or("the server gave no reason");
    let kind = error["data"]["kind"].as_str().map_or_else(|| error["code"].to_string(), str::to_owned);
    let failed = CliError::new(format!("{message} ({kind})"));
    match error["data"]["hint"].as_str() {
        Some(hint) => failed.hint(hint),
        None => failed,
    }
}

/// Carries out a client's work on a runtime of one thread.
pub(super) fn block_on<T>(work: impl Future<Output = Result<T, CliError>>) -> Result<T, CliError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| CliError::new(format!("can't start: {error}")))?;
    runtime.block_on(work)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_events_and_errors_are_told_apart() {
        assert_eq!(parse(r#"{"jsonrpc":"2.0","id":3,"result":{"a":1}}"#), Ok(Incoming::Answer(3, Ok(json!({"a": 1})))));
        let event = r#"{"jsonrpc":"2.0","method":"session.output","params":{"subscription":1,"result":{"type":"started"}}}"#;
        assert_eq!(parse(event), Ok(Incoming::Event(json!({"type": "started"}))));
        let error =
            r#"{"jsonrpc":"2.0","id":3,"error":{"code":1001,"message":"no","data":{"kind":"session_not_found","hint":"h"}}}"#;
        let failed = CliError::new("no (session_not_found)").hint("h");
        assert_eq!(parse(error), Ok(Incoming::Answer(3, Err(failed))));
        let plain = r#"{"jsonrpc":"2.0","id":null,"error":{"code":-32700,"message":"Parse error"}}"#;
        assert_eq!(parse(plain), Err(CliError::new("Parse error (-32700)")));
        assert!(parse("{").is_err());
    }

    #[test]
    fn a_server_that_is_not_there_or_refuses_is_told_with_a_hint() {
        let refused = connect_error("ws://x", &tungstenite::Error::ConnectionClosed).text();
        assert!(refused.contains("hint: is the server running?"), "{refused}");
        let response = tungstenite::http::Response::builder().status(401).body(None).expect("a response");
        let refused = connect_error("ws://x", &tungstenite::Error::Http(Box::new(response))).text();
        assert!(refused.contains("HTTP 401") && refused.contains("--token-file"), "{refused}");
    }

    #[test]
    fn a_token_comes_from_the_flag_else_the_file_else_the_state_directory() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let file = directory.path().join("other");
        std::fs::write(&file, "from-file\n").expect("it is writable");
        let common = CommonArgs { config: None, state_dir: Some(directory.path().to_owned()) };
        let token = |args: ServerArgs| args.resolve(&common).map(|(_, token)| token);
        assert_eq!(token(ServerArgs::default()), Ok(None));
        std::fs::write(directory.path().join("token"), "from-state\n").expect("it is writable");
        assert_eq!(token(ServerArgs::default()), Ok(Some("from-state".into())));
        let named = ServerArgs { token_file: Some(file), ..ServerArgs::default() };
        assert_eq!(token(named.clone()), Ok(Some("from-file".into())));
        assert_eq!(token(ServerArgs { token: Some("flag".into()), ..named }), Ok(Some("flag".into())));
        let missing = ServerArgs { token_file: Some("/nonexistent".into()), ..ServerArgs::default() };
        assert!(token(missing).is_err());
    }

    #[test]
    fn only_plain_websocket_addresses_are_taken() {
        assert!(checked_url("ws://127.0.0.1:5000").is_ok());
        for bad in ["wss://example.org", "http://127.0.0.1:5000", "127.0.0.1:5000"] {
            assert!(checked_url(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_server_on_every_address_is_reached_over_loopback() {
        let at = |text: &str| reachable(text.parse().expect("an address")).to_string();
        assert_eq!(at("0.0.0.0:7"), "127.0.0.1:7");
        assert_eq!(at("[::]:7"), "[::1]:7");
        assert_eq!(at("10.1.2.3:7"), "10.1.2.3:7");
    }
}
