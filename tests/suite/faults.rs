//! Each step of a real plan fails in turn, in the real launcher and init: the failure is told with its step, no program runs,
//! and nothing is left.
//!
//! This page is the launcher's client itself, so it uses the plan's types, which no client of the server ever sees. A failing
//! step stands in the place of the true one: the steps before it have been done, those after it have not.

use std::collections::BTreeSet;
use std::fs::File;
use std::num::NonZeroU64;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::process::Child;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use codebeaker::id::EnvironmentId;
use codebeaker::image::Store;
use codebeaker::plan::messages::*;
use codebeaker::plan::{OutsideStep, Place, Plan, ProgramStep, Step, StepFailure};
use codebeaker::sandbox::cgroups::{CgroupTree, SessionCgroup};
use codebeaker::sandbox::compile::{Ids, Kernel, Placement, Root, Spec, compile};
use codebeaker::sandbox::host::HostFacts;
use codebeaker::sandbox::profile::Profiles;
use codebeaker::sandbox::spec::Limits;
use codebeaker::sandbox::state::ServerId;
use codebeaker::sandbox::uid_ranges::{UidRange, UidRanges};
use codebeaker::sys::channel::{receive, send};
use codebeaker::sys::socket::{Wait, pair};

use crate::support::residue::{descendants, lives, process};
use crate::support::{Feature, eventually, fixture_user, host, page};

pub fn trials() -> Vec<libtest_mimic::Trial> {
    page(
        "faults",
        &[
            ("each step of the launcher fails in turn and is told, and nothing is left", outside_steps),
            ("each step of init fails in turn and is told, and nothing is left", inside_steps),
            ("each step of a program fails in turn, its wall is named and the program does not run", program_steps),
            ("an init that is killed between any two messages leaves nothing", killed_inits),
        ],
    )
}

/// Number of benches so far: each has groups of its own.
static BENCHES: AtomicU32 = AtomicU32::new(0);

/// What plans are made of, and a launcher to carry them out.
struct Bench {
    launcher: Child,
    socket: OwnedFd,
    host: HostFacts,
    cgroups: Option<CgroupTree>,
    range: UidRange,
    store: Store,
    _directory: tempfile::TempDir,
    next: Tag,
}

/// A sandbox that the launcher said it made.
struct Made {
    tag: Tag,
    control: OwnedFd,
}

impl Bench {
    fn new() -> Self {
        host().need(Feature::Root);
        let facts = HostFacts::probe();
        // Where v2 carries the limits, opening a tree would move this very process.
        let movable = facts.cgroup.v2_controllers().is_empty();
        let number = BENCHES.fetch_add(1, Ordering::Relaxed);
        let name = format!("{}-faults-{number}", ServerId::current().expect("/proc is mounted").as_str());
        let cgroups = movable.then(|| CgroupTree::open(&facts.cgroup, &name).expect("root may make groups")).flatten();
        let directory = fixture_user::directory_of(None);
        let store = Store::open(directory.path()).expect("an own directory");
        let range = UidRanges::new().and_then(|ranges| ranges.take()).expect("a free range");
        let (socket, theirs) = pair().expect("a socket pair");
        let binary = File::open(env!("CARGO_BIN_EXE_codebeaker")).expect("the binary is built");
        let launcher = codebeaker::sys::process::spawn_launcher(binary.as_fd(), theirs.as_fd(), SERVER_SOCKET);
        let launcher = launcher.expect("the binary can be executed");
        let bench = Self { launcher, socket, host: facts, cgroups, range, store, _directory: directory, next: 1 };
        if let Some(cgroups) = &bench.cgroups {
            bench.ask(&LauncherRequest::RemoveAtEnd(texts(&cgroups.directories())));
        }
        bench
    }

