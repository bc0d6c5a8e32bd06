//! What the host offers to the tests. A trial asks for what it needs; what is missing skips it, or fails it where
//! `CODEBEAKER_TEST_REQUIRE` (a comma-separated list of the names below, or `all`) says that it must be there.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use super::trial::skip;

/// One thing a host may lack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Feature {
    /// The suite runs as root.
    Root,
    /// User namespaces are open to ordinary users.
    OrdinaryUser,
    /// `/usr/bin/python3`.
    Python,
    /// `/usr/bin/node`.
    Node,
    /// Deno, where `scripts/test` installs it.
    Deno,
    /// Bun, where `scripts/test` installs it.
    Bun,
    /// A 64-bit x86 kernel, which the golden lists are made for.
    X86,
    /// The pids controller, v1 or v2.
    CgroupPids,
    /// The memory controller, v1 or v2.
    CgroupMemory,
}

impl Feature {
    /// The word in `CODEBEAKER_TEST_REQUIRE`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Root => "root",
            Self::OrdinaryUser => "ordinary_user",
            Self::Python => "python",
            Self::Node => "node",
            Self::Deno => "deno",
            Self::Bun => "bun",
            Self::X86 => "x86",
            Self::CgroupPids => "cgroup_pids",
            Self::CgroupMemory => "cgroup_memory",
        }
    }
}

/// The host, to ask.
pub struct Host {
    required: Vec<String>,
}

/// The host, to ask.
pub fn host() -> &'static Host {
    static HOST: OnceLock<Host> = OnceLock::new();
    HOST.get_or_init(|| {
        let list = std::env::var("CODEBEAKER_TEST_REQUIRE").unwrap_or_default();
        Host { required: list.split(',').map(|word| word.trim().to_owned()).filter(|word| !word.is_empty()).collect() }
    })
}

impl Host {
    /// Goes on when the host has the feature; otherwise skips the trial, or fails it where the run requires the feature.
    pub fn need(&self, feature: Feature) -> &Self {
        if let Some(reason) = Self::missing(feature) {
            assert!(!self.requires(feature), "this run requires `{}`, but {reason}", feature.name());
            skip(reason);
        }
        self
    }

    /// Whether the host has the feature, without a consequence.
    pub fn has(feature: Feature) -> bool {
        Self::missing(feature).is_none()
    }

    fn requires(&self, feature: Feature) -> bool {
        self.required.iter().any(|word| word == feature.name() || word == "all")
    }

    /// What is missing, or nothing when the host has it.
    fn missing(feature: Feature) -> Option<&'static str> {
        let (there, reason) = match feature {
            Feature::Root => (nix::unistd::geteuid().is_root(), "the suite does not run as root"),
            Feature::OrdinaryUser => (ordinary_user(), "user namespaces are closed to ordinary users"),
            Feature::Python => (Path::new("/usr/bin/python3").exists(), "there is no /usr/bin/python3"),
            Feature::Node => (Path::new("/usr/bin/node").exists(), "there is no /usr/bin/node"),
            Feature::Deno => (engine("deno").is_some(), "there is no target/engines/deno (scripts/test installs it)"),
            Feature::Bun => (engine("bun").is_some(), "there is no target/engines/bun (scripts/test installs it)"),
            Feature::X86 => (cfg!(target_arch = "x86_64"), "this is not x86-64"),
            Feature::CgroupPids => (controller("pids"), "the pids controller is not there"),
            Feature::CgroupMemory => (controller("memory"), "the memory controller is not there"),
        };
        (!there).then_some(reason)
    }
}

/// An engine that `scripts/test` has installed.
pub fn engine(name: &str) -> Option<PathBuf> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/engines").join(name);
    path.is_file().then_some(path)
}

fn ordinary_user() -> bool {
    let closed = |file: &str, word: &str| std::fs::read_to_string(file).is_ok_and(|text| text.trim() == word);
    !closed("/proc/sys/kernel/unprivileged_userns_clone", "0") && !closed("/proc/sys/user/max_user_namespaces", "0")
}

fn controller(name: &str) -> bool {
    let table = std::fs::read_to_string("/proc/cgroups").unwrap_or_default();
    table.lines().any(|line| line.split_whitespace().next() == Some(name) && line.trim_end().ends_with('1'))
}
