//! What a layer takes away from the layers below it: whiteouts, opaque directories, replaced directories.
//!
//! Invariant: nothing that the layer itself made is removed, wherever in the layer its whiteouts stand; removal follows no link,
//! and every entry it looks at is charged, so that a layer can't have the same directory read again and again.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Dir, FileType};
use rustix::io::Errno;

use super::entry::{EntryPath, show};
use super::tree::{Tree, failed, open_directory, refused};
use super::{ImageError, Refusal};

const PREFIX: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";
/// Book-keeping of AUFS, which old layers carry along.
const BOOKS: &[u8] = b".wh..wh.";

impl Tree {
    /// From here on names belong to the next layer.
    pub fn begin_layer(&mut self) {
        self.made = Some(HashSet::new());
    }

    /// True when the name is a whiteout, which is carried out then.
    pub fn whiteout(&mut self, path: &EntryPath) -> Result<bool, ImageError> {
        let Some((parent, name)) = path.split() else { return Ok(false) };
        if parent.components().any(|component| component.as_os_str().as_bytes().starts_with(PREFIX)) {
            return Err(refused(path, Refusal::Whiteout));
        }
        let Some(hidden) = name.as_bytes().strip_prefix(PREFIX) else { return Ok(false) };
        self.meter.entry(&path.show())?;
        if name.as_bytes() == OPAQUE {
            let first = self.made.as_mut().is_some_and(|made| made.insert(path.as_path().to_owned()));
            if first {
                self.remove_children(parent, path)?;
            }
        } else if name.as_bytes().starts_with(BOOKS) {
            self.notes.special_files_skipped += 1;
        } else if matches!(hidden, b"" | b"." | b"..") {
            return Err(refused(path, Refusal::Whiteout));
        } else {
            self.remove_below_layers(&parent.join(OsStr::from_bytes(hidden)), path)?;
        }
        Ok(true)
    }

    pub(super) fn note_made(&mut self, path: &EntryPath) {
        let Some(made) = &mut self.made else { return };
        let mut next = Some(path.as_path());
        while let Some(path) = next.filter(|path| !path.as_os_str().is_empty() && !made.contains(*path)) {
            made.insert(path.to_owned());
            next = path.parent();
        }
    }

    fn remove_children(&mut self, directory: &Path, entry: &EntryPath) -> Result<(), ImageError> {
        for name in self.names(directory, entry)? {
            self.remove_below_layers(&directory.join(name), entry)?;
        }
        Ok(())
    }

    /// Removes what lower layers put at that path, all that is below it too.
    pub(super) fn remove_below_layers(&mut self, path: &Path, entry: &EntryPath) -> Result<(), ImageError> {
        // What is open there may go away.
        self.parent = None;
        let mut waiting = vec![(path.to_owned(), Visit::Enter)];
        while let Some((path, visit)) = waiting.pop() {
            let kept = self.made.as_ref().is_some_and(|made| made.contains(&path));
            let Some(kind) = self.kind(&path, entry)? else { continue };
            match visit {
                Visit::Enter if kind == FileType::Directory => {
                    let names = self.names(&path, entry)?;
                    waiting.push((path.clone(), Visit::Leave));
                    waiting.extend(names.into_iter().map(|name| (path.join(name), Visit::Enter)));
                }
                Visit::Enter if !kept => self.unlink(&path, AtFlags::empty(), entry)?,
                Visit::Leave if !kept => {
                    self.unlink(&path, AtFlags::REMOVEDIR, entry)?;
                    self.directories.remove(&path);
                }
                Visit::Enter | Visit::Leave => {}
            }
        }
        Ok(())
    }

    /// The kind of what is there; `None` when nothing is. A link or file on the way is refused.
    fn kind(&mut self, path: &Path, entry: &EntryPath) -> Result<Option<FileType>, ImageError> {
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else { return Ok(None) };
        self.meter.entry(&show(path.as_os_str().as_bytes()))?;
        let parent = match open_directory(self.root.as_fd(), parent) {
            Err(Errno::NOENT) => return Ok(None),
            Err(Errno::LOOP | Errno::NOTDIR | Errno::XDEV) => return Err(refused(entry, Refusal::ParentNotADirectory)),
            answer => answer.map_err(failed("opening the directory of", entry))?,
        };
        match rustix::fs::statat(&parent, name, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => Ok(None),
            answer => answer.map(|stat| Some(FileType::from_raw_mode(stat.st_mode))).map_err(failed("looking at", entry)),
        }
    }

    fn unlink(&self, path: &Path, flags: AtFlags, entry: &EntryPath) -> Result<(), ImageError> {
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else { return Ok(()) };
        let parent = open_directory(self.root.as_fd(), parent).map_err(failed("opening the directory of", entry))?;
        rustix::fs::unlinkat(parent, name, flags).map_err(failed("removing what lies under", entry))
    }

    fn names(&self, directory: &Path, entry: &EntryPath) -> Result<Vec<PathBuf>, ImageError> {
        let opened = match open_directory(self.root.as_fd(), directory) {
            Err(Errno::NOENT) => return Ok(Vec::new()),
            Err(Errno::LOOP | Errno::NOTDIR | Errno::XDEV) => return Err(refused(entry, Refusal::ParentNotADirectory)),
            answer => answer.map_err(failed("opening", entry))?,
        };
        let mut names = Vec::new();
        for inner in Dir::read_from(&opened).map_err(failed("reading", entry))? {
            let inner = inner.map_err(failed("reading", entry))?;
            let name = inner.file_name().to_bytes();
            if name != b"." && name != b".." {
                names.push(PathBuf::from(OsStr::from_bytes(name)));
            }
        }
        Ok(names)
    }

    /// Bytes of files (each once, however many names it has) and entries, as they are now.
    pub fn measure(&self) -> Result<(u64, u64), ImageError> {
        let (mut bytes, mut entries, mut linked) = (0, 0, HashSet::new());
        let mut waiting = vec![PathBuf::new()];
        while let Some(path) = waiting.pop() {
            let directory = open_directory(self.root.as_fd(), &path).map_err(ImageError::errno("opening", &path))?;
            for inner in Dir::read_from(&directory).map_err(ImageError::errno("reading", &path))? {
                let inner = inner.map_err(ImageError::errno("reading", &path))?;
                let name = OsStr::from_bytes(inner.file_name().to_bytes());
                if name == "." || name == ".." {
                    continue;
                }
                let stat = rustix::fs::statat(&directory, name, AtFlags::SYMLINK_NOFOLLOW)
                    .map_err(ImageError::errno("looking at", &path))?;
                entries += 1;
                match FileType::from_raw_mode(stat.st_mode) {
                    FileType::Directory => waiting.push(path.join(name)),
                    FileType::RegularFile if stat.st_nlink == 1 || linked.insert(stat.st_ino) => bytes += stat.st_size as u64,
                    _ => {}
                }
            }
        }
        Ok((bytes, entries))
    }
}

#[derive(Clone, Copy)]
enum Visit {
    Enter,
    Leave,
}
