//! Drives one program from its start to its end: pipes, input, signals, time.
//!
//! Invariants: the program never waits for a reader; the answer comes when it and all its descendants have ended, not when a
//! pipe closes; dropping the future ends the program.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::pipe::PipeFlags;
use tokio::net::unix::pipe;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep_until};

use crate::command::{Control, Failure, Stdin, Stream};
use crate::plan::messages::{Born, ExecuteRequest, ProgramEnd, StartStage, Tag};
use crate::runtime::{OutputSink, OutputVerdict};
use crate::seccomp::Arch;

use super::code::Source;
use super::control::{Execution, Gone, InitClient};

/// How long a program and its descendants may take to die before their sandbox is taken for stuck: more than init takes for a
/// file command, which it finishes first.
const END_TIME: Duration = Duration::from_secs(30);

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
    /// Input that came under [`Feed::Later`].
    pub held: Held,
}

/// Input of a client for a program that has not begun.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Held {
    /// What was sent.
    pub bytes: Vec<u8>,
    /// And nothing more will be.
    pub eof: bool,
}

/// Standard input of a program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Feed {
    /// What the command says, after what came before the program began.
    Own(Stdin, Held),
    /// Nothing: it is a step before the program, for which input is kept.
    Later(Held),
}

impl Feed {
    /// No input, now or later.
    pub fn nothing() -> Self {
        Self::Own(Stdin::Empty, Held::default())
    }

    /// Whether it is that.
    pub fn is_nothing(&self) -> bool {
        *self == Self::nothing()
    }
}

/// What may carry a program out, unless it turns out that it can't.
#[derive(Debug)]
pub enum Start {
    /// A process of its own.
    Fresh,
    /// A fork of the warm interpreter.
    Warm,
    /// The one that was started ahead and has this number, whose output comes here.
    Prestarted(u64, Outputs),
}

/// Our ends of what a program writes to. Watched by no runtime yet.
#[derive(Debug)]
pub struct Outputs {
    stdout: OwnedFd,
    stderr: OwnedFd,
}

impl Outputs {
    /// For a program that is started before anybody asks for it; the other ends, and no input.
    pub fn make() -> std::io::Result<(Self, [OwnedFd; 3])> {
        Self::beside(no_input()?)
    }

    fn beside(their_stdin: OwnedFd) -> std::io::Result<(Self, [OwnedFd; 3])> {
        let (stdout, their_stdout) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
        let (stderr, their_stderr) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
        Ok((Self { stdout, stderr }, [their_stdin, their_stdout, their_stderr]))
    }
}

/// What to run.
pub struct Program {
    /// For init; its tag is filled in.
    pub request: ExecuteRequest,
    /// What may carry it out.
    pub start: Start,
    /// Standard input.
    pub feed: Feed,
    /// Wall time.
    pub timeout: Duration,
    /// Where the listener of a network of its own is handed to; absent: it has the sandbox's.
    pub door: Option<OwnedFd>,
    /// What the request names as what it comes after.
    pub source: Option<Source>,
}

