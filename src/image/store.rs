//! The store: records of images by name, root file systems by digest.
//!
//! ```text
//! STATE/images/lock                      shared: look; exclusive: change what a name means
//!             /names/NAME/image.json     the record; lock: held shared by whoever uses the image
//!             /layers/HEX/               an unpacked root file system, never changed once it is here
//!             /host/HEX/                 generated skeletons of the image `host`
//!             /tmp/…                     what is being made or removed, each directory locked by its process
//! ```
//!
//! Invariants: everything appears by a rename from `tmp`; a layer goes only when no record names it; locks are flocks, so they
//! end with their process. Lock files are opened and removed only under the store's lock.

use std::collections::BTreeMap;
use std::fs::{DirBuilder, File, OpenOptions};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::fs::FlockOperation;
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::root::ImageGuard;
use super::staging::{Published, Staging, remove_stale, remove_tree, sync_parent};
use super::{DEFAULT_PATH, ImageError, ImageName, ImageRoot};

/// Where an image came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SourceKind {
    /// A directory of the host.
    Directory,
    /// A root file system tar, as `docker export` writes it.
    RootfsTar,
}

/// One image of the store; also its record on disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageInfo {
    /// Its name.
    pub name: ImageName,
    /// `sha256:` and 64 hexadecimal digits: of the unpacked tar, or of the directory's listing with contents.
    pub digest: String,
    /// Bytes of all files.
    pub size_bytes: u64,
    /// Files, directories and links.
    pub entries: u64,
    /// Milliseconds since the epoch.
    pub created_ms: u64,
    /// Where it came from.
    pub source: SourceKind,
    /// Digests of its layers, lowest first; one of them so far.
    pub layers: Vec<String>,
    /// Environment that the image brings.
    pub env: BTreeMap<String, String>,
}

/// The store of one state directory. Cheap to clone; many processes may hold one at once.
#[derive(Debug, Clone)]
pub struct Store {
    dir: PathBuf,
}

/// A lock file, held. Dropping it lets go.
pub(super) type Lock = File;

impl Store {
    /// Opens the store below the state directory, making what is missing, and removes what processes that ended early left.
    pub fn open(state_dir: &Path) -> Result<Self, ImageError> {
        let store = Self { dir: state_dir.join("images") };
        for dir in ["", "names", "layers", "host", "tmp"] {
            let path = store.dir.join(dir);
            DirBuilder::new().recursive(true).mode(0o700).create(&path).map_err(ImageError::io("making", &path))?;
            let private = std::os::unix::fs::PermissionsExt::from_mode(0o700);
            std::fs::set_permissions(&path, private).map_err(ImageError::io("making private", &path))?;
        }
        if let Some(_lock) = store.try_lock_exclusive()? {
            remove_stale(&store.tmp())?;
            super::host::remove_old(&store)?;
            store.remove_orphans()?;
        }
        Ok(store)
    }

    /// Removes layers that no record names: a crash between the two renames of `publish` leaves one.
    fn remove_orphans(&self) -> Result<(), ImageError> {
        let records = match self.records() {
            Ok(records) => records,
            Err(error) => {
                // A layer may belong to the record that can't be read.
                tracing::warn!(%error, "unused layers are kept");
                return Ok(());
            }
        };
        let layers = self.dir.join("layers");
        for entry in std::fs::read_dir(&layers).map_err(ImageError::io("reading", &layers))? {
            let path = entry.map_err(ImageError::io("reading", &layers))?.path();
            if !records.iter().any(|record| self.layer_dir(&record.digest) == path) {
                remove_tree(&path)?;
            }
        }
        Ok(())
    }

    /// The images by name, without `host`.
    pub fn list(&self) -> Result<Vec<ImageInfo>, ImageError> {
        let _lock = self.lock(FlockOperation::LockShared)?;
        self.records()
    }

    /// One image; `host` has no record.
    pub fn info(&self, name: &str) -> Result<ImageInfo, ImageError> {
        let name = ImageName::parse(name)?;
        let _lock = self.lock(FlockOperation::LockShared)?;
        self.record(&name)
    }

    /// The image as a session takes it; it can't be removed while the answer lives.
    pub fn resolve(&self, name: &str) -> Result<ImageRoot, ImageError> {
        let name = ImageName::parse(name)?;
        if name.as_str() == ImageName::HOST {
            return super::host::resolve(self);
        }
        let _lock = self.lock(FlockOperation::LockShared)?;
        let record = self.record(&name)?;
        let guard = open_lock(&self.image_dir(&name).join("lock"))?;
        let path = self.image_dir(&name);
        rustix::fs::flock(&guard, FlockOperation::NonBlockingLockShared).map_err(ImageError::errno("locking", path))?;
        let mut env = record.env;
        env.entry("PATH".into()).or_insert_with(|| DEFAULT_PATH.into());
        let lower = self.layer_dir(&record.digest);
        Ok(ImageRoot { name: name.into(), lower, binds: Vec::new(), env, guard: Arc::new(ImageGuard(guard)) })
    }

