//! Images that real tools made: skopeo, umoci and docker-registry on loopback, out of Debian packages; and the walls around the
//! process that unpacks them.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

use serde_json::json;
use tempfile::TempDir;

use crate::support::fixture_user::{binary_for, directory_of};
use crate::support::trial::skip;
use crate::support::{Feature, Server, Session, Setup, cli, eventually, host, page};

pub fn trials() -> Vec<libtest_mimic::Trial> {
    page(
        "images",
        &[
            ("one image in every form, and pulled, gives sessions the same results", every_form),
            ("a docker-archive unpacks to the files that umoci unpacks", as_umoci),
            ("a pull that was interrupted goes on where it was, and prune removes what is left of one", resumed),
            ("a registry that wants a password gets docker's, and without it the pull is refused", password),
            ("the process that unpacks has no capability over the host, no network, and a filter", confined),
            ("an import that is killed at any moment leaves nothing after the next start", killed),
        ],
    )
}

/// Runs a tool that the host has; its output.
fn tool(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap_or_else(|error| panic!("{program}: {error}"));
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {error}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// An OCI layout `image:v1` of two layers: Debian's bash and coreutils, and one that changes some of it.
fn layout() -> &'static Path {
    static LAYOUT: OnceLock<Option<TempDir>> = OnceLock::new();
    host().need(Feature::Root).need(Feature::ImageTools);
    let made = LAYOUT.get_or_init(|| {
        let place = directory_of(None);
        let image = format!("{}:v1", place.path().join("image").display());
        let base = debian()?;
        tool("umoci", &["init", "--layout", &place.path().join("image").display().to_string()]);
        tool("umoci", &["new", "--image", &image]);
        tool("umoci", &["raw", "add-layer", "--image", &image, &base.display().to_string()]);
        let bundle = place.path().join("bundle");
        let at = |path: &str| bundle.join("rootfs").join(path);
        tool("umoci", &["unpack", "--image", &image, &bundle.display().to_string()]);
        std::fs::remove_file(at("etc/issue")).expect("base-files has it");
        std::fs::remove_dir_all(at("usr/share/doc")).expect("every package has one");
        std::fs::write(at("etc/marker"), "layered\n").expect("an own directory");
        std::fs::hard_link(at("etc/marker"), at("etc/marker-again")).expect("an own directory");
        tool("umoci", &["repack", "--image", &image, &bundle.display().to_string()]);
        tool("umoci", &["config", "--image", &image, "--config.env", "COLOUR=blue", "--config.workingdir", "/srv"]);
        Some(place)
    });
    match made {
        Some(place) => place.path(),
        None => skip("no Debian packages can be fetched here"),
    }
}

/// A root file system of a few Debian packages, kept between runs below the build directory.
fn debian() -> Option<PathBuf> {
    let place = Path::new(env!("CARGO_TARGET_TMPDIR")).join("images");
    let kept = place.join("bookworm-extract.tar");
    if kept.is_file() {
        return Some(kept);
    }
    std::fs::create_dir_all(&place).ok()?;
    let making = place.join(format!("making-{}.tar", std::process::id()));
    let include = "--include=base-files,base-passwd,bash,coreutils,dash";
    let mut command = Command::new("mmdebstrap");
    command.args(["--quiet", "--variant=extract", include, "bookworm"]).arg(&making);
    let output = command.output().expect("the feature was asked for");
    if !output.status.success() {
        eprintln!("mmdebstrap: {}", String::from_utf8_lossy(&output.stderr));
        return None;
    }
    std::fs::rename(&making, &kept).ok()?;
    Some(kept)
}

/// A registry on loopback; ends with this value.
struct Registry {
    child: Child,
    address: String,
    directory: TempDir,
}

impl Registry {
    /// `extra` goes into its configuration as it is.
    fn start(extra: &str) -> Self {
        let directory = directory_of(None);
        let root = directory.path().join("data");
        let text = format!(
            "version: 0.1\nlog:\n  level: info\n  formatter: text\nstorage:\n  filesystem:\n    rootdirectory: {}\nhttp:\n  addr: 127.0.0.1:0\n{extra}",
            root.display()
        );
        let file = directory.path().join("config.yml");
        std::fs::write(&file, text).expect("an own directory");
        let mut child = Command::new("docker-registry")
            .arg("serve")
            .arg(&file)
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the feature was asked for");
        let (send, receive) = std::sync::mpsc::channel();
        let log = BufReader::new(child.stderr.take().expect("piped"));
        // Read to its end, or the registry would wait for a reader.
        std::thread::spawn(move || {
            for line in log.lines().map_while(Result::ok) {
                if let Some((_, address)) = line.split_once("listening on ") {
                    let end = address.find(|c: char| !(c.is_ascii_digit() || ".:".contains(c))).unwrap_or(address.len());
                    send.send(address[..end].to_owned()).ok();
                }
            }
        });
        let address = receive.recv_timeout(Duration::from_secs(60)).expect("the registry says where it listens");
        Self { child, address, directory }
    }

