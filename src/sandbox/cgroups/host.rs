//! Which hierarchy carries which limit, and below which group sessions may be made.
//!
//! Invariant: the decision is a pure function of mountinfo, `/proc/self/cgroup` and a few answers about directories
//! (`Facts`), so every kind of host can be tested from text. A group that others own is never chosen.

use std::fs;
use std::path::{Component, Path, PathBuf};

use serde::Serialize;

use crate::sys::probe;

/// How this process stands in the host's control groups (cgroups(7)).
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CgroupHost {
    /// Who carries the memory limit.
    pub memory: Carrier,
    /// Who carries the limit on processes.
    pub pids: Carrier,
    /// Who carries weight and quota of the processors.
    pub cpu: Carrier,
    /// Who carries the bound on disk traffic; v2 only, since v1 sees no write that goes through the page cache.
    pub io: Carrier,
    /// The v1 group for cpu time when no v2 tree tells it.
    pub cpuacct: Option<PathBuf>,
    /// The v2 tree, when this process may make groups in it.
    pub v2: Option<V2Tree>,
}

/// The hierarchy that carries a limit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Carrier {
    /// A v1 controller; sessions go below this group.
    V1(PathBuf),
    /// The v2 tree of `CgroupHost::v2`.
    V2,
    /// Nobody.
    Absent {
        /// Why, as a sentence fragment without host paths.
        why: String,
    },
}

/// The v2 tree.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct V2Tree {
    /// Sessions go below this group.
    pub base: PathBuf,
    /// What has to happen to this process first.
    pub entry: V2Entry,
}

/// Whether this process stands in the way: a v2 group that gives controllers to children can hold no process itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum V2Entry {
    /// It does not.
    Ready,
    /// This process is alone in `base` and moves into a leaf below it.
    MoveSelf,
}

/// What the decision needs to know about directories of cgroupfs.
pub trait Facts {
    /// The directory exists and this process may make groups in it and move processes to it.
    fn writable(&self, group: &Path) -> bool;
    /// The words of `cgroup.controllers`.
    fn controllers(&self, group: &Path) -> Vec<String>;
    /// Who is in `cgroup.procs`.
    fn population(&self, group: &Path) -> Population;
    /// The real root of the hierarchy, which may give controllers and hold processes at the same time.
    fn is_hierarchy_root(&self, group: &Path) -> bool;
}

/// Who is in a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Population {
    /// Nobody.
    Empty,
    /// This process and nobody else.
    SelfOnly,
    /// Others.
    Others,
}

impl CgroupHost {
    /// Asks this host.
    pub fn probe() -> Self {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        Self::decide(&read("/proc/self/mountinfo"), &read("/proc/self/cgroup"), &Kernel)
    }

    /// A host that carries no limit.
    pub fn none(why: &str) -> Self {
        let absent = || Carrier::Absent { why: why.to_owned() };
        Self { memory: absent(), pids: absent(), cpu: absent(), io: absent(), cpuacct: None, v2: None }
    }

    /// The decision.
    pub fn decide(mountinfo: &str, membership: &str, facts: &dyn Facts) -> Self {
        let mounts: Vec<Mount> = mountinfo.lines().filter_map(Mount::parse).collect();
        let v2 = v2_tree(&mounts, membership, facts);
        let given = v2.as_ref().map(|tree| facts.controllers(&tree.base)).unwrap_or_default();
        let carrier = |controller: &str| match v1_group(&mounts, membership, controller) {
            Some(group) if facts.writable(&group) => Carrier::V1(group),
            Some(_) => Carrier::Absent { why: format!("this user may not write to the cgroup v1 controller {controller}") },
            None if given.iter().any(|name| name == controller) => Carrier::V2,
            None if v2.is_some() => Carrier::Absent { why: format!("no controller {controller} is delegated to this process") },
            None => Carrier::Absent { why: "no cgroup is delegated to this process".into() },
        };
        let cpuacct = match &v2 {
            Some(_) => None,
            None => v1_group(&mounts, membership, "cpuacct").filter(|group| facts.writable(group)),
        };
        let io = match v1_group(&mounts, membership, "blkio") {
            Some(_) => Carrier::Absent { why: "the controller io sits on cgroup v1, which sees no buffered writes".into() },
            None => carrier("io"),
        };
        Self { memory: carrier("memory"), pids: carrier("pids"), cpu: carrier("cpu"), io, cpuacct, v2 }
    }

    /// Controllers that the v2 tree must hand down to sessions.
    pub fn v2_controllers(&self) -> Vec<&'static str> {
        let rows = [("memory", &self.memory), ("pids", &self.pids), ("cpu", &self.cpu), ("io", &self.io)];
        rows.into_iter().filter(|(_, carrier)| **carrier == Carrier::V2).map(|(name, _)| name).collect()
    }

    /// Every group below which the project makes groups, each once.
    pub fn bases(&self) -> Vec<&Path> {
        let mut bases: Vec<&Path> = Vec::new();
        for carrier in [&self.memory, &self.pids, &self.cpu] {
            match carrier {
                Carrier::V1(group) => bases.push(group),
                Carrier::V2 | Carrier::Absent { .. } => {}
            }
        }
        bases.extend(self.cpuacct.as_deref());
        bases.extend(self.v2.as_ref().map(|tree| tree.base.as_path()));
        bases.sort();
        bases.dedup();
        bases
    }
}

