//! The trials behind `codebeaker doctor`: each tries for real what a sandbox will do, in a child with namespaces of its own.
//!
//! Invariant: called with one thread only; what it makes (groups, a uid range, a file) it removes. A check that fails only
//! where a wall or limit may be absent is `Degraded`, one that a sandbox can't do without is `Failed`.

use std::fs;
use std::path::Path;

use serde::Serialize;

use super::cgroups::{CgroupTree, IoLimit, V2Entry};
use super::enforcement::WallStatus;
use super::host::{HostFacts, IN_A_CONTAINER, SeccompListener, UserNamespaces};
use super::spec::Limits;
use super::state::ServerId;
use super::uid_ranges::UidRanges;
use crate::id::EnvironmentId;
use crate::sys::probe;
use crate::sys::seccomp::Waiting;
use crate::sys::trial::{self, IdMap, Namespace, Refusal};

/// One row of the report.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Check {
    /// What was tried.
    pub name: String,
    /// How it went.
    pub state: CheckState,
    /// What stood in the way, or how it works here.
    pub cause: String,
    /// What the operator can do; empty when nothing needs doing.
    pub mend: String,
}

/// How a check went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum CheckState {
    /// It works.
    Ok,
    /// Sandboxes work without it, weaker.
    Degraded,
    /// No sandbox works without it.
    Failed,
}

impl CheckState {
    /// For people.
    pub fn word(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Degraded => "degraded",
            Self::Failed => "failed",
        }
    }
}

/// Tries everything.
pub fn examine(facts: &HostFacts, state_dir: &Path) -> Vec<Check> {
    let mut checks = Vec::new();
    let ids = ids_check(facts, &mut checks);
    checks.extend(namespace_checks(facts));
    checks.extend(wall_checks(facts, &ids, state_dir));
    checks.extend(cgroup_checks(facts, state_dir));
    checks.extend(interpreter_checks());
    checks.push(state_check(state_dir));
    checks
}

fn ok(name: &str, detail: &str) -> Check {
    Check { name: name.into(), state: CheckState::Ok, cause: detail.into(), mend: String::new() }
}

fn judge(name: &str, otherwise: CheckState, result: Result<(), Refusal>, mend: &str) -> Check {
    match result {
        Ok(()) => ok(name, ""),
        Err(refusal) => {
            let cause = format!("{}: {}", refusal.step, refusal.cause);
            Check { name: name.into(), state: otherwise, cause, mend: mend.into() }
        }
    }
}

/// The mend of a refused namespace: what forbids user namespaces at all, as far as the host tells.
fn namespace_mend(facts: &HostFacts) -> String {
    match &facts.user_namespaces {
        UserNamespaces::Refused { mend, .. } => mend.clone(),
        UserNamespaces::Allowed => IN_A_CONTAINER.into(),
    }
}

/// The id map that sandboxes will have here; every later trial uses it.
fn ids_check(facts: &HostFacts, checks: &mut Vec<Check>) -> IdMap {
    let user_only = |ids: &IdMap| trial::run(&[Namespace::User], ids, || Ok(()));
    if facts.root {
        // The range is only borrowed for the map of a child that is gone when this returns; any free one shows the same.
        let taken = UidRanges::new().and_then(|ranges| ranges.take());
        let (start, count) = match taken {
            Ok(range) => (range.start, range.count),
            Err(error) => {
                let mend = "rm -r /run/codebeaker while no server runs, or stop other servers".to_owned();
                checks.push(Check { name: "uid ranges".into(), state: CheckState::Failed, cause: error.to_string(), mend });
                return IdMap::Single;
            }
        };
        checks.push(ok("uid ranges", "65,536 host uids for each session"));
        let ids = IdMap::Range { start, count };
        checks.push(judge("id map", CheckState::Failed, user_only(&ids), &namespace_mend(facts)));
        return ids;
    }
    let subordinate = &facts.subordinate;
    let programs = subordinate.newuidmap.is_some() && subordinate.newgidmap.is_some();
    let mend =
        format!("apt install uidmap && usermod --add-subuids 100000-165535 --add-subgids 100000-165535 {}", facts.user_name);
    if let (true, Some(uids), Some(gids)) = (programs, subordinate.uids.first(), subordinate.gids.first()) {
        let ids = IdMap::Programs { uids: (uids.start, uids.count), gids: (gids.start, gids.count) };
        let check = judge("id map", CheckState::Degraded, user_only(&ids), &mend);
        let works = check.state == CheckState::Ok;
        checks.push(check);
        if works {
            return ids;
        }
    }
    let mut check = judge("id map", CheckState::Failed, user_only(&IdMap::Single), &namespace_mend(facts));
    if check.state == CheckState::Ok {
        let cause = "one uid only: sessions share it with this server".into();
        check = Check { state: CheckState::Degraded, cause, mend, ..check };
    }
    checks.push(check);
    IdMap::Single
}

