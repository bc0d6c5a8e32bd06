//! The command line: one file per subcommand.
//!
//! Invariants: data goes to standard output, all else to standard error (`output`); a failure is one `error:` and one `hint:`
//! line with an exit code (`error`); what needs the other parts of CodeBeaker is put together in `compose` and nowhere else.
//! Read `run` first, then `client` for what talks to a server.

pub mod output;

mod causes;
mod client;
mod close;
mod completion;
mod compose;
mod config;
mod doctor;
mod engines;
mod error;
mod exec;
mod image;
mod languages;
mod plan;
mod ps;
mod run;
mod runtimes;
mod seccomp;
mod serve;
mod service_manager;
mod streams;
mod token;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

pub use error::CliError;
pub use run::{Streams, run_in};

use crate::config::{FlagOverrides, Loaded, Sources};

/// Runs untrusted code in sandboxes, without a Docker daemon.
#[derive(Debug, Parser)]
#[command(name = "codebeaker", version, max_term_width = 100, disable_help_subcommand = true)]
#[command(after_help = "\
Examples:
  codebeaker doctor                            what this host offers, and what mends the rest
  codebeaker run -l python -e 'print(6 * 7)'   one program in a fresh sandbox, no server needed
  codebeaker serve                             the server, at ws://127.0.0.1:5000

Every call explains itself: codebeaker CALL --help")]
pub struct Cli {
    #[command(flatten)]
    common: CommonArgs,
    #[command(subcommand)]
    call: Call,
}

/// What every call takes.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct CommonArgs {
    /// Configuration file [default: $CODEBEAKER_CONFIG, else /etc/codebeaker/config.toml for root,
    /// else $XDG_CONFIG_HOME/codebeaker/config.toml]
    #[arg(long, global = true, value_name = "FILE", help_heading = "Configuration", hide_short_help = true)]
    config: Option<PathBuf>,
    /// Where state lives [default: $CODEBEAKER_STATE_DIR, else /var/lib/codebeaker for root, else
    /// $XDG_DATA_HOME/codebeaker]
    #[arg(long, global = true, value_name = "DIR", help_heading = "Configuration", hide_short_help = true)]
    state_dir: Option<PathBuf>,
}

impl CommonArgs {
    /// The configuration without flags of a subcommand.
    fn load(&self) -> Result<Loaded, CliError> {
        self.load_with(FlagOverrides::default())
    }

    /// The configuration with a subcommand's own flags.
    fn load_with(&self, flags: FlagOverrides) -> Result<Loaded, CliError> {
        let flags = FlagOverrides { state_dir: self.state_dir.clone(), ..flags };
        Ok(crate::config::load(Sources { file: self.config.clone(), flags })?)
    }
}

#[derive(Debug, Subcommand)]
enum Call {
    Serve(serve::ServeArgs),
    Run(run::RunArgs),
    Exec(exec::ExecArgs),
    Ps(ps::PsArgs),
    Close(close::CloseArgs),
    Image(image::ImageArgs),
    Languages(languages::LanguagesArgs),
    Runtimes(runtimes::RuntimesArgs),
    Engines(engines::EnginesArgs),
    Doctor(DoctorArgs),
    Plan(plan::PlanArgs),
    Seccomp(seccomp::SeccompArgs),
    Config(config::ConfigArgs),
    Token(token::TokenArgs),
    Completion(completion::CompletionArgs),
}

/// Checks what this host offers, and says what mends the rest
///
/// Each thing that a sandbox needs is really tried; every failure names its cause and the command that mends it. Nothing is
/// left behind. Exits with 1 when sandboxes can't be made here.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  codebeaker doctor
  codebeaker doctor --json | jq '.checks[] | select(.ok | not)'")]
struct DoctorArgs {
    /// The same as `-o json`
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    format: output::FormatArgs,
}

/// Parses the command line of this process, carries it out, and gives its exit code.
pub fn main() -> ExitCode {
    match Cli::try_parse() {
        Ok(cli) => carry_out(cli),
        Err(error) => {
            // Help and version go to standard output; a reader that went away has seen enough.
            error.print().ok();
            ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(error::USAGE))
        }
    }
}

fn carry_out(cli: Cli) -> ExitCode {
    let common = &cli.common;
    let outcome = match cli.call {
        Call::Serve(args) => serve::serve(common, args).map(|()| 0),
        Call::Run(args) => run::run(common, args),
        Call::Exec(args) => exec::exec(common, args),
        Call::Ps(args) => ps::ps(common, &args).map(|()| 0),
        Call::Close(args) => close::close(common, args).map(|()| 0),
        Call::Image(args) => image::image(common, args).map(|()| 0),
        Call::Languages(args) => languages::languages(common, &args).map(|()| 0),
        Call::Runtimes(args) => runtimes::runtimes(common, &args).map(|()| 0),
        Call::Engines(args) => engines::engines(common, args).map(|()| 0),
        Call::Doctor(args) => {
            let format = if args.json { output::OutputFormat::Json } else { args.format.format };
            return match common.load() {
                Ok(loaded) => doctor::run(format, &loaded.config.state_dir, loaded.config.sandbox.profile_dir.as_deref()),
                Err(error) => error.report(),
            };
        }
        Call::Plan(args) => plan::plan(common, &args).map(|()| 0),
        Call::Seccomp(args) => seccomp::seccomp(common, args),
        Call::Config(args) => config::config(common, &args).map(|()| 0),
        Call::Token(args) => token::token(common, args).map(|()| 0),
        Call::Completion(args) => completion::completion(&args).map(|()| 0),
    };
    match outcome {
        Ok(code) => ExitCode::from(code),
        Err(error) => error.report(),
    }
}

/// `NAME=VALUE` of `--env`.
fn parse_variable(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() && !text.contains('\0') => Ok((name.to_owned(), value.to_owned())),
        Some(_) | None => Err("write it as NAME=VALUE".to_owned()),
    }
}

#[cfg(test)]
mod tests;
