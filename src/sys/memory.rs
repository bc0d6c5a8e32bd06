//! Memory: the sealed copy of our own binary, carriers of large messages, and how the allocator keeps large blocks.

use std::fs::File;
use std::io::{self, Seek};
use std::os::fd::OwnedFd;

use rustix::fs::{MemfdFlags, SealFlags};

use super::error::{CallError, Named};

/// `memfd_create(2)`, closed by exec, for a message too large for a socket.
pub fn message_carrier() -> Result<File, CallError> {
    let fd = rustix::fs::memfd_create(c"message", MemfdFlags::CLOEXEC | MemfdFlags::NOEXEC_SEAL)
        .or_else(|_| rustix::fs::memfd_create(c"message", MemfdFlags::CLOEXEC))
        .named("memfd_create")?;
    Ok(File::from(fd))
}

/// A copy of the running binary that nobody can write to any more: what the launcher is executed from, so that no program
/// reaches the host's file through `/proc/*/exe`.
pub fn sealed_copy_of_self() -> io::Result<OwnedFd> {
    let fd = rustix::fs::memfd_create(c"codebeaker", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING | MemfdFlags::EXEC)
        .or_else(|_| rustix::fs::memfd_create(c"codebeaker", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING))?;
    let mut copy = File::from(fd);
    let mut binary = File::open("/proc/self/exe")?;
    io::copy(&mut binary, &mut copy)?;
    copy.rewind()?;
    rustix::fs::fcntl_add_seals(&copy, SealFlags::WRITE | SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
    Ok(copy.into())
}

/// `mallopt(M_MMAP_THRESHOLD)`: blocks of at least `bytes` are mappings of their own, which go back to the kernel when they are
/// freed. Without it glibc raises the threshold to the largest block that was ever freed, and keeps what came before.
#[cfg(target_env = "gnu")]
pub fn map_blocks_from(bytes: i32) {
    // SAFETY: integers only; it changes where later blocks come from, not those that are in use. A refusal (0) leaves the default.
    unsafe { libc::mallopt(libc::M_MMAP_THRESHOLD, bytes) };
}

/// Other allocators than glibc's have no such threshold.
#[cfg(not(target_env = "gnu"))]
pub fn map_blocks_from(_bytes: i32) {}
