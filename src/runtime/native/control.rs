//! The server's side of an init's control socket.
//!
//! Init is untrusted: its messages are bounded by `sys::channel`, and an answer that nobody waits for is dropped.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

use crate::plan::StepFailure;
use crate::plan::files::{FileCommand, FileError, FileReply};
use crate::plan::messages::{
    Born, ExecuteRequest, InitMessage, InitRequest, PrestartRequest, ProgramEnd, ProgramNetwork, Tag, WarmRequest,
};
use crate::sys::channel::{self, ChannelError, Received};
use crate::sys::socket::{self, Wait};

use super::files;

/// Refused calls of one program that wait to be told; what an init says beyond them is in the program's end.
const BLOCKED_WAITING_MAX: usize = 64;

/// Between two tries to send where nobody can be told that there is room.
const ROOM_TRIED_EVERY: Duration = Duration::from_millis(1);

/// Who waits for the one answer that has no number; programs and files begin with 1.
const WARM: Tag = 0;

/// A program that was asked for.
pub struct Execution {
    /// Its number.
    pub tag: Tag,
    /// Comes when no descendant of it lives.
    pub end: oneshot::Receiver<ProgramEnd>,
    /// Numbers of refused calls, as init says them.
    pub blocked: mpsc::Receiver<u32>,
}

/// A file command that was asked for.
#[derive(Debug)]
pub struct Coming {
    /// Its number.
    pub tag: Tag,
    /// What came of it.
    pub answer: oneshot::Receiver<Result<FileReply, FileError>>,
}

/// The sandbox ended before it answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gone;

enum Waiter {
    Program { end: oneshot::Sender<ProgramEnd>, blocked: mpsc::Sender<u32> },
    File(oneshot::Sender<Result<FileReply, FileError>>),
    Quota(oneshot::Sender<Result<OwnedFd, i32>>),
    Warm(oneshot::Sender<()>),
}

struct Shared {
    socket: AsyncFd<OwnedFd>,
    /// None once the socket is closed.
    waiters: Mutex<Option<HashMap<Tag, Waiter>>>,
    next: AtomicU64,
    listener: Mutex<Option<JoinHandle<()>>>,
}

/// A connection to one init.
#[derive(Clone)]
pub struct InitClient(Arc<Shared>);

/// A connection that nobody listens to: it belongs to no runtime's reactor.
#[derive(Debug)]
pub struct Resting {
    control: OwnedFd,
    /// Numbers go on where they were: a late answer is nobody's.
    next: Tag,
}

impl InitClient {
    /// Waits until every wall stands, then listens for answers on a task of its own.
    pub async fn connect(control: OwnedFd) -> Result<Self, Result<StepFailure, Gone>> {
        rustix::io::ioctl_fionbio(&control, true).map_err(|_| Err(Gone))?;
        let shared = Shared::new(control, 1).map_err(Err)?;
        match shared.receive().await.map(|received| received.message) {
            Ok(InitMessage::Ready) => {}
            Ok(InitMessage::Failed(failure)) => return Err(Ok(failure)),
            Ok(
                InitMessage::Ended { .. }
                | InitMessage::Blocked { .. }
                | InitMessage::Warmed(_)
                | InitMessage::FileDone(..)
                | InitMessage::Quota(..),
            )
            | Err(_) => {
                return Err(Err(Gone));
            }
        }
        Ok(Self::listening(shared))
    }

    fn listening(shared: Shared) -> Self {
        let shared = Arc::new(shared);
        let listener = Arc::clone(&shared);
        let task = tokio::spawn(async move { listener.listen().await });
        *shared.listener.lock().unwrap_or_else(PoisonError::into_inner) = Some(task);
        Self(shared)
    }

    /// Lets go of the connection until [`Resting::wake`], which may be on another runtime. Nobody else may hold it or wait for an
    /// answer.
    pub async fn rest(self) -> Result<Resting, Gone> {
        let task = self.0.listener.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(task) = task {
            task.abort();
            // Only then is no message taken any more; an error is the abort itself.
            task.await.ok();
        }
        let shared = Arc::into_inner(self.0).ok_or(Gone)?;
        if shared.waiters.into_inner().unwrap_or_else(PoisonError::into_inner).is_none() {
            return Err(Gone);
        }
        Ok(Resting { next: shared.next.into_inner(), control: shared.socket.into_inner() })
    }

    /// What the size of the session's own file system is changed with. To be asked before anybody's program has run: from then on init
    /// is not believed so much.
    pub async fn quota(&self) -> Result<Result<OwnedFd, i32>, Gone> {
        let (sender, receiver) = oneshot::channel();
        let tag = self.expect(Waiter::Quota(sender))?;
        self.0.send(&InitRequest::Quota(tag), &[]).await?;
        receiver.await.map_err(|_| Gone)
    }

