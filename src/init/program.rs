//! A program's way from fork to exec: descriptors, then the plan's program steps in order, then its directory, then itself.
//!
//! Invariant: when anything fails the program does not run; the reason travels through a socket that a successful exec closes.

use std::ffi::{CString, c_char};
use std::fs;
use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::io::Errno;

use crate::plan::messages::{
    ExecuteRequest, ProgramEnd, ProgramNetwork, StartFailure, StartStage, View, WARM_ARCHIVE, WARM_SOCKET,
};
use crate::plan::{Plan, ProgramStep, Start};
use crate::sys::process::{self, Cloned, CloseOnExec};
use crate::sys::seccomp::{self, Waiting};
use crate::sys::socket::{self, Wait};
use crate::sys::standing::Standing;
use crate::sys::start::{self, Stack};
use crate::sys::{CallError, credentials, landlock};

use super::door;
use super::steps::Built;
use super::watch::{Begin, FAILURE_BYTES, LISTENER_WORD, Watch};

/// The number of the child's socket to init; everything above is closed.
const INIT_SOCKET: i32 = 3;

/// Where a `PATH` is missing.
const PATH_DEFAULT: &[u8] = b"/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A child on its way to exec.
#[derive(Debug)]
pub struct Started {
    /// Its pid.
    pub pid: i32,
    /// What is heard of it.
    pub watch: Watch,
}

/// What a child becomes.
#[derive(Debug, Clone, Copy)]
pub enum Role<'a> {
    /// A program, with nothing but its streams.
    Program,
    /// The warm interpreter, with its socket and its archive too.
    Warm([BorrowedFd<'a>; 2]),
    /// A program that waits for its source, with the socket that it does so on.
    Waiting(BorrowedFd<'a>),
}

/// How long a child may take to execute where init sleeps meanwhile; somebody in the session who stops it holds init up no longer.
const START_TIME: Duration = Duration::from_secs(5);

/// What a sandbox starts its children with.
pub struct Base<'a> {
    /// Its plan.
    pub plan: &'a Plan,
    /// What the steps left.
    pub built: &'a Built,
    /// Of one child after the other.
    pub stack: &'a mut Stack,
}

/// Starts a child; `descriptors` are stdin, stdout, stderr, and what a network of its own is handed out through.
pub fn start(
    base: Base<'_>,
    request: &ExecuteRequest,
    mut descriptors: Vec<OwnedFd>,
    role: Role<'_>,
) -> Result<Started, ProgramEnd> {
    let Base { plan, built, stack } = base;
    let fork_failed = |errno: i32| ProgramEnd::NotStarted(StartFailure { stage: StartStage::Fork, errno });
    let image = Image::prepare(request).ok_or_else(|| not_executable(Errno::INVAL))?;
    let door = match request.network {
        ProgramNetwork::Sandbox => None,
        ProgramNetwork::Own => Some(descriptors.pop().ok_or_else(|| fork_failed(Errno::BADF.raw_os_error()))?),
    };
    let Ok::<[OwnedFd; 3], _>(streams) = descriptors.try_into() else { return Err(fork_failed(Errno::BADF.raw_os_error())) };
    let (ours, theirs) = socket::pair().map_err(|error| fork_failed(error.raw()))?;
    let execution = image.pointers();
    let own = Own { streams: &streams, init: &theirs, door: door.as_ref(), role };
    let child = || report(&child(plan, built, &image, &execution, &own));
    let group = built.programs_born_in.as_ref().map(AsFd::as_fd);
    let begin = Instant::now();
    let pid = match plan.start {
        Start::Shared => start::run(stack, group, child),
        Start::Copied => match process::clone(0, group) {
            Ok(Cloned::Child) => {
                child();
                process::exit_now(127)
            }
            Ok(Cloned::Parent { pid, .. }) => Ok(pid),
            Err(error) => Err(error),
        },
    };
    let pid = pid.map_err(|error| fork_failed(error.raw()))?;
    let late = plan.start == Start::Shared && begin.elapsed() >= START_TIME;
    Ok(Started { pid, watch: Watch::new(ours, &plan.program, if late { Begin::Late } else { Begin::InTime }) })
}

fn not_executable(errno: Errno) -> ProgramEnd {
    ProgramEnd::NotStarted(StartFailure { stage: StartStage::Execute, errno: errno.raw_os_error() })
}

/// What the child could not do, as it goes through the socket.
struct ChildFailure {
    stage: u8,
    step: u8,
    errno: i32,
}

const STAGE_STEP: u8 = 1;
const STAGE_DIRECTORY: u8 = 2;
const STAGE_EXECUTE: u8 = 3;
const STAGE_STREAMS: u8 = 4;
const STAGE_NETWORK: u8 = 5;

/// Descriptors of one program.
struct Own<'a> {
    streams: &'a [OwnedFd; 3],
    init: &'a OwnedFd,
    /// Where the way out of a network namespace of its own is handed to.
    door: Option<&'a OwnedFd>,
    role: Role<'a>,
}

