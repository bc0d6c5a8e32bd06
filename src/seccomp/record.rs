//! What a run asked of the kernel, as a profile: calls with counts, and the values of arguments that are worth restricting.
//!
//! Invariant: a recorded profile admits every call that was recorded, and says of each rule when the call was first seen and how often. A
//! recording shows one run, not what a program needs: `minimise` tells what no run used, and leaves the decision to its reader.

use std::collections::{BTreeMap, BTreeSet};

use super::arch::Arch;
use super::document::Document;
use super::explain;
use super::model::{ActionWord, Arg, Operator, Rule, SeccompProfile};
use super::policy::Policy;
use super::resolve::Target;
use super::ruleset;

/// Different values of one call's arguments; with more the call is recorded without them.
const VALUES_MAX: usize = 48;
/// Of the type of a socket: above are flags that any program may set.
const SOCKET_TYPE: u64 = 15;
/// The namespace bits of clone.
const NAMESPACES: u64 = 0x7E02_0000;
const LOW: u64 = 0xFFFF_FFFF;

/// Calls whose arguments are kept, with the bits that matter of each.
#[rustfmt::skip]
const RESTRICTED: &[(&str, &[(usize, u64)])] = &[
    ("socket", &[(0, LOW), (1, SOCKET_TYPE), (2, LOW)]), ("socketpair", &[(0, LOW)]), ("clone", &[(0, NAMESPACES)]),
    ("unshare", &[(0, LOW)]), ("setns", &[(1, LOW)]), ("ioctl", &[(1, LOW)]), ("prctl", &[(0, LOW)]), ("personality", &[(0, LOW)]),
    ("setsockopt", &[(1, LOW), (2, LOW)]), ("keyctl", &[(0, LOW)]), ("bpf", &[(0, LOW)]), ("ptrace", &[(0, LOW)]),
    ("arch_prctl", &[(0, LOW)]), ("madvise", &[(2, LOW)]),
];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Seen {
    first: u64,
    count: u64,
}

/// Calls of a run, by number.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Recording {
    total: u64,
    calls: BTreeMap<u32, BTreeMap<Vec<u64>, Seen>>,
    /// Calls of other entries, which no profile can allow.
    pub foreign: u64,
}

impl Recording {
    /// One call.
    pub fn add(&mut self, arch: Arch, entry: u32, number: u32, args: [u64; 6]) {
        self.total += 1;
        let Some(name) = arch.name(number).filter(|_| entry == arch.audit_value()) else {
            self.foreign += 1;
            return;
        };
        let kept = restricted(name).iter().map(|(index, mask)| args[*index] & mask).collect();
        let first = self.total;
        self.calls.entry(number).or_default().entry(kept).or_insert(Seen { first, count: 0 }).count += 1;
    }

    /// Calls made.
    pub fn total(&self) -> u64 {
        self.total
    }

    /// Names of the calls that `policy` refuses, for every recorded value: the run went on without them.
    pub fn refused(&self, policy: &Policy) -> Vec<&'static str> {
        let name = |number: &u32| policy.arch().name(*number);
        self.calls
            .iter()
            .filter(|(number, values)| !admitted(policy, **number, values))
            .filter_map(|(number, _)| name(number))
            .collect()
    }

    /// As a profile with a default of ENOSYS. What `without` refuses was asked in vain and is left out; `run` names it in the reasons.
    pub fn profile(&self, arch: Arch, run: &str, without: Option<&Policy>) -> SeccompProfile {
        let kept = self.calls.iter().filter(|(number, values)| without.is_none_or(|policy| admitted(policy, **number, values)));
        let syscalls = kept.flat_map(|(number, values)| rules(arch, *number, values, run)).collect();
        SeccompProfile {
            default_action: ActionWord::Errno,
            default_errno_ret: Some(38),
            architectures: vec![arch.oci_name().to_owned()],
            arch_map: Vec::new(),
            syscalls,
        }
    }
}

fn restricted(name: &str) -> &'static [(usize, u64)] {
    RESTRICTED.iter().find(|(known, _)| *known == name).map_or(&[], |(_, args)| args)
}

fn admitted(policy: &Policy, number: u32, values: &BTreeMap<Vec<u64>, Seen>) -> bool {
    let name = policy.arch().name(number).unwrap_or_default();
    values.keys().any(|kept| policy.native(number, spread(name, kept)).permits())
}

/// Kept values at their places.
fn spread(name: &str, kept: &[u64]) -> [u64; 6] {
    let mut args = [0; 6];
    for ((index, _), value) in restricted(name).iter().zip(kept) {
        args[*index] = *value;
    }
    args
}

fn rules(arch: Arch, number: u32, values: &BTreeMap<Vec<u64>, Seen>, run: &str) -> Vec<Rule> {
    let name = arch.name(number).unwrap_or_default();
    let masks = restricted(name);
    if masks.is_empty() || values.len() > VALUES_MAX {
        let first = values.values().map(|seen| seen.first).min().unwrap_or(0);
        let count = values.values().map(|seen| seen.count).sum();
        return vec![rule(name, None, reason(run, Seen { first, count }))];
    }
    let one = |(kept, seen): (&Vec<u64>, &Seen)| {
        let args = masks.iter().zip(kept).map(|((index, mask), value)| Arg {
            index: *index as u32,
            value: *mask,
            value_two: *value,
            op: Operator::MaskedEq,
        });
        let what = explain::call_text(name, spread(name, kept));
        rule(name, Some(args.collect()), format!("{what}: {}", reason(run, *seen)))
    };
    values.iter().map(one).collect()
}

