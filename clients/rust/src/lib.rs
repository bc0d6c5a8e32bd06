//! A small blocking client of the CodeBeaker server: JSON-RPC 2.0 over one WebSocket, without an async runtime.
//!
//! Invariant: the socket is read only inside a call that waits, so a caller that does not wait is a slow reader; every wait
//! ends at its deadline. Replies and notifications that arrive while something else is awaited are kept, in order. Nothing of
//! the server's code is used here: the wire is written from its contract. Read `error` next for what a call can fail with.

mod error;

use std::collections::{HashMap, VecDeque};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

pub use error::{Error, RpcError};
use serde_json::{Value, json};
use tungstenite::client::{IntoClientRequest, client_with_config};
use tungstenite::http::{HeaderName, HeaderValue};
use tungstenite::protocol::{WebSocket, WebSocketConfig};
use tungstenite::{HandshakeError, Message};

/// Largest message taken from the server, in bytes; past the server's own bound of 64 MiB.
const MESSAGE_BYTES_MAX: usize = 256 << 20;

/// How to open a connection.
#[derive(Debug, Clone)]
pub struct Connect {
    /// Where the server listens.
    pub address: SocketAddr,
    /// Path of the upgrade, `/` unless changed.
    pub path: String,
    /// Headers of the upgrade besides those of WebSocket itself; a `Host` here replaces the usual one.
    pub headers: Vec<(String, String)>,
    /// How long one wait may take.
    pub timeout: Duration,
}

impl Connect {
    /// The path `/`, no headers, 60 seconds a wait.
    pub fn to(address: SocketAddr) -> Self {
        Self { address, path: "/".into(), headers: Vec::new(), timeout: Duration::from_secs(60) }
    }

    /// Authenticates with `Authorization: Bearer TOKEN`.
    pub fn bearer(self, token: &str) -> Self {
        self.header("Authorization", &format!("Bearer {token}"))
    }

    /// Authenticates with the subprotocol pair that browsers use.
    pub fn bearer_subprotocol(self, token: &str) -> Self {
        self.header("Sec-WebSocket-Protocol", &format!("codebeaker, bearer.{token}"))
    }

    /// Adds a header.
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }

    /// Upgrades on another path.
    pub fn path(mut self, path: &str) -> Self {
        self.path = path.into();
        self
    }

    /// Connects and upgrades. A refused upgrade is [`Error::Http`] with the status.
    pub fn open(&self) -> Result<Client, Error> {
        let stream = TcpStream::connect_timeout(&self.address, self.timeout).map_err(Error::Connect)?;
        stream.set_nodelay(true).map_err(Error::Connect)?;
        stream.set_read_timeout(Some(self.timeout)).map_err(Error::Connect)?;
        stream.set_write_timeout(Some(self.timeout)).map_err(Error::Connect)?;
        let mut request = format!("ws://{}{}", self.address, self.path)
            .into_client_request()
            .map_err(|source| Error::Socket(Box::new(source)))?;
        for (name, value) in &self.headers {
            let name = HeaderName::from_bytes(name.as_bytes()).map_err(|_| Error::Usage("a header name is not valid"))?;
            let value = HeaderValue::from_str(value).map_err(|_| Error::Usage("a header value is not valid"))?;
            request.headers_mut().insert(name, value);
        }
        let config =
            WebSocketConfig::default().max_message_size(Some(MESSAGE_BYTES_MAX)).max_frame_size(Some(MESSAGE_BYTES_MAX));
        match client_with_config(request, stream, Some(config)) {
            Ok((socket, _)) => Ok(Client::new(socket, self.timeout)),
            Err(HandshakeError::Failure(tungstenite::Error::Http(response))) => {
                let body = response.body().as_deref().map(|body| String::from_utf8_lossy(body).into_owned());
                Err(Error::Http { status: response.status().as_u16(), body: body.unwrap_or_default() })
            }
            Err(HandshakeError::Failure(source)) => Err(Error::Socket(Box::new(source))),
            Err(HandshakeError::Interrupted(_)) => Err(Error::Deadline("the upgrade")),
        }
    }
}

/// One open connection.
pub struct Client {
    socket: WebSocket<TcpStream>,
    timeout: Duration,
    next_id: u64,
    replies: HashMap<u64, Result<Value, RpcError>>,
    notifications: VecDeque<Value>,
}

impl Client {
    fn new(socket: WebSocket<TcpStream>, timeout: Duration) -> Self {
        Self { socket, timeout, next_id: 1, replies: HashMap::new(), notifications: VecDeque::new() }
    }

    /// Calls a method and waits for its reply.
    pub fn call(&mut self, method: &str, params: &Value) -> Result<Value, Error> {
        let id = self.send(method, params)?;
        self.wait(id)
    }

