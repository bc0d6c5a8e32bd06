//! `permissions` of a request as an engine's own flags. Pure.
//!
//! Invariants: what is not allowed is denied, where the engine can deny it; a path can't become more than one, or a pattern;
//! the file that a session's code is written to can always be read, or nothing could run. The sandbox's walls stand whatever
//! these flags say.

use std::path::{Component, Path};

use crate::language::engines::{Engine, EngineVersion};
use crate::language::{Language, WORKSPACE, source_path};
use crate::runtime::Permissions;
use crate::sandbox::enforcement::{WallState, WallStatus};

/// What a path of a permission may look like.
pub const PATH_TAKES: &str = "paths without `,`, `*` and control characters, none empty, 4096 bytes at most";

/// Opened to guests of WASI like the workspace.
const TEMPORARY: &str = "/tmp";

/// Paths that one list may hold.
pub const PATHS_MAX: usize = 64;

/// True when the path can be one flag's value for every engine: Deno parts values at commas, Node takes stars for patterns.
pub fn is_path(path: &str) -> bool {
    !path.is_empty() && path.len() <= 4096 && !path.chars().any(|c| c == ',' || c == '*' || c.is_control())
}

/// The flags of that engine.
pub fn flags(engine: Engine, version: EngineVersion, language: &Language, permissions: &Permissions) -> Vec<String> {
    let source = source_path(language);
    let mut reads = paths(&permissions.allow_read);
    reads.push(source);
    let writes = paths(&permissions.allow_write);
    match engine {
        Engine::Deno => deno(&reads, &writes, permissions),
        Engine::NodeJs => node(version, &reads, &writes),
        // It has none; what it fetches by itself is all that can be forbidden.
        Engine::Bun => vec!["--no-install".into()],
        Engine::WebAssembly => directories(&reads, &writes),
    }
}

/// A list that is left out means the workspace.
fn paths(named: &[String]) -> Vec<String> {
    if named.is_empty() {
        return vec![WORKSPACE.into()];
    }
    named.iter().map(|path| if path.starts_with('/') { path.clone() } else { format!("{WORKSPACE}/{path}") }).collect()
}

fn deno(reads: &[String], writes: &[String], permissions: &Permissions) -> Vec<String> {
    let mut flags = vec!["--no-prompt".to_owned(), "--cached-only".to_owned()];
    flags.push(format!("--allow-read={}", reads.join(",")));
    flags.push(format!("--allow-write={}", writes.join(",")));
    if permissions.allow_env {
        flags.push("--allow-env".into());
    }
    if permissions.allow_net {
        flags.push("--allow-net".into());
    }
    flags
}

/// Directories that are opened to a guest of WASI, besides `/workspace`. That one is always opened, or the code could not be read; and
/// what is not below it or `/tmp` is no guest's, whatever is named.
fn directories(reads: &[String], writes: &[String]) -> Vec<String> {
    let covered = |paths: &[String], directory: &str| {
        paths.iter().any(|path| Path::new(directory).starts_with(path) || (directory == TEMPORARY && path == WORKSPACE))
    };
    let mut flags = Vec::new();
    for base in [WORKSPACE, TEMPORARY] {
        if covered(writes, base) {
            flags.push(format!("--write={base}"));
        } else if base == WORKSPACE || covered(reads, base) {
            flags.push(format!("--read={base}"));
        }
    }
    let below = |path: &&String| {
        let plain = Path::new(path.as_str()).components().all(|part| !matches!(part, Component::ParentDir));
        let inside =
            [WORKSPACE, TEMPORARY].iter().any(|base| Path::new(path.as_str()).starts_with(base) && path.as_str() != *base);
        plain && inside
    };
    flags.extend(writes.iter().filter(below).map(|path| format!("--write={path}")));
    flags
}

/// The permission model of Node, where the version has one: files, child processes, workers, add-ons; not variables, not network.
fn node(version: EngineVersion, reads: &[String], writes: &[String]) -> Vec<String> {
    let Some(switch) = node_switch(version) else { return Vec::new() };
    let read = reads.iter().map(|path| format!("--allow-fs-read={path}"));
    let write = writes.iter().map(|path| format!("--allow-fs-write={path}"));
    // It warns on standard error of being an experiment, in every run.
    let quiet = "--disable-warning=ExperimentalWarning".to_owned();
    [switch.to_owned(), quiet].into_iter().chain(read).chain(write).collect()
}

/// The flag that switches it on. Versions before 20.11 can't be made to keep their warning to themselves, and have it off.
fn node_switch(version: EngineVersion) -> Option<&'static str> {
    match version {
        version if version >= EngineVersion(23, 5, 0) => Some("--permission"),
        version if version >= EngineVersion(22, 13, 0) && version < EngineVersion(23, 0, 0) => Some("--permission"),
        version if version >= EngineVersion(20, 11, 0) => Some("--experimental-permission"),
        EngineVersion(..) => None,
    }
}

