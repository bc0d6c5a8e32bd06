//! Findings from the file: names, gates, and rules that do not do what they seem to.

use std::collections::BTreeSet;

use super::super::arch;
use super::super::document::Document;
use super::super::model::{Gate, Rule as Entry};
use super::super::policy::{self, Policy};
use super::super::resolve::Target;
use super::super::ruleset::{self, Engine, Rule, Ruleset};
use super::super::verdict::Verdict;
use super::super::width::{self, Width};
use super::super::{Invocation, KernelVersion};
use super::Finding;

/// Changes of a letter between a name and the one that was meant.
const MISSPELT_MAX: usize = 2;
/// Of a name that is compared letter by letter.
const NAME_CHARS_MAX: usize = 64;

pub(super) fn findings(set: &Ruleset, document: &Document, target: Target<'_>) -> Vec<Finding> {
    let mut found = Vec::new();
    for (place, entry) in document.profile.syscalls.iter().enumerate() {
        let field = format!("syscalls[{place}]");
        found.extend(names(entry, &field));
        found.extend(gates(entry, &field));
        found.extend(arguments(entry, &field));
        let subject = entry.names.first().cloned().unwrap_or_default();
        if entry.comment.as_ref().is_none_or(|comment| comment.trim().is_empty()) {
            found.push(Finding::new("CBS407", subject.clone(), "no reason is written down").at(&field));
        }
        let verdict = Verdict::from_word(entry.action, entry.errno_ret);
        // The native tables have no such call, so only the file can tell.
        let opens = verdict.permits() && entry.names.iter().any(|name| name == "socketcall") && ruleset::stands(entry, target);
        if opens && !set.foreign.is_empty() && set.engine == Engine::Libseccomp {
            found.push(Finding::new("CBS104", "socketcall", "socketcall is allowed beside a 32-bit entry").at(&field));
        }
        if matches!(verdict, Verdict::Notify | Verdict::Trace(_)) {
            found.push(Finding::new("CBS106", subject, format!("the rule says: {verdict}")).at(&field));
        }
    }
    let foreign = if set.engine == Engine::CodeBeaker { Engine::Libseccomp } else { Engine::CodeBeaker };
    let policies = [Policy::Rules(set.clone()), Policy::Rules(Ruleset::new(document, target, foreign))];
    for (number, rules) in &set.calls {
        found.extend(pairs(set, *number, rules));
        found.extend(effects(set, &policies[0], *number));
        if set.engine != Engine::Seccompiler {
            found.extend(differing(&policies, *number, [set.engine, foreign]));
        }
    }
    found
}

/// The file's place of a rule.
fn place(rule: &Rule) -> String {
    format!("syscalls[{}]", rule.place)
}

fn names(entry: &Entry, field: &str) -> Vec<Finding> {
    let unknown = entry.names.iter().enumerate().filter(|(_, name)| !arch::is_known(name));
    let finding = |(position, name): (usize, &String)| {
        let detail = match suggestion(name) {
            Some(near) => format!("`{name}` is no system call; did you mean `{near}`?"),
            None => format!("`{name}` is no system call up to Linux 6.18"),
        };
        Finding::new("CBS403", name.clone(), detail).at(format!("{field}.names[{position}]"))
    };
    unknown.map(finding).collect()
}

/// The known call that is spelt most like it.
pub(crate) fn suggestion(name: &str) -> Option<&'static str> {
    let both = arch::names(super::super::Arch::X86_64).chain(arch::names(super::super::Arch::Aarch64));
    let near = both.map(|(_, known)| (distance(name, known), known)).min()?;
    (near.0 <= MISSPELT_MAX && near.0 < name.chars().count()).then_some(near.1)
}

/// Letters to change, add, drop or swap with their neighbour (Damerau and Levenshtein).
fn distance(one: &str, other: &str) -> usize {
    let one: Vec<char> = one.chars().take(NAME_CHARS_MAX).collect();
    let other: Vec<char> = other.chars().collect();
    let mut rows = vec![(0..=other.len()).collect::<Vec<usize>>()];
    for row in 1..=one.len() {
        let mut costs = vec![row];
        for column in 1..=other.len() {
            let changed = usize::from(one[row - 1] != other[column - 1]);
            let mut cost = (rows[row - 1][column - 1] + changed).min(rows[row - 1][column] + 1).min(costs[column - 1] + 1);
            let swapped = row > 1 && column > 1 && one[row - 1] == other[column - 2] && one[row - 2] == other[column - 1];
            if swapped {
                cost = cost.min(rows[row - 2][column - 2] + 1);
            }
            costs.push(cost);
        }
        rows.push(costs);
    }
    rows[one.len()][other.len()]
}

