//! A program that is started before its source is there. It begins as any program does, comes to the place of its source, finds a
//! fifo there (`files::gate`) and waits in it, or in a script that it was told to load first; what carries out the source then is the
//! very process that would have, with its start behind it. It runs one program; whoever wants another one started ahead says so with new streams.
//!
//! Invariants: nothing of it can be seen by, or be started beside, another program of the session before it waits; it is offered a
//! source only when nothing is there now that such a program looks for when it starts, and nothing was there meanwhile. Whatever
//! fails here costs the start that was saved, and nothing else.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::PollFlags;
use rustix::fs::FileType;

use crate::plan::files::{FileCommand, FileReply};
use crate::plan::messages::{ExecuteRequest, PrestartRequest, ProgramNetwork, View, WaitsIn};
use crate::sys::process;
use crate::sys::standing::Standing;

use super::files::FileContext;
use super::files::gate::Gate;
use super::program::{self, Base, Role, Started, standing};
use super::reaper::Running;
use super::warm::{Outcome, own_memory};
use super::watch::Watch;

/// One that has not opened its source after this long is ended.
const START_TIME: Duration = Duration::from_secs(10);

/// How long it is left alone before it is looked at first; each time twice as long, to a bound: nobody says when a file is opened.
const FIRST_LOOK: Duration = Duration::from_millis(4);

const LONGEST_PAUSE: Duration = Duration::from_millis(128);

/// How often in a row one may end or be late before it has opened its source, until another command line is asked for.
const FAILURES_MAX: u32 = 3;

/// The one that is kept, if any.
#[derive(Debug, Default)]
pub struct Prestarted {
    ahead: Option<Ahead>,
    /// Of the last one.
    arguments: Vec<Vec<u8>>,
    /// Of such, in a row.
    failures: u32,
}

/// One that was started.
#[derive(Debug)]
pub struct Ahead {
    pid: i32,
    watch: Watch,
    request: PrestartRequest,
    gate: Gate,
    /// What was beside its source when it was started, where it keeps that in mind and would not look again.
    neighbours: Option<Vec<(Vec<u8>, FileType)>>,
    /// Of a program that begins; none: nobody can tell.
    standing: Option<Standing>,
    stage: Stage,
}

#[derive(Debug, Clone, Copy)]
enum Stage {
    /// It has not opened its source yet, which can be seen.
    Opening { next: Instant, pause: Duration, until: Instant },
    /// It waits.
    Waiting,
}

impl Prestarted {
    /// Starts one where the gate stands, in place of the one before, with the socket that it may wait on.
    pub fn begin(
        &mut self,
        request: PrestartRequest,
        streams: Vec<OwnedFd>,
        (gate, socket): (Gate, Option<OwnedFd>),
        base: Base<'_>,
    ) -> Result<(), Gate> {
        let program = ExecuteRequest::ahead(&request.arguments, &request.environment, &request.directory);
        let standing = standing(base.plan);
        // Only Landlock keeps other programs of the session from its descriptors while nobody answers for it.
        if base.built.rules.is_none() || gate.is_beside_any(&request.unless) || !self.is_worth_a_start(&request) {
            return Err(gate);
        }
        let neighbours = match request.waits_in {
            WaitsIn::Source => None,
            WaitsIn::Preload { .. } => match gate.neighbours() {
                Some(neighbours) => Some(neighbours),
                None => return Err(gate),
            },
        };
        let role = socket.as_ref().map_or(Role::Program, |socket| Role::Waiting(socket.as_fd()));
        let Ok(Started { pid, watch }) = program::start(base, &program, streams, role) else { return Err(gate) };
        let now = Instant::now();
        let stage = Stage::Opening { next: now + FIRST_LOOK, pause: FIRST_LOOK, until: now + START_TIME };
        self.ahead = Some(Ahead { pid, watch, request, gate, neighbours, standing, stage });
        Ok(())
    }

    /// False for what has failed again and again.
    fn is_worth_a_start(&mut self, request: &PrestartRequest) -> bool {
        if self.arguments != request.arguments {
            self.arguments.clone_from(&request.arguments);
            self.failures = 0;
        }
        self.failures < FAILURES_MAX
    }

    /// Lets go of it, for somebody who ends it or gives it its source.
    pub fn take(&mut self) -> Option<Ahead> {
        self.ahead.take()
    }

    /// Whether there is none.
    pub fn is_none(&self) -> bool {
        self.ahead.is_none()
    }

