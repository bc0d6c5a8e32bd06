//! Compiled filters against the resolved rules, and the built-in profiles against what they promise.
//!
//! The golden lists in tests/golden/ are written anew with `CODEBEAKER_UPDATE_GOLDEN=1 cargo test --lib seccomp`.

mod random;
mod tools;

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::path::PathBuf;

use super::compile::compile;
use super::model::{ActionWord, SeccompProfile};
use super::resolve::{Problem, Resolved, Target, Test, resolve};
use super::*;
use crate::sandbox::profile::load::built_in_rules;

const KERNEL: KernelVersion = KernelVersion { major: 6, minor: 18 };
const PROFILES: [&str; 3] = ["strict", "default", "permissive"];
const ARCHES: [Arch; 2] = [Arch::X86_64, Arch::Aarch64];
const EPERM: Action = Action::Errno(1);
const ENOSYS: Action = Action::Errno(38);
const X32_BIT: u32 = 0x4000_0000;
const AUDIT_ARCH_I386: u32 = 0x4000_0003;

struct Compiled {
    rules: Resolved,
    filters: Vec<Vec<u8>>,
}

impl Compiled {
    fn built_in(name: &str, arch: Arch) -> Self {
        let (rules, _) = built_in_rules(name, arch, KERNEL);
        let filters = compile(&rules).expect("the profile compiles");
        Self { rules, filters }
    }

    fn verdict(&self, name: &str, args: &[u64]) -> Action {
        let number = self.rules.arch.number(name).expect("the call exists");
        let mut six = [0; 6];
        six[..args.len()].copy_from_slice(args);
        decide(&self.filters, &Invocation::native(self.rules.arch, number, six)).expect("the filters run")
    }
}

fn parse(json: &str) -> SeccompProfile {
    serde_json::from_str(json).expect("the profile parses")
}

fn resolved(json: &str) -> Result<Resolved, Problem> {
    let target = Target { arch: Arch::X86_64, kernel: KERNEL, capabilities: &["CAP_CHOWN".to_owned()] };
    resolve(&parse(json), target).map_err(|error| error.problem)
}

/// Values around every constant that the rules of one call compare, with and without high words.
fn interesting_values(rules: &Resolved, number: u32) -> Vec<u64> {
    let mut values = BTreeSet::from([0, 1, u64::from(u32::MAX), u64::MAX]);
    let conditional = rules.calls.get(&number).map(|call| call.conditional.as_slice()).unwrap_or_default();
    for condition in conditional.iter().flat_map(|rule| &rule.conditions) {
        let (value, mask) = match condition.test {
            Test::Eq(value) | Test::Ne(value) | Test::Lt(value) | Test::Le(value) | Test::Gt(value) | Test::Ge(value) => {
                (value, 0)
            }
            Test::Masked { mask, value } => (value, mask),
        };
        for near in [value, value.wrapping_add(1), value.wrapping_sub(1), value ^ mask, value | !mask] {
            values.extend([near, near | 1 << 32, near | 1 << 63]);
        }
    }
    values.into_iter().collect()
}

fn assert_same(rules: &Resolved, filters: &[Vec<u8>], number: u32, args: [u64; 6]) {
    let said = decide(filters, &Invocation::native(rules.arch, number, args)).expect("the filters run");
    assert_eq!(said, rules.verdict(number, args), "{:?} {number} {args:x?}", rules.arch);
}

/// Every number to 600 with plain arguments, and conditional calls with their interesting values on three positions.
fn assert_compiled_as_resolved(rules: &Resolved, filters: &[Vec<u8>]) {
    for number in 0..=600 {
        assert_same(rules, filters, number, [0; 6]);
        assert_same(rules, filters, number, [u64::MAX; 6]);
        if rules.calls.get(&number).is_none_or(|call| call.conditional.is_empty()) {
            continue;
        }
        let values = interesting_values(rules, number);
        for &first in &values {
            for &second in &values {
                for third in [0, 6, 17, 31, 100, second] {
                    assert_same(rules, filters, number, [first, second, third, 0, 0, 0]);
                }
            }
        }
    }
}

#[test]
fn compiled_filters_decide_as_the_resolved_rules_for_every_number() {
    for name in PROFILES {
        for arch in ARCHES {
            let compiled = Compiled::built_in(name, arch);
            assert_compiled_as_resolved(&compiled.rules, &compiled.filters);
        }
    }
}

