//! A way down into a tree and back up that holds few descriptors, however deep the tree.
//!
//! Invariant: going up lands in the very directory that was left. The innermost levels keep their descriptors; an outer
//! one is found again through `..` of its child and must have the device and inode number it had. So a tree that is moved
//! about meanwhile ends the walk; it can't lead it elsewhere.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags, fstat, openat};

use super::error::{failed, io_failed, refused};
use super::open::{Identity, refuse_kernel_file_system};
use crate::plan::files::{FileError, FileErrorKind};

/// Descriptors that a ladder holds at once.
const OPEN_LEVELS_MAX: usize = 64;

#[derive(Debug)]
struct Rung {
    identity: Identity,
    directory: Option<OwnedFd>,
}

/// Open directories from the one where a walk began to the one where it is.
#[derive(Debug)]
pub struct Ladder {
    outer: Vec<Rung>,
    current: OwnedFd,
    identity: Identity,
}

impl Ladder {
    /// Begins in `directory`.
    pub fn new(directory: BorrowedFd<'_>) -> Result<Self, FileError> {
        let current = directory.try_clone_to_owned().map_err(io_failed("hold a directory"))?;
        let identity = identify(&current)?;
        Ok(Self { outer: Vec::new(), current, identity })
    }

    /// The directory where the walk is.
    pub fn current(&self) -> BorrowedFd<'_> {
        self.current.as_fd()
    }

    /// Which directory that is.
    pub fn identity(&self) -> Identity {
        self.identity
    }

    /// Levels below the beginning.
    pub fn depth(&self) -> usize {
        self.outer.len()
    }

    /// Goes into `directory`, a subdirectory of the current one; refuses to enter a kernel file system.
    pub fn descend(&mut self, directory: OwnedFd) -> Result<(), FileError> {
        let identity = identify(&directory)?;
        if !identity.same_device(self.identity) {
            refuse_kernel_file_system(&directory)?;
        }
        let left = Rung { identity: self.identity, directory: Some(std::mem::replace(&mut self.current, directory)) };
        self.identity = identity;
        self.outer.push(left);
        if let Some(far) = self.outer.len().checked_sub(OPEN_LEVELS_MAX) {
            self.outer[far].directory = None;
        }
        Ok(())
    }

    /// Goes back to the directory above; at the beginning it stays there.
    pub fn ascend(&mut self) -> Result<(), FileError> {
        let Some(above) = self.outer.pop() else { return Ok(()) };
        let directory = match above.directory {
            Some(directory) => directory,
            None => self.find_above(above.identity)?,
        };
        self.current = directory;
        self.identity = above.identity;
        Ok(())
    }

    fn find_above(&self, expected: Identity) -> Result<OwnedFd, FileError> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let directory = openat(&self.current, "..", flags, Mode::empty()).map_err(failed("go back to the parent directory"))?;
        if identify(&directory)? != expected {
            return Err(refused(FileErrorKind::IoError, "go on in a tree that was moved meanwhile"));
        }
        Ok(directory)
    }
}

fn identify(directory: &OwnedFd) -> Result<Identity, FileError> {
    fstat(directory).map(|stat| Identity::of(&stat)).map_err(failed("look at a directory"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::init::files::open::open_place;
    use crate::init::files::testbed::Sandbox;

    /// Goes down `levels` directories named `d` from the working directory.
    fn down(sandbox: &Sandbox, levels: usize) -> Ladder {
        let workspace = sandbox.open("/workspace");
        let mut ladder = Ladder::new(workspace.as_fd()).expect("the working directory is open");
        for _ in 0..levels {
            let next = open_place(ladder.current(), b"d").expect("the test made it");
            ladder.descend(next).expect("nothing moves");
        }
        ladder
    }

    #[test]
    fn going_up_from_far_below_lands_where_it_began() {
        let sandbox = Sandbox::new();
        sandbox.make_deep("/workspace", "d", 300);
        let mut ladder = down(&sandbox, 300);
        let start = down(&sandbox, 0).identity();
        for _ in 0..300 {
            ladder.ascend().expect("nothing moves");
        }
        assert_eq!((ladder.identity(), ladder.depth()), (start, 0));
    }

    #[test]
    fn a_directory_moved_away_ends_the_walk_instead_of_leading_it_elsewhere() {
        let sandbox = Sandbox::new();
        sandbox.make_deep("/workspace", "d", 300);
        let mut ladder = down(&sandbox, 300);
        std::fs::create_dir(sandbox.host("/elsewhere")).expect("room on the disk");
        std::fs::rename(sandbox.host("/workspace/d/d/d"), sandbox.host("/elsewhere/d")).expect("both are ours");
        let outcome = (0..300).try_for_each(|_| ladder.ascend());
        assert_eq!(outcome.expect_err("the parent is another directory now").kind, FileErrorKind::IoError);
    }
}
