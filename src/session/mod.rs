//! Sessions: who owns them, in which order their commands run, when they end.
//!
//! Invariants: commands of one session run one after another in the order `submit` was called; `submit` takes the place in
//! the queue before anything is awaited; a command belongs to its session, not to the call that brought it; what a principal
//! does not own does not exist for it; every accepted command is answered exactly once, whatever ends it.
//!
//! `api` and `manager` are the surface that `rpc` uses. Read `manager` next, then `session` (the state) and `worker` (the
//! task that runs it); `admission` and `network` decide what a request may have, `book` who has a session, `outcomes` what became of it.

pub mod api;
pub mod manager;
pub mod sources;

mod admission;
mod audit;
mod book;
mod cause;
mod execution;
mod measure;
mod network;
mod once;
mod opening;
mod outcomes;
mod output;
mod probe;
#[expect(clippy::module_inception, reason = "one session is what this module is about; DESIGN names the file")]
mod session;
mod sweeper;
mod ticket;
mod worker;

#[cfg(test)]
pub(crate) mod tests;

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Locks, also after a panic elsewhere: every critical section here leaves its data whole at each step.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
