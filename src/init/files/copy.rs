//! `copy_file`: a file, or a tree.
//!
//! Invariants: the source's last symlink is followed, links inside a tree are copied as links; nothing is written through
//! a link inside the destination tree; a file takes its place in one step; a tree is never copied into itself. A file that
//! grows meanwhile is copied up to the size it had. A tree that fails half way leaves what was copied until then.

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, chmodat, mkdirat, readlinkat, statat, symlinkat};
use rustix::io::Errno;

use super::budget::Budget;
use super::error::{failed, io_failed, refused};
use super::ladder::Ladder;
use super::open::{Identity, for_each_entry, open_directory, open_place, open_regular};
use super::path::{Found, LastLink, Parents, Place, is_inside, locate};
use super::write::{Over, Permissions, discard, install, permission_bits, take_place, temporary_name};
use super::{FileContext, Reach};
use crate::plan::files::{FileError, FileErrorKind, FileReply};

/// Bytes copied between two looks at the clock.
const CHUNK_BYTES: u64 = 8 << 20;

/// What to do when the destination exists.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Existing {
    /// Files are replaced; a directory takes the entries of a source directory in addition to its own.
    Replaced,
    /// `AlreadyExists`.
    Refused,
}

/// The fields of the command.
#[derive(Debug)]
pub struct Request {
    /// From.
    pub source: Vec<u8>,
    /// To: the name of the copy itself.
    pub destination: Vec<u8>,
    /// `overwrite` on the wire.
    pub existing: Existing,
    /// `recursive` on the wire.
    pub reach: Reach,
}

/// Copies a file or a tree.
pub fn copy(context: &FileContext, budget: &mut Budget, request: &Request) -> Result<FileReply, FileError> {
    let source = locate(context, &request.source, LastLink::Followed, Parents::Required)?;
    let found = source.require()?;
    if found.kind == FileType::Directory {
        if request.reach == Reach::Single {
            return Err(refused(FileErrorKind::NotARegularFile, "copy a directory without recursive"));
        }
        return copy_directory(context, budget, request, &source, found);
    }
    source.refuse_non_file()?;
    let destination = locate(context, &request.destination, LastLink::Followed, Parents::Made)?;
    let over = refuse_existing(&destination, request.existing)?;
    destination.refuse_non_file()?;
    let target = (destination.parent.as_fd(), &destination.name[..]);
    let bytes = copy_file((source.parent.as_fd(), &source.name), target, over, budget)?;
    Ok(FileReply::Copied { bytes })
}

fn refuse_existing(destination: &Place, existing: Existing) -> Result<Over, FileError> {
    match existing {
        Existing::Replaced => Ok(Over::Anything),
        Existing::Refused if destination.found.is_some() => Err(failed("copy over what exists")(Errno::EXIST)),
        Existing::Refused => Ok(Over::Nothing),
    }
}

fn copy_directory(
    context: &FileContext,
    budget: &mut Budget,
    request: &Request,
    source: &Place,
    found: Found,
) -> Result<FileReply, FileError> {
    let parents = Parents::MadeOutside(found.identity);
    let destination = locate(context, &request.destination, LastLink::Followed, parents)?;
    refuse_existing(&destination, request.existing)?;
    let from = open_directory(&source.parent, &source.name).map_err(failed("open the directory"))?;
    let (to, made) = enter_destination(destination.parent.as_fd(), &destination.name)?;
    if is_inside(context, to.as_fd(), found.identity)? {
        return Err(refused(FileErrorKind::PathInvalid, "copy a directory into itself"));
    }
    let to = Ladder::new(to.as_fd())?;
    let top = to.identity();
    let mut copying = Copying { from: Ladder::new(from.as_fd())?, to, top, levels: Vec::new(), budget, bytes: 0 };
    copying.push_level(&from, made.then_some(found.permissions))?;
    copying.run()
}

/// Makes the directory `name`, or takes the one that is there; and whether it was made. Until all is in it, a new one is
/// its owner's alone.
fn enter_destination(parent: BorrowedFd<'_>, name: &[u8]) -> Result<(OwnedFd, bool), FileError> {
    let made = match mkdirat(parent, name, Mode::from_raw_mode(0o700)) {
        Ok(()) => true,
        Err(Errno::EXIST) => false,
        Err(errno) => return Err(failed("make a directory")(errno)),
    };
    let directory = open_place(parent, name).map_err(|errno| match errno {
        Errno::LOOP | Errno::NOTDIR => failed("copy a directory over a file")(Errno::NOTDIR),
        errno => failed("open a directory of the copy")(errno),
    })?;
    Ok((directory, made))
}

