//! What a program in the sandbox may prepare for the file commands of its own session: links, odd files, races, depth.

use std::os::fd::AsFd;
use std::os::unix::fs::symlink;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::fs::{CWD, Mode, OFlags, RenameFlags, open, renameat_with};

use super::testbed::{Listing, Sandbox};
use super::{FileBounds, open::refuse_kernel_file_system};
use crate::command::WriteMode;
use crate::plan::files::{FileError, FileErrorKind, FileReply};

/// No single command may take this long, whatever is in its way; a blocked one would take for ever.
const COMMAND_TIME_MAX: Duration = Duration::from_secs(5);

/// Each file command on one path; `delete` last.
fn every_command(sandbox: &Sandbox, path: &str) -> Vec<(&'static str, Result<(), FileError>)> {
    let mut outcomes = Vec::new();
    let mut note = |name, command: &dyn Fn() -> Result<(), FileError>| {
        let start = Instant::now();
        outcomes.push((name, command()));
        assert!(start.elapsed() < COMMAND_TIME_MAX, "{name} of {path} waited {:?}", start.elapsed());
    };
    note("read", &|| sandbox.read(path).map(drop));
    note("write", &|| sandbox.write(path, b"new").map(drop));
    note("append", &|| sandbox.write_as(path, b"new", WriteMode::Append, None).map(drop));
    note("copy from", &|| sandbox.copy(path, "/workspace/copied").map(drop));
    note("copy to", &|| sandbox.copy("/workspace/plain", path).map(drop));
    note("list", &|| sandbox.tree(path).map(drop));
    outcomes
}

#[test]
fn no_link_leads_out_of_the_root() {
    let sandbox = Sandbox::new();
    let outside = tempfile::tempdir().expect("room on the disk");
    let canary = outside.path().join("canary");
    std::fs::write(&canary, b"host").expect("room on the disk");
    let up = format!("{}{}", "../".repeat(40), canary.strip_prefix("/").expect("absolute").display());
    sandbox.put("/workspace/plain", b"plain");
    symlink(&canary, sandbox.host("/workspace/absolute")).expect("room on the disk");
    symlink(&up, sandbox.host("/workspace/relative")).expect("room on the disk");
    symlink(outside.path(), sandbox.host("/workspace/directory")).expect("room on the disk");
    for path in ["absolute", "relative", "directory/canary", &up, canary.to_str().expect("plain text")] {
        assert_eq!(sandbox.read(path).expect_err(path).kind, FileErrorKind::FileNotFound, "{path}");
        // Without RESOLVE_IN_ROOT the same path is the host's file.
        let host = std::fs::read(sandbox.host("/workspace").join(path)).expect("the wall is not in the way");
        assert_eq!(host, b"host");
    }
    // Below the root the same links are as good as any.
    let inside = canary.to_str().expect("plain text");
    sandbox.write(inside, b"session").expect("parents are made inside");
    for path in ["absolute", "relative", "directory/canary"] {
        assert_eq!(sandbox.read(path), Ok(b"session".to_vec()), "{path}");
        sandbox.write(path, b"session").expect("inside");
        sandbox.delete(path, true).expect("inside");
        sandbox.write(inside, b"session").expect("inside");
    }
    assert_eq!(std::fs::read(&canary).expect("untouched"), b"host");
    assert_eq!(std::fs::read_dir(outside.path()).expect("untouched").count(), 1);
}

#[test]
fn a_loop_of_links_ends() {
    let sandbox = Sandbox::new();
    symlink("b", sandbox.host("/workspace/a")).expect("room on the disk");
    symlink("a", sandbox.host("/workspace/b")).expect("room on the disk");
    for (name, outcome) in every_command(&sandbox, "a") {
        if name != "copy to" {
            assert_eq!(outcome.expect_err(name).kind, FileErrorKind::PathInvalid, "{name}");
        }
    }
    assert_eq!(sandbox.read("a/x").expect_err("a loop").kind, FileErrorKind::PathInvalid);
    assert_eq!(sandbox.delete("a", true), Ok(FileReply::Deleted { entries: 1 }));
}

