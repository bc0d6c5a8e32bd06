//! One filter laid out so that the kernel decides quickly: numbers by binary search, arguments by seccompiler.
//!
//! seccompiler asks for one number after the other. The kernel runs every filter once for every number when it is installed (its
//! bitmap of calls that need no filter, kernel/seccomp.c), and a profile has hundreds of numbers: laid out as a list that took
//! 2 ms of every start of a program here. Neighbours with the same answer become one range, ranges become a tree, and only what
//! looks at arguments stays a program of seccompiler's, which also checks the architecture.
//!
//! Invariant: the tree says what the list says; the tests of `compile` hold it, for every number.

use std::collections::BTreeMap;

use seccompiler::{BackendError, BpfProgram, SeccompAction, SeccompFilter, SeccompRule, TargetArch, sock_filter};

use super::shrink;

/// Conditions by number; an empty list matches every argument.
pub(super) type Rules = BTreeMap<i64, Vec<SeccompRule>>;

/// Instructions of seccompiler's check of the architecture, before it loads the number.
const ARCHITECTURE_CHECK: usize = 3;

/// `BPF_MAXINSNS` of linux/bpf_common.h.
const INSTRUCTIONS_MAX: usize = 4096;

/// Of `nr` in `struct seccomp_data`.
pub(super) const NUMBER_OFFSET: u32 = 0;

/// `BPF_LD | BPF_W | BPF_ABS`, `BPF_JMP | BPF_JGE | BPF_K`, `BPF_JMP | BPF_JA` and `BPF_RET | BPF_K` of linux/bpf_common.h.
pub(super) const LOAD: u16 = 0x20;
pub(super) const JUMP_IF_AT_LEAST: u16 = 0x35;
pub(super) const JUMP: u16 = 0x05;
pub(super) const RETURN: u16 = 0x06;

/// Numbers from `start` to the next range's, and the instructions that answer for them.
struct Range {
    start: u32,
    answer: BpfProgram,
}

/// By number: the instructions that answer for it, which end with a return.
pub(super) type Answers = BTreeMap<u32, BpfProgram>;

/// A filter that gives `matched` where a rule matches, else `otherwise`.
pub(super) fn assemble(
    rules: &Rules,
    matched: &SeccompAction,
    otherwise: &SeccompAction,
    arch: TargetArch,
) -> Result<BpfProgram, BackendError> {
    let mut answers = Answers::new();
    for (number, conditions) in rules {
        // System call numbers are small; one that is not could not be called.
        let Ok(number) = u32::try_from(*number) else { continue };
        let answer = if conditions.is_empty() {
            give(u32::from(matched.clone()))
        } else {
            judge(number, conditions.clone(), [matched, otherwise], arch)?
        };
        answers.insert(number, answer);
    }
    lay_out(&answers, u32::from(otherwise.clone()), arch)
}

/// Always this `SECCOMP_RET_*` value.
pub(super) fn give(value: u32) -> BpfProgram {
    vec![instruction(RETURN, 0, 0, value)]
}

/// The first action where a rule matches, else the second; seccompiler's program for this one number.
pub(super) fn judge(
    number: u32,
    rules: Vec<SeccompRule>,
    [matched, otherwise]: [&SeccompAction; 2],
    arch: TargetArch,
) -> Result<BpfProgram, BackendError> {
    let one = seccompilers(Rules::from([(i64::from(number), rules)]), [matched, otherwise], arch)?;
    Ok(one[ARCHITECTURE_CHECK..].to_vec())
}

fn seccompilers(rules: Rules, [matched, otherwise]: [&SeccompAction; 2], arch: TargetArch) -> Result<BpfProgram, BackendError> {
    SeccompFilter::new(rules, otherwise.clone(), matched.clone(), arch)?.try_into()
}

/// `program`, its return of `value` replaced by what `next` does.
pub(super) fn go_on_instead(mut program: BpfProgram, value: u32, next: BpfProgram) -> BpfProgram {
    let length = program.len();
    for (at, step) in program.iter_mut().enumerate() {
        if step.code == RETURN && step.k == value {
            *step = instruction(JUMP, 0, 0, (length - at - 1) as u32);
        }
    }
    program.extend(next);
    program
}

/// `program`, its return of `value` made one of `wanted`.
pub(super) fn replace_return(mut program: BpfProgram, value: u32, wanted: u32) -> BpfProgram {
    program.iter_mut().filter(|step| step.code == RETURN && step.k == value).for_each(|step| step.k = wanted);
    program
}

/// A filter of these answers; `otherwise` for every other number.
pub(super) fn lay_out(answers: &Answers, otherwise: u32, arch: TargetArch) -> Result<BpfProgram, BackendError> {
    let mut ranges: Vec<Range> = vec![Range { start: 0, answer: give(otherwise) }];
    let mut begin = |start: u32, answer: BpfProgram| match ranges.last_mut() {
        Some(last) if last.answer == answer => {}
        Some(last) if last.start == start => last.answer = answer,
        Some(_) | None => ranges.push(Range { start, answer }),
    };
    for (number, answer) in answers {
        begin(*number, answer.clone());
        if !answers.contains_key(&(number + 1)) {
            begin(number + 1, give(otherwise));
        }
    }
    // The check of the architecture; what follows is ours.
    let mut program = seccompilers(Rules::new(), [&SeccompAction::Allow, &SeccompAction::KillProcess], arch)?;
    program.truncate(ARCHITECTURE_CHECK);
    program.push(instruction(LOAD, 0, 0, NUMBER_OFFSET));
    program.extend(tree(&ranges));
    let program = shrink::shrink(program);
    if program.len() > INSTRUCTIONS_MAX {
        return Err(BackendError::FilterTooLarge(program.len()));
    }
    Ok(program)
}

/// Binary search over at least one range, the number being loaded.
fn tree(ranges: &[Range]) -> BpfProgram {
    if let [only] = ranges {
        return only.answer.clone();
    }
    let (below, from) = ranges.split_at(ranges.len() / 2);
    let (border, below, from) = (from[0].start, tree(below), tree(from));
    let mut program = match u8::try_from(below.len()) {
        Ok(length) => vec![instruction(JUMP_IF_AT_LEAST, length, 0, border)],
        // A conditional jump reaches 255 instructions, an unconditional one all.
        Err(_) => vec![instruction(JUMP_IF_AT_LEAST, 0, 1, border), instruction(JUMP, 0, 0, below.len() as u32)],
    };
    program.extend(below);
    program.extend(from);
    program
}

pub(super) fn instruction(code: u16, if_true: u8, if_false: u8, value: u32) -> sock_filter {
    sock_filter { code, jt: if_true, jf: if_false, k: value }
}
