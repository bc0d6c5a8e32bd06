//! `codebeaker run`: one program in a fresh sandbox, without a server.
//!
//! Invariants: what to run is decided by pure code (`choose`, `limits_of`) before anything is made; the sandbox is closed
//! however the program ends; no bytes of its output are kept here beyond the queue of `streams`.

mod drive;

use std::num::{NonZeroU32, NonZeroU64};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;

pub use drive::{Streams, run_in};

use super::error::NOT_SET_UP;
use super::{CliError, CommonArgs, compose, parse_variable};
use crate::command::{Command, ExecuteCode, ExecuteShell, FailureKind, Stdin};
use crate::language::Language;
use crate::runtime::{InstanceConfig, RuntimeKind};
use crate::sandbox::profile::Profile;
use crate::sandbox::spec::{Limits, NamedLimits};

/// Largest source read from a file or standard input: the server's own default bound of a request.
const SOURCE_BYTES_MAX: u64 = 16 << 20;
/// Runs `-- PROGRAM` when no language is named.
const PLAIN_LANGUAGE: &str = "bash";

/// Runs one program in a fresh sandbox, without a server
///
/// Its streams and exit code pass through. Code comes from -e, from FILE (read here, on the host) or, with `-`, from standard input; what follows `--` are its
/// arguments. Without code, what follows `--` is a program of the image, run directly, without a shell.
/// The sandbox is gone when the call returns; Ctrl-C ends the program and the sandbox.
#[derive(Debug, Default, Args)]
#[command(after_help = "\
Examples:
  codebeaker run -l python -e 'print(6 * 7)'
  codebeaker run script.py -- one two              the language by the file's name
  codebeaker run -l bash - < script
  echo hello | codebeaker run -- tr a-z A-Z
  codebeaker run --profile strict --memory 64 --timeout 5 untrusted.js

Exit codes: the program's own, 128+n when signal n ended it (137 also: timeout, out of memory);
  1    the code does not compile (compiled languages)
  2    the call is wrongly written
  125  the sandbox could not be set up, or the output not be written
  126  the program can't be executed
  127  the program is not found
  130  after Ctrl-C, 143 after SIGTERM, 141 when the reader of the output went away
Standard input passes to the program; in a script's background job redirect it: < /dev/null")]
pub(super) struct RunArgs {
    /// Source file on this host, or `-` for standard input
    #[arg(value_name = "FILE", conflicts_with = "code")]
    file: Option<PathBuf>,
    /// Code to run
    #[arg(short = 'e', value_name = "CODE", allow_hyphen_values = true)]
    code: Option<String>,
    /// Language, by name or alias [default: by FILE's extension; bash for a plain program]
    #[arg(short, long, value_name = "L")]
    language: Option<String>,
    /// Image to run on [default: the language's own when it is installed, else `host`]
    #[arg(short, long, value_name = "I")]
    image: Option<String>,
    /// Profile: strict, default, permissive or the operator's own
    #[arg(short, long, value_name = "P", default_value = "default")]
    profile: String,
    /// Runtime, such as NativeProcess [default: the best one here]
    #[arg(short, long, value_name = "T", value_parser = parse_runtime)]
    runtime: Option<RuntimeKind>,
    /// Memory in MiB [default: the profile's]
    #[arg(short, long, value_name = "MB")]
    memory: Option<NonZeroU32>,
    /// Wall time in seconds [default: the profile's]
    #[arg(short, long, value_name = "S")]
    timeout: Option<NonZeroU32>,
    /// A variable of the program; may be repeated
    #[arg(long, value_name = "NAME=VALUE", value_parser = parse_variable)]
    env: Vec<(String, String)>,
    /// Arguments of the code, or a program and its arguments
    #[arg(last = true, value_name = "ARGS")]
    args: Vec<String>,
}

pub(super) fn run(common: &CommonArgs, args: RunArgs) -> Result<u8, CliError> {
    prepare_and_run(common, args).map_err(CliError::not_set_up)
}

