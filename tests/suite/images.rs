//! Images: a tiny root file system made of the host's bash, imported as a directory and as a tar, and sessions on it.

mod front;
pub(crate) mod made;
mod puller;
mod pulls;
mod registry;
mod strangers;
mod tools;

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use serde_json::json;
use tempfile::TempDir;

use crate::support::fixture_user::{binary_for, directory_of};
use crate::support::{Feature, Server, Session, Setup, eventually, host, page};

pub fn trials() -> Vec<libtest_mimic::Trial> {
    let mut trials = page(
        "images",
        &[
            ("a directory is imported, listed, used and removed", from_directory),
            ("a root file system tar as docker export writes it is imported and used", from_tar),
            ("a tar with a path out of its root leaves nothing outside", hostile_tar),
            ("a missing source and a bad name are refused with a reason", refusals),
            ("an import that Ctrl-C ends leaves nothing in the store", interrupted),
            ("what an import leaves out is told, and image inspect tells the rest", told),
            ("an image in use is not removed, and what the calls say is for people", people),
            ("two processes import one image at once and there is one of it", at_once),
            ("a session starts on a large image as on a tiny one", any_size),
            ("the image host is the default and holds the host's programs", host_is_default),
            (
                "what an image holds in /workspace is there, under strict it is hidden, else that is a directory of the tmpfs",
                workspaces,
            ),
        ],
    );
    trials.extend(tools::trials());
    trials.extend(pulls::trials());
    trials.extend(strangers::trials());
    trials
}

