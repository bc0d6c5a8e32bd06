//! Compiled engines on disk, each with a proof that this server made it.
//!
//! Invariants: whoever loads compiled code runs it, so nothing is handed out whose proof was not checked since the file last changed;
//! the proof is an HMAC of the code, of the module that it was made of and of what compiled it, under a key that the server alone can
//! read; what has no sound proof is as good as absent, and is made anew. Nothing here compiles or loads anything.

use std::collections::BTreeMap;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest, Sha256};

use crate::image::store::digest_text;

const KEY_BYTES: usize = 32;

/// What a compilation is of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subject {
    /// SHA-256 of the module.
    pub module: [u8; 32],
    /// Which compiler, and for which processor.
    pub compiler: String,
}

/// What changes whenever a file does.
type Stamp = [i64; 6];

/// The directory of compiled engines.
pub struct Cache {
    directory: PathBuf,
    key: [u8; KEY_BYTES],
    /// Files whose proof was checked, as they were then.
    checked: Mutex<BTreeMap<PathBuf, Stamp>>,
}

impl Cache {
    /// Opens it, and makes directory and key when there are none.
    pub fn open(directory: &Path) -> io::Result<Self> {
        DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
        let path = directory.join("key");
        let key = match read_key(&path) {
            Ok(key) => key,
            Err(error) if error.kind() == io::ErrorKind::NotFound => make_key(directory, &path)?,
            Err(error) => return Err(error),
        };
        Ok(Self { directory: directory.to_owned(), key, checked: Mutex::default() })
    }

    /// The compilation, when there is one and its proof holds.
    pub fn get(&self, subject: &Subject) -> Option<PathBuf> {
        let path = self.path(subject);
        let stamp = stamp(&path)?;
        if self.checked().get(&path) == Some(&stamp) {
            return Some(path);
        }
        let proof = std::fs::read(self.proof_path(subject)).ok()?;
        let mut code = File::open(&path).ok()?;
        let mac = self.mac(subject, &mut code).ok()?;
        if mac.verify_slice(&proof).is_err() {
            tracing::warn!("a compiled engine is not the one that this server made; it is made anew");
            return None;
        }
        self.checked().insert(path.clone(), stamp);
        Some(path)
    }

    /// Keeps a compilation.
    pub fn put(&self, subject: &Subject, code: &[u8]) -> io::Result<PathBuf> {
        let path = self.path(subject);
        let proof = self.mac(subject, &mut &code[..])?.finalize().into_bytes();
        // Under `get` the two disagree for a moment, which is as good as absent.
        self.replace(&path, code)?;
        self.replace(&self.proof_path(subject), &proof)?;
        Ok(path)
    }

    fn checked(&self) -> std::sync::MutexGuard<'_, BTreeMap<PathBuf, Stamp>> {
        self.checked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn mac(&self, subject: &Subject, code: &mut dyn Read) -> io::Result<Hmac<Sha256>> {
        let mut mac = Hmac::<Sha256>::new_from_slice(&self.key).map_err(io::Error::other)?;
        mac.update(&subject.module);
        mac.update(&(subject.compiler.len() as u64).to_le_bytes());
        mac.update(subject.compiler.as_bytes());
        let mut buffer = vec![0; 1 << 20];
        loop {
            let count = code.read(&mut buffer)?;
            if count == 0 {
                return Ok(mac);
            }
            mac.update(&buffer[..count]);
        }
    }

    fn name(subject: &Subject) -> String {
        let mut hash = Sha256::new();
        hash.update(subject.module);
        hash.update(&subject.compiler);
        digest_text(hash.finalize().into()).trim_start_matches("sha256:").chars().take(32).collect()
    }

    fn path(&self, subject: &Subject) -> PathBuf {
        self.directory.join(format!("{}.cwasm", Self::name(subject)))
    }

    fn proof_path(&self, subject: &Subject) -> PathBuf {
        self.directory.join(format!("{}.proof", Self::name(subject)))
    }

    /// A file that is there whole or not at all; sessions' users read it where it is mounted.
    fn replace(&self, path: &Path, contents: &[u8]) -> io::Result<()> {
        let staged = self.directory.join(format!(".{}-{:016x}", std::process::id(), rand::random::<u64>()));
        let written = OpenOptions::new().write(true).create_new(true).mode(0o644).open(&staged).and_then(|mut file| {
            file.write_all(contents)?;
            file.set_permissions(std::fs::Permissions::from_mode(0o644))
        });
        written.and_then(|()| std::fs::rename(&staged, path)).inspect_err(|_| {
            std::fs::remove_file(&staged).ok();
        })
    }
}

