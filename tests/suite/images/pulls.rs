//! Pulls from Debian's registry: with TLS and passwords, behind a line that breaks, ended by Ctrl-C. Read `strangers` for registries that
//! are not.

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};
use tempfile::TempDir;

use super::front::{Front, Treatment};
use super::made::{NOISE_BYTES, NOISE_LAYERS, blobs, layout, noise, sha256};
use super::puller::{Puller, Told, told};
use super::registry::{Authority, Registry, with_password};
use crate::support::fixture_user::{binary_for, directory_of};
use crate::support::{Feature, eventually, host, page};

pub fn trials() -> Vec<libtest_mimic::Trial> {
    page(
        "images",
        &[
            ("a registry with TLS is believed by its authority only, and every fault says what mends it", tls),
            ("a registry that wants a password gets docker's, and without it the pull is refused", password),
            ("a credential helper is asked for the registry's password, and what it can't give is told", helper),
            ("past loopback nothing but TLS is spoken unless it is said otherwise", only_tls),
            ("a part that an earlier pull left is gone on with, and one that is wrong is found out", parts),
            ("lines that break are taken up where they broke, several blobs at once", broken_lines),
            ("a pull that Ctrl-C ends leaves whole blobs and parts, and the next goes on behind them", interrupted),
        ],
    )
}

/// A directory with a docker configuration.
pub fn docker(text: &Value) -> TempDir {
    let directory = directory_of(None);
    std::fs::write(directory.path().join("config.json"), text.to_string()).expect("an own directory");
    directory
}

fn tls() {
    const DAY: (&str, &str) = ("20200101000000Z", "20991231235959Z");
    let authority = Authority::new();
    let place = directory_of(None);
    let registry = Registry::start(&(authority.tls("IP:127.0.0.1", DAY.0, DAY.1) + &with_password(place.path())));
    let reference = registry.take(layout(), &["--dest-creds", "user:secret"]);
    // base64 of user:secret and of user:wrong.
    let right = docker(&json!({"auths": {&registry.address: {"auth": "dXNlcjpzZWNyZXQ="}}}));
    let wrong = docker(&json!({"auths": {&registry.address: {"auth": "dXNlcjp3cm9uZw=="}}}));
    let puller = Puller::new();
    puller.pull(&reference).bad(&["issued by nobody that this host knows", "--ca-file or images.ca_file"]);
    let believing = puller.with("CODEBEAKER_IMAGES_CA_FILE", &authority.file());
    believing.pull(&reference).bad(&["to somebody without a login", "docker login"]);
    believing
        .with("DOCKER_CONFIG", wrong.path())
        .pull(&reference)
        .bad(&["to the user `user` with the password", "docker login"]);
    let logged_in = puller.with("DOCKER_CONFIG", right.path());
    logged_in.pull(&reference).bad(&["issued by nobody"]);
    let authority_file = authority.file().display().to_string();
    logged_in.call(&["pull", &reference, "--ca-file", &authority_file]).good();
    believing.with("DOCKER_CONFIG", right.path()).pull(&reference).good();
    let none = place.path().join("htpasswd").display().to_string();
    puller.call(&["pull", &reference, "--ca-file", &none]).bad(&["holds no certificate in PEM", &none]);
    puller.call(&["pull", &reference, "--ca-file", "/nonexistent/ca.pem"]).bad(&["/nonexistent/ca.pem", "No such file"]);
    for (name, start, end, words) in [
        ("IP:127.0.0.1", "20200101000000Z", "20210101000000Z", ["it has expired", "this host's clock"]),
        ("IP:127.0.0.1", "20980101000000Z", "20990101000000Z", ["it is not valid yet", "this host's clock"]),
        ("DNS:registry.example.org", DAY.0, DAY.1, ["it is for another name", "by the name that its certificate has"]),
    ] {
        let registry = Registry::start(&authority.tls(name, start, end));
        believing.pull(&format!("{}/team/pulled:v1", registry.address)).bad(&words);
    }
    believing.holds_no_image();
}

fn password() {
    let place = directory_of(None);
    let registry = Registry::start(&with_password(place.path()));
    let reference = registry.take(layout(), &["--dest-creds", "user:secret"]);
    let with = |text: &Value| {
        let configuration = docker(text);
        Puller::new().with("DOCKER_CONFIG", configuration.path()).pull(&reference)
    };
    Puller::new().pull(&reference).bad(&["without a login"]);
    with(&json!({"auths": {&registry.address: {"auth": "dXNlcjp3cm9uZw=="}}})).bad(&["to the user `user`"]);
    with(&json!({"auths": {&registry.address: {"auth": "*"}}})).bad(&["credentials", "~/.docker/config.json"]);
    with(&json!({"auths": {"elsewhere.example.org": {"auth": "dXNlcjpzZWNyZXQ="}}})).bad(&["without a login"]);
    with(&json!({"auths": {&registry.address: {"auth": "dXNlcjpzZWNyZXQ="}}})).good();
}