    /// Sends a request without waiting, for pipelining; [`Self::wait`] takes the id.
    pub fn send(&mut self, method: &str, params: &Value) -> Result<u64, Error> {
        let id = self.next_id;
        self.next_id += 1;
        self.send_text(&json!({"jsonrpc": "2.0", "id": id, "method": method, "params": params}).to_string())?;
        Ok(id)
    }

    /// Sends a request without an id: the server gives no reply.
    pub fn notify(&mut self, method: &str, params: &Value) -> Result<(), Error> {
        self.send_text(&json!({"jsonrpc": "2.0", "method": method, "params": params}).to_string())
    }

    /// Waits for the reply of a request that [`Self::send`] sent.
    pub fn wait(&mut self, id: u64) -> Result<Value, Error> {
        let deadline = Instant::now() + self.timeout;
        loop {
            if let Some(reply) = self.replies.remove(&id) {
                return reply.map_err(Error::Rpc);
            }
            let message = self.read_until(deadline)?;
            self.sort(message);
        }
    }

    /// The next event of a subscription of `session.stream`, in the order they came.
    pub fn event(&mut self, subscription: &Value) -> Result<Value, Error> {
        let deadline = Instant::now() + self.timeout;
        loop {
            let wanted = |message: &Value| message["params"]["subscription"] == *subscription;
            if let Some(place) = self.notifications.iter().position(wanted) {
                let mut message = self.notifications.remove(place).unwrap_or_default();
                return Ok(message["params"]["result"].take());
            }
            let message = self.read_until(deadline)?;
            self.sort(message);
        }
    }

    /// The notifications that came so far and were not taken by [`Self::event`].
    pub fn notifications(&self) -> impl Iterator<Item = &Value> {
        self.notifications.iter()
    }

    /// Sends any text as one frame.
    pub fn send_text(&mut self, text: &str) -> Result<(), Error> {
        self.socket.send(Message::text(text)).map_err(|source| Error::Socket(Box::new(source)))
    }

    /// Sends bytes as one binary frame.
    pub fn send_binary(&mut self, bytes: &[u8]) -> Result<(), Error> {
        self.socket.send(Message::binary(bytes.to_vec())).map_err(|source| Error::Socket(Box::new(source)))
    }

    /// The next message as it is, whatever it answers, waiting at most `wait`.
    pub fn read(&mut self, wait: Duration) -> Result<Value, Error> {
        self.read_until(Instant::now() + wait)
    }

    /// Sets how long one wait may take.
    pub fn set_timeout(&mut self, timeout: Duration) {
        self.timeout = timeout;
    }

    /// Closes the connection politely.
    pub fn close(mut self) -> Result<(), Error> {
        self.socket.close(None).map_err(|source| Error::Socket(Box::new(source)))?;
        let deadline = Instant::now() + self.timeout;
        loop {
            match self.read_until(deadline) {
                Ok(_) => {}
                Err(Error::Closed) => return Ok(()),
                Err(error) => return Err(error),
            }
        }
    }

    /// Ends the TCP connection without a closing handshake, as a crash of the client would.
    pub fn abort(&self) {
        // The peer may be gone already; the descriptor is closed when `self` drops.
        self.socket.get_ref().shutdown(std::net::Shutdown::Both).ok();
    }

    fn sort(&mut self, message: Value) {
        let id = message.get("id").and_then(Value::as_u64);
        match (id, message.get("method")) {
            (Some(id), None) => {
                let reply = match message.get("error") {
                    Some(error) => Err(RpcError::from_wire(error)),
                    None => Ok(message["result"].clone()),
                };
                self.replies.insert(id, reply);
            }
            _ => self.notifications.push_back(message),
        }
    }

    fn read_until(&mut self, deadline: Instant) -> Result<Value, Error> {
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(Error::Deadline("a message of the server"));
            }
            self.socket.get_ref().set_read_timeout(Some(left)).map_err(Error::Connect)?;
            match self.socket.read() {
                Ok(Message::Text(text)) => return serde_json::from_str(&text).map_err(Error::NotJson),
                Ok(Message::Binary(bytes)) => return serde_json::from_slice(&bytes).map_err(Error::NotJson),
                Ok(Message::Ping(_) | Message::Pong(_) | Message::Close(_) | Message::Frame(_)) => {}
                Err(tungstenite::Error::Io(error)) if is_timeout(&error) => {}
                Err(tungstenite::Error::ConnectionClosed | tungstenite::Error::AlreadyClosed) => return Err(Error::Closed),
                Err(source) => return Err(Error::Socket(Box::new(source))),
            }
        }
    }
}

fn is_timeout(error: &std::io::Error) -> bool {
    matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut | std::io::ErrorKind::Interrupted)
}
