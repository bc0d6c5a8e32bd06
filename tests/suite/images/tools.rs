//! Images that real tools made: skopeo, umoci and docker-registry on loopback, out of Debian packages; and the walls around the
//! process that unpacks them. Read `pulls` for what a registry may do.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::json;

use super::made::{layout, tool};
use super::registry::Registry;
use crate::support::fixture_user::{binary_for, directory_of};
use crate::support::{Server, Session, Setup, cli, eventually, page};

pub fn trials() -> Vec<libtest_mimic::Trial> {
    page(
        "images",
        &[
            ("one image in every form, and pulled, gives sessions the same results", every_form),
            ("a docker-archive unpacks to the files that umoci unpacks", as_umoci),
            ("the process that unpacks has no capability over the host, no network, and a filter", confined),
            ("an import that is killed at any moment leaves nothing after the next start", killed),
        ],
    )
}

/// What a session on the image sees.
fn seen(server: &Server, image: &str) -> String {
    let mut session = Session::open(server, &json!({"language": "bash", "image": image}));
    session.bash(
        "cat /etc/marker /etc/debian_version; echo $COLOUR; ls /etc /usr/share; test -e /etc/issue || echo none; id -u; pwd",
    )
}

fn every_form() {
    let layout = layout();
    let server = Setup::plain().shared();
    let registry = Registry::start("");
    let reference = registry.take(layout, &[]);
    let place = directory_of(None);
    let at = |name: &str| place.path().join(name).display().to_string();
    let oci = format!("oci:{}:v1", layout.join("image").display());
    let copy = |target: &str| tool("skopeo", &["--insecure-policy", "copy", &oci, target]);
    copy(&format!("docker-archive:{}:form:docker", at("docker.tar")));
    copy(&format!("oci-archive:{}", at("oci.tar")));
    tool("gzip", &["-k", &at("docker.tar")]);
    tool(
        "skopeo",
        &[
            "--insecure-policy",
            "copy",
            "--dest-compress-format",
            "zstd",
            "--dest-compress",
            &oci,
            &format!("oci:{}:v1", at("zstd")),
        ],
    );
    tool("umoci", &["unpack", "--image", &format!("{}:v1", layout.join("image").display()), &at("bundle")]);
    tool("tar", &["-C", &at("bundle/rootfs"), "-cf", &at("rootfs.tar"), "."]);
    let image = layout.join("image").display().to_string();
    let forms = [
        (image, "oci-layout"),
        (at("zstd"), "oci-layout"),
        (at("oci.tar"), "oci-archive"),
        (at("docker.tar"), "docker-archive"),
        (at("docker.tar.gz"), "docker-archive"),
        (at("rootfs.tar"), "rootfs-tar"),
        (at("bundle/rootfs"), "directory"),
    ];
    let pulled = server.cli(&["image", "pull", &reference, "-o", "json"]).expect_code(0).json();
    assert_eq!((pulled["name"].as_str(), pulled["source"].as_str()), (Some("pulled:v1"), Some("registry")));
    let expected = seen(&server, "pulled:v1");
    assert!(
        expected.starts_with("layered\n12") && expected.contains("\nblue\n") && expected.contains("\nnone\n"),
        "{expected}"
    );
    for (number, (source, form)) in forms.iter().enumerate() {
        let name = format!("form:{number}");
        let row = server.cli(&["image", "import", source, "--name", &name, "-o", "json"]).expect_code(0).json();
        assert_eq!(row["source"], *form, "{source}");
        // A root file system has no configuration, and so no variable of its own.
        let without = matches!(*form, "rootfs-tar" | "directory");
        let expected = if without { expected.replace("\nblue\n", "\n\n") } else { expected.clone() };
        assert_eq!(seen(&server, &name), expected, "{source}");
        server.cli(&["image", "remove", &name]).expect_code(0);
    }
    let digest = pulled["digest"].as_str().expect("a digest");
    assert_eq!(seen(&server, &format!("pulled:v1@{digest}")), expected, "by its digest");
    let other = format!("pulled:v1@sha256:{}", "0".repeat(64));
    let error =
        server.client().error_is("session.create", &json!({"language": "bash", "image": other}), 1103, "image_not_found");
    assert!(format!("{error:?}").contains("image pull"), "{error:?}");
    let inspected = server.cli(&["image", "inspect", "pulled:v1"]).expect_code(0).json();
    assert_eq!(inspected["config"]["workingDir"], "/srv");
    assert_eq!((inspected["from"].as_str(), inspected["layers"].as_array().map(Vec::len)), (Some(reference.as_str()), Some(2)));
    let pinned = format!("{}/team/pulled@{digest}", registry.address);
    server.cli(&["image", "pull", &pinned, "--plain-http", "--name", "pinned"]).expect_code(0);
    let wrong = format!("{}/team/pulled@sha256:{}", registry.address, "0".repeat(64));
    let wrong = server.cli(&["image", "pull", &wrong, "--name", "wrong"]);
    assert!(wrong.code == 1 && wrong.stderr.contains("the registry answered 404 (MANIFEST_UNKNOWN"), "{wrong:?}");
    assert!(wrong.stderr.contains("\nhint: check repository and tag"), "{wrong:?}");
    server.cli(&["image", "remove", "pulled:v1", "pinned"]).expect_code(0);
}

