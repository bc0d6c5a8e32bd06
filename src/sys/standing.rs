//! What others may change of a process from outside: its limits, processors, priorities, and how soon it ends when memory runs out.

use rustix::buffer::spare_capacity;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::CallError;

/// Resources that have a limit, of which Linux has 16.
const RESOURCES: usize = 16;

/// Bytes of a set of processors, more than any kernel is built for.
const PROCESSOR_BYTES: usize = 1024;

/// Bytes of `struct sched_attr` in any kernel so far, and some to spare.
const SCHEDULING_BYTES: usize = 128;

/// What a file of a process has room in, as a rule.
const FILE_BYTES: usize = 4096;

/// `IOPRIO_WHO_PROCESS` of linux/ioprio.h, which libc lacks.
const IO_PRIORITY_OF_PROCESS: libc::c_int = 1;

/// The standing of one process. Two are equal when neither of them has more or less than the other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Standing {
    limits: [(u64, u64); RESOURCES],
    scheduling: Vec<u8>,
    io_priority: i64,
    processors: Vec<u8>,
    oom_score: i32,
}

impl Standing {
    /// That of a process; 0 is the caller. Of another one it takes the same user or CAP_SYS_RESOURCE. One that was killed has none, also
    /// before it is gone, nor one that has not taken a signal yet: it may end it.
    pub fn of(pid: i32) -> Result<Self, CallError> {
        let standing = Self {
            limits: limits(pid)?,
            scheduling: scheduling(pid)?,
            io_priority: io_priority(pid)?,
            processors: processors(pid)?,
            oom_score: oom_score(pid)?,
        };
        if is_signalled(pid)? {
            return Err(CallError { call: "read status", errno: Errno::SRCH });
        }
        Ok(standing)
    }

    /// With this in `oom_score_adj`.
    #[must_use]
    pub fn with_oom_score(mut self, score: i32) -> Self {
        self.oom_score = score;
        self
    }

    /// With both limits of a resource set as [`super::process::set_rlimit`] sets them.
    #[must_use]
    pub fn with_limit(mut self, resource: u32, limit: u64) -> Self {
        if let Some(pair) = self.limits.get_mut(resource as usize) {
            *pair = (limit.min(pair.1), limit.min(pair.1));
        }
        self
    }
}

/// `prlimit(2)`: soft and hard limit of each resource.
fn limits(pid: i32) -> Result<[(u64, u64); RESOURCES], CallError> {
    let mut all = [(0, 0); RESOURCES];
    for (resource, pair) in (0..).zip(&mut all) {
        let mut found = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        // SAFETY: no new limit is given, and the pointer is to a live local.
        if unsafe { libc::prlimit(pid, resource, std::ptr::null(), &raw mut found) } != 0 {
            return Err(CallError::last("prlimit"));
        }
        *pair = (found.rlim_cur, found.rlim_max);
    }
    Ok(all)
}

/// `sched_getattr(2)`: policy, nice value and what else there is, as the kernel has it.
fn scheduling(pid: i32) -> Result<Vec<u8>, CallError> {
    let mut bytes = vec![0; SCHEDULING_BYTES];
    // SAFETY: the pointer is to a live buffer of the size that is given.
    match unsafe { libc::syscall(libc::SYS_sched_getattr, pid, bytes.as_mut_ptr(), SCHEDULING_BYTES, 0) } {
        0 => Ok(bytes),
        _ => Err(CallError::last("sched_getattr")),
    }
}

/// `ioprio_get(2)`; a kernel that is built without it has none.
fn io_priority(pid: i32) -> Result<i64, CallError> {
    // SAFETY: integers only.
    match unsafe { libc::syscall(libc::SYS_ioprio_get, IO_PRIORITY_OF_PROCESS, pid) } {
        -1 => match CallError::last("ioprio_get") {
            CallError { errno: Errno::NOSYS, .. } => Ok(0),
            error => Err(error),
        },
        priority => Ok(priority),
    }
}

/// `sched_getaffinity(2)`.
fn processors(pid: i32) -> Result<Vec<u8>, CallError> {
    let mut bytes = vec![0; PROCESSOR_BYTES];
    // SAFETY: the pointer is to a live buffer of the size that is given.
    match unsafe { libc::syscall(libc::SYS_sched_getaffinity, pid, PROCESSOR_BYTES, bytes.as_mut_ptr()) } {
        -1 => Err(CallError::last("sched_getaffinity")),
        _ => Ok(bytes),
    }
}

