//! `codebeaker seccomp record` and `minimise`: what runs ask of the kernel.
//!
//! The recorder is a tracer around `codebeaker run`, or around the init of a server's session: processes are followed from outside, and
//! a process's calls count from the first filter it installs, which is the last thing before a program (docs/decisions/0040). It sees
//! calls before filters do, also those that are refused. Read `tracer` next, then `session`.

use std::path::{Path, PathBuf};
use std::process::Command;

use clap::Args;
use serde_json::json;

use super::super::client::ServerArgs;
use super::super::error::NOT_SET_UP;
use super::super::output::{FormatArgs, OutputFormat, emit, emit_json, note};
use super::super::{CliError, CommonArgs};
use super::session;
use super::source::{TargetArgs, load};
use super::tracer::Tracer;
use crate::seccomp::diff;
use crate::seccomp::document::Document;
use crate::seccomp::policy::Policy;
use crate::seccomp::record::{Recording, merge, minimise};
use crate::seccomp::resolve::Target;
use crate::seccomp::ruleset::{Engine, Ruleset};
use crate::seccomp::{Arch, write};
use crate::sys::CallError;
use crate::sys::tracee::start_traced;

/// Records the system calls of a run in a sandbox, as a profile with a reason per rule
///
/// The command runs as with `codebeaker run`, or with --session in a session of a server on this host, followed by a tracer, which slows
/// it down. What the profile refused is named on standard error and left out. One run shows one way through a program: merge several.
/// The recorder observes and protects nothing.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  codebeaker seccomp record --out ls.json -- ls -l /usr
  codebeaker seccomp record --out py.json -- python3 -c 'import socket'
  codebeaker seccomp record --merge py.json --out py.json -- python3 -c 'import ssl'
  codebeaker seccomp record --base strict -- uname -a
  codebeaker seccomp record --session ses_3f9c… --out job.json -- python3 job.py

Exit codes: the command's own; 125 when it could not be set up")]
pub(super) struct RecordArgs {
    /// Profile that the command runs under
    #[arg(short, long, value_name = "P", default_value = "default", conflicts_with = "session")]
    profile: String,
    /// Image to run on
    #[arg(short, long, value_name = "I", conflicts_with = "session")]
    image: Option<String>,
    /// Run it in this session of a running server instead, under the session's profile; takes root on the server's host
    #[arg(long, value_name = "ID")]
    session: Option<String>,
    #[command(flatten)]
    server: ServerArgs,
    /// A recorded profile whose rules are kept, too
    #[arg(long, value_name = "FILE")]
    merge: Option<PathBuf>,
    /// Instead of the profile print how it differs from this one
    #[arg(long, value_name = "PROFILE", conflicts_with = "out")]
    base: Option<String>,
    /// File to write; standard output is the command's
    #[arg(long, value_name = "FILE", required_unless_present = "base")]
    out: Option<PathBuf>,
    #[command(flatten)]
    target: TargetArgs,
    /// The program and its arguments
    #[arg(last = true, required = true, value_name = "COMMAND")]
    command: Vec<String>,
}

/// Takes out of a profile what no recorded run used
///
/// Prints the smaller profile; what was allowed but never used is named on standard error. -o json gives both.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  codebeaker seccomp minimise default --run py.json --run ls.json > small.json
  codebeaker seccomp minimise docker.json --run web.json -o json | jq .unused")]
pub(super) struct MinimiseArgs {
    /// The profile
    #[arg(value_name = "PROFILE")]
    profile: String,
    /// A recorded profile; may be repeated
    #[arg(long = "run", required = true, value_name = "FILE")]
    runs: Vec<String>,
    #[command(flatten)]
    target: TargetArgs,
    #[command(flatten)]
    format: FormatArgs,
}

/// What was recorded.
pub(super) struct Run {
    pub recording: Recording,
    /// The command's exit code.
    pub code: u8,
    /// Name of the profile that it ran under.
    pub profile: String,
}

