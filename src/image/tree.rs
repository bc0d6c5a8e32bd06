//! The only writer of an image's files: every entry is made relative to the descriptor of the image's root.
//!
//! Invariant: no symbolic link is ever followed and no path leaves the root (openat2 with RESOLVE_BENEATH, RESOLVE_NO_SYMLINKS
//! and RESOLVE_NO_MAGICLINKS); no device, fifo, socket, set-id bit or privileged attribute is ever written. Directories are
//! removed by the whiteouts of a later layer only (`whiteout`). In a root file system names such as `.wh.x` are ordinary names.

use std::collections::{BTreeMap, HashSet};
use std::ffi::OsStr;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, ResolveFlags, Timespec, Timestamps, Uid, XattrFlags};
use rustix::io::Errno;

use super::bounds::Meter;
use super::entry::{EntryPath, Meta};
use super::{ImageError, Refusal};

const DIRECTORY: OFlags = OFlags::DIRECTORY.union(OFlags::RDONLY).union(OFlags::CLOEXEC).union(OFlags::NOFOLLOW);
const CONFINED: ResolveFlags = ResolveFlags::BENEATH.union(ResolveFlags::NO_SYMLINKS).union(ResolveFlags::NO_MAGICLINKS);
const BLOCK_BYTES: usize = 64 << 10;
/// Sessions map 65,536 ids; an owner past that belongs to nobody there.
const IDS: u64 = 65_536;

/// Opens a directory below `root` without following any link; the empty path is `root` itself.
pub(super) fn open_directory(root: BorrowedFd<'_>, path: &Path) -> Result<OwnedFd, Errno> {
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    rustix::fs::openat2(root, path, DIRECTORY, Mode::empty(), CONFINED)
}

/// Whom the files of a tree belong to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum Ownership {
    /// As the source says (root only).
    Kept,
    /// The caller's own.
    Own,
}

/// What was left out or changed on purpose.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Notes {
    /// Devices, fifos and sockets that were not made.
    pub special_files_skipped: u64,
    /// Set-uid and set-gid bits that were dropped.
    pub set_id_bits_dropped: u64,
    /// Extended attributes other than `user.*`, and those that the store's file system can't hold.
    pub xattrs_dropped: u64,
    /// Owners past 65,535 that became root of the image.
    pub owners_mapped: u64,
    /// Directories whose contents were left out because another file system is mounted there.
    pub mounts_skipped: u64,
}

/// Writes one tree.
pub struct Tree {
    pub(super) root: OwnedFd,
    ownership: Ownership,
    /// What has been written.
    pub meter: Meter,
    /// What has not.
    pub notes: Notes,
    /// Permissions and times that are set last, because writing into a directory needs and changes them.
    pub(super) directories: BTreeMap<PathBuf, (Mode, i64)>,
    /// What the layer that is being written has made, with all parents; absent for a root file system.
    pub(super) made: Option<HashSet<PathBuf>>,
    /// The directory of the entry before.
    pub(super) parent: Option<(PathBuf, OwnedFd)>,
}

impl Tree {
    /// A writer into the empty directory `root`.
    pub fn new(root: OwnedFd, ownership: Ownership, meter: Meter) -> Self {
        Self { root, ownership, meter, notes: Notes::default(), directories: BTreeMap::new(), made: None, parent: None }
    }

    /// Makes a directory, or gives an existing one these attributes.
    pub fn directory(&mut self, path: &EntryPath, meta: &Meta) -> Result<(), ImageError> {
        self.meter.entry(&path.show())?;
        let mode = Mode::from_bits_truncate(meta.mode & 0o1777);
        self.count_set_id(meta);
        self.directories.insert(path.as_path().to_owned(), (mode, meta.modified_s));
        let made = match path.split() {
            None => open_directory(self.root.as_fd(), Path::new("")),
            Some((parent, name)) => {
                self.enter(parent, path)?;
                self.clear(path, name, Clearing::KeepDirectory)?;
                let parent = self.current();
                match rustix::fs::mkdirat(parent, name, Mode::RWXU) {
                    Ok(()) | Err(Errno::EXIST) => open_directory(parent, Path::new(name)),
                    Err(errno) => Err(errno),
                }
            }
        };
        let directory = made.map_err(failed("making", path))?;
        self.note_made(path);
        self.set_attributes(directory.as_fd(), path, meta)
    }