fn gates(entry: &Entry, field: &str) -> Vec<Finding> {
    let subject = entry.names.first().cloned().unwrap_or_default();
    let unreadable = |gate: &Gate| {
        let capability = |name: &&String| {
            !name.starts_with("CAP_") || name.chars().any(|c| !(c.is_ascii_uppercase() || c == '_' || c.is_ascii_digit()))
        };
        let kernel = gate.min_kernel.iter().filter(|text| text.parse::<KernelVersion>().is_err());
        gate.caps.iter().filter(capability).chain(kernel).cloned().collect::<Vec<_>>()
    };
    let named = [("includes", &entry.includes), ("excludes", &entry.excludes)];
    let words = named.into_iter().filter_map(|(name, gate)| Some((name, gate.as_ref()?)));
    words
        .flat_map(|(name, gate)| unreadable(gate).into_iter().map(move |word| (name, word)))
        .map(|(name, word)| {
            Finding::new("CBS409", &subject, format!("`{word}` can't be understood")).at(format!("{field}.{name}"))
        })
        .collect()
}

fn arguments(entry: &Entry, field: &str) -> Vec<Finding> {
    let mut found = Vec::new();
    let mut seen = BTreeSet::new();
    for (position, arg) in entry.args.iter().flatten().enumerate() {
        let wide = |name: &&String| width::of(name, arg.index.min(5) as u8) == Width::Bits32 && arg.value > u64::from(u32::MAX);
        let problem = if arg.index > 5 {
            Some(format!("there is no argument {}", arg.index))
        } else if !seen.insert(arg.index) {
            Some(format!("argument {} is compared twice in one rule", arg.index))
        } else if entry.names.iter().any(|name| wide(&name)) {
            Some(format!("the kernel takes 32 bits of argument {}; {:#x} has more", arg.index, arg.value))
        } else {
            None
        };
        let subject = entry.names.first().cloned().unwrap_or_default();
        found.extend(problem.map(|text| Finding::new("CBS410", subject, text).at(format!("{field}.args[{position}]"))));
    }
    found
}

/// Rules about the same call and arguments.
fn pairs(set: &Ruleset, number: u32, rules: &[Rule]) -> Vec<Finding> {
    let name = set.arch.name(number).unwrap_or_default();
    let mut found = Vec::new();
    for (at, one) in rules.iter().enumerate() {
        for other in rules[at + 1..].iter().filter(|other| other.conditions == one.conditions) {
            let (id, says) = if one.verdict == other.verdict { ("CBS404", "the same") } else { ("CBS405", "something else") };
            found.push(
                Finding::new(id, name, format!("{name}: {} says {says} for the same arguments", place(one))).at(place(other)),
            );
        }
    }
    found
}

/// Rules that never decide, and those that decide as the default would.
fn effects(set: &Ruleset, policy: &Policy, number: u32) -> Vec<Finding> {
    let (name, rules) = (set.arch.name(number).unwrap_or_default(), set.rules(number));
    let trials = policy::combinations(&policy.probes(number));
    let mut deciding = BTreeSet::new();
    let mut overlapped = BTreeSet::new();
    for args in trials {
        let call = Invocation::native(set.arch, number, args);
        let Some(chosen) = set.decide(&call).rule else { continue };
        deciding.insert(chosen.place);
        // A rule that would have said the same is not dead, only not the first.
        let agrees =
            |rule: &&Rule| rule.verdict == chosen.verdict && rule.conditions.iter().all(|condition| condition.holds(args));
        overlapped.extend(rules.iter().filter(agrees).map(|rule| rule.place));
    }
    let mut found = Vec::new();
    for rule in rules {
        if !deciding.contains(&rule.place) && !overlapped.contains(&rule.place) {
            found.push(Finding::new("CBS401", name, format!("{name}: this rule never decides")).at(place(rule)));
        } else if rule.verdict == set.default && rules.iter().all(|other| other.verdict == set.default) {
            found.push(Finding::new("CBS402", name, format!("{name}: {} is the default", rule.verdict)).at(place(rule)));
        }
    }
    found
}

/// Arguments for which another engine decides otherwise.
fn differing([one, two]: &[Policy; 2], number: u32, [own, other]: [Engine; 2]) -> Option<Finding> {
    let name = one.arch().name(number).unwrap_or_default();
    let trials = policy::combinations(&policy::joined(&one.probes(number), &two.probes(number)));
    let args = trials.into_iter().find(|args| one.native(number, *args) != two.native(number, *args))?;
    let shown = super::super::explain::call_text(name, args);
    let detail = format!("{shown}: {own} says {}, {other} says {}", one.native(number, args), two.native(number, args));
    Some(Finding::new("CBS408", name, detail))
}
