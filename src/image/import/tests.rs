use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tar::{Builder, EntryType, Header};

use super::*;
use crate::image::{ImageRoot, Refusal, program_exists};

mod layers;

struct Fixture {
    dir: tempfile::TempDir,
    store: Store,
}

impl Fixture {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let store = Store::open(&dir.path().join("state")).expect("a store");
        Self { dir, store }
    }

    fn write(&self, bytes: &[u8]) -> PathBuf {
        let path = self.dir.path().join("source.tar");
        std::fs::write(&path, bytes).expect("the archive");
        path
    }

    /// Imports what stands at `source`, with the default bounds, to its end.
    fn take(&self, source: &Path, name: &str) -> Result<Imported, ImageError> {
        let (choice, cancel) = (Choice::native(), AtomicBool::new(false));
        let (taken, bounds) = (Taken::Refuse, Bounds::default());
        super::import(&self.store, Request { source, name, choice: &choice, taken, bounds, cancel: &cancel }, &mut |_| {})
    }

    fn import(&self, bytes: &[u8]) -> Result<Imported, ImageError> {
        self.import_bounded(bytes, Bounds::default())
    }

    fn import_bounded(&self, bytes: &[u8], bounds: Bounds) -> Result<Imported, ImageError> {
        let source = self.write(bytes);
        let cancel = AtomicBool::new(false);
        let choice = Choice::native();
        let (name, taken) = ("image", Taken::Refuse);
        let request = Request { source: &source, name, choice: &choice, taken, bounds, cancel: &cancel };
        super::import(&self.store, request, &mut |_| {})
    }

    fn lower(&self) -> PathBuf {
        self.store.resolve("image").expect("the image").lower
    }

    /// Neither a name, nor a layer, nor a half-made directory.
    fn assert_nothing_stays(&self) {
        for dir in ["names", "layers", "tmp"] {
            let path = self.dir.path().join("state/images").join(dir);
            assert_eq!(std::fs::read_dir(&path).expect("the directory").count(), 0, "{dir} is empty");
        }
    }

    fn assert_refused(&self, bytes: &[u8], refusal: Refusal) {
        match self.import(bytes) {
            Err(ImageError::EntryRefused { refusal: found, .. }) if found == refusal => self.assert_nothing_stays(),
            other => panic!("{refusal:?} expected, got {other:?}"),
        }
    }

    fn assert_bounded(&self, bytes: &[u8], bounds: Bounds, name: &str) {
        match self.import_bounded(bytes, bounds) {
            Err(ImageError::BoundExceeded { bound, .. }) if bound == name => self.assert_nothing_stays(),
            other => panic!("the bound {name} expected, got {other:?}"),
        }
    }
}

/// An entry whose name is written as it is, which the tar crate's own setters would refuse.
struct Entry<'a> {
    kind: EntryType,
    name: &'a str,
    link: &'a str,
    mode: u32,
    contents: &'a [u8],
}

fn file<'a>(name: &'a str, contents: &'a [u8]) -> Entry<'a> {
    Entry { kind: EntryType::Regular, name, link: "", mode: 0o644, contents }
}

fn link<'a>(kind: EntryType, name: &'a str, link: &'a str) -> Entry<'a> {
    Entry { kind, name, link, mode: 0o777, contents: b"" }
}

fn archive(entries: &[Entry<'_>]) -> Vec<u8> {
    let mut builder = Builder::new(Vec::new());
    for entry in entries {
        let mut header = Header::new_gnu();
        header.as_old_mut().name[..entry.name.len()].copy_from_slice(entry.name.as_bytes());
        header.as_old_mut().linkname[..entry.link.len()].copy_from_slice(entry.link.as_bytes());
        header.set_entry_type(entry.kind);
        header.set_mode(entry.mode);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1_000_000_000);
        header.set_size(entry.contents.len() as u64);
        header.set_cksum();
        builder.append(&header, entry.contents).expect("an entry");
    }
    builder.into_inner().expect("an archive")
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    encoder.write_all(bytes).expect("packed");
    encoder.finish().expect("packed")
}

