//! `write_file`, and the atomic replacement that copying uses too.
//!
//! Invariant: a replaced file is the old one or the new one to every reader, never a part; a failed write leaves no
//! temporary file behind and the old contents as they were. A symlink as the last component is written through, as a
//! shell's `>` does; hard links to a replaced file keep the old contents. CreateNew follows no link: a link is something
//! that exists.

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::{AtFlags, Mode, OFlags, RenameFlags, fchmod, fstat, ftruncate, renameat, renameat_with, unlinkat};
use rustix::io::Errno;

use super::FileContext;
use super::error::{failed, io_failed, refused};
use super::open::{create_file, open_regular};
use super::path::{LastLink, Parents, Place, locate};
use crate::command::WriteMode;
use crate::plan::files::{FileError, FileErrorKind, FileReply};

/// Permission bits of a new file when the command names none.
const NEW_FILE_MODE: u32 = 0o644;

/// The umask that callers of [`super::run`] have set.
pub const UMASK: u32 = 0o022;

/// Tries to find a free temporary name, or to append to a file that comes and goes.
const TRIES_MAX: usize = 16;

/// What to write.
#[derive(Debug, Clone, Copy)]
pub struct Content<'c> {
    /// The bytes.
    pub bytes: &'c [u8],
    /// Over, after, or only instead of nothing.
    pub mode: WriteMode,
    /// Permission bits; set-id and sticky bits are dropped.
    pub permissions: Option<u32>,
}

/// Permission bits of a new file; set-id and sticky bits are dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Permissions {
    /// The client named them: it has exactly these.
    Named(u32),
    /// Those of what was there, or usual ones; a directory with rules for new files (a default ACL) may give it less.
    Inherited(u32),
}

impl Permissions {
    fn bits(self) -> Mode {
        let (Self::Named(bits) | Self::Inherited(bits)) = self;
        permission_bits(bits)
    }

    /// Whether a file that was made with them may have others.
    fn must_be_set(self) -> bool {
        matches!(self, Self::Named(_)) || self.bits().intersects(Mode::from_raw_mode(UMASK))
    }
}

/// What a new file may take the place of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Over {
    /// Whatever has the name, except a directory.
    Anything,
    /// Nothing.
    Nothing,
}

/// Writes a file, making its parents.
pub fn write(context: &FileContext, path: &[u8], content: &Content<'_>) -> Result<FileReply, FileError> {
    match content.mode {
        WriteMode::Create => {
            let place = locate(context, path, LastLink::Followed, Parents::Made)?;
            place.refuse_non_file()?;
            let kept = place.found.map_or(NEW_FILE_MODE, |found| found.permissions);
            install_bytes(&place, content, kept, Over::Anything)?;
        }
        WriteMode::CreateNew => {
            let place = locate(context, path, LastLink::Kept, Parents::Made)?;
            if place.found.is_some() {
                return Err(failed("make a new file")(Errno::EXIST));
            }
            place.refuse_non_file()?;
            install_bytes(&place, content, NEW_FILE_MODE, Over::Nothing)?;
        }
        WriteMode::Append => append(context, path, content)?,
    }
    Ok(FileReply::Written { bytes: content.bytes.len() as u64 })
}

/// Puts a new file in place of `name` in one step, once `fill` has filled it.
pub fn install(
    parent: BorrowedFd<'_>,
    name: &[u8],
    permissions: Permissions,
    over: Over,
    fill: impl FnOnce(&mut File) -> Result<(), FileError>,
) -> Result<(), FileError> {
    let (temporary, file) = temporary_file(parent, permissions.bits())?;
    let mut file = File::from(file);
    let set = |file: &File| if permissions.must_be_set() { fchmod(file, permissions.bits()) } else { Ok(()) };
    let outcome = fill(&mut file)
        .and_then(|()| set(&file).map_err(failed("set the permissions")))
        .and_then(|()| take_place(parent, temporary.as_bytes(), name, over));
    if outcome.is_err() {
        discard(parent, temporary.as_bytes());
    }
    outcome
}

/// Removes a temporary entry that gets no name. A failure changes nothing: the error that led here is the one to report, the entry may be gone
/// already, and one that stays lies in the session's own files and counts there.
pub fn discard(parent: BorrowedFd<'_>, temporary: &[u8]) {
    unlinkat(parent, temporary, AtFlags::empty()).ok();
}

