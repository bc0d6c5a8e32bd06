//! From the documents of an image (index, manifest, configuration) to the list of layers to unpack.
//!
//! Invariant: every document is bounded, parsed by oci-spec's types and, where something named it by digest, hashed before it is
//! believed. A document is taken for what its descriptor says or not at all: one that could be read as two kinds is refused
//! (CVE-2021-41190). No link between documents is followed more than [`NESTING_MAX`] times.

use std::str::FromStr;

use oci_spec::image::{Arch, Descriptor, DigestAlgorithm, ImageConfiguration, ImageIndex, ImageManifest, MediaType, Platform};
use serde::Deserialize;
use sha2::{Digest as _, Sha256};

use super::bounds::{Bounds, check};
use super::layer::Packing;
use super::members::{Members, Window};
use super::store::digest_text;
use super::{ImageError, SourceKind};

/// Index in index in index: registries nest one, an attacker any number.
const NESTING_MAX: usize = 4;
/// Digests that OCI and Docker write for these documents.
const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
const DOCKER_INDEX: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";
const DOCKER_LAYER: &str = "application/vnd.docker.image.rootfs.diff.tar";
const REF_NAME: [&str; 2] = ["org.opencontainers.image.ref.name", "io.containerd.image.name"];

/// What a registry may answer with.
pub const ACCEPTED: [&str; 4] =
    ["application/vnd.oci.image.index.v1+json", "application/vnd.oci.image.manifest.v1+json", DOCKER_INDEX, DOCKER_MANIFEST];

/// One packed layer.
#[derive(Debug)]
pub struct LayerSource {
    /// Its bytes.
    pub contents: Window,
    /// What their SHA-256 must be; absent where nothing says so (docker-archive).
    pub digest: Option<String>,
    /// How its media type says it is packed; absent where there is none.
    pub packing: Option<Packing>,
    /// What the SHA-256 of the unpacked tar must be.
    pub diff_id: String,
}

/// A resolved image.
#[derive(Debug)]
pub struct Resolved {
    /// What it came as.
    pub form: SourceKind,
    /// `sha256:…`: of the manifest, or of the configuration where there is no manifest.
    pub digest: String,
    /// The manifest, as it was read.
    pub manifest: Option<Vec<u8>>,
    /// The configuration, as it was read.
    pub config: Vec<u8>,
    /// Lowest first.
    pub layers: Vec<LayerSource>,
}

/// Which image of several.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, Deserialize)]
pub struct Choice {
    /// `os/architecture` or `os/architecture/variant`.
    pub platform: String,
    /// A tag (docker-archive) or reference name (OCI).
    pub tag: Option<String>,
}

impl Choice {
    /// This host's platform, whatever its tag.
    pub fn native() -> Self {
        Self { platform: format!("linux/{}", Arch::default()), tag: None }
    }

    fn admits(&self, platform: &Platform) -> bool {
        let mut wanted = self.platform.splitn(3, '/');
        let (os, architecture, variant) = (wanted.next(), wanted.next(), wanted.next());
        os == Some(platform.os().to_string().as_str())
            && architecture == Some(platform.architecture().to_string().as_str())
            && variant.is_none_or(|variant| platform.variant().as_deref() == Some(variant))
    }
}

fn document<'a, T: Deserialize<'a>>(bytes: &'a [u8], what: &'static str) -> Result<T, ImageError> {
    serde_json::from_slice(bytes).map_err(|error| wrong(what, super::entry::show(error.to_string().as_bytes())))
}

fn other_type(found: &str, expected: &'static str) -> ImageError {
    ImageError::MediaType { found: super::entry::show(found.as_bytes()), expected: expected.into() }
}

fn wrong(what: &'static str, reason: impl Into<String>) -> ImageError {
    ImageError::Document { what: what.into(), reason: reason.into() }
}

