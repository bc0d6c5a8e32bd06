//! The name and attributes of one entry of an image, made safe.
//!
//! Invariant: an `EntryPath` is relative, holds no `.`, `..`, NUL or empty component, and keeps the bounds.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::bounds::{Bounds, check};
use super::{ImageError, Refusal};

/// Where an entry stands, relative to the image's root; the root itself is the empty path.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EntryPath(PathBuf);

impl EntryPath {
    /// Absolute names become relative, `.` and doubled slashes vanish, `..` is refused.
    pub fn parse(bytes: &[u8], bounds: &Bounds) -> Result<Self, ImageError> {
        let shown = show(bytes);
        let refuse = |refusal| ImageError::EntryRefused { entry: shown.clone(), refusal };
        check(&shown, "path_bytes_max", bytes.len() as u64, bounds.path_bytes_max)?;
        let mut path = PathBuf::new();
        let mut depth = 0;
        for component in bytes.split(|&byte| byte == b'/') {
            match component {
                b"" | b"." => continue,
                b".." => return Err(refuse(Refusal::ParentTraversal)),
                name if name.contains(&0) => return Err(refuse(Refusal::Nul)),
                name => {
                    check(&shown, "name_bytes_max", name.len() as u64, bounds.name_bytes_max)?;
                    path.push(OsStr::from_bytes(name));
                }
            }
            depth += 1;
            check(&shown, "depth_max", depth, bounds.depth_max)?;
        }
        Ok(Self(path))
    }

    /// True for the root.
    pub fn is_root(&self) -> bool {
        self.0.as_os_str().is_empty()
    }

    /// Relative to the root.
    pub fn as_path(&self) -> &Path {
        &self.0
    }

    /// Parent (empty for the root) and last component; `None` for the root itself.
    pub fn split(&self) -> Option<(&Path, &OsStr)> {
        Some((self.0.parent()?, self.0.file_name()?))
    }

    /// For messages.
    pub fn show(&self) -> String {
        show(self.0.as_os_str().as_bytes())
    }
}

/// A name for messages: bounded, without control characters.
pub fn show(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(&bytes[..bytes.len().min(256)]);
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

/// Name and value of one extended attribute.
pub type Xattr = (Vec<u8>, Vec<u8>);

/// Owner, permissions, time.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Meta {
    /// As the source has it; set-id bits are dropped when written.
    pub mode: u32,
    /// As the source has it.
    pub uid: u64,
    /// As the source has it.
    pub gid: u64,
    /// Seconds since the epoch.
    pub modified_s: i64,
    /// Extended attributes; only `user.*` is written.
    pub xattrs: Vec<Xattr>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<EntryPath, ImageError> {
        EntryPath::parse(text.as_bytes(), &Bounds::default())
    }

    #[test]
    fn names_become_relative_and_parents_are_refused() {
        for (text, path) in [("a/b", "a/b"), ("/a//b/", "a/b"), ("./a/./b", "a/b"), ("/", ""), ("a/..b", "a/..b")] {
            assert_eq!(parse(text).expect("sound").as_path(), Path::new(path));
        }
        for text in ["..", "a/../b", "/..", "a/.."] {
            assert!(matches!(parse(text), Err(ImageError::EntryRefused { refusal: Refusal::ParentTraversal, .. })), "{text}");
        }
    }

    #[test]
    fn names_and_depth_are_bounded() {
        assert!(parse(&"x".repeat(255)).is_ok());
        assert!(matches!(parse(&"x".repeat(256)), Err(ImageError::BoundExceeded { bound, .. }) if bound == "name_bytes_max"));
        assert!(parse(&"d/".repeat(1024)).is_ok());
        assert!(matches!(parse(&"d/".repeat(1025)), Err(ImageError::BoundExceeded { bound, .. }) if bound == "depth_max"));
    }
}