/// proc_pid_oom_score_adj(5).
fn oom_score(pid: i32) -> Result<i32, CallError> {
    let text = read(pid, "oom_score_adj", "read oom_score_adj")?;
    text.trim().parse().map_err(|_| CallError { call: "read oom_score_adj", errno: Errno::INVAL })
}

/// proc_pid_status(5): a signal that it does not block waits for it, or it has given its memory up, which is the longest part of its end.
fn is_signalled(pid: i32) -> Result<bool, CallError> {
    let text = read(pid, "status", "read status")?;
    let set = |name: &str| text.lines().find_map(|line| u64::from_str_radix(line.strip_prefix(name)?.trim(), 16).ok());
    let (Some(own), Some(shared), Some(blocked)) = (set("SigPnd:"), set("ShdPnd:"), set("SigBlk:")) else { return Ok(true) };
    Ok((own | shared) & !blocked != 0 || !text.lines().any(|line| line.starts_with("VmSize:")))
}

/// At once as a rule: each file of a process is put together anew for each program, and asked for its size it says none.
fn read(pid: i32, file: &str, call: &'static str) -> Result<String, CallError> {
    let named = |errno| CallError { call, errno };
    let process = if pid == 0 { "self".to_owned() } else { pid.to_string() };
    let file =
        rustix::fs::open(format!("/proc/{process}/{file}"), OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).map_err(named)?;
    let mut bytes = Vec::with_capacity(FILE_BYTES);
    loop {
        match rustix::io::read(&file, spare_capacity(&mut bytes)) {
            Ok(0) => return String::from_utf8(bytes).map_err(|_| named(Errno::ILSEQ)),
            Ok(_) => bytes.reserve(FILE_BYTES),
            Err(Errno::INTR) => {}
            Err(errno) => return Err(named(errno)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Command, Stdio};

    use super::*;

    struct Sleeper(Child);

    impl Sleeper {
        fn start() -> (Self, i32) {
            let child = Command::new("sleep").arg("600").stdin(Stdio::null()).spawn().expect("sleep(1)");
            let pid = child.id().cast_signed();
            (Self(child), pid)
        }
    }

    impl Drop for Sleeper {
        fn drop(&mut self) {
            self.0.kill().ok();
            self.0.wait().ok();
        }
    }

    #[test]
    fn a_child_stands_as_its_parent_until_somebody_changes_one_thing_of_it() {
        let own = Standing::of(0).expect("one's own");
        let (_one, first) = Sleeper::start();
        assert_eq!(Standing::of(first).expect("a child's"), own);
        let limit = libc::rlimit { rlim_cur: 7, rlim_max: 7 };
        // SAFETY: the pointer is to a live local, and the child is this test's own.
        assert_eq!(unsafe { libc::prlimit(first, libc::RLIMIT_CORE, &raw const limit, std::ptr::null_mut()) }, 0);
        assert_ne!(Standing::of(first).expect("a child's"), own);
        assert_eq!(Standing::of(first).expect("a child's"), own.clone().with_limit(libc::RLIMIT_CORE, 7));
        assert_ne!(own.clone().with_oom_score(999), own);
        let (_other, second) = Sleeper::start();
        // SAFETY: integers only.
        assert_eq!(unsafe { libc::setpriority(libc::PRIO_PROCESS, second.cast_unsigned(), 5) }, 0);
        assert_ne!(Standing::of(second).expect("a child's"), own);
    }

    #[test]
    fn a_process_that_is_not_there_has_none() {
        assert_eq!(Standing::of(i32::MAX).map_err(|error| error.errno), Err(Errno::SRCH));
    }

    #[test]
    fn one_that_has_not_taken_a_signal_yet_has_none() {
        let (_sleeper, pid) = Sleeper::start();
        let is_stopped = || read(pid, "stat", "read stat").is_ok_and(|text| text.contains(") T "));
        super::super::process::kill(pid, libc::SIGSTOP).expect("a child");
        while !is_stopped() {
            std::thread::yield_now();
        }
        assert!(Standing::of(pid).is_ok(), "the control: it has taken that one");
        super::super::process::kill(pid, libc::SIGTERM).expect("a child");
        assert!(Standing::of(pid).is_err(), "it takes this one when it goes on");
    }

    #[test]
    fn one_that_was_killed_stands_no_more_though_nobody_has_waited_for_it() {
        let (sleeper, pid) = Sleeper::start();
        assert!(Standing::of(pid).is_ok(), "the control");
        super::super::process::kill(pid, libc::SIGKILL).expect("a child");
        // Between the signal's being taken and the memory's being given up there is nothing to see.
        assert!((0..1000).any(|_| Standing::of(pid).is_err()));
        drop(sleeper);
    }
}
