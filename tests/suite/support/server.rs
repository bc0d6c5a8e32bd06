//! The server fixture: `codebeaker serve` on a port and a state directory of its own, and its end.
//!
//! Invariant: Drop ends only the process that `start` started. Log lines go to a file in the fixture's directory; the last
//! of them stand in the message when the server does not come up. Read `setup` for configurations, `residue` for the checks.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

use super::fixture_user::{binary_for, directory_of};
use super::residue::{self, Tracker};
use super::{Client, Setup, eventually};

/// How long a server may take to listen; a loaded machine is slow, and there is nothing to do but wait.
const START_WAIT: Duration = Duration::from_secs(60);
/// PROTOCOL: what a session leaves on the host is gone within 5 s.
pub const RESIDUE_WAIT: Duration = Duration::from_secs(5);

/// One running server.
pub struct Server {
    child: Mutex<Child>,
    pid: i32,
    /// Where it listens.
    pub address: SocketAddr,
    /// The token of its first start; empty with `--no-auth`.
    pub token: String,
    directory: TempDir,
    tracker: Mutex<Tracker>,
    uid: Option<u32>,
}

impl Server {
    /// Starts a server in a directory of its own and waits until it listens.
    pub fn start(setup: &Setup) -> Self {
        Self::start_in(setup, directory_of(setup.uid))
    }

    /// Starts a server on a directory that an earlier one may have used.
    pub fn start_in(setup: &Setup, directory: TempDir) -> Self {
        let mut child = command(setup, directory.path()).spawn().expect("the binary can be executed");
        residue::started(child.id());
        let pid = child.id().cast_signed();
        let stdout = child.stdout.take().expect("stdout is a pipe");
        let address = listening_line(stdout).unwrap_or_else(|| {
            // It may be alive and silent; this is the very child just started.
            child.kill().ok();
            child.wait().ok();
            panic!("the server never said `listening on`; its log ends: {}", log_tail(directory.path()))
        });
        let token = std::fs::read_to_string(directory.path().join("state/token")).unwrap_or_default().trim().to_owned();
        let tracker = Mutex::default();
        Self { child: Mutex::new(child), pid, address, token, directory, tracker, uid: setup.uid }
    }

    /// A connection as the first principal.
    pub fn client(&self) -> Client {
        let connect = codebeaker_client::Connect::to(self.address);
        let connect = if self.token.is_empty() { connect } else { connect.bearer(&self.token) };
        Client::new(connect.open().unwrap_or_else(|error| panic!("{error}; the log ends: {}", log_tail(self.directory.path()))))
    }

    /// A connection of another token.
    pub fn client_of(&self, token: &str) -> Client {
        Client::new(codebeaker_client::Connect::to(self.address).bearer(token).open().expect("the token is valid"))
    }

    /// Its process number.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// `--state-dir`.
    pub fn state_dir(&self) -> PathBuf {
        self.directory.path().join("state")
    }

    /// A directory of the fixture that the server does not know.
    pub fn outside(&self) -> &Path {
        self.directory.path()
    }

    /// Runs the same binary with this server's state directory, as the server's user.
    pub fn cli(&self, arguments: &[&str]) -> super::cli::Output {
        super::cli::Invocation::new(arguments).state_dir(&self.state_dir()).server(self.address).user(self.uid).run()
    }

    /// Remembers everything that is below the server now.
    pub fn observe(&self) {
        self.tracker.lock().unwrap_or_else(std::sync::PoisonError::into_inner).observe(self.pid);
    }

    /// Waits until nothing of an environment is left, and fails when something stays.
    pub fn expect_no_residue_of(&self, environment: &str) {
        let tracker = self.tracker.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let mut left = Vec::new();
        eventually(RESIDUE_WAIT, || {
            left = tracker.left_of_environment(&self.state_dir(), environment);
            left.is_empty()
        });
        assert!(left.is_empty(), "after close: {}", left.join("; "));
    }

