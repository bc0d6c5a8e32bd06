//! The store: records of images by name, root file systems by digest.
//!
//! ```text
//! STATE/images/lock                      shared: look; exclusive: change what a name means
//!             /names/NAME/image.json     the record; lock: held shared by whoever uses the image
//!             /layers/HEX/               an unpacked root file system, never changed once it is here
//!             /blobs/sha256/HEX          manifests, configurations, packed layers of pulled images
//!             /blobs/partial/HEX         what a pull has of a blob so far; lock: held shared by every pull
//!             /host/HEX/                 generated skeletons of the image `host`
//!             /tmp/…                     what is being made or removed, each directory locked by its process
//! ```
//!
//! Invariants: everything appears by a rename from `tmp`; a layer or blob goes only when no record names it; locks are flocks, so
//! they end with their process. Lock files are opened and removed only under the store's lock.

use std::collections::{HashMap, HashSet};
use std::fs::{DirBuilder, File, OpenOptions};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rustix::fs::FlockOperation;
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::host::SeenHost;
use super::import::Taken;
use super::root::ImageGuard;
use super::staging::{Published, Staging, remove_stale, remove_tree, sync_parent};
use super::tree::Notes;
use super::{DEFAULT_PATH, ImageError, ImageName, ImageReference, ImageRoot, Settings};

/// The record of an image, below its name.
const RECORD: &str = "image.json";

/// A sandbox that is being made ready for nobody in particular holds its image for so long at most, as a rule; a session holds it longer.
const BEING_MADE_WAIT: Duration = Duration::from_secs(3);
const BEING_MADE_PAUSE: Duration = Duration::from_millis(10);

/// Where an image came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SourceKind {
    /// A directory of the host.
    Directory,
    /// A root file system tar, as `docker export` writes it.
    RootfsTar,
    /// What `docker save` writes, without an OCI layout in it.
    DockerArchive,
    /// A tar of an OCI layout; newer `docker save` writes one as well.
    OciArchive,
    /// A directory that is an OCI layout.
    OciLayout,
    /// A registry.
    Registry,
}

impl SourceKind {
    /// The word for it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Directory => "directory",
            Self::RootfsTar => "rootfs-tar",
            Self::DockerArchive => "docker-archive",
            Self::OciArchive => "oci-archive",
            Self::OciLayout => "oci-layout",
            Self::Registry => "registry",
        }
    }
}

/// A manifest or configuration, to be kept under its digest.
#[derive(Debug, Clone)]
pub(super) struct Document {
    pub(super) digest: String,
    bytes: Vec<u8>,
}

impl Document {
    pub(super) fn new(bytes: Vec<u8>) -> Self {
        Self { digest: digest_text(Sha256::digest(&bytes).into()), bytes }
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}

/// What goes into the store beside the tree and the record.
#[derive(Debug)]
pub(super) struct Content {
    pub(super) documents: Vec<Document>,
    pub(super) notes: Notes,
}

/// The name of the root file system that those layers make: what `.wh.` means depends on the form.
pub(super) fn root_key(form: SourceKind, diff_ids: &[String]) -> String {
    match (form, diff_ids) {
        (SourceKind::Directory | SourceKind::RootfsTar, [digest]) => digest.clone(),
        (_, layers) => {
            let text = layers.iter().fold("layers".to_owned(), |text, layer| text + "\n" + layer);
            digest_text(Sha256::digest(text).into())
        }
    }
}

/// One image of the store; also its record on disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageInfo {
    /// Its name.
    pub name: ImageName,
    /// `sha256:` and 64 hexadecimal digits: of the manifest; of the configuration, where there is no manifest (docker-archive); of
    /// the unpacked tar; of the directory's listing with contents.
    pub digest: String,
    /// Digest of the index that it was pulled by; the image answers to it as well.
    pub index: Option<String>,
    /// Bytes of all files.
    pub size_bytes: u64,
    /// Files, directories and links.
    pub entries: u64,
    /// Milliseconds since the epoch.
    pub created_ms: u64,
    /// Where it came from.
    pub source: SourceKind,
    /// Path or reference that it came from.
    pub from: String,
    /// Digests of its unpacked layers (diff ids), lowest first.
    pub layers: Vec<String>,
    /// Digests of the blobs that those came from, where there were any.
    pub layer_digests: Vec<String>,
    /// The unpacked root file system, below `layers/`.
    pub root: String,
    /// Digests of what is kept of it below `blobs/`.
    pub blobs: Vec<String>,
    /// What its configuration says.
    pub settings: Settings,
}