fn prepare_and_run(common: &CommonArgs, args: RunArgs) -> Result<u8, CliError> {
    let config = common.load()?.config;
    let (language, work) = choose(&args, &compose::languages(&config)?)?;
    let profile = compose::profile(&config, &args.profile)?;
    let (limits, named_limits) = limits_of(&profile, args.memory, args.timeout)?;
    let image = match args.image {
        Some(image) => image,
        None => compose::default_image(&config, &language)?,
    };
    let (command, input) = work.into_command(args.timeout)?;
    let runtime = compose::runtime(&config, args.runtime, &language, &image)?;
    let env = args.env.into_iter().collect();
    let instance = InstanceConfig { named_limits, env, ..InstanceConfig::without_server(language, image, profile, limits) };
    // Two threads: one may wait for the reader of our output while the other takes signals.
    let tokio = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let tokio = tokio.map_err(|error| CliError::new(format!("can't start: {error}")))?;
    let outcome = tokio.block_on(async { run_in(runtime.as_ref(), instance, command, Streams::standard(input)?).await });
    tokio.shutdown_background();
    runtime.end();
    outcome
}

/// What the program reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Input {
    /// Our standard input.
    Ours,
    /// Nothing: the code itself came from there.
    Empty,
}

/// What to run.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Work {
    /// Source text, with arguments.
    Code { source: Source, args: Vec<String> },
    /// A program of the image.
    Program { program: String, args: Vec<String> },
}

/// Where source text is.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Source {
    Inline(String),
    File(PathBuf),
    StandardInput,
}

/// Decides what is run and in which language.
fn choose(args: &RunArgs, languages: &[Arc<Language>]) -> Result<(Arc<Language>, Work), CliError> {
    let named = args.language.as_deref().map(|name| by_name(name, languages)).transpose()?;
    let source = match (&args.code, &args.file) {
        (Some(code), _) => Source::Inline(code.clone()),
        (None, Some(file)) if file.as_os_str() == "-" => Source::StandardInput,
        (None, Some(file)) => Source::File(file.clone()),
        (None, None) => return choose_program(args, named, languages),
    };
    let language = match (named, &source) {
        (Some(language), _) => language,
        (None, Source::File(file)) => by_extension(file, languages)?,
        (None, Source::Inline(_) | Source::StandardInput) => {
            let hint = format!("say it with --language: {}", names(languages));
            return Err(CliError::usage("which language is the code in?").hint(hint));
        }
    };
    Ok((language, Work::Code { source, args: args.args.clone() }))
}

fn choose_program(
    args: &RunArgs,
    named: Option<Arc<Language>>,
    languages: &[Arc<Language>],
) -> Result<(Arc<Language>, Work), CliError> {
    let Some((program, rest)) = args.args.split_first() else {
        return Err(CliError::usage("nothing to run")
            .hint("give a FILE, code with -e, `-` for standard input, or a program after `--`"));
    };
    let language = named.map_or_else(|| by_name(PLAIN_LANGUAGE, languages), Ok)?;
    Ok((language, Work::Program { program: program.clone(), args: rest.to_vec() }))
}

fn by_name(name: &str, languages: &[Arc<Language>]) -> Result<Arc<Language>, CliError> {
    let named = |language: &&Arc<Language>| language.name == name || language.aliases.iter().any(|alias| alias == name);
    languages.iter().find(named).map(Arc::clone).ok_or_else(|| {
        CliError::new(format!("there is no language `{name}`")).hint(format!("there are: {}", names(languages))).not_set_up()
    })
}

fn by_extension(file: &std::path::Path, languages: &[Arc<Language>]) -> Result<Arc<Language>, CliError> {
    let extension = file.extension().and_then(|extension| extension.to_str()).map(|extension| format!(".{extension}"));
    let of_it = |language: &&Arc<Language>| Some(&language.file_extension) == extension.as_ref();
    languages.iter().find(of_it).map(Arc::clone).ok_or_else(|| {
        CliError::usage(format!("which language is {} in? Its name does not say it", file.display()))
            .hint(format!("say it with --language: {}", names(languages)))
    })
}

fn names(languages: &[Arc<Language>]) -> String {
    languages.iter().map(|language| language.name.as_str()).collect::<Vec<_>>().join(", ")
}

