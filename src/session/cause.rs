//! Why a session closes, and what that means for the commands it still held.
//!
//! Invariant: the first cause stands; a later one changes nothing. Read `session` next.

use crate::command::{Failure, FailureKind};

/// Why a session closes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum CloseCause {
    /// `session.close`.
    Asked,
    /// Its connection went and it was tied to that.
    Disconnected,
    /// The call that created it was gone before it could learn the id.
    Abandoned,
    /// Past its idle timeout.
    Idle,
    /// Past its lifetime.
    Lifetime,
    /// The sandbox ended by itself.
    SandboxGone(String),
    /// What `session.create` asked for could not be prepared.
    SetupFailed,
    /// `execution.run` has its result.
    Finished,
    /// The server goes down.
    Shutdown,
}

impl CloseCause {
    /// One word, for metrics and logs.
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Asked => "asked",
            Self::Disconnected => "disconnected",
            Self::Abandoned => "abandoned",
            Self::Idle => "idle",
            Self::Lifetime => "lifetime",
            Self::SandboxGone(_) => "sandbox_gone",
            Self::SetupFailed => "setup_failed",
            Self::Finished => "finished",
            Self::Shutdown => "shutdown",
        }
    }

    /// For a person.
    pub(super) fn sentence(&self) -> String {
        match self {
            Self::Asked => "it was closed by request".into(),
            Self::Disconnected => "the connection it was tied to closed".into(),
            Self::Abandoned => "the connection closed before the session was handed out".into(),
            Self::Idle => "it was idle for longer than its idle timeout".into(),
            Self::Lifetime => "it reached the end of its lifetime".into(),
            Self::SandboxGone(reason) => format!("its sandbox ended: {reason}"),
            Self::SetupFailed => "what it was to start with could not be prepared".into(),
            Self::Finished => "its one execution ended".into(),
            Self::Shutdown => "the server is going down".into(),
        }
    }

    /// What becomes of a command that was queued or running.
    pub(super) fn failure(&self) -> Failure {
        let kind = match self {
            Self::SandboxGone(_) => FailureKind::SandboxGone,
            Self::Asked
            | Self::Disconnected
            | Self::Abandoned
            | Self::Idle
            | Self::Lifetime
            | Self::SetupFailed
            | Self::Finished
            | Self::Shutdown => FailureKind::Cancelled,
        };
        Failure { kind, message: format!("the session closed before the command ended: {}", self.sentence()) }
    }
}
