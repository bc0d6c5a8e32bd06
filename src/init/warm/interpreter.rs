//! One warm interpreter: how it is started, what is said to it, and what it says.

use std::fs;
use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags};
use rustix::pipe::PipeFlags;

use crate::init::program::{self, Base, Role, Started, standing};
use crate::init::watch::Watch;
use crate::plan::messages::{ExecuteRequest, ProgramEnd, StartFailure, StartStage, WarmRequest};
use crate::sys::error::Named;
use crate::sys::socket::{self, Wait};
use crate::sys::standing::Standing;
use crate::sys::{CallError, memory, process};

use super::{News, Outcome};

/// An interpreter that is not ready after this long is ended.
const START_TIME: Duration = Duration::from_secs(10);

/// Where init's own numbers for the interpreter's descriptors begin: above those that they take in it.
const NUMBERS_FROM: i32 = 16;

/// A process that has started, or is about to, and its socket.
#[derive(Debug)]
pub(super) struct Interpreter {
    pub(super) pid: i32,
    pub(super) socket: OwnedFd,
    pub(super) watch: Watch,
    /// Of a program that begins; none: nobody can tell.
    pub(super) standing: Option<Standing>,
    /// Landlock's, which each of its forks applies once more.
    pub(super) rules: Option<OwnedFd>,
    pub(super) stage: Stage,
    pub(super) fork: Option<Fork>,
}

/// How far it is.
#[derive(Debug)]
pub(super) enum Stage {
    /// Its output has no reader but us, and there should be none.
    Starting {
        output: OwnedFd,
        until: Instant,
    },
    Ready,
}

/// A fork that waits for its program, or is being made.
#[derive(Debug)]
pub(super) struct Fork {
    pub(super) socket: OwnedFd,
    pub(super) pid: Option<i32>,
    pub(super) ours: bool,
    /// Children that ended before it was said which one it is: it is init's child from its first moment on, so it may have been taken
    /// for a leftover.
    pub(super) ended: Vec<i32>,
}

/// What one message meant.
pub(super) enum Word {
    Ready,
    Settled,
    Other,
}

impl Interpreter {
    pub(super) fn start(request: &WarmRequest, base: Base<'_>) -> Result<Self, ProgramEnd> {
        let failed = |error: CallError| {
            ProgramEnd::NotStarted(StartFailure { stage: StartStage::Wall("streams".into()), errno: error.raw() })
        };
        let (socket, theirs) = socket::pair().map_err(failed)?;
        let archive = file_of(&request.archive).map_err(failed)?;
        let (output, streams) = streams().map_err(failed)?;
        let [theirs, archive] = [raised(&theirs).map_err(failed)?, raised(&archive).map_err(failed)?];
        let program = ExecuteRequest::ahead(&request.arguments, &request.environment, &request.directory);
        socket::send(socket.as_fd(), &request.greeting, &[], Wait::No).map_err(failed)?;
        let role = Role::Warm([theirs.as_fd(), archive.as_fd()]);
        let plan = base.plan;
        let rules =
            base.built.rules.as_ref().map(OwnedFd::try_clone).transpose().map_err(|_| failed(CallError::last("fcntl")))?;
        let Started { pid, watch } = program::start(base, &program, streams, role)?;
        let stage = Stage::Starting { output, until: Instant::now() + START_TIME };
        Ok(Self { pid, socket, watch, standing: standing(plan), rules, stage, fork: None })
    }

    /// One that does not take the question has no room for it: then nothing comes, and programs start afresh.
    pub(super) fn ask_for_fork(&mut self) {
        let Ok((ours, theirs)) = socket::pair() else { return };
        let handed: Vec<BorrowedFd<'_>> = std::iter::once(&theirs).chain(&self.rules).map(AsFd::as_fd).collect();
        if socket::send(self.socket.as_fd(), b"f", &handed, Wait::No).is_ok() {
            self.fork = Some(Fork { socket: ours, pid: None, ours: false, ended: Vec::new() });
        }
    }

    /// What is to be told when it is lost: nobody waits for it any more.
    pub(super) fn loss(&self) -> News {
        let outcome = matches!(self.stage, Stage::Starting { .. }).then_some(Outcome::Lost);
        News { outcome, settled: true, blocked: Vec::new() }
    }

    /// Whether it has printed nothing.
    pub(super) fn is_silent(&self) -> bool {
        match &self.stage {
            Stage::Starting { output, .. } => rustix::io::ioctl_fionread(output).is_ok_and(|bytes| bytes == 0),
            Stage::Ready => true,
        }
    }

    /// None when it has said no more for now, an error when it never will.
    pub(super) fn hear_word(&mut self) -> Result<Option<Word>, CallError> {
        let mut bytes = [0; 8];
        let packet = match socket::receive(self.socket.as_fd(), &mut bytes, Wait::No) {
            Ok(packet) => packet,
            Err(error) if error.errno == rustix::io::Errno::AGAIN => return Ok(None),
            Err(error) => return Err(error),
        };
        let [kind, number @ .., _, _, _] = bytes;
        let number = i32::from_ne_bytes(number);
        let starting = matches!(self.stage, Stage::Starting { .. });
        match (packet.bytes, kind, &mut self.fork) {
            (5, b'r', None) if starting => Ok(Some(Word::Ready)),
            (5, b'p', Some(fork)) if fork.pid.is_none() && number > 1 && number != self.pid => {
                fork.pid = Some(number);
                Ok(Some(Word::Other))
            }
            (5, b'd', Some(fork)) if !fork.ours && fork.pid.is_some_and(|pid| fork.ended.contains(&pid)) => {
                self.fork = None;
                self.ask_for_fork();
                Ok(Some(Word::Other))
            }
            (5, b'd', Some(fork)) if !fork.ours && fork.pid.is_some_and(process::is_child) => {
                fork.ours = true;
                Ok(Some(Word::Settled))
            }
            (5, b'e', fork) => {
                *fork = None;
                Ok(Some(Word::Settled))
            }
            // The end, or no word of ours: whatever this is, it is no interpreter of ours.
            _ => Err(CallError { call: "recvmsg", errno: rustix::io::Errno::PROTO }),
        }
    }
}

/// The memory that a process shares with no file, in bytes.
pub fn own_memory(pid: i32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let kilobytes =
        status.lines().find_map(|line| line.strip_prefix("RssAnon:")?.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    kilobytes.unwrap_or(0) << 10
}

/// A file that is nowhere but in its descriptor. No directory could be: Landlock lets a program read only below the sandbox's root,
/// and what is in no tree at all.
fn file_of(content: &[u8]) -> Result<OwnedFd, CallError> {
    let mut file = memory::message_carrier()?;
    file.write_all(content).map_err(|error| CallError {
        call: "write",
        errno: rustix::io::Errno::from_io_error(&error).unwrap_or(rustix::io::Errno::IO),
    })?;
    Ok(file.into())
}

/// The end to read its output from, and its standard streams: of the kinds that programs get.
fn streams() -> Result<(OwnedFd, Vec<OwnedFd>), CallError> {
    let stdin = rustix::fs::open("/dev/null", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).named("open")?;
    let (output, stdout) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC).named("pipe2")?;
    let stderr = rustix::io::fcntl_dupfd_cloexec(&stdout, 0).named("fcntl(F_DUPFD_CLOEXEC)")?;
    Ok((output, vec![stdin, stdout, stderr]))
}

fn raised(descriptor: &OwnedFd) -> Result<OwnedFd, CallError> {
    rustix::io::fcntl_dupfd_cloexec(descriptor, NUMBERS_FROM).named("fcntl(F_DUPFD_CLOEXEC)")
}
