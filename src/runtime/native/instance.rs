//! One environment with an init: its sandbox, and each command carried out in it.
//!
//! `persistFilesystem: false` replaces the sandbox: the first command after an execution that could change something gets a
//! new one, so the files written between two executions are there for the second, and nothing else is. An execution that
//! still runs in the background keeps the sandbox it was started in.

use std::collections::BTreeMap;
use std::num::{NonZero, NonZeroU32};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::sync::{mpsc, watch};
use tokio::task::AbortHandle;

use crate::command::*;
use crate::id::EnvironmentId;
use crate::language::Language;
use crate::plan::files::FileCommand;
use crate::plan::messages::{ExecuteRequest, ProgramEnd, ProgramNetwork, View};
use crate::runtime::egress::{self, NetworkGrant, User};
use crate::runtime::{ExecutionRequest, Instance, InstanceConfig, Origin, OutputSink, Permissions, RuntimeKind};
use crate::sandbox::enforcement::Enforcement;

use super::Maker;
use super::code::Source;
use super::files;
use super::program::{DriveError, Program, Start, drive};
use super::sandbox::{Ending, Sandbox};
use super::streams::{Feed, Held};
use super::verdict;
use super::warm;

/// Time of a file command, past which its sandbox is taken for stuck; init's own bound is shorter.
pub(super) const FILE_COMMAND_TIME: Duration = Duration::from_secs(60);

/// Sandboxes of one session that executions in the background may hold besides the one in use.
const EARLIER_MAX: usize = 3;

/// Where programs start and relative paths begin.
pub(super) const WORKSPACE: &str = "/workspace";

/// An environment.
pub struct NativeInstance {
    pub(super) runtime: Arc<dyn Maker>,
    pub(super) config: InstanceConfig,
    current: tokio::sync::Mutex<Arc<Sandbox>>,
    /// For what can't wait: the same as `current`.
    latest: Mutex<Arc<Sandbox>>,
    used: AtomicBool,
    /// Sandboxes that were replaced, and may live for executions in the background.
    earlier: Mutex<Vec<(Weak<Sandbox>, Ending)>>,
    /// Number of the next sandbox.
    generation: AtomicU64,
    cpu_ms: AtomicU64,
    gone: watch::Sender<Option<String>>,
    /// Who tells when `latest` ends by itself.
    watching: Mutex<Option<AbortHandle>>,
    itself: Weak<Self>,
}

impl NativeInstance {
    /// Around a sandbox that is ready.
    pub fn new(runtime: Arc<dyn Maker>, config: InstanceConfig, sandbox: Sandbox) -> Arc<Self> {
        let sandbox = Arc::new(sandbox);
        let instance = Arc::new_cyclic(|itself| Self {
            runtime,
            config,
            current: tokio::sync::Mutex::new(Arc::clone(&sandbox)),
            latest: Mutex::new(Arc::clone(&sandbox)),
            used: AtomicBool::new(false),
            earlier: Mutex::default(),
            generation: AtomicU64::new(1),
            cpu_ms: AtomicU64::new(0),
            gone: watch::Sender::new(None),
            watching: Mutex::default(),
            itself: Weak::clone(itself),
        });
        instance.watch(&sandbox);
        instance
    }

    /// Has an interpreter of the session's language ready for its first program.
    pub async fn begin_warm(&self) {
        self.keep_warm(&self.latest(), &self.config.language).await;
    }

    /// Tells when the sandbox in use ends by itself.
    fn watch(&self, sandbox: &Arc<Sandbox>) {
        let instance = Weak::clone(&self.itself);
        let mut gone = sandbox.gone();
        let sandbox = Arc::downgrade(sandbox);
        let watching = tokio::spawn(async move {
            let known = gone.wait_for(Option::is_some).await.is_ok();
            let (Some(instance), Some(sandbox)) = (instance.upgrade(), sandbox.upgrade()) else { return };
            let reason = if known { sandbox.why_gone() } else { "the launcher ended" };
            if Arc::ptr_eq(&instance.latest(), &sandbox) {
                instance.gone.send_replace(Some(reason.to_owned()));
            }
        });
        *self.watching.lock().unwrap_or_else(PoisonError::into_inner) = Some(watching.abort_handle());
    }

    pub(super) fn language(&self, name: &str) -> Option<Arc<Language>> {
        self.runtime.language(name, self.config.permissions.as_ref().unwrap_or(&Permissions::default()))
    }