    /// A plan of the default profile, placed in groups of its own where there are any.
    fn plan(&self) -> (Plan, Vec<PathBuf>) {
        let profile = Profiles::load(None).expect("embedded").get("default").expect("embedded");
        let limits = limits();
        let image = self.store.resolve("host").expect("always there");
        let mut cgroup = self.cgroups.as_ref().map(|tree| tree.create(&EnvironmentId::random(), &limits).expect("groups"));
        let kernel = self.host.kernel;
        let spec = Spec {
            profile: &profile,
            limits: &limits,
            root: Root {
                lower: image.lower.clone(),
                binds: image.binds.iter().map(|bind| (bind.source.clone(), bind.target.clone())).collect(),
                packages: Some("/usr/share".into()),
            },
            ids: Ids::Range { start: self.range.start, count: self.range.count },
            cgroup: cgroup.as_ref().map(placement).unwrap_or_default(),
            kernel: Kernel {
                time_namespace: self.host.time_namespace,
                landlock_abi: self.host.landlock_abi,
                version: (kernel.0, kernel.1),
            },
        };
        let plan = compile(&spec).plan;
        let directories = cgroup.as_mut().map(|cgroup| {
            cgroup.hand_over();
            cgroup.directories.clone()
        });
        (plan, directories.unwrap_or_default())
    }

    fn ask(&self, request: &LauncherRequest) {
        send(self.socket.as_fd(), request, &[]).expect("the launcher lives");
    }

    fn hear(&self) -> (LauncherMessage, Vec<OwnedFd>) {
        let received = receive(self.socket.as_fd(), Wait::Yes).expect("the launcher lives");
        (received.message, received.descriptors)
    }

    fn create(&mut self, plan: Plan, cgroups: &[PathBuf]) -> Result<Made, StepFailure> {
        let tag = self.next;
        self.next += 1;
        self.ask(&LauncherRequest::Create(Box::new(CreateRequest { sandbox: tag, plan, cgroups: texts(cgroups) })));
        match self.hear() {
            (LauncherMessage::Created(of), mut sockets) if of == tag => {
                Ok(Made { tag, control: sockets.pop().expect("the control socket comes along") })
            }
            (LauncherMessage::Refused(of, failure), _) if of == tag => Err(failure),
            (other, _) => panic!("an answer to {tag} was due: {other:?}"),
        }
    }

    fn expect_gone(&self, tag: Tag) {
        match self.hear() {
            (LauncherMessage::Gone { sandbox, .. }, _) if sandbox == tag => {}
            (other, _) => panic!("the end of {tag} was due: {other:?}"),
        }
    }

    /// Fails unless neither process nor group nor mount is left.
    fn expect_nothing(&self, step: &str, cgroups: &[PathBuf], mounts: &BTreeSet<String>) {
        let launcher = self.launcher.id().cast_signed();
        let clear = || descendants(launcher).is_empty() && cgroups.iter().all(|group| !group.exists());
        assert!(eventually(Duration::from_secs(2), clear), "after `{step}`: {:?} or a group is left", descendants(launcher));
        let new: Vec<String> = host_mounts().difference(mounts).cloned().collect();
        assert!(new.is_empty(), "after `{step}` the host has {new:?}");
    }

    /// The launcher's end: it goes when its socket closes, and takes its groups along.
    fn end(self) {
        let Self { mut launcher, socket, cgroups, .. } = self;
        drop(socket);
        assert!(eventually(Duration::from_secs(5), || !matches!(launcher.try_wait(), Ok(None))), "the launcher ends");
        let left = cgroups.map(|tree| tree.directories()).unwrap_or_default();
        assert!(left.iter().all(|group| !group.exists()), "the launcher removes the groups: {left:?}");
    }
}

fn texts(paths: &[PathBuf]) -> Vec<String> {
    paths.iter().map(|path| path.to_string_lossy().into_owned()).collect()
}

fn placement(cgroup: &SessionCgroup) -> Placement {
    Placement { join: cgroup.join.clone(), born_in: cgroup.born_in.clone(), programs_born_in: cgroup.run.clone() }
}

