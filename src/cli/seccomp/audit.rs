//! `codebeaker seccomp audit`: findings, for people, programs and code scanners.

use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use clap::{Args, ValueEnum};
use serde_json::{Value, json};

use super::super::error::chain;
use super::super::output::{emit, emit_json, warn};
use super::super::{CliError, CommonArgs};
use super::source::{Source, TargetArgs, load};
use crate::seccomp::audit::waiver::{Day, Waivers};
use crate::seccomp::audit::{self, Finding, Severity, catalogue, sarif};

/// Looks for what is wrong with a profile
///
/// Findings have stable ids, a severity (high, medium, low, note), the reason and the mend. `--list` prints all there are. A waiver file
/// takes findings away with a reason until a day: see docs/seccomp.md.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  codebeaker seccomp audit docker.json
  codebeaker seccomp audit default --waivers profiles/seccomp/waivers.toml --fail-on low
  codebeaker seccomp audit profile.yaml --format sarif > seccomp.sarif
  codebeaker seccomp audit --list

Exit codes: 0 nothing at or above --fail-on, 1 something, 2 the call is wrongly written")]
pub(super) struct AuditArgs {
    /// The profile: a name, a file, `-` or pid:N
    #[arg(value_name = "PROFILE", required_unless_present = "list")]
    profile: Option<String>,
    /// List every finding that there can be
    #[arg(long, conflicts_with = "profile")]
    list: bool,
    /// Exit with 1 for a finding of this severity or worse [default: never]
    #[arg(long, value_name = "SEVERITY")]
    fail_on: Option<Severity>,
    /// Leave out findings that are less severe
    #[arg(long, value_name = "SEVERITY", default_value = "note")]
    least: Severity,
    /// Waivers, TOML
    #[arg(long, value_name = "FILE")]
    waivers: Option<PathBuf>,
    /// How to print it
    #[arg(short = 'o', long = "format", alias = "output", value_name = "FORMAT", value_enum, default_value = "text")]
    format: Form,
    #[command(flatten)]
    target: TargetArgs,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Form {
    /// For people
    Text,
    /// For programs
    Json,
    /// For code scanners, SARIF 2.1.0
    Sarif,
}

pub(super) fn audit(common: &CommonArgs, args: &AuditArgs) -> Result<u8, CliError> {
    let Some(profile) = args.profile.as_ref().filter(|_| !args.list) else { return list(args.format).map(|()| 0) };
    let source = load(common, profile, &args.target)?;
    let mut findings = audit::audit(&source.policy, source.document.as_ref(), source.target());
    if let Some(path) = &args.waivers {
        let text = std::fs::read_to_string(path)
            .map_err(|error| CliError::new(format!("reading {} failed: {error}", path.display())))?;
        let waivers = Waivers::parse(&text).map_err(|error| CliError::new(format!("{}: {}", path.display(), chain(&error))))?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        for line in waivers.apply(&source.name, Day::of_unix_time(now.as_secs()), &mut findings) {
            warn(&line);
        }
    }
    findings.retain(|finding| finding.check.severity >= args.least);
    match args.format {
        Form::Text => emit(&text(&source, &findings))?,
        Form::Json => {
            emit_json(&json!({ "profile": source.name, "findings": findings.iter().map(as_json).collect::<Vec<_>>() }))?;
        }
        Form::Sarif => emit_json(&sarif::sarif(&source.uri, &findings))?,
    }
    let bad = |finding: &Finding| finding.waived.is_none() && args.fail_on.is_some_and(|least| finding.check.severity >= least);
    Ok(u8::from(findings.iter().any(bad)))
}

fn as_json(finding: &Finding) -> Value {
    json!({
        "id": finding.check.id, "name": finding.check.name, "severity": finding.check.severity.word(), "subject": finding.subject,
        "detail": finding.detail, "field": finding.field, "condition": finding.check.condition, "why": finding.check.why,
        "mend": finding.check.mend, "reference": finding.check.reference, "waived": finding.waived,
    })
}

fn text(source: &Source, findings: &[Finding]) -> String {
    let (waived, open): (Vec<&Finding>, Vec<&Finding>) = findings.iter().partition(|finding| finding.waived.is_some());
    let mut text: Vec<String> = Vec::new();
    let mut last = "";
    for finding in &open {
        let check = finding.check;
        if check.id != last {
            text.push(format!("{} {:<6} {}: {}\n", check.id, check.severity, check.name, check.condition));
            text.push(format!("         why   {}\n         mend  {} [{}]\n", check.why, check.mend, check.reference));
            last = check.id;
        }
        let field = finding.field.as_ref().map(|field| format!(" ({field})")).unwrap_or_default();
        text.push(format!("       - {}{field}\n", finding.detail));
    }
    let count = |severity| open.iter().filter(|finding| finding.check.severity == severity).count();
    let counts: Vec<String> =
        Severity::ALL.into_iter().rev().map(|severity| format!("{} {severity}", count(severity))).collect();
    text.push(format!("{}: {}, {} waived\n", source.name, counts.join(", "), waived.len()));
    text.concat()
}

fn list(format: Form) -> Result<(), CliError> {
    if format == Form::Text {
        let row = |check: &audit::Check| format!("{} {:<6} {:<22} {}\n", check.id, check.severity, check.name, check.condition);
        return emit(&catalogue::CHECKS.iter().map(row).collect::<Vec<_>>().concat());
    }
    let row = |check: &audit::Check| json!({ "id": check.id, "name": check.name, "severity": check.severity.word(), "condition": check.condition, "why": check.why, "mend": check.mend, "reference": check.reference });
    emit_json(&json!({ "checks": catalogue::CHECKS.iter().map(row).collect::<Vec<_>>() }))
}