/// Each namespace beside a user namespace, then all together.
fn namespace_checks(facts: &HostFacts) -> Vec<Check> {
    let mend = namespace_mend(facts);
    let state = |namespace| match namespace {
        Namespace::User | Namespace::Mount | Namespace::Pid | Namespace::Network | Namespace::Ipc | Namespace::Uts => {
            CheckState::Failed
        }
        Namespace::Cgroup | Namespace::Time => CheckState::Degraded,
    };
    let row = |namespace: Namespace| {
        let result = trial::run(&[Namespace::User, namespace], &IdMap::None, || Ok(()));
        judge(&format!("{} namespace", namespace.name()), state(namespace), result, &mend)
    };
    let mut checks: Vec<Check> = Namespace::ALL.into_iter().map(row).collect();
    let required: Vec<Namespace> = Namespace::ALL.into_iter().filter(|space| state(*space) == CheckState::Failed).collect();
    let together = trial::run(&required, &IdMap::None, || Ok(()));
    checks.push(judge("all required together", CheckState::Failed, together, &mend));
    checks
}

fn wall_checks(facts: &HostFacts, ids: &IdMap, state_dir: &Path) -> Vec<Check> {
    let mounts = [Namespace::User, Namespace::Mount, Namespace::Pid];
    let attempt = |body: fn() -> Result<(), Refusal>| trial::run(&mounts, ids, body);
    let overlay = "modprobe overlay; without root Linux 5.11 is needed";
    let proc = "show a whole /proc to this process (inside a container: unmask it, --security-opt systempaths=unconfined)";
    let mut checks = vec![
        judge("tmpfs", CheckState::Failed, attempt(trial::try_tmpfs), "allow mounts in user namespaces"),
        judge("overlay", CheckState::Failed, attempt(trial::try_overlay), overlay),
        judge("proc", CheckState::Failed, attempt(trial::try_proc), proc),
        judge("no_new_privs", CheckState::Failed, attempt(trial::try_no_new_privs), "run a kernel that has it"),
        judge("seccomp filter", CheckState::Failed, attempt(trial::try_seccomp), "run a kernel with CONFIG_SECCOMP_FILTER"),
    ];
    let mut landlock =
        judge("landlock", CheckState::Degraded, attempt(trial::try_landlock), "boot with `landlock` in the `lsm=` list");
    if landlock.state == CheckState::Ok {
        landlock.cause = format!("ABI {}", facts.landlock_abi);
    }
    checks.push(landlock);
    checks.push(listener_check(facts));
    if let (true, IdMap::Range { start, count }) = (facts.root, ids) {
        let existing = state_dir.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"));
        for (name, path, mend) in [
            ("id-mapped mount of /usr", Path::new("/usr"), "put /usr on ext4, xfs, btrfs or overlay"),
            (
                "id-mapped mount of the state directory",
                existing,
                "set `state_dir` to a directory on ext4, xfs or btrfs; a tmpfs needs Linux 6.3",
            ),
        ] {
            let mount = trial::try_id_mapped_mount(path, *start, *count);
            checks.push(judge(name, CheckState::Failed, mount, mend));
        }
    }
    checks
}

/// Tried when the facts were asked for.
fn listener_check(facts: &HostFacts) -> Check {
    let name = "seccomp listener";
    match &facts.seccomp_listener {
        SeccompListener::Offered(Waiting::Killable) => ok(name, "refused calls are named in results"),
        SeccompListener::Offered(Waiting::Interruptible) => {
            ok(name, "refused calls are named in results; signals interrupt the wait")
        }
        SeccompListener::Missing(cause) => Check {
            name: name.into(),
            state: CheckState::Degraded,
            cause: format!("refused calls stay refused, but are not named in results: {cause}"),
            mend: "run Linux 5.0 or newer, outside of a container whose engine listens to its system calls".into(),
        },
    }
}