/// Gives a finished temporary entry its name.
pub fn take_place(parent: BorrowedFd<'_>, temporary: &[u8], name: &[u8], over: Over) -> Result<(), FileError> {
    let outcome = match over {
        Over::Anything => renameat(parent, temporary, parent, name),
        Over::Nothing => renameat_with(parent, temporary, parent, name, RenameFlags::NOREPLACE),
    };
    outcome.map_err(failed("put the new file in place"))
}

/// A name that nobody else is likely to have chosen.
pub fn temporary_name() -> String {
    format!(".codebeaker-{:016x}.tmp", rand::random::<u64>())
}

/// What of `permissions` a file command may set.
pub fn permission_bits(permissions: u32) -> Mode {
    Mode::from_raw_mode(permissions & 0o777)
}

fn install_bytes(place: &Place, content: &Content<'_>, kept: u32, over: Over) -> Result<(), FileError> {
    let permissions = content.permissions.map_or(Permissions::Inherited(kept), Permissions::Named);
    install(place.parent.as_fd(), &place.name, permissions, over, |file| {
        file.write_all(content.bytes).map_err(io_failed("write the file"))
    })
}

fn temporary_file(parent: BorrowedFd<'_>, permissions: Mode) -> Result<(String, std::os::fd::OwnedFd), FileError> {
    let mut answer = Errno::EXIST;
    for _ in 0..TRIES_MAX {
        let name = temporary_name();
        match create_file(parent, name.as_bytes(), permissions) {
            Ok(file) => return Ok((name, file)),
            Err(Errno::EXIST) => answer = Errno::EXIST,
            Err(errno) => {
                answer = errno;
                break;
            }
        }
    }
    Err(failed("make a file in the directory")(answer))
}

/// Adds to the end. Someone else may make or remove the file meanwhile, so a lost race is tried again.
fn append(context: &FileContext, path: &[u8], content: &Content<'_>) -> Result<(), FileError> {
    for _ in 0..TRIES_MAX {
        let place = locate(context, path, LastLink::Followed, Parents::Made)?;
        place.refuse_non_file()?;
        if place.found.is_some() {
            match open_regular(&place.parent, &place.name, OFlags::WRONLY | OFlags::APPEND) {
                Ok((file, _)) => return append_to(File::from(file), content),
                Err(error) if error.kind == FileErrorKind::FileNotFound => {}
                Err(error) => return Err(error),
            }
        } else {
            match install_bytes(&place, content, NEW_FILE_MODE, Over::Nothing) {
                Err(error) if error.kind == FileErrorKind::AlreadyExists => {}
                outcome => return outcome,
            }
        }
    }
    Err(refused(FileErrorKind::IoError, "append to a file that comes and goes"))
}

