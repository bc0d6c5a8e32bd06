//! Another process as ptrace(2) sees it: its seccomp filters, and its calls.
//!
//! Invariant: a [`Tracee`] is let go when it is dropped, and everything below [`start_traced`] ends with its tracer. Which process is
//! traced, and why, the caller decides.

#![allow(unsafe_code, reason = "the fence: one function, one system call")]

use std::os::unix::process::CommandExt;
use std::process::Command;

use super::CallError;

/// `PTRACE_SECCOMP_GET_FILTER`, `PTRACE_GET_SYSCALL_INFO` of linux/ptrace.h.
const SECCOMP_GET_FILTER: libc::c_uint = 0x420C;
const GET_SYSCALL_INFO: libc::c_uint = 0x420E;
/// Bytes of `struct sock_filter`, and of the part of `struct ptrace_syscall_info` that an entry fills.
const INSTRUCTION_BYTES: usize = 8;
const INFO_BYTES: usize = 88;

/// A process that this one traces.
#[derive(Debug)]
pub struct Tracee(i32);

/// `PTRACE_SEIZE`: it goes on until it is interrupted.
pub fn seize(pid: i32) -> Result<Tracee, CallError> {
    // SAFETY: no memory of this process is handed over.
    match unsafe { libc::ptrace(libc::PTRACE_SEIZE, pid, 0, 0) } {
        0 => Ok(Tracee(pid)),
        _ => Err(CallError::last("ptrace(PTRACE_SEIZE)")),
    }
}

impl Tracee {
    /// `PTRACE_INTERRUPT`: it will stop; [`wait_any`] tells when.
    pub fn interrupt(&self) -> Result<(), CallError> {
        interrupt(self.0)
    }

    /// `PTRACE_SECCOMP_GET_FILTER`: the filter at this place, counted from the first that was installed; it must have stopped.
    pub fn filter(&self, place: usize) -> Result<Vec<u8>, CallError> {
        const CALL: &str = "ptrace(PTRACE_SECCOMP_GET_FILTER)";
        // SAFETY: without a buffer the kernel only counts instructions.
        let length = unsafe { libc::ptrace(SECCOMP_GET_FILTER, self.0, place, std::ptr::null_mut::<libc::c_void>()) };
        let length = usize::try_from(length).map_err(|_| CallError::last(CALL))?;
        let mut program = vec![0_u8; length * INSTRUCTION_BYTES];
        // SAFETY: the buffer holds `length` instructions, which is what the kernel writes: a stopped process installs nothing.
        match unsafe { libc::ptrace(SECCOMP_GET_FILTER, self.0, place, program.as_mut_ptr()) } {
            written if usize::try_from(written) == Ok(length) => Ok(program),
            _ => Err(CallError::last(CALL)),
        }
    }
}

impl Drop for Tracee {
    fn drop(&mut self) {
        // SAFETY: no memory is handed over. A process that is gone, or does not stand still, can't be let go and needs not.
        unsafe { libc::ptrace(libc::PTRACE_DETACH, self.0, 0, 0) };
    }
}

/// Starts a program that is traced from its first instruction on; it stands at its exec.
pub fn start_traced(command: &mut Command) -> std::io::Result<i32> {
    let trace_me = || {
        // SAFETY: no memory is handed over.
        match unsafe { libc::ptrace(libc::PTRACE_TRACEME, 0, 0, 0) } {
            0 => Ok(()),
            _ => Err(std::io::Error::last_os_error()),
        }
    };
    // SAFETY: the closure makes one call, which is async-signal-safe, and touches no memory.
    unsafe { command.pre_exec(trace_me) };
    command.spawn().map(|child| child.id().cast_signed())
}

/// Children are traced too, and stops for calls are marked.
const FOLLOW: libc::c_int = libc::PTRACE_O_TRACESYSGOOD
    | libc::PTRACE_O_TRACEFORK
    | libc::PTRACE_O_TRACEVFORK
    | libc::PTRACE_O_TRACECLONE
    | libc::PTRACE_O_TRACEEXEC;

/// `PTRACE_SEIZE` with the same options as [`follow`], but all go on when the tracing thread ends. It runs until [`interrupt`].
pub fn seize_and_follow(pid: i32) -> Result<(), CallError> {
    // SAFETY: options are a number, no memory is handed over.
    match unsafe { libc::ptrace(libc::PTRACE_SEIZE, pid, 0, FOLLOW) } {
        0 => Ok(()),
        _ => Err(CallError::last("ptrace(PTRACE_SEIZE)")),
    }
}

/// `PTRACE_INTERRUPT`: a seized process will stop; [`wait_any`] tells when.
pub fn interrupt(pid: i32) -> Result<(), CallError> {
    // SAFETY: no memory of this process is handed over.
    match unsafe { libc::ptrace(libc::PTRACE_INTERRUPT, pid, 0, 0) } {
        0 => Ok(()),
        _ => Err(CallError::last("ptrace(PTRACE_INTERRUPT)")),
    }
}

