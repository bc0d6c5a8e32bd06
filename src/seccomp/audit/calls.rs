//! Findings from verdicts: what the policy answers, whatever it is made of.

use super::super::Invocation;
use super::super::arch::{self, Arch};
use super::super::policy::{Policy, combinations};
use super::super::ruleset::X32_BIT;
use super::super::symbols;
use super::super::verdict::Verdict;
use super::super::width::{self, Width};
use super::Finding;
use super::catalogue::{ALTERNATIVES, OPEN, PROBED};

const ENOSYS: Verdict = Verdict::Errno(38);
/// AUDIT_ARCH_I386 and AUDIT_ARCH_ARM of linux/audit.h: the 32-bit entries of the native architectures.
const AUDIT_ARCH_I386: u32 = 0x4000_0003;
const AUDIT_ARCH_ARM: u32 = 0x4000_0028;
/// i386's numbers of `socketcall` and `read`; ARM's of `read`.
const I386_SOCKETCALL: u32 = 102;
const READ_32: u32 = 3;
/// Numbers after the table that are tried.
const FUTURE_CALLS: u32 = 64;

pub(super) fn findings(policy: &Policy) -> Vec<Finding> {
    let mut found = entries(policy);
    let number = |name: &str| policy.arch().number(name);
    for (id, calls) in OPEN {
        let open = calls.iter().filter(|call| number(call).is_some_and(|number| policy.admits(number)));
        found.extend(open.map(|call| Finding::new(id, *call, format!("{call} is let through"))));
    }
    for (id, call, args, what) in PROBED {
        if number(call).is_some_and(|number| policy.native(number, *args).permits()) {
            found.push(Finding::new(id, format!("{call}({what})"), format!("{call} with {what} is let through")));
        }
    }
    let clone3 = number("clone3").map(|number| policy.native(number, [0; 6]));
    if let Some(verdict) = clone3.filter(|verdict| !verdict.permits() && *verdict != ENOSYS) {
        found.push(Finding::new("CBS215", "clone3", format!("clone3 ends with: {verdict}")));
    }
    found.extend(alternatives(policy));
    found.extend(arch::names(policy.arch()).filter_map(|(number, name)| wide_comparison(policy, number, name)));
    found
}

/// The default, other architectures, x32, numbers that do not exist.
fn entries(policy: &Policy) -> Vec<Finding> {
    let mut found = Vec::new();
    let last = arch::names(policy.arch()).map(|(number, _)| number).max().unwrap_or(0);
    let beyond = policy.native(last + FUTURE_CALLS + 1, [0; 6]);
    if beyond.permits() {
        found.push(Finding::new("CBS101", "default", format!("a call without a rule: {beyond}")));
    } else if let Some(number) = (last + 1..=last + FUTURE_CALLS).find(|number| policy.native(*number, [0; 6]).permits()) {
        let detail = format!("number {number} is let through; the last known call is {last}");
        found.push(Finding::new("CBS406", number.to_string(), detail));
    }
    if !beyond.permits() && beyond != ENOSYS {
        found.push(Finding::new("CBS105", "default", format!("an unknown call ends with: {beyond}")));
    }
    if matches!(beyond, Verdict::Notify | Verdict::Trace(_)) {
        found.push(Finding::new("CBS106", "default", format!("an unknown call: {beyond}")));
    }
    let (entry, value) = match policy.arch() {
        Arch::X86_64 => ("i386 (int 0x80)", AUDIT_ARCH_I386),
        Arch::Aarch64 => ("32-bit ARM", AUDIT_ARCH_ARM),
    };
    let foreign = |number| policy.verdict(&Invocation { arch: value, number, args: [0; 6] });
    if let Policy::Rules(set) = policy {
        found.extend(listed(set));
    } else if foreign(READ_32).permits() {
        let detail = format!("the entry of {entry} is filtered as if it were native, or not at all");
        found.push(Finding::new("CBS102", entry, detail));
        if policy.arch() == Arch::X86_64 && foreign(I386_SOCKETCALL).permits() {
            found.push(Finding::new("CBS104", "socketcall", "socketcall is let through at the 32-bit entry"));
        }
    }
    let read = policy.arch().number("read").unwrap_or(0);
    let x32 = policy.arch() == Arch::X86_64 && policy.native(read | X32_BIT, [0; 6]).permits();
    if x32 && !found.iter().any(|finding| finding.check.id == "CBS103") {
        found.push(Finding::new("CBS103", "x32", "read is let through by its x32 number"));
    }
    found
}

/// Architectures that the file names: libseccomp opens their entries for the same rules.
fn listed(set: &super::super::ruleset::Ruleset) -> Vec<Finding> {
    let related = |name: &&String| matches!(name.as_str(), "SCMP_ARCH_X86" | "SCMP_ARCH_X32" | "SCMP_ARCH_ARM");
    let finding = |name: &String| {
        let id = if name == "SCMP_ARCH_X32" { "CBS103" } else { "CBS102" };
        Finding::new(id, name.clone(), format!("the file names {name}")).at("architectures")
    };
    let reads = set.engine == super::super::ruleset::Engine::Libseccomp;
    set.foreign.iter().filter(related).filter(|_| reads).map(finding).collect()
}

/// A call that is refused outright beside one that does the same and is let through for every argument.
fn alternatives(policy: &Policy) -> Vec<Finding> {
    let mut found = Vec::new();
    for family in ALTERNATIVES {
        let known: Vec<_> = family.iter().filter_map(|name| Some((*name, policy.arch().number(name)?))).collect();
        let open: Vec<&str> = known
            .iter()
            .filter(|(_, number)| policy.outcomes(*number).into_iter().all(Verdict::permits))
            .map(|(name, _)| *name)
            .collect();
        for (name, _) in known.iter().filter(|(_, number)| !policy.admits(*number)) {
            if !open.is_empty() {
                let detail = format!("{name} is refused, {} is not", open.join(", "));
                found.push(Finding::new("CBS301", *name, detail));
            }
        }
    }
    found
}

/// Arguments of 32 bits that are refused, and let through with a high word.
fn wide_comparison(policy: &Policy, number: u32, name: &str) -> Option<Finding> {
    const HIGH: u64 = 1 << 32;
    let probes = policy.probes(number);
    let narrow: Vec<usize> =
        (0..6).filter(|index| !probes[*index].is_empty() && width::of(name, *index as u8) == Width::Bits32).collect();
    if narrow.is_empty() {
        return None;
    }
    for args in combinations(&probes) {
        if policy.native(number, args).permits() {
            continue;
        }
        for &index in &narrow {
            let mut wide = args;
            wide[index] ^= HIGH;
            let plain = args.iter().enumerate().all(|(at, value)| !narrow.contains(&at) || *value < HIGH);
            if plain && policy.native(number, wide).permits() {
                let shown = symbols::render(name, index as u8, args[index], Some(args[1]));
                let detail = format!("{name}: argument {index} = {shown} is refused, {shown} + 1<<32 is let through");
                return Some(Finding::new("CBS302", name, detail));
            }
        }
    }
    None
}
