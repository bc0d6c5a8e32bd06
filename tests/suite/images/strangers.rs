//! Pulls from registries that are the trial's own: hostile ones, and one with an index of two platforms.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::{Value, json};

use super::front::{Hostile, Reply};
use super::made::{blobs, marked, sha256};
use super::puller::{Puller, Told};
use super::pulls::docker;
use crate::support::{Feature, host, page};

pub fn trials() -> Vec<libtest_mimic::Trial> {
    page(
        "images",
        &[
            ("a registry that sends without end fills no memory and is told", endless),
            ("what a hostile registry says is an error with its reason", hostile),
            ("a password goes to nobody that a registry sends to, by a redirect or for a token without TLS", password),
            ("a registry on loopback is spoken to past the proxies of the environment, and others through them", proxies),
            ("of an index the image of this platform is pulled, and another when it is asked for", platforms),
        ],
    )
}

/// What a registry says to a path; its own address comes second.
type Says = fn(&str, &str) -> Reply;

const OK: &str = "HTTP/1.1 200 OK";

/// A manifest whose blobs have 1,000 bytes each, as it says.
fn manifest() -> Vec<u8> {
    let blob = |kind: &str, digit: &str| json!({"mediaType": format!("application/vnd.oci.image.{kind}"), "digest": format!("sha256:{}", digit.repeat(64)), "size": 1000});
    let text = json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": blob("config.v1+json", "a"), "layers": [blob("layer.v1.tar", "b")]});
    text.to_string().into_bytes()
}

fn wants_token(address: &str) -> String {
    format!("HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: Bearer realm=\"http://{address}/token\",service=\"x\"")
}

/// Pulls from it; what it said, and how much was sent.
fn from_hostile(says: impl Fn(&str, &str) -> Reply + Send + Sync + 'static) -> (Told, u64) {
    let registry = Hostile::start(says);
    let puller = Puller::new();
    let told = puller.pull(&format!("{}/team/tool:v1", registry.address()));
    puller.holds_no_image();
    (told, registry.sent())
}

fn endless() {
    let cases: [(&str, Says, &str); 5] = [
        ("a manifest", |_, _| Reply::Endless(OK.into(), b' '), "the manifest` passes the bound document_bytes_max"),
        (
            "a token",
            |path, address| {
                if path.starts_with("/token") {
                    Reply::Endless(OK.into(), b' ')
                } else {
                    Reply::Whole(wants_token(address), Vec::new())
                }
            },
            "the token` passes the bound document_bytes_max",
        ),
        ("an error's text", |_, _| Reply::Endless("HTTP/1.1 404 Not Found".into(), b'x'), "the registry answered 404"),
        (
            "a blob",
            |path, _| {
                if path.contains("/blobs/") { Reply::Endless(OK.into(), b'x') } else { Reply::Whole(OK.into(), manifest()) }
            },
            "bytes where 1000 belong",
        ),
        (
            "an error instead of a blob",
            |path, _| {
                if path.contains("/blobs/") {
                    Reply::Endless("HTTP/1.1 404 Not Found".into(), b'x')
                } else {
                    Reply::Whole(OK.into(), manifest())
                }
            },
            "the registry answered 404",
        ),
    ];
    for (what, says, words) in cases {
        let (told, sent) = from_hostile(says);
        told.bad(&[words]);
        // The bound of a document is 4 MiB; the rest is what the kernel holds between the two.
        assert!(sent < 48 << 20, "{what}: {sent} bytes were taken");
    }
    let (told, sent) = from_hostile(|path, _| {
        if path.contains("/blobs/") { Reply::Whole(OK.into(), vec![b'x'; 1000]) } else { Reply::Whole(OK.into(), manifest()) }
    });
    told.bad(&["a blob has the digest"]);
    assert!(sent > 1000, "the control: what ends is read to its end");
}