/// An error unless that is the SHA-256 of `bytes`.
pub fn verify(bytes: &[u8], digest: &str) -> Result<(), ImageError> {
    let found = digest_text(Sha256::digest(bytes).into());
    if found == digest { Ok(()) } else { Err(ImageError::DigestMismatch { expected: digest.into(), found }) }
}

/// What a manifest or index turns out to be.
#[derive(Debug)]
pub enum Top {
    /// Other manifests to choose from.
    Index(Box<ImageIndex>),
    /// One image.
    Manifest(Box<ImageManifest>),
}

/// Reads a document that is a manifest or an index; `media_type` is what named it so.
pub fn top(bytes: &[u8], media_type: Option<&str>) -> Result<Top, ImageError> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Shape {
        media_type: Option<String>,
        manifests: Option<serde::de::IgnoredAny>,
        layers: Option<serde::de::IgnoredAny>,
        config: Option<serde::de::IgnoredAny>,
    }
    let shape: Shape = document(bytes, "manifest")?;
    let index = shape.manifests.is_some();
    if index && (shape.layers.is_some() || shape.config.is_some()) {
        return Err(wrong("manifest", "it could be read as an index and as a manifest"));
    }
    for named in [shape.media_type.as_deref(), media_type].into_iter().flatten() {
        let says_index = match named {
            DOCKER_INDEX => true,
            DOCKER_MANIFEST => false,
            other => match MediaType::from(other) {
                MediaType::ImageIndex => true,
                MediaType::ImageManifest => false,
                _ => return Err(other_type(other, "an image manifest or index")),
            },
        };
        if says_index != index {
            return Err(other_type(named, if index { "an image index" } else { "an image manifest" }));
        }
    }
    Ok(if index {
        Top::Index(Box::new(document(bytes, "index")?))
    } else {
        Top::Manifest(Box::new(document(bytes, "manifest")?))
    })
}

/// The one entry of an index that is meant.
pub fn choose<'i>(index: &'i ImageIndex, choice: &Choice) -> Result<&'i Descriptor, ImageError> {
    let images = || index.manifests().iter().filter(|entry| is_top(entry.media_type().as_ref()));
    let named = |entry: &&Descriptor| {
        choice.tag.as_ref().is_none_or(|tag| {
            let annotations = entry.annotations().iter().flatten();
            annotations.into_iter().any(|(key, value)| REF_NAME.contains(&key.as_str()) && value == tag)
        })
    };
    let fits = |entry: &&Descriptor| entry.platform().as_ref().is_none_or(|platform| choice.admits(platform));
    let mut found: Vec<&Descriptor> = images().filter(named).filter(fits).collect();
    // Variants of one architecture: without a wish the first, as the specification says.
    if found.iter().any(|entry| entry.platform().is_some()) {
        found.retain(|entry| entry.platform().is_some());
        found.truncate(1);
    }
    match found.as_slice() {
        [one] => Ok(one),
        [] => {
            let there = images().map(|entry| entry.platform().as_ref().map_or_else(|| "unnamed".into(), platform_text));
            Err(ImageError::NoneFits { wanted: wanted(choice), there: bounded_list(there) })
        }
        [..] => {
            let names = found.iter().flat_map(|entry| entry.annotations().iter().flatten());
            let names = names.filter(|(key, _)| REF_NAME.contains(&key.as_str())).map(|(_, value)| value.clone());
            Err(ImageError::Ambiguous { there: bounded_list(names) })
        }
    }
}

fn wanted(choice: &Choice) -> String {
    choice.tag.as_ref().map_or_else(|| choice.platform.clone(), |tag| format!("{tag} for {}", choice.platform))
}

fn platform_text(platform: &Platform) -> String {
    let variant = platform.variant().as_ref().map(|variant| format!("/{variant}")).unwrap_or_default();
    format!("{}/{}{variant}", platform.os(), platform.architecture())
}

/// Names out of a hostile document, for a message.
fn bounded_list(names: impl Iterator<Item = String>) -> String {
    let shown: Vec<String> = names.take(20).map(|name| super::entry::show(name.as_bytes())).collect();
    if shown.is_empty() { "nothing".into() } else { shown.join(", ") }
}

