//! The only place with `unsafe`: one function, one system call, or a few that make no sense without each other. `heap` is the allocator.
//!
//! Invariant: functions here decide nothing of a sandbox. They turn typed arguments into one call and its errno into a [`CallError`] that
//! names the call.

#![allow(unsafe_code, reason = "this is the fence: nowhere else")]

pub mod answers;
pub mod cgroup;
pub mod channel;
pub mod compiled;
pub mod credentials;
pub mod devices;
pub mod error;
pub mod files;
pub mod heap;
pub mod identity;
pub mod landlock;
pub mod memory;
pub mod mount;
pub mod network;
pub mod probe;
pub mod process;
pub mod seccomp;
pub mod socket;
pub mod standing;
pub mod start;
pub mod tracee;
pub mod trial;

pub use error::CallError;
