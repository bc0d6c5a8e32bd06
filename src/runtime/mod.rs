//! What runs code: the two traits every runtime implements.
//!
//! Invariant: a runtime never runs anything outside a sandbox; when it can't build one it is unavailable and says why.
//! Every runtime gives the same result shapes (`command`). Read `native` next, then `engine`, `wasm`, `docker` and `registry`.

pub mod docker;
pub mod egress;
pub mod engine;
pub mod features;
pub mod figures;
pub mod isolate;
pub mod isolation;
pub mod native;
pub mod registry;
pub mod wasm;

use std::collections::BTreeMap;
use std::sync::Arc;

use futures_util::future::BoxFuture;
use tokio::sync::{mpsc, watch};

use crate::command::{Command, CommandKind, CommandResult, Control, Stream, Usage};
use crate::id::{EnvironmentId, ExecutionId};
use crate::language::Language;
use crate::sandbox::enforcement::{Enforcement, WallState};
use crate::sandbox::error::SandboxError;
use crate::sandbox::profile::Profile;
use crate::sandbox::spec::{Limits, NamedLimits};
use egress::NetworkGrant;
use features::Features;

/// `runtimeType` on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[expect(missing_docs, reason = "the types of DESIGN section 4")]
pub enum RuntimeKind {
    NativeProcess,
    Deno,
    Bun,
    NodeJs,
    WebAssembly,
    V8Isolate,
    Docker,
}

impl RuntimeKind {
    /// All of them, in DESIGN's order.
    pub const ALL: [Self; 7] =
        [Self::NativeProcess, Self::Deno, Self::Bun, Self::NodeJs, Self::WebAssembly, Self::V8Isolate, Self::Docker];

    /// The word on the wire.
    pub fn name(self) -> &'static str {
        match self {
            Self::NativeProcess => "NativeProcess",
            Self::Deno => "Deno",
            Self::Bun => "Bun",
            Self::NodeJs => "NodeJs",
            Self::WebAssembly => "WebAssembly",
            Self::V8Isolate => "V8Isolate",
            Self::Docker => "Docker",
        }
    }

    /// The commands that exist for it: what it lacks is inherent, and stands in docs/runtimes.md.
    pub fn commands(self) -> Vec<CommandKind> {
        let lacks: &[CommandKind] = match self {
            // npm is no part of the engine but a tree of programs beside it.
            Self::NodeJs => &[CommandKind::InstallPackages],
            // There is no process but the engine's own.
            Self::WebAssembly | Self::V8Isolate => &[CommandKind::ExecuteShell, CommandKind::InstallPackages],
            Self::NativeProcess | Self::Deno | Self::Bun | Self::Docker => &[],
        };
        CommandKind::ALL.into_iter().filter(|command| !lacks.contains(command)).collect()
    }

    /// The runtime of that name on the wire; exact spelling.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }
}

/// Whether a runtime can serve, and if not, why and what mends it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Availability {
    /// It can.
    Available,
    /// It can't: a sentence with the cause and the mend.
    Unavailable(String),
}

/// What a session asks of a runtime; every default has been filled in and every bound checked.
#[derive(Debug, Clone)]
pub struct InstanceConfig {
    /// Name of the environment to make.
    pub environment_id: EnvironmentId,
    /// Whose it is: environments of different owners share nothing, not even where a runtime puts several into one sandbox.
    pub owner: String,
    /// The session's language.
    pub language: Arc<Language>,
    /// Name of an image in the store; `host` is always there.
    pub image: String,
    /// The profile (walls, seccomp, defaults).
    pub profile: Arc<Profile>,
    /// The limits in force.
    pub limits: Limits,
    /// Which of them the request itself named (those fail with `limit_unenforceable` when the host can't).
    pub named_limits: NamedLimits,
    /// Environment of every program.
    pub env: BTreeMap<String, String>,
    /// False: everything outside the image is as new before each execution.
    pub persist_filesystem: bool,
    /// What the request says of permissions; absent: nothing.
    pub permissions: Option<Permissions>,
    /// What of the network it was granted.
    pub network: NetworkGrant,
    /// Whether one that is ready may serve.
    pub wants: Wants,
}

impl InstanceConfig {
    /// What a call of the command line asks, which has no server and no principal: everything made anew, nothing of the network.
    pub fn without_server(language: Arc<Language>, image: String, profile: Arc<Profile>, limits: Limits) -> Self {
        Self {
            environment_id: EnvironmentId::random(),
            owner: String::new(),
            language,
            image,
            profile,
            limits,
            named_limits: NamedLimits::default(),
            env: BTreeMap::new(),
            persist_filesystem: true,
            permissions: None,
            network: NetworkGrant::None,
            wants: Wants::New,
        }
    }
}

/// Whether an environment that is ready may serve.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wants {
    /// Yes.
    Any,
    /// No: what it costs to make one is the question, or nobody is to wait for another one later.
    New,
}

/// Where an environment came from: `selection.sandbox` on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// It was ready.
    Pool,
    /// It was made for the request.
    New,
}

