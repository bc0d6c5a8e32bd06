//! Images: a tiny root file system made of the host's bash, imported as a directory and as a tar, and sessions on it.

mod tools;

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use serde_json::json;
use tempfile::TempDir;

use crate::support::fixture_user::{binary_for, directory_of};
use crate::support::{Server, Session, Setup, eventually, page};

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
            ("the image host is the default and holds the host's programs", host_is_default),
        ],
    );
    trials.extend(tools::trials());
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
