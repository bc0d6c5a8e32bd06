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
    /// A `/usr/bin/node` whose build left parts of it in files of their own: Debian's, which the emulated machine has.
    NodeParts,
    /// Deno, where `scripts/test` installs it.
    Deno,
    /// Bun, where `scripts/test` installs it.
    Bun,
    /// A Node that takes types away by itself, where `scripts/test` installs it.
    NewerNode,
    /// Engines for WebAssembly, where `scripts/test` installs them.
    WasmEngines,
    /// Python's binding of libseccomp, the oracle of what other engines make of a profile.
    Libseccomp,
    /// A 64-bit x86 kernel, which the golden lists are made for.
    X86,
    /// The pids controller, v1 or v2.
    CgroupPids,
    /// The memory controller, v1 or v2.
    CgroupMemory,
    /// `systemd-analyze`.
    SystemdAnalyze,
    /// `apparmor_parser` that knows the rule `userns`.
    Apparmor4,
    /// An AppArmor that bounds who may make user namespaces (Linux 6.7), in which the run may load profiles: that of the machine.
    ApparmorUserns,
    /// A systemd in whose units the run may write: that of the emulated machine.
    Systemd,
    /// A unified tree in whose root the run may make groups: that of the emulated machine.
    UnifiedCgroups,
    /// `skopeo`, `umoci`, `docker-registry` and `mmdebstrap`.
    ImageTools,
    /// A Docker engine that the suite can start for itself, as root.
    Dockerd,
    /// Podman, with the programs of that engine.
    Podman,
}

impl Feature {
    /// The word in `CODEBEAKER_TEST_REQUIRE`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Root => "root",
            Self::OrdinaryUser => "ordinary_user",
            Self::Python => "python",
            Self::Node => "node",
            Self::NodeParts => "node_parts",
            Self::Deno => "deno",
            Self::Bun => "bun",
            Self::NewerNode => "newer_node",
            Self::WasmEngines => "wasm_engines",
            Self::Libseccomp => "libseccomp",
            Self::X86 => "x86",
            Self::CgroupPids => "cgroup_pids",
            Self::CgroupMemory => "cgroup_memory",
            Self::SystemdAnalyze => "systemd_analyze",
            Self::Apparmor4 => "apparmor4",
            Self::ApparmorUserns => "apparmor_userns",
            Self::Systemd => "systemd",
            Self::UnifiedCgroups => "unified_cgroups",
            Self::ImageTools => "image_tools",
            Self::Dockerd => "dockerd",
            Self::Podman => "podman",
        }
    }
}

/// What `all` does not stand for: no package makes a host have it.
const OF_OTHER_HOSTS: [Feature; 5] =
    [Feature::Apparmor4, Feature::ApparmorUserns, Feature::NodeParts, Feature::Systemd, Feature::UnifiedCgroups];

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
            self.without(feature.name(), !OF_OTHER_HOSTS.contains(&feature), reason);
        }
        self
    }

    /// The same for what a trial has found out by itself; `word` stands in `CODEBEAKER_TEST_REQUIRE`.
    pub fn need_that(&self, word: &str, found: bool, reason: &str) {
        if !found {
            self.without(word, true, reason);
        }
    }

    fn without(&self, word: &str, in_all: bool, reason: &str) {
        let required = self.required.iter().any(|required| required == word || (in_all && required == "all"));
        assert!(!required, "this run requires `{word}`, but {reason}");
        skip(reason);
    }

    /// The same for the programs of a language; `language` is its word in `CODEBEAKER_TEST_REQUIRE`.
    pub fn need_programs(&self, language: &str, programs: &[&str]) -> &Self {
        for program in programs {
            self.need_that(language, Self::has_program(program), &format!("there is no /usr/bin/{program}"));
        }
        self
    }

    /// Whether the program is in `/usr/bin`, where sessions on the image `host` find it.
    pub fn has_program(program: &str) -> bool {
        Path::new("/usr/bin").join(program).exists()
    }

    /// Whether the host has the feature, without a consequence.
    pub fn has(feature: Feature) -> bool {
        Self::missing(feature).is_none()
    }

    /// What is missing, or nothing when the host has it.
    fn missing(feature: Feature) -> Option<&'static str> {
        let (there, reason) = match feature {
            Feature::Root => (nix::unistd::geteuid().is_root(), "the suite does not run as root"),
            Feature::OrdinaryUser => (ordinary_user(), "user namespaces are closed to ordinary users"),
            Feature::Python => (Path::new("/usr/bin/python3").exists(), "there is no /usr/bin/python3"),
            Feature::Node => (Path::new("/usr/bin/node").exists(), "there is no /usr/bin/node"),
            Feature::NodeParts => (!node_parts().is_empty(), "there is no /usr/bin/node that has parts in files of their own"),
            Feature::Deno => (engine("deno").is_some(), "there is no target/engines/deno (scripts/test installs it)"),
            Feature::WasmEngines => {
                let there = engine("python.wasm").is_some() && engine("javascript.wasm").is_some();
                (there, "there is no target/engines/python.wasm or javascript.wasm (scripts/test installs them)")
            }
            Feature::Bun => (engine("bun").is_some(), "there is no target/engines/bun (scripts/test installs it)"),
            Feature::NewerNode => (engine("node").is_some(), "there is no target/engines/node (scripts/test installs it)"),
            Feature::Libseccomp => (libseccomp(), "python3 has no module `seccomp` (package python3-seccomp)"),
            Feature::X86 => (cfg!(target_arch = "x86_64"), "this is not x86-64"),
            Feature::CgroupPids => (controller("pids"), "the pids controller is not there"),
            Feature::CgroupMemory => (controller("memory"), "the memory controller is not there"),
            Feature::SystemdAnalyze => (Path::new("/usr/bin/systemd-analyze").exists(), "there is no systemd-analyze"),
            Feature::Apparmor4 => (apparmor4(), "there is no apparmor_parser of version 4 or later"),
            Feature::ApparmorUserns => {
                (machine() && apparmor_userns(), "this is not the machine with an AppArmor that bounds user namespaces")
            }
            Feature::Systemd => (machine() && Path::new("/run/systemd/system").is_dir(), "this is not the machine's systemd"),
            Feature::UnifiedCgroups => (machine() && unified(), "this is not the machine's unified cgroup tree"),
            Feature::Podman => (Path::new("/usr/bin/podman").exists(), "there is no podman"),
            Feature::Dockerd => {
                (engine_of_its_own(), "there is no dockerd that the suite could start, as root (package docker.io)")
            }
            Feature::ImageTools => {
                let there = ["skopeo", "umoci", "docker-registry", "mmdebstrap"]
                    .iter()
                    .all(|tool| Path::new("/usr/bin").join(tool).exists());
                (there, "one of skopeo, umoci, docker-registry and mmdebstrap is missing")
            }
        };
        (!there).then_some(reason)
    }
}

