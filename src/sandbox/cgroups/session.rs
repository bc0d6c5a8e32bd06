//! One session's groups: what the launcher needs to fill them, what the server reads from them.
//!
//! Invariant: groups that nobody has taken over are removed when the value is dropped.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use super::CgroupError;
use super::control_files::{ControlFiles, number};
use super::tree::{CPU_OF_A_NEW_GROUP, write_cpu};
use crate::command::Usage;
use crate::sandbox::enforcement::WallState;
use crate::sandbox::spec::Limits;

/// "1" gives a group next to nothing that its neighbours want, v1 and v2.
const IDLE_FILE: &str = "cpu.idle";

/// Groups of one session.
#[derive(Debug)]
pub struct SessionCgroup {
    /// Files `tasks` that init moves itself into (v1 hierarchies). The kernel moves a thread that names itself without stopping
    /// every fork, exec and exit of the host, which is a wait of several milliseconds after a quiet spell (`cgroup_procs_write_start` in
    /// kernel/cgroup/cgroup.c, Linux 5.5); a pid in `cgroup.procs` has that wait on any kernel.
    pub join: Vec<PathBuf>,
    /// v2 group that init is born in (CLONE_INTO_CGROUP).
    pub born_in: Option<PathBuf>,
    /// v2 leaf that programs are born in; absent: they share init's group.
    pub run: Option<PathBuf>,
    /// `cgroup.kill` of the whole session.
    pub kill: Option<PathBuf>,
    /// Every group, deepest first, for rmdir(2).
    pub directories: Vec<PathBuf>,
    /// `memory`, `pids`, `cpu`, for `enforcement`.
    pub limits: Vec<WallState>,
    pub(super) memory: Option<PathBuf>,
    pub(super) pids: Option<PathBuf>,
    pub(super) cpu: Option<PathBuf>,
    pub(super) cpuacct: Option<PathBuf>,
    pub(super) v2: Option<PathBuf>,
    files: ControlFiles,
    remover: Remover,
}

/// Who removes the groups.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Remover {
    ThisValue,
    SomebodyElse,
}

/// Counters since the groups were made; compare two readings to judge one execution.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CgroupEvents {
    /// Processes that the kernel ended for want of memory.
    pub oom_kills: u64,
    /// Forks and clones that were refused.
    pub pids_refusals: u64,
}

/// Whether the peaks start anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PeakReset {
    /// The memory peak counts from now.
    Reset,
    /// The kernel keeps the session's peak; an execution's own can't be told.
    Kept,
}

impl SessionCgroup {
    /// No group at all.
    pub(super) fn empty() -> Self {
        Self {
            join: Vec::new(),
            born_in: None,
            run: None,
            kill: None,
            directories: Vec::new(),
            limits: Vec::new(),
            memory: None,
            pids: None,
            cpu: None,
            cpuacct: None,
            v2: None,
            files: ControlFiles::default(),
            remover: Remover::ThisValue,
        }
    }

    /// The groups that somebody else has put a process in, to read counters from; `cgroup` and `mountinfo` are the texts of
    /// `/proc/PID/cgroup` and of our own mount table.
    pub fn observed(cgroup: &str, mountinfo: &str) -> Self {
        let (v1, v2) = super::host::groups_of(mountinfo, cgroup);
        let has = |group: &PathBuf, file: &str| group.join(file).exists();
        let of = |controller: &str, file: &str| {
            let by_v2 = || v2.clone().filter(|group| has(group, file));
            v1.iter().find(|(name, _)| *name == controller).map(|(_, group)| group.clone()).or_else(by_v2)
        };
        let mut observed = Self::empty();
        observed.remover = Remover::SomebodyElse;
        observed.memory = of("memory", "memory.max");
        observed.pids = of("pids", "pids.max");
        observed.cpuacct = of("cpuacct", "cpu.stat");
        observed.v2 = v2.clone().filter(|group| has(group, "cpu.stat") && has(group, "memory.max"));
        observed
    }

    /// From now on somebody else (the launcher, who ends the processes) removes `directories`.
    pub fn hand_over(&mut self) {
        self.remover = Remover::SomebodyElse;
    }

    /// Whether `pids.max` of a group bounds its processes.
    pub fn bounds_processes(&self) -> bool {
        self.pids.is_some()
    }

