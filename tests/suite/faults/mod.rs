//! What fails: each step of a plan, each system call of a deed, and processes killed between any two of them.
//!
//! Invariant: faults come from outside or in the place of a step; the binary that is tested is the one that ships, and it holds
//! no fault point. Read `steps` for failing plan steps, `calls` for failing system calls, `kills` for deaths, `points` for how many of
//! them a run tries.

mod calls;
mod kills;
mod points;
mod replace;
mod steps;
mod tracer;
mod walls;
mod world;

pub fn trials() -> Vec<libtest_mimic::Trial> {
    let mut trials = points::trials();
    trials.extend(steps::trials());
    trials.extend(calls::trials());
    trials.extend(kills::trials());
    trials.extend(replace::trials());
    trials
}
