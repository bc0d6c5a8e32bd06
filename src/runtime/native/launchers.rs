//! The launcher in use, and the thread that puts another in its place when it ends.
//!
//! Invariant: a new launcher is published only when no process of an earlier one's sandboxes lives and what they held on the
//! host is free; what can't be proven free is never used again. The server adopts its descendants (`PR_SET_CHILD_SUBREAPER`),
//! so an init whose launcher ended is a child of ours: it is killed and waited for by a pid that can't be another's. The end of
//! an init is the end of its pid namespace.

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::process::Child;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use tokio::sync::watch;

use crate::plan::messages::WayBack;
use crate::sys::process::{self, Reaped};
use crate::sys::{CallError, memory};

use super::launcher::LauncherClient;

/// Between two tries to start a launcher, and after one that ended: a broken host must not make this a busy loop.
const RESTART_PAUSE: Duration = Duration::from_millis(200);

/// How long the sandboxes of a launcher that ended may take to end; killed processes that hold much memory are slow.
const CLEAR_TIME: Duration = Duration::from_secs(10);

/// Between two looks at what still has to end.
const LOOK_PAUSE: Duration = Duration::from_millis(5);

/// How long the last launcher may take to end its sandboxes and remove the groups.
const END_TIME: Duration = Duration::from_secs(10);

type Current = Option<Arc<LauncherClient>>;

/// The server's own groups when nobody needs them any more.
pub struct AtEnd {
    /// Directories that go, deepest first.
    pub directories: Vec<String>,
    /// From the leaf that server and launcher stand in, when they had to step aside.
    pub way_back: Option<WayBack>,
}

/// The launcher, whichever it is at the moment.
pub struct Launchers {
    current: watch::Receiver<Current>,
    ending: Arc<AtomicBool>,
    /// Closes when the keeper is through.
    over: Mutex<mpsc::Receiver<()>>,
}

impl Launchers {
    /// Starts the first launcher from a sealed copy of this binary. `at_end`: what goes when the server is gone.
    pub fn start(at_end: AtEnd) -> io::Result<Self> {
        let binary = memory::sealed_copy_of_self()?;
        process::adopt_orphans().map_err(|error| io::Error::from_raw_os_error(error.raw()))?;
        let (client, child) = LauncherClient::start(binary.as_fd())?;
        client.at_end(&at_end);
        let (publish, current) = watch::channel(Some(Arc::clone(&client)));
        let ending = Arc::new(AtomicBool::new(false));
        let (alive, over) = mpsc::channel();
        let keeper = Keeper { binary, at_end, publish, ending: Arc::clone(&ending), _alive: alive };
        thread::Builder::new().name("launcher-socket".into()).spawn(move || keeper.keep(client, child))?;
        Ok(Self { current, ending, over: Mutex::new(over) })
    }

    /// The launcher; waits while another is being started. None when there will be none.
    pub async fn current(&self) -> Option<Arc<LauncherClient>> {
        self.current.clone().wait_for(Option::is_some).await.ok()?.clone()
    }

    /// Ends the launcher, every sandbox with it, and waits until it has cleaned up; there will be no other. False when that
    /// takes too long.
    pub fn end(&self) -> bool {
        self.ending.store(true, Ordering::SeqCst);
        if let Some(client) = self.current.borrow().as_ref() {
            client.hang_up();
        }
        let over = self.over.lock().unwrap_or_else(PoisonError::into_inner);
        over.recv_timeout(END_TIME) == Err(mpsc::RecvTimeoutError::Disconnected)
    }
}

struct Keeper {
    binary: OwnedFd,
    at_end: AtEnd,
    publish: watch::Sender<Current>,
    ending: Arc<AtomicBool>,
    _alive: mpsc::Sender<()>,
}

