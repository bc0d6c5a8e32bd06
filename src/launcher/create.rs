//! One sandbox: clone, then what only the outside can do for it, then word that it may go on.
//!
//! Invariant: when a step fails the clone is killed and reaped before the failure is told.

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::io::Errno;

use crate::init;
use crate::plan::messages::{Birth, Go, Launch};
use crate::plan::{self, OutsideStep, Slot, StepFailure};
use crate::sys::identity::Identity;
use crate::sys::mount::attribute::{NO_DEVICES, NO_EXEC, NO_SETUID, READ_ONLY};
use crate::sys::process::{self, Cloned};
use crate::sys::socket::Wait;
use crate::sys::{CallError, channel, mount, socket};

/// A sandbox whose init has been told to go on.
pub struct Created {
    /// Of init, in our pid namespace.
    pub pid: i32,
    /// The same for the server, who does not reap it.
    pub identity: Option<Identity>,
    /// The server's end of the control socket.
    pub control: OwnedFd,
}

/// A process in its namespaces that waits for its plan.
pub struct Begun {
    birth: Birth,
    pid: i32,
    pidfd: OwnedFd,
    control: OwnedFd,
}

/// Makes the process.
pub fn begin(birth: Birth) -> Result<Begun, StepFailure> {
    let (ours, theirs) = socket::pair().map_err(|error| failure("init", "make the control socket", error))?;
    let group = birth
        .born_in
        .as_ref()
        .map(|directory| mount::open_directory(&path_text(directory)))
        .transpose()
        .map_err(|error| failure("cgroup", "open the group", error))?;
    let flags = birth.namespaces | libc::CLONE_PIDFD as u64;
    let cloned = process::clone(flags, group.as_ref().map(AsFd::as_fd));
    match cloned.map_err(|error| failure("namespaces", "clone into new namespaces", error))? {
        Cloned::Child => {
            drop(ours);
            init::main(theirs)
        }
        Cloned::Parent { pid, pidfd } => {
            drop(theirs);
            let pidfd = pidfd.ok_or_else(|| failure("pid", "clone", CallError { call: "clone3", errno: Errno::BADF }))?;
            Ok(Begun { birth, pid, pidfd, control: ours })
        }
    }
}

impl Begun {
    /// In our pid namespace. Nobody else gets the number before it is reaped.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Gives it the rest of its plan and does the outside steps.
    pub fn create(self, launch: &Launch, rest: &[u8], devices: &mut Option<OwnedFd>) -> Result<Created, StepFailure> {
        let made = if self.birth == launch.birth {
            let told = channel::send_encoded(self.control.as_fd(), rest, &[], Wait::Yes);
            told.map_err(|_| unheard("tell init its plan"))
                .and_then(|()| outside(&launch.outside, self.pid, &self.control, devices))
        } else {
            let differs = CallError { call: "plan", errno: Errno::INVAL };
            Err(failure("namespaces", "find it cloned as its plan says", differs))
        };
        match made {
            Ok(()) => {
                let identity = Identity::of(self.pid, self.pidfd.as_fd());
                Ok(Created { pid: self.pid, identity, control: self.control })
            }
            Err(failure) => {
                // It waits for word from us and can do no harm; it must be gone before the failure is told.
                self.discard();
                Err(failure)
            }
        }
    }

    /// Ends one that nobody was told of, and waits until it has ended.
    pub fn discard(self) {
        process::kill_pidfd(self.pidfd.as_fd()).ok();
        rustix::process::waitid(rustix::process::WaitId::PidFd(self.pidfd.as_fd()), rustix::process::WaitIdOptions::EXITED)
            .ok();
    }
}

fn outside(steps: &[OutsideStep], pid: i32, control: &OwnedFd, devices: &mut Option<OwnedFd>) -> Result<(), StepFailure> {
    let mut trees = Trees { pid, users: None, slots: Vec::new(), cloned: Vec::new() };
    for step in steps {
        let done = match step {
            OutsideStep::DenySetgroups => write(pid, "setgroups", "deny"),
            OutsideStep::UidMap(map) => write(pid, "uid_map", map),
            OutsideStep::GidMap(map) => write(pid, "gid_map", map),
            OutsideStep::MapByHelper { program, arguments } => map_by_helper(program, pid, arguments, HELPER_TIME_MAX),
            OutsideStep::OwnCgroup { procs, uid } => mount::give_to(&path_text(procs), *uid),
            OutsideStep::CloneTree { slot, source } => {
                mount::open_path(&path_text(source)).and_then(|source| trees.clone(*slot, source.as_fd(), NO_DEVICES))
            }
            OutsideStep::CloneDevices { slot } => {
                device_directory(devices).and_then(|source| trees.clone(*slot, source, NO_EXEC))
            }
        };
        done.map_err(|error| failure(step.wall(), &step.to_string(), error))?;
    }
    let descriptors: Vec<_> = trees.cloned.iter().map(AsFd::as_fd).collect();
    channel::send(control.as_fd(), &Go { slots: trees.slots }, &descriptors).map_err(|_| unheard("tell init to go on"))
}

