//! `codebeaker seccomp`: profiles that can be read, compared and proved. Files are read here, everything is decided in `crate::seccomp`.
//!
//! Invariant: exit codes are for scripts: 0 nothing to say, 1 something found (or the call failed, with an `error:` line), 2 the call
//! is wrongly written.

mod audit;
mod convert;
mod diff;
mod explain;
mod groups;
mod live;
mod record;
mod session;
mod show;
mod source;
mod tracer;
mod verify;

use clap::{Args, Subcommand};

use super::{CliError, CommonArgs};

/// Reads, explains, audits, compares and proves seccomp profiles
///
/// A PROFILE is a name (strict, default, permissive or the operator's own), a file (OCI or Docker JSON, seccompiler JSON,
/// a SeccompProfile in YAML, raw BPF; several BPF files of one stack are separated by commas), `-` for standard input, or
/// `pid:N` for the filters of a running process.
#[derive(Debug, Args)]
pub(super) struct SeccompArgs {
    #[command(subcommand)]
    call: Call,
}

#[derive(Debug, Subcommand)]
enum Call {
    Show(show::ShowArgs),
    Explain(explain::ExplainArgs),
    Groups(groups::GroupsArgs),
    Convert(convert::ConvertArgs),
    Audit(audit::AuditArgs),
    Diff(diff::DiffArgs),
    Simulate(explain::SimulateArgs),
    Verify(verify::VerifyArgs),
    Record(record::RecordArgs),
    Minimise(record::MinimiseArgs),
}

pub(super) fn seccomp(common: &CommonArgs, args: SeccompArgs) -> Result<u8, CliError> {
    match args.call {
        Call::Show(args) => show::show(common, &args).map(|()| 0),
        Call::Explain(args) => explain::explain(common, &args).map(|()| 0),
        Call::Groups(args) => groups::groups(&args).map(|()| 0),
        Call::Convert(args) => convert::convert(common, &args).map(|()| 0),
        Call::Audit(args) => audit::audit(common, &args),
        Call::Diff(args) => diff::diff(common, &args),
        Call::Simulate(args) => explain::simulate(common, &args).map(|()| 0),
        Call::Verify(args) => verify::verify(common, &args),
        Call::Record(args) => record::record(common, &args),
        Call::Minimise(args) => record::minimised(common, &args).map(|()| 0),
    }
}
