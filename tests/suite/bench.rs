//! A launcher of the trial's own, and plans to hand it: what trials stand on that change a plan before it is carried out.
//!
//! This page is the launcher's client itself, so it uses the plan's types, which no client of the server ever sees; no
//! configuration, flag or message of the server can change a step. Invariant: when a bench goes, its launcher has ended and
//! every sandbox with it, and its groups are gone. Read `faults` and `escape::walls` for what is done with it.

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
use codebeaker::plan::{Plan, StepFailure};
use codebeaker::sandbox::cgroups::{CgroupTree, SessionCgroup};
use codebeaker::sandbox::compile::{Compiled, Ids, Kernel, Placement, ProcessBound, Root, Spec, Workspace, compile};
use codebeaker::sandbox::host::HostFacts;
use codebeaker::sandbox::profile::Profiles;
use codebeaker::sandbox::spec::Limits;
use codebeaker::sandbox::state::ServerId;
use codebeaker::sandbox::uid_ranges::{UidRange, UidRanges};
use codebeaker::sys::channel::{receive, send};
use codebeaker::sys::socket::{Wait, pair};

use crate::support::{Feature, eventually, fixture_user, host};

/// Bytes that a sandbox of a bench may use.
pub const MEMORY_BYTES: u64 = 64 << 20;
/// Processes that it may have.
pub const PIDS: u64 = 32;
/// Descriptors that a program of it may open.
pub const OPEN_FILES: u64 = 256;

/// Number of benches so far: each has groups of its own.
static BENCHES: AtomicU32 = AtomicU32::new(0);

/// What plans are made of, and a launcher to carry them out.
pub struct Bench {
    /// The launcher.
    pub launcher: Child,
    /// What the host offers.
    pub host: HostFacts,
    /// Groups for the sandboxes; none where making them would move the suite itself.
    pub cgroups: Option<CgroupTree>,
    /// The host ids of its sandboxes.
    pub range: UidRange,
    socket: Option<OwnedFd>,
    store: Store,
    _directory: tempfile::TempDir,
    next: Tag,
}

/// A sandbox that the launcher said it made.
pub struct Made {
    /// Its number.
    pub tag: Tag,
    control: OwnedFd,
}

/// A compiled sandbox, and the groups that were made for it.
pub struct Draft {
    /// The plan, and what it says it enforces.
    pub compiled: Compiled,
    /// Deepest first.
    pub cgroups: Vec<PathBuf>,
}

/// A program to run in a sandbox.
#[derive(Clone, Copy)]
pub struct Launch<'a> {
    /// The program and its arguments.
    pub arguments: &'a [&'a str],
    /// Where it starts.
    pub directory: &'a str,
    /// Its standard input; absent: `/dev/null`.
    pub stdin: Option<BorrowedFd<'a>>,
}

impl Bench {
    /// Starts a launcher; skips the trial where the suite is not root.
    pub fn new() -> Self {
        host().need(Feature::Root);
        let facts = HostFacts::probe();
        // Where v2 carries the limits, opening a tree would move this very process.
        let movable = facts.cgroup.v2_controllers().is_empty();
        let number = BENCHES.fetch_add(1, Ordering::Relaxed);
        let name = format!("{}-bench-{number}", ServerId::current().expect("/proc is mounted").as_str());
        let directory = fixture_user::directory_of(None);
        let store = Store::open(directory.path()).expect("an own directory");
        let range = UidRanges::new().and_then(|ranges| ranges.take()).expect("a free range");
        let (socket, theirs) = pair().expect("a socket pair");
        let binary = File::open(env!("CARGO_BIN_EXE_codebeaker")).expect("the binary is built");
        let launcher = codebeaker::sys::process::spawn_launcher(binary.as_fd(), theirs.as_fd(), SERVER_SOCKET);
        let launcher = launcher.expect("the binary can be executed");
        let cgroups = movable.then(|| CgroupTree::open(&facts.cgroup, &name).expect("root may make groups")).flatten();
        let bench = Self { launcher, host: facts, cgroups, range, socket: Some(socket), store, _directory: directory, next: 1 };
        bench.ask(&LauncherRequest::RemoveAtEnd(texts(&bench.groups())));
        bench
    }

