//! The filters: that what they refuse would reach the kernel without them.
//!
//! Most of what is refused is never let through to the kernel here, in no sandbox: a filter of the trial stands behind those of
//! the plan, and what passes theirs ends at its answer. Only calls whose arguments can't do anything meet the kernel itself.

use serde_json::{Value, json};

use super::super::golden;
use super::{Attempt, PAIR, Pair, World, cuts, python};
use crate::bench::{Bench, Draft};
use crate::escape::PROFILES;
use crate::support::{Feature, host, trial};

pub(super) const PAIRS: &[Pair] = &[
    Pair {
        wall: "seccomp",
        claim: "a new namespace can be made",
        needs: needs_x86,
        // The flag makes it a user namespace; with CLONE_FS as well the kernel refuses, so none comes of it.
        without: cuts::seccomp,
        attempt: Attempt::Python("print(call(56, 0x10000000 | 0x200 | 17, 0, 0, 0, 0)[1])"),
        held: "EPERM",
        open: "EINVAL",
        ..PAIR
    },
    Pair {
        wall: "seccomp",
        claim: "a terminal can be typed into",
        needs: needs_x86,
        alone: |plan| cuts::add_filter(plan, answer(&[Call { number: 16, argument: Some((1, 0x5412)), how: ENDS_HERE }])),
        without: cuts::seccomp_of_the_plan,
        attempt: Attempt::Python("print([call(16, 0, 0x5412 | high, b'x')[1] for high in (0, 1 << 32)])"),
        held: "['EPERM', 'EPERM']",
        open: "['ENOSYS', 'ENOSYS']",
        ..PAIR
    },
    Pair {
        wall: "seccomp",
        claim: "sockets of AF_PACKET, AF_ALG and AF_VSOCK can be made",
        needs: needs_x86,
        alone: |plan| {
            let family = |family| Call { number: 41, argument: Some((0, family)), how: ENDS_HERE };
            cuts::add_filter(plan, answer(&[family(17), family(38), family(40)]));
        },
        without: cuts::seccomp_of_the_plan,
        attempt: Attempt::Python("print({call(41, f | high, 3, 0)[1] for f in (17, 38, 40) for high in (0, 1 << 32)})"),
        held: "{'EPERM'}",
        open: "{'ENOSYS'}",
        ..PAIR
    },
    Pair {
        wall: "seccomp",
        claim: "x32 numbers get past the filters",
        needs: needs_x86,
        alone: |plan| cuts::add_filter(plan, answer(&[Call { number: X32_GETPID, argument: None, how: ANOTHER_ANSWER }])),
        without: cuts::seccomp_of_the_plan,
        attempt: Attempt::Python("print(call(0x40000000 | 39)[1])"),
        held: "ENOSYS",
        open: "EBADE",
        ..PAIR
    },
];

const X32_GETPID: u32 = 0x4000_0000 + 39;

fn needs_x86(_: &Bench) {
    host().need(Feature::X86);
}

pub(super) fn trials() -> Vec<libtest_mimic::Trial> {
    let mut trials = Vec::new();
    for profile in PROFILES {
        let name = format!("without the wall seccomp every call that {profile} refuses gets to the kernel, with it none does");
        trials.push(trial("escape", &name, move || refused_table(profile)));
    }
    let name = "without the wall seccomp the kernel itself answers a root of the sandbox, with it it does not";
    trials.push(trial("escape", name, kernel_answers));
    trials.push(trial("escape", "without the wall seccomp i386 calls work, with it they end the program", i386));
    trials
}

/// `SECCOMP_RET_TRACE`, weaker than every refusal: without a tracer the call ends here with ENOSYS.
pub(super) const ENDS_HERE: u32 = 0x7ff0_0000;
/// `SECCOMP_RET_ERRNO` with EBADE, which no call gives: a newer filter's errno takes its place.
const ANOTHER_ANSWER: u32 = 0x0005_0000 | nix::errno::Errno::EBADE as u32;
const ALLOW: u32 = 0x7fff_0000;

