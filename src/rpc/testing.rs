//! For tests: a session service that keeps a journal, a server over it on a loopback port, and a client of its own kind.

use std::net::SocketAddr;
use std::sync::Mutex;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime};

use futures_util::future::BoxFuture;
use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::handshake::client::Response;

use super::api::{SessionService, Target};
use super::server::{Authentication, Server, ServerParts};
use crate::command::*;
use crate::config::ServerConfig;
use crate::id::{EnvironmentId, ExecutionId, SessionId};
use crate::runtime::RuntimeKind;
use crate::sandbox::enforcement::{Enforcement, ProfileIdentity};
use crate::sandbox::spec::Limits;
use crate::session::api::*;

/// The one session that the fake knows.
pub(super) const SESSION: &str = "ses_1";

/// Answers at once, except `execute_shell` of `hang`, which never ends.
#[derive(Default)]
pub(super) struct Fake {
    journal: Mutex<Vec<String>>,
    hanging: Mutex<Vec<oneshot::Sender<CommandResult>>>,
    /// Bytes of stream events that the wire has given back.
    pub given_back: Arc<AtomicU64>,
}

/// Bytes that the stream of `flood` has.
pub(super) const FLOOD_BYTES: u64 = 1000 << 16;

impl Fake {
    fn note(&self, what: impl Into<String>) {
        self.journal.lock().unwrap_or_else(PoisonError::into_inner).push(what.into());
    }

