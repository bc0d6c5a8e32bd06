//! Directories that are being filled, and the removal of trees.
//!
//! Invariant: a staging directory is locked (flock) from its making to its end, so one that can be locked belongs to nobody and
//! may be removed. Removal holds two descriptors however deep the tree, and follows no link.

use std::ffi::OsStr;
use std::fs::{DirBuilder, File};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Dir, FileType, FlockOperation, Mode};
use rustix::io::Errno;

use super::ImageError;
use super::tree::open_directory;

/// A directory below `tmp`; removed when dropped unless it was moved away.
pub(super) struct Staging {
    path: PathBuf,
    /// Holds the lock.
    directory: File,
}

impl Staging {
    /// A new empty directory in `tmp`. The caller holds the store's lock, so that no one takes it for a stale one.
    pub(super) fn new(tmp: &Path) -> Result<Self, ImageError> {
        let path = tmp.join(format!("{:032x}", rand::random::<u128>()));
        DirBuilder::new().mode(0o700).create(&path).map_err(ImageError::io("making", &path))?;
        let directory = File::open(&path).map_err(ImageError::io("opening", &path))?;
        rustix::fs::flock(&directory, FlockOperation::NonBlockingLockExclusive).map_err(ImageError::errno("locking", &path))?;
        Ok(Self { path, directory })
    }

    /// The lock for another process: held until both have let go.
    pub(super) fn lock(&self) -> Result<OwnedFd, ImageError> {
        self.directory.try_clone().map(OwnedFd::from).map_err(ImageError::io("locking", &self.path))
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Puts everything on disk.
    pub(super) fn sync(&self) -> Result<(), ImageError> {
        rustix::fs::syncfs(&self.directory).map_err(ImageError::errno("syncing", &self.path))
    }

    /// Puts everything on disk, then moves `child` of this directory to `target`. A directory that is there already stays.
    pub(super) fn publish(&self, child: &str, target: &Path) -> Result<Published, ImageError> {
        self.sync()?;
        let published = match std::fs::rename(self.path.join(child), target) {
            Ok(()) => Published::Moved,
            Err(_) if target.is_dir() => Published::WasThere,
            Err(source) => return Err(ImageError::Io { operation: "making".into(), path: target.to_owned(), source }),
        };
        sync_parent(target)?;
        Ok(published)
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        if let Err(error) = remove_tree(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "a staging directory stays until the store is opened again");
        }
    }
}

/// What `Staging::publish` found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Published {
    Moved,
    WasThere,
}

/// Makes a rename last.
pub(super) fn sync_parent(path: &Path) -> Result<(), ImageError> {
    let parent = path.parent().unwrap_or(Path::new("/"));
    File::open(parent).and_then(|directory| directory.sync_all()).map_err(ImageError::io("syncing", parent))
}

/// Removes what processes that ended early left in `tmp`. The caller holds the store's lock exclusively.
pub(super) fn remove_stale(tmp: &Path) -> Result<(), ImageError> {
    for entry in std::fs::read_dir(tmp).map_err(ImageError::io("reading", tmp))? {
        let path = entry.map_err(ImageError::io("reading", tmp))?.path();
        let directory = File::open(&path).map_err(ImageError::io("opening", &path))?;
        if rustix::fs::flock(&directory, FlockOperation::NonBlockingLockExclusive).is_ok() {
            remove_tree(&path)?;
        }
    }
    Ok(())
}

/// Removes a directory with everything in it.
pub(super) fn remove_tree(path: &Path) -> Result<(), ImageError> {
    let failed = |errno: Errno| ImageError::errno("removing", path)(errno);
    let root = match rustix::fs::openat2(
        rustix::fs::CWD,
        path,
        rustix::fs::OFlags::DIRECTORY | rustix::fs::OFlags::CLOEXEC | rustix::fs::OFlags::NOFOLLOW,
        Mode::empty(),
        rustix::fs::ResolveFlags::empty(),
    ) {
        Err(Errno::NOENT) => return Ok(()),
        answer => answer.map_err(failed)?,
    };
    let mut waiting = vec![PathBuf::new()];
    while let Some(next) = waiting.last().cloned() {
        let inner = empty_directory(root.as_fd(), &next).map_err(failed)?;
        if inner.is_empty() {
            waiting.pop();
            if let (Some(parent), Some(name)) = (next.parent(), next.file_name()) {
                let parent = open_directory(root.as_fd(), parent).map_err(failed)?;
                rustix::fs::unlinkat(parent, name, AtFlags::REMOVEDIR).map_err(failed)?;
            }
        } else {
            waiting.extend(inner);
        }
    }
    std::fs::remove_dir(path).map_err(ImageError::io("removing", path))
}

/// Removes everything but directories from a directory, and names those.
fn empty_directory(root: BorrowedFd<'_>, path: &Path) -> Result<Vec<PathBuf>, Errno> {
    let directory = open_directory(root, path)?;
    rustix::fs::fchmod(&directory, Mode::RWXU)?;
    let mut inner = Vec::new();
    for entry in Dir::read_from(&directory)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name == b"." || name == b".." {
            continue;
        }
        let stat = rustix::fs::statat(&directory, entry.file_name(), AtFlags::SYMLINK_NOFOLLOW)?;
        if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
            // Its permissions may keep its owner out; a link can't stand here, for nothing else writes to it.
            rustix::fs::chmodat(&directory, entry.file_name(), Mode::RWXU, AtFlags::empty())?;
            inner.push(path.join(OsStr::from_bytes(name)));
        } else {
            rustix::fs::unlinkat(&directory, entry.file_name(), AtFlags::empty())?;
        }
    }
    Ok(inner)
}