#[test]
fn a_sound_archive_becomes_an_image_in_every_packing() {
    let plain = archive(&[
        link(EntryType::Directory, "./usr/bin/", ""),
        Entry { mode: 0o755, ..file("./usr/bin/tool", b"#!/bin/sh\n") },
        link(EntryType::Symlink, "bin", "usr/bin"),
        link(EntryType::Link, "usr/bin/again", "usr/bin/tool"),
        file("/absolute", b"inside"),
        file("etc/.wh.name", b"an ordinary name"),
    ]);
    let zstd = zstd::encode_all(plain.as_slice(), 3).expect("packed");
    let mut digests = Vec::new();
    for bytes in [plain.clone(), gzip(&plain), zstd] {
        let fixture = Fixture::new();
        let imported = fixture.import(&bytes).expect("a sound archive");
        digests.push(imported.info.digest);
        let image = fixture.store.resolve("image").expect("the image");
        let other = format!("image@sha256:{}", "0".repeat(64));
        assert_eq!(["image", &other].map(|name| fixture.store.has(name)), [true, false]);
        assert!(program_exists(&image, "tool") && program_exists(&image, "/bin/again"));
        assert_eq!(std::fs::read(image.lower.join("absolute")).expect("a file"), b"inside");
        let metadata = |name| std::fs::metadata(image.lower.join(name)).expect("a file");
        assert_eq!(metadata("usr/bin/tool").ino(), metadata("usr/bin/again").ino());
        assert_eq!((metadata("absolute").mtime(), metadata("tmp").mode() & 0o7777), (1_000_000_000, 0o1777));
        assert!(image.lower.join("etc/.wh.name").is_file() && image.lower.join("workspace").is_dir());
    }
    assert!(digests.windows(2).all(|pair| pair[0] == pair[1]), "the digest is that of the unpacked archive");
}

#[test]
fn a_name_that_climbs_out_is_refused() {
    for name in ["../escape", "a/../../escape", "a/.."] {
        Fixture::new().assert_refused(&archive(&[file(name, b"x")]), Refusal::ParentTraversal);
    }
}

#[test]
fn nothing_is_written_through_a_symbolic_link() {
    let fixture = Fixture::new();
    let outside = fixture.dir.path().join("outside");
    std::fs::create_dir(&outside).expect("a directory");
    let target = outside.to_str().expect("a name");
    for target in [target, "/etc", "usr", "..", "."] {
        let through =
            archive(&[link(EntryType::Directory, "usr", ""), link(EntryType::Symlink, "d", target), file("d/x", b"x")]);
        fixture.assert_refused(&through, Refusal::ParentNotADirectory);
        let twice = archive(&[link(EntryType::Symlink, "d", target), link(EntryType::Directory, "d/e/f", "")]);
        fixture.assert_refused(&twice, Refusal::ParentNotADirectory);
    }
    assert_eq!(std::fs::read_dir(&outside).expect("the directory").count(), 0);
    fixture.import(&archive(&[link(EntryType::Directory, "d", ""), file("d/x", b"x")])).expect("the control: a real directory");
}

#[test]
fn an_entry_replaces_a_link_instead_of_writing_where_it_points() {
    let fixture = Fixture::new();
    let canary = fixture.dir.path().join("canary");
    std::fs::write(&canary, "untouched").expect("a file");
    let target = canary.to_str().expect("a name");
    fixture.import(&archive(&[link(EntryType::Symlink, "f", target), file("f", b"new")])).expect("it is replaced");
    assert_eq!(std::fs::read(&canary).expect("a file"), b"untouched");
    assert_eq!(std::fs::read(fixture.lower().join("f")).expect("a file"), b"new");
}

