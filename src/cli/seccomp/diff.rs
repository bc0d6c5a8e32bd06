//! `codebeaker seccomp diff`: what two profiles decide differently.

use clap::Args;
use serde_json::json;

use super::super::output::{FormatArgs, OutputFormat, emit, emit_json};
use super::super::{CliError, CommonArgs};
use super::explain::describe;
use super::source::{TargetArgs, load};
use crate::seccomp::diff;

/// Compares what two profiles decide: calls, arguments, actions
///
/// They may be of different formats: a profile against its compiled filters, a live process against the committed copy of its
/// baseline.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  codebeaker seccomp diff strict default
  codebeaker seccomp diff baseline.json docker.json --cap CAP_SYS_ADMIN
  codebeaker seccomp diff default pid:1234 -o json | jq '.differences[] | select(.kind == \"wider\")'

Exit codes as of diff: 0 they decide alike, 1 they differ, 2 the call is wrongly written")]
pub(super) struct DiffArgs {
    /// The profile before, such as a committed baseline
    #[arg(value_name = "BEFORE")]
    before: String,
    /// The profile after
    #[arg(value_name = "AFTER")]
    after: String,
    #[command(flatten)]
    target: TargetArgs,
    #[command(flatten)]
    format: FormatArgs,
}

pub(super) fn diff(common: &CommonArgs, args: &DiffArgs) -> Result<u8, CliError> {
    let before = load(common, &args.before, &args.target)?;
    let after = load(common, &args.after, &args.target)?;
    let found = diff::diff(&before.policy, &after.policy);
    if args.format.format == OutputFormat::Json {
        let rows: Vec<_> = found
            .iter()
            .map(|difference| {
                let samples: Vec<_> = difference.samples.iter().map(|(call, one, two)| json!({ "call": call, "before": one.to_string(), "after": two.to_string() })).collect();
                json!({ "call": difference.call, "kind": difference.kind.word(), "allArguments": difference.whole, "samples": samples })
            })
            .collect();
        emit_json(&json!({ "before": before.name, "after": after.name, "differences": rows }))?;
    } else if !found.is_empty() {
        let mut text = vec![format!("--- {}\n+++ {}\n", describe(&before), describe(&after))];
        for difference in &found {
            text.push(format!("{} ({})\n", difference.call, difference.kind.word()));
            text.extend(difference.samples.iter().map(|(call, one, two)| format!("  {call}: {one} -> {two}\n")));
        }
        emit(&text.concat())?;
    }
    Ok(u8::from(!found.is_empty()))
}
