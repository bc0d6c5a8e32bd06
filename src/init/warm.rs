//! The warm interpreter: a program that has started and loaded what it can before anybody says what it shall run, and forks for
//! each program.
//!
//! It is started as any program, with every wall. A fork is prepared ahead, so that a program costs one message: the interpreter
//! has it made a child of init, as every program is, or forks twice where that can't be, and the one between ends. It inherits the walls, gets
//! its streams, arguments and environment over a socket of its own, and is then an execution like any other.
//!
//! Invariants: nothing here waits for the interpreter; what it says is believed as little as what a program says, so that whoever
//! has it in his hands can do no more than with a program of his; without it programs start as they do anyway.
//!
//! The words on its socket: a byte and an `i32`. `r`: it is ready. `f` with a descriptor asks for a fork with that socket, and that applies
//! the Landlock rules that are a second one. `p PID`:
//! that will be the fork. `d`: it is a child of init now. `e ERRNO`: there is none.

mod interpreter;

use std::fs;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Instant;

use rustix::event::PollFlags;

use crate::plan::messages::{ExecuteRequest, ProgramNetwork, Tag, View, WarmRequest};
use crate::sys::process;
use crate::sys::seccomp::Notice;
use crate::sys::socket::{self, Wait};
use crate::sys::standing::Standing;

use super::program::Base;
use super::reaper::{Reaper, Running};
use super::watch::Watch;
pub use interpreter::own_memory;
use interpreter::{Fork, Interpreter, Stage, Word};

/// How often one that ended before it was ready is tried again.
const STARTS_MAX: u32 = 3;

/// Children that are remembered while a fork is being made.
const ENDED_MAX: usize = 256;

/// Of a program's arguments and environment together; larger ones start afresh.
const JOB_BYTES_MAX: usize = 48 << 10;

/// The interpreter that is kept ready, if any.
#[derive(Debug, Default)]
pub struct Warm {
    wanted: Option<WarmRequest>,
    interpreter: Option<Interpreter>,
    /// Listeners of earlier ones: their programs may still run.
    earlier: Vec<Watch>,
    starts: u32,
}

/// What became of an interpreter that was started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It is ready, and has so many bytes of its own.
    Ready(u64),
    /// It ended before, or was given up.
    Lost,
}

/// What an interpreter said.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct News {
    /// What became of one that was started, when that is known now.
    pub outcome: Option<Outcome>,
    /// A fork is there, or none is to be waited for: whoever waits for one is to be started.
    pub settled: bool,
    /// Calls that were refused for the first time to a program.
    pub blocked: Vec<(Tag, u32)>,
}

impl Warm {
    /// Keeps an interpreter like this one, in place of the one before.
    pub fn want(&mut self, request: WarmRequest) {
        self.give_up();
        self.starts = 0;
        self.wanted = Some(request);
    }

    /// Starts the interpreter that is wanted, or has the one there is fork again when it has no fork; news when there will be none.
    pub fn start(&mut self, base: Base<'_>) -> News {
        if let Some(interpreter) = &mut self.interpreter {
            // A fork that was killed, or that could not be made.
            if interpreter.fork.is_none() && matches!(interpreter.stage, Stage::Ready) {
                interpreter.ask_for_fork();
            }
            return News::default();
        }
        let Some(request) = &self.wanted else { return News::default() };
        if self.starts >= STARTS_MAX {
            self.wanted = None;
            return News { outcome: Some(Outcome::Lost), settled: true, blocked: Vec::new() };
        }
        self.starts += 1;
        match Interpreter::start(request, base) {
            Ok(interpreter) => self.interpreter = Some(interpreter),
            // Nothing is lost: programs start as they do anyway, and the next of them tries again.
            Err(_) => return News { outcome: Some(Outcome::Lost), settled: true, blocked: Vec::new() },
        }
        News::default()
    }

    /// Keeps none any more.
    pub fn end(&mut self) {
        self.wanted = None;
        self.give_up();
    }

    /// Replaces the one there is: it is out of date.
    pub fn renew(&mut self) {
        self.give_up();
        self.starts = 0;
    }

    /// Ends it. A fork that is being made ends by itself when it finds its socket closed.
    fn give_up(&mut self) {
        if let Some(interpreter) = &self.interpreter {
            process::kill(interpreter.pid, libc::SIGKILL).ok();
        }
        self.forget();
    }

    /// Lets go of an interpreter that has ended or will.
    fn forget(&mut self) {
        if let Some(interpreter) = self.interpreter.take() {
            if let Some(pid) = interpreter.fork.and_then(|fork| fork.pid.filter(|pid| fork.ours && process::is_child(*pid))) {
                process::kill(pid, libc::SIGKILL).ok();
            }
            self.earlier.push(interpreter.watch);
        }
    }

