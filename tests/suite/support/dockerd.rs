//! A Docker engine of the suite's own: in pid and mount namespaces of its own, on a socket of its own, with no network of the host's.
//!
//! Invariant: everything of it ends with the suite, however that ends: the first process of its pid namespace dies with the thread
//! that keeps it, and with that process every daemon, shim and container; its mounts are those of its namespace. What is left are
//! control groups, which are removed by name.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

use super::fixture_user::directory_of;
use super::{Feature, eventually, host};

/// What an engine may take to listen.
const START_WAIT: Duration = Duration::from_secs(40);

/// The first process of an engine's pid namespace: bash takes the ends of whatever is left to it, or a daemon that starts again would
/// take its dead predecessor for alive.
const REAPER: &str = "while :; do sleep 1000 & wait $!; done";

/// Whose engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Docker,
    Podman,
}

/// An engine; ends with this value.
pub struct Dockerd {
    kind: Kind,
    directory: TempDir,
    /// The first process of its pid namespace, as this namespace numbers it.
    holder: i32,
    daemon: Mutex<Option<Child>>,
    /// Ends the thread that keeps the holder.
    release: Mutex<Option<mpsc::Sender<()>>>,
    groups: String,
}

/// The one that trials share.
static SHARED: Mutex<Option<Arc<Dockerd>>> = Mutex::new(None);

/// The engine that all trials share, started by the first; skips where the host has none.
pub fn dockerd() -> Arc<Dockerd> {
    host().need(Feature::Dockerd);
    let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
    Arc::clone(shared.get_or_insert_with(|| Arc::new(Dockerd::start())))
}

/// After the last trial.
pub fn end_shared() -> Vec<String> {
    let shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner).take();
    let Some(engine) = shared else { return Vec::new() };
    let mut left: Vec<String> =
        engine.containers().into_iter().map(|name| format!("the container {name} is left in the engine")).collect();
    let Some(engine) = Arc::into_inner(engine) else { return vec!["a trial still holds the engine".into()] };
    left.extend(engine.end());
    left
}

impl Dockerd {
    /// A new one that listens.
    pub fn start() -> Self {
        Self::of(Kind::Docker)
    }

    /// Podman's API of the same form.
    pub fn podman() -> Self {
        host().need(Feature::Podman);
        Self::of(Kind::Podman)
    }

    fn of(kind: Kind) -> Self {
        host().need(Feature::Dockerd);
        let directory = directory_of(None);
        let (release, kept) = mpsc::channel();
        let holder = hold(kept);
        let name = directory.path().file_name().expect("a name").to_string_lossy().into_owned();
        let engine = Self {
            kind,
            directory,
            holder,
            daemon: Mutex::new(None),
            release: Mutex::new(Some(release)),
            groups: match kind {
                Kind::Docker => format!("engine-of-{name}"),
                // Podman's own word for what it makes.
                Kind::Podman => "libpod_parent".into(),
            },
        };
        engine.run();
        engine
    }

    /// Its socket.
    pub fn socket(&self) -> PathBuf {
        self.directory.path().join("sock")
    }

    /// Starts the daemon, again when it was killed.
    pub fn run(&self) {
        let path = |name: &str| self.directory.path().join(name).to_string_lossy().into_owned();
        let log = std::fs::OpenOptions::new().create(true).append(true).open(path("log")).expect("an own directory");
        // A daemon that was killed has left it.
        std::fs::remove_file(path("pid")).ok();
        let mut command = Command::new("nsenter");
        command.args(["--target", &self.holder.to_string(), "--pid", "--mount"]);
        let socket = format!("unix://{}", path("sock"));
        match self.kind {
            Kind::Docker => {
                command.args(["dockerd", "--data-root", &path("data"), "--exec-root", &path("exec")]);
                command.args(["--pidfile", &path("pid"), "--host", &socket, "--bridge=none", "--iptables=false"]);
                command.args(["--ip6tables=false", "--ip-forward=false", "--ip-masq=false"]);
                command.args(["--shutdown-timeout", "1", "--cgroup-parent", &self.groups]);
            }
            Kind::Podman => {
                command.args(["podman", "--root", &path("data"), "--runroot", &path("exec"), "--tmpdir", &path("tmp")]);
                command.args(["--cgroup-manager", "cgroupfs", "--events-backend", "none"]);
                command.args(["system", "service", "--time", "0", &socket]);
            }
        }
        command.env_clear().env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
        // Podman leaves there what an image is loaded from.
        command.env("TMPDIR", self.directory.path());
        command.stdin(Stdio::null()).stdout(log.try_clone().expect("a descriptor")).stderr(log);
        let child = command.spawn().expect("nsenter is there");
        *self.daemon.lock().unwrap_or_else(PoisonError::into_inner) = Some(child);
        let listens = eventually(START_WAIT, || self.docker(&["version"]).status.success());
        assert!(listens, "the engine does not listen; its log: {}", std::fs::read_to_string(path("log")).unwrap_or_default());
    }

