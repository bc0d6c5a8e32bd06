//! `codebeaker seccomp record` and `minimise`: what runs ask of the kernel.
//!
//! The recorder is a tracer around `codebeaker run`: its launcher, init and programs are followed from outside, and a process's calls
//! count from the first filter it installs, which is the last thing before a program (docs/decisions/0040). It sees calls before filters
//! do, also those that are refused.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::process::Command;

use clap::Args;
use serde_json::json;

use super::super::output::{FormatArgs, OutputFormat, emit, emit_json, note};
use super::super::{CliError, CommonArgs};
use super::source::{TargetArgs, load};
use crate::seccomp::diff;
use crate::seccomp::document::Document;
use crate::seccomp::policy::Policy;
use crate::seccomp::record::{Recording, merge, minimise};
use crate::seccomp::resolve::Target;
use crate::seccomp::ruleset::{Engine, Ruleset};
use crate::seccomp::{Arch, write};
use crate::sys::CallError;
use crate::sys::tracee::{CallStop, Event, Patience, call_stop, event_process, follow, resume, start_traced, wait_any};

/// Records the system calls of a run in a sandbox, as a profile with a reason per rule
///
/// The command runs as with `codebeaker run`, followed by a tracer, which slows it down. What the profile refused is named on standard error
/// and left out. One run shows one way through a program: merge several. The recorder observes and protects nothing.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  codebeaker seccomp record --out ls.json -- ls -l /usr
  codebeaker seccomp record --out py.json -- python3 -c 'import socket'
  codebeaker seccomp record --merge py.json --out py.json -- python3 -c 'import ssl'
  codebeaker seccomp record --base strict -- uname -a

Exit codes: the command's own; 125 when it could not be set up")]
pub(super) struct RecordArgs {
    /// Profile that the command runs under
    #[arg(short, long, value_name = "P", default_value = "default")]
    profile: String,
    /// Image to run on
    #[arg(short, long, value_name = "I")]
    image: Option<String>,
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

pub(super) fn record(common: &CommonArgs, args: &RecordArgs) -> Result<u8, CliError> {
    let source = load(common, &args.profile, &args.target)?;
    let arch = Arch::native().ok_or_else(|| CliError::new("this machine's architecture has no table"))?;
    let binary = std::env::current_exe().map_err(|error| CliError::new(format!("this program can't be found: {error}")))?;
    let mut command = Command::new(binary);
    command.args(["run", "--profile", &args.profile]);
    if let Some(image) = &args.image {
        command.args(["--image", image]);
    }
    command.arg("--").args(&args.command);
    let failed = |error: CallError| {
        CliError::new(format!("the run can't be followed: {error}"))
            .hint("another tracer, or a seccomp filter around this process, forbids it")
    };
    let pid = start_traced(&mut command).map_err(|error| CliError::new(format!("the run can't be started: {error}")))?;
    let (recording, code) = Tracer::new(arch).follow(pid).map_err(failed)?;
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
        (None, Some(path)) => std::fs::write(path, write::oci(&document).text)
            .map_err(|error| CliError::new(format!("writing {} failed: {error}", path.display())))?,
        (None, None) => {}
    }
    note(&format!("{} calls recorded\n", recording.total()));
    Ok(code)
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

/// Follows every process below one.
struct Tracer {
    arch: Arch,
    recording: Recording,
    /// Processes that are known, and whether their calls count.
    known: BTreeMap<i32, Stage>,
    /// Those that stood still before their parent's event was seen.
    early: BTreeSet<i32>,
}

/// How far a process is on its way to being a program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// Ours: the server's part, the launcher, init.
    Before,
    /// It has begun to install filters; so have its children.
    Filtered,
}

impl Tracer {
    fn new(arch: Arch) -> Self {
        Self { arch, recording: Recording::default(), known: BTreeMap::new(), early: BTreeSet::new() }
    }

    /// Until everything has ended; the exit code is the first process's.
    fn follow(mut self, first: i32) -> Result<(Recording, u8), CallError> {
        let mut code = super::super::error::NOT_SET_UP;
        let mut options_set = false;
        self.known.insert(first, Stage::Before);
        while let Some((pid, event)) = wait_any(-1, Patience::Wait)? {
            if !options_set && pid == first {
                // The stop of its exec: from here on children are followed.
                options_set = true;
                follow(first)?;
                resume(first, 0);
                continue;
            }
            match event {
                Event::Ended(ended) => {
                    self.known.remove(&pid);
                    if pid == first {
                        code = u8::try_from(ended).unwrap_or(u8::MAX);
                    }
                }
                Event::Call => {
                    self.call(pid);
                    resume(pid, 0);
                }
                Event::Forked => {
                    self.forked(pid);
                    resume(pid, 0);
                }
                Event::Executed => resume(pid, 0),
                Event::Signal(signal) => self.signal(pid, signal),
            }
        }
        Ok((self.recording, code))
    }

    fn call(&mut self, pid: i32) {
        let Ok(CallStop::Entry { arch, number, args }) = call_stop(pid) else { return };
        let installs = self.arch.number("seccomp").map(u64::from) == Some(number);
        let stage = self.known.entry(pid).or_insert(Stage::Before);
        if installs {
            *stage = Stage::Filtered;
        }
        match stage {
            Stage::Before => {}
            Stage::Filtered => self.recording.add(self.arch, arch, number as u32, args),
        }
    }

    /// A child is what its parent is.
    fn forked(&mut self, parent: i32) {
        let stage = self.known.get(&parent).copied().unwrap_or(Stage::Before);
        let Ok(child) = event_process(parent) else { return };
        self.known.insert(child, stage);
        if self.early.remove(&child) {
            resume(child, 0);
        }
    }

    /// A new process begins with a stop of its own, which is no signal for it.
    fn signal(&mut self, pid: i32, signal: i32) {
        const SIGSTOP: i32 = 19;
        match self.known.get(&pid) {
            None if signal == SIGSTOP => drop(self.early.insert(pid)),
            _ if signal == SIGSTOP => resume(pid, 0),
            _ => resume(pid, signal),
        }
    }
}
