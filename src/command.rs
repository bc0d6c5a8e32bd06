//! The vocabulary that rpc, session and runtime share: what a client can ask of a session, and what comes back.
//!
//! Invariant: a value of these types has been validated (paths hold no NUL, numbers are in range), so nothing below rpc
//! checks a client's syntax again. Wire spelling (aliases, base64) lives in `rpc::convert`. Read `runtime` next.

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::time::{Duration, Instant};

use crate::id::ExecutionId;

/// A path as the session sees it: no NUL, at most 4096 bytes; relative paths start at `/workspace`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionPath(String);

impl SessionPath {
    /// Longest path taken, in bytes: PATH_MAX of limits.h.
    pub const BYTES_MAX: usize = 4096;

    /// Takes any text without NUL, not empty and not longer than [`Self::BYTES_MAX`]; the error is a sentence for the client.
    pub fn parse(text: &str) -> Result<Self, String> {
        if text.is_empty() {
            return Err("a path can't be empty".into());
        }
        if text.len() > Self::BYTES_MAX {
            return Err(format!("a path has at most {} bytes", Self::BYTES_MAX));
        }
        if text.contains('\0') {
            return Err("a path can't hold a NUL byte".into());
        }
        Ok(Self(text.to_owned()))
    }

    /// As the client wrote it.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// One command of PROTOCOL section 3.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// `write_file`
    WriteFile(WriteFile),
    /// `read_file`
    ReadFile(ReadFile),
    /// `execute_shell`: a program run directly, no shell in between.
    ExecuteShell(ExecuteShell),
    /// `execute_code`: source text in the session's language or another.
    ExecuteCode(ExecuteCode),
    /// `create_directory`
    CreateDirectory(CreateDirectory),
    /// `copy_file`
    CopyFile(CopyFile),
    /// `delete_file`
    DeleteFile(DeleteFile),
    /// `list_directory`
    ListDirectory(ListDirectory),
    /// `install_packages`
    InstallPackages(InstallPackages),
}

/// The nine kinds of command, without their fields: what a runtime declares.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[expect(missing_docs, reason = "each variant is the command of the same name")]
pub enum CommandKind {
    WriteFile,
    ReadFile,
    ExecuteShell,
    ExecuteCode,
    CreateDirectory,
    CopyFile,
    DeleteFile,
    ListDirectory,
    InstallPackages,
}

impl CommandKind {
    /// All nine, in PROTOCOL's order.
    pub const ALL: [Self; 9] = [
        Self::WriteFile,
        Self::ReadFile,
        Self::ExecuteShell,
        Self::ExecuteCode,
        Self::CreateDirectory,
        Self::CopyFile,
        Self::DeleteFile,
        Self::ListDirectory,
        Self::InstallPackages,
    ];

    /// The `type` on the wire.
    pub fn name(self) -> &'static str {
        match self {
            Self::WriteFile => "write_file",
            Self::ReadFile => "read_file",
            Self::ExecuteShell => "execute_shell",
            Self::ExecuteCode => "execute_code",
            Self::CreateDirectory => "create_directory",
            Self::CopyFile => "copy_file",
            Self::DeleteFile => "delete_file",
            Self::ListDirectory => "list_directory",
            Self::InstallPackages => "install_packages",
        }
    }

    /// True for the commands that run a program (and so have an execution result).
    pub fn executes(self) -> bool {
        match self {
            Self::ExecuteShell | Self::ExecuteCode | Self::InstallPackages => true,
            Self::WriteFile
            | Self::ReadFile
            | Self::CreateDirectory
            | Self::CopyFile
            | Self::DeleteFile
            | Self::ListDirectory => false,
        }
    }
}