/// The files that `/usr/bin/node` says its build left out of it.
pub fn node_parts() -> Vec<String> {
    let code = "(process.config.target_defaults?.defines ?? []).join('\\n')";
    let Ok(output) = std::process::Command::new("/usr/bin/node").args(["-p", code]).output() else { return Vec::new() };
    let options = String::from_utf8_lossy(&output.stdout).into_owned();
    let parts = options.lines().filter_map(|option| option.strip_prefix("NODE_SHARED_BUILTIN_")?.split_once('='));
    parts.map(|(_, path)| path.to_owned()).collect()
}

/// Not in the emulated machine, which has no package of it and takes minutes for what takes seconds here.
fn engine_of_its_own() -> bool {
    let programs = ["/usr/sbin/dockerd", "/usr/bin/docker", "/usr/bin/nsenter", "/usr/bin/unshare"];
    nix::unistd::geteuid().is_root() && !machine() && programs.iter().all(|path| Path::new(path).exists())
}

/// The emulated machine: its init leaves this file, and what is changed in it is thrown away.
fn machine() -> bool {
    Path::new("/run/codebeaker-machine").exists()
}

fn unified() -> bool {
    let root = Path::new("/sys/fs/cgroup");
    nix::unistd::geteuid().is_root() && std::fs::read_to_string(root.join("cgroup.controllers")).is_ok()
}

fn apparmor4() -> bool {
    let Ok(output) = std::process::Command::new("/usr/sbin/apparmor_parser").arg("--version").output() else { return false };
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.split_whitespace().find_map(|word| word.split('.').next()?.parse::<u32>().ok()).is_some_and(|major| major >= 4)
}

fn apparmor_userns() -> bool {
    let mask = std::fs::read_to_string("/sys/kernel/security/apparmor/features/namespaces/mask").unwrap_or_default();
    nix::unistd::geteuid().is_root() && mask.split_whitespace().any(|word| word == "userns_create")
}

/// Major and minor number of the running kernel.
pub fn kernel() -> (u32, u32) {
    release(&std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default())
}

/// `6.1.0-13-cloud-amd64` → (6, 1).
pub fn release(text: &str) -> (u32, u32) {
    let mut numbers = text.split(|c: char| !c.is_ascii_digit()).map(|part| part.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

/// An engine that `scripts/test` has installed.
pub fn engine(name: &str) -> Option<PathBuf> {
    let path = engines_dir().join(name);
    path.is_file().then_some(path)
}

/// Where `scripts/test` has installed engines.
pub fn engines_dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("target/engines")
}

fn ordinary_user() -> bool {
    let closed = |file: &str, word: &str| std::fs::read_to_string(file).is_ok_and(|text| text.trim() == word);
    !closed("/proc/sys/kernel/unprivileged_userns_clone", "0") && !closed("/proc/sys/user/max_user_namespaces", "0")
}

fn libseccomp() -> bool {
    let asked = std::process::Command::new("/usr/bin/python3")
        .args(["-c", "import seccomp"])
        .stderr(std::process::Stdio::null())
        .status();
    asked.is_ok_and(|status| status.success())
}

fn controller(name: &str) -> bool {
    let table = std::fs::read_to_string("/proc/cgroups").unwrap_or_default();
    table.lines().any(|line| line.split_whitespace().next() == Some(name) && line.trim_end().ends_with('1'))
}
