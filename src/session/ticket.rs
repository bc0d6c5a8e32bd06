//! The obligation to answer one accepted command.
//!
//! Invariant: a ticket is answered exactly once: by `finish`, or when it is dropped unanswered (its session closed, its task
//! panicked) with the cause of the closing. Outcome first, then the event, then the reply, so that whoever has read the
//! answer finds it in `execution.status` too. Read `worker` next.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::command::{CommandKind, CommandOutput, CommandResult, ExecutionReport, Failure};
use crate::id::ExecutionId;

use super::cause::CloseCause;
use super::outcomes::OutcomeWriter;
use super::output::Output;

/// Where an answer goes.
pub(super) struct Ticket {
    pub(super) execution: ExecutionId,
    pub(super) kind: CommandKind,
    pub(super) output: Arc<Output>,
    outcomes: OutcomeWriter,
    reply: Option<oneshot::Sender<CommandResult>>,
    /// Set before a session's tickets are dropped.
    closing: Arc<OnceLock<CloseCause>>,
    taken_at: Option<Instant>,
    answer: Answer,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Answer {
    Owed,
    Given,
}

impl Ticket {
    /// Owes an answer for `execution`.
    pub(super) fn new(
        execution: ExecutionId,
        kind: CommandKind,
        output: Arc<Output>,
        outcomes: OutcomeWriter,
        closing: Arc<OnceLock<CloseCause>>,
    ) -> Self {
        Self { execution, kind, output, outcomes, reply: None, closing, taken_at: None, answer: Answer::Owed }
    }

    /// Where the answer is awaited.
    pub(super) fn reply_to(&mut self, reply: oneshot::Sender<CommandResult>) {
        self.reply = Some(reply);
    }

    /// The command is taken off the queue: its duration counts from here.
    pub(super) fn taken(&mut self) {
        self.taken_at = Some(Instant::now());
        self.outcomes.running(&self.execution);
    }

    /// Answers with what the runtime said.
    pub(super) fn finish(mut self, result: CommandResult) {
        self.answer_once(result.output, result.failure);
    }

    /// Answers that nothing came of it.
    pub(super) fn fail(mut self, failure: Failure) {
        self.answer_once(None, Some(failure));
    }

    fn answer_once(&mut self, output: Option<CommandOutput>, failure: Option<Failure>) {
        if self.answer == Answer::Given {
            return;
        }
        self.answer = Answer::Given;
        let verdict = failure.as_ref().map_or("success", |failure| failure.kind.name());
        metrics::counter!("codebeaker_commands_total", "command" => self.kind.name(), "verdict" => verdict).increment(1);
        let result = CommandResult {
            execution_id: self.execution.clone(),
            output: self.with_captured(output),
            failure,
            duration: self.taken_at.map_or(Duration::ZERO, |at| at.elapsed()),
        };
        self.outcomes.ended(&result);
        match self.reply.take() {
            Some(reply) => {
                self.output.end(|| result.clone());
                // Nobody waiting is no error: the outcome is kept.
                drop(reply.send(result));
            }
            None => self.output.end(|| result),
        }
    }

    /// A program that was cut short still shows what it had written.
    fn with_captured(&self, output: Option<CommandOutput>) -> Option<CommandOutput> {
        let report = match output {
            Some(CommandOutput::Execution(report)) => report,
            None if self.kind.executes() && self.output.has_started() => ExecutionReport::default(),
            other => return other,
        };
        let (stdout, stderr) = self.output.take_captured();
        Some(CommandOutput::Execution(ExecutionReport { stdout, stderr, ..report }))
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if self.answer == Answer::Owed {
            let cause = self.closing.get().cloned();
            let cause = cause.unwrap_or_else(|| CloseCause::SandboxGone("its task ended unexpectedly".into()));
            self.answer_once(None, Some(cause.failure()));
        }
    }
}
