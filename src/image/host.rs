//! The image `host`: a generated skeleton over which the host's own `/usr` is laid read-only.
//!
//! Invariant: the skeleton holds only what this page lists, and of the host's `/etc` only what everyone on the host may read;
//! nothing of home directories, `/var`, `/run`, secrets or private keys. A skeleton is never changed: when the host's files
//! change, another is made under another name. Read `etc` for the files that are generated.

mod etc;
mod seen;

use std::collections::BTreeMap;
use std::fs::{DirBuilder, File};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{FlockOperation, Gid, Uid};

pub(super) use etc::write_accounts;
pub(super) use seen::SeenHost;

use super::root::ImageGuard;
use super::staging::Staging;
use super::store::Store;
use super::{Bind, DEFAULT_PATH, ImageError, ImageName, ImageRoot};
use crate::sys::credentials::is_root_of_the_host;
use seen::HostRoot;

/// Empty directories: mount points, and what programs expect to be there.
///
/// `/workspace` is not among them: the sandbox makes its own.
const DIRECTORIES: [(&str, u32); 20] = [
    ("usr", 0o755),
    ("proc", 0o755),
    ("dev", 0o755),
    ("sys", 0o755),
    ("tmp", 0o1777),
    ("etc", 0o755),
    ("home", 0o755),
    ("home/user", 0o755),
    ("root", 0o700),
    ("run", 0o755),
    ("mnt", 0o755),
    ("opt", 0o755),
    ("srv", 0o755),
    ("var", 0o755),
    ("var/tmp", 0o1777),
    ("var/lib", 0o755),
    ("var/cache", 0o755),
    ("var/log", 0o755),
    ("etc/ssl", 0o755),
    ("etc/ssl/certs", 0o755),
];

/// Of the session's user and group; the same number on disk, since lower layers are id-mapped.
const USER_ID: u32 = 1000;

/// The names of the root that a merged-/usr host has as links.
const USR_MERGE: [&str; 6] = ["bin", "sbin", "lib", "lib32", "lib64", "libx32"];

/// The image `host`, its skeleton made when there is none for the host as it is now.
pub(super) fn resolve(store: &Store) -> Result<ImageRoot, ImageError> {
    // What is held can't be taken away by us; by an operator it can.
    if let Some((root, guard)) = store.host().root().filter(|(root, _)| root.skeleton.is_dir()) {
        return Ok(image(root, guard));
    }
    let host = Path::new("/");
    let state = store.host().state(&store.host_dir(), || etc::fingerprint(host));
    let (root, guard) = resolve_from(store, host, &state)?;
    store.host().keep(&state, &root, &guard);
    Ok(image(root, guard))
}

fn resolve_from(store: &Store, host: &Path, state: &str) -> Result<(HostRoot, Arc<ImageGuard>), ImageError> {
    let dir = store.host_dir().join(state);
    let lock = store.lock(FlockOperation::LockShared)?;
    if !dir.is_dir() {
        let staging = Staging::new(&store.tmp())?;
        let root = staging.path().join("root");
        build(host, &root)?;
        staging.publish("root", &dir)?;
    }
    let guard = store.guard(&dir, || File::open(&dir).map_err(ImageError::io("opening", &dir)))?;
    drop(lock);
    Ok((HostRoot { skeleton: dir, binds: binds(host) }, guard))
}

fn image(root: HostRoot, guard: Arc<ImageGuard>) -> ImageRoot {
    ImageRoot {
        name: ImageName::HOST.into(),
        lower: root.skeleton,
        binds: root.binds,
        env: BTreeMap::from([("PATH".into(), DEFAULT_PATH.into())]),
        guard,
    }
}

/// Removes skeletons of former states of the host that nobody uses. The caller holds the store's lock exclusively.
pub(super) fn remove_old(store: &Store) -> Result<(), ImageError> {
    let current = etc::fingerprint(Path::new("/"));
    let dir = store.host_dir();
    for entry in std::fs::read_dir(&dir).map_err(ImageError::io("reading", &dir))? {
        let entry = entry.map_err(ImageError::io("reading", &dir))?;
        if entry.file_name() == current.as_str() {
            continue;
        }
        let path = entry.path();
        let old = File::open(&path).map_err(ImageError::io("opening", &path))?;
        if rustix::fs::flock(&old, FlockOperation::NonBlockingLockExclusive).is_ok() {
            super::staging::remove_tree(&path)?;
        }
    }
    Ok(())
}

/// `/usr`, and `/bin` and its like where the host has them as directories of their own.
fn binds(host: &Path) -> Vec<Bind> {
    let own = |name: &&&str| host.join(name).symlink_metadata().is_ok_and(|metadata| metadata.is_dir());
    let names = std::iter::once(&"usr").chain(USR_MERGE.iter().filter(own));
    names.map(|name| Bind { source: host.join(name), target: format!("/{name}") }).collect()
}

fn build(host: &Path, root: &Path) -> Result<(), ImageError> {
    make_directory(root, 0o755)?;
    for (name, mode) in DIRECTORIES {
        make_directory(&root.join(name), mode)?;
    }
    for name in USR_MERGE {
        mirror(&host.join(name), &root.join(name))?;
    }
    give_to_user(root, &["home/user"])?;
    etc::write(host, &root.join("etc"))
}

/// Makes these of a root the session user's, where this process may.
pub(super) fn give_to_user(root: &Path, names: &[&str]) -> Result<(), ImageError> {
    if is_root_of_the_host() {
        for name in names {
            let path = root.join(name);
            rustix::fs::chown(&path, Some(Uid::from_raw(USER_ID)), Some(Gid::from_raw(USER_ID)))
                .map_err(ImageError::errno("setting the owner of", &path))?;
        }
    }
    Ok(())
}

/// A link of the host's root as it is; a directory becomes an empty one to mount on.
fn mirror(from: &Path, to: &Path) -> Result<(), ImageError> {
    let Ok(metadata) = from.symlink_metadata() else { return Ok(()) };
    if metadata.is_dir() {
        return make_directory(to, 0o755);
    }
    if !metadata.is_symlink() {
        return Ok(());
    }
    let target: PathBuf = from.read_link().map_err(ImageError::io("reading", from))?;
    std::os::unix::fs::symlink(target, to).map_err(ImageError::io("making", to))
}

/// With exactly this mode, whatever the umask.
pub(super) fn make_directory(path: &Path, mode: u32) -> Result<(), ImageError> {
    DirBuilder::new().mode(mode).create(path).map_err(ImageError::io("making", path))?;
    std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).map_err(ImageError::io("setting the permissions of", path))
}

#[cfg(test)]
mod tests;