fn helper() {
    let place = directory_of(None);
    let registry = Registry::start(&with_password(place.path()));
    let reference = registry.take(layout(), &["--dest-creds", "user:secret"]);
    let programs = directory_of(None);
    let asked = programs.path().join("asked");
    let write = |name: &str, text: &str| {
        let file = programs.path().join(format!("docker-credential-{name}"));
        std::fs::write(&file, text).expect("an own directory");
        std::fs::set_permissions(&file, PermissionsExt::from_mode(0o755)).expect("an own file");
    };
    write(
        "known",
        &format!(
            "#!/bin/sh\nread -r server\necho \"$1 $server\" >> {}\n[ \"$server\" = {} ] || exit 9\n\
             echo '{{\"ServerURL\": \"x\", \"Username\": \"user\", \"Secret\": \"secret\"}}'\n",
            asked.display(),
            registry.address
        ),
    );
    write("empty", "#!/bin/sh\nread -r server\necho 'credentials not found in native keychain'\nexit 1\n");
    write("broken", "#!/bin/sh\nread -r server\necho 'the keychain is locked' >&2\nexit 1\n");
    write("mad", "#!/bin/sh\nread -r server\necho 'no JSON'\n");
    let path = PathBuf::from(format!("{}:/usr/bin:/bin", programs.path().display()));
    let with = |text: &Value| {
        let configuration = docker(text);
        Puller::new().with("DOCKER_CONFIG", configuration.path()).with("PATH", &path).pull(&reference)
    };
    with(&json!({"credHelpers": {&registry.address: "known"}})).good();
    with(&json!({"credsStore": "known"})).good();
    let asked = std::fs::read_to_string(asked).expect("the helper was asked");
    assert_eq!(asked, format!("get {0}\nget {0}\n", registry.address));
    with(&json!({"credHelpers": {"elsewhere.example.org": "known"}})).bad(&["without a login"]);
    with(&json!({"credsStore": "empty"})).bad(&["without a login"]);
    with(&json!({"credsStore": "broken"})).bad(&["credentials for", "the keychain is locked", "credential helper"]);
    with(&json!({"credsStore": "mad"})).bad(&["credentials for", "malformed"]);
    with(&json!({"credHelpers": {&registry.address: "not-there"}})).bad(&["credentials for", "docker-credential-… on PATH"]);
}

fn only_tls() {
    host().need(Feature::Root).need(Feature::Python);
    let state = directory_of(None);
    // An address that is not loopback, in a network of its own; whoever listens there speaks HTTP.
    let script = "ip link set lo up && ip address add 192.0.2.1/32 dev lo || exit 99\n\
                  cd /nonexistent 2>/dev/null || cd /var/empty 2>/dev/null || cd /proc/self/fdinfo\n\
                  /usr/bin/python3 -m http.server 5000 --bind 192.0.2.1 >/dev/null 2>&1 & server=$!\n\
                  trap 'kill $server' EXIT\n\
                  tries=0; until (exec 3<>/dev/tcp/192.0.2.1/5000) 2>/dev/null; do tries=$((tries + 1)); [ $tries -lt 600 ] || exit 98; sleep 0.1; done\n\
                  \"$0\" \"$@\" >&2; echo $?\n\
                  \"$0\" \"$@\" --plain-http >&2; echo $?\n";
    let output = Command::new("/usr/bin/unshare")
        .args(["--net", "/bin/bash", "-c", script])
        .arg(binary_for(None))
        .args(["image", "pull", "192.0.2.1:5000/team/pulled:v1", "--state-dir"])
        .arg(state.path())
        .env_clear()
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .output()
        .expect("unshare is there");
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "1\n1\n", "{output:?}");
    assert!(text.starts_with("error: 192.0.2.1:5000 does not speak TLS\nhint: --plain-http"), "{text}");
    assert!(text.contains("the registry answered 404"), "the control: with the flag it is asked: {text}");
}

fn parts() {
    let layout = layout();
    let registry = Registry::start("");
    let reference = registry.take(layout, &[]);
    let puller = Puller::new();
    // The half that an earlier pull has left, of the largest blob.
    let (digest, bytes) = blobs(layout).into_iter().max_by_key(|(_, bytes)| bytes.len()).expect("blobs");
    puller.call(&["list"]).good();
    let partial = puller.store("blobs/partial");
    std::fs::write(partial.join(&digest), &bytes[..bytes.len() / 2]).expect("the store is there");
    puller.pull(&reference).good();
    assert_eq!(puller.files("blobs/sha256").get(&digest), Some(&bytes));
    assert!(puller.files("blobs/partial").is_empty());
    // A part that is no part of it is found out by its hash, and gone for the next pull.
    puller.call(&["remove", "pulled:v1"]).good();
    std::fs::write(partial.join(&digest), vec![b'x'; 1000]).expect("the store is there");
    puller.pull(&reference).bad(&["has the digest"]);
    std::fs::write(partial.join("left"), b"part").expect("the store is there");
    puller.call(&["prune"]).good();
    assert!(puller.files("blobs/partial").is_empty());
    puller.pull(&reference).good();
    let pruned: Value = serde_json::from_str(&puller.call(&["prune", "-o", "json"]).stdout).expect("JSON");
    assert_eq!(pruned["blobs"], 0, "what an image needs stays");
}

