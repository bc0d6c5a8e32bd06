//! What no profile may allow, an operator's neither: SECURITY's row "never, in any".
//!
//! Invariant: a profile that passes `check` has none of these open. The built-in profiles refuse them by rules of their own;
//! this is the second look, taken at every start.

use thiserror::Error;

use super::resolve::Resolved;

/// A rule that opens what must stay shut.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("`{syscall}` must stay refused in every profile: {reason}")]
pub struct Breach {
    /// The system call.
    pub syscall: &'static str,
    /// Why it is shut.
    pub reason: &'static str,
}

const MOUNTS: &str = "it changes or reveals the mount tree that the sandbox is made of";
const MODULES: &str = "it puts code into the kernel";
const KEYS: &str = "kernel keyrings are not confined by namespaces alone";
const RING: &str = "io_uring carries out system calls that no filter sees";
const TRACE: &str = "it reads or steers another process";
const NAMESPACE: &str = "a new namespace gives back capabilities over kernel interfaces";

/// Calls that no rule may allow for any argument.
const NEVER: &[(&str, &str)] = &[
    ("add_key", KEYS),
    ("bpf", "it loads programs into the kernel"),
    ("clone3", "its flags lie in memory, where no filter sees them"),
    ("delete_module", MODULES),
    ("finit_module", MODULES),
    ("fsconfig", MOUNTS),
    ("fsmount", MOUNTS),
    ("fsopen", MOUNTS),
    ("fspick", MOUNTS),
    ("init_module", MODULES),
    ("io_uring_enter", RING),
    ("io_uring_register", RING),
    ("io_uring_setup", RING),
    ("kexec_file_load", MODULES),
    ("kexec_load", MODULES),
    ("keyctl", KEYS),
    ("mount", MOUNTS),
    ("mount_setattr", MOUNTS),
    ("move_mount", MOUNTS),
    ("open_by_handle_at", "it opens files by inode, past every directory"),
    ("open_tree", MOUNTS),
    ("open_tree_attr", MOUNTS),
    ("perf_event_open", "it measures other processes and the kernel"),
    ("pivot_root", MOUNTS),
    ("ptrace", TRACE),
    ("reboot", "it stops the host"),
    ("request_key", KEYS),
    ("setns", NAMESPACE),
    ("umount2", MOUNTS),
    ("unshare", NAMESPACE),
    ("userfaultfd", "it stops the kernel in the middle of a copy, at a place of the program's choice"),
];

/// Calls that are refused for some arguments: arguments that must be refused, one line for each.
const PROBES: &[(&str, [u64; 6], &str)] = &[
    ("clone", [0x0002_0000, 0, 0, 0, 0, 0], NAMESPACE),
    ("clone", [0x0200_0000, 0, 0, 0, 0, 0], NAMESPACE),
    ("clone", [0x0400_0000, 0, 0, 0, 0, 0], NAMESPACE),
    ("clone", [0x0800_0000, 0, 0, 0, 0, 0], NAMESPACE),
    ("clone", [0x1000_0000, 0, 0, 0, 0, 0], NAMESPACE),
    ("clone", [0x2000_0000, 0, 0, 0, 0, 0], NAMESPACE),
    ("clone", [0x4000_0000, 0, 0, 0, 0, 0], NAMESPACE),
    ("socket", [17, 3, 0, 0, 0, 0], "AF_PACKET reads and writes raw frames"),
    ("socket", [38, 5, 0, 0, 0, 0], "AF_ALG splices the page cache into kernel crypto"),
    ("socket", [40, 1, 0, 0, 0, 0], "AF_VSOCK reaches the hypervisor past the network namespace"),
    ("ioctl", [0, 0x5412, 0, 0, 0, 0], "TIOCSTI types into somebody's terminal"),
    ("ioctl", [0, 0x541C, 0, 0, 0, 0], "TIOCLINUX pastes into somebody's console"),
];

/// High words that the kernel ignores; a comparison of the whole register would not.
const HIGH_WORDS: [u64; 2] = [0, 1 << 32];

/// True for a call that must stay shut, for some arguments at least.
pub fn holds(syscall: &str) -> bool {
    NEVER.iter().any(|(name, _)| *name == syscall) || PROBES.iter().any(|(name, _, _)| *name == syscall)
}

/// Refuses a profile that opens what must stay shut.
pub fn check(resolved: &Resolved) -> Result<(), Breach> {
    for &(syscall, reason) in NEVER {
        let Some(call) = resolved.arch.number(syscall).and_then(|number| resolved.calls.get(&number)) else { continue };
        let mut actions = call.conditional.iter().map(|rule| rule.action).chain(call.fallback);
        if actions.any(super::Action::permits) {
            return Err(Breach { syscall, reason });
        }
    }
    for &(syscall, args, reason) in PROBES {
        let Some(number) = resolved.arch.number(syscall) else { continue };
        let open = HIGH_WORDS.iter().any(|high| resolved.verdict(number, args.map(|arg| arg | high)).permits());
        if open {
            return Err(Breach { syscall, reason });
        }
    }
    Ok(())
}