/// Appends, and takes back the part that was written when the rest can't be (unless someone else wrote after it).
fn append_to(mut file: File, content: &Content<'_>) -> Result<(), FileError> {
    let length = |file: &File| fstat(file).map(|stat| stat.st_size as u64).map_err(failed("look at the opened file"));
    let before = length(&file)?;
    let mut written = 0;
    while written < content.bytes.len() {
        match file.write(&content.bytes[written..]) {
            Ok(0) => return Err(refused(FileErrorKind::IoError, "write the file")),
            Ok(count) => written += count,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => {
                if written > 0 && length(&file)? == before + written as u64 {
                    ftruncate(&file, before).map_err(failed("take back a part that was written"))?;
                }
                return Err(io_failed("write the file")(error));
            }
        }
    }
    match content.permissions {
        Some(permissions) => fchmod(&file, permission_bits(permissions)).map_err(failed("set the permissions")),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;
    use crate::init::files::testbed::Sandbox;

    fn mode_of(sandbox: &Sandbox, path: &str) -> u32 {
        std::fs::metadata(sandbox.host(path)).expect("it was written").permissions().mode() & 0o7777
    }

    fn set_mode(sandbox: &Sandbox, path: &str, mode: u32) {
        std::fs::set_permissions(sandbox.host(path), std::fs::Permissions::from_mode(mode)).expect("it is ours");
    }

    #[test]
    fn a_file_is_made_with_its_parents_and_replaced_with_its_permissions_kept() {
        let sandbox = Sandbox::new();
        assert_eq!(sandbox.write("a/b/c.txt", b"one"), Ok(FileReply::Written { bytes: 3 }));
        set_mode(&sandbox, "/workspace/a/b/c.txt", 0o640);
        sandbox.write("a/b/c.txt", b"two").expect("replaces");
        assert_eq!(sandbox.get("/workspace/a/b/c.txt"), b"two");
        assert_eq!(mode_of(&sandbox, "/workspace/a/b/c.txt"), 0o640);
        assert_eq!(sandbox.names("/workspace/a/b"), ["c.txt"]);
    }

    #[test]
    fn set_id_and_sticky_bits_are_dropped_and_the_others_set() {
        let sandbox = Sandbox::new();
        sandbox.write_as("a", b"", WriteMode::Create, Some(0o7751)).expect("makes");
        assert_eq!(mode_of(&sandbox, "/workspace/a"), 0o751);
        set_mode(&sandbox, "/workspace/a", 0o4755);
        sandbox.write("a", b"").expect("replaces");
        assert_eq!(mode_of(&sandbox, "/workspace/a"), 0o755);
    }

    #[test]
    fn a_replaced_file_and_one_with_named_permissions_have_also_what_the_umask_would_take() {
        let sandbox = Sandbox::new();
        sandbox.put("/workspace/a", b"old");
        set_mode(&sandbox, "/workspace/a", 0o666);
        sandbox.write("a", b"new").expect("replaces");
        sandbox.write_as("b", b"new", WriteMode::Create, Some(0o622)).expect("makes");
        assert_eq!((mode_of(&sandbox, "/workspace/a"), mode_of(&sandbox, "/workspace/b")), (0o666, 0o622));
    }

    #[test]
    fn append_adds_and_makes_what_is_missing() {
        let sandbox = Sandbox::new();
        sandbox.write_as("log/a", b"one", WriteMode::Append, None).expect("makes");
        sandbox.write_as("log/a", b"two", WriteMode::Append, None).expect("adds");
        assert_eq!(sandbox.get("/workspace/log/a"), b"onetwo");
    }

    #[test]
    fn create_new_refuses_what_exists_even_a_dangling_symlink() {
        let sandbox = Sandbox::new();
        sandbox.write_as("a", b"one", WriteMode::CreateNew, None).expect("nothing is there");
        symlink("nowhere", sandbox.host("/workspace/link")).expect("room on the disk");
        for path in ["a", "link"] {
            let error = sandbox.write_as(path, b"two", WriteMode::CreateNew, None).expect_err("it exists");
            assert_eq!(error.kind, FileErrorKind::AlreadyExists, "{path}");
        }
        assert_eq!(sandbox.get("/workspace/a"), b"one");
        assert_eq!(sandbox.names("/workspace"), ["a", "link"]);
    }

    #[test]
    fn a_symlink_is_written_through_and_stays_a_symlink() {
        let sandbox = Sandbox::new();
        sandbox.put("/workspace/real", b"old");
        symlink("real", sandbox.host("/workspace/link")).expect("room on the disk");
        sandbox.write("link", b"new").expect("writes");
        assert_eq!(sandbox.get("/workspace/real"), b"new");
        assert!(sandbox.host("/workspace/link").is_symlink());
    }

    #[test]
    fn a_write_that_fails_half_way_leaves_nothing_new_and_the_old_contents() {
        let sandbox = Sandbox::new();
        sandbox.put("/workspace/a", b"old");
        let workspace = sandbox.open("/workspace");
        let half = |file: &mut File| {
            file.write_all(b"hal").map_err(io_failed("write the file"))?;
            Err(failed("write the file")(Errno::NOSPC))
        };
        let error = install(workspace.as_fd(), b"a", Permissions::Inherited(0o644), Over::Anything, half)
            .expect_err("the disk is full");
        assert_eq!(error.kind, FileErrorKind::DiskFull);
        assert_eq!((sandbox.get("/workspace/a"), sandbox.names("/workspace")), (b"old".to_vec(), vec!["a".to_owned()]));
        let whole = |file: &mut File| file.write_all(b"whole").map_err(io_failed("write the file"));
        install(workspace.as_fd(), b"a", Permissions::Inherited(0o644), Over::Anything, whole).expect("room on the disk");
        assert_eq!(sandbox.get("/workspace/a"), b"whole");
    }

    #[test]
    fn a_directory_and_a_path_that_ends_with_a_slash_are_refused() {
        let sandbox = Sandbox::new();
        assert_eq!(sandbox.write(".", b"x").expect_err("a directory").kind, FileErrorKind::NotARegularFile);
        assert_eq!(sandbox.write("new/", b"x").expect_err("a slash").kind, FileErrorKind::PathInvalid);
        assert!(sandbox.names("/workspace").is_empty());
    }
}
