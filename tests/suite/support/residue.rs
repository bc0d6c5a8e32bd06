//! The residue harness: what a server made on the host, and whether it is gone.
//!
//! Invariant: only what was seen to belong to this server is judged, so servers of other trials do not disturb. `observe` is
//! called while sessions live (after every `session.create`); `left` compares. Nothing here changes the host.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

/// A process that cannot be taken for a later one with the same number: pid and start time.
pub type Identity = (i32, u64);

/// One process as /proc tells it.
#[derive(Debug, Clone)]
pub struct Process {
    /// Number and start time.
    pub identity: Identity,
    /// The parent's number.
    pub parent: i32,
    /// True when it has ended and waits to be reaped.
    pub zombie: bool,
}

/// What was seen to belong to one server.
#[derive(Debug, Default)]
pub struct Tracker {
    processes: BTreeSet<Identity>,
    /// The first process of each: the kernel gives the number of a namespace that is gone to a new one, of another server as a rule.
    pid_namespaces: BTreeMap<u64, Identity>,
    cgroups: BTreeSet<PathBuf>,
}

/// All processes of the host.
pub fn processes() -> BTreeMap<i32, Process> {
    let entries = std::fs::read_dir("/proc").expect("/proc is mounted");
    let pids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter_map(|pid| Some((pid, process(pid)?))).collect()
}

/// One process, when it exists.
pub fn process(pid: i32) -> Option<Process> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name stands in parentheses and may hold anything, so fields are counted from the last one.
    let fields: Vec<&str> = stat.rsplit_once(") ")?.1.split(' ').collect();
    let start = fields.get(19)?.parse().ok()?;
    Some(Process {
        identity: (pid, start),
        parent: fields.get(1)?.parse().ok()?,
        zombie: matches!(fields.first(), Some(&"Z" | &"X")),
    })
}

/// Every descendant of `root` that lives now, without `root`.
pub fn descendants(root: i32) -> Vec<Process> {
    let all = processes();
    let mut found: Vec<Process> = Vec::new();
    let mut parents = vec![root];
    while let Some(parent) = parents.pop() {
        for child in all.values().filter(|process| process.parent == parent) {
            parents.push(child.identity.0);
            found.push(child.clone());
        }
    }
    found
}

/// True while that very process lives (a zombie does not).
pub fn lives(identity: Identity) -> bool {
    process(identity.0).is_some_and(|process| process.identity == identity && !process.zombie)
}

/// Number of open descriptors, when they can be counted.
pub fn open_descriptors(pid: i32) -> Option<usize> {
    Some(std::fs::read_dir(format!("/proc/{pid}/fd")).ok()?.count())
}

/// Directories of every cgroup hierarchy that a process is in and whose path names codebeaker.
pub fn cgroups_of(pid: i32) -> Vec<PathBuf> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
    let ours = text.lines().filter_map(|line| {
        let (controllers, path) = line.split_once(':')?.1.split_once(':')?;
        path.contains("codebeaker-").then(|| cgroup_directory(controllers, path))
    });
    ours.flatten().collect()
}

fn cgroup_directory(controllers: &str, path: &str) -> Option<PathBuf> {
    let relative = path.trim_start_matches('/').trim_end_matches(" (deleted)");
    let names = match controllers.strip_prefix("name=").unwrap_or(controllers) {
        "" => vec!["", "unified"],
        name => vec![name],
    };
    names
        .into_iter()
        .map(|name| Path::new("/sys/fs/cgroup").join(name).join(relative))
        .find(|path| path.join("cgroup.procs").exists())
}