    /// What was called, in order.
    pub fn journal(&self) -> Vec<String> {
        self.journal.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn known(session: &SessionId) -> Result<(), SessionError> {
        if session.as_str() == SESSION { Ok(()) } else { Err(SessionError::NotFound(session.to_string())) }
    }
}

fn result(stdout: &str) -> CommandResult {
    let stdout = Captured { data: stdout.as_bytes().to_vec(), truncated: false };
    CommandResult {
        execution_id: ExecutionId::from_client("exe_1"),
        output: Some(CommandOutput::Execution(ExecutionReport { stdout, exit_code: Some(0), ..Default::default() })),
        failure: None,
        duration: Duration::from_millis(1),
    }
}

fn first_word(command: &Command) -> String {
    match command {
        Command::ExecuteShell(shell) => shell.program.clone(),
        Command::ExecuteCode(code) => code.code.clone(),
        other => other.kind().name().to_owned(),
    }
}

fn view() -> SessionView {
    let limits = Limits {
        memory_bytes: std::num::NonZeroU64::MIN,
        cpu_shares: 1024,
        cpu_cores: None,
        pids: 64,
        disk_bytes: 1 << 20,
        inodes: 10,
        output_kept_bytes: 10,
        output_killed_bytes: 10,
        timeout: Duration::from_secs(60),
        timeout_max: Duration::from_secs(300),
        open_files: 64,
    };
    let profile = ProfileIdentity { name: "default".into(), version: "1".into(), ..ProfileIdentity::default() };
    SessionView {
        session_id: SessionId::from_client(SESSION),
        environment_id: EnvironmentId::from_client("env_1"),
        runtime: RuntimeKind::NativeProcess,
        origin: crate::runtime::Origin::New,
        selection: Selection { preference: Preference::Balanced, reason: String::new(), candidates: vec![] },
        language: "python".into(),
        image: "host".into(),
        created_at: SystemTime::UNIX_EPOCH,
        last_activity: SystemTime::UNIX_EPOCH,
        state: SessionState::Active,
        close_reason: None,
        execution_count: 0,
        idle: Duration::ZERO,
        lifetime: Duration::ZERO,
        config: SessionSettings {
            profile: "default".into(),
            idle_timeout: Duration::from_secs(1800),
            lifetime: Duration::from_secs(7200),
            persist_filesystem: true,
            limits,
            env: std::collections::BTreeMap::new(),
            on_disconnect: OnDisconnect::Keep,
        },
        enforcement: Enforcement { walls: vec![], limits: vec![], profile, rootless: true },
        usage: Usage::default(),
        metadata: None,
    }
}

impl SessionService for Fake {
    fn create<'a>(
        &'a self,
        principal: &'a Principal,
        request: CreateSession,
    ) -> BoxFuture<'a, Result<SessionView, SessionError>> {
        self.note(format!("create {} {} {:?}", principal.0, request.language, request.connection));
        Box::pin(async { Ok(view()) })
    }
    fn execute(&self, _: &Principal, session: &SessionId, command: Command) -> Result<Accepted, SessionError> {
        Self::known(session)?;
        let word = first_word(&command);
        self.note(format!("execute {word}"));
        let (sender, receiver) = oneshot::channel();
        if word == "hang" {
            self.hanging.lock().unwrap_or_else(PoisonError::into_inner).push(sender);
        } else {
            drop(sender.send(result(&word)));
        }
        Ok(Accepted { execution_id: ExecutionId::from_client("exe_1"), result: receiver })
    }
    fn stream(&self, _: &Principal, session: &SessionId, command: Command) -> Result<AcceptedStream, SessionError> {
        Self::known(session)?;
        let word = first_word(&command);
        self.note(format!("stream {word}"));
        let (sender, events) = mpsc::unbounded_channel();
        let room = |bytes| Room { free: Arc::clone(&self.given_back), bytes };
        let chunk = |seq, data: &[u8]| {
            let room = room(data.len() as u64);
            StreamEvent::Data { stream: Stream::Stdout, seq, data: data.to_vec(), room }
        };
        if word == "flood" {
            (0..1000).for_each(|seq| drop(sender.send(chunk(seq, &vec![b'x'; 1 << 16]))));
        }
        let exited = StreamEvent::Exited(Box::new(result(&word)));
        for event in [StreamEvent::Started, chunk(0, b"a\xc3"), chunk(1, b"\xa9b"), StreamEvent::Dropped { bytes: 9 }, exited] {
            drop(sender.send(event));
        }
        Ok(AcceptedStream { execution_id: ExecutionId::from_client("exe_1"), events })
    }
    fn input<'a>(&'a self, target: Target<'a>, data: Vec<u8>, eof: bool) -> BoxFuture<'a, Result<bool, SessionError>> {
        self.note(format!("input {} {} {eof}", target.execution, String::from_utf8_lossy(&data)));
        Box::pin(async { Ok(true) })
    }
    fn signal<'a>(&'a self, target: Target<'a>, signal: i32) -> BoxFuture<'a, Result<bool, SessionError>> {
        self.note(format!("signal {} {signal}", target.execution));
        Box::pin(async { Ok(true) })
    }
    fn cancel<'a>(
        &'a self,
        _: &'a Principal,
        _: &'a SessionId,
        execution: Option<&'a ExecutionId>,
    ) -> BoxFuture<'a, Result<bool, SessionError>> {
        self.note(format!("cancel {}", execution.is_some()));
        Box::pin(async { Ok(false) })
    }
    fn get(&self, _: &Principal, session: &SessionId) -> Result<SessionView, SessionError> {
        Self::known(session).map(|()| view())
    }
    fn list(&self, _: &Principal, _: Option<SessionState>, _: Option<&str>) -> Vec<SessionView> {
        vec![view()]
    }
    fn close<'a>(&'a self, _: &'a Principal, session: &'a SessionId) -> BoxFuture<'a, ()> {
        self.note(format!("close {session}"));
        Box::pin(async {})
    }
    fn run_once<'a>(&'a self, _: &'a Principal, request: RunOnce) -> BoxFuture<'a, Result<ExecutionId, SessionError>> {
        self.note(format!("run {}", request.timeout.as_secs()));
        Box::pin(async { Ok(ExecutionId::from_client("exe_1")) })
    }
    fn status(&self, _: &Principal, execution: &ExecutionId) -> ExecutionStatus {
        if execution.as_str() == "exe_1" { ExecutionStatus::Ended(Box::new(result("done"))) } else { ExecutionStatus::NotFound }
    }
    fn disconnected(&self, connection: u64) {
        self.note(format!("disconnected {connection}"));
    }
    fn shutdown(&self, grace: Duration) -> BoxFuture<'_, ()> {
        self.note(format!("shutdown {}", grace.as_secs()));
        self.hanging.lock().unwrap_or_else(PoisonError::into_inner).clear();
        Box::pin(async {})
    }
    fn languages(&self) -> Vec<LanguageRow> {
        vec![]
    }
    fn probed_languages(&self) -> BoxFuture<'_, Vec<LanguageRow>> {
        Box::pin(async { vec![] })
    }
    fn runtimes(&self) -> Vec<RuntimeRow> {
        vec![]
    }
    fn limits(&self) -> (u64, u64, u64) {
        (300, 512 << 20, 256)
    }
}

