//! Profiles: `profiles/*.toml` parsed once into types. The three built-in ones are embedded in the binary.
//!
//! Invariant: a `Profile` is whole – its limits agree with each other, its filters are compiled and keep what no profile may
//! allow shut. `profile::load` reads and checks the files; `seccomp` makes the filters.

pub mod load;

mod file;

#[cfg(test)]
mod tests;

use std::num::NonZeroU64;
use std::sync::Arc;
use std::time::Duration;

use super::spec::Limits;

pub use load::{ProfileError, Profiles};

use super::enforcement::ProfileIdentity;
use crate::plan::ListenerAnswer;
use crate::seccomp::model::SeccompProfile;
use crate::sys::seccomp::Waiting;

/// A named set of walls, seccomp filters and default limits.
#[derive(Debug, Clone, PartialEq)]
pub struct Profile {
    /// `strict`, `default`, `permissive` or the operator's.
    pub name: String,
    /// As its file says.
    pub version: String,
    /// Of the profile file followed by its seccomp file, hexadecimal.
    pub sha256: String,
    /// Of its seccomp file alone, hexadecimal.
    pub seccomp_sha256: String,
    /// Uid and gid of programs inside the session (65534, 1000, 0).
    pub uid: u32,
    /// Group of programs.
    pub gid: u32,
    /// Names of the capabilities(7) that programs keep (`CAP_CHOWN`), empty except in permissive.
    pub capabilities: Vec<String>,
    /// How `/` is built.
    pub root_filesystem: RootFilesystem,
    /// What the network namespace holds.
    pub network: Network,
    /// What install steps may reach.
    pub installs: Installs,
    /// Its seccomp file, for engines that make filters of their own of it.
    pub document: Arc<SeccompProfile>,
    /// The compiled seccomp filters, in the order they are installed: the allow-list first, the deny-list last.
    /// Each is an array of `struct sock_filter`, 8 bytes an instruction, native byte order.
    pub seccomp: Vec<Vec<u8>>,
    /// The same for programs that have a listener; absent when the profile refuses nothing that could be told.
    pub notifying: Option<Notifying>,
    /// Of the filters of `seccomp`, in order, hexadecimal.
    pub bpf_sha256: String,
    /// What a request that names no limits gets.
    pub defaults: ProfileLimits,
    /// The most a request may ask for.
    pub maximum: ProfileLimits,
}

/// Filters that decide as [`Profile::seccomp`] does, with the refused calls told to a listener. In a profile that audits the listener
/// lets them go on; where there is none, `Profile::seccomp` refuses them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Notifying {
    /// The one that tells; installed first, with the listener.
    pub filter: Vec<u8>,
    /// What the listener must answer.
    pub answer: ListenerAnswer,
    /// Installed after it, in this order.
    pub others: Vec<Vec<u8>>,
    /// Of `filter` and `others`, in order, hexadecimal.
    pub bpf_sha256: String,
}

impl Notifying {
    /// True when they refuse nothing but what no profile may open.
    pub fn lets_go(&self) -> bool {
        match self.answer {
            ListenerAnswer::LetGo => true,
            ListenerAnswer::Refuse(_) => false,
        }
    }
}

impl Profile {
    /// Which profile it is, for programs that have a listener or can't have one.
    pub fn identity(&self, listener: Option<Waiting>) -> ProfileIdentity {
        let notifying = listener.and(self.notifying.as_ref());
        ProfileIdentity {
            name: self.name.clone(),
            version: self.version.clone(),
            sha256: self.sha256.clone(),
            seccomp_sha256: self.seccomp_sha256.clone(),
            audit_only: notifying.is_some_and(Notifying::lets_go),
            bpf_sha256: notifying.map_or(&self.bpf_sha256, |notifying| &notifying.bpf_sha256).clone(),
        }
    }
}

/// How `/` is built.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RootFilesystem {
    /// Read-only; `/workspace`, `/tmp` and `/dev/shm` are on a tmpfs.
    ReadOnly,
    /// An overlay whose upper layer is a tmpfs with a quota.
    Overlay,
}

/// What the network namespace holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Network {
    /// Nothing, loopback down.
    None,
    /// Loopback up.
    Loopback,
    /// Loopback up; and where the request asks for it, a proxy on it that leads to what the operator lists.
    Egress,
}

/// What an install step may reach.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Installs {
    /// Nothing.
    Offline,
    /// The operator's package index, where the request asks for it.
    Index,
}

/// The limits a profile states.
#[derive(Debug, Clone, PartialEq)]
#[expect(missing_docs, reason = "the fields of `spec::Limits`, in the same units")]
pub struct ProfileLimits {
    pub memory_bytes: u64,
    pub pids: u64,
    pub cpu_cores: Option<f64>,
    pub disk_bytes: u64,
    pub inodes: u64,
    pub output_kept_bytes: u64,
    pub output_killed_bytes: u64,
    pub timeout: Duration,
    pub open_files: u64,
}

impl Profile {
    /// The limits of a request that names none; none for a profile that allows no memory.
    pub fn limits(&self) -> Option<Limits> {
        let ProfileLimits { memory_bytes, pids, cpu_cores, disk_bytes, inodes, .. } = self.defaults;
        Some(Limits {
            memory_bytes: NonZeroU64::new(memory_bytes)?,
            cpu_shares: 1024,
            cpu_cores,
            pids,
            // A session's files are charged to its memory.
            disk_bytes: disk_bytes.min(memory_bytes / 2),
            inodes,
            output_kept_bytes: self.defaults.output_kept_bytes,
            output_killed_bytes: self.defaults.output_killed_bytes,
            timeout: self.defaults.timeout,
            timeout_max: self.maximum.timeout,
            open_files: self.defaults.open_files,
        })
    }
}
