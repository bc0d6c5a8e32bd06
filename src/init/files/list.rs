//! `list_directory`: the entries of a directory, or of the tree below it.
//!
//! Invariants: symlinks are shown, never followed; entries are visited in the order of their names, so that a limit keeps
//! the first ones; what a bound cut off, or a directory that can't be read, makes the listing `truncated`.

use std::ffi::OsStr;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;

use globset::{GlobBuilder, GlobMatcher};
use rustix::fs::{AtFlags, FileType, Stat, readlinkat, statat};
use rustix::io::Errno;

use super::budget::Budget;
use super::error::{failed, io_failed, refused};
use super::ladder::Ladder;
use super::open::{for_each_entry, open_directory};
use super::path::{LastLink, Parents, absolute, components, locate};
use super::{FileContext, Reach};
use crate::command::{EntryType, FileEntry};
use crate::plan::files::{FileError, FileErrorKind, FileReply};

/// Longest pattern taken, in bytes: a glob becomes a regular expression many times its size.
const PATTERN_BYTES_MAX: usize = 1024;

/// Names that begin with a dot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hidden {
    /// Listed as any other.
    Shown,
    /// Left out, with everything below them.
    Skipped,
}

/// The fields of the command.
#[derive(Debug)]
pub struct Request {
    /// Which directory.
    pub path: Vec<u8>,
    /// `recursive` on the wire.
    pub reach: Reach,
    /// A glob.
    pub pattern: Option<String>,
    /// `includeHidden` on the wire.
    pub hidden: Hidden,
    /// Levels below `path`, 1 = its own entries.
    pub depth_max: Option<u32>,
    /// Entries at most.
    pub limit: u64,
}

/// Lists a directory, sorted by path.
pub fn list(context: &FileContext, budget: &mut Budget, request: &Request) -> Result<FileReply, FileError> {
    let pattern = request.pattern.as_deref().map(Pattern::parse).transpose()?;
    let place = locate(context, &request.path, LastLink::Followed, Parents::Required)?;
    if place.require()?.kind != FileType::Directory {
        return Err(failed("list the directory")(Errno::NOTDIR));
    }
    let directory = open_directory(&place.parent, &place.name).map_err(failed("open the directory"))?;
    let path = written_out(context, &request.path)?;
    let mut walk = Walk {
        ladder: Ladder::new(directory.as_fd())?,
        levels: Vec::new(),
        relative_start: path.len() + 1,
        path,
        pattern,
        request,
        budget,
        bytes_left: context.bounds.listing_bytes_max,
        entries: Vec::new(),
        truncated: false,
    };
    if walk.relative_start == 2 {
        // The root's own path is its slash, which the entries' paths hold already.
        walk.path.clear();
        walk.relative_start = 1;
    }
    walk.read_level(directory.as_fd())?;
    walk.run()?;
    let Walk { mut entries, truncated, .. } = walk;
    if request.reach == Reach::Tree {
        // Visited by component, sorted as text: `a.txt` comes before `a/b`.
        entries.sort_unstable_by(|left, right| left.path.cmp(&right.path));
    }
    Ok(FileReply::Listed { entries, truncated })
}

/// Absolute and without `.`; a `..` is taken back where the component before it is a directory and no symlink.
fn written_out(context: &FileContext, path: &[u8]) -> Result<Vec<u8>, FileError> {
    let path = absolute(context, path)?;
    let mut parts: Vec<&[u8]> = Vec::new();
    for component in components(&path) {
        if component != b".." {
            parts.push(component);
        } else if !parts.is_empty() {
            let before = [b"/", &parts.join(&b'/')[..]].concat();
            let found = locate(context, &before, LastLink::Kept, Parents::Required).ok().and_then(|place| place.found);
            if parts.last() != Some(&&b".."[..]) && found.is_some_and(|found| found.kind == FileType::Directory) {
                parts.pop();
            } else {
                parts.push(component);
            }
        }
    }
    Ok([b"/", &parts.join(&b'/')[..]].concat())
}

/// A glob over names, or over relative paths when it holds a slash.
#[derive(Debug)]
struct Pattern {
    glob: GlobMatcher,
    over_paths: bool,
}

impl Pattern {
    fn parse(text: &str) -> Result<Self, FileError> {
        let invalid = || refused(FileErrorKind::PathInvalid, "read the pattern");
        if text.len() > PATTERN_BYTES_MAX {
            return Err(invalid());
        }
        let text = text.strip_prefix("./").unwrap_or(text);
        let glob = GlobBuilder::new(text).literal_separator(true).build().map_err(|_| invalid())?;
        Ok(Self { glob: glob.compile_matcher(), over_paths: text.contains('/') })
    }

    fn matches(&self, name: &[u8], relative: &[u8]) -> bool {
        self.glob.is_match(OsStr::from_bytes(if self.over_paths { relative } else { name }))
    }
}

/// A name that waits to be visited, with the kernel's hint about its type.
#[derive(Debug)]
struct Name {
    bytes: Box<[u8]>,
    hint: FileType,
}

/// A directory on the way down: its path's length and the names still to visit, the next one last.
#[derive(Debug)]
struct Level {
    path_length: usize,
    names: Vec<Name>,
}

/// Whether a walk goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    On,
    Full,
}

