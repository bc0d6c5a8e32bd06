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
use crate::config::Config;
use crate::image::import::{Request, import_with};
use crate::image::tree::Notes;
use crate::image::{Bounds, ImageError, ImageInfo, ImageName, Progress, SourceKind, Store, program_exists};

/// One image of the store. The image `host` is no copy: it has no digest, size or time.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ImageRow {
    /// As given at import.
    pub name: String,
    /// `sha256:…` of the unpacked tar, or of the directory's names, attributes and contents.
    pub digest: Option<String>,
    /// Unpacked size.
    pub size_bytes: Option<u64>,
    /// RFC 3339, when it came into the store.
    pub created: Option<String>,
    /// Where it came from: `rootfs-tar`, `directory` or `host`.
    pub source: &'static str,
}

/// Imports an image; what kind of source it is, is found by looking at it.
pub fn image_import(config: &Config, source: &Path, name: Option<&str>) -> Result<ImageRow, CliError> {
    let named = source.file_name().and_then(|name| name.to_str()).map(|name| name.split('.').next().unwrap_or(name));
    let Some(name) = name.or(named) else {
        return Err(CliError::usage("the image needs a name").hint("give it with --name"));
    };
    let store = store(config)?;
    let bar = ProgressBar::with_draw_target(None, draw_target());
    let imported = interruptible(|cancel| {
        let request = Request { source, name, bounds: Bounds::default(), cancel };
        import_with(&store, request, &mut |at| {
            bar.set_message(progress_text(at));
            bar.tick();
        })
        .map_err(|error| of_source(error, source))
    });
    bar.finish_and_clear();
    let imported = imported?;
    if let Some(text) = left_out(imported.notes) {
        note(&format!("note: left out: {text}\n"));
    }
    if !store.resolve(name).is_ok_and(|root| program_exists(&root, "sh")) {
        warn("the image has no `sh`: is this a root file system? (`docker export` writes one, `docker save` does not)");
    }
    Ok(row(&imported.info))
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
        (ImageError::Cancelled, Some(&code)) => CliError::from(error).code(code),
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
        source: match info.source {
            SourceKind::Directory => "directory",
            SourceKind::RootfsTar => "rootfs-tar",
        },
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
    object["layers"] = json!(info.layers);
    Ok(object)
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
