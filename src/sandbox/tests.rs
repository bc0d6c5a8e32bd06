//! What a plan holds, seen without root: one snapshot a profile kind, and the order that the kernel asks for.

use std::num::NonZeroU64;
use std::path::PathBuf;
use std::time::Duration;

use crate::plan::{ListenerAnswer, OutsideStep, Place, Plan, ProgramStep, Step};
use crate::sys::seccomp::Waiting;

use super::compile::{Compiled, Ids, Kernel, Placement, ProcessBound, Root, Spec, Workspace, compile};
use super::enforcement::WallStatus;
use super::profile::{Installs, Network, Notifying, Profile, ProfileLimits, RootFilesystem};
use super::spec::Limits;

fn profile(root_filesystem: RootFilesystem, network: Network) -> Profile {
    let limits = ProfileLimits {
        memory_bytes: 512 << 20,
        pids: 256,
        cpu_cores: None,
        disk_bytes: 256 << 20,
        inodes: 65_536,
        output_kept_bytes: 4 << 20,
        output_killed_bytes: 64 << 20,
        timeout: Duration::from_secs(60),
        open_files: 4096,
    };
    Profile {
        name: "test".into(),
        version: "1".into(),
        sha256: String::new(),
        seccomp_sha256: String::new(),
        bpf_sha256: String::new(),
        uid: 1000,
        gid: 1000,
        capabilities: Vec::new(),
        root_filesystem,
        network,
        installs: Installs::Offline,
        document: std::sync::Arc::new(serde_json::from_str(r#"{"defaultAction": "SCMP_ACT_ERRNO"}"#).expect("a document")),
        seccomp: vec![vec![0; 16], vec![0; 8]],
        notifying: Some(Notifying {
            filter: vec![0; 32],
            answer: ListenerAnswer::Refuse(1),
            others: vec![vec![0; 24]],
            bpf_sha256: String::new(),
        }),
        defaults: limits.clone(),
        maximum: limits,
    }
}

fn limits() -> Limits {
    Limits {
        memory_bytes: NonZeroU64::new(512 << 20).expect("not zero"),
        cpu_shares: 1024,
        cpu_cores: None,
        pids: 256,
        disk_bytes: 256 << 20,
        inodes: 65_536,
        output_kept_bytes: 4 << 20,
        output_killed_bytes: 64 << 20,
        timeout: Duration::from_secs(60),
        timeout_max: Duration::from_secs(300),
        open_files: 4096,
    }
}

fn kernel(landlock_abi: u32) -> Kernel {
    Kernel {
        time_namespace: true,
        device_directory: true,
        landlock_abi,
        listener: Some(Waiting::Killable),
        users_hide: true,
        version: (6, 18),
    }
}

fn spec<'a>(profile: &'a Profile, limits: &'a Limits, ids: Ids, cgroup: Placement, kernel: Kernel) -> Spec<'a> {
    Spec {
        profile,
        limits,
        root: Root {
            lower: PathBuf::from("/images/host"),
            binds: vec![(PathBuf::from("/usr"), "/usr".into())],
            packages: None,
            workspace: Workspace::Empty,
        },
        ids,
        cgroup,
        kernel,
    }
}

fn compiled(profile: &Profile, ids: Ids, cgroup: Placement, landlock_abi: u32) -> Compiled {
    compile(&spec(profile, &limits(), ids, cgroup, kernel(landlock_abi)))
}

fn placed() -> Placement {
    let join = vec![PathBuf::from("/cgroup/memory/one/tasks")];
    Placement { join, processes: ProcessBound::Group, ..Placement::default() }
}

const RANGE: Ids = Ids::Range { start: 0x1000_0000, count: 65_536 };

fn default_plan() -> Plan {
    compiled(&profile(RootFilesystem::Overlay, Network::Loopback), RANGE, placed(), 7).plan
}

#[test]
fn the_plan_of_an_overlay_profile_as_root() {
    insta::assert_snapshot!(default_plan().to_string());
}

#[test]
fn the_plan_of_a_read_only_profile_with_a_single_id() {
    let strict = profile(RootFilesystem::ReadOnly, Network::None);
    let plan = compiled(&strict, Ids::Single { uid: 1001, gid: 1001 }, Placement::default(), 4).plan;
    insta::assert_snapshot!(plan.to_string());
}

fn position(steps: &[ProgramStep], wanted: fn(&ProgramStep) -> bool) -> usize {
    steps.iter().position(wanted).expect("the step is there")
}

#[test]
fn a_program_loses_its_rights_in_the_order_that_the_kernel_allows() {
    let steps = default_plan().program;
    let bounding = position(&steps, |step| matches!(step, ProgramStep::BoundingSet { .. }));
    let uid = position(&steps, |step| matches!(step, ProgramStep::Uid(_)));
    let capabilities = position(&steps, |step| matches!(step, ProgramStep::Capabilities { .. }));
    let death = position(&steps, |step| matches!(step, ProgramStep::DieWithInit));
    let privileges = position(&steps, |step| matches!(step, ProgramStep::NoNewPrivs));
    let landlock = position(&steps, |step| matches!(step, ProgramStep::Landlock));
    let seccomp = position(&steps, |step| step.wall() == "seccomp");
    assert!(bounding < uid && uid < capabilities && capabilities < death);
    assert!(death < privileges && privileges < landlock && landlock < seccomp);
    assert!(steps[seccomp..].iter().all(|step| step.wall() == "seccomp"), "nothing comes after the filters");
    let listeners = steps.iter().filter(|step| matches!(step, ProgramStep::SeccompListener { .. })).count();
    assert!(
        listeners == 1 && matches!(steps[seccomp], ProgramStep::SeccompListener { .. }),
        "a later filter may refuse to send"
    );
}

#[test]
fn everything_is_masked_before_the_host_goes_out_of_view() {
    let steps = default_plan().inside;
    let pivot = steps.iter().position(|step| matches!(step, Step::PivotRoot)).expect("a pivot");
    let mask = steps.iter().rposition(|step| matches!(step, Step::Cover { .. })).expect("a mask");
    assert!(mask < pivot, "the empty directory that covers others is on the host's side of the pivot");
}

#[test]
fn devices_come_with_one_mount_where_they_can_and_from_the_host_elsewhere() {
    let (profile, limits) = (profile(RootFilesystem::Overlay, Network::Loopback), limits());
    let plan =
        |device_directory, ids| compile(&spec(&profile, &limits, ids, placed(), Kernel { device_directory, ..kernel(7) })).plan;
    let of = |plan: &Plan| {
        let cloned = plan.outside.iter().filter(|step| matches!(step, OutsideStep::CloneDevices { .. })).count();
        let is_of_host =
            |step: &&Step| matches!(step, Step::CloneTree { source: Place::Host(path), .. } if path.starts_with("/dev/"));
        (cloned, plan.inside.iter().filter(is_of_host).count())
    };
    assert_eq!(of(&plan(true, RANGE)), (1, 0));
    assert_eq!(of(&plan(false, RANGE)), (0, 6));
    assert_eq!(of(&plan(true, Ids::Single { uid: 1000, gid: 1000 })), (0, 6), "an ordinary user makes no nodes");
}

#[test]
fn what_an_image_holds_in_the_workspace_stays_in_view_and_the_directory_becomes_the_user_s() {
    let (profile, limits) = (profile(RootFilesystem::Overlay, Network::Loopback), limits());
    let mut spec = spec(&profile, &limits, RANGE, placed(), kernel(7));
    let of = |spec: &Spec<'_>| {
        let plan = compile(spec).plan.to_string();
        (plan.contains("chown /workspace 1000:1000"), plan.contains("-> /workspace\n"))
    };
    assert_eq!(of(&spec), (false, true), "an empty one is a directory of the tmpfs");
    spec.root.workspace = Workspace::OfImage;
    assert_eq!(of(&spec), (true, false));
}

#[test]
fn a_read_only_profile_restricts_its_root_and_an_overlay_profile_does_not() {
    let restricted = |profile: &Profile| {
        compiled(profile, RANGE, placed(), 7)
            .plan
            .inside
            .iter()
            .any(|step| matches!(step, Step::Restrict { path: crate::plan::Place::Root(path), .. } if path == "/"))
    };
    assert!(restricted(&profile(RootFilesystem::ReadOnly, Network::None)));
    assert!(!restricted(&profile(RootFilesystem::Overlay, Network::Loopback)));
}

#[test]
fn what_the_host_lacks_is_told_and_not_hidden() {
    let overlay = profile(RootFilesystem::Overlay, Network::Loopback);
    let state = |compiled: &Compiled, name: &str| {
        compiled.walls.iter().find(|row| row.name == name).map(|row| row.state).expect("a row for every wall")
    };
    let full = compiled(&overlay, RANGE, placed(), 7);
    let poor = compiled(&overlay, Ids::Single { uid: 1, gid: 1 }, Placement::default(), 0);
    assert_eq!(
        (state(&full, "user"), state(&full, "cgroup"), state(&full, "landlock")),
        (WallStatus::Enforced, WallStatus::Enforced, WallStatus::Enforced)
    );
    assert_eq!(
        (state(&poor, "user"), state(&poor, "cgroup"), state(&poor, "landlock")),
        (WallStatus::Degraded, WallStatus::Degraded, WallStatus::Absent)
    );
    let bounded = |compiled: &Compiled| {
        compiled.plan.program.iter().any(|step| matches!(step, ProgramStep::Rlimit { name, .. } if name == "RLIMIT_NPROC"))
    };
    assert!(bounded(&poor) && !bounded(&full));
    let without_pids = Placement { processes: ProcessBound::Rlimit, ..placed() };
    assert!(bounded(&compiled(&overlay, RANGE, without_pids, 7)), "a group that has no pids.max is no bound");
}

#[test]
fn without_a_listener_the_plain_filters_are_installed_and_enforcement_says_so() {
    let overlay = profile(RootFilesystem::Overlay, Network::Loopback);
    let filters = |compiled: &Compiled| -> Vec<ProgramStep> {
        compiled.plan.program.iter().filter(|step| step.wall() == "seccomp").cloned().collect()
    };
    let detail = |compiled: &Compiled| {
        let row = compiled.walls.iter().find(|row| row.name == "seccomp").expect("a row for every wall");
        (row.state, row.detail.clone())
    };
    let told = compiled(&overlay, RANGE, placed(), 7);
    assert!(matches!(filters(&told)[..], [ProgramStep::SeccompListener { .. }, ProgramStep::Seccomp(_)]));
    assert_eq!(detail(&told), (WallStatus::Enforced, "2 stacked filters; refused calls are named in `blockedSyscalls`".into()));
    let limits = limits();
    let spec = spec(&overlay, &limits, RANGE, placed(), Kernel { listener: None, ..kernel(7) });
    let untold = compile(&spec);
    assert_eq!(filters(&untold), overlay.seccomp.iter().cloned().map(ProgramStep::Seccomp).collect::<Vec<_>>());
    assert!(detail(&untold).1.contains("not named: the host offers no listener"), "{:?}", detail(&untold));
}

#[test]
fn a_profile_that_audits_says_so_and_without_a_listener_it_refuses() {
    let mut audits = profile(RootFilesystem::Overlay, Network::Loopback);
    audits.notifying.as_mut().expect("it has one").answer = ListenerAnswer::LetGo;
    let row = |compiled: &Compiled| compiled.walls.iter().find(|row| row.name == "seccomp").cloned().expect("a row");
    let audited = row(&compiled(&audits, RANGE, placed(), 7));
    assert!(audited.state == WallStatus::Degraded && audited.detail.starts_with("AUDIT ONLY"), "{audited:?}");
    assert!(audits.identity(Some(Waiting::Killable)).audit_only && !audits.identity(None).audit_only);
    let limits = limits();
    let without = compile(&spec(&audits, &limits, RANGE, placed(), Kernel { listener: None, ..kernel(7) }));
    assert_eq!(row(&without).state, WallStatus::Enforced);
    assert!(without.plan.program.iter().all(|step| !matches!(step, ProgramStep::SeccompListener { .. })), "the plain filters");
}
