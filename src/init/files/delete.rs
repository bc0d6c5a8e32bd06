//! `delete_file`: an entry, or a tree.
//!
//! Invariants: a symlink is removed, never followed; the walk removes what it finds below the entry it began with and
//! nothing else (see `ladder`); it needs no stack and few descriptors, however deep the tree.

use std::os::fd::AsFd;

use rustix::fs::{AtFlags, FileType, fstat, unlinkat};
use rustix::io::Errno;

use super::budget::Budget;
use super::error::{failed, refused};
use super::ladder::Ladder;
use super::open::{Identity, for_each_entry, open_directory};
use super::path::{LastLink, Parents, Place, locate, open_from_root};
use super::{FileContext, Reach};
use crate::plan::files::{FileError, FileErrorKind, FileReply};

/// How often directories that were filled again behind the walk are emptied once more.
const REFILLS_MAX: usize = 64;

/// Removes what `path` names. The root and the working directory stay: everything else there is starts from them.
pub fn delete(context: &FileContext, budget: &mut Budget, path: &[u8], reach: Reach) -> Result<FileReply, FileError> {
    let place = locate(context, path, LastLink::Kept, Parents::Required)?;
    let found = place.require()?;
    if place.name == b"." || is_fixed(context, found.identity)? {
        return Err(refused(FileErrorKind::PathInvalid, "delete the root or the working directory"));
    }
    if found.kind == FileType::Directory {
        let entries = match reach {
            Reach::Single => {
                unlinkat(&place.parent, &place.name, AtFlags::REMOVEDIR).map(|()| 1).map_err(failed("remove the directory"))?
            }
            Reach::Tree => Removal::begin(&place, budget)?.run()?,
        };
        return Ok(FileReply::Deleted { entries });
    }
    unlinkat(&place.parent, &place.name, AtFlags::empty()).map_err(failed("remove the file"))?;
    Ok(FileReply::Deleted { entries: 1 })
}

fn is_fixed(context: &FileContext, identity: Identity) -> Result<bool, FileError> {
    let root = fstat(&context.root).map_err(failed("look at the root directory"))?;
    let working = open_from_root(context, &context.working_directory).and_then(fstat);
    // A working directory that is gone can't be what is deleted.
    let working = working.ok().map(|stat| Identity::of(&stat));
    Ok(identity == Identity::of(&root) || Some(identity) == working)
}

/// One directory on the way down: its name in the one above, and the subdirectories still to remove.
#[derive(Debug)]
struct Level {
    name: Box<[u8]>,
    subdirectories: Vec<Box<[u8]>>,
}

/// A removal under way. The first level is the parent of the tree, with the tree as its only entry to remove.
#[derive(Debug)]
struct Removal<'b> {
    ladder: Ladder,
    levels: Vec<Level>,
    budget: &'b mut Budget,
    removed: u64,
    refills_left: usize,
}

impl<'b> Removal<'b> {
    fn begin(place: &Place, budget: &'b mut Budget) -> Result<Self, FileError> {
        let ladder = Ladder::new(place.parent.as_fd())?;
        budget.hold(place.name.len())?;
        let top = Level { name: Box::default(), subdirectories: vec![place.name.clone().into()] };
        Ok(Self { ladder, levels: vec![top], budget, removed: 0, refills_left: REFILLS_MAX })
    }

    fn run(mut self) -> Result<u64, FileError> {
        while let Some(level) = self.levels.last_mut() {
            if let Some(name) = level.subdirectories.pop() {
                self.enter(name)?;
            } else if self.levels.len() > 1 {
                self.leave()?;
            } else {
                break;
            }
        }
        Ok(self.removed)
    }

    /// Goes into a subdirectory and removes its files; what has become a file meanwhile is removed as one.
    fn enter(&mut self, name: Box<[u8]>) -> Result<(), FileError> {
        self.budget.check_depth(self.ladder.depth())?;
        self.budget.check_time()?;
        match open_directory(self.ladder.current(), &name) {
            Ok(directory) => {
                self.ladder.descend(directory)?;
                let subdirectories = self.empty_current()?;
                self.levels.push(Level { name, subdirectories });
                Ok(())
            }
            Err(Errno::NOENT) => Ok(()),
            Err(Errno::NOTDIR | Errno::LOOP) => {
                self.budget.release(name.len());
                count_removal(unlinkat(self.ladder.current(), &*name, AtFlags::empty()), &mut self.removed)
            }
            // A directory that can't be read may yet be empty.
            Err(Errno::ACCESS) => unlinkat(self.ladder.current(), &*name, AtFlags::REMOVEDIR)
                .map(|()| self.removed += 1)
                .map_err(|_| failed("open a directory")(Errno::ACCESS)),
            Err(errno) => Err(failed("open a directory")(errno)),
        }
    }

