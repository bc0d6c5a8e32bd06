//! `codebeaker doctor`: tries what a sandbox needs on this host, and says what mends the rest.
//!
//! Invariant: it is called before any thread exists. Exit code 1 when the main job can't run. The trials themselves are in
//! `sandbox::doctor`.

use std::path::Path;
use std::process::ExitCode;

use serde_json::json;

use super::output::{OutputFormat, emit, emit_json};
use crate::sandbox::doctor::{Check, CheckState, examine};
use crate::sandbox::host::HostFacts;
use crate::sandbox::profile::Profiles;

/// Examines the host and prints what it found.
pub fn run(format: OutputFormat, state_dir: &Path, profile_dir: Option<&Path>) -> ExitCode {
    let facts = HostFacts::probe();
    let mut checks = examine(&facts, state_dir);
    checks.extend(profile_checks(profile_dir));
    let printed = match format {
        OutputFormat::Table => emit(&page(&checks)),
        OutputFormat::Json => {
            let rows: Vec<_> = checks
                .iter()
                .map(|check| {
                    json!({
                        "name": check.name, "ok": check.state == CheckState::Ok, "state": check.state,
                        "cause": check.cause, "mend": check.mend,
                    })
                })
                .collect();
            emit_json(&json!({ "ok": works(&checks), "checks": rows, "host": facts }))
        }
    };
    if printed.is_ok() && works(&checks) { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// A row for each profile that is weaker than it looks, or for all of them when they can't be used.
fn profile_checks(profile_dir: Option<&Path>) -> Vec<Check> {
    let row = |name: String, state, cause: String, mend: &str| Check { name, state, cause, mend: mend.into() };
    match Profiles::load(profile_dir) {
        Ok(profiles) => {
            let cause = "AUDIT ONLY: calls against it are let through and told; it is no wall";
            let mend = "take `audit_only` out of its file when it is written";
            let audits = |name: &str| row(format!("profile {name}"), CheckState::Degraded, cause.into(), mend);
            profiles.auditing().map(audits).collect()
        }
        Err(error) => {
            let source = std::error::Error::source(&error).map(|source| format!(": {source}")).unwrap_or_default();
            vec![row("profiles".into(), CheckState::Failed, format!("{error}{source}"), "mend the file that is named")]
        }
    }
}

fn works(checks: &[Check]) -> bool {
    checks.iter().all(|check| check.state != CheckState::Failed)
}

/// One line a check, the mend below it, the verdict last.
fn page(checks: &[Check]) -> String {
    let width = checks.iter().map(|check| check.name.len()).max().unwrap_or(0);
    let mut text = String::new();
    for check in checks {
        let line = format!("{:8}  {:width$}  {}", check.state.word(), check.name, check.cause);
        text.push_str(line.trim_end());
        text.push('\n');
        if !check.mend.is_empty() {
            let mend = format!("{:8}  {:width$}  mend: {}\n", "", "", check.mend);
            text.push_str(&mend);
        }
    }
    let count = |state| checks.iter().filter(|check| check.state == state).count();
    let (degraded, failed) = (count(CheckState::Degraded), count(CheckState::Failed));
    let verdict = match (failed, degraded) {
        (0, 0) => "\nSandboxes can be made here, with every wall and limit.\n".to_owned(),
        (0, _) => format!("\nSandboxes can be made here; {degraded} of the checks above make them weaker.\n"),
        (_, _) => format!("\nNo sandbox can be made here: {failed} of the checks above failed.\n"),
    };
    text.push_str(&verdict);
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(state: CheckState) -> Check {
        Check { name: "overlay".into(), state, cause: "mount overlay: ENODEV".into(), mend: "modprobe overlay".into() }
    }

    #[test]
    fn only_a_failed_check_stops_the_main_job() {
        assert!(works(&[check(CheckState::Ok), check(CheckState::Degraded)]));
        assert!(!works(&[check(CheckState::Ok), check(CheckState::Failed)]));
    }

    #[test]
    fn a_page_names_cause_mend_and_verdict() {
        let text = page(&[check(CheckState::Failed)]);
        assert!(text.contains("failed    overlay  mount overlay: ENODEV\n"), "{text}");
        assert!(text.contains("mend: modprobe overlay\n") && text.contains("No sandbox can be made here"), "{text}");
    }
}
