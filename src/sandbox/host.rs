//! What this host offers, asked once: plain data that every deciding function takes by reference.
//!
//! Invariant: `probe` reads files, asks harmless questions and makes one child that ends at once, in namespaces of its own; it
//! changes nothing that outlives it. Whether the rest really works is for `doctor` to try. Read `cgroups` next.

use std::fs;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use serde::Serialize;

use super::cgroups::CgroupHost;
use crate::plan;
use crate::sys::CallError;
use crate::sys::credentials::maps_every_id;
use crate::sys::probe;
use crate::sys::seccomp::{self, Waiting};

/// Facts about the host and this process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct HostFacts {
    /// Major, minor, patch of the kernel.
    pub kernel: (u32, u32, u32),
    /// Root enough to give every session a uid range of its own: uid 0 of the initial user namespace with
    /// CAP_SYS_ADMIN, CAP_SETUID and CAP_SETGID.
    pub root: bool,
    /// Effective uid.
    pub uid: u32,
    /// Effective gid.
    pub gid: u32,
    /// Name of that uid in `/etc/passwd`; the number when it has none.
    pub user_name: String,
    /// Version of Landlock; 0 = none.
    pub landlock_abi: u32,
    /// Whether programs may have a listener for refused calls.
    pub seccomp_listener: SeccompListener,
    /// Whether this process may make user namespaces.
    pub user_namespaces: UserNamespaces,
    /// Ranges that `/etc/subuid` and `/etc/subgid` give this user, with the programs that map them.
    pub subordinate: Subordinate,
    /// Hard RLIMIT_NOFILE; absent = unlimited.
    pub nofile_hard: Option<u64>,
    /// Hard RLIMIT_NPROC; absent = unlimited.
    pub nproc_hard: Option<u64>,
    /// CAP_SYS_RESOURCE is effective.
    pub cap_sys_resource: bool,
    /// The kernel has time namespaces.
    pub time_namespace: bool,
    /// A directory of device nodes can be made once and cloned for each sandbox: Linux 6.15 and CAP_MKNOD.
    pub device_directory: bool,
    /// A process that changes its user stays hidden from tracers: `fs.suid_dumpable` is not 1.
    pub users_hide: bool,
    /// Which hierarchy carries which limit.
    pub cgroup: CgroupHost,
}

/// Whether the calls that seccomp refuses can be told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum SeccompListener {
    /// They can.
    Offered(Waiting),
    /// They can't: why.
    Missing(String),
}

impl SeccompListener {
    fn probe() -> Self {
        match seccomp::listener_support() {
            Ok(waiting) => Self::Offered(waiting),
            Err(error) => Self::Missing(match error.errno {
                Errno::BUSY => "this process runs below a filter that has a listener of its own".into(),
                Errno::INVAL => "the kernel is older than Linux 5.0".into(),
                _ => error.to_string(),
            }),
        }
    }

    /// How a program waits for its listener, where it may have one.
    pub fn waiting(&self) -> Option<Waiting> {
        match self {
            Self::Offered(waiting) => Some(*waiting),
            Self::Missing(_) => None,
        }
    }
}

/// Whether user namespaces may be made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum UserNamespaces {
    /// They may.
    Allowed,
    /// They may not.
    Refused {
        /// The setting that forbids it.
        cause: String,
        /// The command that allows it.
        mend: String,
    },
}

/// The mend where the host names nothing that forbids namespaces.
pub const IN_A_CONTAINER: &str =
    "inside a container, start it with namespaces allowed (seccomp=unconfined, --cap-add SYS_ADMIN), or run on the host";

/// Ranges for `newuidmap` and `newgidmap`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Subordinate {
    /// Lines of `/etc/subuid` for this user.
    pub uids: Vec<IdRange>,
    /// Lines of `/etc/subgid` for this user.
    pub gids: Vec<IdRange>,
    /// Where `newuidmap` is.
    pub newuidmap: Option<PathBuf>,
    /// Where `newgidmap` is.
    pub newgidmap: Option<PathBuf>,
}

/// `count` ids from `start`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct IdRange {
    /// The first.
    pub start: u32,
    /// How many.
    pub count: u32,
}

