//! What every module of the suite stands on: trials and explicit skips, the server fixture, sessions, the residue harness.
//!
//! Invariant: nothing here uses the server's code; it is a stranger that knows the wire, the command line and /proc. Panics
//! are failures. Read `trial` for how a test is written, `server` for the fixture, `residue` for what must not be left.

pub mod cli;
pub mod dockerd;
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

use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// How many times slower than an ordinary host this one starts a program; 1 at least. Every bound on a wait is stretched by it,
/// so that a claim about time means the same on an emulated machine.
pub fn pace() -> u32 {
    static PACE: OnceLock<u32> = OnceLock::new();
    /// What an ordinary host needs, and what it needs when it is busy.
    const START_TIME: Duration = Duration::from_micros(500);
    const BUSY_TIME: Duration = Duration::from_millis(3);
    *PACE.get_or_init(|| {
        let start = || {
            let begin = Instant::now();
            std::process::Command::new("/bin/true").status().expect("/bin/true is there");
            begin.elapsed()
        };
        // The least of several: a host that is only busy is not slow.
        let least = (0..10).map(|_| start()).min().unwrap_or_default();
        if least < BUSY_TIME {
            return 1;
        }
        u32::try_from(least.as_micros() / START_TIME.as_micros()).unwrap_or(u32::MAX).min(20)
    })
}

/// Asks `done` until it says true or `wait` is over; the answer is whether it said true.
pub fn eventually(wait: Duration, mut done: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + wait * pace();
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
