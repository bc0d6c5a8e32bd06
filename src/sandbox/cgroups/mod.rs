//! Control groups: the limits on memory, processes and processors of one session.
//!
//! Invariant: this module makes, writes and removes only groups below its own `codebeaker-<server>` groups; a limit is
//! either in force when `create` returns or named as absent in `limits`. cgroups-rs writes the limits; the directories are
//! made here, because cgroups-rs enables v2 controllers from the root down and so breaks delegation.
//!
//! Read `host` for which hierarchy carries what, `tree` for making groups, `session` for one session's groups, `stale` for
//! what a killed server left.

mod control_files;
mod host;
mod io_limit;
mod session;
mod stale;
mod tree;

use std::io;
use std::path::PathBuf;

use thiserror::Error;

pub use host::{Carrier, CgroupHost, V2Entry, V2Tree};
pub use io_limit::{Device, IoLimit};
pub use session::{CgroupEvents, PeakReset, SessionCgroup, remove_directories};
pub use stale::StaleReport;
pub use tree::CgroupTree;

/// First part of the name of every group at the top of this project's trees.
pub const GROUP_PREFIX: &str = "codebeaker-";

/// Why a group could not be made, limited, read or removed. Paths in it are for the log, not for a client.
#[derive(Debug, Error)]
pub enum CgroupError {
    /// A name that is not a plain `[a-z0-9_-]` word.
    #[error("`{name}` can't name a control group")]
    Name {
        /// The name.
        name: String,
    },
    /// mkdir(2) failed.
    #[error("can't make the control group {}", path.display())]
    Create {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A limit was not taken.
    #[error("can't set the {limit} limit of {}", path.display())]
    Limit {
        /// `memory`, `swap`, `pids` or `cpu`.
        limit: &'static str,
        /// The group.
        path: PathBuf,
        /// Why.
        source: cgroups_rs::fs::error::Error,
    },
    /// A file of a group could not be written.
    #[error("can't write {}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// rmdir(2) failed to the end.
    #[error("can't remove the control group {}", path.display())]
    Remove {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The groups of a server could not be listed.
    #[error("can't list the control groups in {}", path.display())]
    List {
        /// Where.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// `cpu.weight` (1 to 10,000) for `cpu.shares` (2 to 262,144), as OCI runtimes convert it: both defaults, 1024 and 100, meet.
pub fn cpu_weight(shares: u64) -> u64 {
    if shares <= 2 {
        return 1;
    }
    if shares >= 262_144 {
        return 10_000;
    }
    let log = (shares as f64).log2();
    let exponent = (log * log + 125.0 * log) / 612.0 - 7.0 / 34.0;
    10_f64.powf(exponent).ceil() as u64
}

/// Quota in microseconds per period of [`CPU_PERIOD_US`]; the kernel takes no less than 1 ms.
pub fn cpu_quota_us(cores: f64) -> i64 {
    ((cores * CPU_PERIOD_US as f64).round() as i64).max(1_000)
}

/// The period of every quota: the kernel's default.
pub const CPU_PERIOD_US: u64 = 100_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_share_becomes_the_default_weight_and_the_ends_meet() {
        assert_eq!([2, 1024, 262_144].map(cpu_weight), [1, 100, 10_000]);
        assert!(cpu_weight(512) < cpu_weight(1024) && cpu_weight(1024) < cpu_weight(2048));
    }

    #[test]
    fn a_core_and_a_half_is_one_and_a_half_periods_and_a_sliver_is_the_kernels_least() {
        assert_eq!(cpu_quota_us(1.5), 150_000);
        assert_eq!(cpu_quota_us(0.000_1), 1_000);
    }
}
