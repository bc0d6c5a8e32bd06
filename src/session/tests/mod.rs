//! Tests of sessions against a simulated runtime: no process is started. Read `simulated` first.

mod executions;
mod lifecycle;
mod random;
pub(crate) mod simulated;
