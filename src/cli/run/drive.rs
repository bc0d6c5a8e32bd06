//! One command in one instance, with our own streams and signals attached.
//!
//! Invariant: an instance that was made is closed before [`run_in`] returns, whatever happened.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::mpsc;

use super::{Input, code_of};
use crate::cli::CliError;
use crate::cli::output::{note, warn};
use crate::cli::streams::{Interrupts, OutputPump, standard_input};
use crate::command::{Command, CommandOutput, CommandResult, Control, FailureKind, Stream};
use crate::config::REQUIRED_WALLS;
use crate::id::ExecutionId;
use crate::runtime::{ExecutionRequest, Instance, InstanceConfig, OutputSink, OutputVerdict, Runtime};
use crate::sandbox::enforcement::{Enforcement, WallState, WallStatus};

/// Pieces of input and other orders that wait for the program.
const CONTROLS_MAX: usize = 8;

/// What a program is attached to.
pub struct Streams {
    output: Arc<OutputPump>,
    /// Absent: nothing to read.
    input: Option<mpsc::Receiver<Vec<u8>>>,
}

impl Streams {
    /// Our own three streams.
    pub fn standard(input: Input) -> Result<Self, CliError> {
        let input = match input {
            Input::Ours => Some(standard_input()?),
            Input::Empty => None,
        };
        Ok(Self { output: Arc::new(OutputPump::to_standard_streams()?), input })
    }

    /// Others, for tests.
    #[cfg(test)]
    pub(super) fn new(output: OutputPump, input: Option<mpsc::Receiver<Vec<u8>>>) -> Self {
        Self { output: Arc::new(output), input }
    }
}

/// Makes an instance, carries out one command in it, closes it, and gives the exit code. Needs a tokio runtime with more than
/// one thread, because a sink may wait for the reader of our output.
pub async fn run_in(runtime: &dyn Runtime, config: InstanceConfig, command: Command, streams: Streams) -> Result<u8, CliError> {
    let mut interrupts = watch_interrupts(Arc::clone(&streams.output))?;
    let killed_bytes = config.limits.output_killed_bytes;
    // Making it is not given up half-way: an interrupt waits for the instance and then closes it.
    let instance = runtime.create(config).await?;
    warn_of_missing_walls(&instance.enforcement());
    let outcome = match interrupts.try_recv() {
        Ok(code) => Ok(code),
        Err(_) => execute(instance.as_ref(), command, streams, (killed_bytes, &mut interrupts)).await,
    };
    instance.close().await;
    outcome
}

/// Takes signals in a task of its own, so that they are seen while the program's task waits for our reader; each comes as the
/// exit code it leads to. From the first one on, output that waits is dropped.
fn watch_interrupts(output: Arc<OutputPump>) -> Result<mpsc::Receiver<u8>, CliError> {
    let mut interrupts = Interrupts::listen()?;
    let (sender, receiver) = mpsc::channel(2);
    tokio::spawn(async move {
        loop {
            let code = interrupts.next().await;
            output.discard();
            if sender.send(code).await.is_err() {
                return;
            }
        }
    });
    Ok(receiver)
}

async fn execute(
    instance: &dyn Instance,
    command: Command,
    streams: Streams,
    (killed_bytes, interrupts): (u64, &mut mpsc::Receiver<u8>),
) -> Result<u8, CliError> {
    let Streams { output, input } = streams;
    let (control, controls) = mpsc::channel(CONTROLS_MAX);
    if let Some(input) = input {
        tokio::spawn(forward(input, control.clone()));
    }
    let sink = Arc::new(Passthrough { output: Arc::clone(&output), written: AtomicU64::new(0), killed_bytes });
    let mut execution = instance.execute(ExecutionRequest { id: ExecutionId::random(), command, sink, control: controls });
    let mut ended_by = None;
    let result = loop {
        tokio::select! {
            result = &mut execution => break result,
            Some(code) = interrupts.recv() => {
                if ended_by.replace(code).is_some() {
                    // The second one: the future is dropped, which ends the program without waiting for its verdict.
                    return Ok(code);
                }
                cancel(&control).await;
            }
            code = output.reader_gone(), if ended_by.is_none() => {
                ended_by = Some(code);
                cancel(&control).await;
            }
        }
    };
    drop(execution);
    if let Some(code) = ended_by {
        return Ok(code);
    }
    tokio::select! {
        finished = output.finish() => finished?,
        Some(code) = interrupts.recv() => return Ok(code),
    }
    Ok(verdict(&result))
}