/// What a session's `enforcement` says of the permissions that its request named.
pub fn row(engine: Engine, version: Option<EngineVersion>) -> WallState {
    let (state, detail) = match engine {
        Engine::Deno => (WallStatus::Enforced, "Deno's own: files, variables and network as named, everything else denied"),
        Engine::NodeJs if version.and_then(node_switch).is_some() => {
            (WallStatus::Degraded, "Node's own: files as named, no child processes; it has none for variables and network")
        }
        Engine::NodeJs => (WallStatus::Absent, "this version of Node has no permissions; the sandbox's walls hold for it"),
        Engine::WebAssembly => (
            WallStatus::Degraded,
            "directories of /workspace and /tmp as named, no others, no network; variables that the client gives can be read",
        ),
        Engine::Bun => (WallStatus::Absent, "Bun has no permissions; the sandbox's walls hold for it"),
    };
    WallState { name: "permissions".into(), state, detail: detail.into() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::language::Languages;

    const NODE_20: EngineVersion = EngineVersion(20, 20, 2);

    fn of(engine: Engine, version: EngineVersion, permissions: &Permissions) -> Vec<String> {
        let language = Languages::load(None).expect("embedded").get("javascript").expect("embedded");
        flags(engine, version, &language, permissions)
    }

    #[test]
    fn what_a_request_leaves_out_is_the_workspace_and_nothing_else() {
        let none = Permissions::default();
        assert_eq!(
            of(Engine::Deno, EngineVersion(2, 9, 8), &none),
            ["--no-prompt", "--cached-only", "--allow-read=/workspace,/workspace/.main.js", "--allow-write=/workspace"]
        );
        assert_eq!(
            of(Engine::NodeJs, NODE_20, &none),
            [
                "--experimental-permission",
                "--disable-warning=ExperimentalWarning",
                "--allow-fs-read=/workspace",
                "--allow-fs-read=/workspace/.main.js",
                "--allow-fs-write=/workspace"
            ]
        );
        assert_eq!(of(Engine::Bun, EngineVersion(1, 4, 2), &none), ["--no-install"]);
    }

    #[test]
    fn what_a_request_names_takes_the_place_of_the_workspace() {
        let named = Permissions {
            allow_read: vec!["data".into(), "/etc".into()],
            allow_write: vec!["/tmp/out".into()],
            allow_net: true,
            allow_env: true,
            allow_package_index: true,
        };
        let deno = of(Engine::Deno, EngineVersion(2, 9, 8), &named);
        assert!(deno.contains(&"--allow-read=/workspace/data,/etc,/workspace/.main.js".into()), "{deno:?}");
        assert!(deno.contains(&"--allow-write=/tmp/out".into()), "{deno:?}");
        assert!(deno.contains(&"--allow-env".into()) && deno.contains(&"--allow-net".into()), "{deno:?}");
        let node = of(Engine::NodeJs, NODE_20, &named);
        assert!(
            node.contains(&"--allow-fs-read=/etc".into()) && !node.contains(&"--allow-fs-read=/workspace".into()),
            "{node:?}"
        );
    }

    #[test]
    fn a_guest_of_wasi_gets_directories_of_the_workspace_and_of_nothing_else() {
        let version = EngineVersion(48, 0, 0);
        let of = |read: &[&str], write: &[&str]| {
            let owned = |paths: &[&str]| paths.iter().map(|path| (*path).to_owned()).collect();
            let named = Permissions { allow_read: owned(read), allow_write: owned(write), ..Permissions::default() };
            of(Engine::WebAssembly, version, &named)
        };
        assert_eq!(of(&[], &[]), ["--write=/workspace", "--write=/tmp"]);
        assert_eq!(of(&["/"], &[]), ["--write=/workspace", "--write=/tmp"]);
        assert_eq!(of(&["/etc"], &["/etc", "out"]), ["--read=/workspace", "--write=/workspace/out"]);
        assert_eq!(of(&["/"], &["/tmp/x", "/workspace/../etc"]), ["--read=/workspace", "--read=/tmp", "--write=/tmp/x"]);
    }

    #[test]
    fn the_switch_of_node_follows_its_version() {
        for (version, switch) in [
            (EngineVersion(18, 20, 0), None),
            (EngineVersion(20, 10, 0), None),
            (NODE_20, Some("--experimental-permission")),
            (EngineVersion(22, 12, 0), Some("--experimental-permission")),
            (EngineVersion(22, 13, 0), Some("--permission")),
            (EngineVersion(23, 4, 0), Some("--experimental-permission")),
            (EngineVersion(23, 5, 0), Some("--permission")),
            (EngineVersion(26, 0, 0), Some("--permission")),
        ] {
            assert_eq!(node_switch(version), switch, "{version}");
        }
    }

    #[test]
    fn a_path_that_would_be_two_or_a_pattern_is_none() {
        for path in ["a,b", "*", "/a*", "", "a\0b", "a\nb"] {
            assert!(!is_path(path), "{path:?}");
        }
        assert!(is_path("/a b/ü=--x"));
    }
}
