//! Why something could not be done with an image.

use std::io;
use std::path::PathBuf;

use thiserror::Error;

/// Everything that can go wrong with images. Host paths stand in these texts: they are for the operator, not for clients.
#[derive(Debug, Error)]
#[expect(missing_docs, reason = "the sentences say what the fields are")]
pub enum ImageError {
    #[error("`{}` can't be the name of an image: {reason}", name.escape_debug())]
    NameInvalid { name: String, reason: &'static str },
    #[error("the name `{name}` is reserved for the host's own image")]
    NameReserved { name: String },
    #[error("there is no image `{name}`")]
    NotFound { name: String },
    #[error("the image `{name}` is in use by a session")]
    InUse { name: String },
    #[error("there is an image `{name}` with other contents already; remove it first")]
    AlreadyExists { name: String },
    #[error("{operation} {} failed", path.display())]
    Io { operation: &'static str, path: PathBuf, source: io::Error },
    #[error("{} is no record of an image", path.display())]
    Record { path: PathBuf, source: serde_json::Error },
    #[error("{} is neither a directory nor a tar archive", path.display())]
    SourceUnsupported { path: PathBuf },
    #[error("{} holds the store itself", path.display())]
    SourceHoldsStore { path: PathBuf },
    #[error("entry `{entry}`: {refusal}")]
    EntryRefused { entry: String, refusal: Refusal },
    #[error("entry `{entry}` passes the bound {bound} of {limit}")]
    BoundExceeded { entry: String, bound: &'static str, limit: u64 },
    #[error("the archive can't be read at or after `{entry}`")]
    Archive { entry: String, source: io::Error },
    #[error("{operation} entry `{entry}` failed")]
    Entry { operation: &'static str, entry: String, source: io::Error },
    #[error("/{path} must be a directory for the sandbox to mount on, but the image has something else there")]
    MountPoint { path: &'static str },
    #[error("the unpacking thread could not be confined: {step}: {cause}")]
    Confine { step: &'static str, cause: String },
    #[error("the import was cancelled")]
    Cancelled,
    #[error("the unpacking thread ended unexpectedly")]
    WorkerLost,
}

/// Why one entry of an image was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum Refusal {
    /// `..` in its name.
    #[error("`..` would lead out of the image")]
    ParentTraversal,
    /// NUL in its name or target.
    #[error("a NUL byte stands in it")]
    Nul,
    /// A parent directory is a symbolic link or no directory.
    #[error("a parent of it is a symbolic link or not a directory")]
    ParentNotADirectory,
    /// A directory would be replaced by something else.
    #[error("it would replace a directory by something else")]
    ReplacesDirectory,
    /// A hard link to nothing inside the image.
    #[error("it is a hard link to something that the image does not hold")]
    LinkTargetMissing,
    /// A hard link to a directory or the like.
    #[error("it is a hard link to something other than a file or symbolic link")]
    LinkTargetKind,
    /// The root itself as something else than a directory.
    #[error("the root of an image is a directory")]
    Root,
    /// PAX sparse maps.
    #[error("it is a sparse file in PAX form, which is not understood (make the archive without --sparse)")]
    PaxSparse,
    /// A type of entry that is not understood.
    #[error("its type is not understood")]
    Type,
    /// Its name changed while it was read, or the archive holds less than the header says.
    #[error("it holds fewer bytes than its header says")]
    Short,
}

impl ImageError {
    pub(super) fn io(operation: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { operation, path, source }
    }

    pub(super) fn errno(operation: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(rustix::io::Errno) -> Self {
        let path = path.into();
        move |source| Self::Io { operation, path, source: source.into() }
    }
}
