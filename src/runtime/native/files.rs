//! File commands in init's words, and init's answers in the client's. Pure, but for the memory files that carry large contents.

use std::os::fd::OwnedFd;

use rustix::io::Errno;

use crate::command::{Command, CommandOutput, Failure, FailureKind};
use crate::plan::files::{CONTENTS_INLINE_BYTES_MAX, Contents, FileCommand, FileError, FileErrorKind, FileReply};
use crate::sys::error::describe;
use crate::sys::memory;

/// Bytes read at most: as base64 they fit into the response bound.
const READ_BYTES_MAX: u64 = 45 << 20;

/// Bytes read when the request names no length: they fit into the response bound even if JSON writes each as six.
const READ_BYTES_DEFAULT: u64 = 10 << 20;

/// Entries listed at most.
const ENTRIES_MAX: u64 = 200_000;

/// What init is asked; none for the commands that run a program.
pub fn request(command: &mut Command) -> Option<FileCommand> {
    let bytes = |path: &crate::command::SessionPath| path.as_str().as_bytes().to_vec();
    Some(match command {
        Command::WriteFile(write) => FileCommand::Write {
            path: bytes(&write.path),
            content: std::mem::take(&mut write.content).into(),
            mode: write.mode,
            permissions: write.permissions,
        },
        Command::ReadFile(read) => FileCommand::Read {
            path: bytes(&read.path),
            offset: read.offset,
            length: read.length.unwrap_or(READ_BYTES_DEFAULT).min(READ_BYTES_MAX),
        },
        Command::CreateDirectory(create) => FileCommand::CreateDirectory {
            path: bytes(&create.path),
            recursive: create.recursive,
            permissions: create.permissions,
        },
        Command::CopyFile(copy) => FileCommand::Copy {
            source: bytes(&copy.source),
            destination: bytes(&copy.destination),
            overwrite: copy.overwrite,
            recursive: copy.recursive,
        },
        Command::DeleteFile(delete) => FileCommand::Delete { path: bytes(&delete.path), recursive: delete.recursive },
        Command::ListDirectory(list) => FileCommand::List {
            path: bytes(&list.path),
            recursive: list.recursive,
            pattern: list.pattern.clone(),
            include_hidden: list.include_hidden,
            depth_max: list.depth_max,
            limit: list.limit.unwrap_or(ENTRIES_MAX).min(ENTRIES_MAX),
        },
        Command::ExecuteShell(_) | Command::ExecuteCode(_) | Command::InstallPackages(_) => return None,
    })
}

/// Takes contents that are too large for a message out of `command`, into the memory file that goes along.
pub fn carrier(command: &mut FileCommand) -> Result<Option<OwnedFd>, FileError> {
    let FileCommand::Write { content, .. } = command else { return Ok(None) };
    match content {
        Contents::Inline(bytes) if bytes.len() > CONTENTS_INLINE_BYTES_MAX => {
            let carrier = memory::carrier_of(bytes).map_err(|error| not_carried(error.raw_os_error().unwrap_or(0)))?;
            *content = Contents::Carried;
            Ok(Some(carrier))
        }
        Contents::Inline(_) | Contents::Carried => Ok(None),
    }
}

/// An answer with the contents that came beside it. Init is not believed: they are no larger than what can be asked for.
pub fn whole(reply: FileReply, carrier: Option<OwnedFd>) -> Result<FileReply, FileError> {
    match reply {
        FileReply::Read { content: Contents::Carried, size, truncated } => {
            let bytes = carrier.ok_or(Errno::BADF).and_then(|carrier| memory::read_carrier(carrier, READ_BYTES_MAX));
            let content = bytes.map_err(|errno| not_carried(errno.raw_os_error()))?.into();
            Ok(FileReply::Read { content, size, truncated })
        }
        other => Ok(other),
    }
}

/// Contents could not be given or taken.
pub fn not_carried(errno: i32) -> FileError {
    FileError { kind: FileErrorKind::IoError, operation: "carry the contents".into(), errno }
}

/// Init's answer to `command`; none when it answers something else, which a sound init never does.
pub fn output(command: &Command, reply: FileReply) -> Option<CommandOutput> {
    Some(match (command, reply) {
        (Command::WriteFile(write), FileReply::Written { bytes }) => {
            CommandOutput::Written { path: write.path.as_str().into(), bytes }
        }
        (Command::ReadFile(read), FileReply::Read { content: Contents::Inline(content), size, truncated }) => {
            CommandOutput::Read { path: read.path.as_str().into(), content, encoding: read.encoding, size, truncated }
        }
        (Command::CreateDirectory(create), FileReply::DirectoryCreated { created }) => {
            CommandOutput::DirectoryCreated { path: create.path.as_str().into(), created }
        }
        (Command::CopyFile(copy), FileReply::Copied { bytes }) => {
            CommandOutput::Copied { source: copy.source.as_str().into(), destination: copy.destination.as_str().into(), bytes }
        }
        (Command::DeleteFile(delete), FileReply::Deleted { entries }) => {
            CommandOutput::Deleted { path: delete.path.as_str().into(), deleted: entries }
        }
        (Command::ListDirectory(list), FileReply::Listed { entries, truncated }) => {
            CommandOutput::Listing { path: list.path.as_str().into(), entries, truncated }
        }
        _ => return None,
    })
}

/// The path a failure speaks of.
fn subject(command: &Command) -> &str {
    match command {
        Command::WriteFile(write) => write.path.as_str(),
        Command::ReadFile(read) => read.path.as_str(),
        Command::CreateDirectory(create) => create.path.as_str(),
        Command::CopyFile(copy) => copy.source.as_str(),
        Command::DeleteFile(delete) => delete.path.as_str(),
        Command::ListDirectory(list) => list.path.as_str(),
        Command::ExecuteShell(_) | Command::ExecuteCode(_) | Command::InstallPackages(_) => "",
    }
}

/// Init's refusal as a verdict and a sentence.
pub fn failure(command: &Command, error: &FileError) -> Failure {
    refusal(&format!("`{}`", subject(command)), error)
}

/// The same of what no command of the client names.
pub fn refusal(subject: &str, error: &FileError) -> Failure {
    let message = match error.errno {
        0 => format!("{subject}: {}", error.operation),
        errno => format!("{subject}: could not {}: {}", error.operation, describe(errno)),
    };
    Failure { kind: verdict(error.kind), message }
}

/// The verdict of the same name.
pub fn verdict(kind: FileErrorKind) -> FailureKind {
    match kind {
        FileErrorKind::PermissionDenied => FailureKind::PermissionDenied,
        FileErrorKind::FileNotFound => FailureKind::FileNotFound,
        FileErrorKind::AlreadyExists => FailureKind::AlreadyExists,
        FileErrorKind::NotARegularFile => FailureKind::NotARegularFile,
        FileErrorKind::NotADirectory => FailureKind::NotADirectory,
        FileErrorKind::DirectoryNotEmpty => FailureKind::DirectoryNotEmpty,
        FileErrorKind::PathInvalid => FailureKind::PathInvalid,
        FileErrorKind::DiskFull => FailureKind::DiskFull,
        FileErrorKind::LimitExceeded => FailureKind::LimitExceeded,
        FileErrorKind::IoError => FailureKind::IoError,
    }
}
