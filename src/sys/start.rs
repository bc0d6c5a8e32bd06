//! A child that shares this process's memory until it executes or ends: nothing is copied, no page is touched twice.
//!
//! Invariants: the caller has one thread and sleeps in the kernel until the child has executed or ended (`CLONE_VFORK`), so only one of
//! the two ever runs; the child has a stack of its own; what it leaves in memory is the caller's afterwards.

#![allow(unsafe_code, reason = "the fence: one function, one system call")]

use std::os::fd::BorrowedFd;
use std::time::Duration;

use super::CallError;
use super::process;

/// Bytes of the child's stack; a page below it belongs to nobody.
const STACK_BYTES: usize = 256 << 10;
const GUARD_BYTES: usize = 4096;

/// The stack that one child after the other begins on.
#[derive(Debug)]
pub struct Stack {
    start: *mut std::ffi::c_void,
}

impl Stack {
    /// A new one.
    pub fn new() -> Result<Self, CallError> {
        let length = STACK_BYTES + GUARD_BYTES;
        let (protection, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        // SAFETY: a new private mapping at a place of the kernel's choice.
        let start = unsafe { libc::mmap(std::ptr::null_mut(), length, protection, flags, -1, 0) };
        if start == libc::MAP_FAILED {
            return Err(CallError::last("mmap"));
        }
        let stack = Self { start };
        // SAFETY: the lowest page of the mapping just made, which nobody uses.
        match unsafe { libc::mprotect(stack.start, GUARD_BYTES, libc::PROT_NONE) } {
            0 => Ok(stack),
            _ => Err(CallError::last("mprotect")),
        }
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        // SAFETY: the mapping is this value's own, and no child runs on it: the caller of `run` sleeps while one does.
        unsafe { libc::munmap(self.start, STACK_BYTES + GUARD_BYTES) };
    }
}

/// True where [`run`] can be used.
pub const POSSIBLE: bool = cfg!(target_arch = "x86_64");

/// Runs `child` in a new process that shares this one's memory, and returns its pid when it has executed a program or ended.
/// `cgroup` is a cgroup v2 directory to be born in. `child` must not return; if it does, the process ends.
///
/// The caller must have one thread.
#[cfg(target_arch = "x86_64")]
pub fn run(stack: &mut Stack, cgroup: Option<BorrowedFd<'_>>, mut child: impl FnMut()) -> Result<i32, CallError> {
    let mut arguments = process::clone_arguments((libc::CLONE_VM | libc::CLONE_VFORK) as u64, cgroup);
    arguments.stack = stack.start as u64 + GUARD_BYTES as u64;
    arguments.stack_size = STACK_BYTES as u64;
    let mut closure: &mut dyn FnMut() = &mut child;
    let argument: *mut &mut dyn FnMut() = &raw mut closure;
    let outcome: isize;
    // SAFETY: the kernel keeps every register but rax, rcx and r11, for both. The child has rax 0 and the stack pointer at the aligned
    // end of a stack that nobody else uses; it calls `begin`, which never returns. The parent goes on behind the label when the
    // child is through with the memory, so `closure` and all that it borrows outlive the child's use of them.
    unsafe {
        std::arch::asm!(
            "syscall",
            "test rax, rax",
            "jnz 2f",
            "xor ebp, ebp",
            "mov rdi, r12",
            "call {begin}",
            "ud2",
            "2:",
            begin = sym begin,
            inlateout("rax") libc::SYS_clone3 as isize => outcome,
            in("rdi") &raw mut arguments,
            in("rsi") size_of::<libc::clone_args>(),
            in("r12") argument,
            out("rcx") _,
            out("r11") _,
        );
    }
    match outcome {
        pid if pid > 0 => Ok(pid as i32),
        error => Err(CallError { call: "clone3", errno: rustix::io::Errno::from_raw_os_error(-(error as i32)) }),
    }
}

/// Elsewhere nobody calls it.
#[cfg(not(target_arch = "x86_64"))]
pub fn run(_: &mut Stack, _: Option<BorrowedFd<'_>>, _: impl FnMut()) -> Result<i32, CallError> {
    Err(CallError { call: "clone3", errno: rustix::io::Errno::NOSYS })
}

/// Where the child begins.
#[cfg(target_arch = "x86_64")]
extern "C" fn begin(argument: *mut &mut dyn FnMut()) -> ! {
    // SAFETY: `run` handed over a pointer to a live local of its own and sleeps meanwhile.
    let child = unsafe { &mut *argument };
    child();
    process::exit_now(127)
}

/// Has the kernel kill the calling process after `time`, unless it executes a program before: timers end with that. Nothing that
/// somebody else does to it, SIGSTOP included, keeps it from ending.
pub fn end_unless_executed(time: Duration) -> Result<(), CallError> {
    // SAFETY: `sigevent` and `itimerspec` are plain data, for which all zeroes is a valid value.
    let (mut event, mut setting): (libc::sigevent, libc::itimerspec) = unsafe { (std::mem::zeroed(), std::mem::zeroed()) };
    event.sigev_notify = libc::SIGEV_SIGNAL;
    event.sigev_signo = libc::SIGKILL;
    setting.it_value = libc::timespec { tv_sec: time.as_secs() as libc::time_t, tv_nsec: time.subsec_nanos().into() };
    let mut timer: i32 = 0;
    // SAFETY: all pointers are to live locals of the right type; the kernel's own number of the timer is an int.
    unsafe {
        if libc::syscall(libc::SYS_timer_create, libc::CLOCK_MONOTONIC, &raw mut event, &raw mut timer) != 0 {
            return Err(CallError::last("timer_create"));
        }
        if libc::syscall(libc::SYS_timer_settime, timer, 0, &raw const setting, std::ptr::null_mut::<libc::itimerspec>()) != 0 {
            return Err(CallError::last("timer_settime"));
        }
    }
    Ok(())
}

#[cfg(all(test, target_arch = "x86_64"))]
mod tests {
    use super::*;
    use crate::sys::process::Reaped;

