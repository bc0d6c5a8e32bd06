//! One call of the command line with a clean environment, a deadline, and its output.

use std::io::Write;
use std::net::SocketAddr;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

use serde_json::Value;

use super::eventually;
use super::fixture_user::{binary_for, kept_directory};

/// What a call gave.
#[derive(Debug)]
pub struct Output {
    /// The number that its process had.
    pub pid: u32,
    /// Exit code; 128+n for signal n.
    pub code: i32,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Output {
    /// Fails unless the call ended with this code.
    pub fn expect_code(self, code: i32) -> Self {
        assert_eq!(self.code, code, "stdout: {}\nstderr: {}", self.stdout, self.stderr);
        self
    }

    /// Standard output as JSON.
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("{error}: {}\nstderr: {}", self.stdout, self.stderr))
    }
}

/// A call to be made.
pub struct Invocation {
    arguments: Vec<String>,
    state_dir: PathBuf,
    server: Option<SocketAddr>,
    stdin: Vec<u8>,
    uid: Option<u32>,
    wait: Duration,
}

impl Invocation {
    /// A call on the state directory that all calls without a server share.
    pub fn new(arguments: &[&str]) -> Self {
        static STATE: OnceLock<PathBuf> = OnceLock::new();
        let state = STATE.get_or_init(kept_directory);
        Self {
            arguments: arguments.iter().map(|&argument| argument.to_owned()).collect(),
            state_dir: state.join("state"),
            server: None,
            stdin: Vec::new(),
            uid: None,
            wait: Duration::from_secs(60),
        }
    }

    /// Another state directory.
    pub fn state_dir(mut self, directory: &Path) -> Self {
        directory.clone_into(&mut self.state_dir);
        self
    }

    /// The server that `exec`, `ps` and `close` talk to.
    pub fn server(mut self, address: SocketAddr) -> Self {
        self.server = Some(address);
        self
    }

    /// What the call reads.
    pub fn stdin(mut self, bytes: &[u8]) -> Self {
        self.stdin = bytes.to_vec();
        self
    }

    /// More time than most calls need.
    pub fn wait_at_most(mut self, wait: Duration) -> Self {
        self.wait = wait;
        self
    }

    /// Another user.
    pub fn user(mut self, uid: Option<u32>) -> Self {
        self.uid = uid;
        self
    }

    /// Makes the call and waits for its end.
    pub fn run(self) -> Output {
        let mut command = Command::new(binary_for(self.uid));
        command.args(&self.arguments).env_clear();
        command
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .env("HOME", "/nonexistent")
            .env("CODEBEAKER_STATE_DIR", &self.state_dir);
        if let Some(server) = self.server {
            command.env("CODEBEAKER_SERVER", format!("ws://{server}")).env("CODEBEAKER_SERVER_LISTEN", server.to_string());
        }
        if let Some(uid) = self.uid {
            command.uid(uid).gid(uid).current_dir("/");
        }
        let streams = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = streams.spawn().expect("the binary can be executed");
        let pid = child.id();
        super::residue::started(pid);
        let mut stdin = child.stdin.take().expect("stdin is a pipe");
        let bytes = self.stdin;
        // A program that does not read its stdin ends this thread with a broken pipe, which is no failure.
        std::thread::spawn(move || stdin.write_all(&bytes).ok());
        let stdout = drain(child.stdout.take().expect("stdout is a pipe"));
        let stderr = drain(child.stderr.take().expect("stderr is a pipe"));
        let ended = eventually(self.wait, || !matches!(child.try_wait(), Ok(None)));
        if !ended {
            child.kill().expect("the fixture's own child");
        }
        let status = child.wait().expect("the child has ended");
        assert!(ended, "`codebeaker {}` did not end in {:?}", self.arguments.join(" "), self.wait);
        let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal)).expect("it ended one way or the other");
        let text = |thread: std::thread::JoinHandle<Vec<u8>>| {
            String::from_utf8_lossy(&thread.join().expect("reading does not panic")).into_owned()
        };
        Output { pid, code, stdout: text(stdout), stderr: text(stderr) }
    }
}

fn drain(mut pipe: impl std::io::Read + Send + 'static) -> std::thread::JoinHandle<Vec<u8>> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        // What was read before an error is what there is.
        pipe.read_to_end(&mut bytes).ok();
        bytes
    })
}

/// A call without a server and without input.
pub fn codebeaker(arguments: &[&str]) -> Output {
    Invocation::new(arguments).run()
}
