//! What every module of the suite stands on: trials and explicit skips, the server fixture, sessions, the residue harness.
//!
//! Invariant: nothing here uses the server's code; it is a stranger that knows the wire, the command line and /proc. Panics
//! are failures. Read `trial` for how a test is written, `server` for the fixture, `residue` for what must not be left.

pub mod cli;
pub mod fixture_user;
pub mod host;
pub mod http;
pub mod python;
pub mod residue;
pub mod server;
pub mod session;
pub mod setup;
pub mod trial;

pub use host::{Feature, Host, host};
pub use server::Server;
pub use session::{Client, Session};
pub use setup::Setup;
pub use trial::{page, trial};

use std::time::{Duration, Instant};

/// Asks `done` until it says true or `wait` is over; the answer is whether it said true.
pub fn eventually(wait: Duration, mut done: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + wait;
    loop {
        if done() {
            return true;
        }
        if Instant::now() >= deadline {
            return false;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}
