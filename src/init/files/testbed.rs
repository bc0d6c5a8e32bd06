//! A temporary directory as the root of a sandbox, and short forms of the commands for tests.

use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;

use rustix::fs::{CWD, Mode, OFlags, mkdirat, open};

use super::open::open_place;
use super::{Carriers, FileContext, path, run};
use crate::command::{FileEntry, WriteMode};
use crate::plan::files::{CONTENTS_INLINE_BYTES_MAX, Contents, FileCommand, FileError, FileReply};
use crate::sys::memory::{self, Mapped};

/// The root of a sandbox that is no sandbox: only RESOLVE_IN_ROOT keeps commands inside.
pub(super) struct Sandbox {
    root: tempfile::TempDir,
    pub(super) context: FileContext,
}

impl Sandbox {
    pub(super) fn new() -> Self {
        Self::with_root(tempfile::tempdir().expect("room on the disk"))
    }

    /// In memory, for so many entries that a disk's journal would be what is measured.
    pub(super) fn in_memory() -> Self {
        Self::with_root(tempfile::tempdir_in("/dev/shm").expect("a tmpfs"))
    }

    fn with_root(root: tempfile::TempDir) -> Self {
        crate::sys::process::set_umask(super::UMASK);
        fs::create_dir(root.path().join("workspace")).expect("room on the disk");
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let descriptor = open(root.path(), flags, Mode::empty()).expect("just made");
        Self { root, context: FileContext::new(descriptor, "/workspace") }
    }

    /// Where a path of the sandbox lies on the host; for setting up and looking, not for hostile paths.
    pub(super) fn host(&self, path: &str) -> PathBuf {
        self.root.path().join(path.trim_start_matches('/'))
    }

    pub(super) fn open(&self, path: &str) -> OwnedFd {
        path::open_from_root(&self.context, path.as_bytes()).expect("the test made it")
    }

    /// Puts a file there, with its parents.
    pub(super) fn put(&self, path: &str, content: &[u8]) {
        let path = self.host(path);
        fs::create_dir_all(path.parent().expect("below the root")).expect("room on the disk");
        fs::write(path, content).expect("room on the disk");
    }

    pub(super) fn get(&self, path: &str) -> Vec<u8> {
        fs::read(self.host(path)).expect("the test expects it there")
    }

    /// Sorted names of a directory.
    pub(super) fn names(&self, path: &str) -> Vec<String> {
        let entries = fs::read_dir(self.host(path)).expect("a directory");
        let name = |entry: std::io::Result<fs::DirEntry>| entry.expect("readable").file_name().to_string_lossy().into_owned();
        let mut names: Vec<String> = entries.map(name).collect();
        names.sort();
        names
    }

    /// A chain of `levels` directories of one name; paths are too short for it.
    pub(super) fn make_deep(&self, path: &str, name: &str, levels: usize) {
        let mut current = self.open(path);
        for _ in 0..levels {
            mkdirat(current.as_fd(), name, Mode::from_raw_mode(0o755)).expect("room on the disk");
            current = open_place(&current, name.as_bytes()).expect("just made");
        }
    }

    pub(super) fn make_fifo(&self, path: &str) {
        rustix::fs::mknodat(CWD, self.host(path), rustix::fs::FileType::Fifo, Mode::from_raw_mode(0o666), 0)
            .expect("anyone may make one");
    }

    /// What is too large for a message goes beside it, both ways.
    pub(super) fn run(&self, mut command: FileCommand) -> Result<FileReply, FileError> {
        let mut carriers = Carriers::default();
        if let FileCommand::Write { content, .. } = &mut command
            && let Contents::Inline(bytes) = &*content
            && bytes.len() > CONTENTS_INLINE_BYTES_MAX
        {
            let carrier = memory::carrier_of(bytes).expect("a carrier");
            carriers.given = Some(Mapped::of(carrier));
            *content = Contents::Carried;
        }
        let mut reply = run(command, &self.context, &mut carriers)?;
        if let FileReply::Read { content, .. } = &mut reply
            && let Some(carrier) = carriers.filled
        {
            *content = memory::read_carrier(carrier, u64::MAX).expect("a memory file").into();
        }
        Ok(reply)
    }

    pub(super) fn read_span(&self, path: &str, offset: u64, length: u64) -> Result<FileReply, FileError> {
        self.run(FileCommand::Read { path: path.into(), offset, length })
    }

    pub(super) fn read(&self, path: &str) -> Result<Vec<u8>, FileError> {
        match self.read_span(path, 0, 1 << 20)? {
            FileReply::Read { content: Contents::Inline(content), .. } => Ok(content),
            other => panic!("a read answers with contents, not {other:?}"),
        }
    }

    pub(super) fn write(&self, path: &str, content: &[u8]) -> Result<FileReply, FileError> {
        self.write_as(path, content, WriteMode::Create, None)
    }

    pub(super) fn write_as(
        &self,
        path: &str,
        content: &[u8],
        mode: WriteMode,
        permissions: Option<u32>,
    ) -> Result<FileReply, FileError> {
        self.run(FileCommand::Write { path: path.into(), content: content.to_vec().into(), mode, permissions })
    }

    pub(super) fn make_directory(&self, path: &str, recursive: bool, mode: Option<u32>) -> Result<FileReply, FileError> {
        self.run(FileCommand::CreateDirectory { path: path.into(), recursive, permissions: mode })
    }

    pub(super) fn copy(&self, source: &str, destination: &str) -> Result<FileReply, FileError> {
        self.copy_as(source, destination, true, true)
    }

    pub(super) fn copy_as(&self, from: &str, to: &str, overwrite: bool, recursive: bool) -> Result<FileReply, FileError> {
        self.run(FileCommand::Copy { source: from.into(), destination: to.into(), overwrite, recursive })
    }

    pub(super) fn delete(&self, path: &str, recursive: bool) -> Result<FileReply, FileError> {
        self.run(FileCommand::Delete { path: path.into(), recursive })
    }

    /// A recursive listing with everything in it, and whether it is truncated.
    pub(super) fn tree(&self, path: &str) -> Result<(Vec<FileEntry>, bool), FileError> {
        self.list(Listing { path, recursive: true, ..Listing::default() })
    }

    pub(super) fn list(&self, listing: Listing<'_>) -> Result<(Vec<FileEntry>, bool), FileError> {
        let Listing { path, recursive, pattern, include_hidden, depth_max, limit } = listing;
        let pattern = pattern.map(str::to_owned);
        let command = FileCommand::List { path: path.into(), recursive, pattern, include_hidden, depth_max, limit };
        match self.run(command)? {
            FileReply::Listed { entries, truncated } => Ok((entries, truncated)),
            other => panic!("a listing answers with entries, not {other:?}"),
        }
    }
}

/// The fields of `list_directory` with the wire's own defaults.
#[derive(Debug, Clone, Copy)]
pub(super) struct Listing<'l> {
    pub(super) path: &'l str,
    pub(super) recursive: bool,
    pub(super) pattern: Option<&'l str>,
    pub(super) include_hidden: bool,
    pub(super) depth_max: Option<u32>,
    pub(super) limit: u64,
}

impl Default for Listing<'_> {
    fn default() -> Self {
        Self { path: ".", recursive: false, pattern: None, include_hidden: true, depth_max: None, limit: 1_000_000 }
    }
}
