//! The state directory and the identity of the server that holds it.
//!
//! Invariant: at most one server works in a state directory; whoever holds the lock may remove everything below `run/`,
//! because whatever lies there belongs to a server that is gone.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use thiserror::Error;

use crate::sys::probe::{self, LockAttempt};
use crate::sys::process;

/// The file of [`LockedState::group_bases`].
const GROUP_BASES: &str = "group_bases";

/// Lines of that file, at most: the newest come first.
const GROUP_BASES_MAX: usize = 64;

/// Names one server process on this host for ever: pid namespace, pid and start time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerId {
    namespace: u64,
    pid: u32,
    start_ticks: u64,
    text: String,
}

impl ServerId {
    /// Of this process.
    pub fn current() -> io::Result<Self> {
        let pid = std::process::id();
        let start_ticks = start_ticks(pid)?.ok_or(io::ErrorKind::NotFound)?;
        Ok(Self::new(pid_namespace()?, pid, start_ticks))
    }

    fn new(namespace: u64, pid: u32, start_ticks: u64) -> Self {
        Self { namespace, pid, start_ticks, text: format!("{namespace}-{pid}-{start_ticks}") }
    }

    /// Reads what `as_str` wrote; `None` for any other text.
    pub fn parse(text: &str) -> Option<Self> {
        let mut fields = text.split('-');
        let namespace = fields.next()?.parse().ok()?;
        let pid = fields.next()?.parse().ok()?;
        let start_ticks = fields.next()?.parse().ok()?;
        let id = Self::new(namespace, pid, start_ticks);
        (id.text == text).then_some(id)
    }

    /// `<pid namespace>-<pid>-<start time>`, decimal numbers.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The process id.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// True when that process has certainly ended. One of another pid namespace can't be judged from here and counts as alive.
    pub fn is_gone(&self) -> bool {
        let Ok(own) = pid_namespace() else { return false };
        if own != self.namespace {
            return false;
        }
        match start_ticks(self.pid) {
            Ok(Some(ticks)) => ticks != self.start_ticks,
            Ok(None) => true,
            Err(_) => false,
        }
    }
}

