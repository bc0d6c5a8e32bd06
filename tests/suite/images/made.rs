//! Images for the trials, made by umoci out of Debian packages or of noise.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use sha2::{Digest, Sha256};
use tempfile::TempDir;

use crate::support::fixture_user::{directory_of, kept_directory};
use crate::support::trial::skip;
use crate::support::{Feature, host};

/// Runs a tool that the host has; its output.
pub fn tool(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap_or_else(|error| panic!("{program}: {error}"));
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {error}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// An OCI layout `image:v1` of two layers: Debian's bash and coreutils, and one that changes some of it.
pub fn layout() -> &'static Path {
    static LAYOUT: OnceLock<Option<PathBuf>> = OnceLock::new();
    host().need(Feature::Root).need(Feature::ImageTools);
    let made = LAYOUT.get_or_init(|| {
        let place = kept_directory();
        let image = format!("{}:v1", place.join("image").display());
        let base = debian()?;
        tool("umoci", &["init", "--layout", &place.join("image").display().to_string()]);
        tool("umoci", &["new", "--image", &image]);
        tool("umoci", &["raw", "add-layer", "--image", &image, &base.display().to_string()]);
        let bundle = place.join("bundle");
        let at = |path: &str| bundle.join("rootfs").join(path);
        tool("umoci", &["unpack", "--image", &image, &bundle.display().to_string()]);
        std::fs::remove_file(at("etc/issue")).expect("base-files has it");
        std::fs::remove_dir_all(at("usr/share/doc")).expect("every package has one");
        std::fs::write(at("etc/marker"), "layered\n").expect("an own directory");
        std::fs::hard_link(at("etc/marker"), at("etc/marker-again")).expect("an own directory");
        tool("umoci", &["repack", "--image", &image, &bundle.display().to_string()]);
        tool("umoci", &["config", "--image", &image, "--config.env", "COLOUR=blue", "--config.workingdir", "/srv"]);
        Some(place)
    });
    match made {
        Some(place) => place,
        None => skip("no Debian packages can be fetched here"),
    }
}

/// A root file system of a few Debian packages, kept between runs below the build directory.
pub fn debian() -> Option<PathBuf> {
    let place = Path::new(env!("CARGO_TARGET_TMPDIR")).join("images");
    let kept = place.join("bookworm-extract.tar");
    if kept.is_file() {
        return Some(kept);
    }
    std::fs::create_dir_all(&place).ok()?;
    let making = place.join(format!("making-{}.tar", std::process::id()));
    let include = "--include=base-files,base-passwd,bash,coreutils,dash";
    let mut command = Command::new("mmdebstrap");
    command.args(["--quiet", "--variant=extract", include, "bookworm"]).arg(&making);
    let output = command.output().expect("the feature was asked for");
    if !output.status.success() {
        eprintln!("mmdebstrap: {}", String::from_utf8_lossy(&output.stderr));
        return None;
    }
    std::fs::rename(&making, &kept).ok()?;
    Some(kept)
}

/// Layers of [`noise`], and the bytes of each.
pub const NOISE_LAYERS: usize = 6;
pub const NOISE_BYTES: usize = 400 << 10;

/// An OCI layout `image:v1` of layers that can't be packed smaller, each with one file; made anew for each caller.
pub fn noise() -> TempDir {
    host().need(Feature::ImageTools);
    let place = directory_of(None);
    let image = format!("{}:v1", place.path().join("image").display());
    tool("umoci", &["init", "--layout", &place.path().join("image").display().to_string()]);
    tool("umoci", &["new", "--image", &image]);
    let mut state = 88_172_645_463_325_252_u64;
    for number in 0..NOISE_LAYERS {
        let bytes: Vec<u8> = std::iter::repeat_with(|| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 32) as u8
        })
        .take(NOISE_BYTES)
        .collect();
        add_layer(place.path(), &format!("noise-{number}"), &bytes);
    }
    place
}

/// An OCI layout `image:v1` of one layer with one file `marker` that says `text`.
pub fn marked(text: &str) -> TempDir {
    host().need(Feature::ImageTools);
    let place = directory_of(None);
    let image = format!("{}:v1", place.path().join("image").display());
    tool("umoci", &["init", "--layout", &place.path().join("image").display().to_string()]);
    tool("umoci", &["new", "--image", &image]);
    add_layer(place.path(), "marker", text.as_bytes());
    place
}

/// A layer with one file on top of `image:v1`.
fn add_layer(place: &Path, name: &str, bytes: &[u8]) {
    let layer = place.join("layer.tar");
    let mut builder = tar::Builder::new(std::fs::File::create(&layer).expect("an own directory"));
    let mut header = tar::Header::new_ustar();
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(bytes.len() as u64);
    builder.append_data(&mut header, name, bytes).expect("an own file");
    builder.into_inner().expect("an own file");
    let image = format!("{}:v1", place.join("image").display());
    tool("umoci", &["raw", "add-layer", "--image", &image, &layer.display().to_string()]);
}

/// The blobs of a layout by the hexadecimal digits of their digests.
pub fn blobs(layout: &Path) -> std::collections::BTreeMap<String, Vec<u8>> {
    let entries = std::fs::read_dir(layout.join("image/blobs/sha256")).expect("a layout").flatten();
    entries
        .map(|entry| (entry.file_name().to_string_lossy().into_owned(), std::fs::read(entry.path()).expect("a blob")))
        .collect()
}

/// The hexadecimal digits of a SHA-256.
pub fn sha256(bytes: &[u8]) -> String {
    use std::fmt::Write;
    Sha256::digest(bytes).iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").expect("writing to a String can't fail");
        text
    })
}
