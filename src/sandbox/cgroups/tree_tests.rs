//! Real groups, made below this process's own and removed again. On a host where none can be made the tests say so.

use std::num::NonZeroU64;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use super::*;
use crate::sandbox::state::ServerId;

/// A tree of its own for one test; the suffix keeps tests of one process apart.
struct Bed {
    host: CgroupHost,
    tree: Option<CgroupTree>,
}

impl Bed {
    fn open(test: &str) -> Option<Self> {
        let host = CgroupHost::probe();
        if host.v2.as_ref().is_some_and(|tree| tree.entry == V2Entry::MoveSelf) {
            eprintln!("skipped: the test process would have to move itself");
            return None;
        }
        let tree = CgroupTree::open(&host, &format!("test-{}-{test}", std::process::id())).expect("the tree opens");
        if tree.is_none() {
            eprintln!("skipped: this process may make no control groups");
        }
        tree.map(|tree| Self { host, tree: Some(tree) })
    }

    fn tree(&self) -> &CgroupTree {
        self.tree.as_ref().expect("open until dropped")
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        if let Some(tree) = self.tree.take() {
            tree.close().expect("the tree is empty");
        }
    }
}

fn limits() -> Limits {
    Limits {
        memory_bytes: NonZeroU64::new(64 << 20).expect("not zero"),
        cpu_shares: 512,
        cpu_cores: Some(0.5),
        pids: 16,
        disk_bytes: 1 << 20,
        inodes: 100,
        output_kept_bytes: 1,
        output_killed_bytes: 1,
        timeout: Duration::from_secs(1),
        timeout_max: Duration::from_secs(1),
        open_files: 64,
    }
}

/// A process that only sleeps; ended when dropped.
struct Sleeper(Child);

impl Sleeper {
    fn start() -> Self {
        Self(Command::new("sleep").arg("60").stdout(Stdio::null()).spawn().expect("sleep starts"))
    }

    fn enter(&self, session: &SessionCgroup) {
        for file in session.join.iter().cloned().chain(session.born_in.as_ref().map(|group| group.join("cgroup.procs"))) {
            fs::write(file, self.0.id().to_string()).expect("a process may join");
        }
    }
}

impl Drop for Sleeper {
    fn drop(&mut self) {
        self.0.kill().expect("our own child");
        self.0.wait().expect("our own child");
    }
}

#[test]
fn a_sessions_groups_hold_its_limits_and_are_gone_after_remove() {
    let Some(bed) = Bed::open("limits") else { return };
    let session = bed.tree().create(&EnvironmentId::random(), &limits()).expect("created");
    let read = |group: &Path, file: &str| fs::read_to_string(group.join(file)).expect("a file of the group");
    let states: Vec<&str> = session.limits.iter().map(|row| row.name.as_str()).collect();
    assert_eq!(states, ["memory", "pids", "cpu", "io"]);
    if let Some(group) = &session.memory {
        let file = if bed.host.memory == Carrier::V2 { "memory.max" } else { "memory.limit_in_bytes" };
        assert_eq!(read(group, file).trim(), "67108864");
    }
    if let Some(group) = &session.pids {
        assert_eq!(read(group, "pids.max").trim(), "16");
    }
    let directories = session.directories.clone();
    assert!(!directories.is_empty() && directories.iter().all(|group| group.exists()));
    session.remove().expect("nobody is in it");
    assert!(directories.iter().all(|group| !group.exists()));
}

#[test]
fn a_process_in_the_groups_is_seen_in_usage_and_keeps_them_busy() {
    let Some(bed) = Bed::open("usage") else { return };
    let session = bed.tree().create(&EnvironmentId::random(), &limits()).expect("created");
    assert_eq!(session.events(), super::super::CgroupEvents::default());
    let sleeper = Sleeper::start();
    sleeper.enter(&session);
    assert!(session.usage().cpu_ms.is_some());
    assert!(session.usage().memory_peak_bytes.is_some());
    assert!(fs::remove_dir(&session.directories[0]).is_err(), "a populated group can't be removed");
    session.reset_peak().expect("the peak file takes a reset");
    drop(sleeper);
    session.remove().expect("nobody is in it any more");
}

