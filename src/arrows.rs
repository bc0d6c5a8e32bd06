//! The test that knows the arrows of docs/architecture.md: which module may use which, and which crate has which owner.

use std::fs;
use std::path::{Path, PathBuf};

/// A module, and all it may use of this crate.
const ARROWS: [(&str, &[&str]); 18] = [
    ("allowlist", &[]),
    ("command", &["id"]),
    ("id", &[]),
    ("config", &["allowlist"]),
    ("language", &["command", "image"]),
    ("plan", &["command", "sys"]),
    ("sys", &[]),
    ("seccomp", &[]),
    ("init", &["command", "plan", "sys"]),
    ("launcher", &["init", "plan", "sys"]),
    ("sandbox", &["command", "id", "plan", "seccomp", "sys"]),
    ("image", &["seccomp", "sys"]),
    ("runtime", &["allowlist", "command", "id", "image", "language", "plan", "sandbox", "seccomp", "sys"]),
    ("selector", &["command", "runtime"]),
    ("session", &["command", "config", "id", "language", "runtime", "sandbox", "selector"]),
    ("telemetry", &["config"]),
    ("rpc", &["command", "config", "id", "runtime", "sandbox", "session", "sys", "telemetry"]),
    ("arrows", &[]),
];

/// A crate, and the only places that may name it.
const OWNERS: [(&str, &[&str]); 21] = [
    ("bollard", &["runtime/docker"]),
    ("jsonrpsee", &["rpc/"]),
    ("axum", &["rpc/"]),
    ("hyper", &["rpc/", "runtime/egress"]),
    ("http_body_util", &["runtime/egress"]),
    ("cgroups_rs", &["sandbox/cgroups"]),
    ("landlock", &["sys/landlock", "sys/trial", "image/confine"]),
    ("lddtree", &["image/minimal"]),
    ("seccompiler", &["seccomp/"]),
    ("serde_saphyr", &["seccomp/"]),
    ("tokio", &["cli/", "rpc/", "session/", "runtime/", "telemetry", "image/pull"]),
    ("reqwest", &["image/pull"]),
    ("rustls", &["image/pull"]),
    ("http_auth", &["image/pull"]),
    ("docker_credential", &["image/pull"]),
    ("oci_spec", &["image/"]),
    ("wasmtime", &["runtime/wasm/", "sys/compiled"]),
    ("wasmtime_wasi", &["runtime/wasm/worker/"]),
    ("hmac", &["runtime/wasm/cache"]),
    ("figment", &["config"]),
    ("sd_notify", &["cli/service_manager"]),
];

fn sources(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).expect("the sources are there") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// Every file below src with its path from there.
fn all() -> Vec<(String, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut found = Vec::new();
    sources(&root, &mut found);
    found
        .into_iter()
        .map(|path| {
            let name = path.strip_prefix(&root).expect("below src").to_string_lossy().into_owned();
            (name, fs::read_to_string(&path).expect("readable"))
        })
        .collect()
}

/// The modules of this crate that a text names.
fn used(text: &str) -> Vec<String> {
    text.match_indices("crate::")
        .filter(|(at, _)| !text[..*at].ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == '$'))
        .map(|(at, mark)| text[at + mark.len()..].chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect())
        .collect()
}

#[test]
fn modules_use_only_what_lies_below_them() {
    let mut wrong = Vec::new();
    for (name, text) in all() {
        // Tests may reach up for what they need; this page names modules to judge them.
        if name.contains("tests") || name == "arrows.rs" {
            continue;
        }
        let module = name.split(['/', '.']).next().unwrap_or_default();
        let Some((_, allowed)) = ARROWS.iter().find(|(known, _)| *known == module) else { continue };
        let code: Vec<&str> = text
            .lines()
            .take_while(|line| line.trim() != "#[cfg(test)]")
            .filter(|line| !line.trim_start().starts_with("//"))
            .collect();
        for other in used(&code.join("\n")) {
            let known = ARROWS.iter().any(|(known, _)| *known == other) || other == "cli";
            if known && other != module && !allowed.contains(&other.as_str()) {
                wrong.push(format!("{name} uses {other}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn crates_are_named_only_by_their_owners() {
    let mut wrong = Vec::new();
    for (name, text) in all() {
        for (owned, owners) in OWNERS {
            let named = text.lines().any(|line| {
                let code = line.trim_start();
                let imported = code.starts_with(&format!("use {owned}::"));
                // `landlock` is also the name of the module that owns the crate.
                let inline =
                    owned != "landlock" && (code.contains(&format!(" {owned}::")) || code.contains(&format!("({owned}::")));
                !code.starts_with("//") && (imported || inline)
            });
            if named && name != "arrows.rs" && !owners.iter().any(|owner| name.starts_with(owner)) {
                wrong.push(format!("{name} names {owned}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn the_finder_of_uses_finds_them() {
    assert_eq!(used("use crate::sys::mount; let x = crate::plan::Step; $crate::no; mycrate::no"), ["sys", "plan"]);
}

#[test]
fn unsafe_stays_behind_the_fence() {
    let outside: Vec<String> = all()
        .into_iter()
        .filter(|(name, text)| !name.starts_with("sys/") && lifts_the_fence(text))
        .map(|(name, _)| name)
        .collect();
    assert!(outside.is_empty(), "{outside:#?}");
}

/// In two, so that this page holds neither it nor the lint that is named after it.
const KEYWORD: &str = concat!("un", "safe");

/// Cargo.toml denies the lint; what lifts it names it, whichever way, and nothing that it forbids does without the keyword before a
/// block, a function, an implementation, a trait or a foreign item.
fn lifts_the_fence(text: &str) -> bool {
    let lint = format!("{KEYWORD}_code");
    text.lines().filter(|line| !line.trim_start().starts_with("//")).any(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let keyword = |pair: &[&str]| {
            pair[0].ends_with(KEYWORD) && ["{", "fn", "impl", "trait", "extern"].iter().any(|next| pair[1].starts_with(next))
        };
        line.contains(&lint) || words.windows(2).any(keyword)
    })
}

#[test]
fn the_fence_is_lifted_by_code_and_not_by_words_about_it() {
    for code in ["{ x() }", "fn f() {}", "impl Send for X {}", "trait T {}", "extern \"C\" {}"] {
        assert!(lifts_the_fence(&format!("let y = {KEYWORD} {code};")), "{code}");
    }
    assert!(lifts_the_fence(&format!("#[allow({KEYWORD}_code, reason = \"no\")]")));
    assert!(!lifts_the_fence(&format!("// {KEYWORD} {{ in a comment }}\nlet word = \"{KEYWORD}\";")));
}