fn unheard(step: &str) -> StepFailure {
    failure("init", step, CallError { call: "sendmsg", errno: Errno::PIPE })
}

/// Clones for one init.
struct Trees {
    pid: i32,
    /// Its user namespace, once one was needed.
    users: Option<OwnedFd>,
    slots: Vec<Slot>,
    cloned: Vec<OwnedFd>,
}

impl Trees {
    fn clone(&mut self, slot: Slot, source: BorrowedFd<'_>, attributes: u64) -> Result<(), CallError> {
        let tree = mount::clone_tree(source, c"")?;
        let namespace = match &mut self.users {
            Some(namespace) => namespace,
            none => none.insert(mount::open_readable(&path_text(&format!("/proc/{}/ns/user", self.pid)))?),
        };
        mount::map_ids(tree.as_fd(), namespace.as_fd(), READ_ONLY | NO_SETUID | attributes)?;
        self.slots.push(slot);
        self.cloned.push(tree);
        Ok(())
    }
}

/// The directory of devices, which is made for the first that needs it.
fn device_directory(devices: &mut Option<OwnedFd>) -> Result<BorrowedFd<'_>, CallError> {
    let made: &OwnedFd = match devices {
        Some(made) => made,
        none => none.insert(plan::devices::directory()?),
    };
    Ok(made.as_fd())
}

fn write(pid: i32, file: &'static str, text: &str) -> Result<(), CallError> {
    let call = match file {
        "setgroups" => "write setgroups",
        "uid_map" => "write uid_map",
        _ => "write gid_map",
    };
    write_file(&format!("/proc/{pid}/{file}"), text, call)
}

fn write_file(path: &str, text: &str, call: &'static str) -> Result<(), CallError> {
    // One write: the kernel takes a map only whole. Nothing is created: the file is the kernel's.
    let written = fs::OpenOptions::new().write(true).open(path).and_then(|mut file| {
        use std::io::Write;
        file.write_all(text.as_bytes())
    });
    written.map_err(|error| CallError { call, errno: Errno::from_io_error(&error).unwrap_or(Errno::IO) })
}

/// How long newuidmap may take. It asks the system's user database, which may be somewhere in a network; meanwhile no other
/// sandbox is made.
const HELPER_TIME_MAX: Duration = Duration::from_secs(10);

fn map_by_helper(program: &str, pid: i32, arguments: &[String], time_max: Duration) -> Result<(), CallError> {
    let refused = CallError { call: "newuidmap", errno: Errno::PERM };
    let failed = |error: io::Error| CallError { errno: Errno::from_io_error(&error).unwrap_or(Errno::IO), ..refused };
    let mut helper = Command::new(program)
        .arg(pid.to_string())
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .env_clear()
        .spawn()
        .map_err(failed)?;
    match process::wait_at_most(&mut helper, time_max).map_err(failed)? {
        Some(status) if status.success() => Ok(()),
        Some(_) => Err(refused),
        None => Err(CallError { errno: Errno::TIMEDOUT, ..refused }),
    }
}

/// A plan's strings hold no NUL; one that does is not found.
fn path_text(path: &str) -> std::ffi::CString {
    std::ffi::CString::new(path).unwrap_or_default()
}

/// A failure in a plan's words.
pub fn failure(wall: &str, step: &str, error: CallError) -> StepFailure {
    StepFailure { step: step.into(), wall: wall.into(), call: error.call.into(), errno: error.raw() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_helper_that_does_not_end_is_ended_and_one_that_refuses_is_told_apart() {
        let map = |program: &str, time_max| map_by_helper(program, 30, &[], time_max).map_err(|error| error.errno);
        // Its argument is the number of a process, or here the seconds that it sleeps.
        assert_eq!(map("sleep", Duration::from_millis(50)), Err(Errno::TIMEDOUT));
        assert_eq!(map("false", HELPER_TIME_MAX), Err(Errno::PERM));
        assert_eq!(map("/nonexistent", HELPER_TIME_MAX), Err(Errno::NOENT));
        assert_eq!(map("true", HELPER_TIME_MAX), Ok(()), "the control");
    }
}