/// Returns only when something failed.
fn child(plan: &Plan, built: &Built, image: &Image, execution: &Pointers, own: &Own<'_>) -> ChildFailure {
    let failed = |stage: u8, step: usize, error: CallError| ChildFailure { stage, step: step as u8, errno: error.raw() };
    let bounded = match plan.start {
        Start::Shared => start::end_unless_executed(START_TIME),
        Start::Copied => Ok(()),
    };
    // While every number is still what it was; `connect` closes the door.
    let opened = own.door.map_or(Ok(()), |door| door::open_for_one(door.as_fd()));
    if let Err(error) = bounded.and_then(|()| connect(own, built, image.view)) {
        return failed(STAGE_STREAMS, 0, error);
    }
    if let Err(error) = opened {
        return failed(STAGE_NETWORK, 0, error);
    }
    // With the program's own rights, and before the first filter: no profile must know this call.
    let filters = plan.program.iter().position(ProgramStep::is_filter).unwrap_or(plan.program.len());
    for (index, step) in plan.program.iter().enumerate() {
        if index == filters
            && let Err(error) = process::change_directory(&image.directory)
        {
            return failed(STAGE_DIRECTORY, 0, error);
        }
        if let (Role::Warm(_), ProgramStep::AdoptOrphans) = (own.role, step) {
            // Its forks must become children of init. It has no other descendants, and each fork takes this step itself.
            continue;
        }
        if let Err(error) = take(step) {
            return failed(STAGE_STEP, index, error);
        }
    }
    failed(STAGE_EXECUTE, 0, execution.execute(&image.candidates))
}

/// The number of the Landlock rules in the child, closed by exec.
const RULES: i32 = 4;

/// A session of its own, the three streams, and nothing else open past exec.
fn connect(own: &Own<'_>, built: &Built, view: View) -> Result<(), CallError> {
    process::new_session()?;
    // Init has every signal at its default action.
    process::unblock_signals()?;
    for (number, stream) in (0..).zip(own.streams) {
        process::duplicate_to(stream.as_fd(), number, CloseOnExec::No)?;
    }
    // The socket's and the rules' own numbers are above 4: init keeps 3 for its socket and opened others before them.
    process::duplicate_to(own.init.as_fd(), INIT_SOCKET, CloseOnExec::Yes)?;
    if let (View::Installers, Some(namespace)) = (view, &built.installers_view) {
        process::enter_mount_namespace(namespace.as_fd())?;
    }
    match &built.rules {
        None => process::close_number(RULES)?,
        Some(rules) if rules.as_raw_fd() == RULES => {}
        Some(rules) => process::duplicate_to(rules.as_fd(), RULES, CloseOnExec::Yes)?,
    }
    match own.role {
        Role::Program => process::close_from(RULES + 1),
        Role::Waiting(socket) => {
            process::duplicate_to(socket, WARM_SOCKET, CloseOnExec::No)?;
            process::close_from(WARM_SOCKET + 1)
        }
        Role::Warm([socket, archive]) => {
            process::duplicate_to(socket, WARM_SOCKET, CloseOnExec::No)?;
            process::duplicate_to(archive, WARM_ARCHIVE, CloseOnExec::No)?;
            process::close_from(WARM_ARCHIVE + 1)
        }
    }
}

fn take(step: &ProgramStep) -> Result<(), CallError> {
    match step {
        ProgramStep::Rlimit { resource, limit, .. } => process::set_rlimit(*resource, *limit),
        ProgramStep::CgroupNamespace => process::unshare_cgroup_namespace(),
        ProgramStep::OomScore(score) => raise_oom_score(*score),
        ProgramStep::Securebits(bits) => credentials::set_securebits(*bits),
        ProgramStep::BoundingSet { keep } => credentials::bound_capabilities(*keep),
        ProgramStep::ClearGroups => credentials::clear_groups(),
        ProgramStep::Gid(gid) => credentials::set_gid(*gid),
        ProgramStep::Uid(uid) => credentials::set_uid(*uid),
        ProgramStep::Capabilities { keep } => {
            credentials::clear_ambient_set()?;
            credentials::set_capabilities(*keep, *keep, 0)
        }
        ProgramStep::AdoptOrphans => process::adopt_orphans(),
        ProgramStep::DieWithInit => process::die_with_parent(),
        ProgramStep::NoNewPrivs => process::set_no_new_privs(),
        ProgramStep::Landlock => {
            let rules = process::adopt_descriptor(RULES)?;
            landlock::apply(rules.as_fd())
        }
        ProgramStep::SeccompListener { filter, waiting, .. } => install_heard(filter, *waiting),
        ProgramStep::Seccomp(program) => seccomp::install(program),
    }
}

