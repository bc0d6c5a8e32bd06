//! Who still lives: children that were started, and orphans that became ours.
//!
//! Every program adopts its own orphans (`ProgramStep::AdoptOrphans`), so a child of init that was not started by init is a
//! leftover of a program that has ended, and must end too, unless it belongs to the warm interpreter. An execution is over when
//! its program has ended and no leftover lives; other executions, background ones among them, are never touched.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::PollFlags;

use crate::plan::ProgramStep;
use crate::plan::messages::{ProgramEnd, StartFailure, StartStage, Tag};
use crate::sys::process::{self, Ended, Reaped};
use crate::sys::{CallError, mount};

use super::program;
use super::watch::{Begin, Heard, Watch};

/// After this many rounds of killing leftovers one by one, everything is stopped first, so that none can fork away.
const ROUNDS_BEFORE_STOP: u32 = 16;

/// A program that was started.
#[derive(Debug)]
pub struct Running {
    /// The server's number.
    pub execution: Tag,
    /// What is heard of it.
    pub watch: Watch,
}

/// The bookkeeping of children.
#[derive(Debug, Default)]
pub struct Reaper {
    running: BTreeMap<i32, Running>,
    ended: Vec<(Running, Ended)>,
    /// Others that ended since this was asked.
    others: Vec<i32>,
    rounds: u32,
    stopped: bool,
}

/// An execution that is over.
#[derive(Debug)]
pub struct Over {
    /// The server's number.
    pub execution: Tag,
    /// How it ended.
    pub end: ProgramEnd,
    /// The warm interpreter that it came from is out of date.
    pub outdated: bool,
}

impl Reaper {
    /// A program has been started.
    pub fn add(&mut self, pid: i32, running: Running) {
        self.running.insert(pid, running);
    }

    /// Whether this is a program that was started and has not ended.
    pub fn runs(&self, pid: i32) -> bool {
        self.running.contains_key(&pid)
    }

    /// Whether no program runs, nor anything that one left behind.
    pub fn is_idle(&self) -> bool {
        self.running.is_empty() && self.ended.is_empty()
    }

    /// Children that ended and were no programs.
    pub fn take_others(&mut self) -> Vec<i32> {
        std::mem::take(&mut self.others)
    }

    /// A call was refused to a program of the warm interpreter, or to a descendant of it; the execution when that is new.
    pub fn add_blocked(&mut self, leader: i32, number: u32) -> Option<Tag> {
        let running = self.running.get_mut(&leader)?;
        (running.watch.is_of_a_fork() && running.watch.add_blocked(number)).then_some(running.execution)
    }

    /// True when no program of the warm interpreter runs to which that call would be refused for the first time.
    pub fn all_know_blocked(&self, number: u32) -> bool {
        self.running.values().filter(|running| running.watch.is_of_a_fork()).all(|running| running.watch.knows_blocked(number))
    }

    /// What to poll besides: one descriptor for each program that something is to be heard of.
    pub fn waits_on(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.running
            .values()
            .chain(self.ended.iter().map(|(running, _)| running))
            .filter_map(|running| running.watch.waits_on())
    }

    /// Takes what poll found for each of [`Self::waits_on`], in that order; gives the calls that were refused to an execution for
    /// the first time. One that has ended may have descendants yet.
    pub fn hear(&mut self, events: impl Iterator<Item = PollFlags>) -> Vec<(Tag, u32)> {
        let running = self.running.values_mut().chain(self.ended.iter_mut().map(|(running, _)| running));
        let heard = running.filter(|running| running.watch.waits_on().is_some()).zip(events);
        let told = heard.filter(|(_, events)| !events.is_empty());
        told.filter_map(|(running, events)| Some((running.execution, running.watch.hear(events)?))).collect()
    }

    /// Signals the process group of a program; one that has ended is passed over.
    pub fn signal(&self, execution: Tag, signal: i32) {
        if let Some(pid) = self.leader(execution) {
            // The group is the program's own (setsid); a program that left it is signalled alone.
            if process::kill(-pid, signal).is_err() {
                // Ended in between: its end is reported in due course.
                process::kill(pid, signal).ok();
            }
        }
    }

