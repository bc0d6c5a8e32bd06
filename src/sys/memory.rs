//! Memory: the sealed copy of our own binary, carriers of what is too large for a message, and how the allocator keeps large blocks.

use std::fs::File;
use std::io::{self, Seek, Write};
use std::ops::Deref;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::ptr;

use rustix::buffer::spare_capacity;
use rustix::fs::{MemfdFlags, SealFlags};
use rustix::io::Errno;

use super::error::{CallError, Named};
use super::heap::HUGE_BYTES;

/// What keeps a carrier as it is that its maker has never mapped. `F_SEAL_WRITE` would say more, and wait until no page of it is on a list
/// of some processor's.
const UNCHANGING: SealFlags = SealFlags::FUTURE_WRITE.union(SealFlags::SHRINK);

/// From asm-generic/mman-common.h; the `libc` crate has it for glibc alone.
const MADV_COLLAPSE: i32 = 25;

/// `memfd_create(2)`, closed by exec, for a message too large for a socket.
pub fn message_carrier() -> Result<File, CallError> {
    let fd = rustix::fs::memfd_create(c"message", MemfdFlags::CLOEXEC | MemfdFlags::NOEXEC_SEAL)
        .or_else(|_| rustix::fs::memfd_create(c"message", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING))
        .named("memfd_create")?;
    Ok(File::from(fd))
}

/// A carrier with these bytes, which nobody can change any more.
pub fn carrier_of(bytes: &[u8]) -> io::Result<OwnedFd> {
    let mut carrier = message_carrier().map_err(|error| io::Error::from_raw_os_error(error.raw()))?;
    carrier.write_all(bytes)?;
    rustix::fs::fcntl_add_seals(&carrier, UNCHANGING)?;
    Ok(carrier.into())
}

