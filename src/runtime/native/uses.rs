//! Whether sessions of a kind run programs in the interpreter that a ready sandbox comes with.
//!
//! Invariant: a guess that is wrong costs a warm start or some memory, never a session what it asked for.

use std::sync::atomic::{AtomicU32, Ordering};

/// So many sessions in a row without such a program, and the next ready sandboxes have no interpreter: to start one that nobody uses takes
/// several times what the sandbox itself takes.
const UNUSED_MAX: u32 = 16;

/// Sessions of a kind that were made, of a ready sandbox or anew, since one of them ran such a program.
#[derive(Debug, Default)]
pub(super) struct Uses(AtomicU32);

impl Uses {
    /// A session is made.
    pub(super) fn asked(&self) {
        // At its end it stays there: more than enough.
        let _ = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |unused| unused.checked_add(1));
    }

    /// A session begins a program that an interpreter is for.
    pub(super) fn ran(&self) {
        self.0.store(0, Ordering::Relaxed);
    }

    /// Whether the next ready sandbox is to have one.
    pub(super) fn are_likely(&self) -> bool {
        self.0.load(Ordering::Relaxed) < UNUSED_MAX
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sessions_that_run_nothing_end_it_and_one_that_runs_brings_it_back() {
        let uses = Uses::default();
        for _ in 0..UNUSED_MAX {
            assert!(uses.are_likely());
            uses.asked();
        }
        assert!(!uses.are_likely());
        uses.0.store(u32::MAX, Ordering::Relaxed);
        uses.asked();
        assert!(!uses.are_likely(), "the count does not begin anew");
        uses.ran();
        assert!(uses.are_likely());
    }
}
