//! Whether the compiled filters say what the profile says: every number of the table and many that are none, the foreign entries,
//! and both sides of every comparison, asked of the rules and of the simulated programs.
//!
//! Invariant: pure; what the kernel itself answers is asked by the caller with the list of [`harmless`] calls.

use super::Invocation;
use super::arch::{self, Arch};
use super::explain;
use super::policy::{Policy, combinations, joined};
use super::ruleset::X32_BIT;
use super::verdict::Verdict;

/// Numbers that are asked beside those of the table.
const NUMBERS_MAX: u32 = 1024;
const ODD_NUMBERS: [u32; 4] = [4095, 0x3FFF_FFFF, 0x8000_0000, u32::MAX];

/// What was asked, and what came out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// Questions.
    pub asked: usize,
    /// Numbers.
    pub numbers: usize,
    /// Calls on which the two disagree: call, rules, filters.
    pub wrong: Vec<(String, Verdict, Verdict)>,
}

/// Compares rules with the filters that were compiled from them.
pub fn verify(rules: &Policy, filters: &Policy) -> Report {
    let arch = rules.arch();
    let mut report = Report { asked: 0, numbers: 0, wrong: Vec::new() };
    let mut ask = |name: &str, call: Invocation| {
        report.asked += 1;
        let (said, done) = (rules.verdict(&call), filters.verdict(&call));
        if said != done {
            report.wrong.push((explain::call_text(name, call.args), said, done));
        }
    };
    for number in (0..NUMBERS_MAX).chain(ODD_NUMBERS) {
        let name = arch.name(number).map_or_else(|| format!("#{number}"), str::to_owned);
        for args in combinations(&joined(&rules.probes(number), &filters.probes(number))) {
            ask(&name, Invocation::native(arch, number, args));
        }
        ask(&name, Invocation::native(arch, number, [u64::MAX; 6]));
        if arch == Arch::X86_64 {
            ask(&format!("x32 {name}"), Invocation::native(arch, number | X32_BIT, [0; 6]));
        }
        let foreign = arch.audit_value() ^ 1;
        ask(&format!("foreign {name}"), Invocation { arch: foreign, number, args: [0; 6] });
    }
    report.numbers = NUMBERS_MAX as usize + ODD_NUMBERS.len();
    report
}

/// Calls that change nothing and can't block with zero arguments, so that letting them through does no harm.
#[rustfmt::skip]
const HARMLESS: &[&str] = &[
    "getpid", "getppid", "gettid", "getuid", "geteuid", "getgid", "getegid", "getpgrp", "sched_yield", "getrandom", "umask", "getpriority",
    "sched_get_priority_max", "sched_get_priority_min", "uname", "times", "getcpu", "sysinfo", "clock_gettime", "clock_getres", "time",
];

/// Calls that are never asked, however surely the filter answers: what they would do if it did not is not a matter for a test.
#[rustfmt::skip]
const NEVER_ASKED: &[&str] = &[
    "mount", "umount2", "pivot_root", "chroot", "fsopen", "fsmount", "fsconfig", "fspick", "move_mount", "open_tree", "open_tree_attr",
    "mount_setattr", "ptrace", "reboot", "kexec_load", "kexec_file_load", "init_module", "finit_module", "delete_module", "swapon", "swapoff",
    "acct", "vhangup", "settimeofday", "clock_settime", "adjtimex", "clock_adjtime", "setns", "unshare", "kill", "tkill", "tgkill", "exit",
    "exit_group", "fork", "vfork", "clone", "clone3", "rt_sigreturn", "pause", "bpf", "iopl", "ioperm",
    // Entries of the kernel's own probes, which it carries out before any filter.
    "uretprobe", "uprobe",
];

/// What the kernel can be asked without harm: calls that the filter refuses with an errno, whose bodies never run, and calls that do
/// nothing. The errno or, for those let through, nothing.
pub fn harmless(rules: &Policy) -> Vec<(u32, &'static str, Verdict)> {
    let ask = |(number, name)| {
        let outcomes = rules.outcomes(number);
        let verdict = *outcomes.first()?;
        let refused = outcomes.len() == 1 && matches!(verdict, Verdict::Errno(1..)) && !NEVER_ASKED.contains(&name);
        let open = outcomes.len() == 1 && verdict == Verdict::Allow && HARMLESS.contains(&name);
        (refused || open).then_some((number, name, verdict))
    };
    arch::names(rules.arch()).filter_map(ask).collect()
}