impl Work {
    /// Reads the source and gives the command, with what its program reads.
    fn into_command(self, timeout: Option<NonZeroU32>) -> Result<(Command, Input), CliError> {
        let env = std::collections::BTreeMap::new();
        match self {
            Self::Code { source, args } => {
                let (input, stdin) = match source {
                    Source::StandardInput => (Input::Empty, Stdin::Empty),
                    Source::Inline(_) | Source::File(_) => (Input::Ours, Stdin::Open),
                };
                let code = source.read()?;
                let code = ExecuteCode { code, language: None, packages: Vec::new(), args, env, stdin, timeout };
                Ok((Command::ExecuteCode(code), input))
            }
            Self::Program { program, args } => {
                let stdin = Stdin::Open;
                let shell = ExecuteShell { program, args, working_directory: None, env, stdin, timeout, background: false };
                Ok((Command::ExecuteShell(shell), Input::Ours))
            }
        }
    }
}

impl Source {
    fn read(self) -> Result<String, CliError> {
        match self {
            Self::Inline(code) => Ok(code),
            Self::StandardInput => read_source(std::io::stdin().lock(), "standard input"),
            Self::File(path) => {
                let name = path.display().to_string();
                let file = std::fs::File::open(&path).map_err(|error| CliError::new(format!("can't read {name}: {error}")))?;
                read_source(file, &name)
            }
        }
    }
}

fn read_source(from: impl std::io::Read, name: &str) -> Result<String, CliError> {
    use std::io::Read;
    let mut text = String::new();
    from.take(SOURCE_BYTES_MAX + 1)
        .read_to_string(&mut text)
        .map_err(|error| CliError::new(format!("can't read the code from {name}: {error}")))?;
    if text.len() as u64 > SOURCE_BYTES_MAX {
        return Err(CliError::new(format!("the code in {name} is longer than {} MiB", SOURCE_BYTES_MAX >> 20)));
    }
    Ok(text)
}

/// The profile's limits with what the call lowers or raises, up to the profile's maximum.
pub(super) fn limits_of(
    profile: &Profile,
    memory_mb: Option<NonZeroU32>,
    timeout: Option<NonZeroU32>,
) -> Result<(Limits, NamedLimits), CliError> {
    let (defaults, maximum) = (&profile.defaults, &profile.maximum);
    let memory = memory_mb.map_or(defaults.memory_bytes, |mb| u64::from(mb.get()) << 20);
    if memory > maximum.memory_bytes {
        let most = format!("the most that the profile `{}` allows is {} MiB", profile.name, maximum.memory_bytes >> 20);
        return Err(CliError::usage(format!("--memory {} is too much", memory >> 20)).hint(most));
    }
    if let Some(asked) = timeout.filter(|asked| Duration::from_secs(asked.get().into()) > maximum.timeout) {
        let most = format!("the most that the profile `{}` allows is {} s", profile.name, maximum.timeout.as_secs());
        return Err(CliError::usage(format!("--timeout {asked} is too long")).hint(most));
    }
    let memory_bytes =
        NonZeroU64::new(memory).ok_or_else(|| CliError::new(format!("the profile `{}` allows no memory", profile.name)))?;
    let own = profile.limits().ok_or_else(|| CliError::new(format!("the profile `{}` allows no memory", profile.name)))?;
    let limits = Limits {
        memory_bytes,
        disk_bytes: defaults.disk_bytes.min(memory / 2),
        timeout: timeout.map_or(defaults.timeout, |seconds| Duration::from_secs(seconds.get().into())),
        ..own
    };
    Ok((limits, NamedLimits { memory: memory_mb.is_some(), ..NamedLimits::default() }))
}

/// The exit code of a call whose program ended like this; `kind` is the `errorKind` on the wire.
pub(super) fn code_of(own: Option<u8>, kind: &str, success: bool) -> u8 {
    if kind == FailureKind::ProgramNotFound.name() {
        return 127;
    }
    match own {
        Some(code) => code,
        None if success => 0,
        None if kind == FailureKind::PermissionDenied.name() => 126,
        // As compilers themselves say it: the sandbox was there.
        None if kind == FailureKind::CompileError.name() => 1,
        None => NOT_SET_UP,
    }
}

fn parse_runtime(text: &str) -> Result<RuntimeKind, String> {
    let all = || RuntimeKind::ALL.map(RuntimeKind::name).join(", ");
    RuntimeKind::from_name(text).ok_or_else(|| format!("it takes one of {}", all()))
}

#[cfg(test)]
mod tests;
