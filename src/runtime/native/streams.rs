//! The pipes between a program and us: what it reads, and what it writes.
//!
//! Invariants: what waits to be written is bounded; what a program wrote is taken whole, whether anybody was told that it came or not; nothing here
//! waits in a call, whatever the program does with its ends.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::pipe::PipeFlags;
use tokio::net::unix::pipe;

use crate::command::Stdin;

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

/// Our ends of what a program writes to. Watched by no runtime yet.
#[derive(Debug)]
pub struct Outputs {
    stdout: OwnedFd,
    stderr: OwnedFd,
}

impl Outputs {
    /// For a program that is started before anybody asks for it; the other ends, and no input.
    pub fn make() -> io::Result<(Self, [OwnedFd; 3])> {
        Self::beside(no_input()?)
    }

    fn beside(their_stdin: OwnedFd) -> io::Result<(Self, [OwnedFd; 3])> {
        let (stdout, their_stdout) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
        let (stderr, their_stderr) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
        for ours in [&stdout, &stderr] {
            // The kernel may say that more lies there than can be read: a program can have packets in its pipe.
            rustix::io::ioctl_fionbio(ours, true)?;
        }
        Ok((Self { stdout, stderr }, [their_stdin, their_stdout, their_stderr]))
    }
}

/// Input that may wait here for a program that does not read; past it the client's next call waits.
const WAITING_BYTES_MAX: usize = 1 << 20;

/// Standard input: what waits to be written, and whether more may come.
pub(super) struct Input {
    pipe: Option<pipe::Sender>,
    /// What waits is for a later program.
    keeps: bool,
    waiting: Vec<u8>,
    written: usize,
    open: bool,
    /// Why some of it did not reach the program.
    broken: Option<io::Error>,
}

impl Input {
    pub(super) fn nothing() -> Self {
        Self { pipe: None, keeps: false, waiting: Vec::new(), written: 0, open: false, broken: None }
    }

    /// While much waits, no more is taken from the client: the wait is the client's, not our memory's.
    pub(super) fn has_room(&self) -> bool {
        self.waiting.len() - self.written < WAITING_BYTES_MAX
    }

