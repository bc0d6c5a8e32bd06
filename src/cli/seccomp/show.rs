//! `codebeaker seccomp show`: a profile on one page.

use clap::Args;
use serde_json::{Value, json};

use super::super::output::{FormatArgs, OutputFormat, emit, emit_json};
use super::super::{CliError, CommonArgs};
use super::source::{Source, TargetArgs, load};
use crate::seccomp::explain::Said;
use crate::seccomp::groups;
use crate::seccomp::policy::Policy;
use crate::seccomp::summary::{Summary, summary};

/// Shows what a profile lets through, refuses and kills
///
/// For the target's architecture and kernel: calls by verdict, conditions on arguments by symbolic names, the default, foreign
/// entries, and the attack surface as N of M calls.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  codebeaker seccomp show default
  codebeaker seccomp show docker.json --cap CAP_SYS_ADMIN --kernel 5.10 --arch aarch64
  codebeaker seccomp show strict --group @network-io
  codebeaker seccomp show filter.bpf -o json | jq .surface")]
pub(super) struct ShowArgs {
    /// The profile: a name, a file, `-` or pid:N
    #[arg(value_name = "PROFILE")]
    profile: String,
    /// Only calls of this set
    #[arg(long, value_name = "SET")]
    group: Option<String>,
    #[command(flatten)]
    target: TargetArgs,
    #[command(flatten)]
    format: FormatArgs,
}

pub(super) fn show(common: &CommonArgs, args: &ShowArgs) -> Result<(), CliError> {
    let source = load(common, &args.profile, &args.target)?;
    let mut page = summary(&source.policy);
    if let Some(name) = &args.group {
        let group = groups::find(name).ok_or_else(|| super::groups::unknown(name))?;
        page.always.values_mut().for_each(|calls| calls.retain(|call| group.members.contains(call)));
        page.always.retain(|_, calls| !calls.is_empty());
        page.depends.retain(|(call, _)| group.members.contains(call));
    }
    match args.format.format {
        OutputFormat::Json => emit_json(&as_json(&source, &page)),
        OutputFormat::Table => emit(&as_text(&source, &page)),
    }
}

/// Columns of a list of names.
const WIDTH: usize = 100;

fn as_text(source: &Source, page: &Summary) -> String {
    let mut text = vec![format!(
        "{}: {} for {:?}, {}\nattack surface: {} of {} calls let through, {} of them for some arguments only\nunknown calls: {}\n",
        source.name,
        source.uri,
        source.policy.arch(),
        source.reading(),
        page.open,
        page.known,
        page.open_in_part,
        page.unknown
    )];
    if let Policy::Rules(set) = &source.policy
        && !set.foreign.is_empty()
    {
        text.push(format!("other entries named by the file: {}\n", set.foreign.join(", ")));
    }
    for (verdict, calls) in &page.always {
        text.push(format!("\n{verdict} ({}):\n{}", calls.len(), wrapped(calls)));
    }
    if !page.depends.is_empty() {
        text.push(format!("\nby arguments ({}):\n", page.depends.len()));
    }
    for (call, cases) in &page.depends {
        text.push(format!("  {call}\n"));
        for case in cases {
            let reason = case.reason.as_ref().map(|reason| format!("  # {reason}")).unwrap_or_default();
            text.push(format!("    {:<14} {}{reason}\n", case.verdict.to_string(), case.when));
        }
    }
    text.concat()
}

fn wrapped(calls: &[&str]) -> String {
    let mut text = String::new();
    let mut column = 0;
    for call in calls {
        if column > 0 && column + call.len() > WIDTH {
            text.push('\n');
            column = 0;
        }
        let lead = if column == 0 { "  " } else { " " };
        text.push_str(lead);
        text.push_str(call);
        column += lead.len() + call.len();
    }
    text.push('\n');
    text
}

fn as_json(source: &Source, page: &Summary) -> Value {
    let case = |said: &Said| json!({ "when": said.when, "verdict": said.verdict.word(), "text": said.verdict.to_string(), "rule": said.rule, "reason": said.reason });
    let always = page.always.iter().flat_map(|(verdict, calls)| {
        calls.iter().map(move |call| json!({ "call": call, "groups": groups::of(call), "verdict": verdict.word(), "text": verdict.to_string() }))
    });
    let depends = page.depends.iter().map(|(call, cases)| {
        json!({ "call": call, "groups": groups::of(call), "verdict": "depends", "cases": cases.iter().map(case).collect::<Vec<_>>() })
    });
    json!({
        "profile": source.name,
        "architecture": source.policy.arch().oci_name(),
        "reading": source.reading(),
        "unknown": page.unknown.to_string(),
        "surface": { "open": page.open, "openInPart": page.open_in_part, "known": page.known },
        "calls": always.chain(depends).collect::<Vec<_>>(),
    })
}
