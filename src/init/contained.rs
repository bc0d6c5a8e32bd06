//! Init as pid 1 of a container: an engine has built the walls around it, and this binary was executed in it.
//!
//! Invariants: it serves whoever listens at the path it is given, and nobody else; that is connected to before any program of the
//! session exists; the end of the connection is the end of the container. What it does between the two is `serve`, as everywhere.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;

use crate::sys::socket;
use crate::sys::{channel, process};

use super::CONTROL;

/// Runs until the server hangs up. The exit code is for whoever reads the engine's list of containers.
pub fn main(control: Option<&Path>) -> u8 {
    let Some(control) = control.filter(|_| std::process::id() == 1) else {
        eprintln!("error: `codebeaker contained` is started by an engine as the first process of a container");
        return 2;
    };
    match run(control) {
        // The server hung up: the end of every session.
        Ok(()) | Err(channel::ChannelError::Closed) => 0,
        Err(error) => {
            eprintln!("error: init ended: {error}");
            1
        }
    }
}

fn run(control: &Path) -> Result<(), channel::ChannelError> {
    let control = keep(socket::connect(control)?)?;
    super::serve_from(control.as_fd())
}

/// Nothing is open above the control socket, which has init's own number.
fn keep(control: OwnedFd) -> Result<OwnedFd, channel::ChannelError> {
    process::die_with_parent()?;
    process::hide_from_tracers()?;
    if control.as_raw_fd() != CONTROL {
        process::duplicate_to(control.as_fd(), CONTROL, process::CloseOnExec::Yes)?;
    }
    std::mem::forget(control);
    process::close_from(CONTROL + 1)?;
    Ok(process::adopt_descriptor(CONTROL)?)
}