    /// Makes a regular file of exactly `bytes` bytes.
    pub fn file(&mut self, path: &EntryPath, meta: &Meta, bytes: u64, contents: &mut dyn Read) -> Result<(), ImageError> {
        self.meter.entry(&path.show())?;
        self.meter.bytes(&path.show(), bytes)?;
        self.count_set_id(meta);
        let (parent, name) = path.split().ok_or_else(|| refused(path, Refusal::Root))?;
        self.enter(parent, path)?;
        self.clear(path, name, Clearing::RefuseDirectory)?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let opened = rustix::fs::openat2(self.current(), name, flags, Mode::RUSR | Mode::WUSR, CONFINED);
        let mut file = File::from(opened.map_err(failed("making", path))?);
        self.note_made(path);
        fill(&mut file, bytes, contents, path)?;
        self.set_attributes(file.as_fd(), path, meta)?;
        let mode = Mode::from_bits_truncate(meta.mode & 0o777);
        rustix::fs::fchmod(&file, mode).map_err(failed("setting the permissions of", path))?;
        rustix::fs::futimens(&file, &times(meta.modified_s)).map_err(failed("setting the time of", path))
    }

    /// Makes a symbolic link; where it points is not looked at, because nothing ever follows it here.
    pub fn symlink(&mut self, path: &EntryPath, meta: &Meta, target: &[u8]) -> Result<(), ImageError> {
        self.meter.entry(&path.show())?;
        let (parent, name) = path.split().ok_or_else(|| refused(path, Refusal::Root))?;
        if target.contains(&0) {
            return Err(refused(path, Refusal::Nul));
        }
        self.enter(parent, path)?;
        self.clear(path, name, Clearing::RefuseDirectory)?;
        let parent = self.current();
        rustix::fs::symlinkat(target, parent, name).map_err(failed("making", path))?;
        self.note_made(path);
        let parent = self.current();
        let flags = AtFlags::SYMLINK_NOFOLLOW;
        rustix::fs::utimensat(parent, name, &times(meta.modified_s), flags).map_err(failed("setting the time of", path))?;
        if self.ownership == Ownership::Kept {
            let (uid, gid) = self.owner(meta);
            rustix::fs::chownat(self.current(), name, Some(uid), Some(gid), flags)
                .map_err(failed("setting the owner of", path))?;
        }
        Ok(())
    }

    /// Makes another name of a file or symbolic link that this tree has already.
    pub fn hard_link(&mut self, path: &EntryPath, target: &EntryPath) -> Result<(), ImageError> {
        self.meter.entry(&path.show())?;
        let (parent, name) = path.split().ok_or_else(|| refused(path, Refusal::Root))?;
        let (target_parent, target_name) = target.split().ok_or_else(|| refused(path, Refusal::LinkTargetKind))?;
        let target_parent = open_directory(self.root.as_fd(), target_parent).map_err(|errno| match errno {
            Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::XDEV => refused(path, Refusal::LinkTargetMissing),
            other => failed("linking", path)(other),
        })?;
        let stat = match rustix::fs::statat(&target_parent, target_name, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => return Err(refused(path, Refusal::LinkTargetMissing)),
            answer => answer.map_err(failed("linking", path))?,
        };
        if !matches!(FileType::from_raw_mode(stat.st_mode), FileType::RegularFile | FileType::Symlink) {
            return Err(refused(path, Refusal::LinkTargetKind));
        }
        if path == target {
            return Ok(());
        }
        self.enter(parent, path)?;
        self.clear(path, name, Clearing::RefuseDirectory)?;
        self.note_made(path);
        rustix::fs::linkat(&target_parent, target_name, self.current(), name, AtFlags::empty()).map_err(failed("linking", path))
    }

    /// Counts a device, fifo or socket, which is not made.
    pub fn special(&mut self, path: &EntryPath) -> Result<(), ImageError> {
        self.meter.entry(&path.show())?;
        self.notes.special_files_skipped += 1;
        Ok(())
    }

