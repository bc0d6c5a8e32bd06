//! A runtime in memory: its programs are a handful of words that wait, print, read, fail or take the sandbox down.

use std::collections::BTreeMap;
use std::num::NonZeroU64;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::sync::watch;

use crate::command::*;
use crate::config::Config;
use crate::id::{EnvironmentId, ExecutionId};
use crate::language::Language;
use crate::runtime::features::Features;
use crate::runtime::registry::Registry;
use crate::runtime::*;
use crate::sandbox::enforcement::Enforcement;
use crate::sandbox::error::SandboxError;
use crate::sandbox::profile::{Installs, Network, Profile, ProfileLimits, RootFilesystem};
use crate::sandbox::spec::Limits;
use crate::session::api::*;
use crate::session::locked;
use crate::session::manager::{Manager, ManagerParts};
use crate::session::sources::{ImageSource, LanguageSource, ProfileSource};

/// Counts what it makes, so that a test can see that nothing is left.
pub(crate) struct SimulatedRuntime {
    pub(crate) instances: Mutex<Vec<Arc<SimulatedInstance>>>,
}

/// One environment.
pub(crate) struct SimulatedInstance {
    id: EnvironmentId,
    gone: watch::Sender<Option<String>>,
    pub(crate) log: Mutex<Vec<String>>,
    pub(crate) closed: AtomicUsize,
    foreground: AtomicUsize,
    running: AtomicUsize,
    config: InstanceConfig,
}

impl SimulatedRuntime {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self { instances: Mutex::default() })
    }

    pub(crate) fn instance(&self, index: usize) -> Arc<SimulatedInstance> {
        Arc::clone(&locked(&self.instances)[index])
    }
}

impl Runtime for SimulatedRuntime {
    fn name(&self) -> &'static str {
        "simulated"
    }
    fn kind(&self) -> RuntimeKind {
        RuntimeKind::NativeProcess
    }
    fn languages(&self) -> Vec<String> {
        vec!["python".into(), "bash".into()]
    }
    fn commands(&self) -> Vec<CommandKind> {
        CommandKind::ALL.into_iter().filter(|kind| *kind != CommandKind::CopyFile).collect()
    }
    fn features(&self) -> Features {
        Features { startup_time_ms: 1.0, memory_overhead_mb: 1.0, filesystem_persistence: true, ..Features::NONE }
    }
    fn availability(&self) -> Availability {
        Availability::Available
    }
    fn create(&self, config: InstanceConfig) -> BoxFuture<'_, Result<Arc<dyn Instance>, SandboxError>> {
        async move {
            if config.env.contains_key("SLOW") {
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
            if config.env.contains_key("BROKEN") || config.limits.memory_bytes.get() == 99 << 20 {
                return Err(SandboxError::Busy { cause: "it is broken on purpose".into() });
            }
            let instance = Arc::new(SimulatedInstance {
                id: config.environment_id.clone(),
                gone: watch::Sender::new(None),
                log: Mutex::default(),
                closed: AtomicUsize::new(0),
                foreground: AtomicUsize::new(0),
                running: AtomicUsize::new(0),
                config,
            });
            locked(&self.instances).push(Arc::clone(&instance));
            Ok(instance as Arc<dyn Instance>)
        }
        .boxed()
    }
}

impl SimulatedInstance {
    pub(crate) fn die(&self) {
        self.gone.send_replace(Some("init was killed".into()));
    }

    pub(crate) fn log(&self) -> Vec<String> {
        locked(&self.log).clone()
    }

    pub(crate) fn running(&self) -> usize {
        self.running.load(Ordering::SeqCst)
    }

    async fn program(&self, words: &[String], request: &mut ExecutionRequest) -> Option<Failure> {
        let argument = words.get(1).cloned().unwrap_or_default();
        match words.first().map_or("", String::as_str) {
            "sleep" => self.sleep(argument.parse().expect("milliseconds"), request).await,
            "cat" => cat(request).await,
            "echo" => {
                request.sink.write(Stream::Stdout, argument.as_bytes());
                None
            }
            "flood" => {
                let count: usize = argument.parse().expect("a number of KiB");
                let over = (0..count).any(|_| request.sink.write(Stream::Stdout, &[b'x'; 1024]) == OutputVerdict::LimitReached);
                over.then(|| failure(FailureKind::OutputLimit))
            }
            "fail" => {
                request.sink.write(Stream::Stderr, b"no such package");
                Some(failure(FailureKind::NonzeroExit))
            }
            "panic" => panic!("on purpose"),
            "deaf" => std::future::pending().await,
            "busy" => {
                std::future::poll_fn(|context| {
                    context.waker().wake_by_ref();
                    std::task::Poll::Pending
                })
                .await
            }
            "die" => {
                self.die();
                std::future::pending().await
            }
            other => panic!("the simulated runtime has no program {other}"),
        }
    }

