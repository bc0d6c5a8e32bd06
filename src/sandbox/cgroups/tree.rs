//! The server's own groups, and making a session's groups below them.
//!
//! Invariant: a half-made session group is removed before an error is returned.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use cgroups_rs::fs::MaxValue;
use cgroups_rs::fs::cpu::CpuController;
use cgroups_rs::fs::memory::MemController;
use cgroups_rs::fs::pid::PidController;

use super::io_limit::IoLimit;
use super::session::remove_directory;
use super::{CPU_PERIOD_US, Carrier, CgroupError, CgroupHost, GROUP_PREFIX, SessionCgroup, V2Entry, cpu_quota_us, cpu_weight};
use crate::id::EnvironmentId;
use crate::plan::messages::WayBack;
use crate::sandbox::enforcement::{WallState, WallStatus};
use crate::sandbox::spec::Limits;
use crate::sys::cgroup::step_back;

/// The groups `codebeaker-<server>`, one in each hierarchy that is used.
#[derive(Debug)]
pub struct CgroupTree {
    memory: Place,
    pids: Place,
    cpu: Place,
    cpuacct: Option<PathBuf>,
    v2: Option<PathBuf>,
    v2_controllers: Vec<&'static str>,
    swap: SwapAccounting,
    /// What the rows of memory and pids say about `usage`.
    memory_peak: &'static str,
    pids_peak: &'static str,
    /// This process has moved itself into a leaf of its own group.
    way_back: Option<WayBack>,
    io: Place,
    io_limit: IoLimit,
}

/// Where a limit is written: below which of the server's groups.
#[derive(Debug, Clone)]
enum Place {
    V1(PathBuf),
    V2(PathBuf),
    Absent(String),
}

impl Place {
    /// Nothing where the kernel tells the peak in this file of a group; else what `usage` lacks.
    fn peak_words(&self, v1: &str, v2: &str) -> &'static str {
        let told = match self {
            Self::V1(group) => group.join(v1).exists(),
            Self::V2(group) => group.join(v2).exists(),
            Self::Absent(_) => true,
        };
        if told { "" } else { "; the kernel tells no peak, so usage has none" }
    }
}

/// Whether the kernel counts swap per group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum SwapAccounting {
    Counted,
    NotCounted,
}

impl CgroupTree {
    /// Makes the server's groups. `None` when this process may make none (rootless without delegation).
    ///
    /// `server` is the server's id (`sandbox::state::ServerId`); [`Self::remove_stale`] judges by it whether the server lives.
    pub fn open(host: &CgroupHost, server: &str) -> Result<Option<Self>, CgroupError> {
        check_name(server)?;
        if host.bases().is_empty() {
            return Ok(None);
        }
        let name = format!("{GROUP_PREFIX}{server}");
        for base in host.bases() {
            ensure_directory(&base.join(&name))?;
        }
        let v2 = host.v2.as_ref().map(|tree| tree.base.join(&name));
        let v2_controllers = host.v2_controllers();
        let way_back = match &host.v2 {
            Some(tree) => hand_down(&tree.base, &tree.base.join(&name), tree.entry, &v2_controllers)?,
            None => None,
        };
        let place = |carrier: &Carrier| match (carrier, &v2) {
            (Carrier::V1(group), _) => Place::V1(group.join(&name)),
            (Carrier::V2, Some(group)) => Place::V2(group.clone()),
            (Carrier::V2, None) => Place::Absent("the v2 tree is gone".into()),
            (Carrier::Absent { why }, _) => Place::Absent(why.clone()),
        };
        let (memory, io) = (place(&host.memory), place(&host.io));
        let pids = place(&host.pids);
        Ok(Some(Self {
            swap: swap_accounting(&memory),
            memory_peak: memory.peak_words("memory.max_usage_in_bytes", "memory.peak"),
            memory,
            pids_peak: pids.peak_words("pids.peak", "pids.peak"),
            pids,
            cpu: place(&host.cpu),
            cpuacct: host.cpuacct.as_ref().map(|group| group.join(&name)),
            v2,
            v2_controllers,
            way_back,
            io,
            io_limit: IoLimit::default(),
        }))
    }

