//! Every finding that an audit can have: its stable id, how bad, when it is one, why, what mends it, and where to read on.
//!
//! Invariant: data only; an id never changes its meaning and is never used again. 1xx defaults and entries, 2xx kernel interfaces,
//! 3xx ways round a rule, 4xx the rules themselves.

use std::fmt;
use std::str::FromStr;

/// How bad.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// Worth knowing.
    Note,
    /// Hygiene.
    Low,
    /// Widens what a bug can do.
    Medium,
    /// A way out, or no filter at all.
    High,
}

impl Severity {
    /// From the least to the worst.
    pub const ALL: [Self; 4] = [Self::Note, Self::Low, Self::Medium, Self::High];

    /// The word on the command line and in JSON.
    pub fn word(self) -> &'static str {
        match self {
            Self::Note => "note",
            Self::Low => "low",
            Self::Medium => "medium",
            Self::High => "high",
        }
    }
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

impl FromStr for Severity {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::ALL
            .into_iter()
            .find(|severity| severity.word() == text)
            .ok_or_else(|| "one of note, low, medium, high".to_owned())
    }
}

/// One kind of finding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Check {
    /// `CBS201`
    pub id: &'static str,
    /// `af-alg`
    pub name: &'static str,
    /// How bad.
    pub severity: Severity,
    /// When it is one.
    pub condition: &'static str,
    /// Why it matters; also what it would mean to allow the call.
    pub why: &'static str,
    /// What mends it.
    pub mend: &'static str,
    /// Where to read on.
    pub reference: &'static str,
}

/// The finding of that id.
pub fn check(id: &str) -> Option<&'static Check> {
    CHECKS.iter().find(|check| check.id == id)
}

use Severity::{High, Low, Medium, Note};

