//! The process that unpacks: `codebeaker unpack`, executed afresh for one import, with a socket to its parent as descriptor 0.
//!
//! Invariant: before the first byte of the source is read every wall of `confine` stands, or the import ends; it ends with its
//! parent, and what it says is only ever data to that parent.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use serde::{Deserialize, Serialize};

use super::parent::Places;
use super::{Job, Unpacked};
use crate::image::confine::{self, Confined};
use crate::image::{ImageError, Progress};
use crate::sys::channel::{self, ChannelError};
use crate::sys::process;
use crate::sys::socket::Wait;

/// From the parent, after [`Job`].
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Mapped;

/// To the parent.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Message {
    /// In namespaces of its own, waiting for [`Mapped`].
    Unshared,
    /// All walls stand; how far Landlock does.
    Confined(Confined),
    /// It goes on.
    Progress(Progress),
    /// It is through.
    Done(Box<Unpacked>),
    /// It is not.
    Failed(ImageError),
}

/// Runs until the image is unpacked or the parent is gone.
pub fn main() -> u8 {
    let started = process::adopt_descriptor(0).and_then(|socket| process::close_from(3).map(|()| socket));
    let Ok(socket) = started else {
        eprintln!("error: `codebeaker unpack` is started by an import, with its socket as descriptor 0");
        return 2;
    };
    match serve(socket.as_fd(), confine::confine_process) {
        Ok(()) => 0,
        Err(error) => {
            eprintln!("error: the unpacking process ended: {error}");
            1
        }
    }
}

/// One job over `socket`; `confine` builds the walls around it.
pub(super) fn serve(
    socket: BorrowedFd<'_>,
    confine: impl FnOnce(&mut Places, &Job, confine::Maps<'_>) -> Result<Confined, ImageError>,
) -> Result<(), ChannelError> {
    let received = channel::receive::<Job>(socket, Wait::Yes)?;
    let job = received.message;
    let Ok([work, source, lock]) = <[OwnedFd; 3]>::try_from(received.descriptors) else {
        return Err(ChannelError::Malformed("its descriptors are missing"));
    };
    let mut places = Places { work: File::from(work), source, lock };
    let mut maps = || {
        channel::send(socket, &Message::Unshared, &[])?;
        channel::receive::<Mapped>(socket, Wait::Yes).map(|_| ())
    };
    let outcome = confine(&mut places, &job, &mut maps).and_then(|confined| {
        tell(socket, &Message::Confined(confined))?;
        // The lock is held to the end: what is being filled belongs to somebody as long as this process lives.
        let Places { work, source, lock: _lock } = places;
        super::unpack(&work.into(), source, &job, &mut |at| tell(socket, &Message::Progress(at)))
    });
    let last = match outcome {
        Ok(unpacked) => Message::Done(Box::new(unpacked)),
        Err(error) => Message::Failed(error),
    };
    channel::send(socket, &last, &[])
}

/// A parent that is gone wants nothing any more.
fn tell(socket: BorrowedFd<'_>, message: &Message) -> Result<(), ImageError> {
    channel::send(socket, message, &[]).map_err(|_| ImageError::Cancelled)
}
