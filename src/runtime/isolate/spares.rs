//! Places that are opened before it is known for which session.
//!
//! Invariants: each is handed out once; those that are ready and the one that is being opened are never more than there may be, and
//! none is kept for which the engine has no session's room left. Decides, and opens nothing itself.

use std::collections::VecDeque;

use tokio::sync::oneshot;

struct Spare<C> {
    memory: u64,
    cell: C,
}

/// The one that is being opened.
struct Opening<C> {
    memory: u64,
    /// A session that came meanwhile: it has it sooner than one of its own.
    promised: Option<oneshot::Sender<C>>,
}

/// What there is for a session.
pub enum Found<C> {
    /// This one, which is nobody else's.
    Ready(C),
    /// The one that is being opened; an error when it failed.
    Soon(oneshot::Receiver<C>),
    /// Nothing: it opens its own.
    None,
}

/// Of one engine.
pub struct Spares<C> {
    max: u64,
    /// What the isolates of the session that came last have.
    memory: u64,
    ready: VecDeque<Spare<C>>,
    /// Somebody sees to the next one: it waits for its time, or opens it.
    seen_to: bool,
    opening: Option<Opening<C>>,
}

impl<C> Spares<C> {
    /// None yet, of at most `max`.
    pub fn new(max: u64) -> Self {
        Self { max, memory: 0, ready: VecDeque::new(), seen_to: false, opening: None }
    }

    /// For a session each of whose isolates has that much memory: an isolate keeps the limit that it was made with.
    pub fn take(&mut self, memory: u64) -> Found<C> {
        self.memory = memory;
        if let Some(at) = self.ready.iter().position(|spare| spare.memory == memory) {
            return self.ready.remove(at).map_or(Found::None, |spare| Found::Ready(spare.cell));
        }
        match &mut self.opening {
            Some(opening) if opening.memory == memory && opening.promised.is_none() => {
                let (promised, soon) = oneshot::channel();
                opening.promised = Some(promised);
                Found::Soon(soon)
            }
            _ => Found::None,
        }
    }

    /// Whether the caller is to see to the next one, until it says that it is over. `free` are the places that no session has.
    pub fn see_to(&mut self, free: u64) -> bool {
        let is_turn = !self.seen_to && self.has_room(free);
        self.seen_to |= is_turn;
        is_turn
    }

    /// Nobody sees to the next one any more; whoever was promised it opens its own.
    pub fn over(&mut self) {
        self.seen_to = false;
        self.opening = None;
    }

    /// Whoever sees to the next one opens it now, with isolates of this much memory; none when there is no room for it any more.
    pub fn open(&mut self, free: u64) -> Option<u64> {
        let opening = self.has_room(free).then_some(Opening { memory: self.memory, promised: None })?;
        Some(self.opening.insert(opening).memory)
    }

    /// It is open: given to whom it was promised, else kept. What comes back is for nobody.
    pub fn stands(&mut self, cell: C, free: u64) -> Option<C> {
        let Some(Opening { memory, promised }) = self.opening.take() else { return Some(cell) };
        let cell = match promised {
            None => cell,
            Some(promised) => match promised.send(cell) {
                Ok(()) => return None,
                // It went away.
                Err(cell) => cell,
            },
        };
        if !self.has_room(free) {
            return Some(cell);
        }
        self.ready.push_back(Spare { memory, cell });
        None
    }

    /// Takes out those that would not suit another session like the last, and those for which there is no room any more.
    pub fn clear(&mut self, free: u64) -> Vec<C> {
        let memory = self.memory;
        let (kept, mut away): (Vec<_>, Vec<_>) = self.ready.drain(..).partition(|spare| spare.memory == memory);
        self.ready = kept.into();
        while self.ready.len() as u64 > free {
            away.extend(self.ready.pop_front());
        }
        away.into_iter().map(|spare| spare.cell).collect()
    }