    async fn sleep(&self, milliseconds: u64, request: &mut ExecutionRequest) -> Option<Failure> {
        let end = tokio::time::sleep(Duration::from_millis(milliseconds));
        tokio::pin!(end);
        loop {
            tokio::select! {
                () = &mut end => return None,
                Some(control) = request.control.recv() => match control {
                    Control::Cancel => return Some(failure(FailureKind::Cancelled)),
                    Control::Signal(_) => return Some(failure(FailureKind::Signaled)),
                    Control::Input { .. } => {}
                },
            }
        }
    }
}

/// Copies its input to its output until the end of it.
async fn cat(request: &mut ExecutionRequest) -> Option<Failure> {
    while let Some(control) = request.control.recv().await {
        match control {
            Control::Input { data, eof } => {
                request.sink.write(Stream::Stdout, &data);
                if eof {
                    return None;
                }
            }
            Control::Cancel => return Some(failure(FailureKind::Cancelled)),
            Control::Signal(_) => return Some(failure(FailureKind::Signaled)),
        }
    }
    None
}

fn failure(kind: FailureKind) -> Failure {
    Failure { kind, message: kind.name().into() }
}

/// Counts one running execution while it lives, also when it is dropped.
struct Counted<'a>(Vec<&'a AtomicUsize>);

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        for counter in &self.0 {
            counter.fetch_sub(1, Ordering::SeqCst);
        }
    }
}

impl Instance for SimulatedInstance {
    fn environment_id(&self) -> &EnvironmentId {
        &self.id
    }
    fn kind(&self) -> RuntimeKind {
        RuntimeKind::NativeProcess
    }
    fn execute(&self, mut request: ExecutionRequest) -> BoxFuture<'_, CommandResult> {
        async move {
            let (words, counters) = match &request.command {
                Command::ExecuteShell(shell) => {
                    let words: Vec<String> = std::iter::once(&shell.program).chain(&shell.args).cloned().collect();
                    let own = if shell.background { vec![&self.running] } else { vec![&self.running, &self.foreground] };
                    (words, own)
                }
                Command::ExecuteCode(code) => {
                    (code.code.split(' ').map(str::to_owned).collect(), vec![&self.running, &self.foreground])
                }
                Command::InstallPackages(install) => (vec![install.packages[0].clone()], vec![&self.running, &self.foreground]),
                Command::WriteFile(_)
                | Command::ReadFile(_)
                | Command::CreateDirectory(_)
                | Command::CopyFile(_)
                | Command::DeleteFile(_)
                | Command::ListDirectory(_) => (Vec::new(), vec![&self.running, &self.foreground]),
            };
            for counter in &counters {
                counter.fetch_add(1, Ordering::SeqCst);
            }
            let _counted = Counted(counters);
            assert!(self.foreground.load(Ordering::SeqCst) <= 1, "one foreground command at a time");
            assert_eq!(self.closed.load(Ordering::SeqCst), 0, "nothing runs in a closed environment");
            locked(&self.log).push(words.join(" "));
            let executes = request.command.kind().executes();
            let mut failure = None;
            if executes {
                request.sink.started();
                failure = self.program(&words, &mut request).await;
            }
            let output = executes.then(|| CommandOutput::Execution(ExecutionReport::default()));
            CommandResult { execution_id: request.id.clone(), output, failure, duration: Duration::ZERO }
        }
        .boxed()
    }
    fn enforcement(&self) -> Enforcement {
        let profile = self.config.profile.identity(None);
        Enforcement { walls: Vec::new(), limits: Vec::new(), profile, rootless: true }
    }
    fn usage(&self) -> Usage {
        Usage::default()
    }
    fn gone(&self) -> watch::Receiver<Option<String>> {
        self.gone.subscribe()
    }
    fn close(&self) -> BoxFuture<'_, ()> {
        async {
            tokio::task::yield_now().await;
            assert_eq!(self.running(), 0, "executions are cancelled before their environment closes");
            self.closed.fetch_add(1, Ordering::SeqCst);
        }
        .boxed()
    }
}

/// Languages, profiles and images of the simulated world.
pub(crate) struct World;

impl LanguageSource for World {
    fn get(&self, name_or_alias: &str) -> Option<Arc<Language>> {
        self.all()
            .into_iter()
            .find(|language| language.name == name_or_alias || language.aliases.iter().any(|alias| alias == name_or_alias))
    }
    fn all(&self) -> Vec<Arc<Language>> {
        let python = Language {
            name: "python".into(),
            display_name: "Python".into(),
            aliases: vec!["py".into()],
            image: "python-image".into(),
            file_extension: ".py".into(),
            run: vec!["python3".into(), "{file}".into()],
            programs: vec!["python3".into()],
            version: vec!["echo".into(), "Python 3".into()],
            install: Some(vec!["pip".into(), "{packages}".into()]),
            package_syntax: Some(crate::language::PackageSyntax::Pep508),
            ..Language::default()
        };
        let bash = Language { name: "bash".into(), aliases: Vec::new(), install: None, ..python.clone() };
        vec![Arc::new(bash), Arc::new(python)]
    }
}