/// A root file system with bash, cat and the libraries they need.
pub(crate) fn tiny_root() -> TempDir {
    let root = directory_of(None);
    for program in ["/bin/bash", "/bin/cat"] {
        copy_into(root.path(), Path::new(program));
        let needed = Command::new("ldd").arg(program).output().expect("ldd is part of libc");
        let needed = String::from_utf8_lossy(&needed.stdout).into_owned();
        for library in needed.split_whitespace().filter(|word| word.starts_with('/')) {
            copy_into(root.path(), Path::new(library));
        }
    }
    for directory in ["etc", "tmp", "proc", "dev", "workspace"] {
        std::fs::create_dir_all(root.path().join(directory)).expect("an own directory");
    }
    std::fs::write(root.path().join("etc/marker"), "tiny\n").expect("an own directory");
    std::fs::set_permissions(root.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("an own directory");
    root
}

fn copy_into(root: &Path, source: &Path) {
    let target = root.join(source.strip_prefix("/").expect("an absolute path"));
    std::fs::create_dir_all(target.parent().expect("a parent")).expect("an own directory");
    std::fs::copy(source, target).expect("the host's own file");
}

fn uses(server: &Server, image: &str) {
    let mut session = Session::open(server, &json!({"language": "bash", "image": image, "profile": "permissive"}));
    assert_eq!(session.created["image"], image);
    let result = session.ok(&json!({"type": "execute_code", "code": "echo $((6 * 7)); cat /etc/marker; test -e /usr/bin/python3 || echo no python"}));
    assert_eq!(result["stdout"], "42\ntiny\nno python\n");
    session.write("/etc/marker", "changed by one session");
    session.close();
    let mut next = Session::open(server, &json!({"language": "bash", "image": image}));
    assert_eq!(next.read("/etc/marker"), "tiny\n", "the image is as it was");
}

fn from_directory() {
    let server = Setup::plain().shared();
    let root = tiny_root();
    let path = root.path().display().to_string();
    server.cli(&["image", "import", &path, "--name", "tiny-dir"]).expect_code(0);
    let list = server.cli(&["image", "list", "-o", "json"]).expect_code(0);
    assert!(list.json().to_string().contains("tiny-dir"), "{}", list.stdout);
    uses(&server, "tiny-dir");
    server.cli(&["image", "remove", "tiny-dir"]).expect_code(0);
    let parameters = json!({"language": "bash", "image": "tiny-dir"});
    server.client().error_is("session.create", &parameters, 1103, "image_not_found");
}

/// `rootless` has no owners to give the image's files to, and shows none of them.
fn workspaces() {
    host().need(Feature::Root);
    let server = Setup::plain().shared();
    let mounts = json!({"type": "execute_code", "code": "while read -r _ place kind _; do [ $place = /workspace ] && echo $kind; done </proc/mounts; :"});
    let shown = json!({"type": "execute_code", "code": "cat data/told 2>/dev/null; :"});
    let root = tiny_root();
    for (name, told, mounted) in [("empty-workspace", "", "tmpfs\n"), ("full-workspace", "of the image", "")] {
        if !told.is_empty() {
            std::fs::create_dir(root.path().join("workspace/data")).expect("an own directory");
            std::fs::write(root.path().join("workspace/data/told"), told).expect("an own directory");
        }
        server.cli(&["image", "import", &root.path().display().to_string(), "--name", name]).expect_code(0);
        let mut session = Session::open(&server, &json!({"language": "bash", "image": name}));
        assert_eq!(session.ok(&mounts)["stdout"], mounted, "{name}");
        assert_eq!(session.ok(&shown)["stdout"], told, "{name}");
        session.write("new", "written");
        assert_eq!(session.ok(&json!({"type": "execute_code", "code": "echo more >>new; cat new"}))["stdout"], "writtenmore\n");
        session.close();
        let mut next = Session::open(&server, &json!({"language": "bash", "image": name}));
        next.fails(&json!({"type": "read_file", "path": "new"}), "file_not_found");
        next.close();
        let mut strict = Session::open(&server, &json!({"language": "bash", "image": name, "profile": "strict"}));
        assert_eq!(
            (strict.ok(&mounts)["stdout"].as_str(), strict.ok(&shown)["stdout"].as_str()),
            (Some("tmpfs\n"), Some("")),
            "{name}"
        );
        strict.close();
        server.cli(&["image", "remove", name]).expect_code(0);
    }
}

fn from_tar() {
    let server = Setup::plain().shared();
    let (root, place) = (tiny_root(), directory_of(None));
    let file = place.path().join("root.tar");
    let made = Command::new("tar").arg("-C").arg(root.path()).arg("-cf").arg(&file).arg(".").status();
    assert!(made.expect("tar is there").success());
    server.cli(&["image", "import", &file.display().to_string(), "--name", "tiny-tar"]).expect_code(0);
    uses(&server, "tiny-tar");
}

fn hostile_tar() {
    let server = Setup::plain().shared();
    let place = directory_of(None);
    let file = place.path().join("hostile.tar");
    let mut builder = tar::Builder::new(std::fs::File::create(&file).expect("an own directory"));
    let mut add = |name: &str, kind: tar::EntryType, link: Option<&str>| {
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(kind);
        header.set_mode(0o644);
        header.set_size(if link.is_some() { 0 } else { 3 });
        // The checked setters refuse such names, which is the point of an attacker's own archive.
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        if let Some(link) = link {
            header.as_old_mut().linkname[..link.len()].copy_from_slice(link.as_bytes());
        }
        header.set_cksum();
        let body: &[u8] = if link.is_some() { b"" } else { b"bad" };
        builder.append(&header, body).expect("an own file");
    };
    let outside = place.path().display().to_string();
    add("../../../escaped-up", tar::EntryType::Regular, None);
    add(&format!("{outside}/escaped-absolute"), tar::EntryType::Regular, None);
    add("door", tar::EntryType::Symlink, Some(&outside));
    add("door/escaped-symlink", tar::EntryType::Regular, None);
    builder.finish().expect("an own file");
    drop(builder);
    // Refusing and importing without harm are both right; a file outside is not.
    let call = server.cli(&["image", "import", &file.display().to_string(), "--name", "hostile"]);
    let outside: Vec<_> =
        std::fs::read_dir(place.path()).expect("an own directory").flatten().map(|entry| entry.file_name()).collect();
    assert_eq!(outside, ["hostile.tar"], "{call:?}");
    assert!(!server.state_dir().join("escaped-up").exists() && !server.outside().join("escaped-up").exists(), "{call:?}");
}

fn refusals() {
    let server = Setup::plain().shared();
    let missing = server.cli(&["image", "import", "/nonexistent/root.tar", "--name", "x"]);
    assert!(missing.code != 0 && !missing.stderr.is_empty(), "{missing:?}");
    let root = tiny_root();
    let path = root.path().display().to_string();
    for name in ["../up", "a/../../b", "", "a\nb"] {
        let call = server.cli(&["image", "import", &path, "--name", name]);
        assert!(call.code != 0 && !call.stderr.is_empty(), "{name:?}: {call:?}");
    }
    assert_ne!(server.cli(&["image", "remove", "never-was"]).code, 0);
}

fn interrupted() {
    let place = directory_of(None);
    let state = place.path().join("state");
    let child = Command::new(binary_for(None))
        .args(["image", "import", "/usr", "--name", "big", "--state-dir"])
        .arg(&state)
        .stderr(std::process::Stdio::piped())
        .spawn()
        .expect("the binary starts");
    let begun = || std::fs::read_dir(state.join("images/tmp")).is_ok_and(|mut entries| entries.next().is_some());
    assert!(eventually(Duration::from_secs(30), begun), "the import begins");
    let pid = nix::unistd::Pid::from_raw(child.id().cast_signed());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGINT).expect("the trial's own process");
    let output = child.wait_with_output().expect("it ends");
    assert_eq!(output.status.code(), Some(130), "{output:?}");
    assert_eq!(String::from_utf8_lossy(&output.stderr), "error: the import was cancelled\nhint: nothing of it stays\n");
    for directory in ["tmp", "names", "layers"] {
        let left = std::fs::read_dir(state.join("images").join(directory)).expect("the store is there");
        assert_eq!(left.count(), 0, "{directory}");
    }
}