    /// Children that are no leftovers of programs.
    pub fn spared(&self) -> Vec<i32> {
        let fork = |interpreter: &Interpreter| interpreter.fork.as_ref().and_then(|fork| fork.pid);
        self.interpreter.iter().flat_map(|interpreter| [Some(interpreter.pid), fork(interpreter)]).flatten().collect()
    }

    /// A child that was no program has ended.
    pub fn ended(&mut self, pid: i32) -> News {
        let mut news = News::default();
        let Some(interpreter) = &mut self.interpreter else { return news };
        if interpreter.pid == pid {
            news = interpreter.loss();
            self.forget();
        } else if let Some(fork) = &mut interpreter.fork {
            match fork.pid {
                Some(known) if known == pid && fork.ours => interpreter.fork = None,
                Some(known) if known != pid => {}
                _ if fork.ended.len() < ENDED_MAX => fork.ended.push(pid),
                // So many that the fork is hardly among them; when it is, the interpreter is given up.
                _ => {}
            }
        }
        news
    }

    /// Whether a fork may soon be there that is not there yet.
    pub fn is_about_to_fork(&self) -> bool {
        let fork = self.interpreter.as_ref().and_then(|interpreter| interpreter.fork.as_ref());
        fork.is_some_and(|fork| !fork.ours)
    }

    /// Hands a program to the fork that waits, and has another one made; gives both back when there is none that can take it.
    pub fn take(
        &mut self,
        request: ExecuteRequest,
        streams: Vec<OwnedFd>,
        reaper: &Reaper,
    ) -> Result<(i32, Running), (ExecuteRequest, Vec<OwnedFd>)> {
        let base = self.wanted.as_ref().map_or(&[][..], |wanted| &wanted.arguments);
        let job = job(&request).filter(|_| {
            request.view == View::Programs && request.network == ProgramNetwork::Sandbox && request.arguments.starts_with(base)
        });
        let (Some(interpreter), Some(job), 3) = (&mut self.interpreter, job, streams.len()) else {
            return Err((request, streams));
        };
        let Some(Fork { socket, pid: Some(pid), ours: true, .. }) = interpreter.fork.take_if(|fork| fork.ours) else {
            return Err((request, streams));
        };
        if reaper.runs(pid) {
            // Another program's number: it lies.
            self.give_up();
            return Err((request, streams));
        }
        if interpreter.standing.is_none() || Standing::of(pid).ok() != interpreter.standing {
            // A program has changed what its forks begin with, and a later one must not find that.
            process::kill(pid, libc::SIGKILL).ok();
            self.renew();
            return Err((request, streams));
        }
        let handed: Vec<BorrowedFd<'_>> = streams.iter().map(AsFd::as_fd).collect();
        let sent = socket::send(socket.as_fd(), &job, &handed, Wait::No);
        interpreter.ask_for_fork();
        if sent.is_err() {
            process::kill(pid, libc::SIGKILL).ok();
            return Err((request, streams));
        }
        // A program of the same session may have stopped it.
        process::kill(pid, libc::SIGCONT).ok();
        Ok((pid, Running { execution: request.execution, watch: Watch::of_a_fork(socket) }))
    }

    /// What to poll besides.
    pub fn waits_on(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let own = self.interpreter.iter().map(|interpreter| interpreter.socket.as_fd());
        let watches = self.interpreter.iter().map(|interpreter| &interpreter.watch).chain(&self.earlier);
        own.chain(watches.filter_map(Watch::waits_on))
    }

    /// When something is to be done without anybody saying so.
    pub fn deadline(&self) -> Option<Instant> {
        match self.interpreter.as_ref()?.stage {
            Stage::Starting { until, .. } => Some(until),
            Stage::Ready => None,
        }
    }

    /// Takes what poll found for each of [`Self::waits_on`], in that order.
    pub fn hear(&mut self, mut events: impl Iterator<Item = PollFlags>, reaper: &mut Reaper) -> News {
        let mut news = News::default();
        let spoke = self.interpreter.is_some() && events.next().is_some_and(|events| !events.is_empty());
        let watches = self.interpreter.iter_mut().map(|interpreter| &mut interpreter.watch).chain(&mut self.earlier);
        for (watch, events) in watches.filter(|watch| watch.waits_on().is_some()).zip(events) {
            if !events.is_empty() {
                watch.hear_with(events, |notice| news.blocked.extend(whose(notice, reaper)));
            }
        }
        self.earlier.retain(|watch| watch.waits_on().is_some());
        if spoke {
            self.hear_words(&mut news);
        }
        if self.deadline().is_some_and(|deadline| deadline <= Instant::now()) {
            self.wanted = None;
            self.give_up();
            news.outcome = Some(Outcome::Lost);
        }
        news
    }

