//! `codebeaker completion`: a script for the shell.

use clap::{Args, CommandFactory};
use clap_complete::Shell;

use super::output::emit;
use super::{Cli, CliError};

/// Prints a completion script for a shell
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  codebeaker completion bash > /etc/bash_completion.d/codebeaker
  codebeaker completion zsh > ~/.zfunc/_codebeaker
  source <(codebeaker completion bash)")]
pub(super) struct CompletionArgs {
    /// For which shell
    #[arg(value_enum)]
    shell: Shell,
}

pub(super) fn completion(args: &CompletionArgs) -> Result<(), CliError> {
    // Into memory first: the generator panics when its writer fails.
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "codebeaker", &mut script);
    emit(&String::from_utf8_lossy(&script))
}
