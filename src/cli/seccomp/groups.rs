//! `codebeaker seccomp groups`: systemd's sets.

use clap::Args;
use serde_json::json;

use super::super::CliError;
use super::super::output::{FormatArgs, OutputFormat, emit, emit_json, emit_table};
use crate::seccomp::groups::{all, find};

/// Lists the sets of system calls, or one set's calls
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  codebeaker seccomp groups
  codebeaker seccomp groups @mount")]
pub(super) struct GroupsArgs {
    /// A set, as @mount
    #[arg(value_name = "SET")]
    group: Option<String>,
    #[command(flatten)]
    format: FormatArgs,
}

/// The error for a set that does not exist.
pub(super) fn unknown(name: &str) -> CliError {
    CliError::usage(format!("there is no set `{name}`")).hint("`codebeaker seccomp groups` lists them")
}

pub(super) fn groups(args: &GroupsArgs) -> Result<(), CliError> {
    if let Some(name) = &args.group {
        let group = find(name).ok_or_else(|| unknown(name))?;
        return match args.format.format {
            OutputFormat::Json => emit_json(&json!({ "name": group.name, "about": group.about, "calls": group.members })),
            OutputFormat::Table => emit(&group.members.iter().map(|call| format!("{call}\n")).collect::<Vec<_>>().concat()),
        };
    }
    match args.format.format {
        OutputFormat::Json => {
            let rows: Vec<_> =
                all().iter().map(|group| json!({ "name": group.name, "about": group.about, "calls": group.members })).collect();
            emit_json(&json!({ "groups": rows }))
        }
        OutputFormat::Table => emit_table(
            &["set", "calls", "about"],
            all().iter().map(|group| vec![group.name.to_owned(), group.members.len().to_string(), group.about.to_owned()]),
        ),
    }
}
