//! The one way out of a network namespace: a listener whose descriptor is handed to the server, which accepts on it from outside.
//!
//! Invariant: nothing of the host comes in; what goes out is a listener of the namespace that this process is in.

use std::os::fd::{AsFd, BorrowedFd};

use crate::plan::messages::PROXY;
use crate::sys::socket::{self, Wait};
use crate::sys::{CallError, network};

/// Comes with the listener.
const WORD: [u8; 1] = [1];

/// Opens it in the namespace of the sandbox.
pub fn open(door: BorrowedFd<'_>) -> Result<(), CallError> {
    let listener = network::listen(PROXY)?;
    socket::send(door, &WORD, &[listener.as_fd()], Wait::No)
}

/// Opens it in a new namespace, in which this process stays: a child on its way to a program.
pub fn open_for_one(door: BorrowedFd<'_>) -> Result<(), CallError> {
    network::unshare_network_namespace()?;
    network::loopback_up()?;
    open(door)
}
