//! Calls about files that neither rustix nor nix has. Only tests of the file commands need one so far.

#![expect(unsafe_code, reason = "the fence: system calls stand in sys")]

use std::os::fd::{AsRawFd, BorrowedFd};

use nix::errno::Errno;

/// From asm-generic/fcntl.h; libc lacks it for glibc.
const F_SETSIG: i32 = 10;

/// fcntl(F_SETLEASE): takes (`F_RDLCK`, `F_WRLCK`) or gives back (`F_UNLCK`) a lease on an open file.
pub fn set_lease(file: BorrowedFd<'_>, kind: i32) -> Result<(), Errno> {
    // SAFETY: F_SETLEASE takes an int and no pointer; the descriptor is borrowed, so it is open during the call.
    Errno::result(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETLEASE, kind) }).map(drop)
}

/// fcntl(F_SETSIG): the signal that tells the holder of a lease that someone wants the file; SIGIO, which kills, unless set.
pub fn set_lease_signal(file: BorrowedFd<'_>, signal: i32) -> Result<(), Errno> {
    // SAFETY: F_SETSIG takes an int and no pointer; the descriptor is borrowed, so it is open during the call.
    Errno::result(unsafe { libc::fcntl(file.as_raw_fd(), F_SETSIG, signal) }).map(drop)
}
