//! A program's way from fork to exec: descriptors, then the plan's program steps in order, then its directory, then itself.
//!
//! Invariant: when anything fails the program does not run; the reason travels through a pipe that a successful exec closes.

use std::ffi::{CString, c_char};
use std::fs;
use std::io::Read;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use rustix::io::Errno;

use crate::plan::messages::{ExecuteRequest, ProgramEnd, StartFailure, StartStage, View};
use crate::plan::{Plan, ProgramStep};
use crate::sys::process::{self, Cloned, CloseOnExec};
use crate::sys::{CallError, credentials, landlock};

use super::steps::Built;

/// The number of the failure pipe in the child; everything above is closed.
const FAILURE_PIPE: i32 = 3;

/// Where a `PATH` is missing.
const PATH_DEFAULT: &[u8] = b"/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A child on its way to exec.
#[derive(Debug)]
pub struct Started {
    /// Its pid.
    pub pid: i32,
    /// See [`start_failure`].
    pub start_failure: OwnedFd,
}

/// Forks; `descriptors` are stdin, stdout, stderr.
pub fn start(plan: &Plan, built: &Built, request: &ExecuteRequest, descriptors: Vec<OwnedFd>) -> Result<Started, ProgramEnd> {
    let fork_failed = |errno: i32| ProgramEnd::NotStarted(StartFailure { stage: StartStage::Fork, errno });
    let image = Image::prepare(request).ok_or_else(|| not_executable(Errno::INVAL))?;
    let Ok::<[OwnedFd; 3], _>(streams) = descriptors.try_into() else { return Err(fork_failed(Errno::BADF.raw_os_error())) };
    let flags = rustix::pipe::PipeFlags::CLOEXEC | rustix::pipe::PipeFlags::NONBLOCK;
    let (reader, writer) = rustix::pipe::pipe_with(flags).map_err(|errno| fork_failed(errno.raw_os_error()))?;
    match process::clone(0, built.programs_born_in.as_ref().map(AsFd::as_fd)) {
        Err(error) => Err(fork_failed(error.raw())),
        Ok(Cloned::Parent { pid, .. }) => Ok(Started { pid, start_failure: reader }),
        Ok(Cloned::Child) => {
            let failure = child(plan, built, &image, &streams, &writer);
            report(&failure);
            process::exit_now(127)
        }
    }
}

fn not_executable(errno: Errno) -> ProgramEnd {
    ProgramEnd::NotStarted(StartFailure { stage: StartStage::Execute, errno: errno.raw_os_error() })
}

/// What the child could not do, as it goes through the pipe.
struct ChildFailure {
    stage: u8,
    step: u8,
    errno: i32,
}

const STAGE_STEP: u8 = 1;
const STAGE_DIRECTORY: u8 = 2;
const STAGE_EXECUTE: u8 = 3;
const STAGE_STREAMS: u8 = 4;

/// Returns only when something failed.
fn child(plan: &Plan, built: &Built, image: &Image, streams: &[OwnedFd; 3], pipe: &OwnedFd) -> ChildFailure {
    let failed = |stage: u8, step: usize, error: CallError| ChildFailure { stage, step: step as u8, errno: error.raw() };
    if let Err(error) = connect(streams, pipe, built, image.view) {
        return failed(STAGE_STREAMS, 0, error);
    }
    for (index, step) in plan.program.iter().enumerate() {
        if let Err(error) = take(step) {
            return failed(STAGE_STEP, index, error);
        }
    }
    if let Err(error) = process::change_directory(&image.directory) {
        return failed(STAGE_DIRECTORY, 0, error);
    }
    failed(STAGE_EXECUTE, 0, image.execute())
}

/// The number of the Landlock rules in the child, closed by exec.
const RULES: i32 = 4;

/// A session of its own, the three streams, and nothing else open past exec.
fn connect(streams: &[OwnedFd; 3], pipe: &OwnedFd, built: &Built, view: View) -> Result<(), CallError> {
    process::new_session()?;
    process::reset_signals()?;
    for (number, stream) in (0..).zip(streams) {
        process::duplicate_to(stream.as_fd(), number, CloseOnExec::No)?;
    }
    // The pipe's and the rules' own numbers are above 4: init keeps 3 for its socket and opened others before them.
    process::duplicate_to(pipe.as_fd(), FAILURE_PIPE, CloseOnExec::Yes)?;
    if let (View::Installers, Some(namespace)) = (view, &built.installers_view) {
        process::enter_mount_namespace(namespace.as_fd())?;
    }
    let Some(rules) = &built.rules else {
        return process::close_from(RULES);
    };
    if rules.as_raw_fd() != RULES {
        process::duplicate_to(rules.as_fd(), RULES, CloseOnExec::Yes)?;
    }
    process::close_from(RULES + 1)
}

fn take(step: &ProgramStep) -> Result<(), CallError> {
    match step {
        ProgramStep::Rlimit { resource, limit, .. } => process::set_rlimit(*resource, *limit),
        ProgramStep::CgroupNamespace => process::unshare_cgroup_namespace(),
        ProgramStep::OomScore(score) => raise_oom_score(*score),
        ProgramStep::Securebits(bits) => credentials::set_securebits(*bits),
        ProgramStep::BoundingSet { keep } => {
            (0..64).filter(|capability| keep & (1 << capability) == 0).try_for_each(credentials::drop_from_bounding_set)
        }
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
        ProgramStep::Seccomp(program) => credentials::install_seccomp_filter(program),
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
    if let Ok(pipe) = process::adopt_descriptor(FAILURE_PIPE) {
        // When even this fails the exit status 127 is all that is known.
        rustix::io::write(&pipe, &record).ok();
    }
}

/// Reads what a child that has ended left in its pipe; nothing there means that its program ran.
pub fn start_failure(pipe: &OwnedFd, steps: &[ProgramStep]) -> Option<StartFailure> {
    let mut record = [0; 6];
    let mut file = fs::File::from(pipe.try_clone().ok()?);
    file.read_exact(&mut record).ok()?;
    let errno = i32::from_ne_bytes([record[2], record[3], record[4], record[5]]);
    let wall = |name: &str| StartStage::Wall(name.to_owned());
    let stage = match record[0] {
        STAGE_STEP => wall(steps.get(usize::from(record[1])).map_or("unknown", ProgramStep::wall)),
        STAGE_DIRECTORY => StartStage::Directory,
        STAGE_EXECUTE => StartStage::Execute,
        _ => wall("streams"),
    };
    Some(StartFailure { stage, errno })
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

    /// Tries each candidate as execvp(3) does: the first that is there decides, a refused one is remembered.
    fn execute(&self) -> CallError {
        let pointers = |strings: &[CString]| -> Vec<*const c_char> {
            strings.iter().map(|text| text.as_ptr()).chain(std::iter::once(std::ptr::null())).collect()
        };
        let (arguments, environment) = (pointers(&self.arguments), pointers(&self.environment));
        let mut result = CallError { call: "execve", errno: Errno::NOENT };
        for candidate in &self.candidates {
            let error = process::execute(candidate, &arguments, &environment);
            match error.errno {
                Errno::NOENT | Errno::NOTDIR => {}
                Errno::ACCESS => result = error,
                _ => return error,
            }
        }
        result
    }
}