#[test]
fn procfs_and_its_kind_are_refused_and_an_ordinary_file_system_is_not() {
    let directory = |path| open(path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).expect("it exists");
    let error = refuse_kernel_file_system(directory("/proc").as_fd()).expect_err("procfs");
    assert_eq!(error.kind, FileErrorKind::PathInvalid);
    refuse_kernel_file_system(directory("/tmp").as_fd()).expect("an ordinary one");

    let mut sandbox = Sandbox::new();
    sandbox.context.root = directory("/");
    // The second time the devices of ordinary files are known.
    for _ in 0..2 {
        for path in
            ["/proc/version", "/proc/self/exe", "/proc/self/root/etc/passwd", "/proc/self/cwd", "/proc", "/proc/self/fd/0"]
        {
            assert_eq!(sandbox.read(path).expect_err(path).kind, FileErrorKind::PathInvalid, "{path}");
            let listing = Listing { path, ..Listing::default() };
            assert_eq!(sandbox.list(listing).expect_err(path).kind, FileErrorKind::PathInvalid, "{path}");
        }
        sandbox.read("/etc/passwd").expect("an ordinary file");
    }
    for path in ["/dev/null", "/dev/zero", "/dev/tty"] {
        assert_eq!(sandbox.read(path).expect_err(path).kind, FileErrorKind::NotARegularFile, "{path}");
    }
}

#[test]
fn fifos_and_sockets_are_refused_at_once() {
    let sandbox = Sandbox::new();
    sandbox.put("/workspace/plain", b"plain");
    sandbox.make_fifo("/workspace/fifo");
    let _listener = std::os::unix::net::UnixListener::bind(sandbox.host("/workspace/socket")).expect("room on the disk");
    symlink("fifo", sandbox.host("/workspace/link")).expect("room on the disk");
    for path in ["fifo", "socket", "link"] {
        for (name, outcome) in every_command(&sandbox, path) {
            let expected = if name == "list" { FileErrorKind::NotADirectory } else { FileErrorKind::NotARegularFile };
            assert_eq!(outcome.expect_err(name).kind, expected, "{name} of {path}");
        }
    }
    sandbox.put("/workspace/tree/a", b"x");
    sandbox.make_fifo("/workspace/tree/fifo");
    assert_eq!(sandbox.copy("tree", "other").expect_err("a fifo in it").kind, FileErrorKind::NotARegularFile);
    assert_eq!(sandbox.delete("tree", true), Ok(FileReply::Deleted { entries: 3 }));
}

/// Exchanges two names without pause until `done`.
fn exchange(sandbox: &Sandbox, one: &str, other: &str, done: &AtomicBool) {
    let (one, other) = (sandbox.host(one), sandbox.host(other));
    while !done.load(Ordering::Relaxed) {
        renameat_with(CWD, &one, CWD, &other, RenameFlags::EXCHANGE).ok();
    }
}

#[test]
fn a_racer_that_exchanges_files_with_a_fifo_and_directories_with_links_gains_nothing() {
    let outside = tempfile::tempdir().expect("room on the disk");
    std::fs::write(outside.path().join("file"), b"host").expect("room on the disk");
    let sandbox = Sandbox::new();
    sandbox.put("/workspace/plain", b"plain");
    sandbox.put("/workspace/file", b"session");
    sandbox.make_fifo("/workspace/fifo");
    sandbox.put("/workspace/directory/file", b"session");
    symlink(outside.path(), sandbox.host("/workspace/link")).expect("room on the disk");
    let done = AtomicBool::new(false);
    let (mut read, mut refused) = (0, 0);
    std::thread::scope(|scope| {
        scope.spawn(|| exchange(&sandbox, "/workspace/file", "/workspace/fifo", &done));
        scope.spawn(|| exchange(&sandbox, "/workspace/directory", "/workspace/link", &done));
        let start = Instant::now();
        while start.elapsed() < Duration::from_secs(1) {
            every_command(&sandbox, "file");
            for path in ["directory", "directory/file"] {
                every_command(&sandbox, path);
            }
            match sandbox.read("directory/file") {
                Ok(content) => {
                    assert_ne!(content, b"host", "the host's file was read");
                    read += 1;
                }
                Err(_) => refused += 1,
            }
        }
        done.store(true, Ordering::Relaxed);
    });
    assert!(read > 0 && refused > 0, "the race was on: {read} read, {refused} refused");
    assert_eq!(std::fs::read(outside.path().join("file")).expect("untouched"), b"host");
    assert_eq!(std::fs::read_dir(outside.path()).expect("untouched").count(), 1);
}

