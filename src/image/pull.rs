//! From a registry to an image of the store.
//!
//! Invariant: a blob stands under its digest only when it was hashed whole; what a pull that ended early has fetched stays as a
//! part, and the next pull goes on behind it. Here only documents that name blobs are read, bounded and typed; layers are read by
//! the confined process alone, which checks every digest again. The one async page of `image`: it ends with [`pull`].

mod blobs;
mod credentials;
mod fault;
mod login;
mod registry;

use std::fs::File;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use oci_spec::distribution::Reference;
use oci_spec::image::{Descriptor, MediaType};

use super::bounds::{Bounds, check};
use super::import::{Imported, Progress, Request, Taken, Taking, take};
use super::manifest::{ACCEPTED, Choice, Top, choose, top, verify};
use super::unpack::Input;
use super::{ImageError, Store};

/// Index in index: registries nest one.
const NESTING_MAX: usize = 4;
const POLL_TIME: Duration = Duration::from_millis(50);

/// What to pull, and under which conditions.
#[derive(Debug, Clone, Copy)]
pub struct PullRequest<'a> {
    /// As docker writes it: `[REGISTRY/]REPOSITORY[:TAG][@sha256:…]`.
    pub reference: &'a str,
    /// Name of the image to make; absent: the last part of the repository, with the tag.
    pub name: Option<&'a str>,
    /// Which platform of several.
    pub choice: &'a Choice,
    /// When the name is taken.
    pub taken: Taken,
    /// How much it may hold.
    pub bounds: Bounds,
    /// Registries (`HOST[:PORT]`) that are spoken to without TLS.
    pub plain_http: &'a [String],
    /// Certificates in PEM that are believed beside those of the system.
    pub ca_file: Option<&'a Path>,
    /// Becomes true when the pull shall stop; parts of blobs stay for the next one.
    pub cancel: &'a AtomicBool,
}

/// The name that an image gets without one being given: `python:3.12` of `example.org/library/python:3.12`.
pub fn default_name(reference: &str) -> Result<String, ImageError> {
    let parsed = parse(reference)?;
    let last = parsed.repository().rsplit('/').next().unwrap_or_default().to_owned();
    // `latest` is put in where nothing is written.
    let written = reference.split('@').next().unwrap_or_default().rsplit('/').next().is_some_and(|part| part.contains(':'));
    Ok(parsed.tag().filter(|_| written).map_or(last.clone(), |tag| format!("{last}:{tag}")))
}

/// The registry (`HOST[:PORT]`) that a reference means.
pub fn registry_of(reference: &str) -> Result<String, ImageError> {
    Ok(parse(reference)?.resolve_registry().to_owned())
}

fn parse(reference: &str) -> Result<Reference, ImageError> {
    let wrong = |reason: String| ImageError::Reference { reference: reference.chars().take(300).collect(), reason };
    let parsed: Reference = reference.parse().map_err(|error| wrong(format!("{error}")))?;
    match parsed.digest() {
        Some(digest) if !digest.starts_with("sha256:") => Err(wrong("only digests by sha256 are understood".into())),
        Some(_) | None => Ok(parsed),
    }
}

/// What the registry said the image is.
struct Found {
    /// Of its manifest.
    descriptor: Descriptor,
    /// Of what the reference names: an index, as a rule.
    top: String,
    /// Configuration and layers.
    parts: Vec<Descriptor>,
}

/// Pulls; `progress` is called now and then on the caller's thread: while blobs come, then while they are unpacked.
pub fn pull(store: &Store, request: PullRequest<'_>, progress: &mut dyn FnMut(Progress)) -> Result<Imported, ImageError> {
    let reference = parse(request.reference)?;
    let name = request.name.map_or_else(|| default_name(request.reference), |name| Ok(name.to_owned()))?;
    super::ImageName::parse(&name)?;
    let _pulling = store.lock_blobs()?;
    let found = fetch(store, &reference, &request, progress)?;
    let path = store.blobs_dir();
    let source = File::open(&path).map_err(ImageError::io("opening", &path))?.into();
    let descriptor = serde_json::to_string(&found.descriptor)
        .map_err(|error| ImageError::Document { what: "descriptor".into(), reason: error.to_string() })?;
    let kept: Vec<String> = found.parts.iter().map(|part| part.digest().to_string()).collect();
    let import = Request {
        source: Path::new(""),
        name: &name,
        choice: request.choice,
        taken: request.taken,
        bounds: request.bounds,
        cancel: request.cancel,
    };
    let from = reference.whole();
    let taking =
        Taking { request: import, input: Input::Blobs(descriptor), source, from: &from, top: Some(found.top), blobs: &kept };
    take(store, taking, progress)
}