/// One cgroup mount of mountinfo.
struct Mount {
    root: PathBuf,
    point: PathBuf,
    version: Version,
}

enum Version {
    V1 { options: Vec<String> },
    V2,
}

impl Mount {
    /// A line of `/proc/self/mountinfo` (proc_pid_mountinfo(5)), if it is a cgroup mount.
    fn parse(line: &str) -> Option<Self> {
        let (place, kind) = line.split_once(" - ")?;
        let mut place = place.split(' ').skip(3);
        let (root, point) = (place.next()?, place.next()?);
        let mut kind = kind.split(' ');
        let version = match kind.next()? {
            "cgroup2" => Version::V2,
            "cgroup" => Version::V1 { options: kind.nth(1)?.split(',').map(str::to_owned).collect() },
            _ => return None,
        };
        Some(Self { root: root.into(), point: point.into(), version })
    }

    /// Where the group `path` of `/proc/self/cgroup` lies below this mount; a path that leads out of the mount is refused.
    fn locate(&self, path: &Path) -> Option<PathBuf> {
        let inside = path.strip_prefix(&self.root).ok()?;
        let plain = inside.components().all(|part| matches!(part, Component::Normal(_)));
        plain.then(|| self.point.join(inside)).map(|group| group.components().collect())
    }
}

/// The groups of the process whose `/proc/PID/cgroup` this is: of each v1 controller, and of the v2 tree.
pub(super) fn groups_of(mountinfo: &str, membership: &str) -> (Vec<(&'static str, PathBuf)>, Option<PathBuf>) {
    let mounts: Vec<Mount> = mountinfo.lines().filter_map(Mount::parse).collect();
    let of = |controller: &'static str| v1_group(&mounts, membership, controller).map(|group| (controller, group));
    let path = membership.lines().find_map(|line| line.strip_prefix("0::"));
    let is_v2 = |mount: &&Mount| matches!(mount.version, Version::V2);
    let v2 = path.and_then(|path| mounts.iter().filter(is_v2).find_map(|mount| mount.locate(Path::new(path))));
    (["memory", "pids", "cpuacct"].into_iter().filter_map(of).collect(), v2)
}

/// This process's group of a v1 controller.
fn v1_group(mounts: &[Mount], membership: &str, controller: &str) -> Option<PathBuf> {
    let path = membership.lines().find_map(|line| {
        let mut fields = line.splitn(3, ':').skip(1);
        let controllers = fields.next()?;
        let path = fields.next()?;
        controllers.split(',').any(|name| name == controller).then_some(path)
    })?;
    let carries = |mount: &&Mount| match &mount.version {
        Version::V1 { options } => options.iter().any(|option| option == controller),
        Version::V2 => false,
    };
    mounts.iter().filter(carries).find_map(|mount| mount.locate(Path::new(path)))
}

/// The v2 group to work below: of the process's own group and its delegated ancestors the nearest that has controllers and may
/// hand them down – it is empty, or this process is alone in it, or it is the root of the hierarchy. A delegated subtree often
/// gives its leaves no controllers yet. Where no controllers are to be had, the own group serves whoever else is in it.
fn v2_tree(mounts: &[Mount], membership: &str, facts: &dyn Facts) -> Option<V2Tree> {
    let path = Path::new(membership.lines().find_map(|line| line.strip_prefix("0::"))?);
    let mount = mounts.iter().find(|mount| matches!(mount.version, Version::V2) && mount.locate(path).is_some())?;
    let own = mount.locate(path)?;
    let wanted = ["memory", "pids", "cpu"];
    let has_controllers = |group: &Path| facts.controllers(group).iter().any(|name| wanted.contains(&name.as_str()));
    let ancestors = own.ancestors().take_while(|group| group.starts_with(&mount.point) && facts.writable(group));
    for group in ancestors.filter(|group| has_controllers(group)) {
        let ready = facts.is_hierarchy_root(group) || facts.population(group) == Population::Empty;
        if ready {
            return Some(V2Tree { base: group.to_owned(), entry: V2Entry::Ready });
        }
        if facts.population(group) == Population::SelfOnly {
            return Some(V2Tree { base: group.to_owned(), entry: V2Entry::MoveSelf });
        }
    }
    let serves = facts.writable(&own) && !has_controllers(&own);
    serves.then_some(V2Tree { base: own, entry: V2Entry::Ready })
}

/// The kernel's answers.
struct Kernel;

impl Facts for Kernel {
    fn writable(&self, group: &Path) -> bool {
        probe::writable(group) && probe::writable(&group.join("cgroup.procs"))
    }

    fn controllers(&self, group: &Path) -> Vec<String> {
        let text = fs::read_to_string(group.join("cgroup.controllers")).unwrap_or_default();
        text.split_whitespace().map(str::to_owned).collect()
    }

    fn population(&self, group: &Path) -> Population {
        let Ok(text) = fs::read_to_string(group.join("cgroup.procs")) else { return Population::Others };
        let own = std::process::id().to_string();
        if text.trim().is_empty() {
            Population::Empty
        } else if text.lines().all(|pid| pid == own) {
            Population::SelfOnly
        } else {
            Population::Others
        }
    }

    fn is_hierarchy_root(&self, group: &Path) -> bool {
        !group.join("cgroup.type").exists()
    }
}

#[cfg(test)]
#[path = "host_tests.rs"]
mod tests;