/// Groups that the process with this number made for itself and its sessions, empty or not: in every hierarchy below the
/// suite's own group or one above it. One that the process stood in itself can't go with it and is the next start's to remove.
pub fn groups_made_by(pid: u32) -> Vec<PathBuf> {
    let is_its = |path: &Path| {
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        // codebeaker-<pid namespace>-<pid>-<start time>
        let of = name.strip_prefix("codebeaker-").and_then(|rest| rest.split('-').nth(1)?.parse().ok());
        of == Some(pid) && !path.join("server").exists()
    };
    let text = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let mut found = BTreeSet::new();
    for line in text.lines() {
        let Some((controllers, path)) = line.split_once(':').and_then(|(_, rest)| rest.split_once(':')) else { continue };
        let own = cgroup_directory(controllers, path).unwrap_or_default();
        for group in own.ancestors().take_while(|group| group.join("cgroup.procs").exists()) {
            let below = group.read_dir().into_iter().flatten().flatten().map(|entry| entry.path());
            found.extend(below.filter(|path| is_its(path)));
        }
    }
    found.into_iter().collect()
}

/// Servers and calls that this run has started.
static STARTED: Mutex<Vec<u32>> = Mutex::new(Vec::new());

/// Remembers a process that may make groups, for [`groups_left`].
pub fn started(pid: u32) {
    STARTED.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push(pid);
}

/// After the last trial: sentences about groups of processes that this run has started, which have all ended.
pub fn groups_left() -> Vec<String> {
    let started = std::mem::take(&mut *STARTED.lock().unwrap_or_else(std::sync::PoisonError::into_inner));
    let mut left = Vec::new();
    super::eventually(std::time::Duration::from_secs(10), || {
        left = started.iter().flat_map(|pid| groups_made_by(*pid)).collect();
        left.is_empty()
    });
    left.iter().map(|group| format!("the cgroup {} of a process that has ended exists", group.display())).collect()
}

impl Tracker {
    /// Looks at everything below the server now and remembers it.
    pub fn observe(&mut self, server: i32) {
        let own_namespace = namespace(server);
        for process in descendants(server) {
            self.processes.insert(process.identity);
            self.cgroups.extend(cgroups_of(process.identity.0));
            if let Some(inode) = namespace(process.identity.0).filter(|inode| Some(*inode) != own_namespace) {
                // Parents come first, so this is the one that the namespace ends with.
                let first = self.pid_namespaces.entry(inode).or_insert(process.identity);
                if !lives(*first) {
                    *first = process.identity;
                }
            }
        }
    }

    /// Sentences about what is still there of everything that was seen; empty when all is gone.
    pub fn left(&self, state_dir: &Path) -> Vec<String> {
        let mut left = Vec::new();
        let all = processes();
        let seen = |inode: u64| self.pid_namespaces.get(&inode).is_some_and(|first| lives(*first));
        for process in all.values().filter(|process| !process.zombie) {
            let pid = process.identity.0;
            if self.processes.contains(&process.identity) {
                left.push(format!("process {pid} lives"));
            } else if namespace(pid).is_some_and(seen) {
                left.push(format!("process {pid} lives in a pid namespace of the server"));
            } else if cgroups_of(pid).iter().any(|path| self.cgroups.contains(path)) {
                left.push(format!("process {pid} lives in a cgroup of the server"));
            }
        }
        let groups = self.cgroups.iter().filter(|path| path.is_dir());
        left.extend(groups.map(|path| format!("the cgroup {} exists", path.display())));
        left.extend(mounts_below(state_dir));
        left.extend(files_below(&state_dir.join("run")).into_iter().map(|path| format!("{} exists", path.display())));
        left
    }

    /// Sentences about what is left of one environment: cgroups, mounts and files that bear its name.
    pub fn left_of_environment(&self, state_dir: &Path, environment: &str) -> Vec<String> {
        let bears = |path: &Path| path.to_string_lossy().contains(environment);
        let groups = self.cgroups.iter().filter(|path| bears(path) && path.is_dir());
        let mut left: Vec<String> = groups.map(|path| format!("the cgroup {} exists", path.display())).collect();
        left.extend(mounts_below(state_dir).into_iter().filter(|line| line.contains(environment)));
        let files = files_below(&state_dir.join("run")).into_iter().filter(|path| bears(path));
        left.extend(files.map(|path| format!("{} exists", path.display())));
        left
    }
}