fn broken_lines() {
    let made = noise();
    let registry = Registry::start("");
    registry.take(made.path(), &[]);
    let treatment = Treatment { cuts: 2, cut_bytes: 150_000, pause: Duration::from_millis(3) };
    let front = Front::start(&registry.address, treatment);
    let puller = Puller::new();
    puller.pull(&format!("{}/team/pulled:v1", front.address())).good();
    let seen = front.seen();
    let layers: BTreeSet<&str> = seen.iter().filter(|seen| seen.sent > 10_000).map(|seen| seen.blob.as_str()).collect();
    assert_eq!(layers.len(), NOISE_LAYERS, "{seen:?}");
    for layer in layers {
        let answers: Vec<_> = seen.iter().filter(|seen| seen.blob == layer).collect();
        assert_eq!(answers.len(), 3, "two were cut: {answers:?}");
        // Each goes on where the one before has ended: nothing comes twice.
        for (before, after) in answers.iter().zip(&answers[1..]) {
            assert_eq!(before.from + before.sent, after.from, "{answers:?}");
        }
    }
    assert!((2..=4).contains(&front.most_at_once()), "{} blobs at once", front.most_at_once());
    let expected = blobs(made.path());
    let kept = puller.files("blobs/sha256");
    assert!(kept.iter().all(|(digest, bytes)| expected.get(digest) == Some(bytes)), "every blob is whole");
    assert!(
        kept.values().filter(|bytes| bytes.len() >= NOISE_BYTES).count() == NOISE_LAYERS
            && puller.files("blobs/partial").is_empty()
    );
    // More breaks than a pull puts up with: an error that says to pull again, and the next pull goes on.
    let worse = Front::start(&registry.address, Treatment { cuts: 6, cut_bytes: 30_000, pause: Duration::ZERO });
    let puller = Puller::new();
    let reference = format!("{}/team/pulled:v1", worse.address());
    puller.pull(&reference).bad(&["failed:", "pull again to go on where it stopped"]);
    puller.holds_no_image();
    assert!(puller.files("blobs/partial").values().any(|part| !part.is_empty()), "what has come stays");
    assert!((0..6).any(|_| puller.pull(&reference).code == Some(0)), "each pull gets further");
}

/// SIGINT to a pull as soon as parts of blobs are there.
fn interrupt(puller: &Puller, reference: &str) -> Told {
    let child = puller.command(&["pull", reference]).spawn().expect("the binary starts");
    let begun = || {
        let entries = std::fs::read_dir(puller.store("blobs/partial")).into_iter().flatten().flatten();
        entries.filter(|entry| entry.metadata().is_ok_and(|metadata| metadata.len() > 50_000)).count() >= 2
    };
    assert!(eventually(Duration::from_secs(60), begun), "blobs come");
    // The command is `timeout`, which passes on what it is sent.
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(child.id().cast_signed()), nix::sys::signal::Signal::SIGINT)
        .expect("the trial's own process");
    told(child)
}

fn interrupted() {
    let made = noise();
    let registry = Registry::start("");
    registry.take(made.path(), &[]);
    let slow = Front::start(&registry.address, Treatment { pause: Duration::from_millis(60), ..Treatment::default() });
    let puller = Puller::new();
    let ended = interrupt(&puller, &format!("{}/team/pulled:v1", slow.address()));
    let hint = "hint: pull again to go on from there, or `codebeaker image prune` to drop what has come";
    assert_eq!((ended.code, ended.stderr.as_str()), (Some(130), format!("error: the pull was cancelled\n{hint}\n").as_str()));
    puller.holds_no_image();
    for (digest, bytes) in puller.files("blobs/sha256") {
        assert_eq!(sha256(&bytes), digest, "under a blob's name stands nothing but the blob");
    }
    let whole = blobs(made.path());
    let parts = puller.files("blobs/partial");
    for (digest, part) in &parts {
        assert!(whole[digest].starts_with(part), "a part is the beginning of its blob");
    }
    let fast = Front::start(&registry.address, Treatment::default());
    puller.pull(&format!("{}/team/pulled:v1", fast.address())).good();
    for (digest, part) in parts.iter().filter(|(_, part)| !part.is_empty()) {
        let seen = fast.seen();
        let answer = seen.iter().find(|seen| seen.blob == *digest).expect("it is asked for");
        assert_eq!((answer.from, answer.sent), (part.len(), whole[digest].len() - part.len()), "only what is missing comes");
    }
    assert!(puller.files("blobs/partial").is_empty());
    let other = Puller::new();
    interrupt(&other, &format!("{}/team/pulled:v1", slow.address()));
    other.call(&["prune"]).good();
    assert!(other.files("blobs/partial").is_empty() && other.files("blobs/sha256").is_empty(), "prune drops what has come");
}
