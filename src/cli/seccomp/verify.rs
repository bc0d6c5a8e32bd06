//! `codebeaker seccomp verify`: the compiled filters against the rules, simulated and in the kernel.

use clap::Args;
use serde_json::json;

use super::super::output::{FormatArgs, OutputFormat, emit, emit_json};
use super::super::{CliError, CommonArgs};
use super::source::{Source, TargetArgs, load};
use crate::seccomp::Arch;
use crate::seccomp::bpf::Program;
use crate::seccomp::compile::compile;
use crate::seccomp::policy::Policy;
use crate::seccomp::resolve::resolve;
use crate::seccomp::ruleset::{Engine, Ruleset};
use crate::seccomp::verdict::Verdict;
use crate::seccomp::verify;

/// Proves that the compiled filters say what the profile says
///
/// Every system call number and both sides of every compared argument are asked of the rules and of the simulated filters. With
/// --kernel-too a child of this process, as an unprivileged user where it can become one, installs the filters and makes each call that
/// does no harm.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  codebeaker seccomp verify default
  codebeaker seccomp verify default --kernel-too
  codebeaker seccomp verify own.json --arch aarch64 -o json

Exit codes: 0 proved, 1 they differ or the profile is refused, 2 the call is wrongly written")]
pub(super) struct VerifyArgs {
    /// The profile: a name, a file or `-`
    #[arg(value_name = "PROFILE")]
    profile: String,
    /// Ask the running kernel, too
    #[arg(long)]
    kernel_too: bool,
    #[command(flatten)]
    target: TargetArgs,
    #[command(flatten)]
    format: FormatArgs,
}

/// The filters of a profile: raw ones as they are, rules compiled as for a session.
pub(super) fn programs(source: &Source) -> Result<Vec<Program>, CliError> {
    let Some(document) = &source.document else {
        return match &source.policy {
            Policy::Programs { filters, .. } => Ok(filters.clone()),
            Policy::Rules(_) => Err(CliError::new("rules without a file can't be compiled")),
        };
    };
    let refused = |text: String| {
        CliError::new(format!("{}: CodeBeaker does not compile it: {text}", source.name))
            .hint("`codebeaker seccomp audit` names what is wrong")
    };
    let resolved = resolve(&document.profile, source.target()).map_err(|error| refused(error.to_string()))?;
    let filters = compile(&resolved).map_err(|error| refused(super::super::error::chain(&error)))?;
    filters.iter().map(|bytes| Program::parse(bytes).map_err(|error| refused(error.to_string()))).collect()
}

pub(super) fn verify(common: &CommonArgs, args: &VerifyArgs) -> Result<u8, CliError> {
    let source = load(common, &args.profile, &args.target)?;
    let filters = programs(&source)?;
    let document = source.document.as_ref().ok_or_else(|| {
        CliError::usage("a raw filter has no rules to be compared with").hint("`codebeaker seccomp diff` compares any two")
    })?;
    // What was compiled is CodeBeaker's reading, whatever engine the file was written for.
    let rules = Policy::Rules(Ruleset::new(document, source.target(), Engine::CodeBeaker));
    let report = verify::verify(&rules, &Policy::Programs { arch: rules.arch(), filters: filters.clone() });
    let mut wrong: Vec<(String, String, String)> =
        report.wrong.iter().map(|(call, said, done)| (call.clone(), said.to_string(), done.to_string())).collect();
    let mut probed = 0;
    if args.kernel_too && wrong.is_empty() {
        if Arch::native() != Some(rules.arch()) {
            return Err(CliError::usage("the running kernel is of another architecture").hint("leave --kernel-too out"));
        }
        let calls = verify::harmless(&rules);
        probed = calls.len();
        wrong.extend(ask_kernel(&filters, &calls)?);
    }
    if args.format.format == OutputFormat::Json {
        let rows: Vec<_> =
            wrong.iter().map(|(call, said, done)| json!({ "call": call, "rules": said, "filters": done })).collect();
        emit_json(
            &json!({ "profile": source.name, "asked": report.asked, "numbers": report.numbers, "kernel": probed, "wrong": rows }),
        )?;
    } else {
        let lines: String = wrong
            .iter()
            .map(|(call, said, done)| format!("{call}: the rules say {said}, the filters {done}\n"))
            .collect::<Vec<_>>()
            .concat();
        let kernel = if args.kernel_too { format!(", {probed} calls asked of the kernel") } else { String::new() };
        let outcome = if wrong.is_empty() { "proved".to_owned() } else { format!("{} differ", wrong.len()) };
        emit(&format!("{lines}{}: {outcome}: {} questions, {} numbers{kernel}\n", source.name, report.asked, report.numbers))?;
    }
    Ok(u8::from(!wrong.is_empty()))
}

/// What a call that is let through, and needs no right, does not end with.
const EPERM: i32 = 1;
const ENOSYS: i32 = 38;

/// Calls on which the kernel disagrees with the rules.
fn ask_kernel(filters: &[Program], calls: &[(u32, &'static str, Verdict)]) -> Result<Vec<(String, String, String)>, CliError> {
    let numbers: Vec<u32> = calls.iter().map(|(number, ..)| *number).collect();
    let answers = crate::sys::answers::answers(&filters.iter().map(Program::bytes).collect::<Vec<_>>(), &numbers)
        .map_err(|error| CliError::new(format!("the kernel could not be asked: {error}")))?;
    let mut wrong = Vec::new();
    for ((_, name, verdict), answer) in calls.iter().zip(answers) {
        let as_said = match verdict {
            Verdict::Errno(errno) => answer == Some(i32::from(*errno)),
            _ => answer.is_some_and(|errno| errno != ENOSYS && errno != EPERM),
        };
        if !as_said {
            let told = answer.map_or_else(|| "nothing: the child ended".to_owned(), |errno| format!("errno {errno}"));
            wrong.push(((*name).to_owned(), verdict.to_string(), told));
        }
    }
    Ok(wrong)
}
