//! What an environment asks of the runtime that made it, so that the same environment serves for sandboxes of other makers.
//!
//! Invariant: every sandbox that a maker gives has an init that speaks `plan::messages`. Read `instance` next, and `docker` for the
//! other maker.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;

use crate::language::Language;
use crate::runtime::egress::Egress;
use crate::runtime::{InstanceConfig, Permissions, RuntimeKind};
use crate::sandbox::error::SandboxError;
use crate::sandbox::spec::Limits;

use super::Word;
use super::sandbox::Sandbox;
use super::warm::WarmSettings;

/// Who makes the sandboxes of an environment.
pub trait Maker: Send + Sync {
    /// Which runtime it is.
    fn made_as(&self) -> RuntimeKind;
    /// The language of that name as this runtime runs it under these permissions.
    fn language(&self, name: &str, permissions: &Permissions) -> Option<Arc<Language>>;
    /// Wall time of a compiler or an installer.
    fn step_timeout(&self) -> Duration;
    /// What is said of warm interpreters in its sandboxes.
    fn warm(&self) -> WarmSettings;
    /// Where installers find packages, when the operator has given any.
    fn packages(&self) -> Option<&'static str>;
    /// The ways out of sandboxes.
    fn egress(&self) -> &Arc<Egress>;
    /// What each program is told of its limits, and how long it may run.
    fn variables(&self, _: &Limits, _: Duration) -> Vec<(String, String)> {
        Vec::new()
    }
    /// What programs mean by ending with that signal, besides what every program means.
    fn word(&self, _signal: i32) -> Option<Word> {
        None
    }
    /// A command begins in one of its sandboxes.
    fn command_begins(&self) {}
    /// A sandbox whose walls stand; `generation` counts those that an environment has had.
    fn sandbox<'a>(&'a self, config: &'a InstanceConfig, generation: u64) -> BoxFuture<'a, Result<Sandbox, SandboxError>>;
}
