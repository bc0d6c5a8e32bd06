//! The whole work on one source: what form it has, what its documents say, its layers into one tree.
//!
//! Invariant: all of a hostile image that is parsed, decompressed or unpacked is so here, and this runs in the process that
//! `worker` confines. Nothing is decided by the name of a source, only by what it holds. Read `parent` for how it is started.

mod parent;
mod worker;

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{Mode, OFlags};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

pub(super) use parent::{Places, run};
pub use worker::main;

use super::bounds::{Bounds, Meter};
use super::layer::{Meaning, Opened, Packing};
use super::manifest::{self, Choice, LayerSource, Resolved};
use super::members::{Index, Members, Window};
use super::store::digest_text;
use super::tree::{Notes, Ownership, Tree, open_directory};
use super::{ImageError, Progress, SourceKind, copy};

/// Entries between two reports.
const REPORT_ENTRIES: u64 = 256;
/// Bytes of the source between two reports.
const REPORT_BYTES: u64 = 8 << 20;

/// What to do.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Job {
    pub(super) bounds: Bounds,
    pub(super) choice: Choice,
    pub(super) ownership: Ownership,
    pub(super) input: Input,
}

/// What the source's descriptor is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Input {
    /// A layout, or a root file system.
    Directory,
    /// Any kind of archive.
    File,
    /// A directory of blobs that a registry gave; the descriptor (JSON) of the manifest.
    Blobs(String),
}

/// What became of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Unpacked {
    pub(super) form: SourceKind,
    pub(super) digest: String,
    /// Of the unpacked layers, lowest first.
    pub(super) diff_ids: Vec<String>,
    /// Of the blobs that the layers came from, where there are any.
    pub(super) layer_digests: Vec<String>,
    pub(super) manifest: Option<Vec<u8>>,
    pub(super) config: Option<Vec<u8>>,
    pub(super) bytes: u64,
    pub(super) entries: u64,
    pub(super) notes: Notes,
}

type Report<'a> = &'a mut dyn FnMut(Progress) -> Result<(), ImageError>;

/// Counts what is told; the answer to each report may be that nobody listens any more.
struct Reporter<'a> {
    report: Report<'a>,
    /// Of layers that are done.
    before: u64,
    total: Option<u64>,
    told: (u64, u64),
}

impl Reporter<'_> {
    fn tick(&mut self, entries: u64, bytes: u64, read: u64) -> Result<(), ImageError> {
        let source_bytes = self.before + read;
        let (told_entries, told_bytes) = self.told;
        if entries < told_entries + REPORT_ENTRIES && source_bytes < told_bytes + REPORT_BYTES {
            return Ok(());
        }
        self.told = (entries, source_bytes);
        (self.report)(Progress { entries, bytes, source_bytes, source_bytes_total: self.total })
    }
}

/// Fills `root` in the directory `work`.
fn unpack(work: &OwnedFd, source: OwnedFd, job: &Job, report: Report<'_>) -> Result<Unpacked, ImageError> {
    let root = open_directory(work.as_fd(), Path::new("root")).map_err(ImageError::errno("opening", "root"))?;
    let mut tree = Tree::new(root, job.ownership, Meter::new(job.bounds));
    let mut reporter = Reporter { report, before: 0, total: None, told: (0, 0) };
    let mut unpacked = match &job.input {
        Input::Directory => directory(source, job, &mut tree, &mut reporter),
        Input::File => file(work, source.into(), job, &mut tree, &mut reporter),
        Input::Blobs(descriptor) => {
            let descriptor = serde_json::from_str(descriptor)
                .map_err(|error| ImageError::Document { what: "descriptor".into(), reason: error.to_string() })?;
            let members = Members::Blobs(source);
            let resolved = manifest::from_descriptor(&members, &descriptor, &job.choice, &job.bounds)?;
            image(Resolved { form: SourceKind::Registry, ..resolved }, &mut tree, &mut reporter)
        }
    }?;
    tree.mount_points()?;
    (unpacked.bytes, unpacked.entries) = tree.measure()?;
    tree.finish()?;
    unpacked.notes = tree.notes;
    Ok(unpacked)
}

