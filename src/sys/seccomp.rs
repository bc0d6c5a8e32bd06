//! seccomp(2): installing filters, and answering what a filter hands to its listener.
//!
//! Invariant: a listener refuses, or, for a plan that audits and so is no wall there, lets a call go on unseen. It never decides by
//! what a call's arguments point to, which a program could change meanwhile, and never hands a descriptor in.

use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::error::CallError;
use super::process;

/// What may wake a program that waits for its listener's answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Waiting {
    /// Once the listener has heard of the call, only a signal that ends the program (Linux 5.19).
    Killable,
    /// Every signal: the call begins again after the handler, and the listener hears of it again.
    Interruptible,
}

impl Waiting {
    fn flags(self) -> libc::c_ulong {
        match self {
            Self::Killable => libc::SECCOMP_FILTER_FLAG_NEW_LISTENER | libc::SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV,
            Self::Interruptible => libc::SECCOMP_FILTER_FLAG_NEW_LISTENER,
        }
    }
}

/// `seccomp(SECCOMP_SET_MODE_FILTER)`; `program` is an array of `struct sock_filter`, 8 bytes an instruction.
pub fn install(program: &[u8]) -> Result<(), CallError> {
    set_filter(program, 0).map(drop)
}

/// The same with a listener for `SECCOMP_RET_USER_NOTIF`, closed by exec. EBUSY when an older filter has one.
pub fn install_with_listener(program: &[u8], waiting: Waiting) -> Result<OwnedFd, CallError> {
    let listener = set_filter(program, waiting.flags())?;
    // SAFETY: with SECCOMP_FILTER_FLAG_NEW_LISTENER the call answers a fresh descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(listener) })
}

fn set_filter(program: &[u8], flags: libc::c_ulong) -> Result<RawFd, CallError> {
    let instructions = program.len() / size_of::<libc::sock_filter>();
    // The kernel copies the program before it looks at it, so the bytes need no alignment.
    let header = libc::sock_fprog { len: instructions as u16, filter: program.as_ptr().cast_mut().cast() };
    // SAFETY: `header` and the bytes behind it live through the call; `len` counts whole instructions within them.
    match unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, &raw const header) } {
        -1 => Err(CallError::last("seccomp(SECCOMP_SET_MODE_FILTER)")),
        answer => Ok(answer as RawFd),
    }
}

/// A call that waits for its answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Notice {
    id: u64,
    /// The thread that made the call, as the holder of the listener sees it. It waits until it is answered.
    pub thread: i32,
    /// The number of the call.
    pub number: u32,
}

/// `SECCOMP_IOCTL_NOTIF_RECV`, to be called when poll(2) has found the listener readable: then it does not wait, because the
/// kernel counts a notice up when it queues it, and never down when the program that waits for it is gone. None then.
pub fn next_notice(listener: BorrowedFd<'_>) -> Result<Option<Notice>, CallError> {
    // SAFETY: `seccomp_notif` is plain integers; the kernel asks for all zeroes.
    let mut notice: libc::seccomp_notif = unsafe { std::mem::zeroed() };
    // SAFETY: the pointer is to a live local of the size that the kernel has, which `listener_support` compared.
    let answer = unsafe { libc::ioctl(listener.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_RECV, &raw mut notice) };
    if answer == 0 {
        return Ok(Some(Notice { id: notice.id, thread: notice.pid.cast_signed(), number: notice.data.nr as u32 }));
    }
    let error = CallError::last("ioctl(SECCOMP_IOCTL_NOTIF_RECV)");
    match error.errno {
        Errno::NOENT | Errno::INTR => Ok(None),
        _ => Err(error),
    }
}

/// `SECCOMP_IOCTL_NOTIF_SEND`: the call fails with `errno`. A program that is gone, or was woken by a signal, is no error.
pub fn refuse(listener: BorrowedFd<'_>, notice: Notice, errno: i32) -> Result<(), CallError> {
    answer(listener, libc::seccomp_notif_resp { id: notice.id, val: 0, error: -errno, flags: 0 })
}

fn answer(listener: BorrowedFd<'_>, answer: libc::seccomp_notif_resp) -> Result<(), CallError> {
    // SAFETY: the pointer is to a live local; the kernel reads it and does not keep it.
    if unsafe { libc::ioctl(listener.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_SEND, &raw const answer) } == 0 {
        return Ok(());
    }
    let error = CallError::last("ioctl(SECCOMP_IOCTL_NOTIF_SEND)");
    match error.errno {
        Errno::NOENT | Errno::INPROGRESS => Ok(()),
        _ => Err(error),
    }
}

/// The same with `SECCOMP_USER_NOTIF_FLAG_CONTINUE` (Linux 5.5): the call runs.
pub fn let_go(listener: BorrowedFd<'_>, notice: Notice) -> Result<(), CallError> {
    answer(listener, libc::seccomp_notif_resp { id: notice.id, val: 0, error: 0, flags: CONTINUE })
}

