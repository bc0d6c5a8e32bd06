//! File commands as init carries them out inside the sandbox.
//!
//! Paths are bytes without NUL; relative ones start at `/workspace`.

use serde::{Deserialize, Serialize};

use crate::command::{FileEntry, WriteMode};

/// Contents of a file that are larger than this travel in a memory file beside the message: in the message they would be copied into it and out of
/// it again on their way.
pub const CONTENTS_INLINE_BYTES_MAX: usize = 32 << 10;

/// What is to be written, or was read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Contents {
    /// In the message.
    Inline(#[serde(with = "serde_bytes")] Vec<u8>),
    /// All of the memory file that comes along.
    Carried,
}

impl From<Vec<u8>> for Contents {
    fn from(bytes: Vec<u8>) -> Self {
        Self::Inline(bytes)
    }
}

/// What to do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the fields of the command of the same name in `command`")]
pub enum FileCommand {
    Write {
        path: Vec<u8>,
        content: Contents,
        mode: WriteMode,
        permissions: Option<u32>,
    },
    /// At most `length` bytes; the server has bounded it.
    Read {
        path: Vec<u8>,
        offset: u64,
        length: u64,
    },
    CreateDirectory {
        path: Vec<u8>,
        recursive: bool,
        permissions: Option<u32>,
    },
    Copy {
        source: Vec<u8>,
        destination: Vec<u8>,
        overwrite: bool,
        recursive: bool,
    },
    Delete {
        path: Vec<u8>,
        recursive: bool,
    },
    /// `limit` entries at most; the server has bounded it.
    List {
        path: Vec<u8>,
        recursive: bool,
        pattern: Option<String>,
        include_hidden: bool,
        depth_max: Option<u32>,
        limit: u64,
    },
}

/// What came of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the fields of `command::CommandOutput`")]
pub enum FileReply {
    Written { bytes: u64 },
    Read { content: Contents, size: u64, truncated: bool },
    DirectoryCreated { created: bool },
    Copied { bytes: u64 },
    Deleted { entries: u64 },
    Listed { entries: Vec<FileEntry>, truncated: bool },
}

/// Why it failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileError {
    /// The verdict.
    pub kind: FileErrorKind,
    /// The operation that failed, as a fragment of a sentence (`open the file`).
    pub operation: String,
    /// The kernel's answer, 0 when the refusal is our own.
    pub errno: i32,
}

/// The verdict on a file command; each becomes the `command::FailureKind` of the same name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the names of `command::FailureKind`")]
pub enum FileErrorKind {
    PermissionDenied,
    FileNotFound,
    AlreadyExists,
    NotARegularFile,
    NotADirectory,
    DirectoryNotEmpty,
    PathInvalid,
    DiskFull,
    LimitExceeded,
    IoError,
}
