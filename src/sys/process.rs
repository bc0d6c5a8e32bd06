//! Processes: clone, wait, signals, prctl, exec.

use std::ffi::CStr;
use std::io::Write;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use super::error::{CallError, Named};

/// `CLONE_INTO_CGROUP` of linux/sched.h; libc's constant overflows its type.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// Which side of a clone this is.
#[derive(Debug)]
pub enum Cloned {
    /// The new process.
    Child,
    /// The caller, with the child's pid as it sees it and, when asked for, its pidfd.
    Parent {
        /// Process id in the caller's pid namespace.
        pid: i32,
        /// Present when `CLONE_PIDFD` was among the flags.
        pidfd: Option<OwnedFd>,
    },
}

/// `clone3(2)` with a copied address space. `flags` are `CLONE_*`; `cgroup` is a cgroup v2 directory to be born in.
///
/// Where the caller has one thread (launcher and init do) the child may run ordinary code, allocation included. Elsewhere it may make
/// system calls and end.
pub fn clone(flags: u64, cgroup: Option<BorrowedFd<'_>>) -> Result<Cloned, CallError> {
    let mut pidfd: RawFd = -1;
    let mut arguments = clone_arguments(flags, cgroup);
    if flags & libc::CLONE_PIDFD as u64 != 0 {
        arguments.pidfd = &raw mut pidfd as u64;
    }
    // SAFETY: no CLONE_VM and no new stack: the child goes on with a copy of this one. `arguments` and `pidfd` outlive the call.
    let pid = unsafe { libc::syscall(libc::SYS_clone3, &raw mut arguments, size_of::<libc::clone_args>()) };
    match pid {
        -1 => Err(CallError::last("clone3")),
        0 => Ok(Cloned::Child),
        pid => {
            // SAFETY: the kernel has stored a fresh descriptor that nobody else owns.
            let pidfd = (pidfd >= 0).then(|| unsafe { OwnedFd::from_raw_fd(pidfd) });
            Ok(Cloned::Parent { pid: pid as i32, pidfd })
        }
    }
}

/// For `clone3(2)`: a child whose end is a SIGCHLD, born in `cgroup`.
pub(super) fn clone_arguments(flags: u64, cgroup: Option<BorrowedFd<'_>>) -> libc::clone_args {
    // SAFETY: `clone_args` is plain integers, for which all zeroes is a valid value.
    let mut arguments: libc::clone_args = unsafe { std::mem::zeroed() };
    arguments.flags = flags;
    arguments.exit_signal = libc::SIGCHLD as u64;
    if let Some(directory) = cgroup {
        arguments.flags |= CLONE_INTO_CGROUP;
        arguments.cgroup = directory.as_raw_fd() as u64;
    }
    arguments
}

/// A child that ended.
#[derive(Debug, Clone, Copy)]
pub struct Ended {
    /// Which.
    pub pid: i32,
    /// The raw wait status.
    pub status: i32,
    /// User and system time of it and the descendants it waited for, in microseconds.
    pub cpu_us: u64,
}

/// What [`reap`] found.
#[derive(Debug, Clone, Copy)]
pub enum Reaped {
    /// This one ended and is reaped.
    Ended(Ended),
    /// Children exist, none has ended.
    StillRunning,
    /// There is no child at all.
    NoChild,
}

/// `wait4(2)` for any child (`pid` -1) or one, without waiting.
pub fn reap(pid: i32) -> Result<Reaped, CallError> {
    let mut status = 0;
    // SAFETY: `rusage` is plain integers, for which all zeroes is a valid value.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: both pointers are to live locals of the right type.
    let ended = unsafe { libc::wait4(pid, &raw mut status, libc::WNOHANG | libc::__WALL, &raw mut usage) };
    match ended {
        -1 if std::io::Error::last_os_error().raw_os_error() == Some(libc::ECHILD) => Ok(Reaped::NoChild),
        -1 => Err(CallError::last("wait4")),
        0 => Ok(Reaped::StillRunning),
        pid => {
            let micros = |t: libc::timeval| t.tv_sec as u64 * 1_000_000 + t.tv_usec as u64;
            Ok(Reaped::Ended(Ended { pid, status, cpu_us: micros(usage.ru_utime) + micros(usage.ru_stime) }))
        }
    }
}