    /// Waits until nothing that was ever observed is left; the sentences say what is.
    pub fn left_after(&self, wait: Duration) -> Vec<String> {
        let tracker = self.tracker.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let mut left = Vec::new();
        eventually(wait, || {
            left = tracker.left(&self.state_dir());
            left.is_empty()
        });
        left
    }

    /// Sends a signal to the server's own process.
    pub fn signal(&self, signal: Signal) {
        self.observe();
        kill(Pid::from_raw(self.pid), signal).expect("the server is the fixture's own child, not yet waited for");
    }

    /// Waits for the end of the server.
    pub fn wait(&self, wait: Duration) -> Option<ExitStatus> {
        let deadline = Instant::now() + wait;
        loop {
            let status = self.child.lock().unwrap_or_else(std::sync::PoisonError::into_inner).try_wait();
            if let Some(status) = status.expect("the child is the fixture's own") {
                return Some(status);
            }
            if Instant::now() > deadline {
                return None;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// SIGTERM, exit 0, nothing left: the sentences say what is not so.
    pub fn end_and_check(self) -> Vec<String> {
        let name = self.directory.path().display().to_string();
        if self.wait(Duration::ZERO).is_some() {
            return vec![format!("the server of {name} had ended before: {}", log_tail(self.directory.path()))];
        }
        self.signal(Signal::SIGTERM);
        let mut left = match self.wait(Duration::from_secs(30)) {
            None => vec!["the server does not end after SIGTERM".to_owned()],
            Some(status) if status.success() => Vec::new(),
            Some(status) => vec![format!("the server ended with {status} after SIGTERM")],
        };
        left.extend(self.left_after(RESIDUE_WAIT));
        left
    }

    /// The fixture's directory, for a next server; this one must have ended.
    pub fn into_directory(self) -> TempDir {
        assert!(self.wait(Duration::ZERO).is_some(), "the server still runs");
        let mut this = self;
        std::mem::replace(&mut this.directory, directory_of(None))
    }

    /// What it logged so far.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.directory.path().join("log")).unwrap_or_default()
    }

    /// What was seen of it, to be judged when another server has its directory.
    pub fn take_tracker(&self) -> Tracker {
        std::mem::take(&mut *self.tracker.lock().unwrap_or_else(std::sync::PoisonError::into_inner))
    }

    /// Number of threads that the server has.
    pub fn threads(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/task", self.pid)).expect("the server lives").count()
    }

    /// Memory that it has in use.
    pub fn resident_kib(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid)).expect("the server lives");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("a process has memory");
        line.trim().trim_end_matches(" kB").parse().expect("a number of KiB")
    }

    /// Its launcher, when it has one.
    pub fn launcher(&self) -> Option<i32> {
        residue::descendants(self.pid).into_iter().map(|process| process.identity.0).find(|pid| {
            let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            name.trim() == "cb-launcher"
        })
    }

    /// Number of descriptors that the server has open.
    pub fn open_descriptors(&self) -> usize {
        residue::open_descriptors(self.pid).expect("the server lives and is ours to look at")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let child = self.child.get_mut().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Ok(None) = child.try_wait() {
            // Its end was not part of the claim: a polite end first, since it clears up, then a certain one.
            kill(Pid::from_raw(self.pid), Signal::SIGTERM).ok();
            if !eventually(Duration::from_secs(15), || !matches!(child.try_wait(), Ok(None))) {
                child.kill().ok();
                child.wait().ok();
            }
        }
    }
}

