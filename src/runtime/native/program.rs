//! Drives one program from its start to its end: pipes, input, signals, time.
//!
//! Invariants: the program never waits for a reader; the answer comes when it and all its descendants have ended, not when a
//! pipe closes; dropping the future ends the program.

use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::fs::{Mode, OFlags};
use rustix::pipe::PipeFlags;
use tokio::net::unix::pipe;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep_until};

use crate::command::{Control, Stdin, Stream};
use crate::plan::messages::{ExecuteRequest, ProgramEnd, Tag};
use crate::runtime::{OutputSink, OutputVerdict};

use super::control::{Gone, InitClient};

/// Read from a pipe at once: its capacity by default (pipe(7)).
const CHUNK_BYTES: usize = 64 << 10;

/// Who ended a program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EndedBy {
    /// Itself, or the kernel.
    Itself,
    /// Its wall time was over.
    Timeout,
    /// A client's cancel.
    Cancel,
    /// It wrote more than it may.
    Output,
}

/// How a program went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Driven {
    /// What init said.
    pub end: ProgramEnd,
    /// Who ended it.
    pub ended_by: EndedBy,
}

/// What to run.
pub struct Program {
    /// For init; its tag is filled in.
    pub request: ExecuteRequest,
    /// Standard input.
    pub stdin: Stdin,
    /// Wall time.
    pub timeout: Duration,
}

/// Why a program could not be driven.
#[derive(Debug, thiserror::Error)]
pub enum DriveError {
    /// The sandbox ended under it.
    #[error("the sandbox ended under the program")]
    Gone,
    /// The server has no descriptors left, as a rule.
    #[error("its pipes could not be made")]
    Pipes(#[source] std::io::Error),
}

impl From<Gone> for DriveError {
    fn from(_: Gone) -> Self {
        Self::Gone
    }
}

/// Runs `program` to its end.
pub async fn drive(
    init: &InitClient,
    program: Program,
    sink: &dyn OutputSink,
    control: &mut mpsc::Receiver<Control>,
) -> Result<Driven, DriveError> {
    let Program { request, stdin, timeout } = program;
    let (ours, theirs) = Pipes::make(stdin).map_err(DriveError::Pipes)?;
    let (tag, end) = init.execute(request, &theirs).await?;
    drop(theirs);
    sink.started();
    let guard = EndOnDrop { init, tag, armed: true };
    let mut drive = Drive {
        init,
        tag,
        pipes: ours,
        sink,
        ended_by: EndedBy::Itself,
        buffer: vec![0; CHUNK_BYTES],
        deadline: Instant::now() + timeout,
    };
    let end = drive.until_end(end, control).await?;
    guard.disarm();
    drive.drain();
    Ok(Driven { end, ended_by: drive.ended_by })
}

struct Drive<'a> {
    init: &'a InitClient,
    tag: Tag,
    pipes: Pipes,
    sink: &'a dyn OutputSink,
    ended_by: EndedBy,
    buffer: Vec<u8>,
    deadline: Instant,
}

impl Drive<'_> {
    async fn until_end(
        &mut self,
        mut end: oneshot::Receiver<ProgramEnd>,
        control: &mut mpsc::Receiver<Control>,
    ) -> Result<ProgramEnd, Gone> {
        let mut listening = true;
        loop {
            let timed = self.ended_by == EndedBy::Itself;
            tokio::select! {
                ended = &mut end => return ended.map_err(|_| Gone),
                ready = readable(self.pipes.stdout.as_ref()) => self.read(Stream::Stdout, ready.is_ok()).await?,
                ready = readable(self.pipes.stderr.as_ref()) => self.read(Stream::Stderr, ready.is_ok()).await?,
                ready = writable(&self.pipes.stdin) => self.pipes.stdin.write(ready.is_ok()),
                command = control.recv(), if listening && self.pipes.stdin.has_room() => match command {
                    Some(command) => self.control(command).await?,
                    None => listening = false,
                },
                () = sleep_until(self.deadline), if timed => self.end(EndedBy::Timeout).await?,
            }
        }
    }

    async fn control(&mut self, command: Control) -> Result<(), Gone> {
        match command {
            Control::Input { data, eof } => {
                self.pipes.stdin.add(data, eof);
                Ok(())
            }
            Control::Signal(signal) => self.init.signal(self.tag, signal).await,
            Control::Cancel => self.end(EndedBy::Cancel).await,
        }
    }

    /// The first reason stays.
    async fn end(&mut self, by: EndedBy) -> Result<(), Gone> {
        if self.ended_by == EndedBy::Itself {
            self.ended_by = by;
        }
        self.init.end(self.tag).await
    }

    async fn read(&mut self, stream: Stream, ready: bool) -> Result<(), Gone> {
        if self.pass_on(stream, ready) == OutputVerdict::LimitReached && self.ended_by == EndedBy::Itself {
            self.end(EndedBy::Output).await?;
        }
        Ok(())
    }

    /// Reads once and hands on; a pipe at its end is let go.
    fn pass_on(&mut self, stream: Stream, ready: bool) -> OutputVerdict {
        let pipe = match stream {
            Stream::Stdout => &mut self.pipes.stdout,
            Stream::Stderr => &mut self.pipes.stderr,
        };
        let Some(reader) = pipe.as_ref() else { return OutputVerdict::Continue };
        match reader.try_read(&mut self.buffer) {
            Ok(bytes) if bytes > 0 && ready => self.sink.write(stream, &self.buffer[..bytes]),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock && ready => OutputVerdict::Continue,
            Ok(_) | Err(_) => {
                *pipe = None;
                OutputVerdict::Continue
            }
        }
    }

    /// Takes what still lies in the pipes: nobody writes any more, so this ends.
    fn drain(&mut self) {
        for stream in [Stream::Stdout, Stream::Stderr] {
            loop {
                let pipe = match stream {
                    Stream::Stdout => self.pipes.stdout.as_ref(),
                    Stream::Stderr => self.pipes.stderr.as_ref(),
                };
                // A pipe whose readiness is not yet known to the reactor may still hold bytes: ask the kernel itself.
                let Some(bytes) = pipe.and_then(|pipe| rustix::io::read(pipe, &mut self.buffer).ok()) else { break };
                if bytes == 0 {
                    break;
                }
                self.sink.write(stream, &self.buffer[..bytes]);
            }
        }
    }
}

