//! Sessions in containers of a Docker engine, or of Podman's API of the same form: the fallback for hosts where the OS sandbox can't be
//! built.
//!
//! One container a session, with our own init as its first process: the engine builds the walls, and from then on everything –
//! programs, file commands, signals, verdicts – is what it is in the OS sandbox, by the same code. The engine is asked to make and to
//! remove, and for nothing in between. Read `container` for the walls, `contain` for the way to a session, `engine` for what happens
//! when the engine does not answer.

mod contain;
mod container;
mod engine;
pub mod find;
mod images;
mod init_files;
mod removal;

use std::path::PathBuf;
use std::sync::{Arc, Weak};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;

use crate::command::CommandKind;
use crate::language::Language;
use crate::sandbox::compile::PACKAGES;
use crate::sandbox::contained::{self, Users};
use crate::sandbox::enforcement::WallState;
use crate::sandbox::error::SandboxError;
use crate::sandbox::profile::Profile;
use crate::sandbox::state::ServerId;

use super::egress::Egress;
use super::features::Features;
use super::native::instance::NativeInstance;
use super::native::sandbox::Sandbox;
use super::native::{Maker, NativeRuntime, WarmSettings};
use super::{Availability, Instance, InstanceConfig, Permissions, Runtime, RuntimeKind};
use engine::{Engine, REMOVE_TIME};
use find::Place;

/// Figures to go by until there are measured ones.
const STARTUP_MS: f64 = 600.0;
const MEMORY_MB: f64 = 8.0;

/// The runtime.
pub struct DockerRuntime {
    engine: Arc<Engine>,
    /// For what both have: images, languages, facts of the host.
    native: Arc<NativeRuntime>,
    state_dir: PathBuf,
    itself: Weak<Self>,
}

impl DockerRuntime {
    /// Looks for the engine, and keeps looking. What containers need of this server lies in the state directory.
    pub fn start(native: Arc<NativeRuntime>, place: Place, server: ServerId, state_dir: PathBuf) -> std::io::Result<Arc<Self>> {
        let engine = Engine::start(place, server)?;
        Ok(Arc::new_cyclic(|itself| Self { engine, native, state_dir, itself: Weak::clone(itself) }))
    }

    async fn instance(&self, config: InstanceConfig) -> Result<Arc<dyn Instance>, SandboxError> {
        let runtime = self.itself.upgrade().ok_or_else(|| SandboxError::Internal("the runtime is going down".into()))?;
        let sandbox = self.sandbox(&config, 0).await?;
        Ok(NativeInstance::new(runtime, config, sandbox))
    }
}

impl Maker for DockerRuntime {
    fn made_as(&self) -> RuntimeKind {
        RuntimeKind::Docker
    }

    fn language(&self, name: &str, _: &Permissions) -> Option<Arc<Language>> {
        self.native.parts().languages.get(name)
    }

    fn step_timeout(&self) -> Duration {
        self.native.parts().step_timeout
    }

    /// None: a container is the fallback, where nothing is made before it is asked for.
    fn warm(&self) -> WarmSettings {
        WarmSettings::OFF
    }

    fn egress(&self) -> &Arc<Egress> {
        self.native.egress()
    }

    fn packages(&self) -> Option<&'static str> {
        self.native.parts().package_dir.as_ref().map(|_| PACKAGES)
    }

    fn sandbox<'a>(&'a self, config: &'a InstanceConfig, generation: u64) -> BoxFuture<'a, Result<Sandbox, SandboxError>> {
        self.contain(config, generation).boxed()
    }
}

impl Runtime for DockerRuntime {
    fn name(&self) -> &'static str {
        "container of a Docker engine"
    }

    fn kind(&self) -> RuntimeKind {
        RuntimeKind::Docker
    }

    fn languages(&self) -> Vec<String> {
        self.native.parts().languages.all().iter().map(|language| language.name.clone()).collect()
    }

    fn serves(&self, language: &str) -> bool {
        self.native.parts().languages.get(language).is_some_and(|found| found.name == language)
    }

    fn commands(&self) -> Vec<CommandKind> {
        self.kind().commands()
    }

    fn features(&self) -> Features {
        Features {
            startup_time_ms: STARTUP_MS,
            memory_overhead_mb: MEMORY_MB,
            filesystem_persistence: true,
            concurrent_executions_max: 16,
            ..Features::NONE
        }
    }

    fn availability(&self) -> Availability {
        self.engine.facts().map_or_else(Availability::Unavailable, |_| Availability::Available)
    }

    fn version(&self) -> Option<String> {
        self.engine.facts().ok().map(|facts| facts.version)
    }

    fn walls(&self, profile: &Profile) -> Vec<WallState> {
        let Some(limits) = profile.limits() else { return Vec::new() };
        let users = self.engine.facts().map_or(Users::Host, |facts| facts.users);
        contained::compile(profile, &limits, self.native.kernel(), users).1
    }

    fn brings_images(&self) -> bool {
        true
    }

    fn create(&self, config: InstanceConfig) -> BoxFuture<'_, Result<Arc<dyn Instance>, SandboxError>> {
        self.instance(config).boxed()
    }

    fn end(&self) {
        let engine = Arc::clone(&self.engine);
        self.engine.wait_for(REMOVE_TIME * 2, async move { engine.discard_all().await });
        self.engine.end();
    }
}