#[test]
fn i386_is_killed_and_x32_numbers_do_not_exist() {
    for name in PROFILES {
        let compiled = Compiled::built_in(name, Arch::X86_64);
        for number in 0..=600 {
            let mut call = Invocation::native(Arch::X86_64, number | X32_BIT, [0; 6]);
            assert_eq!(decide(&compiled.filters, &call), Ok(ENOSYS), "{name} x32 {number}");
            call.arch = AUDIT_ARCH_I386;
            call.number = number;
            assert_eq!(decide(&compiled.filters, &call), Ok(Action::KillProcess), "{name} i386 {number}");
        }
        assert_eq!(compiled.verdict("read", &[]), Action::Allow, "{name}: the native call is the control");
    }
}

#[test]
fn unknown_numbers_and_clone3_are_enosys_and_denied_calls_are_eperm() {
    for name in PROFILES {
        let compiled = Compiled::built_in(name, Arch::X86_64);
        assert_eq!(compiled.verdict("clone3", &[]), ENOSYS, "{name}");
        for call in ["mount", "unshare", "setns", "bpf", "io_uring_setup", "keyctl", "userfaultfd", "ptrace", "kexec_load"] {
            assert_eq!(compiled.verdict(call, &[]), EPERM, "{name} {call}");
        }
        for number in [470, 500, 4096, u32::MAX] {
            let call = Invocation::native(Arch::X86_64, number, [0; 6]);
            assert_eq!(decide(&compiled.filters, &call), Ok(ENOSYS), "{name} {number}");
        }
    }
}

#[test]
fn sockets_are_those_of_the_profile_whatever_the_high_words_say() {
    const STREAM: u64 = 1;
    const DGRAM: u64 = 2;
    const RAW: u64 = 3;
    const CLOEXEC_NONBLOCK: u64 = 0x8_0800;
    // Family, type, protocol, and whether strict and default allow it.
    let sockets = [
        (1, STREAM, 0, true, true),
        (1, DGRAM, 0, true, true),
        (2, STREAM, 0, false, true),
        (2, STREAM, 6, false, true),
        (2, DGRAM, 17, false, true),
        (10, STREAM, 6, false, true),
        (2, RAW, 1, false, false),
        (2, STREAM, 132, false, false),
        (2, DGRAM, 6, false, false),
        (16, RAW, 0, false, true),
        (16, RAW, 6, false, false),
        (16, DGRAM, 12, false, false),
        (17, RAW, 0, false, false),
        (38, 5, 0, false, false),
        (40, STREAM, 0, false, false),
        (0, STREAM, 0, false, false),
    ];
    for (profile, column) in [("strict", 0), ("default", 1)] {
        let compiled = Compiled::built_in(profile, Arch::X86_64);
        for (family, kind, protocol, strict, default) in sockets {
            let expected = if [strict, default][column] { Action::Allow } else { EPERM };
            for high in [0, 1 << 32] {
                let args = [family | high, kind | CLOEXEC_NONBLOCK | high, protocol | high];
                assert_eq!(compiled.verdict("socket", &args), expected, "{profile} {args:x?}");
            }
        }
    }
    let permissive = Compiled::built_in("permissive", Arch::X86_64);
    assert_eq!(permissive.verdict("socket", &[2, STREAM, 132]), Action::Allow);
    assert_eq!(permissive.verdict("socket", &[16, RAW, 6]), EPERM);
    assert_eq!(permissive.verdict("socket", &[38, 5, 0]), EPERM);
}

#[test]
fn single_arguments_are_refused_beside_their_harmless_neighbours() {
    const HIGH: u64 = 1 << 32;
    const SIGCHLD: u64 = 0x11;
    for name in PROFILES {
        let compiled = Compiled::built_in(name, Arch::X86_64);
        for request in [0x5412, 0x541C, 0x5412 | HIGH] {
            assert_eq!(compiled.verdict("ioctl", &[0, request]), EPERM, "{name} {request:x}");
        }
        assert_eq!(compiled.verdict("ioctl", &[0, 0x5413]), Action::Allow, "{name}");
        for namespace in [0x0002_0000, 0x0200_0000, 0x1000_0000 | HIGH, 0x4000_0000] {
            assert_eq!(compiled.verdict("clone", &[namespace | SIGCHLD]), EPERM, "{name} {namespace:x}");
        }
        assert_eq!(compiled.verdict("clone", &[0x003D_0F00]), Action::Allow, "{name}: pthread_create's flags");
        assert_eq!(compiled.verdict("personality", &[0xFFFF_FFFF]), Action::Allow, "{name}");
        assert_eq!(compiled.verdict("personality", &[0x0040_0000]), EPERM, "{name}");
        for (level, option) in [(6, 31), (17, 100), (0, 17), (41, 35)] {
            assert_eq!(compiled.verdict("setsockopt", &[3, level | HIGH, option]), EPERM, "{name} {level} {option}");
        }
        assert_eq!(compiled.verdict("setsockopt", &[3, 1, 2]), Action::Allow, "{name}: SO_REUSEADDR");
    }
}