impl IdRange {
    /// Whether the two have an id in common.
    pub fn overlaps(self, other: Self) -> bool {
        let end = u64::from(self.start) + u64::from(self.count);
        let other_end = u64::from(other.start) + u64::from(other.count);
        u64::from(self.start) < other_end && u64::from(other.start) < end
    }
}

const CAP_SETGID: u32 = 6;
const CAP_SETUID: u32 = 7;
const CAP_SYS_ADMIN: u32 = 21;
const CAP_SYS_RESOURCE: u32 = 24;

impl HostFacts {
    /// Asks this host.
    pub fn probe() -> Self {
        let status = read("/proc/self/status");
        let uid = status_id(&status, "Uid:");
        let gid = status_id(&status, "Gid:");
        let capabilities = status_capabilities(&status);
        let root = uid == 0
            && maps_every_id(&read("/proc/self/uid_map"))
            && [CAP_SYS_ADMIN, CAP_SETUID, CAP_SETGID].iter().all(|&cap| has(capabilities, cap));
        let user_name = user_name(&read("/etc/passwd"), uid);
        let limits = read("/proc/self/limits");
        let apparmor = read("/proc/self/attr/apparmor/current");
        Self {
            kernel: kernel_version(&read("/proc/sys/kernel/osrelease")),
            root,
            uid,
            gid,
            landlock_abi: probe::landlock_abi(),
            seccomp_listener: SeccompListener::probe(),
            user_namespaces: user_namespaces(probe::user_namespace(), has(capabilities, CAP_SYS_ADMIN), sysctl, &apparmor),
            subordinate: Subordinate {
                uids: id_ranges(&read("/etc/subuid"), &user_name, uid),
                gids: id_ranges(&read("/etc/subgid"), &user_name, uid),
                newuidmap: find_program("newuidmap"),
                newgidmap: find_program("newgidmap"),
            },
            user_name,
            nofile_hard: hard_limit(&limits, "Max open files"),
            nproc_hard: hard_limit(&limits, "Max processes"),
            cap_sys_resource: has(capabilities, CAP_SYS_RESOURCE),
            time_namespace: Path::new("/proc/self/ns/time").exists(),
            device_directory: root && device_directory(),
            users_hide: std::fs::read_to_string("/proc/sys/fs/suid_dumpable").is_ok_and(|text| text.trim() != "1"),
            cgroup: CgroupHost::probe(),
        }
    }

    /// A root host with every feature and no cgroups, for tests and for plans that are printed without a host.
    pub fn fixture() -> Self {
        Self {
            kernel: (6, 12, 0),
            root: true,
            uid: 0,
            gid: 0,
            user_name: "root".into(),
            landlock_abi: 7,
            seccomp_listener: SeccompListener::Offered(Waiting::Killable),
            user_namespaces: UserNamespaces::Allowed,
            subordinate: Subordinate::default(),
            nofile_hard: Some(20_000),
            nproc_hard: None,
            cap_sys_resource: true,
            time_namespace: true,
            device_directory: true,
            users_hide: true,
            cgroup: CgroupHost::none("the fixture has no cgroups"),
        }
    }
}

/// Makes one and clones it.
fn device_directory() -> bool {
    let made = plan::devices::directory().and_then(|made| probe::clones_detached(made.as_fd()));
    if let Err(error) = &made {
        tracing::debug!(%error, "each sandbox gets a /dev of its own");
    }
    made.is_ok()
}

/// The text of a file of the kernel or of `/etc`; a missing one counts as empty.
fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

/// The number in `/proc/sys/NAME`, if it exists.
fn sysctl(name: &str) -> Option<u64> {
    read(&format!("/proc/sys/{name}")).trim().parse().ok()
}

/// `6.1.0-13-amd64` → (6, 1, 0).
fn kernel_version(release: &str) -> (u32, u32, u32) {
    let mut numbers = release.trim().split(|c: char| !c.is_ascii_digit()).map(|part| part.parse().unwrap_or(0));
    let mut next = || numbers.next().unwrap_or(0);
    (next(), next(), next())
}

