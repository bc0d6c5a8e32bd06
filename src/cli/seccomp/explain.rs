//! `codebeaker seccomp explain` and `simulate`: one call, in words and through the filters.

use clap::Args;
use serde_json::json;

use super::super::output::{FormatArgs, OutputFormat, emit, emit_json};
use super::super::{CliError, CommonArgs};
use super::source::{Source, TargetArgs, load};
use super::verify::programs;
use crate::seccomp::audit::suggestion;
use crate::seccomp::bpf::Program;
use crate::seccomp::explain;
use crate::seccomp::policy::stacked;
use crate::seccomp::verdict::Verdict;
use crate::seccomp::{Arch, Invocation, symbols};

/// Explains what happens to one call, and what it would mean to allow it
///
/// The verdict, the rule with its conditions and written reason, what other arguments come to, and the finding of the audit that
/// is about the call.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  codebeaker seccomp explain default socket AF_ALG SOCK_SEQPACKET 0
  codebeaker seccomp explain strict clone 'CLONE_NEWUSER|SIGCHLD'
  codebeaker seccomp explain docker.json mount --cap CAP_SYS_ADMIN
  codebeaker seccomp explain default io_uring_setup -o json | jq -r .verdict")]
pub(super) struct ExplainArgs {
    /// The profile: a name, a file, `-` or pid:N
    #[arg(value_name = "PROFILE")]
    profile: String,
    /// The call, by name or number
    #[arg(value_name = "SYSCALL")]
    call: String,
    /// Its arguments: numbers or names, as AF_ALG or 0x10; the rest is 0
    #[arg(value_name = "ARGS", num_args = 0..=6, allow_negative_numbers = true)]
    args: Vec<String>,
    #[command(flatten)]
    target: TargetArgs,
    #[command(flatten)]
    format: FormatArgs,
}

/// Runs the compiled filters on one call and shows the path
///
/// For each filter, from the newest to the oldest, the instructions that are executed. Rules are compiled as CodeBeaker does; raw filters
/// run as they are.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  codebeaker seccomp simulate default socket AF_UNIX SOCK_STREAM
  codebeaker seccomp simulate filter.bpf openat2
  codebeaker seccomp simulate strict getpid --entry i386")]
pub(super) struct SimulateArgs {
    #[command(flatten)]
    call: ExplainArgs,
    /// The entry that is used
    #[arg(long, value_enum, value_name = "ENTRY", default_value = "native")]
    entry: Entry,
}

/// Ways into the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Entry {
    /// The architecture's own
    Native,
    /// The 32-bit entry of x86
    I386,
    /// The native entry with the x32 bit
    X32,
}

/// The number and name of a call, and its arguments.
fn call_of(arch: Arch, call: &str, args: &[String]) -> Result<(u32, String, [u64; 6]), CliError> {
    let by_number = symbols::parse_number(call).and_then(|number| u32::try_from(number).ok());
    let number = arch.number(call).or(by_number).ok_or_else(|| {
        let hint = suggestion(call).map_or_else(
            || "`codebeaker seccomp groups @known` lists names".to_owned(),
            |near| format!("did you mean `{near}`?"),
        );
        CliError::usage(format!("{} has no system call `{call}`", arch.oci_name())).hint(hint)
    })?;
    let name = arch.name(number).map_or_else(|| format!("#{number}"), str::to_owned);
    let mut values = [0; 6];
    for (index, text) in args.iter().enumerate() {
        let level = (index == 2).then(|| values[1]);
        values[index] = symbols::parse(&name, index as u8, text, level).ok_or_else(|| {
            let known = symbols::names(&name, index as u8);
            let hint =
                if known.is_empty() { "write a number".to_owned() } else { format!("a number, or of {}", known.join(", ")) };
            CliError::usage(format!("argument {index} of {name}: `{text}` is not known")).hint(hint)
        })?;
    }
    Ok((number, name, values))
}