    /// Every session made from now on has this bound on disk traffic.
    #[must_use]
    pub fn with_io_limit(self, io_limit: IoLimit) -> Self {
        Self { io_limit, ..self }
    }

    /// Makes a session's groups and puts its limits in force.
    pub fn create(&self, environment: &EnvironmentId, limits: &Limits) -> Result<SessionCgroup, CgroupError> {
        let mut session = self.begin(environment)?;
        self.finish(&mut session, environment, limits)?;
        Ok(session)
    }

    /// Makes only what a session's init is born in, so that it can be while [`Self::finish`] does the rest.
    pub fn begin(&self, environment: &EnvironmentId) -> Result<SessionCgroup, CgroupError> {
        let name = environment.as_str();
        check_name(name)?;
        let mut session = SessionCgroup::empty();
        if let Some(parent) = &self.v2 {
            self.create_v2(&parent.join(name), &mut session)?;
        }
        Ok(session)
    }

    /// Makes the other groups of a session that has begun, unless they are there; no limit is in force in them yet.
    pub fn fill_up(&self, session: &mut SessionCgroup, environment: &EnvironmentId) -> Result<(), CgroupError> {
        let name = environment.as_str();
        for parent in self.v1_parents().into_iter().skip(session.join.len()) {
            let group = parent.join(name);
            make_directory(&group)?;
            session.join.push(group.join("tasks"));
            // The top of the v2 tree stays the last: by it all are ended.
            session.directories.insert(0, group);
        }
        Ok(())
    }

    /// Makes what groups are missing of a session that has begun, and puts its limits in force.
    pub fn finish(&self, session: &mut SessionCgroup, environment: &EnvironmentId, limits: &Limits) -> Result<(), CgroupError> {
        self.fill_up(session, environment)?;
        let name = environment.as_str();
        self.limit_memory(name, limits, session)?;
        self.limit_pids(name, limits, session)?;
        self.limit_cpu(name, limits, session)?;
        self.limit_io(name, session);
        session.cpuacct = self.cpuacct.as_ref().map(|parent| parent.join(name));
        Ok(())
    }

    /// Whether `pids.max` of a session's group bounds its processes.
    pub fn bounds_processes(&self) -> bool {
        match self.pids {
            Place::V1(_) | Place::V2(_) => true,
            Place::Absent(_) => false,
        }
    }

    /// The server's own groups: what the launcher, which outlives the server, removes last.
    pub fn directories(&self) -> Vec<PathBuf> {
        self.v1_parents().into_iter().chain(self.v2.as_deref()).map(Path::to_owned).collect()
    }

    /// From the leaf that this process has moved into, if it had to.
    pub fn way_back(&self) -> Option<WayBack> {
        self.way_back.clone()
    }

    /// Removes the server's own groups, once its sessions and the launcher are gone; this process goes back to where it came
    /// from. A group that somebody still stands in stays for the next start to remove.
    pub fn close(&self) -> Result<(), CgroupError> {
        if let Some(way) = self.way_back.as_ref().filter(|way| Path::new(&way.leaf).exists())
            && let Err(error) = step_back([&way.group, &way.base], &way.base)
        {
            tracing::warn!(%error, "the server's own control group could not be left");
        }
        let mut result = Ok(());
        for group in self.v1_parents().into_iter().chain(self.v2.as_deref()) {
            let leaf = group.join("server");
            if leaf.exists() && std::fs::remove_dir(&leaf).is_err() {
                continue;
            }
            result = result.and(remove_directory(group));
        }
        result
    }