    /// Takes what the interpreter has said so far: before children are judged, so that none of its forks is taken for a leftover.
    pub fn hear_words(&mut self, news: &mut News) {
        while let Some(interpreter) = &mut self.interpreter {
            match interpreter.hear_word() {
                Ok(Some(Word::Settled)) => news.settled = true,
                Ok(Some(Word::Other)) => {}
                Ok(None) => break,
                Ok(Some(Word::Ready)) if interpreter.is_silent() => {
                    interpreter.stage = Stage::Ready;
                    self.starts = 0;
                    interpreter.ask_for_fork();
                    news.outcome = Some(Outcome::Ready(own_memory(interpreter.pid)));
                }
                // What it prints at its start, a fresh one would print each time.
                Ok(Some(Word::Ready)) => {
                    self.wanted = None;
                    self.give_up();
                    news.outcome = Some(Outcome::Lost);
                    news.settled = true;
                }
                // It has ended, and is reaped in due course.
                Err(_) => {
                    let News { outcome, settled, .. } = interpreter.loss();
                    news.outcome = outcome.or(news.outcome);
                    news.settled |= settled;
                    self.give_up();
                }
            }
        }
    }
}

/// What a fork is given: how many arguments and variables there are, and all words with the directory last. None when it is too
/// large, or a word can't be one.
fn job(request: &ExecuteRequest) -> Option<Vec<u8>> {
    let words = || request.arguments.iter().chain(&request.environment).chain(std::iter::once(&request.directory));
    if words().any(|word| word.contains(&0)) || words().map(|word| word.len() + 1).sum::<usize>() > JOB_BYTES_MAX {
        return None;
    }
    let mut bytes = format!("{} {}\n", request.arguments.len(), request.environment.len()).into_bytes();
    for (index, word) in words().enumerate() {
        if index > 0 {
            bytes.push(0);
        }
        bytes.extend_from_slice(word);
    }
    Some(bytes)
}

