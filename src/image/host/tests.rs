use std::os::unix::fs::symlink;

use super::*;
use crate::image::program_exists;

fn write(path: &Path, text: &str, mode: u32) {
    std::fs::create_dir_all(path.parent().expect("a parent")).expect("directories");
    std::fs::write(path, text).expect("a file");
    std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).expect("permissions");
}

struct Fixture {
    dir: tempfile::TempDir,
    store: Store,
}

impl Fixture {
    /// A made-up host with a merged `/usr` and secrets all over.
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let store = Store::open(&dir.path().join("state")).expect("a store");
        let host = dir.path().join("host");
        write(&host.join("usr/bin/tool"), "", 0o755);
        symlink("usr/bin", host.join("bin")).expect("a link");
        write(&host.join("etc/ld.so.cache"), "cache", 0o644);
        write(&host.join("etc/localtime"), "zone", 0o600);
        write(&host.join("etc/shadow"), "secret", 0o644);
        write(&host.join("etc/passwd"), "admin:x:1:1::/:/bin/sh\n", 0o644);
        write(&host.join("etc/ssh/ssh_host_key"), "secret", 0o644);
        write(&host.join("etc/ssl/private/key.pem"), "secret", 0o644);
        write(&host.join("etc/ssl/certs/ca-certificates.crt"), "public", 0o644);
        write(&host.join("etc/ssl/certs/both.pem"), "-----BEGIN PRIVATE KEY-----", 0o644);
        write(&host.join("etc/python3.11/sitecustomize.py"), "", 0o644);
        std::fs::create_dir_all(host.join("etc/alternatives")).expect("a directory");
        symlink("/usr/bin/tool", host.join("etc/alternatives/t")).expect("a link");
        symlink("/etc/alternatives/t", host.join("usr/bin/t")).expect("a link");
        write(&host.join("root/.ssh/id"), "secret", 0o644);
        Self { dir, store }
    }

    fn host(&self) -> PathBuf {
        self.dir.path().join("host")
    }

    fn image(&self) -> ImageRoot {
        let (root, guard) = resolve_from(&self.store, &self.host(), &etc::fingerprint(&self.host())).expect("the image host");
        image(root, guard)
    }
}

#[test]
fn the_host_s_state_holds_for_a_moment_and_only_while_its_skeleton_is_there() {
    let fixture = Fixture::new();
    let looks = std::cell::Cell::new(0);
    let state = || {
        fixture.store.host().state(&fixture.store.host_dir(), || {
            looks.set(looks.get() + 1);
            "state".to_owned()
        })
    };
    assert_eq!((state(), state(), looks.get()), ("state".to_owned(), "state".to_owned(), 2), "there is none yet");
    std::fs::create_dir(fixture.store.host_dir().join("state")).expect("an own directory");
    assert_eq!((state(), looks.get()), ("state".to_owned(), 2));
}

#[test]
fn the_image_is_given_as_it_was_while_that_holds_and_let_go_when_asked_for_after_that() {
    let fixture = Fixture::new();
    let state = fixture.store.host().state(&fixture.store.host_dir(), || etc::fingerprint(&fixture.host()));
    let (root, guard) = resolve_from(&fixture.store, &fixture.host(), &state).expect("the image host");
    assert!(fixture.store.host().root().is_none(), "nobody has kept one");
    fixture.store.host().keep("another", &root, &guard);
    assert!(fixture.store.host().root().is_none(), "it is of another state");
    fixture.store.host().keep(&state, &root, &guard);
    let (seen, held) = fixture.store.host().root().expect("kept");
    assert_eq!(seen, root);
    let image = image(root, guard);
    let others = || Arc::strong_count(&held);
    assert!(!fixture.store.has_program(&image, "/usr/bin/late"));
    write(&fixture.host().join("usr/bin/late"), "", 0o755);
    assert!(!fixture.store.has_program(&image, "/usr/bin/late"), "as it was when its state was looked at");
    assert!(program_exists(&image, "/usr/bin/late"), "the control");
    drop(image);
    assert!(fixture.store.host().root().is_some() && others() == 2, "though nobody uses it");
    std::thread::sleep(seen::HOLDS);
    assert!(fixture.store.host().root().is_none() && others() == 1, "it may be removed by now");
    let later = fixture.image();
    assert!(fixture.store.has_program(&later, "/usr/bin/late"), "for a moment only");
}

#[test]
fn the_skeleton_holds_what_programs_need_and_no_secret() {
    let fixture = Fixture::new();
    let image = fixture.image();
    for name in ["etc/ld.so.cache", "etc/ssl/certs/ca-certificates.crt", "etc/python3.11/sitecustomize.py", "etc/nsswitch.conf"]
    {
        assert!(image.lower.join(name).is_file(), "{name}");
    }
    let absent =
        ["etc/shadow", "etc/ssh", "etc/ssl/private", "etc/ssl/certs/both.pem", "etc/localtime", "root/.ssh", "home/user/x"];
    for name in absent {
        assert!(image.lower.join(name).symlink_metadata().is_err(), "{name}");
    }
    let passwd = std::fs::read_to_string(image.lower.join("etc/passwd")).expect("a file");
    assert!(passwd.contains("user:x:1000:1000") && !passwd.contains("admin"));
    assert_eq!(image.lower.join("bin").read_link().expect("a link"), Path::new("usr/bin"));
    assert_eq!(image.binds, [Bind { source: fixture.host().join("usr"), target: "/usr".into() }]);
    assert!(program_exists(&image, "tool") && program_exists(&image, "/bin/t") && !program_exists(&image, "absent"));
    for (name, mode) in DIRECTORIES {
        let metadata = image.lower.join(name).symlink_metadata().expect("a directory");
        assert!(metadata.is_dir() && metadata.permissions().mode() & 0o7777 == mode, "{name}");
    }
}

#[test]
fn a_host_without_merged_usr_has_its_own_directories_bound() {
    let fixture = Fixture::new();
    std::fs::remove_file(fixture.host().join("bin")).expect("removed");
    write(&fixture.host().join("bin/own"), "", 0o755);
    let image = fixture.image();
    assert_eq!(image.binds.iter().map(|bind| bind.target.as_str()).collect::<Vec<_>>(), ["/usr", "/bin"]);
    assert!(image.lower.join("bin").is_dir() && program_exists(&image, "own"));
}

#[test]
fn another_state_of_the_host_gives_another_skeleton_and_the_old_one_goes_when_unused() {
    let fixture = Fixture::new();
    let first = fixture.image();
    assert_eq!(first.lower, fixture.image().lower);
    write(&fixture.host().join("etc/ld.so.cache"), "another", 0o644);
    let second = fixture.image();
    assert_ne!(first.lower, second.lower);
    let old = first.lower.clone();
    drop(second);
    Store::open(&fixture.dir.path().join("state")).expect("a store");
    assert!(old.is_dir(), "in use");
    drop(first);
    Store::open(&fixture.dir.path().join("state")).expect("a store");
    assert!(!old.exists(), "unused");
}

#[test]
fn this_hosts_own_image_is_made_and_has_a_shell() {
    let fixture = Fixture::new();
    let image = fixture.store.resolve("host").expect("the image host");
    let digest = format!("host@sha256:{}", "0".repeat(64));
    assert_eq!(["host", &digest, "absent", "not a name"].map(|name| fixture.store.has(name)), [true, false, false, false]);
    assert!(program_exists(&image, "sh"));
    assert!(image.lower.join("etc/shadow").symlink_metadata().is_err());
}