/// Why a program could not be driven.
#[derive(Debug, thiserror::Error)]
pub enum DriveError {
    /// The sandbox ended under it, or can't end it.
    #[error("the sandbox ended under the program, or is stuck")]
    Gone,
    /// It was not started, for its source could not be written.
    #[error("its source could not be written")]
    Source(Failure),
    /// The server has no descriptors left, as a rule.
    #[error("its pipes could not be made")]
    Pipes(#[source] std::io::Error),
    /// Some of its input did not reach it, or some of its output did not reach us.
    #[error("its streams broke")]
    Streams(#[source] std::io::Error),
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
    let Program { request, start, feed, timeout, door, mut source } = program;
    let mut way = Way { init, sink, control, deadline: Instant::now() + timeout, ended_by: EndedBy::Itself };
    let born = match start {
        Start::Fresh => Born::Fresh,
        Start::Warm => Born::Warm,
        Start::Prestarted(number, outputs) => {
            let ours = Pipes::of(Input::nothing(), outputs).map_err(DriveError::Pipes)?;
            let execution = init.execute_prestarted(request.clone(), number).await?;
            let driven = way.go(execution, ours, source.take()).await?;
            let is_refused = matches!(&driven.end, ProgramEnd::NotStarted(failed) if failed.stage == StartStage::Prestarted);
            if !is_refused || driven.ended_by == EndedBy::Cancel {
                return Ok(driven);
            }
            // It never ran. Its time may be over all the same.
            way.ended_by = driven.ended_by;
            Born::Fresh
        }
    };
    let (ours, theirs) = Pipes::make(feed).map_err(DriveError::Pipes)?;
    let execution = init.execute(request, born, &theirs, door.as_ref()).await?;
    drop((theirs, door));
    way.go(execution, ours, source).await
}

/// What stays the same for a program that is started twice.
struct Way<'a> {
    init: &'a InitClient,
    sink: &'a dyn OutputSink,
    control: &'a mut mpsc::Receiver<Control>,
    deadline: Instant,
    ended_by: EndedBy,
}

impl Way<'_> {
    /// From a program's start to its end.
    async fn go(&mut self, execution: Execution, pipes: Pipes, source: Option<Source>) -> Result<Driven, DriveError> {
        let Execution { tag, end, blocked } = execution;
        let guard = EndOnDrop { init: self.init, tag, armed: true };
        if let Some(source) = source {
            source.written().await?;
        }
        self.sink.started();
        let mut drive = Drive {
            init: self.init,
            tag,
            pipes,
            sink: self.sink,
            broken: None,
            ended_by: self.ended_by,
            blocked: Blocked { numbers: blocked, told: BTreeSet::new() },
            deadline: self.deadline,
        };
        if drive.ended_by != EndedBy::Itself {
            drive.deadline = Instant::now() + END_TIME;
            self.init.end(tag).await?;
        }
        let end = drive.until_end(end, self.control).await?;
        guard.disarm();
        drive.finish(end)
    }
}

struct Drive<'a> {
    init: &'a InitClient,
    tag: Tag,
    pipes: Pipes,
    sink: &'a dyn OutputSink,
    /// Why output was lost.
    broken: Option<std::io::Error>,
    ended_by: EndedBy,
    blocked: Blocked,
    deadline: Instant,
}

thread_local! {
    /// What a thread has read of a program's output and not handed on yet: nothing between two calls.
    static CHUNK: RefCell<Vec<u8>> = RefCell::new(vec![0; CHUNK_BYTES]);
}