    /// The bench's own groups.
    pub fn groups(&self) -> Vec<PathBuf> {
        self.cgroups.as_ref().map(CgroupTree::directories).unwrap_or_default()
    }

    /// What the server would hand its launcher for a session of this profile on the image `host`, placed in groups of its own
    /// where there are any.
    pub fn draft(&self, profile: &str) -> Draft {
        let profile = Profiles::load(None).expect("embedded").get(profile).expect("embedded");
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
                workspace: Workspace::Empty,
            },
            ids: Ids::Range { start: self.range.start, count: self.range.count },
            cgroup: cgroup.as_ref().map(placement).unwrap_or_default(),
            kernel: Kernel {
                time_namespace: self.host.time_namespace,
                device_directory: self.host.device_directory,
                landlock_abi: self.host.landlock_abi,
                listener: self.host.seccomp_listener.waiting(),
                users_hide: self.host.users_hide,
                version: (kernel.0, kernel.1),
            },
        };
        let compiled = compile(&spec);
        let cgroups = cgroup.as_mut().map(|cgroup| {
            cgroup.hand_over();
            cgroup.directories.clone()
        });
        Draft { compiled, cgroups: cgroups.unwrap_or_default() }
    }

    /// The same without groups: for a plan that is only looked at.
    pub fn draft_without_groups(&self, profile: &str) -> Compiled {
        let draft = self.draft(profile);
        for group in draft.cgroups {
            std::fs::remove_dir(group).expect("a group without a process");
        }
        draft.compiled
    }

    /// Sends the launcher a request.
    pub fn ask(&self, request: &LauncherRequest) {
        send(self.socket().as_fd(), request, &[]).expect("the launcher lives");
    }

    fn socket(&self) -> &OwnedFd {
        self.socket.as_ref().expect("open until the bench goes")
    }

    fn hear(&self) -> (LauncherMessage, Vec<OwnedFd>) {
        let received = receive(self.socket().as_fd(), Wait::Yes).expect("the launcher lives");
        (received.message, received.descriptors)
    }

    /// Has the process of a sandbox made, as this plan wants it.
    pub fn begin(&mut self, plan: &Plan) -> Tag {
        let tag = self.next;
        self.next += 1;
        self.ask(&LauncherRequest::Begin(tag, Birth { namespaces: plan.namespaces, born_in: plan.born_in.clone() }));
        tag
    }

    /// Has a sandbox made; a failed step of the launcher is the error.
    pub fn create(&mut self, plan: Plan, cgroups: &[PathBuf]) -> Result<Made, StepFailure> {
        let tag = self.begin(&plan);
        self.finish(tag, plan, cgroups)
    }

    /// Has a sandbox made of a process that there is.
    pub fn finish(&self, tag: Tag, plan: Plan, cgroups: &[PathBuf]) -> Result<Made, StepFailure> {
        self.ask(&LauncherRequest::Create(Box::new(
            CreateRequest::new(tag, plan, texts(cgroups)).expect("a plan that can be encoded"),
        )));
        match self.hear() {
            (LauncherMessage::Created { sandbox: of, .. }, mut sockets) if of == tag => {
                Ok(Made { tag, control: sockets.pop().expect("the control socket comes along") })
            }
            (LauncherMessage::Refused(of, failure), _) if of == tag => Err(failure),
            (other, _) => panic!("an answer to {tag} was due: {other:?}"),
        }
    }

    /// Ends a sandbox and waits until no process of it lives.
    pub fn end(&self, made: &Made) {
        self.ask(&LauncherRequest::End(made.tag));
        self.expect_gone(made.tag);
    }

    /// Waits for word that a sandbox is gone.
    pub fn expect_gone(&self, tag: Tag) {
        match self.hear() {
            (LauncherMessage::Gone { sandbox, .. }, _) if sandbox == tag => {}
            (other, _) => panic!("the end of {tag} was due: {other:?}"),
        }
    }
}

