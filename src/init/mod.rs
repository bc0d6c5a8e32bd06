//! Pid 1 of a sandbox: a clone of the launcher, one thread. It runs the plan's inside steps, then serves its control socket
//! until the socket closes: programs, file commands, signals.
//!
//! Invariants: no program runs before every step has succeeded; nothing outlives the control socket; init itself can't be
//! signalled, traced or read by what it starts (pid 1 of its namespace, not dumpable). Read `steps`, then `serve`; `contained` is
//! the same in a container that an engine has built.

pub mod contained;
pub mod files;

mod door;
mod prestarted;
mod program;
mod reaper;
mod rights;
mod serve;
mod steps;
mod warm;
mod watch;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use crate::plan::messages::{Go, InitMessage};
use crate::plan::{Plan, StepFailure};
use crate::sys::socket::Wait;
use crate::sys::{CallError, channel, process};

/// The number the control socket has in init; everything above it is closed.
const CONTROL: i32 = 3;

/// Runs a sandbox to its end. `control` is the only descriptor that is kept besides the standard streams.
pub fn main(control: OwnedFd) -> ! {
    let code = match start(control) {
        Ok(()) => 0,
        Err(_) => 1,
    };
    process::exit_now(code)
}

fn start(control: OwnedFd) -> Result<(), channel::ChannelError> {
    process::die_with_parent()?;
    process::duplicate_to(control.as_fd(), CONTROL, process::CloseOnExec::Yes)?;
    std::mem::forget(control);
    process::close_from(CONTROL + 1)?;
    let control = process::adopt_descriptor(CONTROL)?;
    serve_from(control.as_fd())
}

/// From its plan, and the word that it may go on, to the end of its control socket.
fn serve_from(control: BorrowedFd<'_>) -> Result<(), channel::ChannelError> {
    // It takes no plan, which has not come yet.
    let hardened = harden().map_err(|error| failure("init", "harden init", error));
    let plan = &channel::receive::<Plan>(control, Wait::Yes)?.message;
    let go = channel::receive::<Go>(control, Wait::Yes)?;
    let ready = hardened
        .and_then(|()| steps::run(plan, go))
        .and_then(|built| serve::prepare(plan, built, control).map_err(|error| failure("init", "prepare to serve", error)));
    match ready {
        Ok((init, children)) => {
            channel::send(control, &InitMessage::Ready, &[])?;
            serve::run(init, &children)
        }
        Err(failure) => channel::send(control, &InitMessage::Failed(failure), &[]),
    }
}

/// What init does to itself before the first step.
fn harden() -> Result<(), CallError> {
    process::set_umask(files::UMASK);
    process::set_name(c"init")?;
    process::block_signals()?;
    // Blocked all the same; programs inherit this, and have nothing to reset.
    process::default_signals();
    Ok(())
}

fn failure(wall: &str, step: &str, error: CallError) -> StepFailure {
    StepFailure { step: step.into(), wall: wall.into(), call: error.call.into(), errno: error.raw() }
}
