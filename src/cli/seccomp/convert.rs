//! `codebeaker seccomp convert`: a profile in another format, with what is lost named on standard error.

use std::path::PathBuf;

use clap::Args;

use super::super::output::{emit, note, warn};
use super::super::{CliError, CommonArgs};
use super::source::{FormatWord, Source, TargetArgs, load};
use super::verify::programs;
use crate::seccomp::document::{Document, Loss};
use crate::seccomp::lift::lift;
use crate::seccomp::policy::Policy;
use crate::seccomp::write::{self, Written};

/// Writes a profile in another format, and names what is lost
///
/// The text goes to standard output or to --out; each loss is a line on standard error. What the other format would decide
/// otherwise is an error. Raw BPF is a stack of filters: --out NAME writes NAME.0.bpf, NAME.1.bpf … in the order of installation.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  codebeaker seccomp convert strict --to spo > strict.yaml
  codebeaker seccomp convert vmm.json --to oci
  codebeaker seccomp convert default --to bpf --out default
  codebeaker seccomp convert pid:1234 --to oci --strict-losses")]
pub(super) struct ConvertArgs {
    /// The profile: a name, a file, `-` or pid:N
    #[arg(value_name = "PROFILE")]
    profile: String,
    /// The format to write
    #[arg(long, value_enum, value_name = "FORMAT")]
    to: FormatWord,
    /// File to write; for bpf the beginning of the names
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Fail when anything is lost
    #[arg(long)]
    strict_losses: bool,
    #[command(flatten)]
    target: TargetArgs,
}

pub(super) fn convert(common: &CommonArgs, args: &ConvertArgs) -> Result<(), CliError> {
    let source = load(common, &args.profile, &args.target)?;
    if args.to == FormatWord::Bpf {
        return raw(&source, args);
    }
    let lifted = lifted(&source);
    let document = source.document.as_ref().or(lifted.as_ref()).ok_or_else(|| CliError::new("there is nothing to convert"))?;
    let written = match args.to {
        FormatWord::Oci => write::oci(document),
        FormatWord::Spo => write::spo(document, &object_name(&source.name), source.target()),
        FormatWord::Seccompiler | FormatWord::Bpf => write::seccompiler(document, source.target())
            .map_err(|error| CliError::new(error.to_string()).hint("oci and spo can say it"))?,
    };
    tell(&written.losses, args)?;
    save(args, &written)
}

/// Rules read back from raw filters.
fn lifted(source: &Source) -> Option<Document> {
    match &source.policy {
        Policy::Programs { arch, filters } => Some(lift(filters, *arch)),
        Policy::Rules(_) => None,
    }
}

/// A name that Kubernetes takes.
fn object_name(name: &str) -> String {
    let stem = name.rsplit('/').next().unwrap_or(name).split('.').next().unwrap_or(name);
    let plain: String = stem.chars().map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' }).collect();
    let trimmed = plain.trim_matches('-');
    if trimmed.is_empty() { "profile".to_owned() } else { trimmed.to_owned() }
}

fn tell(losses: &[Loss], args: &ConvertArgs) -> Result<(), CliError> {
    for loss in losses {
        note(&format!("lost: {}: {}\n", loss.field, loss.what));
    }
    if args.strict_losses && !losses.is_empty() {
        return Err(CliError::new(format!("{} things would be lost", losses.len()))
            .hint("without --strict-losses it is written all the same"));
    }
    Ok(())
}

fn save(args: &ConvertArgs, written: &Written) -> Result<(), CliError> {
    match &args.out {
        None => emit(&written.text),
        Some(path) => std::fs::write(path, &written.text)
            .map_err(|error| CliError::new(format!("writing {} failed: {error}", path.display()))),
    }
}

fn raw(source: &Source, args: &ConvertArgs) -> Result<(), CliError> {
    let filters = programs(source)?;
    let out = args.out.as_ref().ok_or_else(|| CliError::usage("raw filters go to files").hint("name them with --out NAME"))?;
    let mut losses = source.document.iter().flat_map(|document| document.losses.clone()).collect::<Vec<_>>();
    if source.document.is_some() {
        losses.push(Loss::at("comment", "every written reason: a filter has none"));
    }
    tell(&losses, args)?;
    for (place, filter) in filters.iter().enumerate() {
        let path = PathBuf::from(format!("{}.{place}.bpf", out.display()));
        std::fs::write(&path, filter.bytes())
            .map_err(|error| CliError::new(format!("writing {} failed: {error}", path.display())))?;
    }
    if filters.len() > 1 {
        warn(&format!("{} filters form one stack: install them in the order of their numbers", filters.len()));
    }
    Ok(())
}