    /// The one whose fifo may stand yet: it had not opened its source when it was looked at last.
    pub fn opening(&self) -> Option<&Ahead> {
        self.ahead.as_ref().filter(|ahead| ahead.is_opening())
    }

    /// The one that waits for its source.
    pub fn waiting(&self) -> Option<&Ahead> {
        self.ahead.as_ref().filter(|ahead| !ahead.is_opening())
    }

    /// A child that is no leftover of a program.
    pub fn spared(&self) -> Option<i32> {
        self.ahead.as_ref().map(|ahead| ahead.pid)
    }

    /// Whether that child was it.
    pub fn ended(&mut self, pid: i32) -> Option<Ahead> {
        let ahead = self.ahead.take_if(|ahead| ahead.pid == pid)?;
        self.failures += u32::from(ahead.is_opening());
        Some(ahead)
    }

    /// What to poll besides.
    pub fn waits_on(&self) -> Option<BorrowedFd<'_>> {
        self.ahead.as_ref()?.watch.waits_on()
    }

    /// When it is to be looked at.
    pub fn deadline(&self) -> Option<Instant> {
        match self.ahead.as_ref()?.stage {
            Stage::Opening { next, .. } => Some(next),
            Stage::Waiting => None,
        }
    }

    /// Takes what poll found for [`Self::waits_on`].
    pub fn hear(&mut self, events: PollFlags) {
        if let Some(ahead) = self.ahead.as_mut().filter(|_| !events.is_empty()) {
            ahead.watch.hear(events);
        }
    }

    /// Looks whether it has opened its source, when it is time to or somebody has a reason; what became of it, when that is new.
    pub fn look(&mut self) -> Option<Outcome> {
        let ahead = self.ahead.as_mut()?;
        let Stage::Opening { pause, until, .. } = ahead.stage else { return None };
        let now = Instant::now();
        if ahead.gate.has_waiter() {
            ahead.stage = Stage::Waiting;
            self.failures = 0;
            return Some(Outcome::Ready(own_memory(ahead.pid)));
        }
        if until <= now {
            self.failures += 1;
            return Some(Outcome::Lost);
        }
        let pause = (pause * 2).min(LONGEST_PAUSE);
        ahead.stage = Stage::Opening { next: (now + pause).min(until), pause, until };
        None
    }
}

impl Ahead {
    /// Whether it has not opened its source, as far as it was looked at.
    pub fn is_opening(&self) -> bool {
        matches!(self.stage, Stage::Opening { .. })
    }

    /// Where its source is to be.
    pub fn gate(&self) -> &Gate {
        &self.gate
    }

    /// Whether a command would meet the fifo as long as that can be seen. So does one that writes the source: a file in its place would
    /// be run as soon as it is opened, which is before anybody asks for it.
    pub fn is_met_by(&self, command: &FileCommand, context: &FileContext) -> bool {
        let leads_here = |path: &[u8]| self.gate.is_reached_by(path, context);
        match command {
            FileCommand::Write { path, .. }
            | FileCommand::Read { path, .. }
            | FileCommand::CreateDirectory { path, .. }
            | FileCommand::Delete { path, recursive: false } => leads_here(path),
            FileCommand::Copy { source, destination, recursive: false, .. } => leads_here(source) || leads_here(destination),
            FileCommand::Copy { .. } | FileCommand::Delete { .. } => true,
            // It is left out of the answer.
            FileCommand::List { .. } => false,
        }
    }

    /// Takes the gate out of a listing that was made while it could be seen.
    pub fn hide(&self, reply: &mut FileReply, context: &FileContext) {
        if let FileReply::Listed { entries, .. } = reply {
            // A directory has as many names as links lead to it.
            entries.retain(|entry| !self.gate.has_name_of(&entry.path) || !self.gate.is_reached_by(&entry.path, context));
        }
    }

    /// Whether it could have seen what is gone with this command, and would look for it there. Commands that only add are told by
    /// [`Self::suits`].
    pub fn is_misled_by(&self, command: &FileCommand) -> bool {
        self.neighbours.is_some() && matches!(command, FileCommand::Delete { path, .. } if *path != self.request.source)
    }

    /// Whether something is there that such a program looks for when it starts.
    pub fn is_outdated(&self) -> bool {
        self.gate.is_beside_any(&self.request.unless)
    }

