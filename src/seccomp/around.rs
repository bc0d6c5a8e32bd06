//! A profile for a whole container, init included: the same profile, opened for what init itself does.
//!
//! Invariant: nothing is taken away, and only the calls listed here are added. Programs get the profile's own filters on top, so
//! that for them nothing is added at all.

use super::model::{ActionWord, Rule, SeccompProfile};

/// What init calls, and what an engine calls between the filter and the first instruction of init. runc is a Go program: its
/// runtime wants its share.
const CALLS: [&str; 113] = [
    "accept4",
    "access",
    "arch_prctl",
    "brk",
    "capget",
    "capset",
    "chdir",
    "clock_gettime",
    "clone",
    "clone3",
    "close",
    "close_range",
    "connect",
    "copy_file_range",
    "dup",
    "dup2",
    "dup3",
    "epoll_create1",
    "epoll_ctl",
    "epoll_pwait",
    "eventfd2",
    "execve",
    "exit",
    "exit_group",
    "faccessat",
    "faccessat2",
    "fadvise64",
    "fallocate",
    "fchdir",
    "fchmod",
    "fchmodat",
    "fchown",
    "fchownat",
    "fcntl",
    "fdatasync",
    "flock",
    "fstat",
    "fstatfs",
    "fsync",
    "ftruncate",
    "futex",
    "getcwd",
    "getdents64",
    "getegid",
    "geteuid",
    "getgid",
    "getpgid",
    "getpid",
    "getppid",
    "getrandom",
    "getrlimit",
    "getsockopt",
    "gettid",
    "getuid",
    "ioctl",
    "kill",
    "landlock_add_rule",
    "landlock_create_ruleset",
    "landlock_restrict_self",
    "lseek",
    "madvise",
    "memfd_create",
    "mkdirat",
    "mmap",
    "mprotect",
    "mremap",
    "munmap",
    "nanosleep",
    "newfstatat",
    "openat",
    "openat2",
    "pidfd_send_signal",
    "poll",
    "ppoll",
    "prctl",
    "pread64",
    "prlimit64",
    "pwrite64",
    "read",
    "readlinkat",
    "readv",
    "recvmsg",
    "renameat2",
    "restart_syscall",
    "rseq",
    "rt_sigaction",
    "rt_sigprocmask",
    "rt_sigreturn",
    "sched_getaffinity",
    "sched_yield",
    "seccomp",
    "sendfile",
    "sendmsg",
    "set_robust_list",
    "set_tid_address",
    "setfsgid",
    "setfsuid",
    "setrlimit",
    "setsid",
    "sigaltstack",
    "signalfd4",
    "socket",
    "socketpair",
    "statfs",
    "statx",
    "symlinkat",
    "tgkill",
    "umask",
    "unlinkat",
    "utimensat",
    "wait4",
    "waitid",
    "write",
];

/// The profile with init's calls allowed whatever their arguments.
pub fn init(profile: &SeccompProfile) -> SeccompProfile {
    let is_inits = |name: &String| CALLS.binary_search(&name.as_str()).is_ok();
    let without = |rule: &Rule| {
        let names: Vec<String> = rule.names.iter().filter(|name| !is_inits(name)).cloned().collect();
        (!names.is_empty()).then(|| Rule { names, ..rule.clone() })
    };
    let mut syscalls: Vec<Rule> = profile.syscalls.iter().filter_map(without).collect();
    syscalls.push(Rule {
        names: CALLS.map(str::to_owned).to_vec(),
        action: ActionWord::Allow,
        errno_ret: None,
        args: None,
        comment: Some("Init's own; the filters of each program decide anew.".into()),
        includes: None,
        excludes: None,
    });
    SeccompProfile { syscalls, ..profile.clone() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sandbox::profile::load::built_in_rules;
    use crate::seccomp::compile::compile;
    use crate::seccomp::resolve::{Target, resolve};
    use crate::seccomp::{Action, Arch, Invocation, KernelVersion, decide, names};

    const KERNEL: KernelVersion = KernelVersion { major: 6, minor: 18 };

    #[test]
    fn the_list_is_sorted_and_of_known_calls() {
        assert!(CALLS.is_sorted());
        let unknown: Vec<_> = CALLS.iter().filter(|name| Arch::X86_64.number(name).is_none()).collect();
        assert!(unknown.is_empty(), "{unknown:?}");
    }

    #[test]
    fn what_is_not_init_s_is_decided_as_before() {
        for name in ["default", "strict"] {
            let (narrow, profile) = built_in_rules(name, Arch::X86_64, KERNEL);
            let target = Target { arch: Arch::X86_64, kernel: KERNEL, capabilities: &[] };
            let wide = resolve(&init(&profile), target).expect("it resolves");
            let (narrow, wide) = (compile(&narrow).expect("filters"), compile(&wide).expect("filters"));
            for (number, call) in names(Arch::X86_64) {
                for args in [[0; 6], [1, 2, 3, 4, 5, 6], [u64::MAX; 6]] {
                    let of = |filters: &[Vec<u8>]| decide(filters, &Invocation::native(Arch::X86_64, number, args)).ok();
                    let expected = if CALLS.contains(&call) { Some(Action::Allow) } else { of(&narrow) };
                    assert_eq!(of(&wide), expected, "{call} under {name}");
                }
            }
        }
    }
}
