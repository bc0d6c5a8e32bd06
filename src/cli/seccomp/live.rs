//! Filters of a running process, by ptrace.

use std::time::{Duration, Instant};

use super::super::CliError;
use crate::seccomp::bpf::INSTRUCTIONS_MAX;
use crate::sys::CallError;
use crate::sys::tracee::{Event, Patience, Tracee, seize, wait_any};

/// For a process to stand still; one that hangs in the kernel does not.
const STOP_WAIT: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_millis(1);
/// Filters of one process; the kernel bounds their instructions to 32768.
const FILTERS_MAX: usize = 8 * INSTRUCTIONS_MAX;

/// The process's filters in the order of installation. It stands still for the time of the reading.
pub(super) fn filters(pid: i32) -> Result<Vec<Vec<u8>>, CliError> {
    let tracee = seize(pid).map_err(|error| refused(pid, error))?;
    tracee.interrupt().map_err(|error| refused(pid, error))?;
    let deadline = Instant::now() + STOP_WAIT;
    loop {
        match wait_any(pid, Patience::Poll).map_err(|error| refused(pid, error))? {
            Some((_, Event::Ended(_))) => return Err(CliError::new(format!("process {pid} has ended"))),
            Some(_) => return read(&tracee, pid),
            None if Instant::now() > deadline => return Err(CliError::new(format!("process {pid} does not stand still"))),
            None => std::thread::sleep(PAUSE),
        }
    }
}

fn read(tracee: &Tracee, pid: i32) -> Result<Vec<Vec<u8>>, CliError> {
    let mut filters = Vec::new();
    while filters.len() < FILTERS_MAX {
        match tracee.filter(filters.len()) {
            Ok(filter) => filters.push(filter),
            Err(error) if error.raw() == ENOENT || error.raw() == EINVAL && filters.is_empty() => break,
            Err(error) => return Err(refused(pid, error)),
        }
    }
    if filters.is_empty() {
        return Err(CliError::new(format!("process {pid} has no seccomp filter")).hint("grep Seccomp /proc/PID/status tells"));
    }
    Ok(filters)
}

/// Beyond the last filter; a process without any.
const ENOENT: i32 = 2;
const EINVAL: i32 = 22;
const ESRCH: i32 = 3;
const EACCES: i32 = 13;
const EPERM: i32 = 1;
const EMEDIUMTYPE: i32 = 124;

fn refused(pid: i32, error: CallError) -> CliError {
    let told = CliError::new(format!("the filters of process {pid} can't be read: {error}"));
    match error.raw() {
        ESRCH => told.hint("there is no such process, or it is traced by another"),
        EACCES | EPERM => told.hint("it takes CAP_SYS_ADMIN in the initial user namespace, no seccomp filter on this process, and no other tracer on that one"),
        EMEDIUMTYPE => told.hint("the filter was not kept by the kernel as classic BPF"),
        _ => told,
    }
}