/// Waits for a child that this process has started, and for no longer than `time_max`: then it is killed and reaped, and there is no
/// status.
pub fn wait_at_most(child: &mut Child, time_max: Duration) -> std::io::Result<Option<ExitStatus>> {
    let handle = rustix::process::pidfd_open(Pid::from_child(child), PidfdFlags::empty());
    let ended = handle.and_then(|handle| {
        let deadline = Timespec::try_from(time_max).map_err(|_| Errno::INVAL)?;
        poll(&mut [PollFd::new(&handle, PollFlags::IN)], Some(&deadline))
    });
    if !matches!(ended, Ok(1)) {
        child.kill()?;
    }
    let status = child.wait()?;
    ended.map(|ended| (ended == 1).then_some(status)).map_err(Into::into)
}

/// Whether `pid` is a child of this process, ended or not: `waitid(2)` that leaves it as it is.
pub fn is_child(pid: i32) -> bool {
    // SAFETY: `siginfo_t` is plain data, for which all zeroes is a valid value; the pointer is to a live local.
    unsafe {
        let mut info: libc::siginfo_t = std::mem::zeroed();
        let flags = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT | libc::__WALL;
        libc::waitid(libc::P_PID, pid.cast_unsigned(), &raw mut info, flags) == 0
    }
}

/// `kill(2)`: `pid` > 0 a process, < -1 a group, -1 everything the caller may signal (for pid 1: its whole namespace but itself).
pub fn kill(pid: i32, signal: i32) -> Result<(), CallError> {
    // SAFETY: integers only.
    match unsafe { libc::kill(pid, signal) } {
        0 => Ok(()),
        _ => Err(CallError::last("kill")),
    }
}

/// `pidfd_send_signal(2)` with SIGKILL.
pub fn kill_pidfd(pidfd: BorrowedFd<'_>) -> Result<(), CallError> {
    rustix::process::pidfd_send_signal(pidfd, rustix::process::Signal::KILL).named("pidfd_send_signal")
}

/// `pidfd_open(2)`, closed by exec: readable when the process has ended.
pub fn open_pidfd(pid: i32) -> Result<OwnedFd, CallError> {
    let pid = rustix::process::Pid::from_raw(pid).ok_or(CallError { call: "pidfd_open", errno: Errno::SRCH })?;
    rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::NONBLOCK).named("pidfd_open")
}

/// `prctl(PR_SET_PDEATHSIG)`: SIGKILL when the parent's thread ends.
pub fn die_with_parent() -> Result<(), CallError> {
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL)).named("prctl(PR_SET_PDEATHSIG)")
}

/// `prctl(PR_SET_DUMPABLE, 0)`: nobody without CAP_SYS_PTRACE may look into this process.
pub fn hide_from_tracers() -> Result<(), CallError> {
    rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable).named("prctl(PR_SET_DUMPABLE)")
}

/// `prctl(PR_SET_DUMPABLE, 1)`: what [`hide_from_tracers`] took away.
pub fn show_to_tracers() -> Result<(), CallError> {
    rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::Dumpable).named("prctl(PR_SET_DUMPABLE)")
}

/// `prctl(PR_SET_CHILD_SUBREAPER)`: orphaned descendants become this process's children.
pub fn adopt_orphans() -> Result<(), CallError> {
    // SAFETY: integers only.
    match unsafe { libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) } {
        0 => Ok(()),
        _ => Err(CallError::last("prctl(PR_SET_CHILD_SUBREAPER)")),
    }
}

/// `prctl(PR_SET_NO_NEW_PRIVS)`.
pub fn set_no_new_privs() -> Result<(), CallError> {
    rustix::thread::set_no_new_privs(true).named("prctl(PR_SET_NO_NEW_PRIVS)")
}

