//! Faults from outside: follows the system calls of a server, its launcher and its inits by ptrace(2), and at the n-th of
//! them makes the call fail or kills one of the three.
//!
//! Invariant: the binary under test is the one that ships and holds no fault point; a call that fails was not carried out,
//! unless the kernel carries it out whatever it answers (close, munmap). Everything is let go when the action is over.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::time::{Duration, Instant};

use codebeaker::seccomp::arch::Arch;
use nix::errno::Errno;
use nix::sys::ptrace::{self, Event, Options};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid, waitpid};
use nix::unistd::Pid;

/// What a followed process is to the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Role {
    /// The server, with all its threads.
    Server,
    /// The maker of sandboxes.
    Launcher,
    /// Pid 1 of a sandbox.
    Init,
    /// What init forks, until it executes its program.
    Program,
}

/// What happens at the chosen call.
#[derive(Debug, Clone, Copy)]
pub enum Fault {
    /// Nothing: the calls are only counted.
    Nothing,
    /// The call fails with this errno.
    Fail(Errno),
    /// A process with that role is killed before the call.
    Kill(Role),
}

/// Which calls count, and what happens at one of them.
pub struct Rule<'a> {
    /// Processes to follow from the start; what they make is followed too.
    pub seeds: &'a [(i32, Role)],
    /// Calls of these count.
    pub counted: &'a [Role],
    /// Of those, only calls for which this says true.
    pub counts: fn(Role, &str) -> bool,
    /// From 1.
    pub nth: usize,
    /// What happens there.
    pub fault: Fault,
}

/// What was seen.
#[derive(Debug, Default)]
pub struct Report {
    /// Calls that counted.
    pub calls: usize,
    /// Whose call the fault came at, and which it was.
    pub hit: Option<(Role, &'static str)>,
}

/// Does `action` while the rule is in force. Call it for processes of the trial's own server only.
pub fn trace<R>(rule: &Rule<'_>, action: impl FnOnce() -> R) -> (R, Report) {
    let over = AtomicBool::new(false);
    let (ready, begun) = channel();
    std::thread::scope(|scope| {
        let tracer = scope.spawn(|| Tracer::new(rule).run(&ready, &over));
        begun.recv_timeout(Duration::from_secs(30)).expect("the tracer follows its processes");
        let result = catch_unwind(AssertUnwindSafe(action));
        over.store(true, Ordering::Release);
        let report = tracer.join().expect("the tracer itself does not fail");
        (result.unwrap_or_else(|panic| resume_unwind(panic)), report)
    })
}

/// Whether a thread's end is the end of a process that the trial started and will wait for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Leads {
    Server,
    Nothing,
}

/// Whether a thread is followed on, or let go as soon as it stands still.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Business {
    Ours,
    Foreign,
}

/// Stops that tell of a new thread or process.
const MADE: [i32; 3] = [Event::PTRACE_EVENT_FORK as i32, Event::PTRACE_EVENT_VFORK as i32, Event::PTRACE_EVENT_CLONE as i32];

/// One followed thread.
struct Tracee {
    role: Role,
    leads: Leads,
    business: Business,
    /// What its next return from the kernel says, in place of the truth.
    answer: Option<Errno>,
}

impl Tracee {
    /// What happened to it, if anything did. The end of a server is left for whoever started it: a process that is waited for by
    /// its tracer and by its parent in one program is reported once.
    fn look(&self, pid: i32) -> Option<WaitStatus> {
        let pid = Pid::from_raw(pid);
        if self.leads == Leads::Server {
            let flags = WaitPidFlag::WEXITED | WaitPidFlag::WSTOPPED | WaitPidFlag::WNOWAIT | WaitPidFlag::WNOHANG;
            match waitid(Id::Pid(pid), flags | WaitPidFlag::__WALL) {
                Ok(ended @ (WaitStatus::Exited(..) | WaitStatus::Signaled(..))) => return Some(ended),
                Ok(WaitStatus::StillAlive) => return None,
                Err(_) => return Some(WaitStatus::Exited(pid, 0)),
                Ok(_) => {}
            }
        }
        match waitpid(pid, Some(WaitPidFlag::__WALL | WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::StillAlive) => None,
            Ok(status) => Some(status),
            Err(_) => Some(WaitStatus::Exited(pid, 0)),
        }
    }
}

/// How long followed processes may take to stand still in the end.
const LETTING_GO_MAX: Duration = Duration::from_secs(10);

