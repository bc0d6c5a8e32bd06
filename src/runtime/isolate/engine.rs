//! One engine: a process that holds the isolates of several sessions, in a sandbox of its own.
//!
//! Invariants: what it says is bounded and checked; when its process ends, or says what can't be understood, its sandbox ends and
//! everybody who waits learns it. Read `wire` for the words, `engine/main.mjs` for the other side.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::pipe::PipeFlags;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::unix::pipe;
use tokio::sync::{mpsc, oneshot, watch};

use crate::plan::files::{FileCommand, FileError, FileReply};
use crate::plan::messages::{Born, ExecuteRequest, ProgramEnd, ProgramNetwork, View};
use crate::runtime::native::sandbox::Sandbox;
use crate::runtime::native::{Maker, NativeRuntime};
use crate::runtime::{InstanceConfig, RuntimeKind};
use crate::sandbox::error::SandboxError;

use super::IsolateBounds;
use super::cell::Cell;
use super::files;
use super::seats::{Key, Room};
use super::spares::Spares;
use super::wire::{Event, Id, LINE_BYTES_MAX, Request};

/// An engine that does not take requests after this long is taken for broken.
const START_TIME: Duration = Duration::from_secs(20);

/// Requests and events that may wait; whoever has more waits.
const WAITING_MAX: usize = 256;

/// What is kept of an engine's own words, for the log.
const LOG_BYTES_MAX: usize = 4096;

/// The engine is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gone;

struct Shared {
    /// None once the engine is gone.
    waiters: Mutex<Option<HashMap<Id, mpsc::Sender<Event>>>>,
    gone: watch::Sender<Option<String>>,
    /// No further session is to come.
    worn: AtomicBool,
}

/// An engine that takes requests.
pub struct Engine {
    key: Key,
    sandbox: Sandbox,
    requests: mpsc::Sender<Vec<u8>>,
    shared: Arc<Shared>,
    next: AtomicU64,
    bounds: IsolateBounds,
    sessions: AtomicU64,
    executions: AtomicU64,
    runs: AtomicU64,
    spares: Mutex<Spares<Cell>>,
}

impl Engine {
    /// Starts one in a sandbox of its own.
    pub async fn start(
        native: &NativeRuntime,
        config: &InstanceConfig,
        key: Key,
        bounds: IsolateBounds,
    ) -> Result<Arc<Self>, SandboxError> {
        let sandbox = native.sandbox(config, 0).await?;
        let streams = Streams::make().map_err(|error| SandboxError::Busy { cause: error.to_string() })?;
        let Streams { input, output, log, theirs } = streams;
        let started = sandbox
            .init()
            .execute(program(&sandbox), Born::Fresh, &theirs, None)
            .await
            .map_err(|_| broken("its sandbox ended"))?;
        drop(theirs);
        let shared = Arc::new(Shared {
            waiters: Mutex::new(Some(HashMap::new())),
            gone: watch::Sender::new(None),
            worn: AtomicBool::new(false),
        });
        let (requests, lines) = mpsc::channel(WAITING_MAX);
        let (up, is_up) = oneshot::channel();
        tokio::spawn(write(input, lines));
        tokio::spawn(Arc::clone(&shared).read(output, up));
        tokio::spawn(Arc::clone(&shared).watch(started.end, log));
        let engine = Arc::new(Self {
            key,
            sandbox,
            requests,
            shared,
            next: AtomicU64::new(1),
            bounds,
            sessions: AtomicU64::new(0),
            executions: AtomicU64::new(0),
            runs: AtomicU64::new(0),
            spares: Mutex::new(Spares::new(bounds.spares_max)),
        });
        match tokio::time::timeout(START_TIME, is_up).await {
            Ok(Ok(())) => Ok(engine),
            Ok(Err(_)) => Err(broken("it ended before it took requests")),
            Err(_) => Err(broken("it took too long to start")),
        }
    }

    /// The sandbox that it stands in.
    pub fn sandbox(&self) -> &Sandbox {
        &self.sandbox
    }

    /// Becomes the reason when it ends.
    pub fn gone(&self) -> watch::Receiver<Option<String>> {
        self.shared.gone.subscribe()
    }

    /// Counts a session until what comes back is dropped.
    pub fn hold(self: &Arc<Self>) -> Held {
        self.sessions.fetch_add(1, Ordering::AcqRel);
        Held(Arc::clone(self))
    }