    /// More of it, and whether it ends with that.
    pub(super) fn add(&mut self, data: Vec<u8>, eof: bool) {
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

    /// Waits until the program may take some of what waits; for good when nothing waits.
    pub(super) async fn writable(&self) -> io::Result<()> {
        match &self.pipe {
            Some(pipe) if !self.waiting.is_empty() => pipe.writable().await,
            Some(_) | None => std::future::pending().await,
        }
    }

    /// What the program never took, for a later one; an error when some of it was lost.
    pub(super) fn left(self) -> io::Result<Held> {
        match self.broken {
            Some(error) => Err(error),
            None => Ok(Held { bytes: self.waiting, eof: !self.open }),
        }
    }

    /// Has as much of it taken as the pipe has room for. Not `ready`: nobody will take any more.
    pub(super) fn write(&mut self, ready: bool) {
        let Some(pipe) = self.pipe.as_ref().filter(|_| ready) else {
            self.pipe = None;
            return;
        };
        while self.written < self.waiting.len() {
            match pipe.try_write(&self.waiting[self.written..]) {
                Ok(bytes) => self.written += bytes,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) => {
                    // A program that has closed its input has no reader for what is left; nothing else is expected.
                    if error.kind() != io::ErrorKind::BrokenPipe {
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

/// Our end of one of the pipes that a program writes to.
pub(super) enum Output {
    /// What is written lies there; nobody is told.
    Unwatched(OwnedFd),
    /// Whoever waits for it is told.
    Watched(pipe::Receiver),
    /// At its end, or broken.
    Closed,
}

impl Output {
    fn watch(&mut self) -> io::Result<()> {
        *self = match std::mem::replace(self, Self::Closed) {
            Self::Unwatched(end) => Self::Watched(pipe::Receiver::from_owned_fd(end)?),
            other => other,
        };
        Ok(())
    }

    /// Waits until there is something, or the end of it; for good when nobody is told.
    pub(super) async fn readable(&self) -> io::Result<()> {
        match self {
            Self::Watched(end) => end.readable().await,
            Self::Unwatched(_) | Self::Closed => std::future::pending().await,
        }
    }

    /// Hands on what lies there now.
    pub(super) fn rest(&self, buffer: &mut [u8], take: impl FnMut(&[u8])) -> Result<(), Errno> {
        match self {
            Self::Unwatched(end) => take_rest(end.as_fd(), buffer, take),
            Self::Watched(end) => take_rest(end.as_fd(), buffer, take),
            Self::Closed => Ok(()),
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

/// Our ends of a program's standard streams.
pub(super) struct Pipes {
    pub(super) stdin: Input,
    pub(super) stdout: Output,
    pub(super) stderr: Output,
}

impl Pipes {
    /// Our ends, and theirs as stdin, stdout, stderr.
    pub(super) fn make(feed: Feed) -> io::Result<(Self, [OwnedFd; 3])> {
        let (stdin, their_stdin) = match feed {
            Feed::Own(Stdin::Empty, _) => (Input::nothing(), no_input()?),
            Feed::Own(Stdin::Bytes(bytes), _) => Self::input(bytes, false)?,
            Feed::Own(Stdin::Open, Held { bytes, eof }) => Self::input(bytes, !eof)?,
            Feed::Later(Held { bytes, eof }) => {
                (Input { keeps: true, waiting: bytes, open: !eof, ..Input::nothing() }, no_input()?)
            }
        };
        let (outputs, theirs) = Outputs::beside(their_stdin)?;
        Ok((Self::of(stdin, outputs), theirs))
    }

    pub(super) fn of(stdin: Input, outputs: Outputs) -> Self {
        let [stdout, stderr] = [outputs.stdout, outputs.stderr].map(Output::Unwatched);
        Self { stdin, stdout, stderr }
    }

    fn input(bytes: Vec<u8>, open: bool) -> io::Result<(Input, OwnedFd)> {
        let (theirs, ours) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
        let mut input = Input { pipe: Some(pipe::Sender::from_owned_fd(ours)?), open: true, ..Input::nothing() };
        input.add(bytes, !open);
        Ok((input, theirs))
    }

    /// From now on whoever waits is told of output as it comes. What can't be watched is closed, so that the program learns it.
    pub(super) fn watch(&mut self) -> io::Result<()> {
        let watched = [self.stdout.watch(), self.stderr.watch()];
        watched.into_iter().collect()
    }

    /// Whether nobody is told yet of what comes.
    pub(super) fn are_unwatched(&self) -> bool {
        matches!(self.stdout, Output::Unwatched(_))
    }
}

fn no_input() -> io::Result<OwnedFd> {
    Ok(rustix::fs::open("/dev/null", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_has_the_kernel_tell_too_much_holds_up_nobody() {
        let (ours, theirs) = Outputs::make().expect("pipes");
        let [_, writer, _] = theirs;
        rustix::pipe::fcntl_setpipe_size(&writer, 1 << 20).expect("as large as anybody may make it");
        let write = |bytes: usize| rustix::io::write(&writer, &vec![b'x'; bytes]).expect("room in the pipe");
        write(65_000);
        // Packets from here on: what of one is not read at once is gone.
        rustix::fs::fcntl_setfl(&writer, OFlags::DIRECT).expect("an own pipe");
        write(4096);
        let told = rustix::io::ioctl_fionread(&ours.stdout).expect("a pipe");
        // With the other end open: a call that waited would wait for good.
        let (done, answer) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let mut taken = 0;
            let read = Output::Unwatched(ours.stdout).rest(&mut vec![0; 64 << 10], |bytes| taken += bytes.len() as u64);
            done.send(read.map(|()| taken)).ok();
        });
        let taken = answer.recv_timeout(std::time::Duration::from_secs(10)).expect("it does not wait").expect("it can be read");
        assert!((65_000..told).contains(&taken), "the control: {taken} of {told} could be read");
        drop(writer);
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