fn command(setup: &Setup, directory: &Path) -> Command {
    std::fs::write(directory.join("config.toml"), &setup.config).expect("the fixture's directory is writable");
    let log = std::fs::OpenOptions::new().create(true).append(true).open(directory.join("log"));
    let mut limits = String::new();
    for (option, limit) in [('n', setup.open_files), ('f', setup.file_blocks)] {
        limits.extend(limit.map(|limit| format!("ulimit -{option} {limit}; ")));
    }
    // The shell sets the limits and becomes the server, so that the child is still the server itself.
    let mut command = Command::new("/bin/sh");
    command.args(["-c", &format!("{limits}exec \"$0\" \"$@\"")]).args(&setup.wrapper).arg(binary_for(setup.uid));
    command
        .args(["serve", "--listen", setup.listen.as_deref().unwrap_or("127.0.0.1:0"), "--state-dir"])
        .arg(directory.join("state"));
    command.arg("--config").arg(directory.join("config.toml")).args(&setup.flags);
    command.env_clear().env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin").env("HOME", directory);
    // What runtimes cost is measured only where a trial asks for it: it takes sandboxes that the others would have to wait for.
    command.env("CODEBEAKER_RUNTIMES_MEASURE", "false");
    if !setup.config.contains("docker = ") {
        // The host may have an engine of somebody else's.
        command.env("CODEBEAKER_RUNTIMES_DOCKER", "off");
    }
    if std::env::var_os("CODEBEAKER_TEST_POOL").is_some_and(|word| word == "off") {
        // Where a sandbox takes long, those that nobody takes are most of the work, and so are interpreters, and engines that are
        // asked for their version.
        let unasked = [
            ("[pool]", "CODEBEAKER_POOL_SANDBOXES_MAX", "0"),
            ("[pool]", "CODEBEAKER_POOL_BEGIN_AHEAD", "false"),
            ("[warm]", "CODEBEAKER_WARM_ENABLED", "false"),
            ("[runtimes]", "CODEBEAKER_RUNTIMES_NODEJS", "off"),
        ];
        command
            .envs(unasked.iter().filter(|(section, ..)| !setup.config.contains(section)).map(|(_, name, value)| (name, value)));
    }
    command.envs(setup.environment.iter().map(|(name, value)| (name, value)));
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log.expect("the fixture's directory is writable"));
    if let Some(uid) = setup.uid {
        command.uid(uid).gid(uid).current_dir(directory);
    }
    command
}

/// Starts a server that is expected to refuse; its status and what it said.
pub fn refused_start(setup: &Setup, directory: &Path) -> (Option<ExitStatus>, String) {
    let mut child = command(setup, directory).stderr(Stdio::piped()).spawn().expect("the binary can be executed");
    residue::started(child.id());
    let ended = eventually(Duration::from_secs(20), || !matches!(child.try_wait(), Ok(None)));
    if !ended {
        child.kill().expect("the fixture's own child");
    }
    let output = child.wait_with_output().expect("the child has ended");
    (ended.then_some(output.status), String::from_utf8_lossy(&output.stderr).into_owned())
}

/// Reads stdout up to the line that names the address; the rest of stdout is drained in the background.
pub fn listening_line(stdout: impl std::io::Read + Send + 'static) -> Option<SocketAddr> {
    let (sender, receiver) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        for line in BufReader::new(stdout).lines().map_while(Result::ok) {
            if let Some(url) = line.strip_prefix("listening on ws://") {
                // The receiver is gone when the wait was given up; there is nobody left to tell.
                sender.send(url.trim().trim_end_matches('/').parse().ok()).ok();
            }
        }
    });
    receiver.recv_timeout(START_WAIT).ok().flatten()
}

fn log_tail(directory: &Path) -> String {
    let log = std::fs::read_to_string(directory.join("log")).unwrap_or_default();
    let lines: Vec<&str> = log.lines().collect();
    lines[lines.len().saturating_sub(20)..].join("\n")
}

/// The claims of this page that need no server.
pub fn trials() -> Vec<libtest_mimic::Trial> {
    vec![
        super::trial("harness", "the listening line is found among other lines", || {
            let text = &b"starting\nlistening on ws://127.0.0.1:4711\n"[..];
            assert_eq!(listening_line(text), Some(SocketAddr::from(([127, 0, 0, 1], 4711))));
        }),
        super::trial("harness", "a server that ends without the line is noticed at once", || {
            let begin = Instant::now();
            assert_eq!(listening_line(&b"error: no\n"[..]), None);
            assert!(begin.elapsed() < START_WAIT / 2);
        }),
    ]
}
