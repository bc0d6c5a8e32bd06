//! What `run` chooses, which limits it asks for, and how it drives an instance (a stated one, without a sandbox).

use std::sync::atomic::{AtomicBool, Ordering};

use futures_util::future::BoxFuture;
use tokio::sync::{mpsc, watch};

use super::*;
use crate::cli::streams::{Captured, OutputPump};
use crate::command::{CommandKind, CommandOutput, CommandResult, Control, ExecutionReport, Failure, Stream, Usage};
use crate::id::EnvironmentId;
use crate::runtime::features::Features;
use crate::runtime::{Availability, ExecutionRequest, Instance, Runtime};
use crate::sandbox::enforcement::{Enforcement, ProfileIdentity};
use crate::sandbox::error::SandboxError;
use crate::sandbox::profile::{Installs, Network, ProfileLimits, RootFilesystem};

fn language(name: &str, alias: &str, extension: &str) -> Arc<Language> {
    Arc::new(Language {
        name: name.into(),
        display_name: name.into(),
        aliases: vec![alias.into()],
        image: "host".into(),
        file_extension: extension.into(),
        ..Language::default()
    })
}

fn languages() -> Vec<Arc<Language>> {
    vec![language("python", "py", ".py"), language("javascript", "js", ".js"), language("bash", "sh", ".sh")]
}