pub(super) fn record(common: &CommonArgs, args: &RecordArgs) -> Result<u8, CliError> {
    let arch = Arch::native().ok_or_else(|| CliError::new("this machine's architecture has no table"))?;
    let Run { recording, code, profile } = match &args.session {
        Some(id) => session::record(common, &args.server, id, &args.command, arch)?,
        None => alone(args, arch)?,
    };
    let source = load(common, &profile, &args.target)?;
    let run = args.command.join(" ");
    let refused = recording.refused(&source.policy);
    if !refused.is_empty() {
        note(&format!("refused and left out: {}\n", refused.join(", ")));
    }
    if recording.foreign > 0 {
        note(&format!("{} calls of other entries or without a name were left out\n", recording.foreign));
    }
    let mut profile = recording.profile(arch, &run, Some(&source.policy));
    if let Some(path) = &args.merge {
        let known = load(common, &path.display().to_string(), &args.target)?;
        let mut merged = known.document.ok_or_else(|| CliError::usage("a raw filter can't be merged with"))?.profile;
        merge(&mut merged, profile);
        profile = merged;
    }
    let document = Document::oci(profile);
    match (&args.base, &args.out) {
        (Some(base), _) => {
            let base = load(common, base, &args.target)?;
            for difference in diff::diff(&base.policy, &policy(&document, source.target())) {
                emit(&format!("{} ({})\n", difference.call, difference.kind.word()))?;
            }
        }
        (None, Some(path)) => save(path, &document)?,
        (None, None) => {}
    }
    note(&format!("{} calls recorded\n", recording.total()));
    Ok(code)
}

fn save(path: &Path, document: &Document) -> Result<(), CliError> {
    std::fs::write(path, write::oci(document).text)
        .map_err(|error| CliError::new(format!("writing {} failed: {error}", path.display())))
}

/// In a sandbox of its own, followed from the first instruction of the `codebeaker run` that makes it.
fn alone(args: &RecordArgs, arch: Arch) -> Result<Run, CliError> {
    let binary = std::env::current_exe().map_err(|error| CliError::new(format!("this program can't be found: {error}")))?;
    let mut command = Command::new(binary);
    command.args(["run", "--profile", &args.profile]);
    if let Some(image) = &args.image {
        command.args(["--image", image]);
    }
    command.arg("--").args(&args.command);
    let pid = start_traced(&mut command).map_err(|error| CliError::new(format!("the run can't be started: {error}")))?;
    let (recording, code) = Tracer::new(arch).follow_all(pid).map_err(not_followed)?;
    Ok(Run { recording, code: code.unwrap_or(NOT_SET_UP), profile: args.profile.clone() })
}

/// What is told when the kernel lets nobody follow.
pub(super) fn not_followed(error: CallError) -> CliError {
    CliError::new(format!("the run can't be followed: {error}")).hint(
        "it takes root on the server's host for a session; another tracer, or a seccomp filter around this process, forbids it",
    )
}

fn policy(document: &Document, target: Target<'_>) -> Policy {
    Policy::Rules(Ruleset::new(document, target, Engine::CodeBeaker))
}

pub(super) fn minimised(common: &CommonArgs, args: &MinimiseArgs) -> Result<(), CliError> {
    let source = load(common, &args.profile, &args.target)?;
    let document = source.document.as_ref().ok_or_else(|| CliError::usage("a raw filter has no rules to take out"))?;
    let runs =
        args.runs.iter().map(|run| load(common, run, &args.target).map(|run| run.policy)).collect::<Result<Vec<_>, _>>()?;
    let (profile, unused) = minimise(document, source.target(), &runs);
    let least = Document::oci(profile);
    if args.format.format == OutputFormat::Json {
        return emit_json(&json!({ "profile": least.profile, "unused": unused }));
    }
    note(&format!("allowed but never used ({}): {}\n", unused.len(), unused.join(", ")));
    emit(&write::oci(&least).text)
}
