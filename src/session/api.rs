//! The types that `rpc` hands to the session manager and gets back.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use tokio::sync::{mpsc, oneshot};

use crate::command::{CommandResult, Stream, Usage};
use crate::id::{EnvironmentId, ExecutionId, SessionId};
use crate::runtime::{Origin, RuntimeKind};
use crate::sandbox::enforcement::Enforcement;
use crate::sandbox::error::SandboxError;
use crate::sandbox::spec::Limits;

pub use crate::runtime::Permissions;
pub use crate::runtime::features::RuntimeRow;
pub use crate::selector::{Candidate, Preference, Selection};

/// Who calls: the name of a token, or `anonymous` with `--no-auth`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Principal(pub String);

/// What happens to a session when the connection that made it closes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnDisconnect {
    /// It lives on until its idle timeout.
    Keep,
    /// It closes. rpc calls `Manager::disconnected` with the connection's number.
    Close,
}

/// `session.create` with its syntax checked; absent fields are filled in by the manager from profile and configuration.
#[derive(Debug, Clone, PartialEq)]
#[expect(missing_docs, reason = "the fields of PROTOCOL")]
pub struct CreateSession {
    pub language: String,
    pub preference: Preference,
    pub runtime: Option<RuntimeKind>,
    pub image: Option<String>,
    pub profile: String,
    pub idle_timeout: Option<Duration>,
    pub lifetime: Option<Duration>,
    pub persist_filesystem: bool,
    pub memory_limit_bytes: Option<u64>,
    pub cpu_shares: Option<u64>,
    pub cpu_limit: Option<f64>,
    pub pids_limit: Option<u64>,
    pub disk_limit_bytes: Option<u64>,
    pub permissions: Option<Permissions>,
    pub env: BTreeMap<String, String>,
    pub packages: Vec<String>,
    pub metadata: Option<serde_json::Value>,
    pub on_disconnect: OnDisconnect,
    /// Number of the connection that asks, for `OnDisconnect::Close`; absent over HTTP.
    pub connection: Option<u64>,
}

impl CreateSession {
    /// A request that names nothing but its language.
    pub fn of(language: &str) -> Self {
        Self {
            language: language.to_owned(),
            preference: Preference::Balanced,
            runtime: None,
            image: None,
            profile: "default".into(),
            idle_timeout: None,
            lifetime: None,
            persist_filesystem: true,
            memory_limit_bytes: None,
            cpu_shares: None,
            cpu_limit: None,
            pids_limit: None,
            disk_limit_bytes: None,
            permissions: None,
            env: BTreeMap::new(),
            packages: Vec::new(),
            metadata: None,
            on_disconnect: OnDisconnect::Keep,
            connection: None,
        }
    }
}

/// `state` on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the words of PROTOCOL")]
pub enum SessionState {
    Creating,
    Active,
    Idle,
    Closing,
    Closed,
}

/// A snapshot of a session.
#[derive(Debug, Clone, PartialEq)]
#[expect(missing_docs, reason = "the fields of PROTOCOL")]
pub struct SessionView {
    pub session_id: SessionId,
    pub environment_id: EnvironmentId,
    pub runtime: RuntimeKind,
    pub selection: Selection,
    /// Whether its sandbox was ready.
    pub origin: Origin,
    pub language: String,
    pub image: String,
    pub created_at: SystemTime,
    pub last_activity: SystemTime,
    pub state: SessionState,
    /// Why it is closed (idle, lifetime, asked, its sandbox ended: …); absent while open.
    pub close_reason: Option<String>,
    pub execution_count: u64,
    /// The idle timeout in force.
    pub idle: Duration,
    /// The longest life in force.
    pub lifetime: Duration,
    pub config: SessionSettings,
    pub enforcement: Enforcement,
    pub usage: Usage,
    pub metadata: Option<serde_json::Value>,
}

/// What is in force: `config` on the wire.
#[derive(Debug, Clone, PartialEq)]
#[expect(missing_docs, reason = "the fields of PROTOCOL")]
pub struct SessionSettings {
    pub profile: String,
    pub idle_timeout: Duration,
    pub lifetime: Duration,
    pub persist_filesystem: bool,
    pub limits: Limits,
    pub env: BTreeMap<String, String>,
    pub on_disconnect: OnDisconnect,
}