/// Kind, permissions, owner, size, hard links and contents' end of every entry.
fn listing(root: &Path) -> BTreeMap<String, String> {
    let mut list = BTreeMap::new();
    let mut waiting = vec![root.to_owned()];
    while let Some(directory) = waiting.pop() {
        for entry in std::fs::read_dir(&directory).expect("readable").flatten() {
            let path = entry.path();
            let metadata = entry.metadata().expect("readable");
            let kind = metadata.file_type();
            // Set-id bits are left out of an image on purpose; docs/images.md says so.
            let mode = metadata.mode() & 0o1777;
            let (size, links) = if kind.is_dir() { (0, 0) } else { (metadata.len(), metadata.nlink()) };
            let target = std::fs::read_link(&path).unwrap_or_default();
            let name = path.strip_prefix(root).expect("below it").display().to_string();
            let (uid, gid, time) = (metadata.uid(), metadata.gid(), if kind.is_file() { metadata.mtime() } else { 0 });
            list.insert(name, format!("{kind:?} {mode:o} {uid}:{gid} {size} {links} {time} {}", target.display()));
            if kind.is_dir() {
                waiting.push(path);
            }
        }
    }
    list
}

fn as_umoci() {
    let layout = layout();
    let place = directory_of(None);
    let at = |name: &str| place.path().join(name).display().to_string();
    let image = format!("{}:v1", layout.join("image").display());
    tool(
        "skopeo",
        &["--insecure-policy", "copy", &format!("oci:{image}"), &format!("docker-archive:{}:x:v1", at("docker.tar"))],
    );
    tool("umoci", &["unpack", "--image", &image, &at("bundle")]);
    let state = place.path().join("state");
    cli::Invocation::new(&["image", "import", &at("docker.tar"), "--name", "x"]).state_dir(&state).run().expect_code(0);
    let inspected = cli::Invocation::new(&["image", "inspect", "x"]).state_dir(&state).run().expect_code(0).json();
    let mut ours = listing(Path::new(inspected["root"].as_str().expect("a path")));
    let mut theirs = listing(&place.path().join("bundle/rootfs"));
    assert!(theirs.len() > 500 && theirs.contains_key("etc/marker-again"), "{}", theirs.len());
    for list in [&mut ours, &mut theirs] {
        // Where sandboxes mount: made when they are missing, with the permissions that they need; and devices, which are left out.
        list.retain(|name, _| !["proc", "dev", "tmp", "workspace"].contains(&name.as_str()) && !name.starts_with("dev/"));
    }
    assert_eq!(ours, theirs);
}