    /// Whether it is, but for its source, what would be started for this.
    pub fn suits(&self, request: &ExecuteRequest, number: u64) -> bool {
        let own = &self.request;
        number == own.number
            && request.view == View::Programs
            && request.network == ProgramNetwork::Sandbox
            && (&request.arguments, &request.environment, &request.directory)
                == (&own.arguments, &own.environment, &own.directory)
            // Neither has somebody put a file into its way, nor has it ended.
            && !self.is_opening()
            && self.gate.has_waiter()
            && !self.is_outdated()
            && (self.neighbours.is_none() || self.neighbours == self.gate.neighbours())
            // A program has changed what it begins with.
            && self.standing.is_some()
            && Standing::of(self.pid).ok() == self.standing
    }

    /// Gives it its source; from then on it is a program like any other. None when it could not be: it has ended then.
    pub fn give(self, source: &[u8], request: &ExecuteRequest) -> Option<(i32, Running)> {
        let Self { pid, watch, gate, .. } = self;
        if gate.feed(source).is_err() {
            process::kill(pid, libc::SIGKILL).ok();
            return None;
        }
        // A program of the same session may have stopped it.
        process::kill(pid, libc::SIGCONT).ok();
        Some((pid, Running { execution: request.execution, watch: watch.of_one_started_ahead() }))
    }

