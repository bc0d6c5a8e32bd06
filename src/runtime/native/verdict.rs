//! From how a program ended to what the client is told. Pure.
//!
//! Where several verdicts hold, the first of PROTOCOL's list counts: cancelled, timeout, out of memory, output limit, disk
//! full, pids limit, seccomp violation, signaled, nonzero exit.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::command::{ExecutionReport, Failure, FailureKind, Usage};
use crate::plan::messages::{ProgramEnd, StartFailure, StartStage};
use crate::sandbox::spec::Limits;
use crate::seccomp::Arch;
use crate::sys::error::describe;

use super::Word;
use super::program::{Driven, EndedBy};

/// What the group's counters said over the program's time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Kills for want of memory.
    pub oom_kills: u64,
    /// Forks that the pids limit refused.
    pub pids_refusals: u64,
}

/// The report (its streams still empty) and why it is no success.
pub fn of(
    driven: &Driven,
    counters: Counters,
    usage: Usage,
    limits: &Limits,
    timeout: Duration,
) -> (ExecutionReport, Option<Failure>) {
    match &driven.end {
        ProgramEnd::NotStarted(failure) => (ExecutionReport::default(), Some(not_started(failure, driven.ended_by))),
        ProgramEnd::Ran { status, cpu_us, quota_full, blocked, .. } => {
            let exit = Exit::of(*status);
            let failed = exit != Exit::Code(0);
            let blocked = call_names(blocked);
            let mut report = ExecutionReport {
                exit_code: Some(exit.code()),
                signal: exit.signal_name(),
                timed_out: driven.ended_by == EndedBy::Timeout && failed,
                oom_killed: counters.oom_kills > 0,
                usage: Usage { cpu_ms: Some(cpu_us / 1000), ..usage },
                ..ExecutionReport::default()
            };
            let facts = Facts { exit, ended_by: driven.ended_by, counters, quota_full: *quota_full, blocked: &blocked };
            let failure = failed.then(|| verdict(&facts, limits, timeout));
            report.blocked_syscalls = (!blocked.is_empty()).then_some(blocked);
            report.limit = failure.as_ref().and_then(|failure| limit_text(failure.kind, limits, timeout));
            (report, failure)
        }
    }
}

/// Takes a runtime's own word for a limit that it keeps inside its program: then the same verdict follows as for the sandbox's limit.
pub fn heed(driven: &mut Driven, counters: &mut Counters, word: impl FnOnce(i32) -> Option<Word>) {
    let ProgramEnd::Ran { status, .. } = &mut driven.end else { return };
    let (Exit::Signal(signal), EndedBy::Itself) = (Exit::of(*status), driven.ended_by) else { return };
    match word(signal) {
        None => return,
        Some(Word::TimeIsUp) => driven.ended_by = EndedBy::Timeout,
        Some(Word::MemoryRefused) => counters.oom_kills = counters.oom_kills.max(1),
    }
    // As every program that one of these limits ends.
    *status = libc::SIGKILL;
}

/// Names of system calls, sorted. Init is not believed: a number that is no call's is passed over, and there are no more names
/// than calls.
fn call_names(numbers: &[u32]) -> Vec<String> {
    let Some(arch) = Arch::native() else { return Vec::new() };
    let names: BTreeSet<&str> = numbers.iter().filter_map(|number| arch.name(*number)).collect();
    names.into_iter().map(str::to_owned).collect()
}

