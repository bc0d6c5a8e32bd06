//! What really holds for a sandbox: `enforcement` on the wire. It is returned by the code that built the walls, never assumed.

use serde::Serialize;

/// Every wall and limit with its state, and the seccomp profile in force.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Enforcement {
    /// In the order they are built.
    pub walls: Vec<WallState>,
    /// In the order of `Limits`.
    pub limits: Vec<WallState>,
    /// Name, version and digest of the profile.
    pub profile: ProfileIdentity,
    /// True when the server that built the sandbox was not root.
    pub rootless: bool,
}

/// One wall or limit.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct WallState {
    /// `user`, `mount`, `pid`, `network`, `ipc`, `uts`, `cgroup`, `time`, `capabilities`, `no_new_privs`, `seccomp`,
    /// `masked_paths`, `landlock`, `rlimits`; for limits `memory`, `pids`, `cpu`, `io`, `disk`, `inodes`, `open_files`, `output`,
    /// `wall_time`.
    pub name: String,
    /// How it stands.
    pub state: WallStatus,
    /// How (for degraded and enforced) or why (for absent); a sentence fragment without host paths.
    pub detail: String,
}

/// `enforced`, `degraded` or `absent`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum WallStatus {
    /// It stands as designed.
    Enforced,
    /// It stands, weaker than designed.
    Degraded,
    /// It does not stand.
    Absent,
}

/// Which profile is in force.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ProfileIdentity {
    /// `strict`, `default`, `permissive` or the operator's.
    pub name: String,
    /// As its file says.
    pub version: String,
    /// Of the profile file followed by its seccomp file, hexadecimal.
    pub sha256: String,
    /// What it refuses is let through and told, but for what no profile may open.
    pub audit_only: bool,
    /// Of its seccomp file alone.
    pub seccomp_sha256: String,
    /// Of the filters that programs get, in the order they are installed.
    pub bpf_sha256: String,
}
