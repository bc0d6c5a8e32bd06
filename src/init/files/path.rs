//! From the path in a command to an open parent directory, a last name, and what stands there.
//!
//! Invariant: a path is resolved by the kernel below the root descriptor (RESOLVE_IN_ROOT), so that neither `..` nor an
//! absolute symlink leaves it, and never through a magic link. The last component is looked at without opening it. Symlinks within are followed: they lead only where the user's own code can go. Read `open` next.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags, Stat, fstat, mkdirat, openat2, readlinkat, statat};
use rustix::io::Errno;

use super::FileContext;
use super::error::{failed, refused};
use super::open::{Devices, Identity, open_place, refuse_kernel_file_system};
use crate::plan::files::{FileError, FileErrorKind};

/// Symlinks followed in the last component, as many as the kernel follows in a path (path_resolution(7)).
const LINKS_MAX: usize = 40;

/// Tries of a lookup that the kernel gives up with EAGAIN because a rename ran beside it.
const LOOKUP_TRIES_MAX: usize = 128;

/// Mode of directories made on the way to a file.
const PARENT_MODE: Mode = Mode::from_raw_mode(0o755);

/// What to do with a symlink as the last component.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LastLink {
    /// The command means what it points to.
    Followed,
    /// The command means the link itself.
    Kept,
}

/// What to do about parents that do not exist.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Parents {
    /// The path is not found.
    Required,
    /// They are made.
    Made,
    /// They are made, unless they would lie in this directory.
    MadeOutside(Identity),
}

/// Where a path leads.
#[derive(Debug)]
pub struct Place {
    /// The directory that holds the last component (O_PATH).
    pub parent: OwnedFd,
    /// The last component; `.` when the path ends in `..` or is the root: then `parent` is the object itself.
    pub name: Vec<u8>,
    /// What stands there now.
    pub found: Option<Found>,
    /// The path ends with a slash, so it can mean only a directory.
    pub directory_meant: bool,
}

/// An object as it was when it was looked at.
#[derive(Debug, Clone, Copy)]
pub struct Found {
    /// Its type.
    pub kind: FileType,
    /// Its permission bits.
    pub permissions: u32,
    /// Which object it is.
    pub identity: Identity,
}

impl Place {
    /// The object, or `FileNotFound`.
    pub fn require(&self) -> Result<Found, FileError> {
        self.found.ok_or_else(|| failed("find the file")(Errno::NOENT))
    }

    /// Refuses a spelling or an object that can be no regular file, before anything is opened or written.
    pub fn refuse_non_file(&self) -> Result<(), FileError> {
        match self.found {
            Some(found) if found.kind != FileType::RegularFile => {
                Err(refused(FileErrorKind::NotARegularFile, "use what is no regular file"))
            }
            _ if self.directory_meant => {
                Err(refused(FileErrorKind::PathInvalid, "use a path that ends with a slash as a file"))
            }
            Some(_) | None => Ok(()),
        }
    }
}

/// Finds where `path` leads.
pub fn locate(context: &FileContext, path: &[u8], link: LastLink, parents: Parents) -> Result<Place, FileError> {
    let mut text = absolute(context, path)?;
    for _ in 0..=LINKS_MAX {
        let (parent_text, name, directory_meant) = split(&text);
        let parent = open_parent(context, parent_text, parents)?;
        refuse_kernel_file_system(&parent)?;
        let mut place = Place { parent, name: name.to_vec(), found: None, directory_meant };
        let Some(stat) = look(&context.devices, &place)? else { return Ok(place) };
        let kind = FileType::from_raw_mode(stat.st_mode);
        if kind == FileType::Symlink && link == LastLink::Followed {
            match readlinkat(&place.parent, &place.name, Vec::new()) {
                Ok(target) => text = redirect(parent_text, target.as_bytes()),
                // It has been exchanged or removed since: what is there now is looked at.
                Err(Errno::INVAL | Errno::NOENT) => {}
                Err(errno) => return Err(failed("read the symlink")(errno)),
            }
            continue;
        }
        if directory_meant && kind != FileType::Directory {
            return Err(failed("use the path as a directory")(Errno::NOTDIR));
        }
        place.found = Some(Found { kind, permissions: stat.st_mode & 0o777, identity: Identity::of(&stat) });
        return Ok(place);
    }
    Err(failed("follow the symlinks")(Errno::LOOP))
}

/// Opens a directory of the session by its path, as a place to work below.
pub fn open_from_root(context: &FileContext, path: &[u8]) -> Result<OwnedFd, Errno> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let mut answer = Err(Errno::AGAIN);
    for _ in 0..LOOKUP_TRIES_MAX {
        answer = openat2(&context.root, path, flags, Mode::empty(), resolve);
        if !matches!(answer, Err(Errno::AGAIN)) {
            break;
        }
    }
    answer
}

/// The path as an absolute one; checks what the server should have checked.
pub fn absolute(context: &FileContext, path: &[u8]) -> Result<Vec<u8>, FileError> {
    if path.is_empty() || path.contains(&0) {
        return Err(refused(FileErrorKind::PathInvalid, "use an empty path or one with a NUL byte"));
    }
    if path.starts_with(b"/") {
        return Ok(path.to_vec());
    }
    Ok([&context.working_directory[..], b"/", path].concat())
}

