//! `create_directory`.

use std::os::fd::AsFd;

use rustix::fs::{AtFlags, FileType, Mode, chmodat, mkdirat};
use rustix::io::Errno;

use super::error::{failed, refused};
use super::open::open_place;
use super::path::{LastLink, Parents, Place, locate};
use super::write::permission_bits;
use super::{FileContext, Reach};
use crate::plan::files::{FileError, FileErrorKind, FileReply};

/// Makes a directory; with [`Reach::Tree`] its parents too, and one that is there is then no error. `permissions` are
/// those of the last one, if it is made here.
pub fn create(context: &FileContext, path: &[u8], reach: Reach, permissions: Option<u32>) -> Result<FileReply, FileError> {
    let parents = match reach {
        Reach::Single => Parents::Required,
        Reach::Tree => Parents::Made,
    };
    let place = locate(context, path, LastLink::Followed, parents)?;
    match mkdirat(&place.parent, &place.name, Mode::from_raw_mode(0o755)) {
        Ok(()) => {
            if let Some(permissions) = permissions {
                set_permissions(&place, permissions)?;
            }
            Ok(FileReply::DirectoryCreated { created: true })
        }
        Err(Errno::EXIST) if reach == Reach::Tree => {
            let there = locate(context, path, LastLink::Followed, Parents::Required)?.require()?;
            if there.kind == FileType::Directory {
                return Ok(FileReply::DirectoryCreated { created: false });
            }
            Err(refused(FileErrorKind::AlreadyExists, "make a directory in place of a file"))
        }
        Err(errno) => Err(failed("make the directory")(errno)),
    }
}

/// Through the directory itself, so that a symlink put in its place changes nothing elsewhere.
fn set_permissions(place: &Place, permissions: u32) -> Result<(), FileError> {
    let made = open_place(&place.parent, &place.name).map_err(failed("open the new directory"))?;
    chmodat(made.as_fd(), ".", permission_bits(permissions), AtFlags::empty()).map_err(failed("set the permissions"))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;
    use crate::init::files::testbed::Sandbox;

    #[test]
    fn with_its_parents_it_is_made_once_and_then_there() {
        let sandbox = Sandbox::new();
        assert_eq!(sandbox.make_directory("a/b/c", true, Some(0o2700)), Ok(FileReply::DirectoryCreated { created: true }));
        assert_eq!(sandbox.make_directory("a/b/c", true, Some(0o755)), Ok(FileReply::DirectoryCreated { created: false }));
        let mode = |path: &str| std::fs::metadata(sandbox.host(path)).expect("made").permissions().mode() & 0o7777;
        assert_eq!((mode("/workspace/a/b"), mode("/workspace/a/b/c")), (0o755, 0o700));
    }

    #[test]
    fn alone_it_needs_its_parent_and_a_free_name() {
        let sandbox = Sandbox::new();
        assert_eq!(sandbox.make_directory("a/b", false, None).expect_err("no parent").kind, FileErrorKind::FileNotFound);
        sandbox.make_directory("a", false, None).expect("free");
        assert_eq!(sandbox.make_directory("a", false, None).expect_err("taken").kind, FileErrorKind::AlreadyExists);
    }

    #[test]
    fn a_file_in_the_way_is_told_and_a_link_to_a_directory_is_a_directory() {
        let sandbox = Sandbox::new();
        sandbox.put("/workspace/file", b"");
        symlink(".", sandbox.host("/workspace/link")).expect("room on the disk");
        assert_eq!(sandbox.make_directory("file", true, None).expect_err("a file").kind, FileErrorKind::AlreadyExists);
        assert_eq!(sandbox.make_directory("file/x", true, None).expect_err("a file").kind, FileErrorKind::NotADirectory);
        assert_eq!(sandbox.make_directory("link", true, None), Ok(FileReply::DirectoryCreated { created: false }));
        assert_eq!(sandbox.make_directory("..", true, None), Ok(FileReply::DirectoryCreated { created: false }));
    }
}