fn limits() -> Limits {
    Limits {
        memory_bytes: NonZeroU64::new(64 << 20).expect("not zero"),
        cpu_shares: 1024,
        cpu_cores: None,
        pids: 32,
        disk_bytes: 32 << 20,
        inodes: 1024,
        output_kept_bytes: 1 << 20,
        output_killed_bytes: 2 << 20,
        timeout: Duration::from_secs(10),
        timeout_max: Duration::from_secs(10),
        open_files: 256,
    }
}

fn host_mounts() -> BTreeSet<String> {
    std::fs::read_to_string("/proc/self/mountinfo").expect("readable").lines().map(str::to_owned).collect()
}

fn init_says(made: &Made) -> Option<InitMessage> {
    receive(made.control.as_fd(), Wait::Yes).ok().map(|received| received.message)
}

/// The steps of an unchanged plan all succeed: what every trial here stands on.
fn ready(bench: &mut Bench) -> (Made, Vec<PathBuf>) {
    let (plan, cgroups) = bench.plan();
    let made = bench.create(plan, &cgroups).expect("the unchanged plan can be carried out");
    assert!(matches!(init_says(&made), Some(InitMessage::Ready)), "the unchanged plan succeeds");
    (made, cgroups)
}

fn control(bench: &mut Bench, mounts: &BTreeSet<String>) {
    let (made, cgroups) = ready(bench);
    bench.ask(&LauncherRequest::End(made.tag));
    bench.expect_gone(made.tag);
    bench.expect_nothing("the unchanged plan", &cgroups, mounts);
}

fn outside_steps() {
    let mut bench = Bench::new();
    let mounts = host_mounts();
    control(&mut bench, &mounts);
    let failing = OutsideStep::JoinCgroup { procs: "/proc/self/there-is-no-such-file".into() };
    for index in 0..bench.plan_without_groups().outside.len() {
        let (mut plan, cgroups) = bench.plan();
        let place = plan.outside[index].to_string();
        plan.outside[index] = failing.clone();
        let failure = bench.create(plan, &cgroups).err().expect("a failing step");
        assert_eq!((&failure.step, failure.wall.as_str()), (&failing.to_string(), "cgroup"), "in the place of `{place}`");
        assert_eq!(failure.errno, libc_enoent(), "{failure:?}");
        bench.expect_nothing(&place, &cgroups, &mounts);
    }
    control(&mut bench, &mounts);
    bench.end();
}

fn inside_steps() {
    let mut bench = Bench::new();
    let mounts = host_mounts();
    control(&mut bench, &mounts);
    let failing = Step::Attach { slot: u8::MAX, target: Place::Host("/".into()) };
    for index in 0..bench.plan_without_groups().inside.len() {
        let (mut plan, cgroups) = bench.plan();
        let place = plan.inside[index].to_string();
        plan.inside[index] = failing.clone();
        let made = bench.create(plan, &cgroups).expect("the launcher's own steps succeed");
        match init_says(&made) {
            Some(InitMessage::Failed(failure)) => {
                assert_eq!(failure.step, failing.to_string(), "in the place of `{place}`: {failure:?}");
                assert!(failure.wall == failing.wall() && failure.errno != 0, "{failure:?}");
            }
            other => panic!("in the place of `{place}`: {other:?}"),
        }
        assert!(init_says(&made).is_none(), "init ends after a failed step");
        bench.expect_gone(made.tag);
        bench.expect_nothing(&place, &cgroups, &mounts);
    }
    control(&mut bench, &mounts);
    bench.end();
}

