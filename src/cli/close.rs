//! `codebeaker close`: ends sessions of a running server.

use clap::Args;
use serde_json::json;

use super::client::{Client, ServerArgs, block_on};
use super::output::emit;
use super::{CliError, CommonArgs};

/// Closes sessions of a running server
///
/// Every process in them is ended. Returns when no process of them lives. A session that is closed already, or was never there, is no error.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  codebeaker close ses_3f9c…
  codebeaker close --all")]
pub(super) struct CloseArgs {
    /// The sessions
    #[arg(required_unless_present = "all", value_name = "SESSION")]
    sessions: Vec<String>,
    /// All of yours
    #[arg(long, conflicts_with = "sessions")]
    all: bool,
    #[command(flatten)]
    server: ServerArgs,
}

pub(super) fn close(common: &CommonArgs, args: CloseArgs) -> Result<(), CliError> {
    block_on(async {
        let mut client = Client::connect(common, &args.server).await?;
        let sessions = if args.all { all(&mut client).await? } else { args.sessions };
        for session in sessions {
            client.call("session.close", json!({ "sessionId": session })).await?;
            emit(&format!("{session}\n"))?;
        }
        client.close().await;
        Ok(())
    })
}

async fn all(client: &mut Client) -> Result<Vec<String>, CliError> {
    let answer = client.call("session.list", json!({})).await?;
    let rows = answer["sessions"].as_array().into_iter().flatten();
    Ok(rows.filter_map(|row| Some(row["sessionId"].as_str()?.to_owned())).collect())
}