    /// Has an interpreter kept in `sandbox` for programs of this language, as far as sessions like this one have any.
    pub(super) async fn keep_warm(&self, sandbox: &Sandbox, language: &Language) {
        if !warm::applies(self.runtime.warm(), language, &self.config.limits) {
            return;
        }
        let told = self.runtime.variables(&self.config.limits, self.config.limits.usual_time());
        let environment = environment(&self.config, sandbox, &language.env, &BTreeMap::new(), &told);
        if sandbox.warm().keep(sandbox.init(), language, environment).await.is_err() {
            // Whoever needs the sandbox next learns it by itself.
            tracing::debug!("a sandbox ended before it was asked to keep an interpreter");
        }
    }

    fn latest(&self) -> Arc<Sandbox> {
        Arc::clone(&self.latest.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The sandbox for a command: a fresh one when what an execution left must not be seen.
    async fn sandbox(&self, command: &Command) -> Result<Arc<Sandbox>, Failure> {
        let mut current = self.current.lock().await;
        let looks_only = matches!(command.kind(), CommandKind::ReadFile | CommandKind::ListDirectory);
        if !self.config.persist_filesystem && !looks_only && self.used.load(Ordering::Acquire) {
            self.check_earlier()?;
            let generation = self.generation.fetch_add(1, Ordering::Relaxed);
            let fresh = self.runtime.sandbox(&self.config, generation).await.map_err(|error| Failure {
                kind: FailureKind::SandboxGone,
                message: format!("the session could not be made as new: {error}"),
            })?;
            let fresh = Arc::new(fresh);
            *self.latest.lock().unwrap_or_else(PoisonError::into_inner) = Arc::clone(&fresh);
            // The old one ends when the last execution in it has ended.
            let old = std::mem::replace(&mut *current, Arc::clone(&fresh));
            self.earlier.lock().unwrap_or_else(PoisonError::into_inner).push((Arc::downgrade(&old), old.ending()));
            self.watch(&fresh);
        }
        // Only now: when the new one could not be made, the next command must not see the old one either.
        if !looks_only {
            self.used.store(command.kind().executes(), Ordering::Release);
        }
        Ok(Arc::clone(&current))
    }

    /// Refuses yet another sandbox while background executions hold as many as they may: each has the session's limits anew.
    fn check_earlier(&self) -> Result<(), Failure> {
        let mut earlier = self.earlier.lock().unwrap_or_else(PoisonError::into_inner);
        earlier.retain(|(_, ending)| ending.is_pending());
        // One that nobody holds is ending already.
        if earlier.iter().filter(|(sandbox, _)| sandbox.strong_count() > 0).count() < EARLIER_MAX {
            return Ok(());
        }
        let message = format!("executions in the background hold {EARLIER_MAX} earlier environments of this session already");
        Err(Failure { kind: FailureKind::LimitExceeded, message })
    }

    async fn carry_out(&self, mut command: Command, sink: &dyn OutputSink, control: &mut mpsc::Receiver<Control>) -> Answer {
        let sandbox = self.sandbox(&command).await?;
        if let Some(request) = files::request(&mut command) {
            return file(&sandbox, &command, request).await;
        }
        let run = Run { instance: self, sandbox: &sandbox, sink };
        match command {
            // On their own, or a file command would carry the place for them.
            Command::ExecuteShell(shell) => run.shell(shell, control).boxed().await,
            Command::ExecuteCode(code) => run.code(code, control).boxed().await,
            Command::InstallPackages(install) => run.install(install, control).boxed().await,
            Command::WriteFile(_)
            | Command::ReadFile(_)
            | Command::CreateDirectory(_)
            | Command::CopyFile(_)
            | Command::DeleteFile(_)
            | Command::ListDirectory(_) => Err(broken()),
        }
    }
}

/// Defaults, then the way out, image, language, session, command, and what the runtime itself says: the later wins.
pub(super) fn environment(
    config: &InstanceConfig,
    sandbox: &Sandbox,
    language: &BTreeMap<String, String>,
    own: &BTreeMap<String, String>,
    told: &[(String, String)],
) -> Vec<Vec<u8>> {
    let mut all: BTreeMap<&str, &str> = BTreeMap::from(ENVIRONMENT);
    let outwards = match config.network {
        NetworkGrant::Programs => egress::variables(User::Programs),
        NetworkGrant::None | NetworkGrant::Installs => BTreeMap::new(),
    };
    for layer in [&outwards, sandbox.environment(), language, &config.env, own] {
        all.extend(layer.iter().map(|(name, value)| (name.as_str(), value.as_str())));
    }
    all.extend(told.iter().map(|(name, value)| (name.as_str(), value.as_str())));
    all.into_iter().map(|(name, value)| format!("{name}={value}").into_bytes()).collect()
}

pub(super) fn broken() -> Failure {
    Failure { kind: FailureKind::SandboxGone, message: "the sandbox gave no sound answer".into() }
}

pub(super) fn gone() -> Failure {
    Failure { kind: FailureKind::SandboxGone, message: "the sandbox ended under the command".into() }
}

pub(super) async fn file(sandbox: &Sandbox, command: &Command, request: FileCommand) -> Answer {
    let answer = tokio::time::timeout(FILE_COMMAND_TIME, sandbox.init().file(request)).await;
    let Ok(Ok(answer)) = answer else {
        // Gone already, or stuck: then the session learns it by the sandbox's end.
        sandbox.give_up();
        return Err(gone());
    };
    match answer {
        Ok(reply) => files::output(command, reply).map(|output| (output, None)).ok_or_else(broken),
        Err(error) => Err(files::failure(command, &error)),
    }
}

/// The commands that run programs.
pub(super) struct Run<'a> {
    pub(super) instance: &'a NativeInstance,
    pub(super) sandbox: &'a Sandbox,
    pub(super) sink: &'a dyn OutputSink,
}

/// A program that is about to run: what it is, and what the step it stands in says of it.
pub(super) struct Launch<'a> {
    pub(super) shell: ExecuteShell,
    /// Variables of the language.
    pub(super) language: &'a BTreeMap<String, String>,
    /// Standard input, where it is not the command's own.
    pub(super) feed: Feed,
    pub(super) timeout: Duration,
    /// Which mounts it sees.
    pub(super) view: View,
    /// Where the listener of a network of its own is handed to; absent: it has the sandbox's.
    pub(super) door: Option<OwnedFd>,
    /// Whether the warm interpreter may carry it out, when it is of that kind.
    pub(super) warm: Warm,
    /// What it runs, where that is not there yet.
    pub(super) source: Option<Source>,
}

