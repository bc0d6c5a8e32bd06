//! Which of a session's limits hold on this host, and what a request that named one that doesn't is told.
//!
//! Pure. Invariant: every limit has a row, whatever the host; a limit that a request can name is either held or an error, never
//! dropped in silence.

use super::enforcement::{WallState, WallStatus};
use super::error::SandboxError;
use super::spec::{Limits, NamedLimits};

/// Limits that control groups carry.
const CARRIED: [&str; 4] = ["memory", "pids", "cpu", "io"];

/// One row a limit. `carried` is what the session's groups say; absent: there are none. `nofile_hard` is the server's own hard
/// RLIMIT_NOFILE, which no program can be given more than.
pub fn rows(limits: &Limits, carried: Option<&[WallState]>, nofile_hard: Option<u64>) -> Vec<WallState> {
    let mut rows: Vec<WallState> = CARRIED.into_iter().map(|name| carried_row(name, carried)).collect();
    let row = |name: &str, state, detail| WallState { name: name.into(), state, detail };
    let enforced = |name, detail| row(name, WallStatus::Enforced, detail);
    rows.push(enforced("disk", format!("{} MiB on the session's tmpfs", limits.disk_bytes >> 20)));
    rows.push(enforced("inodes", format!("{} on the session's tmpfs", limits.inodes)));
    rows.push(match nofile_hard {
        Some(hard) if hard < limits.open_files => row(
            "open_files",
            WallStatus::Degraded,
            format!(
                "RLIMIT_NOFILE {hard}: less than the {} of the profile, which the server may not have itself",
                limits.open_files
            ),
        ),
        Some(_) | None => enforced("open_files", format!("RLIMIT_NOFILE {} of each process", limits.open_files)),
    });
    rows.push(enforced("output", format!("ended past {} MiB", limits.output_killed_bytes >> 20)));
    let (timeout, most) = (limits.timeout.as_secs(), limits.timeout_max.as_secs());
    rows.push(enforced("wall_time", format!("{timeout} s, at most {most} s")));
    rows
}

fn carried_row(name: &str, carried: Option<&[WallState]>) -> WallState {
    let found = carried.and_then(|rows| rows.iter().find(|row| row.name == name));
    let (state, detail) = match found {
        Some(row) => (row.state, row.detail.clone()),
        None => (WallStatus::Absent, "no group is writable here; systemd: Delegate=yes".into()),
    };
    if name == "pids" && state == WallStatus::Absent {
        let detail = format!("RLIMIT_NPROC of the session's user, and a refusal is the program's own error: {detail}");
        return WallState { name: name.into(), state: WallStatus::Degraded, detail };
    }
    WallState { name: name.into(), state, detail }
}

/// An error when the request named a limit that nothing holds as it was asked for.
pub fn refuse_named(named: NamedLimits, rows: &[WallState]) -> Result<(), SandboxError> {
    let NamedLimits { memory, cpu_shares, cpu_cores, pids, disk } = named;
    for (limit, asked) in [("memory", memory), ("pids", pids), ("cpu", cpu_cores || cpu_shares), ("disk", disk)] {
        let missing = rows.iter().find(|row| row.name == limit && !holds(row));
        if let Some(row) = missing.filter(|_| asked) {
            return Err(SandboxError::LimitUnenforceable {
                limit: limit.into(),
                cause: row.detail.clone(),
                mend: "delegate a cgroup with that controller to the server (systemd: Delegate=yes), or leave the limit out"
                    .into(),
            });
        }
    }
    Ok(())
}

/// Whether a request may name the limit. Memory without swap accounting still holds; RLIMIT_NPROC in the place of `pids.max`
/// bounds another thing than the request asked for.
fn holds(row: &WallState) -> bool {
    match row.state {
        WallStatus::Enforced => true,
        WallStatus::Degraded => row.name != "pids",
        WallStatus::Absent => false,
    }
}

#[cfg(test)]
#[path = "held_tests.rs"]
mod tests;
