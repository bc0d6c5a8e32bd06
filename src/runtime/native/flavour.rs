//! What tells one runtime in the OS sandbox from another: the root it stands on, how it runs a language, what it must learn.
//!
//! Invariant: a flavour decides and never acts; whatever it decides, the walls are the same. Read `engine` for the others.

use std::sync::Arc;
use std::time::Duration;

use crate::image::{ImageError, ImageRoot, Store};
use crate::language::Language;
use crate::runtime::features::Features;
use crate::runtime::{Availability, InstanceConfig, Permissions, RuntimeKind};
use crate::sandbox::enforcement::{WallState, WallStatus};
use crate::sandbox::error::SandboxError;
use crate::sandbox::spec::Limits;

use super::exhausted;
use super::prepare::Preparation;

/// One runtime in the OS sandbox.
pub trait Flavour: Send + Sync {
    /// Name for people.
    fn name(&self) -> &str;
    /// `type` on the wire.
    fn kind(&self) -> RuntimeKind;
    /// Whether its programs are there; whether sandboxes can be built is not its business.
    fn availability(&self) -> Availability;
    /// Figures to go by until there are measured ones: only start-up time and memory count.
    fn figures(&self) -> Features;
    /// What the sandbox stands on.
    fn root(&self, config: &InstanceConfig) -> Result<ImageRoot, SandboxError>;
    /// A word for that when it is no image of the request's choice.
    fn own_root(&self) -> Option<String>;
    /// The language as this runtime runs it; none when it does not.
    fn language(&self, language: &Arc<Language>, permissions: &Permissions) -> Option<Arc<Language>>;
    /// Whether there is such a one. Asked for each session that is made, so it copies nothing.
    fn serves(&self, language: &Language) -> bool;
    /// Version of its programs, once it is known; the main runtime's is this program's.
    fn version(&self) -> Option<String>;
    /// What becomes of the permissions that a request names: a row of `enforcement`.
    fn permissions_row(&self, permissions: &Permissions) -> WallState;
    /// What has to be asked in a sandbox before the first session: program and arguments. None once there is an answer.
    fn question(&self) -> Option<Vec<String>>;
    /// Takes what the program printed, or why it could not be asked.
    fn learned(&self, answer: Result<String, String>);
    /// Why it could run the language only if more were installed, with the mend.
    fn lacks(&self, _: &Language) -> Option<String> {
        None
    }
    /// What has to be made in a sandbox before the first session in this language.
    fn preparation(&self, _: &Language) -> Option<Preparation> {
        None
    }
    /// Takes what was made, or why it could not be; the error is a sentence.
    fn prepared(&self, _: &Language, made: Result<Vec<u8>, String>) -> Result<(), String> {
        made.map(|_| ())
    }
    /// What each of its programs is told of its limits; a client's variables of the same names give way.
    fn variables(&self, _: &Limits, _: Duration) -> Vec<(String, String)> {
        Vec::new()
    }
    /// What its programs mean by ending with that signal, besides what every program means.
    fn word(&self, _signal: i32) -> Option<Word> {
        None
    }
}

/// What a program that bounds others says of their end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Word {
    /// The time that the command has was over.
    TimeIsUp,
    /// What ran in it failed after memory was refused to it.
    MemoryRefused,
}

/// The main runtime: any image of the store, any language.
pub(super) struct Images {
    pub(super) store: Arc<Store>,
}

impl Flavour for Images {
    fn name(&self) -> &'static str {
        "OS sandbox"
    }

    fn kind(&self) -> RuntimeKind {
        RuntimeKind::NativeProcess
    }

    fn availability(&self) -> Availability {
        Availability::Available
    }

    fn figures(&self) -> Features {
        Features { startup_time_ms: 5.0, memory_overhead_mb: 1.0, ..Features::NONE }
    }

    fn root(&self, config: &InstanceConfig) -> Result<ImageRoot, SandboxError> {
        self.store.resolve(&config.image).map_err(|error| match error {
            ImageError::NotFound { .. } | ImageError::OtherDigest { .. } | ImageError::NameInvalid { .. } => {
                SandboxError::ImageNotFound { image: config.image.clone() }
            }
            error => exhausted(&error).unwrap_or_else(|| SandboxError::Internal(error.to_string())),
        })
    }

    fn own_root(&self) -> Option<String> {
        None
    }

    fn language(&self, language: &Arc<Language>, _: &Permissions) -> Option<Arc<Language>> {
        Some(Arc::clone(language))
    }

    fn serves(&self, _: &Language) -> bool {
        true
    }

    fn version(&self) -> Option<String> {
        Some(env!("CARGO_PKG_VERSION").into())
    }

    fn permissions_row(&self, _: &Permissions) -> WallState {
        let detail = "a program of an image takes no permission flags; the sandbox's walls hold for it";
        WallState { name: "permissions".into(), state: WallStatus::Absent, detail: detail.into() }
    }

    fn question(&self) -> Option<Vec<String>> {
        None
    }

    fn learned(&self, _: Result<String, String>) {}
}
