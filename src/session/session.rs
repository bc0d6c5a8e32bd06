//! One session: its state, its queue, and what a client can do to what runs in it.
//!
//! Invariants: the lock is never held across an await; a command has its place in the queue when `submit` returns; from the
//! moment a session closes nothing enters its queue. Creating → Active ⇄ Idle → Closing → Closed; Active and Idle are
//! derived from what runs, so they can't be wrong. Read `worker` next, the task that takes the queue's commands one by one.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::SystemTime;

use tokio::sync::{Notify, oneshot, watch};
use tokio::time::Instant;

use crate::command::{Command, CommandKind, CommandResult, Control};
use crate::id::{ExecutionId, SessionId};
use crate::runtime::Instance;

use super::api::{OnDisconnect, Principal, SessionError, SessionState, SessionView};
use super::cause::CloseCause;
use super::execution::{self, Ground, Job, Live, Place, StdinState, cancelled_failure, started};
use super::locked;
use super::outcomes::OutcomeWriter;
use super::output::Output;
use super::ticket::Ticket;

/// Who may see a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Visibility {
    /// Its principal.
    Principal,
    /// Nobody: it serves one `execution.run`.
    Internal,
}

/// The bounds of one session.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds {
    pub(super) queue_max: usize,
    pub(super) background_max: usize,
}

/// What a session is made of.
pub(super) struct Parts {
    pub(super) principal: Principal,
    pub(super) visibility: Visibility,
    pub(super) connection: Option<u64>,
    pub(super) commands: Vec<CommandKind>,
    pub(super) bounds: Bounds,
    pub(super) outcomes: OutcomeWriter,
    pub(super) view: SessionView,
    pub(super) instance: Arc<dyn Instance>,
}

/// One session.
pub(super) struct Session {
    pub(super) id: SessionId,
    pub(super) principal: Principal,
    pub(super) visibility: Visibility,
    pub(super) wake: Notify,
    pub(super) closing: Arc<OnceLock<CloseCause>>,
    connection: Option<u64>,
    commands: Vec<CommandKind>,
    bounds: Bounds,
    outcomes: OutcomeWriter,
    created: Instant,
    closed: watch::Sender<bool>,
    inner: Mutex<Inner>,
}

struct Inner {
    phase: Phase,
    /// What `view` starts from; its bulky parts are emptied when the session closes.
    view: SessionView,
    instance: Option<Arc<dyn Instance>>,
    queue: VecDeque<Job>,
    live: HashMap<ExecutionId, Live>,
    last_activity: Instant,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Creating,
    Open,
    /// Takes nothing new; closes when nothing runs.
    Draining,
    Closing,
    Closed,
}

/// What the worker does next.
pub(super) enum Next {
    Run(Box<Job>, Ground),
    Wait,
    /// Draining, and nothing is left in the queue.
    Drained,
}

impl Session {
    /// A session in state Creating; `worker::work` must be spawned for it.
    pub(super) fn new(parts: Parts) -> Arc<Self> {
        let now = Instant::now();
        Arc::new(Self {
            id: parts.view.session_id.clone(),
            principal: parts.principal,
            visibility: parts.visibility,
            wake: Notify::new(),
            closing: Arc::default(),
            connection: parts.connection,
            commands: parts.commands,
            bounds: parts.bounds,
            outcomes: parts.outcomes,
            created: now,
            closed: watch::Sender::new(false),
            inner: Mutex::new(Inner {
                phase: Phase::Creating,
                view: parts.view,
                instance: Some(parts.instance),
                queue: VecDeque::new(),
                live: HashMap::new(),
                last_activity: now,
            }),
        })
    }

    /// It is handed out: Creating → Active.
    pub(super) fn opened(&self) {
        let mut inner = locked(&self.inner);
        if inner.phase == Phase::Creating {
            inner.phase = Phase::Open;
            inner.touch();
        }
    }

    /// Takes a place in the queue. A background command is answered here and now; its end goes to the outcomes and events.
    pub(super) fn submit(
        &self,
        execution: ExecutionId,
        command: Command,
        output: Arc<Output>,
    ) -> Result<oneshot::Receiver<CommandResult>, SessionError> {
        let kind = command.kind();
        let ground = Ground::of(&command);
        let mut inner = locked(&self.inner);
        self.admit(&inner, kind, ground)?;
        self.outcomes.queued(&execution, &self.id);
        let (reply, receiver) = oneshot::channel();
        let mut ticket = Ticket::new(execution.clone(), kind, output, self.outcomes.clone(), Arc::clone(&self.closing));
        match ground {
            Ground::Fore => ticket.reply_to(reply),
            Ground::Back => drop(reply.send(started(&execution))),
        }
        let (job, live) = execution::accept(ticket, command);
        inner.live.insert(execution, live);
        inner.queue.push_back(job);
        if inner.phase == Phase::Open {
            inner.view.execution_count += 1;
        }
        inner.touch();
        drop(inner);
        self.wake.notify_one();
        Ok(receiver)
    }

