//! Harmless questions to the kernel: what does it offer, may this process write here, who holds that lock?
//!
//! Invariant: nothing in this file changes the host or this process. What does change something is done by a child in namespaces
//! of its own: here by one that makes two system calls and ends, so that it is sound in a process with threads, elsewhere in
//! `trial`.

#![allow(unsafe_code, reason = "the fence: one function, one system call")]

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::path::Path;

use nix::unistd::AccessFlags;
use rustix::io::Errno;

use super::error::CallError;
use super::mount;
use super::process::{self, Cloned};

/// The version of Landlock the kernel offers; 0 when it offers none.
pub fn landlock_abi() -> u32 {
    const VERSION: libc::c_ulong = 1; // LANDLOCK_CREATE_RULESET_VERSION
    // SAFETY: with this flag the kernel takes a null attribute of size 0, makes nothing and answers with a number.
    let answer =
        unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, std::ptr::null::<libc::c_void>(), 0_usize, VERSION) };
    u32::try_from(answer).unwrap_or(0)
}

/// Whether a mount that is attached nowhere can be cloned: since Linux 6.15.
pub fn clones_detached(mount: BorrowedFd<'_>) -> Result<(), CallError> {
    mount::clone_tree(mount, c"").map(drop)
}

/// Tries what every sandbox begins with: a user namespace whose owner may mount in it. There are hosts where the first works and
/// leaves its maker without the second.
pub fn user_namespace() -> Result<(), CallError> {
    const CALLS: [&str; 2] = ["clone3(CLONE_NEWUSER)", "mount in a user namespace"];
    let flags = (libc::CLONE_NEWUSER | libc::CLONE_NEWNS) as u64;
    let child = match process::clone(flags, None).map_err(|error| CallError { call: CALLS[0], ..error })? {
        Cloned::Child => process::exit_now(make_mounts_private()),
        Cloned::Parent { pid, .. } => pid,
    };
    let mut status = 0;
    // SAFETY: the pointer is to a live local of the right type; the child is ours and nobody else waits for it.
    while unsafe { libc::waitpid(child, &raw mut status, libc::__WALL) } == -1 {
        let error = CallError::last("waitpid");
        if error.errno != Errno::INTR {
            return Err(error);
        }
    }
    match libc::WEXITSTATUS(status) {
        0 if libc::WIFEXITED(status) => Ok(()),
        errno if libc::WIFEXITED(status) => Err(CallError { call: CALLS[1], errno: Errno::from_raw_os_error(errno) }),
        _ => Err(CallError { call: CALLS[0], errno: Errno::PERM }),
    }
}

/// The errno of making all mounts private, 0 when it worked. Called in a child that may make nothing but system calls.
fn make_mounts_private() -> i32 {
    let (none, flags) = (std::ptr::null(), libc::MS_REC | libc::MS_PRIVATE);
    // SAFETY: the target is a string that ends with NUL; with these flags the kernel reads no other pointer.
    match unsafe { libc::mount(none, c"/".as_ptr(), none, flags, none.cast()) } {
        0 => 0,
        // SAFETY: the calling thread's own errno.
        _ => unsafe { *libc::__errno_location() },
    }
}

/// Whether the real user may write to `path`: access(2), so a read-only mount counts as "no".
pub fn writable(path: &Path) -> bool {
    nix::unistd::access(path, AccessFlags::W_OK).is_ok()
}

/// What an attempt at flock(2) found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LockAttempt {
    /// This process holds the lock as long as the file is open.
    Locked,
    /// Another open file holds it.
    HeldElsewhere,
}

/// Takes an exclusive flock(2) on `file` without waiting.
pub fn lock_exclusive(file: &File) -> io::Result<LockAttempt> {
    // SAFETY: the descriptor is open for as long as `file` is borrowed, and flock touches no memory.
    let answer = unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) };
    if answer == 0 {
        return Ok(LockAttempt::Locked);
    }
    let error = io::Error::last_os_error();
    if error.kind() == io::ErrorKind::WouldBlock { Ok(LockAttempt::HeldElsewhere) } else { Err(error) }
}

/// Sends SIGKILL to a process found in a group this project made; a process that is gone already is no error.
pub fn kill_process(pid: i32) -> io::Result<()> {
    match nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL) {
        Ok(()) | Err(nix::errno::Errno::ESRCH) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

/// ESRCH, which std has no word for: what reading `/proc/PID/…` gives when the process ends in between.
pub fn is_no_such_process(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::ESRCH)
}
