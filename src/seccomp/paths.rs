//! What a stack of filters says about one call, for all arguments at once: the program is walked with the number known and the
//! arguments unknown, and each way through it becomes a case.
//!
//! Invariant: the cases of a call are disjoint and cover all arguments, so a case's verdict holds for every call that it describes.
//! What can't be followed (arithmetic on arguments, more ways than `CASES_MAX`) is an error, never an approximation.

use std::collections::BTreeMap;

use thiserror::Error;

use super::arch::Arch;
use super::bpf::{Alu, Comparison, Operand, Operation, Program, word_name};
use super::verdict::Verdict;

/// Ways through the filters for one call.
pub const CASES_MAX: usize = 4096;
/// Instructions walked for one call.
const STEPS_MAX: usize = 1 << 20;

/// One way through.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Case {
    /// What is known of the arguments' words on this way.
    pub facts: BTreeMap<Word, Fact>,
    /// What comes out.
    pub verdict: Verdict,
}

/// A part of a word of `seccomp_data`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Word {
    /// In `seccomp_data`.
    pub offset: u32,
    /// The bits that were looked at.
    pub mask: u32,
}

/// What comparisons told about a part of a word.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fact {
    /// At least.
    pub low: u32,
    /// At most.
    pub high: u32,
    /// None of these.
    pub not: Vec<u32>,
}

impl Default for Fact {
    fn default() -> Self {
        Self { low: 0, high: u32::MAX, not: Vec::new() }
    }
}

impl Fact {
    /// The value, when only one is left.
    pub fn value(&self) -> Option<u32> {
        (self.low == self.high).then_some(self.low)
    }

    fn possible(&self) -> bool {
        self.low <= self.high && self.value().is_none_or(|value| !self.not.contains(&value))
    }

    /// With the outcome of one comparison.
    fn after(&self, test: Comparison, with: u32, held: bool) -> Option<Self> {
        let mut fact = self.clone();
        match (test, held) {
            (Comparison::Equal, true) => (fact.low, fact.high) = (fact.low.max(with), fact.high.min(with)),
            (Comparison::Equal, false) => {
                if !fact.not.contains(&with) {
                    fact.not.push(with);
                }
            }
            (Comparison::Greater, true) => fact.low = fact.low.max(with.checked_add(1)?),
            (Comparison::Greater, false) => fact.high = fact.high.min(with),
            (Comparison::AtLeast, true) => fact.low = fact.low.max(with),
            (Comparison::AtLeast, false) => fact.high = fact.high.min(with.checked_sub(1)?),
            // `AnyBit` is asked of the part that it masks: not zero, or zero.
            (Comparison::AnyBit, true) => return self.after(Comparison::Equal, 0, false),
            (Comparison::AnyBit, false) => return self.after(Comparison::Equal, 0, true),
        }
        while fact.low < fact.high && fact.not.contains(&fact.low) {
            fact.low += 1;
        }
        while fact.low < fact.high && fact.not.contains(&fact.high) {
            fact.high -= 1;
        }
        fact.possible().then_some(fact)
    }
}

/// Why a filter can't be followed.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum PathError {
    #[error("filter {filter}, instruction {at}: it calculates with an argument, which can't be followed for all values")]
    Arithmetic { filter: usize, at: usize },
    #[error("there are more than {CASES_MAX} ways through the filters for one call")]
    TooMany,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Symbol {
    Known(u32),
    Part(Word),
}

#[derive(Clone)]
struct State {
    filter: usize,
    at: usize,
    accumulator: Symbol,
    index: Symbol,
    scratch: BTreeMap<u32, Symbol>,
    facts: BTreeMap<Word, Fact>,
    verdict: Option<Verdict>,
}

impl State {
    fn enter(filter: usize, facts: BTreeMap<Word, Fact>, verdict: Option<Verdict>) -> Self {
        let zero = Symbol::Known(0);
        Self { filter, at: 0, accumulator: zero, index: zero, scratch: BTreeMap::new(), facts, verdict }
    }
}

