//! The file commands, carried out by init inside the sandbox's own root with the user's file system credentials.
//!
//! Invariants: every path is resolved below the root descriptor without magic links; no object of a kernel file system
//! (procfs, sysfs, cgroup …) is ever used; nothing but regular files, directories and the
//! fifo of `gate` is opened, and always so that the open cannot block; every walk is iterative and bounded in entries,
//! depth, memory and time. Read `path` and `open` next for how an object is reached, `ladder` for how trees are walked, then
//! one file per command.

pub mod gate;

mod budget;
mod copy;
mod delete;
mod directory;
mod error;
mod ladder;
mod list;
mod open;
mod path;
mod read;
mod write;

#[cfg(test)]
mod hostile_tests;
#[cfg(test)]
mod list_tests;
#[cfg(test)]
mod testbed;

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use rustix::io::Errno;

use crate::plan::files::{Contents, FileCommand, FileError, FileReply};
use crate::sys::memory::Mapped;
use budget::Budget;
pub use open::Devices;
pub use write::UMASK;

/// Where file commands act, and how far they may go.
#[derive(Debug)]
pub struct FileContext {
    /// `/` of the sandbox (an `O_PATH` descriptor serves).
    pub root: OwnedFd,
    /// Where relative paths start: absolute, without a trailing slash (`/workspace`).
    pub working_directory: Vec<u8>,
    /// The bounds of each command.
    pub bounds: FileBounds,
    /// File systems that were looked at; shared with what lies below.
    pub devices: Arc<Devices>,
}

impl FileContext {
    /// With the usual bounds.
    pub fn new(root: OwnedFd, working_directory: &str) -> Self {
        let (bounds, devices) = (FileBounds::default(), Arc::default());
        Self { root, working_directory: working_directory.into(), bounds, devices }
    }
}

/// The bounds of one file command. Past one the command fails with `LimitExceeded`; a listing is `truncated` instead,
/// except for time and memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileBounds {
    /// Directory entries visited.
    pub entries_max: u64,
    /// Levels below the directory named in the command.
    pub depth_max: usize,
    /// Wall time.
    pub time_max: Duration,
    /// Memory for names that wait to be visited, in bytes.
    pub names_bytes_max: usize,
    /// Memory for the entries of a listing, in bytes.
    pub listing_bytes_max: usize,
}

impl Default for FileBounds {
    fn default() -> Self {
        Self {
            entries_max: 2_000_000,
            depth_max: 1_000_000,
            time_max: Duration::from_secs(20),
            names_bytes_max: 64 << 20,
            listing_bytes_max: 32 << 20,
        }
    }
}

/// What travels beside a command and its answer, because it is too large for a message.
#[derive(Debug, Default)]
pub struct Carriers {
    /// What is to be written, or why it could not be taken.
    pub given: Option<Result<Mapped, Errno>>,
    /// What was read.
    pub filled: Option<OwnedFd>,
}

/// Carries out one command. The caller has taken on the user's fsuid and fsgid, dropped its effective capabilities, and
/// set [`UMASK`].
pub fn run(command: FileCommand, context: &FileContext, carriers: &mut Carriers) -> Result<FileReply, FileError> {
    let mut budget = Budget::new(&context.bounds);
    match command {
        FileCommand::Write { path, content, mode, permissions } => {
            let bytes = match (&content, &carriers.given) {
                (Contents::Inline(bytes), _) => bytes.as_slice(),
                (Contents::Carried, Some(Ok(given))) => given,
                (Contents::Carried, Some(Err(errno))) => return Err(error::failed("take the contents")(*errno)),
                (Contents::Carried, None) => return Err(error::failed("take the contents")(Errno::BADF)),
            };
            write::write(context, &path, &write::Content { bytes, mode, permissions })
        }
        FileCommand::Read { path, offset, length } => {
            read::read(context, &budget, &path, read::Span { offset, length }, &mut carriers.filled)
        }
        FileCommand::CreateDirectory { path, recursive, permissions } => {
            directory::create(context, &path, Reach::of(recursive), permissions)
        }
        FileCommand::Copy { source, destination, overwrite, recursive } => {
            let existing = if overwrite { copy::Existing::Replaced } else { copy::Existing::Refused };
            copy::copy(context, &mut budget, &copy::Request { source, destination, existing, reach: Reach::of(recursive) })
        }
        FileCommand::Delete { path, recursive } => delete::delete(context, &mut budget, &path, Reach::of(recursive)),
        FileCommand::List { path, recursive, pattern, include_hidden, depth_max, limit } => {
            let hidden = if include_hidden { list::Hidden::Shown } else { list::Hidden::Skipped };
            let request = list::Request { path, reach: Reach::of(recursive), pattern, hidden, depth_max, limit };
            list::list(context, &mut budget, &request)
        }
    }
}

/// The same with the directory `root` of the context's own root as `/`; empty: that itself. No link leads out of either.
pub fn run_below(
    command: FileCommand,
    context: &FileContext,
    root: &[u8],
    carriers: &mut Carriers,
) -> Result<FileReply, FileError> {
    let parts = root.split(|byte| *byte == b'/').filter(|part| !part.is_empty());
    let mut place: Option<OwnedFd> = None;
    for part in parts {
        let at = place.as_ref().unwrap_or(&context.root);
        place = Some(open::open_place(at, part).map_err(error::failed("open the session's directory"))?);
    }
    match place {
        None => run(command, context, carriers),
        Some(root) => {
            let working_directory = context.working_directory.clone();
            let devices = Arc::clone(&context.devices);
            run(command, &FileContext { root, working_directory, bounds: context.bounds, devices }, carriers)
        }
    }
}

/// How much of a tree a command takes: `recursive` on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reach {
    /// The named object (and, for a listing, its own entries).
    Single,
    /// All that is below it, too.
    Tree,
}

impl Reach {
    fn of(recursive: bool) -> Self {
        if recursive { Self::Tree } else { Self::Single }
    }
}
