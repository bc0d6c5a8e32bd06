//! Opening objects so that no open can block, have a side effect, or end in a kernel file system.
//!
//! Invariant: a name is opened for contents only as one component below an open directory, following nothing, with
//! O_NONBLOCK and O_NOCTTY (a fifo answers at once, a leased file with EWOULDBLOCK, a terminal is not taken); what was
//! opened is then looked at again, because the name may have been exchanged since it was looked up.

use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Mutex, PoisonError};

use rustix::fs::{FileType, Mode, OFlags, RawDir, ResolveFlags, Stat, fstat, fstatfs, openat2};

use super::error::{failed, refused};
use crate::plan::files::{FileError, FileErrorKind};

/// File systems whose files are interfaces of the kernel, by their magic numbers (linux/magic.h).
const KERNEL_FILE_SYSTEMS: [u64; 20] = [
    0x0000_9fa0, // proc
    0x6265_6572, // sysfs
    0x0027_e0eb, // cgroup
    0x6367_7270, // cgroup2
    0x0000_1cd1, // devpts
    0x6462_6720, // debugfs
    0x7472_6163, // tracefs
    0x7363_6673, // securityfs
    0xcafe_4a11, // bpf
    0x6e73_6673, // nsfs
    0x5049_5045, // pipefs
    0x534f_434b, // sockfs
    0x0904_1934, // anonymous inodes
    0x5049_4446, // pidfs
    0x1980_0202, // mqueue
    0xf97c_ff8c, // selinuxfs
    0x4341_5d53, // smackfs
    0x6265_6570, // configfs
    0xde5e_81e4, // efivarfs
    0x4249_4e4d, // binfmt_misc
];

/// Flags of every open here that reads or writes contents.
const CAREFUL: OFlags = OFlags::NONBLOCK.union(OFlags::NOCTTY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// One component below a directory, and nothing else.
const ONE_STEP: ResolveFlags = ResolveFlags::BENEATH.union(ResolveFlags::NO_SYMLINKS).union(ResolveFlags::NO_MAGICLINKS);

/// Device and inode number: which object it is, for as long as a descriptor or a directory entry holds it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    device: u64,
    inode: u64,
}

impl Identity {
    /// Of what `stat` describes.
    pub fn of(stat: &Stat) -> Self {
        Self { device: stat.st_dev, inode: stat.st_ino }
    }

    /// Both lie on one device.
    pub fn same_device(self, other: Self) -> bool {
        self.device == other.device
    }
}

/// Devices that were seen to be no kernel file systems. No kernel file system comes into a sandbox that serves, so none can have one of these
/// numbers later, whatever becomes of it.
#[derive(Debug, Default)]
pub struct Devices(Mutex<Vec<u64>>);

/// As many as a sandbox has file systems, and a few more.
const DEVICES_MAX: usize = 32;

impl Devices {
    /// Whether what `stat` describes lies on one of them.
    pub fn know(&self, stat: &Stat) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).contains(&stat.st_dev)
    }

    /// Refuses an object of a kernel file system, which `stat` describes; asks the kernel once for each device.
    pub fn check(&self, object: impl AsFd, stat: &Stat) -> Result<(), FileError> {
        if self.know(stat) {
            return Ok(());
        }
        refuse_kernel_file_system(object)?;
        let mut seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if seen.len() < DEVICES_MAX && !seen.contains(&stat.st_dev) {
            seen.push(stat.st_dev);
        }
        Ok(())
    }
}

/// Refuses an object of procfs, sysfs and their kind.
pub fn refuse_kernel_file_system(object: impl AsFd) -> Result<(), FileError> {
    let statfs = fstatfs(object).map_err(failed("look at the file system"))?;
    // Magic numbers are 32 bits wide; the field is as wide as the architecture likes and may be sign-extended.
    let magic = statfs.f_type as u64 & 0xffff_ffff;
    if KERNEL_FILE_SYSTEMS.contains(&magic) {
        return Err(refused(FileErrorKind::PathInvalid, "use a file system that belongs to the kernel"));
    }
    Ok(())
}

/// Opens the fifo `name` of `parent` for reading or for writing, without waiting for the other end; anything else is refused.
pub fn open_fifo(parent: impl AsFd, name: &[u8], access: OFlags) -> Result<OwnedFd, FileError> {
    let fifo = openat2(parent, name, access | CAREFUL, Mode::empty(), ONE_STEP).map_err(failed("open the fifo"))?;
    let stat = fstat(&fifo).map_err(failed("look at the opened fifo"))?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::Fifo {
        return Err(refused(FileErrorKind::IoError, "use what is no fifo"));
    }
    Ok(fifo)
}

/// Opens the regular file `name` of `parent`; anything else is refused, also when it takes the file's place meanwhile.
pub fn open_regular(parent: impl AsFd, name: &[u8], access: OFlags) -> Result<(OwnedFd, Stat), FileError> {
    let file = openat2(parent, name, access | CAREFUL, Mode::empty(), ONE_STEP).map_err(failed("open the file"))?;
    let stat = fstat(&file).map_err(failed("look at the opened file"))?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(refused(FileErrorKind::NotARegularFile, "use what is no regular file"));
    }
    refuse_kernel_file_system(&file)?;
    Ok((file, stat))
}

/// Opens the directory `name` of `parent` for reading its entries. O_DIRECTORY makes the kernel refuse anything else
/// before it opens it.
pub fn open_directory(parent: impl AsFd, name: &[u8]) -> Result<OwnedFd, rustix::io::Errno> {
    openat2(parent, name, OFlags::RDONLY | OFlags::DIRECTORY | CAREFUL, Mode::empty(), ONE_STEP)
}

/// Opens the directory `name` of `parent` as a place to work below, which needs no permission to read it.
pub fn open_place(parent: impl AsFd, name: &[u8]) -> Result<OwnedFd, rustix::io::Errno> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat2(parent, name, flags, Mode::empty(), ONE_STEP)
}

/// Makes the regular file `name`, which must not exist, for writing; the umask takes from its permissions.
pub fn create_file(parent: impl AsFd, name: &[u8], permissions: Mode) -> Result<OwnedFd, rustix::io::Errno> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | CAREFUL;
    openat2(parent, name, flags, permissions, ONE_STEP)
}

/// Calls `visit` for every entry of an open directory except `.` and `..`, with the kernel's hint about its type.
pub fn for_each_entry(
    directory: impl AsFd,
    mut visit: impl FnMut(&[u8], FileType) -> Result<(), FileError>,
) -> Result<(), FileError> {
    // 32 KiB hold at least a hundred names of the greatest length, so that one is never too long for it.
    let mut buffer = Vec::with_capacity(32 << 10);
    let spare: &mut [MaybeUninit<u8>] = buffer.spare_capacity_mut();
    let mut entries = RawDir::new(directory, spare);
    while let Some(entry) = entries.next() {
        let entry = entry.map_err(failed("read the directory"))?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            visit(name, entry.file_type())?;
        }
    }
    Ok(())
}
