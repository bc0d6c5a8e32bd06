//! `codebeaker plan`: the steps that build a sandbox, without carrying them out.

use clap::Args;

use super::output::{FormatArgs, OutputFormat, emit_json, emit_table};
use super::{CliError, CommonArgs, compose};

/// Prints the steps that build a sandbox, without running them
///
/// One system call a line, in the order in which launcher, init and program carry them out on this host.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  codebeaker plan
  codebeaker plan --profile strict --image python-slim
  diff <(codebeaker plan -p strict) <(codebeaker plan -p default)")]
pub(super) struct PlanArgs {
    /// Profile: strict, default, permissive or the operator's own
    #[arg(short, long, value_name = "P", default_value = "default")]
    profile: String,
    /// Image of the root file system
    #[arg(short, long, value_name = "I", default_value = "host")]
    image: String,
    #[command(flatten)]
    format: FormatArgs,
}

pub(super) fn plan(common: &CommonArgs, args: &PlanArgs) -> Result<(), CliError> {
    let rows = compose::plan(&common.load()?.config, &args.profile, &args.image)?;
    match args.format.format {
        OutputFormat::Json => emit_json(&serde_json::json!({ "profile": args.profile, "image": args.image, "steps": rows })),
        OutputFormat::Table => emit_table(
            &["#", "process", "wall", "call"],
            (1..).zip(&rows).map(|(number, row): (usize, _)| {
                vec![number.to_string(), row.process.clone(), row.wall.clone(), row.call.clone()]
            }),
        ),
    }
}