/// An execution that has ended can't be cancelled, and need not be. Input may fill the channel, so this must not wait for room.
async fn cancel(control: &mpsc::Sender<Control>) {
    let patience = std::time::Duration::from_millis(100);
    control.send_timeout(Control::Cancel, patience).await.ok();
}

async fn forward(mut input: mpsc::Receiver<Vec<u8>>, control: mpsc::Sender<Control>) {
    while let Some(data) = input.recv().await {
        if control.send(Control::Input { data, eof: false }).await.is_err() {
            return;
        }
    }
    // A program that has ended needs no end of file.
    control.send(Control::Input { data: Vec::new(), eof: true }).await.ok();
}

/// Tells of a bad end in words where the program could not, and gives the exit code.
fn verdict(result: &CommandResult) -> u8 {
    let refused = matches!(&result.output, Some(CommandOutput::Execution(report)) if report.blocked_syscalls.is_some());
    if let Some(failure) = &result.failure
        && (failure.kind != FailureKind::NonzeroExit || refused)
    {
        note(&format!("error: {}\n", failure.message));
    }
    let own = match &result.output {
        Some(CommandOutput::Execution(report)) => report.exit_code.and_then(|code| u8::try_from(code).ok()),
        Some(
            CommandOutput::Written { .. }
            | CommandOutput::Read { .. }
            | CommandOutput::DirectoryCreated { .. }
            | CommandOutput::Copied { .. }
            | CommandOutput::Deleted { .. }
            | CommandOutput::Listing { .. }
            | CommandOutput::Started,
        )
        | None => None,
    };
    code_of(own, result.failure.as_ref().map_or("", |failure| failure.kind.name()), result.failure.is_none())
}

/// Nothing weaker than designed runs in silence, even where the operator has allowed it.
fn warn_of_missing_walls(enforcement: &Enforcement) {
    for wall in enforcement.walls.iter().filter(|wall| REQUIRED_WALLS.contains(&wall.name.as_str())) {
        match wall.state {
            WallStatus::Enforced | WallStatus::Degraded => {}
            WallStatus::Absent => warn(&format!("the wall `{}` is missing: {}", wall.name, wall.detail)),
        }
    }
    if enforcement.profile.audit_only {
        warn(&format!(
            "the profile `{}` audits only: calls against it are let through; this is no wall",
            enforcement.profile.name
        ));
    }
    if let Some(text) = missing_limits(&enforcement.limits) {
        warn(&text);
    }
}

/// One line for all limits that do not hold here and that somebody could count on. Nobody can ask for `io`, and a host with
/// cgroup v1 never has it: a warning each time would teach people not to read them.
fn missing_limits(limits: &[WallState]) -> Option<String> {
    let missing = |limit: &&WallState| limit.state == WallStatus::Absent && limit.name != "io";
    let absent: Vec<&WallState> = limits.iter().filter(missing).collect();
    let names: Vec<&str> = absent.iter().map(|limit| limit.name.as_str()).collect();
    let reason = &absent.first()?.detail;
    Some(format!("no limit holds on {}: {reason}; `codebeaker doctor` says what mends it", names.join(", ")))
}

/// Output goes straight on. It waits when our reader is slower than [`crate::cli::streams::QUEUE_BYTES_MAX`], as a pipe would.
struct Passthrough {
    output: Arc<OutputPump>,
    written: AtomicU64,
    killed_bytes: u64,
}

impl OutputSink for Passthrough {
    fn started(&self) {}

    fn write(&self, stream: Stream, data: &[u8]) -> OutputVerdict {
        let before = self.written.fetch_add(data.len() as u64, Ordering::Relaxed);
        let room = usize::try_from(self.killed_bytes.saturating_sub(before)).unwrap_or(usize::MAX);
        self.output.push(stream, &data[..data.len().min(room)]);
        if data.len() > room { OutputVerdict::LimitReached } else { OutputVerdict::Continue }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_that_do_not_hold_are_told_in_one_line() {
        let limit = |name: &str, state| WallState { name: name.into(), state, detail: "no group".into() };
        let limits =
            [limit("memory", WallStatus::Absent), limit("pids", WallStatus::Absent), limit("disk", WallStatus::Enforced)];
        let told = missing_limits(&limits).expect("two are absent");
        assert_eq!(told, "no limit holds on memory, pids: no group; `codebeaker doctor` says what mends it");
        assert_eq!(missing_limits(&limits[2..]), None);
        assert_eq!(missing_limits(&[limit("io", WallStatus::Absent)]), None);
    }
}