/// `prctl(PR_SET_NAME)`.
pub fn set_name(name: &CStr) -> Result<(), CallError> {
    rustix::thread::set_name(name).named("prctl(PR_SET_NAME)")
}

/// `setsid(2)`.
pub fn new_session() -> Result<(), CallError> {
    rustix::process::setsid().map(drop).named("setsid")
}

/// `close_range(2)`: every descriptor from `first` on.
pub fn close_from(first: RawFd) -> Result<(), CallError> {
    close_between(first as u32, u32::MAX)
}

/// `close_range(2)` of one number, whether it is open or not.
pub fn close_number(number: RawFd) -> Result<(), CallError> {
    close_between(number as u32, number as u32)
}

fn close_between(first: u32, last: u32) -> Result<(), CallError> {
    // SAFETY: the callers own no descriptor between the two that they use again; all have one thread.
    match unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) } {
        0 => Ok(()),
        _ => Err(CallError::last("close_range")),
    }
}

/// `dup3(2)` onto a fixed number, not inherited across exec when `close_on_exec` says so.
pub fn duplicate_to(from: BorrowedFd<'_>, to: RawFd, close_on_exec: CloseOnExec) -> Result<(), CallError> {
    let flags = match close_on_exec {
        CloseOnExec::Yes => libc::O_CLOEXEC,
        CloseOnExec::No => 0,
    };
    // SAFETY: integers only; the number `to` is not wrapped in an OwnedFd by the callers.
    match unsafe { libc::dup3(from.as_raw_fd(), to, flags) } {
        -1 => Err(CallError::last("dup3")),
        _ => Ok(()),
    }
}

/// Whether a descriptor is closed by exec.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the two states of FD_CLOEXEC")]
pub enum CloseOnExec {
    Yes,
    No,
}

/// Takes ownership of a descriptor that was put at a known number before exec or clone.
pub fn adopt_descriptor(number: RawFd) -> Result<OwnedFd, CallError> {
    // SAFETY: F_GETFD only asks.
    if unsafe { libc::fcntl(number, libc::F_GETFD) } == -1 {
        return Err(CallError::last("fcntl(F_GETFD)"));
    }
    // SAFETY: it is open, and by the contract between parent and child nobody else in this process owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// `fcntl(F_SETFD)`: no program that is executed from here on inherits this descriptor.
pub fn close_on_exec(descriptor: BorrowedFd<'_>) -> Result<(), CallError> {
    rustix::io::fcntl_setfd(descriptor, rustix::io::FdFlags::CLOEXEC).named("fcntl(F_SETFD)")
}

/// `setrlimit(2)`; `soft` and `hard` are cut to the hard limit in force, which only CAP_SYS_RESOURCE may raise.
pub fn set_rlimit(resource: u32, limit: u64) -> Result<(), CallError> {
    let mut current = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the pointer is to a live local.
    if unsafe { libc::getrlimit(resource, &raw mut current) } != 0 {
        return Err(CallError::last("getrlimit"));
    }
    let value = limit.min(current.rlim_max);
    let wanted = libc::rlimit { rlim_cur: value, rlim_max: value };
    // SAFETY: the pointer is to a live local.
    match unsafe { libc::setrlimit(resource, &raw const wanted) } {
        0 => Ok(()),
        _ => Err(CallError::last("setrlimit")),
    }
}

/// Raises the soft limit on descriptors to the hard one: the usual soft limit of 1024 is for programs that use select(2).
pub fn raise_descriptor_limit() -> Result<(), CallError> {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let maximum = getrlimit(Resource::Nofile).maximum;
    setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }).named("setrlimit")
}

/// Every signal back to its default action.
pub fn default_signals() {
    for signal in 1..=64 {
        // SIGKILL, SIGSTOP and the two numbers of the C library refuse; for them the default is all there is.
        // SAFETY: SIG_DFL is a valid handler for every number.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
}

/// No signal blocked: what a program expects at its start.
pub fn unblock_signals() -> Result<(), CallError> {
    // SAFETY: the set is filled by sigemptyset before it is used.
    unsafe {
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut none);
        match libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut()) {
            0 => Ok(()),
            _ => Err(CallError::last("sigprocmask")),
        }
    }
}