fn namespace(pid: i32) -> Option<u64> {
    std::fs::metadata(format!("/proc/{pid}/ns/pid")).ok().map(|metadata| metadata.ino())
}

fn mounts_below(state_dir: &Path) -> Vec<String> {
    let table = std::fs::read_to_string("/proc/self/mountinfo").expect("the mount table is readable");
    let name = state_dir.to_string_lossy();
    table.lines().filter(|line| line.contains(name.as_ref())).map(|line| format!("the host has the mount `{line}`")).collect()
}

fn files_below(directory: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(directory) else { return Vec::new() };
    let mut found = Vec::new();
    for entry in entries.flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            found.extend(files_below(&entry.path()));
        }
        // An empty directory of a session is residue as much as a file in it.
        found.push(entry.path());
    }
    found
}

/// The claims of this page, on processes that the trial starts itself.
pub fn trials() -> Vec<libtest_mimic::Trial> {
    vec![
        super::trial("harness", "a child of a child counts as a descendant until it is gone", || {
            let mut shell = std::process::Command::new("/bin/sh");
            let mut child = shell.args(["-c", "sleep 30 & wait"]).spawn().expect("a shell starts");
            let pid = child.id().cast_signed();
            let appeared = super::eventually(std::time::Duration::from_secs(5), || !descendants(pid).is_empty());
            assert!(appeared, "the grandchild appears");
            let mut tracker = Tracker::default();
            tracker.observe(pid);
            let state = super::fixture_user::directory_of(None);
            let grandchild = descendants(pid)[0].identity;
            assert_eq!(tracker.left(state.path()), vec![format!("process {} lives", grandchild.0)]);
            let target = nix::unistd::Pid::from_raw(grandchild.0);
            nix::sys::signal::kill(target, nix::sys::signal::Signal::SIGKILL).expect("the trial's own process");
            child.wait().expect("the shell ends with its child");
            assert!(super::eventually(std::time::Duration::from_secs(5), || tracker.left(state.path()).is_empty()));
        }),
        super::trial(
            "harness",
            "a process in a pid namespace that was seen is residue, one in a later namespace of that number is not",
            || {
                super::host().need(super::Feature::Root);
                let mut program = std::process::Command::new("unshare");
                let script = "sleep 30 & wait";
                let mut child = program
                    .args(["--pid", "--fork", "--kill-child=KILL", "sh", "-c", script])
                    .spawn()
                    .expect("util-linux is there");
                let pid = child.id().cast_signed();
                let both = || descendants(pid).len() == 2;
                assert!(super::eventually(std::time::Duration::from_secs(5), both));
                let first = descendants(pid)[0].identity;
                let inode = namespace(first.0).expect("it lives");
                let of = |first: Identity| Tracker { pid_namespaces: [(inode, first)].into(), ..Tracker::default() };
                let state = super::fixture_user::directory_of(None);
                assert_eq!(of(first).left(state.path()).len(), 2, "the control");
                assert!(
                    of((first.0, first.1 - 1)).left(state.path()).is_empty(),
                    "its first process has ended, so the namespace has"
                );
                child.kill().expect("the trial's own process");
                child.wait().expect("a child");
            },
        ),
        super::trial("harness", "a file below run is residue, and so is an empty directory", || {
            let state = super::fixture_user::directory_of(None);
            std::fs::create_dir_all(state.path().join("run/env_1")).expect("an own directory");
            let tracker = Tracker::default();
            assert_eq!(tracker.left(state.path()).len(), 1);
            assert_eq!(tracker.left_of_environment(state.path(), "env_1").len(), 1);
            assert!(tracker.left_of_environment(state.path(), "env_2").is_empty());
        }),
    ]
}
