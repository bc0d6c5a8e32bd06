//! An ordinary user for the rootless trials, and places where it can read and write.

use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock, PoisonError};

use tempfile::TempDir;

/// A uid and gid that no account of the host uses.
pub const ORDINARY_UID: u32 = 65533;

/// A new directory that only this user can use. The suite's own user owns it when `uid` is absent.
pub fn directory_of(uid: Option<u32>) -> TempDir {
    let directory = tempfile::Builder::new().prefix("codebeaker-test-").tempdir().expect("the temporary directory is writable");
    if let Some(uid) = uid {
        chown(directory.path(), Some(uid), Some(uid)).expect("root can give a directory away");
    }
    directory
}

/// Directories that trials share: a static of theirs would never be dropped.
static KEPT: Mutex<Vec<TempDir>> = Mutex::new(Vec::new());

/// The same of the suite's own user, for as long as the suite runs.
pub fn kept_directory() -> PathBuf {
    let directory = directory_of(None);
    let path = directory.path().to_owned();
    KEPT.lock().unwrap_or_else(PoisonError::into_inner).push(directory);
    path
}

/// Removes all of those; nobody uses them any more.
pub fn remove_kept() {
    KEPT.lock().unwrap_or_else(PoisonError::into_inner).clear();
}

/// The server's binary where every user can execute it.
pub fn binary_for(uid: Option<u32>) -> PathBuf {
    static COPY: OnceLock<PathBuf> = OnceLock::new();
    let own = Path::new(env!("CARGO_BIN_EXE_codebeaker"));
    if uid.is_none() {
        return own.to_owned();
    }
    let directory = COPY.get_or_init(|| {
        let directory = kept_directory();
        std::fs::set_permissions(&directory, PermissionsExt::from_mode(0o755)).expect("an own directory");
        std::fs::copy(own, directory.join("codebeaker")).expect("the binary is readable");
        directory
    });
    directory.join("codebeaker")
}
