//! What a runtime offers: the figures the selector compares (`capabilities` on the wire).

use crate::command::CommandKind;

use super::{Availability, RuntimeKind};

/// Speed, memory and isolation of a runtime, measured on this host where `measured` says so.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Features {
    /// Milliseconds from `create` to the end of the smallest program.
    pub startup_time_ms: f64,
    /// Memory of an environment while it runs that program, in MiB.
    pub memory_overhead_mb: f64,
    /// 0 to 10, by the walls that stand.
    pub isolation_level: u8,
    /// Files stay between executions.
    pub filesystem_persistence: bool,
    /// A profile may allow network.
    pub network_access: bool,
    /// Executions at once in one environment.
    pub concurrent_executions_max: u32,
    /// The two figures were measured on this host.
    pub measured: bool,
}

impl Features {
    /// Those of a runtime that this build does not have: it offers nothing.
    pub const NONE: Self = Self {
        startup_time_ms: 0.0,
        memory_overhead_mb: 0.0,
        isolation_level: 0,
        filesystem_persistence: false,
        network_access: false,
        concurrent_executions_max: 0,
        measured: false,
    };
}

/// What is known of one runtime.
#[derive(Debug, Clone, PartialEq)]
pub struct CandidateFacts {
    /// Which.
    pub kind: RuntimeKind,
    /// Whether it serves the language that is asked for.
    pub serves: bool,
    /// Commands it carries out.
    pub commands: Vec<CommandKind>,
    /// Whether it can serve now.
    pub availability: Availability,
    /// Its figures.
    pub features: Features,
    /// What it stands on: only on an image are there programs besides its own.
    pub ground: Ground,
    /// Why it could run the language only if more were installed; absent when it can.
    pub lacks: Option<String>,
}

/// What a runtime stands on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ground {
    /// An image, of the request's choice.
    Image,
    /// A root of its own, with nothing but its engine.
    Own,
}

/// One row of `runtime.list`.
#[derive(Debug, Clone, PartialEq)]
#[expect(missing_docs, reason = "the fields of PROTOCOL")]
pub struct RuntimeRow {
    pub name: String,
    pub kind: RuntimeKind,
    /// Why it is not available, with the mend; absent when it is.
    pub reason: Option<String>,
    pub languages: Vec<String>,
    pub commands: Vec<CommandKind>,
    pub features: Features,
}
