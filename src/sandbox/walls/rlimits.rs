//! rlimits: what a single process may take, where a group has no say, and limits of the user namespace for what no rlimit
//! counts.

use crate::plan::{ProgramStep, Step};
use crate::sandbox::compile::{Draft, ProcessBound, Spec};

/// Bytes of POSIX message queues of one user.
const MESSAGE_QUEUE_BYTES: u64 = 819_200;

/// Bytes one process may lock.
const LOCKED_BYTES: u64 = 8 << 20;

/// Signals that may wait for one user.
const PENDING_SIGNALS: u64 = 1024;

/// What the sandbox as a whole may take of things that the kernel counts for the maker of its user namespace as well: as root,
/// the host's root, whose default of 128 inotify instances one session could use up for all and for the host.
const USER_LIMITS: [(&str, u32); 2] = [("max_inotify_instances", 16), ("max_inotify_watches", 8192)];

/// How much likelier the kernel ends a program than init when memory runs out.
const OOM_SCORE: i32 = 500;

/// While `/proc/sys` can still be written to.
pub(in crate::sandbox) fn of_the_sandbox(draft: &mut Draft) {
    for (name, limit) in USER_LIMITS {
        draft.inside.push(Step::UserLimit { path: format!("/proc/sys/user/{name}"), limit });
    }
}

pub(in crate::sandbox) fn add(draft: &mut Draft, spec: &Spec<'_>) {
    let limits = [
        (libc::RLIMIT_NOFILE, "RLIMIT_NOFILE", spec.limits.open_files),
        (libc::RLIMIT_CORE, "RLIMIT_CORE", 0),
        (libc::RLIMIT_MEMLOCK, "RLIMIT_MEMLOCK", LOCKED_BYTES),
        (libc::RLIMIT_MSGQUEUE, "RLIMIT_MSGQUEUE", MESSAGE_QUEUE_BYTES),
        (libc::RLIMIT_SIGPENDING, "RLIMIT_SIGPENDING", PENDING_SIGNALS),
        (libc::RLIMIT_RTPRIO, "RLIMIT_RTPRIO", 0),
        (libc::RLIMIT_NICE, "RLIMIT_NICE", 0),
    ];
    for (resource, name, limit) in limits {
        draft.program.push(ProgramStep::Rlimit { resource, name: name.into(), limit });
    }
    if spec.cgroup.processes == ProcessBound::Rlimit {
        // Without the controller this is what stands against a fork bomb; it counts the processes of the host id.
        let (resource, name) = (libc::RLIMIT_NPROC, "RLIMIT_NPROC".into());
        draft.program.push(ProgramStep::Rlimit { resource, name, limit: spec.limits.pids });
    }
    draft.program.push(ProgramStep::OomScore(OOM_SCORE));
    draft.enforced("rlimits", format!("{} open files, no core dumps", spec.limits.open_files));
}
