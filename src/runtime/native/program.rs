//! Drives one program from its start to its end: pipes, input, signals, time.
//!
//! Invariants: the program never waits for a reader, but for [`UNWATCHED_TIME`] where nobody follows it; the answer comes when it and
//! all its descendants have ended, not when a pipe closes; dropping the future ends the program.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::os::fd::OwnedFd;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep, sleep_until};

use crate::command::{Control, Failure, Stream};
use crate::plan::messages::{Born, ExecuteRequest, ProgramEnd, StartStage, Tag};
use crate::runtime::{OutputSink, OutputVerdict};
use crate::seccomp::Arch;

use super::code::Source;
use super::control::{Execution, Gone, InitClient};
use super::streams::{Feed, Held, Input, Output, Outputs, Pipes};

/// How long a program and its descendants may take to die before their sandbox is taken for stuck: more than init takes for a
/// file command, which it finishes first.
const END_TIME: Duration = Duration::from_secs(30);

/// How long output that nobody follows may lie in its pipes before they are watched: most programs have ended by then, and what they wrote is
/// taken at once. Until then each write of theirs, and their end, would wake this process, often on the processor that they run on. One
/// that fills a pipe waits for so long, once.
const UNWATCHED_TIME: Duration = Duration::from_millis(4);

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
            let ours = Pipes::of(Input::nothing(), outputs);
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
        if self.sink.is_followed() {
            drive.watch();
        }
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
        let held = self.broken.map_or_else(|| self.pipes.stdin.left(), Err);
        // What would be told of a program whose streams broke could be wrong without anybody noticing.
        held.map(|held| Driven { end, ended_by: self.ended_by, held }).map_err(DriveError::Streams)
    }

    async fn until_end(
        &mut self,
        mut end: oneshot::Receiver<ProgramEnd>,
        control: &mut mpsc::Receiver<Control>,
    ) -> Result<ProgramEnd, Gone> {
        let mut listening = true;
        let watch = sleep(UNWATCHED_TIME);
        tokio::pin!(watch);
        loop {
            tokio::select! {
                ended = &mut end => return ended.map_err(|_| Gone),
                () = &mut watch, if self.pipes.are_unwatched() => self.watch(),
                ready = self.pipes.stdout.readable() => self.read(Stream::Stdout, ready.is_ok()).await?,
                ready = self.pipes.stderr.readable() => self.read(Stream::Stderr, ready.is_ok()).await?,
                ready = self.pipes.stdin.writable() => self.pipes.stdin.write(ready.is_ok()),
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

    fn watch(&mut self) {
        if let Err(error) = self.pipes.watch() {
            self.broken = Some(error);
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
            let Output::Watched(reader) = &*pipe else { return OutputVerdict::Continue };
            match reader.try_read(chunk) {
                Ok(bytes) if bytes > 0 && ready => return self.sink.write(stream, &chunk[..bytes]),
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock && ready => {}
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Ok(_) => *pipe = Output::Closed,
                Err(error) => {
                    *pipe = Output::Closed;
                    self.broken = Some(error);
                }
            }
            OutputVerdict::Continue
        })
    }

    fn drain(&mut self) {
        for (stream, pipe) in [(Stream::Stdout, &self.pipes.stdout), (Stream::Stderr, &self.pipes.stderr)] {
            let taken = CHUNK.with_borrow_mut(|chunk| {
                pipe.rest(chunk, |bytes| {
                    // It has ended: nothing is left to be ended for it.
                    self.sink.write(stream, bytes);
                })
            });
            if let Err(errno) = taken {
                self.broken = Some(errno.into());
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
    use std::os::fd::AsFd;
    use std::sync::Mutex;

    use super::*;
    use crate::plan::messages::{InitMessage, InitRequest, ProgramNetwork, View};
    use crate::sys::{channel, socket};

    /// Counts what comes, and wants no more than `most`.
    struct Counted {
        bytes: Mutex<usize>,
        most: usize,
        is_followed: bool,
    }

    impl Counted {
        fn new(most: usize, is_followed: bool) -> Self {
            Self { bytes: Mutex::new(0), most, is_followed }
        }

        fn bytes(&self) -> usize {
            *self.bytes.lock().expect("no panic")
        }
    }

    impl OutputSink for Counted {
        fn started(&self) {}

        fn write(&self, _: Stream, data: &[u8]) -> OutputVerdict {
            *self.bytes.lock().expect("no panic") += data.len();
            if self.bytes() > self.most { OutputVerdict::LimitReached } else { OutputVerdict::Continue }
        }

        fn is_followed(&self) -> bool {
            self.is_followed
        }
    }

    /// A connection whose other end says that its walls stand.
    async fn init() -> (InitClient, OwnedFd) {
        let (ours, theirs) = socket::pair().expect("a socket pair");
        channel::send(theirs.as_fd(), &InitMessage::Ready, &[]).expect("sent");
        let Ok(init) = InitClient::connect(ours).await else { panic!("it said that its walls stand") };
        (init, theirs)
    }

    fn program(timeout: Duration) -> Program {
        let request = ExecuteRequest {
            execution: 0,
            arguments: vec![],
            environment: vec![],
            directory: vec![],
            view: View::Programs,
            network: ProgramNetwork::default(),
            after: None,
        };
        Program { request, start: Start::Fresh, feed: Feed::nothing(), timeout, door: None, source: None }
    }

    /// As `theirs`: a program that writes so much to its standard output and ends well.
    fn write_and_end(theirs: &OwnedFd, bytes: usize) {
        let received = channel::receive::<InitRequest>(theirs.as_fd(), socket::Wait::Yes).expect("a request");
        let InitRequest::Execute(request) = received.message else { panic!("{:?}", received.message) };
        let mut left = vec![b'x'; bytes];
        while !left.is_empty() {
            let written = rustix::io::write(&received.descriptors[1], &left).expect("a reader");
            left.drain(..written);
        }
        drop(received.descriptors);
        let end = ProgramEnd::Ran { status: 0, cpu_us: 0, quota_full: false, blocked: vec![], born: Born::Fresh };
        channel::send(theirs.as_fd(), &InitMessage::Ended { execution: request.execution, end }, &[]).expect("sent");
    }

    #[tokio::test]
    async fn output_is_taken_whole_and_held_against_its_limit_whether_anybody_follows_it_or_not() {
        // Far more than a pipe holds, so that most is read while the program runs; and less, so that it may be read after its end.
        for (bytes, is_followed) in [(1 << 20, true), (1 << 20, false), (1000, true), (1000, false), (0, false)] {
            let (init, theirs) = init().await;
            let (_sender, mut control) = mpsc::channel(1);
            let writer = std::thread::spawn(move || {
                write_and_end(&theirs, bytes);
                write_and_end(&theirs, bytes);
                theirs
            });
            let within = Counted::new(bytes, is_followed);
            let driven = drive(&init, program(END_TIME), &within, &mut control).await.expect("it ended");
            assert_eq!((driven.ended_by, within.bytes()), (EndedBy::Itself, bytes), "{is_followed}");
            let beyond = Counted::new(1000, is_followed);
            let driven = drive(&init, program(END_TIME), &beyond, &mut control).await.expect("it ended");
            let expected = if bytes > 1000 { EndedBy::Output } else { EndedBy::Itself };
            assert_eq!((driven.ended_by, beyond.bytes()), (expected, bytes), "{is_followed}");
            drop(writer.join().expect("no panic"));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_init_that_never_tells_a_program_s_end_is_given_up_after_the_program_s_time() {
        let (init, _theirs) = init().await;
        let timeout = Duration::from_secs(5);
        let (_sender, mut control) = mpsc::channel(1);
        let begin = Instant::now();
        let driven = drive(&init, program(timeout), &Counted::new(0, true), &mut control).await;
        assert!(matches!(driven, Err(DriveError::Gone)), "{driven:?}");
        assert!(begin.elapsed() >= timeout + END_TIME && begin.elapsed() < timeout + END_TIME * 2, "{:?}", begin.elapsed());
    }
}