fn hostile() {
    let cases: [(Says, &str); 9] = [
        (|_, address| Reply::Whole(format!("HTTP/1.1 302 Found\r\nLocation: http://{address}/again"), Vec::new()), "redirect"),
        (
            |path, address| {
                if path.starts_with("/token") {
                    Reply::Whole(OK.into(), br#"{"token": "a\r\nX-Own: b"}"#.to_vec())
                } else {
                    Reply::Whole(wants_token(address), Vec::new())
                }
            },
            "a character that none may hold",
        ),
        (
            |path, address| {
                if path.starts_with("/token") {
                    Reply::Whole(OK.into(), b"[]".to_vec())
                } else {
                    Reply::Whole(wants_token(address), Vec::new())
                }
            },
            "the token can't be read",
        ),
        (
            |_, _| {
                Reply::Whole(
                    "HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: Bearer realm=\"file:///etc/passwd\"".into(),
                    Vec::new(),
                )
            },
            "a place without TLS",
        ),
        (
            |_, _| {
                let text = json!({"schemaVersion": 2, "mediaType": "\u{1b}[2J\nhint: run this", "layers": []});
                Reply::Whole(OK.into(), text.to_string().into_bytes())
            },
            "something of the type `",
        ),
        (|_, _| Reply::Whole("HTTP/1.1 401 Unauthorized".into(), Vec::new()), "a kind of login that is not understood"),
        (
            |_, _| Reply::Whole(format!("{OK}\r\nDocker-Content-Digest: sha256:{}", "0".repeat(64)), manifest()),
            "has the digest",
        ),
        (
            |_, _| Reply::Whole("HTTP/1.1 403 Forbidden".into(), br#"{"errors":[{"code":"DENIED","message":"x"}]}"#.to_vec()),
            "without a login",
        ),
        (
            |_, _| {
                let text = "{\"errors\":[{\"code\":\"TOOMANYREQUESTS\",\"message\":\"\\u001b[2Jslow down\"}]}";
                Reply::Whole("HTTP/1.1 429 Too Many Requests".into(), text.into())
            },
            "answered 429 (TOOMANYREQUESTS:  [2Jslow down)",
        ),
    ];
    for (says, words) in cases {
        let (told, _) = from_hostile(says);
        told.bad(&[words]);
        assert!(!told.stderr.contains('\u{1b}'), "nothing of a registry moves the terminal: {told:?}");
    }
}

/// What a registry says that wants a name and a password.
const BASIC: &str = "HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: Basic realm=\"x\"";

fn password() {
    let knowing = |registry: &Hostile| {
        // base64 of user:secret.
        let configuration = docker(&json!({"auths": {registry.address(): {"auth": "dXNlcjpzZWNyZXQ="}}}));
        let puller = Puller::new().with("DOCKER_CONFIG", configuration.path());
        (puller, configuration)
    };
    let has_password = |head: &String| head.contains("\r\nauthorization: basic dxnlcjpzzwnyzxq=\r\n");
    let elsewhere = Hostile::start(|_, _| Reply::Whole("HTTP/1.1 404 Not Found".into(), Vec::new()));
    let to = elsewhere.address().to_owned();
    let asked = AtomicUsize::new(0);
    let registry = Hostile::start(move |_, _| match asked.fetch_add(1, Ordering::Relaxed) {
        0 => Reply::Whole(BASIC.into(), Vec::new()),
        _ => Reply::Whole(format!("HTTP/1.1 307 Temporary Redirect\r\nLocation: http://{to}/elsewhere"), Vec::new()),
    });
    let (puller, _configuration) = knowing(&registry);
    puller.pull(&format!("{}/team/tool:v1", registry.address())).bad(&["the registry answered 404"]);
    assert!(registry.heads().iter().any(has_password), "the control: the registry hears it: {:?}", registry.heads());
    let heads = elsewhere.heads();
    assert!(heads.len() == 1 && heads[0].starts_with("get /elsewhere ") && !heads[0].contains("authorization"), "{heads:?}");
    // A realm that would hear it in the clear is not even looked up; one on loopback hears it.
    let realm = |url: &str| format!("HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: Bearer realm=\"{url}\"");
    let registry = Hostile::start(move |_, _| Reply::Whole(realm("http://token.example.org/token"), Vec::new()));
    let (puller, _configuration) = knowing(&registry);
    let words = ["a place without TLS, `token.example.org`", "images.plain_http_registries"];
    puller.pull(&format!("{}/team/tool:v1", registry.address())).bad(&words);
    let registry = Hostile::start(|_, address| Reply::Whole(wants_token(address), Vec::new()));
    let (puller, _configuration) = knowing(&registry);
    puller.pull(&format!("{}/team/tool:v1", registry.address())).bad(&["to the user `user`"]);
    assert!(
        registry.heads().iter().any(|head| head.starts_with("get /token?") && has_password(head)),
        "{:?}",
        registry.heads()
    );
}

fn proxies() {
    let nothing = || Hostile::start(|_, _| Reply::Whole("HTTP/1.1 404 Not Found".into(), Vec::new()));
    let (registry, proxy) = (nothing(), nothing());
    let address = PathBuf::from(format!("http://{}", proxy.address()));
    let variables = ["http_proxy", "https_proxy", "all_proxy"];
    let puller = variables.into_iter().fold(Puller::new(), |puller, name| puller.with(name, &address));
    puller.pull(&format!("{}/team/tool:v1", registry.address())).bad(&["the registry answered 404"]);
    assert_eq!((registry.heads().len(), proxy.heads().len()), (1, 0), "{:?}", proxy.heads());
    // The control: a registry elsewhere is asked through the proxy.
    puller.call(&["pull", "registry.example.org/team/tool:v1", "--plain-http"]).bad(&["the registry answered 404"]);
    assert!(proxy.heads()[0].starts_with("get http://registry.example.org/v2/team/tool/manifests/v1 "), "{:?}", proxy.heads());
}

/// The digest that a layout's index names.
fn manifest_of(layout: &Path) -> Value {
    let index = std::fs::read_to_string(layout.join("image/index.json")).expect("a layout");
    let index: Value = serde_json::from_str(&index).expect("JSON");
    index["manifests"][0].clone()
}

fn platforms() {
    host().need(Feature::X86);
    let made = [("amd64", marked("for amd64")), ("arm64", marked("for arm64"))];
    let manifests: Vec<Value> = made
        .iter()
        .map(|(architecture, layout)| {
            let mut descriptor = manifest_of(layout.path());
            descriptor["platform"] = json!({"os": "linux", "architecture": architecture});
            descriptor
        })
        .collect();
    let kind = "application/vnd.oci.image.index.v1+json";
    let index = json!({"schemaVersion": 2, "mediaType": kind, "manifests": manifests}).to_string().into_bytes();
    let index_digest = sha256(&index);
    let mut all: BTreeMap<String, Vec<u8>> = made.iter().flat_map(|(_, layout)| blobs(layout.path())).collect();
    all.insert("v1".into(), index.clone());
    all.insert(index_digest.clone(), index);
    let registry = Hostile::start(move |path, _| {
        let wanted = path.rsplit(['/', ':']).next().unwrap_or_default();
        match all.get(wanted) {
            Some(bytes) => Reply::Whole(OK.into(), bytes.clone()),
            None => Reply::Whole("HTTP/1.1 404 Not Found".into(), Vec::new()),
        }
    });
    let puller = Puller::new();
    let reference = format!("{}/team/tool:v1", registry.address());
    let pinned = format!("{}/team/tool@sha256:{index_digest}", registry.address());
    let inspected = |name: &str| -> Value { serde_json::from_str(&puller.call(&["inspect", name]).stdout).expect("JSON") };
    puller.call(&["pull", &reference, "--name", "own"]).good();
    puller.call(&["pull", &pinned, "--name", "other", "--platform", "linux/arm64"]).good();
    for (name, marker) in [("own", "for amd64"), ("other", "for arm64")] {
        let image = inspected(name);
        let root = PathBuf::from(image["root"].as_str().expect("a path"));
        assert_eq!(std::fs::read_to_string(root.join("marker")).expect("the file"), marker);
        assert_eq!(image["index"], format!("sha256:{index_digest}"), "it answers to the digest that it was found by");
    }
    puller.call(&["pull", &reference, "--name", "none", "--platform", "linux/s390x"]).bad(&[
        "linux/s390x",
        "linux/arm64",
        "--platform",
    ]);
}
