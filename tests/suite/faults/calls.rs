//! Every n-th system call of a deed fails: the deed is done as without the fault or refused with a typed error, nothing is
//! left, and the next one works.
//!
//! Read `points` for which of them a run tries.

use std::collections::BTreeMap;

use nix::errno::Errno;

use super::points::points;
use super::tracer::{Fault, Report, Role, Rule, trace};
use super::world::{Answer, Deed, World, clear, close, perform, session as new_session};
use crate::support::{Feature, host, page};

pub(super) fn trials() -> Vec<libtest_mimic::Trial> {
    page(
        "faults",
        &[
            ("every n-th system call of launcher and init fails while a session is made", making),
            ("every n-th system call of init and program fails while a command is carried out", commands),
            ("every n-th system call of launcher and init fails while a session is closed", closing),
            ("every n-th system call of the server that touches the host fails", serving),
        ],
    )
}

/// Points of each sweep unless the run says otherwise.
const POINTS: usize = 30;

/// These can't fail, or are the rest of a signal or of the process.
const INFALLIBLE: [&str; 4] = ["exit", "exit_group", "rt_sigreturn", "restart_syscall"];

/// What the server does to the host and to its other processes; the rest is between the kernel and its threads.
const OF_THE_HOST: [&str; 32] = [
    "openat",
    "open",
    "mkdir",
    "mkdirat",
    "rmdir",
    "unlink",
    "unlinkat",
    "rename",
    "renameat",
    "read",
    "pread64",
    "pwrite64",
    "socketpair",
    "sendmsg",
    "recvmsg",
    "fcntl",
    "ioctl",
    "epoll_ctl",
    "pipe2",
    "dup",
    "dup3",
    "statx",
    "fstat",
    "newfstatat",
    "getdents64",
    "readlink",
    "memfd_create",
    "ftruncate",
    "flock",
    "fchown",
    "lseek",
    "shutdown",
];

fn counts(role: Role, name: &str) -> bool {
    match role {
        Role::Server => OF_THE_HOST.contains(&name),
        Role::Launcher | Role::Init | Role::Program => !INFALLIBLE.contains(&name),
    }
}

fn making() {
    sweep(&[(Deed::Create, &[Role::Launcher]), (Deed::Create, &[Role::Init])]);
}

fn commands() {
    sweep(&[(Deed::Execute, &[Role::Init, Role::Program]), (Deed::WriteFile, &[Role::Init])]);
}

fn closing() {
    sweep(&[(Deed::Close, &[Role::Launcher, Role::Init])]);
}

fn serving() {
    sweep(&Deed::ALL.map(|deed| (deed, [Role::Server].as_slice())));
}

fn sweep(pairs: &[(Deed, &'static [Role])]) {
    host().need(Feature::Root).need(Feature::X86);
    let mut world = World::new();
    let before = world.descriptors();
    for &(deed, counted) in pairs {
        let (report, answer);
        (world, report, answer) = point(world, deed, counted, 0, Fault::Nothing);
        assert!(matches!(answer, Answer::Right(_)), "the control: {deed:?} without a fault: {answer:?}");
        assert!(report.calls > 0, "the control: {counted:?} do something for {deed:?}");
        let mut said: BTreeMap<String, usize> = BTreeMap::new();
        for nth in points(report.calls, POINTS) {
            let (report, answer);
            (world, report, answer) = point(world, deed, counted, nth, Fault::Fail(Errno::EIO));
            let word = match (report.hit, answer) {
                (None, Answer::Right(_)) => "not reached".to_owned(),
                (Some(_), Answer::Right(_)) => "right".to_owned(),
                (Some(_), Answer::Typed(kind)) => kind,
                (None, Answer::Typed(kind)) => panic!("{deed:?} without a fault: {kind}"),
                (hit, Answer::Lost) => panic!("{deed:?} was not answered, {nth} failed: {hit:?}"),
                (hit, Answer::Wrong(text)) => panic!("{deed:?}, {nth} failed: {hit:?}: {text}"),
            };
            *said.entry(word).or_default() += 1;
        }
        println!("{deed:?}, {} calls of {counted:?}: {said:?}", report.calls);
        let missed = said.get("not reached").copied().unwrap_or(0);
        assert!(missed * 4 <= said.values().sum::<usize>() * 3, "the calls come again as a rule: {said:?}");
    }
    let back = || world.descriptors().0 <= before.0 && world.descriptors().1 <= before.1;
    let waited = crate::support::eventually(std::time::Duration::from_secs(10), back);
    assert!(waited, "{before:?} descriptors of server and launcher before, {:?} after", world.descriptors());
    world.end();
}

/// One deed with one fault; afterwards nothing is left of it.
fn point(world: World, deed: Deed, counted: &[Role], nth: usize, fault: Fault) -> (World, Report, Answer) {
    let mut client = world.client();
    let mut session = (deed != Deed::Create).then(|| new_session(&mut client));
    world.server.observe();
    let seeds = world.seeds(deed, counted);
    let rule = Rule { seeds: &seeds, counted, counts, nth, fault };
    let (answer, report) = trace(&rule, || perform(deed, &mut client, session.as_ref()));
    let after = format!("{deed:?} with call {nth} of {counted:?} ({:?}) failing", report.hit);
    if let Answer::Right(value) = &answer {
        if deed == Deed::Create {
            session = Some(value.clone());
        }
        if let Some(session) = &session {
            world.expect_done(deed, &mut client, session, &after);
        }
    }
    if let Some(session) = session {
        if deed == Deed::Create { close(&mut client, &session) } else { clear(&mut client, &session, &after) }
    }
    world.expect_quiet(&after);
    (world, report, answer)
}