/// Looks without an event after which the tracer pauses, and for how long: a call follows the last one at once or much later.
const IDLE_LOOKS: u32 = 100;
const IDLE_PAUSE: Duration = Duration::from_micros(50);

struct Tracer<'a> {
    rule: &'a Rule<'a>,
    followed: HashMap<i32, Tracee>,
    report: Report,
    ending: bool,
}

/// The kernel carries these out whatever it answers.
const DONE_ANYWAY: [&str; 2] = ["close", "munmap"];

impl<'a> Tracer<'a> {
    fn new(rule: &'a Rule<'a>) -> Self {
        Self { rule, followed: HashMap::new(), report: Report::default(), ending: false }
    }

    fn run(mut self, ready: &Sender<()>, over: &AtomicBool) -> Report {
        let options = Options::PTRACE_O_TRACESYSGOOD
            | Options::PTRACE_O_TRACECLONE
            | Options::PTRACE_O_TRACEFORK
            | Options::PTRACE_O_TRACEVFORK
            | Options::PTRACE_O_TRACEEXEC;
        for &(pid, role) in self.rule.seeds {
            for thread in threads(pid) {
                if ptrace::seize(Pid::from_raw(thread), options).is_ok() {
                    let leads = if role == Role::Server && thread == pid { Leads::Server } else { Leads::Nothing };
                    self.followed.insert(thread, Tracee { role, leads, business: Business::Ours, answer: None });
                }
            }
        }
        assert!(!self.followed.is_empty(), "none of {:?} can be followed", self.rule.seeds);
        self.interrupt_all();
        let mut waiting = self.followed.len();
        let mut idle = 0;
        let mut deadline: Option<Instant> = None;
        loop {
            if over.load(Ordering::Acquire) && !self.ending {
                self.ending = true;
                deadline = Some(Instant::now() + LETTING_GO_MAX);
                self.interrupt_all();
            }
            if self.ending && self.followed.is_empty() {
                return self.report;
            }
            if deadline.is_some_and(|deadline| Instant::now() > deadline) {
                // What does not stop is dying, and may wait for a child that was followed and never told of. The kernel lets go of
                // all of them when this thread ends.
                return self.report;
            }
            let happened: Vec<WaitStatus> = self.followed.iter().filter_map(|(pid, tracee)| tracee.look(*pid)).collect();
            if happened.is_empty() {
                idle += 1;
                if idle > IDLE_LOOKS {
                    std::thread::sleep(IDLE_PAUSE);
                } else {
                    std::thread::yield_now();
                }
                continue;
            }
            idle = 0;
            for status in happened {
                self.happened(status);
                waiting = waiting.saturating_sub(1);
                if waiting == 0 {
                    // Told more than once; only the first is read.
                    ready.send(()).ok();
                }
            }
        }
    }

    fn interrupt_all(&mut self) {
        // One that has ended meanwhile has nothing to be interrupted at.
        self.followed.retain(|thread, _| ptrace::interrupt(Pid::from_raw(*thread)).is_ok());
    }

    fn happened(&mut self, status: WaitStatus) {
        match status {
            WaitStatus::Exited(pid, _) | WaitStatus::Signaled(pid, _, _) => {
                self.followed.remove(&pid.as_raw());
            }
            WaitStatus::PtraceSyscall(pid) => {
                self.call(pid);
                self.resume(pid, None);
            }
            WaitStatus::PtraceEvent(pid, _, event) if event == Event::PTRACE_EVENT_EXEC as i32 => {
                // From here on it is a program's own business.
                self.let_go(pid, None);
            }
            WaitStatus::PtraceEvent(pid, _, event) => {
                if MADE.contains(&event) {
                    self.made(pid);
                }
                self.resume(pid, None);
            }
            WaitStatus::Stopped(pid, signal) => self.resume(pid, Some(signal)),
            WaitStatus::Continued(_) | WaitStatus::StillAlive => {}
        }
    }

    fn resume(&mut self, pid: Pid, signal: Option<Signal>) {
        let foreign = self.followed.get(&pid.as_raw()).is_none_or(|tracee| tracee.business == Business::Foreign);
        if self.ending || foreign {
            return self.let_go(pid, signal);
        }
        // A tracee that was killed while it stood still is reported by its end.
        ptrace::syscall(pid, signal).ok();
    }