/// `SIGXFSZ` ignored: a write past RLIMIT_FSIZE is an error then, and not the end of the process.
pub fn outlive_file_size_limit() {
    // SAFETY: SIG_IGN is a valid handler; no handler of ours is replaced. Init, and so programs, get the default back, see `default_signals`.
    unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
}

/// Blocks every signal, so that they are read from a [`child_signals`] descriptor or ignored.
pub fn block_signals() -> Result<(), CallError> {
    // SAFETY: the set is filled by sigfillset before it is used.
    unsafe {
        let mut all: libc::sigset_t = std::mem::zeroed();
        libc::sigfillset(&raw mut all);
        match libc::sigprocmask(libc::SIG_SETMASK, &raw const all, std::ptr::null_mut()) {
            0 => Ok(()),
            _ => Err(CallError::last("sigprocmask")),
        }
    }
}

/// Blocks SIGCHLD, so that it is read from a [`child_signals`] descriptor.
pub fn block_child_signals() -> Result<(), CallError> {
    // SAFETY: the set is filled by sigemptyset before it is used.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        libc::sigaddset(&raw mut set, libc::SIGCHLD);
        match libc::sigprocmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()) {
            0 => Ok(()),
            _ => Err(CallError::last("sigprocmask")),
        }
    }
}

/// `signalfd(2)` for SIGCHLD, non-blocking.
pub fn child_signals() -> Result<OwnedFd, CallError> {
    // SAFETY: the set is filled before use; the descriptor returned is fresh.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        libc::sigaddset(&raw mut set, libc::SIGCHLD);
        match libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) {
            -1 => Err(CallError::last("signalfd")),
            fd => Ok(OwnedFd::from_raw_fd(fd)),
        }
    }
}

/// Reads and drops what a [`child_signals`] descriptor holds.
pub fn drain_signals(signals: BorrowedFd<'_>) {
    let mut buffer = [0; 8 * size_of::<libc::signalfd_siginfo>()];
    while rustix::io::read(signals, &mut buffer).is_ok_and(|bytes| bytes > 0) {}
}

/// `execve(2)`; returns only on failure. `arguments` and `environment` end with a null pointer.
pub fn execute(program: &CStr, arguments: &[*const libc::c_char], environment: &[*const libc::c_char]) -> CallError {
    debug_assert!(arguments.last().is_some_and(|last| last.is_null()));
    debug_assert!(environment.last().is_some_and(|last| last.is_null()));
    // SAFETY: both arrays end with null, their strings outlive the call, and the program replaces this one.
    unsafe { libc::execve(program.as_ptr(), arguments.as_ptr(), environment.as_ptr()) };
    CallError::last("execve")
}

/// Starts `binary` (a memory file) as `codebeaker launcher` with `socket` under the number `number`, an empty environment and
/// nothing else open. Sound in a process with threads: between fork and exec only two calls on integers are made.
pub fn spawn_launcher(binary: BorrowedFd<'_>, socket: BorrowedFd<'_>, number: RawFd) -> std::io::Result<Child> {
    use std::os::unix::process::CommandExt;
    // Above the number that the socket takes.
    let binary = rustix::io::fcntl_dupfd_cloexec(binary, number + 1)?;
    let socket = socket.as_raw_fd();
    let mut command = Command::new(format!("/proc/self/fd/{}", binary.as_raw_fd()));
    command.arg0("codebeaker").arg("launcher").env_clear().stdin(Stdio::null()).stdout(Stdio::null());
    // SAFETY: the closure makes async-signal-safe calls only. When the numbers are equal dup2 would leave FD_CLOEXEC set.
    unsafe {
        command.pre_exec(move || {
            let done = if socket == number { libc::fcntl(socket, libc::F_SETFD, 0) } else { libc::dup2(socket, number) };
            if done == -1 { Err(std::io::Error::last_os_error()) } else { Ok(()) }
        });
    }
    command.spawn()
}