/// What a carrier holds, `bytes_max` at most, whoever sent it: it is read by position and as far as it went when it was looked at. EINVAL for
/// what is no memory file, which could keep its reader waiting; EFBIG for one that is larger.
pub fn read_carrier(carrier: impl AsFd, bytes_max: u64) -> Result<Vec<u8>, Errno> {
    rustix::fs::fcntl_get_seals(&carrier)?;
    let length = u64::try_from(rustix::fs::fstat(&carrier)?.st_size).unwrap_or(0);
    if length > bytes_max {
        return Err(Errno::FBIG);
    }
    let mut bytes: Vec<u8> = Vec::new();
    bytes.try_reserve_exact(length as usize).map_err(|_| Errno::NOMEM)?;
    while (bytes.len() as u64) < length {
        let at = bytes.len() as u64;
        match rustix::io::pread(&carrier, spare_capacity(&mut bytes), at) {
            Ok(0) => break,
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    bytes.truncate(length as usize);
    Ok(bytes)
}

/// A carrier of [`carrier_of`]'s, read where it is.
#[derive(Debug)]
pub struct Mapped {
    start: *const u8,
    length: usize,
}

impl Mapped {
    /// The whole of it; EPERM for one that somebody could still change.
    pub fn of(carrier: impl AsFd) -> Result<Self, Errno> {
        if !rustix::fs::fcntl_get_seals(&carrier)?.contains(UNCHANGING) {
            return Err(Errno::PERM);
        }
        let length = usize::try_from(rustix::fs::fstat(&carrier)?.st_size).map_err(|_| Errno::INVAL)?;
        if length == 0 {
            return Err(Errno::INVAL);
        }
        let (protection, flags) = (libc::PROT_READ, libc::MAP_PRIVATE | libc::MAP_POPULATE);
        // SAFETY: a new mapping at a place of the kernel's choice.
        let start = unsafe { libc::mmap(std::ptr::null_mut(), length, protection, flags, carrier.as_fd().as_raw_fd(), 0) };
        if start == libc::MAP_FAILED {
            return Err(Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(Errno::NOMEM));
        }
        Ok(Self { start: start.cast_const().cast(), length })
    }
}

impl Deref for Mapped {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: `length` readable bytes that are there as long as this value, of a file whose seals keep it from getting shorter and from
        // being written to by whoever has not mapped it before, as `carrier_of`, where it comes from, never does.
        unsafe { std::slice::from_raw_parts(self.start, self.length) }
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        // SAFETY: the mapping is this value's own, and what was borrowed of it is gone.
        unsafe { libc::munmap(self.start.cast_mut().cast(), self.length) };
    }
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
    collapse(&copy, usize::try_from(copy.metadata()?.len()).unwrap_or(0));
    Ok(copy.into())
}

/// Has the pages of a memory file put together into huge ones (madvise(2), `MADV_COLLAPSE`), unless the host denies shared memory such pages:
/// each process that runs from it maps and lets go of many of them at once then. A kernel before Linux 6.1, or one without memory in
/// such pieces, leaves them as they are.
fn collapse(file: &File, length: usize) {
    let length = length / HUGE_BYTES * HUGE_BYTES;
    let (private, reserved) = (libc::MAP_PRIVATE, length + HUGE_BYTES);
    // SAFETY: new mappings: one at a place of the kernel's choice, and over a part of it one that is only looked at by the kernel.
    unsafe {
        let start = libc::mmap(ptr::null_mut(), reserved, libc::PROT_NONE, private | libc::MAP_ANONYMOUS, -1, 0);
        if start == libc::MAP_FAILED {
            return;
        }
        let aligned = start.byte_add(start.cast::<u8>().align_offset(HUGE_BYTES));
        if libc::mmap(aligned, length, libc::PROT_READ, private | libc::MAP_FIXED, file.as_raw_fd(), 0) == aligned {
            for piece in (0..length).step_by(HUGE_BYTES) {
                libc::madvise(aligned.byte_add(piece), HUGE_BYTES, MADV_COLLAPSE);
            }
        }
        libc::munmap(start, reserved);
    }
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

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    #[test]
    fn the_copy_is_the_binary_and_stays_it_however_its_pages_lie() {
        let mut copy = File::from(sealed_copy_of_self().expect("a copy"));
        assert_eq!(copy.write(b"x").map_err(|error| error.raw_os_error()), Err(Some(libc::EPERM)));
        let (mut read, mut binary) = (Vec::new(), Vec::new());
        copy.rewind().and_then(|()| copy.read_to_end(&mut read)).expect("read");
        File::open("/proc/self/exe").and_then(|mut file| file.read_to_end(&mut binary)).expect("read");
        assert!(read == binary && read.len() > HUGE_BYTES);
    }

    #[test]
    fn a_carrier_is_read_whole_however_its_offset_stands_and_no_other_file_is() {
        let mut carrier = message_carrier().expect("a carrier");
        let content = vec![7; 300_000];
        carrier.write_all(&content).expect("written");
        assert!(read_carrier(&carrier, 300_000).expect("read") == content);
        assert_eq!(read_carrier(&carrier, 299_999), Err(Errno::FBIG));
        assert_eq!(read_carrier(File::open("/proc/self/status").expect("there"), 1 << 20), Err(Errno::INVAL));
        let (pipe, _writer) = io::pipe().expect("a pipe");
        assert_eq!(read_carrier(pipe, 1 << 20), Err(Errno::INVAL), "it would wait for ever");
    }

    #[test]
    fn only_what_nobody_can_change_is_mapped() {
        let sealed = carrier_of(b"content").expect("a carrier");
        assert_eq!(&*Mapped::of(&sealed).expect("mapped"), b"content");
        assert_eq!(rustix::io::pwrite(&sealed, b"x", 0), Err(Errno::PERM));
        let mut open = message_carrier().expect("a carrier");
        open.write_all(b"content").expect("written");
        assert!(matches!(Mapped::of(&open), Err(Errno::PERM)));
    }
}