fn directory(source: OwnedFd, job: &Job, tree: &mut Tree, reporter: &mut Reporter<'_>) -> Result<Unpacked, ImageError> {
    let members = Members::Directory(source);
    if let Some(resolved) = image_of(&members, job)? {
        return image(resolved, tree, reporter);
    }
    let Members::Directory(source) = members else { unreachable!("made a directory above") };
    let mut tick = |tree: &Tree, read: u64| reporter.tick(tree.meter.entries, tree.meter.bytes, read);
    let digest = copy::copy(&source, tree, &mut tick)?;
    Ok(root_file_system(SourceKind::Directory, digest))
}

fn root_file_system(form: SourceKind, digest: [u8; 32]) -> Unpacked {
    let digest = digest_text(digest);
    Unpacked {
        form,
        diff_ids: vec![digest.clone()],
        digest,
        layer_digests: Vec::new(),
        manifest: None,
        config: None,
        bytes: 0,
        entries: 0,
        notes: Notes::default(),
    }
}

/// The image that an archive or layout holds; `None` when it is a root file system.
fn image_of(members: &Members, job: &Job) -> Result<Option<Resolved>, ImageError> {
    let bounds = &job.bounds;
    let archive = matches!(members, Members::Tar(_));
    if let Some(marker) = members.open("oci-layout")? {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Layout {
            image_layout_version: String,
        }
        let layout = serde_json::from_slice::<Layout>(&marker.read_bounded("oci-layout", bounds)?);
        if layout.is_ok_and(|layout| layout.image_layout_version.starts_with("1.")) {
            let form = if archive { SourceKind::OciArchive } else { SourceKind::OciLayout };
            return manifest::from_layout(members, &job.choice, bounds).map(|resolved| Some(Resolved { form, ..resolved }));
        }
    }
    if archive { manifest::from_docker(members, &job.choice, bounds) } else { Ok(None) }
}

fn file(work: &OwnedFd, source: File, job: &Job, tree: &mut Tree, reporter: &mut Reporter<'_>) -> Result<Unpacked, ImageError> {
    let reading = || ImageError::io("reading", "the archive");
    let whole = Window::whole(source.try_clone().map_err(reading())?).map_err(reading())?;
    reporter.total = Some(whole.bytes_left());
    let plain = match Opened::new(whole.clone(), job.bounds)?.packing() {
        Packing::Plain => Some(source),
        Packing::Gzip | Packing::Zstd if holds_an_image(whole.clone(), job)? => {
            Some(spool(work, whole.clone(), job, reporter)?)
        }
        Packing::Gzip | Packing::Zstd => None,
    };
    let members = plain.and_then(|plain| Index::read(plain, &job.bounds).ok()).map(Members::Tar);
    if let Some(resolved) = members.map(|members| image_of(&members, job)).transpose()?.flatten() {
        return image(resolved, tree, reporter);
    }
    let mut tick = |tree: &Tree, read: u64| reporter.tick(tree.meter.entries, tree.meter.bytes, read);
    let digests = Opened::new(whole, job.bounds)?.unpack(tree, Meaning::RootFs, &mut tick)?;
    Ok(root_file_system(SourceKind::RootfsTar, digests.unpacked))
}

/// Whether the first name of a packed archive is one that image archives hold: then it is worth to unpack it whole, because what
/// says so for certain may stand at its end.
fn holds_an_image(whole: Window, job: &Job) -> Result<bool, ImageError> {
    let first = Opened::new(whole, job.bounds)?.peek(64 << 10);
    let mut archive = tar::Archive::new(first.as_slice());
    let Ok(entries) = archive.entries() else { return Ok(false) };
    for entry in entries.take(2) {
        let Ok(entry) = entry else { return Ok(false) };
        let Ok(path) = super::entry::EntryPath::parse(&entry.path_bytes(), &job.bounds) else { return Ok(false) };
        let Some(top) = path.as_path().iter().next().and_then(|name| name.to_str()) else { continue };
        let extension = Path::new(top).extension();
        let named = ["blobs", "oci-layout", "repositories"].contains(&top);
        let hex = top.len() >= 64 && top.bytes().take(64).all(|byte| byte.is_ascii_hexdigit());
        return Ok(named || hex || extension.is_some_and(|end| end == "json" || end == "tar"));
    }
    Ok(false)
}