/// The effective id of a `Uid:` or `Gid:` line; the overflow id when there is none.
fn status_id(status: &str, key: &str) -> u32 {
    let line = status.lines().find_map(|line| line.strip_prefix(key));
    line.and_then(|ids| ids.split_whitespace().nth(1)).and_then(|id| id.parse().ok()).unwrap_or(65_534)
}

/// The effective capabilities as a bit set.
fn status_capabilities(status: &str) -> u64 {
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    line.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok()).unwrap_or(0)
}

fn has(capabilities: u64, number: u32) -> bool {
    capabilities & (1 << number) != 0
}

/// The name of `uid`, or its number.
fn user_name(passwd: &str, uid: u32) -> String {
    let wanted = uid.to_string();
    let line = passwd.lines().find(|line| line.split(':').nth(2) == Some(&wanted));
    line.and_then(|line| line.split(':').next()).map_or(wanted.clone(), str::to_owned)
}

/// What an attempt gave, and when it failed, what forbids it as far as the host tells. `privileged` processes are not bound by the
/// sysctls for unprivileged ones; `apparmor` is this process's label, empty without AppArmor.
fn user_namespaces(
    tried: Result<(), CallError>,
    privileged: bool,
    sysctl: impl Fn(&str) -> Option<u64>,
    apparmor: &str,
) -> UserNamespaces {
    const RESTRICTED: &str = "kernel.apparmor_restrict_unprivileged_userns";
    const PROFILE: &str = "load deploy/apparmor/codebeaker (docs/deployment.md)";
    let Err(error) = tried else { return UserNamespaces::Allowed };
    let refused = |cause: String, mend: String| UserNamespaces::Refused { cause, mend };
    let by_sysctl = |name: &str, value: u64, good: &str| {
        let name = name.replace('/', ".");
        refused(format!("{name} is {value}"), format!("sysctl -w {name}={good}"))
    };
    if let Some(0) = sysctl("user/max_user_namespaces") {
        return by_sysctl("user/max_user_namespaces", 0, "65536");
    }
    if let (false, Some(0)) = (privileged, sysctl("kernel/unprivileged_userns_clone")) {
        return by_sysctl("kernel/unprivileged_userns_clone", 0, "1");
    }
    if let Some(profile) = apparmor.trim().strip_suffix(" (enforce)") {
        let cause = format!("the AppArmor profile `{profile}`, in which this process runs, has no rule `userns` ({error})");
        return refused(cause, format!("{PROFILE}, or add `userns,` to that profile"));
    }
    match sysctl(&RESTRICTED.replace('.', "/")) {
        Some(value) if value != 0 && !privileged => refused(
            format!("{RESTRICTED} is {value}, and no AppArmor profile allows them to this program ({error})"),
            format!("{PROFILE}, or sysctl -w {RESTRICTED}=0"),
        ),
        Some(_) | None => refused(error.to_string(), IN_A_CONTAINER.into()),
    }
}

/// The ranges of one user in the format of subuid(5); broken lines are passed over.
fn id_ranges(text: &str, user_name: &str, uid: u32) -> Vec<IdRange> {
    let number = uid.to_string();
    let of_user = |owner: &str| owner == user_name || owner == number;
    subordinate_lines(text).filter(|(owner, _)| of_user(owner)).map(|(_, range)| range).collect()
}

/// Every owner and range in the format of subuid(5).
pub(super) fn subordinate_lines(text: &str) -> impl Iterator<Item = (&str, IdRange)> {
    text.lines().filter_map(|line| {
        let mut fields = line.trim().split(':');
        let owner = fields.next()?;
        let start = fields.next()?.parse().ok()?;
        let count = fields.next()?.parse().ok()?;
        Some((owner, IdRange { start, count }))
    })
}

/// The hard limit in a line of `/proc/self/limits`; absent when unlimited.
fn hard_limit(limits: &str, name: &str) -> Option<u64> {
    let line = limits.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().nth(1)?.parse().ok()
}