/// The cases of one native call; `filters` in the order of installation.
pub fn cases(filters: &[Program], arch: Arch, number: u32) -> Result<Vec<Case>, PathError> {
    let Some(newest) = filters.len().checked_sub(1) else { return Ok(Vec::new()) };
    let mut open = vec![State::enter(newest, BTreeMap::new(), None)];
    let mut done = Vec::new();
    let mut steps = 0;
    while let Some(state) = open.pop() {
        steps += 1;
        if steps > STEPS_MAX || done.len() + open.len() > CASES_MAX {
            return Err(PathError::TooMany);
        }
        match step(state, filters, arch, number)? {
            Next::Go(states) => open.extend(states),
            Next::Done(case) => done.push(case),
        }
    }
    Ok(done)
}

enum Next {
    Go(Vec<State>),
    Done(Case),
}

fn step(mut state: State, filters: &[Program], arch: Arch, number: u32) -> Result<Next, PathError> {
    let lost = PathError::Arithmetic { filter: state.filter, at: state.at };
    let operation = filters[state.filter].operation(state.at);
    state.at += 1;
    match operation {
        Operation::LoadData(0) => state.accumulator = Symbol::Known(number),
        Operation::LoadData(4) => state.accumulator = Symbol::Known(arch.audit_value()),
        Operation::LoadData(offset) => state.accumulator = Symbol::Part(Word { offset, mask: u32::MAX }),
        Operation::LoadLength => state.accumulator = Symbol::Known(64),
        Operation::LoadConstant(constant) => state.accumulator = Symbol::Known(constant),
        Operation::LoadScratch(word) => state.accumulator = state.scratch.get(&word).copied().unwrap_or(Symbol::Known(0)),
        Operation::IndexLength => state.index = Symbol::Known(64),
        Operation::IndexConstant(constant) => state.index = Symbol::Known(constant),
        Operation::IndexScratch(word) => state.index = state.scratch.get(&word).copied().unwrap_or(Symbol::Known(0)),
        Operation::Store(word) => drop(state.scratch.insert(word, state.accumulator)),
        Operation::StoreIndex(word) => drop(state.scratch.insert(word, state.index)),
        Operation::ToIndex => state.index = state.accumulator,
        Operation::FromIndex => state.accumulator = state.index,
        Operation::Negate => match state.accumulator {
            Symbol::Known(value) => state.accumulator = Symbol::Known(value.wrapping_neg()),
            Symbol::Part(_) => return Err(lost),
        },
        Operation::Alu(alu, with) => {
            state.accumulator = calculate(alu, state.accumulator, known(with, state.index).ok_or(lost.clone())?).ok_or(lost)?;
        }
        Operation::Jump(distance) => state.at += distance,
        Operation::Compare { test, with, if_true, if_false } => {
            let with = known(with, state.index).ok_or(lost)?;
            return Ok(Next::Go(branch(&state, (test, with), (if_true, if_false))));
        }
        Operation::Return(value) => return Ok(returned(state, value)),
        Operation::ReturnAccumulator => match state.accumulator {
            Symbol::Known(value) => return Ok(returned(state, value)),
            Symbol::Part(_) => return Err(lost),
        },
    }
    Ok(Next::Go(vec![state]))
}

fn known(operand: Operand, index: Symbol) -> Option<u32> {
    match (operand, index) {
        (Operand::Constant(value), _) | (Operand::Index, Symbol::Known(value)) => Some(value),
        (Operand::Index, Symbol::Part(_)) => None,
    }
}

/// Only masking an argument is followed; with constants alone everything is.
fn calculate(alu: Alu, left: Symbol, right: u32) -> Option<Symbol> {
    match (alu, left) {
        (Alu::And, Symbol::Part(word)) => Some(Symbol::Part(Word { mask: word.mask & right, ..word })),
        (_, Symbol::Known(left)) => alu.apply(left, right).map(Symbol::Known),
        (_, Symbol::Part(_)) => None,
    }
}