fn is_top(media_type: &str) -> bool {
    ACCEPTED.contains(&media_type)
}

/// The hexadecimal digits of a digest by SHA-256; oci-spec has checked that they are 64.
pub fn sha256(digest: &oci_spec::image::Digest) -> Result<String, ImageError> {
    match digest.algorithm() {
        DigestAlgorithm::Sha256 => Ok(digest.digest().to_owned()),
        _ => Err(wrong("descriptor", format!("the digest {digest} is not a SHA-256"))),
    }
}

fn blob(members: &Members, descriptor: &Descriptor, bounds: &Bounds) -> Result<Vec<u8>, ImageError> {
    let window = window(members, descriptor)?;
    let bytes = window.read_bounded(descriptor.digest().as_ref(), bounds)?;
    verify(&bytes, descriptor.digest().as_ref())?;
    Ok(bytes)
}

fn window(members: &Members, descriptor: &Descriptor) -> Result<Window, ImageError> {
    let name = format!("blobs/sha256/{}", sha256(descriptor.digest())?);
    let window = members.open(&name)?.ok_or_else(|| ImageError::BlobMissing { digest: descriptor.digest().to_string() })?;
    if window.bytes_left() != descriptor.size() {
        let (expected, found) = (descriptor.size(), window.bytes_left());
        return Err(ImageError::SizeMismatch { digest: descriptor.digest().to_string(), expected, found });
    }
    Ok(window)
}

/// Which of an OCI layout's manifests is meant, through nested indexes.
pub fn from_layout(members: &Members, choice: &Choice, bounds: &Bounds) -> Result<Resolved, ImageError> {
    let missing = || ImageError::Document { what: "index.json".into(), reason: "it is missing".into() };
    let bytes = members.document("index.json", bounds)?.ok_or_else(missing)?;
    let Top::Index(index) = top(&bytes, None)? else {
        return Err(wrong("index.json", "it is a manifest and not an index"));
    };
    let tagged = choose(&index, choice)?.clone();
    from_descriptor(members, &tagged, &Choice { tag: None, ..choice.clone() }, bounds)
}

/// The image that a descriptor names.
pub fn from_descriptor(
    members: &Members,
    descriptor: &Descriptor,
    choice: &Choice,
    bounds: &Bounds,
) -> Result<Resolved, ImageError> {
    let mut descriptor = descriptor.clone();
    for _ in 0..NESTING_MAX {
        let bytes = blob(members, &descriptor, bounds)?;
        match top(&bytes, Some(descriptor.media_type().as_ref()))? {
            Top::Index(index) => descriptor = choose(&index, choice)?.clone(),
            Top::Manifest(manifest) => return from_manifest(members, &manifest, bytes, bounds),
        }
    }
    Err(wrong("index", format!("indexes lie in each other more than {NESTING_MAX} deep")))
}

fn from_manifest(members: &Members, manifest: &ImageManifest, bytes: Vec<u8>, bounds: &Bounds) -> Result<Resolved, ImageError> {
    let kind = manifest.config().media_type().to_string();
    if kind != DOCKER_CONFIG && *manifest.config().media_type() != MediaType::ImageConfig {
        return Err(other_type(&kind, "an image configuration"));
    }
    let config = blob(members, manifest.config(), bounds)?;
    let diff_ids = diff_ids(&config, manifest.layers().len(), bounds)?;
    let layers = manifest.layers().iter().zip(diff_ids).map(|(descriptor, diff_id)| {
        let packing = packing(descriptor.media_type().as_ref())?;
        let digest = Some(descriptor.digest().to_string());
        Ok(LayerSource { contents: window(members, descriptor)?, digest, packing: Some(packing), diff_id })
    });
    Ok(Resolved {
        form: SourceKind::OciLayout,
        digest: digest_text(Sha256::digest(&bytes).into()),
        manifest: Some(bytes),
        layers: layers.collect::<Result<_, ImageError>>()?,
        config,
    })
}