/// Ends this process at once, without running destructors or exit handlers.
pub fn exit_now(code: i32) -> ! {
    // SAFETY: never returns.
    unsafe { libc::_exit(code) }
}

/// `chdir(2)`.
pub fn change_directory(path: &CStr) -> Result<(), CallError> {
    rustix::process::chdir(path).named("chdir")
}

/// `umask(2)`.
pub fn set_umask(mask: u32) {
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(mask));
}

/// Moves the calling thread, the only one of its process, into the cgroup v1 group whose file `tasks` this is.
pub fn join_group(tasks: &str) -> Result<(), CallError> {
    let written = std::fs::OpenOptions::new().write(true).open(tasks).and_then(|mut file| file.write_all(b"0"));
    written.map_err(|error| CallError { call: "write tasks", errno: Errno::from_io_error(&error).unwrap_or(Errno::IO) })
}

/// `unshare(CLONE_NEWCGROUP)`: the group this process is in becomes the root that it sees.
pub fn unshare_cgroup_namespace() -> Result<(), CallError> {
    // SAFETY: integers only; a cgroup namespace holds no descriptors or memory.
    match unsafe { libc::unshare(libc::CLONE_NEWCGROUP) } {
        0 => Ok(()),
        _ => Err(CallError::last("unshare(CLONE_NEWCGROUP)")),
    }
}

/// `unshare(CLONE_NEWNS)`: a copy of all mounts, for this process alone.
pub fn unshare_mount_namespace() -> Result<(), CallError> {
    // SAFETY: integers only; root and working directory move to the same places of the copy, descriptors stay what they are.
    match unsafe { libc::unshare(libc::CLONE_NEWNS) } {
        0 => Ok(()),
        _ => Err(CallError::last("unshare(CLONE_NEWNS)")),
    }
}

/// `setns(CLONE_NEWNS)`: root and working directory become the root of that namespace.
pub fn enter_mount_namespace(namespace: BorrowedFd<'_>) -> Result<(), CallError> {
    // SAFETY: integers only; the descriptor is open through the call.
    match unsafe { libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWNS) } {
        0 => Ok(()),
        _ => Err(CallError::last("setns(CLONE_NEWNS)")),
    }
}

/// `unshare(2)` of everything that a process which only reads and writes files can be without. The caller has one thread.
pub fn unshare_for_unpacking() -> Result<(), CallError> {
    let flags = libc::CLONE_NEWUSER | libc::CLONE_NEWNS | libc::CLONE_NEWNET | libc::CLONE_NEWIPC | libc::CLONE_NEWUTS;
    // SAFETY: integers only; none of these namespaces shares memory or descriptors.
    match unsafe { libc::unshare(flags) } {
        0 => Ok(()),
        _ => Err(CallError::last("unshare")),
    }
}

/// `sethostname(2)`.
pub fn set_hostname(name: &str) -> Result<(), CallError> {
    rustix::system::sethostname(name.as_bytes()).named("sethostname")
}

/// True for an errno that means "try again".
pub fn interrupted(errno: Errno) -> bool {
    errno == Errno::INTR || errno == Errno::AGAIN
}

/// `signal(2)` with `SIG_IGN`: this signal does nothing to this process from now on.
pub fn ignore_signal(signal: i32) {
    // SAFETY: SIG_IGN runs no code of ours.
    unsafe { libc::signal(signal, libc::SIG_IGN) };
}

/// Ends this process as this signal does by default, so that whoever waits for it sees the signal.
pub fn end_by_signal(signal: i32) -> ! {
    // SAFETY: SIG_DFL runs no code of ours; the set lives on this stack; raise and _exit take integers.
    unsafe {
        let mut set = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        libc::sigaddset(&raw mut set, signal);
        libc::signal(signal, libc::SIG_DFL);
        libc::pthread_sigmask(libc::SIG_UNBLOCK, &raw const set, std::ptr::null_mut());
        libc::raise(signal);
        // Only for a signal that does not end a process.
        libc::_exit(128 + signal)
    }
}