#[test]
fn a_refused_fork_is_counted_and_without_the_limit_it_is_not() {
    let Some(bed) = Bed::open("refusal") else { return };
    let refusals = |pids: u64| {
        let session = bed.tree().create(&EnvironmentId::random(), &Limits { pids, ..limits() }).expect("created");
        let files: Vec<String> = session.join.iter().map(|file| file.display().to_string()).collect();
        // The shell joins the groups and then tries to fork once.
        let script = "for f in \"$@\"; do echo $$ > \"$f\"; done; /bin/true & wait";
        let status = Command::new("sh").args(["-c", script, "sh"]).args(files).stderr(Stdio::null()).status();
        status.expect("sh starts");
        let refusals = session.events().pids_refusals;
        session.remove().expect("nobody is in it any more");
        refusals
    };
    if !matches!(bed.host.pids, Carrier::V1(_)) {
        eprintln!("skipped: pids sits on v2, where a process is born in its group");
        return;
    }
    assert_eq!(refusals(16), 0);
    assert!(refusals(1) > 0);
}

#[test]
fn limits_of_groups_that_exist_are_lowered_and_raised() {
    let Some(bed) = Bed::open("change") else { return };
    let (tree, before) = (bed.tree(), limits());
    let session = tree.create(&EnvironmentId::random(), &before).expect("created");
    let number = |group: &Option<PathBuf>, files: [&str; 2]| {
        let group = group.as_ref()?;
        let text = files.iter().find_map(|file| fs::read_to_string(group.join(file)).ok())?;
        text.trim().parse::<u64>().ok()
    };
    let in_force = || {
        let memory = number(&session.memory, ["memory.max", "memory.limit_in_bytes"]);
        (memory, number(&session.pids, ["pids.max", "pids.max"]), number(&session.cpu, ["cpu.weight", "cpu.shares"]))
    };
    let first = in_force();
    let bytes = |factor: u64| before.memory_bytes.saturating_mul(NonZeroU64::new(factor).expect("not 0"));
    let larger = Limits { memory_bytes: bytes(2), pids: before.pids * 2, cpu_shares: 2048, cpu_cores: None, ..before.clone() };
    tree.change(&session, &before, &larger).expect("raised");
    let second = in_force();
    assert!(first.0.is_none() || second.0 == first.0.map(|bytes| bytes * 2), "{first:?} {second:?}");
    assert!(first.1.is_none() || second.1 == first.1.map(|pids| pids * 2), "{first:?} {second:?}");
    assert!(first.2.is_none() || second.2 > first.2, "{first:?} {second:?}");
    tree.change(&session, &larger, &before).expect("lowered");
    assert_eq!(in_force(), first);
    session.remove().expect("nobody is in it");
}

#[test]
fn groups_that_gave_way_have_their_limits_again_when_they_take_part() {
    let Some(bed) = Bed::open("idle") else { return };
    let limits = Limits { cpu_shares: 512, ..limits() };
    let session = bed.tree().create(&EnvironmentId::random(), &limits).expect("created");
    let Some(group) = session.cpu.clone().filter(|group| group.join("cpu.idle").exists()) else {
        assert!(!session.give_way(), "there is nothing to give way with");
        eprintln!("skipped: no group has cpu.idle");
        return;
    };
    let text = |file: &str| fs::read_to_string(group.join(file)).unwrap_or_default().trim().to_owned();
    let in_force = || (text("cpu.idle"), text("cpu.shares"), text("cpu.weight"), text("cpu.cfs_quota_us"), text("cpu.max"));
    let before = in_force();
    assert_eq!(before.0, "0");
    assert!(session.give_way());
    assert_eq!(text("cpu.idle"), "1");
    session.take_part(&limits).expect("taken back");
    assert_eq!(in_force(), before);
    session.remove().expect("nobody is in it");
}

#[test]
fn groups_that_nobody_took_over_go_with_the_value_and_others_stay() {
    let Some(bed) = Bed::open("drop") else { return };
    let dropped = bed.tree().create(&EnvironmentId::random(), &limits()).expect("created");
    let directories = dropped.directories.clone();
    drop(dropped);
    assert!(directories.iter().all(|group| !group.exists()));
    let mut kept = bed.tree().create(&EnvironmentId::random(), &limits()).expect("created");
    kept.hand_over();
    let directories = kept.directories.clone();
    drop(kept);
    assert!(directories.iter().all(|group| group.exists()));
    super::super::remove_directories(&directories).expect("nobody is in them");
}