fn told() {
    let server = Setup::plain().shared();
    let root = tiny_root();
    let bash = root.path().join("bin/bash");
    std::fs::set_permissions(bash, std::os::unix::fs::PermissionsExt::from_mode(0o4755)).expect("an own file");
    let path = root.path().display().to_string();
    let call = server.cli(&["image", "import", &path, "--name", "told"]).expect_code(0);
    assert_eq!(call.stdout, "told\n");
    assert!(call.stderr.contains("note: left out: 1 set-id bits\n"), "{call:?}");
    assert!(call.stderr.contains("warning: the image has no `sh`"), "{call:?}");
    let inspected = server.cli(&["image", "inspect", "told"]).expect_code(0).json();
    assert!(inspected["entries"].as_u64() > Some(5) && inspected["source"] == "directory", "{inspected}");
    let host = server.cli(&["image", "inspect", "host"]).expect_code(0).json();
    assert!(host["digest"].is_null() && host["binds"][0]["target"] == "/usr", "{host}");
    server.cli(&["image", "remove", "told"]).expect_code(0);
}

fn host_is_default() {
    let server = Setup::plain().shared();
    let mut session = Session::python(&server);
    assert_eq!(session.created["image"], "host");
    assert_eq!(session.bash("test -x /usr/bin/env && echo there"), "there");
}

fn people() {
    let server = Setup::plain().shared();
    let root = tiny_root();
    let path = root.path().display().to_string();
    assert_eq!(server.cli(&["image", "import", &path, "--name", "used:v1"]).expect_code(0).stdout, "used:v1\n");
    let mut session = Session::open(&server, &json!({"language": "bash", "image": "used:v1"}));
    let refused = server.cli(&["image", "remove", "used:v1"]).expect_code(1);
    assert_eq!(
        refused.stderr,
        "error: the image `used:v1` is in use by a session\nhint: close its sessions first: `codebeaker ps`, `codebeaker close`\n"
    );
    std::fs::write(root.path().join("etc/marker"), "other\n").expect("an own directory");
    let taken = server.cli(&["image", "import", &path, "--name", "used:v1"]).expect_code(1);
    assert!(taken.stderr.contains("with other contents already") && taken.stderr.contains("hint: give --replace"), "{taken:?}");
    let replaced = server.cli(&["image", "import", &path, "--name", "used:v1", "--replace"]).expect_code(1);
    assert!(replaced.stderr.contains("in use by a session"), "{replaced:?}");
    assert_eq!(session.read("/etc/marker"), "tiny\n", "the session has noticed nothing");
    session.close();
    server.cli(&["image", "import", &path, "--name", "used:v1", "--replace"]).expect_code(0);
    let mut next = Session::open(&server, &json!({"language": "bash", "image": "used:v1"}));
    assert_eq!(next.read("/etc/marker"), "other\n");
    next.close();
    let list = server.cli(&["image", "list"]).expect_code(0).stdout;
    assert!(list.lines().all(|line| line.len() <= 100), "a row fits a terminal: {list}");
    let inspected = server.cli(&["image", "inspect", "used:v1"]).expect_code(0).json();
    let digest = inspected["digest"].as_str().expect("a digest");
    let row = list.lines().find(|line| line.starts_with("used:v1 ")).expect("a row");
    assert!(row.contains(&digest[..19]) && digest.len() == 71, "the beginning of the digest: {row}");
    assert_eq!(server.cli(&["image", "remove", "used:v1"]).expect_code(0).stdout, "used:v1\n");
    let gone = server.cli(&["image", "remove", "used:v1"]).expect_code(1);
    assert_eq!(gone.stderr, "error: there is no image `used:v1`\nhint: `codebeaker image list` shows what there is\n");
    assert!(server.cli(&["image", "prune"]).expect_code(0).stdout.starts_with("removed: "));
}

