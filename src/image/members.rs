//! What an image archive or layout holds, by name, without unpacking any of it.
//!
//! Invariant: a member is a window into a regular file that is open already; looking one up follows no link of the host and never
//! leaves the layout, and what the index keeps in memory is bounded.

use std::cell::Cell;
use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags};
use tar::EntryType;

use super::bounds::{Bounds, Meter};
use super::entry::{EntryPath, show};
use super::{ImageError, Refusal};

/// Links inside an archive that are followed from one name.
const LINKS_MAX: usize = 8;

/// A part of a file, read by position: several may be read at once.
#[derive(Debug, Clone)]
pub struct Window {
    file: Arc<File>,
    at: u64,
    end: u64,
}

impl Window {
    /// All of a file.
    pub fn whole(file: File) -> io::Result<Self> {
        let end = file.metadata()?.len();
        Ok(Self { file: Arc::new(file), at: 0, end })
    }

    /// Bytes that are left of it.
    pub fn bytes_left(&self) -> u64 {
        self.end - self.at
    }

    /// All of it, when it is no longer than that.
    pub fn read_bounded(mut self, name: &str, bounds: &Bounds) -> Result<Vec<u8>, ImageError> {
        super::bounds::check(name, "document_bytes_max", self.bytes_left(), bounds.document_bytes_max)?;
        let mut bytes = Vec::new();
        self.read_to_end(&mut bytes).map_err(|source| ImageError::Archive { entry: show(name.as_bytes()), source })?;
        Ok(bytes)
    }
}

impl Read for Window {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let wanted = buffer.len().min(usize::try_from(self.bytes_left()).unwrap_or(usize::MAX));
        if wanted == 0 {
            return Ok(0);
        }
        let read = self.file.read_at(&mut buffer[..wanted], self.at)?;
        self.at += read as u64;
        if read == 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the file is shorter than its index says"));
        }
        Ok(read)
    }
}

/// Where members are looked up.
#[derive(Debug)]
pub enum Members {
    /// A layout directory.
    Directory(OwnedFd),
    /// Its directory `blobs`, and nothing else.
    Blobs(OwnedFd),
    /// A plain tar.
    Tar(Index),
}

impl Members {
    /// The member of that name; `None` when there is none.
    pub fn open(&self, name: &str) -> Result<Option<Window>, ImageError> {
        match self {
            Self::Directory(directory) => open_below(directory, name),
            Self::Blobs(directory) => name.strip_prefix("blobs/").map_or(Ok(None), |name| open_below(directory, name)),
            Self::Tar(index) => Ok(index.find(Path::new(name))),
        }
    }

    /// The member of that name, read whole.
    pub fn document(&self, name: &str, bounds: &Bounds) -> Result<Option<Vec<u8>>, ImageError> {
        self.open(name)?.map(|window| window.read_bounded(name, bounds)).transpose()
    }
}

fn open_below(directory: &OwnedFd, name: &str) -> Result<Option<Window>, ImageError> {
    let failed = |source: io::Error| ImageError::Entry { operation: "opening".into(), entry: show(name.as_bytes()), source };
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOCTTY;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let file = match rustix::fs::openat2(directory.as_fd(), name, flags, Mode::empty(), resolve) {
        // What a link leads to is no part of the layout.
        Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR | rustix::io::Errno::LOOP) => return Ok(None),
        answer => File::from(answer.map_err(|errno| failed(errno.into()))?),
    };
    let stat = rustix::fs::fstat(&file).map_err(|errno| failed(errno.into()))?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(ImageError::EntryRefused { entry: show(name.as_bytes()), refusal: Refusal::Type });
    }
    Window::whole(file).map(Some).map_err(failed)
}

/// Names of a plain tar and where their contents stand in it.
#[derive(Debug)]
pub struct Index {
    file: Arc<File>,
    members: HashMap<PathBuf, Member>,
}

