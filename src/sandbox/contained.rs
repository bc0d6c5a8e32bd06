//! The plan of an init that runs in a container of an engine, and the walls that then stand.
//!
//! Pure, as `compile` is. Namespaces, mounts, capabilities and the outer filter are the engine's, asked for in `runtime::docker`;
//! what is left for init is the same as everywhere: limits of each process, Landlock, the profile's own filters. Invariant: a row
//! says who builds the wall.

use crate::plan::{Place, Plan, ProgramStep, Start, Step};

use super::compile::{Draft, Ids, Kernel, Placement, ProcessBound, Root, Spec, Workspace};
use super::enforcement::WallState;
use super::profile::{Profile, RootFilesystem};
use super::spec::Limits;
use super::walls;

/// Directories of the session's files, each with the quota.
pub const QUOTAS: [&str; 3] = ["/workspace", "/tmp", "/dev/shm"];

/// Whose ids the programs of a container have on the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Users {
    /// The engine maps them (`userns-remap`, or an engine without root).
    Mapped,
    /// The host's own numbers.
    Host,
}

/// What init does in a container, and one row a wall.
pub fn compile(profile: &Profile, limits: &Limits, kernel: Kernel, users: Users) -> (Plan, Vec<WallState>) {
    // The root can't be written to whatever the profile says: the engine has no quota for it.
    let read_only = Profile { root_filesystem: RootFilesystem::ReadOnly, ..profile.clone() };
    let spec = Spec {
        profile: &read_only,
        limits,
        root: Root { lower: "/".into(), binds: Vec::new(), packages: None, workspace: Workspace::Empty },
        ids: Ids::Single { uid: profile.uid, gid: profile.gid },
        cgroup: Placement { processes: ProcessBound::Group, ..Placement::default() },
        kernel,
    };
    let mut draft = Draft::default();
    engine_walls(&mut draft, profile, users);
    draft.inside.push(Step::TakeOwnRoot);
    draft.inside.extend(QUOTAS.map(|path| Step::WatchQuota { path: Place::Root(path.into()) }));
    walls::landlock::add(&mut draft, &spec);
    walls::rlimits::add(&mut draft, &spec);
    draft.program.extend([ProgramStep::AdoptOrphans, ProgramStep::DieWithInit, ProgramStep::NoNewPrivs]);
    walls::landlock::apply(&mut draft, &spec);
    draft.program.extend(profile.seccomp.iter().cloned().map(ProgramStep::Seccomp));
    let walls = draft.rows();
    let plan = Plan {
        namespaces: 0,
        born_in: None,
        programs_born_in: None,
        outside: Vec::new(),
        inside: draft.inside,
        program: draft.program,
        // The engine's filter knows the calls of a plain clone.
        start: Start::Copied,
        file_uid: profile.uid,
        file_gid: profile.gid,
    };
    (plan, walls)
}

fn engine_walls(draft: &mut Draft, profile: &Profile, users: Users) {
    match (users, profile.uid) {
        (Users::Mapped, _) => draft.enforced("user", "the engine maps the ids of containers"),
        (Users::Host, 0) => draft.absent("user", "the engine maps no ids: root of the container would be root of the host"),
        (Users::Host, uid) => {
            draft
                .degraded("user", format!("the engine maps no ids: programs are user {uid} of the host, without a capability"));
        }
    }
    draft.enforced("mount", "the engine's; the root is read-only whatever the profile says");
    draft.enforced("pid", "the engine's; init can't be signalled or traced from inside");
    draft.enforced("network", "the engine's, empty but for its own loopback");
    draft.enforced("ipc", "the engine's");
    draft.enforced("uts", "the engine's");
    draft.enforced("cgroup", "a group of its own by the engine");
    draft.absent("time", "engines make no time namespaces");
    match profile.capabilities.len() {
        0 => draft.enforced("capabilities", "none in any set"),
        kept => draft.degraded("capabilities", format!("{kept} kept")),
    }
    draft.enforced("no_new_privs", "set");
    let count = profile.seccomp.len() + 1;
    let why = "refused calls are not named: the engine's filter around them all answers first";
    draft.enforced("seccomp", format!("{count} stacked filters, one of them the engine's; {why}"));
    draft.enforced("masked_paths", "/proc tells nothing of the host's memory and keys and changes nothing; /sys is empty");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sandbox::enforcement::WallStatus;
    use crate::sandbox::profile::Profiles;

    const KERNEL: Kernel = Kernel {
        time_namespace: true,
        device_directory: false,
        landlock_abi: 7,
        listener: None,
        users_hide: true,
        version: (6, 18),
    };

    fn compiled(name: &str, users: Users) -> (Plan, Vec<WallState>) {
        let profile = Profiles::load(None).expect("the built-in profiles").get(name).expect("built in");
        compile(&profile, &profile.limits().expect("limits"), KERNEL, users)
    }

    #[test]
    fn init_builds_no_wall_that_takes_a_privilege() {
        let (plan, _) = compiled("strict", Users::Host);
        assert!(plan.outside.is_empty() && plan.namespaces == 0);
        let allowed = |step: &Step| {
            matches!(step, Step::TakeOwnRoot | Step::WatchQuota { .. } | Step::LandlockRules { .. } | Step::LandlockScopes)
        };
        assert!(plan.inside.iter().all(allowed), "{plan}");
        let last = plan.program.iter().rev().take(2).all(|step| matches!(step, ProgramStep::Seccomp(_)));
        assert!(last, "the profile's own filters come last: {plan}");
    }

    #[test]
    fn root_of_the_host_is_no_wall_and_a_mapped_one_is() {
        let state = |name, users| {
            let (_, walls) = compiled(name, users);
            walls.iter().find(|row| row.name == "user").expect("a row").state
        };
        assert_eq!(state("permissive", Users::Host), WallStatus::Absent);
        assert_eq!(state("default", Users::Host), WallStatus::Degraded);
        assert_eq!(state("permissive", Users::Mapped), WallStatus::Enforced);
    }

    #[test]
    fn every_required_wall_has_a_row() {
        let (_, walls) = compiled("default", Users::Host);
        for name in crate::runtime::isolation::REQUIRED_WALLS {
            assert!(walls.iter().any(|row| row.name == name), "{name}");
        }
    }
}