impl Command {
    /// Which of the nine it is.
    pub fn kind(&self) -> CommandKind {
        match self {
            Self::WriteFile(_) => CommandKind::WriteFile,
            Self::ReadFile(_) => CommandKind::ReadFile,
            Self::ExecuteShell(_) => CommandKind::ExecuteShell,
            Self::ExecuteCode(_) => CommandKind::ExecuteCode,
            Self::CreateDirectory(_) => CommandKind::CreateDirectory,
            Self::CopyFile(_) => CommandKind::CopyFile,
            Self::DeleteFile(_) => CommandKind::DeleteFile,
            Self::ListDirectory(_) => CommandKind::ListDirectory,
            Self::InstallPackages(_) => CommandKind::InstallPackages,
        }
    }
}

/// What `write_file` does to what is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum WriteMode {
    /// Create or replace, atomically.
    Create,
    /// Add to the end, creating when absent.
    Append,
    /// Fail with `already_exists` when something is there.
    CreateNew,
}

/// Fields of `write_file`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WriteFile {
    /// Where; missing parents are made.
    pub path: SessionPath,
    /// The decoded bytes.
    pub content: Vec<u8>,
    /// Create, Append or CreateNew.
    pub mode: WriteMode,
    /// Permission bits, 0 to 0o7777 as given; set-id bits are dropped by init.
    pub permissions: Option<u32>,
}

/// How file contents stand on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Encoding {
    /// Text; falls back to base64 when the bytes are not UTF-8.
    Utf8,
    /// Base64, standard alphabet with padding.
    Base64,
}

/// Fields of `read_file`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReadFile {
    /// Which file.
    pub path: SessionPath,
    /// The encoding asked for.
    pub encoding: Encoding,
    /// First byte.
    pub offset: u64,
    /// How many bytes at most; absent: up to the server's bound.
    pub length: Option<u64>,
}

/// Where a program's standard input comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stdin {
    /// End of file at once.
    Empty,
    /// These bytes, then end of file.
    Bytes(Vec<u8>),
    /// Stays open for `session.input` until its `eof`.
    Open,
}

/// Fields of `execute_shell`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExecuteShell {
    /// Program name (searched in PATH) or path; no NUL.
    pub program: String,
    /// One element is one argument; no NUL.
    pub args: Vec<String>,
    /// Default `/workspace`.
    pub working_directory: Option<SessionPath>,
    /// Added to the session's environment. Names without `=` and NUL.
    pub env: BTreeMap<String, String>,
    /// Standard input.
    pub stdin: Stdin,
    /// Wall time; absent: the profile's.
    pub timeout: Option<NonZeroU32>,
    /// Answer at once with the execution id.
    pub background: bool,
}

/// Fields of `execute_code`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExecuteCode {
    /// The source text.
    pub code: String,
    /// Language name or alias; absent: the session's.
    pub language: Option<String>,
    /// Packages to install first.
    pub packages: Vec<String>,
    /// Arguments of the program.
    pub args: Vec<String>,
    /// Added to the session's environment.
    pub env: BTreeMap<String, String>,
    /// Standard input.
    pub stdin: Stdin,
    /// Wall time in seconds; absent: the profile's.
    pub timeout: Option<NonZeroU32>,
}

/// Fields of `create_directory`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CreateDirectory {
    /// Which directory.
    pub path: SessionPath,
    /// Make missing parents; an existing directory is then no error.
    pub recursive: bool,
    /// Permission bits.
    pub permissions: Option<u32>,
}

/// Fields of `copy_file`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CopyFile {
    /// From.
    pub source: SessionPath,
    /// To; an existing directory is copied into only when the source is one too.
    pub destination: SessionPath,
    /// Replace what is there.
    pub overwrite: bool,
    /// Directories with what is in them.
    pub recursive: bool,
}

/// Fields of `delete_file`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeleteFile {
    /// Which entry.
    pub path: SessionPath,
    /// Directories with what is in them.
    pub recursive: bool,
}

/// Fields of `list_directory`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListDirectory {
    /// Which directory; `.` is `/workspace`.
    pub path: SessionPath,
    /// Subdirectories too.
    pub recursive: bool,
    /// Glob over names (or, when it holds a `/`, over paths below `path`); validated.
    pub pattern: Option<String>,
    /// Entries that begin with a dot.
    pub include_hidden: bool,
    /// Levels below `path`, 1 = its own entries.
    pub depth_max: Option<u32>,
    /// Entries at most.
    pub limit: Option<u64>,
}