    /// The server's v1 groups, each once though several controllers may share a mount.
    fn v1_parents(&self) -> Vec<&Path> {
        let mut parents: Vec<&Path> = Vec::with_capacity(4);
        for place in [&self.memory, &self.pids, &self.cpu] {
            match place {
                Place::V1(group) if !parents.contains(&group.as_path()) => parents.push(group),
                Place::V1(_) | Place::V2(_) | Place::Absent(_) => {}
            }
        }
        parents.extend(self.cpuacct.as_deref().filter(|group| !parents.contains(group)));
        parents
    }

    /// With controllers: the group and its leaves `init` and `run`. Without (hybrid): one group, for birth and for killing.
    fn create_v2(&self, group: &Path, session: &mut SessionCgroup) -> Result<(), CgroupError> {
        make_directory(group)?;
        session.directories.push(group.to_owned());
        session.v2 = Some(group.to_owned());
        let kill = group.join("cgroup.kill");
        session.kill = kill.exists().then_some(kill);
        if self.v2_controllers.is_empty() {
            session.born_in = Some(group.to_owned());
            return Ok(());
        }
        // Only these two: `run` needs memory for oom.group, and older kernels count a refused fork where it was tried.
        let handed: Vec<&str> = self.v2_controllers.iter().copied().filter(|name| ["memory", "pids"].contains(name)).collect();
        enable(group, &handed)?;
        let (init, run) = (group.join("init"), group.join("run"));
        for leaf in [&init, &run] {
            make_directory(leaf)?;
            session.directories.insert(0, leaf.clone());
        }
        if handed.contains(&"memory") {
            write(&run.join("memory.oom.group"), "1")?;
        }
        session.born_in = Some(init);
        session.run = Some(run);
        Ok(())
    }

    fn limit_memory(&self, name: &str, limits: &Limits, session: &mut SessionCgroup) -> Result<(), CgroupError> {
        let (group, v2) = match &self.memory {
            Place::V1(parent) => (parent.join(name), false),
            Place::V2(parent) => (parent.join(name), true),
            Place::Absent(why) => {
                session.limits.push(row("memory", WallStatus::Absent, why));
                return Ok(());
            }
        };
        let bytes = limits.memory_bytes.get();
        write_memory(&group, v2, bytes)?;
        let file = if v2 { "v2 memory.max" } else { "v1 memory.limit_in_bytes" };
        if self.swap == SwapAccounting::Counted {
            self.write_swap(&group, v2, bytes)?;
            session.limits.push(row("memory", WallStatus::Enforced, &format!("cgroup {file}, no swap{}", self.memory_peak)));
        } else {
            let detail = format!("cgroup {file}; the kernel does not count swap per group{}", self.memory_peak);
            session.limits.push(row("memory", WallStatus::Degraded, &detail));
        }
        session.memory = Some(group);
        Ok(())
    }

    /// v1 counts memory and swap together, v2 swap alone: either way nothing is left for swap.
    fn write_swap(&self, group: &Path, v2: bool, bytes: u64) -> Result<(), CgroupError> {
        if self.swap == SwapAccounting::NotCounted {
            return Ok(());
        }
        let bytes = if v2 { 0 } else { i64::try_from(bytes).unwrap_or(i64::MAX) };
        let controller = MemController::new(group.to_owned(), PathBuf::new(), v2);
        controller.set_memswap_limit(bytes).map_err(refused("swap", group))
    }

    /// Puts other limits in force for groups that exist: writes only what differs.
    pub fn change(&self, session: &SessionCgroup, from: &Limits, to: &Limits) -> Result<(), CgroupError> {
        let (before, after) = (from.memory_bytes.get(), to.memory_bytes.get());
        if let Some(group) = session.memory.as_deref().filter(|_| before != after) {
            let v2 = session.v2.as_deref() == Some(group);
            // The limit on memory is never above the one on both together.
            if after > before {
                self.write_swap(group, v2, after)?;
            }
            write_memory(group, v2, after)?;
            if after < before {
                self.write_swap(group, v2, after)?;
            }
        }
        if let Some(group) = session.pids.as_deref().filter(|_| from.pids != to.pids) {
            write_pids(group, session.v2.as_deref() == Some(group), to.pids)?;
        }
        if let Some(group) = &session.cpu {
            let v2 = session.v2.as_ref() == Some(group);
            write_cpu(group, v2, (from.cpu_shares, from.cpu_cores), (to.cpu_shares, to.cpu_cores))?;
        }
        Ok(())
    }

