//! A small interpreter of classic BPF: what the kernel would answer for a call, without asking it.
//!
//! Invariant: it knows only the instructions that seccompiler writes and refuses any other; jumps go forward, so it ends.

use thiserror::Error;

use super::Action;
use super::arch::Arch;

/// `struct seccomp_data` without the instruction pointer, which no filter here reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Invocation {
    /// `AUDIT_ARCH_*` of the entry that was used.
    pub arch: u32,
    /// The number, with the x32 bit if it was set.
    pub number: u32,
    /// Whole registers.
    pub args: [u64; 6],
}

impl Invocation {
    /// A call by the architecture's own entry.
    pub fn native(arch: Arch, number: u32, args: [u64; 6]) -> Self {
        Self { arch: arch.audit_value(), number, args }
    }

    /// The 32-bit word at an offset of `struct seccomp_data`.
    pub(super) fn word(&self, offset: u32) -> Option<u32> {
        match offset {
            0 => Some(self.number),
            4 => Some(self.arch),
            16..=60 if offset.is_multiple_of(4) => {
                let place = offset - 16;
                let argument = self.args[(place / 8) as usize];
                let high = place % 8 >= 4;
                Some(if high == cfg!(target_endian = "little") { (argument >> 32) as u32 } else { argument as u32 })
            }
            _ => None,
        }
    }
}

/// Why a program can't be run.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum SimulateError {
    #[error("there is no filter")]
    NoFilter,
    #[error("a filter is not a whole number of 8-byte instructions")]
    Length,
    #[error("instruction {0} is beyond the program")]
    OutOfProgram(usize),
    #[error("instruction {at} has the unknown code {code:#x}")]
    UnknownCode { at: usize, code: u16 },
    #[error("instruction {0} loads from a place that is not in seccomp_data")]
    BadLoad(usize),
    #[error("the return value {0:#x} is none of ours")]
    UnknownReturn(u32),
}

/// The verdict of a stack of filters (in the order of installation): the strongest action, on a tie the newest filter's.
pub fn decide(filters: &[Vec<u8>], invocation: &Invocation) -> Result<Action, SimulateError> {
    let mut verdict: Option<Action> = None;
    for filter in filters.iter().rev() {
        let action = run(filter, invocation)?;
        if verdict.is_none_or(|known| action.rank() > known.rank()) {
            verdict = Some(action);
        }
    }
    verdict.ok_or(SimulateError::NoFilter)
}

/// One `struct sock_filter`.
#[derive(Clone, Copy)]
struct Instruction {
    code: u16,
    jump_true: u8,
    jump_false: u8,
    operand: u32,
}

impl Instruction {
    fn read(program: &[u8], at: usize) -> Option<Self> {
        let raw: [u8; 8] = program.get(at * 8..at * 8 + 8)?.try_into().ok()?;
        let [c0, c1, jump_true, jump_false, k0, k1, k2, k3] = raw;
        let code = u16::from_ne_bytes([c0, c1]);
        Some(Self { code, jump_true, jump_false, operand: u32::from_ne_bytes([k0, k1, k2, k3]) })
    }

    fn branch(self, taken: bool) -> usize {
        usize::from(if taken { self.jump_true } else { self.jump_false })
    }
}

/// BPF_LD|BPF_W|BPF_ABS and its fellows of linux/bpf_common.h.
mod code {
    pub const LOAD: u16 = 0x20;
    pub const AND: u16 = 0x54;
    pub const JUMP: u16 = 0x05;
    pub const JUMP_EQ: u16 = 0x15;
    pub const JUMP_GT: u16 = 0x25;
    pub const JUMP_GE: u16 = 0x35;
    pub const RETURN: u16 = 0x06;
}

fn run(program: &[u8], invocation: &Invocation) -> Result<Action, SimulateError> {
    if !program.len().is_multiple_of(8) {
        return Err(SimulateError::Length);
    }
    let mut accumulator = 0_u32;
    let mut at = 0;
    loop {
        let instruction = Instruction::read(program, at).ok_or(SimulateError::OutOfProgram(at))?;
        let operand = instruction.operand;
        let skipped = match instruction.code {
            code::LOAD => {
                accumulator = invocation.word(operand).ok_or(SimulateError::BadLoad(at))?;
                0
            }
            code::AND => {
                accumulator &= operand;
                0
            }
            code::JUMP => operand as usize,
            code::JUMP_EQ => instruction.branch(accumulator == operand),
            code::JUMP_GT => instruction.branch(accumulator > operand),
            code::JUMP_GE => instruction.branch(accumulator >= operand),
            code::RETURN => return returned(operand),
            code => return Err(SimulateError::UnknownCode { at, code }),
        };
        at += 1 + skipped;
    }
}

/// `SECCOMP_RET_*` of linux/seccomp.h.
fn returned(value: u32) -> Result<Action, SimulateError> {
    match value & 0xFFFF_0000 {
        0x7FFF_0000 => Ok(Action::Allow),
        0x7FFC_0000 => Ok(Action::Log),
        0x7FC0_0000 if value as u16 == 0 => Ok(Action::Audit),
        0x7FC0_0000 => Ok(Action::Notify(value as u16)),
        0x0005_0000 => Ok(Action::Errno(value as u16)),
        0x0003_0000 => Ok(Action::Trap),
        0x0000_0000 => Ok(Action::KillThread),
        0x8000_0000 => Ok(Action::KillProcess),
        _ => Err(SimulateError::UnknownReturn(value)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn program(instructions: &[(u16, u8, u8, u32)]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (code, jump_true, jump_false, operand) in instructions {
            bytes.extend(code.to_ne_bytes());
            bytes.extend([*jump_true, *jump_false]);
            bytes.extend(operand.to_ne_bytes());
        }
        bytes
    }

    #[test]
    fn the_strongest_action_wins_and_on_a_tie_the_newest_filter() {
        let ret = |value| program(&[(code::RETURN, 0, 0, value)]);
        let call = Invocation::native(Arch::X86_64, 0, [0; 6]);
        let stack = [ret(0x0005_0001), ret(0x0005_0026), ret(0x7FFF_0000)];
        assert_eq!(decide(&stack, &call), Ok(Action::Errno(38)));
        let stack = [ret(0x8000_0000), ret(0x0005_0026)];
        assert_eq!(decide(&stack, &call), Ok(Action::KillProcess));
        assert_eq!(decide(&[], &call), Err(SimulateError::NoFilter));
    }

    #[test]
    fn broken_programs_are_refused() {
        let call = Invocation::native(Arch::X86_64, 0, [0; 6]);
        let verdict = |bytes: Vec<u8>| decide(&[bytes], &call);
        assert_eq!(verdict(vec![0; 7]), Err(SimulateError::Length));
        assert_eq!(verdict(program(&[(code::JUMP, 0, 0, 5)])), Err(SimulateError::OutOfProgram(6)));
        assert_eq!(verdict(program(&[(code::LOAD, 0, 0, 2)])), Err(SimulateError::BadLoad(0)));
        assert_eq!(verdict(program(&[(0x99, 0, 0, 0)])), Err(SimulateError::UnknownCode { at: 0, code: 0x99 }));
    }
}