/// A running server; it ends when this is dropped.
pub(super) struct Running {
    pub fake: Arc<Fake>,
    pub address: SocketAddr,
    stop: watch::Sender<bool>,
    thread: Option<JoinHandle<()>>,
}

impl Running {
    pub fn start(change: impl FnOnce(&mut ServerConfig), authentication: Authentication) -> Self {
        let mut config = ServerConfig { listen: SocketAddr::from(([127, 0, 0, 1], 0)), workers: 2, ..ServerConfig::default() };
        change(&mut config);
        let fake = Arc::new(Fake::default());
        let (stop, shutdown) = watch::channel(false);
        let service: Arc<dyn SessionService> = Arc::clone(&fake) as Arc<dyn SessionService>;
        let parts = ServerParts { config, service, authentication, metrics: None, shutdown, pulse: None };
        let server = Server::bind(parts).expect("a loopback port");
        let address = server.local_addr();
        let thread = std::thread::spawn(move || server.run(|| ()).expect("the server ends well"));
        Self { fake, address, stop, thread: Some(thread) }
    }

    /// With the default bounds and without tokens.
    pub fn plain() -> Self {
        Self::start(|_| (), Authentication::Off)
    }

    /// Ends the server as SIGTERM does, and waits for it.
    pub fn stop(&mut self) {
        self.stop.send_replace(true);
        if let Some(thread) = self.thread.take() {
            thread.join().expect("the server did not panic");
        }
    }

    pub async fn connect(&self) -> Client {
        self.connect_with(&[]).await.expect("an upgrade").0
    }

    /// Upgrades with more headers; the error is the HTTP status.
    pub async fn connect_with(&self, headers: &[(&'static str, &str)]) -> Result<(Client, Response), u16> {
        let mut request = format!("ws://{}/ws/jsonrpc", self.address).into_client_request().expect("a URL");
        for (name, value) in headers {
            request.headers_mut().insert(*name, value.parse().expect("a header value"));
        }
        let stream = TcpStream::connect(self.address).await.expect("the port is open");
        match tokio_tungstenite::client_async(request, stream).await {
            Ok((socket, response)) => Ok((Client { socket }, response)),
            Err(tokio_tungstenite::tungstenite::Error::Http(response)) => Err(response.status().as_u16()),
            Err(error) => panic!("the upgrade failed: {error}"),
        }
    }

    /// One HTTP request on a connection of its own; status and body.
    pub async fn http(&self, head: &str, body: &str) -> (u16, String) {
        let mut stream = TcpStream::connect(self.address).await.expect("the port is open");
        let request = format!(
            "{head}\r\nHost: localhost\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        // The server may answer and close before it has read all of a body that is too large.
        drop(stream.write_all(request.as_bytes()).await);
        let mut reply = Vec::new();
        drop(stream.read_to_end(&mut reply).await);
        let reply = String::from_utf8_lossy(&reply).into_owned();
        let status = reply.split(' ').nth(1).and_then(|word| word.parse().ok()).unwrap_or(0);
        (status, reply.split_once("\r\n\r\n").map_or(String::new(), |(_, body)| body.to_owned()))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop();
    }
}

/// A client that sends text and reads JSON.
pub(super) struct Client {
    socket: WebSocketStream<TcpStream>,
}

impl Client {
    pub async fn send(&mut self, text: impl Into<String>) {
        self.socket.send(Message::text(text.into())).await.expect("the connection is open");
    }

    /// The next message; it must come within five seconds.
    pub async fn next(&mut self) -> Value {
        let text = async {
            loop {
                match self.socket.next().await {
                    Some(Ok(Message::Text(text))) => return text,
                    Some(Ok(_)) => {}
                    other => panic!("a message was expected, not {other:?}"),
                }
            }
        };
        let text = tokio::time::timeout(Duration::from_secs(5), text).await.expect("an answer in time");
        serde_json::from_str(text.as_str()).expect("JSON")
    }

    pub async fn ask(&mut self, text: impl Into<String>) -> Value {
        self.send(text).await;
        self.next().await
    }

    pub async fn call(&mut self, method: &str, params: Value) -> Value {
        self.ask(json!({"jsonrpc": "2.0", "id": 1, "method": method, "params": params}).to_string()).await
    }

    /// The connection still works.
    pub async fn expect_alive(&mut self) {
        let reply = self.call("session.list", json!({})).await;
        assert_eq!(reply["result"]["count"], 1, "{reply}");
    }
}