impl Drive<'_> {
    /// Takes what is left to be taken of a program that has ended.
    fn finish(mut self, end: ProgramEnd) -> Result<Driven, DriveError> {
        self.drain();
        while let Ok(number) = self.blocked.numbers.try_recv() {
            self.blocked.tell(number, self.sink);
        }
        if let ProgramEnd::Ran { blocked, .. } = &end {
            for number in blocked {
                self.blocked.tell(*number, self.sink);
            }
        }
        let Input { waiting, open, broken, .. } = self.pipes.stdin;
        match self.broken.or(broken) {
            // What would be told of such a program could be wrong without anybody noticing.
            Some(error) => Err(DriveError::Streams(error)),
            None => Ok(Driven { end, ended_by: self.ended_by, held: Held { bytes: waiting, eof: !open } }),
        }
    }

    async fn until_end(
        &mut self,
        mut end: oneshot::Receiver<ProgramEnd>,
        control: &mut mpsc::Receiver<Control>,
    ) -> Result<ProgramEnd, Gone> {
        let mut listening = true;
        loop {
            tokio::select! {
                ended = &mut end => return ended.map_err(|_| Gone),
                ready = readable(self.pipes.stdout.as_ref()) => self.read(Stream::Stdout, ready.is_ok()).await?,
                ready = readable(self.pipes.stderr.as_ref()) => self.read(Stream::Stderr, ready.is_ok()).await?,
                ready = writable(&self.pipes.stdin) => self.pipes.stdin.write(ready.is_ok()),
                command = control.recv(), if listening && self.pipes.stdin.has_room() => match command {
                    Some(command) => self.control(command).await?,
                    None => listening = false,
                },
                Some(number) = self.blocked.numbers.recv() => self.blocked.tell(number, self.sink),
                () = sleep_until(self.deadline) => match self.ended_by {
                    EndedBy::Itself => self.end(EndedBy::Timeout).await?,
                    EndedBy::Timeout | EndedBy::Cancel | EndedBy::Output => return Err(Gone),
                },
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
            self.deadline = Instant::now() + END_TIME;
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
        CHUNK.with_borrow_mut(|chunk| {
            let Some(reader) = pipe.as_ref() else { return OutputVerdict::Continue };
            match reader.try_read(chunk) {
                Ok(bytes) if bytes > 0 && ready => return self.sink.write(stream, &chunk[..bytes]),
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock && ready => {}
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Ok(_) => *pipe = None,
                Err(error) => {
                    *pipe = None;
                    self.broken = Some(error);
                }
            }
            OutputVerdict::Continue
        })
    }

    fn drain(&mut self) {
        for (stream, pipe) in [(Stream::Stdout, &self.pipes.stdout), (Stream::Stderr, &self.pipes.stderr)] {
            if let Some(pipe) = pipe {
                let taken = CHUNK.with_borrow_mut(|chunk| {
                    take_rest(pipe.as_fd(), chunk, |bytes| {
                        self.sink.write(stream, bytes);
                    })
                });
                if let Err(errno) = taken {
                    self.broken = Some(errno.into());
                }
            }
        }
    }
}

/// Refused calls, each told once. Init is not believed: there are no more names than system calls.
struct Blocked {
    numbers: mpsc::Receiver<u32>,
    told: BTreeSet<&'static str>,
}

impl Blocked {
    fn tell(&mut self, number: u32, sink: &dyn OutputSink) {
        if let Some(name) = Arch::native().and_then(|arch| arch.name(number))
            && self.told.insert(name)
        {
            sink.blocked(name);
        }
    }
}

/// Takes what lies in a pipe now and no more: another execution of the session may hold its end and keep on writing. The kernel
/// itself is asked, since the reactor may not know yet that the pipe holds something.
fn take_rest(pipe: BorrowedFd<'_>, buffer: &mut [u8], mut take: impl FnMut(&[u8])) -> Result<(), Errno> {
    let mut left = usize::try_from(rustix::io::ioctl_fionread(pipe)?).unwrap_or(usize::MAX);
    while left > 0 {
        let chunk = left.min(buffer.len());
        match rustix::io::read(pipe, &mut buffer[..chunk]) {
            Ok(bytes) if bytes > 0 => {
                take(&buffer[..bytes]);
                left -= bytes;
            }
            Err(Errno::INTR) => {}
            // Fewer than the kernel said: nothing is left that could be waited for.
            Ok(_) | Err(Errno::AGAIN) => break,
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
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
    /// What waits is for a later program.
    keeps: bool,
    waiting: Vec<u8>,
    written: usize,
    open: bool,
    /// Why some of it did not reach the program.
    broken: Option<std::io::Error>,
}

impl Input {
    fn nothing() -> Self {
        Self { pipe: None, keeps: false, waiting: Vec::new(), written: 0, open: false, broken: None }
    }

    /// While much waits, no more is taken from the client: the wait is the client's, not our memory's.
    fn has_room(&self) -> bool {
        self.waiting.len() - self.written < WAITING_BYTES_MAX
    }

    fn add(&mut self, data: Vec<u8>, eof: bool) {
        if self.keeps {
            self.waiting.extend(data);
            self.open &= !eof;
            return;
        }
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
                Err(error) => {
                    // A program that has closed its input has no reader for what is left; nothing else is expected.
                    if error.kind() != std::io::ErrorKind::BrokenPipe {
                        self.broken = Some(error);
                    }
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
    fn make(feed: Feed) -> std::io::Result<(Self, [OwnedFd; 3])> {
        let (stdin, their_stdin) = match feed {
            Feed::Own(Stdin::Empty, _) => (Input::nothing(), no_input()?),
            Feed::Own(Stdin::Bytes(bytes), _) => Self::input(bytes, false)?,
            Feed::Own(Stdin::Open, Held { bytes, eof }) => Self::input(bytes, !eof)?,
            Feed::Later(Held { bytes, eof }) => {
                (Input { keeps: true, waiting: bytes, open: !eof, ..Input::nothing() }, no_input()?)
            }
        };
        let (outputs, theirs) = Outputs::beside(their_stdin)?;
        Ok((Self::of(stdin, outputs)?, theirs))
    }

    fn of(stdin: Input, outputs: Outputs) -> std::io::Result<Self> {
        let receiver = |end| pipe::Receiver::from_owned_fd(end).map(Some);
        Ok(Self { stdin, stdout: receiver(outputs.stdout)?, stderr: receiver(outputs.stderr)? })
    }

    fn input(bytes: Vec<u8>, open: bool) -> std::io::Result<(Input, OwnedFd)> {
        let (theirs, ours) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
        let mut input = Input { pipe: Some(pipe::Sender::from_owned_fd(ours)?), open: true, ..Input::nothing() };
        input.add(bytes, !open);
        Ok((input, theirs))
    }
}

fn no_input() -> std::io::Result<OwnedFd> {
    Ok(rustix::fs::open("/dev/null", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?)
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::messages::InitMessage;
    use crate::sys::{channel, socket};

    struct Nowhere;

    impl OutputSink for Nowhere {
        fn write(&self, _: Stream, _: &[u8]) -> OutputVerdict {
            OutputVerdict::Continue
        }

        fn started(&self) {}
    }

    #[tokio::test(start_paused = true)]
    async fn an_init_that_never_tells_a_program_s_end_is_given_up_after_the_program_s_time() {
        let (ours, theirs) = socket::pair().expect("a socket pair");
        channel::send(theirs.as_fd(), &InitMessage::Ready, &[]).expect("sent");
        let Ok(init) = InitClient::connect(ours).await else { panic!("it said that its walls stand") };
        let view = crate::plan::messages::View::Programs;
        let request = ExecuteRequest {
            execution: 0,
            arguments: vec![],
            environment: vec![],
            directory: vec![],
            view,
            network: crate::plan::messages::ProgramNetwork::default(),
            after: None,
        };
        let timeout = Duration::from_secs(5);
        let feed = Feed::Own(Stdin::Empty, Held::default());
        let (_sender, mut control) = mpsc::channel(1);
        let begin = Instant::now();
        let program = Program { request, start: Start::Fresh, feed, timeout, door: None, source: None };
        let driven = drive(&init, program, &Nowhere, &mut control).await;
        assert!(matches!(driven, Err(DriveError::Gone)), "{driven:?}");
        assert!(begin.elapsed() >= timeout + END_TIME && begin.elapsed() < timeout + END_TIME * 2, "{:?}", begin.elapsed());
    }

    #[test]
    fn what_lies_in_a_pipe_is_taken_whole_and_what_comes_meanwhile_is_not() {
        let (reader, writer) = rustix::pipe::pipe_with(PipeFlags::NONBLOCK).expect("a pipe");
        let write = |text: &[u8]| rustix::io::write(&writer, text).expect("room in the pipe");
        write(b"abcdef");
        let mut taken = Vec::new();
        // Whoever still holds the other end writes as fast as we read.
        take_rest(reader.as_fd(), &mut [0; 4], |bytes| {
            taken.extend_from_slice(bytes);
            write(b"xyz");
        })
        .expect("the pipe can be read");
        assert_eq!(taken, b"abcdef");
    }
}