    /// Ends it; the gate, if it still stands, is for the caller to remove.
    pub fn end(self) -> Gate {
        process::kill(self.pid, libc::SIGKILL).ok();
        self.gate
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::{EntryType, FileEntry, WriteMode};
    use crate::init::watch::Begin;
    use crate::sys::socket;

    const NUMBER: u64 = 7;

    fn context(directory: &tempfile::TempDir) -> FileContext {
        let flags = rustix::fs::OFlags::PATH | rustix::fs::OFlags::DIRECTORY;
        let root = rustix::fs::open(directory.path(), flags, rustix::fs::Mode::empty()).expect("just made");
        FileContext::new(root, "/")
    }

    /// One that has not opened its source, in a workspace of its own; no process of anybody has that number.
    fn opening(directory: &tempfile::TempDir) -> Prestarted {
        let (gate, _) = Gate::make(&context(directory), b"/.main.js", &WaitsIn::Source).expect("the place is free");
        let (socket, _) = socket::pair().expect("a socket pair");
        let request = PrestartRequest {
            number: NUMBER,
            arguments: vec![b"node".to_vec()],
            environment: Vec::new(),
            directory: b"/".to_vec(),
            source: b"/.main.js".to_vec(),
            unless: vec![b"package.json".to_vec()],
            waits_in: WaitsIn::Source,
        };
        let now = Instant::now();
        let stage = Stage::Opening { next: now, pause: FIRST_LOOK, until: now + START_TIME };
        let watch = Watch::new(socket, &[], Begin::InTime);
        let ahead = Ahead { pid: i32::MAX, watch, request, gate, neighbours: None, standing: Standing::of(0).ok(), stage };
        Prestarted { ahead: Some(ahead), ..Prestarted::default() }
    }

    #[test]
    fn what_would_meet_the_fifo_is_told_from_what_would_not() {
        let directory = tempfile::tempdir().expect("room on the disk");
        let kept = opening(&directory);
        let meets =
            |command: &FileCommand| kept.opening().expect("it was not looked at").is_met_by(command, &context(&directory));
        let write = |path: &str| {
            meets(&FileCommand::Write {
                path: path.into(),
                content: Vec::new().into(),
                mode: WriteMode::Create,
                permissions: None,
            })
        };
        std::os::unix::fs::symlink(".main.js", directory.path().join("link")).expect("room on the disk");
        assert!(write("/.main.js") && write("./.main.js") && write(".main.js") && write("link") && !write("/main.js"));
        let delete = |path: &str, recursive| meets(&FileCommand::Delete { path: path.into(), recursive });
        assert!(!delete("/other", false) && delete("/other", true) && delete("/.main.js", false));
    }

    #[test]
    fn only_one_that_waits_and_has_that_number_suits_the_very_program() {
        let directory = tempfile::tempdir().expect("room on the disk");
        let mut kept = opening(&directory);
        // This process stands as it does itself.
        kept.ahead.as_mut().expect("there").pid = 0;
        let program = || ExecuteRequest::ahead(&[b"node".to_vec()], &[], b"/");
        let suits = |kept: &Prestarted, request: &ExecuteRequest, number| {
            kept.ahead.as_ref().is_some_and(|ahead| ahead.suits(request, number))
        };
        assert!(!suits(&kept, &program(), NUMBER), "it has not opened its source");
        let reader = std::fs::File::open(directory.path().join(".main.js")).expect("its other end is open");
        assert!(matches!(kept.look(), Some(Outcome::Ready(_))));
        assert!(suits(&kept, &program(), NUMBER));
        assert!(!suits(&kept, &program(), NUMBER + 1), "its streams are another one's");
        let other = ExecuteRequest { arguments: vec![b"node".to_vec(), b"x".to_vec()], ..program() };
        assert!(!suits(&kept, &other, NUMBER));
        std::fs::write(directory.path().join("package.json"), "{}").expect("room on the disk");
        assert!(!suits(&kept, &program(), NUMBER), "it may have been looked for");
        std::fs::remove_file(directory.path().join("package.json")).expect("just written");
        assert!(suits(&kept, &program(), NUMBER));
        drop(reader);
        assert!(!suits(&kept, &program(), NUMBER), "it has ended");
    }

    #[test]
    fn a_listing_lacks_the_fifo_and_nothing_else() {
        let directory = tempfile::tempdir().expect("room on the disk");
        let kept = opening(&directory);
        let entry = |path: &str| FileEntry {
            name: Vec::new(),
            path: path.into(),
            kind: EntryType::Other,
            size: 0,
            mode: 0,
            modified_ms: 0,
            target: None,
        };
        std::os::unix::fs::symlink(".", directory.path().join("self")).expect("room on the disk");
        let entries = ["/.main.js", "/sub/.main.js", "/self/.main.js"].map(entry).into();
        let mut reply = FileReply::Listed { entries, truncated: false };
        std::fs::create_dir(directory.path().join("sub")).expect("room on the disk");
        std::fs::write(directory.path().join("sub/.main.js"), "own").expect("room on the disk");
        kept.opening().expect("nobody reads").hide(&mut reply, &context(&directory));
        assert_eq!(reply, FileReply::Listed { entries: vec![entry("/sub/.main.js")], truncated: false });
    }

    #[test]
    fn what_fails_again_and_again_is_not_started_until_another_one_is_asked_for() {
        let directories: Vec<tempfile::TempDir> = (0..5).map(|_| tempfile::tempdir().expect("room on the disk")).collect();
        let mut kept = opening(&directories[0]);
        let request = kept.ahead.as_ref().expect("there").request.clone();
        assert!(kept.is_worth_a_start(&request));
        let again = |kept: &mut Prestarted, at: usize| kept.ahead = opening(&directories[at]).ahead;
        for at in 1..4 {
            assert!(kept.is_worth_a_start(&request), "the failure {at} is yet to come");
            assert!(kept.ended(i32::MAX).is_some_and(|ahead| ahead.is_opening()));
            again(&mut kept, at);
        }
        assert!(!kept.is_worth_a_start(&request));
        let other = PrestartRequest { arguments: vec![b"deno".to_vec()], ..request.clone() };
        assert!(kept.is_worth_a_start(&other) && kept.is_worth_a_start(&request), "the count is of one command line in a row");
        kept.failures = FAILURES_MAX - 1;
        let _reader = std::fs::File::open(directories[3].path().join(".main.js")).expect("its other end is open");
        assert!(matches!(kept.look(), Some(Outcome::Ready(_))));
        assert!(kept.ended(i32::MAX).is_some() && kept.is_worth_a_start(&request), "one that waited was no failure");
        assert_eq!(kept.failures, 0);
    }

    #[test]
    fn it_waits_once_somebody_has_opened_the_fifo_and_is_lost_when_nobody_does() {
        let directory = tempfile::tempdir().expect("room on the disk");
        let mut kept = opening(&directory);
        assert_eq!(kept.look(), None);
        assert!(kept.deadline().is_some_and(|next| next > Instant::now()) && kept.waiting().is_none());
        let reader = std::fs::File::open(directory.path().join(".main.js")).expect("its other end is open");
        assert!(matches!(kept.look(), Some(Outcome::Ready(_))));
        assert!(kept.deadline().is_none() && kept.opening().is_none() && kept.waiting().is_some());
        assert_eq!(kept.look(), None, "that is told once");
        drop(reader);
        let mut late = opening(&tempfile::tempdir().expect("room on the disk"));
        if let Some(Ahead { stage: Stage::Opening { until, .. }, .. }) = &mut late.ahead {
            *until = Instant::now();
        }
        assert_eq!(late.look(), Some(Outcome::Lost));
    }
}