    /// The real directories that the sandbox mounts on; anything else in their place is refused.
    pub fn mount_points(&mut self) -> Result<(), ImageError> {
        for (path, mode) in MOUNT_POINTS {
            match rustix::fs::mkdirat(&self.root, path, Mode::RWXU) {
                Ok(()) => {
                    self.directories.insert(PathBuf::from(path), (Mode::from_bits_truncate(mode), 0));
                }
                Err(Errno::EXIST) => {}
                Err(errno) => return Err(ImageError::errno("making", path)(errno)),
            }
            open_directory(self.root.as_fd(), Path::new(path)).map_err(|_| ImageError::MountPoint { path: path.into() })?;
        }
        Ok(())
    }

    /// Sets what had to wait; the tree is complete then.
    pub fn finish(&mut self) -> Result<(), ImageError> {
        for (path, (mode, modified_s)) in std::mem::take(&mut self.directories) {
            // Without root the owner must keep its own access, or the directories below could not be reached any more.
            let directory = open_directory(self.root.as_fd(), &path).map_err(ImageError::errno("opening", &path))?;
            let mode = if self.ownership == Ownership::Own { mode | Mode::RWXU } else { mode };
            rustix::fs::fchmod(&directory, mode).map_err(ImageError::errno("setting the permissions of", &path))?;
            rustix::fs::futimens(&directory, &times(modified_s)).map_err(ImageError::errno("setting the time of", &path))?;
        }
        Ok(())
    }

    /// Opens the directory that the next entry goes into, making what is missing of it.
    fn enter(&mut self, parent: &Path, entry: &EntryPath) -> Result<(), ImageError> {
        if self.parent.as_ref().is_some_and(|(path, _)| path == parent) {
            return Ok(());
        }
        let opened = match open_directory(self.root.as_fd(), parent) {
            Err(Errno::NOENT) => self.make_parents(parent, entry)?,
            Err(Errno::LOOP | Errno::NOTDIR | Errno::XDEV) => return Err(refused(entry, Refusal::ParentNotADirectory)),
            answer => answer.map_err(failed("opening the directory of", entry))?,
        };
        self.parent = Some((parent.to_owned(), opened));
        Ok(())
    }

    fn make_parents(&mut self, parent: &Path, entry: &EntryPath) -> Result<OwnedFd, ImageError> {
        let mut path = PathBuf::new();
        let mut directory =
            open_directory(self.root.as_fd(), Path::new("")).map_err(failed("opening the directory of", entry))?;
        for component in parent.components() {
            path.push(component);
            match rustix::fs::mkdirat(&directory, component.as_os_str(), Mode::RWXU) {
                Ok(()) => {
                    self.meter.entry(&entry.show())?;
                    self.directories.insert(path.clone(), (Mode::from_bits_truncate(0o755), 0));
                }
                Err(Errno::EXIST) => {}
                Err(errno) => return Err(failed("making the directory of", entry)(errno)),
            }
            directory = open_directory(directory.as_fd(), Path::new(component.as_os_str())).map_err(|errno| match errno {
                Errno::LOOP | Errno::NOTDIR => refused(entry, Refusal::ParentNotADirectory),
                other => failed("opening the directory of", entry)(other),
            })?;
        }
        Ok(directory)
    }

