//! Why a call ends as it does, in words: the verdict, the rule, its written reason, and what it would mean to allow it.
//!
//! Invariant: pure, and every sentence about a rule quotes the file; what allowing means comes from the audit's catalogue, else from
//! the sets that the call belongs to.

use super::Invocation;
use super::audit::catalogue::{self, OPEN, PROBED};
use super::groups;
use super::paths::{Case, Word};
use super::policy::Policy;
use super::resolve::{Condition, Test};
use super::ruleset::{Rule, Ruleset};
use super::symbols;
use super::verdict::Verdict;
use super::width::Width;

/// The answer for one call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Explanation {
    /// `socket(AF_ALG, SOCK_SEQPACKET, 0)`
    pub call: String,
    /// What happens.
    pub verdict: Verdict,
    /// The field of the rule that decided; absent: the default.
    pub rule: Option<String>,
    /// Its conditions, empty where it is for all arguments.
    pub conditions: Vec<String>,
    /// Its comment.
    pub reason: Option<String>,
    /// What it would mean to allow it, or means that it is allowed.
    pub meaning: String,
    /// What else can come of this call, with other arguments.
    pub otherwise: Vec<(String, Verdict)>,
    /// Its sets.
    pub groups: Vec<&'static str>,
}

/// Explains a native call of this number.
pub fn explain(policy: &Policy, number: u32, name: &str, args: [u64; 6]) -> Explanation {
    let decision = policy.decide(&Invocation::native(policy.arch(), number, args));
    let rule = decision.rule;
    let level = (name == "setsockopt").then_some(args[1]);
    let others = cases(policy, number, name).into_iter().map(|case| (case.when, case.verdict));
    Explanation {
        call: call_text(name, args),
        verdict: decision.verdict,
        rule: rule.map(|rule| format!("syscalls[{}]", rule.place)),
        conditions: rule.map(|rule| conditions(name, &rule.conditions, level)).unwrap_or_default(),
        reason: rule.and_then(|rule| rule.reason.clone()),
        meaning: meaning(name, args),
        otherwise: others.filter(|(_, verdict)| *verdict != decision.verdict).collect(),
        groups: groups::of(name),
    }
}

/// What allowing a call would mean.
pub fn meaning(name: &str, args: [u64; 6]) -> String {
    let probed = PROBED.iter().find(|(_, call, probe, _)| *call == name && same_kind(name, *probe, args)).map(|(id, ..)| *id);
    let open = OPEN.iter().find(|(_, calls)| calls.contains(&name)).map(|(id, _)| *id);
    if let Some(check) = probed.or(open).and_then(catalogue::check) {
        return format!("{} ({})", check.why, check.id);
    }
    let sets = groups::of(name);
    let about: Vec<&str> = sets.iter().filter_map(|set| groups::find(set)).map(|group| group.about).collect();
    format!("no finding of the audit is about it; it belongs to: {}", about.join("; "))
}

/// Whether a call is of the kind that a probe stands for: the family of a socket, a namespace bit, a request.
fn same_kind(name: &str, probe: [u64; 6], args: [u64; 6]) -> bool {
    let low = |value: u64| value & u64::from(u32::MAX);
    match name {
        "clone" | "unshare" => low(args[0]) & 0x7E02_0000 & low(probe[0]) != 0,
        "ioctl" => low(args[1]) == probe[1],
        "mmap" | "mprotect" => args[2] & 6 == 6,
        _ => low(args[0]) == probe[0] && (low(probe[0]) != 2 || low(args[1]) & 15 == probe[1]),
    }
}

/// One case of a call: under which conditions, what happens, and by which rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Said {
    /// `family == AF_UNIX`, or `otherwise`, or empty for all arguments.
    pub when: String,
    /// What happens.
    pub verdict: Verdict,
    /// The field of the rule.
    pub rule: Option<String>,
    /// The rule's comment.
    pub reason: Option<String>,
}

/// Everything that a policy says about a call, in the order in which it counts.
pub fn cases(policy: &Policy, number: u32, name: &str) -> Vec<Said> {
    match policy {
        Policy::Rules(set) => by_rules(set, number, name),
        Policy::Programs { arch, filters } => match super::paths::cases(filters, *arch, number) {
            Ok(cases) => cases.iter().map(|case| by_way(case, name)).collect(),
            Err(error) => vec![Said {
                when: format!("for ordinary arguments ({error})"),
                verdict: policy.native(number, [0; 6]),
                rule: None,
                reason: None,
            }],
        },
    }
}

