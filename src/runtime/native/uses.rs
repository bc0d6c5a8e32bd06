//! Whether sandboxes of a kind run programs in the interpreter that a ready one comes with.
//!
//! Invariant: a guess that is wrong costs a warm start or some memory, never a session what it asked for.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use tokio::sync::Notify;

/// So many in a row that ended without such a program, and the next ready sandboxes have no interpreter: to start one that nobody uses takes
/// several times what the sandbox itself takes.
const UNUSED_MAX: u32 = 16;

/// Sandboxes of a kind, ready ones or made for their session, that ended without such a program since one began it.
#[derive(Debug, Default)]
pub(super) struct Uses {
    unused: AtomicU32,
    changed: Arc<Notify>,
}

impl Uses {
    /// Of a kind of which nothing is known; whoever fills its shelf hears by `changed` that uses have become likely.
    pub(super) fn new(changed: Arc<Notify>) -> Self {
        Self { unused: AtomicU32::new(0), changed }
    }

    /// Whether the next ready sandbox is to have one.
    pub(super) fn are_likely(&self) -> bool {
        self.unused.load(Ordering::Relaxed) < UNUSED_MAX
    }
}

/// The use that one sandbox makes of it: counted at its end.
#[derive(Debug)]
pub(super) struct Use {
    kind: Arc<Uses>,
    /// Whether one that is made ready is of use to its session at all.
    serves: bool,
    began: AtomicBool,
}

impl Use {
    pub(super) fn new(kind: Arc<Uses>, serves: bool) -> Self {
        Self { kind, serves, began: AtomicBool::new(false) }
    }

    /// A program begins that an interpreter of the kind is for.
    pub(super) fn begin(&self) {
        if self.serves {
            self.began.store(true, Ordering::Relaxed);
            if self.kind.unused.swap(0, Ordering::Relaxed) >= UNUSED_MAX {
                self.kind.changed.notify_one();
            }
        }
    }
}

impl Drop for Use {
    fn drop(&mut self) {
        if !*self.began.get_mut() {
            // At its end the count stays there: more than enough.
            let _ = self.kind.unused.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |unused| unused.checked_add(1));
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    fn use_of(kind: &Arc<Uses>, serves: bool) -> Use {
        Use::new(Arc::clone(kind), serves)
    }

    #[test]
    fn sandboxes_that_end_without_a_program_tell_against_it_and_one_that_begins_brings_it_back() {
        let kind = Arc::default();
        let open: Vec<Use> = (0..UNUSED_MAX).map(|_| use_of(&kind, true)).collect();
        assert!(kind.are_likely(), "each of them may still begin one");
        drop(open);
        assert!(!kind.are_likely());
        use_of(&kind, false).begin();
        assert!(!kind.are_likely(), "one made ready would have been of no use to it");
        assert!(kind.changed.notified().now_or_never().is_none());
        let last = use_of(&kind, true);
        last.begin();
        assert!(kind.are_likely());
        assert!(kind.changed.notified().now_or_never().is_some(), "who fills the shelf need not look for it");
        last.begin();
        assert!(kind.changed.notified().now_or_never().is_none(), "it was likely already");
        drop(last);
        assert!(kind.are_likely());
        assert_eq!(kind.unused.load(Ordering::Relaxed), 0, "it is not counted");
    }

    #[test]
    fn the_count_does_not_begin_anew_at_its_end() {
        let kind = Arc::new(Uses { unused: AtomicU32::new(u32::MAX), ..Uses::default() });
        drop(use_of(&kind, true));
        assert!(!kind.are_likely());
    }
}
