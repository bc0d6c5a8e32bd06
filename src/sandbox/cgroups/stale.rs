//! Groups of servers that no longer live: found by name, emptied, removed.
//!
//! Invariant: only groups named `codebeaker-<server>` below this host's bases, and below those that earlier servers noted, are
//! touched, and only when `<server>` names a process that is gone. Nothing is killed elsewhere, and links are not followed (cgroupfs has none).
//! Servers that start at the same time find the same groups: what another one has removed meanwhile is removed.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::session::remove_directory;
use super::{CgroupError, CgroupHost, CgroupTree, GROUP_PREFIX};
use crate::sandbox::state::ServerId;
use crate::sys::probe;

/// Groups below one of ours, at most: a session has three of them, a server no more than some ten thousand sessions.
const GROUPS_MAX: usize = 200_000;

/// What was found.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct StaleReport {
    /// Groups that were removed.
    pub removed: usize,
    /// Processes that were killed one by one (groups that have no `cgroup.kill`).
    pub killed: usize,
}

impl CgroupTree {
    /// Kills and removes what servers that are gone have left, here and below `earlier` (`LockedState::group_bases`). Goes on
    /// after a failure and returns the first.
    pub fn remove_stale(host: &CgroupHost, earlier: &[PathBuf]) -> Result<StaleReport, CgroupError> {
        let mut report = StaleReport::default();
        let mut result = Ok(());
        let own = host.bases();
        let others = earlier.iter().map(PathBuf::as_path).filter(|base| !own.contains(base) && is_group(base));
        for base in own.iter().copied().chain(others) {
            for group in stale_groups(base)? {
                result = result.and(remove_group(&group, &mut report));
            }
        }
        result.map(|()| report)
    }
}

/// True for a directory of a cgroup file system.
fn is_group(directory: &Path) -> bool {
    directory.join("cgroup.procs").is_file()
}

/// True when the group was removed before or while it was looked at: the kernel says ENOENT of its path and ENODEV of an open file of it.
fn is_removed(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(nix::libc::ENODEV)
}

/// Groups in `base` whose name says that we made them and whose server is gone.
fn stale_groups(base: &Path) -> Result<Vec<PathBuf>, CgroupError> {
    let failed = |source| CgroupError::List { path: base.to_owned(), source };
    let mut groups = Vec::new();
    for entry in fs::read_dir(base).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let name = entry.file_name();
        let server = name.to_str().and_then(|name| name.strip_prefix(GROUP_PREFIX)).and_then(ServerId::parse);
        if server.is_some_and(|server| server.is_gone()) {
            groups.push(entry.path());
        }
    }
    Ok(groups)
}

/// Kills what is in the group and below, then removes it, deepest first.
fn remove_group(top: &Path, report: &mut StaleReport) -> Result<(), CgroupError> {
    let mut groups = vec![top.to_owned()];
    let mut next = 0;
    while next < groups.len() && groups.len() < GROUPS_MAX {
        let children = subgroups(&groups[next])?;
        groups.extend(children);
        next += 1;
    }
    let kill = top.join("cgroup.kill");
    if kill.exists() {
        match fs::write(&kill, "1") {
            Err(source) if !is_removed(&source) => return Err(CgroupError::Write { path: kill, source }),
            _ => {}
        }
    } else {
        for group in &groups {
            report.killed += kill_members(group)?;
        }
    }
    for group in groups.iter().rev() {
        remove_directory(group)?;
        report.removed += 1;
    }
    Ok(())
}

fn subgroups(group: &Path) -> Result<Vec<PathBuf>, CgroupError> {
    let failed = |source| CgroupError::List { path: group.to_owned(), source };
    let entries = match fs::read_dir(group) {
        Err(error) if is_removed(&error) => return Ok(Vec::new()),
        read => read.map_err(failed)?,
    };
    let mut children = Vec::new();
    for entry in entries {
        let entry = match entry {
            Err(error) if is_removed(&error) => break,
            read => read.map_err(failed)?,
        };
        if entry.file_type().map_err(failed)?.is_dir() {
            children.push(entry.path());
        }
    }
    Ok(children)
}

/// Kills until nobody new turns up; a fork bomb is stopped because its group's `pids.max` still holds.
fn kill_members(group: &Path) -> Result<usize, CgroupError> {
    const ROUNDS_MAX: usize = 100;
    let file = group.join("cgroup.procs");
    let mut killed = 0;
    for _ in 0..ROUNDS_MAX {
        let text = match fs::read_to_string(&file) {
            Err(error) if is_removed(&error) => return Ok(killed),
            read => read.map_err(|source| CgroupError::List { path: file.clone(), source })?,
        };
        // A process outside this pid namespace reads as 0, which kill(2) would take for our own process group.
        let members: Vec<i32> = text.lines().filter_map(|line| line.parse().ok()).filter(|pid| *pid > 1).collect();
        if members.is_empty() {
            return Ok(killed);
        }
        for pid in members {
            probe::kill_process(pid).map_err(|source| CgroupError::Write { path: file.clone(), source })?;
            killed += 1;
        }
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
    Ok(killed)
}
