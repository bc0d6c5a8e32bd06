//! Each step of a real plan fails in turn, in the real launcher and init: the failure is told with its step, no program runs,
//! and nothing is left.
//!
//! A failing step stands in the place of the true one: the steps before it have been done, those after it have not. Read
//! `bench` for how a plan is handed over.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use codebeaker::plan::messages::*;
use codebeaker::plan::{OutsideStep, Place, Plan, ProgramStep, Step};

use crate::bench::{Bench, Launch, Made};
use crate::support::residue::{descendants, lives, process};
use crate::support::{eventually, page};

/// The profile whose plan is made to fail.
const PROFILE: &str = "default";

pub fn trials() -> Vec<libtest_mimic::Trial> {
    page(
        "faults",
        &[
            ("each step of the launcher fails in turn and is told, and nothing is left", outside_steps),
            ("each step of init fails in turn and is told, and nothing is left", inside_steps),
            ("each step of a program fails in turn, its wall is named and the program does not run", program_steps),
            ("an init that is killed between any two messages leaves nothing", killed_inits),
            ("a process whose plan is another's, comes too late or never leaves nothing", without_a_plan),
        ],
    )
}

/// A whole plan and its groups.
fn plan(bench: &Bench) -> (Plan, Vec<PathBuf>) {
    let draft = bench.draft(PROFILE);
    (draft.compiled.plan, draft.cgroups)
}

/// A plan to count steps in.
fn steps(bench: &Bench) -> Plan {
    bench.draft_without_groups(PROFILE).plan
}

/// Fails unless neither process nor group nor mount is left.
fn expect_nothing(bench: &Bench, step: &str, cgroups: &[PathBuf], mounts: &BTreeSet<String>) {
    let launcher = bench.launcher.id().cast_signed();
    let clear = || descendants(launcher).is_empty() && cgroups.iter().all(|group| !group.exists());
    assert!(eventually(Duration::from_secs(2), clear), "after `{step}`: {:?} or a group is left", descendants(launcher));
    let new: Vec<String> = host_mounts().difference(mounts).cloned().collect();
    assert!(new.is_empty(), "after `{step}` the host has {new:?}");
}

/// The host's mounts, but for those of root file systems that somebody builds meanwhile.
fn host_mounts() -> BTreeSet<String> {
    let table = std::fs::read_to_string("/proc/self/mountinfo").expect("readable");
    table.lines().filter(|line| !line.contains("/mmdebstrap.")).map(str::to_owned).collect()
}

/// The steps of an unchanged plan all succeed: what every trial here stands on.
fn ready(bench: &mut Bench) -> (Made, Vec<PathBuf>) {
    let (plan, cgroups) = plan(bench);
    let made = bench.create(plan, &cgroups).expect("the unchanged plan can be carried out");
    assert!(matches!(made.says(), Some(InitMessage::Ready)), "the unchanged plan succeeds");
    (made, cgroups)
}

fn control(bench: &mut Bench, mounts: &BTreeSet<String>) {
    let (made, cgroups) = ready(bench);
    bench.end(&made);
    expect_nothing(bench, "the unchanged plan", &cgroups, mounts);
}

fn outside_steps() {
    let mut bench = Bench::new();
    let mounts = host_mounts();
    control(&mut bench, &mounts);
    let failing = OutsideStep::OwnCgroup { procs: "/proc/self/there-is-no-such-file".into(), uid: 0 };
    for index in 0..steps(&bench).outside.len() {
        let (mut plan, cgroups) = plan(&bench);
        let place = plan.outside[index].to_string();
        plan.outside[index] = failing.clone();
        let failure = bench.create(plan, &cgroups).err().expect("a failing step");
        assert_eq!((&failure.step, failure.wall.as_str()), (&failing.to_string(), "cgroup"), "in the place of `{place}`");
        assert_eq!(failure.errno, libc_enoent(), "{failure:?}");
        expect_nothing(&bench, &place, &cgroups, &mounts);
    }
    control(&mut bench, &mounts);
}

fn inside_steps() {
    let mut bench = Bench::new();
    let mounts = host_mounts();
    control(&mut bench, &mounts);
    let failing = Step::Attach { slot: u8::MAX, target: Place::Host("/".into()) };
    for index in 0..steps(&bench).inside.len() {
        let (mut plan, cgroups) = plan(&bench);
        let place = plan.inside[index].to_string();
        plan.inside[index] = failing.clone();
        let made = bench.create(plan, &cgroups).expect("the launcher's own steps succeed");
        match made.says() {
            Some(InitMessage::Failed(failure)) => {
                assert_eq!(failure.step, failing.to_string(), "in the place of `{place}`: {failure:?}");
                assert!(failure.wall == failing.wall() && failure.errno != 0, "{failure:?}");
            }
            other => panic!("in the place of `{place}`: {other:?}"),
        }
        assert!(made.says().is_none(), "init ends after a failed step");
        bench.expect_gone(made.tag);
        expect_nothing(&bench, &place, &cgroups, &mounts);
    }
    control(&mut bench, &mounts);
}

/// Has a sandbox run a shell that says so.
fn run(made: &Made) -> (ProgramEnd, String) {
    made.run(Launch { arguments: &["/bin/sh", "-c", "echo ran"], directory: "/", stdin: None })
}

