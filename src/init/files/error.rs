//! From the kernel's answers to verdicts.

use rustix::io::Errno;

use crate::plan::files::{FileError, FileErrorKind};

/// Turns the kernel's answer to `operation` (a fragment of a sentence) into an error.
pub fn failed(operation: &str) -> impl FnOnce(Errno) -> FileError + '_ {
    move |errno| FileError { kind: verdict(errno), operation: operation.to_owned(), errno: errno.raw_os_error() }
}

/// The same for std's errors.
pub fn io_failed(operation: &str) -> impl FnOnce(std::io::Error) -> FileError + '_ {
    move |error| match Errno::from_io_error(&error) {
        Some(errno) => failed(operation)(errno),
        None => refused(FileErrorKind::IoError, operation),
    }
}

/// A refusal of our own.
pub fn refused(kind: FileErrorKind, operation: &str) -> FileError {
    FileError { kind, operation: operation.to_owned(), errno: 0 }
}

/// One verdict per answer of the kernel; what has no word of its own is `IoError`, with the errno beside it.
fn verdict(errno: Errno) -> FileErrorKind {
    match errno {
        Errno::ACCESS | Errno::PERM | Errno::ROFS => FileErrorKind::PermissionDenied,
        Errno::NOENT => FileErrorKind::FileNotFound,
        Errno::EXIST => FileErrorKind::AlreadyExists,
        Errno::NOTDIR => FileErrorKind::NotADirectory,
        Errno::ISDIR | Errno::NXIO | Errno::NODEV => FileErrorKind::NotARegularFile,
        Errno::NOTEMPTY => FileErrorKind::DirectoryNotEmpty,
        Errno::LOOP | Errno::NAMETOOLONG | Errno::INVAL | Errno::XDEV => FileErrorKind::PathInvalid,
        Errno::NOSPC | Errno::DQUOT => FileErrorKind::DiskFull,
        Errno::FBIG => FileErrorKind::LimitExceeded,
        _ => FileErrorKind::IoError,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_and_a_spent_quota_are_the_same_verdict_and_a_broken_disk_is_another() {
        assert_eq!(failed("write")(Errno::NOSPC).kind, FileErrorKind::DiskFull);
        assert_eq!(failed("write")(Errno::DQUOT).kind, FileErrorKind::DiskFull);
        assert_eq!(failed("write")(Errno::IO).kind, FileErrorKind::IoError);
    }

    #[test]
    fn the_kernels_number_is_kept_through_std() {
        let error = io_failed("read")(std::io::Error::from_raw_os_error(5));
        assert_eq!((error.kind, error.errno), (FileErrorKind::IoError, 5));
    }
}
