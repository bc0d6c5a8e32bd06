//! A directory of the host into a tree.
//!
//! Invariant: the source is read without following a link and without leaving its file system; it may change while it is
//! copied, and then the copy fails or holds one of its states, never something from elsewhere.

use std::collections::HashMap;
use std::ffi::OsString;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, ResolveFlags, Stat};
use rustix::io::Errno;
use sha2::{Digest, Sha256};

use super::ImageError;
use super::entry::{EntryPath, Meta, Xattr, show};
use super::layer::Tick;
use super::tree::{Tree, open_directory};

/// Names of one source that share a file: device and inode → the first name.
type Links = HashMap<(u64, u64), EntryPath>;

struct Copier<'a, 't> {
    source: BorrowedFd<'a>,
    device: u64,
    links: Links,
    hash: Sha256,
    tree: &'t mut Tree,
}

/// Copies everything below `source`; the answer is the SHA-256 of names, attributes and contents in the order of names.
pub fn copy(source: &OwnedFd, tree: &mut Tree, tick: Tick<'_>) -> Result<[u8; 32], ImageError> {
    let stat = rustix::fs::fstat(source).map_err(ImageError::errno("looking at", "/"))?;
    let mut copier = Copier { source: source.as_fd(), device: stat.st_dev, links: Links::new(), hash: Sha256::new(), tree };
    copier.hash.update(b"codebeaker-directory-1\0");
    let mut waiting = vec![PathBuf::new()];
    while let Some(directory) = waiting.pop() {
        let path = EntryPath::parse(directory.as_os_str().as_bytes(), copier.tree.meter.bounds())?;
        for name in copier.directory(&path)? {
            let inner = directory.join(&name);
            if copier.entry(&inner)? {
                waiting.push(inner);
            }
            tick(copier.tree, copier.tree.meter.bytes)?;
        }
    }
    Ok(copier.hash.finalize().into())
}

impl Copier<'_, '_> {
    /// Makes the directory and names what is in it, sorted.
    fn directory(&mut self, path: &EntryPath) -> Result<Vec<OsString>, ImageError> {
        let directory = open_directory(self.source, path.as_path()).map_err(failed("opening", path.as_path()))?;
        let stat = rustix::fs::fstat(&directory).map_err(failed("looking at", path.as_path()))?;
        let meta = self.record(path, b'd', &stat, directory.as_fd())?;
        self.tree.directory(path, &meta)?;
        if stat.st_dev != self.device {
            self.tree.notes.mounts_skipped += 1;
            return Ok(Vec::new());
        }
        let mut names = Vec::new();
        let entries_max = self.tree.meter.bounds().entries_max;
        for entry in Dir::read_from(&directory).map_err(failed("reading", path.as_path()))? {
            let entry = entry.map_err(failed("reading", path.as_path()))?;
            let name = entry.file_name().to_bytes();
            if name != b"." && name != b".." {
                names.push(OsString::from_vec(name.to_vec()));
                super::bounds::check(&path.show(), "entries_max", names.len() as u64, entries_max)?;
            }
        }
        names.sort();
        Ok(names)
    }