/// The verdict of a step before the program: a compiler that says no is `compile_error`; a limit that ended it stays that limit.
/// The program itself never ran, so it has no exit code.
pub fn of_compiler((report, failure): (ExecutionReport, Option<Failure>)) -> (ExecutionReport, Option<Failure>) {
    let Some(failure) = failure else { return (report, None) };
    let (kind, message) = match failure.kind {
        FailureKind::NonzeroExit => {
            (FailureKind::CompileError, "the code does not compile; stderr has the compiler's words".into())
        }
        FailureKind::Signaled | FailureKind::SeccompViolation => {
            (FailureKind::CompileError, failure.message.replacen("the program", "the compiler", 1))
        }
        FailureKind::ProgramNotFound => (FailureKind::ProgramNotFound, "the compiler is not in the image".into()),
        FailureKind::Cancelled => (FailureKind::Cancelled, failure.message),
        // What a limit or the sandbox says is as true of the compiler.
        FailureKind::Timeout
        | FailureKind::OutOfMemory
        | FailureKind::PidsLimit
        | FailureKind::DiskFull
        | FailureKind::OutputLimit
        | FailureKind::PermissionDenied
        | FailureKind::FileNotFound
        | FailureKind::AlreadyExists
        | FailureKind::NotARegularFile
        | FailureKind::PathInvalid
        | FailureKind::LimitExceeded
        | FailureKind::DirectoryNotEmpty
        | FailureKind::NotADirectory
        | FailureKind::PackageUnavailable
        | FailureKind::CompileError
        | FailureKind::SandboxGone
        | FailureKind::IoError => (failure.kind, failure.message.replacen("the program", "the compiler", 1)),
    };
    (ExecutionReport { exit_code: None, signal: None, ..report }, Some(Failure { kind, message }))
}

struct Facts<'a> {
    exit: Exit,
    ended_by: EndedBy,
    counters: Counters,
    quota_full: bool,
    blocked: &'a [String],
}

fn verdict(facts: &Facts<'_>, limits: &Limits, timeout: Duration) -> Failure {
    let failure = |kind, message: String| Failure { kind, message };
    let mib = |bytes: u64| bytes >> 20;
    match facts.ended_by {
        EndedBy::Cancel => return failure(FailureKind::Cancelled, "the execution was cancelled".into()),
        EndedBy::Timeout => {
            let message = format!("the program was ended after its time of {} s", timeout.as_secs_f64());
            return failure(FailureKind::Timeout, message);
        }
        EndedBy::Output | EndedBy::Itself => {}
    }
    if facts.counters.oom_kills > 0 {
        let message = format!("the program needed more than the {} MiB of memory it may have", mib(limits.memory_bytes.get()));
        return failure(FailureKind::OutOfMemory, message);
    }
    if facts.ended_by == EndedBy::Output {
        let message = format!("the program was ended after writing more than {} MiB", mib(limits.output_killed_bytes));
        return failure(FailureKind::OutputLimit, message);
    }
    if facts.quota_full {
        let message = format!("the session's disk is full: {} MiB or {} files", mib(limits.disk_bytes), limits.inodes);
        return failure(FailureKind::DiskFull, message);
    }
    if facts.counters.pids_refusals > 0 {
        let message = format!("the program needed more than the {} processes and threads it may have", limits.pids);
        return failure(FailureKind::PidsLimit, message);
    }
    match facts.exit {
        Exit::Signal(signal) if signal == libc::SIGSYS => {
            failure(FailureKind::SeccompViolation, "the program made a system call that its profile ends programs for".into())
        }
        Exit::Signal(signal) => {
            let message = format!("the program was ended by {}{}", signal_name(signal), refused(facts.blocked));
            failure(FailureKind::Signaled, message)
        }
        Exit::Code(code) => {
            let message = format!("the program ended with exit code {code}{}", refused(facts.blocked));
            failure(FailureKind::NonzeroExit, message)
        }
    }
}

/// Names in a sentence; the result has all of them.
const NAMED_MAX: usize = 5;

/// The end of a sentence: what may be why the program ended so. Whether it is, nobody but the program knows, so it is no verdict.
fn refused(blocked: &[String]) -> String {
    match blocked {
        [] => String::new(),
        all => {
            let more = if all.len() > NAMED_MAX { " and others" } else { "" };
            format!("; it made calls against its profile: {}{more}", all[..all.len().min(NAMED_MAX)].join(", "))
        }
    }
}