/// The id of a server whose process is gone.
fn dead_server() -> String {
    let mut past = Command::new("true").spawn().expect("true starts");
    let namespace = ServerId::current().expect("/proc is mounted").as_str().split('-').next().map(str::to_owned);
    past.wait().expect("our own child");
    format!("{}-{}-1", namespace.expect("first field"), past.id())
}

#[test]
fn groups_of_a_dead_server_are_emptied_and_removed_and_those_of_a_living_one_stay() {
    let Some(bed) = Bed::open("unrelated") else { return };
    let dead = dead_server();
    let stale = CgroupTree::open(&bed.host, &dead).expect("opens").expect("bed has groups");
    let mut left = stale.create(&EnvironmentId::random(), &limits()).expect("created");
    let mut sleeper = Sleeper::start();
    sleeper.enter(&left);
    left.hand_over();
    let alive = bed.tree().create(&EnvironmentId::random(), &limits()).expect("created");

    CgroupTree::remove_stale(&bed.host, &[]).expect("removed");

    assert!(left.directories.iter().all(|group| !group.exists()));
    assert!(alive.directories.iter().all(|group| group.exists()));
    let status = sleeper.0.wait().expect("our own child");
    assert!(!status.success(), "what ran in the stale group was killed");
    std::mem::forget(sleeper);
}

#[test]
fn servers_that_start_at_once_remove_the_same_stale_groups_without_an_error() {
    let Some(bed) = Bed::open("together") else { return };
    for _ in 0..10 {
        let stale = CgroupTree::open(&bed.host, &dead_server()).expect("opens").expect("bed has groups");
        let mut directories = stale.directories();
        for _ in 0..20 {
            let mut left = stale.create(&EnvironmentId::random(), &limits()).expect("created");
            directories.extend(left.directories.iter().cloned());
            left.hand_over();
        }
        let start = std::sync::Barrier::new(3);
        std::thread::scope(|scope| {
            let remove = || {
                start.wait();
                CgroupTree::remove_stale(&bed.host, &[])
            };
            let servers: Vec<_> = (0..3).map(|_| scope.spawn(remove)).collect();
            for server in servers {
                server.join().expect("no panic").expect("what another one removes is removed");
            }
        });
        assert!(directories.iter().all(|group| !group.exists()));
    }
}

#[test]
fn a_group_of_a_dead_server_elsewhere_is_removed_when_its_base_was_noted() {
    let Some(bed) = Bed::open("elsewhere") else { return };
    let dead = format!("{GROUP_PREFIX}{}", dead_server());
    let base = bed.tree().directories().remove(0);
    let group = base.join(&dead);
    fs::create_dir(&group).expect("root may make groups");
    CgroupTree::remove_stale(&bed.host, &[]).expect("nothing to remove");
    assert!(group.exists(), "the control: it is below no base of this host");
    CgroupTree::remove_stale(&bed.host, &[base, "/proc".into(), "/nonexistent".into()]).expect("removed");
    assert!(!group.exists());
}

#[test]
fn a_peak_that_the_kernel_does_not_tell_is_said() {
    let group = tempfile::tempdir().expect("a temporary directory");
    let place = || Place::V2(group.path().to_owned());
    assert!(place().peak_words("memory.max_usage_in_bytes", "memory.peak").contains("usage has none"));
    fs::write(group.path().join("memory.peak"), "0").expect("an own directory");
    assert_eq!(place().peak_words("memory.max_usage_in_bytes", "memory.peak"), "");
    assert_eq!(Place::Absent("no group".into()).peak_words("a", "b"), "", "its row says more than that already");
}

#[test]
fn a_name_that_could_leave_the_group_is_refused() {
    assert!(check_name("env_0a").is_ok());
    for name in ["", ".", "../env", "a/b", "a\nb", "A"] {
        assert!(check_name(name).is_err(), "{name:?}");
    }
}