/// `PTRACE_SETOPTIONS`: children are traced too, stops for calls are marked, and all end with the tracer.
pub fn follow(pid: i32) -> Result<(), CallError> {
    // SAFETY: options are a number, no memory is handed over.
    match unsafe { libc::ptrace(libc::PTRACE_SETOPTIONS, pid, 0, FOLLOW | libc::PTRACE_O_EXITKILL) } {
        0 => Ok(()),
        _ => Err(CallError::last("ptrace(PTRACE_SETOPTIONS)")),
    }
}

/// `PTRACE_SYSCALL`: it goes on to its next call's entry or exit, with this signal or none (0).
pub fn resume(pid: i32, signal: i32) {
    // SAFETY: no memory is handed over. A process that was killed meanwhile is told of by `wait_any`.
    unsafe { libc::ptrace(libc::PTRACE_SYSCALL, pid, 0, signal) };
}

/// `PTRACE_GETEVENTMSG`: the new process of a fork event.
pub fn event_process(pid: i32) -> Result<i32, CallError> {
    let mut message: libc::c_ulong = 0;
    // SAFETY: the kernel writes one unsigned long.
    match unsafe { libc::ptrace(libc::PTRACE_GETEVENTMSG, pid, 0, &raw mut message) } {
        0 => Ok(message as i32),
        _ => Err(CallError::last("ptrace(PTRACE_GETEVENTMSG)")),
    }
}

/// Where a traced call stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CallStop {
    /// Before it.
    Entry {
        /// `AUDIT_ARCH_*`
        arch: u32,
        /// Its number.
        number: u64,
        /// Its arguments.
        args: [u64; 6],
    },
    /// After it, or none at all.
    Other,
}

/// `PTRACE_GET_SYSCALL_INFO`, since Linux 5.3.
pub fn call_stop(pid: i32) -> Result<CallStop, CallError> {
    const ENTRY: u8 = 1;
    let mut info = [0_u64; INFO_BYTES / 8];
    // SAFETY: the kernel writes at most the size that is named, which is the buffer's.
    if unsafe { libc::ptrace(GET_SYSCALL_INFO, pid, INFO_BYTES, info.as_mut_ptr()) } < 0 {
        return Err(CallError::last("ptrace(PTRACE_GET_SYSCALL_INFO)"));
    }
    // The operation is the first byte, the architecture the second word; then two pointers, the number and six arguments.
    let head = info[0].to_ne_bytes();
    let arch = u32::from_ne_bytes([head[4], head[5], head[6], head[7]]);
    let args = std::array::from_fn(|index| info[4 + index]);
    Ok(if head[0] == ENTRY { CallStop::Entry { arch, number: info[3], args } } else { CallStop::Other })
}

/// What happened to a traced process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// It ended with this code, or with 128 and the signal.
    Ended(i32),
    /// It stands before or after a call.
    Call,
    /// It made a process.
    Forked,
    /// It executes another program.
    Executed,
    /// It is about to get this signal.
    Signal(i32),
}

/// Whether to wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Patience {
    /// Until something happens.
    Wait,
    /// Only what has happened.
    Poll,
}

/// `waitpid(2)` for the process, or any traced one for -1; nothing when nothing happened or nobody is left.
pub fn wait_any(pid: i32, patience: Patience) -> Result<Option<(i32, Event)>, CallError> {
    let mut status = 0;
    let flags = match patience {
        Patience::Wait => libc::__WALL,
        Patience::Poll => libc::__WALL | libc::WNOHANG,
    };
    // SAFETY: the kernel writes one int.
    let found = unsafe { libc::waitpid(pid, &raw mut status, flags) };
    let event = match found {
        0 => return Ok(None),
        -1 => {
            let error = CallError::last("waitpid");
            return if error.raw() == libc::ECHILD { Ok(None) } else { Err(error) };
        }
        _ if libc::WIFEXITED(status) => Event::Ended(libc::WEXITSTATUS(status)),
        _ if libc::WIFSIGNALED(status) => Event::Ended(128 + libc::WTERMSIG(status)),
        _ => match (status >> 16, libc::WSTOPSIG(status)) {
            (libc::PTRACE_EVENT_FORK | libc::PTRACE_EVENT_VFORK | libc::PTRACE_EVENT_CLONE, _) => Event::Forked,
            (libc::PTRACE_EVENT_EXEC, _) => Event::Executed,
            (0, signal) if signal == libc::SIGTRAP | 0x80 => Event::Call,
            (0, signal) => Event::Signal(signal),
            (_, _) => Event::Signal(0),
        },
    };
    Ok(Some((found, event)))
}