/// The store of one state directory. Cheap to clone; many processes may hold one at once.
#[derive(Debug, Clone)]
pub struct Store {
    dir: PathBuf,
    /// Locks that somebody in this process holds: all users of an image share one descriptor.
    guards: Arc<Mutex<HashMap<PathBuf, Weak<ImageGuard>>>>,
    host: SeenHost,
}

/// A lock file, held. Dropping it lets go.
pub(super) type Lock = File;

impl Store {
    /// Opens the store below the state directory, making what is missing, and removes what processes that ended early left.
    pub fn open(state_dir: &Path) -> Result<Self, ImageError> {
        let store = Self { dir: state_dir.join("images"), guards: Arc::default(), host: SeenHost::default() };
        for dir in ["", "names", "layers", "blobs", "blobs/sha256", "blobs/partial", "host", "tmp"] {
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
            if !records.iter().any(|record| self.layer_dir(&record.root) == path) {
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

    /// Whether there is an image of that name; one that is there and can't be used is told of by [`Self::resolve`]. Asked for each session
    /// that is made, mostly of one that there is none of.
    pub fn has(&self, reference: &str) -> bool {
        // A record is put in the place of another in one step, so that none is there for a moment either. A place that can't be looked at
        // is no absence.
        let is_named = |name: &ImageName| {
            name.as_str() == ImageName::HOST || !matches!(self.image_dir(name).join(RECORD).try_exists(), Ok(false))
        };
        ImageReference::parse(reference).is_ok_and(|asked| is_named(&asked.name))
            && !matches!(self.resolve(reference), Err(ImageError::NotFound { .. } | ImageError::OtherDigest { .. }))
    }

    /// The image as a session takes it (`name`, `name:tag`, either with `@digest`); it can't be removed while the answer lives.
    pub fn resolve(&self, reference: &str) -> Result<ImageRoot, ImageError> {
        let ImageReference { name, digest } = ImageReference::parse(reference)?;
        if name.as_str() == ImageName::HOST && digest.is_none() {
            return super::host::resolve(self);
        }
        let _lock = self.lock(FlockOperation::LockShared)?;
        let record = self.record(&name)?;
        if let Some(wanted) = digest.filter(|wanted| *wanted != record.digest && Some(wanted) != record.index.as_ref()) {
            return Err(ImageError::OtherDigest { name: name.into(), wanted, found: record.digest });
        }
        let guard = self.guard(&self.image_dir(&name), || open_lock(&self.image_dir(&name).join("lock")))?;
        let mut env = record.settings.env;
        env.entry("PATH".into()).or_insert_with(|| DEFAULT_PATH.into());
        let lower = self.layer_dir(&record.root);
        Ok(ImageRoot { name: reference.to_owned(), lower, binds: Vec::new(), env, guard })
    }

    /// The shared lock that keeps `path` in the store; `open` opens what is locked. While one is held nobody can put another thing in
    /// its place. The caller holds the store's lock.
    pub(super) fn guard(
        &self,
        path: &Path,
        open: impl FnOnce() -> Result<File, ImageError>,
    ) -> Result<Arc<ImageGuard>, ImageError> {
        let mut guards = self.guards.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(guard) = guards.get(path).and_then(Weak::upgrade) {
            return Ok(guard);
        }
        let file = open()?;
        rustix::fs::flock(&file, FlockOperation::NonBlockingLockShared).map_err(ImageError::errno("locking", path))?;
        let guard = Arc::new(ImageGuard(file));
        guards.retain(|_, held| held.strong_count() > 0);
        guards.insert(path.to_owned(), Arc::downgrade(&guard));
        Ok(guard)
    }

    /// Removes an image, and its files when no other image has the same.
    pub fn remove(&self, name: &str) -> Result<(), ImageError> {
        let name = ImageName::parse(name)?;
        if name.is_host() {
            return Err(ImageError::NameReserved { name: name.into() });
        }
        let staging = self.when_unused(|| {
            let record = self.record(&name)?;
            let _unused = self.claim(&name)?;
            let staging = Staging::new(&self.tmp())?;
            move_out(&self.image_dir(&name), &staging.path().join("old-name"))?;
            self.let_go(&record, &staging)?;
            Ok(staging)
        })?;
        // Other processes need not wait for the files to go.
        drop(staging);
        Ok(())
    }

    /// Does `deed` under the store's exclusive lock, again as long as its image is in use: see `BEING_MADE_WAIT`. In between nobody has
    /// that lock, since who has the image may wait for it before it lets the image go; others may take the image meanwhile.
    fn when_unused<T>(&self, deed: impl Fn() -> Result<T, ImageError>) -> Result<T, ImageError> {
        let deadline = Instant::now() + BEING_MADE_WAIT;
        loop {
            let lock = self.lock(FlockOperation::LockExclusive)?;
            match deed() {
                Err(ImageError::InUse { .. }) if Instant::now() < deadline => {}
                done => return done,
            }
            drop(lock);
            thread::sleep(BEING_MADE_PAUSE);
        }
    }

    /// The lock of an image that nobody uses.
    fn claim(&self, name: &ImageName) -> Result<Lock, ImageError> {
        let image_dir = self.image_dir(name);
        let guard = open_lock(&image_dir.join("lock"))?;
        match rustix::fs::flock(&guard, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(guard),
            Err(Errno::WOULDBLOCK) => Err(ImageError::InUse { name: name.to_string() }),
            Err(errno) => Err(ImageError::errno("locking", image_dir)(errno)),
        }
    }

    /// Moves what that record named and none names now into `staging`.
    fn let_go(&self, record: &ImageInfo, staging: &Staging) -> Result<(), ImageError> {
        let left = self.records()?;
        if !left.iter().any(|other| other.root == record.root) {
            move_out(&self.layer_dir(&record.root), &staging.path().join("old-layer"))?;
        }
        for (position, digest) in record.blobs.iter().enumerate() {
            if !left.iter().any(|other| other.blobs.contains(digest)) {
                move_out(&self.blob_path(digest), &staging.path().join(format!("old-blob-{position}")))?;
            }
        }
        Ok(())
    }

    /// Puts a finished tree (`work/root` in `staging`) into the store under a name. Nothing changes when that name means it
    /// already. The rename of the record is the moment from which the name means it: before, it means what it meant.
    pub(super) fn publish(
        &self,
        staging: &Staging,
        info: &ImageInfo,
        content: &Content,
        taken: Taken,
    ) -> Result<(), ImageError> {
        // The long sync comes before the lock, so that nobody waits for it.
        let record = write_documents(staging, info, content)?;
        self.when_unused(|| self.name_it(staging, info, content, taken, &record))
    }

    /// [`Self::publish`], under the exclusive lock; nothing is changed before the error that the image is in use.
    fn name_it(
        &self,
        staging: &Staging,
        info: &ImageInfo,
        content: &Content,
        taken: Taken,
        record: &Path,
    ) -> Result<(), ImageError> {
        let before = match (self.record(&info.name), taken) {
            (Ok(record), _) if record.digest == info.digest => return Ok(()),
            (Ok(_), Taken::Refuse) => return Err(ImageError::AlreadyExists { name: info.name.to_string() }),
            (Ok(record), Taken::Replace) => Some((record, self.claim(&info.name)?)),
            (Err(ImageError::NotFound { .. }), _) => None,
            (Err(error), _) => return Err(error),
        };
        for document in &content.documents {
            let target = self.blob_path(&document.digest);
            std::fs::rename(staging.path().join(hex(&document.digest)), &target).map_err(ImageError::io("making", &target))?;
            sync_parent(&target)?;
        }
        let layer = self.layer_dir(&info.root);
        let published = staging.publish("work/root", &layer)?;
        let named = match &before {
            // One file in the place of another: there is no moment without either.
            Some(_) => replace_file(record, &self.image_dir(&info.name).join(RECORD)),
            None => staging.publish("name", &self.image_dir(&info.name)).map(|_| ()),
        };
        if named.is_err() && published == Published::Moved {
            // A record is what makes a layer part of the store.
            move_out(&layer, &staging.path().join("unnamed-layer"))?;
        }
        named?;
        if let Some((old, _unused)) = &before
            && let Err(error) = self.let_go(old, staging)
        {
            tracing::warn!(%error, image = %info.name, "what the name meant before stays until `codebeaker image prune`");
        }
        Ok(())
    }

    pub(super) fn blobs_dir(&self) -> PathBuf {
        self.dir.join("blobs")
    }

    pub(super) fn blob_path(&self, digest: &str) -> PathBuf {
        self.blobs_dir().join("sha256").join(hex(digest))
    }

    /// Where a blob is while it is being pulled.
    pub(super) fn partial_path(&self, digest: &str) -> PathBuf {
        self.blobs_dir().join("partial").join(hex(digest))
    }

    /// A manifest or configuration that is kept.
    pub fn document(&self, digest: &str) -> Result<Vec<u8>, ImageError> {
        let path = self.blob_path(digest);
        std::fs::read(&path).map_err(ImageError::io("reading", &path))
    }

    /// Held by a pull: what it has fetched is no rubbish.
    pub(super) fn lock_blobs(&self) -> Result<Lock, ImageError> {
        let path = self.blobs_dir().join("lock");
        let lock = open_lock(&path)?;
        rustix::fs::flock(&lock, FlockOperation::LockShared).map_err(ImageError::errno("locking", path))?;
        Ok(lock)
    }

    /// Removes what no image needs: blobs and parts of blobs, root file systems, skeletons, what dead processes left.
    pub fn prune(&self) -> Result<Pruned, ImageError> {
        let _lock = self.lock(FlockOperation::LockExclusive)?;
        remove_stale(&self.tmp())?;
        super::host::remove_old(self)?;
        self.remove_orphans()?;
        let path = self.blobs_dir().join("lock");
        let pulls = open_lock(&path)?;
        match rustix::fs::flock(&pulls, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => return Ok(Pruned { blobs: 0, bytes: 0, pull_running: true }),
            Err(errno) => return Err(ImageError::errno("locking", path)(errno)),
        }
        let needed: HashSet<PathBuf> =
            self.records()?.iter().flat_map(|record| &record.blobs).map(|digest| self.blob_path(digest)).collect();
        let mut pruned = Pruned { blobs: 0, bytes: 0, pull_running: false };
        for dir in ["sha256", "partial"] {
            let dir = self.blobs_dir().join(dir);
            for entry in std::fs::read_dir(&dir).map_err(ImageError::io("reading", &dir))? {
                let path = entry.map_err(ImageError::io("reading", &dir))?.path();
                if !needed.contains(&path) {
                    pruned.blobs += 1;
                    pruned.bytes += std::fs::symlink_metadata(&path).map_or(0, |metadata| metadata.len());
                    std::fs::remove_file(&path).map_err(ImageError::io("removing", &path))?;
                }
            }
        }
        Ok(pruned)
    }

    pub(super) fn tmp(&self) -> PathBuf {
        self.dir.join("tmp")
    }

    pub(super) fn host_dir(&self) -> PathBuf {
        self.dir.join("host")
    }

    pub(super) fn host(&self) -> &SeenHost {
        &self.host
    }

    /// [`program_exists`](super::program_exists); in the image `host` as it was when its state was looked at.
    pub fn has_program(&self, root: &ImageRoot, program: &str) -> bool {
        self.host.has_program(&self.host_dir(), root, program)
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
        self.dir.join("layers").join(hex(digest))
    }

    fn record(&self, name: &ImageName) -> Result<ImageInfo, ImageError> {
        let path = self.image_dir(name).join(RECORD);
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

/// What `Store::prune` removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Pruned {
    /// Blobs and parts of blobs.
    pub blobs: u64,
    /// Their bytes.
    pub bytes: u64,
    /// A pull is at work, so blobs were left alone.
    pub pull_running: bool,
}

fn hex(digest: &str) -> &str {
    digest.strip_prefix("sha256:").unwrap_or(digest)
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

/// Writes documents and record of an image below `staging` and puts all of it on disk; the path of the record.
fn write_documents(staging: &Staging, info: &ImageInfo, content: &Content) -> Result<PathBuf, ImageError> {
    for document in &content.documents {
        let path = staging.path().join(hex(&document.digest));
        std::fs::write(&path, &document.bytes).map_err(ImageError::io("writing", &path))?;
    }
    let name_dir = staging.path().join("name");
    DirBuilder::new().mode(0o700).create(&name_dir).map_err(ImageError::io("making", &name_dir))?;
    let record = name_dir.join(RECORD);
    let text = serde_json::to_vec_pretty(info).map_err(|source| ImageError::Record { path: record.clone(), source })?;
    std::fs::write(&record, text).map_err(ImageError::io("writing", &record))?;
    staging.sync()?;
    Ok(record)
}

fn move_out(from: &Path, to: &Path) -> Result<(), ImageError> {
    match std::fs::rename(from, to) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        answer => answer.map_err(ImageError::io("removing", from)),
    }?;
    sync_parent(from)
}

fn replace_file(from: &Path, to: &Path) -> Result<(), ImageError> {
    std::fs::rename(from, to).map_err(ImageError::io("replacing", to))?;
    sync_parent(to)
}

pub(super) fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_millis() as u64)
}

/// A SHA-256 as image stores write it.
pub fn digest_text(digest: [u8; 32]) -> String {
    use std::fmt::Write;
    digest.iter().fold(String::from("sha256:"), |mut text, byte| {
        write!(text, "{byte:02x}").expect("writing to a String can't fail");
        text
    })
}