/// A directory on the way down.
#[derive(Debug)]
struct Level {
    names: Vec<Box<[u8]>>,
    /// The permissions to give the copy once it is complete, if it was made here.
    permissions: Option<u32>,
}

/// A copy under way, in step through both trees.
#[derive(Debug)]
struct Copying<'b> {
    from: Ladder,
    to: Ladder,
    /// The top of the copy, which the walk must not meet in the source.
    top: Identity,
    levels: Vec<Level>,
    budget: &'b mut Budget,
    bytes: u64,
}

impl Copying<'_> {
    fn run(mut self) -> Result<FileReply, FileError> {
        while let Some(level) = self.levels.last_mut() {
            match level.names.pop() {
                Some(name) => {
                    self.budget.release(name.len());
                    self.copy_entry(&name)?;
                }
                None => self.finish_level()?,
            }
        }
        Ok(FileReply::Copied { bytes: self.bytes })
    }

    fn push_level(&mut self, directory: &OwnedFd, permissions: Option<u32>) -> Result<(), FileError> {
        let mut names: Vec<Box<[u8]>> = Vec::new();
        for_each_entry(directory, |name, _| {
            self.budget.spend_entry()?;
            self.budget.hold(name.len())?;
            names.push(name.into());
            Ok(())
        })?;
        self.levels.push(Level { names, permissions });
        Ok(())
    }

    fn finish_level(&mut self) -> Result<(), FileError> {
        if let Some(permissions) = self.levels.pop().and_then(|level| level.permissions) {
            chmodat(self.to.current(), ".", permission_bits(permissions), AtFlags::empty())
                .map_err(failed("set the permissions of a directory"))?;
        }
        self.from.ascend()?;
        self.to.ascend()
    }

    fn copy_entry(&mut self, name: &[u8]) -> Result<(), FileError> {
        self.budget.check_time()?;
        let stat = match statat(self.from.current(), name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            Err(Errno::NOENT) => return Ok(()),
            Err(errno) => return Err(failed("look at an entry")(errno)),
        };
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => self.enter(name, stat.st_mode & 0o777),
            FileType::RegularFile => {
                let source = (self.from.current(), name);
                self.bytes += copy_file(source, (self.to.current(), name), Over::Anything, self.budget)?;
                Ok(())
            }
            FileType::Symlink => copy_link(self.from.current(), self.to.current(), name),
            _ => Err(refused(FileErrorKind::NotARegularFile, "copy what is no file, directory or symlink")),
        }
    }

    fn enter(&mut self, name: &[u8], permissions: u32) -> Result<(), FileError> {
        self.budget.check_depth(self.from.depth() + 1)?;
        let from = open_directory(self.from.current(), name).map_err(failed("open a directory"))?;
        let reading = from.try_clone().map_err(io_failed("hold a directory"))?;
        self.from.descend(from)?;
        if self.from.identity() == self.top {
            return Err(refused(FileErrorKind::PathInvalid, "copy a directory into itself"));
        }
        let (to, made) = enter_destination(self.to.current(), name)?;
        self.to.descend(to)?;
        self.push_level(&reading, made.then_some(permissions))
    }
}

/// A name in an open directory.
type Entry<'e> = (BorrowedFd<'e>, &'e [u8]);

/// Copies a regular file with its permissions.
fn copy_file(source: Entry<'_>, destination: Entry<'_>, over: Over, budget: &Budget) -> Result<u64, FileError> {
    let (file, stat) = open_regular(source.0, source.1, OFlags::RDONLY)?;
    let file = File::from(file);
    let size = u64::try_from(stat.st_size).unwrap_or(0);
    let mut copied = 0;
    install(destination.0, destination.1, Permissions::Inherited(stat.st_mode), over, |target| {
        while copied < size {
            budget.check_time()?;
            let chunk = CHUNK_BYTES.min(size - copied);
            // std copies inside the kernel where the file systems allow it.
            let count = std::io::copy(&mut (&file).take(chunk), target).map_err(io_failed("copy the contents"))?;
            if count == 0 {
                break;
            }
            copied += count;
        }
        Ok(())
    })?;
    Ok(copied)
}