    fn program(&self) -> &'static str {
        match self.kind {
            Kind::Docker => "dockerd",
            Kind::Podman => "podman",
        }
    }

    /// The daemon itself, as this namespace numbers it: the child of the process that entered the namespaces.
    fn daemon(&self) -> i32 {
        let guard = self.daemon.lock().unwrap_or_else(PoisonError::into_inner);
        let entered = guard.as_ref().expect("it runs").id().cast_signed();
        let below = super::residue::descendants(entered).into_iter();
        below.map(|process| process.identity).find(|(pid, _)| name_of(*pid) == self.program()).expect("the daemon lives").0
    }

    /// Sends a signal to the daemon alone; what runs in containers is not its child.
    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.daemon()), signal).expect("the trial's own engine");
        if signal == Signal::SIGCONT {
            self.go_on();
        }
        if signal == Signal::SIGKILL {
            let child = self.daemon.lock().unwrap_or_else(PoisonError::into_inner).take();
            child.expect("it ran").wait().expect("it has ended");
        }
    }

    /// Whoever entered the namespaces stops with its child (nsenter(1)), and could not take the child's end.
    fn go_on(&self) {
        if let Some(child) = self.daemon.lock().unwrap_or_else(PoisonError::into_inner).as_ref() {
            kill(Pid::from_raw(child.id().cast_signed()), Signal::SIGCONT).ok();
        }
    }

    /// The command-line client of Docker.
    pub fn docker(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new("/usr/bin/docker");
        command.arg("--host").arg(format!("unix://{}", self.socket().display())).args(arguments);
        command.env("HOME", self.directory.path()).stdin(Stdio::null()).output().expect("docker is there")
    }

    /// What it prints when it ends well.
    #[track_caller]
    pub fn ok(&self, arguments: &[&str]) -> String {
        let output = self.docker(arguments);
        assert!(output.status.success(), "docker {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }

    /// Names of all containers, ended ones among them.
    pub fn containers(&self) -> Vec<String> {
        self.ok(&["ps", "--all", "--format", "{{.Names}}"]).lines().map(str::to_owned).collect()
    }

    /// One container as the engine describes it.
    pub fn inspect(&self, name: &str) -> serde_json::Value {
        let text = self.ok(&["inspect", "--type", "container", name]);
        serde_json::from_str::<serde_json::Value>(&text).expect("JSON")[0].take()
    }

    /// Makes an image of a directory's content.
    pub fn import(&self, tree: &Path, name: &str) {
        let archive = self.directory.path().join("image.tar");
        let packed = Command::new("tar").arg("-C").arg(tree).arg("-cf").arg(&archive).arg(".").status();
        assert!(packed.expect("tar is there").success());
        self.ok(&["import", &archive.to_string_lossy(), name]);
    }

    /// Ends it; sentences about what is left.
    pub fn end(self) -> Vec<String> {
        let seen: Vec<i32> = super::residue::descendants(self.holder).iter().map(|process| process.identity.0).collect();
        self.go_on();
        drop(self.release.lock().unwrap_or_else(PoisonError::into_inner).take());
        let gone = eventually(Duration::from_secs(15), || !Path::new(&format!("/proc/{}", self.holder)).exists());
        if let Some(mut child) = self.daemon.lock().unwrap_or_else(PoisonError::into_inner).take() {
            child.wait().ok();
        }
        let mut left = Vec::new();
        if !gone {
            left.push(format!("the first process {} of an engine lives, with {} others", self.holder, seen.len()));
        }
        left.extend(remove_groups(&self.groups));
        let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let own = self.directory.path().to_string_lossy().into_owned();
        left.extend(table.lines().filter(|line| line.contains(&own)).map(|line| format!("the mount `{line}` of an engine")));
        left
    }
}

impl Drop for Dockerd {
    fn drop(&mut self) {
        self.go_on();
        drop(self.release.lock().unwrap_or_else(PoisonError::into_inner).take());
        eventually(Duration::from_secs(15), || !Path::new(&format!("/proc/{}", self.holder)).exists());
        if let Some(mut child) = self.daemon.lock().unwrap_or_else(PoisonError::into_inner).take() {
            child.kill().ok();
            child.wait().ok();
        }
        remove_groups(&self.groups);
    }
}

fn name_of(pid: i32) -> String {
    std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default().trim().to_owned()
}

/// Starts the first process of a pid namespace on a thread that lives until it is told otherwise: the death signal is that of the
/// thread. The answer is that process.
fn hold(kept: mpsc::Receiver<()>) -> i32 {
    let (tell, told) = mpsc::channel();
    std::thread::spawn(move || {
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "unshare", "--mount", "--propagation", "private", "--pid", "--fork"]);
        command.args(["--kill-child=KILL", "--mount-proc", "bash", "-c", REAPER]).stdin(Stdio::null());
        let mut child = command.spawn().expect("util-linux is there");
        tell.send(child.id().cast_signed()).expect("somebody waits");
        kept.recv().ok();
        child.kill().ok();
        child.wait().ok();
    });
    let keeper = told.recv().expect("the thread has started");
    let mut found = None;
    let there = eventually(Duration::from_secs(10), || {
        found = super::residue::descendants(keeper).first().map(|process| process.identity.0);
        // The mounts are ready when the program is.
        found.is_some_and(|pid| name_of(pid) == "bash")
    });
    assert!(there, "no pid namespace for an engine");
    found.expect("it is there")
}

/// Removes what an engine has made in every hierarchy, deepest first.
fn remove_groups(name: &str) -> Vec<String> {
    let mut left = Vec::new();
    let found = Command::new("find").args(["/sys/fs/cgroup", "-depth", "-type", "d", "-path", &format!("*/{name}*")]).output();
    let text = found.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
    for group in text.lines() {
        let removed = eventually(Duration::from_secs(5), || std::fs::remove_dir(group).is_ok() || !Path::new(group).exists());
        if !removed {
            left.push(format!("the cgroup {group} of an engine exists"));
        }
    }
    left
}
