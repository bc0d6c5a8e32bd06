//! `codebeaker serve`: the server.
//!
//! Standard output holds one line, once connections are accepted; everything else goes to standard error.

use std::net::SocketAddr;

use clap::Args;

use super::output::emit;
use super::{CliError, CommonArgs, compose};
use crate::config::{FlagOverrides, LogFormat};
use crate::sys::{heap, memory};

/// From here on a buffer is a large message's, and its memory goes back to the host with it.
const LARGE_BLOCK_BYTES_MIN: i32 = 1 << 20;

/// Starts the server
///
/// WebSocket JSON-RPC at / and /ws/jsonrpc, /health, /metrics and /openrpc.json over HTTP, all on one port. When it accepts connections it prints `listening on ws://HOST:PORT`. On the first start it makes a token and stores it,
/// readable by its owner only, as `token` in the state directory. SIGTERM or Ctrl-C ends it: running commands get
/// a bounded grace, every session is closed, the exit code is 0.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  codebeaker serve
  codebeaker serve --listen 127.0.0.1:0            a free port, told on standard output
  codebeaker serve --config /etc/codebeaker/config.toml --state-dir /srv/codebeaker
  CODEBEAKER_SESSION_SESSIONS_MAX=64 codebeaker serve --log debug")]
pub(super) struct ServeArgs {
    /// Address and port; port 0 picks a free one [default: 127.0.0.1:5000]
    #[arg(long, value_name = "ADDR", value_parser = parse_address)]
    listen: Option<SocketAddr>,
    /// Take clients without a token, as one principal; on a loopback address only
    #[arg(long)]
    no_auth: bool,
    /// What to log: a level, or `codebeaker=debug,info` [default: info]
    #[arg(long, value_name = "FILTER")]
    log: Option<String>,
    /// How log lines look: text for people, json for programs [default: by the terminal]
    #[arg(long, value_name = "FORMAT", value_parser = parse_log_format)]
    log_format: Option<LogFormat>,
}

pub(super) fn serve(common: &CommonArgs, args: ServeArgs) -> Result<(), CliError> {
    let ServeArgs { listen, no_auth, log, log_format } = args;
    let flags = FlagOverrides { listen, no_auth, log_filter: log, log_format, state_dir: None };
    memory::map_blocks_from(LARGE_BLOCK_BYTES_MIN);
    heap::use_huge_pages();
    let loaded = common.load_with(flags)?;
    compose::serve(&loaded.config, &|address| emit(&format!("listening on ws://{address}\n")))
}

/// Names are not looked up: what is listened on shall not depend on a resolver.
fn parse_address(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| "write a numeric address and a port, such as 127.0.0.1:5000 or [::1]:5000".to_owned())
}

fn parse_log_format(text: &str) -> Result<LogFormat, String> {
    [LogFormat::Auto, LogFormat::Text, LogFormat::Json]
        .into_iter()
        .find(|format| format.name() == text)
        .ok_or_else(|| "it takes auto, text or json".to_owned())
}
