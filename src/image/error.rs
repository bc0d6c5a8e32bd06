//! Why something could not be done with an image.

use std::borrow::Cow;
use std::io;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// A word of this program; one that another process of it sent is read into memory of its own.
type Word = Cow<'static, str>;

/// Everything that can go wrong with images. Host paths stand in these texts: they are for the operator, not for clients.
/// It travels from the unpacking process to its parent.
#[derive(Debug, Error, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the sentences say what the fields are")]
pub enum ImageError {
    #[error("`{}` can't be the name of an image: {reason}", name.escape_debug())]
    NameInvalid { name: String, reason: Word },
    #[error("the name `{name}` is reserved for the host's own image")]
    NameReserved { name: String },
    #[error("there is no image `{name}`")]
    NotFound { name: String },
    #[error("the image `{name}` is {found} now, not {wanted}")]
    OtherDigest { name: String, wanted: String, found: String },
    #[error("the image `{name}` is in use by a session")]
    InUse { name: String },
    #[error("there is an image `{name}` with other contents already; remove it first")]
    AlreadyExists { name: String },
    #[error("{operation} {} failed", path.display())]
    Io {
        operation: Word,
        path: PathBuf,
        #[serde(with = "io_error")]
        source: io::Error,
    },
    #[error("{} is neither a directory nor a tar archive", path.display())]
    SourceUnsupported { path: PathBuf },
    #[error("{} holds the store itself", path.display())]
    SourceHoldsStore { path: PathBuf },
    #[error("entry `{entry}`: {refusal}")]
    EntryRefused { entry: String, refusal: Refusal },
    #[error("entry `{entry}` passes the bound {bound} of {limit}")]
    BoundExceeded { entry: String, bound: Word, limit: u64 },
    #[error("the archive can't be read at or after `{entry}`")]
    Archive {
        entry: String,
        #[serde(with = "io_error")]
        source: io::Error,
    },
    #[error("{operation} entry `{entry}` failed")]
    Entry {
        operation: Word,
        entry: String,
        #[serde(with = "io_error")]
        source: io::Error,
    },
    #[error("/{path} must be a directory for the sandbox to mount on, but the image has something else there")]
    MountPoint { path: Word },
    #[error("the {what} of the image can't be used: {reason}")]
    Document { what: Word, reason: String },
    #[error("the image holds something of the type `{found}` where {expected} belongs")]
    MediaType { found: String, expected: Word },
    #[error("a blob has the digest {found} where {expected} belongs")]
    DigestMismatch { expected: String, found: String },
    #[error("the blob {digest} has {found} bytes where {expected} belong")]
    SizeMismatch { digest: String, expected: u64, found: u64 },
    #[error("layer {layer} unpacks to {found} where {expected} belongs")]
    LayerMismatch { layer: usize, expected: String, found: String },
    #[error("the image lacks {digest}")]
    BlobMissing { digest: String },
    #[error("nothing there is {wanted}; there is {there}")]
    NoneFits { wanted: String, there: String },
    #[error("it holds several images: {there}")]
    Ambiguous { there: String },
    #[error("`{}` can't be pulled: {reason}", reference.escape_debug())]
    Reference { reference: String, reason: String },
    #[error("{operation} {reference} failed: {cause}")]
    Registry { operation: Word, reference: String, cause: String },
    #[error("{operation} {reference} failed: the registry answered {status}{}", parenthesis(said))]
    Answer { operation: Word, reference: String, status: u16, said: String },
    #[error("{registry} refuses {reference} to somebody without a login")]
    LoginWanted { registry: String, reference: String },
    #[error("{registry} refuses {reference} to the user `{user}` with the password that is configured")]
    LoginRefused { registry: String, reference: String, user: String },
    #[error("the certificate of {registry} can't be believed: {fault}")]
    Certificate { registry: String, fault: CertificateFault },
    #[error("{registry} does not speak TLS")]
    NoTls { registry: String },
    #[error("the certificates of {} can't be used: {reason}", path.display())]
    CaFile { path: PathBuf, reason: String },
    #[error("the credentials for {registry} can't be had: {cause}")]
    Credentials { registry: String, cause: String },
    #[error("the unpacking process could not be confined: {step}: {cause}")]
    Confine { step: Word, cause: String },
    #[error("the import was cancelled")]
    Cancelled,
    #[error("the pull was cancelled")]
    PullCancelled,
    #[error("the unpacking process ended unexpectedly: {cause}")]
    WorkerLost { cause: String },
    /// Last, because it never travels: a variant that is skipped would shift the numbers of those behind it.
    #[serde(skip)]
    #[error("{} is no record of an image", path.display())]
    Record { path: PathBuf, source: serde_json::Error },
}

fn parenthesis(text: &str) -> String {
    if text.is_empty() { String::new() } else { format!(" ({text})") }
}

/// What is wrong with a registry's certificate.
#[derive(Debug, Clone, PartialEq, Eq, Error, Serialize, Deserialize)]
pub enum CertificateFault {
    /// No root that is believed leads to it.
    #[error("it was issued by nobody that this host knows")]
    UnknownIssuer,
    /// Its time is over.
    #[error("it has expired")]
    Expired,
    /// Its time is yet to come.
    #[error("it is not valid yet")]
    NotValidYet,
    /// It names others.
    #[error("it is for another name")]
    OtherName,
    /// Anything else, in the words of the TLS library.
    #[error("{0}")]
    Other(String),
}

/// Why one entry of an image was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error, Serialize, Deserialize)]
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
    /// PAX sparse maps of another version than 1.0.
    #[error("it is a sparse file in an old PAX form, which is not understood (make the archive without --sparse)")]
    PaxSparse,
    /// A type of entry that is not understood.
    #[error("its type is not understood")]
    Type,
    /// A whiteout that names nothing, or stands in the middle of a name.
    #[error("it is no whiteout that a layer can hold")]
    Whiteout,
    /// Its name changed while it was read, or the archive holds less than the header says.
    #[error("it holds fewer bytes than its header says")]
    Short,
}

impl ImageError {
    pub(super) fn io(operation: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { operation: operation.into(), path, source }
    }

    pub(super) fn errno(operation: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(rustix::io::Errno) -> Self {
        let path = path.into();
        move |source| Self::Io { operation: operation.into(), path, source: source.into() }
    }
}

/// An `io::Error` as its number and text.
mod io_error {
    use std::io;

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub(super) fn serialize<S: Serializer>(error: &io::Error, serializer: S) -> Result<S::Ok, S::Error> {
        (error.raw_os_error(), error.to_string()).serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<io::Error, D::Error> {
        let (number, text) = <(Option<i32>, String)>::deserialize(deserializer)?;
        Ok(number.map_or_else(|| io::Error::other(text), io::Error::from_raw_os_error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_arrives_as_what_it_was() {
        let errors = [
            ImageError::Cancelled,
            ImageError::Confine { step: "seccomp".into(), cause: "EPERM".into() },
            ImageError::WorkerLost { cause: "x".into() },
            ImageError::EntryRefused { entry: "a".into(), refusal: Refusal::Whiteout },
            ImageError::Archive { entry: "a".into(), source: io::Error::from_raw_os_error(libc::ENOSPC) },
        ];
        for error in errors {
            let bytes = postcard::to_allocvec(&error).expect("encoded");
            let arrived: ImageError = postcard::from_bytes(&bytes).expect("decoded");
            assert_eq!(format!("{error:?}"), format!("{arrived:?}"));
        }
    }
}