fn profile() -> Profile {
    let limits = |memory_bytes, timeout| ProfileLimits {
        memory_bytes,
        pids: 64,
        cpu_cores: None,
        disk_bytes: 512 << 20,
        inodes: 1000,
        output_kept_bytes: 1 << 20,
        output_killed_bytes: 8,
        timeout: Duration::from_secs(timeout),
        open_files: 256,
    };
    Profile {
        name: "default".into(),
        version: "1".into(),
        sha256: String::new(),
        seccomp_sha256: String::new(),
        bpf_sha256: String::new(),
        uid: 1000,
        gid: 1000,
        capabilities: vec![],
        root_filesystem: RootFilesystem::Overlay,
        network: Network::Loopback,
        installs: Installs::Offline,
        document: std::sync::Arc::new(serde_json::from_str(r#"{"defaultAction": "SCMP_ACT_ERRNO"}"#).expect("a document")),
        seccomp: vec![],
        notifying: None,
        defaults: limits(512 << 20, 30),
        maximum: limits(1 << 30, 600),
    }
}

fn chosen(args: &RunArgs) -> Result<(String, Work), CliError> {
    choose(args, &languages()).map(|(language, work)| (language.name.clone(), work))
}

fn arguments(args: &[&str]) -> Vec<String> {
    args.iter().map(|&arg| arg.to_owned()).collect()
}

#[test]
fn a_file_chooses_its_language_by_extension_and_a_flag_wins() {
    let file = |name: &str, language: Option<&str>| RunArgs {
        file: Some(name.into()),
        language: language.map(str::to_owned),
        ..RunArgs::default()
    };
    let code = |name: &str| Work::Code { source: Source::File(name.into()), args: vec![] };
    assert_eq!(chosen(&file("a/b.js", None)), Ok(("javascript".into(), code("a/b.js"))));
    assert_eq!(chosen(&file("b.js", Some("py"))), Ok(("python".into(), code("b.js"))));
    for unknown in ["Makefile", "a.rb", ".py"] {
        assert!(chosen(&file(unknown, None)).is_err(), "{unknown}");
    }
}

#[test]
fn a_plain_program_runs_beside_bash_unless_a_language_is_named() {
    let args = RunArgs { args: arguments(&["ls", "-la"]), ..RunArgs::default() };
    let program = Work::Program { program: "ls".into(), args: arguments(&["-la"]) };
    assert_eq!(chosen(&args), Ok(("bash".into(), program.clone())));
    assert_eq!(chosen(&RunArgs { language: Some("python".into()), ..args }), Ok(("python".into(), program)));
}

#[test]
fn inline_code_and_standard_input_need_a_language() {
    let inline = RunArgs { code: Some("1".into()), args: arguments(&["a"]), ..RunArgs::default() };
    let stdin = RunArgs { file: Some("-".into()), ..RunArgs::default() };
    assert!(chosen(&inline).is_err());
    assert!(chosen(&stdin).is_err());
    let expected = Work::Code { source: Source::Inline("1".into()), args: arguments(&["a"]) };
    assert_eq!(chosen(&RunArgs { language: Some("python".into()), ..inline }), Ok(("python".into(), expected)));
    let expected = Work::Code { source: Source::StandardInput, args: vec![] };
    assert_eq!(chosen(&RunArgs { language: Some("sh".into()), ..stdin }), Ok(("bash".into(), expected)));
}

#[test]
fn an_unknown_language_lists_those_there_are() {
    let error = chosen(&RunArgs { language: Some("cobol".into()), ..RunArgs::default() }).expect_err("no such language");
    assert_eq!(error.text(), "error: there is no language `cobol`\nhint: there are: python, javascript, bash\n");
    assert!(chosen(&RunArgs::default()).is_err(), "nothing to run");
}

#[test]
fn limits_come_from_the_profile_and_disk_fits_into_memory() {
    let (limits, named) = limits_of(&profile(), None, None).expect("the defaults");
    assert_eq!((limits.memory_bytes.get(), limits.disk_bytes), (512 << 20, 256 << 20));
    assert_eq!((limits.timeout, named.memory), (Duration::from_secs(30), false));
    let (limits, named) = limits_of(&profile(), NonZeroU32::new(64), NonZeroU32::new(5)).expect("lower");
    assert_eq!((limits.memory_bytes.get(), limits.disk_bytes), (64 << 20, 32 << 20));
    assert_eq!((limits.timeout, named.memory), (Duration::from_secs(5), true));
}

#[test]
fn more_than_the_profile_allows_is_refused() {
    assert!(limits_of(&profile(), NonZeroU32::new(1024), NonZeroU32::new(600)).is_ok());
    assert!(limits_of(&profile(), NonZeroU32::new(1025), None).is_err());
    assert!(limits_of(&profile(), None, NonZeroU32::new(601)).is_err());
}

#[test]
fn code_from_standard_input_leaves_nothing_to_read() {
    let work = |source| Work::Code { source, args: vec![] };
    let (command, input) = work(Source::Inline("1".into())).into_command(None).expect("inline code");
    assert!(matches!(command, Command::ExecuteCode(ExecuteCode { stdin: Stdin::Open, .. })));
    assert_eq!(input, Input::Ours);
    let missing = work(Source::File("/nonexistent.py".into())).into_command(None).expect_err("no such file");
    assert_eq!(missing.not_set_up().exit_code(), NOT_SET_UP);
}

#[test]
fn a_source_has_a_bound_and_is_text() {
    assert_eq!(read_source(&b"print(1)"[..], "f"), Ok("print(1)".into()));
    assert!(read_source(std::io::repeat(b'a'), "f").is_err());
    assert!(read_source(&b"\xff"[..], "f").is_err());
}

/// A runtime whose programs write their input back and end with the given verdict.
struct Echo {
    failure: Option<FailureKind>,
    exit_code: Option<i32>,
    closed: Arc<AtomicBool>,
}

struct EchoInstance {
    id: EnvironmentId,
    failure: Option<FailureKind>,
    exit_code: Option<i32>,
    closed: Arc<AtomicBool>,
}

impl Runtime for Echo {
    fn name(&self) -> &'static str {
        "echo"
    }
    fn kind(&self) -> RuntimeKind {
        RuntimeKind::NativeProcess
    }
    fn languages(&self) -> Vec<String> {
        vec![]
    }
    fn commands(&self) -> Vec<CommandKind> {
        vec![]
    }
    fn features(&self) -> Features {
        Features {
            startup_time_ms: 0.0,
            memory_overhead_mb: 0.0,
            isolation_level: 0,
            filesystem_persistence: true,
            network_access: false,
            concurrent_executions_max: 1,
            measured: false,
        }
    }
    fn availability(&self) -> Availability {
        Availability::Available
    }
    fn create(&self, config: InstanceConfig) -> BoxFuture<'_, Result<Arc<dyn Instance>, SandboxError>> {
        let instance = EchoInstance {
            id: config.environment_id,
            failure: self.failure,
            exit_code: self.exit_code,
            closed: Arc::clone(&self.closed),
        };
        Box::pin(async { Ok(Arc::new(instance) as Arc<dyn Instance>) })
    }
}

