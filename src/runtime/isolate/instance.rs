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
use crate::plan::files::FileCommand;
use crate::runtime::native::{Maker, files};
use crate::runtime::{ExecutionRequest, Instance, InstanceConfig, Origin, OutputSink, Permissions, RuntimeKind, Wants};
use crate::sandbox::enforcement::Enforcement;

use super::IsolateRuntime;
use super::cell::{self, Cell, gone};
use super::engine::{Engine, Held};
use super::run::{Run, drive};
use super::wire::Request;

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
    origin: Origin,
    used: AtomicBool,
    cpu_ms: AtomicU64,
    memory_peak: AtomicU64,
}

fn unsound() -> Failure {
    Failure { kind: FailureKind::SandboxGone, message: "the engine of the session's isolates gave no sound answer".into() }
}

impl IsolateInstance {
    /// In an engine that has a place for it.
    pub(super) async fn open(parts: Parts) -> Result<Arc<Self>, Failure> {
        let Parts { runtime, engine, held, config, enforcement } = parts;
        let (cell, origin) = cell::take(&engine, &config).await?;
        Ok(Arc::new(Self {
            runtime,
            engine,
            held: Mutex::new(Some(held)),
            config,
            enforcement,
            cell: tokio::sync::Mutex::new(cell),
            origin,
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
            let (fresh, _) = cell::take(&self.engine, &self.config).await?;
            let old = std::mem::replace(&mut *cell, fresh);
            let engine = Arc::clone(&self.engine);
            tokio::spawn(async move { cell::close(&engine, &old).await });
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
        let content = code.code.into_bytes().into();
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
        let running = self.engine.run();
        let answer = drive(run, sink, control).await;
        drop(running);
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

    fn origin(&self) -> Origin {
        self.origin
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
            cell::close(&self.engine, &cell).await;
            drop(held);
            if self.config.wants == Wants::Any {
                cell::see_to_next(&self.engine);
            }
            self.runtime.left(&self.engine);
        }
        .boxed()
    }
}
