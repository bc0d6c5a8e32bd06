//! A trial: a child in namespaces of its own tries one thing, says which step failed with which errno, and is gone.
//!
//! Invariant: the caller has one thread, so the child, a clone without exec, may run ordinary code. Nothing it does reaches
//! the host: every trial that mounts has a mount namespace of its own, made private first. Nothing outlives the trial.

#![allow(unsafe_code, reason = "the fence: one function, one system call")]

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use nix::errno::Errno;
use nix::mount::MsFlags;
use nix::poll::{PollFd, PollFlags, PollTimeout};

/// Namespaces of a trial, as bits of clone(2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the namespaces of namespaces(7)")]
pub enum Namespace {
    User,
    Mount,
    Pid,
    Network,
    Ipc,
    Uts,
    Cgroup,
    Time,
}

impl Namespace {
    /// All eight.
    pub const ALL: [Self; 8] =
        [Self::User, Self::Mount, Self::Pid, Self::Network, Self::Ipc, Self::Uts, Self::Cgroup, Self::Time];

    /// As `enforcement` spells it.
    pub fn name(self) -> &'static str {
        match self {
            Self::User => "user",
            Self::Mount => "mount",
            Self::Pid => "pid",
            Self::Network => "network",
            Self::Ipc => "ipc",
            Self::Uts => "uts",
            Self::Cgroup => "cgroup",
            Self::Time => "time",
        }
    }

    fn bit(self) -> u64 {
        let bit = match self {
            Self::User => libc::CLONE_NEWUSER,
            Self::Mount => libc::CLONE_NEWNS,
            Self::Pid => libc::CLONE_NEWPID,
            Self::Network => libc::CLONE_NEWNET,
            Self::Ipc => libc::CLONE_NEWIPC,
            Self::Uts => libc::CLONE_NEWUTS,
            Self::Cgroup => libc::CLONE_NEWCGROUP,
            Self::Time => libc::CLONE_NEWTIME,
        };
        bit as u64
    }
}

/// How ids are mapped into the trial's user namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum IdMap {
    /// Not at all.
    None,
    /// Root writes a range of host ids.
    Range {
        /// First host id.
        start: u32,
        /// How many.
        count: u32,
    },
    /// `newuidmap` and `newgidmap` write the ranges of subuid(5) and subgid(5).
    Programs {
        /// First host uid and how many.
        uids: (u32, u32),
        /// First host gid and how many.
        gids: (u32, u32),
    },
    /// Only this process's own ids, as 0.
    Single,
}

/// What failed in a trial.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// The call or file.
    pub step: String,
    /// As errno(3) words it.
    pub cause: String,
}

impl Refusal {
    fn new(step: &str, cause: &impl ToString) -> Self {
        Self { step: step.to_owned(), cause: cause.to_string() }
    }
}

/// Names the step of a failure.
trait Step<T> {
    fn step(self, step: &str) -> Result<T, Refusal>;
}

impl<T, E: ToString> Step<T> for Result<T, E> {
    fn step(self, step: &str) -> Result<T, Refusal> {
        self.map_err(|error| Refusal::new(step, &error))
    }
}

const TRIAL_TIME_MAX: Duration = Duration::from_secs(10);
const ANSWER_BYTES_MAX: u64 = 4096;

/// Runs `body` in a child with these namespaces and ids, for at most ten seconds.
pub fn run(namespaces: &[Namespace], ids: &IdMap, body: impl FnOnce() -> Result<(), Refusal>) -> Result<(), Refusal> {
    let (go_read, go_write) = pipe().step("pipe2")?;
    let (answer_read, answer_write) = pipe().step("pipe2")?;
    let flags = namespaces.iter().fold(0, |flags, namespace| flags | namespace.bit());
    let Some((pid, pidfd)) = clone(flags).step("clone3")? else {
        drop((go_write, answer_read));
        child(File::from(go_read), File::from(answer_write), ids, body);
    };
    drop((go_read, answer_write));
    let mapped = write_ids(pid, ids);
    if mapped.is_ok() {
        File::from(go_write).write_all(b"g").step("pipe")?;
    } else {
        drop(go_write);
    }
    let answer = read_answer(answer_read);
    end(&pidfd).step("waitid")?;
    mapped.and(answer)
}

