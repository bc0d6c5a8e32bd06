//! A policy on one page: what is let through, what only for some arguments, what is refused and how, and how large the surface is.
//!
//! Invariant: every call of the architecture's table is in exactly one of the lists.

use std::collections::BTreeMap;

use super::arch;
use super::explain::{self, Said};
use super::policy::Policy;
use super::verdict::Verdict;

/// The page.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Summary {
    /// For numbers that do not exist.
    pub unknown: Verdict,
    /// Calls with one verdict for all arguments, by verdict.
    pub always: BTreeMap<Verdict, Vec<&'static str>>,
    /// Calls whose verdict depends on the arguments, with their cases.
    pub depends: Vec<(&'static str, Vec<Said>)>,
    /// Calls that are let through for some or all arguments.
    pub open: usize,
    /// Of these, for some only.
    pub open_in_part: usize,
    /// Calls of the table.
    pub known: usize,
}

/// A number that no kernel gives to a call.
pub const NO_CALL: u32 = 4095;

/// Looks at every call.
pub fn summary(policy: &Policy) -> Summary {
    let mut page = Summary {
        unknown: policy.native(NO_CALL, [0; 6]),
        always: BTreeMap::new(),
        depends: Vec::new(),
        open: 0,
        open_in_part: 0,
        known: 0,
    };
    for (number, name) in arch::names(policy.arch()) {
        page.known += 1;
        let outcomes = policy.outcomes(number);
        let permits = outcomes.iter().any(|verdict| verdict.permits());
        page.open += usize::from(permits);
        if let (1, Some(verdict)) = (outcomes.len(), outcomes.first()) {
            page.always.entry(*verdict).or_default().push(name);
            continue;
        }
        page.open_in_part += usize::from(permits && !outcomes.iter().all(|verdict| verdict.permits()));
        page.depends.push((name, explain::cases(policy, number, name)));
    }
    page
}