fn program_steps() {
    let mut bench = Bench::new();
    let mounts = host_mounts();
    let (made, _) = ready(&mut bench);
    assert!(matches!(run(&made), (ProgramEnd::Ran { status: 0, .. }, said) if said == "ran\n"), "the control");
    bench.end(&made);
    let failing = ProgramStep::Rlimit { resource: 9999, name: "RLIMIT_NONE".into(), limit: 0 };
    for index in 0..steps(&bench).program.len() {
        let (mut plan, cgroups) = plan(&bench);
        let place = plan.program[index].to_string();
        plan.program[index] = failing.clone();
        let made = bench.create(plan, &cgroups).expect("the sandbox stands");
        assert!(matches!(made.says(), Some(InitMessage::Ready)), "the sandbox stands");
        let (end, said) = run(&made);
        let ProgramEnd::NotStarted(StartFailure { stage, errno }) = end else { panic!("in the place of `{place}`: {end:?}") };
        assert_eq!((stage, said.as_str()), (StartStage::Wall(failing.wall().into()), ""), "in the place of `{place}`");
        assert_ne!(errno, 0);
        bench.end(&made);
        expect_nothing(&bench, &place, &cgroups, &mounts);
    }
}

/// Kills inits at every moment of their way, some before they stand, some after.
fn killed_inits() {
    let mut bench = Bench::new();
    let mounts = host_mounts();
    let mut before_ready = 0;
    for round in 0..40_u64 {
        let (plan, cgroups) = plan(&bench);
        let made = bench.create(plan, &cgroups).expect("the launcher's own steps succeed");
        std::thread::sleep(Duration::from_micros(round * 250));
        bench.ask(&LauncherRequest::End(made.tag));
        match made.says() {
            Some(InitMessage::Ready) => assert!(made.says().is_none(), "it was killed"),
            None => before_ready += 1,
            other => panic!("{other:?}"),
        }
        bench.expect_gone(made.tag);
        expect_nothing(&bench, "a kill", &cgroups, &mounts);
    }
    assert!((1..40).contains(&before_ready), "kills before and after the walls stood: {before_ready} of 40 before");
    // The launcher itself: inits that stand or are on their way die with it.
    let (made, cgroups) = ready(&mut bench);
    let launcher = bench.launcher.id().cast_signed();
    let inits: Vec<_> = descendants(launcher).into_iter().filter_map(|init| process(init.identity.0)).collect();
    bench.launcher.kill().expect("the trial's own child");
    bench.launcher.wait().expect("the trial's own child");
    assert!(!inits.is_empty() && eventually(Duration::from_secs(1), || inits.iter().all(|init| !lives(init.identity))));
    assert!(made.says().is_none());
    // Nobody else cleans up for a launcher that was killed: in a server that is the keeper's part, here the trial's.
    for group in cgroups.iter().chain(&bench.groups()) {
        assert!(eventually(Duration::from_secs(2), || std::fs::remove_dir(group).is_ok()), "{} is empty", group.display());
    }
}

fn without_a_plan() {
    let mut bench = Bench::new();
    let mounts = host_mounts();
    control(&mut bench, &mounts);
    let begun = |bench: &mut Bench, plan: &Plan| {
        let tag = bench.begin(plan);
        let init = || descendants(bench.launcher.id().cast_signed()).first().map(|init| init.identity.0);
        assert!(eventually(Duration::from_secs(2), || init().is_some()), "the control: it is there before its plan");
        (tag, init().expect("just seen"))
    };

    let (mut plan_of_another, cgroups) = plan(&bench);
    let (tag, _) = begun(&mut bench, &plan_of_another);
    plan_of_another.namespaces &= !0x4000_0000; // CLONE_NEWNET
    let failure = bench.finish(tag, plan_of_another, &cgroups).err().expect("no namespace can be left out or added any more");
    assert_eq!(failure.wall, "namespaces", "{failure:?}");
    expect_nothing(&bench, "another plan", &cgroups, &mounts);

    let (late, cgroups) = plan(&bench);
    let (tag, init) = begun(&mut bench, &late);
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(init), nix::sys::signal::Signal::SIGKILL).expect("the launcher's child");
    assert!(eventually(Duration::from_secs(2), || process(init).is_none()), "it is reaped");
    let failure = bench.finish(tag, late, &cgroups).err().expect("there is nobody to give it to");
    assert_eq!((failure.wall.as_str(), failure.step.as_str()), ("init", "wait for its plan"));
    expect_nothing(&bench, "a plan that came too late", &cgroups, &mounts);

    let (never, cgroups) = plan(&bench);
    let (tag, _) = begun(&mut bench, &never);
    bench.ask(&LauncherRequest::End(tag));
    let removed = || cgroups.iter().all(|group| !group.exists() || std::fs::remove_dir(group).is_ok());
    assert!(eventually(Duration::from_secs(2), removed), "nobody is in them");
    expect_nothing(&bench, "a plan that never came", &cgroups, &mounts);

    let (never, cgroups) = plan(&bench);
    let (_, init) = begun(&mut bench, &never);
    let init = process(init).expect("it waits").identity;
    bench.launcher.kill().expect("the trial's own child");
    bench.launcher.wait().expect("the trial's own child");
    assert!(eventually(Duration::from_secs(1), || !lives(init)), "it goes with its launcher");
    for group in cgroups.iter().chain(&bench.groups()) {
        assert!(eventually(Duration::from_secs(2), || std::fs::remove_dir(group).is_ok()), "{} is empty", group.display());
    }
}

fn libc_enoent() -> i32 {
    nix::errno::Errno::ENOENT as i32
}