/// A call that the trial's own filter answers.
#[derive(Clone, Copy)]
pub(super) struct Call {
    pub number: u32,
    /// Index, and the value of its low word.
    pub argument: Option<(u32, u32)>,
    pub how: u32,
}

/// A filter that answers these calls and lets all others go on: an array of `struct sock_filter`.
pub(super) fn answer(calls: &[Call]) -> Vec<u8> {
    // linux/bpf_common.h: load a word of seccomp_data, compare it with a constant, return.
    const LOAD: u16 = 0x20;
    const JUMP_IF_EQUAL: u16 = 0x15;
    const RETURN: u16 = 0x06;
    let mut program = Vec::new();
    let mut add = |code: u16, (equal, other): (u8, u8), k: u32| {
        program.extend(code.to_ne_bytes());
        program.extend([equal, other]);
        program.extend(k.to_ne_bytes());
    };
    for call in calls {
        // The number is the first word of seccomp_data, the arguments begin at its byte 16.
        add(LOAD, (0, 0), 0);
        match call.argument {
            None => add(JUMP_IF_EQUAL, (0, 1), call.number),
            Some((index, value)) => {
                add(JUMP_IF_EQUAL, (0, 3), call.number);
                add(LOAD, (0, 0), 16 + 8 * index);
                add(JUMP_IF_EQUAL, (0, 1), value);
            }
        }
        add(RETURN, (0, 0), call.how);
    }
    add(RETURN, (0, 0), ALLOW);
    program
}

/// What a program sees in a sandbox of this profile, after the plan was cut.
fn told(profile: &str, cut: impl Fn(&mut codebeaker::plan::Plan), code: &str) -> String {
    host().need(Feature::X86).need(Feature::Python);
    let mut bench = Bench::new();
    let Draft { compiled, cgroups } = bench.draft(profile);
    let mut plan = compiled.plan;
    cut(&mut plan);
    let made = bench.create(plan, &cgroups).expect("the launcher builds it");
    assert!(made.says().is_some(), "init builds it");
    let said = python(&made, code, "/", &World::empty());
    bench.end(&made);
    said
}

pub(super) fn json_told(profile: &str, cut: impl Fn(&mut codebeaker::plan::Plan), code: &str) -> Value {
    let said = told(profile, cut, code);
    serde_json::from_str(&said).unwrap_or_else(|error| panic!("{error}: {said}"))
}

/// All that the golden list of a profile promises to be refused whatever the arguments, the whole row of SECURITY's "never, in
/// any" among it.
fn refused_table(profile: &'static str) {
    let refused = golden::refused(profile);
    for name in NEVER {
        assert!(refused.values().any(|(refused, _)| refused == name), "{name} is not refused by the list of {profile}");
    }
    let ends = |verdict: &str| if verdict == "ENOSYS" { ANOTHER_ANSWER } else { ENDS_HERE };
    let calls: Vec<Call> =
        refused.iter().map(|(number, (_, verdict))| Call { number: *number, argument: None, how: ends(verdict) }).collect();
    let filter = answer(&calls);
    let numbers: Vec<&u32> = refused.keys().collect();
    let code = format!("print(json.dumps({{nr: call(nr, -1, -1, -1, -1, -1, -1)[1] for nr in {numbers:?} + [39]}}))");
    let with = json_told(profile, |plan| cuts::add_filter(plan, filter.clone()), &code);
    let without = |plan: &mut codebeaker::plan::Plan| {
        cuts::seccomp(plan);
        cuts::add_filter(plan, filter.clone());
    };
    let without = json_told(profile, without, &code);
    let mut wrong = Vec::new();
    for (number, (name, verdict)) in &refused {
        let number = number.to_string();
        let past = if verdict == "ENOSYS" { "EBADE" } else { "ENOSYS" };
        if with[&number] != verdict.as_str() || without[&number] != past {
            wrong.push(format!("{name}: {} with, {} without", with[&number], without[&number]));
        }
    }
    assert!(wrong.is_empty(), "{profile}: {}", wrong.join("; "));
    assert_eq!((&with["39"], &without["39"]), (&json!("ok"), &json!("ok")), "the control: getpid");
}