    /// What happened so far. A file that is gone counts nothing: the session has ended.
    pub fn events(&self) -> CgroupEvents {
        let oom = |group: &Path| {
            let file = if self.memory_is_v2() { "memory.events" } else { "memory.oom_control" };
            self.counter(group.join(file), "oom_kill")
        };
        let refused = |group: &Path| self.counter(group.join("pids.events"), "max");
        // Kernels before 6.11 count a refusal in the group that tried to fork, later ones in the group that has the limit.
        let leaves: u64 = if self.pids.is_some() && self.pids == self.v2 {
            self.directories.iter().filter(|group| Some(*group) != self.v2.as_ref()).map(|leaf| refused(leaf)).sum()
        } else {
            0
        };
        CgroupEvents {
            oom_kills: self.memory.as_deref().map_or(0, oom),
            pids_refusals: self.pids.as_deref().map_or(0, refused) + leaves,
        }
    }

    /// What the session used so far; absent where the kernel does not tell.
    pub fn usage(&self) -> Usage {
        let memory_file = if self.memory_is_v2() { "memory.peak" } else { "memory.max_usage_in_bytes" };
        let cpu_ms = match (&self.v2, &self.cpuacct) {
            (Some(group), _) => self.files.keyed(group.join("cpu.stat"), "usage_usec").map(|us| us / 1_000),
            (None, Some(group)) => self.files.number(group.join("cpuacct.usage")).map(|ns| ns / 1_000_000),
            (None, None) => None,
        };
        Usage {
            cpu_ms,
            memory_peak_bytes: self.memory.as_ref().and_then(|group| self.files.number(group.join(memory_file))),
            pids_peak: self.pids.as_ref().and_then(|group| self.files.number(group.join("pids.peak"))),
        }
    }

    /// What it holds now; none where the kernel does not tell.
    pub fn memory_bytes(&self) -> Option<u64> {
        let file = if self.memory_is_v2() { "memory.current" } else { "memory.usage_in_bytes" };
        self.memory.as_ref().and_then(|group| number(&group.join(file)))
    }

    /// Lets the memory peak count from now. v2 keeps a peak per open descriptor only, so there it stays the session's.
    pub fn reset_peak(&self) -> Result<PeakReset, CgroupError> {
        match &self.memory {
            Some(group) if !self.memory_is_v2() => {
                let path = group.join("memory.max_usage_in_bytes");
                self.files.write(path.clone(), "0").map_err(|source| CgroupError::Write { path, source })?;
                Ok(PeakReset::Reset)
            }
            Some(_) | None => Ok(PeakReset::Kept),
        }
    }

    /// From now on they have what other sessions leave of the processors (`cpu.idle`); false where the kernel has no such thing (Linux 5.15).
    pub fn give_way(&self) -> bool {
        self.cpu.as_ref().is_some_and(|group| fs::write(group.join(IDLE_FILE), "1").is_ok())
    }

    /// The end of [`Self::give_way`]: `limits` are in force again, for the kernel forgets the shares meanwhile.
    pub fn take_part(&self, limits: &Limits) -> Result<(), CgroupError> {
        let Some(group) = &self.cpu else { return Ok(()) };
        let path = group.join(IDLE_FILE);
        fs::write(&path, "0").map_err(|source| CgroupError::Write { path, source })?;
        let v2 = self.v2.as_ref() == Some(group);
        write_cpu(group, v2, (CPU_OF_A_NEW_GROUP.0, limits.cpu_cores), (limits.cpu_shares, limits.cpu_cores))
    }

    /// Removes the groups. Everything in them must have been killed; the last exits may still be under way.
    pub fn remove(mut self) -> Result<(), CgroupError> {
        self.remover = Remover::SomebodyElse;
        remove_directories(&self.directories)
    }

    fn counter(&self, path: PathBuf, key: &str) -> u64 {
        self.files.keyed(path, key).unwrap_or(0)
    }

    fn memory_is_v2(&self) -> bool {
        self.memory.is_some() && self.memory == self.v2
    }
}

impl Drop for SessionCgroup {
    fn drop(&mut self) {
        if self.remover == Remover::ThisValue
            && let Err(error) = remove_directories(&self.directories)
        {
            tracing::warn!(error = &error as &dyn std::error::Error, "a control group was left behind");
        }
    }
}

/// Removes groups in the given order (deepest first); goes on after a failure and returns the first.
pub fn remove_directories(directories: &[PathBuf]) -> Result<(), CgroupError> {
    let mut result = Ok(());
    for directory in directories {
        result = result.and(remove_directory(directory));
    }
    result
}

/// Removes one group, with patience for processes that are still exiting: at most 64 tries within about 0.3 s.
pub(super) fn remove_directory(path: &Path) -> Result<(), CgroupError> {
    const TRIES_MAX: u32 = 64;
    const PAUSE: Duration = Duration::from_millis(5);
    for attempt in 1.. {
        match fs::remove_dir(path) {
            Ok(()) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy && attempt < TRIES_MAX => thread::sleep(PAUSE),
            Err(source) => return Err(CgroupError::Remove { path: path.to_owned(), source }),
        }
    }
    Ok(())
}