/// A listing under way.
struct Walk<'w> {
    ladder: Ladder,
    levels: Vec<Level>,
    path: Vec<u8>,
    relative_start: usize,
    pattern: Option<Pattern>,
    request: &'w Request,
    budget: &'w mut Budget,
    bytes_left: usize,
    entries: Vec<FileEntry>,
    truncated: bool,
}

impl Walk<'_> {
    fn run(&mut self) -> Result<(), FileError> {
        while let Some(level) = self.levels.last_mut() {
            self.path.truncate(level.path_length);
            let Some(name) = level.names.pop() else {
                self.levels.pop();
                self.ladder.ascend()?;
                continue;
            };
            self.budget.release(name.bytes.len());
            self.path.push(b'/');
            self.path.extend_from_slice(&name.bytes);
            if self.visit(&name)? == Step::Full {
                self.truncated = true;
                break;
            }
        }
        Ok(())
    }

    fn visit(&mut self, name: &Name) -> Result<Step, FileError> {
        self.budget.check_time()?;
        let wanted = match &self.pattern {
            Some(pattern) => pattern.matches(&name.bytes, &self.path[self.relative_start..]),
            None => true,
        };
        let descends = self.request.reach == Reach::Tree && matches!(name.hint, FileType::Directory | FileType::Unknown);
        if !wanted && !descends {
            return Ok(Step::On);
        }
        if wanted && self.add_entry(name)? == Step::Full {
            return Ok(Step::Full);
        }
        if descends { self.enter(name) } else { Ok(Step::On) }
    }

    /// Adds the entry at `self.path`, unless it is gone by now.
    fn add_entry(&mut self, name: &Name) -> Result<Step, FileError> {
        let stat = match statat(self.ladder.current(), &*name.bytes, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            Err(Errno::NOENT) => return Ok(Step::On),
            Err(errno) => return Err(failed("look at an entry")(errno)),
        };
        let kind = entry_type(&stat);
        let target = match kind {
            EntryType::Symlink => match readlinkat(self.ladder.current(), &*name.bytes, Vec::new()) {
                Ok(target) => Some(target.into_bytes()),
                // Replaced since it was looked at.
                Err(Errno::NOENT | Errno::INVAL) => return Ok(Step::On),
                Err(errno) => return Err(failed("read a symlink")(errno)),
            },
            EntryType::File | EntryType::Directory | EntryType::Other => None,
        };
        let bytes = size_of::<FileEntry>() + name.bytes.len() + self.path.len() + target.as_ref().map_or(0, Vec::len);
        if self.entries.len() as u64 >= self.request.limit || bytes > self.bytes_left {
            return Ok(Step::Full);
        }
        self.bytes_left -= bytes;
        self.entries.push(FileEntry {
            name: name.bytes.to_vec(),
            path: self.path.clone(),
            kind,
            size: u64::try_from(stat.st_size).unwrap_or(0),
            mode: stat.st_mode & 0o7777,
            modified_ms: modified_ms(&stat),
            target,
        });
        Ok(Step::On)
    }

    /// Goes into a directory. One that is gone is passed over, one of a kernel file system too.
    fn enter(&mut self, name: &Name) -> Result<Step, FileError> {
        let depth = self.ladder.depth() + 1;
        if self.request.depth_max.is_some_and(|depth_max| depth >= depth_max as usize) {
            return Ok(Step::On);
        }
        if self.budget.check_depth(depth).is_err() {
            self.truncated = true;
            return Ok(Step::On);
        }
        let directory = match open_directory(self.ladder.current(), &name.bytes) {
            Ok(directory) => directory,
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(Step::On),
            Err(Errno::ACCESS | Errno::PERM) => {
                self.truncated = true;
                return Ok(Step::On);
            }
            Err(errno) => return Err(failed("open a directory")(errno)),
        };
        let reading = directory.try_clone().map_err(io_failed("hold a directory"))?;
        match self.ladder.descend(directory) {
            Ok(()) => self.read_level(reading.as_fd()),
            Err(error) if error.kind == FileErrorKind::PathInvalid => Ok(Step::On),
            Err(error) => Err(error),
        }
    }

    /// Reads the names of a directory, sorted. Past the bound on entries the rest is left out.
    fn read_level(&mut self, directory: impl AsFd) -> Result<Step, FileError> {
        let mut names = Vec::new();
        let Self { budget, request, truncated, .. } = self;
        for_each_entry(directory, |name, hint| {
            if request.hidden == Hidden::Skipped && name.starts_with(b".") {
                return Ok(());
            }
            if budget.entries_spent() {
                *truncated = true;
                return Ok(());
            }
            budget.spend_entry()?;
            budget.hold(name.len() + size_of::<Name>())?;
            names.push(Name { bytes: name.into(), hint });
            Ok(())
        })?;
        budget.release(names.len() * size_of::<Name>());
        names.sort_unstable_by(|left, right| right.bytes.cmp(&left.bytes));
        self.levels.push(Level { path_length: self.path.len(), names });
        Ok(Step::On)
    }
}

fn entry_type(stat: &Stat) -> EntryType {
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => EntryType::File,
        FileType::Directory => EntryType::Directory,
        FileType::Symlink => EntryType::Symlink,
        _ => EntryType::Other,
    }
}

fn modified_ms(stat: &Stat) -> i64 {
    stat.st_mtime.saturating_mul(1000).saturating_add(i64::try_from(stat.st_mtime_nsec / 1_000_000).unwrap_or(0))
}