impl Instance for EchoInstance {
    fn environment_id(&self) -> &EnvironmentId {
        &self.id
    }
    fn kind(&self) -> RuntimeKind {
        RuntimeKind::NativeProcess
    }
    fn execute(&self, mut request: ExecutionRequest) -> BoxFuture<'_, CommandResult> {
        Box::pin(async move {
            let mut failure = self.failure;
            while let Some(control) = request.control.recv().await {
                match control {
                    Control::Input { data, eof } => {
                        let verdict = request.sink.write(Stream::Stdout, &data);
                        if verdict == crate::runtime::OutputVerdict::LimitReached {
                            failure = Some(FailureKind::OutputLimit);
                            break;
                        }
                        if eof {
                            break;
                        }
                    }
                    Control::Cancel => {
                        failure = Some(FailureKind::Cancelled);
                        break;
                    }
                    Control::Signal(_) => {}
                }
            }
            let report = ExecutionReport { exit_code: self.exit_code, ..ExecutionReport::default() };
            CommandResult {
                execution_id: request.id,
                output: Some(CommandOutput::Execution(report)),
                failure: failure.map(|kind| Failure { kind, message: kind.name().into() }),
                duration: Duration::ZERO,
            }
        })
    }
    fn enforcement(&self) -> Enforcement {
        let profile = ProfileIdentity::default();
        Enforcement { walls: vec![], limits: vec![], profile, rootless: true }
    }
    fn usage(&self) -> Usage {
        Usage::default()
    }
    fn gone(&self) -> watch::Receiver<Option<String>> {
        watch::Sender::new(None).subscribe()
    }
    fn close(&self) -> BoxFuture<'_, ()> {
        self.closed.store(true, Ordering::Release);
        Box::pin(async {})
    }
}

/// Runs with that input; what came out, the exit code, and whether the instance was closed.
fn drive(failure: Option<FailureKind>, exit_code: Option<i32>, input: &[u8]) -> (Vec<u8>, Result<u8, CliError>, bool) {
    let closed = Arc::new(AtomicBool::new(false));
    let runtime = Echo { failure, exit_code, closed: Arc::clone(&closed) };
    let captured = Captured::default();
    let pump = OutputPump::start(captured.clone(), std::io::sink()).expect("a thread");
    let (sender, receiver) = mpsc::channel(1);
    sender.try_send(input.to_vec()).expect("there is room");
    drop(sender);
    let (limits, _) = limits_of(&profile(), None, None).expect("the defaults");
    let config = InstanceConfig::without_server(language("bash", "sh", ".sh"), "host".into(), Arc::new(profile()), limits);
    let work = Work::Program { program: "cat".into(), args: vec![] };
    let (command, _) = work.into_command(None).expect("a program");
    let tokio = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
    let outcome = tokio.block_on(run_in(&runtime, config, command, Streams::new(pump, Some(receiver))));
    let output = captured.bytes();
    (output, outcome, closed.load(Ordering::Acquire))
}

#[test]
fn streams_and_exit_code_pass_through_and_the_instance_is_closed() {
    assert_eq!(drive(None, Some(0), b"hello"), (b"hello".to_vec(), Ok(0), true));
    assert_eq!(drive(Some(FailureKind::NonzeroExit), Some(3), b""), (vec![], Ok(3), true));
}

#[test]
fn a_program_that_never_ran_has_the_exit_code_of_a_shell() {
    assert_eq!(drive(Some(FailureKind::ProgramNotFound), None, b"").1, Ok(127));
    assert_eq!(drive(Some(FailureKind::PermissionDenied), None, b"").1, Ok(126));
    assert_eq!(drive(Some(FailureKind::SandboxGone), None, b"").1, Ok(125));
}

#[test]
fn output_past_the_limit_ends_the_program_and_is_not_passed_on() {
    let (output, code, closed) = drive(None, Some(137), b"123456789");
    assert_eq!((output, code, closed), (b"12345678".to_vec(), Ok(137), true));
    assert_eq!(drive(None, Some(0), b"12345678").1, Ok(0), "the limit itself is no more than the limit");
}