impl Keeper {
    /// Listens to one launcher after another until the runtime is gone.
    fn keep(&self, mut client: Arc<LauncherClient>, mut child: Child) {
        loop {
            client.listen();
            self.publish.send_replace(None);
            if !self.is_over() {
                // One that lives but can't be understood ends now, and every sandbox with it. The end of its socket would tell
                // it that the server is gone, and it would remove the server's groups.
                child.kill().ok();
            }
            match child.wait() {
                Ok(status) if self.is_over() && status.success() => {}
                Ok(status) => tracing::error!(%status, "the launcher ended, and every sandbox with it; another is started"),
                Err(error) => tracing::error!(%error, "the launcher ended and could not be reaped; another is started"),
            }
            client.release(end_adopted());
            if self.is_over() {
                return;
            }
            metrics::counter!("codebeaker_launcher_restarts_total").increment(1);
            thread::sleep(RESTART_PAUSE);
            let Some(next) = self.restart() else { return };
            (client, child) = next;
            client.at_end(&self.at_end);
            self.publish.send_replace(Some(Arc::clone(&client)));
            if self.is_over() {
                // Whoever ends us may have looked before this launcher was published.
                client.hang_up();
            }
        }
    }

    fn is_over(&self) -> bool {
        self.ending.load(Ordering::SeqCst) || self.publish.is_closed()
    }

    fn restart(&self) -> Option<(Arc<LauncherClient>, Child)> {
        while !self.is_over() {
            match LauncherClient::start(self.binary.as_fd()) {
                Ok(started) => return Some(started),
                Err(error) => tracing::error!(%error, "a new launcher could not be started; it is tried again"),
            }
            thread::sleep(RESTART_PAUSE);
        }
        None
    }
}

/// Whether anything of the sandboxes of a launcher that is gone may still live.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Proof {
    /// Nothing does.
    AllEnded,
    /// It could not be found out, or something does not end.
    Unknown,
}

/// Kills and reaps every sandbox that became ours.
fn end_adopted() -> Proof {
    let deadline = Instant::now() + CLEAR_TIME;
    loop {
        match adopted().map(|pids| pids.into_iter().filter(|pid| !ended(*pid)).count()) {
            Ok(0) => return Proof::AllEnded,
            Ok(living) if Instant::now() > deadline => {
                tracing::error!(living, "sandboxes of a launcher that is gone do not end");
                return Proof::Unknown;
            }
            Ok(_) => thread::sleep(LOOK_PAUSE),
            Err(error) => {
                tracing::error!(%error, "the sandboxes of a launcher that is gone can't be found in /proc");
                return Proof::Unknown;
            }
        }
    }
}

/// Kills one child and reaps it if it has ended.
fn ended(pid: i32) -> bool {
    // A child that is not reaped keeps its number, so no stranger is hit; one that has ended takes no harm.
    let reaped = process::kill(pid, libc::SIGKILL).and_then(|()| process::reap(pid));
    match reaped {
        Ok(Reaped::Ended(_) | Reaped::NoChild) => true,
        Ok(Reaped::StillRunning) => false,
        Err(CallError { errno, .. }) => errno == rustix::io::Errno::SRCH,
    }
}

/// Children of this process that are the first process of a pid namespace below ours: inits. A launcher is not among them.
fn adopted() -> io::Result<Vec<i32>> {
    let own = std::process::id().to_string();
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let Some(pid) = entry?.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        // One that ends meanwhile is nobody's child any more.
        let Ok(status) = fs::read_to_string(format!("/proc/{pid}/status")) else { continue };
        if is_init_of(&status, &own) {
            found.push(pid);
        }
    }
    Ok(found)
}

/// Whether a `/proc/PID/status` speaks of a child of `parent` that has a number in a namespace of its own as well.
fn is_init_of(status: &str, parent: &str) -> bool {
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default().trim();
    field("PPid:") == parent && field("NSpid:").split_whitespace().count() > 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_init_is_told_from_a_launcher_and_from_another_ones_init() {
        let status = |parent: &str, numbers: &str| format!("Name:\tinit\nPPid:\t{parent}\nNSpid:\t{numbers}\nTgid:\t9\n");
        assert!(is_init_of(&status("7", "9\t1"), "7"));
        assert!(!is_init_of(&status("7", "9"), "7"), "it lives in our own pid namespace");
        assert!(!is_init_of(&status("77", "9\t1"), "7"), "it is somebody else's child");
    }

    #[test]
    fn a_child_in_our_own_pid_namespace_is_left_alone() {
        let mut child = std::process::Command::new("sleep").arg("30").spawn().expect("sleep starts");
        assert!(!adopted().expect("/proc is mounted").contains(&child.id().cast_signed()));
        child.kill().expect("the test's own child");
        child.wait().expect("the test's own child");
    }
}
