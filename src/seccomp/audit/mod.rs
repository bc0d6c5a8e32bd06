//! What is wrong with a profile, as findings with stable ids: `catalogue` says what there is to find, `calls` asks the policy
//! itself (so it works on raw filters too), `rules` reads the file, `waiver` takes away what somebody answers for, `sarif` writes it
//! for code scanners.
//!
//! Invariant: pure and in a fixed order; a finding stands on a verdict or on a field, both of which it names.

mod calls;
pub mod catalogue;
mod rules;
pub mod sarif;
pub mod waiver;

#[cfg(test)]
mod tests;

use super::document::Document;
use super::policy::Policy;
use super::resolve::Target;
pub use catalogue::{Check, Severity};
pub(crate) use rules::suggestion;

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// What kind.
    pub check: &'static Check,
    /// What it is about, stable from run to run: a call, a name, a rule's call.
    pub subject: String,
    /// This case, in a sentence.
    pub detail: String,
    /// The field of the file, where it is about one.
    pub field: Option<String>,
    /// Why somebody answers for it; absent: nobody does.
    pub waived: Option<String>,
}

impl Finding {
    fn new(id: &str, subject: impl Into<String>, detail: impl Into<String>) -> Self {
        let check = catalogue::check(id).unwrap_or(&catalogue::CHECKS[0]);
        Self { check, subject: subject.into(), detail: detail.into(), field: None, waived: None }
    }

    fn at(mut self, field: impl Into<String>) -> Self {
        self.field = Some(field.into());
        self
    }
}

/// Findings about a policy, the worst first; `document` is the file behind it, where there is one.
pub fn audit(policy: &Policy, document: Option<&Document>, target: Target<'_>) -> Vec<Finding> {
    let mut findings = calls::findings(policy);
    if let Policy::Rules(set) = policy
        && let Some(document) = document
    {
        findings.extend(rules::findings(set, document, target));
    }
    findings.sort_by(|a, b| {
        let key = |finding: &Finding| (std::cmp::Reverse(finding.check.severity), finding.check.id);
        key(a).cmp(&key(b))
    });
    findings
}