const fn row(
    id: &'static str,
    name: &'static str,
    severity: Severity,
    [condition, why, mend, reference]: [&'static str; 4],
) -> Check {
    Check { id, name, severity, condition, why, mend, reference }
}

const DENY: &str = "leave it out of the allowed calls, or refuse it by a rule with EPERM";

/// All of them, by id.
#[rustfmt::skip]
pub const CHECKS: &[Check] = &[
    row("CBS101", "default-allows", High, ["a call that no rule names is carried out",
        "every call of today and of tomorrow's kernels is open unless somebody thought of it",
        "set defaultAction to SCMP_ACT_ERRNO with defaultErrnoRet 38, and list what programs need", "seccomp(2)"]),
    row("CBS102", "foreign-architecture", High, ["calls of a 32-bit entry are carried out or filtered by the same rules",
        "a 64-bit program reaches the 32-bit entry with int 0x80; there socketcall hides its arguments in memory, and numbers mean other calls",
        "name only the native architecture, unless 32-bit programs must run", "seccomp(2), \"the architecture\""]),
    row("CBS103", "x32", High, ["calls with the x32 bit are carried out",
        "x32 gives every call a second number, past rules that were written for the first",
        "take SCMP_ARCH_X32 out; in a raw filter refuse numbers from 0x40000000 on", "seccomp(2)"]),
    row("CBS104", "socketcall", High, ["socketcall is allowed where a 32-bit entry is open",
        "the family and protocol lie in memory, where no filter sees them: rules about sockets do not hold",
        "refuse socketcall, or the 32-bit entry as a whole", "socketcall(2)"]),
    row("CBS105", "unknown-not-enosys", Low, ["an unknown call fails with something other than ENOSYS",
        "C libraries try a new call and fall back on ENOSYS only; another answer breaks programs after an update",
        "set defaultErrnoRet to 38", "the OCI runtime specification, config-linux.md, seccomp"]),
    row("CBS106", "decided-elsewhere", Note, ["a verdict asks a tracer or a supervisor",
        "what really happens depends on another process; after its check the program can change what pointers point to",
        "use it to observe, and refuse in the filter what must not happen", "seccomp_unotify(2)"]),
    row("CBS201", "af-alg", High, ["socket(AF_ALG, …) is carried out",
        "kernel crypto in reach of anybody: it loads modules and splices the page cache into code with a long list of faults",
        "allow sockets by family, and not this one", "socket(2)"]),
    row("CBS202", "af-vsock", High, ["socket(AF_VSOCK, …) is carried out",
        "it talks to the hypervisor and to other machines on it, past the network namespace",
        "allow sockets by family, and not this one", "vsock(7)"]),
    row("CBS203", "af-packet", High, ["socket(AF_PACKET, …) is carried out",
        "raw frames of the namespace's links, and a favourite of privilege escalation",
        "allow sockets by family, and not this one", "packet(7)"]),
    row("CBS204", "rare-families", Medium, ["sockets of a seldom used family are carried out",
        "asking for such a family loads its module, whose code few people read",
        "allow sockets by family: AF_UNIX, AF_INET, AF_INET6, and AF_NETLINK with protocol 0", "socket(2)"]),
    row("CBS205", "raw-sockets", Low, ["socket(AF_INET, SOCK_RAW, …) is carried out",
        "where CAP_NET_RAW is held, packets of any form can be sent",
        "allow SOCK_STREAM and SOCK_DGRAM only", "raw(7)"]),
    row("CBS211", "clone-namespaces", High, ["clone with CLONE_NEW* is carried out",
        "a new user namespace gives all capabilities in it, and with them the kernel code that trusts them",
        "allow clone where flags & 0x7e020000 == 0", "user_namespaces(7)"]),
    row("CBS212", "unshare", High, ["unshare makes a namespace",
        "a new user namespace gives all capabilities in it, and with them the kernel code that trusts them", DENY, "unshare(2)"]),
    row("CBS213", "setns", High, ["setns is carried out", "it enters the namespaces of others", DENY, "setns(2)"]),
    row("CBS214", "clone3", High, ["clone3 is carried out",
        "its flags lie in memory, where no filter sees them, so every rule about clone is void",
        "let it fail with ENOSYS: C libraries then use clone", "clone(2)"]),
    row("CBS215", "clone3-not-enosys", Medium, ["clone3 is refused, but not with ENOSYS",
        "C libraries fall back to clone on ENOSYS only; programs can't start threads",
        "a rule for clone3 with errnoRet 38", "clone(2)"]),
    row("CBS221", "mount", High, ["mount, umount2 or pivot_root is carried out",
        "it changes or reveals the mount tree that the sandbox is made of", DENY, "mount(2)"]),
    row("CBS222", "new-mount-api", High, ["a call of the mount API of Linux 5.2 is carried out",
        "it does all that mount does, past rules that name only mount", DENY, "fsopen(2), open_tree(2), move_mount(2)"]),
    row("CBS223", "io-uring", High, ["io_uring is allowed",
        "its operations are carried out without any filter: files, sockets, and more with each release", DENY, "io_uring(7)"]),
    row("CBS224", "keyrings", High, ["keyctl, add_key or request_key is carried out",
        "keyrings are shared beyond namespaces, and request_key starts a program on the host", DENY, "keyrings(7)"]),
    row("CBS225", "bpf", High, ["bpf is carried out", "it loads programs into the kernel", DENY, "bpf(2)"]),
    row("CBS226", "userfaultfd", High, ["userfaultfd is carried out",
        "it stops the kernel in the middle of a copy, which makes races certain", DENY, "userfaultfd(2)"]),
    row("CBS227", "perf-events", High, ["perf_event_open is carried out",
        "a large interface that measures other processes and the kernel", DENY, "perf_event_open(2)"]),
    row("CBS228", "ptrace", Medium, ["ptrace is carried out",
        "it reads and steers other processes of the same user", DENY, "ptrace(2)"]),
    row("CBS229", "process-memory", Medium, ["process_vm_readv, process_vm_writev, process_madvise or kcmp is carried out",
        "it reads, writes or compares the memory of other processes, as ptrace does", DENY, "process_vm_readv(2)"]),
    row("CBS230", "pidfd-getfd", Medium, ["pidfd_getfd is carried out",
        "it takes descriptors out of other processes", DENY, "pidfd_getfd(2)"]),
    row("CBS231", "open-by-handle", High, ["open_by_handle_at is carried out",
        "it opens files by inode, past every directory and mount", DENY, "open_by_handle_at(2)"]),
    row("CBS232", "kexec", High, ["kexec_load or kexec_file_load is carried out", "it replaces the kernel", DENY, "kexec_load(2)"]),
    row("CBS233", "modules", High, ["a call for kernel modules is carried out", "it puts code into the kernel", DENY, "init_module(2)"]),
    row("CBS234", "tiocsti", High, ["ioctl(TIOCSTI) or ioctl(TIOCLINUX) is carried out",
        "it types into, or pastes into, the terminal of whoever started the sandbox",
        "a rule for ioctl: EPERM where the low word of argument 1 is 0x5412 or 0x541c", "ioctl_tty(2)"]),
    row("CBS235", "machine", High, ["a call that stops or reconfigures the host is carried out",
        "reboot, swap, quotas, accounting, port access: the host is everybody's", DENY, "reboot(2), iopl(2), swapon(2)"]),
    row("CBS236", "clocks", Medium, ["the host's clock can be set", "time is shared by the whole host", DENY, "settimeofday(2)"]),
    row("CBS237", "kernel-log", Medium, ["syslog is carried out", "it shows addresses and the doings of others", DENY, "syslog(2)"]),
    row("CBS238", "personality", Medium, ["personality can switch off address randomisation, or make readable memory executable",
        "it makes faults of programs easier to use", "allow personality for 0, 8, 0x20000, 0x20008 and 0xffffffff only", "personality(2)"]),
    row("CBS239", "page-cache", Medium, ["vmsplice or memfd_secret is carried out",
        "pages that others still use are handed about: what several faults in the page cache were built on", DENY, "vmsplice(2)"]),
    row("CBS240", "legacy-cpu", Medium, ["modify_ldt, vm86 or iopl is carried out",
        "old processor interfaces with a history of faults", DENY, "modify_ldt(2)"]),
    row("CBS251", "writable-code", Low, ["memory can be writable and executable at once, or become executable",
        "injected code runs where it was written; just-in-time compilers need it",
        "refuse mmap and mprotect where PROT_WRITE|PROT_EXEC are both set, where no compiler runs", "mmap(2)"]),
    row("CBS301", "alternative-call", Medium, ["a call is refused while another one does the same",
        "a rule that can be walked round protects nothing, and misleads its reader",
        "refuse the alternative too, or allow both", "syscalls(2)"]),
    row("CBS302", "wide-comparison", High, ["a value with a high word passes a comparison that the same low word fails",
        "the filter sees 64 bits, the kernel takes 32: adding 1<<32 walks round the rule",
        "compare with SCMP_CMP_MASKED_EQ under 0xffffffff, or as `dword` in seccompiler's format", "seccomp(2), \"BPF sees 64 bits\""]),
    row("CBS401", "no-effect", Medium, ["a rule never decides",
        "its author believes in a protection, or a permission, that is not there",
        "take it out, or mend its conditions; libseccomp prefers rules without arguments", "seccomp_rule_add(3)"]),
    row("CBS402", "same-as-default", Low, ["a rule says what the default says anyway",
        "it changes nothing; libseccomp refuses such a rule", "take it out, or keep it with a comment that says why", "seccomp_rule_add(3)"]),
    row("CBS403", "unknown-name", Medium, ["a name is a system call nowhere, or newer than the table",
        "engines pass over it in silence: what was meant is not said", "correct the name", "syscalls(2)"]),
    row("CBS404", "duplicate", Low, ["two rules say the same of the same call", "one of them will be forgotten in the next change", "keep one", "-"]),
    row("CBS405", "contradiction", High, ["two rules say different things of the same call and arguments",
        "engines choose differently: the first, the strongest, or an error", "keep the one that is meant", "seccomp_rule_add(3)"]),
    row("CBS406", "newer-than-table", Medium, ["numbers beyond the last known call are let through",
        "calls that do not exist yet are open when the kernel is updated", "end ranges at a known call", "-"]),
    row("CBS407", "no-reason", Note, ["a rule has no comment", "nobody knows whether it may go", "write down why", "-"]),
    row("CBS408", "engines-differ", Note, ["CodeBeaker and libseccomp read the rules of a call differently",
        "a profile that is carried to another runtime changes its meaning",
        "one rule without arguments, or rules with arguments only, and masked comparisons for 32-bit arguments", "docs/seccomp.md"]),
    row("CBS409", "unreadable-condition", Medium, ["an includes or excludes can't be understood",
        "the rule is never there, or always", "capabilities as CAP_CHOWN, architectures as amd64, kernels as 4.8", "-"]),
    row("CBS410", "bad-argument", Medium, ["an argument's index is above 5, or stands twice in a rule, or its value does not fit",
        "engines refuse it, or read it differently", "one comparison an argument, indices 0 to 5", "seccomp_rule_add(3)"]),
];

/// Calls that are findings when any arguments are let through, by id.
#[rustfmt::skip]
pub(crate) const OPEN: &[(&str, &[&str])] = &[
    ("CBS213", &["setns"]), ("CBS214", &["clone3"]), ("CBS221", &["mount", "umount2", "pivot_root"]),
    ("CBS222", &["fsopen", "fsconfig", "fsmount", "fspick", "move_mount", "open_tree", "open_tree_attr", "mount_setattr"]),
    ("CBS223", &["io_uring_setup", "io_uring_enter", "io_uring_register"]), ("CBS224", &["keyctl", "add_key", "request_key"]),
    ("CBS225", &["bpf"]), ("CBS226", &["userfaultfd"]), ("CBS227", &["perf_event_open"]), ("CBS228", &["ptrace"]),
    ("CBS229", &["process_vm_readv", "process_vm_writev", "process_madvise", "kcmp"]), ("CBS230", &["pidfd_getfd"]),
    ("CBS231", &["open_by_handle_at"]), ("CBS232", &["kexec_load", "kexec_file_load"]),
    ("CBS233", &["init_module", "finit_module", "delete_module"]),
    ("CBS235", &["reboot", "swapon", "swapoff", "acct", "quotactl", "quotactl_fd", "iopl", "ioperm", "nfsservctl", "vhangup"]),
    ("CBS236", &["settimeofday", "clock_settime", "adjtimex", "clock_adjtime"]), ("CBS237", &["syslog"]),
    ("CBS239", &["vmsplice", "memfd_secret"]), ("CBS240", &["modify_ldt", "vm86", "vm86old"]),
];

/// Calls that are findings for these arguments, by id; what they are called.
#[rustfmt::skip]
pub(crate) const PROBED: &[(&str, &str, [u64; 6], &str)] = &[
    ("CBS201", "socket", [38, 5, 0, 0, 0, 0], "AF_ALG"), ("CBS202", "socket", [40, 1, 0, 0, 0, 0], "AF_VSOCK"),
    ("CBS203", "socket", [17, 3, 0, 0, 0, 0], "AF_PACKET"), ("CBS204", "socket", [21, 5, 0, 0, 0, 0], "AF_RDS"),
    ("CBS204", "socket", [29, 3, 1, 0, 0, 0], "AF_CAN"), ("CBS204", "socket", [30, 5, 0, 0, 0, 0], "AF_TIPC"),
    ("CBS204", "socket", [15, 3, 2, 0, 0, 0], "AF_KEY"), ("CBS204", "socket", [44, 3, 0, 0, 0, 0], "AF_XDP"),
    ("CBS204", "socket", [16, 3, 12, 0, 0, 0], "AF_NETLINK, NETLINK_NETFILTER"),
    ("CBS205", "socket", [2, 3, 255, 0, 0, 0], "AF_INET, SOCK_RAW"),
    ("CBS211", "clone", [0x1000_0011, 0, 0, 0, 0, 0], "CLONE_NEWUSER"), ("CBS211", "clone", [0x0002_0011, 0, 0, 0, 0, 0], "CLONE_NEWNS"),
    ("CBS211", "clone", [0x4000_0011, 0, 0, 0, 0, 0], "CLONE_NEWNET"), ("CBS211", "clone", [0x2000_0011, 0, 0, 0, 0, 0], "CLONE_NEWPID"),
    ("CBS211", "clone", [0x0200_0011, 0, 0, 0, 0, 0], "CLONE_NEWCGROUP"), ("CBS211", "clone", [0x0400_0011, 0, 0, 0, 0, 0], "CLONE_NEWUTS"),
    ("CBS211", "clone", [0x0800_0011, 0, 0, 0, 0, 0], "CLONE_NEWIPC"),
    ("CBS212", "unshare", [0x1000_0000, 0, 0, 0, 0, 0], "CLONE_NEWUSER"), ("CBS212", "unshare", [0x0002_0000, 0, 0, 0, 0, 0], "CLONE_NEWNS"),
    ("CBS212", "unshare", [0x4000_0000, 0, 0, 0, 0, 0], "CLONE_NEWNET"),
    ("CBS234", "ioctl", [0, 0x5412, 0, 0, 0, 0], "TIOCSTI"), ("CBS234", "ioctl", [0, 0x541C, 0, 0, 0, 0], "TIOCLINUX"),
    ("CBS238", "personality", [0x0004_0000, 0, 0, 0, 0, 0], "ADDR_NO_RANDOMIZE"),
    ("CBS238", "personality", [0x0040_0000, 0, 0, 0, 0, 0], "READ_IMPLIES_EXEC"),
    ("CBS251", "mmap", [0, 4096, 7, 0x22, 0, 0], "PROT_READ|PROT_WRITE|PROT_EXEC"), ("CBS251", "mprotect", [0, 4096, 7, 0, 0, 0], "PROT_READ|PROT_WRITE|PROT_EXEC"),
];

/// Calls that do the same: refusing one is void while another is let through.
#[rustfmt::skip]
pub(super) const ALTERNATIVES: &[&[&str]] = &[
    &["open", "openat", "openat2"], &["read", "pread64", "readv", "preadv", "preadv2"],
    &["write", "pwrite64", "writev", "pwritev", "pwritev2"], &["chmod", "fchmodat", "fchmodat2"],
    &["chown", "lchown", "fchownat"], &["unlink", "unlinkat"], &["rename", "renameat", "renameat2"], &["link", "linkat"],
    &["symlink", "symlinkat"], &["mkdir", "mkdirat"], &["mknod", "mknodat"], &["execve", "execveat"], &["fork", "vfork", "clone"],
    &["stat", "newfstatat", "statx"], &["access", "faccessat", "faccessat2"], &["kill", "tkill", "tgkill", "pidfd_send_signal", "rt_sigqueueinfo"],
    &["setxattr", "setxattrat"], &["getxattr", "getxattrat"], &["removexattr", "removexattrat"], &["sendto", "sendmsg", "sendmmsg"],
    &["recvfrom", "recvmsg", "recvmmsg"], &["truncate", "ftruncate"], &["mount", "fsmount", "move_mount"], &["umount2", "move_mount"],
    &["ptrace", "process_vm_readv", "process_vm_writev"], &["init_module", "finit_module"], &["kexec_load", "kexec_file_load"],
    &["settimeofday", "clock_settime", "adjtimex", "clock_adjtime"], &["setrlimit", "prlimit64"], &["mprotect", "pkey_mprotect"],
    &["accept", "accept4"], &["dup", "dup3", "fcntl"],
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seccomp::arch;

    #[test]
    fn ids_are_unique_sorted_and_every_named_call_exists() {
        assert!(CHECKS.is_sorted_by(|a, b| a.id < b.id));
        let named = OPEN.iter().flat_map(|(_, calls)| calls.iter()).chain(ALTERNATIVES.iter().flat_map(|calls| calls.iter()));
        for name in named.chain(PROBED.iter().map(|(_, call, ..)| call)) {
            assert!(arch::is_known(name), "{name}");
        }
        for id in OPEN.iter().map(|(id, _)| id).chain(PROBED.iter().map(|(id, ..)| id)) {
            assert!(check(id).is_some(), "{id}");
        }
    }
}
