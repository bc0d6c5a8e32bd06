//! The `/etc` of the image `host`: what is generated, and the short list of what is copied.
//!
//! Invariant: only regular files that everyone on the host may read are copied, bounded in size and number; a text that holds
//! a private key is left out wherever it stands.

use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use sha2::{Digest, Sha256};

use super::super::ImageError;
use super::super::store::digest_text;
use super::make_directory;

/// Changes whenever this page generates something else, so that old skeletons are replaced.
const GENERATION: &str = "host-image-2";

const FILE_BYTES_MAX: u64 = 8 << 20;
const FILES_MAX: usize = 4096;
const DEPTH_MAX: u32 = 4;

const GENERATED: [(&str, &str); 10] = [
    (
        "passwd",
        "root:x:0:0:root:/root:/bin/sh\n\
         user:x:1000:1000:user:/home/user:/bin/sh\n\
         nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n",
    ),
    ("group", "root:x:0:\ntty:x:5:\nuser:x:1000:\nnogroup:x:65534:\n"),
    ("hosts", "127.0.0.1 localhost sandbox\n::1 localhost ip6-localhost\n"),
    ("hostname", "sandbox\n"),
    ("resolv.conf", ""),
    ("nsswitch.conf", "passwd: files\ngroup: files\nhosts: files\nservices: files\nprotocols: files\nnetworks: files\n"),
    ("host.conf", "multi on\n"),
    ("shells", "/bin/sh\n/bin/bash\n"),
    ("fstab", ""),
    ("machine-id", ""),
];

/// Files copied with the name they have, links followed: the loader's, the clock's, names of protocols.
const FILES: [&str; 11] = [
    "ld.so.cache",
    "ld.so.conf",
    "localtime",
    "timezone",
    "os-release",
    "debian_version",
    "mime.types",
    "protocols",
    "services",
    "ssl/openssl.cnf",
    "inputrc",
];

/// Directories copied with what is in them, links kept as links.
const DIRECTORIES: [&str; 7] = ["ld.so.conf.d", "alternatives", "ssl/certs", "perl", "python3", "terminfo", "mono"];

/// Where the bundle of certification authorities stands on one distribution or another.
const CA_BUNDLES: [&str; 3] = ["pki/tls/certs/ca-bundle.crt", "ssl/cert.pem", "ssl/ca-bundle.pem"];

/// A name for the state of everything that is copied; another state, another name.
pub(super) fn fingerprint(host: &Path) -> String {
    let mut hash = Sha256::new();
    hash.update(GENERATION);
    let etc = host.join("etc");
    let names = FILES.iter().chain(&DIRECTORIES).chain(&CA_BUNDLES).map(|name| etc.join(name));
    // Programs of updates rewrite the bundle in place, so the directory's own time does not tell.
    let bundle = std::iter::once(etc.join("ssl/certs/ca-certificates.crt"));
    let roots = super::USR_MERGE.iter().map(|name| host.join(name));
    for path in names.chain(bundle).chain(roots).chain(versioned_python(&etc)) {
        hash.update(path.as_os_str().as_bytes());
        let Ok(metadata) = path.symlink_metadata() else { continue };
        hash_metadata(&mut hash, &metadata);
        if metadata.is_symlink()
            && let Ok(metadata) = path.metadata()
        {
            hash_metadata(&mut hash, &metadata);
        }
    }
    digest_text(hash.finalize().into()).trim_start_matches("sha256:").to_owned()
}

fn hash_metadata(hash: &mut Sha256, metadata: &std::fs::Metadata) {
    for number in [metadata.ino(), metadata.size(), u64::from(metadata.mode())] {
        hash.update(number.to_le_bytes());
    }
    for number in [metadata.mtime(), metadata.mtime_nsec()] {
        hash.update(number.to_le_bytes());
    }
}

/// `/etc/python3.11` and its like: Debian's interpreter imports its `sitecustomize` from there.
fn versioned_python(etc: &Path) -> Vec<std::path::PathBuf> {
    let Ok(entries) = std::fs::read_dir(etc) else { return Vec::new() };
    let mut found: Vec<_> = entries
        .filter_map(Result::ok)
        .filter(|entry| entry.file_name().as_bytes().starts_with(b"python3."))
        .map(|entry| entry.path())
        .collect();
    found.sort();
    found
}