#[test]
fn every_rule_has_its_reason() {
    for name in PROFILES {
        let (_, profile) = built_in_rules(name, Arch::X86_64, KERNEL);
        for rule in &profile.syscalls {
            let reason = rule.comment.as_deref().unwrap_or_default();
            assert!(reason.len() > 10 && reason.ends_with('.'), "{name}: {:?}", rule.names);
        }
    }
}

#[test]
fn strict_allows_about_two_hundred_calls() {
    let compiled = Compiled::built_in("strict", Arch::X86_64);
    let permitted =
        compiled.rules.calls.values().filter(|call| {
            call.fallback.is_some_and(Action::permits) || call.conditional.iter().any(|rule| rule.action.permits())
        });
    let count = permitted.count();
    assert!((200..=230).contains(&count), "{count}");
}

#[test]
fn what_a_stricter_profile_allows_the_looser_ones_allow() {
    for (stricter, looser) in [("strict", "default"), ("default", "permissive")] {
        for arch in ARCHES {
            let (stricter, looser) = (Compiled::built_in(stricter, arch), Compiled::built_in(looser, arch));
            for (number, name) in names(arch) {
                for &value in &interesting_values(&stricter.rules, number) {
                    let args = [value, value, value, 0, 0, 0];
                    let (low, high) = (stricter.rules.verdict(number, args), looser.rules.verdict(number, args));
                    assert!(!low.permits() || high.permits(), "{name} {args:x?}");
                }
            }
        }
    }
}

#[test]
fn the_stack_can_still_be_installed_and_exec_reached_below_its_first_filters() {
    for name in PROFILES {
        let compiled = Compiled::built_in(name, Arch::X86_64);
        assert_eq!(compiled.verdict("seccomp", &[1, 0]), Action::Allow, "{name}: SECCOMP_SET_MODE_FILTER");
        assert_eq!(compiled.verdict("prctl", &[22, 2]), Action::Allow, "{name}: PR_SET_SECCOMP");
        for call in ["execve", "execveat", "write", "close", "exit_group"] {
            assert_eq!(compiled.verdict(call, &[]), Action::Allow, "{name} {call}");
        }
    }
}

#[test]
fn filters_are_few_and_small() {
    for name in PROFILES {
        let compiled = Compiled::built_in(name, Arch::X86_64);
        assert_eq!(compiled.filters.len(), 3, "{name}: the rest of argument rules, the allow-list, the deny-list");
        // The kernel's BPF_MAXINSNS is 4,096.
        assert!(compiled.filters.iter().all(|filter| filter.len() / 8 < 4096), "{name}");
        // What the kernel goes through at each start of a program.
        assert!(compiled.filters.iter().map(|filter| filter.len() / 8).sum::<usize>() < 500, "{name}");
    }
}

#[test]
fn includes_and_excludes_follow_capabilities_architecture_and_kernel() {
    let profile = parse(
        r#"{"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 38, "syscalls": [
            {"names": ["chown"], "action": "SCMP_ACT_ALLOW", "includes": {"caps": ["CAP_CHOWN"]}},
            {"names": ["sync"], "action": "SCMP_ACT_ALLOW", "excludes": {"caps": ["CAP_CHOWN"]}},
            {"names": ["getcpu"], "action": "SCMP_ACT_ALLOW", "includes": {"arches": ["amd64", "x32"]}},
            {"names": ["statx"], "action": "SCMP_ACT_ALLOW", "includes": {"minKernel": "5.10"}}]}"#,
    );
    let caps = ["CAP_CHOWN".to_owned()];
    let old = KernelVersion { major: 5, minor: 9 };
    let verdicts = |arch: Arch, kernel, capabilities: &[String]| {
        let rules = resolve(&profile, Target { arch, kernel, capabilities }).expect("it resolves");
        ["fchown", "sync", "getcpu", "statx"].map(|name| {
            let name = if name == "fchown" && arch == Arch::X86_64 { "chown" } else { name };
            rules.verdict(arch.number(name).expect("it exists"), [0; 6]).permits()
        })
    };
    assert_eq!(verdicts(Arch::X86_64, KERNEL, &caps), [true, false, true, true]);
    assert_eq!(verdicts(Arch::X86_64, old, &[]), [false, true, true, false]);
    assert_eq!(verdicts(Arch::Aarch64, KERNEL, &caps), [false, false, false, true]);
}

