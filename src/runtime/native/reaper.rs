//! The end of a sandbox as the server brings it about itself, and what of it follows after the answer.
//!
//! Invariant: a sandbox is over when its init is, and the kernel says so only when nobody else lives in its pid namespace. Its file
//! systems may go later: whoever is the last to have its mount namespace waits for the kernel (twice for RCU, and for all that was
//! written), and that is a thread of ours instead of init. Where as many as may wait do so already, it is init.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{self, Sender};

use tokio::io::Interest;

use crate::sys::CallError;
use crate::sys::identity::{self, Identity};
use crate::sys::process;

use super::control::watched;

/// Mount namespaces that may wait. What their sessions wrote is memory of the host meanwhile, and of nobody's limit.
const WAITING_MAX: usize = 8;

/// Lets mount namespaces go. Without a thread it takes none.
#[derive(Debug, Default)]
pub struct Reaper {
    thread: Option<Sender<Mounts>>,
    waiting: Arc<AtomicUsize>,
}

/// A mount namespace whose processes end.
#[derive(Debug)]
struct Mounts {
    _namespace: OwnedFd,
    _turn: Turn,
}

/// One of those that may wait.
#[derive(Debug)]
struct Turn(Arc<AtomicUsize>);

/// An init that was killed. Dropping it is no wait for its end.
#[derive(Debug)]
pub struct Killed {
    pidfd: OwnedFd,
    left: Left,
}

/// What of it goes to the thread in the end.
#[derive(Debug)]
struct Left(Option<(Mounts, Sender<Mounts>)>);

impl Reaper {
    /// Starts the thread, which ends with the last that holds this or [`Killed`].
    pub fn start() -> Self {
        let (sender, waiting) = mpsc::channel::<Mounts>();
        let started = std::thread::Builder::new().name("reaper".into()).spawn(move || waiting.into_iter().for_each(drop));
        Self { thread: started.is_ok().then_some(sender), waiting: Arc::default() }
    }

    /// Kills an init.
    pub fn kill(&self, init: Identity) -> Result<Killed, CallError> {
        let pidfd = init.open()?;
        let left = Left(self.mounts(&pidfd).zip(self.thread.clone()));
        process::kill_pidfd(pidfd.as_fd())?;
        Ok(Killed { pidfd, left })
    }

    fn mounts(&self, init: &OwnedFd) -> Option<Mounts> {
        let turn = Turn::of(&self.waiting)?;
        Some(Mounts { _namespace: identity::mount_namespace(init.as_fd()).ok()?, _turn: turn })
    }
}

impl Turn {
    fn of(waiting: &Arc<AtomicUsize>) -> Option<Self> {
        let granted = waiting.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |now| (now < WAITING_MAX).then_some(now + 1));
        granted.ok()?;
        metrics::gauge!("codebeaker_mounts_leaving").increment(1.0);
        Some(Self(Arc::clone(waiting)))
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
        metrics::gauge!("codebeaker_mounts_leaving").decrement(1.0);
    }
}

impl Killed {
    /// Returns when no process of the sandbox lives. An error says that this can't be learned here.
    pub async fn ended(self) -> io::Result<()> {
        let Self { pidfd, left: _left } = self;
        watched(pidfd, Interest::READABLE)?.readable().await.map(drop)
    }
}

impl Drop for Left {
    fn drop(&mut self) {
        if let Some((mounts, thread)) = self.0.take() {
            thread.send(mounts).ok();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Command};
    use std::time::Duration;

    use super::*;

    /// None where the kernel tells no process from a later one with its number; whoever ends a sandbox then asks the launcher.
    fn sleeper() -> Option<(Child, Identity)> {
        let mut child = Command::new("sleep").arg("30").spawn().expect("sleep starts");
        let pid = child.id().cast_signed();
        let identity = Identity::of(pid, process::open_pidfd(pid).expect("an own child").as_fd());
        if identity.is_none() {
            child.kill().and_then(|()| child.wait()).expect("an own child");
        }
        identity.map(|identity| (child, identity))
    }

    fn waiting(reaper: &Reaper) -> usize {
        reaper.waiting.load(Ordering::Relaxed)
    }

    #[tokio::test]
    async fn what_is_killed_is_over_when_it_has_ended_and_its_mounts_follow() {
        let Some((mut child, identity)) = sleeper() else { return };
        let reaper = Reaper::start();
        let killed = reaper.kill(identity).expect("it lives");
        let has_mounts = killed.left.0.is_some();
        assert_eq!(waiting(&reaper), usize::from(has_mounts));
        killed.ended().await.expect("a pidfd can be watched");
        assert!(child.try_wait().expect("an own child").is_some(), "it has ended");
        let gone = async {
            while waiting(&reaper) > 0 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(5), gone).await.expect("the thread lets them go");
        assert!(reaper.kill(identity).is_err(), "it was reaped");
        assert_eq!(waiting(&reaper), 0);
    }

    #[test]
    fn no_more_mounts_than_may_are_held_and_whatever_is_held_keeps_nothing_alive() {
        let Some((mut child, identity)) = sleeper() else { return };
        let reaper = Reaper::start();
        let turns: Vec<_> = (0..WAITING_MAX).map_while(|_| Turn::of(&reaper.waiting)).collect();
        assert_eq!((turns.len(), waiting(&reaper)), (WAITING_MAX, WAITING_MAX), "the control: so many may");
        let killed = reaper.kill(identity).expect("it lives");
        assert!(killed.left.0.is_none(), "its mounts go with it");
        assert_eq!(waiting(&reaper), WAITING_MAX, "a turn that was not to be had is not counted");
        drop(turns);
        assert_eq!(waiting(&reaper), 0);
        child.wait().expect("an own child");
    }
}
