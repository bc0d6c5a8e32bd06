//! One file a wall, named by its section of the OCI runtime specification. Each adds its steps and its rows to a draft.

pub(super) mod cgroup;
pub(super) mod devices;
pub(super) mod landlock;
pub(super) mod namespaces;
pub(super) mod proc;
pub(super) mod program;
pub(super) mod rlimits;
pub(super) mod root;
pub(super) mod user;
