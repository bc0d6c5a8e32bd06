//! Host uids for sessions: each session of a root server gets 65,536 of its own.
//!
//! Invariant: no two sessions on the host, of whatever server, hold the same uid at the same time. Servers share the host's
//! pool by blocks of 256 ranges; a block belongs to whoever holds flock(2) on its file, so a killed server frees it.

use std::collections::VecDeque;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use thiserror::Error;

use super::host::{IdRange, subordinate_lines};
use crate::sys::probe::{self, LockAttempt};

/// First uid of the pool.
pub const POOL_START: u32 = 0x1000_0000;
/// First uid after the pool.
pub const POOL_END: u32 = 0x7000_0000;
/// Uids of one session.
pub const RANGE_IDS: u32 = 65_536;
/// Ranges that a server reserves at a time.
pub const BLOCK_RANGES: u32 = 256;

const BLOCKS: u32 = (POOL_END - POOL_START) / RANGE_IDS / BLOCK_RANGES;

/// Why no range could be had.
#[derive(Debug, Error)]
pub enum UidRangeError {
    /// All are taken, here or by other servers.
    #[error("all uid ranges of this host are in use")]
    Exhausted,
    /// The directory of block files can't be used.
    #[error("can't use {} to reserve uid ranges", path.display())]
    Directory {
        /// The directory or block file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Somebody else could free our blocks.
    #[error("{} must belong to root alone (mode 0700)", path.display())]
    NotPrivate {
        /// The directory.
        path: PathBuf,
    },
}

/// The ranges this server may give out.
#[derive(Debug, Clone)]
pub struct UidRanges {
    pool: Arc<Mutex<Pool>>,
}

#[derive(Debug)]
struct Pool {
    directory: PathBuf,
    /// Ranges of others by subuid(5) and subgid(5).
    foreign: Vec<IdRange>,
    /// Starts of free ranges, the longest free first.
    free: VecDeque<u32>,
    /// Open block files: the reservation.
    blocks: Vec<(u32, File)>,
}

/// One session's uids and gids; dropping it frees them.
#[derive(Debug)]
pub struct UidRange {
    /// First host uid, which is uid 0 of the session.
    pub start: u32,
    /// Always [`RANGE_IDS`].
    pub count: u32,
    pool: Arc<Mutex<Pool>>,
}

impl UidRanges {
    /// The host's pool, reserved through `/run/codebeaker/uid-blocks`. Takes nothing yet.
    pub fn new() -> Result<Self, UidRangeError> {
        let run = ["/run", "/var/run"].into_iter().map(Path::new).find(|path| path.is_dir()).unwrap_or(Path::new("/run"));
        let text = |path| fs::read_to_string(path).unwrap_or_default();
        let (uids, gids) = (text("/etc/subuid"), text("/etc/subgid"));
        let foreign = subordinate_lines(&uids).chain(subordinate_lines(&gids)).map(|(_, range)| range).collect();
        Self::in_directory(&run.join("codebeaker/uid-blocks"), foreign)
    }

    fn in_directory(directory: &Path, foreign: Vec<IdRange>) -> Result<Self, UidRangeError> {
        let failed = |source| UidRangeError::Directory { path: directory.to_owned(), source };
        DirBuilder::new().recursive(true).mode(0o700).create(directory).map_err(failed)?;
        let metadata = fs::symlink_metadata(directory).map_err(failed)?;
        let own = fs::metadata("/proc/self").map_err(failed)?.uid();
        if !metadata.is_dir() || metadata.uid() != own || metadata.permissions().mode() & 0o077 != 0 {
            return Err(UidRangeError::NotPrivate { path: directory.to_owned() });
        }
        let pool = Pool { directory: directory.to_owned(), foreign, free: VecDeque::new(), blocks: Vec::new() };
        Ok(Self { pool: Arc::new(Mutex::new(pool)) })
    }

