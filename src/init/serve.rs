//! Init's loop: waits for requests and for children, never polls, never waits for a program.
//!
//! Invariant: `Ended` is sent once for each execution that was asked for, and only when no descendant of it lives.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::{PollFd, PollFlags};

use crate::plan::Plan;
use crate::plan::files::{FileCommand, FileError, FileErrorKind, FileReply};
use crate::plan::messages::{InitMessage, InitRequest, Tag};
use crate::sys::channel::{self, ChannelError};
use crate::sys::error::Named;
use crate::sys::socket::Wait;
use crate::sys::start::Stack;
use crate::sys::{CallError, credentials, mount, process};

use super::door;
use super::files::{self, FileBounds, FileContext};
use super::program;
use super::reaper::{Reaper, Running};
use super::steps::Built;

/// Where relative paths start.
const WORKSPACE: &str = "/workspace";

/// Everything that serving takes and that can fail: a sandbox that could not serve must not be called ready.
pub fn prepare<'a>(plan: &'a Plan, built: Built, control: BorrowedFd<'a>) -> Result<(Init<'a>, OwnedFd), CallError> {
    let children = process::child_signals()?;
    let root = rustix::io::fcntl_dupfd_cloexec(&built.root, 0).named("fcntl(F_DUPFD_CLOEXEC)")?;
    let context = FileContext { root, working_directory: WORKSPACE.into(), bounds: FileBounds::default() };
    Ok((Init { plan, control, context, built, reaper: Reaper::default(), stack: Stack::new()? }, children))
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
    }
}

/// What one turn has to do.
struct Ready {
    request: bool,
    child: bool,
}

/// An init whose walls stand.
pub struct Init<'a> {
    plan: &'a Plan,
    control: BorrowedFd<'a>,
    context: FileContext,
    built: Built,
    reaper: Reaper,
    /// Of programs until they execute.
    stack: Stack,
}

impl Init<'_> {
    /// Waits until something is to be done; what programs have to say is heard here, one word of each a turn, so that none of them
    /// keeps requests or the ends of others waiting.
    fn wait(&mut self, children: BorrowedFd<'_>) -> Result<Ready, ChannelError> {
        let own = [self.control, children];
        let mut waits: Vec<PollFd<'_>> =
            own.into_iter().chain(self.reaper.waits_on()).map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)).collect();
        match rustix::event::poll(&mut waits, None) {
            Ok(_) => {}
            Err(errno) if process::interrupted(errno) => return Ok(Ready { request: false, child: false }),
            Err(errno) => return Err(CallError { call: "poll", errno }.into()),
        }
        let events: Vec<PollFlags> = waits.iter().map(PollFd::revents).collect();
        for (execution, number) in self.reaper.hear(events[own.len()..].iter().copied()) {
            self.send(&InitMessage::Blocked { execution, number })?;
        }
        Ok(Ready { request: !events[0].is_empty(), child: !events[1].is_empty() })
    }

    fn request(&mut self, request: InitRequest, descriptors: Vec<OwnedFd>) -> Result<(), ChannelError> {
        match request {
            InitRequest::Execute(request) => {
                let execution = request.execution;
                match program::start(self.plan, &self.built, &mut self.stack, &request, descriptors) {
                    Ok(started) => {
                        self.reaper.add(started.pid, Running { execution, watch: started.watch });
                        Ok(())
                    }
                    Err(end) => self.send(&InitMessage::Ended { execution, end }),
                }
            }
            InitRequest::File(tag, command) => self.file(tag, command),
            InitRequest::Signal(execution, signal) => {
                self.reaper.signal(execution, signal);
                Ok(())
            }
            InitRequest::End(execution) => {
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

    fn send(&self, message: &InitMessage) -> Result<(), ChannelError> {
        channel::send(self.control, message, &[])
    }

    fn reap(&mut self) -> Result<(), ChannelError> {
        for (execution, end) in self.reaper.reap(&self.plan.program, &self.built.quotas)? {
            self.send(&InitMessage::Ended { execution, end })?;
        }
        Ok(())
    }

    fn file(&mut self, tag: Tag, command: FileCommand) -> Result<(), ChannelError> {
        let reply = self.as_user(|context| files::run(command, context));
        match self.send(&InitMessage::FileDone(tag, reply)) {
            // A reply too large to carry (the server's memory or ours) is the command's failure, not the sandbox's.
            Err(ChannelError::Carrier(error)) => {
                let errno = error.raw_os_error().unwrap_or(0);
                let error = FileError { kind: FileErrorKind::IoError, operation: "carry the reply".into(), errno };
                self.send(&InitMessage::FileDone(tag, Err(error)))
            }
            sent => sent,
        }
    }

    /// Does `action` with the rights of the session's programs: their fs ids and no effective capability.
    fn as_user(&self, action: impl FnOnce(&FileContext) -> Result<FileReply, FileError>) -> Result<FileReply, FileError> {
        let refused =
            |error: CallError| FileError { kind: FileErrorKind::IoError, operation: error.call.into(), errno: error.raw() };
        let (effective, permitted) = credentials::capabilities().map_err(refused)?;
        credentials::set_file_ids(self.plan.file_uid, self.plan.file_gid).map_err(refused)?;
        let result = credentials::set_capabilities(0, permitted, 0).map_err(refused).and_then(|()| action(&self.context));
        let own = rustix::process::getuid().as_raw();
        let group = rustix::process::getgid().as_raw();
        // Going on with half of the rights back would leave later walls unbuilt: rather end the sandbox.
        let restored = credentials::set_capabilities(effective, permitted, 0)
            .and_then(|()| credentials::set_file_ids(own, group))
            // A change of fs ids disarms the death signal (commit_creds in kernel/cred.c) and the dumpable flag.
            .and_then(|()| process::die_with_parent())
            .and_then(|()| process::hide_from_tracers());
        if restored.is_err() {
            process::exit_now(1);
        }
        result
    }
}