/// A key that somebody else could have read, or chosen, proves nothing.
fn read_key(path: &Path) -> io::Result<[u8; KEY_BYTES]> {
    let mut file = File::open(path)?;
    let metadata = file.metadata()?;
    if metadata.uid() != rustix::process::geteuid().as_raw() || metadata.mode() & 0o077 != 0 {
        return Err(io::Error::other("the key of compiled engines is open to others; remove it, and they are made anew"));
    }
    let mut key = [0; KEY_BYTES];
    file.read_exact(&mut key)?;
    Ok(key)
}

/// Of two servers that make one at a time, the first one's counts.
fn make_key(directory: &Path, path: &Path) -> io::Result<[u8; KEY_BYTES]> {
    let staged = directory.join(format!(".key-{}-{:016x}", std::process::id(), rand::random::<u64>()));
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&staged)?;
    file.write_all(&rand::random::<[u8; KEY_BYTES]>())?;
    let linked = std::fs::hard_link(&staged, path);
    std::fs::remove_file(&staged)?;
    match linked {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        Ok(()) | Err(_) => read_key(path),
    }
}

fn stamp(path: &Path) -> Option<Stamp> {
    let metadata = std::fs::symlink_metadata(path).ok().filter(std::fs::Metadata::is_file)?;
    Some([
        metadata.ino().cast_signed(),
        metadata.size().cast_signed(),
        metadata.mtime(),
        metadata.mtime_nsec(),
        metadata.ctime(),
        metadata.ctime_nsec(),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn subject(byte: u8) -> Subject {
        Subject { module: [byte; 32], compiler: "wasmtime 1 for x".into() }
    }

    fn fixture() -> (tempfile::TempDir, Cache) {
        let dir = tempfile::tempdir().expect("a directory");
        let cache = Cache::open(&dir.path().join("compiled")).expect("a cache");
        (dir, cache)
    }

    #[test]
    fn what_was_put_is_found_also_by_the_next_server_and_nothing_else_is() {
        let (dir, cache) = fixture();
        assert_eq!(cache.get(&subject(1)), None);
        let path = cache.put(&subject(1), b"code").expect("kept");
        assert_eq!(cache.get(&subject(1)), Some(path.clone()));
        assert_eq!(cache.get(&subject(2)), None);
        let other_compiler = Subject { compiler: "wasmtime 2 for x".into(), ..subject(1) };
        assert_eq!(cache.get(&other_compiler), None);
        let next = Cache::open(&dir.path().join("compiled")).expect("the same");
        assert_eq!(next.get(&subject(1)), Some(path));
    }

    #[test]
    fn code_that_was_changed_swapped_or_proven_under_another_key_is_not_handed_out() {
        let (dir, cache) = fixture();
        let path = cache.put(&subject(1), b"code").expect("kept");
        let other = cache.put(&subject(2), b"another").expect("kept");
        assert!(cache.get(&subject(1)).is_some() && cache.get(&subject(2)).is_some(), "the control");
        // Changed while the server runs, by as many bytes.
        std::fs::write(&path, b"evil").expect("written");
        assert_eq!(cache.get(&subject(1)), None);
        // The proof of another module does not speak for it.
        std::fs::copy(&other, &path).expect("copied");
        std::fs::copy(cache.proof_path(&subject(2)), cache.proof_path(&subject(1))).expect("copied");
        assert_eq!(cache.get(&subject(1)), None);
        std::fs::remove_file(cache.proof_path(&subject(2))).expect("removed");
        let next = Cache::open(&dir.path().join("compiled")).expect("the same");
        assert_eq!(next.get(&subject(2)), None, "no proof");
        cache.put(&subject(1), b"code").expect("kept");
        assert!(next.get(&subject(1)).is_some(), "made anew");
        std::fs::remove_file(dir.path().join("compiled/key")).expect("removed");
        let stranger = Cache::open(&dir.path().join("compiled")).expect("with a key of its own");
        assert_eq!(stranger.get(&subject(1)), None);
    }

    #[test]
    fn a_key_that_others_can_read_is_refused() {
        let (dir, _) = fixture();
        let key = dir.path().join("compiled/key");
        assert_eq!(std::fs::metadata(&key).expect("a key").mode() & 0o777, 0o600);
        std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o644)).expect("permissions");
        assert!(Cache::open(&dir.path().join("compiled")).is_err());
    }
}
