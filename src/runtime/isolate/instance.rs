//! One session in an engine: a directory, a cell that may reach that directory alone, and a fresh isolate for each execution.
//!
//! Invariants: file commands are done by init with the session's directory as their root, so no path leads to a neighbour; an
//! execution is over only when its thread is; what an execution cost is told as for every other runtime.

use std::num::NonZeroU32;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::sync::{mpsc, watch};

use crate::command::*;
use crate::id::EnvironmentId;
use crate::language::Language;
use crate::language::engines::Engine as EngineName;
use crate::plan::files::{FileCommand, FileErrorKind};
use crate::runtime::native::{Maker, files};
use crate::runtime::{ExecutionRequest, Instance, InstanceConfig, OutputSink, Permissions, RuntimeKind};
use crate::sandbox::enforcement::Enforcement;

use super::IsolateRuntime;
use super::engine::{Engine, Gone, Held};
use super::run::{Run, drive};
use super::seats::Room;
use super::wire::{Event, Id, Request};

/// How long an engine may take to open a session's place: its worker and the first isolate in it start, beside others that are busy.
const OPEN_TIME: Duration = Duration::from_secs(20);

/// How long the isolates of a session may take to die: V8 stops a thread where it looks for interrupts, which a call of its own may put off.
const CLOSE_TIME: Duration = Duration::from_secs(10);

/// What an instance is made of.
pub struct Parts {
    pub(super) runtime: Arc<IsolateRuntime>,
    pub(super) engine: Arc<Engine>,
    pub(super) held: Held,
    pub(super) config: InstanceConfig,
    pub(super) enforcement: Enforcement,
}

/// An environment.
pub struct IsolateInstance {
    runtime: Arc<IsolateRuntime>,
    engine: Arc<Engine>,
    held: Mutex<Option<Held>>,
    config: InstanceConfig,
    enforcement: Enforcement,
    cell: tokio::sync::Mutex<Cell>,
    used: AtomicBool,
    cpu_ms: AtomicU64,
    memory_peak: AtomicU64,
}

/// What the session's executions see.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Cell {
    id: Id,
    root: String,
}

fn gone(_: Gone) -> Failure {
    Failure { kind: FailureKind::SandboxGone, message: "the engine of the session's isolates ended under the command".into() }
}

fn unsound() -> Failure {
    Failure { kind: FailureKind::SandboxGone, message: "the engine of the session's isolates gave no sound answer".into() }
}

impl IsolateInstance {
    /// In an engine that has a place for it.
    pub(super) async fn open(parts: Parts) -> Result<Arc<Self>, Failure> {
        let Parts { runtime, engine, held, config, enforcement } = parts;
        let cell = open_cell(&engine, &config).await?;
        Ok(Arc::new(Self {
            runtime,
            engine,
            held: Mutex::new(Some(held)),
            config,
            enforcement,
            cell: tokio::sync::Mutex::new(cell),
            used: AtomicBool::new(false),
            cpu_ms: AtomicU64::new(0),
            memory_peak: AtomicU64::new(0),
        }))
    }

    /// The cell for a command: a fresh one when what an execution left must not be seen.
    async fn cell(&self, command: &Command) -> Result<Cell, Failure> {
        let mut cell = self.cell.lock().await;
        let looks_only = matches!(command.kind(), CommandKind::ReadFile | CommandKind::ListDirectory);
        if !self.config.persist_filesystem && !looks_only && self.used.load(Ordering::Acquire) {
            let fresh = open_cell(&self.engine, &self.config).await?;
            let old = std::mem::replace(&mut *cell, fresh);
            let engine = Arc::clone(&self.engine);
            tokio::spawn(async move { close_cell(&engine, &old).await });
        }
        if !looks_only {
            self.used.store(command.kind().executes(), Ordering::Release);
        }
        Ok(cell.clone())
    }

    async fn carry_out(&self, mut command: Command, sink: &dyn OutputSink, control: &mut mpsc::Receiver<Control>) -> Answer {
        let cell = self.cell(&command).await?;
        if let Some(request) = files::request(&mut command) {
            return match self.engine.file(&cell.root, request).await.map_err(gone)? {
                Ok(reply) => files::output(&command, reply).map(|output| (output, None)).ok_or_else(unsound),
                Err(error) => Err(files::failure(&command, &error)),
            };
        }
        let Command::ExecuteCode(code) = command else {
            let message = "an isolate runs code only: there is no program and no installer".to_owned();
            return Err(Failure { kind: FailureKind::ProgramNotFound, message });
        };
        self.code(&cell, code, sink, control).await
    }

    /// The language that the code is in, if isolates run it.
    fn language(&self, name: Option<&str>) -> Result<Arc<Language>, Failure> {
        let named = match name {
            None => Some(Arc::clone(&self.config.language)),
            Some(name) => self.runtime.native.language(name, &Permissions::default()),
        };
        named.filter(|language| language.engines.contains_key(&EngineName::Deno)).ok_or_else(|| Failure {
            kind: FailureKind::ProgramNotFound,
            message: format!("isolates run no language `{}`", name.unwrap_or_default()),
        })
    }

