//! The server, the launcher or an init is killed before every n-th step of a deed, whoever takes the step: no wrong answer is
//! given, and nothing is left, at once or after the next start.
//!
//! A step is a system call by which one of the processes changes something that another one can see. Read `points` for which of
//! them a run tries.

use std::collections::BTreeMap;

use super::points::points;
use super::tracer::{Fault, Report, Role, Rule, trace};
use super::world::{Answer, Deed, World, clear, close, perform, session as new_session};
use crate::support::{Feature, host, page};

pub(super) fn trials() -> Vec<libtest_mimic::Trial> {
    page(
        "faults",
        &[
            ("the server is killed before every n-th step of create, execute, write and close", server),
            ("the launcher is killed before every n-th step of create, execute, write and close", launcher),
            ("an init is killed before every n-th step of create, execute, write and close", init),
            ("any of them is killed before every n-th step while the next sandbox begins", ahead),
        ],
    )
}

/// Who takes steps.
const ACTORS: [Role; 4] = [Role::Server, Role::Launcher, Role::Init, Role::Program];

/// Between two of these nothing changes for anybody else: a kill before one is a kill before the next step.
const UNSEEN: [&str; 34] = [
    "brk",
    "mmap",
    "munmap",
    "mprotect",
    "mremap",
    "madvise",
    "futex",
    "sched_yield",
    "sched_getaffinity",
    "clock_gettime",
    "clock_nanosleep",
    "getrandom",
    "gettid",
    "getpid",
    "getuid",
    "geteuid",
    "getgid",
    "rt_sigaction",
    "rt_sigprocmask",
    "rt_sigreturn",
    "sigaltstack",
    "epoll_wait",
    "epoll_pwait",
    "poll",
    "fstat",
    "newfstatat",
    "statx",
    "lseek",
    "fcntl",
    "readlink",
    "getdents64",
    "set_robust_list",
    "rseq",
    "capget",
];

fn counts(_: Role, name: &str) -> bool {
    !UNSEEN.contains(&name)
}

fn server() {
    // Each kill costs a start of the server.
    sweep(World::new, &Deed::ALL, Role::Server, 8);
}

fn launcher() {
    sweep(World::new, &Deed::ALL, Role::Launcher, 12);
}

fn init() {
    sweep(World::new, &Deed::ALL, Role::Init, 12);
}

fn ahead() {
    // After each point what has begun waits for two seconds.
    for victim in [Role::Server, Role::Launcher, Role::Init] {
        sweep(World::ahead, &[Deed::Create, Deed::Close], victim, 4);
    }
}

fn sweep(world: fn() -> World, deeds: &[Deed], victim: Role, default: usize) {
    host().need(Feature::Root).need(Feature::X86);
    let mut world = world();
    for &deed in deeds {
        let (report, answer);
        (world, report, answer) = point(world, deed, victim, 0, Fault::Nothing);
        assert!(matches!(answer, Answer::Right(_)), "the control: {deed:?} without a kill: {answer:?}");
        let mut said: BTreeMap<String, usize> = BTreeMap::new();
        for nth in points(report.calls, default) {
            let (report, answer);
            (world, report, answer) = point(world, deed, victim, nth, Fault::Kill(victim));
            let word = match (report.hit, answer) {
                (None, Answer::Right(_)) => "nobody to kill".to_owned(),
                (Some(_), Answer::Right(_)) => "right".to_owned(),
                (_, Answer::Typed(kind)) => kind,
                (Some(_), Answer::Lost) if victim == Role::Server => "lost".to_owned(),
                (hit, Answer::Lost) => panic!("{deed:?} was not answered, {victim:?} killed at {hit:?}"),
                (hit, Answer::Wrong(text)) => panic!("{deed:?}, {victim:?} killed at {hit:?}: {text}"),
            };
            *said.entry(word).or_default() += 1;
        }
        println!("{deed:?}, {} steps, {victim:?} killed: {said:?}", report.calls);
        let killed: usize = said.iter().filter(|(word, _)| *word != "nobody to kill").map(|(_, count)| count).sum();
        assert!(killed > 0, "{said:?}");
    }
    world.end();
}

/// One deed with one kill; afterwards nothing is left of it.
fn point(world: World, deed: Deed, victim: Role, nth: usize, fault: Fault) -> (World, Report, Answer) {
    let mut client = world.client();
    let mut session = (deed != Deed::Create).then(|| new_session(&mut client));
    if deed == Deed::Create {
        world.begin_next(&mut client);
    }
    world.server.observe();
    let seeds = world.roles();
    let rule = Rule { seeds: &seeds, counted: &ACTORS, counts, nth, fault };
    let (answer, report) = trace(&rule, || perform(deed, &mut client, session.as_ref()));
    let after = format!("{deed:?} with {victim:?} killed before step {nth} ({:?})", report.hit);
    if victim == Role::Server && report.hit.is_some() {
        return (world.restarted(&after), report, answer);
    }
    if let (Deed::Create, Answer::Right(created)) = (deed, &answer) {
        session = Some(created.clone());
    }
    match &session {
        Some(session) if deed == Deed::Create => close(&mut client, session),
        Some(session) => clear(&mut client, session, &after),
        None => {}
    }
    world.expect_quiet(&after);
    (world, report, answer)
}
