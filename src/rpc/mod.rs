//! The wire: JSON-RPC 2.0 over WebSocket and HTTP, on one port.
//!
//! Invariants: jsonrpsee, axum and hyper are named here and nowhere else; every request passes `gate` (Host, Origin, token)
//! and then `middleware` (rate and in-flight bounds), also inside a batch and as a notification; a call takes its place in
//! its session's queue before anything is awaited.
//!
//! Read `api` first, then `types`, `convert` and `handler`; `server` puts them on a port.

pub mod api;
pub mod auth;
mod connection;
pub mod convert;
pub mod error;
mod gate;
mod handler;
mod middleware;
pub mod openrpc;
pub mod params;
pub mod render;
pub mod results;
pub mod server;
mod stream;
pub mod types;

#[cfg(test)]
mod testing;
#[cfg(test)]
mod wire_tests;