    /// The directory that `enter` opened.
    fn current(&self) -> BorrowedFd<'_> {
        self.parent.as_ref().map_or_else(|| self.root.as_fd(), |(_, directory)| directory.as_fd())
    }

    /// Removes what stands where an entry goes: a later entry replaces an earlier one, a later layer anything of those below.
    fn clear(&mut self, entry: &EntryPath, name: &OsStr, clearing: Clearing) -> Result<(), ImageError> {
        let parent = self.current();
        let kind = match rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => return Ok(()),
            answer => FileType::from_raw_mode(answer.map_err(failed("looking at", entry))?.st_mode),
        };
        match (kind, clearing) {
            (FileType::Directory, Clearing::KeepDirectory) => Ok(()),
            (FileType::Directory, Clearing::RefuseDirectory) => {
                if self.made.as_ref().is_none_or(|made| made.contains(entry.as_path())) {
                    return Err(refused(entry, Refusal::ReplacesDirectory));
                }
                self.remove_below_layers(entry.as_path(), entry)?;
                self.enter(entry.split().map_or(Path::new(""), |(parent, _)| parent), entry)
            }
            (_, Clearing::KeepDirectory | Clearing::RefuseDirectory) => {
                rustix::fs::unlinkat(parent, name, AtFlags::empty()).map_err(failed("replacing", entry))
            }
        }
    }

    fn count_set_id(&mut self, meta: &Meta) {
        self.notes.set_id_bits_dropped += u64::from(meta.mode & 0o4000 != 0) + u64::from(meta.mode & 0o2000 != 0);
    }

    fn owner(&mut self, meta: &Meta) -> (Uid, Gid) {
        let mut id = |id: u64| match u32::try_from(id) {
            Ok(id) if u64::from(id) < IDS => id,
            _ => {
                self.notes.owners_mapped += 1;
                0
            }
        };
        (Uid::from_raw(id(meta.uid)), Gid::from_raw(id(meta.gid)))
    }

    fn set_attributes(&mut self, file: BorrowedFd<'_>, path: &EntryPath, meta: &Meta) -> Result<(), ImageError> {
        if self.ownership == Ownership::Kept {
            let (uid, gid) = self.owner(meta);
            rustix::fs::fchown(file, Some(uid), Some(gid)).map_err(failed("setting the owner of", path))?;
        }
        for (name, value) in &meta.xattrs {
            // The overlay itself reads `user.overlay.*` of its lower layer, so no image may hold any.
            let kept = name.starts_with(b"user.") && !name.starts_with(b"user.overlay.") && !name.contains(&0);
            let stored = kept
                && match rustix::fs::fsetxattr(file, name.as_slice(), value, XattrFlags::empty()) {
                    Ok(()) => true,
                    Err(Errno::OPNOTSUPP | Errno::NOSPC | Errno::TOOBIG | Errno::RANGE | Errno::PERM) => false,
                    Err(errno) => return Err(failed("setting an attribute of", path)(errno)),
                };
            self.notes.xattrs_dropped += u64::from(!stored);
        }
        Ok(())
    }
}

/// Where the sandbox mounts; and `etc`, where it writes.
const MOUNT_POINTS: [(&str, u32); 5] = [("proc", 0o755), ("dev", 0o755), ("tmp", 0o1777), ("workspace", 0o755), ("etc", 0o755)];

/// What happens to a directory that stands where an entry goes.
#[derive(Clone, Copy)]
enum Clearing {
    KeepDirectory,
    RefuseDirectory,
}

pub(super) fn refused(entry: &EntryPath, refusal: Refusal) -> ImageError {
    ImageError::EntryRefused { entry: entry.show(), refusal }
}

pub(super) fn failed(operation: &'static str, entry: &EntryPath) -> impl FnOnce(Errno) -> ImageError {
    let entry = entry.show();
    move |errno| ImageError::Entry { operation: operation.into(), entry, source: errno.into() }
}

fn times(modified_s: i64) -> Timestamps {
    let time = Timespec { tv_sec: modified_s, tv_nsec: 0 };
    Timestamps { last_access: time, last_modification: time }
}

/// Copies exactly `bytes` bytes; blocks of zeros become holes.
fn fill(file: &mut File, bytes: u64, contents: &mut dyn Read, path: &EntryPath) -> Result<(), ImageError> {
    let unwritten = |source| ImageError::Entry { operation: "writing".into(), entry: path.show(), source };
    let mut block = vec![0; BLOCK_BYTES.min(usize::try_from(bytes).unwrap_or(BLOCK_BYTES))];
    let mut left = bytes;
    let mut hole = false;
    while left > 0 {
        let wanted = block.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        let part = &mut block[..wanted];
        contents.read_exact(part).map_err(|source| ImageError::Archive { entry: path.show(), source })?;
        hole = wanted == BLOCK_BYTES && part.iter().all(|&byte| byte == 0);
        if hole {
            std::io::Seek::seek_relative(file, wanted as i64).map_err(unwritten)?;
        } else {
            file.write_all(part).map_err(unwritten)?;
        }
        left -= wanted as u64;
    }
    if hole { file.set_len(bytes).map_err(unwritten) } else { Ok(()) }
}