/// The child's whole life.
fn child(mut go: File, mut answer: File, ids: &IdMap, body: impl FnOnce() -> Result<(), Refusal>) -> ! {
    let mut byte = [0];
    let told = go.read_exact(&mut byte);
    let become_root = || match ids {
        IdMap::None => Ok(()),
        IdMap::Range { .. } | IdMap::Programs { .. } | IdMap::Single => take_root_ids(),
    };
    let result = told.step("the parent").and_then(|()| become_root()).and_then(|()| body());
    let text = match result {
        Ok(()) => "ok".to_owned(),
        Err(refusal) => format!("{}\n{}", refusal.step, refusal.cause),
    };
    // Nobody is left to tell when this fails; the parent takes silence for failure.
    answer.write_all(text.as_bytes()).ok();
    exit_now()
}

fn take_root_ids() -> Result<(), Refusal> {
    let (gid, uid) = (nix::unistd::Gid::from_raw(0), nix::unistd::Uid::from_raw(0));
    nix::unistd::setresgid(gid, gid, gid).step("setresgid")?;
    nix::unistd::setresuid(uid, uid, uid).step("setresuid")
}

/// Waits for the answer with a bound.
fn read_answer(pipe: OwnedFd) -> Result<(), Refusal> {
    let timeout = PollTimeout::try_from(TRIAL_TIME_MAX).unwrap_or(PollTimeout::ZERO);
    let ready = nix::poll::poll(&mut [PollFd::new(pipe.as_fd(), PollFlags::POLLIN)], timeout).step("poll")?;
    if ready == 0 {
        return Err(Refusal::new("the trial", &"it did not end in time"));
    }
    let mut text = String::new();
    File::from(pipe).take(ANSWER_BYTES_MAX).read_to_string(&mut text).step("pipe")?;
    match text.split_once('\n') {
        Some((step, cause)) => Err(Refusal::new(step, &cause)),
        None if text == "ok" => Ok(()),
        None => Err(Refusal::new("the trial", &"its process was killed")),
    }
}

/// Kills the child, which may have ended already, and reaps it.
fn end(pidfd: &OwnedFd) -> io::Result<()> {
    pidfd_kill(pidfd.as_fd())?;
    nix::sys::wait::waitid(nix::sys::wait::Id::PIDFd(pidfd.as_fd()), nix::sys::wait::WaitPidFlag::WEXITED)?;
    Ok(())
}

fn write_ids(pid: i32, ids: &IdMap) -> Result<(), Refusal> {
    let write = |file: &str, text: String| fs::write(format!("/proc/{pid}/{file}"), text).step(file);
    match ids {
        IdMap::None => Ok(()),
        IdMap::Range { start, count } => {
            write("uid_map", format!("0 {start} {count}"))?;
            write("gid_map", format!("0 {start} {count}"))
        }
        IdMap::Programs { uids, gids } => {
            map_with("newuidmap", pid, *uids)?;
            map_with("newgidmap", pid, *gids)
        }
        IdMap::Single => {
            write("uid_map", format!("0 {} 1", nix::unistd::geteuid()))?;
            write("setgroups", "deny".into())?;
            write("gid_map", format!("0 {} 1", nix::unistd::getegid()))
        }
    }
}

fn map_with(program: &str, pid: i32, (start, count): (u32, u32)) -> Result<(), Refusal> {
    let words = [pid.to_string(), "0".into(), start.to_string(), count.to_string()];
    let output = Command::new(program).args(words).output().step(program)?;
    if output.status.success() {
        return Ok(());
    }
    Err(Refusal::new(program, &String::from_utf8_lossy(&output.stderr).trim()))
}

