//! Random profiles against libseccomp: what `--engine libseccomp` says is what libseccomp's own filters do, and what CodeBeaker compiles
//! agrees with it wherever both engines read the rules alike.

use std::io::Write;
use std::process::{Command, Stdio};

use codebeaker::seccomp::bpf::Program;
use codebeaker::seccomp::compile::compile;
use codebeaker::seccomp::document::Document;
use codebeaker::seccomp::model::{ActionWord, Arg, Operator, Rule, SeccompProfile};
use codebeaker::seccomp::policy::{Policy, combinations, joined};
use codebeaker::seccomp::resolve::{Target, resolve};
use codebeaker::seccomp::ruleset::{Engine, Ruleset};
use codebeaker::seccomp::verdict::Verdict;
use codebeaker::seccomp::{Arch, KernelVersion, names};
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;

use crate::support::{Feature, host, page};

const PROFILES: usize = 80;
/// Calls whose first arguments are 64 bits wide, so that both engines compare as much.
const CALLS: [&str; 5] = ["lseek", "read", "mmap", "munmap", "futex_wait"];

pub fn trials() -> Vec<libtest_mimic::Trial> {
    page("seccomp", &[("random profiles are read as libseccomp reads them, and compiled to the same decisions", oracle)])
}

/// For calls with one rule.
const ALL: [Operator; 7] =
    [Operator::Eq, Operator::Ne, Operator::Lt, Operator::Le, Operator::Gt, Operator::Ge, Operator::MaskedEq];
/// For calls with several: where two rules order the same argument, libseccomp 2.5.4 merges their trees into one that lets more
/// through than either rule (`arg1 <= 4 and arg2 > 0xffffffff` beside `arg1 >= 0xffffffff` admits arg1 = 0, arg2 = 0xffffffff).
const EXACT: [Operator; 1] = [Operator::Eq];

fn arg(index: u32, operators: &'static [Operator]) -> impl Strategy<Value = Arg> {
    let value = prop_oneof![0_u64..5, Just(1 << 32), Just(0xFFFF_FFFF)];
    (value, 0_u64..5, proptest::sample::select(operators)).prop_map(move |(value, second, op)| {
        let value_two = if op == Operator::MaskedEq { second & value } else { 0 };
        Arg { index, value, value_two, op }
    })
}

/// One call's rules: without arguments, or several with arguments and one action – of overlapping rules with different actions
/// libseccomp does not say which wins.
fn rules(name: &'static str) -> impl Strategy<Value = Vec<Rule>> {
    let action = prop_oneof![
        3 => Just((ActionWord::Allow, None)),
        2 => Just((ActionWord::Errno, Some(1))),
        1 => Just((ActionWord::Log, None)),
        1 => Just((ActionWord::Trap, None)),
    ];
    let pair = |operators| (arg(1, operators), proptest::option::of(arg(2, operators)));
    let args =
        prop_oneof![Just(Vec::new()), proptest::collection::vec(pair(&ALL), 1), proptest::collection::vec(pair(&EXACT), 2..5),];
    (action, args).prop_map(move |((action, errno_ret), args)| {
        let rule = |args| Rule {
            names: vec![name.to_owned()],
            action,
            errno_ret,
            args,
            comment: None,
            includes: None,
            excludes: None,
        };
        if args.is_empty() {
            return vec![rule(None)];
        }
        args.into_iter().map(|(one, two)| rule(Some([Some(one), two].into_iter().flatten().collect()))).collect()
    })
}

fn profile() -> impl Strategy<Value = SeccompProfile> {
    let calls: Vec<_> = CALLS.into_iter().map(|name| proptest::option::of(rules(name))).collect();
    calls.prop_map(|calls| SeccompProfile {
        default_action: ActionWord::Errno,
        default_errno_ret: Some(38),
        architectures: Vec::new(),
        arch_map: Vec::new(),
        syscalls: calls.into_iter().flatten().flatten().collect(),
    })
}

fn oracle() {
    host().need(Feature::Libseccomp).need(Feature::X86);
    let mut runner = TestRunner::deterministic();
    let profiles: Vec<SeccompProfile> =
        (0..PROFILES).map(|_| profile().new_tree(&mut runner).expect("a profile").current()).collect();
    let target = Target { arch: Arch::X86_64, kernel: KernelVersion { major: 6, minor: 18 }, capabilities: &[] };
    let mut compared = 0;
    for (profile, filter) in profiles.iter().zip(libseccomp(&profiles)) {
        let filters = vec![Program::parse(&filter).expect("libseccomp writes what the kernel takes")];
        let theirs = Policy::Programs { arch: Arch::X86_64, filters };
        let read = Policy::Rules(Ruleset::new(&Document::oci(profile.clone()), target, Engine::Libseccomp));
        let compiled = compile(&resolve(profile, target).expect("it resolves")).expect("it compiles");
        let filters = compiled.iter().map(|bytes| Program::parse(bytes).expect("so do we")).collect();
        let ours = Policy::Programs { arch: Arch::X86_64, filters };
        for (number, name) in names(Arch::X86_64) {
            for args in combinations(&joined(&theirs.probes(number), &read.probes(number))) {
                compared += 1;
                let told = theirs.native(number, args);
                assert_eq!(read.native(number, args), told, "read: {name} {args:x?} {profile:?}");
                assert_eq!(ours.native(number, args), told, "compiled: {name} {args:x?} {profile:?}");
            }
        }
        assert_eq!(theirs.native(0x4000_0000, [0; 6]), read.native(0x4000_0000, [0; 6]), "x32");
    }
    assert!(compared > PROFILES * 400, "{compared}");
    let allowing = |policy: &Policy| policy.outcomes(0).contains(&Verdict::Allow);
    let some =
        profiles.iter().map(|profile| Policy::Rules(Ruleset::new(&Document::oci(profile.clone()), target, Engine::Libseccomp)));
    assert!(some.filter(allowing).count() > 5, "the profiles are not all alike");
}

/// libseccomp's filters, by a Python of the host's own.
fn libseccomp(profiles: &[SeccompProfile]) -> Vec<Vec<u8>> {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/suite/fixtures/libseccomp.py");
    let mut python = Command::new("/usr/bin/python3")
        .args(["-B", script])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("the feature is there");
    let mut input = python.stdin.take().expect("a pipe");
    let lines: String = profiles.iter().map(|profile| serde_json::to_string(profile).expect("it is JSON") + "\n").collect();
    // A thread writes, so that neither pipe fills while the other waits.
    let writer = std::thread::spawn(move || input.write_all(lines.as_bytes()));
    let output = python.wait_with_output().expect("our own child");
    writer.join().expect("the writer ends").expect("python reads all");
    assert!(output.status.success());
    let text = String::from_utf8(output.stdout).expect("digits");
    let filters: Vec<Vec<u8>> = text.lines().map(bytes).collect();
    assert_eq!(filters.len(), profiles.len());
    filters
}

fn bytes(digits: &str) -> Vec<u8> {
    (0..digits.len() / 2).map(|at| u8::from_str_radix(&digits[at * 2..at * 2 + 2], 16).expect("two digits")).collect()
}
