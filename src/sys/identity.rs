//! A process that is known by more than its number (pidfs, <https://lwn.net/Articles/963749/>).

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::error::CallError;
use super::process::open_pidfd;

/// `PID_FS_MAGIC` of linux/magic.h.
const PID_FS_MAGIC: u64 = 0x5049_4446;

/// `PIDFD_GET_MNT_NAMESPACE` of linux/pidfd.h, since Linux 6.11.
const PIDFD_GET_MNT_NAMESPACE: libc::Ioctl = 0xFF03;

/// What finds one process and no other, whoever has its number later: since Linux 6.9 a pidfd has an inode, which no second process
/// gets before the next boot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    pid: i32,
    inode: u64,
}

impl Identity {
    /// Of the process that this pidfd is of, which has this number in the caller's pid namespace. None where no two are told apart.
    pub fn of(pid: i32, pidfd: BorrowedFd<'_>) -> Option<Self> {
        let is_told = rustix::fs::fstatfs(pidfd).is_ok_and(|file_system| file_system.f_type as u64 == PID_FS_MAGIC);
        let stat = is_told.then(|| rustix::fs::fstat(pidfd)).and_then(Result::ok)?;
        Some(Self { pid, inode: stat.st_ino })
    }

    /// A pidfd of it. `ESRCH` when it has ended and was reaped.
    pub fn open(self) -> Result<OwnedFd, CallError> {
        let pidfd = open_pidfd(self.pid)?;
        match Self::of(self.pid, pidfd.as_fd()) {
            Some(found) if found == self => Ok(pidfd),
            _ => Err(CallError { call: "pidfd_open", errno: Errno::SRCH }),
        }
    }
}

/// Its mount namespace, which stays as long as this is open; closed by exec.
pub fn mount_namespace(pidfd: BorrowedFd<'_>) -> Result<OwnedFd, CallError> {
    // SAFETY: integers only.
    match unsafe { libc::ioctl(pidfd.as_raw_fd(), PIDFD_GET_MNT_NAMESPACE, 0) } {
        -1 => Err(CallError::last("ioctl(PIDFD_GET_MNT_NAMESPACE)")),
        // SAFETY: the kernel has made a fresh descriptor that nobody else owns.
        fd => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;
    use crate::sys::process::kill_pidfd;

    #[test]
    fn a_process_is_found_by_its_identity_and_nobody_else_by_it() {
        let mut child = Command::new("sleep").arg("30").spawn().expect("sleep starts");
        let pid = child.id().cast_signed();
        let pidfd = open_pidfd(pid).expect("an own child");
        let Some(identity) = Identity::of(pid, pidfd.as_fd()) else {
            let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").expect("a release");
            let mut version = release.split(['.', '-']).map(|part| part.trim().parse::<u32>().unwrap_or(0));
            assert!((version.next(), version.next()) < (Some(6), Some(9)), "{release}");
            child.kill().and_then(|()| child.wait()).expect("an own child");
            return;
        };
        let another = Identity { inode: identity.inode + 1, ..identity };
        let errno = |identity: Identity| identity.open().map_err(|error| error.errno).err();
        assert_eq!(errno(another), Some(Errno::SRCH), "whoever has its number is another");
        kill_pidfd(identity.open().expect("it lives").as_fd()).expect("an own child");
        assert!(!child.wait().expect("an own child").success());
        assert_eq!(errno(identity), Some(Errno::SRCH), "it was reaped");
    }
}
