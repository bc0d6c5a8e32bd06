//! Seccomp from the OCI profile to BPF programs and back: `model` (JSON) → `resolve` (flat rules for one architecture,
//! kernel and set of capabilities) → `compile` (stacked filters) → `simulate` (what the kernel would answer).
//!
//! For those who judge profiles, ours or others': `read` (every format) → `document` → `ruleset` (what an engine makes of it), `bpf` and
//! `paths` (raw filters), both behind `policy`; on it stand `explain`, `summary`, `audit`, `diff`, `verify`, and `write`, `lift`.
//!
//! Invariant: no I/O and no system call here, and a profile is refused rather than softened: whatever `resolve` accepts,
//! the compiled filters decide exactly so. Foreign architectures (i386 by `int 0x80`) are killed by every filter; x32 numbers
//! match no rule and so get the default action, which may not be an allowing one. Read `resolve` next.

pub mod arch;
pub mod around;
pub mod audit;
pub mod bpf;
pub mod compile;
mod constants;
pub mod diff;
mod dispatch;
pub mod document;
pub mod explain;
pub mod floor;
pub mod groups;
pub mod lift;
pub mod model;
pub mod notify;
pub mod paths;
pub mod policy;
pub mod read;
pub mod record;
pub mod resolve;
pub mod ruleset;
mod shrink;
pub mod simulate;
pub mod summary;
pub mod symbols;
mod table;
pub mod verdict;
pub mod verify;
mod width;
pub mod write;

#[cfg(test)]
mod tests;

use std::fmt;

pub use arch::{Arch, KernelVersion, names};
pub use simulate::{Invocation, decide};

/// What happens to a system call; seccomp(2), `SECCOMP_RET_*`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Action {
    /// It runs.
    Allow,
    /// It runs and the audit log has a line.
    Log,
    /// It waits until the filter's listener has heard of it, and then runs: only in profiles that audit.
    Audit,
    /// It waits until whoever holds the filter's listener has answered; ours always answers this errno.
    Notify(u16),
    /// It fails with this errno.
    Errno(u16),
    /// The thread gets SIGSYS.
    Trap,
    /// The thread ends.
    KillThread,
    /// The process ends.
    KillProcess,
}

impl Action {
    /// How strong it is among several filters' answers: the kernel takes the strongest.
    pub fn rank(self) -> u8 {
        match self {
            Self::Allow => 0,
            Self::Log => 1,
            Self::Audit | Self::Notify(_) => 2,
            Self::Errno(_) => 3,
            Self::Trap => 4,
            Self::KillThread => 5,
            Self::KillProcess => 6,
        }
    }

    /// True when the call is carried out.
    pub fn permits(self) -> bool {
        match self {
            Self::Allow | Self::Log | Self::Audit => true,
            Self::Notify(_) | Self::Errno(_) | Self::Trap | Self::KillThread | Self::KillProcess => false,
        }
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Allow => f.write_str("allow"),
            Self::Log => f.write_str("log"),
            Self::Audit => f.write_str("audit"),
            Self::Notify(errno) => write!(f, "{} by notification", Self::Errno(*errno)),
            Self::Errno(1) => f.write_str("EPERM"),
            Self::Errno(38) => f.write_str("ENOSYS"),
            Self::Errno(number) => write!(f, "errno {number}"),
            Self::Trap => f.write_str("trap"),
            Self::KillThread => f.write_str("kill thread"),
            Self::KillProcess => f.write_str("kill process"),
        }
    }
}