/// A command that was accepted into its session's queue.
pub struct Accepted {
    /// Its id.
    pub execution_id: ExecutionId,
    /// The answer; for a background command it comes at once. A closed channel means the server is going down.
    pub result: oneshot::Receiver<CommandResult>,
}

/// A streamed command that was accepted. `Exited` always comes, exactly once, last.
pub struct AcceptedStream {
    /// Its id.
    pub execution_id: ExecutionId,
    /// Its events; bounded in bytes by the session (a slow reader gets `Dropped`), so the channel itself may be unbounded.
    pub events: mpsc::UnboundedReceiver<StreamEvent>,
}

/// EVENT of PROTOCOL section 2. Whoever takes a `Data` event off the channel calls `taken` so that the buffer has room again.
#[derive(Debug)]
pub enum StreamEvent {
    /// The program runs.
    Started,
    /// Bytes of one stream.
    Data {
        /// Which.
        stream: Stream,
        /// Counts both streams together, from 0.
        seq: u64,
        /// The bytes; cut anywhere (rpc holds back an incomplete UTF-8 sequence).
        data: Vec<u8>,
        /// Room in the session's buffer, given back when this is dropped.
        room: Room,
    },
    /// Bytes that a slow reader lost.
    Dropped {
        /// How many.
        bytes: u64,
    },
    /// A system call was refused; once for each call of an execution.
    Blocked {
        /// Its name.
        syscall: &'static str,
    },
    /// The end.
    Exited(Box<CommandResult>),
}

/// Bytes of a stream's buffer; dropping it gives them back.
#[derive(Debug)]
pub struct Room {
    /// The buffer's free bytes.
    pub free: std::sync::Arc<std::sync::atomic::AtomicU64>,
    /// How many this event holds.
    pub bytes: u64,
}

impl Drop for Room {
    fn drop(&mut self) {
        self.free.fetch_add(self.bytes, std::sync::atomic::Ordering::AcqRel);
    }
}

/// `execution.run` with its syntax checked.
#[derive(Debug, Clone, PartialEq)]
#[expect(missing_docs, reason = "the fields of PROTOCOL")]
pub struct RunOnce {
    pub language: String,
    pub code: String,
    pub packages: Vec<String>,
    pub timeout: Duration,
    pub memory_limit_bytes: u64,
    pub cpu_limit: f64,
    pub network_enabled: bool,
    pub allow_package_index: bool,
    pub preference: Preference,
    pub runtime: Option<RuntimeKind>,
}

/// `status` of `execution.status`.
#[derive(Debug, Clone, PartialEq)]
pub enum ExecutionStatus {
    /// It waits.
    Queued,
    /// It runs.
    Running,
    /// It ended; `completed` when it succeeded, else `failed`.
    Ended(Box<CommandResult>),
    /// It never started: no sandbox could be made. `failed` on the wire, the sentence in `stderr`.
    Refused(String),
    /// Nothing of that id is known to this principal.
    NotFound,
}

/// Why the manager refused a call.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the kinds of PROTOCOL section 4")]
pub enum SessionError {
    #[error("there is no session `{0}`")]
    NotFound(String),
    #[error("session `{id}` is closed: {reason}")]
    Closed { id: String, reason: String },
    #[error("there is no execution `{0}` in that session")]
    ExecutionNotFound(String),
    #[error("the language `{language}` is not supported")]
    LanguageNotSupported { language: String, supported: Vec<String> },
    #[error("no runtime can serve this request")]
    RuntimeNotAvailable { candidates: Vec<Candidate> },
    #[error("the runtime {runtime} has no command `{command}`")]
    CommandNotSupported { runtime: &'static str, command: &'static str },
    /// `field` as on the wire.
    #[error("{message}")]
    PolicyDenied { field: String, message: String, hint: String },
    #[error("{message}")]
    QuotaExceeded { message: String, hint: String },
    #[error("{0}")]
    Busy(String),
    /// A field whose value only the manager can judge: -32602.
    #[error("`{field}`: {message}")]
    InvalidField { field: String, message: String },
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
}

/// One row of `language.list`.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(missing_docs, reason = "the fields of PROTOCOL")]
pub struct LanguageRow {
    pub name: String,
    pub display_name: String,
    pub aliases: Vec<String>,
    /// What its `version` command printed; absent when it is not installed.
    pub version: Option<String>,
    pub runtimes: Vec<RuntimeKind>,
    pub image: String,
    pub installed: bool,
    /// Why it is not installed, and what mends it.
    pub reason: Option<String>,
}