#[test]
fn a_reader_beside_a_writer_sees_one_version_or_the_other() {
    let sandbox = Sandbox::new();
    let versions = [vec![b'a'; 200_000], vec![b'b'; 100_000]];
    sandbox.write("file", &versions[0]).expect("room on the disk");
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for round in 0..200 {
                sandbox.write("file", &versions[round % 2]).expect("room on the disk");
            }
            done.store(true, Ordering::Relaxed);
        });
        while !done.load(Ordering::Relaxed) {
            let content = sandbox.read("file").expect("one version is always there");
            assert!(versions.contains(&content), "a mixture of {} bytes", content.len());
        }
    });
    assert_eq!(sandbox.names("/workspace"), ["file"]);
}

#[test]
fn a_file_under_a_lease_is_an_error_and_not_a_wait() {
    let sandbox = Sandbox::new();
    sandbox.put("/workspace/leased", b"x");
    let holder = std::fs::File::options().write(true).read(true).open(sandbox.host("/workspace/leased")).expect("ours");
    crate::sys::files::set_lease_signal(holder.as_fd(), libc::SIGURG).expect("the owner may");
    lease(&holder, libc::F_WRLCK);
    let start = Instant::now();
    let error = sandbox.read("leased").expect_err("leased");
    assert_eq!((error.kind, error.errno), (FileErrorKind::IoError, libc::EAGAIN));
    assert!(start.elapsed() < COMMAND_TIME_MAX);
    lease(&holder, libc::F_UNLCK);
    assert_eq!(sandbox.read("leased"), Ok(b"x".to_vec()));
}

/// Takes or gives back a lease.
fn lease(file: &std::fs::File, kind: i32) {
    crate::sys::files::set_lease(file.as_fd(), kind).expect("the owner may");
}

#[test]
fn a_tree_of_many_levels_is_listed_in_part_copied_and_deleted_whole() {
    let sandbox = Sandbox::in_memory();
    sandbox.make_deep("/workspace", "d", 12_000);
    let (entries, truncated) = sandbox.tree(".").expect("a directory");
    assert!(truncated && entries.len() > 1_000, "{} entries", entries.len());
    sandbox.copy("d", "copy").expect("it has an end");
    assert_eq!(sandbox.delete("copy", true), Ok(FileReply::Deleted { entries: 12_000 }));
    assert_eq!(sandbox.delete("d", true), Ok(FileReply::Deleted { entries: 12_000 }));
    assert!(sandbox.names("/workspace").is_empty());
}

#[test]
fn a_hundred_thousand_levels_are_deleted() {
    let sandbox = Sandbox::in_memory();
    sandbox.make_deep("/workspace", "d", 100_000);
    assert_eq!(sandbox.delete("d", true), Ok(FileReply::Deleted { entries: 100_000 }));
}

#[test]
fn bounds_end_a_walk_with_a_verdict_and_without_bounds_it_goes_through() {
    let mut sandbox = Sandbox::new();
    for index in 0..20 {
        sandbox.put(&format!("/workspace/t/d/{index}"), b"x");
    }
    for bounds in [
        FileBounds { entries_max: 5, ..FileBounds::default() },
        FileBounds { depth_max: 0, ..FileBounds::default() },
        FileBounds { names_bytes_max: 1, ..FileBounds::default() },
        FileBounds { time_max: Duration::ZERO, ..FileBounds::default() },
    ] {
        sandbox.context.bounds = bounds;
        assert_eq!(sandbox.copy("t", "u").expect_err("bounded").kind, FileErrorKind::LimitExceeded, "{bounds:?}");
    }
    sandbox.context.bounds = FileBounds::default();
    assert_eq!(sandbox.copy("t", "u"), Ok(FileReply::Copied { bytes: 20 }));
}

#[test]
fn names_of_255_bytes_and_a_path_too_long_are_told_apart() {
    let sandbox = Sandbox::new();
    let longest = "n".repeat(255);
    sandbox.write(&longest, b"x").expect("as long as a name may be");
    assert_eq!(sandbox.copy(&longest, "b"), Ok(FileReply::Copied { bytes: 1 }));
    assert_eq!(sandbox.write(&"n".repeat(256), b"x").expect_err("too long").kind, FileErrorKind::PathInvalid);
    assert_eq!(sandbox.write(&"d/".repeat(2500), b"x").expect_err("too long").kind, FileErrorKind::PathInvalid);
    assert_eq!(sandbox.read("a\0b").expect_err("NUL").kind, FileErrorKind::PathInvalid);
    assert_eq!(sandbox.read("").expect_err("empty").kind, FileErrorKind::PathInvalid);
}