/// SECURITY: never, in any profile.
const NEVER: [&str; 34] = [
    "unshare",
    "setns",
    "clone3",
    "mount",
    "umount2",
    "pivot_root",
    "mount_setattr",
    "open_tree",
    "open_tree_attr",
    "move_mount",
    "fsopen",
    "fsconfig",
    "fsmount",
    "fspick",
    "io_uring_setup",
    "io_uring_enter",
    "io_uring_register",
    "keyctl",
    "add_key",
    "request_key",
    "bpf",
    "userfaultfd",
    "perf_event_open",
    "kexec_load",
    "kexec_file_load",
    "init_module",
    "finit_module",
    "delete_module",
    "ptrace",
    "open_by_handle_at",
    "reboot",
    "swapon",
    "swapoff",
    "acct",
];

/// Calls of a program that is root of the sandbox with every capability of it, with arguments that no kernel can act on. The
/// answers come before the kernel looks at anything, so they are the same on every host.
fn kernel_answers() {
    const CALLS: &str = r#"{"mount": (165, b"none", 0, b"tmpfs", 0, 0), "umount2": (166, b"/", -1), "pivot_root": (155, 0, 0),
        "setns": (308, -1, 0), "unshare": (272, 1), "ptrace": (101, 16, -1, 0, 0), "add_key": (248, 0, 0, 0, 0, 0),
        "request_key": (249, 0, 0, 0, 0), "perf_event_open": (298, 0, 0, -1, -1, -1),
        "fsopen": (430, 0, -1), "open_tree": (428, -1, 0, -1), "move_mount": (429, -1, 0, -1, 0, -1),
        "mount_setattr": (442, -1, 0, -1, 0, 0), "swapon": (167, 0, -1)}"#;
    let code = format!("print(json.dumps({{name: call(*row)[1] for name, row in {CALLS}.items()}}))");
    let with = json_told("default", cuts::every_capability, &code);
    let without = |plan: &mut codebeaker::plan::Plan| {
        cuts::every_capability(plan);
        cuts::seccomp(plan);
    };
    let without = json_told("default", without, &code);
    let answers = json!({
        "mount": "EFAULT", "umount2": "EINVAL", "pivot_root": "EFAULT", "setns": "EBADF", "unshare": "EINVAL", "ptrace": "ESRCH",
        "add_key": "EFAULT", "request_key": "EFAULT", "perf_event_open": "EINVAL", "fsopen": "EINVAL",
        "open_tree": "EINVAL", "move_mount": "EINVAL", "mount_setattr": "EINVAL", "swapon": "EINVAL",
    });
    assert_eq!(without, answers, "without the filters");
    let refused = with.as_object().expect("a map").values().all(|answer| answer == "EPERM");
    assert!(refused, "with them: {with}");
}

/// `int 0x80` is another table of numbers, which no rule speaks of.
fn i386() {
    let code = r#"
import mmap
def old(nr):
    page = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    page.write(b"\xb8" + nr.to_bytes(4, "little") + b"\xcd\x80\xc3")
    return ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(page)))()
print(forked(lambda: old(20) == os.getpid()))"#;
    let without = told("default", cuts::seccomp, code);
    host().need_that("ia32", without == "True", "the kernel has no i386 calls");
    let with = told("default", |_| {}, code);
    let status: u32 = with.strip_prefix("died:").and_then(|status| status.parse().ok()).unwrap_or_default();
    assert_eq!(status & 0x7f, 31, "SIGSYS ends it: {with}");
}
