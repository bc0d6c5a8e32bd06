//! From a source (a directory, an archive of any kind, blobs that were pulled) to an image of the store.
//!
//! Invariant: nothing of an import that failed, was cancelled or killed stays under a name; the source is read by a process of its
//! own that is confined first (`confine`). Set-id bits, devices and privileged attributes don't survive an import; `Notes`
//! counts them. Read `unpack` next.

use std::fs::{DirBuilder, File, OpenOptions};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;
use std::sync::atomic::AtomicBool;

use crate::sys::credentials::is_root_of_the_host;
use serde::{Deserialize, Serialize};

use super::manifest::Choice;
use super::settings::Settings;
use super::store::{Content, now_ms};
use super::tree::{Notes, Ownership};
use super::unpack::{self, Input, Job, Places, Unpacked};
use super::{Bounds, ImageError, ImageInfo, ImageName, Store};

/// How far an import is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
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

/// What happens when the name means something else already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Taken {
    /// The import is an error.
    Refuse,
    /// The name means the new image from then on; one that a session uses stays, and the import is an error.
    Replace,
}

/// What to import, and under which conditions.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    /// A directory or archive; its form is found by looking at it.
    pub source: &'a Path,
    /// Name of the image to make.
    pub name: &'a str,
    /// Which image of a source with several.
    pub choice: &'a Choice,
    /// When the name is taken.
    pub taken: Taken,
    /// How much it may hold.
    pub bounds: Bounds,
    /// Becomes true when the import shall stop; nothing stays of it then.
    pub cancel: &'a AtomicBool,
}

/// Imports; `progress` is called now and then on the caller's thread.
pub fn import(store: &Store, request: Request<'_>, progress: &mut dyn FnMut(Progress)) -> Result<Imported, ImageError> {
    let (input, source) = open(store, request.source)?;
    let from = request.source.canonicalize().unwrap_or_else(|_| request.source.to_owned());
    let from = from.display().to_string();
    take(store, Taking { request, input, source, from: &from, top: None, blobs: &[] }, progress)
}

/// A source that is open, and how the image's record tells of it.
pub(super) struct Taking<'a> {
    pub(super) request: Request<'a>,
    pub(super) input: Input,
    pub(super) source: OwnedFd,
    /// For `image inspect`: a path or a reference.
    pub(super) from: &'a str,
    /// Digest of the index that names it, for a pulled image.
    pub(super) top: Option<String>,
    /// Digests of blobs that stay in the store as long as the image does.
    pub(super) blobs: &'a [String],
}

/// Unpacks what is open into the store.
pub(super) fn take(store: &Store, taking: Taking<'_>, progress: &mut dyn FnMut(Progress)) -> Result<Imported, ImageError> {
    let Taking { request, input, source, from, top, blobs } = taking;
    let name = ImageName::parse(request.name)?;
    if name.is_host() {
        return Err(ImageError::NameReserved { name: name.into() });
    }
    let staging = store.stage()?;
    let work = staging.path().join("work");
    let make = |path: &Path, mode| DirBuilder::new().mode(mode).create(path).map_err(ImageError::io("making", path));
    make(&work, 0o700)?;
    make(&work.join("root"), 0o755)?;
    let ownership = if is_root_of_the_host() { Ownership::Kept } else { Ownership::Own };
    let job = Job { bounds: request.bounds, choice: request.choice.clone(), ownership, input };
    let places = Places { work: File::open(&work).map_err(ImageError::io("opening", &work))?, source, lock: staging.lock()? };
    let unpacked = unpack::run(&job, &places, request.cancel, progress)?;
    let (mut info, content) = record(name, unpacked, from, blobs)?;
    info.index = top.filter(|top| *top != info.digest);
    store.publish(&staging, &info, &content, request.taken)?;
    Ok(Imported { info, notes: content.notes })
}

/// What the store keeps of it.
fn record(name: ImageName, unpacked: Unpacked, from: &str, blobs: &[String]) -> Result<(ImageInfo, Content), ImageError> {
    let Unpacked { form, digest, diff_ids, layer_digests, manifest, config, bytes, entries, notes } = unpacked;
    let settings = config.as_deref().map(Settings::parse).transpose()?.unwrap_or_default();
    let documents: Vec<_> = [manifest, config].into_iter().flatten().map(super::store::Document::new).collect();
    let mut kept: Vec<String> = documents.iter().map(|document| document.digest.clone()).chain(blobs.iter().cloned()).collect();
    kept.sort();
    kept.dedup();
    let info = ImageInfo {
        name,
        digest,
        index: None,
        size_bytes: bytes,
        entries,
        created_ms: now_ms(),
        source: form,
        from: from.to_owned(),
        root: super::store::root_key(form, &diff_ids),
        layers: diff_ids,
        layer_digests,
        blobs: kept,
        settings,
    };
    Ok((info, Content { documents, notes }))
}

fn open(store: &Store, path: &Path) -> Result<(Input, OwnedFd), ImageError> {
    // Without waiting: a fifo would keep us here.
    let mut options = OpenOptions::new();
    options.read(true).custom_flags((rustix::fs::OFlags::NONBLOCK | rustix::fs::OFlags::NOCTTY).bits() as i32);
    let file = options.open(path).map_err(ImageError::io("opening", path))?;
    let metadata = file.metadata().map_err(ImageError::io("looking at", path))?;
    if metadata.is_file() {
        return Ok((Input::File, file.into()));
    }
    if !metadata.is_dir() {
        return Err(ImageError::SourceUnsupported { path: path.to_owned() });
    }
    let real = path.canonicalize().map_err(ImageError::io("opening", path))?;
    let store = store.dir().canonicalize().map_err(ImageError::io("opening", store.dir()))?;
    if store.starts_with(real) {
        return Err(ImageError::SourceHoldsStore { path: path.to_owned() });
    }
    Ok((Input::Directory, file.into()))
}

#[cfg(test)]
mod tests;