    /// Kills a program; its descendants follow when its end is reaped.
    pub fn end(&self, execution: Tag) {
        self.signal(execution, libc::SIGKILL);
    }

    fn leader(&self, execution: Tag) -> Option<i32> {
        self.running.iter().find(|(_, running)| running.execution == execution).map(|(pid, _)| *pid)
    }

    /// Reaps all that ended; gives the executions that are over. `spared` are children that are no leftovers of any.
    pub fn reap(&mut self, steps: &[ProgramStep], quotas: &[OwnedFd], spared: &[i32]) -> Result<Vec<Over>, CallError> {
        let more = self.collect()?;
        if self.ended.is_empty() {
            return Ok(Vec::new());
        }
        if more && self.kill_leftovers(spared)? {
            return Ok(Vec::new());
        }
        self.rounds = 0;
        if std::mem::take(&mut self.stopped) {
            process::kill(-1, libc::SIGCONT).ok();
        }
        let quota_full = quotas.iter().any(|quota| mount::is_full(quota.as_fd()).unwrap_or(false));
        let over = std::mem::take(&mut self.ended);
        Ok(over.into_iter().map(|(running, ended)| over_of(running, ended, steps, quota_full)).collect())
    }

    /// True when children are left.
    fn collect(&mut self) -> Result<bool, CallError> {
        loop {
            match process::reap(-1)? {
                Reaped::Ended(ended) => match self.running.remove(&ended.pid) {
                    Some(running) => self.ended.push((running, ended)),
                    None => self.others.push(ended.pid),
                },
                Reaped::StillRunning => return Ok(true),
                Reaped::NoChild => return Ok(false),
            }
        }
    }

    /// Kills what ended programs left behind; true when there was something, whose end will be a signal of its own.
    fn kill_leftovers(&mut self, spared: &[i32]) -> Result<bool, CallError> {
        if self.running.is_empty() && spared.is_empty() {
            process::kill(-1, libc::SIGKILL)?;
            return Ok(true);
        }
        let leftovers: Vec<i32> =
            children()?.into_iter().filter(|pid| !self.running.contains_key(pid) && !spared.contains(pid)).collect();
        if leftovers.is_empty() {
            return Ok(false);
        }
        self.rounds += 1;
        if self.rounds > ROUNDS_BEFORE_STOP {
            // Every time: a program started since the last stop may have woken what was stopped.
            process::kill(-1, libc::SIGSTOP)?;
            self.stopped = true;
        }
        for pid in leftovers {
            // One that has ended in between is reaped in the next round.
            process::kill(pid, libc::SIGKILL).ok();
        }
        Ok(true)
    }
}

fn over_of(running: Running, ended: Ended, steps: &[ProgramStep], quota_full: bool) -> Over {
    let late = running.watch.begin() == Begin::Late && ended.status == libc::SIGKILL;
    let Heard { failure, blocked, born, outdated } = running.watch.finish();
    let end = match failure {
        _ if late => {
            let errno = rustix::io::Errno::TIMEDOUT.raw_os_error();
            ProgramEnd::NotStarted(StartFailure { stage: StartStage::Fork, errno })
        }
        Some(record) => ProgramEnd::NotStarted(program::start_failure(record, steps)),
        None => ProgramEnd::Ran { status: ended.status, cpu_us: ended.cpu_us, quota_full, blocked, born },
    };
    Over { execution: running.execution, end, outdated }
}

/// The children of init, from its own `/proc` (children lists are exact while nothing else reaps: proc_pid_children(5)).
fn children() -> Result<Vec<i32>, CallError> {
    let mut text = String::new();
    let read = File::open("/proc/self/task/1/children").and_then(|mut file| file.read_to_string(&mut text));
    match read {
        Ok(_) => Ok(text.split_ascii_whitespace().filter_map(|pid| pid.parse().ok()).collect()),
        Err(error) => Err(CallError {
            call: "read /proc/self/task/1/children",
            errno: rustix::io::Errno::from_io_error(&error).unwrap_or(rustix::io::Errno::IO),
        }),
    }
}
