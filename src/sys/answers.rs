//! What the running kernel answers to calls under a stack of filters, asked by a child that is thrown away.
//!
//! Invariant: the caller has one thread. The child gives up root and gets `no_new_privs` before the first filter, makes the calls with
//! zero arguments, and is killed when it is through or when [`WAIT_MAX`] is over; answers come through shared memory, so the
//! child needs no call that a filter may refuse.

#![allow(unsafe_code, reason = "the fence: one function, one system call")]

use std::sync::atomic::{AtomicI32, Ordering};
use std::time::{Duration, Instant};

use super::{CallError, process};

/// For all calls of one child.
const WAIT_MAX: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(1);
const NOBODY: u32 = 65534;
const UNANSWERED: i32 = -1;

/// Anonymous memory that parent and child share.
struct Shared {
    start: *mut AtomicI32,
    count: usize,
}

impl Shared {
    fn new(count: usize) -> Result<Self, CallError> {
        let length = count * size_of::<AtomicI32>();
        let (protection, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED | libc::MAP_ANONYMOUS);
        // SAFETY: a new mapping at a place of the kernel's choice.
        let start = unsafe { libc::mmap(std::ptr::null_mut(), length, protection, flags, -1, 0) };
        if start == libc::MAP_FAILED {
            return Err(CallError::last("mmap"));
        }
        Ok(Self { start: start.cast(), count })
    }

    fn cells(&self) -> &[AtomicI32] {
        // SAFETY: the mapping holds `count` zeroed integers and lives as long as `self`; they are only used atomically.
        unsafe { std::slice::from_raw_parts(self.start, self.count) }
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        // SAFETY: the mapping is this value's own and nothing refers to it any more.
        unsafe { libc::munmap(self.start.cast(), self.count * size_of::<AtomicI32>()) };
    }
}

/// The errno of each call (0: it succeeded), or nothing where the child ended before it answered.
pub fn answers(filters: &[Vec<u8>], numbers: &[u32]) -> Result<Vec<Option<i32>>, CallError> {
    let shared = Shared::new(numbers.len() + 1)?;
    let (done, cells) = shared.cells().split_last().unwrap_or_else(|| unreachable!("there is one cell more than calls"));
    for cell in cells {
        cell.store(UNANSWERED, Ordering::SeqCst);
    }
    let pid = fork()?;
    if pid == 0 {
        ask(filters, numbers, cells);
        done.store(1, Ordering::SeqCst);
        process::exit_now(0);
    }
    let deadline = Instant::now() + WAIT_MAX;
    while done.load(Ordering::SeqCst) == 0 && Instant::now() < deadline && !ended(pid) {
        std::thread::sleep(PAUSE);
    }
    process::kill(pid, libc::SIGKILL).ok();
    // SAFETY: no status is asked for; a child that `ended` has seen is gone already.
    unsafe { libc::waitpid(pid, std::ptr::null_mut(), 0) };
    let answer = |cell: &AtomicI32| Some(cell.load(Ordering::SeqCst)).filter(|errno| *errno != UNANSWERED);
    Ok(cells.iter().map(answer).collect())
}

fn fork() -> Result<i32, CallError> {
    // SAFETY: the caller has one thread, so the child may run ordinary code.
    match unsafe { libc::fork() } {
        -1 => Err(CallError::last("fork")),
        pid => Ok(pid),
    }
}

/// True when the child ended by itself, such as by a filter that kills.
fn ended(pid: i32) -> bool {
    // SAFETY: the kernel writes nothing but a `siginfo_t`, which is handed over whole.
    unsafe {
        let mut info: libc::siginfo_t = std::mem::zeroed();
        libc::waitid(libc::P_PID, pid.cast_unsigned(), &raw mut info, libc::WEXITED | libc::WNOHANG | libc::WNOWAIT) == 0
            && info.si_signo == libc::SIGCHLD
    }
}

/// The child's part.
fn ask(filters: &[Vec<u8>], numbers: &[u32], cells: &[AtomicI32]) {
    if !give_up_root() || process::set_no_new_privs().is_err() {
        return;
    }
    for filter in filters {
        if super::seccomp::install(filter).is_err() {
            return;
        }
    }
    for (number, cell) in numbers.iter().zip(cells) {
        // SAFETY: all arguments are zero, so no memory is handed over; the caller chose calls that then do nothing.
        let outcome = unsafe { libc::syscall(libc::c_long::from(*number), 0_u64, 0_u64, 0_u64, 0_u64, 0_u64, 0_u64) };
        // SAFETY: errno is this thread's own.
        let errno = if outcome == -1 { unsafe { *libc::__errno_location() } } else { 0 };
        cell.store(errno, Ordering::SeqCst);
    }
}

/// To nobody, for whom calls that need capabilities end with EPERM even where a filter fails.
fn give_up_root() -> bool {
    // SAFETY: numbers only; in a child with one thread.
    unsafe {
        libc::geteuid() != 0
            || (libc::setgroups(0, std::ptr::null()) == 0
                && libc::setresgid(NOBODY, NOBODY, NOBODY) == 0
                && libc::setresuid(NOBODY, NOBODY, NOBODY) == 0)
    }
}