#[test]
fn a_hard_link_reaches_only_what_the_image_holds() {
    let fixture = Fixture::new();
    let secret = fixture.dir.path().join("secret");
    std::fs::write(&secret, "secret").expect("a file");
    let name = secret.to_str().expect("a name");
    fixture.assert_refused(&archive(&[link(EntryType::Link, "l", name)]), Refusal::LinkTargetMissing);
    fixture.assert_refused(&archive(&[link(EntryType::Link, "l", "../../../secret")]), Refusal::ParentTraversal);
    let parent = fixture.dir.path().to_str().expect("a name").to_owned();
    let through = archive(&[link(EntryType::Symlink, "d", &parent), link(EntryType::Link, "l", "d/secret")]);
    fixture.assert_refused(&through, Refusal::LinkTargetMissing);
    let directory = archive(&[link(EntryType::Directory, "d", ""), link(EntryType::Link, "l", "d")]);
    fixture.assert_refused(&directory, Refusal::LinkTargetKind);
    // A link to a link names the link, not the file it points at.
    fixture
        .import(&archive(&[link(EntryType::Symlink, "s", name), link(EntryType::Link, "l", "s")]))
        .expect("a link to a link");
    assert!(fixture.lower().join("l").is_symlink());
    assert_eq!(std::fs::metadata(&secret).expect("a file").nlink(), 1);
}

#[test]
fn devices_and_set_id_bits_are_left_out_and_counted() {
    let fixture = Fixture::new();
    let bytes = archive(&[
        link(EntryType::Char, "dev/null", ""),
        link(EntryType::Block, "dev/sda", ""),
        link(EntryType::Fifo, "run/fifo", ""),
        Entry { mode: 0o6755, ..file("su", b"x") },
        Entry { mode: 0o2755, ..link(EntryType::Directory, "mail", "") },
    ]);
    let notes = fixture.import(&bytes).expect("an image").notes;
    assert_eq!((notes.special_files_skipped, notes.set_id_bits_dropped), (3, 3));
    let lower = fixture.lower();
    for (name, mode) in [("su", 0o755), ("mail", 0o755)] {
        assert_eq!(std::fs::metadata(lower.join(name)).expect("an entry").permissions().mode() & 0o7777, mode);
    }
    assert!(!lower.join("dev/null").exists() && lower.join("dev").is_dir());
}

fn plain_directory() -> Header {
    let mut header = Header::new_ustar();
    header.set_entry_type(EntryType::Directory);
    header.set_mode(0o755);
    header.set_size(0);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header
}

#[test]
fn no_part_of_an_attribute_is_read_as_another_header() {
    let fixture = Fixture::new();
    let with = |value: &[u8]| {
        let mut builder = Builder::new(Vec::new());
        builder.append_pax_extensions([("SCHILY.xattr.user.own", value)]).expect("extensions");
        builder.append_data(&mut plain_directory(), "d", std::io::empty()).expect("an entry");
        builder.into_inner().expect("an archive")
    };
    for value in [&b"x\n14 path=other\n"[..], b"\n14 path=other", b"\n"] {
        let outcome = fixture.import(&with(value));
        assert!(matches!(outcome, Err(ImageError::Archive { .. })), "{outcome:?}");
        fixture.assert_nothing_stays();
    }
    fixture.import(&with(b"14 path=other")).expect("the control: on one line");
    assert!(fixture.lower().join("d").is_dir() && !fixture.lower().join("other").exists());
}

#[test]
fn attributes_of_users_are_kept_and_those_of_the_overlay_and_of_the_kernel_are_dropped() {
    let mut builder = Builder::new(Vec::new());
    let own = b"a\0\xff=".as_slice();
    let attributes = [
        ("SCHILY.xattr.user.overlay.opaque", b"y".as_slice()),
        ("SCHILY.xattr.trusted.overlay.opaque", b"y"),
        ("SCHILY.xattr.security.capability", b"x"),
        ("SCHILY.xattr.user.own", own),
    ];
    builder.append_pax_extensions(attributes).expect("extensions");
    builder.append_data(&mut plain_directory(), "d", std::io::empty()).expect("an entry");
    let fixture = Fixture::new();
    // A tmpfs before Linux 6.6 has none; what can't be stored is counted.
    let has_any = rustix::fs::setxattr(fixture.dir.path(), "user.probe", b"x", rustix::fs::XattrFlags::empty()).is_ok();
    let dropped = fixture.import(&builder.into_inner().expect("an archive")).expect("an image").notes.xattrs_dropped;
    let of_directory = |root: &Path| {
        let mut value = [0; 16];
        rustix::fs::getxattr(root.join("d"), "user.own", &mut value).ok().map(|length| value[..length].to_vec())
    };
    let kept = has_any.then(|| own.to_vec());
    assert_eq!((dropped, of_directory(&fixture.lower())), (if has_any { 3 } else { 4 }, kept.clone()));
    fixture.take(&fixture.lower(), "copy").expect("a directory is a source too");
    assert_eq!(of_directory(&fixture.store.resolve("copy").expect("the image").lower), kept);
}