/// Fills an `etc` with nothing but what is generated.
pub(in crate::image) fn write_accounts(to: &Path) -> Result<(), ImageError> {
    for (name, text) in GENERATED {
        write_file(&to.join(name), text.as_bytes())?;
    }
    Ok(())
}

/// Fills the skeleton's `etc`.
pub(super) fn write(host: &Path, to: &Path) -> Result<(), ImageError> {
    let etc = host.join("etc");
    write_accounts(to)?;
    let mut left = FILES_MAX;
    for name in FILES {
        copy_file(&etc.join(name), &to.join(name), &mut left)?;
    }
    for name in DIRECTORIES {
        copy_directory(&etc.join(name), &to.join(name), DEPTH_MAX, &mut left)?;
    }
    for from in versioned_python(&etc) {
        if let Some(name) = from.file_name() {
            copy_directory(&from, &to.join(name), DEPTH_MAX, &mut left)?;
        }
    }
    for name in CA_BUNDLES {
        let target = to.join(name);
        if etc.join(name).is_file() && target.symlink_metadata().is_err() {
            make_parents(to, Path::new(name))?;
            copy_file(&etc.join(name), &target, &mut left)?;
        }
    }
    Ok(())
}

fn make_parents(to: &Path, name: &Path) -> Result<(), ImageError> {
    let mut path = to.to_owned();
    for component in name.parent().into_iter().flat_map(Path::components) {
        path.push(component);
        if !path.is_dir() {
            make_directory(&path, 0o755)?;
        }
    }
    Ok(())
}

fn copy_directory(from: &Path, to: &Path, depth: u32, left: &mut usize) -> Result<(), ImageError> {
    if depth == 0 || !from.symlink_metadata().is_ok_and(|metadata| metadata.is_dir() && metadata.mode() & 0o005 == 0o005) {
        return Ok(());
    }
    if !to.is_dir() {
        make_directory(to, 0o755)?;
    }
    for entry in std::fs::read_dir(from).map_err(ImageError::io("reading", from))? {
        let entry = entry.map_err(ImageError::io("reading", from))?;
        let (from, to) = (entry.path(), to.join(entry.file_name()));
        let kind = entry.file_type().map_err(ImageError::io("looking at", &from))?;
        if kind.is_symlink() && *left > 0 {
            *left -= 1;
            let target = from.read_link().map_err(ImageError::io("reading", &from))?;
            std::os::unix::fs::symlink(target, &to).map_err(ImageError::io("making", &to))?;
        } else if kind.is_dir() {
            copy_directory(&from, &to, depth - 1, left)?;
        } else if kind.is_file() {
            copy_file(&from, &to, left)?;
        }
    }
    Ok(())
}

/// Copies what everyone may read and is no secret; anything else is left out.
fn copy_file(from: &Path, to: &Path, left: &mut usize) -> Result<(), ImageError> {
    let Ok(metadata) = from.metadata() else { return Ok(()) };
    let public = metadata.is_file() && metadata.mode() & 0o004 != 0 && metadata.len() <= FILE_BYTES_MAX;
    if !public || *left == 0 {
        return Ok(());
    }
    *left -= 1;
    let file = match std::fs::File::open(from) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        answer => answer.map_err(ImageError::io("opening", from))?,
    };
    let mut bytes = Vec::new();
    file.take(FILE_BYTES_MAX).read_to_end(&mut bytes).map_err(ImageError::io("reading", from))?;
    if holds_private_key(&bytes) {
        return Ok(());
    }
    write_file(to, &bytes)
}

fn holds_private_key(bytes: &[u8]) -> bool {
    const MARK: &[u8] = b"PRIVATE KEY-----";
    bytes.windows(MARK.len()).any(|window| window == MARK)
}

fn write_file(path: &Path, bytes: &[u8]) -> Result<(), ImageError> {
    std::fs::write(path, bytes).map_err(ImageError::io("writing", path))?;
    let mode = PermissionsExt::from_mode(0o644);
    std::fs::set_permissions(path, mode).map_err(ImageError::io("setting the permissions of", path))
}
