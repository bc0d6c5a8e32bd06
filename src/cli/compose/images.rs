//! The image store, as the calls of `codebeaker image` see it.
//!
//! Invariant: an import that Ctrl-C or SIGTERM ends leaves nothing in the store; what an import leaves out is told, never
//! passed over.

use std::io::IsTerminal;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, UNIX_EPOCH};

use indicatif::{ProgressBar, ProgressDrawTarget};
use serde_json::{Value, json};

use super::{CliError, store};
use crate::cli::output::{note, warn};
use crate::cli::streams::Interrupts;
use crate::config::{Config, ImagesConfig};
use crate::image::import::Request;
use crate::image::pull::{PullRequest, pull, registry_of};
use crate::image::store::Pruned;
use crate::image::tree::Notes;
use crate::image::{
    Bounds, Choice, ImageError, ImageInfo, ImageName, Imported, Progress, Store, Taken, import, program_exists,
};

/// One image of the store. The image `host` is no copy: it has no digest, size or time.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ImageRow {
    /// As given at import.
    pub name: String,
    /// `sha256:…` of the manifest, of a docker-archive's configuration, of the unpacked tar, or of the directory's listing.
    pub digest: Option<String>,
    /// Unpacked size.
    pub size_bytes: Option<u64>,
    /// RFC 3339, when it came into the store.
    pub created: Option<String>,
    /// What it came as: `docker-archive`, `oci-archive`, `oci-layout`, `rootfs-tar`, `directory`, `registry` or `host`.
    pub source: &'static str,
}

/// What an import and a pull have in common.
#[derive(Debug, Clone, Copy)]
pub struct Incoming<'a> {
    /// Name to keep the image under.
    pub name: Option<&'a str>,
    /// `os/architecture[/variant]`; absent = this host's.
    pub platform: Option<&'a str>,
    /// Tag or reference name, of a source with several images.
    pub tag: Option<&'a str>,
    /// When the name is taken.
    pub taken: Taken,
}

/// How a registry is spoken to.
#[derive(Debug, Clone, Copy)]
pub enum Tls<'a> {
    /// Without TLS, because the call says so.
    Plain,
    /// With TLS unless the configuration says otherwise; the certificates of this file are believed too, else those of the configuration's.
    Believing(Option<&'a Path>),
}

impl Incoming<'_> {
    fn choice(&self) -> Choice {
        let native = Choice::native();
        Choice { platform: self.platform.map_or(native.platform, str::to_owned), tag: self.tag.map(str::to_owned) }
    }
}

/// The bounds that the operator set. Names and paths have those of the kernel.
fn bounds(config: &ImagesConfig) -> Bounds {
    Bounds {
        bytes_max: config.bytes_max,
        entries_max: config.entries_max,
        depth_max: config.depth_max,
        layers_max: config.layers_max,
        document_bytes_max: config.document_bytes_max,
        header_bytes_max: config.header_bytes_max,
        names_bytes_max: config.names_bytes_max,
        expansion_max: config.expansion_max,
        ..Bounds::default()
    }
}

/// Imports an image; what kind of source it is, is found by looking at it.
pub fn image_import(config: &Config, source: &Path, incoming: Incoming<'_>) -> Result<ImageRow, CliError> {
    let named = source.file_name().and_then(|name| name.to_str()).map(|name| name.split('.').next().unwrap_or(name));
    let Some(name) = incoming.name.or(named) else {
        return Err(CliError::usage("the image needs a name").hint("give it with --name"));
    };
    let store = store(config)?;
    let choice = incoming.choice();
    let imported = watched(|cancel, progress| {
        let (taken, bounds) = (incoming.taken, bounds(&config.images));
        let request = Request { source, name, choice: &choice, taken, bounds, cancel };
        import(&store, request, progress).map_err(|error| of_source(error, source))
    })?;
    Ok(told(&store, &imported))
}

