//! What `/dev` holds: the default list of the OCI runtime specification, and two places to mount on.

use std::os::fd::OwnedFd;

use crate::sys::CallError;
use crate::sys::devices::{self, Contents};

/// Names with major and minor numbers (Documentation/admin-guide/devices.txt of Linux).
pub const NODES: [(&str, u32, u32); 6] =
    [("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9), ("tty", 5, 0)];

/// Names and what they lead to.
pub const LINKS: [(&str, &str); 5] = [
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
    ("ptmx", "pts/ptmx"),
];

/// Directories that something is mounted on, with their permission bits.
pub const MOUNT_POINTS: [(&str, u32); 2] = [("pts", 0o755), ("shm", 0o1777)];

/// All of it, on a file system of its own.
pub fn directory() -> Result<OwnedFd, CallError> {
    devices::directory(Contents { nodes: &NODES, links: &LINKS, directories: &MOUNT_POINTS })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::os::fd::AsRawFd;
    use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
    use std::path::PathBuf;

    use rustix::fs::{major, minor};
    use rustix::io::Errno;

    use super::*;

    #[test]
    fn the_directory_holds_what_is_listed_and_nobody_can_change_it() {
        let made = match directory() {
            Ok(made) => made,
            Err(error) => {
                // An ordinary user, or a root without CAP_MKNOD.
                assert_eq!(error.errno, Errno::PERM, "{error}");
                return;
            }
        };
        let place = PathBuf::from(format!("/proc/self/fd/{}", made.as_raw_fd()));
        let found: BTreeMap<_, _> = std::fs::read_dir(&place)
            .expect("it can be listed")
            .flatten()
            .map(|entry| (entry.file_name().to_string_lossy().into_owned(), entry.metadata().expect("there")))
            .collect();
        assert_eq!(found.len(), NODES.len() + LINKS.len() + MOUNT_POINTS.len());
        for (name, number, below) in NODES {
            let node = &found[name];
            let told = (node.file_type().is_char_device(), major(node.rdev()), minor(node.rdev()));
            assert_eq!((told, node.mode() & 0o7777), ((true, number, below), 0o666), "{name}");
        }
        for (name, target) in LINKS {
            assert_eq!(std::fs::read_link(place.join(name)).expect("a link"), PathBuf::from(target));
        }
        for (name, mode) in MOUNT_POINTS {
            assert_eq!((found[name].is_dir(), found[name].mode() & 0o7777), (true, mode), "{name}");
        }
        let read_only = |done: std::io::Result<()>| done.err().and_then(|error| error.raw_os_error());
        assert_eq!(read_only(std::fs::create_dir(place.join("more"))), Some(libc::EROFS));
        let mode = std::fs::Permissions::from_mode(0o600);
        assert_eq!(read_only(std::fs::set_permissions(place.join("null"), mode)), Some(libc::EROFS));
        assert_eq!(std::fs::read(place.join("null")).expect("a device that works"), b"");
    }
}