    fn limit_pids(&self, name: &str, limits: &Limits, session: &mut SessionCgroup) -> Result<(), CgroupError> {
        let (group, version) = match &self.pids {
            Place::V1(parent) => (parent.join(name), "v1"),
            Place::V2(parent) => (parent.join(name), "v2"),
            Place::Absent(why) => {
                session.limits.push(row("pids", WallStatus::Absent, why));
                return Ok(());
            }
        };
        write_pids(&group, version == "v2", limits.pids)?;
        session.limits.push(row("pids", WallStatus::Enforced, &format!("cgroup {version} pids.max{}", self.pids_peak)));
        session.pids = Some(group);
        Ok(())
    }

    fn limit_cpu(&self, name: &str, limits: &Limits, session: &mut SessionCgroup) -> Result<(), CgroupError> {
        let (group, v2) = match &self.cpu {
            Place::V1(parent) => (parent.join(name), false),
            Place::V2(parent) => (parent.join(name), true),
            Place::Absent(why) => {
                session.limits.push(row("cpu", WallStatus::Absent, why));
                return Ok(());
            }
        };
        write_cpu(&group, v2, CPU_OF_A_NEW_GROUP, (limits.cpu_shares, limits.cpu_cores))?;
        let words = if v2 { "cgroup v2 cpu.weight and cpu.max" } else { "cgroup v1 cpu.shares and cpu.cfs_quota_us" };
        session.limits.push(row("cpu", WallStatus::Enforced, words));
        session.cpu = Some(group);
        Ok(())
    }

    /// Nobody can name this limit in a request, so what stands in its way is told and no failure.
    fn limit_io(&self, name: &str, session: &mut SessionCgroup) {
        let group = match &self.io {
            Place::V2(parent) => Ok(parent.join(name)),
            Place::V1(_) => Err("cgroup v1 sees no buffered writes".to_owned()),
            Place::Absent(why) => Err(why.clone()),
        };
        session.limits.push(match group.and_then(|group| self.io_limit.apply(&group)) {
            Ok(detail) => row("io", WallStatus::Enforced, &detail),
            Err(why) => row("io", WallStatus::Absent, &why),
        });
    }
}

fn refused(limit: &'static str, group: &Path) -> impl FnOnce(cgroups_rs::fs::error::Error) -> CgroupError {
    let path = group.to_owned();
    move |source| CgroupError::Limit { limit, path, source }
}

fn write_memory(group: &Path, v2: bool, bytes: u64) -> Result<(), CgroupError> {
    let controller = MemController::new(group.to_owned(), PathBuf::new(), v2);
    controller.set_limit(i64::try_from(bytes).unwrap_or(i64::MAX)).map_err(refused("memory", group))
}

fn write_pids(group: &Path, v2: bool, pids: u64) -> Result<(), CgroupError> {
    let most = i64::try_from(pids).unwrap_or(i64::MAX);
    let controller = PidController::new(group.to_owned(), PathBuf::new(), v2);
    controller.set_pid_max(MaxValue::Value(most)).map_err(refused("pids", group))
}

/// Shares, and cores where there is a quota.
pub(super) type Cpu = (u64, Option<f64>);

/// What a group has before anything is written to it.
pub(super) const CPU_OF_A_NEW_GROUP: Cpu = (1024, None);

