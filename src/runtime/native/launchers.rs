//! The launcher in use, and the thread that puts another in its place when it ends.
//!
//! Invariant: a new launcher is published only when no process of an earlier one's sandboxes lives and what they held on the
//! host is free; what can't be proven free is never used again. The server adopts its descendants (`PR_SET_CHILD_SUBREAPER`),
//! so an init whose launcher ended is a child of ours, and so is a helper that it was waiting for (newuidmap): they are killed
//! and waited for by a pid that can't be another's. The end of an init is the end of its pid namespace.

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
use crate::sys::memory;
use crate::sys::process::{self, Reaped};

use super::launcher::LauncherClient;
use super::reaper::Reaper;

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
        let reaper = Arc::new(Reaper::start());
        let (client, child) = LauncherClient::start(binary.as_fd(), Arc::clone(&reaper))?;
        client.at_end(&at_end);
        let (publish, current) = watch::channel(Some(Arc::clone(&client)));
        let ending = Arc::new(AtomicBool::new(false));
        let (alive, over) = mpsc::channel();
        let keeper = Keeper { binary, reaper, at_end, publish, ending: Arc::clone(&ending), _alive: alive };
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
    reaper: Arc<Reaper>,
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
            client.release(end_adopted(child.id()));
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
            match LauncherClient::start(self.binary.as_fd(), Arc::clone(&self.reaper)) {
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

/// Kills and reaps everything that became ours by the end of this launcher, which has been reaped itself.
fn end_adopted(launcher: u32) -> Proof {
    let deadline = Instant::now() + CLEAR_TIME;
    loop {
        // A killed one's own children are ours from then on: only a look that finds nobody is the last.
        match adopted(launcher) {
            Ok(pids) if pids.is_empty() => return Proof::AllEnded,
            Ok(pids) if Instant::now() > deadline => {
                tracing::error!(living = pids.len(), "processes of a launcher that is gone do not end");
                return Proof::Unknown;
            }
            Ok(pids) => {
                if pids.into_iter().filter(|pid| !ended(*pid)).count() > 0 {
                    thread::sleep(LOOK_PAUSE);
                }
            }
            Err(error) => {
                tracing::error!(%error, "the processes of a launcher that is gone can't be found in /proc");
                return Proof::Unknown;
            }
        }
    }
}

/// Kills one child and reaps it if it has ended.
fn ended(pid: i32) -> bool {
    // A child that is not reaped keeps its number, so no stranger is hit; one that has ended takes no harm. One that can't be
    // killed may end by itself.
    process::kill(pid, libc::SIGKILL).ok();
    match process::reap(pid) {
        Ok(Reaped::Ended(_) | Reaped::NoChild) => true,
        Ok(Reaped::StillRunning) | Err(_) => false,
    }
}

/// Children of this process that were below the launcher. Other children of ours are in our own session and namespace.
fn adopted(launcher: u32) -> io::Result<Vec<i32>> {
    let (own, launcher) = (std::process::id().to_string(), launcher.to_string());
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let Some(pid) = entry?.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        // One that ends meanwhile is nobody's child any more.
        let Ok(status) = fs::read_to_string(format!("/proc/{pid}/status")) else { continue };
        if was_below(&status, &launcher, &own) {
            found.push(pid);
        }
    }
    Ok(found)
}

/// Whether a `/proc/PID/status` speaks of a child of `parent` that is an init, with a number in a namespace of its own as well, or
/// in the session (setsid(2)) that `launcher` leads. While a session has a member its number is nobody else's.
fn was_below(status: &str, launcher: &str, parent: &str) -> bool {
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default().trim();
    let is_init = || field("NSpid:").split_whitespace().count() > 1;
    let in_session = || field("NSsid:").split_whitespace().next() == Some(launcher);
    field("PPid:") == parent && (is_init() || in_session())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_init_is_told_from_a_launcher_and_from_another_ones_init() {
        let status =
            |parent: &str, numbers: &str| format!("Name:\tinit\nPPid:\t{parent}\nNSpid:\t{numbers}\nNSsid:\t1\nTgid:\t9\n");
        assert!(was_below(&status("7", "9\t1"), "8", "7"));
        assert!(!was_below(&status("7", "9"), "8", "7"), "it lives in our own pid namespace");
        assert!(!was_below(&status("77", "9\t1"), "8", "7"), "it is somebody else's child");
    }

    #[test]
    fn a_helper_is_told_by_the_session_of_its_launcher() {
        let status = |session: &str| format!("Name:\tnewuidmap\nPPid:\t7\nNSpid:\t9\nNSsid:\t{session}\n");
        assert!(was_below(&status("8"), "8", "7"));
        assert!(!was_below(&status("88"), "8", "7"), "another session");
        assert!(!was_below(&status("8"), "8", "77"), "somebody else's child");
    }

    #[test]
    fn a_child_in_our_own_pid_namespace_is_left_alone() {
        let mut child = std::process::Command::new("sleep").arg("30").spawn().expect("sleep starts");
        assert!(!adopted(child.id()).expect("/proc is mounted").contains(&child.id().cast_signed()));
        child.kill().expect("the test's own child");
        child.wait().expect("the test's own child");
    }

    #[test]
    fn a_child_in_the_session_of_a_launcher_is_ended_and_reaped() {
        // It leads the session that it is in, as if a launcher had that number.
        let mut child = std::process::Command::new("setsid").args(["sleep", "30"]).spawn().expect("setsid starts");
        let pid = child.id().cast_signed();
        // Until it has called setsid(2) it is in ours.
        while !adopted(child.id()).expect("/proc is mounted").contains(&pid) {
            thread::sleep(LOOK_PAUSE);
        }
        while !ended(pid) {
            thread::sleep(LOOK_PAUSE);
        }
        assert!(child.wait().is_err(), "it was waited for");
    }
}
