//! Classic BPF as seccomp takes it: reading a program, checking it as the kernel would, running it, and writing it for people.
//!
//! Invariant: a [`Program`] has passed the checks of `seccomp_check_filter` and `bpf_check_classic` (kernel/seccomp.c,
//! net/core/filter.c), so running it ends and stays within it. Unlike `simulate` it knows every instruction that the kernel takes,
//! because filters of others are read with it. Read `paths` next.

use std::fmt;

use thiserror::Error;

use super::Invocation;

/// `BPF_MAXINSNS` of linux/bpf_common.h.
pub const INSTRUCTIONS_MAX: usize = 4096;
const INSTRUCTION_BYTES: usize = 8;
/// `sizeof(struct seccomp_data)`
const DATA_BYTES: u32 = 64;
/// `BPF_MEMWORDS`
const SCRATCH_WORDS: u32 = 16;

/// One `struct sock_filter`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Instruction {
    /// Operation.
    pub code: u16,
    /// Instructions to skip where a comparison holds.
    pub jump_true: u8,
    /// And where it does not.
    pub jump_false: u8,
    /// Constant, offset or distance.
    pub operand: u32,
}

/// An operation, decoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the operations of linux/bpf_common.h")]
pub enum Operation {
    LoadData(u32),
    LoadLength,
    LoadConstant(u32),
    LoadScratch(u32),
    IndexLength,
    IndexConstant(u32),
    IndexScratch(u32),
    Store(u32),
    StoreIndex(u32),
    Alu(Alu, Operand),
    Negate,
    Jump(usize),
    Compare { test: Comparison, with: Operand, if_true: usize, if_false: usize },
    Return(u32),
    ReturnAccumulator,
    ToIndex,
    FromIndex,
}

/// Arithmetic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the operations of linux/bpf_common.h")]
pub enum Alu {
    Add,
    Subtract,
    Multiply,
    Divide,
    Or,
    And,
    ShiftLeft,
    ShiftRight,
    Xor,
}

/// What stands on the right side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the sources of linux/bpf_common.h")]
pub enum Operand {
    Constant(u32),
    Index,
}

/// Comparisons of unsigned words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the jumps of linux/bpf_common.h")]
pub enum Comparison {
    Equal,
    Greater,
    AtLeast,
    AnyBit,
}

impl Comparison {
    /// Whether it holds.
    pub fn holds(self, left: u32, right: u32) -> bool {
        match self {
            Self::Equal => left == right,
            Self::Greater => left > right,
            Self::AtLeast => left >= right,
            Self::AnyBit => left & right != 0,
        }
    }
}

/// Why bytes are no filter, with the place.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum BpfError {
    #[error("{0} bytes are not a whole number of 8-byte instructions")]
    Length(usize),
    #[error("there are {0} instructions; the kernel takes from 1 to {INSTRUCTIONS_MAX}")]
    Count(usize),
    #[error("instruction {at}: the kernel does not take the code {code:#06x} in a seccomp filter")]
    Code { at: usize, code: u16 },
    #[error("instruction {at}: offset {offset} is not a word of seccomp_data")]
    Load { at: usize, offset: u32 },
    #[error("instruction {at}: scratch word {word} of {SCRATCH_WORDS}")]
    Scratch { at: usize, word: u32 },
    #[error("instruction {0}: it jumps out of the program")]
    OutOfProgram(usize),
    #[error("instruction {0}: it divides by zero or shifts by 32 or more")]
    Arithmetic(usize),
    #[error("the last instruction is no return")]
    NoReturn,
}

/// A checked filter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Program(Vec<Instruction>);

impl Program {
    /// Reads an array of `struct sock_filter` in this machine's byte order.
    pub fn parse(bytes: &[u8]) -> Result<Self, BpfError> {
        let (whole, rest) = bytes.as_chunks::<INSTRUCTION_BYTES>();
        if !rest.is_empty() {
            return Err(BpfError::Length(bytes.len()));
        }
        Self::new(whole.iter().map(|raw| Instruction::read(*raw)).collect())
    }

    /// Checks instructions.
    pub fn new(instructions: Vec<Instruction>) -> Result<Self, BpfError> {
        let length = instructions.len();
        if length == 0 || length > INSTRUCTIONS_MAX {
            return Err(BpfError::Count(length));
        }
        for (at, instruction) in instructions.iter().enumerate() {
            check(at, instruction.operation().ok_or(BpfError::Code { at, code: instruction.code })?, length)?;
        }
        match instructions[length - 1].operation() {
            Some(Operation::Return(_) | Operation::ReturnAccumulator) => Ok(Self(instructions)),
            Some(_) | None => Err(BpfError::NoReturn),
        }
    }

    /// The instructions.
    pub fn instructions(&self) -> &[Instruction] {
        &self.0
    }

    /// The operation at a place that checked jumps lead to.
    pub fn operation(&self, at: usize) -> Operation {
        self.0[at].operation().unwrap_or(Operation::Return(0))
    }

    /// As the kernel takes it, in this machine's byte order.
    pub fn bytes(&self) -> Vec<u8> {
        self.0.iter().flat_map(|instruction| instruction.bytes()).collect()
    }

