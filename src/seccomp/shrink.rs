//! The same filter in fewer instructions: the kernel checks, translates and compiles every one of them at each start of a program.
//!
//! `dispatch` and seccompiler repeat themselves: a call's answer ends as another's does, a word that is loaded is loaded again, a number
//! that the search has found is compared once more. So a program is taken apart into *situations* (an instruction, and what is known of
//! the accumulator there), those that go on alike become one *step*, and the steps are laid out anew. A jump leads forward only, so one
//! pass up finds the situations and one pass down has each one's successors ready.
//!
//! Invariant: for every input the result returns what `program` does; the tests of `compile` hold it, for every number and random rules.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use seccompiler::{BpfProgram, sock_filter};

use super::dispatch::{JUMP, JUMP_IF_AT_LEAST, LOAD, NUMBER_OFFSET, RETURN, instruction};

/// `BPF_JMP | BPF_JEQ`, `BPF_JGT` and `BPF_JSET`, each `| BPF_K`, and `BPF_ALU | BPF_AND | BPF_K` of linux/bpf_common.h.
const JUMP_IF_EQUAL: u16 = 0x15;
const JUMP_IF_GREATER: u16 = 0x25;
const JUMP_IF_ANY_BIT: u16 = 0x45;
const AND: u16 = 0x54;

/// Instructions that a conditional jump passes over at most.
const JUMP_MAX: usize = u8::MAX as usize;

/// Where a step stands among all; its successors have smaller places.
type Place = usize;

/// What is known of the accumulator.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Known {
    Nothing,
    /// It holds the word at this offset of `struct seccomp_data`.
    Word(u32),
    /// It holds the number, which lies between these two, both included.
    Number(u32, u32),
}

/// An instruction that is reached, and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Situation {
    at: usize,
    known: Known,
}

/// What is done, and where it goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Step {
    Return(u32),
    Load(u32, Place),
    And(u32, Place),
    Jump { code: u16, operand: u32, if_true: Place, if_false: Place },
}

/// Where a situation leads.
enum Way {
    Return(u32),
    /// Nothing is done here.
    On(Situation),
    Load(u32, Situation),
    And(u32, Situation),
    Jump {
        code: u16,
        operand: u32,
        if_true: Situation,
        if_false: Situation,
    },
}

/// The same decisions in as many instructions or fewer; `program` itself if it has instructions that neither `dispatch` nor seccompiler writes.
pub(super) fn shrink(program: BpfProgram) -> BpfProgram {
    match shrunk(&program) {
        Some(smaller) if smaller.len() < program.len() => smaller,
        Some(_) | None => program,
    }
}

fn shrunk(program: &BpfProgram) -> Option<BpfProgram> {
    let start = Situation { at: 0, known: Known::Nothing };
    let mut ways = BTreeMap::new();
    let mut reached = BTreeSet::from([start]);
    while let Some(situation) = reached.pop_first() {
        let way = way(program, situation)?;
        reached.extend(way.onward());
        ways.insert(situation, way);
    }
    let mut steps = Steps::default();
    let mut places: BTreeMap<Situation, Place> = BTreeMap::new();
    for (situation, way) in ways.iter().rev() {
        places.insert(*situation, steps.add(way, &places));
    }
    Some(steps.lay_out(places[&start]))
}

/// None for an instruction that is not known here, or that leads out of the program.
fn way(program: &BpfProgram, Situation { at, known }: Situation) -> Option<Way> {
    let sock_filter { code, jt, jf, k } = *program.get(at)?;
    let next = |distance: usize, known| Situation { at: at + 1 + distance, known };
    Some(match code {
        RETURN => Way::Return(k),
        JUMP => Way::On(next(k as usize, known)),
        LOAD if known.is(k) => Way::On(next(0, known)),
        LOAD => Way::Load(k, next(0, Known::loaded(k))),
        AND => Way::And(k, next(0, Known::Nothing)),
        JUMP_IF_EQUAL | JUMP_IF_GREATER | JUMP_IF_AT_LEAST | JUMP_IF_ANY_BIT => {
            let yes = known.after(code, k, true).map(|known| next(usize::from(jt), known));
            let no = known.after(code, k, false).map(|known| next(usize::from(jf), known));
            match (yes, no) {
                (Some(if_true), Some(if_false)) => Way::Jump { code, operand: k, if_true, if_false },
                (Some(only), None) | (None, Some(only)) => Way::On(only),
                (None, None) => return None,
            }
        }
        _ => return None,
    })
}