/// Pulls an image from a registry.
pub fn image_pull(config: &Config, reference: &str, incoming: Incoming<'_>, tls: Tls<'_>) -> Result<ImageRow, CliError> {
    let store = store(config)?;
    let choice = incoming.choice();
    let mut registries = config.images.plain_http_registries.clone();
    let ca_file = match tls {
        Tls::Plain => {
            registries.push(registry_of(reference)?);
            None
        }
        Tls::Believing(file) => file.or(config.images.ca_file.as_deref()),
    };
    let imported = watched(|cancel, progress| {
        let request = PullRequest {
            reference,
            name: incoming.name,
            choice: &choice,
            taken: incoming.taken,
            bounds: bounds(&config.images),
            plain_http: &registries,
            ca_file,
            cancel,
        };
        pull(&store, request, progress)
    })?;
    Ok(told(&store, &imported))
}

/// Carries out `work` with a progress bar and a flag that Ctrl-C sets.
fn watched(
    work: impl FnOnce(&AtomicBool, &mut dyn FnMut(Progress)) -> Result<Imported, ImageError>,
) -> Result<Imported, CliError> {
    let bar = ProgressBar::with_draw_target(None, draw_target());
    let imported = interruptible(|cancel| {
        work(cancel, &mut |at| {
            bar.set_message(progress_text(at));
            bar.tick();
        })
    });
    bar.finish_and_clear();
    imported
}

/// Says what an image is not, or is without.
fn told(store: &Store, imported: &Imported) -> ImageRow {
    let info = &imported.info;
    if let Some(text) = left_out(imported.notes) {
        note(&format!("note: left out: {text}\n"));
    }
    let native = Choice::native().platform;
    if let Some(platform) = info.settings.platform.as_ref().filter(|platform| **platform != native) {
        warn(&format!("the image is for {platform}, and this host is {native}: its programs will not start"));
    }
    if !store.resolve(info.name.as_str()).is_ok_and(|root| program_exists(&root, "sh")) {
        warn("the image has no `sh`: is this a root file system?");
    }
    row(info)
}

/// Progress is for people who watch.
pub(super) fn draw_target() -> ProgressDrawTarget {
    if std::io::stderr().is_terminal() { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() }
}

fn progress_text(at: Progress) -> String {
    let text = format!("{} files, {} MiB", at.entries, at.bytes >> 20);
    match at.source_bytes_total {
        Some(total) if total > 0 => format!("{text}, {} %", (at.source_bytes.min(total)) * 100 / total),
        Some(_) | None => text,
    }
}

/// A file whose first entry can't be read is no tar.
fn of_source(error: ImageError, source: &Path) -> ImageError {
    match error {
        ImageError::Archive { entry, .. } if entry.is_empty() => ImageError::SourceUnsupported { path: source.to_owned() },
        other => other,
    }
}

/// Carries out `work` with a flag that Ctrl-C and SIGTERM set; a second one ends the process without waiting, and what lies
/// in the store's `tmp` then is removed when the store is opened next.
pub(super) fn interruptible<T>(work: impl FnOnce(&AtomicBool) -> Result<T, ImageError>) -> Result<T, CliError> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    let runtime = runtime.map_err(|error| CliError::new(format!("can't start: {error}")))?;
    let asked = Arc::new((AtomicBool::new(false), OnceLock::new()));
    let mut interrupts = {
        let _context = runtime.enter();
        Interrupts::listen()?
    };
    let for_signals = Arc::clone(&asked);
    runtime.spawn(async move {
        for_signals.1.set(interrupts.next().await).ok();
        for_signals.0.store(true, Ordering::Relaxed);
        std::process::exit(interrupts.next().await.into());
    });
    let outcome = work(&asked.0);
    runtime.shutdown_background();
    outcome.map_err(|error| match (&error, asked.1.get()) {
        (ImageError::Cancelled | ImageError::PullCancelled, Some(&code)) => CliError::from(error).code(code),
        (_, _) => CliError::from(error),
    })
}