    /// Has the one that was started ahead carry out a program; it has its streams already.
    pub async fn execute_prestarted(&self, mut request: ExecuteRequest, number: u64) -> Result<Execution, Gone> {
        let (end, ended) = oneshot::channel();
        let (blocked, told) = mpsc::channel(BLOCKED_WAITING_MAX);
        let tag = self.expect(Waiter::Program { end, blocked })?;
        request.execution = tag;
        self.0.send(&InitRequest::ExecutePrestarted(request, number), &[]).await?;
        Ok(Execution { tag, end: ended, blocked: told })
    }

    /// Starts a program, by the warm interpreter where it may; the streams are stdin, stdout, stderr. With a `door` it has a network
    /// of its own, whose listener comes through the other end.
    pub async fn execute(
        &self,
        mut request: ExecuteRequest,
        born: Born,
        streams: &[OwnedFd; 3],
        door: Option<&OwnedFd>,
    ) -> Result<Execution, Gone> {
        let (end, ended) = oneshot::channel();
        let (blocked, told) = mpsc::channel(BLOCKED_WAITING_MAX);
        let tag = self.expect(Waiter::Program { end, blocked })?;
        request.execution = tag;
        request.network = if door.is_some() { ProgramNetwork::Own } else { ProgramNetwork::Sandbox };
        let streams: Vec<BorrowedFd<'_>> = streams.iter().chain(door).map(AsFd::as_fd).collect();
        let request = match born {
            Born::Warm => InitRequest::ExecuteWarm(request),
            Born::Fresh | Born::Passed | Born::Prestarted => InitRequest::Execute(request),
        };
        self.0.send(&request, &streams).await?;
        Ok(Execution { tag, end: ended, blocked: told })
    }

    /// Has an interpreter kept ready, or a program started ahead, in place of the one before.
    pub async fn keep_warm(&self, keep: Keep) -> Result<(), Gone> {
        match keep {
            Keep::Interpreter(request) => self.0.send(&InitRequest::Warm(request), &[]).await,
            Keep::Prestarted(request, streams) => {
                let streams: Vec<BorrowedFd<'_>> = streams.iter().map(AsFd::as_fd).collect();
                self.0.send(&InitRequest::Prestart(request), &streams).await
            }
        }
    }

    /// The same, and waits until it is ready or will not be.
    pub async fn warm_up(&self, keep: Keep) -> Result<(), Gone> {
        let (sender, receiver) = oneshot::channel();
        self.0.waiters.lock().unwrap_or_else(PoisonError::into_inner).as_mut().ok_or(Gone)?.insert(WARM, Waiter::Warm(sender));
        self.keep_warm(keep).await?;
        receiver.await.map_err(|_| Gone)
    }

    /// Has no interpreter kept any more, where nothing can be awaited: false when the socket is full or closed.
    pub fn cool_now(&self) -> bool {
        channel::send(self.0.socket.get_ref().as_fd(), &InitRequest::Cool, &[]).is_ok()
    }

    /// Carries out a file command.
    pub async fn file(&self, command: FileCommand) -> Result<Result<FileReply, FileError>, Gone> {
        self.file_below(Vec::new(), command).await
    }

    /// The same with a directory of the sandbox as the root.
    pub async fn file_below(&self, root: Vec<u8>, command: FileCommand) -> Result<Result<FileReply, FileError>, Gone> {
        let (sender, receiver) = oneshot::channel();
        match self.ask_for_file(root, command, sender).await? {
            Ok(_) => receiver.await.map_err(|_| Gone),
            Err(error) => Ok(Err(error)),
        }
    }

    /// The same, and waits only for room on the socket: what is asked next may come after it ([`ExecuteRequest::after`]).
    pub async fn file_to_come(&self, command: FileCommand) -> Result<Result<Coming, FileError>, Gone> {
        let (sender, answer) = oneshot::channel();
        Ok(self.ask_for_file(Vec::new(), command, sender).await?.map(|tag| Coming { tag, answer }))
    }

    /// Has a file command carried out before whatever is asked next, and waits only for room on the socket.
    pub async fn file_unheard(&self, command: FileCommand) -> Result<(), Gone> {
        let (nobody, _) = oneshot::channel();
        self.ask_for_file(Vec::new(), command, nobody).await.map(drop)
    }

