//! One accepted command between `submit` and its answer: the job in the queue and what a client can reach of it meanwhile.
//!
//! Invariant: a job and its `Live` are made together and share one control channel and one cancel. Read `session` next.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, mpsc};

use crate::command::{Command, CommandOutput, CommandResult, Control, Failure, FailureKind, Stdin};
use crate::id::ExecutionId;

use super::ticket::Ticket;

/// Inputs and signals waiting for one execution; a client that sends more waits.
const CONTROLS_MAX: usize = 16;

/// A command in the queue, with all it needs to run.
pub(super) struct Job {
    pub(super) ticket: Ticket,
    pub(super) command: Command,
    pub(super) controls: mpsc::Receiver<Control>,
    pub(super) cancel: Arc<Notify>,
    pub(super) sender: mpsc::Sender<Control>,
}

/// An execution that has not ended.
pub(super) struct Live {
    pub(super) place: Place,
    pub(super) ground: Ground,
    pub(super) program: bool,
    pub(super) stdin: StdinState,
    pub(super) sender: mpsc::Sender<Control>,
    pub(super) cancel: Arc<Notify>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    Queued,
    Running,
}

/// Whether a command holds the queue while it runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ground {
    Fore,
    Back,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum StdinState {
    Open,
    Closed,
}

/// The two halves of a command that has just been accepted.
pub(super) fn accept(ticket: Ticket, command: Command) -> (Job, Live) {
    let (sender, controls) = mpsc::channel(CONTROLS_MAX);
    let cancel = Arc::new(Notify::new());
    let live = Live {
        place: Place::Queued,
        ground: Ground::of(&command),
        program: command.kind().executes(),
        stdin: StdinState::of(&command),
        sender: sender.clone(),
        cancel: Arc::clone(&cancel),
    };
    (Job { ticket, command, controls, cancel, sender }, live)
}

impl Ground {
    pub(super) fn of(command: &Command) -> Self {
        match command {
            Command::ExecuteShell(shell) if shell.background => Self::Back,
            Command::ExecuteShell(_)
            | Command::ExecuteCode(_)
            | Command::WriteFile(_)
            | Command::ReadFile(_)
            | Command::CreateDirectory(_)
            | Command::CopyFile(_)
            | Command::DeleteFile(_)
            | Command::ListDirectory(_)
            | Command::InstallPackages(_) => Self::Fore,
        }
    }
}

impl StdinState {
    pub(super) fn of(command: &Command) -> Self {
        let stdin = match command {
            Command::ExecuteShell(shell) => &shell.stdin,
            Command::ExecuteCode(code) => &code.stdin,
            Command::WriteFile(_)
            | Command::ReadFile(_)
            | Command::CreateDirectory(_)
            | Command::CopyFile(_)
            | Command::DeleteFile(_)
            | Command::ListDirectory(_)
            | Command::InstallPackages(_) => &Stdin::Empty,
        };
        match stdin {
            Stdin::Open => Self::Open,
            Stdin::Empty | Stdin::Bytes(_) => Self::Closed,
        }
    }
}

/// The answer to a background command.
pub(super) fn started(execution: &ExecutionId) -> CommandResult {
    CommandResult {
        execution_id: execution.clone(),
        output: Some(CommandOutput::Started),
        failure: None,
        duration: Duration::ZERO,
    }
}

/// The verdict of a command that its client ended.
pub(super) fn cancelled_failure() -> Failure {
    Failure { kind: FailureKind::Cancelled, message: "the execution was cancelled".into() }
}