/// Whether the warm interpreter is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Warm {
    /// It is, if it can.
    Asked,
    /// Never.
    Never,
}

impl Run<'_> {
    async fn shell(&self, mut shell: ExecuteShell, control: &mut mpsc::Receiver<Control>) -> Answer {
        let feed = Feed::Own(std::mem::replace(&mut shell.stdin, Stdin::Empty), Held::default());
        let timeout = self.timeout(shell.timeout);
        let language = &self.instance.config.language.env;
        let (answer, _) = self
            .launch(
                Launch { shell, language, feed, timeout, view: View::Programs, door: None, warm: Warm::Never, source: None },
                self.sink,
                control,
            )
            .await?;
        Ok(answer)
    }

    /// Runs a program to its end; the answer, and input that is for a later one.
    pub(super) async fn launch(
        &self,
        launch: Launch<'_>,
        sink: &dyn OutputSink,
        control: &mut mpsc::Receiver<Control>,
    ) -> Result<((CommandOutput, Option<Failure>), Held), Failure> {
        let Launch { shell, language, feed, timeout, view, door, warm, source } = launch;
        let arguments: Vec<String> = std::iter::once(shell.program).chain(shell.args).collect();
        let directory = shell.working_directory.map_or_else(|| WORKSPACE.into(), |path| absolute(path.as_str()));
        let told = self.instance.runtime.variables(&self.instance.config.limits, timeout);
        let request = ExecuteRequest {
            execution: 0,
            arguments: arguments.into_iter().map(String::into_bytes).collect(),
            environment: environment(&self.instance.config, self.sandbox, language, &shell.env, &told),
            directory: directory.into_bytes(),
            view,
            network: ProgramNetwork::default(),
            after: source.as_ref().and_then(|source| NonZero::new(source.tag())),
        };
        let start = match warm {
            Warm::Asked => self.sandbox.warm().offers(&request, &feed),
            Warm::Never => Start::Fresh,
        };
        self.program(Program { request, start, feed, timeout, door, source }, sink, control).await
    }

    pub(super) fn timeout(&self, asked: Option<NonZeroU32>) -> Duration {
        let limits = &self.instance.config.limits;
        asked.map_or(limits.usual_time(), |seconds| Duration::from_secs(seconds.get().into()).min(limits.timeout_max))
    }

    /// A program of this language begins.
    pub(super) fn note_use(&self, language: &Language) {
        if language.name == self.instance.config.language.name {
            self.sandbox.note_use();
        }
    }

    /// Has an interpreter ready for the next program of this language.
    pub(super) async fn keep_warm(&self, language: &Language) {
        if self.instance.config.persist_filesystem {
            self.instance.keep_warm(self.sandbox, language).await;
        }
    }

    async fn program(
        &self,
        program: Program,
        sink: &dyn OutputSink,
        control: &mut mpsc::Receiver<Control>,
    ) -> Result<((CommandOutput, Option<Failure>), Held), Failure> {
        self.sandbox.reset_peaks();
        let (timeout, offered) = (program.timeout, !matches!(program.start, Start::Fresh));
        let driven = drive(self.sandbox.init(), program, sink, control).await;
        let mut driven = driven.map_err(|error| match error {
            DriveError::Gone => {
                self.sandbox.give_up();
                gone()
            }
            DriveError::Source(failure) => failure,
            DriveError::Pipes(source) => {
                tracing::warn!(%source, "no pipes for a program");
                Failure {
                    kind: FailureKind::IoError,
                    message: "the server has no descriptor left for the program's streams".into(),
                }
            }
            DriveError::Streams(source) => {
                tracing::warn!(%source, "a program's streams broke");
                let message = "the program ended, but some of its input or output was lost on the way".into();
                Failure { kind: FailureKind::IoError, message }
            }
        })?;
        if let ProgramEnd::Ran { born: how, .. } = driven.end
            && offered
        {
            metrics::counter!("codebeaker_warm_programs_total", "by" => how.name()).increment(1);
        }
        let mut counters = self.sandbox.new_events();
        verdict::heed(&mut driven, &mut counters, |signal| self.instance.runtime.word(signal));
        let (report, failure) = verdict::of(&driven, counters, self.sandbox.usage(), &self.instance.config.limits, timeout);
        self.instance.cpu_ms.fetch_add(report.usage.cpu_ms.unwrap_or(0), Ordering::Relaxed);
        Ok(((CommandOutput::Execution(report), failure), driven.held))
    }
}