    /// Counts an execution as one that runs until what comes back is dropped.
    pub fn run(self: &Arc<Self>) -> Running {
        self.runs.fetch_add(1, Ordering::AcqRel);
        Running(Arc::clone(self))
    }

    /// Executions that run.
    pub fn runs(&self) -> u64 {
        self.runs.load(Ordering::Acquire)
    }

    /// Places for sessions that are still to come; none once it takes no further session.
    pub fn free(&self) -> u64 {
        let takes = self.is_alive() && self.is_fit() && self.executions() < self.bounds.executions_max;
        if takes { self.bounds.sessions_max.saturating_sub(self.sessions()) } else { 0 }
    }

    /// Places that are nobody's yet. The lock is held for a look and a change; it goes with the engine.
    pub fn spares(&self) -> MutexGuard<'_, Spares<Cell>> {
        self.spares.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has it take no further session: something of an earlier one could not be removed, or a place not be opened in time.
    pub fn retire(&self) {
        self.shared.worn.store(true, Ordering::Release);
    }

    /// A number, and the events that come for it.
    pub fn listen(&self) -> Result<Listener, Gone> {
        self.adopt(self.number())
    }

    /// A number that nothing else has.
    pub fn number(&self) -> Id {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    /// The events of a number that nobody listens to any more.
    pub fn adopt(&self, id: Id) -> Result<Listener, Gone> {
        let (sender, events) = mpsc::channel(WAITING_MAX);
        let mut waiters = self.shared.waiters.lock().unwrap_or_else(PoisonError::into_inner);
        waiters.as_mut().ok_or(Gone)?.insert(id, sender);
        Ok(Listener { id, events, shared: Arc::clone(&self.shared) })
    }

    /// Sends a request.
    pub async fn send(&self, request: &Request) -> Result<(), Gone> {
        if matches!(request, Request::Run { .. }) {
            self.executions.fetch_add(1, Ordering::Relaxed);
        }
        self.requests.send(request.line()).await.map_err(|_| Gone)
    }

    /// The same where nothing can be awaited.
    pub fn send_later(self: &Arc<Self>, request: Request) {
        let engine = Arc::clone(self);
        tokio::spawn(async move { engine.send(&request).await });
    }

    /// Carries out a file command below a directory of the sandbox, which is `/` for it.
    pub async fn file(&self, below: &str, command: FileCommand) -> Result<Result<FileReply, FileError>, Gone> {
        let answer = self.sandbox.init().file_below(below.as_bytes().to_vec(), command);
        if let Ok(Ok(answer)) = tokio::time::timeout(files::TIME_MAX, answer).await {
            return Ok(answer);
        }
        self.give_up("a file command got no answer");
        Err(Gone)
    }
}

impl Room for Engine {
    fn key(&self) -> &Key {
        &self.key
    }

    fn sessions(&self) -> u64 {
        self.sessions.load(Ordering::Acquire)
    }

    fn executions(&self) -> u64 {
        self.executions.load(Ordering::Relaxed)
    }

    fn is_fit(&self) -> bool {
        !self.shared.worn.load(Ordering::Acquire)
    }

    fn is_alive(&self) -> bool {
        self.shared.gone.borrow().is_none()
    }

    fn give_up(&self, why: &str) {
        self.shared.end(why);
        self.sandbox.give_up();
    }
}

/// A session's place in an engine.
pub struct Held(Arc<Engine>);

impl Drop for Held {
    fn drop(&mut self) {
        self.0.sessions.fetch_sub(1, Ordering::AcqRel);
    }
}

/// An execution that runs in an engine.
pub struct Running(Arc<Engine>);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.runs.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Events of one number.
pub struct Listener {
    /// The number.
    pub id: Id,
    events: mpsc::Receiver<Event>,
    shared: Arc<Shared>,
}

impl Listener {
    /// The next event.
    pub async fn next(&mut self) -> Result<Event, Gone> {
        self.events.recv().await.ok_or(Gone)
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Some(waiters) = self.shared.waiters.lock().unwrap_or_else(PoisonError::into_inner).as_mut() {
            waiters.remove(&self.id);
        }
    }
}

impl Shared {
    /// The first reason stays. Everybody who waits learns it by the end of its events.
    fn end(&self, why: &str) {
        self.waiters.lock().unwrap_or_else(PoisonError::into_inner).take();
        self.gone.send_if_modified(|gone| {
            let first = gone.is_none();
            if first {
                *gone = Some(why.to_owned());
            }
            first
        });
    }

