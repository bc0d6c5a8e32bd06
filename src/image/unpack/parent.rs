//! The importing side of the unpacking process: starts it, maps its ids, hears it out.
//!
//! Invariant: the process is gone when [`run`] returns, whatever happened; what it says is bounded and only ever data.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::worker::{Mapped, Message};
use super::{Job, Unpacked};
use crate::image::{ImageError, Progress};
use crate::sys::channel::{self, ChannelError};
use crate::sys::socket::{self, Wait};

/// How long a cancelled import may go unnoticed.
const CANCEL_POLL_NS: i64 = 50_000_000;

/// What the process works on.
#[derive(Debug)]
pub(in crate::image) struct Places {
    /// The directory that holds `root`.
    pub(in crate::image) work: File,
    /// What is imported.
    pub(in crate::image) source: OwnedFd,
    /// The lock on the staging directory.
    pub(in crate::image) lock: OwnedFd,
}

/// Carries out one job; `progress` is called now and then.
pub(in crate::image) fn run(
    job: &Job,
    places: &Places,
    cancel: &AtomicBool,
    progress: &mut dyn FnMut(Progress),
) -> Result<Unpacked, ImageError> {
    let (ours, theirs) = socket::pair().map_err(|error| ImageError::WorkerLost { cause: error.to_string() })?;
    let mut process = Process::start(theirs)?;
    let outcome = hear(&ours, &process, (job, places), cancel, progress);
    drop(ours);
    let ended = process.end();
    outcome.map_err(|error| match error {
        ImageError::WorkerLost { cause } => ImageError::WorkerLost { cause: format!("{cause}; {ended}") },
        other => other,
    })
}

fn lost(error: &ChannelError) -> ImageError {
    ImageError::WorkerLost { cause: error.to_string() }
}

fn hear(
    socket: &OwnedFd,
    process: &Process,
    (job, places): (&Job, &Places),
    cancel: &AtomicBool,
    progress: &mut dyn FnMut(Progress),
) -> Result<Unpacked, ImageError> {
    let descriptors = [places.work.as_fd(), places.source.as_fd(), places.lock.as_fd()];
    channel::send(socket.as_fd(), job, &descriptors).map_err(|error| lost(&error))?;
    loop {
        if cancel.load(Ordering::Relaxed) {
            return Err(ImageError::Cancelled);
        }
        if !readable(socket.as_fd())? {
            continue;
        }
        match channel::receive::<Message>(socket.as_fd(), Wait::Yes).map_err(|error| lost(&error))?.message {
            Message::Unshared => {
                process.map_ids()?;
                channel::send(socket.as_fd(), &Mapped, &[]).map_err(|error| lost(&error))?;
            }
            Message::Confined(confined) => {
                tracing::debug!(?confined, "the unpacking process is confined");
                if !confined.landlock {
                    tracing::warn!("this kernel has no Landlock: the import is confined by namespaces and seccomp alone");
                }
            }
            Message::Progress(at) => progress(at),
            Message::Done(unpacked) => return Ok(*unpacked),
            Message::Failed(error) => return Err(error),
        }
    }
}

fn readable(socket: BorrowedFd<'_>) -> Result<bool, ImageError> {
    let pause = Timespec { tv_sec: 0, tv_nsec: CANCEL_POLL_NS };
    match poll(&mut [PollFd::new(&socket, PollFlags::IN)], Some(&pause)) {
        Ok(ready) => Ok(ready > 0),
        Err(rustix::io::Errno::INTR) => Ok(false),
        Err(errno) => Err(ImageError::WorkerLost { cause: errno.to_string() }),
    }
}

/// The unpacking process. Killed when dropped.
#[cfg(not(test))]
struct Process(std::process::Child);

#[cfg(not(test))]
impl Process {
    /// This binary again, by what it is and not by its path, with nothing of this process but the socket.
    fn start(socket: OwnedFd) -> Result<Self, ImageError> {
        use std::os::unix::process::CommandExt;
        use std::process::{Command, Stdio};
        let mut command = Command::new("/proc/self/exe");
        command.arg0("codebeaker").arg("unpack").env_clear().stdin(socket).stdout(Stdio::null());
        // Ctrl-C is for the importing process, which tells this one.
        command.process_group(0);
        command.spawn().map(Self).map_err(ImageError::io("starting", "/proc/self/exe"))
    }

    /// Ids of the image are ids on disk. Without privilege all of them are the caller's one id.
    fn map_ids(&self) -> Result<(), ImageError> {
        let wall = |file: &str| {
            let step = format!("writing {file}");
            move |error: std::io::Error| ImageError::Confine { step: step.into(), cause: error.to_string() }
        };
        let write =
            |file: &str, text: String| std::fs::write(format!("/proc/{}/{file}", self.0.id()), text).map_err(wall(file));
        let root = rustix::process::geteuid().is_root();
        if !root {
            write("setgroups", "deny".into())?;
        }
        let own = [rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw()];
        for (file, own) in ["uid_map", "gid_map"].into_iter().zip(own) {
            let all = std::fs::read_to_string(format!("/proc/self/{file}")).map_err(wall(file))?;
            write(file, if root { identity(&all) } else { format!("0 {own} 1\n") })?;
        }
        Ok(())
    }

    /// Ends it if it has not ended; tells how it did.
    fn end(&mut self) -> String {
        // One that has ended already can't be killed, which is what is wanted.
        self.0.kill().ok();
        self.0.wait().map_or_else(|error| error.to_string(), |status| status.to_string())
    }
}

#[cfg(not(test))]
impl Drop for Process {
    fn drop(&mut self) {
        self.end();
    }
}

/// Every id that this process knows, as itself.
#[cfg(not(test))]
fn identity(map: &str) -> String {
    let line = |line: &str| {
        let mut words = line.split_whitespace();
        let (inside, _, count) = (words.next()?, words.next()?, words.next()?);
        Some(format!("{inside} {inside} {count}\n"))
    };
    map.lines().filter_map(line).collect()
}

/// In the tests of this crate the binary is the test harness: the same work on a thread, without walls. The suite tests those.
#[cfg(test)]
struct Process(Option<std::thread::JoinHandle<()>>);

#[cfg(test)]
impl Process {
    #[expect(clippy::unnecessary_wraps, reason = "the shape of the real one")]
    fn start(socket: OwnedFd) -> Result<Self, ImageError> {
        let work = move || {
            let unconfined = crate::image::confine::Confined { landlock: true };
            super::worker::serve(socket.as_fd(), |_, _, _| Ok(unconfined)).ok();
        };
        Ok(Self(Some(std::thread::spawn(work))))
    }

    #[expect(clippy::unused_self, clippy::unnecessary_wraps, reason = "the shape of the real one")]
    fn map_ids(&self) -> Result<(), ImageError> {
        Ok(())
    }

    fn end(&mut self) -> String {
        let ended = self.0.take().map(std::thread::JoinHandle::join);
        format!("{ended:?}")
    }
}