/// Set-uid programs are looked for in the system's own directories only, never in the caller's PATH.
fn find_program(name: &str) -> Option<PathBuf> {
    ["/usr/bin", "/bin", "/usr/local/bin"].iter().map(|directory| Path::new(directory).join(name)).find(|path| path.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    const STATUS: &str = "Name:\tx\nUid:\t1\t1000\t1\t1\nGid:\t2\t100\t2\t2\nCapEff:\t0000000000200000\n";

    #[test]
    fn a_status_file_gives_effective_ids_and_capabilities() {
        assert_eq!((status_id(STATUS, "Uid:"), status_id(STATUS, "Gid:")), (1000, 100));
        assert!(has(status_capabilities(STATUS), CAP_SYS_ADMIN));
        assert!(!has(status_capabilities(STATUS), CAP_SETUID));
    }

    #[test]
    fn a_release_with_a_vendor_suffix_is_three_numbers() {
        assert_eq!(kernel_version("6.1.0-13-amd64\n"), (6, 1, 0));
        assert_eq!(kernel_version("7.2-rc1"), (7, 2, 0));
    }

    #[test]
    fn only_the_initial_user_namespace_counts_as_initial() {
        assert!(maps_every_id("         0          0 4294967295\n"));
        assert!(!maps_every_id("         0     100000      65536\n"));
    }

    const TRIED: Result<(), CallError> = Err(CallError { call: "clone3(CLONE_NEWUSER)", errno: Errno::ACCESS });

    #[track_caller]
    fn mend(privileged: bool, forbidding: (&'static str, u64), apparmor: &str) -> String {
        let sysctl = |name: &str| (name == forbidding.0).then_some(forbidding.1);
        let found = user_namespaces(TRIED, privileged, sysctl, apparmor);
        let UserNamespaces::Refused { mend, .. } = found else { panic!("must be refused") };
        assert_eq!(user_namespaces(Ok(()), privileged, sysctl, apparmor), UserNamespaces::Allowed, "what was tried counts");
        mend
    }

    #[test]
    fn the_sysctl_that_forbids_user_namespaces_is_named_with_its_mend() {
        assert_eq!(mend(true, ("user/max_user_namespaces", 0), ""), "sysctl -w user.max_user_namespaces=65536");
        let clone = ("kernel/unprivileged_userns_clone", 0);
        assert_eq!(mend(false, clone, ""), "sysctl -w kernel.unprivileged_userns_clone=1");
        assert!(mend(true, clone, "").starts_with("inside a container"), "that one does not bind root");
    }

    #[test]
    fn what_apparmor_forbids_is_mended_by_the_profile() {
        let restricted = ("kernel/apparmor_restrict_unprivileged_userns", 1);
        let sentence = mend(false, restricted, "unconfined\n");
        assert!(sentence.contains("deploy/apparmor/codebeaker") && sentence.contains("=0"), "{sentence}");
        let sentence = mend(false, ("", 0), "shell (enforce)\n");
        assert!(sentence.contains("deploy/apparmor/codebeaker") && sentence.contains("`userns,`"), "{sentence}");
        assert!(mend(false, ("", 0), "shell (complain)\n").starts_with("inside a container"), "the control");
    }

    #[test]
    fn ranges_of_other_users_and_broken_lines_are_passed_over() {
        let text = "ann:100000:65536\nbob:165536:65536\n1000:300000:10\nann:oops\n";
        let ranges = id_ranges(text, "ann", 1000);
        assert_eq!(ranges, [IdRange { start: 100_000, count: 65_536 }, IdRange { start: 300_000, count: 10 }]);
    }

    #[test]
    fn hard_limits_are_read_and_unlimited_is_absent() {
        let text = "Max processes             100                  unlimited            processes \n\
                    Max open files            1024                 20000                files     \n";
        assert_eq!(hard_limit(text, "Max open files"), Some(20_000));
        assert_eq!(hard_limit(text, "Max processes"), None);
    }

    #[test]
    fn ranges_overlap_only_when_they_share_an_id() {
        let range = IdRange { start: 10, count: 5 };
        assert!(range.overlaps(IdRange { start: 14, count: 1 }));
        assert!(!range.overlaps(IdRange { start: 15, count: 1 }));
    }

    #[test]
    fn probing_this_host_finds_its_kernel() {
        assert!(HostFacts::probe().kernel.0 >= 5);
    }
}