    fn let_go(&mut self, pid: Pid, signal: Option<Signal>) {
        self.followed.remove(&pid.as_raw());
        ptrace::detach(pid, signal).ok();
    }

    /// A followed thread has made another, which the kernel lets us follow from its first moment.
    fn made(&mut self, maker: Pid) {
        let Some(new) = ptrace::getevent(maker).ok().and_then(|pid| i32::try_from(pid).ok()) else { return };
        let Some(role) = self.followed.get(&maker.as_raw()).map(|tracee| tracee.role) else { return };
        let status = std::fs::read_to_string(format!("/proc/{new}/status")).unwrap_or_default();
        let thread =
            !status.lines().any(|line| line.strip_prefix("Tgid:").is_some_and(|group| group.trim() == new.to_string()));
        let (role, business) = match role {
            Role::Server if thread => (Role::Server, Business::Ours),
            Role::Launcher => (Role::Init, Business::Ours),
            Role::Init => (Role::Program, Business::Ours),
            Role::Server | Role::Program => (Role::Program, Business::Foreign),
        };
        self.followed.insert(new, Tracee { role, leads: Leads::Nothing, business, answer: None });
    }

    /// The entry into a call or the return from it.
    fn call(&mut self, pid: Pid) {
        let Ok(info) = ptrace::syscall_info(pid) else { return };
        let Some(tracee) = self.followed.get_mut(&pid.as_raw()) else { return };
        if info.op == nix::libc::PTRACE_SYSCALL_INFO_EXIT {
            if let Some(errno) = tracee.answer.take() {
                registers::answer(pid, errno);
            }
            return;
        }
        let role = tracee.role;
        if self.ending || !self.rule.counted.contains(&role) {
            return;
        }
        let Some(name) = registers::number(pid).and_then(|number| Arch::native()?.name(number)) else { return };
        if !(self.rule.counts)(role, name) {
            return;
        }
        self.report.calls += 1;
        if self.report.calls == self.rule.nth {
            self.strike(pid, role, name);
        }
    }

    fn strike(&mut self, pid: Pid, role: Role, name: &'static str) {
        match self.rule.fault {
            Fault::Nothing => {}
            Fault::Fail(errno) => {
                if !DONE_ANYWAY.contains(&name) {
                    registers::prevent(pid);
                }
                if let Some(tracee) = self.followed.get_mut(&pid.as_raw()) {
                    tracee.answer = Some(errno);
                }
                self.report.hit = Some((role, name));
            }
            Fault::Kill(victim) => {
                let seeds = self.rule.seeds.iter().copied();
                let made = self.followed.iter().map(|(pid, tracee)| (*pid, tracee.role));
                // A sandbox that does not exist yet can't be killed.
                if let Some((victim, _)) = seeds.chain(made).find(|(_, role)| *role == victim)
                    && kill(Pid::from_raw(victim), Signal::SIGKILL).is_ok()
                {
                    self.report.hit = Some((role, name));
                }
            }
        }
    }
}

/// All threads of a process.
fn threads(pid: i32) -> Vec<i32> {
    let entries = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

/// The only lines that know an architecture.
#[cfg(target_arch = "x86_64")]
mod registers {
    use super::{Errno, Pid, ptrace};

    /// The number of the call that the thread is about to enter.
    pub fn number(pid: Pid) -> Option<u32> {
        u32::try_from(ptrace::getregs(pid).ok()?.orig_rax).ok()
    }

    /// Makes the kernel pass over that call.
    pub fn prevent(pid: Pid) {
        if let Ok(mut registers) = ptrace::getregs(pid) {
            registers.orig_rax = u64::MAX;
            // A thread that was killed meanwhile enters nothing.
            ptrace::setregs(pid, registers).ok();
        }
    }

    /// Gives the thread that returns from a call this errno.
    pub fn answer(pid: Pid, errno: Errno) {
        if let Ok(mut registers) = ptrace::getregs(pid) {
            registers.rax = (-i64::from(errno as i32)).cast_unsigned();
            ptrace::setregs(pid, registers).ok();
        }
    }
}

/// Trials that come here need `Feature::X86`.
#[cfg(not(target_arch = "x86_64"))]
mod registers {
    use super::{Errno, Pid};

    pub fn number(_: Pid) -> Option<u32> {
        None
    }

    pub fn prevent(_: Pid) {
        unreachable!("no call is chosen here");
    }

    pub fn answer(_: Pid, _: Errno) {
        unreachable!("no call is chosen here");
    }
}
