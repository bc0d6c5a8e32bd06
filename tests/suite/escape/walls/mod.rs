//! Every wall in a pair: an attempt in a sandbox that is whole, and the same attempt in a sandbox that lacks this one wall.
//!
//! A plan is compiled as the server does it, one wall is taken out of the list, and the real launcher and init carry it out.
//! That is possible here only: a plan travels on the socket that the launcher was started with, and nobody who speaks to a
//! server has a word for one. Invariant: a sandbox that lacks a wall keeps all others, the user namespace above all, but for
//! those named in `alone`, which would stop the same attempt and are left out on both sides; what is attempted is harmless
//! should it succeed. Rows are in `namespaces`, `files`, `rights` and `kernel`, tables of arguments in `surface`; `cuts` says how a plan loses a wall, `world`
//! what of the host the attempts aim at.

mod cuts;
mod files;
mod kernel;
mod ledger;
mod namespaces;
mod rights;
mod surface;
mod world;

use codebeaker::plan::Plan;
use codebeaker::plan::files::{Contents, FileCommand, FileReply};
use codebeaker::plan::messages::{InitMessage, InitRequest, ProgramEnd};
use codebeaker::sandbox::host::HostFacts;

use crate::bench::{Bench, Draft, Launch, Made};
use crate::support::{Feature, host, trial};
use world::World;

/// One wall and an attempt that it stops.
struct Pair {
    /// The wall, as the plan and `enforcement` name it.
    pub wall: &'static str,
    /// What happens without it: a fragment of a sentence.
    pub claim: &'static str,
    /// The profile whose plan it is.
    pub profile: &'static str,
    /// What a host must have for both sides to be built.
    pub needs: fn(&Bench),
    /// What of the host the attempt aims at.
    pub world: fn(&Bench) -> World,
    /// Takes away on both sides what would stop the attempt as well, so that this wall is alone.
    pub alone: fn(&mut Plan),
    /// Takes away the wall.
    pub without: fn(&mut Plan),
    /// What is tried.
    pub attempt: Attempt,
    /// What is seen while the wall stands.
    pub held: &'static str,
    /// What is seen without it.
    pub open: &'static str,
}

/// What is tried in a sandbox.
enum Attempt {
    /// Python that prints a line; `world` is what [`World::facts`] holds.
    Python(&'static str),
    /// The same, started in this directory.
    PythonIn(&'static str, &'static str),
    /// A file command that reads `/canary`.
    ReadFile,
    /// A file command that writes `/etc/planted`.
    WriteFile,
}

/// What most rows begin with.
const PAIR: Pair = Pair {
    wall: "",
    claim: "",
    profile: "default",
    needs: |_| {},
    world: |_| World::empty(),
    alone: |_| {},
    without: |_| {},
    attempt: Attempt::Python(""),
    held: "",
    open: "",
};

fn pairs() -> impl Iterator<Item = &'static Pair> {
    [namespaces::PAIRS, files::PAIRS, rights::PAIRS, kernel::PAIRS].into_iter().flatten()
}

impl Pair {
    fn name(&self) -> String {
        format!("without the wall {} {}, with it not", self.wall, self.claim)
    }
}

pub(super) fn trials() -> Vec<libtest_mimic::Trial> {
    let mut trials: Vec<_> = pairs().map(|pair| trial("escape", &pair.name(), move || check(pair))).collect();
    trials.extend(kernel::trials());
    trials.extend(surface::trials());
    trials.extend(ledger::trials());
    trials
}

fn check(pair: &Pair) {
    host().need(Feature::Python);
    let mut bench = Bench::new();
    (pair.needs)(&bench);
    let world = (pair.world)(&bench);
    let whole = |_: &mut Plan| {};
    let held = seen(&mut bench, pair, &world, whole);
    let open = seen(&mut bench, pair, &world, pair.without);
    assert_eq!((held.as_str(), open.as_str()), (pair.held, pair.open), "with the wall, and without it");
}

/// What an attempt comes to in a sandbox whose plan was cut.
fn seen(bench: &mut Bench, pair: &Pair, world: &World, cut: impl Fn(&mut Plan)) -> String {
    let Draft { compiled, cgroups } = bench.draft(pair.profile);
    let mut plan = compiled.plan;
    if let Some(shared) = &world.shared {
        cuts::show(&mut plan, shared);
    }
    (pair.alone)(&mut plan);
    cut(&mut plan);
    let made = bench.create(plan, &cgroups).unwrap_or_else(|failure| panic!("the launcher can't build it: {failure:?}"));
    match made.says() {
        Some(InitMessage::Ready) => {}
        other => panic!("init can't build it: {other:?}"),
    }
    let seen = attempt(&made, &pair.attempt, world);
    bench.end(&made);
    seen
}

fn attempt(made: &Made, attempt: &Attempt, world: &World) -> String {
    match attempt {
        Attempt::Python(code) => python(made, code, "/", world),
        Attempt::PythonIn(directory, code) => python(made, code, directory, world),
        Attempt::ReadFile => file(made, FileCommand::Read { path: b"/canary".to_vec(), offset: 0, length: 64 }),
        Attempt::WriteFile => file(
            made,
            FileCommand::Write {
                path: b"/etc/planted".to_vec(),
                content: b"planted".to_vec().into(),
                mode: codebeaker::command::WriteMode::Create,
                permissions: None,
            },
        ),
    }
}

fn python(made: &Made, code: &str, directory: &str, world: &World) -> String {
    let code = crate::support::python::probe(&format!("world = json.loads(sys.argv[1])\n{code}"));
    // Python wants no directory as its standard input, so what the world hands over becomes descriptor 3.
    let shell = ["/bin/sh", "-c", "exec 3<&0 </dev/null; exec \"$@\"", "sh"];
    let arguments = ["/usr/bin/python3", "-I", "-c", &code, &world.facts.to_string()];
    let (end, said) = made.run(Launch { arguments: &[&shell[..], &arguments].concat(), directory, stdin: world.handed() });
    match end {
        ProgramEnd::Ran { status: 0, .. } => said.trim_end().to_owned(),
        ProgramEnd::Ran { status, .. } => format!("it ended with {status}: {said}"),
        ProgramEnd::NotStarted(failure) => {
            format!("not started: {:?} {:?}", failure.stage, nix::errno::Errno::from_raw(failure.errno))
        }
    }
}

fn file(made: &Made, command: FileCommand) -> String {
    made.ask(&InitRequest::File { tag: 1, root: Vec::new(), command }, &[]);
    match made.says() {
        Some(InitMessage::FileDone(1, Ok(FileReply::Read { content: Contents::Inline(content), .. }))) => {
            String::from_utf8_lossy(&content).into_owned()
        }
        Some(InitMessage::FileDone(1, Ok(_))) => "done".into(),
        Some(InitMessage::FileDone(1, Err(error))) => format!("{:?}", error.kind),
        other => panic!("the answer to a file command was due: {other:?}"),
    }
}

/// Skips the row where the suite can't give sandboxes groups.
fn needs_groups(bench: &Bench) {
    let reason = "this host's control groups could only be used by moving the suite itself";
    host().need_that("own_groups", bench.cgroups.is_some(), reason);
}

/// Skips the row where Landlock scopes nothing.
fn needs_scopes(bench: &Bench) {
    let HostFacts { landlock_abi, .. } = bench.host;
    host().need_that("landlock_scopes", landlock_abi >= 6, "Landlock scopes need Linux 6.12");
}
