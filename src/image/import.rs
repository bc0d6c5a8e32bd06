//! From a directory or a root file system tar to an image of the store.
//!
//! Invariant: nothing of an import that failed, was cancelled or killed stays under a name; the source is read by a thread that
//! gave up its privilege first (`confine`). Set-id bits, devices and privileged attributes don't survive an import; `Notes`
//! counts them. Read `layer` (tar) and `copy` (directory) next.

use std::fs::{DirBuilder, File, OpenOptions};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};

use super::bounds::Meter;
use super::store::{digest_text, now_ms};
use super::tree::{Notes, Ownership, Tree};
use super::{Bounds, ImageError, ImageInfo, ImageName, SourceKind, Store, confine, copy, layer};
use crate::sys::credentials::is_root_of_the_host;

/// Entries between two reports.
const REPORT_ENTRIES: u64 = 256;
/// Reports that may wait for a slow caller.
const REPORTS_MAX: usize = 16;

/// How far an import is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Entries written.
    pub entries: u64,
    /// Bytes of files written.
    pub bytes: u64,
    /// Bytes of the source read.
    pub source_bytes: u64,
    /// Bytes of the source; absent for a directory.
    pub source_bytes_total: Option<u64>,
}

/// What an import made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Imported {
    /// The image.
    pub info: ImageInfo,
    /// What of the source it does not hold.
    pub notes: Notes,
}

/// What to import, and under which conditions.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    /// A directory, or a tar archive, plain, gzip or zstd.
    pub source: &'a Path,
    /// Name of the image to make.
    pub name: &'a str,
    /// How much it may hold.
    pub bounds: Bounds,
    /// Becomes true when the import shall stop; nothing stays of it then.
    pub cancel: &'a AtomicBool,
}

/// Imports with the default bounds, to its end.
pub fn import(store: &Store, source: &Path, name: &str, progress: &mut dyn FnMut(Progress)) -> Result<Imported, ImageError> {
    import_with(store, Request { source, name, bounds: Bounds::default(), cancel: &AtomicBool::new(false) }, progress)
}

/// Imports; `progress` is called now and then on the caller's thread.
pub fn import_with(store: &Store, request: Request<'_>, progress: &mut dyn FnMut(Progress)) -> Result<Imported, ImageError> {
    let name = ImageName::parse(request.name)?;
    if name.is_host() {
        return Err(ImageError::NameReserved { name: name.into() });
    }
    let source = Source::open(store, request.source)?;
    let staging = store.stage()?;
    let root = staging.path().join("root");
    DirBuilder::new().mode(0o755).create(&root).map_err(ImageError::io("making", &root))?;
    let target = OwnedFd::from(File::open(&root).map_err(ImageError::io("opening", &root))?);
    let kind = source.kind();
    let (report, reports) = sync_channel(REPORTS_MAX);
    let filled = std::thread::scope(|scope| {
        let reporter = Reporter { total: source.total(), cancel: request.cancel, report };
        let worker = scope.spawn(move || fill(target, &source, request.bounds, &reporter));
        reports.iter().for_each(progress);
        worker.join().map_err(|_| ImageError::WorkerLost)?
    })?;
    let digest = digest_text(filled.digest);
    let info = ImageInfo {
        name,
        layers: vec![digest.clone()],
        digest,
        size_bytes: filled.bytes,
        entries: filled.entries,
        created_ms: now_ms(),
        source: kind,
        env: std::collections::BTreeMap::new(),
    };
    store.publish(&staging, &info)?;
    Ok(Imported { info, notes: filled.notes })
}

enum Source {
    Directory(OwnedFd),
    Tar { file: File, bytes: u64 },
}

impl Source {
    fn open(store: &Store, path: &Path) -> Result<Self, ImageError> {
        // Without waiting: a fifo would keep us here.
        let mut options = OpenOptions::new();
        options.read(true).custom_flags((rustix::fs::OFlags::NONBLOCK | rustix::fs::OFlags::NOCTTY).bits() as i32);
        let file = options.open(path).map_err(ImageError::io("opening", path))?;
        let metadata = file.metadata().map_err(ImageError::io("looking at", path))?;
        if metadata.is_file() {
            return Ok(Self::Tar { file, bytes: metadata.len() });
        }
        if !metadata.is_dir() {
            return Err(ImageError::SourceUnsupported { path: path.to_owned() });
        }
        let real = path.canonicalize().map_err(ImageError::io("opening", path))?;
        let store = store.dir().canonicalize().map_err(ImageError::io("opening", store.dir()))?;
        if store.starts_with(real) {
            return Err(ImageError::SourceHoldsStore { path: path.to_owned() });
        }
        Ok(Self::Directory(file.into()))
    }

    fn kind(&self) -> SourceKind {
        match self {
            Self::Directory(_) => SourceKind::Directory,
            Self::Tar { .. } => SourceKind::RootfsTar,
        }
    }

    fn total(&self) -> Option<u64> {
        match self {
            Self::Directory(_) => None,
            Self::Tar { bytes, .. } => Some(*bytes),
        }
    }
}

struct Reporter<'a> {
    total: Option<u64>,
    cancel: &'a AtomicBool,
    report: SyncSender<Progress>,
}

impl Reporter<'_> {
    fn tick(&self, tree: &Tree, source_bytes: u64) -> Result<(), ImageError> {
        if self.cancel.load(Ordering::Relaxed) {
            return Err(ImageError::Cancelled);
        }
        let Meter { entries, bytes, .. } = tree.meter;
        if entries % REPORT_ENTRIES == 0 {
            // A report that finds no room is one too many; the next will tell more.
            self.report.try_send(Progress { entries, bytes, source_bytes, source_bytes_total: self.total }).ok();
        }
        Ok(())
    }
}

struct Filled {
    digest: [u8; 32],
    bytes: u64,
    entries: u64,
    notes: Notes,
}

/// The whole work of the confined thread.
fn fill(target: OwnedFd, source: &Source, bounds: Bounds, reporter: &Reporter<'_>) -> Result<Filled, ImageError> {
    let ownership = if is_root_of_the_host() { Ownership::Kept } else { Ownership::Own };
    let directory = match source {
        Source::Directory(directory) => Some(directory.as_fd()),
        Source::Tar { .. } => None,
    };
    if confine::confine_thread(target.as_fd(), directory)? == landlock::RulesetStatus::NotEnforced {
        tracing::warn!("this kernel has no Landlock: the import is confined by openat2 alone");
    }
    let mut tree = Tree::new(target, ownership, Meter::new(bounds));
    let mut tick = |tree: &Tree, source_bytes: u64| reporter.tick(tree, source_bytes);
    let digest = match source {
        Source::Directory(directory) => copy::copy(directory, &mut tree, &mut tick)?,
        Source::Tar { file, .. } => {
            let file = file.try_clone().map_err(ImageError::io("opening", "the archive"))?;
            layer::unpack(file, &mut tree, &mut tick)?
        }
    };
    tree.mount_points()?;
    tree.finish()?;
    Ok(Filled { digest, bytes: tree.meter.bytes, entries: tree.meter.entries, notes: tree.notes })
}

#[cfg(test)]
mod tests;
