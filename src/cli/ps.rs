//! `codebeaker ps`: the sessions of a running server.

use clap::Args;
use serde_json::{Value, json};

use super::client::{Client, ServerArgs, block_on};
use super::output::{FormatArgs, OutputFormat, emit_json, emit_table};
use super::{CliError, CommonArgs};

/// As on the wire.
const STATES: [&str; 5] = ["Creating", "Active", "Idle", "Closing", "Closed"];

/// Lists your sessions on a running server
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  codebeaker ps
  codebeaker ps --language python --state idle
  codebeaker ps -o json | jq -r '.sessions[].sessionId'")]
pub(super) struct PsArgs {
    /// Only those of that language
    #[arg(short, long, value_name = "L")]
    language: Option<String>,
    /// Only those in that state; closed ones are shown for an hour, and only when asked for
    #[arg(long, value_name = "STATE", ignore_case = true, value_parser = STATES)]
    state: Option<String>,
    #[command(flatten)]
    format: FormatArgs,
    #[command(flatten)]
    server: ServerArgs,
}

pub(super) fn ps(common: &CommonArgs, args: &PsArgs) -> Result<(), CliError> {
    let answer = block_on(async {
        let mut client = Client::connect(common, &args.server).await?;
        let mut params = json!({});
        if let Some(language) = &args.language {
            params["language"] = json!(language);
        }
        if let Some(state) =
            STATES.iter().find(|state| args.state.as_ref().is_some_and(|asked| asked.eq_ignore_ascii_case(state)))
        {
            params["state"] = json!(state);
        }
        let answer = client.call("session.list", params).await?;
        client.close().await;
        Ok(answer)
    })?;
    match args.format.format {
        OutputFormat::Json => emit_json(&answer),
        OutputFormat::Table => emit_table(
            &["session", "language", "runtime", "state", "idle", "lifetime", "runs"],
            answer["sessions"].as_array().into_iter().flatten().map(row),
        ),
    }
}

fn row(session: &Value) -> Vec<String> {
    let text = |field: &str| session[field].as_str().unwrap_or("-").to_owned();
    let minutes = |field: &str| session[field].as_f64().map_or_else(|| "-".to_owned(), |minutes| span(minutes * 60.0));
    vec![
        text("sessionId"),
        text("language"),
        text("runtimeType"),
        text("state"),
        minutes("idleMinutes"),
        minutes("lifetimeMinutes"),
        session["executionCount"].to_string(),
    ]
}

/// Seconds for a person: `42s`, `5m`, `3h 10m`.
fn span(seconds: f64) -> String {
    let seconds = seconds.max(0.0) as u64;
    match (seconds / 3600, seconds / 60 % 60) {
        (0, 0) => format!("{seconds}s"),
        (0, minutes) => format!("{minutes}m"),
        (hours, minutes) => format!("{hours}h {minutes}m"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_shows_spans_for_people() {
        let session = json!({
            "sessionId": "ses_1", "language": "python", "runtimeType": "NativeProcess", "state": "Idle",
            "idleMinutes": 0.7, "lifetimeMinutes": 190.0, "executionCount": 4,
        });
        assert_eq!(row(&session), ["ses_1", "python", "NativeProcess", "Idle", "42s", "3h 10m", "4"]);
    }
}