    async fn ask_for_file(
        &self,
        root: Vec<u8>,
        mut command: FileCommand,
        waiter: oneshot::Sender<Result<FileReply, FileError>>,
    ) -> Result<Result<Tag, FileError>, Gone> {
        let carrier = match files::carrier(&mut command) {
            Ok(carrier) => carrier,
            Err(error) => return Ok(Err(error)),
        };
        let tag = self.expect(Waiter::File(waiter))?;
        let descriptors: Vec<BorrowedFd<'_>> = carrier.iter().map(AsFd::as_fd).collect();
        match self.0.try_send(&InitRequest::File { tag, root, command }, &descriptors).await {
            Ok(()) => {}
            // Others of this id have as many descriptors on their way as one may have.
            Err(error) if error.raw_os_error() == Some(libc::ETOOMANYREFS) => {
                self.0.waiters.lock().unwrap_or_else(PoisonError::into_inner).as_mut().ok_or(Gone)?.remove(&tag);
                return Ok(Err(files::not_carried(libc::ETOOMANYREFS)));
            }
            Err(_) => return Err(Gone),
        }
        Ok(Ok(tag))
    }

    /// Signals a program's process group.
    pub async fn signal(&self, execution: Tag, signal: i32) -> Result<(), Gone> {
        self.0.send(&InitRequest::Signal(execution, signal), &[]).await
    }

    /// Has it listen in the sandbox's network; the listener comes through the other end of `door`.
    pub async fn listen(&self, door: &OwnedFd) -> Result<(), Gone> {
        self.0.send(&InitRequest::Listen, &[door.as_fd()]).await
    }

    /// Ends a program and all its descendants.
    pub async fn end(&self, execution: Tag) -> Result<(), Gone> {
        self.0.send(&InitRequest::End(execution), &[]).await
    }

    /// The same where nothing can be awaited: false when the socket is full or closed.
    pub fn end_now(&self, execution: Tag) -> bool {
        channel::send(self.0.socket.get_ref().as_fd(), &InitRequest::End(execution), &[]).is_ok()
    }

    /// Ends the connection for good: an init that reads the end of it ends, and its sandbox with it.
    pub fn hang_up(&self) {
        socket::hang_up(self.0.socket.get_ref().as_fd());
    }

    fn expect(&self, waiter: Waiter) -> Result<Tag, Gone> {
        let tag = self.0.next.fetch_add(1, Ordering::Relaxed);
        self.0.waiters.lock().unwrap_or_else(PoisonError::into_inner).as_mut().ok_or(Gone)?.insert(tag, waiter);
        Ok(tag)
    }
}

impl Resting {
    /// Listens again, on the runtime that calls. Init owes no answer, so whatever can be heard now is its end, of which the launcher's
    /// word may still be on its way.
    pub fn wake(self) -> Result<InitClient, Gone> {
        let mut ended = [PollFd::new(&self.control, PollFlags::IN)];
        if rustix::event::poll(&mut ended, Some(&Timespec::default())) != Ok(0) {
            return Err(Gone);
        }
        Ok(InitClient::listening(Shared::new(self.control, self.next)?))
    }
}

impl Shared {
    fn new(control: OwnedFd, next: Tag) -> Result<Self, Gone> {
        let socket = watched(control, Interest::READABLE).map_err(|_| Gone)?;
        let (waiters, next) = (Mutex::new(Some(HashMap::new())), AtomicU64::new(next));
        Ok(Self { socket, waiters, next, listener: Mutex::default() })
    }

