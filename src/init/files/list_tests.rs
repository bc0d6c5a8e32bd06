//! Claims about `list_directory`.

use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink};

use super::FileBounds;
use super::testbed::{Listing, Sandbox};
use crate::command::{EntryType, FileEntry};
use crate::plan::files::FileErrorKind;

fn paths(entries: &[FileEntry]) -> Vec<String> {
    entries.iter().map(|entry| String::from_utf8_lossy(&entry.path).into_owned()).collect()
}

fn project() -> Sandbox {
    let sandbox = Sandbox::new();
    for path in ["a.txt", "a/b.py", "a/c/d.py", "e.py", ".git/config.py"] {
        sandbox.put(&format!("/workspace/{path}"), b"12345");
    }
    sandbox
}

#[test]
fn each_entry_tells_what_it_is() {
    let sandbox = Sandbox::new();
    sandbox.put("/workspace/file", b"123");
    std::fs::set_permissions(sandbox.host("/workspace/file"), std::fs::Permissions::from_mode(0o640)).expect("ours");
    std::fs::create_dir(sandbox.host("/workspace/directory")).expect("room on the disk");
    symlink("/nowhere", sandbox.host("/workspace/link")).expect("room on the disk");
    sandbox.make_fifo("/workspace/fifo");
    let (entries, truncated) = sandbox.list(Listing::default()).expect("a directory");
    let kinds: Vec<_> = entries.iter().map(|entry| entry.kind).collect();
    assert_eq!(kinds, [EntryType::Directory, EntryType::Other, EntryType::File, EntryType::Symlink]);
    assert_eq!(paths(&entries), ["/workspace/directory", "/workspace/fifo", "/workspace/file", "/workspace/link"]);
    let file = &entries[2];
    assert_eq!((&file.name[..], file.size, file.mode), (&b"file"[..], 3, 0o640));
    assert!(file.modified_ms > 1_600_000_000_000, "it was made today: {}", file.modified_ms);
    assert_eq!(entries[3].target.as_deref(), Some(&b"/nowhere"[..]));
    assert!(!truncated);
}

#[test]
fn a_tree_is_sorted_by_path_and_goes_as_deep_as_asked() {
    let sandbox = project();
    let all = sandbox.tree(".").expect("a directory").0;
    let expected = [".git", ".git/config.py", "a", "a.txt", "a/b.py", "a/c", "a/c/d.py", "e.py"];
    assert_eq!(paths(&all), expected.map(|path| format!("/workspace/{path}")));
    let shallow = sandbox.list(Listing { recursive: true, depth_max: Some(2), path: "a", ..Listing::default() });
    assert_eq!(paths(&shallow.expect("a directory").0).last().map(String::as_str), Some("/workspace/a/c/d.py"));
    let own = sandbox.list(Listing { recursive: true, depth_max: Some(1), path: "a", ..Listing::default() });
    assert_eq!(paths(&own.expect("a directory").0), ["/workspace/a/b.py", "/workspace/a/c"]);
}

#[test]
fn a_pattern_is_over_names_and_with_a_slash_over_paths() {
    let sandbox = project();
    let matching = |pattern, include_hidden| {
        let listing = Listing { recursive: true, pattern: Some(pattern), include_hidden, ..Listing::default() };
        paths(&sandbox.list(listing).expect("a valid pattern").0)
    };
    assert_eq!(matching("*.py", false), ["/workspace/a/b.py", "/workspace/a/c/d.py", "/workspace/e.py"]);
    assert_eq!(matching("*.py", true).len(), 4);
    assert_eq!(matching("a/*.py", true), ["/workspace/a/b.py"]);
    assert_eq!(matching("a/**/*.py", true), ["/workspace/a/b.py", "/workspace/a/c/d.py"]);
    let broken = sandbox.list(Listing { pattern: Some("[a"), ..Listing::default() });
    assert_eq!(broken.expect_err("no glob").kind, FileErrorKind::PathInvalid);
}

#[test]
fn a_limit_keeps_the_first_entries_and_says_so() {
    let sandbox = project();
    let limited = |limit| sandbox.list(Listing { limit, ..Listing::default() }).expect("a directory");
    let (entries, truncated) = limited(2);
    assert_eq!((paths(&entries), truncated), (vec!["/workspace/.git".to_owned(), "/workspace/a".to_owned()], true));
    let (entries, truncated) = limited(4);
    assert_eq!((entries.len(), truncated), (4, false));
}

#[test]
fn the_paths_shown_lead_to_the_entries_also_after_dots_and_links() {
    let sandbox = project();
    symlink("/workspace/a/c", sandbox.host("/workspace/link")).expect("room on the disk");
    let listed = |path| paths(&sandbox.list(Listing { path, ..Listing::default() }).expect("a directory").0);
    assert_eq!(listed("a/../a/./c"), ["/workspace/a/c/d.py"]);
    assert_eq!(listed("/"), ["/workspace"]);
    assert_eq!(listed("../.."), ["/workspace"]);
    let through = listed("link/..");
    assert_eq!(through, ["/workspace/link/../b.py", "/workspace/link/../c"]);
    assert_eq!(sandbox.read(&through[0]), Ok(b"12345".to_vec()));
}

#[test]
fn names_that_are_no_text_come_as_their_bytes() {
    let sandbox = Sandbox::new();
    let name = b"\xff\xfe\n\x01odd";
    std::fs::write(sandbox.host("/workspace").join(std::ffi::OsStr::from_bytes(name)), b"x").expect("room on the disk");
    let listing = Listing { pattern: Some("*odd"), ..Listing::default() };
    let (entries, _) = sandbox.list(listing).expect("a directory");
    assert_eq!(entries.iter().map(|entry| &entry.name[..]).collect::<Vec<_>>(), [&name[..]]);
}

#[test]
fn what_the_bounds_cut_off_makes_a_listing_truncated() {
    let mut sandbox = project();
    assert!(!sandbox.tree(".").expect("a directory").1);
    for bounds in [
        FileBounds { entries_max: 3, ..FileBounds::default() },
        FileBounds { depth_max: 1, ..FileBounds::default() },
        FileBounds { listing_bytes_max: 500, ..FileBounds::default() },
    ] {
        sandbox.context.bounds = bounds;
        let (entries, truncated) = sandbox.tree(".").expect("a directory");
        assert!(truncated && !entries.is_empty(), "{bounds:?}");
    }
}

#[test]
fn a_file_can_not_be_listed() {
    let sandbox = project();
    let error = sandbox.list(Listing { path: "e.py", ..Listing::default() }).expect_err("a file");
    assert_eq!(error.kind, FileErrorKind::NotADirectory);
}

#[test]
fn a_hundred_thousand_entries_are_listed_in_order() {
    let sandbox = Sandbox::in_memory();
    for index in 0..100_000 {
        std::fs::File::create(sandbox.host(&format!("/workspace/{index:06}"))).expect("room in memory");
    }
    let start = std::time::Instant::now();
    let (entries, truncated) = sandbox.list(Listing::default()).expect("a directory");
    println!("listed in {:?}", start.elapsed());
    assert!(entries.is_sorted_by(|one, next| one.path < next.path));
    assert_eq!((entries.len(), truncated), (100_000, false));
}