/// Why the state directory can't be used; each says what mends it.
#[derive(Debug, Error)]
pub enum StateError {
    /// Another server works there.
    #[error("the state directory {} is in use by process {holder}; stop it or set another `state_dir`", path.display())]
    Held {
        /// The directory.
        path: PathBuf,
        /// Its pid as the lock file says, or `unknown`.
        holder: String,
    },
    /// It lies on a read-only file system.
    #[error("the state directory {} is read-only; set `state_dir` to a writable place", path.display())]
    ReadOnly {
        /// What could not be written.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The disk or the user's quota is full.
    #[error("there is no space for the state directory {}; free some or set another `state_dir`", path.display())]
    Full {
        /// What could not be written.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Others may write to it, so nothing in it could be trusted.
    #[error("the state directory {} must belong to uid {uid} alone; run `chown {uid} DIR && chmod 700 DIR`", path.display())]
    NotPrivate {
        /// The directory.
        path: PathBuf,
        /// Who should own it.
        uid: u32,
    },
    /// Anything else.
    #[error("can't {action} {}", path.display())]
    Io {
        /// `make`, `open`, `lock`, `write` or `clean`.
        action: &'static str,
        /// What.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl StateError {
    fn from_io(action: &'static str, path: &Path, source: io::Error) -> Self {
        let path = path.to_owned();
        match source.kind() {
            io::ErrorKind::ReadOnlyFilesystem => Self::ReadOnly { path, source },
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge => {
                Self::Full { path, source }
            }
            _ => Self::Io { action, path, source },
        }
    }
}

/// A state directory that exists and is private. It is not locked yet: commands that only read need no lock.
#[derive(Debug, Clone)]
pub struct StateDir {
    path: PathBuf,
}

impl StateDir {
    /// Makes the directory (0700, parents included) or checks the one that is there.
    pub fn open(path: &Path) -> Result<Self, StateError> {
        let make = |error| StateError::from_io("make", path, error);
        DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(make)?;
        let metadata = fs::metadata(path).map_err(|error| StateError::from_io("open", path, error))?;
        let own = fs::metadata("/proc/self").map_err(|error| StateError::from_io("open", path, error))?.uid();
        if metadata.uid() != own || metadata.permissions().mode() & 0o022 != 0 {
            return Err(StateError::NotPrivate { path: path.to_owned(), uid: own });
        }
        Ok(Self { path: path.to_owned() })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Makes this process the only server here and removes what an earlier one left below `run/`.
    pub fn lock(self) -> Result<LockedState, StateError> {
        // A limit on the size of files is to be told like a full disk.
        process::outlive_file_size_limit();
        let path = self.path.join("lock");
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(0o600);
        let mut file = options.open(&path).map_err(|error| StateError::from_io("open", &path, error))?;
        match probe::lock_exclusive(&file).map_err(|error| StateError::from_io("lock", &path, error))? {
            LockAttempt::Locked => {}
            LockAttempt::HeldElsewhere => return Err(StateError::Held { path: self.path, holder: holder(&mut file) }),
        }
        let server_id = ServerId::current().map_err(|error| StateError::from_io("lock", &path, error))?;
        let note = |file: &mut File| -> io::Result<()> {
            file.set_len(0)?;
            file.rewind()?;
            writeln!(file, "{}", server_id.as_str())
        };
        note(&mut file).map_err(|error| StateError::from_io("write", &path, error))?;
        let locked = LockedState { directory: self, server_id, _lock: file };
        locked.clean_run()?;
        Ok(locked)
    }
}

/// A state directory that only this process works in. Dropping it frees the lock.
#[derive(Debug)]
pub struct LockedState {
    directory: StateDir,
    server_id: ServerId,
    _lock: File,
}

impl LockedState {
    /// The directory.
    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    /// This server's id: part of the names of its control groups.
    pub fn server_id(&self) -> &ServerId {
        &self.server_id
    }

    /// For what must not outlive this server; empty after `lock`.
    pub fn run_dir(&self) -> PathBuf {
        self.directory.path.join("run")
    }

    /// Groups below which servers of this directory have made theirs. Where a service manager or a shell gives each process
    /// groups of its own, the next server finds what a killed one left there and nowhere else.
    pub fn group_bases(&self) -> Vec<PathBuf> {
        let text = fs::read_to_string(self.directory.path.join(GROUP_BASES)).unwrap_or_default();
        text.lines().take(GROUP_BASES_MAX).map(PathBuf::from).filter(|base| base.is_absolute() && base.is_dir()).collect()
    }

    /// Notes where this server makes its groups, before it makes any; keeps those that are still there.
    pub fn note_group_bases(&self, bases: &[&Path]) -> Result<(), StateError> {
        let mut all: Vec<PathBuf> = bases.iter().map(|base| (*base).to_owned()).collect();
        all.extend(self.group_bases().into_iter().filter(|base| !bases.contains(&base.as_path())));
        let lines: Vec<String> = all.iter().take(GROUP_BASES_MAX).map(|base| base.display().to_string()).collect();
        let path = self.directory.path.join(GROUP_BASES);
        fs::write(&path, lines.join("\n")).map_err(|error| StateError::from_io("write", &path, error))
    }

    /// Removes whatever lies below `run/` without following links, and makes it anew.
    fn clean_run(&self) -> Result<(), StateError> {
        let path = self.run_dir();
        match fs::remove_dir_all(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(StateError::from_io("clean", &path, error)),
            Ok(()) | Err(_) => {}
        }
        DirBuilder::new().mode(0o700).create(&path).map_err(|error| StateError::from_io("make", &path, error))
    }
}

/// The pid that the lock file names.
fn holder(file: &mut File) -> String {
    let mut text = String::new();
    let read = file.take(128).read_to_string(&mut text);
    let id = read.ok().and_then(|_| ServerId::parse(text.trim()));
    id.map_or_else(|| "unknown".to_owned(), |id| id.pid().to_string())
}

/// The inode of this process's pid namespace.
fn pid_namespace() -> io::Result<u64> {
    fs::metadata("/proc/self/ns/pid").map(|metadata| metadata.ino())
}

/// Field 22 of `/proc/PID/stat`; `None` when there is no such process or it is only waiting to be reaped.
fn start_ticks(pid: u32) -> io::Result<Option<u64>> {
    let text = match fs::read_to_string(format!("/proc/{pid}/stat")) {
        Err(error) if error.kind() == io::ErrorKind::NotFound || probe::is_no_such_process(&error) => return Ok(None),
        read => read?,
    };
    // The name in parentheses may itself hold spaces and parentheses.
    let fields = text.rsplit_once(')').map_or("", |(_, rest)| rest);
    let mut fields = fields.split_whitespace();
    if matches!(fields.next(), Some("Z" | "X")) {
        return Ok(None);
    }
    let ticks = fields.nth(18).and_then(|ticks| ticks.parse().ok());
    ticks.map(Some).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_lives_and_the_same_pid_with_another_start_time_is_gone() {
        let id = ServerId::current().expect("/proc is mounted");
        assert!(!id.is_gone());
        assert!(ServerId::new(id.namespace, id.pid, id.start_ticks + 1).is_gone());
        assert!(!ServerId::new(id.namespace + 1, id.pid, id.start_ticks + 1).is_gone(), "another namespace can't be judged");
    }

    #[test]
    fn an_id_reads_back_and_odd_texts_do_not() {
        let id = ServerId::new(4_026_531_836, 42, 7);
        assert_eq!(ServerId::parse(id.as_str()), Some(id));
        for text in ["", "1-2", "1-2-3-4", "../1-2-3", "+1-2-3", "01-2-3"] {
            assert_eq!(ServerId::parse(text), None, "{text}");
        }
    }

    #[test]
    fn a_second_server_is_refused_with_the_pid_of_the_first_and_may_follow_it() {
        let parent = tempfile::tempdir().expect("a temporary directory");
        let path = parent.path().join("state");
        let first = StateDir::open(&path).expect("new").lock().expect("free");
        let error = StateDir::open(&path).expect("there").lock().expect_err("held");
        assert!(error.to_string().contains(&format!("process {}", std::process::id())), "{error}");
        drop(first);
        // Children that other tests are just starting hold copies of every descriptor until they execute.
        let free = || StateDir::open(&path).expect("there").lock().is_ok();
        let patience = std::time::Duration::from_millis(10);
        assert!(
            (0..100).any(|_| free() || {
                std::thread::sleep(patience);
                false
            }),
            "free again"
        );
    }

    #[test]
    fn a_new_directory_is_private_and_one_that_others_may_write_is_refused() {
        let parent = tempfile::tempdir().expect("a temporary directory");
        let path = parent.path().join("state");
        StateDir::open(&path).expect("new");
        assert_eq!(fs::metadata(&path).expect("made").permissions().mode() & 0o777, 0o700);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o777)).expect("own directory");
        assert!(matches!(StateDir::open(&path), Err(StateError::NotPrivate { .. })));
    }

    #[test]
    fn bases_of_groups_are_kept_while_they_are_there_and_others_are_forgotten() {
        let parent = tempfile::tempdir().expect("a temporary directory");
        let locked = StateDir::open(&parent.path().join("state")).expect("new").lock().expect("free");
        assert_eq!(locked.group_bases(), Vec::<PathBuf>::new());
        let (old, new) = (parent.path().join("old"), parent.path().join("new"));
        fs::create_dir(&old).expect("own directory");
        fs::create_dir(&new).expect("own directory");
        locked.note_group_bases(&[&old]).expect("writable");
        locked.note_group_bases(&[&new]).expect("writable");
        locked.note_group_bases(&[&new]).expect("writable");
        assert_eq!(locked.group_bases(), [new.clone(), old.clone()]);
        fs::remove_dir(&old).expect("own directory");
        assert_eq!(locked.group_bases(), [new]);
    }

    #[test]
    fn leftovers_below_run_are_removed_and_other_state_stays() {
        let parent = tempfile::tempdir().expect("a temporary directory");
        let path = parent.path().join("state");
        drop(StateDir::open(&path).expect("new").lock().expect("free"));
        fs::create_dir_all(path.join("run/ses_1/upper")).expect("own directory");
        std::os::unix::fs::symlink(&path, path.join("run/ses_1/link")).expect("own directory");
        fs::write(path.join("kept"), "x").expect("own directory");
        let locked = StateDir::open(&path).expect("there").lock().expect("free");
        assert_eq!(fs::read_dir(locked.run_dir()).expect("made").count(), 0);
        assert!(path.join("kept").exists(), "a link below run is not followed");
    }
}