#[test]
fn wrong_rules_are_refused_with_the_field() {
    let rule = |rule: &str| resolved(&format!(r#"{{"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [{{{rule}}}]}}"#));
    assert!(rule(r#""names": ["read", "chown32", "s390_sthyi"], "action": "SCMP_ACT_ALLOW""#).is_ok());
    let cases = [
        (r#""names": ["raed"], "action": "SCMP_ACT_ALLOW""#, Problem::UnknownSyscall("raed".to_owned())),
        (r#""names": [], "action": "SCMP_ACT_ALLOW""#, Problem::Empty),
        (r#""names": ["read"], "action": "SCMP_ACT_NOTIFY""#, Problem::UnsupportedAction),
        (r#""names": ["read"], "action": "SCMP_ACT_ALLOW", "errnoRet": 1"#, Problem::StrayErrno),
        (r#""names": ["read"], "action": "SCMP_ACT_ERRNO", "errnoRet": 0"#, Problem::ErrnoRange),
        (
            r#""names": ["read"], "action": "SCMP_ACT_ALLOW", "args": [{"index": 6, "value": 0, "op": "SCMP_CMP_EQ"}]"#,
            Problem::ArgumentIndex,
        ),
        (
            r#""names": ["socket"], "action": "SCMP_ACT_ALLOW", "args": [{"index": 0, "value": 4294967296, "op": "SCMP_CMP_EQ"}]"#,
            Problem::ValueTooWide,
        ),
        (r#""names": ["read"], "action": "SCMP_ACT_ALLOW", "includes": {"caps": ["chown"]}"#, Problem::CapabilityName),
        (r#""names": ["read"], "action": "SCMP_ACT_ALLOW", "includes": {"minKernel": "4"}"#, Problem::KernelVersion),
    ];
    for (text, problem) in cases {
        assert_eq!(rule(text).expect_err(text), problem);
    }
    assert_eq!(resolved(r#"{"defaultAction": "SCMP_ACT_ALLOW"}"#).expect_err("default"), Problem::AllowingDefault);
    let elsewhere = r#"{"defaultAction": "SCMP_ACT_ERRNO", "architectures": ["SCMP_ARCH_S390X"]}"#;
    assert_eq!(resolved(elsewhere).expect_err("architecture"), Problem::ArchitectureMissing("SCMP_ARCH_X86_64"));
    assert!(serde_json::from_str::<SeccompProfile>(r#"{"defaultAction": "SCMP_ACT_ERRNO", "flags": []}"#).is_err());
}

#[test]
fn with_a_listener_each_profile_refuses_the_same_in_two_filters_and_tells_what_it_refuses_with_eperm() {
    for name in PROFILES {
        for arch in ARCHES {
            let (rules, _) = built_in_rules(name, arch, KERNEL);
            let told = notify::notifying(&rules).expect("every profile refuses something");
            let filters = compile(&told).expect("it compiles");
            assert_eq!(filters.len(), 2, "{name}: what is told, the allow-list");
            assert_compiled_as_resolved(&told, &filters);
            for (number, call) in names(arch) {
                for &value in &interesting_values(&rules, number) {
                    let args = [value, value, value, 0, 0, 0];
                    let expected = match rules.verdict(number, args) {
                        EPERM => Action::Notify(1),
                        other => other,
                    };
                    assert_eq!(told.verdict(number, args), expected, "{name} {call} {args:x?}");
                }
            }
        }
    }
}

#[test]
fn an_audit_lets_through_what_a_profile_refuses_and_never_what_none_may_open() {
    for name in PROFILES {
        let (rules, _) = built_in_rules(name, Arch::X86_64, KERNEL);
        let audited = notify::auditing(&rules);
        let filters = compile(&audited).expect("it compiles");
        assert_compiled_as_resolved(&audited, &filters);
        assert_eq!(floor::check(&audited), Ok(()), "{name}");
        let verdict = |call: &str, args: [u64; 6]| {
            let number = Arch::X86_64.number(call).expect("it exists");
            decide(&filters, &Invocation::native(Arch::X86_64, number, args)).expect("the filters run")
        };
        for (number, call) in names(Arch::X86_64) {
            for &value in &interesting_values(&rules, number) {
                let args = [value, value, value, 0, 0, 0];
                let expected = match rules.verdict(number, args) {
                    refused if !refused.permits() && !floor::holds(call) => Action::Audit,
                    as_ever => as_ever,
                };
                assert_eq!(audited.verdict(number, args), expected, "{name} {call} {args:x?}");
            }
        }
        for call in ["mount", "unshare", "bpf", "ptrace", "io_uring_setup"] {
            assert_eq!(verdict(call, [0; 6]), EPERM, "{name} {call}: the kernel refuses, no listener is asked");
        }
        assert_eq!((verdict("clone3", [0; 6]), verdict("socket", [38, 5, 0, 0, 0, 0])), (ENOSYS, EPERM), "{name}");
        assert_eq!(
            (verdict("read", [0; 6]), verdict("setsockopt", [3, 6, 31, 0, 0, 0])),
            (Action::Allow, Action::Audit),
            "{name}"
        );
        let foreign = Invocation { arch: AUDIT_ARCH_I386, number: 1, args: [0; 6] };
        assert_eq!(decide(&filters, &foreign), Ok(Action::KillProcess), "{name}");
        assert_eq!(decide(&filters, &Invocation::native(Arch::X86_64, 999, [0; 6])), Ok(ENOSYS), "{name}");
    }
}

#[test]
fn calls_that_hand_the_listener_over_and_calls_refused_in_two_ways_are_not_told() {
    let rules = |rule: &str| {
        let text = format!(r#"{{"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 38, "syscalls": [{rule}]}}"#);
        resolved(&text).expect("it resolves")
    };
    let refuse = |name: &str| format!(r#"{{"names": ["{name}"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1}}"#);
    assert_eq!(notify::notifying(&rules(&refuse("sendmsg"))), None, "nobody could answer it");
    let both = rules(&[refuse("sendmsg"), refuse("mount")].join(","));
    let told = notify::notifying(&both).expect("mount is told");
    let verdict = |name: &str| told.verdict(Arch::X86_64.number(name).expect("it exists"), [0; 6]);
    assert_eq!((verdict("sendmsg"), verdict("mount"), verdict("read")), (EPERM, Action::Notify(1), ENOSYS));
    let other = r#"{"names": ["mount"], "action": "SCMP_ACT_ERRNO", "errnoRet": 13, "args": [{"index": 0, "value": 3, "op": "SCMP_CMP_EQ"}]}"#;
    assert_eq!(notify::notifying(&rules(&format!("{},{other}", refuse("mount")))), None, "the later errno would lose its tie");
    assert_eq!(notify::notifying(&rules("")), None);
}

/// What `strace -f` saw of Python (threads, subprocess, sqlite, ssl, asyncio, sockets of AF_UNIX), node (timers, workers,
/// child processes, fs) and bash (pipes, job control, here-documents), on x86_64.
const OBSERVED: &str = include_str!("tests/observed.txt");

#[test]
fn what_python_node_and_bash_were_seen_to_call_is_allowed_in_strict() {
    let strict = Compiled::built_in("strict", Arch::X86_64);
    for name in OBSERVED.lines() {
        let number = Arch::X86_64.number(name).unwrap_or_else(|| panic!("{name} exists"));
        let call = strict.rules.calls.get(&number);
        let allowed = call.is_some_and(|call| {
            call.fallback.is_some_and(Action::permits) || call.conditional.iter().any(|rule| rule.action.permits())
        });
        // These have fall-backs: glibc forks with clone, libuv polls with epoll.
        let falls_back = ["clone3", "io_uring_setup"].contains(&name);
        assert!(allowed || falls_back, "{name}");
    }
}

/// One line for each call of the table; `conditional` where arguments decide.
fn golden_list(name: &str) -> String {
    let compiled = Compiled::built_in(name, Arch::X86_64);
    let mut list = String::new();
    for (number, call) in names(Arch::X86_64) {
        let conditional = compiled.rules.calls.get(&number).is_some_and(|rules| !rules.conditional.is_empty());
        let verdict = if conditional { "conditional".to_owned() } else { compiled.verdict(call, &[]).to_string() };
        writeln!(list, "{number} {call} {verdict}").expect("writing to a string");
    }
    list
}

#[test]
fn the_golden_lists_of_system_calls_are_as_committed() {
    for name in PROFILES {
        let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(format!("tests/golden/syscalls-{name}.txt"));
        let list = golden_list(name);
        if std::env::var_os("CODEBEAKER_UPDATE_GOLDEN").is_some() {
            fs::create_dir_all(path.parent().expect("it has a directory")).expect("the directory is made");
            fs::write(&path, &list).expect("the list is written");
        }
        let committed = fs::read_to_string(&path).expect("the list is committed");
        assert!(committed == list, "{name} changed; look at it and write the list with CODEBEAKER_UPDATE_GOLDEN=1");
    }
}