/// Has a sandbox run `sh -c 'echo ran >&1'`; how it ended and what it wrote.
fn run(made: &Made) -> (ProgramEnd, String) {
    let (reader, writer) = std::io::pipe().expect("a pipe");
    let null = File::options().read(true).write(true).open("/dev/null").expect("always there");
    let request = ExecuteRequest {
        execution: 7,
        arguments: ["/bin/sh", "-c", "echo ran"].map(|text| text.as_bytes().to_vec()).to_vec(),
        environment: Vec::new(),
        directory: b"/".to_vec(),
        view: codebeaker::plan::messages::View::Programs,
    };
    let streams: [BorrowedFd<'_>; 3] = [null.as_fd(), writer.as_fd(), null.as_fd()];
    send(made.control.as_fd(), &InitRequest::Execute(request), &streams).expect("init lives");
    let end = match init_says(made) {
        Some(InitMessage::Ended { execution: 7, end }) => end,
        other => panic!("the end of the program was due: {other:?}"),
    };
    drop(writer);
    (end, std::io::read_to_string(reader).expect("text"))
}

fn program_steps() {
    let mut bench = Bench::new();
    let mounts = host_mounts();
    let (made, _) = ready(&mut bench);
    assert!(matches!(run(&made), (ProgramEnd::Ran { status: 0, .. }, said) if said == "ran\n"), "the control");
    bench.ask(&LauncherRequest::End(made.tag));
    bench.expect_gone(made.tag);
    let failing = ProgramStep::Rlimit { resource: 9999, name: "RLIMIT_NONE".into(), limit: 0 };
    for index in 0..bench.plan_without_groups().program.len() {
        let (mut plan, cgroups) = bench.plan();
        let place = plan.program[index].to_string();
        plan.program[index] = failing.clone();
        let made = bench.create(plan, &cgroups).expect("the sandbox stands");
        assert!(matches!(init_says(&made), Some(InitMessage::Ready)), "the sandbox stands");
        let (end, said) = run(&made);
        let ProgramEnd::NotStarted(StartFailure { stage, errno }) = end else { panic!("in the place of `{place}`: {end:?}") };
        assert_eq!((stage, said.as_str()), (StartStage::Wall(failing.wall().into()), ""), "in the place of `{place}`");
        assert_ne!(errno, 0);
        bench.ask(&LauncherRequest::End(made.tag));
        bench.expect_gone(made.tag);
        bench.expect_nothing(&place, &cgroups, &mounts);
    }
    bench.end();
}

/// Kills inits at every moment of their way, some before they stand, some after.
fn killed_inits() {
    let mut bench = Bench::new();
    let mounts = host_mounts();
    let mut before_ready = 0;
    for round in 0..40_u64 {
        let (plan, cgroups) = bench.plan();
        let made = bench.create(plan, &cgroups).expect("the launcher's own steps succeed");
        std::thread::sleep(Duration::from_micros(round * 250));
        bench.ask(&LauncherRequest::End(made.tag));
        match init_says(&made) {
            Some(InitMessage::Ready) => assert!(init_says(&made).is_none(), "it was killed"),
            None => before_ready += 1,
            other => panic!("{other:?}"),
        }
        bench.expect_gone(made.tag);
        bench.expect_nothing("a kill", &cgroups, &mounts);
    }
    assert!((1..40).contains(&before_ready), "kills before and after the walls stood: {before_ready} of 40 before");
    // The launcher itself: inits that stand or are on their way die with it.
    let (made, cgroups) = ready(&mut bench);
    let launcher = bench.launcher.id().cast_signed();
    let inits: Vec<_> = descendants(launcher).into_iter().filter_map(|init| process(init.identity.0)).collect();
    bench.launcher.kill().expect("the trial's own child");
    bench.launcher.wait().expect("the trial's own child");
    assert!(!inits.is_empty() && eventually(Duration::from_secs(1), || inits.iter().all(|init| !lives(init.identity))));
    assert!(init_says(&made).is_none());
    // Nobody else cleans up for a launcher that was killed: in a server that is the keeper's part, here the trial's.
    for group in cgroups.iter().chain(&bench.cgroups.as_ref().map(CgroupTree::directories).unwrap_or_default()) {
        assert!(eventually(Duration::from_secs(2), || std::fs::remove_dir(group).is_ok()), "{} is empty", group.display());
    }
}

impl Bench {
    /// A plan to count steps in; its groups are given back at once.
    fn plan_without_groups(&self) -> Plan {
        let (plan, cgroups) = self.plan();
        for group in cgroups {
            std::fs::remove_dir(group).expect("a group without a process");
        }
        plan
    }
}

fn libc_enoent() -> i32 {
    nix::errno::Errno::ENOENT as i32
}