/// Fields of `install_packages`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InstallPackages {
    /// Names, validated so that none can be taken for an option.
    pub packages: Vec<String>,
    /// A requirements file inside the session.
    pub requirements_file: Option<SessionPath>,
}

/// The answer to a command. A program that ends badly is an answer, not an error.
#[derive(Debug, Clone, PartialEq)]
pub struct CommandResult {
    /// Which execution this was.
    pub execution_id: ExecutionId,
    /// What the command gave; absent when it failed before giving anything.
    pub output: Option<CommandOutput>,
    /// Why it did not succeed; absent = success.
    pub failure: Option<Failure>,
    /// From taken off the session's queue to the answer.
    pub duration: Duration,
}

/// What carrying out a command gave, with why it failed all the same; the error is why it gave nothing.
pub type Answer = Result<(CommandOutput, Option<Failure>), Failure>;

impl CommandResult {
    /// The result of an execution that began at `started` and has ended now.
    pub fn of(execution_id: ExecutionId, started: Instant, answer: Answer) -> Self {
        let (output, failure) = match answer {
            Ok((output, failure)) => (Some(output), failure),
            Err(failure) => (None, Some(failure)),
        };
        Self { execution_id, output, failure, duration: started.elapsed() }
    }
}

/// Why a command did not succeed: `errorKind` and `error` on the wire.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// The machine-readable verdict.
    pub kind: FailureKind,
    /// One sentence for a person.
    pub message: String,
}

/// `errorKind` on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "each variant is the errorKind of the same name in snake case")]
pub enum FailureKind {
    NonzeroExit,
    Signaled,
    Timeout,
    OutOfMemory,
    PidsLimit,
    DiskFull,
    OutputLimit,
    SeccompViolation,
    Cancelled,
    ProgramNotFound,
    PermissionDenied,
    FileNotFound,
    AlreadyExists,
    NotARegularFile,
    PathInvalid,
    /// A limit or bound of a file command (entries, depth, bytes, time) was reached; an addition to PROTOCOL.
    LimitExceeded,
    /// The directory is not empty and `recursive` was false; an addition to PROTOCOL.
    DirectoryNotEmpty,
    /// A path component is not a directory; an addition to PROTOCOL.
    NotADirectory,
    /// A package could not be installed; an addition to PROTOCOL.
    PackageUnavailable,
    /// The compiler refused the code, so that no program ran; an addition to PROTOCOL.
    CompileError,
    /// The sandbox ended under the command; an addition to PROTOCOL.
    SandboxGone,
    /// Anything else the kernel refused; `error` names the call; an addition to PROTOCOL.
    IoError,
}

impl FailureKind {
    /// The word on the wire.
    pub fn name(self) -> &'static str {
        match self {
            Self::NonzeroExit => "nonzero_exit",
            Self::Signaled => "signaled",
            Self::Timeout => "timeout",
            Self::OutOfMemory => "out_of_memory",
            Self::PidsLimit => "pids_limit",
            Self::DiskFull => "disk_full",
            Self::OutputLimit => "output_limit",
            Self::SeccompViolation => "seccomp_violation",
            Self::Cancelled => "cancelled",
            Self::ProgramNotFound => "program_not_found",
            Self::PermissionDenied => "permission_denied",
            Self::FileNotFound => "file_not_found",
            Self::AlreadyExists => "already_exists",
            Self::NotARegularFile => "not_a_regular_file",
            Self::PathInvalid => "path_invalid",
            Self::LimitExceeded => "limit_exceeded",
            Self::DirectoryNotEmpty => "directory_not_empty",
            Self::NotADirectory => "not_a_directory",
            Self::PackageUnavailable => "package_unavailable",
            Self::CompileError => "compile_error",
            Self::SandboxGone => "sandbox_gone",
            Self::IoError => "io_error",
        }
    }
}