fn branch(state: &State, (test, with): (Comparison, u32), (if_true, if_false): (usize, usize)) -> Vec<State> {
    let word = match state.accumulator {
        Symbol::Known(value) => {
            let distance = if test.holds(value, with) { if_true } else { if_false };
            return vec![State { at: state.at + distance, ..state.clone() }];
        }
        Symbol::Part(word) if test == Comparison::AnyBit => Word { mask: word.mask & with, ..word },
        Symbol::Part(word) => word,
    };
    // The false side is pushed first, so that the true side is walked and told first.
    [(false, if_false), (true, if_true)]
        .into_iter()
        .filter_map(|(held, distance)| {
            let mut next = state.clone();
            let fact = next.facts.get(&word).cloned().unwrap_or(Fact { high: word.mask, ..Fact::default() });
            next.facts.insert(word, fact.after(test, with, held)?);
            next.at += distance;
            consistent(&next.facts).then_some(next)
        })
        .collect()
}

/// Parts whose values are known must agree on the bits that they share.
fn consistent(facts: &BTreeMap<Word, Fact>) -> bool {
    let fixed: Vec<(Word, u32)> = facts.iter().filter_map(|(word, fact)| Some((*word, fact.value()?))).collect();
    let agree = |(a, x): &(Word, u32), (b, y): &(Word, u32)| a.offset != b.offset || (x ^ y) & a.mask & b.mask == 0;
    let known_whole =
        |word: &Word| fixed.iter().find(|(whole, _)| whole.offset == word.offset && whole.mask & word.mask == word.mask);
    fixed.iter().enumerate().all(|(at, one)| fixed[at + 1..].iter().all(|other| agree(one, other)))
        && facts.iter().all(|(word, fact)| {
            known_whole(word).is_none_or(|(_, value)| {
                let part = value & word.mask;
                (fact.low..=fact.high).contains(&part) && !fact.not.contains(&part)
            })
        })
}

fn returned(state: State, value: u32) -> Next {
    let said = Verdict::from_return(value);
    let verdict = match state.verdict {
        Some(stronger) if stronger.rank() >= said.rank() => stronger,
        Some(_) | None => said,
    };
    match state.filter.checked_sub(1) {
        Some(older) => Next::Go(vec![State::enter(older, state.facts, Some(verdict))]),
        None => Next::Done(Case { facts: state.facts, verdict }),
    }
}

impl Case {
    /// Position and value of every argument's low word that is known whole on this way; for names.
    pub fn argument(&self, index: u8) -> Option<u32> {
        let little = u32::from(cfg!(target_endian = "big")) * 4;
        let word = Word { offset: 16 + u32::from(index) * 8 + little, mask: u32::MAX };
        self.facts.get(&word).and_then(Fact::value)
    }

    /// Arguments that take this way: the least that the facts allow, zero elsewhere.
    pub fn sample(&self) -> [u64; 6] {
        let mut args = [0; 6];
        let mut facts: Vec<_> = self.facts.iter().collect();
        facts.sort_by_key(|(word, _)| word.mask.count_ones());
        for (word, fact) in facts.into_iter().filter(|(word, _)| word.offset >= 16) {
            let index = ((word.offset - 16) / 8) as usize;
            let shift = if (word.offset % 8 >= 4) == cfg!(target_endian = "little") { 32 } else { 0 };
            let value = (fact.low..=fact.high).find(|value| value & !word.mask == 0 && !fact.not.contains(value)).unwrap_or(0);
            args[index] = args[index] & !(u64::from(word.mask) << shift) | u64::from(value) << shift;
        }
        args
    }

    /// The words that were looked at, as text: `arg0 (low) == 0x26`.
    pub fn describe(&self, name: impl Fn(&Word, u32) -> String) -> Vec<String> {
        let mut parts = Vec::new();
        for (word, fact) in &self.facts {
            let left = match word.mask {
                u32::MAX => word_name(word.offset),
                mask => format!("{} & {mask:#x}", word_name(word.offset)),
            };
            if let Some(value) = fact.value() {
                parts.push(format!("{left} == {}", name(word, value)));
                continue;
            }
            if fact.low > 0 {
                parts.push(format!("{left} >= {}", name(word, fact.low)));
            }
            if fact.high < word.mask {
                parts.push(format!("{left} <= {}", name(word, fact.high)));
            }
            parts.extend(fact.not.iter().map(|value| format!("{left} != {}", name(word, *value))));
        }
        parts
    }
}