/// How a layer of that media type must be packed.
fn packing(media_type: &str) -> Result<Packing, ImageError> {
    match MediaType::from(media_type) {
        MediaType::ImageLayer => Ok(Packing::Plain),
        MediaType::ImageLayerGzip => Ok(Packing::Gzip),
        MediaType::ImageLayerZstd => Ok(Packing::Zstd),
        _ => match media_type.strip_prefix(DOCKER_LAYER) {
            Some("") => Ok(Packing::Plain),
            Some(".gzip") => Ok(Packing::Gzip),
            Some(".zstd") => Ok(Packing::Zstd),
            _ => Err(other_type(media_type, "a tar layer, plain, gzip or zstd")),
        },
    }
}

/// The digests of the unpacked layers, one for each.
fn diff_ids(config: &[u8], layers: usize, bounds: &Bounds) -> Result<Vec<String>, ImageError> {
    let config: ImageConfiguration = document(config, "configuration")?;
    let ids = config.rootfs().diff_ids();
    check("configuration", "layers_max", layers as u64, bounds.layers_max)?;
    if ids.len() != layers {
        return Err(wrong("configuration", format!("it lists {} layers where the manifest lists {layers}", ids.len())));
    }
    if let Some(id) = ids.iter().find(|id| oci_spec::image::Sha256Digest::from_str(id.trim_start_matches("sha256:")).is_err()) {
        return Err(wrong("configuration", format!("`{}` is no SHA-256", super::entry::show(id.as_bytes()))));
    }
    Ok(ids.clone())
}

/// `manifest.json` of a docker-archive.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DockerImage {
    config: String,
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

/// The image of a docker-archive; `None` when that `manifest.json` is something else.
pub fn from_docker(members: &Members, choice: &Choice, bounds: &Bounds) -> Result<Option<Resolved>, ImageError> {
    let Some(bytes) = members.document("manifest.json", bounds)? else { return Ok(None) };
    let Ok(images) = serde_json::from_slice::<Vec<DockerImage>>(&bytes) else { return Ok(None) };
    let tags = |image: &DockerImage| image.repo_tags.clone().unwrap_or_default();
    let mut found = images.iter().filter(|image| choice.tag.as_ref().is_none_or(|tag| tags(image).contains(tag)));
    let Some(image) = found.next() else {
        let there = bounded_list(images.iter().flat_map(tags));
        return Err(ImageError::NoneFits { wanted: wanted(choice), there });
    };
    if found.next().is_some() {
        return Err(ImageError::Ambiguous { there: bounded_list(images.iter().flat_map(tags)) });
    }
    let missing = |name: &str| ImageError::BlobMissing { digest: super::entry::show(name.as_bytes()) };
    let config = members.document(&image.config, bounds)?.ok_or_else(|| missing(&image.config))?;
    if let Some(hex) = hex_of(&image.config) {
        verify(&config, &format!("sha256:{hex}"))?;
    }
    let diff_ids = diff_ids(&config, image.layers.len(), bounds)?;
    let layers = image.layers.iter().zip(diff_ids).map(|(name, diff_id)| {
        let contents = members.open(name)?.ok_or_else(|| missing(name))?;
        Ok(LayerSource { contents, digest: None, packing: None, diff_id })
    });
    Ok(Some(Resolved {
        form: SourceKind::DockerArchive,
        digest: digest_text(Sha256::digest(&config).into()),
        manifest: None,
        layers: layers.collect::<Result<_, ImageError>>()?,
        config,
    }))
}

/// The SHA-256 that the name of a configuration is: `HEX.json` or `blobs/sha256/HEX`.
fn hex_of(name: &str) -> Option<&str> {
    let hex = name.rsplit('/').next()?.trim_end_matches(".json");
    oci_spec::image::Sha256Digest::from_str(hex).is_ok().then_some(hex)
}
