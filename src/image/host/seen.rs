//! What was seen of the host when it was looked at last: its state's name, the image that was made of it, programs in that.
//!
//! Invariant: all of it is of one name of the host's state and was seen after that was, and none is told longer than [`HOLDS`] after it.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::image::root::{Bind, ImageGuard, ImageRoot, program_exists};

/// A session that is made so soon after the host's files have changed may stand on what they were.
pub(super) const HOLDS: Duration = Duration::from_secs(1);

/// The last look, shared by all clones.
#[derive(Debug, Clone, Default)]
pub(in crate::image) struct SeenHost(Arc<Mutex<Option<Look>>>);

#[derive(Debug)]
struct Look {
    when: Instant,
    /// The name of the host's state.
    state: String,
    /// The image, and what keeps it from being removed until it is asked for after that.
    root: Option<(HostRoot, Arc<ImageGuard>)>,
    /// Whether these programs are in it.
    programs: HashMap<String, bool>,
}

/// What the image `host` is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct HostRoot {
    pub skeleton: PathBuf,
    pub binds: Vec<Bind>,
}

impl Look {
    fn holds(&self) -> bool {
        self.when.elapsed() < HOLDS
    }
}

impl SeenHost {
    /// The name of the host's state, from `look` or, as long as it holds, as it was seen: sessions that are made one after another need
    /// not look at each of some seventy files again. `dir` has a skeleton for each state.
    pub(super) fn state(&self, dir: &Path, look: impl FnOnce() -> String) -> String {
        let mut seen = self.last();
        match &*seen {
            // One whose skeleton is not there is looked at again: a skeleton is made of what the host is now, and named after that.
            Some(seen) if seen.holds() && dir.join(&seen.state).is_dir() => seen.state.clone(),
            _ => {
                let state = look();
                *seen = Some(Look { when: Instant::now(), state: state.clone(), root: None, programs: HashMap::new() });
                state
            }
        }
    }

    /// The image as it was made last, if that holds; if not, it may be removed from here on.
    pub(super) fn root(&self) -> Option<(HostRoot, Arc<ImageGuard>)> {
        let mut seen = self.last();
        let seen = seen.as_mut()?;
        if !seen.holds() {
            seen.root = None;
        }
        seen.root.clone()
    }

    /// Has an image that was made for that state given to whoever asks, as long as it holds.
    pub(super) fn keep(&self, state: &str, root: &HostRoot, guard: &Arc<ImageGuard>) {
        if let Some(seen) = self.last().as_mut().filter(|seen| seen.state == state) {
            seen.root = Some((root.clone(), Arc::clone(guard)));
        }
    }

    /// [`program_exists`]; in the image of the state that was seen, as long as it holds, as it was.
    pub fn has_program(&self, dir: &Path, root: &ImageRoot, program: &str) -> bool {
        let is_of = |look: &Look| look.holds() && dir.join(&look.state) == root.lower;
        let known = self.last().as_ref().filter(|look| is_of(look)).map(|look| look.programs.get(program).copied());
        // Nobody waits for a lookup of others.
        let found = known.flatten().unwrap_or_else(|| program_exists(root, program));
        if known == Some(None)
            && let Some(look) = self.last().as_mut().filter(|look| is_of(look))
        {
            look.programs.insert(program.to_owned(), found);
        }
        found
    }

    fn last(&self) -> MutexGuard<'_, Option<Look>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