#[derive(Debug)]
enum Member {
    File {
        at: u64,
        bytes: u64,
    },
    /// `docker save` of old links equal layers to each other.
    Link(PathBuf),
}

impl Index {
    /// Reads the headers of a plain tar; its contents are skipped. What is no tar is an error.
    pub fn read(file: File, bounds: &Bounds) -> Result<Self, ImageError> {
        let mut meter = Meter::new(*bounds);
        let file = Arc::new(file);
        let budget = Cell::new(0);
        let bytes = file.metadata().map_err(ImageError::io("looking at", "the archive"))?.len();
        let reader = Headers { file: &file, at: 0, end: bytes, budget: &budget };
        let mut archive = tar::Archive::new(reader);
        let mut members = HashMap::new();
        let broken = |source| ImageError::Archive { entry: String::new(), source };
        let mut entries = archive.entries_with_seek().map_err(broken)?;
        loop {
            budget.set(bounds.header_bytes_max);
            let Some(entry) = entries.next() else { break };
            let entry = entry.map_err(broken)?;
            let name = entry.path_bytes().into_owned();
            meter.entry(&show(&name))?;
            if entry.header().entry_type().is_pax_global_extensions() {
                continue;
            }
            let path = EntryPath::parse(&name, bounds)?;
            let member = match entry.header().entry_type() {
                EntryType::Regular | EntryType::Continuous => {
                    let (at, size) = (entry.raw_file_position(), entry.size());
                    if at.checked_add(size).is_none_or(|end| end > bytes) {
                        return Err(ImageError::EntryRefused { entry: show(&name), refusal: Refusal::Short });
                    }
                    Member::File { at, bytes: size }
                }
                EntryType::Symlink | EntryType::Link => {
                    let Some(target) = link_target(&entry, path.as_path()) else { continue };
                    Member::Link(target)
                }
                _ => continue,
            };
            members.insert(path.as_path().to_owned(), member);
        }
        Ok(Self { file, members })
    }

    /// The regular file of that name, through links inside the archive only.
    fn find(&self, name: &Path) -> Option<Window> {
        let mut name = name;
        for _ in 0..=LINKS_MAX {
            match self.members.get(name)? {
                Member::File { at, bytes } => {
                    return Some(Window { file: Arc::clone(&self.file), at: *at, end: at + bytes });
                }
                Member::Link(target) => name = target,
            }
        }
        None
    }
}

/// What a link of the archive names, by its text; `None` when that leads out of it.
fn link_target(entry: &tar::Entry<'_, Headers<'_>>, path: &Path) -> Option<PathBuf> {
    let target = entry.link_name().ok()??.into_owned();
    let mut found = match entry.header().entry_type() {
        EntryType::Symlink if target.is_relative() => path.parent()?.to_owned(),
        _ => PathBuf::new(),
    };
    for component in target.components() {
        match component {
            std::path::Component::ParentDir if !found.pop() => return None,
            std::path::Component::Normal(name) => found.push(name),
            _ => {}
        }
    }
    Some(found)
}

/// Reads headers with a budget between two entries, so that a long name can't fill the memory.
struct Headers<'a> {
    file: &'a File,
    at: u64,
    end: u64,
    budget: &'a Cell<u64>,
}

impl Read for Headers<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.end.saturating_sub(self.at);
        if left == 0 || buffer.is_empty() {
            return Ok(0);
        }
        if self.budget.get() == 0 {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "the headers of one entry are longer than header_bytes_max",
            ));
        }
        let wanted = buffer.len().min(usize::try_from(self.budget.get().min(left)).unwrap_or(usize::MAX));
        let read = self.file.read_at(&mut buffer[..wanted], self.at)?;
        self.at += read as u64;
        self.budget.set(self.budget.get() - read as u64);
        Ok(read)
    }
}

impl Seek for Headers<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let at = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::Current(by) => self.at.checked_add_signed(by),
            SeekFrom::End(by) => self.end.checked_add_signed(by),
        };
        self.at = at.ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
        Ok(self.at)
    }
}