    /// Hands on events until the engine closes its output or says what is none.
    async fn read(self: Arc<Self>, output: pipe::Receiver, up: oneshot::Sender<()>) {
        let mut up = Some(up);
        let mut reader = BufReader::new(output);
        loop {
            let mut line = Vec::new();
            let bounded = (&mut reader).take(LINE_BYTES_MAX as u64).read_until(b'\n', &mut line).await;
            let event = match bounded {
                Ok(0) | Err(_) => return self.end("the engine of its isolates ended"),
                Ok(_) => Event::parse(&line),
            };
            match event {
                None => return self.end("the engine of its isolates could not be understood"),
                Some(Event::Up) => {
                    if let Some(up) = up.take() {
                        up.send(()).ok();
                    }
                }
                Some(Event::Worn) => self.worn.store(true, Ordering::Release),
                Some(event) => self.hand_on(event).await,
            }
        }
    }

    async fn hand_on(&self, event: Event) {
        let waiter = {
            let waiters = self.waiters.lock().unwrap_or_else(PoisonError::into_inner);
            waiters.as_ref().zip(event.id()).and_then(|(waiters, id)| waiters.get(&id).cloned())
        };
        if let Some(waiter) = waiter {
            // Whoever does not listen any more has gone away.
            waiter.send(event).await.ok();
        }
    }

    /// Waits for the end of the process, and logs its last words.
    async fn watch(self: Arc<Self>, end: oneshot::Receiver<ProgramEnd>, mut log: pipe::Receiver) {
        let mut words = Vec::new();
        let mut buffer = vec![0; LOG_BYTES_MAX];
        while let Ok(bytes @ 1..) = log.read(&mut buffer).await {
            words.extend_from_slice(&buffer[..bytes]);
            let surplus = words.len().saturating_sub(LOG_BYTES_MAX);
            words.drain(..surplus);
        }
        let end = end.await;
        self.end("the engine of its isolates ended");
        tracing::debug!(?end, words = %String::from_utf8_lossy(&words), "an engine of isolates ended");
    }
}

async fn write(mut input: pipe::Sender, mut lines: mpsc::Receiver<Vec<u8>>) {
    while let Some(line) = lines.recv().await {
        // An engine that does not read is ended by whoever waits for its answer.
        if input.write_all(&line).await.is_err() {
            return;
        }
    }
}

fn broken(cause: &str) -> SandboxError {
    SandboxError::RuntimeUnusable { runtime: RuntimeKind::V8Isolate.name().into(), cause: format!("the engine: {cause}") }
}

/// The engine's program.
fn program(sandbox: &Sandbox) -> ExecuteRequest {
    let variables = [
        ("MALLOC_MMAP_THRESHOLD_", "262144"),
        ("DENO_DIR", "/tmp/.deno"),
        ("DENO_NO_UPDATE_CHECK", "1"),
        ("HOME", "/tmp"),
        ("LANG", "C.UTF-8"),
        ("NO_COLOR", "1"),
    ];
    let own = variables.into_iter().map(|(name, value)| format!("{name}={value}").into_bytes());
    let of_the_root = sandbox.environment().iter().map(|(name, value)| format!("{name}={value}").into_bytes());
    ExecuteRequest {
        execution: 0,
        arguments: files::ARGUMENTS.iter().map(|argument| argument.as_bytes().to_vec()).collect(),
        environment: of_the_root.chain(own).collect(),
        directory: b"/".to_vec(),
        view: View::Programs,
        network: ProgramNetwork::default(),
        after: None,
    }
}

/// Our ends of an engine's streams, and theirs.
struct Streams {
    input: pipe::Sender,
    output: pipe::Receiver,
    log: pipe::Receiver,
    theirs: [OwnedFd; 3],
}

impl Streams {
    fn make() -> std::io::Result<Self> {
        let (their_input, input) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
        let (output, their_output) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
        let (log, their_log) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
        // The engine opens them anew, by their numbers, as another user than the one that made them.
        for pipe in [&their_input, &their_output] {
            rustix::fs::fchmod(pipe, rustix::fs::Mode::from_raw_mode(0o666))?;
        }
        Ok(Self {
            input: pipe::Sender::from_owned_fd(input)?,
            output: pipe::Receiver::from_owned_fd(output)?,
            log: pipe::Receiver::from_owned_fd(log)?,
            theirs: [their_input, their_output, their_log],
        })
    }
}