    /// The return value for a call.
    pub fn run(&self, call: &Invocation) -> u32 {
        self.trace(call, |_, _| {})
    }

    /// The same, telling the place and the accumulator before each instruction.
    pub fn trace(&self, call: &Invocation, mut seen: impl FnMut(usize, u32)) -> u32 {
        let mut machine = Machine::default();
        let mut at = 0;
        loop {
            seen(at, machine.accumulator);
            match machine.step(self.operation(at), call) {
                Ok(skipped) => at += 1 + skipped,
                Err(Returned(value)) => return value,
            }
        }
    }
}

/// The program's end.
struct Returned(u32);

#[derive(Default)]
struct Machine {
    accumulator: u32,
    index: u32,
    scratch: [u32; SCRATCH_WORDS as usize],
}

impl Machine {
    fn step(&mut self, operation: Operation, call: &Invocation) -> Result<usize, Returned> {
        let value = |operand: Operand, index: u32| match operand {
            Operand::Constant(constant) => constant,
            Operand::Index => index,
        };
        match operation {
            Operation::LoadData(offset) => self.accumulator = call.word(offset).unwrap_or(0),
            Operation::LoadLength => self.accumulator = DATA_BYTES,
            Operation::LoadConstant(constant) => self.accumulator = constant,
            Operation::LoadScratch(word) => self.accumulator = self.scratch[word as usize],
            Operation::IndexLength => self.index = DATA_BYTES,
            Operation::IndexConstant(constant) => self.index = constant,
            Operation::IndexScratch(word) => self.index = self.scratch[word as usize],
            Operation::Store(word) => self.scratch[word as usize] = self.accumulator,
            Operation::StoreIndex(word) => self.scratch[word as usize] = self.index,
            Operation::Alu(alu, operand) => {
                // Division by an index of zero ends the filter with 0, as in the kernel.
                self.accumulator = alu.apply(self.accumulator, value(operand, self.index)).ok_or(Returned(0))?;
            }
            Operation::Negate => self.accumulator = self.accumulator.wrapping_neg(),
            Operation::Jump(distance) => return Ok(distance),
            Operation::Compare { test, with, if_true, if_false } => {
                let holds = test.holds(self.accumulator, value(with, self.index));
                return Ok(if holds { if_true } else { if_false });
            }
            Operation::Return(value) => return Err(Returned(value)),
            Operation::ReturnAccumulator => return Err(Returned(self.accumulator)),
            Operation::ToIndex => self.index = self.accumulator,
            Operation::FromIndex => self.accumulator = self.index,
        }
        Ok(0)
    }
}

impl Alu {
    pub(super) fn apply(self, left: u32, right: u32) -> Option<u32> {
        Some(match self {
            Self::Add => left.wrapping_add(right),
            Self::Subtract => left.wrapping_sub(right),
            Self::Multiply => left.wrapping_mul(right),
            Self::Divide => return left.checked_div(right),
            Self::Or => left | right,
            Self::And => left & right,
            Self::ShiftLeft => left.checked_shl(right).unwrap_or(0),
            Self::ShiftRight => left.checked_shr(right).unwrap_or(0),
            Self::Xor => left ^ right,
        })
    }
}

fn check(at: usize, operation: Operation, length: usize) -> Result<(), BpfError> {
    let inside = |distance: usize| match at.checked_add(1).and_then(|next| next.checked_add(distance)) {
        Some(target) if target < length => Ok(()),
        Some(_) | None => Err(BpfError::OutOfProgram(at)),
    };
    match operation {
        Operation::LoadData(offset) if offset >= DATA_BYTES || !offset.is_multiple_of(4) => Err(BpfError::Load { at, offset }),
        Operation::LoadScratch(word) | Operation::IndexScratch(word) | Operation::Store(word) | Operation::StoreIndex(word)
            if word >= SCRATCH_WORDS =>
        {
            Err(BpfError::Scratch { at, word })
        }
        Operation::Alu(Alu::Divide, Operand::Constant(0))
        | Operation::Alu(Alu::ShiftLeft | Alu::ShiftRight, Operand::Constant(32..)) => Err(BpfError::Arithmetic(at)),
        Operation::Jump(distance) => inside(distance),
        Operation::Compare { if_true, if_false, .. } => inside(if_true).and_then(|()| inside(if_false)),
        Operation::Return(_) | Operation::ReturnAccumulator => Ok(()),
        Operation::LoadData(_)
        | Operation::LoadLength
        | Operation::LoadConstant(_)
        | Operation::LoadScratch(_)
        | Operation::IndexLength
        | Operation::IndexConstant(_)
        | Operation::IndexScratch(_)
        | Operation::Store(_)
        | Operation::StoreIndex(_)
        | Operation::Alu(..)
        | Operation::Negate
        | Operation::ToIndex
        | Operation::FromIndex => inside(0).map_err(|_| BpfError::NoReturn),
    }
}