/// `SECCOMP_USER_NOTIF_FLAG_CONTINUE`, in the type of the answer's field.
const CONTINUE: u32 = libc::SECCOMP_USER_NOTIF_FLAG_CONTINUE as u32;

/// Lets everything through: `BPF_RET | BPF_K` of `SECCOMP_RET_ALLOW`.
const ALLOW_ALL: libc::sock_filter = libc::sock_filter { code: 0x06, jt: 0, jf: 0, k: libc::SECCOMP_RET_ALLOW };

/// Whether a program here may have a listener, tried on a thread that ends at once: EBUSY when this process runs below a filter
/// that has one, EINVAL before Linux 5.0.
pub fn listener_support() -> Result<Waiting, CallError> {
    let trial = std::thread::Builder::new()
        .spawn(try_listener)
        .map_err(|error| CallError { call: "clone", errno: Errno::from_io_error(&error).unwrap_or(Errno::AGAIN) })?;
    trial.join().unwrap_or(Err(CallError { call: "seccomp", errno: Errno::IO }))
}

fn try_listener() -> Result<Waiting, CallError> {
    check_sizes()?;
    // Of this thread alone, as the filter is.
    process::set_no_new_privs()?;
    let mut program = Vec::from(ALLOW_ALL.code.to_ne_bytes());
    program.extend([ALLOW_ALL.jt, ALLOW_ALL.jf]);
    program.extend(ALLOW_ALL.k.to_ne_bytes());
    match install_with_listener(&program, Waiting::Killable) {
        Ok(_) => Ok(Waiting::Killable),
        Err(error) if error.errno == Errno::INVAL => {
            install_with_listener(&program, Waiting::Interruptible).map(|_| Waiting::Interruptible)
        }
        Err(error) => Err(error),
    }
}

/// `SECCOMP_GET_NOTIF_SIZES`: a kernel with larger structures would write past ours.
fn check_sizes() -> Result<(), CallError> {
    // SAFETY: plain integers, for which all zeroes is a valid value.
    let mut sizes: libc::seccomp_notif_sizes = unsafe { std::mem::zeroed() };
    // SAFETY: the pointer is to a live local of the right type.
    if unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_GET_NOTIF_SIZES, 0, &raw mut sizes) } != 0 {
        return Err(CallError::last("seccomp(SECCOMP_GET_NOTIF_SIZES)"));
    }
    let ours = (size_of::<libc::seccomp_notif>(), size_of::<libc::seccomp_notif_resp>());
    if (usize::from(sizes.seccomp_notif), usize::from(sizes.seccomp_notif_resp)) == ours {
        Ok(())
    } else {
        Err(CallError { call: "seccomp(SECCOMP_GET_NOTIF_SIZES)", errno: Errno::OVERFLOW })
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::sync::mpsc;

    use super::*;
    use rustix::event::{PollFd, PollFlags, poll};

    /// Tells of getpriority(2), and lets everything else through.
    fn telling_filter() -> Vec<u8> {
        let step = |code: u16, jt: u8, jf: u8, k: u32| {
            let [code, rest] = [code.to_ne_bytes(), [jt, jf]];
            [code.as_slice(), &rest, &k.to_ne_bytes()].concat()
        };
        let (number, notify) = (libc::SYS_getpriority as u32, libc::SECCOMP_RET_USER_NOTIF);
        [step(0x20, 0, 0, 0), step(0x15, 0, 1, number), step(0x06, 0, 0, notify), step(0x06, 0, 0, libc::SECCOMP_RET_ALLOW)]
            .concat()
    }

    #[test]
    fn a_told_call_fails_with_the_listener_s_errno_and_without_a_listener_with_enosys() {
        let Ok(waiting) = listener_support() else { return eprintln!("this host offers no listener") };
        let (hand_over, listeners) = mpsc::channel();
        let asked = std::thread::spawn(move || {
            process::set_no_new_privs().expect("always allowed");
            hand_over.send(install_with_listener(&telling_filter(), waiting).expect("it was tried")).expect("they listen");
            let ask = || {
                // SAFETY: getpriority takes numbers only.
                let answer = unsafe { libc::getpriority(libc::PRIO_PROCESS, 0) };
                (answer, std::io::Error::last_os_error().raw_os_error())
            };
            [ask(), ask()]
        });
        let listener = listeners.recv().expect("it was installed");
        poll(&mut [PollFd::new(&listener, PollFlags::IN)], None).expect("it is told");
        let notice = next_notice(listener.as_fd()).expect("readable").expect("the caller waits");
        assert_eq!(i64::from(notice.number), libc::SYS_getpriority);
        refuse(listener.as_fd(), notice, libc::ENXIO).expect("the caller waits");
        drop(listener);
        let answers = asked.join().expect("it returns");
        assert_eq!(answers, [(-1, Some(libc::ENXIO)), (-1, Some(libc::ENOSYS))]);
    }
}