/// What an image does not hold of its source, for a person; `None` when it holds all.
fn left_out(notes: Notes) -> Option<String> {
    let Notes { special_files_skipped, set_id_bits_dropped, xattrs_dropped, owners_mapped, mounts_skipped } = notes;
    let parts: Vec<String> = [
        (special_files_skipped, "devices, fifos or sockets"),
        (set_id_bits_dropped, "set-id bits"),
        (xattrs_dropped, "extended attributes"),
        (owners_mapped, "owners past 65,535 (root of the image instead)"),
        (mounts_skipped, "directories where another file system is mounted"),
    ]
    .into_iter()
    .filter(|(count, _)| *count > 0)
    .map(|(count, what)| format!("{count} {what}"))
    .collect();
    (!parts.is_empty()).then(|| parts.join(", "))
}

fn row(info: &ImageInfo) -> ImageRow {
    ImageRow {
        name: info.name.as_str().to_owned(),
        digest: Some(info.digest.clone()),
        size_bytes: Some(info.size_bytes),
        created: Some(crate::rpc::render::time(UNIX_EPOCH + Duration::from_millis(info.created_ms))),
        source: info.source.name(),
    }
}

fn host_row() -> ImageRow {
    ImageRow { name: ImageName::HOST.into(), digest: None, size_bytes: None, created: None, source: "host" }
}

/// All images, `host` among them.
pub fn image_list(config: &Config) -> Result<Vec<ImageRow>, CliError> {
    let images = store(config)?.list()?;
    Ok(std::iter::once(host_row()).chain(images.iter().map(row)).collect())
}

/// All that is known about one image, as JSON: its row, and what a session gets with it.
pub fn image_inspect(config: &Config, name: &str) -> Result<Value, CliError> {
    let store = store(config)?;
    let mut object = if name == ImageName::HOST { json!(host_row()) } else { stored(&store, name)? };
    let root = store.resolve(name)?;
    object["env"] = json!(root.env);
    object["binds"] = root.binds.iter().map(|bind| json!({ "source": bind.source, "target": bind.target })).collect();
    object["root"] = json!(root.lower);
    Ok(object)
}

fn stored(store: &Store, name: &str) -> Result<Value, CliError> {
    let info = store.info(name)?;
    let mut object = json!(row(&info));
    object["entries"] = json!(info.entries);
    object["from"] = json!(info.from);
    object["index"] = json!(info.index);
    object["layers"] = json!(info.layers);
    object["layerDigests"] = json!(info.layer_digests);
    object["blobs"] = json!(info.blobs);
    let settings = &info.settings;
    object["config"] = json!({
        "platform": settings.platform,
        "env": settings.env,
        "workingDir": settings.working_dir,
        "user": settings.user,
        "entrypoint": settings.entrypoint,
        "cmd": settings.cmd,
        "labels": settings.labels,
    });
    Ok(object)
}

/// Removes what no image needs.
pub fn image_prune(config: &Config) -> Result<Pruned, CliError> {
    Ok(store(config)?.prune()?)
}

/// Removes an image that no session uses.
pub fn image_remove(config: &Config, name: &str) -> Result<(), CliError> {
    Ok(store(config)?.remove(name)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_out_is_told_and_nothing_is_not() {
        assert_eq!(left_out(Notes::default()), None);
        let notes = Notes { special_files_skipped: 3, set_id_bits_dropped: 1, ..Notes::default() };
        assert_eq!(left_out(notes).as_deref(), Some("3 devices, fifos or sockets, 1 set-id bits"));
    }

    #[test]
    fn progress_knows_its_end_for_an_archive_only() {
        let at = Progress { entries: 7, bytes: 3 << 20, source_bytes: 1, source_bytes_total: Some(4) };
        assert_eq!(progress_text(at), "7 files, 3 MiB, 25 %");
        assert_eq!(progress_text(Progress { source_bytes_total: None, ..at }), "7 files, 3 MiB");
    }

    #[test]
    fn a_file_that_is_no_archive_is_named_and_a_broken_one_is_not_called_none() {
        let broken = |entry: &str| {
            let source = std::io::Error::other("a number was expected");
            of_source(ImageError::Archive { entry: entry.into(), source }, Path::new("x.txt"))
        };
        assert!(matches!(broken(""), ImageError::SourceUnsupported { .. }));
        assert!(matches!(broken("usr/bin/env"), ImageError::Archive { .. }));
    }
}