fn not_started(failed: &StartFailure, ended_by: EndedBy) -> Failure {
    let reason = describe(failed.errno);
    let (kind, message) = match (&failed.stage, failed.errno) {
        _ if ended_by == EndedBy::Cancel => (FailureKind::Cancelled, "the execution was cancelled".into()),
        (StartStage::Fork, libc::EAGAIN) => {
            (FailureKind::PidsLimit, "the program could not be started: the session has no process left".into())
        }
        (StartStage::Fork, libc::ENOMEM) => (FailureKind::OutOfMemory, format!("the program could not be started: {reason}")),
        (StartStage::Fork, _) => (FailureKind::IoError, format!("the program could not be started: {reason}")),
        (StartStage::Wall(wall), _) => {
            (FailureKind::IoError, format!("the program was not started: its wall `{wall}` could not be built: {reason}"))
        }
        (StartStage::Directory, libc::ENOENT) => (FailureKind::FileNotFound, "the working directory does not exist".into()),
        (StartStage::Directory, libc::EIO | libc::ENOMEM) => {
            (FailureKind::IoError, format!("the working directory could not be entered: {reason}"))
        }
        (StartStage::Directory, _) => (FailureKind::PathInvalid, format!("the working directory can't be entered: {reason}")),
        (StartStage::Execute, libc::ENOENT | libc::ENOTDIR) => {
            (FailureKind::ProgramNotFound, "there is no such program, or its interpreter is missing".into())
        }
        (StartStage::Execute, libc::EACCES | libc::EPERM) => {
            (FailureKind::PermissionDenied, format!("the program may not be executed: {reason}"))
        }
        (StartStage::Execute, libc::ENOEXEC) => {
            (FailureKind::PermissionDenied, "the file is not a program this machine can execute".into())
        }
        (StartStage::Execute, _) => (FailureKind::IoError, format!("the program could not be executed: {reason}")),
        // Nobody is told: whoever asked for one starts another (`program`).
        (StartStage::Prestarted, _) => (FailureKind::IoError, "no program had been started ahead".into()),
        // Nobody is told: the source's own failure is the answer (`code`).
        (StartStage::Source, _) => (FailureKind::IoError, "the program's source could not be written".into()),
    };
    Failure { kind, message }
}

fn limit_text(kind: FailureKind, limits: &Limits, timeout: Duration) -> Option<String> {
    match kind {
        FailureKind::Timeout => Some(format!("wall time {} s", timeout.as_secs_f64())),
        FailureKind::OutOfMemory => Some(format!("memory {} MiB", limits.memory_bytes.get() >> 20)),
        FailureKind::OutputLimit => Some(format!("output {} MiB", limits.output_killed_bytes >> 20)),
        FailureKind::DiskFull => Some(format!("disk {} MiB, {} files", limits.disk_bytes >> 20, limits.inodes)),
        FailureKind::PidsLimit => Some(format!("pids {}", limits.pids)),
        FailureKind::NonzeroExit
        | FailureKind::Signaled
        | FailureKind::SeccompViolation
        | FailureKind::Cancelled
        | FailureKind::ProgramNotFound
        | FailureKind::PermissionDenied
        | FailureKind::FileNotFound
        | FailureKind::AlreadyExists
        | FailureKind::NotARegularFile
        | FailureKind::PathInvalid
        | FailureKind::LimitExceeded
        | FailureKind::DirectoryNotEmpty
        | FailureKind::NotADirectory
        | FailureKind::PackageUnavailable
        | FailureKind::CompileError
        | FailureKind::SandboxGone
        | FailureKind::IoError => None,
    }
}

/// A wait status.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Exit {
    Code(i32),
    Signal(i32),
}

impl Exit {
    fn of(status: i32) -> Self {
        if libc::WIFSIGNALED(status) { Self::Signal(libc::WTERMSIG(status)) } else { Self::Code(libc::WEXITSTATUS(status)) }
    }

    fn code(self) -> i32 {
        match self {
            Self::Code(code) => code,
            Self::Signal(signal) => 128 + signal,
        }
    }

    fn signal_name(self) -> Option<String> {
        match self {
            Self::Code(_) => None,
            Self::Signal(signal) => Some(signal_name(signal)),
        }
    }
}