pub(super) fn explain(common: &CommonArgs, args: &ExplainArgs) -> Result<(), CliError> {
    let source = load(common, &args.profile, &args.target)?;
    let (number, name, values) = call_of(source.policy.arch(), &args.call, &args.args)?;
    let told = explain::explain(&source.policy, number, &name, values);
    if args.format.format == OutputFormat::Json {
        let others: Vec<_> =
            told.otherwise.iter().map(|(when, verdict)| json!({ "when": when, "verdict": verdict.to_string() })).collect();
        return emit_json(&json!({
            "profile": source.name, "call": told.call, "number": number, "verdict": told.verdict.word(), "text": told.verdict.to_string(),
            "rule": told.rule, "conditions": told.conditions, "reason": told.reason, "meaning": told.meaning,
            "otherwise": others, "groups": told.groups, "reading": source.reading(),
        }));
    }
    let mut text = vec![format!("{}: {}\n", told.call, told.verdict)];
    let rule = told.rule.unwrap_or_else(|| "no rule matches: the default".to_owned());
    let when = if told.conditions.is_empty() { String::new() } else { format!(" where {}", told.conditions.join(" and ")) };
    let rule = if source.document.is_some() {
        format!("{rule}{when}")
    } else {
        "a raw filter has no rules; `simulate` shows the path".to_owned()
    };
    text.push(format!("  rule     {rule}\n"));
    text.push(format!("  reason   {}\n", told.reason.unwrap_or_else(|| "none is written down".to_owned())));
    let lead = if told.verdict.permits() { "allowed, it means" } else { "to allow it would mean" };
    text.push(format!("  {lead}: {}\n", told.meaning));
    for (when, verdict) in &told.otherwise {
        text.push(format!("  else     {verdict} {}\n", if when.is_empty() { "for all arguments" } else { when }));
    }
    text.push(format!("  sets     {}\n", told.groups.join(" ")));
    emit(&text.concat())
}

pub(super) fn simulate(common: &CommonArgs, args: &SimulateArgs) -> Result<(), CliError> {
    const AUDIT_ARCH_I386: u32 = 0x4000_0003;
    const X32_BIT: u32 = 0x4000_0000;
    let source = load(common, &args.call.profile, &args.call.target)?;
    let filters = programs(&source)?;
    let (number, name, values) = call_of(source.policy.arch(), &args.call.call, &args.call.args)?;
    let native = Invocation::native(source.policy.arch(), number, values);
    let call = match args.entry {
        Entry::Native => native,
        Entry::I386 => Invocation { arch: AUDIT_ARCH_I386, ..native },
        Entry::X32 => Invocation { number: number | X32_BIT, ..native },
    };
    let verdict = stacked(&filters, &call);
    let newest_first: Vec<Path> = filters.iter().enumerate().rev().map(|(place, filter)| path(place, filter, &call)).collect();
    let shown = explain::call_text(&name, values);
    if args.call.format.format == OutputFormat::Json {
        let paths: Vec<_> = newest_first
            .iter()
            .map(|(place, steps, verdict)| json!({ "filter": place, "verdict": verdict.to_string(), "path": steps.iter().map(|(at, text)| json!({ "at": at, "text": text })).collect::<Vec<_>>() }))
            .collect();
        return emit_json(
            &json!({ "profile": source.name, "call": shown, "verdict": verdict.word(), "text": verdict.to_string(), "filters": paths }),
        );
    }
    let mut text = vec![format!("{shown}: {verdict}\n")];
    for (place, steps, said) in &newest_first {
        text.push(format!(
            "filter {place} of {}, {} of {} instructions: {said}\n",
            filters.len(),
            steps.len(),
            filters[*place].instructions().len()
        ));
        text.extend(steps.iter().map(|(at, step)| format!("  {at:4}  {step}\n")));
    }
    emit(&text.concat())
}

/// A filter's place in the stack, the instructions that it executes, and what it says.
type Path = (usize, Vec<(usize, String)>, Verdict);

fn path(place: usize, filter: &Program, call: &Invocation) -> Path {
    let mut steps = Vec::new();
    let value = filter.trace(call, |at, accumulator| {
        steps.push((at, format!("{:<44} A = {accumulator:#x}", filter.operation(at).to_string())));
    });
    (place, steps, Verdict::from_return(value))
}

/// What a name on the command line is for, to those who ask for filters.
pub(super) fn describe(source: &Source) -> String {
    format!("{} ({})", source.name, source.reading())
}
