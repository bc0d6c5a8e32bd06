//! Anything that decides about system calls, by rules or by programs, behind one set of questions: what happens to this call, and
//! which arguments would show a difference.
//!
//! Invariant: [`Policy::probes`] holds, for every comparison that the policy makes, values on both sides of it, with and without high
//! words; `diff` and `verify` stand on that.

use std::collections::BTreeSet;

use super::Invocation;
use super::arch::Arch;
use super::bpf::Program;
use super::paths::{self, Case};
use super::resolve::{Condition, Test};
use super::ruleset::{Decision, Ruleset};
use super::verdict::Verdict;

/// Combinations of arguments that are tried for one call.
pub const TRIALS_MAX: usize = 60_000;

/// Values to try, by argument.
pub type Probes = [BTreeSet<u64>; 6];

/// A source of verdicts.
#[derive(Debug, Clone)]
pub enum Policy {
    /// Rules of a file.
    Rules(Ruleset),
    /// Filters in the order of installation.
    Programs {
        /// For native calls.
        arch: Arch,
        /// At least one.
        filters: Vec<Program>,
    },
}

impl Policy {
    /// The native architecture.
    pub fn arch(&self) -> Arch {
        match self {
            Self::Rules(rules) => rules.arch,
            Self::Programs { arch, .. } => *arch,
        }
    }

    /// What happens to a call.
    pub fn verdict(&self, call: &Invocation) -> Verdict {
        self.decide(call).verdict
    }

    /// The same with the rule, where there are rules.
    pub fn decide(&self, call: &Invocation) -> Decision<'_> {
        match self {
            Self::Rules(rules) => rules.decide(call),
            Self::Programs { filters, .. } => Decision { verdict: stacked(filters, call), rule: None },
        }
    }

    /// A native call.
    pub fn native(&self, number: u32, args: [u64; 6]) -> Verdict {
        self.verdict(&Invocation::native(self.arch(), number, args))
    }

    /// Values at the borders of every comparison for a call.
    pub fn probes(&self, number: u32) -> Probes {
        let mut probes = Probes::default();
        match self {
            Self::Rules(rules) => {
                for condition in rules.rules(number).iter().flat_map(|rule| &rule.conditions) {
                    probes[usize::from(condition.index)].extend(borders(condition));
                }
            }
            Self::Programs { arch, filters } => {
                for case in paths::cases(filters, *arch, number).unwrap_or_default() {
                    add_case(&mut probes, &case);
                }
            }
        }
        probes
    }

    /// What a call can come to, over all its arguments.
    pub fn outcomes(&self, number: u32) -> BTreeSet<Verdict> {
        let probes = self.probes(number);
        combinations(&probes).into_iter().map(|args| self.native(number, args)).collect()
    }

    /// True when some arguments are let through.
    pub fn admits(&self, number: u32) -> bool {
        self.outcomes(number).into_iter().any(Verdict::permits)
    }
}

/// The strongest action of all filters, on a tie the newest filter's.
pub fn stacked(filters: &[Program], call: &Invocation) -> Verdict {
    let mut strongest: Option<Verdict> = None;
    for filter in filters.iter().rev() {
        let verdict = Verdict::from_return(filter.run(call));
        if strongest.is_none_or(|known| verdict.rank() > known.rank()) {
            strongest = Some(verdict);
        }
    }
    strongest.unwrap_or(Verdict::Allow)
}

/// Both sides of one comparison, with high words that a narrow one must not see.
pub fn borders(condition: &Condition) -> BTreeSet<u64> {
    let (value, mask) = match condition.test {
        Test::Eq(value) | Test::Ne(value) | Test::Lt(value) | Test::Le(value) | Test::Gt(value) | Test::Ge(value) => (value, 0),
        Test::Masked { mask, value } => (value, mask),
    };
    let mut values = BTreeSet::new();
    let lowest_bit = mask & mask.wrapping_neg();
    for near in [value, value.wrapping_add(1), value.wrapping_sub(1), value ^ lowest_bit, value ^ mask, value | !mask] {
        values.extend([near, near ^ (1 << 32), near ^ (1 << 63)]);
    }
    // Each bit of a mask by itself: a rule that looks at fewer of them differs in one.
    values.extend((0..64).map(|bit| 1_u64 << bit).filter(|bit| mask & bit != 0).map(|bit| value ^ bit));
    values
}

fn add_case(probes: &mut Probes, case: &Case) {
    for (word, fact) in case.facts.iter().filter(|(word, _)| word.offset >= 16) {
        let values = &mut probes[((word.offset - 16) / 8) as usize];
        let shift = if (word.offset % 8 >= 4) == cfg!(target_endian = "little") { 32 } else { 0 };
        let bits = (0..32).map(|bit| 1_u32 << bit).filter(|bit| word.mask != u32::MAX && word.mask & bit != 0);
        let edges = [fact.low, fact.high, fact.low.wrapping_sub(1), fact.high.wrapping_add(1)];
        for value in edges.into_iter().chain(fact.not.iter().copied()).chain(bits) {
            values.extend([
                u64::from(value) << shift,
                u64::from(value) << shift ^ 1 << 32,
                u64::from(value) << shift ^ 1 << 63,
            ]);
        }
    }
}

/// Every combination of the probed arguments, the others zero; where that is too many, each value among ordinary ones, and
/// every pair of values of two arguments.
pub fn combinations(probes: &Probes) -> Vec<[u64; 6]> {
    let mut ordinary = [0; 6];
    let mut axes: Vec<(usize, Vec<u64>)> = Vec::new();
    for (index, values) in probes.iter().enumerate().filter(|(_, values)| !values.is_empty()) {
        let mut values = values.clone();
        values.extend([0, u64::MAX]);
        ordinary[index] = values.first().copied().unwrap_or(0);
        axes.push((index, values.into_iter().collect()));
    }
    let count = axes.iter().try_fold(1_usize, |product, (_, values)| product.checked_mul(values.len()));
    if count.is_some_and(|count| count <= TRIALS_MAX) {
        let mut all = vec![[0; 6]];
        for (index, values) in &axes {
            all = all.iter().flat_map(|args| values.iter().map(move |value| with(*args, *index, *value))).collect();
        }
        return all;
    }
    let mut pairs = BTreeSet::from([[0; 6], ordinary]);
    for (at, (first, values)) in axes.iter().enumerate() {
        for (second, others) in &axes[at + 1..] {
            for value in values {
                let one = others.iter().map(|other| with(with(ordinary, *first, *value), *second, *other));
                pairs.extend(one.take(TRIALS_MAX.saturating_sub(pairs.len())));
            }
        }
    }
    pairs.into_iter().collect()
}

fn with(mut args: [u64; 6], index: usize, value: u64) -> [u64; 6] {
    args[index] = value;
    args
}

/// The values of two policies together.
pub fn joined(one: &Probes, other: &Probes) -> Probes {
    std::array::from_fn(|index| one[index].union(&other[index]).copied().collect())
}
