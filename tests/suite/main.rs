//! The integration suite: CodeBeaker from outside, over a real WebSocket to the real binary.
//!
//! Every trial's name is a sentence. Trials are independent of their order; most share one server per configuration. After
//! the last one every shared server ends on SIGTERM, and whatever is left on the host fails the run. Options are those of
//! libtest (`--help`). `CODEBEAKER_TEST_REQUIRE` names host features that must be there. Read `support` next.

mod ahead;
mod bench;
mod cli;
mod conformance;
mod delegation;
mod docker;
mod egress;
mod engines;
mod escape;
mod faults;
mod images;
mod languages;
mod lifecycle;
mod limits;
mod neighbours;
mod pool;
mod recipes;
mod rootless;
mod seccomp;
mod seccomp_oracle;
mod service;
mod soak;
mod support;
mod warm;
mod wasm;

use std::process::ExitCode;

fn main() -> ExitCode {
    ExitCode::from(support::trial::run(trials, support::setup::end_shared))
}

/// Every trial of the suite, made anew at each call.
fn trials() -> Vec<libtest_mimic::Trial> {
    let mut trials = Vec::new();
    trials.extend(support::trial::trials());
    trials.extend(support::residue::trials());
    trials.extend(support::server::trials());
    trials.extend(support::http::trials());
    trials.extend(conformance::trials());
    trials.extend(limits::trials());
    trials.extend(delegation::trials());
    trials.extend(escape::trials());
    trials.extend(faults::trials());
    trials.extend(lifecycle::trials());
    trials.extend(neighbours::trials());
    trials.extend(pool::trials());
    trials.extend(ahead::trials());
    trials.extend(rootless::trials());
    trials.extend(service::trials());
    trials.extend(soak::trials());
    trials.extend(images::trials());
    trials.extend(recipes::trials());
    trials.extend(languages::trials());
    trials.extend(egress::trials());
    trials.extend(engines::trials());
    trials.extend(docker::trials());
    trials.extend(warm::trials());
    trials.extend(warm::prestarted::trials());
    trials.extend(wasm::trials());
    trials.extend(cli::trials());
    trials.extend(seccomp::trials());
    trials.extend(seccomp_oracle::trials());
    trials
}