impl Instruction {
    fn read(raw: [u8; INSTRUCTION_BYTES]) -> Self {
        let [c0, c1, jump_true, jump_false, k0, k1, k2, k3] = raw;
        let (code, operand) = (u16::from_ne_bytes([c0, c1]), u32::from_ne_bytes([k0, k1, k2, k3]));
        Self { code, jump_true, jump_false, operand }
    }

    fn bytes(self) -> [u8; INSTRUCTION_BYTES] {
        let ([c0, c1], [k0, k1, k2, k3]) = (self.code.to_ne_bytes(), self.operand.to_ne_bytes());
        [c0, c1, self.jump_true, self.jump_false, k0, k1, k2, k3]
    }

    /// What it does; nothing when seccomp does not take it. The numbers are those of linux/bpf_common.h.
    pub fn operation(self) -> Option<Operation> {
        let k = self.operand;
        let source = if self.code & 0x08 == 0 { Operand::Constant(k) } else { Operand::Index };
        Some(match self.code {
            0x20 => Operation::LoadData(k),
            0x80 => Operation::LoadLength,
            0x00 => Operation::LoadConstant(k),
            0x60 => Operation::LoadScratch(k),
            0x81 => Operation::IndexLength,
            0x01 => Operation::IndexConstant(k),
            0x61 => Operation::IndexScratch(k),
            0x02 => Operation::Store(k),
            0x03 => Operation::StoreIndex(k),
            0x84 => Operation::Negate,
            0x05 => Operation::Jump(k as usize),
            0x06 => Operation::Return(k),
            0x16 => Operation::ReturnAccumulator,
            0x07 => Operation::ToIndex,
            0x87 => Operation::FromIndex,
            0x04 | 0x0C => Operation::Alu(Alu::Add, source),
            0x14 | 0x1C => Operation::Alu(Alu::Subtract, source),
            0x24 | 0x2C => Operation::Alu(Alu::Multiply, source),
            0x34 | 0x3C => Operation::Alu(Alu::Divide, source),
            0x44 | 0x4C => Operation::Alu(Alu::Or, source),
            0x54 | 0x5C => Operation::Alu(Alu::And, source),
            0x64 | 0x6C => Operation::Alu(Alu::ShiftLeft, source),
            0x74 | 0x7C => Operation::Alu(Alu::ShiftRight, source),
            0xA4 | 0xAC => Operation::Alu(Alu::Xor, source),
            0x15 | 0x1D => self.compare(Comparison::Equal, source),
            0x25 | 0x2D => self.compare(Comparison::Greater, source),
            0x35 | 0x3D => self.compare(Comparison::AtLeast, source),
            0x45 | 0x4D => self.compare(Comparison::AnyBit, source),
            _ => return None,
        })
    }

    fn compare(self, test: Comparison, with: Operand) -> Operation {
        let (if_true, if_false) = (usize::from(self.jump_true), usize::from(self.jump_false));
        Operation::Compare { test, with, if_true, if_false }
    }
}

/// The word of `seccomp_data` at an offset, by name.
pub fn word_name(offset: u32) -> String {
    match offset {
        0 => "nr".to_owned(),
        4 => "arch".to_owned(),
        8 => "instruction_pointer (low)".to_owned(),
        12 => "instruction_pointer (high)".to_owned(),
        _ => {
            let half = if (offset % 8 >= 4) == cfg!(target_endian = "little") { "high" } else { "low" };
            format!("arg{} ({half})", (offset.saturating_sub(16)) / 8)
        }
    }
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let operand = |operand: &Operand| match operand {
            Operand::Constant(constant) => format!("{constant:#x}"),
            Operand::Index => "X".to_owned(),
        };
        match self {
            Self::LoadData(offset) => write!(f, "A = {}", word_name(*offset)),
            Self::LoadLength => f.write_str("A = length"),
            Self::LoadConstant(constant) => write!(f, "A = {constant:#x}"),
            Self::LoadScratch(word) => write!(f, "A = mem[{word}]"),
            Self::IndexLength => f.write_str("X = length"),
            Self::IndexConstant(constant) => write!(f, "X = {constant:#x}"),
            Self::IndexScratch(word) => write!(f, "X = mem[{word}]"),
            Self::Store(word) => write!(f, "mem[{word}] = A"),
            Self::StoreIndex(word) => write!(f, "mem[{word}] = X"),
            Self::Alu(alu, with) => write!(f, "A = A {alu:?} {}", operand(with)),
            Self::Negate => f.write_str("A = -A"),
            Self::Jump(distance) => write!(f, "skip {distance}"),
            Self::Compare { test, with, if_true, if_false } => {
                let sign = match test {
                    Comparison::Equal => "==",
                    Comparison::Greater => ">",
                    Comparison::AtLeast => ">=",
                    Comparison::AnyBit => "&",
                };
                write!(f, "if A {sign} {} skip {if_true}, else skip {if_false}", operand(with))
            }
            Self::Return(value) => write!(f, "return {}", super::verdict::Verdict::from_return(*value)),
            Self::ReturnAccumulator => f.write_str("return A"),
            Self::ToIndex => f.write_str("X = A"),
            Self::FromIndex => f.write_str("A = X"),
        }
    }
}