#[test]
fn every_bound_holds() {
    let fixture = Fixture::new();
    let small = archive(&[file("a", &[b'x'; 1000]), file("b", b"")]);
    let bounds = Bounds::default();
    fixture.assert_bounded(&small, Bounds { bytes_max: 999, ..bounds }, "bytes_max");
    fixture.assert_bounded(&small, Bounds { entries_max: 1, ..bounds }, "entries_max");
    fixture.assert_bounded(&small, Bounds { names_bytes_max: 1, ..bounds }, "names_bytes_max");
    let deep = archive(&[file("a/b/c/d", b"")]);
    fixture.assert_bounded(&deep, Bounds { depth_max: 3, ..bounds }, "depth_max");
    fixture.assert_bounded(&deep, Bounds { entries_max: 3, ..bounds }, "entries_max");
    fixture.assert_bounded(&deep, Bounds { path_bytes_max: 6, ..bounds }, "path_bytes_max");
    fixture.import_bounded(&small, Bounds { bytes_max: 1000, entries_max: 2, ..bounds }).expect("the control: just within");
}

#[test]
fn a_bomb_of_zeros_or_of_one_long_name_is_stopped() {
    let fixture = Fixture::new();
    let zeros = vec![0; 80 << 20];
    let packed = gzip(&archive(&[file("zeros", &zeros)]));
    fixture.assert_bounded(&packed, Bounds::default(), "expansion_max");
    let name = vec![b'a'; 2 << 20];
    let long = archive(&[Entry { kind: EntryType::GNULongName, ..file("././@LongLink", &name) }, file("a", b"")]);
    fixture.assert_bounded(&long, Bounds::default(), "header_bytes_max");
    fixture.import_bounded(&packed, Bounds { expansion_max: 2000, ..Bounds::default() }).expect("the control: a wider bound");
    let blocks = std::fs::metadata(fixture.lower().join("zeros")).expect("a file").blocks();
    assert!(blocks < 1000, "zeros become holes, not {blocks} blocks");
}

#[test]
fn a_thousand_directories_in_one_another_come_and_go() {
    let deep = "d/".repeat(1024);
    let mut builder = Builder::new(Vec::new());
    let mut header = Header::new_gnu();
    header.set_entry_type(EntryType::Directory);
    header.set_mode(0o500);
    header.set_size(0);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    builder.append_data(&mut header, &deep, std::io::empty()).expect("an entry");
    let fixture = Fixture::new();
    fixture.import(&builder.into_inner().expect("an archive")).expect("an image");
    fixture.store.remove("image").expect("removed");
    fixture.assert_nothing_stays();
}

#[test]
fn a_truncated_archive_leaves_nothing() {
    let whole = archive(&[file("a", &[b'x'; 2000]), file("b", &[b'y'; 2000])]);
    let fixture = Fixture::new();
    for length in [100, 600, 2000, 3072, 4000, whole.len() - 1024] {
        let error = fixture.import(&whole[..length]).expect_err("truncated");
        assert!(matches!(error, ImageError::Archive { .. }), "{length}: {error:?}");
        fixture.assert_nothing_stays();
    }
    let packed = gzip(&whole);
    assert!(fixture.import(&packed[..packed.len() - 9]).is_err());
    fixture.assert_nothing_stays();
    assert!(fixture.import(b"").is_err() && fixture.import(b"no archive at all").is_err());
    fixture.import(&whole).expect("the control: all of it");
}