impl ProfileSource for World {
    fn get(&self, name: &str) -> Option<Arc<Profile>> {
        (name == "default").then(|| Arc::new(profile()))
    }
}

impl ImageSource for World {
    fn installed(&self, image: &str) -> bool {
        image == "host" || image == "slim"
    }
    fn missing_programs(&self, _image: &str, language: &Language) -> Vec<String> {
        if language.name == "python" { Vec::new() } else { vec!["bash".into()] }
    }
}

/// A profile with room above its defaults.
pub(crate) fn profile() -> Profile {
    let defaults = ProfileLimits {
        memory_bytes: 512 << 20,
        pids: 256,
        cpu_cores: None,
        disk_bytes: 256 << 20,
        inodes: 1000,
        output_kept_bytes: 64 << 10,
        output_killed_bytes: 1 << 20,
        timeout: Duration::from_secs(60),
        open_files: 1024,
    };
    Profile {
        name: "default".into(),
        version: "1".into(),
        sha256: "00".into(),
        seccomp_sha256: String::new(),
        bpf_sha256: String::new(),
        uid: 1000,
        gid: 1000,
        capabilities: Vec::new(),
        root_filesystem: RootFilesystem::Overlay,
        network: Network::Loopback,
        installs: Installs::Offline,
        document: std::sync::Arc::new(serde_json::from_str(r#"{"defaultAction": "SCMP_ACT_ERRNO"}"#).expect("a document")),
        seccomp: Vec::new(),
        notifying: None,
        maximum: ProfileLimits {
            memory_bytes: 2 << 30,
            cpu_cores: Some(4.0),
            timeout: Duration::from_secs(300),
            ..defaults.clone()
        },
        defaults,
    }
}

/// The limits of that profile.
pub(crate) fn limits() -> Limits {
    let defaults = profile().defaults;
    Limits {
        memory_bytes: NonZeroU64::new(defaults.memory_bytes).expect("not 0"),
        cpu_shares: 1024,
        cpu_cores: None,
        pids: defaults.pids,
        disk_bytes: defaults.disk_bytes,
        inodes: defaults.inodes,
        output_kept_bytes: defaults.output_kept_bytes,
        output_killed_bytes: defaults.output_killed_bytes,
        timeout: defaults.timeout,
        timeout_max: profile().maximum.timeout,
        open_files: defaults.open_files,
    }
}

/// A request that names nothing but its language.
pub(crate) fn request() -> CreateSession {
    CreateSession::of("python")
}

/// A success without output.
pub(crate) fn plain_result(execution: &ExecutionId) -> CommandResult {
    CommandResult { execution_id: execution.clone(), output: None, failure: None, duration: Duration::ZERO }
}

/// A manager over a simulated runtime.
pub(crate) fn manager(config: Config) -> (Arc<Manager>, Arc<SimulatedRuntime>) {
    let runtime = SimulatedRuntime::new();
    let registry = Registry::new(vec![Arc::clone(&runtime) as Arc<dyn Runtime>]);
    let parts = ManagerParts {
        config: Arc::new(config),
        registry: Arc::new(registry),
        languages: Arc::new(World),
        profiles: Arc::new(World),
        images: Arc::new(World),
    };
    (Manager::new(parts), runtime)
}

/// `execute_shell` of these words.
pub(crate) fn shell(words: &str) -> Command {
    shell_on(words, false)
}

/// The same with `background: true`.
pub(crate) fn in_background(words: &str) -> Command {
    shell_on(words, true)
}

fn shell_on(words: &str, background: bool) -> Command {
    let mut words = words.split(' ').map(str::to_owned);
    Command::ExecuteShell(ExecuteShell {
        program: words.next().expect("a program"),
        args: words.collect(),
        working_directory: None,
        env: BTreeMap::new(),
        stdin: Stdin::Empty,
        timeout: None,
        background,
    })
}

/// Standard output of a result.
pub(crate) fn stdout(result: &CommandResult) -> String {
    match &result.output {
        Some(CommandOutput::Execution(report)) => String::from_utf8_lossy(&report.stdout.data).into_owned(),
        other => panic!("no execution result: {other:?}"),
    }
}

/// The verdict of a result.
pub(crate) fn verdict(result: &CommandResult) -> Option<FailureKind> {
    result.failure.as_ref().map(|failure| failure.kind)
}