    fn take(&self, layout: &Path, credentials: &[&str]) -> String {
        let source = format!("oci:{}:v1", layout.join("image").display());
        let reference = format!("{}/team/pulled:v1", self.address);
        let target = format!("docker://{reference}");
        let mut arguments = vec!["--insecure-policy", "copy", "--dest-tls-verify=false"];
        arguments.extend(credentials);
        arguments.extend([source.as_str(), target.as_str()]);
        tool("skopeo", &arguments);
        reference
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
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
    let pulled = server.cli(&["image", "pull", &reference, "--plain-http", "-o", "json"]).expect_code(0).json();
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
    assert_ne!(server.cli(&["image", "pull", &wrong, "--plain-http", "--name", "wrong"]).code, 0);
    let tls = server.cli(&["image", "pull", &reference, "--name", "tls"]);
    assert!(tls.code != 0 && tls.stderr.contains("--plain-http"), "without being told, only TLS is spoken: {tls:?}");
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

fn resumed() {
    let layout = layout();
    let registry = Registry::start("");
    let reference = registry.take(layout, &[]);
    let state = directory_of(None);
    let call = |arguments: &[&str]| cli::Invocation::new(arguments).state_dir(state.path()).run();
    // The half that an earlier pull has left, of the largest blob.
    let blobs = layout.join("image/blobs/sha256");
    let size = |path: &Path| std::fs::metadata(path).map_or(0, |metadata| metadata.len());
    let largest =
        std::fs::read_dir(&blobs).expect("a layout").flatten().map(|entry| entry.path()).max_by_key(|path| size(path));
    let largest = largest.expect("blobs");
    let digest = largest.file_name().expect("a name").to_string_lossy().into_owned();
    call(&["image", "list"]).expect_code(0);
    let partial = state.path().join("images/blobs/partial");
    let bytes = std::fs::read(&largest).expect("a blob");
    std::fs::write(partial.join(&digest), &bytes[..bytes.len() / 2]).expect("the store is there");
    call(&["image", "pull", &reference, "--plain-http"]).expect_code(0);
    assert_eq!(std::fs::read(state.path().join("images/blobs/sha256").join(&digest)).expect("the blob"), bytes);
    assert_eq!(std::fs::read_dir(&partial).expect("the store is there").count(), 0);
    // A part that is no part of it is found out by its hash, and gone for the next pull.
    call(&["image", "remove", "pulled:v1"]).expect_code(0);
    std::fs::write(partial.join(&digest), vec![b'x'; 1000]).expect("the store is there");
    let wrong = call(&["image", "pull", &reference, "--plain-http"]);
    assert!(wrong.code != 0 && wrong.stderr.contains("has the digest"), "{wrong:?}");
    std::fs::write(partial.join("left"), b"part").expect("the store is there");
    let pruned = call(&["image", "prune", "-o", "json"]).expect_code(0).json();
    assert!(pruned["blobs"].as_u64() > Some(0), "{pruned}");
    assert_eq!(std::fs::read_dir(&partial).expect("the store is there").count(), 0);
    call(&["image", "pull", &reference, "--plain-http"]).expect_code(0);
    assert_eq!(call(&["image", "prune", "-o", "json"]).expect_code(0).json()["blobs"], 0, "what an image needs stays");
}

fn password() {
    let layout = layout();
    let secrets = directory_of(None);
    let file = secrets.path().join("htpasswd");
    // bcrypt of `secret`, as htpasswd -B writes it.
    let Some(hash) = bcrypt("secret") else { skip("no program here makes a bcrypt hash") };
    std::fs::write(&file, format!("user:{hash}\n")).expect("an own directory");
    let registry = Registry::start(&format!("auth:\n  htpasswd:\n    realm: test\n    path: {}\n", file.display()));
    let reference = registry.take(layout, &["--dest-creds", "user:secret"]);
    let state = directory_of(None);
    let pull = |name: &str, docker: &Path| {
        let mut command = Command::new(binary_for(None));
        command.args(["image", "pull", &reference, "--plain-http", "--name", name, "--state-dir"]).arg(state.path());
        command.env("DOCKER_CONFIG", docker).output().expect("the binary starts")
    };
    let write = |name: &str, text: String| {
        let directory = secrets.path().join(name);
        std::fs::create_dir(&directory).expect("an own directory");
        std::fs::write(directory.join("config.json"), text).expect("an own directory");
        directory
    };
    // base64 of user:secret and of user:wrong.
    let right = write("right", json!({"auths": {&registry.address: {"auth": "dXNlcjpzZWNyZXQ="}}}).to_string());
    let wrong = write("wrong", json!({"auths": {&registry.address: {"auth": "dXNlcjp3cm9uZw=="}}}).to_string());
    let helper = write("helper", json!({"credHelpers": {&registry.address: "is-not-there"}}).to_string());
    assert!(!pull("none", &secrets.path().join("none")).status.success());
    assert!(!pull("wrong", &wrong).status.success());
    let broken = pull("helper", &helper);
    assert!(String::from_utf8_lossy(&broken.stderr).contains("credentials"), "{broken:?}");
    let output = pull("right", &right);
    assert!(output.status.success(), "the control: the right one: {output:?}");
    assert!(registry.directory.path().is_dir());
}

fn bcrypt(password: &str) -> Option<String> {
    let code = "import crypt,sys; print(crypt.crypt(sys.argv[1], crypt.mksalt(crypt.METHOD_BLOWFISH, rounds=16)).replace('$2b$', '$2y$', 1))";
    let output = Command::new("/usr/bin/python3").args(["-W", "ignore", "-c", code, password]).output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    text.starts_with("$2y$").then_some(text)
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
