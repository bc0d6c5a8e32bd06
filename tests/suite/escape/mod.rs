//! Escape tests in pairs: what a program cannot do inside a session, beside what the same probe can do with that wall
//! weaker (another profile) or on its own side of the wall. Nothing here ever probes the bare host.

mod blocked;
mod engines;
mod golden;
mod identity;
mod isolates;
mod kernel;
mod places;
mod races;
mod setup;
mod spares;
mod starts;
mod walls;

use serde_json::{Value, json};

use crate::support::{Feature, Session, Setup, host};

pub fn trials() -> Vec<libtest_mimic::Trial> {
    let attempts = [identity::trials(), kernel::trials(), places::trials(), races::trials(), setup::trials()];
    let lists = [
        blocked::trials(),
        engines::trials(),
        golden::trials(),
        isolates::trials(),
        spares::trials(),
        starts::trials(),
        walls::trials(),
    ];
    attempts.into_iter().chain(lists).flatten().collect()
}

/// The profiles, weakest last.
const PROFILES: [&str; 3] = ["strict", "default", "permissive"];

/// Runs a probe under a profile; it prints one JSON value.
#[track_caller]
fn probe_under(profile: &str, code: &str) -> Value {
    host().need(Feature::Python);
    let server = Setup::plain().shared();
    let mut session = Session::open(&server, &json!({"profile": profile}));
    session.run_json(&crate::support::python::probe(code))
}
