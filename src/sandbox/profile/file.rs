//! One profile file as it is written, and the checks that make it a `Profile`.
//!
//! Invariant: unknown fields, limits that contradict each other and capabilities beyond Podman's set are errors that name the
//! field. Sizes are in MiB and times in seconds in the file, bytes and `Duration` in the types.

use std::time::Duration;

use serde::Deserialize;
use thiserror::Error;

use super::{Installs, Network, ProfileLimits, RootFilesystem};

/// Podman's default set: the most that a profile may grant, inside the session's user namespace.
pub const CAPABILITIES_MAX: [&str; 11] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_NET_BIND_SERVICE",
    "CAP_SETFCAP",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETUID",
    "CAP_SYS_CHROOT",
];

/// A session has 65,536 ids.
const ID_MAX: u32 = 65_535;
const VERSION_CHARS_MAX: usize = 64;
const MIB: u64 = 1 << 20;

/// A profile file.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProfileFile {
    /// The file's own name without `.toml`.
    pub name: String,
    /// For people and logs.
    pub version: String,
    /// A built-in profile's name, or a JSON file beside this one (`mine.json`).
    pub seccomp: String,
    /// What the seccomp file refuses is let through and told, but for what no profile may open. No wall: for writing a profile.
    #[serde(default)]
    pub audit_only: bool,
    /// Uid of programs.
    pub uid: u32,
    /// Gid of programs.
    pub gid: u32,
    /// `CAP_CHOWN`
    #[serde(default)]
    pub capabilities: Vec<String>,
    /// How `/` is built.
    pub root_filesystem: RootFilesystemWord,
    /// What the network namespace holds.
    pub network: NetworkWord,
    /// What install steps may reach; left out: nothing.
    #[serde(default)]
    pub installs: InstallsWord,
    /// For requests that name none.
    pub defaults: LimitsTable,
    /// The most a request may name.
    pub maximum: LimitsTable,
}

/// `root_filesystem`
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RootFilesystemWord {
    /// See `RootFilesystem::ReadOnly`.
    ReadOnly,
    /// See `RootFilesystem::Overlay`.
    Overlay,
}

/// `network`
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NetworkWord {
    /// See `Network::None`.
    None,
    /// See `Network::Loopback`.
    Loopback,
    /// See `Network::Egress`.
    Egress,
}

/// `installs`
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum InstallsWord {
    /// See `Installs::Offline`.
    #[default]
    Offline,
    /// See `Installs::Index`.
    Index,
}

impl From<RootFilesystemWord> for RootFilesystem {
    fn from(word: RootFilesystemWord) -> Self {
        match word {
            RootFilesystemWord::ReadOnly => Self::ReadOnly,
            RootFilesystemWord::Overlay => Self::Overlay,
        }
    }
}

impl From<NetworkWord> for Network {
    fn from(word: NetworkWord) -> Self {
        match word {
            NetworkWord::None => Self::None,
            NetworkWord::Loopback => Self::Loopback,
            NetworkWord::Egress => Self::Egress,
        }
    }
}

impl From<InstallsWord> for Installs {
    fn from(word: InstallsWord) -> Self {
        match word {
            InstallsWord::Offline => Self::Offline,
            InstallsWord::Index => Self::Index,
        }
    }
}

/// `[defaults]` and `[maximum]`
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LimitsTable {
    pub memory_mib: u64,
    pub pids: u64,
    #[serde(default)]
    pub cpu_cores: Option<f64>,
    pub disk_mib: u64,
    pub inodes: u64,
    pub output_kept_mib: u64,
    pub output_killed_mib: u64,
    pub timeout_seconds: u64,
    pub open_files: u64,
}

/// A field with a value that can't be.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{field}: {problem}")]
pub struct FieldError {
    /// As in `maximum.disk_mib`.
    pub field: String,
    /// What is wrong with it.
    pub problem: &'static str,
}

fn wrong(field: impl Into<String>, problem: &'static str) -> FieldError {
    FieldError { field: field.into(), problem }
}