fn at_once() {
    let state = directory_of(None);
    let (one, other) = (tiny_root(), tiny_root());
    std::fs::write(other.path().join("etc/marker"), "other\n").expect("an own directory");
    let import = |root: &TempDir, name: &str| {
        let mut command = Command::new(binary_for(None));
        command.args(["image", "import", "--name", name, "--state-dir"]).arg(state.path()).arg(root.path());
        command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped()).spawn().expect("the binary starts")
    };
    let count = |name: &str| std::fs::read_dir(state.path().join("images").join(name)).map_or(0, Iterator::count);
    let same: Vec<_> = (0..4).map(|number| import(&one, if number < 3 { "same" } else { "again" })).collect();
    for child in same {
        let output = child.wait_with_output().expect("it ends");
        assert!(output.status.success(), "{output:?}");
    }
    assert_eq!((count("names"), count("layers"), count("tmp")), (2, 1, 0), "two names, one copy");
    // The control: of two contents under one name one is an error, whoever comes first.
    let ends = [import(&one, "apart"), import(&other, "apart")].map(|child| child.wait_with_output().expect("it ends"));
    let good = ends.iter().filter(|output| output.status.success()).count();
    assert_eq!(good, 1, "{ends:?}");
    assert!(
        ends.iter().any(|output| String::from_utf8_lossy(&output.stderr).contains("with other contents already")),
        "{ends:?}"
    );
}

/// Files of the large image, and the bytes of one more.
const MANY_FILES: usize = 20_000;
const LARGE_BYTES: usize = 200 << 20;

fn any_size() {
    // A ready sandbox costs the same on any image.
    let server = Setup::without_pool().shared();
    let (tiny, large) = (tiny_root(), tiny_root());
    for number in 0..MANY_FILES {
        let directory = large.path().join(format!("srv/{:03}", number / 100));
        std::fs::create_dir_all(&directory).expect("an own directory");
        std::fs::write(directory.join(number.to_string()), b"contents").expect("an own directory");
    }
    std::fs::write(large.path().join("srv/large"), vec![7; LARGE_BYTES]).expect("an own directory");
    for (root, name) in [(&tiny, "size-tiny"), (&large, "size-large")] {
        let path = root.path().display().to_string();
        let call = crate::support::cli::Invocation::new(&["image", "import", &path, "--name", name]);
        call.state_dir(&server.state_dir()).wait_at_most(Duration::from_secs(300)).run().expect_code(0);
    }
    let mut client = server.client();
    let mut create = |image: &str| {
        let start = std::time::Instant::now();
        let created = client.ok("session.create", &json!({"language": "bash", "image": image}));
        let took = start.elapsed();
        client.ok("session.close", &json!({"sessionId": created["sessionId"]}));
        took
    };
    // In turns, so that load meets both alike; the first of each warms the caches.
    let pairs: Vec<_> = (0..24).map(|_| (create("size-tiny"), create("size-large"))).skip(4).collect();
    let median = |mut times: Vec<Duration>| {
        times.sort();
        times[times.len() / 2]
    };
    let small = median(pairs.iter().map(|pair| pair.0).collect());
    let big = median(pairs.iter().map(|pair| pair.1).collect());
    println!(
        "create, median of {}: {small:?} on the tiny image, {big:?} on {MANY_FILES} files and {LARGE_BYTES} bytes",
        pairs.len()
    );
    assert!(big < small * 3, "{small:?} on the tiny image, {big:?} on the large one");
    server.cli(&["image", "remove", "size-tiny", "size-large"]).expect_code(0);
}