    /// Removes every entry of the current directory that is no directory; the names of those that are.
    fn empty_current(&mut self) -> Result<Vec<Box<[u8]>>, FileError> {
        let mut subdirectories = Vec::new();
        let Self { ladder, budget, removed, .. } = self;
        for_each_entry(ladder.current(), |name, hint| {
            budget.spend_entry()?;
            let outcome = match hint {
                FileType::Directory => Err(Errno::ISDIR),
                _ => unlinkat(ladder.current(), name, AtFlags::empty()),
            };
            match outcome {
                Err(Errno::ISDIR) => {
                    budget.hold(name.len())?;
                    subdirectories.push(name.into());
                    Ok(())
                }
                outcome => count_removal(outcome, removed),
            }
        })?;
        Ok(subdirectories)
    }

    /// Goes back up and removes the directory that was left, unless someone has filled it again: then once more.
    fn leave(&mut self) -> Result<(), FileError> {
        self.ladder.ascend()?;
        let Some(left) = self.levels.pop() else { return Ok(()) };
        match unlinkat(self.ladder.current(), &*left.name, AtFlags::REMOVEDIR) {
            Err(Errno::NOTEMPTY | Errno::EXIST) if self.refills_left > 0 => {
                self.refills_left -= 1;
                if let Some(level) = self.levels.last_mut() {
                    level.subdirectories.push(left.name);
                }
                Ok(())
            }
            outcome => {
                self.budget.release(left.name.len());
                count_removal(outcome, &mut self.removed)
            }
        }
    }
}

/// Counts what was removed here; what someone else removed first is gone all the same.
fn count_removal(outcome: Result<(), Errno>, removed: &mut u64) -> Result<(), FileError> {
    match outcome {
        Ok(()) => {
            *removed += 1;
            Ok(())
        }
        Err(Errno::NOENT) => Ok(()),
        Err(errno) => Err(failed("remove an entry")(errno)),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;
    use crate::init::files::testbed::Sandbox;

    #[test]
    fn a_tree_goes_with_everything_in_it_and_is_counted() {
        let sandbox = Sandbox::new();
        for path in ["/workspace/t/a", "/workspace/t/b/c", "/workspace/t/b/d/e", "/workspace/stays"] {
            sandbox.put(path, b"x");
        }
        assert_eq!(sandbox.delete("t", true), Ok(FileReply::Deleted { entries: 6 }));
        assert_eq!(sandbox.names("/workspace"), ["stays"]);
        assert_eq!(sandbox.delete("t", true).expect_err("gone").kind, FileErrorKind::FileNotFound);
    }

    #[test]
    fn a_symlink_goes_and_its_target_stays_also_inside_a_tree() {
        let sandbox = Sandbox::new();
        sandbox.put("/workspace/kept/file", b"x");
        symlink("kept", sandbox.host("/workspace/link")).expect("room on the disk");
        sandbox.put("/workspace/t/a", b"x");
        symlink("../kept", sandbox.host("/workspace/t/link")).expect("room on the disk");
        assert_eq!(sandbox.delete("link", true), Ok(FileReply::Deleted { entries: 1 }));
        assert_eq!(sandbox.delete("t", true), Ok(FileReply::Deleted { entries: 3 }));
        assert_eq!(sandbox.get("/workspace/kept/file"), b"x");
    }

    #[test]
    fn alone_a_directory_must_be_empty() {
        let sandbox = Sandbox::new();
        sandbox.put("/workspace/t/a", b"x");
        assert_eq!(sandbox.delete("t", false).expect_err("not empty").kind, FileErrorKind::DirectoryNotEmpty);
        assert_eq!(sandbox.delete("t/a", false), Ok(FileReply::Deleted { entries: 1 }));
        assert_eq!(sandbox.delete("t", false), Ok(FileReply::Deleted { entries: 1 }));
    }

    #[test]
    fn the_root_and_the_working_directory_stay_under_every_spelling() {
        let sandbox = Sandbox::new();
        sandbox.put("/workspace/t/a", b"x");
        for path in ["/", ".", "..", "/workspace", "/workspace/", "t/..", "../workspace/.", "/../.."] {
            assert_eq!(sandbox.delete(path, true).expect_err(path).kind, FileErrorKind::PathInvalid, "{path}");
        }
        assert_eq!(sandbox.get("/workspace/t/a"), b"x");
    }
}