fn by_rules(set: &Ruleset, number: u32, name: &str) -> Vec<Said> {
    let said = |rule: &Rule, when: String| Said {
        when,
        verdict: rule.verdict,
        rule: Some(format!("syscalls[{}]", rule.place)),
        reason: rule.reason.clone(),
    };
    let (plain, mut conditional): (Vec<&Rule>, Vec<&Rule>) =
        set.rules(number).iter().partition(|rule| rule.conditions.is_empty());
    if set.engine != super::ruleset::Engine::CodeBeaker && !plain.is_empty() {
        conditional.clear();
    }
    conditional.sort_by_key(|rule| std::cmp::Reverse(rule.verdict.rank()));
    let rest = if conditional.is_empty() { String::new() } else { "otherwise".to_owned() };
    let mut all: Vec<Said> =
        conditional.iter().map(|rule| said(rule, conditions(name, &rule.conditions, level(rule)).join(" and "))).collect();
    // The call without its arguments: what no condition catches.
    let fallback = plain.iter().max_by_key(|rule| rule.verdict.rank());
    all.push(
        fallback.map_or(Said { when: rest.clone(), verdict: set.default, rule: None, reason: None }, |rule| said(rule, rest)),
    );
    all
}

/// The level that a rule about `setsockopt` compares with.
fn level(rule: &Rule) -> Option<u64> {
    rule.conditions.iter().find_map(|condition| match (condition.index, condition.test) {
        (1, Test::Eq(value)) => Some(value),
        _ => None,
    })
}

fn by_way(case: &Case, name: &str) -> Said {
    let level = case.argument(1).map(u64::from);
    let value = |word: &Word, value: u32| {
        let low = (word.offset % 8 < 4) == cfg!(target_endian = "little");
        let index = (word.offset.saturating_sub(16) / 8) as u8;
        if low && word.mask == u32::MAX { symbols::render(name, index, u64::from(value), level) } else { format!("{value:#x}") }
    };
    Said { when: case.describe(value).join(" and "), verdict: case.verdict, rule: None, reason: None }
}

/// Conditions by symbolic names.
pub fn conditions(name: &str, conditions: &[Condition], level: Option<u64>) -> Vec<String> {
    conditions.iter().map(|condition| condition_text(name, condition, level)).collect()
}

fn condition_text(name: &str, condition: &Condition, level: Option<u64>) -> String {
    let index = condition.index;
    let left = match condition.width {
        Width::Bits32 => format!("arg{index}"),
        Width::Bits64 => format!("arg{index} (64 bits)"),
    };
    let value = |value| symbols::render(name, index, value, level);
    match condition.test {
        Test::Eq(number) => format!("{left} == {}", value(number)),
        Test::Ne(number) => format!("{left} != {}", value(number)),
        Test::Lt(number) => format!("{left} < {}", value(number)),
        Test::Le(number) => format!("{left} <= {}", value(number)),
        Test::Gt(number) => format!("{left} > {}", value(number)),
        Test::Ge(number) => format!("{left} >= {}", value(number)),
        Test::Masked { mask, value: 0 } => format!("{left} has none of {}", symbols::render_mask(name, index, mask)),
        Test::Masked { mask, value: number } => {
            format!("{left} & {} == {}", symbols::render_mask(name, index, mask), value(number))
        }
    }
}

/// `socket(AF_ALG, SOCK_SEQPACKET, 0)`: arguments up to the last that is not zero or that has a name.
pub fn call_text(name: &str, args: [u64; 6]) -> String {
    let named = (0..6).rev().find(|index| args[usize::from(*index)] != 0 || !symbols::names(name, *index).is_empty());
    let shown = named.map_or(0, |last| last + 1);
    let level = (name == "setsockopt").then_some(args[1]);
    let texts: Vec<String> = (0..shown).map(|index| symbols::render(name, index, args[usize::from(index)], level)).collect();
    format!("{name}({})", texts.join(", "))
}