    async fn code(
        &self,
        cell: &Cell,
        code: ExecuteCode,
        sink: &dyn OutputSink,
        control: &mut mpsc::Receiver<Control>,
    ) -> Answer {
        let language = self.language(code.language.as_deref())?;
        if !code.packages.is_empty() {
            let message = "no packages can be installed in an isolate".to_owned();
            return Err(Failure { kind: FailureKind::PackageUnavailable, message });
        }
        let listener = self.engine.listen().map_err(gone)?;
        // A name of its own: executions in the background overlap.
        let file = format!("/workspace/.main{}{}", listener.id, language.file_extension);
        let content = code.code.into_bytes();
        let write =
            FileCommand::Write { path: file.clone().into(), content, mode: WriteMode::Create, permissions: Some(0o644) };
        if let Err(error) = self.engine.file(&cell.root, write).await.map_err(gone)? {
            return Err(files::refusal(&format!("`{file}`"), &error));
        }
        let mut env = self.config.env.clone();
        env.extend(code.env);
        let run = Run {
            engine: &self.engine,
            listener,
            request: Request::Run {
                cell: cell.id,
                run: 0,
                url: format!("file://{}{file}", cell.root),
                args: code.args,
                env,
                memory: self.config.limits.memory_bytes.get(),
            },
            stdin: code.stdin,
            timeout: self.timeout(code.timeout),
            limits: &self.config.limits,
        };
        let answer = drive(run, sink, control).await;
        let delete = FileCommand::Delete { path: file.into(), recursive: false };
        // It may have removed itself.
        self.engine.file(&cell.root, delete).await.map_err(gone)?.ok();
        let (report, failure) = answer.map_err(gone)?;
        self.cpu_ms.fetch_add(report.usage.cpu_ms.unwrap_or(0), Ordering::Relaxed);
        self.memory_peak.fetch_max(report.usage.memory_peak_bytes.unwrap_or(0), Ordering::Relaxed);
        Ok((CommandOutput::Execution(report), failure))
    }

    fn timeout(&self, asked: Option<NonZeroU32>) -> Duration {
        let limits = &self.config.limits;
        asked.map_or(limits.timeout, |seconds| Duration::from_secs(seconds.get().into())).min(limits.timeout_max)
    }
}

/// A directory of its own, and a cell that may reach nothing else.
async fn open_cell(engine: &Arc<Engine>, config: &InstanceConfig) -> Result<Cell, Failure> {
    let mut listener = engine.listen().map_err(gone)?;
    let cell = Cell { id: listener.id, root: format!("/workspace/{}", listener.id) };
    for name in ["workspace", "tmp"] {
        let path = format!("{}/{name}", cell.root).into_bytes();
        let create = FileCommand::CreateDirectory { path, recursive: true, permissions: None };
        if let Err(error) = engine.file("/", create).await.map_err(gone)? {
            remove(engine, &cell.root).await;
            return Err(files::refusal("the session's directory", &error));
        }
    }
    let memory = config.limits.memory_bytes.get();
    let opened = async {
        engine.send(&Request::Open { cell: cell.id, root: cell.root.clone(), memory }).await?;
        while listener.next().await? != (Event::Opened { cell: cell.id }) {}
        Ok(())
    };
    let Ok(opened) = tokio::time::timeout(OPEN_TIME, opened).await else {
        // Sessions that it has may go on: whether it still does what it is told is found out by closing the place.
        engine.retire();
        drop(listener);
        let engine = Arc::clone(engine);
        tokio::spawn(async move { close_cell(&engine, &cell).await });
        let message = format!("the engine of the session's isolates opened no place for it within {OPEN_TIME:?}");
        return Err(Failure { kind: FailureKind::IoError, message });
    };
    opened.map(|()| cell).map_err(gone)
}

/// Ends a cell with its isolates and removes what they left. What can't be removed makes the engine unfit for others.
async fn close_cell(engine: &Arc<Engine>, cell: &Cell) {
    let Ok(mut listener) = engine.adopt(cell.id) else { return };
    let closed = async {
        engine.send(&Request::Close { cell: cell.id }).await?;
        while listener.next().await? != (Event::Closed { cell: cell.id }) {}
        Ok::<(), Gone>(())
    };
    match tokio::time::timeout(CLOSE_TIME, closed).await {
        Ok(Ok(())) => {}
        Ok(Err(Gone)) => return,
        Err(_) => return engine.give_up("an isolate could not be ended"),
    }
    remove(engine, &cell.root).await;
}

/// Removes a cell's directories, as far as they are there. What stays makes the engine unfit for others.
async fn remove(engine: &Engine, root: &str) {
    let delete = FileCommand::Delete { path: root.to_owned().into(), recursive: true };
    match engine.file("/", delete).await {
        Ok(Ok(_)) => {}
        Ok(Err(error)) if error.kind == FileErrorKind::FileNotFound => {}
        Ok(Err(_)) | Err(Gone) => engine.retire(),
    }
}

impl Instance for IsolateInstance {
    fn environment_id(&self) -> &EnvironmentId {
        &self.config.environment_id
    }

    fn kind(&self) -> RuntimeKind {
        RuntimeKind::V8Isolate
    }

    fn execute(&self, request: ExecutionRequest) -> BoxFuture<'_, CommandResult> {
        async move {
            let started = Instant::now();
            let ExecutionRequest { id, command, sink, mut control } = request;
            CommandResult::of(id, started, self.carry_out(command, sink.as_ref(), &mut control).await)
        }
        .boxed()
    }

    fn enforcement(&self) -> Enforcement {
        self.enforcement.clone()
    }

    fn usage(&self) -> Usage {
        let peak = self.memory_peak.load(Ordering::Relaxed);
        Usage {
            cpu_ms: Some(self.cpu_ms.load(Ordering::Relaxed)),
            memory_peak_bytes: (peak > 0).then_some(peak),
            pids_peak: None,
        }
    }

    fn gone(&self) -> watch::Receiver<Option<String>> {
        self.engine.gone()
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        async move {
            let Some(held) = self.held.lock().unwrap_or_else(PoisonError::into_inner).take() else { return };
            let cell = self.cell.lock().await.clone();
            close_cell(&self.engine, &cell).await;
            drop(held);
            self.runtime.left(&self.engine);
        }
        .boxed()
    }
}