    /// Copies one entry; true when it is a directory, which is left to `directory`.
    fn entry(&mut self, inner: &Path) -> Result<bool, ImageError> {
        let path = EntryPath::parse(inner.as_os_str().as_bytes(), self.tree.meter.bounds())?;
        let Some((parent, name)) = path.split() else { return Ok(false) };
        let parent = open_directory(self.source, parent).map_err(failed("opening", inner))?;
        let stat = rustix::fs::statat(&parent, name, AtFlags::SYMLINK_NOFOLLOW).map_err(failed("looking at", inner))?;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => return Ok(true),
            FileType::Symlink => {
                let target = rustix::fs::readlinkat(&parent, name, Vec::new()).map_err(failed("reading", inner))?;
                self.hash_record(&path, b'l', &stat, target.as_bytes());
                self.tree.symlink(&path, &plain_meta(&stat), target.as_bytes())?;
            }
            FileType::RegularFile => self.file(&path, parent.as_fd())?,
            FileType::Fifo | FileType::Socket | FileType::CharacterDevice | FileType::BlockDevice | FileType::Unknown => {
                self.tree.special(&path)?;
            }
        }
        Ok(false)
    }

    fn file(&mut self, path: &EntryPath, parent: BorrowedFd<'_>) -> Result<(), ImageError> {
        let Some((_, name)) = path.split() else { return Ok(()) };
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOCTTY;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        let opened = rustix::fs::openat2(parent, name, flags, Mode::empty(), resolve);
        let file = opened.map_err(failed("opening", path.as_path()))?;
        let stat = rustix::fs::fstat(&file).map_err(failed("looking at", path.as_path()))?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return self.tree.special(path);
        }
        if let Some(first) = self.links.get(&(stat.st_dev, stat.st_ino)).cloned() {
            self.hash_record(path, b'h', &stat, first.as_path().as_os_str().as_bytes());
            return self.tree.hard_link(path, &first);
        }
        if stat.st_nlink > 1 {
            self.links.insert((stat.st_dev, stat.st_ino), path.clone());
        }
        let meta = self.record(path, b'f', &stat, file.as_fd())?;
        let mut hashed = Hashed { file: File::from(file), hash: &mut self.hash };
        self.tree.file(path, &meta, u64::try_from(stat.st_size).unwrap_or(0), &mut hashed)
    }

    fn record(&mut self, path: &EntryPath, kind: u8, stat: &Stat, file: BorrowedFd<'_>) -> Result<Meta, ImageError> {
        let mut meta = plain_meta(stat);
        meta.xattrs = user_xattrs(file).map_err(failed("reading the attributes of", path.as_path()))?;
        self.hash_record(path, kind, stat, &[]);
        for (name, value) in &meta.xattrs {
            self.hash_bytes(name);
            self.hash_bytes(value);
        }
        Ok(meta)
    }

    fn hash_record(&mut self, path: &EntryPath, kind: u8, stat: &Stat, extra: &[u8]) {
        self.hash.update([kind]);
        self.hash_bytes(path.as_path().as_os_str().as_bytes());
        self.hash_bytes(extra);
        let size = if kind == b'f' { stat.st_size } else { 0 };
        for number in [i64::from(stat.st_mode), i64::from(stat.st_uid), i64::from(stat.st_gid), stat.st_mtime, size] {
            self.hash.update(number.to_le_bytes());
        }
    }

    /// With its length, so that two different lists never give the same bytes.
    fn hash_bytes(&mut self, bytes: &[u8]) {
        self.hash.update((bytes.len() as u64).to_le_bytes());
        self.hash.update(bytes);
    }
}

struct Hashed<'h> {
    file: File,
    hash: &'h mut Sha256,
}

impl std::io::Read for Hashed<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let read = self.file.read(buffer)?;
        self.hash.update(&buffer[..read]);
        Ok(read)
    }
}

fn failed(operation: &'static str, path: &Path) -> impl FnOnce(Errno) -> ImageError {
    let entry = show(path.as_os_str().as_bytes());
    move |errno| ImageError::Entry { operation: operation.into(), entry, source: errno.into() }
}

fn plain_meta(stat: &Stat) -> Meta {
    Meta {
        mode: stat.st_mode & 0o7777,
        uid: u64::from(stat.st_uid),
        gid: u64::from(stat.st_gid),
        modified_s: stat.st_mtime,
        xattrs: Vec::new(),
    }
}

/// All attributes that may be carried over; the kernel bounds a list and a value to 64 KiB each.
fn user_xattrs(file: BorrowedFd<'_>) -> Result<Vec<Xattr>, Errno> {
    let mut names = vec![0; 64 << 10];
    let length = match rustix::fs::flistxattr(file, names.as_mut_slice()) {
        Err(Errno::OPNOTSUPP) => 0,
        answer => answer?,
    };
    let mut xattrs = Vec::new();
    for name in names[..length].split(|&byte| byte == 0).filter(|name| name.starts_with(b"user.")) {
        let mut value = vec![0; 64 << 10];
        let length = rustix::fs::fgetxattr(file, name, value.as_mut_slice())?;
        value.truncate(length);
        xattrs.push((name.to_vec(), value));
    }
    Ok(xattrs)
}