/// Makes a session's groups with limits and removes them again.
fn cgroup_checks(facts: &HostFacts, state_dir: &Path) -> Vec<Check> {
    const IO_MEND: &str =
        "boot with cgroup v2 alone (systemd.unified_cgroup_hierarchy=1), and keep images on a disk of the host";
    const MEND: &str = "systemd-run --user --scope -p Delegate=yes codebeaker serve, or run as root";
    let absent =
        |cause: String| vec![Check { name: "cgroup limits".into(), state: CheckState::Degraded, cause, mend: MEND.into() }];
    if facts.cgroup.v2.as_ref().is_some_and(|tree| tree.entry == V2Entry::MoveSelf) {
        // Trying it would move this process for good and leave a group behind.
        return vec![ok("cgroup limits", "delegated; the server moves itself into a leaf when it starts")];
    }
    let rows = || -> Result<Option<Vec<Check>>, String> {
        let server = ServerId::current().map_err(|error| error.to_string())?;
        let failed = |error: super::cgroups::CgroupError| match std::error::Error::source(&error) {
            Some(source) => format!("{error}: {source}"),
            None => error.to_string(),
        };
        let Some(tree) = CgroupTree::open(&facts.cgroup, server.as_str()).map_err(failed)? else { return Ok(None) };
        let existing = state_dir.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"));
        let tree = tree.with_io_limit(IoLimit::on_disks_of(&[existing, Path::new("/usr")], TRIAL_IO_BYTES_PER_S));
        let session = tree.create(&EnvironmentId::random(), &trial_limits());
        let result = session.and_then(|session| {
            let limits = session.limits.clone();
            session.remove().map(|()| limits)
        });
        tree.close().map_err(failed)?;
        let rows = result.map_err(failed)?.into_iter().map(|row| {
            let state = match row.state {
                WallStatus::Enforced => CheckState::Ok,
                WallStatus::Degraded | WallStatus::Absent => CheckState::Degraded,
            };
            let mend = match state {
                CheckState::Ok => "",
                CheckState::Degraded | CheckState::Failed if row.name == "io" => IO_MEND,
                CheckState::Degraded | CheckState::Failed => MEND,
            };
            let mend = mend.to_owned();
            Check { name: format!("cgroup limit: {}", row.name), state, cause: row.detail, mend }
        });
        Ok(Some(rows.collect()))
    };
    match rows() {
        Ok(Some(checks)) => checks,
        Ok(None) => absent("no cgroup is delegated to this process, so memory, pids and cpu have no limit".into()),
        Err(cause) => absent(cause),
    }
}

/// Tried and taken back.
const TRIAL_IO_BYTES_PER_S: u64 = 1 << 30;

/// Any values do: they hold for an empty group.
fn trial_limits() -> Limits {
    let second = std::time::Duration::from_secs(1);
    Limits {
        memory_bytes: std::num::NonZeroU64::MIN.saturating_add((64 << 20) - 1),
        cpu_shares: 512,
        cpu_cores: Some(0.5),
        pids: 16,
        disk_bytes: 1 << 20,
        inodes: 64,
        output_kept_bytes: 1,
        output_killed_bytes: 1,
        timeout: second,
        timeout_max: second,
        open_files: 64,
    }
}

/// The image `host` shows `/usr`: interpreters elsewhere (in home directories, say) don't count.
fn interpreter_checks() -> Vec<Check> {
    let found = |name: &str| {
        ["/usr/bin", "/usr/local/bin"].iter().map(|directory| Path::new(directory).join(name)).find(|path| path.is_file())
    };
    let row = |(name, program, package): (&str, &str, &str)| match found(program) {
        Some(path) => ok(&format!("image host: {name}"), &path.display().to_string()),
        None => Check {
            name: format!("image host: {name}"),
            state: CheckState::Degraded,
            cause: format!("{program} is not below /usr"),
            mend: format!("apt install {package}, or import an image that has it"),
        },
    };
    [("python", "python3", "python3"), ("javascript", "node", "nodejs"), ("bash", "bash", "bash")]
        .into_iter()
        .map(row)
        .collect()
}

/// The state directory can be written, or made. Nothing is made here.
fn state_check(state_dir: &Path) -> Check {
    let existing = state_dir.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"));
    if existing.is_dir() && probe::writable(existing) && fs::read_dir(existing).is_ok() {
        return ok("state directory", &state_dir.display().to_string());
    }
    Check {
        name: "state directory".into(),
        state: CheckState::Failed,
        cause: format!("{} can't be written by this user", existing.display()),
        mend: "set `state_dir` (or CODEBEAKER_STATE_DIR) to a directory of your own".into(),
    }
}
