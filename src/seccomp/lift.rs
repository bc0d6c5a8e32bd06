//! Rules out of raw filters: each way through becomes a rule of OCI's words, as far as these can say it.
//!
//! Invariant: the document decides as the filters for every call that is not named in `losses`.

use std::collections::BTreeMap;

use super::arch::{self, Arch};
use super::bpf::Program;
use super::document::{Document, Format, Loss};
use super::model::{Arg, Operator, Rule, SeccompProfile};
use super::paths::{self, Case};
use super::policy::Policy;
use super::summary::NO_CALL;
use super::verdict::Verdict;

/// Reads filters back into rules.
pub fn lift(filters: &[Program], arch: Arch) -> Document {
    let policy = Policy::Programs { arch, filters: filters.to_vec() };
    let default = policy.native(NO_CALL, [0; 6]);
    let mut plain: BTreeMap<Verdict, Vec<String>> = BTreeMap::new();
    let mut syscalls = Vec::new();
    let mut losses = Vec::new();
    for (number, name) in arch::names(arch) {
        let outcomes = policy.outcomes(number);
        match (outcomes.len(), outcomes.first()) {
            (1, Some(verdict)) if *verdict == default => {}
            (1, Some(verdict)) => plain.entry(*verdict).or_default().push(name.to_owned()),
            _ => match conditional(&policy, filters, number, name) {
                Some(rules) => syscalls.extend(rules),
                None => losses
                    .push(Loss::at(name, "its conditions on arguments: OCI's words can't say them, so the call has no rule")),
            },
        }
    }
    let simple = plain.into_iter().map(|(verdict, names)| rule(names, verdict, None));
    let (default_action, default_errno_ret) = default.to_word();
    let profile = SeccompProfile {
        default_action,
        default_errno_ret,
        architectures: vec![arch.oci_name().to_owned()],
        arch_map: Vec::new(),
        syscalls: simple.chain(syscalls).collect(),
    };
    Document { format: Format::Bpf, profile, narrow: std::collections::BTreeSet::new(), losses }
}

fn rule(names: Vec<String>, verdict: Verdict, args: Option<Vec<Arg>>) -> Rule {
    let (action, errno_ret) = verdict.to_word();
    Rule { names, action, errno_ret, args, comment: None, includes: None, excludes: None }
}

/// Rules for the ways that fix values, and one without arguments for the rest, which must all end alike.
fn conditional(policy: &Policy, filters: &[Program], number: u32, name: &str) -> Option<Vec<Rule>> {
    let cases = paths::cases(filters, policy.arch(), number).ok()?;
    let rest = cases.iter().find(|case| case.facts.values().all(|fact| fact.value().is_none())).map(|case| case.verdict)?;
    let mut rules: Vec<Rule> = Vec::new();
    for case in cases.iter().filter(|case| case.verdict != rest) {
        let said = rule(vec![name.to_owned()], case.verdict, Some(arguments(case)?));
        if !rules.contains(&said) {
            rules.push(said);
        }
    }
    rules.push(rule(vec![name.to_owned()], rest, None));
    let document = SeccompProfile {
        default_action: super::model::ActionWord::Errno,
        default_errno_ret: None,
        architectures: Vec::new(),
        arch_map: Vec::new(),
        syscalls: rules.clone(),
    };
    same(policy, number, document).then_some(rules)
}

/// What a way knows of each argument as one masked comparison; facts that are no single value are left to the check.
fn arguments(case: &Case) -> Option<Vec<Arg>> {
    let mut values: BTreeMap<u32, (u64, u64)> = BTreeMap::new();
    for (word, fact) in case.facts.iter().filter(|(word, _)| word.offset >= 16) {
        let Some(value) = fact.value() else { continue };
        let shift = if (word.offset % 8 >= 4) == cfg!(target_endian = "little") { 32 } else { 0 };
        let entry = values.entry((word.offset - 16) / 8).or_default();
        entry.0 |= u64::from(word.mask) << shift;
        entry.1 |= u64::from(value) << shift;
    }
    let arg = |(index, (mask, value))| match mask {
        u64::MAX => Arg { index, value, value_two: 0, op: Operator::Eq },
        _ => Arg { index, value: mask, value_two: value, op: Operator::MaskedEq },
    };
    (!values.is_empty()).then(|| values.into_iter().map(arg).collect())
}

fn same(policy: &Policy, number: u32, profile: SeccompProfile) -> bool {
    use super::arch::KernelVersion;
    use super::policy::{combinations, joined};
    use super::resolve::Target;
    use super::ruleset::{Engine, Ruleset};
    let target = Target { arch: policy.arch(), kernel: KernelVersion { major: 0, minor: 0 }, capabilities: &[] };
    let lifted = Policy::Rules(Ruleset::new(&Document::oci(profile), target, Engine::CodeBeaker));
    let trials = combinations(&joined(&policy.probes(number), &lifted.probes(number)));
    trials.into_iter().all(|args| policy.native(number, args) == lifted.native(number, args))
}
