//! Follows processes and what they start, and keeps the calls that their filters see.
//!
//! Invariant: a child is what its parent is, whichever of the two is heard of first. Who is followed, and for how long, `record` and
//! `session` decide.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};

use crate::seccomp::Arch;
use crate::seccomp::record::Recording;
use crate::sys::CallError;
use crate::sys::tracee::{
    CallStop, Event, Patience, call_stop, event_process, follow, interrupt, resume, seize_and_follow, wait_any,
};

/// The number of SIGSTOP.
const SIGSTOP: i32 = 19;

/// Follows every process below one.
pub(super) struct Tracer {
    arch: Arch,
    recording: Recording,
    /// Processes that are known, and whether their calls count.
    known: BTreeMap<i32, Stage>,
    /// Those that stood still before their parent's event was seen.
    early: BTreeSet<i32>,
}

/// How far a process is on its way to being a program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// Ours: the server's part, the launcher, init.
    Before,
    /// It has begun to install filters; so have its children.
    Filtered,
}

impl Tracer {
    pub fn new(arch: Arch) -> Self {
        Self { arch, recording: Recording::default(), known: BTreeMap::new(), early: BTreeSet::new() }
    }

    /// A process that was started to be traced, until everything below it has ended; with its exit code.
    pub fn follow_all(mut self, first: i32) -> Result<(Recording, Option<u8>), CallError> {
        let mut code = None;
        let mut options_set = false;
        self.known.insert(first, Stage::Before);
        while let Some((pid, event)) = wait_any(-1, Patience::Wait)? {
            if !options_set && pid == first {
                // The stop of its exec: from here on children are followed.
                options_set = true;
                follow(first)?;
                resume(first, 0);
                continue;
            }
            if let (Event::Ended(ended), true) = (event, pid == first) {
                code = Some(u8::try_from(ended).unwrap_or(u8::MAX));
            }
            self.event(pid, event);
        }
        Ok((self.recording, code))
    }

    /// A process that runs already; `began` is called when it is followed. What it started before is not. Ends when everything that is
    /// followed has ended, or with the first event after `over` was set; the processes then go on by themselves once this thread ends.
    pub fn follow_running(mut self, pid: i32, began: impl FnOnce(), over: &AtomicBool) -> Result<Recording, CallError> {
        seize_and_follow(pid)?;
        self.known.insert(pid, Stage::Before);
        interrupt(pid)?;
        let mut began = Some(began);
        while let Some((pid, event)) = wait_any(-1, Patience::Wait)? {
            self.event(pid, event);
            if let Some(began) = began.take() {
                began();
            }
            if over.load(Ordering::Acquire) {
                break;
            }
        }
        Ok(self.recording)
    }

    fn event(&mut self, pid: i32, event: Event) {
        match event {
            Event::Ended(_) => drop(self.known.remove(&pid)),
            Event::Call => {
                self.call(pid);
                resume(pid, 0);
            }
            Event::Forked => {
                self.forked(pid);
                resume(pid, 0);
            }
            Event::Executed => resume(pid, 0),
            Event::Signal(signal) => self.signal(pid, signal),
        }
    }

    fn call(&mut self, pid: i32) {
        let Ok(CallStop::Entry { arch, number, args }) = call_stop(pid) else { return };
        let installs = self.arch.number("seccomp").map(u64::from) == Some(number);
        let stage = self.known.entry(pid).or_insert(Stage::Before);
        if installs {
            *stage = Stage::Filtered;
        }
        match stage {
            Stage::Before => {}
            Stage::Filtered => self.recording.add(self.arch, arch, number as u32, args),
        }
    }

    /// A child is what its parent is.
    fn forked(&mut self, parent: i32) {
        let stage = self.known.get(&parent).copied().unwrap_or(Stage::Before);
        let Ok(child) = event_process(parent) else { return };
        self.known.insert(child, stage);
        if self.early.remove(&child) {
            resume(child, 0);
        }
    }

    /// A new process begins with a stop of its own, which is no signal for it: SIGSTOP below a process that was started to be traced, and
    /// one without a signal below a seized one.
    fn signal(&mut self, pid: i32, signal: i32) {
        let is_stop = signal == SIGSTOP || signal == 0;
        match self.known.get(&pid) {
            None if is_stop => drop(self.early.insert(pid)),
            _ if is_stop => resume(pid, 0),
            _ => resume(pid, signal),
        }
    }
}