/// Writes what differs from what is in force.
pub(super) fn write_cpu(
    group: &Path,
    v2: bool,
    (shares, cores): Cpu,
    (wanted_shares, wanted_cores): Cpu,
) -> Result<(), CgroupError> {
    let controller = CpuController::new(group.to_owned(), PathBuf::new(), v2);
    if shares != wanted_shares {
        let weight = if v2 { cpu_weight(wanted_shares) } else { wanted_shares };
        controller.set_shares(weight).map_err(refused("cpu", group))?;
    }
    if cores != wanted_cores {
        // A new v1 group has this period already; on v2 one line holds both. -1 is no quota.
        let quota = wanted_cores.map_or(-1, cpu_quota_us);
        let period = v2.then_some(CPU_PERIOD_US);
        controller.set_cfs_quota_and_period(Some(quota), period).map_err(refused("cpu", group))?;
    }
    Ok(())
}

fn row(name: &str, state: WallStatus, detail: &str) -> WallState {
    WallState { name: name.to_owned(), state, detail: detail.to_owned() }
}

/// Lets the groups below `own` have the controllers; moves this process out of `base` first where it stands in the way, and
/// then tells the way back.
fn hand_down(base: &Path, own: &Path, entry: V2Entry, controllers: &[&str]) -> Result<Option<WayBack>, CgroupError> {
    if controllers.is_empty() {
        return Ok(None);
    }
    let way_back = match entry {
        V2Entry::Ready => None,
        V2Entry::MoveSelf => {
            let leaf = own.join("server");
            ensure_directory(&leaf)?;
            write(&leaf.join("cgroup.procs"), "0")?;
            let text = |path: &Path| path.to_string_lossy().into_owned();
            Some(WayBack { leaf: text(&leaf), group: text(own), base: text(base) })
        }
    };
    enable(base, controllers)?;
    enable(own, controllers)?;
    Ok(way_back)
}

/// Writes the controllers that `group` does not hand down yet.
fn enable(group: &Path, controllers: &[&str]) -> Result<(), CgroupError> {
    let file = group.join("cgroup.subtree_control");
    let present = fs::read_to_string(&file).unwrap_or_default();
    let is_missing = |name: &&&str| !present.split_whitespace().any(|word| word == **name);
    let missing: Vec<String> = controllers.iter().filter(is_missing).map(|name| format!("+{name}")).collect();
    if missing.is_empty() { Ok(()) } else { write(&file, &missing.join(" ")) }
}

fn swap_accounting(memory: &Place) -> SwapAccounting {
    let file = match memory {
        Place::V1(group) => group.join("memory.memsw.limit_in_bytes"),
        Place::V2(group) => group.join("memory.swap.max"),
        Place::Absent(_) => return SwapAccounting::NotCounted,
    };
    if file.exists() { SwapAccounting::Counted } else { SwapAccounting::NotCounted }
}

/// Server and environment ids are such words; anything else never becomes a path.
fn check_name(name: &str) -> Result<(), CgroupError> {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_' || byte == b'-';
    if !name.is_empty() && name.len() <= 128 && name.bytes().all(plain) {
        return Ok(());
    }
    Err(CgroupError::Name { name: name.to_owned() })
}

/// A session's group must be new: one that exists would be shared with whoever made it.
fn make_directory(path: &Path) -> Result<(), CgroupError> {
    fs::create_dir(path).map_err(|source| CgroupError::Create { path: path.to_owned(), source })
}

/// The server's own groups may be there already: this process made them before.
fn ensure_directory(path: &Path) -> Result<(), CgroupError> {
    match make_directory(path) {
        Err(CgroupError::Create { source, .. }) if source.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        made => made,
    }
}

fn write(path: &Path, text: &str) -> Result<(), CgroupError> {
    fs::write(path, text).map_err(|source| CgroupError::Write { path: path.to_owned(), source })
}

#[cfg(test)]
#[path = "tree_tests.rs"]
mod tests;