/// `SIGKILL` for 9; a number without a name reads `SIGRTMIN+n` or `signal n`.
pub fn signal_name(signal: i32) -> String {
    match nix::sys::signal::Signal::try_from(signal) {
        Ok(signal) => signal.as_str().to_owned(),
        Err(_) if (34..=64).contains(&signal) => format!("SIGRTMIN+{}", signal - 34),
        Err(_) => format!("signal {signal}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::messages::Born;
    use std::num::NonZeroU64;

    fn limits() -> Limits {
        Limits {
            memory_bytes: NonZeroU64::new(512 << 20).expect("not zero"),
            cpu_shares: 1024,
            cpu_cores: None,
            pids: 256,
            disk_bytes: 256 << 20,
            inodes: 65536,
            output_kept_bytes: 4 << 20,
            output_killed_bytes: 64 << 20,
            timeout: Duration::from_secs(60),
            timeout_max: Duration::from_secs(300),
            open_files: 4096,
        }
    }

    fn driven(end: ProgramEnd, ended_by: EndedBy) -> Driven {
        Driven { end, ended_by, held: super::super::streams::Held::default() }
    }

    fn judge(status: i32, ended_by: EndedBy, counters: Counters, quota_full: bool) -> (ExecutionReport, Option<FailureKind>) {
        let driven =
            driven(ProgramEnd::Ran { status, cpu_us: 1500, quota_full, blocked: Vec::new(), born: Born::Fresh }, ended_by);
        let (report, failure) = of(&driven, counters, Usage::default(), &limits(), Duration::from_secs(60));
        (report, failure.map(|failure| failure.kind))
    }

    const KILLED: i32 = libc::SIGKILL;
    const EXIT_1: i32 = 1 << 8;

    #[test]
    fn a_clean_exit_is_a_success_whatever_the_counters_say() {
        let (report, failure) = judge(0, EndedBy::Itself, Counters { oom_kills: 1, pids_refusals: 1 }, true);
        assert_eq!((report.exit_code, failure, report.oom_killed), (Some(0), None, true));
    }

    #[test]
    fn the_first_verdict_of_the_list_counts() {
        let all = Counters { oom_kills: 1, pids_refusals: 1 };
        let pids = Counters { pids_refusals: 1, ..Counters::default() };
        assert_eq!(judge(KILLED, EndedBy::Cancel, all, true).1, Some(FailureKind::Cancelled));
        assert_eq!(judge(KILLED, EndedBy::Timeout, all, true).1, Some(FailureKind::Timeout));
        assert_eq!(judge(KILLED, EndedBy::Output, all, true).1, Some(FailureKind::OutOfMemory));
        assert_eq!(judge(KILLED, EndedBy::Output, pids, true).1, Some(FailureKind::OutputLimit));
        assert_eq!(judge(EXIT_1, EndedBy::Itself, pids, true).1, Some(FailureKind::DiskFull));
        assert_eq!(judge(EXIT_1, EndedBy::Itself, pids, false).1, Some(FailureKind::PidsLimit));
        assert_eq!(judge(libc::SIGSYS, EndedBy::Itself, Counters::default(), false).1, Some(FailureKind::SeccompViolation));
        assert_eq!(judge(KILLED, EndedBy::Itself, Counters::default(), false).1, Some(FailureKind::Signaled));
        assert_eq!(judge(EXIT_1, EndedBy::Itself, Counters::default(), false).1, Some(FailureKind::NonzeroExit));
    }

    #[test]
    fn a_compiler_s_no_is_a_verdict_of_its_own_and_a_limit_s_stays_what_it_is() {
        let kind = |status, ended_by, counters| {
            let driven = driven(
                ProgramEnd::Ran { status, cpu_us: 0, quota_full: false, blocked: Vec::new(), born: Born::Fresh },
                ended_by,
            );
            let (report, failure) = of_compiler(of(&driven, counters, Usage::default(), &limits(), Duration::from_secs(60)));
            (report.exit_code, failure.map(|failure| failure.kind))
        };
        let none = Counters::default();
        assert_eq!(kind(EXIT_1, EndedBy::Itself, none), (None, Some(FailureKind::CompileError)));
        assert_eq!(kind(libc::SIGSEGV, EndedBy::Itself, none), (None, Some(FailureKind::CompileError)));
        assert_eq!(kind(KILLED, EndedBy::Timeout, none), (None, Some(FailureKind::Timeout)));
        let killed = Counters { oom_kills: 1, ..none };
        assert_eq!(kind(KILLED, EndedBy::Itself, killed), (None, Some(FailureKind::OutOfMemory)));
        assert_eq!(kind(0, EndedBy::Itself, none), (Some(0), None));
    }

    #[test]
    fn a_limit_that_the_runtime_keeps_itself_gives_the_verdict_of_the_sandbox_s() {
        let heeded = |status, word| {
            let mut driven = driven(
                ProgramEnd::Ran { status, cpu_us: 0, quota_full: false, blocked: Vec::new(), born: Born::Fresh },
                EndedBy::Itself,
            );
            let mut counters = Counters::default();
            heed(&mut driven, &mut counters, |signal| (signal == libc::SIGXCPU).then_some(word).flatten());
            let (report, failure) = of(&driven, counters, Usage::default(), &limits(), Duration::from_secs(1));
            (failure.map(|failure| failure.kind), report.exit_code, report.timed_out, report.oom_killed)
        };
        let time = Some(Word::TimeIsUp);
        assert_eq!(heeded(libc::SIGXCPU, time), (Some(FailureKind::Timeout), Some(137), true, false));
        let memory = Some(Word::MemoryRefused);
        assert_eq!(heeded(libc::SIGXCPU, memory), (Some(FailureKind::OutOfMemory), Some(137), false, true));
        assert_eq!(heeded(libc::SIGXCPU, None), (Some(FailureKind::Signaled), Some(152), false, false), "no word, a signal");
        assert_eq!(heeded(EXIT_1, time), (Some(FailureKind::NonzeroExit), Some(1), false, false), "an exit code is no word");
    }

    #[test]
    fn a_signal_has_its_name_and_the_shell_s_exit_code() {
        let (report, _) = judge(libc::SIGSEGV, EndedBy::Itself, Counters::default(), false);
        assert_eq!((report.exit_code, report.signal.as_deref()), (Some(139), Some("SIGSEGV")));
    }

    #[test]
    fn refused_calls_are_named_once_and_sorted_and_change_no_verdict() {
        let arch = Arch::native().expect("an architecture that sandboxes are built on");
        let number = |name| arch.number(name).expect("it exists");
        let told = vec![number("unshare"), 100_000, number("mount"), number("unshare")];
        let end = |status, blocked| {
            let end = ProgramEnd::Ran { status, cpu_us: 0, quota_full: false, blocked, born: Born::Fresh };
            let driven = driven(end, EndedBy::Itself);
            of(&driven, Counters::default(), Usage::default(), &limits(), Duration::from_secs(1))
        };
        let names = Some(vec!["mount".to_owned(), "unshare".to_owned()]);
        let (report, failure) = end(3 << 8, told.clone());
        let failure = failure.expect("it failed");
        assert_eq!((failure.kind, &report.blocked_syscalls), (FailureKind::NonzeroExit, &names));
        assert_eq!(failure.message, "the program ended with exit code 3; it made calls against its profile: mount, unshare");
        let (report, failure) = end(0, told);
        assert_eq!((report.blocked_syscalls, failure), (names, None), "a success stays one");
        let (report, failure) = end(3 << 8, vec![100_000]);
        assert_eq!(
            (report.blocked_syscalls, failure.map(|failure| failure.message)),
            (None, Some("the program ended with exit code 3".into()))
        );
    }

    #[test]
    fn a_program_that_is_not_there_and_a_full_process_table_are_told_apart() {
        let kind = |stage, errno| {
            let driven = driven(ProgramEnd::NotStarted(StartFailure { stage, errno }), EndedBy::Itself);
            of(&driven, Counters::default(), Usage::default(), &limits(), Duration::from_secs(1)).1.map(|failure| failure.kind)
        };
        assert_eq!(kind(StartStage::Execute, libc::ENOENT), Some(FailureKind::ProgramNotFound));
        assert_eq!(kind(StartStage::Execute, libc::EACCES), Some(FailureKind::PermissionDenied));
        assert_eq!(kind(StartStage::Fork, libc::EAGAIN), Some(FailureKind::PidsLimit));
        assert_eq!(kind(StartStage::Directory, libc::ENOENT), Some(FailureKind::FileNotFound));
    }
}