/// The components of a path that mean something.
pub fn components(path: &[u8]) -> impl Iterator<Item = &[u8]> {
    path.split(|byte| *byte == b'/').filter(|part| !part.is_empty() && *part != b".")
}

/// True when `directory` is, or lies below, the directory `above`.
pub fn is_inside(context: &FileContext, directory: BorrowedFd<'_>, above: Identity) -> Result<bool, FileError> {
    let identify = |fd: BorrowedFd<'_>| fstat(fd).map(|stat| Identity::of(&stat)).map_err(failed("look at a directory"));
    let root = identify(context.root.as_fd())?;
    let mut current: OwnedFd = directory.try_clone_to_owned().map_err(super::error::io_failed("hold a directory"))?;
    for _ in 0..context.bounds.depth_max {
        let identity = identify(current.as_fd())?;
        if identity == above {
            return Ok(true);
        }
        if identity == root {
            return Ok(false);
        }
        let up = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        current = rustix::fs::openat(&current, "..", up, Mode::empty()).map_err(failed("look at a parent directory"))?;
    }
    Err(refused(FileErrorKind::LimitExceeded, "find the root above the destination"))
}

/// Parent, last name, and whether the path can mean only a directory.
fn split(text: &[u8]) -> (&[u8], &[u8], bool) {
    let Some(last) = components(text).last() else { return (b"/", b".", true) };
    if last == b".." {
        return (text, b".", true);
    }
    // `components` yields subslices of `text`, and only slashes and dots can follow the last one.
    let start = last.as_ptr() as usize - text.as_ptr() as usize;
    let parent = if start == 0 { &b"/"[..] } else { &text[..start] };
    (parent, last, start + last.len() < text.len())
}

/// The path that a symlink in `parent` stands for.
fn redirect(parent: &[u8], target: &[u8]) -> Vec<u8> {
    if target.starts_with(b"/") { target.to_vec() } else { [parent, b"/", target].concat() }
}

/// What the last component is, or nothing when there is nothing; refused where it belongs to the kernel. It is held only where its file
/// system is not known yet.
fn look(devices: &Devices, place: &Place) -> Result<Option<Stat>, FileError> {
    let found = match statat(&place.parent, &place.name, AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT) {
        Ok(stat) if devices.know(&stat) => return Ok(Some(stat)),
        Ok(_) => {
            let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
            openat2(&place.parent, &place.name, flags, Mode::empty(), resolve)
        }
        Err(errno) => Err(errno),
    };
    let object = match found {
        Ok(object) => object,
        Err(Errno::NOENT) => return Ok(None),
        Err(errno) => return Err(failed("look up the file")(errno)),
    };
    let stat = fstat(&object).map_err(failed("look at the file"))?;
    devices.check(&object, &stat)?;
    Ok(Some(stat))
}

/// Opens the parent directory, making what is missing if that is asked for.
fn open_parent(context: &FileContext, path: &[u8], parents: Parents) -> Result<OwnedFd, FileError> {
    let parent = match (open_from_root(context, path), parents) {
        (Ok(parent), _) => parent,
        (Err(Errno::NOENT), Parents::Made | Parents::MadeOutside(_)) => return make_directories(context, path, parents),
        (Err(errno), _) => return Err(failed("open the parent directory")(errno)),
    };
    refuse_inside(context, &parent, parents)?;
    Ok(parent)
}

/// Makes every directory of `path` that is missing, and opens the last.
pub fn make_directories(context: &FileContext, path: &[u8], parents: Parents) -> Result<OwnedFd, FileError> {
    let mut current = context.root.try_clone().map_err(super::error::io_failed("hold the root directory"))?;
    let mut walked = Vec::with_capacity(path.len());
    let mut checked = false;
    for component in components(path) {
        walked.push(b'/');
        walked.extend_from_slice(component);
        let step = if component == b".." { Err(Errno::LOOP) } else { open_place(&current, component) };
        current = match step {
            Ok(next) => next,
            Err(Errno::NOENT) => {
                if !checked {
                    refuse_kernel_file_system(&current)?;
                    refuse_inside(context, &current, parents)?;
                    checked = true;
                }
                make_directory(&current, component)?
            }
            // A symlink (ELOOP, or ENOTDIR when the kernel looks at the type first) or `..`: only the kernel, from the
            // root, knows where that leads.
            Err(Errno::LOOP | Errno::NOTDIR) => open_from_root(context, &walked).map_err(failed("open a parent directory"))?,
            Err(errno) => return Err(failed("open a parent directory")(errno)),
        };
    }
    if !checked {
        refuse_inside(context, &current, parents)?;
    }
    Ok(current)
}

/// Makes one directory, or takes the one that was made meanwhile.
fn make_directory(parent: &OwnedFd, name: &[u8]) -> Result<OwnedFd, FileError> {
    match mkdirat(parent, name, PARENT_MODE) {
        Ok(()) | Err(Errno::EXIST) => open_place(parent, name).map_err(failed("open a new directory")),
        Err(errno) => Err(failed("make a parent directory")(errno)),
    }
}

fn refuse_inside(context: &FileContext, directory: &OwnedFd, parents: Parents) -> Result<(), FileError> {
    match parents {
        Parents::Required | Parents::Made => Ok(()),
        Parents::MadeOutside(above) => {
            if is_inside(context, directory.as_fd(), above)? {
                return Err(refused(FileErrorKind::PathInvalid, "copy a directory into itself"));
            }
            Ok(())
        }
    }
}