    fn admit(&self, inner: &Inner, kind: CommandKind, ground: Ground) -> Result<(), SessionError> {
        match inner.phase {
            Phase::Creating | Phase::Open => {}
            Phase::Draining => return Err(SessionError::Busy("the server is going down".into())),
            Phase::Closing | Phase::Closed => return Err(self.closed_error()),
        }
        if !self.commands.contains(&kind) {
            return Err(SessionError::CommandNotSupported { runtime: inner.view.runtime.name(), command: kind.name() });
        }
        if inner.queue.len() >= self.bounds.queue_max {
            return Err(SessionError::Busy(format!("{} commands wait in this session already", self.bounds.queue_max)));
        }
        let background = || inner.live.values().filter(|live| live.ground == Ground::Back).count();
        if ground == Ground::Back && background() >= self.bounds.background_max {
            let message = format!("{} background executions run in this session already", self.bounds.background_max);
            return Err(SessionError::Busy(message));
        }
        Ok(())
    }

    /// Error 1002 with the reason.
    pub(super) fn closed_error(&self) -> SessionError {
        let reason = self.closing.get().map_or_else(|| "it ended".to_owned(), CloseCause::sentence);
        SessionError::Closed { id: self.id.to_string(), reason }
    }

    /// The session itself while it is open.
    pub(super) fn check_open(&self) -> Result<(), SessionError> {
        match locked(&self.inner).phase {
            Phase::Creating | Phase::Open | Phase::Draining => Ok(()),
            Phase::Closing | Phase::Closed => Err(self.closed_error()),
        }
    }

    /// False when the execution has ended or takes no input. Waits while the program's stdin is full.
    pub(super) async fn input(&self, execution: &ExecutionId, data: Vec<u8>, eof: bool) -> Result<bool, SessionError> {
        let open = |live: &Live| (live.stdin == StdinState::Open).then(|| live.sender.clone());
        let Some(sender) = self.find_live(execution, open)? else { return Ok(false) };
        // Room first: a caller who goes away while waiting has then neither sent nor closed anything.
        let Ok(permit) = sender.reserve().await else { return Ok(false) };
        let mut inner = locked(&self.inner);
        match inner.live.get_mut(execution) {
            Some(live) if live.stdin == StdinState::Open => {
                if eof {
                    live.stdin = StdinState::Closed;
                }
                permit.send(Control::Input { data, eof });
                inner.touch();
                Ok(true)
            }
            Some(_) | None => Ok(false),
        }
    }

    /// False when the execution does not run (yet, or any more) or is no program.
    pub(super) async fn signal(&self, execution: &ExecutionId, signal: i32) -> Result<bool, SessionError> {
        let running = |live: &Live| (live.program && live.place == Place::Running).then(|| live.sender.clone());
        let Some(sender) = self.find_live(execution, running)? else { return Ok(false) };
        let delivered = sender.send(Control::Signal(signal)).await.is_ok();
        locked(&self.inner).touch();
        Ok(delivered)
    }

    /// What `take` makes of a live execution; `None` when it ended, an error when it never was one of this session.
    fn find_live<T>(&self, execution: &ExecutionId, take: impl FnOnce(&Live) -> Option<T>) -> Result<Option<T>, SessionError> {
        let inner = locked(&self.inner);
        match inner.live.get(execution) {
            Some(live) => Ok(take(live)),
            None if self.outcomes.belongs(execution, &self.id) => Ok(None),
            None => Err(SessionError::ExecutionNotFound(execution.to_string())),
        }
    }

    /// Ends one execution or all. False when nothing was there to cancel.
    pub(super) fn cancel(&self, execution: Option<&ExecutionId>) -> Result<bool, SessionError> {
        if let Some(execution) = execution
            && self.find_live(execution, |_| Some(()))?.is_none()
        {
            return Ok(false);
        }
        let mut inner = locked(&self.inner);
        let wanted = |id: &ExecutionId| execution.is_none_or(|execution| execution == id);
        let mut found = false;
        for (_, live) in inner.live.iter().filter(|(id, live)| live.place == Place::Running && wanted(id)) {
            live.cancel.notify_one();
            found = true;
        }
        let (cancelled, kept): (VecDeque<Job>, VecDeque<Job>) =
            inner.queue.drain(..).partition(|job| wanted(&job.ticket.execution));
        inner.queue = kept;
        for job in &cancelled {
            inner.live.remove(&job.ticket.execution);
        }
        inner.touch();
        drop(inner);
        found |= !cancelled.is_empty();
        for job in cancelled {
            job.ticket.fail(cancelled_failure());
        }
        Ok(found)
    }

    /// What the worker does next; a job handed out counts as running.
    pub(super) fn next(&self) -> Next {
        let mut inner = locked(&self.inner);
        let Some(job) = inner.queue.pop_front() else {
            return if inner.phase == Phase::Draining { Next::Drained } else { Next::Wait };
        };
        let ground = Ground::of(&job.command);
        if let Some(live) = inner.live.get_mut(&job.ticket.execution) {
            live.place = Place::Running;
        }
        Next::Run(Box::new(job), ground)
    }