#[test]
fn a_link_or_file_in_the_place_of_a_mount_point_is_refused() {
    for entry in [link(EntryType::Symlink, "dev", "/dev"), file("proc", b""), link(EntryType::Symlink, "workspace", "tmp")] {
        let fixture = Fixture::new();
        let error = fixture.import(&archive(&[entry])).expect_err("refused");
        assert!(matches!(error, ImageError::MountPoint { .. }), "{error:?}");
        fixture.assert_nothing_stays();
    }
}

#[test]
fn a_directory_is_copied_without_following_its_links() {
    let fixture = Fixture::new();
    let source = fixture.dir.path().join("tree");
    std::fs::create_dir_all(source.join("a/b")).expect("directories");
    std::fs::write(source.join("a/b/f"), "text").expect("a file");
    std::fs::hard_link(source.join("a/b/f"), source.join("a/g")).expect("a link");
    symlink("/etc/passwd", source.join("a/l")).expect("a link");
    symlink("/etc", source.join("d")).expect("a link");
    let first = fixture.take(&source, "image").expect("an image");
    let lower = fixture.lower();
    assert_eq!(std::fs::read(lower.join("a/b/f")).expect("a file"), b"text");
    assert!(lower.join("a/l").is_symlink() && lower.join("d").is_symlink());
    assert_eq!(std::fs::metadata(lower.join("a/g")).expect("a file").nlink(), 2);
    let again = fixture.take(&source, "other").expect("an image");
    assert_eq!(first.info.digest, again.info.digest);
    std::fs::write(source.join("a/b/f"), "texT").expect("a file");
    assert!(matches!(fixture.take(&source, "image"), Err(ImageError::AlreadyExists { .. })));
    let outer = fixture.take(fixture.dir.path(), "outer");
    assert!(matches!(outer, Err(ImageError::SourceHoldsStore { .. })));
}

#[test]
fn a_cancelled_import_leaves_nothing() {
    let fixture = Fixture::new();
    let source = fixture.write(&archive(&[file("a", b"x")]));
    let cancel = AtomicBool::new(true);
    let choice = Choice::native();
    let (name, taken, bounds) = ("image", Taken::Refuse, Bounds::default());
    let request = Request { source: &source, name, choice: &choice, taken, bounds, cancel: &cancel };
    assert!(matches!(super::import(&fixture.store, request, &mut |_| {}), Err(ImageError::Cancelled)));
    fixture.assert_nothing_stays();
    cancel.store(false, Ordering::Relaxed);
    super::import(&fixture.store, request, &mut |_| {}).expect("the control: not cancelled");
}

#[test]
fn an_image_whose_record_cannot_be_read_is_there_and_cannot_be_taken() {
    let fixture = Fixture::new();
    fixture.import(&archive(&[file("a", b"x")])).expect("a sound archive");
    let record = fixture.dir.path().join("state/images/names/image/image.json");
    std::fs::write(&record, "no record").expect("an own file");
    assert!(fixture.store.has("image"), "a session in its language must not stand on another one");
    assert!(matches!(fixture.store.resolve("image"), Err(ImageError::Record { .. })));
    std::fs::remove_file(&record).expect("an own file");
    assert!(!fixture.store.has("image"), "the control");
}

/// Two images of one tree, of which `one` is in use by another view of the store.
fn one_in_use() -> (Fixture, Store, ImageRoot) {
    let fixture = Fixture::new();
    let source = fixture.write(&archive(&[file("a", b"x")]));
    for name in ["one", "two:1"] {
        fixture.take(&source, name).expect("an image");
    }
    let elsewhere = Store::open(&fixture.dir.path().join("state")).expect("another view of the store");
    let root = elsewhere.resolve("one").expect("the image");
    (fixture, elsewhere, root)
}

#[test]
fn who_has_an_image_can_look_others_up_while_its_removal_waits_for_it() {
    let (fixture, elsewhere, root) = one_in_use();
    std::thread::scope(|scope| {
        let removal = scope.spawn(|| fixture.store.remove("one"));
        // Until the removal has looked once; one that looks later finds the image free.
        std::thread::sleep(Duration::from_millis(100));
        let asked = Instant::now();
        elsewhere.resolve("two:1").expect("the other image");
        assert!(asked.elapsed() < Duration::from_secs(2), "{:?}", asked.elapsed());
        drop(root);
        removal.join().expect("no panic").expect("the image was let go of in time");
    });
}

