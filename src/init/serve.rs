//! Init's loop: waits for requests and for children, never polls, never waits for a program.
//!
//! Invariant: `Ended` is sent once for each execution that was asked for, and only when no descendant of it lives.

mod ahead;

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};

use crate::plan::Plan;
use crate::plan::files::{FileCommand, FileError, FileErrorKind};
use crate::plan::messages::{ExecuteRequest, InitMessage, InitRequest, ProgramEnd, StartFailure, StartStage, Tag};
use crate::sys::channel::{self, ChannelError};
use crate::sys::error::Named;
use crate::sys::memory::Mapped;
use crate::sys::socket::Wait;
use crate::sys::start::Stack;
use crate::sys::{CallError, mount, process};

use super::door;
use super::files::{self, Carriers, FileContext};
use super::prestarted::Prestarted;
use super::program::{self, Base, Role};
use super::reaper::{Over, Reaper, Running};
use super::rights::Rights;
use super::steps::Built;
use super::warm::{News, Outcome, Warm};

/// Where relative paths start.
const WORKSPACE: &str = "/workspace";

/// How long a program waits for a fork of the warm interpreter: less than an interpreter takes to start.
const FORK_TIME: Duration = Duration::from_millis(10);

/// File commands that failed and are remembered one by one.
const FAILED_FILES_MAX: usize = 256;

/// Everything that serving takes and that can fail: a sandbox that could not serve must not be called ready.
pub fn prepare<'a>(plan: &'a Plan, built: Built, control: BorrowedFd<'a>) -> Result<(Init<'a>, OwnedFd), CallError> {
    let children = process::child_signals()?;
    let root = rustix::io::fcntl_dupfd_cloexec(&built.root, 0).named("fcntl(F_DUPFD_CLOEXEC)")?;
    let init = Init {
        plan,
        control,
        context: FileContext::new(root, WORKSPACE),
        rights: Rights::new((plan.file_uid, plan.file_gid))?,
        built,
        reaper: Reaper::default(),
        warm: Warm::default(),
        prestarted: Prestarted::default(),
        waiting: Vec::new(),
        failed_files: VecDeque::new(),
        forgotten_file: 0,
        stack: Stack::new()?,
    };
    Ok((init, children))
}

/// Serves until the control socket closes; leaving it ends the process, and with it the whole pid namespace.
pub fn run(mut init: Init<'_>, children: &OwnedFd) -> Result<(), ChannelError> {
    let control = init.control;
    loop {
        let ready = init.wait(children.as_fd())?;
        if ready.child {
            process::drain_signals(children.as_fd());
            init.reap()?;
        }
        if ready.request {
            match channel::receive::<InitRequest>(control, Wait::No) {
                Ok(received) => init.request(received.message, received.descriptors)?,
                Err(ChannelError::Empty) => {}
                Err(error) => return Err(error),
            }
        }
        init.start_late()?;
    }
}

/// What one turn has to do.
struct Ready {
    request: bool,
    child: bool,
}

/// A program that waits for a fork of the warm interpreter, which is being made.
struct Waiting {
    request: ExecuteRequest,
    streams: Vec<OwnedFd>,
    until: Instant,
}

/// An init whose walls stand.
pub struct Init<'a> {
    plan: &'a Plan,
    control: BorrowedFd<'a>,
    context: FileContext,
    rights: Rights,
    built: Built,
    reaper: Reaper,
    warm: Warm,
    prestarted: Prestarted,
    waiting: Vec<Waiting>,
    /// The latest of those that failed.
    failed_files: VecDeque<Tag>,
    /// The last that failed and is none of them; what came before it may have failed as well.
    forgotten_file: Tag,
    /// Of programs until they execute.
    stack: Stack,
}