impl Drop for Bench {
    /// The launcher's end: it goes when its socket closes, and takes its sandboxes and groups along.
    fn drop(&mut self) {
        self.socket.take();
        let mut orderly = false;
        let ended = eventually(Duration::from_secs(20), || match self.launcher.try_wait() {
            Ok(None) => false,
            Ok(Some(status)) => {
                orderly = status.success();
                true
            }
            Err(_) => true,
        });
        let groups = self.groups();
        if !ended || !orderly || std::thread::panicking() {
            // A launcher that was killed, and a trial that failed before it handed its groups over, leave them to us.
            self.launcher.kill().ok();
            self.launcher.wait().ok();
            let inner = groups.iter().filter_map(|group| group.read_dir().ok()).flatten().flatten().map(|entry| entry.path());
            for group in inner.collect::<Vec<_>>().iter().chain(&groups) {
                eventually(Duration::from_secs(2), || std::fs::remove_dir(group).is_ok() || !group.is_dir());
            }
            return;
        }
        let left: Vec<&PathBuf> = groups.iter().filter(|group| group.exists()).collect();
        assert!(left.is_empty(), "the launcher removes its groups: {left:?}");
    }
}

impl Made {
    /// The next word of init; none when it has ended.
    pub fn says(&self) -> Option<InitMessage> {
        receive(self.control.as_fd(), Wait::Yes).ok().map(|received| received.message)
    }

    /// Sends init a request.
    pub fn ask(&self, request: &InitRequest, descriptors: &[BorrowedFd<'_>]) {
        send(self.control.as_fd(), request, descriptors).expect("init lives");
    }

    /// Runs a program to its end; how it ended, and what it wrote to standard output and error.
    pub fn run(&self, launch: Launch<'_>) -> (ProgramEnd, String) {
        let (reader, writer) = std::io::pipe().expect("a pipe");
        let null = File::options().read(true).write(true).open("/dev/null").expect("always there");
        let bytes = |text: &&str| text.as_bytes().to_vec();
        let request = ExecuteRequest {
            execution: 7,
            arguments: launch.arguments.iter().map(bytes).collect(),
            environment: Vec::new(),
            directory: launch.directory.as_bytes().to_vec(),
            view: View::Programs,
            network: ProgramNetwork::Sandbox,
            after: None,
        };
        let stdin = launch.stdin.unwrap_or(null.as_fd());
        self.ask(&InitRequest::Execute(request), &[stdin, writer.as_fd(), writer.as_fd()]);
        drop(writer);
        // Read while it runs: it may write more than a pipe holds.
        let output = std::thread::spawn(move || std::io::read_to_string(reader).expect("text"));
        let end = loop {
            match self.says() {
                Some(InitMessage::Ended { execution: 7, end }) => break end,
                Some(InitMessage::Blocked { execution: 7, .. }) => {}
                other => panic!("the end of the program was due: {other:?}"),
            }
        };
        (end, output.join().expect("reading does not panic"))
    }
}

fn texts(paths: &[PathBuf]) -> Vec<String> {
    paths.iter().map(|path| path.to_string_lossy().into_owned()).collect()
}

fn placement(cgroup: &SessionCgroup) -> Placement {
    Placement {
        join: cgroup.join.clone(),
        born_in: cgroup.born_in.clone(),
        programs_born_in: cgroup.run.clone(),
        processes: ProcessBound::Group,
    }
}

fn limits() -> Limits {
    Limits {
        memory_bytes: NonZeroU64::new(MEMORY_BYTES).expect("not zero"),
        cpu_shares: 1024,
        cpu_cores: None,
        pids: PIDS,
        disk_bytes: 32 << 20,
        inodes: 1024,
        output_kept_bytes: 1 << 20,
        output_killed_bytes: 2 << 20,
        timeout: Duration::from_secs(10),
        timeout_max: Duration::from_secs(10),
        open_files: OPEN_FILES,
    }
}
