//! Random small profiles: whatever resolves is compiled to the same decisions.

use proptest::prelude::*;

use super::super::model::{Arg, Operator, Rule};
use super::*;

/// Few calls, arguments and values, so that rules meet each other.
const CALLS: [&str; 4] = ["read", "socket", "ioctl", "clone"];

fn action() -> impl Strategy<Value = (ActionWord, Option<u32>)> {
    prop_oneof![
        4 => Just((ActionWord::Allow, None)),
        2 => Just((ActionWord::Errno, Some(1))),
        1 => Just((ActionWord::Errno, Some(13))),
        1 => Just((ActionWord::Log, None)),
        1 => Just((ActionWord::Trap, None)),
        1 => Just((ActionWord::KillProcess, None)),
    ]
}

fn arg(index: u32) -> impl Strategy<Value = Arg> {
    let operator = prop_oneof![
        Just(Operator::Eq),
        Just(Operator::Ne),
        Just(Operator::Lt),
        Just(Operator::Le),
        Just(Operator::Gt),
        Just(Operator::Ge),
        Just(Operator::MaskedEq),
    ];
    (0_u64..4, 0_u64..4, operator).prop_map(move |(value, second, op)| {
        let value_two = if op == Operator::MaskedEq { second & value } else { 0 };
        Arg { index, value, value_two, op }
    })
}

fn rule() -> impl Strategy<Value = Rule> {
    let first = proptest::option::of(arg(0));
    let second = proptest::option::of(arg(1));
    (proptest::sample::select(&CALLS), action(), first, second).prop_map(|(name, (action, errno_ret), first, second)| {
        let args = first.into_iter().chain(second).collect();
        let names = vec![name.to_owned()];
        Rule { names, action, errno_ret, args: Some(args), comment: None, includes: None, excludes: None }
    })
}

fn profile() -> impl Strategy<Value = SeccompProfile> {
    let default = prop_oneof![Just((ActionWord::Errno, Some(38))), Just((ActionWord::KillProcess, None))];
    (default, proptest::collection::vec(rule(), 0..8)).prop_map(|((default_action, default_errno_ret), syscalls)| {
        SeccompProfile { default_action, default_errno_ret, architectures: Vec::new(), arch_map: Vec::new(), syscalls }
    })
}

/// The same refusals, whoever answers them.
fn untold(action: Action) -> Action {
    match action {
        Action::Notify(errno) => Action::Errno(errno),
        Action::Audit => Action::Errno(0),
        Action::Allow | Action::Log | Action::Errno(_) | Action::Trap | Action::KillThread | Action::KillProcess => action,
    }
}

proptest! {
    #[test]
    fn telling_refusals_changes_none_and_only_the_first_filter_tells(profile in profile()) {
        let target = Target { arch: Arch::X86_64, kernel: KERNEL, capabilities: &[] };
        if let Ok(rules) = resolve(&profile, target)
            && let Some(told) = notify::notifying(&rules)
        {
            let filters = compile(&told).expect("a small profile compiles");
            for number in CALLS.iter().filter_map(|name| Arch::X86_64.number(name)).chain([1, 600]) {
                for (first, second) in (0..5).flat_map(|first| (0..5).map(move |second| (first, second))) {
                    let args = [first, second, 0, 0, 0, 0];
                    assert_same(&told, &filters, number, args);
                    prop_assert_eq!(untold(told.verdict(number, args)), rules.verdict(number, args));
                    let call = Invocation::native(Arch::X86_64, number, args);
                    prop_assert!(!matches!(decide(&filters[1..], &call), Ok(Action::Notify(_))));
                }
            }
        }
    }

    #[test]
    fn any_profile_that_resolves_is_compiled_to_the_same_decisions(profile in profile()) {
        let target = Target { arch: Arch::X86_64, kernel: KERNEL, capabilities: &[] };
        // Contradictions and too strong fallbacks are refused; everything else must agree.
        if let Ok(rules) = resolve(&profile, target) {
            let filters = compile(&rules).expect("a small profile compiles");
            for number in CALLS.iter().filter_map(|name| Arch::X86_64.number(name)).chain([1, 600]) {
                for (first, second) in (0..5).flat_map(|first| (0..5).map(move |second| (first, second))) {
                    for high in [0, 1 << 32] {
                        assert_same(&rules, &filters, number, [first | high, second | high, 0, 0, 0, 0]);
                    }
                }
            }
        }
    }
}