fn reason(run: &str, seen: Seen) -> String {
    format!("seen {} times, first as call {} of: {run}", seen.count, seen.first)
}

fn rule(name: &str, args: Option<Vec<Arg>>, comment: String) -> Rule {
    Rule {
        names: vec![name.to_owned()],
        action: ActionWord::Allow,
        errno_ret: None,
        args,
        comment: Some(comment),
        includes: None,
        excludes: None,
    }
}

/// Adds the rules of a recording to a profile: those about calls and arguments that it has no rule for yet.
pub fn merge(into: &mut SeccompProfile, recorded: SeccompProfile) {
    for rule in recorded.syscalls {
        let same = |known: &Rule| {
            known.names == rule.names && known.action == rule.action && (known.args == rule.args || known.args.is_none())
        };
        if !into.syscalls.iter().any(same) {
            into.syscalls.push(rule);
        }
    }
}

/// A profile without the calls that no run used, and their names. Refusals stay, and so do calls of other architectures.
pub fn minimise(document: &Document, target: Target<'_>, runs: &[Policy]) -> (SeccompProfile, Vec<String>) {
    let mut profile = document.profile.clone();
    let mut unused = BTreeSet::new();
    for rule in profile.syscalls.iter_mut().filter(|rule| matches!(rule.action, ActionWord::Allow | ActionWord::Log)) {
        if !ruleset::stands(rule, target) {
            continue;
        }
        rule.names.retain(|name| {
            let Some(number) = target.arch.number(name) else { return true };
            let used = runs.iter().any(|run| run.admits(number));
            if !used {
                unused.insert(name.clone());
            }
            used
        });
    }
    profile.syscalls.retain(|rule| !rule.names.is_empty());
    (profile, unused.into_iter().collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seccomp::KernelVersion;
    use crate::seccomp::ruleset::{Engine, Ruleset};

    const ARCH: Arch = Arch::X86_64;

    fn policy(profile: &SeccompProfile) -> Policy {
        Policy::Rules(Ruleset::new(&Document::oci(profile.clone()), target(), Engine::CodeBeaker))
    }

    fn target() -> Target<'static> {
        Target { arch: ARCH, kernel: KernelVersion { major: 6, minor: 18 }, capabilities: &[] }
    }

    fn recording(calls: &[(u32, [u64; 6])]) -> Recording {
        let mut recording = Recording::default();
        for (number, args) in calls {
            recording.add(ARCH, ARCH.audit_value(), *number, *args);
        }
        recording
    }

    #[test]
    fn a_recorded_profile_admits_what_was_seen_and_says_when_and_how_often() {
        let seen = recording(&[(0, [3, 9, 9, 0, 0, 0]), (41, [1, 0x8_0001, 0, 0, 0, 0]), (0, [4, 8, 8, 0, 0, 0])]);
        let profile = seen.profile(ARCH, "cat f", None);
        let comments: Vec<&str> = profile.syscalls.iter().filter_map(|rule| rule.comment.as_deref()).collect();
        assert_eq!(
            comments,
            [
                "seen 2 times, first as call 1 of: cat f",
                "socket(AF_UNIX, SOCK_STREAM, 0): seen 1 times, first as call 2 of: cat f"
            ]
        );
        let policy = policy(&profile);
        assert!(policy.native(41, [1, 1, 0, 0, 0, 0]).permits() && policy.native(0, [7; 6]).permits());
        assert!(!policy.native(41, [2, 1, 0, 0, 0, 0]).permits() && !policy.native(1, [0; 6]).permits(), "what was not seen");
    }

    #[test]
    fn what_the_run_asked_in_vain_is_left_out_and_named() {
        let seen = recording(&[(0, [0; 6]), (435, [0; 6])]);
        let base = policy(&recording(&[(0, [0; 6])]).profile(ARCH, "r", None));
        assert_eq!(seen.refused(&base), ["clone3"]);
        assert_eq!(seen.profile(ARCH, "r", Some(&base)).syscalls.len(), 1);
        let mut foreign = Recording::default();
        foreign.add(ARCH, 0x4000_0003, 11, [0; 6]);
        assert_eq!((foreign.foreign, foreign.profile(ARCH, "r", None).syscalls.len()), (1, 0));
    }

    #[test]
    fn runs_are_merged_and_profiles_minimised() {
        let mut both = recording(&[(0, [0; 6]), (41, [1, 1, 0, 0, 0, 0])]).profile(ARCH, "one", None);
        merge(&mut both, recording(&[(1, [0; 6]), (0, [0; 6]), (41, [2, 1, 0, 0, 0, 0])]).profile(ARCH, "two", None));
        let names: Vec<&str> = both.syscalls.iter().map(|rule| rule.names[0].as_str()).collect();
        assert_eq!(names, ["read", "socket", "write", "socket"]);
        let run = policy(&recording(&[(0, [0; 6])]).profile(ARCH, "three", None));
        let (least, unused) = minimise(&Document::oci(both), target(), &[run]);
        assert_eq!((least.syscalls.len(), unused), (1, vec!["socket".to_owned(), "write".to_owned()]));
    }
}
