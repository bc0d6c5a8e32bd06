//! What two policies decide differently, whatever they are written in: calls, arguments and actions, not lines of a file.
//!
//! Invariant: every difference is shown by a call that both were asked about; policies without an entry here agree on every number
//! of the table, on numbers that do not exist, on the foreign entries, and at both sides of every comparison that either makes.

use super::Invocation;
use super::arch::{self, Arch};
use super::explain;
use super::policy::{Policy, combinations, joined};
use super::ruleset::X32_BIT;
use super::summary::NO_CALL;
use super::verdict::Verdict;

/// Arguments shown of one call.
const SAMPLES_MAX: usize = 6;
const AUDIT_ARCH_I386: u32 = 0x4000_0003;

/// How a call's surface changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// More is let through.
    Wider,
    /// Less is let through.
    Narrower,
    /// For some arguments more, for others less.
    Both,
    /// As much is let through; the refusal is another.
    Action,
}

impl Kind {
    /// The word in the output.
    pub fn word(self) -> &'static str {
        match self {
            Self::Wider => "wider",
            Self::Narrower => "narrower",
            Self::Both => "wider and narrower",
            Self::Action => "another action",
        }
    }
}

/// One call that is decided differently.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// Its name.
    pub call: String,
    /// In which direction.
    pub kind: Kind,
    /// All arguments, or these: call, before, after.
    pub samples: Vec<(String, Verdict, Verdict)>,
    /// True when before and after are the same for all arguments.
    pub whole: bool,
}

/// Compares; both must be for the same architecture.
pub fn diff(before: &Policy, after: &Policy) -> Vec<Difference> {
    let mut found = Vec::new();
    let arch = before.arch();
    found.extend(entry("(a number that is no call)", before, after, Invocation::native(arch, NO_CALL, [0; 6])));
    if arch == Arch::X86_64 {
        let x32 = Invocation::native(arch, NO_CALL | X32_BIT, [0; 6]);
        found.extend(entry("(an x32 number)", before, after, x32));
        found.extend(entry("(the i386 entry)", before, after, Invocation { arch: AUDIT_ARCH_I386, number: 3, args: [0; 6] }));
    }
    found.extend(arch::names(arch).filter_map(|(number, name)| call(before, after, number, name)));
    found
}

fn entry(name: &str, before: &Policy, after: &Policy, invocation: Invocation) -> Option<Difference> {
    let (one, two) = (before.verdict(&invocation), after.verdict(&invocation));
    let sample = (name.to_owned(), one, two);
    (one != two).then(|| Difference { call: name.to_owned(), kind: kind(&[(one, two)]), samples: vec![sample], whole: true })
}

fn call(before: &Policy, after: &Policy, number: u32, name: &str) -> Option<Difference> {
    let trials = combinations(&joined(&before.probes(number), &after.probes(number)));
    let verdicts = |args: &[u64; 6]| (before.native(number, *args), after.native(number, *args));
    let all: Vec<([u64; 6], (Verdict, Verdict))> = trials.iter().map(|args| (*args, verdicts(args))).collect();
    let differing: Vec<_> = all.iter().filter(|(_, (one, two))| one != two).collect();
    let (_, first) = differing.first()?;
    let whole = all.iter().all(|(_, pair)| pair == first);
    let pairs: Vec<(Verdict, Verdict)> = differing.iter().map(|(_, pair)| *pair).collect();
    // The plainest arguments first, and of each change before any change's second sample.
    let mut samples: Vec<(String, Verdict, Verdict)> = Vec::new();
    let mut plain = differing.clone();
    plain.sort_by_key(|(args, _)| {
        args.iter().map(|arg| u64::from(arg.count_ones()) + u64::from(*arg > 1 << 32) * 64).sum::<u64>()
    });
    let mut seen = Vec::new();
    for (args, pair) in plain.iter().filter(|(_, pair)| {
        if seen.contains(pair) {
            false
        } else {
            seen.push(*pair);
            true
        }
    }) {
        samples.push((explain::call_text(name, *args), pair.0, pair.1));
    }
    for (args, pair) in &plain {
        let text = explain::call_text(name, *args);
        if samples.len() < SAMPLES_MAX && !samples.iter().any(|(known, ..)| *known == text) {
            samples.push((text, pair.0, pair.1));
        }
    }
    if whole {
        samples.truncate(1);
        samples[0].0 = format!("{name}(…)");
    }
    Some(Difference { call: name.to_owned(), kind: kind(&pairs), samples, whole })
}

fn kind(pairs: &[(Verdict, Verdict)]) -> Kind {
    let wider = pairs.iter().any(|(one, two)| !one.permits() && two.permits());
    let narrower = pairs.iter().any(|(one, two)| one.permits() && !two.permits());
    match (wider, narrower) {
        (true, true) => Kind::Both,
        (true, false) => Kind::Wider,
        (false, true) => Kind::Narrower,
        (false, false) => Kind::Action,
    }
}