/// `result` on the wire; the paths are those the client sent.
#[derive(Debug, Clone, PartialEq)]
pub enum CommandOutput {
    /// `write_file`
    Written {
        /// As asked.
        path: String,
        /// Bytes written by this command.
        bytes: u64,
    },
    /// `read_file`
    Read {
        /// As asked.
        path: String,
        /// The bytes read.
        content: Vec<u8>,
        /// The encoding asked for.
        encoding: Encoding,
        /// Size of the whole file in bytes.
        size: u64,
        /// More bytes follow than `content` holds.
        truncated: bool,
    },
    /// `create_directory`
    DirectoryCreated {
        /// As asked.
        path: String,
        /// False when it was there.
        created: bool,
    },
    /// `copy_file`
    Copied {
        /// As asked.
        source: String,
        /// As asked.
        destination: String,
        /// Bytes of file contents copied.
        bytes: u64,
    },
    /// `delete_file`
    Deleted {
        /// As asked.
        path: String,
        /// Number of entries removed.
        deleted: u64,
    },
    /// `list_directory`
    Listing {
        /// As asked.
        path: String,
        /// Sorted by path.
        entries: Vec<FileEntry>,
        /// More entries exist than `entries` holds.
        truncated: bool,
    },
    /// `execute_shell`, `execute_code`, `install_packages`
    Execution(ExecutionReport),
    /// `background: true`: it was started.
    Started,
}

/// What an entry of a directory is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[expect(missing_docs, reason = "the names of PROTOCOL section 3")]
pub enum EntryType {
    File,
    Directory,
    Symlink,
    Other,
}

/// One row of a listing. Names are bytes: they need not be UTF-8.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct FileEntry {
    /// The last component.
    pub name: Vec<u8>,
    /// Absolute path inside the session.
    pub path: Vec<u8>,
    /// File, directory, symlink or other.
    pub kind: EntryType,
    /// Bytes.
    pub size: u64,
    /// Permission bits, 0 to 0o7777.
    pub mode: u32,
    /// Milliseconds since the epoch.
    pub modified_ms: i64,
    /// Where a symlink points.
    pub target: Option<Vec<u8>>,
}

/// How a program ended and what it used. `stdout` and `stderr` are filled in by the session from its capture.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ExecutionReport {
    /// What was kept of standard output.
    pub stdout: Captured,
    /// What was kept of standard error.
    pub stderr: Captured,
    /// The program's own; 128+n for signal n; absent when it never started.
    pub exit_code: Option<i32>,
    /// Name such as `SIGKILL`, when a signal ended it.
    pub signal: Option<String>,
    /// The wall-time limit ended it.
    pub timed_out: bool,
    /// The kernel killed something of it for want of memory.
    pub oom_killed: bool,
    /// The limit that was met, in words (`memory 512 MiB`).
    pub limit: Option<String>,
    /// Resources used.
    pub usage: Usage,
    /// Names of system calls that seccomp refused, where the kernel lets us know.
    pub blocked_syscalls: Option<Vec<String>>,
}

/// First and last part of a stream.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Captured {
    /// The bytes kept, with a marker line where the middle was left out.
    pub data: Vec<u8>,
    /// Something was left out.
    pub truncated: bool,
}

/// What an execution (or a session) used; absent = this host can't tell.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// User and system time in milliseconds.
    pub cpu_ms: Option<u64>,
    /// Highest memory of the session's group while it ran.
    pub memory_peak_bytes: Option<u64>,
    /// Most processes and threads at once.
    pub pids_peak: Option<u64>,
}

/// Which of a program's two output streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "the standard streams")]
pub enum Stream {
    Stdout,
    Stderr,
}

/// What a client can do to a running execution.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Control {
    /// `session.input`: bytes for standard input, then perhaps its end.
    Input {
        /// May be empty.
        data: Vec<u8>,
        /// Close standard input after `data`.
        eof: bool,
    },
    /// `session.signal`: a signal number for the program's process group.
    Signal(i32),
    /// `session.cancel`: end every descendant; the verdict is `cancelled`.
    Cancel,
}