impl Init<'_> {
    /// Waits until something is to be done; what programs have to say is heard here, one word of each a turn, so that none of them
    /// keeps requests or the ends of others waiting.
    fn wait(&mut self, children: BorrowedFd<'_>) -> Result<Ready, ChannelError> {
        let own = [self.control, children];
        let programs = self.reaper.waits_on().count();
        let ahead = self.prestarted.waits_on().iter().count();
        let others = self.reaper.waits_on().chain(self.prestarted.waits_on()).chain(self.warm.waits_on());
        let all = own.into_iter().chain(others);
        let mut waits: Vec<PollFd<'_>> = all.map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)).collect();
        let deadlines = self.warm.deadline().into_iter().chain(self.prestarted.deadline());
        let deadline = self.waiting.iter().map(|waiting| waiting.until).chain(deadlines).min();
        let rest = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        let rest = rest.and_then(|rest| Timespec::try_from(rest).ok());
        match rustix::event::poll(&mut waits, rest.as_ref()) {
            Ok(_) => {}
            Err(errno) if process::interrupted(errno) => return Ok(Ready { request: false, child: false }),
            Err(errno) => return Err(CallError { call: "poll", errno }.into()),
        }
        let events: Vec<PollFlags> = waits.iter().map(PollFd::revents).collect();
        if deadline.is_some() || events.iter().skip(1).any(|events| !events.is_empty()) {
            self.rights.give_back();
        }
        let (own, others) = events.split_at(own.len());
        let (programs, others) = others.split_at(programs);
        let (ahead, warm) = others.split_at(ahead);
        for (execution, number) in self.reaper.hear(programs.iter().copied()) {
            self.send(&InitMessage::Blocked { execution, number })?;
        }
        for events in ahead {
            self.prestarted.hear(*events);
        }
        if self.prestarted.deadline().is_some_and(|deadline| deadline <= Instant::now()) {
            self.look_ahead()?;
        }
        let news = self.warm.hear(warm.iter().copied(), &mut self.reaper);
        self.tell(news)?;
        Ok(Ready { request: !own[0].is_empty(), child: !own[1].is_empty() })
    }

    /// Passes on what the warm interpreter said, and starts what waited for it.
    fn tell(&mut self, news: News) -> Result<(), ChannelError> {
        for (execution, number) in news.blocked {
            self.send(&InitMessage::Blocked { execution, number })?;
        }
        if let Some(outcome) = news.outcome {
            let bytes = match outcome {
                Outcome::Ready(bytes) => Some(bytes),
                Outcome::Lost => None,
            };
            self.send(&InitMessage::Warmed(bytes))?;
        }
        if news.settled && !self.waiting.is_empty() {
            let Waiting { request, streams, .. } = self.waiting.remove(0);
            self.execute_warm(request, streams)?;
        }
        Ok(())
    }

    fn request(&mut self, request: InitRequest, descriptors: Vec<OwnedFd>) -> Result<(), ChannelError> {
        if !matches!(request, InitRequest::File { .. }) {
            self.rights.give_back();
        }
        match request {
            InitRequest::Execute(request) | InitRequest::ExecuteWarm(request) | InitRequest::ExecutePrestarted(request, _)
                if request.after.is_some_and(|file| self.may_have_failed(file.get())) =>
            {
                let failed = StartFailure { stage: StartStage::Source, errno: 0 };
                self.send(&InitMessage::Ended { execution: request.execution, end: ProgramEnd::NotStarted(failed) })
            }
            InitRequest::Execute(request) => self.execute(&request, descriptors),
            InitRequest::ExecuteWarm(request) => self.execute_warm(request, descriptors),
            InitRequest::Warm(request) => {
                self.end_ahead();
                self.warm.want(*request);
                self.start_warm()
            }
            InitRequest::Prestart(request) => {
                self.warm.end();
                self.start_waiting(|_| true)?;
                self.prestart(*request, descriptors)
            }
            InitRequest::ExecutePrestarted(request, number) => self.execute_prestarted(&request, number),
            InitRequest::Cool => {
                self.warm.end();
                self.end_ahead();
                self.start_waiting(|_| true)
            }
            InitRequest::File { tag, root, command } => self.file(tag, &root, command, descriptors.first()),
            InitRequest::Signal(execution, signal) => {
                self.start_waiting(|_| true)?;
                self.reaper.signal(execution, signal);
                Ok(())
            }
            InitRequest::End(execution) => {
                self.start_waiting(|_| true)?;
                self.reaper.end(execution);
                Ok(())
            }
            InitRequest::Listen => {
                if let Some(door) = descriptors.first() {
                    // Without a listener the server reads the end of the socket, and lets nobody have the session.
                    door::open(door.as_fd()).ok();
                }
                Ok(())
            }
            InitRequest::Quota(tag) => {
                // Several have no common size.
                let quota = match self.built.quotas.as_slice() {
                    [quota] => Ok(quota),
                    _ => Err(CallError { call: "plan", errno: rustix::io::Errno::BADF }),
                };
                // Init itself may not change a file system any more once Landlock holds for it.
                match quota.and_then(|quota| mount::pick(quota.as_fd())) {
                    Ok(context) => channel::send(self.control, &InitMessage::Quota(tag, Ok(())), &[context.as_fd()]),
                    Err(error) => self.send(&InitMessage::Quota(tag, Err(error.raw()))),
                }
            }
        }
    }

    fn execute(&mut self, request: &ExecuteRequest, streams: Vec<OwnedFd>) -> Result<(), ChannelError> {
        let execution = request.execution;
        self.clear_the_way()?;
        match program::start(
            Base { plan: self.plan, built: &self.built, stack: &mut self.stack },
            request,
            streams,
            Role::Program,
        ) {
            Ok(started) => {
                self.reaper.add(started.pid, Running { execution, watch: started.watch });
                Ok(())
            }
            Err(end) => self.send(&InitMessage::Ended { execution, end }),
        }
    }

    fn execute_warm(&mut self, request: ExecuteRequest, streams: Vec<OwnedFd>) -> Result<(), ChannelError> {
        self.clear_the_way()?;
        match self.warm.take(request, streams, &self.reaper) {
            Ok((pid, running)) => {
                self.reaper.add(pid, running);
                Ok(())
            }
            Err((request, streams)) if self.warm.is_about_to_fork() => {
                self.waiting.push(Waiting { request, streams, until: Instant::now() + FORK_TIME });
                Ok(())
            }
            Err((request, streams)) => self.execute(&request, streams),
        }
    }

    fn start_warm(&mut self) -> Result<(), ChannelError> {
        debug_assert!(self.rights.are_own(), "of a program");
        let news = self.warm.start(Base { plan: self.plan, built: &self.built, stack: &mut self.stack });
        self.tell(news)
    }

    /// Starts what has waited long enough for the warm interpreter as it would be without it.
    fn start_late(&mut self) -> Result<(), ChannelError> {
        if self.waiting.is_empty() {
            return Ok(());
        }
        self.rights.give_back();
        let now = Instant::now();
        self.start_waiting(|waiting| waiting.until <= now)
    }

    fn start_waiting(&mut self, which: impl Fn(&Waiting) -> bool) -> Result<(), ChannelError> {
        let (late, early) = std::mem::take(&mut self.waiting).into_iter().partition(which);
        self.waiting = early;
        let late: Vec<Waiting> = late;
        late.into_iter().try_for_each(|waiting| self.execute(&waiting.request, waiting.streams))
    }

    fn send(&self, message: &InitMessage) -> Result<(), ChannelError> {
        channel::send(self.control, message, &[])
    }

    fn reap(&mut self) -> Result<(), ChannelError> {
        debug_assert!(self.rights.are_own(), "of a program");
        let mut news = News::default();
        self.warm.hear_words(&mut news);
        self.tell(news)?;
        let spared: Vec<i32> = self.warm.spared().into_iter().chain(self.prestarted.spared()).collect();
        let over = self.reaper.reap(&self.plan.program, &self.built.quotas, &spared)?;
        for pid in self.reaper.take_others() {
            let news = self.warm.ended(pid);
            self.tell(news)?;
            self.ahead_ended(pid)?;
        }
        let some = !over.is_empty();
        for Over { execution, end, outdated } in over {
            self.send(&InitMessage::Ended { execution, end })?;
            if outdated {
                self.warm.renew();
            }
        }
        if some {
            // One that has ended in between, or is out of date, is replaced when nobody waits for an answer.
            self.start_warm()?;
        }
        Ok(())
    }

    fn file(&mut self, tag: Tag, root: &[u8], command: FileCommand, carrier: Option<&OwnedFd>) -> Result<(), ChannelError> {
        let mut carriers = Carriers { given: carrier.map(Mapped::of), filled: None };
        let reply = if self.prestarted.is_none() {
            // Kept for the next one.
            self.rights.take_on().and_then(|()| files::run_below(command, &self.context, root, &mut carriers))
        } else {
            // They are not kept beside one that may have to be ended.
            self.rights.give_back();
            self.file_beside_ahead(root, command, &mut carriers)?
        };
        if reply.is_err() {
            self.failed_files.push_back(tag);
            if self.failed_files.len() > FAILED_FILES_MAX {
                self.forgotten_file = self.failed_files.pop_front().unwrap_or(0).max(self.forgotten_file);
            }
        }
        let beside: Vec<BorrowedFd<'_>> = carriers.filled.iter().map(AsFd::as_fd).collect();
        // A reply that can't be carried is the command's failure, not the sandbox's.
        let errno = match channel::send(self.control, &InitMessage::FileDone(tag, reply), &beside) {
            // It is too large for the server's memory or ours.
            Err(ChannelError::Carrier(error)) => error.raw_os_error().unwrap_or(0),
            // Others of this id have as many descriptors on their way as one may have.
            Err(ChannelError::Call(error)) if !beside.is_empty() => error.raw(),
            sent => return sent,
        };
        let error = FileError { kind: FileErrorKind::IoError, operation: "carry the reply".into(), errno };
        self.send(&InitMessage::FileDone(tag, Err(error)))
    }

    /// Numbers only grow.
    fn may_have_failed(&self, file: Tag) -> bool {
        file <= self.forgotten_file || self.failed_files.contains(&file)
    }
}