    /// Takes the range that has been free longest; reserves another block when none is left.
    pub fn take(&self) -> Result<UidRange, UidRangeError> {
        let mut pool = lock(&self.pool);
        while pool.free.is_empty() {
            pool.reserve_block()?;
        }
        let start = pool.free.pop_front().ok_or(UidRangeError::Exhausted)?;
        Ok(UidRange { start, count: RANGE_IDS, pool: Arc::clone(&self.pool) })
    }
}

impl Drop for UidRange {
    fn drop(&mut self) {
        lock(&self.pool).free.push_back(self.start);
    }
}

/// A panic elsewhere can't leave the queue half-changed, so a poisoned lock is taken as it is.
fn lock(pool: &Mutex<Pool>) -> MutexGuard<'_, Pool> {
    pool.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Pool {
    /// Reserves the first block that no server holds and adds its ranges.
    fn reserve_block(&mut self) -> Result<(), UidRangeError> {
        for number in 0..BLOCKS {
            if self.blocks.iter().any(|(own, _)| *own == number) {
                continue;
            }
            let path = self.directory.join(format!("{number:03}"));
            let failed = |source| UidRangeError::Directory { path: path.clone(), source };
            let mut options = OpenOptions::new();
            options.read(true).write(true).create(true).truncate(false).mode(0o600);
            let file = options.open(&path).map_err(failed)?;
            match probe::lock_exclusive(&file).map_err(failed)? {
                LockAttempt::Locked => {
                    self.free.extend(ranges_of_block(number, &self.foreign));
                    self.blocks.push((number, file));
                    return Ok(());
                }
                LockAttempt::HeldElsewhere => {}
            }
        }
        Err(UidRangeError::Exhausted)
    }
}

/// Starts of the block's ranges that are nobody else's.
fn ranges_of_block(number: u32, foreign: &[IdRange]) -> impl Iterator<Item = u32> {
    let first = POOL_START + number * BLOCK_RANGES * RANGE_IDS;
    let starts = (0..BLOCK_RANGES).map(move |index| first + index * RANGE_IDS);
    starts.filter(move |&start| !foreign.iter().any(|other| other.overlaps(IdRange { start, count: RANGE_IDS })))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ranges(directory: &Path, foreign: Vec<IdRange>) -> UidRanges {
        UidRanges::in_directory(directory, foreign).expect("a private directory")
    }

    #[test]
    fn two_servers_never_share_a_range() {
        let parent = tempfile::tempdir().expect("a temporary directory");
        let directory = parent.path().join("blocks");
        let (one, two) = (ranges(&directory, Vec::new()), ranges(&directory, Vec::new()));
        let (first, second) = (one.take().expect("free"), two.take().expect("free"));
        assert_eq!(first.start, POOL_START);
        assert_eq!(second.start, POOL_START + BLOCK_RANGES * RANGE_IDS);
        drop((first, one));
        // Children that other tests are just starting hold copies of every descriptor until they execute.
        let freed = || ranges(&directory, Vec::new()).take().expect("free").start == POOL_START;
        let patience = std::time::Duration::from_millis(10);
        assert!(
            (0..100).any(|_| freed() || {
                std::thread::sleep(patience);
                false
            }),
            "a server that ended frees its block"
        );
    }

    #[test]
    fn a_freed_range_is_used_again_only_after_all_others_of_the_block() {
        let parent = tempfile::tempdir().expect("a temporary directory");
        let pool = ranges(&parent.path().join("blocks"), Vec::new());
        let first = pool.take().expect("free").start;
        let others: Vec<UidRange> = (1..BLOCK_RANGES).map(|_| pool.take().expect("free")).collect();
        assert!(others.iter().all(|range| range.start != first));
        assert_eq!(pool.take().expect("free").start, first);
    }

    #[test]
    fn a_second_block_is_reserved_when_the_first_is_used_up() {
        let parent = tempfile::tempdir().expect("a temporary directory");
        let pool = ranges(&parent.path().join("blocks"), Vec::new());
        let held: Vec<UidRange> = (0..=BLOCK_RANGES).map(|_| pool.take().expect("free")).collect();
        let starts: std::collections::BTreeSet<u32> = held.iter().map(|range| range.start).collect();
        assert_eq!(starts.len(), held.len());
    }

    #[test]
    fn ranges_that_subuid_gives_to_users_are_left_out() {
        let foreign = IdRange { start: POOL_START + RANGE_IDS - 1, count: 1 };
        assert_eq!(ranges_of_block(0, &[foreign]).next(), Some(POOL_START + RANGE_IDS));
        assert_eq!(ranges_of_block(0, &[]).next(), Some(POOL_START));
        let all = IdRange { start: POOL_START, count: POOL_END - POOL_START };
        assert_eq!(ranges_of_block(BLOCKS - 1, &[all]).count(), 0);
    }

    #[test]
    fn a_directory_that_others_can_enter_is_refused() {
        let parent = tempfile::tempdir().expect("a temporary directory");
        let directory = parent.path().join("blocks");
        fs::create_dir(&directory).expect("own directory");
        fs::set_permissions(&directory, fs::Permissions::from_mode(0o755)).expect("own directory");
        assert!(matches!(UidRanges::in_directory(&directory, Vec::new()), Err(UidRangeError::NotPrivate { .. })));
    }
}