/// A tar that takes a while to unpack.
fn slow_source(place: &Path) -> PathBuf {
    let path = place.join("slow.tar");
    let mut builder = tar::Builder::new(std::io::BufWriter::new(std::fs::File::create(&path).expect("an own directory")));
    for number in 0..8_000 {
        let mut header = tar::Header::new_ustar();
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_size(3);
        builder.append_data(&mut header, format!("d{}/f{number}", number % 100), &b"abc"[..]).expect("an own file");
    }
    builder.finish().expect("an own file");
    drop(builder);
    path
}

fn import_of(source: &Path, state: &Path) -> Child {
    let mut command = Command::new(binary_for(None));
    command.args(["image", "import", "--name", "slow", "--state-dir"]).arg(state).arg(source);
    command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("the binary starts")
}

/// The unpacking child of an import.
fn unpacker(import: &Child) -> Option<i32> {
    let children = std::fs::read_to_string(format!("/proc/{0}/task/{0}/children", import.id())).ok()?;
    children.split_whitespace().next()?.parse().ok()
}

fn confined() {
    let place = directory_of(None);
    let source = slow_source(place.path());
    let mut import = import_of(&source, &place.path().join("state"));
    let mut seen = None;
    eventually(Duration::from_secs(60), || {
        let Some(pid) = unpacker(&import) else { return import.try_wait().is_ok_and(|status| status.is_some()) };
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        if !status.contains("\nSeccomp:\t2") {
            return false;
        }
        let namespace = |name: &str| std::fs::read_link(format!("/proc/{pid}/ns/{name}")).ok();
        let own = |name: &str| std::fs::read_link(format!("/proc/self/ns/{name}")).ok();
        let apart: Vec<&str> =
            ["user", "mnt", "net", "ipc", "uts"].into_iter().filter(|name| namespace(name) != own(name)).collect();
        seen = Some((status, apart, namespace("pid") == own("pid")));
        true
    });
    assert!(import.wait().expect("it ends").success());
    let (status, apart, control) = seen.expect("the unpacking process was seen under its filter");
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default().trim().to_owned();
    // CHOWN, DAC_OVERRIDE and FOWNER over its own namespace when root imports, else none.
    let expected = if nix::unistd::geteuid().is_root() { "000000000000000b" } else { "0000000000000000" };
    assert_eq!(
        (field("CapEff:").as_str(), field("CapBnd:").as_str(), field("CapInh:").as_str()),
        (expected, "0000000000000000", "0000000000000000")
    );
    assert_eq!((field("NoNewPrivs:").as_str(), field("Threads:").as_str()), ("1", "1"));
    assert_eq!(apart, ["user", "mnt", "net", "ipc", "uts"]);
    assert!(control, "the control: one namespace that it does share");
}

fn killed() {
    let place = directory_of(None);
    let (source, state) = (slow_source(place.path()), place.path().join("state"));
    let count = |name: &str| std::fs::read_dir(state.join("images").join(name)).map_or(0, Iterator::count);
    for pause in [0, 20, 60, 150, 400, 1000] {
        let mut import = import_of(&source, &state);
        eventually(Duration::from_secs(60), || count("tmp") > 0 || import.try_wait().is_ok_and(|status| status.is_some()));
        std::thread::sleep(Duration::from_millis(pause));
        let child = unpacker(&import);
        import.kill().ok();
        import.wait().expect("it ends");
        let gone = || child.is_none_or(|pid| !Path::new(&format!("/proc/{pid}")).exists());
        assert!(eventually(Duration::from_secs(60), gone), "the unpacking process ends with its parent");
        let list = cli::Invocation::new(&["image", "list", "-o", "json"]).state_dir(&state).run().expect_code(0).json();
        let there = list["images"].as_array().is_some_and(|images| images.iter().any(|image| image["name"] == "slow"));
        assert_eq!((count("tmp"), count("layers")), (0, usize::from(there)), "after {pause} ms");
        if there {
            cli::Invocation::new(&["image", "remove", "slow"]).state_dir(&state).run().expect_code(0);
        }
    }
    let mut whole = import_of(&source, &state);
    assert!(whole.wait().expect("it ends").success(), "the control: nobody kills it");
    assert_eq!(count("names"), 1);
}