/// Copies a symlink as it stands, in place of whatever has the name.
fn copy_link(from: BorrowedFd<'_>, to: BorrowedFd<'_>, name: &[u8]) -> Result<(), FileError> {
    let target = readlinkat(from, name, Vec::new()).map_err(failed("read a symlink"))?;
    let temporary = temporary_name();
    symlinkat(&target, to, temporary.as_bytes()).map_err(failed("make a symlink"))?;
    let outcome = take_place(to, temporary.as_bytes(), name, Over::Anything);
    if outcome.is_err() {
        discard(to, temporary.as_bytes());
    }
    outcome
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};
    use std::path::PathBuf;

    use super::*;
    use crate::init::files::testbed::Sandbox;

    #[test]
    fn a_file_is_copied_with_its_permissions_and_made_parents() {
        let sandbox = Sandbox::new();
        sandbox.put("/workspace/a", b"text");
        std::fs::set_permissions(sandbox.host("/workspace/a"), std::fs::Permissions::from_mode(0o4750)).expect("ours");
        assert_eq!(sandbox.copy("a", "new/b"), Ok(FileReply::Copied { bytes: 4 }));
        assert_eq!(sandbox.get("/workspace/new/b"), b"text");
        let mode = std::fs::metadata(sandbox.host("/workspace/new/b")).expect("copied").permissions().mode();
        assert_eq!(mode & 0o7777, 0o750);
    }

    #[test]
    fn a_tree_is_copied_with_its_links_as_links() {
        let sandbox = Sandbox::new();
        sandbox.put("/workspace/t/a", b"12");
        sandbox.put("/workspace/t/d/b", b"345");
        sandbox.put("/secret", b"outside the tree");
        symlink("/secret", sandbox.host("/workspace/t/d/link")).expect("room on the disk");
        assert_eq!(sandbox.copy("t", "u"), Ok(FileReply::Copied { bytes: 5 }));
        assert_eq!(sandbox.get("/workspace/u/d/b"), b"345");
        let target = std::fs::read_link(sandbox.host("/workspace/u/d/link")).expect("a link");
        assert_eq!(target, PathBuf::from("/secret"));
    }

    #[test]
    fn an_existing_destination_is_refused_or_merged_as_asked() {
        let sandbox = Sandbox::new();
        sandbox.put("/workspace/t/a", b"new");
        sandbox.put("/workspace/u/a", b"old");
        sandbox.put("/workspace/u/b", b"kept");
        for (source, destination) in [("t", "u"), ("t/a", "u/a")] {
            let error = sandbox.copy_as(source, destination, false, true).expect_err("exists");
            assert_eq!(error.kind, FileErrorKind::AlreadyExists, "{destination}");
        }
        assert_eq!(sandbox.get("/workspace/u/a"), b"old");
        sandbox.copy("t", "u").expect("merges");
        assert_eq!((sandbox.get("/workspace/u/a"), sandbox.get("/workspace/u/b")), (b"new".to_vec(), b"kept".to_vec()));
        assert_eq!(sandbox.copy("t/a", "u").expect_err("a file over a directory").kind, FileErrorKind::NotARegularFile);
        assert_eq!(sandbox.copy("t", "u/a").expect_err("a directory over a file").kind, FileErrorKind::NotADirectory);
        let error = sandbox.copy_as("t", "v", true, false).expect_err("not recursive");
        assert_eq!(error.kind, FileErrorKind::NotARegularFile);
    }

    #[test]
    fn a_link_in_the_destination_tree_is_replaced_and_not_written_through() {
        let sandbox = Sandbox::new();
        sandbox.put("/workspace/t/a", b"new");
        sandbox.put("/workspace/t/d/b", b"new");
        sandbox.put("/precious", b"old");
        sandbox.put("/dir/b", b"old");
        std::fs::create_dir(sandbox.host("/workspace/u")).expect("room on the disk");
        symlink("/precious", sandbox.host("/workspace/u/a")).expect("room on the disk");
        sandbox.copy("t/a", "u/b").expect("no link there");
        symlink("/dir", sandbox.host("/workspace/u/d")).expect("room on the disk");
        assert_eq!(sandbox.copy("t", "u").expect_err("a link for a directory").kind, FileErrorKind::NotADirectory);
        std::fs::remove_file(sandbox.host("/workspace/u/d")).expect("ours");
        sandbox.copy("t", "u").expect("merges");
        assert_eq!((sandbox.get("/precious"), sandbox.get("/dir/b")), (b"old".to_vec(), b"old".to_vec()));
        assert_eq!(sandbox.get("/workspace/u/a"), b"new");
    }

    #[test]
    fn a_directory_is_not_copied_into_itself_and_no_parents_stay_behind() {
        let sandbox = Sandbox::new();
        sandbox.put("/workspace/t/d/a", b"x");
        symlink("t/d", sandbox.host("/workspace/inside")).expect("room on the disk");
        for destination in ["t", "t/x", "t/d", "t/new/deep/x", "inside/x", "inside/new/x"] {
            let error = sandbox.copy("t", destination).expect_err(destination);
            assert_eq!(error.kind, FileErrorKind::PathInvalid, "{destination}");
        }
        assert_eq!((sandbox.names("/workspace/t"), sandbox.names("/workspace/t/d")), (vec!["d".into()], vec!["a".into()]));
        sandbox.copy("t", "tt/x").expect("a name that only begins alike");
    }
}