impl Origin {
    /// The word on the wire.
    pub fn name(self) -> &'static str {
        match self {
            Self::Pool => "pool",
            Self::New => "new",
        }
    }
}

/// `permissions` of `session.create`: what a runtime with permission flags of its own narrows further. Paths have been checked
/// (`engine::permissions`).
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "the fields of PROTOCOL")]
pub struct Permissions {
    pub allow_read: Vec<String>,
    pub allow_write: Vec<String>,
    pub allow_net: bool,
    pub allow_env: bool,
    pub allow_package_index: bool,
}

/// A way to run code.
pub trait Runtime: Send + Sync {
    /// Name for people.
    fn name(&self) -> &str;
    /// `type` on the wire.
    fn kind(&self) -> RuntimeKind;
    /// Names (not aliases) of the languages it serves.
    fn languages(&self) -> Vec<String>;
    /// Whether it serves the language of that name (not alias). Asked for each session that is made.
    fn serves(&self, language: &str) -> bool {
        self.languages().iter().any(|name| name == language)
    }
    /// Commands it can carry out.
    fn commands(&self) -> Vec<CommandKind>;
    /// Speed, memory, isolation: `capabilities` on the wire.
    fn features(&self) -> Features;
    /// Whether it can serve on this host now.
    fn availability(&self) -> Availability;
    /// Why it can't serve under this profile, with the mend.
    fn refuses(&self, _: &Profile) -> Option<String> {
        None
    }
    /// Of what it runs programs with; absent until it is known.
    fn version(&self) -> Option<String> {
        None
    }
    /// The walls that stand in an environment under this profile; none where they can't be told beforehand.
    fn walls(&self, _: &Profile) -> Vec<WallState> {
        Vec::new()
    }
    /// What it stands on when that is no image of the request's choice.
    fn own_root(&self) -> Option<String> {
        None
    }
    /// Whether it may have images that the store has not: then what `create` says counts.
    fn brings_images(&self) -> bool {
        false
    }
    /// Why it could run the language of that name only if more were installed, with the mend.
    fn lacks(&self, _language: &str) -> Option<String> {
        None
    }
    /// Finds out what it takes an environment to know: the version of an engine, on which depends what it serves. At once where that
    /// is known; where it can't be found out, `availability` says so from then on, or the next `create`.
    fn learn(&self, _: InstanceConfig) -> BoxFuture<'_, ()> {
        Box::pin(std::future::ready(()))
    }
    /// Makes an environment; nothing is left behind when it fails.
    fn create(&self, config: InstanceConfig) -> BoxFuture<'_, Result<Arc<dyn Instance>, SandboxError>>;
    /// Ends what is left of its environments and gives back what it holds on the host. Waits for that, so that a process which
    /// returns has left nothing; nothing can be created afterwards.
    fn end(&self) {}
}

/// Takes a program's output as it comes. Never blocks.
pub trait OutputSink: Send + Sync {
    /// The program has been started.
    fn started(&self);
    /// A system call was refused to the program or a descendant; told once for each name.
    fn blocked(&self, _syscall: &'static str) {}
    /// Bytes of one stream, in order. The answer says whether the program may go on.
    fn write(&self, stream: Stream, data: &[u8]) -> OutputVerdict;
    /// Whether somebody sees bytes as they come. Else they may come some milliseconds late.
    fn is_followed(&self) -> bool {
        true
    }
}

/// What a sink thinks of the amount so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OutputVerdict {
    /// Go on.
    Continue,
    /// The kill limit is passed: end the program, verdict `output_limit`.
    LimitReached,
}

/// One execution, handed to an instance.
pub struct ExecutionRequest {
    /// Its id.
    pub id: ExecutionId,
    /// What to do.
    pub command: Command,
    /// Where output goes.
    pub sink: Arc<dyn OutputSink>,
    /// Input, signals, cancel. When the sender is dropped nothing more comes; that is not a cancel.
    pub control: mpsc::Receiver<Control>,
}

/// An environment that a runtime made; it lives as long as its session.
pub trait Instance: Send + Sync {
    /// Its name.
    fn environment_id(&self) -> &EnvironmentId;
    /// Which runtime made it.
    fn kind(&self) -> RuntimeKind;
    /// Carries out one command to its end. The session calls it for one foreground command at a time; background executions
    /// overlap. Dropping the future cancels the execution. `stdout` and `stderr` of the report are left empty: the sink has them.
    fn execute(&self, request: ExecutionRequest) -> BoxFuture<'_, CommandResult>;
    /// Whether it was ready.
    fn origin(&self) -> Origin {
        Origin::New
    }
    /// What holds for this environment.
    fn enforcement(&self) -> Enforcement;
    /// What it used so far.
    fn usage(&self) -> Usage;
    /// Becomes `Some(reason)` when the environment ends by itself (init died, engine gone).
    fn gone(&self) -> watch::Receiver<Option<String>>;
    /// Ends everything; returns when no process of it lives. Doing it twice is no error.
    fn close(&self) -> BoxFuture<'_, ()>;
}