impl Known {
    fn loaded(offset: u32) -> Self {
        if offset == NUMBER_OFFSET { Self::Number(0, u32::MAX) } else { Self::Word(offset) }
    }

    fn is(self, offset: u32) -> bool {
        match self {
            Self::Nothing => false,
            Self::Word(known) => known == offset,
            Self::Number(..) => offset == NUMBER_OFFSET,
        }
    }

    /// After a comparison that came out so; none where it can't.
    fn after(self, code: u16, operand: u32, outcome: bool) -> Option<Self> {
        let Self::Number(least, most) = self else { return Some(self) };
        let (least, most) = match (code, outcome) {
            (JUMP_IF_EQUAL, true) => (least.max(operand), most.min(operand)),
            // A hole in the middle is not kept.
            (JUMP_IF_EQUAL, false) if least == operand && most == operand => return None,
            (JUMP_IF_EQUAL, false) if least == operand => (least + 1, most),
            (JUMP_IF_EQUAL, false) if most == operand => (least, most - 1),
            (JUMP_IF_AT_LEAST, true) => (least.max(operand), most),
            (JUMP_IF_AT_LEAST, false) => (least, most.min(operand.checked_sub(1)?)),
            (JUMP_IF_GREATER, true) => (least.max(operand.checked_add(1)?), most),
            (JUMP_IF_GREATER, false) => (least, most.min(operand)),
            _ => (least, most),
        };
        (least <= most).then_some(Self::Number(least, most))
    }
}

impl Way {
    fn onward(&self) -> impl Iterator<Item = Situation> + use<> {
        let (first, second) = match *self {
            Self::Return(_) => (None, None),
            Self::On(next) | Self::Load(_, next) | Self::And(_, next) => (Some(next), None),
            Self::Jump { if_true, if_false, .. } => (Some(if_true), Some(if_false)),
        };
        first.into_iter().chain(second)
    }
}

/// Each step once.
#[derive(Default)]
struct Steps {
    all: Vec<Step>,
    places: HashMap<Step, Place>,
}

impl Steps {
    /// The place of a step that goes this way; its successors have theirs.
    fn add(&mut self, way: &Way, places: &BTreeMap<Situation, Place>) -> Place {
        match *way {
            Way::Return(value) => self.place(Step::Return(value)),
            Way::On(next) => places[&next],
            Way::Load(_, next) | Way::And(_, next) if self.forgets(places[&next]) => places[&next],
            Way::Load(offset, next) => self.place(Step::Load(offset, places[&next])),
            Way::And(mask, next) => self.place(Step::And(mask, places[&next])),
            Way::Jump { if_true, if_false, .. } if places[&if_true] == places[&if_false] => places[&if_true],
            Way::Jump { code, operand, if_true, if_false } => {
                self.place(Step::Jump { code, operand, if_true: places[&if_true], if_false: places[&if_false] })
            }
        }
    }

    fn place(&mut self, step: Step) -> Place {
        *self.places.entry(step).or_insert_with(|| {
            self.all.push(step);
            self.all.len() - 1
        })
    }

    /// Whether the accumulator is of no use to it.
    fn forgets(&self, place: Place) -> bool {
        matches!(self.all[place], Step::Return(_) | Step::Load(..))
    }

    /// Instructions from the last to the first, because a jump's distance is known once its target lies.
    fn lay_out(&self, start: Place) -> BpfProgram {
        let mut backwards = Backwards::default();
        let wanted = self.reachable(start);
        for (place, step) in self.all.iter().enumerate().filter(|(place, _)| wanted[*place]) {
            match *step {
                Step::Return(value) => backwards.push(instruction(RETURN, 0, 0, value)),
                Step::Load(offset, next) => backwards.go_on(self, next, instruction(LOAD, 0, 0, offset)),
                Step::And(mask, next) => backwards.go_on(self, next, instruction(AND, 0, 0, mask)),
                Step::Jump { code, operand, if_true, if_false } => {
                    // A jump that brings the second near lies between this and the first.
                    backwards.bring_near(if_true, JUMP_MAX - 1);
                    backwards.bring_near(if_false, JUMP_MAX);
                    let (yes, no) = (backwards.distance(if_true), backwards.distance(if_false));
                    backwards.push(instruction(code, yes as u8, no as u8, operand));
                }
            }
            backwards.ends.insert(place, backwards.instructions.len() - 1);
        }
        backwards.instructions.reverse();
        backwards.instructions
    }