/// Between the two calls nothing may be asked of the kernel but to send: a refusal would wait for a listener that nobody has.
/// Profiles see to it that sending is never among the refusals that wait (`seccomp::notify`).
fn install_heard(filter: &[u8], waiting: Waiting) -> Result<(), CallError> {
    // The number stays open until exec: this step or a later one may fail, and what failed is said through it.
    let init = ManuallyDrop::new(process::adopt_descriptor(INIT_SOCKET)?);
    let listener = seccomp::install_with_listener(filter, waiting)?;
    match socket::send(init.as_fd(), &LISTENER_WORD, &[listener.as_fd()], Wait::Yes) {
        // Somebody with the same host id holds all the descriptors in flight that one id may have (a host with a single id). The
        // program runs, its refusals are the kernel's own ENOSYS, and nobody names them.
        Err(error) if error.errno == Errno::TOOMANYREFS => Ok(()),
        sent => sent,
    }
}

/// `/proc/self` of a process that is not dumpable belongs to the host's root, whom nobody here may write as; for this one write
/// it is ours. The capabilities that are still held keep other programs of the session from tracing it meanwhile.
fn raise_oom_score(score: i32) -> Result<(), CallError> {
    process::show_to_tracers()?;
    let written = fs::write("/proc/self/oom_score_adj", score.to_string());
    process::hide_from_tracers()?;
    written.map_err(|error| CallError { call: "write oom_score_adj", errno: Errno::from_io_error(&error).unwrap_or(Errno::IO) })
}

fn report(failure: &ChildFailure) {
    let mut record = [failure.stage, failure.step, 0, 0, 0, 0];
    record[2..].copy_from_slice(&failure.errno.to_ne_bytes());
    if let Ok(init) = process::adopt_descriptor(INIT_SOCKET) {
        // When even this fails the exit status 127 is all that is known.
        rustix::io::write(&init, &record).ok();
    }
}

/// What a child told of its failure.
pub fn start_failure(record: [u8; FAILURE_BYTES], steps: &[ProgramStep]) -> StartFailure {
    let [stage, step, errno @ ..] = record;
    let wall = |name: &str| StartStage::Wall(name.to_owned());
    let stage = match stage {
        STAGE_STEP => wall(steps.get(usize::from(step)).map_or("unknown", ProgramStep::wall)),
        STAGE_DIRECTORY => StartStage::Directory,
        STAGE_EXECUTE => StartStage::Execute,
        STAGE_NETWORK => wall("network"),
        _ => wall("streams"),
    };
    StartFailure { stage, errno: i32::from_ne_bytes(errno) }
}

/// What every program of this plan begins with. It is not looked up in a process that waits, which somebody may have changed by then.
pub fn standing(plan: &Plan) -> Option<Standing> {
    let own = Standing::of(0).ok()?;
    Some(plan.program.iter().fold(own, |standing, step| match step {
        ProgramStep::Rlimit { resource, limit, .. } => standing.with_limit(*resource, *limit),
        ProgramStep::OomScore(score) => standing.with_oom_score(*score),
        _ => standing,
    }))
}

/// A program as execve wants it.
struct Image {
    candidates: Vec<CString>,
    arguments: Vec<CString>,
    environment: Vec<CString>,
    directory: CString,
    view: View,
}

impl Image {
    /// None when a string holds a NUL or there is no program.
    fn prepare(request: &ExecuteRequest) -> Option<Self> {
        let strings = |list: &[Vec<u8>]| list.iter().map(|text| CString::new(text.clone()).ok()).collect::<Option<Vec<_>>>();
        let program = request.arguments.first().filter(|program| !program.is_empty())?;
        let path = request.environment.iter().find_map(|entry| entry.strip_prefix(b"PATH=")).unwrap_or(PATH_DEFAULT);
        let candidates: Vec<Vec<u8>> = if program.contains(&b'/') {
            vec![program.clone()]
        } else {
            path.split(|byte| *byte == b':')
                .filter(|directory| !directory.is_empty())
                .map(|directory| [directory, b"/", program].concat())
                .collect()
        };
        Some(Self {
            candidates: strings(&candidates)?,
            arguments: strings(&request.arguments)?,
            environment: strings(&request.environment)?,
            directory: CString::new(request.directory.clone()).ok()?,
            view: request.view,
        })
    }

    /// What execve takes, made before the child is: what a child that shares memory allocates would stay.
    fn pointers(&self) -> Pointers {
        let pointers = |strings: &[CString]| -> Vec<*const c_char> {
            strings.iter().map(|text| text.as_ptr()).chain(std::iter::once(std::ptr::null())).collect()
        };
        Pointers { arguments: pointers(&self.arguments), environment: pointers(&self.environment) }
    }
}

/// Into the strings of an [`Image`] that lives.
struct Pointers {
    arguments: Vec<*const c_char>,
    environment: Vec<*const c_char>,
}

impl Pointers {
    /// Tries each candidate as execvp(3) does: the first that is there decides, a refused one is remembered.
    fn execute(&self, candidates: &[CString]) -> CallError {
        let mut result = CallError { call: "execve", errno: Errno::NOENT };
        for candidate in candidates {
            let error = process::execute(candidate, &self.arguments, &self.environment);
            match error.errno {
                Errno::NOENT | Errno::NOTDIR => {}
                Errno::ACCESS => result = error,
                _ => return error,
            }
        }
        result
    }
}