impl ProfileFile {
    /// Everything that can be checked without the seccomp file.
    pub fn check(&self, stem: &str) -> Result<(), FieldError> {
        if self.name != stem {
            return Err(wrong("name", "it must be the file's own name without .toml"));
        }
        if self.version.is_empty() || self.version.len() > VERSION_CHARS_MAX || self.version.contains(char::is_control) {
            return Err(wrong("version", "from 1 to 64 printable characters"));
        }
        for (field, id) in [("uid", self.uid), ("gid", self.gid)] {
            if id > ID_MAX {
                return Err(wrong(field, "a session has the ids 0 to 65535"));
            }
        }
        if let Some(position) = self.capabilities.iter().position(|name| !CAPABILITIES_MAX.contains(&name.as_str())) {
            return Err(wrong(format!("capabilities[{position}]"), "not one of the eleven that a profile may grant"));
        }
        self.defaults.check("defaults")?;
        self.maximum.check("maximum")?;
        self.check_order()
    }

    /// No default is above its maximum.
    fn check_order(&self) -> Result<(), FieldError> {
        let (low, high) = (self.defaults.whole_numbers(), self.maximum.whole_numbers());
        if let Some((field, _)) = low.iter().zip(high).find(|((_, default), (_, maximum))| default > maximum).map(|pair| pair.0)
        {
            return Err(wrong(format!("defaults.{field}"), "it is above the maximum"));
        }
        match (self.defaults.cpu_cores, self.maximum.cpu_cores) {
            (None, Some(_)) => Err(wrong("defaults.cpu_cores", "no quota is above the maximum")),
            (Some(default), Some(maximum)) if default > maximum => Err(wrong("defaults.cpu_cores", "it is above the maximum")),
            (Some(_) | None, _) => Ok(()),
        }
    }
}

/// Bounds that keep every later sum and product within 64 bits and within the kernel's own limits.
const MIB_MAX: u64 = 1 << 24;
const COUNT_MAX: u64 = 1 << 32;
const PIDS_MAX: u64 = 4_194_304;
const OPEN_FILES_MIN: u64 = 16;
const OPEN_FILES_MAX: u64 = 1 << 20;
const TIMEOUT_SECONDS_MAX: u64 = 7 * 24 * 3600;
const CPU_CORES_MIN: f64 = 0.01;
const CPU_CORES_MAX: f64 = 1024.0;

impl LimitsTable {
    fn whole_numbers(&self) -> [(&'static str, u64); 8] {
        [
            ("memory_mib", self.memory_mib),
            ("pids", self.pids),
            ("disk_mib", self.disk_mib),
            ("inodes", self.inodes),
            ("output_kept_mib", self.output_kept_mib),
            ("output_killed_mib", self.output_killed_mib),
            ("timeout_seconds", self.timeout_seconds),
            ("open_files", self.open_files),
        ]
    }

    fn check(&self, table: &str) -> Result<(), FieldError> {
        let ranges = [
            (1, MIB_MAX),
            (1, PIDS_MAX),
            (1, MIB_MAX),
            (1, COUNT_MAX),
            (1, MIB_MAX),
            (1, MIB_MAX),
            (1, TIMEOUT_SECONDS_MAX),
            (OPEN_FILES_MIN, OPEN_FILES_MAX),
        ];
        for ((field, value), (least, most)) in self.whole_numbers().into_iter().zip(ranges) {
            if !(least..=most).contains(&value) {
                return Err(wrong(format!("{table}.{field}"), "it is out of range"));
            }
        }
        if self.cpu_cores.is_some_and(|cores| !(CPU_CORES_MIN..=CPU_CORES_MAX).contains(&cores)) {
            return Err(wrong(format!("{table}.cpu_cores"), "from 0.01 to 1024"));
        }
        if self.disk_mib > self.memory_mib / 2 {
            return Err(wrong(format!("{table}.disk_mib"), "a tmpfs is charged as memory: at most half of memory_mib"));
        }
        if self.output_kept_mib > self.output_killed_mib {
            return Err(wrong(format!("{table}.output_kept_mib"), "it is above output_killed_mib"));
        }
        Ok(())
    }
}

impl From<LimitsTable> for ProfileLimits {
    fn from(table: LimitsTable) -> Self {
        Self {
            memory_bytes: table.memory_mib * MIB,
            pids: table.pids,
            cpu_cores: table.cpu_cores,
            disk_bytes: table.disk_mib * MIB,
            inodes: table.inodes,
            output_kept_bytes: table.output_kept_mib * MIB,
            output_killed_bytes: table.output_killed_mib * MIB,
            timeout: Duration::from_secs(table.timeout_seconds),
            open_files: table.open_files,
        }
    }
}
