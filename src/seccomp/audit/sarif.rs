//! Findings as SARIF 2.1.0, which code scanners and their web pages read.
//!
//! Invariant: waived findings are there as suppressed results, so that nobody has to ask whether they were seen.

use serde_json::{Value, json};

use super::Finding;
use super::catalogue::{CHECKS, Check, Severity};

/// The schema that the output claims.
pub const SCHEMA: &str = "https://json.schemastore.org/sarif-2.1.0.json";

/// One run over one profile; `uri` is the file, or `builtin:default`.
pub fn sarif(uri: &str, findings: &[Finding]) -> Value {
    let used: Vec<&Check> = CHECKS.iter().filter(|check| findings.iter().any(|finding| finding.check.id == check.id)).collect();
    let results: Vec<Value> = findings.iter().map(|finding| result(uri, finding, &used)).collect();
    json!({
        "$schema": SCHEMA,
        "version": "2.1.0",
        "runs": [{
            "tool": { "driver": {
                "name": "codebeaker seccomp audit",
                "semanticVersion": env!("CARGO_PKG_VERSION"),
                "rules": used.iter().map(|check| rule(check)).collect::<Vec<_>>(),
            }},
            "columnKind": "unicodeCodePoints",
            "results": results,
        }],
    })
}

fn level(severity: Severity) -> &'static str {
    match severity {
        Severity::High => "error",
        Severity::Medium => "warning",
        Severity::Low | Severity::Note => "note",
    }
}

/// The scale of 0 to 10 that code scanning sorts by.
fn score(severity: Severity) -> &'static str {
    match severity {
        Severity::High => "8.0",
        Severity::Medium => "5.0",
        Severity::Low => "3.0",
        Severity::Note => "0.0",
    }
}

fn rule(check: &Check) -> Value {
    json!({
        "id": check.id,
        "name": check.name,
        "shortDescription": { "text": check.condition },
        "fullDescription": { "text": check.why },
        "help": { "text": format!("{} See {}.", check.mend, check.reference) },
        "defaultConfiguration": { "level": level(check.severity) },
        "properties": { "security-severity": score(check.severity), "tags": ["security", "seccomp"] },
    })
}

fn result(uri: &str, finding: &Finding, used: &[&Check]) -> Value {
    let mut location = json!({ "physicalLocation": { "artifactLocation": { "uri": uri } } });
    if let Some(field) = &finding.field {
        location["logicalLocations"] = json!([{ "fullyQualifiedName": field, "kind": "member" }]);
    }
    let mut result = json!({
        "ruleId": finding.check.id,
        "ruleIndex": used.iter().position(|check| check.id == finding.check.id),
        "level": level(finding.check.severity),
        "message": { "text": finding.detail },
        "locations": [location],
        "partialFingerprints": { "subject/v1": format!("{}:{}", finding.check.id, finding.subject) },
    });
    if let Some(reason) = &finding.waived {
        result["suppressions"] = json!([{ "kind": "external", "justification": reason }]);
    }
    result
}