    fn reachable(&self, start: Place) -> Vec<bool> {
        let mut wanted = vec![false; self.all.len()];
        wanted[start] = true;
        for (place, step) in self.all.iter().enumerate().rev() {
            if wanted[place] {
                step.next().for_each(|next| wanted[next] = true);
            }
        }
        wanted
    }
}

impl Step {
    fn next(self) -> impl Iterator<Item = Place> {
        let (first, second) = match self {
            Self::Return(_) => (None, None),
            Self::Load(_, next) | Self::And(_, next) => (Some(next), None),
            Self::Jump { if_true, if_false, .. } => (Some(if_true), Some(if_false)),
        };
        first.into_iter().chain(second)
    }
}

/// A program that grows at its beginning.
#[derive(Default)]
struct Backwards {
    instructions: BpfProgram,
    /// Where each step lies, or a jump to it, counted from the end.
    ends: HashMap<Place, usize>,
}

impl Backwards {
    fn push(&mut self, instruction: sock_filter) {
        self.instructions.push(instruction);
    }

    /// Instructions that one written now would pass over to get there.
    fn distance(&self, place: Place) -> usize {
        self.instructions.len() - 1 - self.ends[&place]
    }

    /// Writes a jump to a step that is further away, from where it is taken.
    fn bring_near(&mut self, place: Place, reach: usize) {
        let distance = self.distance(place);
        if distance > reach {
            self.push(instruction(JUMP, 0, 0, distance as u32));
            self.ends.insert(place, self.instructions.len() - 1);
        }
    }

    /// Writes what goes on with that step, and before it what leads there.
    fn go_on(&mut self, steps: &Steps, next: Place, first: sock_filter) {
        match (self.distance(next), steps.all[next]) {
            (0, _) => {}
            (_, Step::Return(value)) => self.push(instruction(RETURN, 0, 0, value)),
            (distance, _) => self.push(instruction(JUMP, 0, 0, distance as u32)),
        }
        self.push(first);
    }
}

#[cfg(test)]
mod tests {
    use seccompiler::TargetArch;

    use super::*;
    use crate::seccomp::Invocation;
    use crate::seccomp::arch::Arch;
    use crate::seccomp::bpf::{Instruction, Program};
    use crate::seccomp::dispatch::{Answers, give, lay_out};

    fn answer(program: &BpfProgram, number: u32) -> u32 {
        let instructions = program.iter().map(|step| Instruction {
            code: step.code,
            jump_true: step.jt,
            jump_false: step.jf,
            operand: step.k,
        });
        let program = Program::new(instructions.collect()).expect("the kernel would take it");
        program.run(&Invocation::native(Arch::X86_64, number, [0; 6]))
    }

    #[test]
    fn answers_that_lie_further_away_than_a_jump_reaches_are_found() {
        let answers: Answers = (0..1200).map(|number| (number, give(number + 1))).collect();
        let program = lay_out(&answers, 9999, TargetArch::x86_64).expect("it fits");
        assert!(program.len() > 4 * JUMP_MAX && program.iter().any(|step| step.code == JUMP));
        for number in 0..1300 {
            assert_eq!(answer(&program, number), if number < 1200 { number + 1 } else { 9999 }, "{number}");
        }
    }

    #[test]
    fn what_ends_alike_stands_once_and_what_is_known_is_not_asked_again() {
        let long = |number| {
            vec![
                instruction(JUMP_IF_EQUAL, 0, 3, number),
                instruction(LOAD, 0, 0, 16),
                instruction(JUMP_IF_ANY_BIT, 0, 1, 1),
                instruction(RETURN, 0, 0, 1),
                instruction(RETURN, 0, 0, 2),
            ]
        };
        let answers: Answers = [10, 20, 30].map(|number| (number, long(number))).into();
        let program = lay_out(&answers, 2, TargetArch::x86_64).expect("it fits");
        let count = |code| program.iter().filter(|step| step.code == code).count();
        // That of the architecture's check is the one that is left.
        assert_eq!((count(JUMP_IF_EQUAL), count(JUMP_IF_ANY_BIT)), (1, 1), "{program:?}");
        assert_eq!([9, 10, 11, 20, 30, 31].map(|number| answer(&program, number)), [2; 6]);
    }

    #[test]
    fn a_program_with_other_instructions_stays_as_it_is() {
        // `BPF_ST`: to scratch memory.
        let program = vec![instruction(0x02, 0, 0, 0), instruction(RETURN, 0, 0, 1), instruction(RETURN, 0, 0, 1)];
        assert_eq!(shrink(program.clone()), program);
    }
}