    async fn send(&self, request: &InitRequest, descriptors: &[BorrowedFd<'_>]) -> Result<(), Gone> {
        self.try_send(request, descriptors).await.map_err(|_| Gone)
    }

    async fn try_send(&self, request: &InitRequest, descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        loop {
            match channel::send(self.socket.as_fd(), request, descriptors) {
                Err(ChannelError::Full) => self.room().await?,
                sent => return sent.map_err(into_io),
            }
        }
    }

    /// Waits until init has taken some of what lies on the socket. Whoever watches for that all the time is woken each time that init takes a
    /// message, so it is watched by a number of its own and only now.
    async fn room(&self) -> io::Result<()> {
        let second = self.socket.get_ref().try_clone().and_then(|socket| watched(socket, Interest::WRITABLE));
        if let Ok(socket) = second {
            socket.writable().await.map(drop)
        } else {
            // Without a descriptor left a session is not to end that only has to wait.
            tokio::time::sleep(ROOM_TRIED_EVERY).await;
            Ok(())
        }
    }

    async fn receive(&self) -> io::Result<Received<InitMessage>> {
        self.socket.async_io(Interest::READABLE, |socket| channel::receive(socket.as_fd(), Wait::No).map_err(into_io)).await
    }

    async fn listen(&self) {
        while let Ok(Received { message, descriptors }) = self.receive().await {
            self.take(message, descriptors);
        }
        // An init that lives but can't be understood is of no use to anybody: it ends now, and the session learns it.
        socket::hang_up(self.socket.get_ref().as_fd());
        // Every waiter learns by its sender's end that the sandbox is gone.
        self.waiters.lock().unwrap_or_else(PoisonError::into_inner).take();
    }

    fn take(&self, message: InitMessage, mut descriptors: Vec<OwnedFd>) {
        let mut guard = self.waiters.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(waiters) = guard.as_mut() else { return };
        match message {
            InitMessage::Ended { execution, end } => {
                if let Some(Waiter::Program { end: waiter, .. }) = waiters.remove(&execution) {
                    waiter.send(end).ok();
                }
            }
            InitMessage::Blocked { execution, number } => {
                if let Some(Waiter::Program { blocked, .. }) = waiters.get(&execution) {
                    blocked.try_send(number).ok();
                }
            }
            InitMessage::FileDone(tag, result) => {
                let waiter = waiters.remove(&tag);
                // Large contents take a while to read.
                drop(guard);
                if let Some(Waiter::File(waiter)) = waiter {
                    waiter.send(result.and_then(|reply| files::whole(reply, descriptors.pop()))).ok();
                }
            }
            InitMessage::Quota(tag, result) => {
                if let Some(Waiter::Quota(waiter)) = waiters.remove(&tag) {
                    let context = result.and_then(|()| descriptors.pop().ok_or(libc::EBADF));
                    waiter.send(context).ok();
                }
            }
            InitMessage::Warmed(state) => {
                warmed(state);
                if let Some(Waiter::Warm(waiter)) = waiters.remove(&WARM) {
                    waiter.send(()).ok();
                }
            }
            // Said once, before anybody listened.
            InitMessage::Ready | InitMessage::Failed(_) => {}
        }
    }
}

#[expect(deprecated, reason = "sound for an OwnedFd, which stays open and the same; its successor is an unsafe function")]
pub(super) fn watched(socket: OwnedFd, interest: Interest) -> io::Result<AsyncFd<OwnedFd>> {
    AsyncFd::with_interest(socket, interest)
}

/// What an init is asked to have ready.
#[derive(Debug)]
pub enum Keep {
    /// An interpreter that forks for each program.
    Interpreter(Box<WarmRequest>),
    /// A program that waits for its source, with its standard input, output and error.
    Prestarted(Box<PrestartRequest>, [OwnedFd; 3]),
}

/// Counts warm interpreters. Init is not believed: what it says of memory is shown, and decides nothing.
fn warmed(state: Option<u64>) {
    let outcome = if state.is_some() { "ready" } else { "given_up" };
    metrics::counter!("codebeaker_warm_interpreters_total", "outcome" => outcome).increment(1);
    if let Some(bytes) = state {
        metrics::gauge!("codebeaker_warm_interpreter_bytes").set(bytes as f64);
    }
}

fn into_io(error: ChannelError) -> io::Error {
    match error {
        ChannelError::Empty | ChannelError::Full => io::ErrorKind::WouldBlock.into(),
        ChannelError::Call(call) => io::Error::from_raw_os_error(call.raw()),
        ChannelError::Carrier(source) => source,
        ChannelError::Closed | ChannelError::Malformed(_) => io::ErrorKind::BrokenPipe.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn requests_that_a_busy_init_has_no_room_for_wait_until_it_has() {
        const COUNT: Tag = 5000;
        let (ours, theirs) = socket::pair().expect("a socket pair");
        rustix::io::ioctl_fionbio(&ours, true).expect("a socket");
        let shared = Shared::new(ours, 1).expect("a reactor");
        let sending = async {
            for execution in 0..COUNT {
                shared.send(&InitRequest::End(execution), &[]).await.expect("it lives");
            }
        };
        tokio::pin!(sending);
        assert!(tokio::time::timeout(Duration::from_millis(50), &mut sending).await.is_err(), "there was room for all");
        let reader = std::thread::spawn(move || {
            (0..COUNT).all(|expected| {
                let received = channel::receive::<InitRequest>(theirs.as_fd(), Wait::Yes);
                matches!(received.map(|received| received.message), Ok(InitRequest::End(execution)) if execution == expected)
            })
        });
        tokio::time::timeout(Duration::from_secs(30), sending).await.expect("there is room again");
        assert!(reader.join().expect("no panic"), "each came once, in order");
    }
}
