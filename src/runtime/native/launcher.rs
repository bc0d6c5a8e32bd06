//! The server's side of the launcher's socket.
//!
//! Invariant: what a sandbox needs on the host (its uid range, its image) is held here until the launcher says that no
//! process of it lives, or until that is proven after the launcher's own end. Read `launchers` for the latter.

use std::any::Any;
use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::process::Child;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{oneshot, watch};

use crate::plan::messages::{CreateRequest, LauncherMessage, LauncherRequest, SERVER_SOCKET, Tag};
use crate::plan::{Plan, StepFailure};
use crate::sandbox::cgroups::remove_directories;
use crate::sys::channel::{self, ChannelError};
use crate::sys::process;
use crate::sys::socket::{self, Wait};

use super::launchers::{AtEnd, Proof};

/// What a sandbox holds on the host besides its processes.
pub type Held = Box<dyn Any + Send>;

/// Why a sandbox was not made.
#[derive(Debug)]
pub enum CreateFailure {
    /// A step failed.
    Step(StepFailure),
    /// Its control socket did not come through: here or at the launcher there was no descriptor left.
    ControlLost,
    /// The launcher is gone.
    LauncherGone,
}

struct Waiter {
    created: Option<oneshot::Sender<Result<OwnedFd, StepFailure>>>,
    gone: watch::Sender<Option<i32>>,
    cgroups: Vec<PathBuf>,
    held: Held,
}

/// A sandbox that the launcher has made.
pub struct Launched {
    /// Its number.
    pub tag: Tag,
    /// The control socket of its init.
    pub control: OwnedFd,
    /// Becomes the wait status of its init when no process of it lives.
    pub gone: watch::Receiver<Option<i32>>,
}

/// The launcher process.
pub struct LauncherClient {
    socket: OwnedFd,
    waiters: Mutex<Option<HashMap<Tag, Waiter>>>,
    next: AtomicU64,
}

impl LauncherClient {
    /// Starts a launcher from a sealed copy of this binary. Whoever calls must [`Self::listen`].
    pub fn start(binary: BorrowedFd<'_>) -> std::io::Result<(Arc<Self>, Child)> {
        let to_io = |error: crate::sys::CallError| std::io::Error::from_raw_os_error(error.raw());
        let (ours, theirs) = socket::pair().map_err(to_io)?;
        let child = process::spawn_launcher(binary, theirs.as_fd(), SERVER_SOCKET)?;
        let waiters = Mutex::new(Some(HashMap::new()));
        Ok((Arc::new(Self { socket: ours, waiters, next: AtomicU64::new(1) }), child))
    }

    /// Asks for a sandbox. `held` is dropped when no process of it lives, or at once when it can't be made.
    pub async fn create(&self, plan: Plan, cgroups: Vec<String>, held: Held) -> Result<Launched, CreateFailure> {
        let tag = self.next.fetch_add(1, Ordering::Relaxed);
        let (created, answer) = oneshot::channel();
        let (gone, watcher) = watch::channel(None);
        match self.waiters.lock().unwrap_or_else(PoisonError::into_inner).as_mut() {
            Some(waiters) => {
                let cgroups = cgroups.iter().map(PathBuf::from).collect();
                waiters.insert(tag, Waiter { created: Some(created), gone, cgroups, held });
            }
            None => return Err(CreateFailure::LauncherGone),
        }
        let abandoned = Abandoned { client: self, tag: Some(tag) };
        let request = LauncherRequest::Create(Box::new(CreateRequest { sandbox: tag, plan, cgroups }));
        self.send(&request).map_err(|_| CreateFailure::LauncherGone)?;
        match answer.await {
            Ok(Ok(control)) => {
                abandoned.keep();
                Ok(Launched { tag, control, gone: watcher })
            }
            Ok(Err(failure)) => Err(CreateFailure::Step(failure)),
            Err(_) if self.is_alive() => Err(CreateFailure::ControlLost),
            Err(_) => Err(CreateFailure::LauncherGone),
        }
    }

    /// False once the launcher is gone.
    pub fn is_alive(&self) -> bool {
        self.waiters.lock().unwrap_or_else(PoisonError::into_inner).is_some()
    }

    /// What the launcher does when the server is gone, however it went.
    pub fn at_end(&self, at_end: &AtEnd) {
        self.send(&LauncherRequest::RemoveAtEnd(at_end.directories.clone())).ok();
        if let Some(way_back) = at_end.way_back.clone() {
            self.send(&LauncherRequest::StepBackAtEnd(way_back)).ok();
        }
    }

    /// Ends a sandbox; `Launched::gone` tells when it is over.
    pub fn end(&self, tag: Tag) {
        // A launcher that is gone has taken the sandbox with it.
        self.send(&LauncherRequest::End(tag)).ok();
    }

    fn send(&self, request: &LauncherRequest) -> Result<(), ChannelError> {
        channel::send(self.socket.as_fd(), request, &[])
    }

    /// Takes what the launcher says until its socket closes.
    pub fn listen(&self) {
        while let Ok(received) = channel::receive::<LauncherMessage>(self.socket.as_fd(), Wait::Yes) {
            self.take(received.message, received.descriptors);
        }
        // A launcher that lives but can't be understood ends now, and every sandbox with it.
        socket::hang_up(self.socket.as_fd());
    }

    /// After the launcher's end: everybody who waits learns it by its sender's end, and what the sandboxes held is free as far
    /// as `proof` goes.
    pub fn release(&self, proof: Proof) {
        let waiters = self.waiters.lock().unwrap_or_else(PoisonError::into_inner).take().unwrap_or_default();
        for Waiter { created, gone, cgroups, held } in waiters.into_values() {
            match proof {
                Proof::AllEnded => {
                    if let Err(error) = remove_directories(&cgroups) {
                        tracing::warn!(error = &error as &dyn std::error::Error, "a control group stays behind");
                    }
                    drop(held);
                }
                // A uid range that a process may still have must not be given to another session.
                Proof::Unknown => std::mem::forget(held),
            }
            drop((created, gone));
        }
    }

    fn take(&self, message: LauncherMessage, mut descriptors: Vec<OwnedFd>) {
        let mut guard = self.waiters.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(waiters) = guard.as_mut() else { return };
        match message {
            LauncherMessage::Created(tag) => {
                let Some(created) = waiters.get_mut(&tag).and_then(|waiter| waiter.created.take()) else { return };
                if let Some(control) = descriptors.pop() {
                    // When nobody waits any more, `Abandoned` has asked for its end; the socket closes here.
                    created.send(Ok(control)).ok();
                }
            }
            LauncherMessage::Lost(tag) => {
                if let Some(waiter) = waiters.get_mut(&tag) {
                    waiter.created.take();
                }
            }
            LauncherMessage::Refused(tag, failure) => {
                if let Some(created) = waiters.remove(&tag).and_then(|waiter| waiter.created) {
                    created.send(Err(failure)).ok();
                }
            }
            LauncherMessage::Gone { sandbox, status } => {
                if let Some(Waiter { gone, held, .. }) = waiters.remove(&sandbox) {
                    drop(held);
                    gone.send_replace(Some(status));
                }
            }
        }
    }
}

/// A create whose caller went away before the answer, or could not take it: the sandbox must not stay.
struct Abandoned<'a> {
    client: &'a LauncherClient,
    tag: Option<Tag>,
}

impl Abandoned<'_> {
    fn keep(mut self) {
        self.tag = None;
    }
}

impl Drop for Abandoned<'_> {
    fn drop(&mut self) {
        if let Some(tag) = self.tag {
            self.client.end(tag);
        }
    }
}
