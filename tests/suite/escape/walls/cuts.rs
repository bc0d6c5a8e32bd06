//! How a plan loses a wall: each function takes out one, and fails where the wall was not in the plan.

use std::path::Path;

use codebeaker::plan::{OutsideStep, Place, Plan, ProgramStep, Slot, Step, devices};
use codebeaker::sys::mount::attribute::{NO_DEVICES, NO_EXEC, NO_SETUID, READ_ONLY};

/// Where [`show`] puts a directory of the host, and the slot that it travels in.
pub(super) const SHARED: &str = "/shared";
const SHARED_SLOT: Slot = 200;
/// Slot of what [`put`] puts in.
const PUT_SLOT: Slot = 201;
/// The first slot of what [`shared_devices`] puts in.
const DEVICE_SLOT: Slot = 202;

/// Keeps the elements that `goes` does not name; one at least must go.
fn lose<T>(list: &mut Vec<T>, goes: impl Fn(&T) -> bool) {
    let before = list.len();
    list.retain(|step| !goes(step));
    assert!(list.len() < before, "the plan has no such step");
}

fn inside(path: &str) -> Place {
    Place::Root(path.into())
}

/// Where init still has the host's mounts, its own mount tree already, and not yet an id of the sandbox.
fn while_the_host_is_in_view(plan: &mut Plan, step: Step) {
    let at = plan.inside.iter().position(|step| *step == Step::PrivateMounts).expect("every plan makes its mounts private");
    plan.inside.insert(at + 1, step);
}

fn before_the_pivot(plan: &mut Plan, steps: impl IntoIterator<Item = Step>) {
    let at = plan.inside.iter().position(|step| *step == Step::PivotRoot).unwrap_or(plan.inside.len());
    plan.inside.splice(at..at, steps);
}

/// Not a cut: lays a directory of the host over [`SHARED`], as the trees of an image are laid.
pub(super) fn show(plan: &mut Plan, source: &Path) {
    plan.outside.push(OutsideStep::CloneTree { slot: SHARED_SLOT, source: source.to_string_lossy().into_owned() });
    attach(plan, SHARED_SLOT, SHARED);
}

fn attach(plan: &mut Plan, slot: Slot, target: &str) {
    let directory = Step::Directory { path: inside(target), mode: 0o755, owner: (0, 0) };
    before_the_pivot(plan, [directory, Step::Attach { slot, target: inside(target) }]);
}

/// Lays a tree of the host over a place in the sandbox, read-only.
pub(super) fn put(plan: &mut Plan, source: &str, target: &str) {
    let attributes = READ_ONLY | NO_SETUID | NO_EXEC;
    while_the_host_is_in_view(plan, Step::CloneHostTree { slot: PUT_SLOT, source: source.into(), attributes });
    attach(plan, PUT_SLOT, target);
}

/// Not a cut: a directory that nobody but root of the sandbox may enter, or everybody may write to.
pub(super) fn add_directory(plan: &mut Plan, path: &str, mode: u32) {
    before_the_pivot(plan, [Step::Directory { path: inside(path), mode, owner: (0, 0) }]);
}

/// Trees that the launcher clones, which sets every attribute and maps their ids, are cloned by init without these attributes.
fn trees_without(plan: &mut Plan, which: impl Fn(Slot) -> bool, lost: u64) {
    let attributes = (READ_ONLY | NO_SETUID | NO_DEVICES) & !lost;
    let mut trees = Vec::new();
    plan.outside.retain(|step| match step {
        OutsideStep::CloneTree { slot, source } if which(*slot) => {
            trees.push(Step::CloneHostTree { slot: *slot, source: source.clone(), attributes });
            false
        }
        _ => true,
    });
    assert!(!trees.is_empty(), "the launcher clones no such tree");
    for tree in trees {
        while_the_host_is_in_view(plan, tree);
    }
}

/// What [`show`] laid there may be written to.
pub(super) fn read_only_tree(plan: &mut Plan) {
    trees_without(plan, |slot| slot == SHARED_SLOT, READ_ONLY);
}

/// What [`show`] laid there may hold devices.
pub(super) fn no_devices(plan: &mut Plan) {
    trees_without(plan, |slot| slot == SHARED_SLOT, NO_DEVICES);
}

/// No file system of the sandbox is nosuid.
pub(super) fn no_setuid(plan: &mut Plan) {
    for step in &mut plan.inside {
        if let Step::Mount { attributes, .. } = step {
            *attributes &= !NO_SETUID;
        }
    }
}

/// The sandbox's ids are the host's; everything else stands. Trees can't be mapped to a namespace that is not there.
pub(super) fn user_namespace(plan: &mut Plan) {
    namespace(plan, libc::CLONE_NEWUSER);
    lose(&mut plan.outside, |step| step.wall() == "user");
    // These would be limits of the host's own user namespace.
    lose(&mut plan.inside, |step| matches!(step, Step::UserLimit { .. }));
    trees_without(plan, |_| true, 0);
    if plan.outside.iter().any(is_devices) {
        shared_devices(plan);
    }
}

