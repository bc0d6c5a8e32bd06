//! What of the host an attempt aims at: made for one trial, harmless to reach, and gone after it.

use std::any::Any;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::net::{SocketAddr, UnixListener};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::bench::Bench;
use crate::support::host;

/// Things of the host, kept while the trial runs.
pub(super) struct World {
    /// What the attempt must know of them.
    pub facts: Value,
    /// A directory that is laid over `/shared`.
    pub shared: Option<PathBuf>,
    handed: Option<OwnedFd>,
    _kept: Vec<Box<dyn Any>>,
}

/// What stands in every canary.
pub(super) const CANARY: &str = "canary of the host";

impl World {
    /// Nothing of the host.
    pub fn empty() -> Self {
        Self { facts: json!({}), shared: None, handed: None, _kept: Vec::new() }
    }

    fn of(facts: Value, kept: impl Any) -> Self {
        Self { facts, _kept: vec![Box::new(kept)], ..Self::empty() }
    }

    /// What the program is handed as a descriptor.
    pub fn handed(&self) -> Option<BorrowedFd<'_>> {
        self.handed.as_ref().map(AsFd::as_fd)
    }
}

/// A directory that everybody may use, with a canary in it; not below /tmp, where sandboxes are put together.
fn directory() -> (TempDir, PathBuf) {
    let directory = tempfile::Builder::new().prefix("codebeaker-test-").tempdir_in("/var/tmp").expect("/var/tmp is writable");
    std::fs::set_permissions(directory.path(), PermissionsExt::from_mode(0o777)).expect("an own directory");
    let canary = directory.path().join("canary");
    std::fs::write(&canary, CANARY).expect("an own directory");
    (directory, canary)
}

/// A file that everybody may read.
pub(super) fn canary() -> World {
    let (directory, canary) = directory();
    World::of(json!({"canary": canary}), directory)
}

/// A file that only the host's uid 1000 may read, in a directory that a program is handed open.
pub(super) fn canary_of_a_user() -> World {
    const USER: u32 = 1000;
    let (directory, canary) = directory();
    chown(&canary, Some(USER), Some(USER)).expect("root may give a file away");
    std::fs::set_permissions(&canary, PermissionsExt::from_mode(0o600)).expect("an own file");
    let handed = std::fs::File::open(directory.path()).expect("an own directory");
    World { handed: Some(handed.into()), ..World::of(json!({}), directory) }
}

/// A directory that everybody may write to, laid over `/shared`; in it a device of the harmless kind.
pub(super) fn shared() -> World {
    use nix::sys::stat::{Mode, SFlag, makedev, mknod};
    let (directory, _) = directory();
    let device = directory.path().join("null");
    mknod(&device, SFlag::S_IFCHR, Mode::empty(), makedev(1, 3)).expect("root may make a second /dev/null");
    std::fs::set_permissions(&device, PermissionsExt::from_mode(0o666)).expect("an own file");
    let shared = Some(directory.path().to_owned());
    World { shared, ..World::of(json!({}), directory) }
}

/// A listener on the host's loopback.
pub(super) fn loopback() -> World {
    let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).expect("a free port");
    World::of(json!({"port": listener.local_addr().expect("it listens").port()}), listener)
}

/// A listener on an abstract address of the host.
pub(super) fn abstract_socket() -> World {
    let name = format!("codebeaker-wall-{}-{:?}", std::process::id(), std::thread::current().id());
    let address = SocketAddr::from_abstract_name(&name).expect("a short name");
    World::of(json!({"name": name}), UnixListener::bind_addr(&address).expect("the name is free"))
}

/// The suite's own process.
pub(super) fn own_process() -> World {
    World::of(json!({"pid": std::process::id()}), ())
}

/// A process of the host that has the host id of the sandbox's programs: uid 1000 of the bench's range.
pub(super) fn process_of_the_same_user(bench: &Bench) -> World {
    let uid = bench.range.start + 1000;
    let child = Command::new("sleep").arg("600").uid(uid).gid(uid).current_dir("/").stdin(Stdio::null()).spawn();
    let sleeper = Sleeper(child.expect("sleep starts"));
    World::of(json!({"pid": sleeper.0.id()}), sleeper)
}

struct Sleeper(Child);

impl Drop for Sleeper {
    fn drop(&mut self) {
        // The world's own child; it has not been waited for.
        self.0.kill().and_then(|()| self.0.wait()).ok();
    }
}

/// A message queue of the host that everybody may use.
pub(super) fn queue() -> World {
    let made = Command::new("ipcmk").args(["--queue", "--mode", "0666"]).output();
    let id = made.ok().and_then(|output| {
        let text = String::from_utf8(output.stdout).ok()?;
        text.trim().rsplit(' ').next()?.parse::<u32>().ok()
    });
    host().need_that("ipcmk", id.is_some(), "there is no ipcmk (package util-linux)");
    let queue = Queue(id.expect("just asked for"));
    let table = std::fs::read_to_string("/proc/sysvipc/msg").expect("the kernel has queues");
    let words = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<String>>();
    let row = table.lines().map(words).find(|row| row.get(1) == Some(&queue.0.to_string())).expect("just made");
    World::of(json!({"key": row[0].parse::<i64>().expect("a number")}), queue)
}

struct Queue(u32);

impl Drop for Queue {
    fn drop(&mut self) {
        Command::new("ipcrm").args(["--queue-id", &self.0.to_string()]).status().ok();
    }
}

/// What tells the host's namespace of a kind from another.
pub(super) fn namespace(kind: &str) -> World {
    let link = std::fs::read_link(format!("/proc/self/ns/{kind}")).expect("the kernel has it");
    World::of(json!({"namespace": link}), ())
}

/// The host's name.
pub(super) fn host_name() -> World {
    let name = nix::unistd::gethostname().expect("it has one").to_string_lossy().into_owned();
    World::of(json!({"name": name}), ())
}

/// A device node of the host that no sandbox has; it is looked for, never opened.
pub(super) fn device() -> World {
    use std::os::unix::fs::FileTypeExt;
    const OURS: [&str; 8] = ["null", "zero", "full", "random", "urandom", "tty", "console", "ptmx"];
    let nodes = Path::new("/dev").read_dir().expect("every host has it").flatten();
    let mut others = nodes.filter(|node| {
        let device = node.file_type().is_ok_and(|kind| kind.is_char_device() || kind.is_block_device());
        device && !OURS.iter().any(|name| node.file_name() == *name)
    });
    let device = others.next().map(|node| node.path());
    host().need_that("host_devices", device.is_some(), "/dev has no other device than a sandbox's");
    World::of(json!({"device": device}), ())
}