    /// In a child of one thread, since the test program has many.
    fn in_one_thread(check: impl FnOnce() -> bool) -> bool {
        match process::clone(0, None).expect("a fork") {
            process::Cloned::Child => process::exit_now(i32::from(!check())),
            process::Cloned::Parent { pid, .. } => status(pid) == Some(0),
        }
    }

    /// How it ended; the parent of a child that shared its memory may go on a moment before that.
    fn status(pid: i32) -> Option<i32> {
        loop {
            match process::reap(pid) {
                Ok(Reaped::Ended(ended)) => return Some(ended.status),
                Ok(Reaped::StillRunning) => std::thread::sleep(Duration::from_millis(1)),
                Ok(Reaped::NoChild) | Err(_) => return None,
            }
        }
    }

    #[test]
    fn the_child_writes_into_the_memory_of_its_parent_which_waits_for_it() {
        assert!(in_one_thread(|| {
            let Ok(mut stack) = Stack::new() else { return false };
            (1..=3).all(|round| {
                let mut written = 0;
                let pid = run(&mut stack, None, || {
                    written = round;
                    process::exit_now(7);
                });
                written == round && pid.is_ok_and(|pid| status(pid) == Some(7 << 8))
            })
        }));
    }

    #[test]
    fn a_child_that_is_stopped_before_it_executes_is_killed_in_time() {
        assert!(in_one_thread(|| {
            let Ok(mut stack) = Stack::new() else { return false };
            let pid = run(&mut stack, None, || {
                let stop = || process::kill(std::process::id().cast_signed(), libc::SIGSTOP);
                end_unless_executed(Duration::from_millis(20)).and_then(|()| stop()).ok();
            });
            pid.is_ok_and(|pid| status(pid) == Some(libc::SIGKILL))
        }));
    }

    #[test]
    fn a_child_that_executes_in_time_is_not_killed() {
        assert!(in_one_thread(|| {
            let Ok(mut stack) = Stack::new() else { return false };
            let arguments = [c"sleep".as_ptr(), c"0.1".as_ptr(), std::ptr::null()];
            let pid = run(&mut stack, None, || {
                if end_unless_executed(Duration::from_millis(20)).is_ok() {
                    process::execute(c"/bin/sleep", &arguments, &[std::ptr::null()]);
                }
            });
            pid.is_ok_and(|pid| status(pid) == Some(0))
        }));
    }
}