    /// The execution is over, its answer is about to go out.
    pub(super) fn ended(&self, execution: &ExecutionId) {
        let mut inner = locked(&self.inner);
        inner.live.remove(execution);
        inner.touch();
    }

    /// Asks the worker to close the session; the first cause stands.
    pub(super) fn request_close(&self, cause: CloseCause) {
        let mut inner = locked(&self.inner);
        // Under the lock, so that no command can enter the queue after the worker has seen the cause and emptied it.
        drop(self.closing.set(cause));
        match inner.phase {
            Phase::Creating | Phase::Open | Phase::Draining => inner.phase = Phase::Closing,
            Phase::Closing | Phase::Closed => {}
        }
        drop(inner);
        self.wake.notify_one();
    }

    /// Takes nothing new, fails what waits, and closes when what runs has ended.
    pub(super) fn drain(&self) {
        let mut inner = locked(&self.inner);
        match inner.phase {
            Phase::Creating | Phase::Open => inner.phase = Phase::Draining,
            Phase::Draining | Phase::Closing | Phase::Closed => {}
        }
        let waiting = inner.take_queue();
        drop(inner);
        for job in waiting {
            job.ticket.fail(CloseCause::Shutdown.failure());
        }
        self.wake.notify_one();
    }

    /// The queue of a closing session; nothing enters it any more.
    pub(super) fn take_queue(&self) -> Vec<Job> {
        locked(&self.inner).take_queue()
    }

    /// Closing → Closed.
    pub(super) fn finished(&self) {
        let mut inner = locked(&self.inner);
        inner.phase = Phase::Closed;
        // Its id stays known for a while, among thousands: only what tells which session it was is kept, and no capacity.
        inner.live = HashMap::new();
        inner.queue = VecDeque::new();
        inner.view.close_reason = self.closing.get().map(CloseCause::sentence);
        inner.view.metadata = None;
        inner.view.config.env = BTreeMap::new();
        inner.view.selection.candidates = Vec::new();
        inner.view.enforcement.walls = Vec::new();
        inner.view.enforcement.limits = Vec::new();
        let instance = inner.instance.take();
        drop(inner);
        drop(instance);
    }

    /// Wakes everyone in `wait_closed`.
    pub(super) fn announce_closed(&self) {
        self.closed.send_replace(true);
    }

    /// Returns when the session is Closed and its place is free again.
    pub(super) async fn wait_closed(&self) {
        // The sender lives in this very session, so waiting can't fail.
        drop(self.closed.subscribe().wait_for(|closed| *closed).await);
    }

    /// Whether its time is up.
    pub(super) fn overdue(&self) -> Option<CloseCause> {
        let inner = locked(&self.inner);
        match inner.phase {
            Phase::Open => {}
            Phase::Creating | Phase::Draining | Phase::Closing | Phase::Closed => return None,
        }
        if self.created.elapsed() >= inner.view.lifetime {
            Some(CloseCause::Lifetime)
        } else if inner.live.is_empty() && inner.last_activity.elapsed() >= inner.view.idle {
            Some(CloseCause::Idle)
        } else {
            None
        }
    }

    /// Whether it ends with that connection.
    pub(super) fn is_tied_to(&self, connection: u64) -> bool {
        self.connection == Some(connection) && locked(&self.inner).view.config.on_disconnect == OnDisconnect::Close
    }

    /// A snapshot.
    pub(super) fn view(&self) -> SessionView {
        let instance = locked(&self.inner).instance.clone();
        let mut view = self.row();
        if let Some(instance) = instance {
            view.usage = instance.usage();
        }
        view
    }

    /// A snapshot without what the kernel would have to be asked for: it has no usage.
    pub(super) fn row(&self) -> SessionView {
        let inner = locked(&self.inner);
        let mut view = inner.view.clone();
        view.state = inner.state();
        view
    }

    /// Its limits, its language and its runtime, to check a command against.
    pub(super) fn with_view<T>(&self, look: impl FnOnce(&SessionView) -> T) -> T {
        look(&locked(&self.inner).view)
    }
}

impl Inner {
    fn touch(&mut self) {
        self.last_activity = Instant::now();
        self.view.last_activity = SystemTime::now();
    }

    fn take_queue(&mut self) -> Vec<Job> {
        let jobs: Vec<Job> = self.queue.drain(..).collect();
        for job in &jobs {
            self.live.remove(&job.ticket.execution);
        }
        jobs
    }

    fn state(&self) -> SessionState {
        match self.phase {
            Phase::Creating => SessionState::Creating,
            Phase::Open | Phase::Draining if self.live.is_empty() && self.view.execution_count > 0 => SessionState::Idle,
            Phase::Open | Phase::Draining => SessionState::Active,
            Phase::Closing => SessionState::Closing,
            Phase::Closed => SessionState::Closed,
        }
    }
}
