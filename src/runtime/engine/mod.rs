//! Deno, Bun and Node: an engine as a process in the OS sandbox, on a root that holds little but the engine.
//!
//! Invariants: the walls are those of every sandbox (`native`); the engine's own permission flags come on top and are the same
//! for every program of a session; what an engine can do follows from its version, which it is asked for in a sandbox once.
//! Read `find` for where engines are, `permissions` for the flags.

pub mod find;
pub mod permissions;

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use crate::image::minimal::{self, MinimalRoot};
use crate::image::{ImageRoot, Store};
use crate::language::Language;
use crate::language::engines::{Engine, EngineVersion};
use crate::sandbox::enforcement::WallState;
use crate::sandbox::error::SandboxError;

use super::features::Features;
use super::native::{Flavour, NativeRuntime, exhausted};
use super::{Availability, InstanceConfig, Permissions, RuntimeKind};
use find::{Found, Place, find};

/// Where engines are looked for.
#[derive(Debug, Clone)]
pub struct EnginePlaces {
    /// What the configuration says of each.
    pub named: Vec<(Engine, &'static str, Place)>,
    /// Directories of programs, in this order.
    pub directories: Vec<PathBuf>,
}

/// The runtimes of all engines, behind the walls of `native`; one that is not found says so in its availability.
pub fn runtimes(native: &NativeRuntime, places: &EnginePlaces, store: &Arc<Store>) -> Vec<Arc<NativeRuntime>> {
    let runtime = |(engine, key, place): &(Engine, &'static str, Place)| {
        let uses = Uses { kind: RuntimeKind::of(*engine), since: EngineVersion(0, 0, 0), modules: &[] };
        native.with(Box::new(EngineFlavour::at(*engine, uses, (key, place), places, store)))
    };
    places.named.iter().map(runtime).collect()
}

impl RuntimeKind {
    fn of(engine: Engine) -> Self {
        match engine {
            Engine::Deno => Self::Deno,
            Engine::Bun => Self::Bun,
            Engine::NodeJs => Self::NodeJs,
            Engine::WebAssembly => Self::WebAssembly,
        }
    }
}

/// What an engine is used for.
#[derive(Debug, Clone, Copy)]
pub struct Uses {
    /// The runtime that it is.
    pub kind: RuntimeKind,
    /// The oldest version that serves.
    pub since: EngineVersion,
    /// Files of our own in its root: path and contents.
    pub modules: &'static [(&'static str, &'static str)],
}

/// One engine as a runtime.
pub struct EngineFlavour {
    engine: Engine,
    uses: Uses,
    /// Of the configuration, for what people are told.
    key: &'static str,
    place: Place,
    directories: Vec<PathBuf>,
    store: Arc<Store>,
    state: Mutex<State>,
}

/// What is known of it.
struct State {
    found: Result<Found, String>,
    version: Version,
    /// The root, once a session has needed it; it keeps the skeleton from being cleared away.
    root: Option<ImageRoot>,
}

enum Version {
    Unknown,
    Is(EngineVersion),
    Untold(String),
}

impl State {
    fn of(found: Result<Found, String>) -> Self {
        Self { found, version: Version::Unknown, root: None }
    }

    fn version(&self) -> Option<EngineVersion> {
        match &self.version {
            Version::Is(version) => Some(*version),
            Version::Unknown | Version::Untold(_) => None,
        }
    }
}

impl EngineFlavour {
    /// The engine at the place that is named for it; none when none is.
    pub fn of(engine: Engine, uses: Uses, places: &EnginePlaces, store: &Arc<Store>) -> Option<Self> {
        let (_, key, place) = places.named.iter().find(|(named, ..)| *named == engine)?;
        Some(Self::at(engine, uses, (key, place), places, store))
    }