async fn readable(pipe: Option<&pipe::Receiver>) -> std::io::Result<()> {
    match pipe {
        Some(pipe) => pipe.readable().await,
        None => std::future::pending().await,
    }
}

async fn writable(stdin: &Input) -> std::io::Result<()> {
    match &stdin.pipe {
        Some(pipe) if !stdin.waiting.is_empty() => pipe.writable().await,
        Some(_) | None => std::future::pending().await,
    }
}

/// Input that may wait here for a program that does not read; past it the client's next call waits.
const WAITING_BYTES_MAX: usize = 1 << 20;

/// Standard input: what waits to be written, and whether more may come.
struct Input {
    pipe: Option<pipe::Sender>,
    waiting: Vec<u8>,
    written: usize,
    open: bool,
}

impl Input {
    /// While much waits, no more is taken from the client: the wait is the client's, not our memory's.
    fn has_room(&self) -> bool {
        self.waiting.len() - self.written < WAITING_BYTES_MAX
    }

    fn add(&mut self, data: Vec<u8>, eof: bool) {
        if self.pipe.is_none() {
            return;
        }
        self.waiting.extend(data);
        self.open &= !eof;
        self.write(true);
    }

    fn write(&mut self, ready: bool) {
        let Some(pipe) = self.pipe.as_ref().filter(|_| ready) else {
            self.pipe = None;
            return;
        };
        while self.written < self.waiting.len() {
            match pipe.try_write(&self.waiting[self.written..]) {
                Ok(bytes) => self.written += bytes,
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return,
                Err(_) => {
                    // The program has closed its input: what is left has no reader.
                    self.open = false;
                    break;
                }
            }
        }
        self.waiting.clear();
        self.written = 0;
        if !self.open {
            self.pipe = None;
        }
    }
}

struct Pipes {
    stdin: Input,
    stdout: Option<pipe::Receiver>,
    stderr: Option<pipe::Receiver>,
}

impl Pipes {
    /// Our ends, and theirs as stdin, stdout, stderr.
    fn make(stdin: Stdin) -> std::io::Result<(Self, [OwnedFd; 3])> {
        let (stdin, their_stdin) = match stdin {
            Stdin::Empty => {
                let null = rustix::fs::open("/dev/null", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
                (Input { pipe: None, waiting: Vec::new(), written: 0, open: false }, null)
            }
            Stdin::Bytes(bytes) => Self::input(bytes, false)?,
            Stdin::Open => Self::input(Vec::new(), true)?,
        };
        let (stdout, their_stdout) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
        let (stderr, their_stderr) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
        let ours = Self {
            stdin,
            stdout: Some(pipe::Receiver::from_owned_fd(stdout)?),
            stderr: Some(pipe::Receiver::from_owned_fd(stderr)?),
        };
        Ok((ours, [their_stdin, their_stdout, their_stderr]))
    }

    fn input(bytes: Vec<u8>, open: bool) -> std::io::Result<(Input, OwnedFd)> {
        let (theirs, ours) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
        let mut input = Input { pipe: Some(pipe::Sender::from_owned_fd(ours)?), waiting: Vec::new(), written: 0, open: true };
        input.add(bytes, !open);
        Ok((input, theirs))
    }
}

/// A program whose caller went away.
struct EndOnDrop<'a> {
    init: &'a InitClient,
    tag: Tag,
    armed: bool,
}

impl EndOnDrop<'_> {
    fn disarm(mut self) {
        self.armed = false;
    }
}

impl Drop for EndOnDrop<'_> {
    fn drop(&mut self) {
        if self.armed && !self.init.end_now(self.tag) {
            let (init, tag) = (self.init.clone(), self.tag);
            tokio::spawn(async move { init.end(tag).await });
        }
    }
}