    /// Removes an image, and its files when no other image has the same.
    pub fn remove(&self, name: &str) -> Result<(), ImageError> {
        let name = ImageName::parse(name)?;
        if name.is_host() {
            return Err(ImageError::NameReserved { name: name.into() });
        }
        let lock = self.lock(FlockOperation::LockExclusive)?;
        let record = self.record(&name)?;
        let image_dir = self.image_dir(&name);
        let guard = open_lock(&image_dir.join("lock"))?;
        match rustix::fs::flock(&guard, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => return Err(ImageError::InUse { name: name.into() }),
            Err(errno) => return Err(ImageError::errno("locking", image_dir)(errno)),
        }
        let staging = Staging::new(&self.tmp())?;
        move_out(&image_dir, &staging.path().join("name"))?;
        self.retire_layer(&record.digest, &staging)?;
        // Other processes need not wait for the files to go.
        drop(lock);
        drop(staging);
        Ok(())
    }

    /// Moves a layer out of the store unless a record names it. The caller holds the exclusive lock.
    fn retire_layer(&self, digest: &str, staging: &Staging) -> Result<(), ImageError> {
        if self.records()?.iter().any(|record| record.digest == digest) {
            return Ok(());
        }
        move_out(&self.layer_dir(digest), &staging.path().join("layer"))
    }

    /// Puts a finished tree (`root` in `staging`) into the store under a name. Nothing changes when that name means it already.
    pub(super) fn publish(&self, staging: &Staging, info: &ImageInfo) -> Result<(), ImageError> {
        // The long sync comes before the lock, so that nobody waits for it.
        staging.sync()?;
        let _lock = self.lock(FlockOperation::LockExclusive)?;
        match self.record(&info.name) {
            Ok(record) if record.digest == info.digest => return Ok(()),
            Ok(_) => return Err(ImageError::AlreadyExists { name: info.name.to_string() }),
            Err(ImageError::NotFound { .. }) => {}
            Err(error) => return Err(error),
        }
        let name_dir = staging.path().join("name");
        DirBuilder::new().mode(0o700).create(&name_dir).map_err(ImageError::io("making", &name_dir))?;
        let record = name_dir.join("image.json");
        let text = serde_json::to_vec_pretty(info).map_err(|source| ImageError::Record { path: record.clone(), source })?;
        std::fs::write(&record, text).map_err(ImageError::io("writing", &record))?;
        let layer = self.layer_dir(&info.digest);
        let published = staging.publish("root", &layer)?;
        let named = staging.publish("name", &self.image_dir(&info.name));
        if named.is_err() && published == Published::Moved {
            // A record is what makes a layer part of the store.
            move_out(&layer, &staging.path().join("root"))?;
        }
        named.map(|_| ())
    }

    pub(super) fn tmp(&self) -> PathBuf {
        self.dir.join("tmp")
    }

    pub(super) fn host_dir(&self) -> PathBuf {
        self.dir.join("host")
    }

    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    /// A new staging directory.
    pub(super) fn stage(&self) -> Result<Staging, ImageError> {
        let _lock = self.lock(FlockOperation::LockShared)?;
        Staging::new(&self.tmp())
    }

    pub(super) fn lock(&self, operation: FlockOperation) -> Result<Lock, ImageError> {
        let path = self.dir.join("lock");
        let lock = open_lock(&path)?;
        loop {
            match rustix::fs::flock(&lock, operation) {
                Err(Errno::INTR) => {}
                answer => return answer.map(|()| lock).map_err(ImageError::errno("locking", path)),
            }
        }
    }

    fn try_lock_exclusive(&self) -> Result<Option<Lock>, ImageError> {
        match self.lock(FlockOperation::NonBlockingLockExclusive) {
            Ok(lock) => Ok(Some(lock)),
            Err(ImageError::Io { source, .. }) if source.kind() == std::io::ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn image_dir(&self, name: &ImageName) -> PathBuf {
        self.dir.join("names").join(name.as_str())
    }

    fn layer_dir(&self, digest: &str) -> PathBuf {
        self.dir.join("layers").join(digest.strip_prefix("sha256:").unwrap_or(digest))
    }

    fn record(&self, name: &ImageName) -> Result<ImageInfo, ImageError> {
        let path = self.image_dir(name).join("image.json");
        let text = match std::fs::read(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Err(ImageError::NotFound { name: name.to_string() });
            }
            answer => answer.map_err(ImageError::io("reading", &path))?,
        };
        serde_json::from_slice(&text).map_err(|source| ImageError::Record { path, source })
    }

    fn records(&self) -> Result<Vec<ImageInfo>, ImageError> {
        let names = self.dir.join("names");
        let mut records = Vec::new();
        for entry in std::fs::read_dir(&names).map_err(ImageError::io("reading", &names))? {
            let entry = entry.map_err(ImageError::io("reading", &names))?;
            let name = entry.file_name();
            let Some(name) = name.to_str().and_then(|name| ImageName::parse(name).ok()) else { continue };
            records.push(self.record(&name)?);
        }
        records.sort_by(|one, other| one.name.cmp(&other.name));
        Ok(records)
    }
}

pub(super) fn open_lock(path: &Path) -> Result<Lock, ImageError> {
    // A lock that is there is only read: on a file system that has become read-only what is in the store can still be used.
    let opened = match File::open(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)
        }
        opened => opened,
    };
    opened.map_err(ImageError::io("opening", path))
}

fn move_out(from: &Path, to: &Path) -> Result<(), ImageError> {
    match std::fs::rename(from, to) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        answer => answer.map_err(ImageError::io("removing", from)),
    }?;
    sync_parent(from)
}

pub(super) fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_millis() as u64)
}

pub(super) fn digest_text(digest: [u8; 32]) -> String {
    use std::fmt::Write;
    digest.iter().fold(String::from("sha256:"), |mut text, byte| {
        write!(text, "{byte:02x}").expect("writing to a String can't fail");
        text
    })
}
