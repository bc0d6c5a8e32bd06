//! A sandbox is a list: `Spec` and host facts are compiled into a `plan::Plan`, which launcher and init carry out.
//!
//! Invariant: deciding is pure and done here; nothing in this module tree changes the host except `cgroups` and `state`.

pub mod cgroups;
pub mod compile;
pub mod contained;
pub mod doctor;
pub mod enforcement;
pub mod error;
pub mod held;
pub mod host;
pub mod profile;
pub mod spec;
pub mod state;
#[cfg(test)]
mod tests;
pub mod uid_ranges;
mod walls;
