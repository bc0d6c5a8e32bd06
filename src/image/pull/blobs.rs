//! Blobs of a registry into the store: several at once, each from where an earlier pull left it.
//!
//! Invariant: one process at a time writes a part (flock); never more bytes than the descriptor says are written; the name of a
//! blob appears by a rename after its hash was right. A part whose hash is wrong is removed.

use std::fs::{File, OpenOptions};
use std::io::{Read, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures_util::{StreamExt, TryStreamExt, stream};
use oci_spec::image::Descriptor;
use rustix::fs::FlockOperation;
use sha2::{Digest, Sha256};
use tokio::io::{AsyncSeekExt, AsyncWriteExt};

use super::registry::Registry;
use crate::image::store::{Document, Store, digest_text};
use crate::image::{ImageError, staging};

/// Blobs that come at once.
const PARALLEL_MAX: usize = 4;
/// How often one blob is asked for when its stream breaks.
const TRIES_MAX: u32 = 4;
const RETRY_PAUSE: Duration = Duration::from_millis(500);
const LOCK_PAUSE: Duration = Duration::from_millis(100);

/// A document under its digest.
pub(super) fn keep(store: &Store, document: &Document) -> Result<(), ImageError> {
    let staging = store.stage()?;
    let path = staging.path().join("document");
    std::fs::write(&path, document.bytes()).map_err(ImageError::io("writing", &path))?;
    let target = store.blob_path(&document.digest);
    std::fs::rename(&path, &target).map_err(ImageError::io("making", &target))
}

/// All of them; `fetched` counts their bytes, those that were there already too.
pub(super) async fn fetch_all(
    store: &Store,
    registry: &Registry,
    blobs: &[Descriptor],
    fetched: &AtomicU64,
) -> Result<(), ImageError> {
    let mut wanted: Vec<&Descriptor> = blobs.iter().collect();
    wanted.sort_by_key(|blob| blob.digest().to_string());
    wanted.dedup_by_key(|blob| blob.digest().to_string());
    let fetches = wanted.into_iter().map(|blob| fetch(store, registry, blob, fetched));
    stream::iter(fetches).buffer_unordered(PARALLEL_MAX).try_collect::<()>().await
}

async fn fetch(store: &Store, registry: &Registry, blob: &Descriptor, fetched: &AtomicU64) -> Result<(), ImageError> {
    let digest = blob.digest().to_string();
    let target = store.blob_path(&crate::image::manifest::sha256(blob.digest())?);
    let is_there = || std::fs::metadata(&target).is_ok_and(|metadata| metadata.len() == blob.size());
    if is_there() {
        fetched.fetch_add(blob.size(), Ordering::Relaxed);
        return Ok(());
    }
    let path = store.partial_path(&digest);
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).mode(0o600);
    let file = loop {
        let file = options.open(&path).map_err(ImageError::io("opening", &path))?;
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            // Whoever held it before may have moved it away.
            Ok(()) if is_there() => {
                fetched.fetch_add(blob.size(), Ordering::Relaxed);
                return std::fs::remove_file(&path).or(Ok(()));
            }
            Ok(()) if is_same(&file, &path) => break file,
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => tokio::time::sleep(LOCK_PAUSE).await,
            Err(errno) => return Err(ImageError::errno("locking", &path)(errno)),
        }
    };
    let mut part = Part::open(file, blob, fetched).map_err(ImageError::io("reading", &path))?;
    let mut tries = 1;
    while let Err(error) = part.fetch(registry, &digest).await {
        tries += 1;
        if !may_pass(&error) || tries > TRIES_MAX {
            return Err(error);
        }
        tracing::debug!(%digest, %error, tries, "a blob is asked for again");
        tokio::time::sleep(RETRY_PAUSE).await;
    }
    let found = digest_text(part.hash.clone().finalize().into());
    if found != digest {
        std::fs::remove_file(&path).map_err(ImageError::io("removing", &path))?;
        return Err(ImageError::DigestMismatch { expected: digest, found });
    }
    part.file.sync_all().await.map_err(ImageError::io("syncing", &path))?;
    std::fs::rename(&path, &target).map_err(ImageError::io("making", &target))?;
    staging::sync_parent(&target)
}

/// True for what may be otherwise a moment later.
fn may_pass(error: &ImageError) -> bool {
    match error {
        ImageError::Registry { .. } => true,
        ImageError::Answer { status, .. } => *status == 429 || *status >= 500,
        _ => false,
    }
}

/// True when that descriptor is still what stands under the name.
fn is_same(file: &File, path: &std::path::Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let numbers = |metadata: std::fs::Metadata| (metadata.dev(), metadata.ino());
    file.metadata().map(numbers).ok() == std::fs::metadata(path).map(numbers).ok()
}

/// What is there of a blob, hashed.
struct Part<'a> {
    file: tokio::fs::File,
    hash: Sha256,
    bytes: u64,
    total: u64,
    fetched: &'a AtomicU64,
}

impl<'a> Part<'a> {
    fn open(mut file: File, blob: &Descriptor, fetched: &'a AtomicU64) -> std::io::Result<Self> {
        if file.metadata()?.len() > blob.size() {
            file.set_len(0)?;
        }
        let mut hash = Sha256::new();
        let mut block = vec![0; 256 << 10];
        let mut bytes = 0;
        loop {
            match file.read(&mut block)? {
                0 => break,
                read => {
                    hash.update(&block[..read]);
                    bytes += read as u64;
                }
            }
        }
        fetched.fetch_add(bytes, Ordering::Relaxed);
        Ok(Self { file: tokio::fs::File::from_std(file), hash, bytes, total: blob.size(), fetched })
    }

    /// Asks for what is missing.
    async fn fetch(&mut self, registry: &Registry, digest: &str) -> Result<(), ImageError> {
        if self.bytes == self.total {
            return Ok(());
        }
        let writing = || ImageError::io("writing", "a blob");
        let mut body = registry.blob(digest, self.bytes).await?;
        if body.begins < self.bytes {
            // A registry that knows no ranges begins anew.
            self.fetched.fetch_sub(self.bytes, Ordering::Relaxed);
            (self.bytes, self.hash) = (0, Sha256::new());
            self.file.set_len(0).await.map_err(writing())?;
            self.file.seek(SeekFrom::Start(0)).await.map_err(writing())?;
        }
        while let Some(piece) = registry.piece(&mut body).await? {
            let piece = piece.as_ref();
            let bytes = self.bytes + piece.len() as u64;
            if bytes > self.total {
                return Err(ImageError::SizeMismatch { digest: digest.into(), expected: self.total, found: bytes });
            }
            self.file.write_all(piece).await.map_err(writing())?;
            self.hash.update(piece);
            self.bytes = bytes;
            self.fetched.fetch_add(piece.len() as u64, Ordering::Relaxed);
        }
        self.file.flush().await.map_err(writing())?;
        if self.bytes < self.total {
            let cause = format!("it ended after {} of {} bytes", self.bytes, self.total);
            return Err(registry.failed("fetching a blob of", cause));
        }
        Ok(())
    }
}