fn is_devices(step: &OutsideStep) -> bool {
    matches!(step, OutsideStep::CloneDevices { .. })
}

/// `/dev` is a file system of the sandbox's own, with the host's nodes mounted in it.
pub(super) fn shared_devices(plan: &mut Plan) {
    let at = plan.outside.iter().position(is_devices).expect("the launcher clones it");
    let OutsideStep::CloneDevices { slot } = plan.outside.remove(at) else { unreachable!() };
    let attached = plan.inside.iter().position(|step| matches!(step, Step::Attach { slot: of, .. } if *of == slot));
    let attached = attached.expect("init attaches it");
    let named = |name: &str| format!("/dev/{name}");
    let (options, attributes) = (vec![("mode".into(), "755".into())], NO_SETUID | NO_EXEC);
    let empty = Step::Mount { slot, kind: "tmpfs".into(), options, attributes };
    let mut steps = vec![empty, plan.inside[attached].clone()];
    for (number, (name, ..)) in (DEVICE_SLOT..).zip(devices::NODES) {
        let attributes = READ_ONLY | NO_SETUID | NO_EXEC;
        steps.extend([
            Step::File { path: inside(&named(name)) },
            Step::CloneTree { slot: number, source: Place::Host(named(name)), attributes },
            Step::Attach { slot: number, target: inside(&named(name)) },
        ]);
    }
    for (name, mode) in devices::MOUNT_POINTS {
        steps.push(Step::Directory { path: inside(&named(name)), mode, owner: (0, 0) });
    }
    plan.inside.splice(attached..=attached, steps);
}

/// One namespace is that of the launcher, and so of the host.
fn namespace(plan: &mut Plan, flag: i32) {
    let flag = u64::from(flag.cast_unsigned());
    assert_ne!(plan.namespaces & flag, 0, "the plan has no such namespace");
    plan.namespaces &= !flag;
}

/// Processes of the host have numbers inside. `/proc` can't be made for a pid namespace of somebody else, so it is the host's.
pub(super) fn pid_namespace(plan: &mut Plan) {
    namespace(plan, libc::CLONE_NEWPID);
    let at = plan.inside.iter().position(|step| matches!(step, Step::Mount { kind, .. } if kind == "proc"));
    let Step::Mount { slot, attributes, .. } = plan.inside.remove(at.expect("every plan mounts /proc")) else { unreachable!() };
    while_the_host_is_in_view(plan, Step::CloneHostTree { slot, source: "/proc".into(), attributes });
    // What the host has mounted below a path of `/proc` can't be left out of a copy of it, so such a path stays as it is.
    let table = std::fs::read_to_string("/proc/self/mountinfo").expect("readable");
    let below =
        |path: &str| table.lines().filter_map(|line| line.split(' ').nth(4)).any(|at| at.starts_with(&format!("{path}/")));
    plan.inside.retain(|step| !matches!(step, Step::Cover { source: Place::Root(source), .. } if below(source)));
}

/// The host's interfaces and abstract sockets are there.
pub(super) fn network_namespace(plan: &mut Plan) {
    namespace(plan, libc::CLONE_NEWNET);
    plan.inside.retain(|step| *step != Step::LoopbackUp);
}

/// The host's queues and shared memory are there.
pub(super) fn ipc_namespace(plan: &mut Plan) {
    namespace(plan, libc::CLONE_NEWIPC);
}

/// The host's name shows.
pub(super) fn uts_namespace(plan: &mut Plan) {
    namespace(plan, libc::CLONE_NEWUTS);
    lose(&mut plan.inside, |step| matches!(step, Step::Hostname(_)));
}

/// The clocks are the host's.
pub(super) fn time_namespace(plan: &mut Plan) {
    namespace(plan, libc::CLONE_NEWTIME);
}

/// The layout of the host's groups shows.
pub(super) fn cgroup_namespace(plan: &mut Plan) {
    lose(&mut plan.inside, |step| *step == Step::CgroupNamespace);
}

/// The sandbox stays in the launcher's groups, which have no limit of its own.
pub(super) fn groups(plan: &mut Plan) {
    lose(&mut plan.inside, |step| matches!(step, Step::JoinCgroup { .. }));
    plan.born_in = None;
}

/// Init keeps the host's root in view, and so does every program.
pub(super) fn pivot(plan: &mut Plan) {
    // Installers' mounts are made below the new root.
    lose(&mut plan.inside, |step| matches!(step, Step::PivotRoot | Step::InstallersView { .. }));
}

/// A root that `strict` makes read-only may be written to.
pub(super) fn read_only_root(plan: &mut Plan) {
    lose(&mut plan.inside, |step| matches!(step, Step::Restrict { path, .. } if *path == inside("/")));
}