/// Unpacks a packed image archive into a file without a name, so that its members can be read by position.
fn spool(work: &OwnedFd, whole: Window, job: &Job, reporter: &mut Reporter<'_>) -> Result<File, ImageError> {
    let making = || ImageError::errno("making", "the unpacked archive");
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = rustix::fs::openat(work, "spool", flags, Mode::RUSR | Mode::WUSR).map_err(making())?;
    rustix::fs::unlinkat(work, "spool", rustix::fs::AtFlags::empty()).map_err(making())?;
    let mut file = File::from(file);
    Opened::new(whole, job.bounds)?.spool(&mut file, &mut |read| reporter.tick(0, 0, read))?;
    Ok(file)
}

/// All layers, lowest first, each verified before the next is begun.
fn image(resolved: Resolved, tree: &mut Tree, reporter: &mut Reporter<'_>) -> Result<Unpacked, ImageError> {
    let Resolved { form, digest, manifest, config, layers } = resolved;
    reporter.before = 0;
    reporter.told = (0, 0);
    reporter.total = Some(layers.iter().map(|layer| layer.contents.bytes_left()).sum());
    let mut unpacked = root_file_system(form, [0; 32]);
    (unpacked.digest, unpacked.manifest, unpacked.config) = (digest, manifest, Some(config));
    unpacked.diff_ids.clear();
    for (position, layer) in layers.into_iter().enumerate() {
        let bytes = layer.contents.bytes_left();
        unpacked.diff_ids.push(layer.diff_id.clone());
        unpacked.layer_digests.extend(layer.digest.clone());
        one_layer(position, layer, tree, reporter)?;
        reporter.before += bytes;
    }
    Ok(unpacked)
}

fn one_layer(position: usize, layer: LayerSource, tree: &mut Tree, reporter: &mut Reporter<'_>) -> Result<(), ImageError> {
    let opened = Opened::new(layer.contents.clone(), *tree.meter.bounds())?;
    if let Some(packing) = layer.packing.filter(|packing| *packing != opened.packing()) {
        let (found, expected) = (opened.packing().to_string(), packing.to_string());
        return Err(ImageError::MediaType { found, expected: expected.into() });
    }
    tree.begin_layer();
    let mut tick = |tree: &Tree, read: u64| reporter.tick(tree.meter.entries, tree.meter.bytes, read);
    let outcome = opened.unpack(tree, Meaning::Layer, &mut tick);
    let digests = match outcome {
        Ok(digests) => digests,
        Err(error) => {
            // What is cut off or altered is better told by its digest than by the first entry that makes no sense.
            return Err(layer.digest.and_then(|digest| altered(layer.contents, digest)).unwrap_or(error));
        }
    };
    if let Some(expected) = layer.digest {
        let found = digest_text(digests.packed);
        if found != expected {
            return Err(ImageError::DigestMismatch { expected, found });
        }
    }
    let found = digest_text(digests.unpacked);
    if found != layer.diff_id {
        return Err(ImageError::LayerMismatch { layer: position, expected: layer.diff_id, found });
    }
    Ok(())
}

/// The error about a blob that is not what its digest says.
fn altered(mut contents: Window, expected: String) -> Option<ImageError> {
    let mut hash = Sha256::new();
    let mut block = vec![0; 256 << 10];
    loop {
        match contents.read(&mut block).ok()? {
            0 => break,
            read => hash.update(&block[..read]),
        }
    }
    let found = digest_text(hash.finalize().into());
    (found != expected).then_some(ImageError::DigestMismatch { expected, found })
}
