//! CodeBeaker: untrusted code in long-lived sandboxes, driven over WebSocket JSON-RPC 2.0, without a Docker daemon.
//!
//! Modules in reading order; arrows point down only: cli → rpc → session → {selector, runtime, image} → sandbox →
//! {plan, seccomp, sys}; launcher and init → {plan, sys}.

#[cfg(test)]
mod arrows;
pub mod cli;
pub mod config;
pub mod telemetry;

pub mod rpc;

pub mod session;

pub mod allowlist;
pub mod command;
pub mod id;
pub mod language;

pub mod image;
pub mod runtime;
pub mod selector;

pub mod sandbox;

pub mod seccomp;

pub mod init;
pub mod launcher;
pub mod plan;
pub mod sys;
