//! The task of one session: takes the commands off its queue one by one, and closes it in the end.
//!
//! Invariants: one foreground command runs at a time; a background one has been handed to the instance before the next
//! command is; whatever happens – the sandbox goes, a runtime panics – the session ends Closed and every ticket is answered.
//! Read `ticket` next.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::stream::{FuturesUnordered, StreamExt};
use futures_util::{FutureExt, poll};
use tokio::sync::watch;

use crate::command::{CommandResult, Control, Failure, FailureKind};
use crate::runtime::{ExecutionRequest, Instance, OutputSink};

use super::audit::Audited;
use super::book::{Book, Place};
use super::cause::CloseCause;
use super::execution::{Ground, Job, cancelled_failure};
use super::session::{Next, Session};

/// How long a cancelled execution may take to end before it is abandoned (its future dropped, which ends it too).
const CANCEL_WAIT: Duration = Duration::from_secs(5);

/// Runs the session to its end. `place` is given back when no process of it lives.
pub(super) async fn work(session: Arc<Session>, instance: Arc<dyn Instance>, book: Arc<Book>, place: Place) {
    if AssertUnwindSafe(serve(&session, &instance)).catch_unwind().await.is_err() {
        tracing::error!(session = %session.id, "the session's task panicked; the session closes");
        session.request_close(CloseCause::SandboxGone("an internal error".into()));
    }
    for job in session.take_queue() {
        // Unanswered tickets answer with the cause of the closing.
        drop(job);
    }
    if AssertUnwindSafe(instance.close()).catch_unwind().await.is_err() {
        tracing::error!(session = %session.id, "closing the environment panicked");
    }
    drop(instance);
    session.finished();
    let cause = session.closing.get().map_or("unknown", CloseCause::name);
    metrics::counter!("codebeaker_sessions_closed_total", "reason" => cause).increment(1);
    tracing::info!(session = %session.id, cause, "session closed");
    book.closed(&session);
    drop(place);
    // Last, so that whoever waited for the end finds room for another session.
    session.announce_closed();
}

/// Until the session is to close; what runs then is dropped, which cancels it.
async fn serve(session: &Arc<Session>, instance: &Arc<dyn Instance>) {
    let mut gone = instance.gone();
    let mut background = FuturesUnordered::new();
    let mut foreground: Option<BoxFuture<'static, ()>> = None;
    while session.closing.get().is_none() {
        if foreground.is_none() {
            match session.next() {
                Next::Run(job, Ground::Fore) => foreground = Some(run(session, instance, *job).boxed()),
                Next::Run(job, Ground::Back) => {
                    let mut execution = run(session, instance, *job).boxed();
                    // Here and not by the set, which may pause before it comes to what was added last.
                    if poll!(&mut execution).is_pending() {
                        background.push(execution);
                    }
                    continue;
                }
                Next::Drained if background.is_empty() => {
                    session.request_close(CloseCause::Shutdown);
                    continue;
                }
                Next::Drained | Next::Wait => {}
            }
        }
        // In this order: a result that is there counts before the news that the sandbox ended.
        tokio::select! {
            biased;
            Some(()) = background.next(), if !background.is_empty() => {}
            () = ended(&mut foreground) => foreground = None,
            reason = gone_reason(&mut gone) => session.request_close(CloseCause::SandboxGone(reason)),
            () = session.wake.notified() => {}
        }
    }
}

/// The end of the foreground command; never when there is none.
async fn ended(foreground: &mut Option<BoxFuture<'static, ()>>) {
    match foreground {
        Some(execution) => execution.await,
        None => std::future::pending().await,
    }
}

/// Why the environment ended by itself; never while it lives.
async fn gone_reason(gone: &mut watch::Receiver<Option<String>>) -> String {
    match gone.wait_for(Option::is_some).await {
        Ok(reason) => reason.clone().unwrap_or_default(),
        Err(_) => "the runtime let go of it".into(),
    }
}

/// One execution from the queue to its answer.
fn run(session: &Arc<Session>, instance: &Arc<dyn Instance>, job: Job) -> impl Future<Output = ()> + Send + 'static {
    let (session, instance) = (Arc::clone(session), Arc::clone(instance));
    async move {
        let Job { mut ticket, command, controls, cancel, sender } = job;
        ticket.taken();
        let (output, execution) = (Arc::clone(&ticket.output), ticket.execution.clone());
        let sink: Arc<dyn OutputSink> = Arc::new(Audited { output, session: session.id.clone(), execution });
        let request = ExecutionRequest { id: ticket.execution.clone(), command, sink, control: controls };
        let execution = AssertUnwindSafe(instance.execute(request)).catch_unwind();
        let cancelled = async {
            cancel.notified().await;
            // A full channel means that the program does not read its input; then the wait below is the way out.
            let asked = async {
                drop(sender.send(Control::Cancel).await);
                std::future::pending::<()>().await;
            };
            drop(tokio::time::timeout(CANCEL_WAIT, asked).await);
        };
        let outcome = tokio::select! {
            biased;
            result = execution => Outcome::from_runtime(result),
            () = cancelled => Outcome::Failed(cancelled_failure()),
        };
        session.ended(&ticket.execution);
        match outcome {
            Outcome::Result(result) => ticket.finish(*result),
            Outcome::Failed(failure) => ticket.fail(failure),
        }
    }
}

/// How an execution ended, as this task sees it.
enum Outcome {
    Result(Box<CommandResult>),
    Failed(Failure),
}

impl Outcome {
    fn from_runtime(result: std::thread::Result<CommandResult>) -> Self {
        if let Ok(result) = result {
            return Self::Result(Box::new(result));
        }
        tracing::error!("a runtime panicked while it ran a command");
        let message = "the runtime failed while it ran the command; the server's log has the cause".into();
        Self::Failed(Failure { kind: FailureKind::IoError, message })
    }
}
