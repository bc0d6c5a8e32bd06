//! What a sandbox is asked to be: limits in typed units.

use std::num::NonZeroU64;
use std::time::Duration;

/// The limits of one session, all in force.
#[derive(Debug, Clone, PartialEq)]
pub struct Limits {
    /// Memory of all processes and of the session's tmpfs, in bytes. Swap is always 0.
    pub memory_bytes: NonZeroU64,
    /// Relative weight as Docker's `--cpu-shares`: 2 to 262,144; 1024 is the default.
    pub cpu_shares: u64,
    /// Cores (1.5 = one and a half); absent: no quota.
    pub cpu_cores: Option<f64>,
    /// Processes and threads.
    pub pids: u64,
    /// Bytes of the session's own files (on tmpfs at most half of memory; the caller has seen to it).
    pub disk_bytes: u64,
    /// Number of the session's own files.
    pub inodes: u64,
    /// Bytes of each stream kept in a result.
    pub output_kept_bytes: u64,
    /// Bytes of both streams together past which the program is ended.
    pub output_killed_bytes: u64,
    /// Wall time of a command that names none.
    pub timeout: Duration,
    /// The longest wall time a command may ask for.
    pub timeout_max: Duration,
    /// Open descriptors of one process (RLIMIT_NOFILE).
    pub open_files: u64,
}

impl Limits {
    /// Wall time of a command that names none.
    pub fn usual_time(&self) -> Duration {
        self.timeout.min(self.timeout_max)
    }
}

/// Which limits the request itself named.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct NamedLimits {
    /// `memoryLimitMB`
    pub memory: bool,
    /// `cpuShares`
    pub cpu_shares: bool,
    /// `cpuLimit`
    pub cpu_cores: bool,
    /// `pidsLimit`
    pub pids: bool,
    /// `diskLimitMB`
    pub disk: bool,
}