    fn has_room(&self, free: u64) -> bool {
        let there = self.ready.len() as u64 + u64::from(self.opening.is_some());
        there < self.max.min(free)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MEMORY: u64 = 256;

    /// As after a session of an engine that stands.
    fn wanted(max: u64) -> Spares<u64> {
        let mut spares = Spares::new(max);
        assert_eq!(taken(&mut spares, MEMORY), None, "there is none yet");
        spares
    }

    /// Opens one as its keeper does.
    fn made(spares: &mut Spares<u64>, cell: u64) {
        assert!(spares.see_to(9) && spares.open(9).is_some(), "{cell} is to be opened");
        assert_eq!(spares.stands(cell, 9), None);
        spares.over();
    }

    fn taken(spares: &mut Spares<u64>, memory: u64) -> Option<u64> {
        match spares.take(memory) {
            Found::Ready(cell) => Some(cell),
            Found::Soon(_) => panic!("none is being opened"),
            Found::None => None,
        }
    }

    #[test]
    fn each_spare_goes_to_one_session_and_to_none_of_another_memory() {
        let mut spares = wanted(2);
        made(&mut spares, 1);
        made(&mut spares, 2);
        assert_eq!(taken(&mut spares, MEMORY + 1), None, "an isolate keeps its limit");
        assert_eq!(taken(&mut spares, MEMORY), Some(1));
        assert_eq!(taken(&mut spares, MEMORY), Some(2));
        assert_eq!(taken(&mut spares, MEMORY), None);
    }

    #[test]
    fn there_are_no_more_than_there_may_be_nor_than_sessions_may_come() {
        let mut spares = wanted(1);
        assert!(!spares.see_to(0), "the engine is full");
        assert!(spares.see_to(1));
        assert!(!spares.see_to(1), "one sees to it already");
        assert!(spares.open(0).is_none(), "the last place was taken meanwhile");
        spares.over();
        assert!(spares.see_to(1) && spares.open(1).is_some());
        assert_eq!(spares.stands(1, 0), Some(1), "and here while it was opened");
        spares.over();
        made(&mut spares, 2);
        assert!(!spares.see_to(9), "there are enough");
        assert!(!wanted(0).see_to(9), "none are wanted");
    }

    #[test]
    fn a_session_that_comes_while_one_is_opened_has_it_and_nobody_else() {
        let mut spares = wanted(1);
        assert!(spares.see_to(9) && spares.open(9).is_some());
        assert!(matches!(spares.take(MEMORY + 1), Found::None), "of another memory");
        let Found::Soon(mut soon) = spares.take(MEMORY) else { panic!("it is promised") };
        assert!(matches!(spares.take(MEMORY), Found::None), "it is promised already");
        assert_eq!(spares.stands(1, 0), None);
        assert_eq!(soon.try_recv(), Ok(1));
        assert_eq!(taken(&mut spares, MEMORY), None, "it is not kept as well");
    }

    #[test]
    fn one_whose_session_went_away_is_kept_and_one_that_fails_is_told() {
        let mut spares = wanted(1);
        assert!(spares.see_to(9) && spares.open(9).is_some());
        drop(spares.take(MEMORY));
        assert_eq!(spares.stands(1, 9), None);
        spares.over();
        assert_eq!(taken(&mut spares, MEMORY), Some(1));
        assert!(spares.see_to(9) && spares.open(9).is_some());
        let Found::Soon(mut soon) = spares.take(MEMORY) else { panic!("it is promised") };
        spares.over();
        assert!(soon.try_recv().is_err());
        made(&mut spares, 2);
    }

    #[test]
    fn those_that_do_not_suit_or_have_no_room_are_given_back() {
        let mut spares = wanted(3);
        for cell in 1..=3 {
            made(&mut spares, cell);
        }
        assert_eq!(spares.clear(3), Vec::<u64>::new(), "the control: they suit");
        assert_eq!(spares.clear(2), [1]);
        assert_eq!(taken(&mut spares, MEMORY + 1), None);
        assert_eq!(spares.clear(9), [2, 3], "the last session was of another memory");
        assert!(spares.see_to(9));
        assert_eq!(spares.open(9), Some(MEMORY + 1), "and so is the next spare");
    }
}
