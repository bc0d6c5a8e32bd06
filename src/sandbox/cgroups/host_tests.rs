//! Kinds of hosts, as text.

use std::collections::BTreeMap;

use super::*;

const HYBRID: &str = "35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
39 31 0:36 / /sys/fs/cgroup/pids rw,relatime - cgroup cgroup rw,pids
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime - cgroup cgroup rw,cpu,cpuacct
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw";
const HYBRID_SELF: &str = "8:pids:/\n4:memory:/jobs/a\n1:cpu,cpuacct:/\n0::/";
const UNIFIED: &str = "24 23 0:22 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate";

/// Answers from a table: group → (controllers, population). A group that is not in it can't be written.
struct Table(BTreeMap<&'static str, (&'static str, Population)>);

impl Facts for Table {
    fn writable(&self, group: &Path) -> bool {
        self.0.contains_key(group.to_str().expect("test paths are text"))
    }
    fn controllers(&self, group: &Path) -> Vec<String> {
        let row = self.0.get(group.to_str().expect("test paths are text"));
        row.map(|(names, _)| names.split_whitespace().map(str::to_owned).collect()).unwrap_or_default()
    }
    fn population(&self, group: &Path) -> Population {
        self.0.get(group.to_str().expect("test paths are text")).map_or(Population::Others, |row| row.1)
    }
    fn is_hierarchy_root(&self, group: &Path) -> bool {
        ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"].iter().any(|root| Path::new(root) == group)
    }
}

#[test]
fn on_a_hybrid_host_limits_sit_on_v1_below_the_own_group_and_v2_serves_without_controllers() {
    let facts = Table(BTreeMap::from([
        ("/sys/fs/cgroup/memory/jobs/a", ("", Population::Others)),
        ("/sys/fs/cgroup/pids", ("", Population::Others)),
        ("/sys/fs/cgroup/cpu,cpuacct", ("", Population::Others)),
        ("/sys/fs/cgroup/unified", ("hugetlb", Population::Others)),
    ]));
    let host = CgroupHost::decide(HYBRID, HYBRID_SELF, &facts);
    assert_eq!(host.memory, Carrier::V1("/sys/fs/cgroup/memory/jobs/a".into()));
    assert_eq!(host.pids, Carrier::V1("/sys/fs/cgroup/pids".into()));
    assert_eq!(host.cpu, Carrier::V1("/sys/fs/cgroup/cpu,cpuacct".into()));
    assert_eq!(host.cpuacct, None, "the v2 tree tells the cpu time");
    assert_eq!(host.v2, Some(V2Tree { base: "/sys/fs/cgroup/unified".into(), entry: V2Entry::Ready }));
    assert!(host.v2_controllers().is_empty());
}

#[test]
fn on_a_v1_host_without_v2_cpu_time_comes_from_cpuacct() {
    let mounts = HYBRID.lines().take(3).collect::<Vec<_>>().join("\n");
    let facts = Table(BTreeMap::from([("/sys/fs/cgroup/cpu,cpuacct", ("", Population::Others))]));
    let host = CgroupHost::decide(&mounts, HYBRID_SELF, &facts);
    assert_eq!(host.cpuacct, Some("/sys/fs/cgroup/cpu,cpuacct".into()));
    assert_eq!(host.v2, None);
    assert!(matches!(host.memory, Carrier::Absent { .. }), "a group that can't be written carries nothing");
}

#[test]
fn a_process_alone_in_a_delegated_v2_group_moves_into_a_leaf() {
    let own = "/sys/fs/cgroup/system.slice/cb.service";
    let facts = Table(BTreeMap::from([(own, ("cpu memory pids", Population::SelfOnly))]));
    let host = CgroupHost::decide(UNIFIED, "0::/system.slice/cb.service", &facts);
    assert_eq!(host.v2, Some(V2Tree { base: own.into(), entry: V2Entry::MoveSelf }));
    assert_eq!(host.v2_controllers(), ["memory", "pids", "cpu"]);
}

#[test]
fn a_shared_v2_group_is_left_for_an_empty_ancestor_and_never_used_itself() {
    let shared = ("/sys/fs/cgroup/user/run", ("memory pids", Population::Others));
    let empty = ("/sys/fs/cgroup/user", ("memory pids", Population::Empty));
    let host = CgroupHost::decide(UNIFIED, "0::/user/run", &Table(BTreeMap::from([shared, empty])));
    assert_eq!(host.v2, Some(V2Tree { base: "/sys/fs/cgroup/user".into(), entry: V2Entry::Ready }));
    assert!(matches!(host.cpu, Carrier::Absent { .. }));
    let alone = CgroupHost::decide(UNIFIED, "0::/user/run", &Table(BTreeMap::from([shared])));
    assert_eq!(alone.v2, None);
}

#[test]
fn root_in_a_shared_group_works_below_the_root_of_the_hierarchy() {
    let facts = Table(BTreeMap::from([
        ("/sys/fs/cgroup/user/run", ("cpu memory pids", Population::Others)),
        ("/sys/fs/cgroup/user", ("cpu memory pids", Population::Others)),
        ("/sys/fs/cgroup", ("cpu memory pids", Population::Others)),
    ]));
    let host = CgroupHost::decide(UNIFIED, "0::/user/run", &facts);
    assert_eq!(host.v2, Some(V2Tree { base: "/sys/fs/cgroup".into(), entry: V2Entry::Ready }));
}

#[test]
fn a_group_outside_the_mount_is_not_followed() {
    let facts = Table(BTreeMap::from([("/sys/fs/cgroup", ("memory", Population::Empty))]));
    assert_eq!(CgroupHost::decide(UNIFIED, "0::/../other", &facts).v2, None);
    assert!(CgroupHost::decide(UNIFIED, "0::/", &facts).v2.is_some());
}

#[test]
fn a_leaf_without_controllers_is_left_for_the_delegated_group_above_that_has_them() {
    let leaf = ("/sys/fs/cgroup/delegated/suite", ("", Population::Others));
    let above = ("/sys/fs/cgroup/delegated", ("cpu memory pids", Population::Empty));
    let host = CgroupHost::decide(UNIFIED, "0::/delegated/suite", &Table(BTreeMap::from([leaf, above])));
    assert_eq!(host.v2, Some(V2Tree { base: "/sys/fs/cgroup/delegated".into(), entry: V2Entry::Ready }));
    assert_eq!(host.v2_controllers(), ["memory", "pids", "cpu"]);
    let alone = CgroupHost::decide(UNIFIED, "0::/delegated/suite", &Table(BTreeMap::from([leaf])));
    assert_eq!(alone.v2, Some(V2Tree { base: "/sys/fs/cgroup/delegated/suite".into(), entry: V2Entry::Ready }));
    assert!(alone.v2_controllers().is_empty());
}