/// A tmpfs with a quota on `/tmp`; every trial of mounts starts with it.
pub fn try_tmpfs() -> Result<(), Refusal> {
    let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    nix::mount::mount(None::<&str>, "/", None::<&str>, private, None::<&str>).step("mount --make-rprivate /")?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    nix::mount::mount(Some("tmpfs"), "/tmp", Some("tmpfs"), flags, Some("size=1m,nr_inodes=64")).step("mount tmpfs")
}

/// An overlay whose upper layer is a tmpfs.
pub fn try_overlay() -> Result<(), Refusal> {
    try_tmpfs()?;
    for directory in ["/tmp/lower", "/tmp/upper", "/tmp/work", "/tmp/merged"] {
        fs::create_dir(directory).step("mkdir")?;
    }
    let options = "lowerdir=/tmp/lower,upperdir=/tmp/upper,workdir=/tmp/work,userxattr,volatile";
    nix::mount::mount(Some("overlay"), "/tmp/merged", Some("overlay"), MsFlags::empty(), Some(options))
        .step("mount overlay")?;
    fs::write("/tmp/merged/file", "x").step("write to the overlay")
}

/// A fresh `/proc`; needs a new pid namespace.
pub fn try_proc() -> Result<(), Refusal> {
    try_tmpfs()?;
    fs::create_dir("/tmp/proc").step("mkdir")?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    nix::mount::mount(Some("proc"), "/tmp/proc", Some("proc"), flags, None::<&str>).step("mount proc")
}

/// `no_new_privs`, read back.
pub fn try_no_new_privs() -> Result<(), Refusal> {
    nix::sys::prctl::set_no_new_privs().step("prctl(PR_SET_NO_NEW_PRIVS)")?;
    let holds = nix::sys::prctl::get_no_new_privs().step("prctl(PR_GET_NO_NEW_PRIVS)")?;
    if holds { Ok(()) } else { Err(Refusal::new("prctl(PR_GET_NO_NEW_PRIVS)", &"it does not hold")) }
}

/// A filter that lets getpriority(2) alone fail with ENXIO, and then that call.
pub fn try_seccomp() -> Result<(), Refusal> {
    try_no_new_privs()?;
    install_filter().step("seccomp(SECCOMP_SET_MODE_FILTER)")?;
    match getpriority() {
        Err(Errno::ENXIO) => Ok(()),
        Err(_) | Ok(()) => Err(Refusal::new("seccomp", &"the filter has no effect")),
    }
}

/// A Landlock rule set that forbids to make directories, and then mkdir(2).
pub fn try_landlock() -> Result<(), Refusal> {
    use landlock::{AccessFs, Ruleset, RulesetAttr};
    try_tmpfs()?;
    fs::create_dir("/tmp/before").step("mkdir")?;
    let rules = Ruleset::default().handle_access(AccessFs::MakeDir).step("landlock_create_ruleset")?;
    rules.create().step("landlock_create_ruleset")?.restrict_self().step("landlock_restrict_self")?;
    match fs::create_dir("/tmp/after") {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(()),
        Err(error) => Err(Refusal::new("mkdir", &error)),
        Ok(()) => Err(Refusal::new("landlock_restrict_self", &"the rules have no effect")),
    }
}

/// A detached id-mapped mount of `path`, as the launcher makes it for lower layers; root only. Never attached anywhere.
pub fn try_id_mapped_mount(path: &Path, start: u32, count: u32) -> Result<(), Refusal> {
    let (hold_read, hold_write) = pipe().step("pipe2")?;
    let Some((pid, pidfd)) = clone(Namespace::User.bit()).step("clone3")? else {
        drop(hold_write);
        // Only the user namespace is wanted: the child waits for the end of the pipe.
        File::from(hold_read).read_to_end(&mut Vec::new()).ok();
        exit_now()
    };
    let map = || {
        write_ids(pid, &IdMap::Range { start, count })?;
        let namespace = File::open(format!("/proc/{pid}/ns/user")).step("open the user namespace")?;
        let flags = rustix::mount::OpenTreeFlags::OPEN_TREE_CLONE | rustix::mount::OpenTreeFlags::OPEN_TREE_CLOEXEC;
        let tree = rustix::mount::open_tree(rustix::fs::CWD, path, flags).step("open_tree")?;
        set_id_map(tree.as_fd(), namespace.as_fd()).step("mount_setattr(MOUNT_ATTR_IDMAP)")
    };
    let result = map();
    drop(hold_write);
    end(&pidfd).step("waitid")?;
    result
}

