//! How wide the kernel takes an argument. BPF sees 64 bits of every register, the kernel often only the low 32.
//!
//! Invariant: a comparison on an argument listed here looks at the low word only; otherwise `socket(AF_ALG | 1 << 32, …)` would
//! pass a rule that says "not AF_ALG" and still open AF_ALG.

/// Bits that count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Width {
    /// The low word.
    Bits32,
    /// The whole register.
    Bits64,
}

/// Arguments of type `int`, `unsigned int`, `key_t`, `pid_t`, `umode_t` in include/linux/syscalls.h, by position, for the calls
/// that profiles compare arguments of. clone's flags are `unsigned long`, of which the kernel uses `lower_32_bits()`.
const NARROW: &[(&str, &[u8])] = &[
    ("accept4", &[0, 3]),
    ("arch_prctl", &[0]),
    ("bpf", &[0, 2]),
    ("clone", &[0]),
    ("close_range", &[0, 1, 2]),
    ("dup3", &[0, 1, 2]),
    ("epoll_ctl", &[0, 1, 2]),
    ("execveat", &[0, 4]),
    ("fallocate", &[0, 1]),
    ("fanotify_init", &[0, 1]),
    ("fcntl", &[0, 1]),
    ("fsconfig", &[0, 1, 4]),
    ("futex", &[1, 2, 5]),
    ("getsockopt", &[0, 1, 2]),
    ("ioctl", &[0, 1]),
    ("io_uring_enter", &[0, 1, 2, 3]),
    ("io_uring_register", &[0, 1, 3]),
    ("io_uring_setup", &[0]),
    ("ioprio_set", &[0, 1, 2]),
    ("keyctl", &[0]),
    ("kill", &[0, 1]),
    ("madvise", &[2]),
    ("membarrier", &[0, 1, 2]),
    ("memfd_create", &[1]),
    ("memfd_secret", &[0]),
    ("mknod", &[1, 2]),
    ("mknodat", &[0, 2, 3]),
    ("openat", &[0, 2, 3]),
    ("open", &[1, 2]),
    ("perf_event_open", &[1, 2, 3]),
    ("personality", &[0]),
    ("pidfd_open", &[0, 1]),
    ("pidfd_send_signal", &[0, 1, 3]),
    ("pipe2", &[1]),
    ("prctl", &[0]),
    ("preadv2", &[5]),
    ("prlimit64", &[0, 1]),
    ("pwritev2", &[5]),
    ("quotactl", &[0, 2]),
    ("recvfrom", &[0, 3]),
    ("recvmsg", &[0, 2]),
    ("renameat2", &[0, 2, 4]),
    ("rt_sigqueueinfo", &[0, 1]),
    ("rt_tgsigqueueinfo", &[0, 1, 2]),
    ("sched_setattr", &[0, 2]),
    ("sched_setscheduler", &[0, 1]),
    ("seccomp", &[0, 1]),
    ("semget", &[0, 1, 2]),
    ("sendmsg", &[0, 2]),
    ("sendto", &[0, 3, 5]),
    ("setns", &[0, 1]),
    ("setpriority", &[0, 1, 2]),
    ("setsockopt", &[0, 1, 2, 4]),
    ("shmat", &[0, 2]),
    ("shmget", &[0, 2]),
    ("socket", &[0, 1, 2]),
    ("socketpair", &[0, 1, 2]),
    ("splice", &[0, 2, 5]),
    ("syslog", &[0, 2]),
    ("tgkill", &[0, 1, 2]),
    ("timer_create", &[0]),
    ("timerfd_create", &[0, 1]),
    ("tkill", &[0, 1]),
    ("umount2", &[1]),
    ("unshare", &[0]),
    ("userfaultfd", &[0]),
    ("vmsplice", &[0, 3]),
];

/// The width of one argument. Calls that are not listed are compared as a whole, as libseccomp does.
pub fn of(name: &str, index: u8) -> Width {
    let narrow = NARROW.iter().any(|(known, positions)| *known == name && positions.contains(&index));
    if narrow { Width::Bits32 } else { Width::Bits64 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_listed_call_exists() {
        for (name, positions) in NARROW {
            assert!(crate::seccomp::arch::is_known(name), "{name}");
            assert!(positions.iter().all(|position| *position < 6), "{name}");
        }
    }

    #[test]
    fn socket_families_are_narrow_and_pointers_are_wide() {
        assert_eq!(of("socket", 0), Width::Bits32);
        assert_eq!(of("read", 1), Width::Bits64);
    }
}