/// What a program finds when nobody says otherwise.
const ENVIRONMENT: [(&str, &str); 5] = [
    ("HOME", WORKSPACE),
    ("LANG", "C.UTF-8"),
    ("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"),
    ("TMPDIR", "/tmp"),
    ("USER", "user"),
];

fn absolute(path: &str) -> String {
    if path.starts_with('/') { path.into() } else { format!("{WORKSPACE}/{path}") }
}

impl Instance for NativeInstance {
    fn environment_id(&self) -> &EnvironmentId {
        &self.config.environment_id
    }

    fn kind(&self) -> RuntimeKind {
        self.runtime.made_as()
    }

    fn execute(&self, request: ExecutionRequest) -> BoxFuture<'_, CommandResult> {
        async move {
            let started = Instant::now();
            self.runtime.command_begins();
            let ExecutionRequest { id, command, sink, mut control } = request;
            CommandResult::of(id, started, self.carry_out(command, sink.as_ref(), &mut control).await)
        }
        .boxed()
    }

    fn origin(&self) -> Origin {
        self.latest().origin()
    }

    fn enforcement(&self) -> Enforcement {
        self.latest().enforcement().clone()
    }

    fn usage(&self) -> Usage {
        let total = self.latest().usage();
        Usage { cpu_ms: total.cpu_ms.or(Some(self.cpu_ms.load(Ordering::Relaxed))), ..total }
    }

    fn gone(&self) -> watch::Receiver<Option<String>> {
        self.gone.subscribe()
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        async move {
            let earlier = std::mem::take(&mut *self.earlier.lock().unwrap_or_else(PoisonError::into_inner));
            // It does not end by itself, and nobody is to be woken for it.
            let watching = self.watching.lock().unwrap_or_else(PoisonError::into_inner).take();
            watching.inspect(AbortHandle::abort);
            self.latest().end().await;
            for (_, ending) in earlier {
                ending.end().await;
            }
        }
        .boxed()
    }
}