fn pipe() -> nix::Result<(OwnedFd, OwnedFd)> {
    nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)
}

/// clone3(2) like fork: `None` in the child, its pid and pidfd in the parent.
fn clone(namespaces: u64) -> io::Result<Option<(i32, OwnedFd)>> {
    let mut pidfd: RawFd = -1;
    // SAFETY: all-zero is a valid `clone_args`: no flags, no stack, no descriptors.
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    args.flags = namespaces | libc::CLONE_PIDFD as u64;
    args.pidfd = &raw mut pidfd as u64;
    args.exit_signal = libc::SIGCHLD as u64;
    // SAFETY: without CLONE_VM the child has a copy of all memory and goes on here; the caller has one thread, so no lock is
    // held by a thread that the copy lacks. `args` and `pidfd` outlive the call.
    let pid = unsafe { libc::syscall(libc::SYS_clone3, &raw const args, size_of::<libc::clone_args>()) };
    match pid {
        0 => Ok(None),
        // SAFETY: the kernel has just stored a new descriptor there, which nobody else owns.
        1.. => Ok(Some((pid as i32, unsafe { OwnedFd::from_raw_fd(pidfd) }))),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Ends this process without running the parent's exit handlers a second time.
fn exit_now() -> ! {
    // SAFETY: _exit takes any number and touches no memory.
    unsafe { libc::_exit(0) }
}

fn pidfd_kill(pidfd: BorrowedFd<'_>) -> io::Result<()> {
    let nothing = std::ptr::null::<libc::siginfo_t>();
    // SAFETY: the descriptor is open while borrowed; a null siginfo is allowed.
    let answer = unsafe { libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_raw_fd(), libc::SIGKILL, nothing, 0) };
    let error = io::Error::last_os_error();
    if answer == 0 || error.raw_os_error() == Some(libc::ESRCH) { Ok(()) } else { Err(error) }
}

fn set_id_map(tree: BorrowedFd<'_>, user_namespace: BorrowedFd<'_>) -> io::Result<()> {
    let attributes = libc::mount_attr {
        attr_set: libc::MOUNT_ATTR_IDMAP,
        attr_clr: 0,
        propagation: 0,
        userns_fd: user_namespace.as_raw_fd() as u64,
    };
    let size = size_of::<libc::mount_attr>();
    // SAFETY: both descriptors are open while borrowed, the path is a NUL-terminated constant, `attributes` outlives the call.
    let answer = unsafe {
        let flags = libc::AT_EMPTY_PATH;
        libc::syscall(libc::SYS_mount_setattr, tree.as_raw_fd(), c"".as_ptr(), flags, &raw const attributes, size)
    };
    if answer == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn install_filter() -> io::Result<()> {
    const LOAD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
    const EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
    const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
    let fail = libc::SECCOMP_RET_ERRNO | libc::ENXIO as u32;
    // Offset 0 of `seccomp_data` is the number of the call.
    let mut filter = [
        libc::sock_filter { code: LOAD, jt: 0, jf: 0, k: 0 },
        libc::sock_filter { code: EQUAL, jt: 0, jf: 1, k: libc::SYS_getpriority as u32 },
        libc::sock_filter { code: RETURN, jt: 0, jf: 0, k: fail },
        libc::sock_filter { code: RETURN, jt: 0, jf: 0, k: libc::SECCOMP_RET_ALLOW },
    ];
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
    // SAFETY: `program` points to `filter`, both outlive the call; the kernel copies and checks the program.
    let answer = unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, &raw const program) };
    if answer == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn getpriority() -> nix::Result<()> {
    // SAFETY: getpriority takes numbers only.
    let answer = unsafe { libc::syscall(libc::SYS_getpriority, libc::PRIO_PROCESS, 0) };
    Errno::result(answer).map(|_| ())
}