    fn at(engine: Engine, uses: Uses, named: (&'static str, &Place), places: &EnginePlaces, store: &Arc<Store>) -> Self {
        let (key, place) = named;
        Self {
            engine,
            uses,
            key,
            place: place.clone(),
            directories: places.directories.clone(),
            store: Arc::clone(store),
            state: Mutex::new(State::of(find(engine, key, place, &places.directories, store))),
        }
    }

    fn with<T>(&self, work: impl FnOnce(&mut State) -> T) -> T {
        work(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Looks again when the program is another one by now: an upgrade while the server runs.
    fn refresh(&self, state: &mut State) {
        let stale = matches!(&state.found, Ok(Found::Program(root)) if !root.is_current());
        if stale {
            *state = State::of(find(self.engine, self.key, &self.place, &self.directories, &self.store));
        }
    }

    /// Before it has told its version, what every version can do counts.
    fn version_or_oldest(&self) -> EngineVersion {
        self.with(|state| state.version()).unwrap_or(EngineVersion(0, 0, 0))
    }

    fn minimal(&self, root: &MinimalRoot) -> Result<ImageRoot, SandboxError> {
        let root = root.clone().with_texts(self.uses.modules);
        match self.engine.parts_mark() {
            Some(mark) => root.with_parts(mark),
            None => root,
        }
        .resolve(&self.store)
        .map_err(|error| exhausted(&error).unwrap_or_else(|| SandboxError::Internal(error.to_string())))
    }
}

impl Flavour for EngineFlavour {
    fn name(&self) -> &'static str {
        match (self.uses.kind, self.engine) {
            (RuntimeKind::V8Isolate, _) => "V8 isolates in an engine in the OS sandbox",
            (_, Engine::Deno) => "Deno in the OS sandbox",
            (_, Engine::Bun) => "Bun in the OS sandbox",
            (_, Engine::NodeJs) => "Node.js in the OS sandbox",
            (_, Engine::WebAssembly) => "WebAssembly in the OS sandbox",
        }
    }

    fn kind(&self) -> RuntimeKind {
        self.uses.kind
    }

    fn availability(&self) -> Availability {
        self.with(|state| match (&state.found, &state.version) {
            (Err(reason), _) => Availability::Unavailable(reason.clone()),
            (Ok(_), Version::Untold(cause)) => Availability::Unavailable(format!(
                "it did not tell its version when a program that prints it was run in a sandbox: {cause}; name another one with `{}`",
                self.key
            )),
            (Ok(Found::Image(image)), _) if !self.uses.modules.is_empty() => Availability::Unavailable(format!(
                "it takes an engine of the host, and what was found is in the image `{image}`; name a program with `{}`",
                self.key
            )),
            (Ok(_), Version::Is(version)) if *version < self.uses.since => Availability::Unavailable(format!(
                "it takes {} {} or later, and what was found is {version}; name another one with `{}`",
                self.engine.program(),
                self.uses.since,
                self.key
            )),
            (Ok(_), Version::Unknown | Version::Is(_)) => Availability::Available,
        })
    }

    fn figures(&self) -> Features {
        Features { startup_time_ms: 60.0, memory_overhead_mb: 60.0, ..Features::NONE }
    }

    fn root(&self, _: &InstanceConfig) -> Result<ImageRoot, SandboxError> {
        self.with(|state| {
            self.refresh(state);
            if let Some(root) = &state.root {
                return Ok(root.clone());
            }
            let root = match &state.found {
                Ok(Found::Program(root)) => self.minimal(root)?,
                Ok(Found::Image(image)) => {
                    // Not kept: an image that nobody uses may be removed.
                    return self.store.resolve(image).map_err(|_| SandboxError::ImageNotFound { image: image.clone() });
                }
                Err(cause) => {
                    return Err(SandboxError::RuntimeUnusable { runtime: self.kind().name().into(), cause: cause.clone() });
                }
            };
            Ok(state.root.insert(root).clone())
        })
    }

    fn own_root(&self) -> Option<String> {
        self.with(|state| match &state.found {
            Ok(Found::Image(image)) => Some(image.clone()),
            Ok(Found::Program(_)) | Err(_) => Some(minimal::NAME.into()),
        })
    }

    fn language(&self, language: &Arc<Language>, permissions: &Permissions) -> Option<Arc<Language>> {
        let version = self.version_or_oldest();
        let flags = permissions::flags(self.engine, version, language, permissions);
        language.on(self.engine, version, &flags).map(Arc::new)
    }

    fn serves(&self, language: &Language) -> bool {
        language.plan_for(self.engine, self.version_or_oldest()).is_some()
    }

    fn permissions_row(&self, _: &Permissions) -> WallState {
        permissions::row(self.engine, self.with(|state| state.version()))
    }

    fn version(&self) -> Option<String> {
        self.with(|state| state.version()).map(|version| version.to_string())
    }

    fn question(&self) -> Option<Vec<String>> {
        self.with(|state| {
            self.refresh(state);
            matches!((&state.found, &state.version), (Ok(_), Version::Unknown)).then(|| self.engine.question())
        })
    }

    fn learned(&self, answer: Result<String, String>) {
        let version = match answer.map(|text| EngineVersion::find(&text)) {
            Ok(Some(version)) => Version::Is(version),
            Ok(None) => Version::Untold("what it printed holds no version".into()),
            Err(cause) => Version::Untold(cause),
        };
        self.with(|state| state.version = version);
    }
}