fn fetch(
    store: &Store,
    reference: &Reference,
    request: &PullRequest<'_>,
    progress: &mut dyn FnMut(Progress),
) -> Result<Found, ImageError> {
    let failed = |operation: &'static str| {
        let reference = reference.whole();
        move |cause: String| ImageError::Registry { operation: operation.into(), reference, cause }
    };
    let credentials = credentials::of(reference.resolve_registry())?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = runtime.map_err(|error| failed("reaching")(error.to_string()))?;
    let fetched = AtomicU64::new(0);
    let total = AtomicU64::new(0);
    let work = async {
        let registry = registry::Registry::open(reference, request, credentials).await?;
        let found = resolve(store, &registry, reference, request).await?;
        total.store(found.parts.iter().map(Descriptor::size).sum(), Ordering::Relaxed);
        blobs::fetch_all(store, &registry, &found.parts, &fetched).await?;
        Ok(found)
    };
    let watched = runtime.block_on(async {
        tokio::pin!(work);
        let mut tick = tokio::time::interval(POLL_TIME);
        loop {
            tokio::select! {
                outcome = &mut work => return outcome,
                _ = tick.tick() => {
                    if request.cancel.load(Ordering::Relaxed) {
                        return Err(ImageError::PullCancelled);
                    }
                    let bytes = fetched.load(Ordering::Relaxed);
                    let total = Some(total.load(Ordering::Relaxed)).filter(|total| *total > 0);
                    progress(Progress { entries: 0, bytes, source_bytes: bytes, source_bytes_total: total });
                }
            }
        }
    });
    runtime.shutdown_background();
    watched
}

/// Manifest by manifest down to the one of the platform; each is kept under its digest.
async fn resolve(
    store: &Store,
    registry: &registry::Registry,
    reference: &Reference,
    request: &PullRequest<'_>,
) -> Result<Found, ImageError> {
    let mut wanted = reference.digest().map(str::to_owned);
    let mut named: Option<Descriptor> = None;
    let mut top_digest = None;
    for _ in 0..NESTING_MAX {
        let asked = wanted.as_deref().or(reference.tag()).unwrap_or("latest");
        let (bytes, told) = registry.manifest(asked).await?;
        let document = super::store::Document::new(bytes);
        // What was asked for by digest has that one; what the registry says of another is checked too.
        for digest in wanted.iter().chain(&told) {
            verify(document.bytes(), digest)?;
        }
        let media_type = named.as_ref().map(|descriptor| descriptor.media_type().to_string());
        let top_digest = top_digest.get_or_insert_with(|| document.digest.clone()).clone();
        match top(document.bytes(), media_type.as_deref())? {
            Top::Index(index) => {
                let chosen = choose(&index, request.choice)?.clone();
                wanted = Some(chosen.digest().to_string());
                named = Some(chosen);
            }
            Top::Manifest(manifest) => {
                let descriptor = descriptor_of(&document, manifest.media_type().clone())?;
                blobs::keep(store, &document)?;
                let mut parts = vec![manifest.config().clone()];
                parts.extend(manifest.layers().iter().cloned());
                let bounds = &request.bounds;
                check("the manifest", "layers_max", parts.len() as u64 - 1, bounds.layers_max)?;
                let packed = parts.iter().fold(0_u64, |sum, part| sum.saturating_add(part.size()));
                check("the manifest", "bytes_max", packed, bounds.bytes_max)?;
                return Ok(Found { descriptor, top: top_digest, parts });
            }
        }
    }
    let reason = format!("indexes lie in each other more than {NESTING_MAX} deep");
    Err(ImageError::Document { what: "index".into(), reason })
}

fn descriptor_of(document: &super::store::Document, media_type: Option<MediaType>) -> Result<Descriptor, ImageError> {
    let digest: oci_spec::image::Digest = document
        .digest
        .parse()
        .map_err(|error: oci_spec::OciSpecError| ImageError::Document { what: "digest".into(), reason: error.to_string() })?;
    Ok(Descriptor::new(media_type.unwrap_or(MediaType::ImageManifest), document.bytes().len() as u64, digest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pulled_image_is_named_after_the_end_of_its_repository() {
        let digest = format!("sha256:{}", "a".repeat(64));
        for (reference, name) in [
            ("python", "python"),
            ("python:3.12", "python:3.12"),
            ("127.0.0.1:5000/team/tool", "tool"),
            ("127.0.0.1:5000/team/tool:v1", "tool:v1"),
            (&format!("example.org/a/b/tool@{digest}"), "tool"),
            (&format!("example.org/tool:v1@{digest}"), "tool:v1"),
        ] {
            assert_eq!(default_name(reference).expect("a sound reference"), name, "{reference}");
        }
        for bad in ["", "example.org/UPPER", "a b", "x@sha512:00", "x@sha256:00", "../x", "x:\n"] {
            assert!(matches!(default_name(bad), Err(ImageError::Reference { .. })), "{bad:?}");
        }
    }
}
