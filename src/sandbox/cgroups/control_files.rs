//! A session's control files, kept open: to find one by its path costs more than to read it, and each command asks for six.
//!
//! Invariant: all sessions together keep [`kept_max`] at most; for whoever comes when there are so many, a file is opened each time.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use rustix::process::{Resource, getrlimit};

/// Those of some forty sessions.
const KEPT_MAX: usize = 256;

/// Of the descriptors that this process may have, one in so many.
const DESCRIPTORS_EACH: u64 = 16;

/// Files of this size and more are not read: `cpu.stat`, the longest, has some 500 bytes.
const BYTES_MAX: usize = 4096;

static KEPT: AtomicUsize = AtomicUsize::new(0);

/// Those of one session. A file of a group that is gone has nothing to tell, and is let go with this value.
#[derive(Debug)]
pub(super) struct ControlFiles {
    files: Mutex<Vec<Kept>>,
    /// How many all of them keep.
    kept: &'static AtomicUsize,
}

#[derive(Debug)]
struct Kept {
    path: PathBuf,
    access: Access,
    file: File,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Access {
    Read,
    Write,
}

impl Default for ControlFiles {
    fn default() -> Self {
        Self::counted_by(&KEPT)
    }
}

/// The only number in a file that nobody asks again soon.
pub(super) fn number(path: &Path) -> Option<u64> {
    text(&open(path, Access::Read).ok()?)?.trim().parse().ok()
}

/// One read gives a control file whole; the library's would ask for the size first, which is not known, and then read on to the end.
/// A file that fills the buffer could go on, and counts as one that does not tell.
fn text(file: &File) -> Option<String> {
    let mut buffer = vec![0; BYTES_MAX];
    let bytes = file.read_at(&mut buffer, 0).ok().filter(|bytes| *bytes < BYTES_MAX)?;
    buffer.truncate(bytes);
    String::from_utf8(buffer).ok()
}

impl ControlFiles {
    fn counted_by(kept: &'static AtomicUsize) -> Self {
        Self { files: Mutex::default(), kept }
    }

    /// The number after `key` in a flat-keyed file.
    pub fn keyed(&self, path: PathBuf, key: &str) -> Option<u64> {
        let text = self.text(path)?;
        let value = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' '))?;
        value.trim().parse().ok()
    }

    /// The only number in a file.
    pub fn number(&self, path: PathBuf) -> Option<u64> {
        self.text(path)?.trim().parse().ok()
    }

    /// Writes all of a short text.
    pub fn write(&self, path: PathBuf, text: &str) -> io::Result<()> {
        self.with(path, Access::Write, |file| match file.write_at(text.as_bytes(), 0) {
            Ok(written) if written == text.len() => Ok(()),
            Ok(_) => Err(io::ErrorKind::WriteZero.into()),
            Err(error) => Err(error),
        })
    }

    fn text(&self, path: PathBuf) -> Option<String> {
        self.with(path, Access::Read, |file| Ok(text(file))).ok()?
    }

    fn with<T>(&self, path: PathBuf, access: Access, action: impl FnOnce(&File) -> io::Result<T>) -> io::Result<T> {
        let mut files = self.files();
        if let Some(kept) = files.iter().find(|kept| kept.access == access && kept.path == path) {
            return action(&kept.file);
        }
        let file = open(&path, access)?;
        let done = action(&file)?;
        if self.kept.fetch_add(1, Ordering::Relaxed) < kept_max() {
            files.push(Kept { path, access, file });
        } else {
            self.kept.fetch_sub(1, Ordering::Relaxed);
        }
        Ok(done)
    }

    fn files(&self) -> MutexGuard<'_, Vec<Kept>> {
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for ControlFiles {
    fn drop(&mut self) {
        self.kept.fetch_sub(self.files().len(), Ordering::Relaxed);
    }
}

/// How many are kept: few beside the descriptors that this process may have.
fn kept_max() -> usize {
    static MAX: OnceLock<usize> = OnceLock::new();
    *MAX.get_or_init(|| {
        let descriptors = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
        usize::try_from(descriptors / DESCRIPTORS_EACH).unwrap_or(usize::MAX).min(KEPT_MAX)
    })
}

fn open(path: &Path, access: Access) -> io::Result<File> {
    match access {
        Access::Read => File::open(path),
        Access::Write => OpenOptions::new().write(true).open(path),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    static TOGETHER: AtomicUsize = AtomicUsize::new(0);

    #[test]
    fn a_file_is_read_from_its_beginning_each_time_and_only_so_many_are_kept() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = |number: usize| dir.path().join(format!("file-{number}"));
        (0..=kept_max()).for_each(|number| std::fs::write(path(number), "low 1\nlower 2\n").expect("room"));
        let (one, other) = (ControlFiles::counted_by(&TOGETHER), ControlFiles::counted_by(&TOGETHER));
        for number in (0..=kept_max()).chain(0..=kept_max()) {
            assert_eq!(one.keyed(path(number), "lower"), Some(2));
        }
        assert_eq!(one.files().len(), kept_max());
        assert_eq!((other.keyed(path(0), "low"), other.files().len()), (Some(1), 0), "opened, and not kept");
        other.write(path(0), "low 3").expect("it may be written to");
        assert_eq!((one.keyed(path(0), "low"), other.keyed(path(0), "low")), (Some(3), Some(3)), "as it is now");
        assert_eq!((one.keyed(path(1), "lo"), one.number(path(1)), one.number(dir.path().join("none"))), (None, None, None));
        drop(one);
        assert_eq!((other.keyed(path(0), "low"), other.files().len()), (Some(3), 1), "there is room again");
        std::fs::write(path(1), vec![b'1'; BYTES_MAX]).expect("room");
        assert_eq!(other.number(path(1)), None, "more than a control file has");
    }
}