/// The execution whose program, or a descendant of it, made a call that waits; none when that is not its first, or when no program
/// of the interpreter made it. The chain of parents is exact: orphans become children of their program.
fn whose(notice: Notice, reaper: &mut Reaper) -> Option<(Tag, u32)> {
    if reaper.all_know_blocked(notice.number) {
        return None;
    }
    let mut process = notice.thread;
    // No chain is longer than there are process ids.
    for _ in 0..1 << 22 {
        let status = fs::read_to_string(format!("/proc/{process}/status")).ok()?;
        let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)?.trim().parse::<i32>().ok());
        match (field("Tgid:")?, field("PPid:")?) {
            (leader, 1) => return reaper.add_blocked(leader, notice.number).map(|execution| (execution, notice.number)),
            (_, 0) => return None,
            (_, parent) => process = parent,
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::init::watch::Begin;

    fn request(arguments: &[&[u8]]) -> ExecuteRequest {
        let arguments = arguments.iter().map(|word| word.to_vec()).collect();
        ExecuteRequest {
            execution: 1,
            arguments,
            environment: vec![b"A=1".to_vec()],
            directory: b"/d".to_vec(),
            network: ProgramNetwork::Sandbox,
            view: View::Programs,
            after: None,
        }
    }

    #[test]
    fn a_job_keeps_empty_words_and_is_none_when_a_word_can_not_be_one_or_all_are_too_large() {
        assert_eq!(job(&request(&[b"p", b"", b"x y"])).as_deref(), Some(&b"3 1\np\0\0x y\0A=1\0/d"[..]));
        assert_eq!(job(&request(&[b"p", b"a\0b"])), None);
        assert_eq!(job(&request(&[&vec![b'a'; JOB_BYTES_MAX]])), None);
        assert!(job(&request(&[&vec![b'a'; JOB_BYTES_MAX - 64]])).is_some());
    }

    /// An interpreter that is ready, and the other end of its socket.
    fn interpreter() -> (Warm, OwnedFd) {
        let (socket, theirs) = socket::pair().expect("a socket pair");
        let (other, _) = socket::pair().expect("a socket pair");
        let watch = Watch::new(other, &[], Begin::InTime);
        let interpreter =
            Interpreter { pid: i32::MAX, socket, watch, standing: None, rules: None, stage: Stage::Ready, fork: None };
        (Warm { interpreter: Some(interpreter), ..Warm::default() }, theirs)
    }

    fn say(theirs: &OwnedFd, kind: u8, number: i32) {
        let bytes: Vec<u8> = std::iter::once(kind).chain(number.to_ne_bytes()).collect();
        socket::send(theirs.as_fd(), &bytes, &[], Wait::No).expect("room");
    }

    #[test]
    fn a_process_that_is_no_child_of_init_is_never_taken_for_a_fork() {
        let (mut warm, theirs) = interpreter();
        warm.interpreter.as_mut().expect("there").ask_for_fork();
        let mut news = News::default();
        // The test's own parent, which is surely somebody else's child.
        let stranger = rustix::process::getppid().map_or(1, |pid| pid.as_raw_nonzero().get());
        say(&theirs, b'p', stranger.max(2));
        warm.hear_words(&mut news);
        assert!(warm.is_about_to_fork() && !news.settled);
        say(&theirs, b'd', 0);
        warm.hear_words(&mut news);
        assert!(warm.interpreter.is_none() && news.settled, "it is given up: {news:?}");
    }

    #[test]
    fn a_fork_that_ended_before_it_was_named_costs_a_fork_and_no_interpreter() {
        let child = i32::MAX - 1;
        for named_before in [false, true] {
            let (mut warm, theirs) = interpreter();
            warm.interpreter.as_mut().expect("there").ask_for_fork();
            let mut news = News::default();
            if named_before {
                say(&theirs, b'p', child);
                warm.hear_words(&mut news);
            }
            warm.ended(child);
            if !named_before {
                say(&theirs, b'p', child);
            }
            say(&theirs, b'd', 0);
            warm.hear_words(&mut news);
            assert!(warm.is_about_to_fork() && !news.settled, "another one is asked for: {news:?}");
            let fork = warm.interpreter.expect("it is kept").fork.expect("asked for");
            assert_eq!((fork.pid, fork.ended), (None, Vec::new()));
        }
    }

    #[test]
    fn words_out_of_turn_end_the_interpreter_and_those_in_turn_do_not() {
        for (kind, number, keeps) in [(b'e', 11, true), (b'p', 7, false), (b'd', 0, false), (b'r', 0, false), (b'?', 0, false)]
        {
            let (mut warm, theirs) = interpreter();
            say(&theirs, kind, number);
            warm.hear_words(&mut News::default());
            assert_eq!(warm.interpreter.is_some(), keeps, "{}", char::from(kind));
        }
        let (mut warm, theirs) = interpreter();
        drop(theirs);
        warm.hear_words(&mut News::default());
        assert!(warm.interpreter.is_none());
    }

    fn streams() -> Vec<OwnedFd> {
        let (null, _) = socket::pair().expect("a socket pair");
        (0..3).map(|_| null.try_clone().expect("a descriptor")).collect()
    }

    /// Has a fork that waits, and that has this number.
    fn with_fork(warm: &mut Warm, pid: i32) -> OwnedFd {
        let (socket, theirs) = socket::pair().expect("a socket pair");
        warm.interpreter.as_mut().expect("there").fork = Some(Fork { socket, pid: Some(pid), ours: true, ended: Vec::new() });
        theirs
    }

    #[test]
    fn a_program_that_runs_is_never_taken_for_a_fork() {
        let (mut warm, _theirs) = interpreter();
        let _fork = with_fork(&mut warm, i32::MAX - 1);
        let mut reaper = Reaper::default();
        let (socket, _other) = socket::pair().expect("a socket pair");
        reaper.add(i32::MAX - 1, Running { execution: 7, watch: Watch::of_a_fork(socket) });
        assert!(warm.take(request(&[b"p"]), streams(), &reaper).is_err());
        assert!(warm.interpreter.is_none() && reaper.runs(i32::MAX - 1), "it is given up, and the program goes on");
    }

    #[test]
    fn a_fork_that_stands_otherwise_than_a_program_gets_none() {
        let own = || Standing::of(0).expect("one's own");
        for (standing, taken) in [(Some(own()), true), (Some(own().with_limit(libc::RLIMIT_CORE, 7)), false), (None, false)] {
            let mut child = std::process::Command::new("sleep").arg("600").spawn().expect("sleep(1)");
            let (mut warm, _theirs) = interpreter();
            warm.interpreter.as_mut().expect("there").standing.clone_from(&standing);
            let _fork = with_fork(&mut warm, child.id().cast_signed());
            let got = warm.take(request(&[b"p"]), streams(), &Reaper::default()).is_ok();
            child.kill().ok();
            child.wait().expect("a child");
            assert_eq!((got, warm.interpreter.is_some()), (taken, taken), "{standing:?}");
        }
    }

    #[test]
    fn a_program_is_given_back_when_no_fork_waits() {
        let (mut warm, _theirs) = interpreter();
        let streams = streams();
        let (request, streams) = warm.take(request(&[b"p"]), streams, &Reaper::default()).expect_err("no fork");
        assert_eq!((request.execution, streams.len()), (1, 3));
    }
}