#[test]
fn what_is_in_use_stays_and_what_two_names_share_stays_for_the_other() {
    let (fixture, _elsewhere, root) = one_in_use();
    assert!(matches!(fixture.store.remove("one"), Err(ImageError::InUse { .. })));
    fixture.store.remove("two:1").expect("nobody uses it");
    assert!(root.lower.join("a").is_file());
    let names: Vec<_> = fixture.store.list().expect("a list").into_iter().map(|info| info.name.to_string()).collect();
    assert_eq!(names, ["one"]);
    drop(root);
    fixture.store.remove("one").expect("no one uses it any more");
    fixture.assert_nothing_stays();
    assert!(matches!(fixture.store.remove("one"), Err(ImageError::NotFound { .. })));
    assert!(matches!(fixture.store.remove("host"), Err(ImageError::NameReserved { .. })));
    assert!(matches!(fixture.store.resolve("../one"), Err(ImageError::NameInvalid { .. })));
}

#[test]
fn what_a_killed_process_left_goes_at_the_next_opening() {
    let fixture = Fixture::new();
    let tmp = fixture.dir.path().join("state/images/tmp");
    std::fs::create_dir_all(tmp.join("stale/root/a")).expect("directories");
    let layers = fixture.dir.path().join("state/images/layers");
    std::fs::create_dir_all(layers.join("unnamed/a")).expect("directories");
    fixture.import(&archive(&[file("a", b"x")])).expect("an image");
    let running = fixture.store.stage().expect("an import under way");
    Store::open(&fixture.dir.path().join("state")).expect("a store");
    assert!(!tmp.join("stale").exists() && !layers.join("unnamed").exists());
    assert!(fixture.lower().join("a").is_file(), "the control: a layer with a name stays");
    assert!(running.path().is_dir(), "the control: one that is locked stays");
}

#[test]
fn an_archive_of_gnu_tar_keeps_long_names_sparse_files_and_links() {
    let fixture = Fixture::new();
    let tree = fixture.dir.path().join("tree");
    let long = format!("{}/{}", "n".repeat(200), "m".repeat(200));
    std::fs::create_dir_all(tree.join("n".repeat(200))).expect("directories");
    std::fs::write(tree.join(&long), "long").expect("a file");
    let sparse = File::create(tree.join("sparse")).expect("a file");
    sparse.set_len(8 << 20).expect("a hole");
    std::os::unix::fs::FileExt::write_at(&sparse, b"end", (8 << 20) - 3).expect("its end");
    std::fs::hard_link(tree.join("sparse"), tree.join("again")).expect("a link");
    let archive = fixture.dir.path().join("tree.tar");
    for (options, understood) in [
        (&["--format=gnu", "--sparse"][..], true),
        (&["--format=pax", "--sparse"], true),
        (&["--format=pax", "--sparse", "--sparse-version=0.1"], false),
        (&["--format=pax", "--xattrs"], true),
    ] {
        let mut tar = std::process::Command::new("tar");
        tar.args(options).arg("-cf").arg(&archive).arg("-C").arg(&tree).arg(".");
        let Ok(status) = tar.status() else { return eprintln!("skipped: there is no tar program here") };
        assert!(status.success());
        let outcome = fixture.take(&archive, "image");
        if !understood {
            assert!(matches!(outcome, Err(ImageError::EntryRefused { refusal: Refusal::PaxSparse, .. })), "{outcome:?}");
            continue;
        }
        outcome.expect("an image");
        let lower = fixture.lower();
        assert_eq!(std::fs::read(lower.join(&long)).expect("a file"), b"long");
        assert_eq!(std::fs::read(lower.join("again")).expect("a file"), std::fs::read(tree.join("sparse")).expect("a file"));
        fixture.store.remove("image").expect("removed");
    }
}