/// What hides files and directories of `/proc` is gone.
pub(super) fn masks(plan: &mut Plan) {
    lose(&mut plan.inside, |step| matches!(step, Step::Cover { path, source, .. } if path != source));
}

/// What makes parts of `/proc` read-only is gone.
pub(super) fn read_only_proc(plan: &mut Plan) {
    lose(&mut plan.inside, |step| matches!(step, Step::Cover { path, source, .. } if path == source));
}

/// Programs change files wherever the mounts let them.
pub(super) fn landlock_rules(plan: &mut Plan) {
    lose(&mut plan.program, |step| step.wall() == "landlock");
}

/// Neither rules nor scopes, which both keep mounts as they are; there are kernels without.
pub(super) fn landlock_if_any(plan: &mut Plan) {
    plan.inside.retain(|step| step.wall() != "landlock");
    plan.program.retain(|step| step.wall() != "landlock");
}

/// Signals and abstract sockets cross the border where namespaces let them.
pub(super) fn landlock_scopes(plan: &mut Plan) {
    lose(&mut plan.inside, |step| *step == Step::LandlockScopes);
}

/// No filter at all.
pub(super) fn seccomp(plan: &mut Plan) {
    lose(&mut plan.program, |step| step.wall() == "seccomp");
}

/// No filter but the first, which [`add_filter`] put there.
pub(super) fn seccomp_of_the_plan(plan: &mut Plan) {
    let first = plan.program.iter().position(|step| step.wall() == "seccomp").expect("there is one");
    let own = plan.program.remove(first);
    seccomp(plan);
    plan.program.insert(first, own);
}

/// Set-uid programs and file capabilities count.
pub(super) fn no_new_privs(plan: &mut Plan) {
    lose(&mut plan.program, |step| *step == ProgramStep::NoNewPrivs);
}

/// Without `no_new_privs` only a process with CAP_SYS_ADMIN may install a filter or apply rules, so it happens before
/// capabilities go.
pub(super) fn filters_first(plan: &mut Plan) {
    let early = |step: &ProgramStep| matches!(step.wall(), "landlock" | "seccomp");
    let (mut filters, others): (Vec<_>, Vec<_>) = plan.program.drain(..).partition(early);
    filters.extend(others);
    plan.program = filters;
}

/// Programs are root of their user namespace.
pub(super) fn user(plan: &mut Plan) {
    lose(&mut plan.program, |step| matches!(step, ProgramStep::Uid(_) | ProgramStep::Gid(_)));
}

/// What the effective and the permitted set hold is not given up before exec.
pub(super) fn capability_sets(plan: &mut Plan) {
    lose(&mut plan.program, |step| matches!(step, ProgramStep::Capabilities { .. }));
}

/// Exec may give capabilities up to all there are: neither init nor a program gives any up.
pub(super) fn bounding_set(plan: &mut Plan) {
    lose(&mut plan.inside, |step| matches!(step, Step::BoundingSet { .. }));
    lose(&mut plan.program, |step| matches!(step, ProgramStep::BoundingSet { .. }));
}

/// Root is root for capabilities, and ambient ones may be raised.
pub(super) fn securebits(plan: &mut Plan) {
    lose(&mut plan.program, |step| matches!(step, ProgramStep::Securebits(_)));
}

/// Programs are root of their user namespace with every capability of it; over the host they have none.
pub(super) fn every_capability(plan: &mut Plan) {
    user(plan);
    lose(&mut plan.inside, |step| step.wall() == "capabilities");
    lose(&mut plan.program, |step| step.wall() == "capabilities");
}

/// A process may take what its group gives.
pub(super) fn rlimits(plan: &mut Plan) {
    lose(&mut plan.program, |step| step.wall() == "rlimits");
}

/// The user namespace may take what the host's root may.
pub(super) fn user_limits(plan: &mut Plan) {
    lose(&mut plan.inside, |step| step.wall() == "rlimits");
}

/// File commands have the rights of the sandbox's root.
pub(super) fn file_ids(plan: &mut Plan) {
    assert_ne!((plan.file_uid, plan.file_gid), (0, 0));
    (plan.file_uid, plan.file_gid) = (0, 0);
}

/// File commands begin at [`SHARED`]'s source on the host instead of at the sandbox's root.
pub(super) fn own_root(plan: &mut Plan) {
    plan.inside.push(Step::TakeRoot { slot: SHARED_SLOT });
}

/// Puts a filter of the trial before those of the plan.
pub(super) fn add_filter(plan: &mut Plan, filter: Vec<u8>) {
    let at = plan.program.iter().position(|step| step.wall() == "seccomp").unwrap_or(plan.program.len());
    plan.program.insert(at, ProgramStep::Seccomp(filter));
}
