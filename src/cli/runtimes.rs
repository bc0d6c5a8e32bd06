//! `codebeaker runtimes`: what runs code here, and why what is missing is missing.

use clap::Args;
use serde_json::{Value, json};

use super::output::{FormatArgs, OutputFormat, emit_json, emit_table};
use super::{CliError, CommonArgs, compose};
use crate::session::api::RuntimeRow;

/// Lists the runtimes, and why what is missing is missing
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  codebeaker runtimes
  codebeaker runtimes -o json | jq '.runtimes[] | {type, available, reason}'")]
pub(super) struct RuntimesArgs {
    #[command(flatten)]
    format: FormatArgs,
}

pub(super) fn runtimes(common: &CommonArgs, args: &RuntimesArgs) -> Result<(), CliError> {
    let rows = compose::runtime_rows(&common.load()?.config)?;
    match args.format.format {
        OutputFormat::Json => emit_json(&json!({ "runtimes": rows.iter().map(as_json).collect::<Vec<_>>() })),
        OutputFormat::Table => {
            emit_table(&["type", "available", "startup", "memory", "isolation", "languages"], rows.iter().map(as_row))
        }
    }
}

/// As in `runtime.list`.
fn as_json(row: &RuntimeRow) -> Value {
    let features = &row.features;
    let mut object = json!({
        "name": row.name,
        "type": row.kind.name(),
        "available": row.reason.is_none(),
        "languages": row.languages,
        "commands": row.commands.iter().map(|command| command.name()).collect::<Vec<_>>(),
        "capabilities": {
            "startupTimeMs": features.startup_time_ms,
            "memoryOverheadMB": features.memory_overhead_mb,
            "isolationLevel": features.isolation_level,
            "supportsFilesystemPersistence": features.filesystem_persistence,
            "supportsNetworkAccess": features.network_access,
            "maxConcurrentExecutions": features.concurrent_executions_max,
            "measured": features.measured,
        },
    });
    if let Some(reason) = &row.reason {
        object["reason"] = json!(reason);
    }
    object
}

/// A runtime that can't serve has no figures to show: a dash is truer than a zero.
fn as_row(row: &RuntimeRow) -> Vec<String> {
    let features = &row.features;
    let figure = |text: String| if row.reason.is_none() { text } else { "-".to_owned() };
    // What was not measured on this host is an estimate.
    let about = if features.measured { "" } else { "~" };
    vec![
        row.kind.name().to_owned(),
        row.reason.as_ref().map_or_else(|| "yes".to_owned(), |reason| format!("no: {reason}")),
        figure(format!("{about}{:.1} ms", features.startup_time_ms)),
        figure(format!("{about}{:.1} MiB", features.memory_overhead_mb)),
        figure(format!("{}/10", features.isolation_level)),
        if row.languages.is_empty() { "-".to_owned() } else { row.languages.join(",") },
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::CommandKind;
    use crate::runtime::RuntimeKind;
    use crate::runtime::features::Features;

    fn row(reason: Option<&str>) -> RuntimeRow {
        RuntimeRow {
            name: "native".into(),
            kind: RuntimeKind::NativeProcess,
            reason: reason.map(str::to_owned),
            languages: vec!["bash".into(), "python".into()],
            commands: vec![CommandKind::WriteFile],
            features: Features {
                startup_time_ms: 0.94,
                memory_overhead_mb: 1.0,
                isolation_level: 8,
                filesystem_persistence: true,
                network_access: false,
                concurrent_executions_max: 16,
                measured: true,
            },
        }
    }

    #[test]
    fn a_missing_runtime_says_why_and_an_available_one_has_no_reason() {
        let missing = as_row(&row(Some("no user namespaces")));
        assert_eq!(missing[1..5], ["no: no user namespaces", "-", "-", "-"]);
        assert_eq!(as_json(&row(Some("x")))["reason"], "x");
        assert_eq!(as_row(&row(None)), ["NativeProcess", "yes", "0.9 ms", "1.0 MiB", "8/10", "bash,python"]);
        let mut estimated = row(None);
        estimated.features.measured = false;
        assert_eq!(as_row(&estimated)[2..4], ["~0.9 ms", "~1.0 MiB"]);
        let wire = as_json(&row(None));
        assert!(wire.get("reason").is_none());
        assert_eq!(wire["capabilities"]["startupTimeMs"], 0.94);
        assert_eq!(wire["commands"], json!(["write_file"]));
    }
}
