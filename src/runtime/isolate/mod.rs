//! V8 isolates: many sessions in one engine, which stands in the OS sandbox.
//!
//! Invariants: an engine holds sessions of one principal and one profile only; what a session's isolates may reach is its own
//! directory; the row `own_sandbox` of `enforcement` says that the sandbox is shared, and the isolation level follows from it. The
//! engine is Deno, whose workers have permissions of their own: docs/decisions/0054. Read `seats` and `engine`, then `instance` and `run`.

mod cell;
mod engine;
mod files;
mod instance;
mod run;
mod seats;
mod spares;
mod wire;

use std::num::NonZeroU64;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;

use crate::command::CommandKind;
use crate::id::EnvironmentId;
use crate::image::Store;
use crate::language::engines::{Engine as EngineName, EngineVersion};
use crate::sandbox::enforcement::{Enforcement, WallState, WallStatus};
use crate::sandbox::error::SandboxError;
use crate::sandbox::held;
use crate::sandbox::profile::{Network, Profile};
use crate::sandbox::spec::{Limits, NamedLimits};

use super::egress::NetworkGrant;
use super::engine::{EngineFlavour, EnginePlaces, Uses};
use super::features::Features;
use super::isolation::OWN_SANDBOX;
use super::native::NativeRuntime;
use super::{Availability, Instance, InstanceConfig, Runtime, RuntimeKind, Wants};
use engine::Engine;
use instance::{IsolateInstance, Parts};
use seats::{Key, Number, Room, Seat, Seats, Start};

/// The oldest Deno whose workers keep to limits of their own; older ones have not been tried.
const SINCE: EngineVersion = EngineVersion(2, 9, 0);

/// How long an engine without a session waits for the next one.
const IDLE_TIME: Duration = Duration::from_secs(60);

/// Threads and descriptors of an engine: each isolate has a few of its own.
const PIDS_OF_AN_ISOLATE: u64 = 16;
const OPEN_FILES_MIN: u64 = 4096;

/// How many isolates there may be, and how much they may take together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IsolateBounds {
    /// Sessions in one engine.
    pub sessions_max: u64,
    /// Engines at once.
    pub engines_max: u64,
    /// Executions after which an engine takes no further session.
    pub executions_max: u64,
    /// Places of an engine that are opened before their session comes.
    pub spares_max: u64,
    /// Memory of one engine with all its isolates and files.
    pub memory_bytes: NonZeroU64,
}

/// The runtime.
pub struct IsolateRuntime {
    native: Arc<NativeRuntime>,
    bounds: IsolateBounds,
    seats: Mutex<Seats<Engine>>,
    itself: Weak<Self>,
}

impl IsolateRuntime {
    /// Behind the walls of `native`, on the Deno that is found at these places.
    pub fn new(native: &NativeRuntime, places: &EnginePlaces, store: &Arc<Store>, bounds: IsolateBounds) -> Option<Arc<Self>> {
        let uses = Uses { kind: RuntimeKind::V8Isolate, since: SINCE, modules: &files::MODULES };
        let flavour = EngineFlavour::of(EngineName::Deno, uses, places, store)?;
        let native = native.with(Box::new(flavour));
        Some(Arc::new_cyclic(|itself| Self {
            native,
            bounds,
            seats: Mutex::new(Seats::new(bounds)),
            itself: Weak::clone(itself),
        }))
    }

    /// The lock is held for a look and a change, never while an engine starts.
    fn seats(&self) -> MutexGuard<'_, Seats<Engine>> {
        self.seats.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An engine with a place for one more session, and the place. Nobody waits for an engine that starts for others.
    async fn place(&self, config: &InstanceConfig) -> Result<(Arc<Engine>, engine::Held), SandboxError> {
        let key = Key { owner: config.owner.clone(), profile: config.profile.name.clone() };
        loop {
            match self.look(&key)? {
                Found::Place(engine, held) => return Ok((engine, held)),
                Found::Start(mut start) => start.over().await?,
                Found::Turn(ticket) => return self.start(ticket, config, key).await,
            }
        }
    }

    fn look(&self, key: &Key) -> Result<Found<'_>, SandboxError> {
        let mut seats = self.seats();
        Ok(match seats.look(key) {
            Seat::In(engine) => {
                let held = engine.hold();
                Found::Place(engine, held)
            }
            Seat::Soon(start) => Found::Start(start),
            Seat::New(number) => Found::Turn(Ticket { runtime: self, number }),
            Seat::None => {
                let cause = format!("all {} engines of isolates are in use", self.bounds.engines_max);
                return Err(SandboxError::Busy { cause });
            }
        })
    }

    async fn start(
        &self,
        ticket: Ticket<'_>,
        config: &InstanceConfig,
        key: Key,
    ) -> Result<(Arc<Engine>, engine::Held), SandboxError> {
        let started = Engine::start(&self.native, &self.engine_config(config), key, self.bounds).await;
        let mut seats = self.seats();
        match &started {
            Ok(engine) => {
                let held = engine.hold();
                seats.stands(ticket.number, Arc::clone(engine));
                Ok((Arc::clone(engine), held))
            }
            Err(error) => {
                seats.failed(ticket.number, error);
                Err(error.clone())
            }
        }
    }

    /// A session has left: an engine that stays empty is ended after a while.
    pub(super) fn left(&self, engine: &Arc<Engine>) {
        self.seats().clear();
        if engine.sessions() > 0 {
            return;
        }
        let (runtime, engine) = (Weak::clone(&self.itself), Arc::downgrade(engine));
        tokio::spawn(async move {
            tokio::time::sleep(IDLE_TIME).await;
            let (Some(runtime), Some(engine)) = (runtime.upgrade(), engine.upgrade()) else { return };
            let mut seats = runtime.seats();
            if engine.sessions() == 0 {
                engine.give_up("nobody was in it");
                seats.clear();
            }
        });
    }

    /// What an engine's own sandbox is asked to be: as large as its isolates are together, within the bound.
    fn engine_config(&self, config: &InstanceConfig) -> InstanceConfig {
        let memory = self.bounds.memory_bytes;
        let of_all = |one: u64| one.saturating_mul(self.bounds.sessions_max);
        let limits = Limits {
            memory_bytes: memory,
            pids: of_all(PIDS_OF_AN_ISOLATE),
            disk_bytes: of_all(config.limits.disk_bytes).min(memory.get() / 2),
            inodes: of_all(config.limits.inodes),
            cpu_cores: None,
            open_files: config.limits.open_files.max(OPEN_FILES_MIN),
            ..config.limits.clone()
        };
        InstanceConfig {
            environment_id: EnvironmentId::random(),
            limits,
            named_limits: NamedLimits::default(),
            permissions: None,
            network: NetworkGrant::default(),
            wants: Wants::New,
            ..config.clone()
        }
    }

    async fn open(&self, config: InstanceConfig) -> Result<Arc<IsolateInstance>, SandboxError> {
        let runtime = self.itself.upgrade().ok_or_else(|| SandboxError::Internal("the runtime is going down".into()))?;
        let rows = limit_rows(&config.limits);
        held::refuse_named(config.named_limits, &rows)?;
        self.native.ask_what_it_is(&config).await?;
        let (engine, held) = self.place(&config).await?;
        let mut enforcement: Enforcement = engine.sandbox().enforcement().clone();
        enforcement.limits = rows;
        enforcement.walls.push(own_sandbox_row());
        enforcement.walls.push(permissions_row());
        let parts = Parts { runtime, engine, held, config, enforcement };
        IsolateInstance::open(parts).await.map_err(|failure| SandboxError::Busy { cause: failure.message })
    }
}

/// What a look for a place has found.
enum Found<'a> {
    Place(Arc<Engine>, engine::Held),
    Start(Start),
    Turn(Ticket<'a>),
}

/// The turn to start an engine. Whoever lets go of it before the engine stands leaves it to another one.
struct Ticket<'a> {
    runtime: &'a IsolateRuntime,
    number: Number,
}

impl Drop for Ticket<'_> {
    fn drop(&mut self) {
        self.runtime.seats().given_up(self.number);
    }
}

fn own_sandbox_row() -> WallState {
    let detail = "shared with other sessions of the same principal: between them stand V8 and the engine's permissions";
    WallState { name: OWN_SANDBOX.into(), state: WallStatus::Absent, detail: detail.into() }
}

fn permissions_row() -> WallState {
    let detail = "the engine's own: the session's /workspace and /tmp, whatever else the request names; no network, no variables of the engine";
    WallState { name: "permissions".into(), state: WallStatus::Degraded, detail: detail.into() }
}

/// One row a limit, as `sandbox::held` has them: what bounds one isolate, and what only bounds all of an engine.
fn limit_rows(limits: &Limits) -> Vec<WallState> {
    let row = |name: &str, state, detail: String| WallState { name: name.into(), state, detail };
    let shared =
        |name: &str, what: &str| row(name, WallStatus::Absent, format!("{what}, which the sessions of an engine share"));
    let memory = format!("{} MiB of heap and of what the kernel counts for its thread", limits.memory_bytes.get() >> 20);
    vec![
        row("memory", WallStatus::Enforced, memory),
        shared("pids", "an isolate has no processes; the threads are the engine's"),
        shared("cpu", "the engine's share"),
        shared("io", "the engine's bound"),
        shared("disk", "the engine's tmpfs"),
        shared("inodes", "the engine's tmpfs"),
        row("open_files", WallStatus::Degraded, "RLIMIT_NOFILE of the engine, which its sessions share".into()),
        row("output", WallStatus::Enforced, format!("ended past {} MiB", limits.output_killed_bytes >> 20)),
        row("wall_time", WallStatus::Enforced, wall_time(limits)),
    ]
}

fn wall_time(limits: &Limits) -> String {
    format!("{} s, at most {} s", limits.timeout.as_secs(), limits.timeout_max.as_secs())
}

impl Runtime for IsolateRuntime {
    fn name(&self) -> &str {
        self.native.name()
    }

    fn kind(&self) -> RuntimeKind {
        RuntimeKind::V8Isolate
    }

    fn languages(&self) -> Vec<String> {
        self.native.languages()
    }

    fn serves(&self, language: &str) -> bool {
        self.native.serves(language)
    }

    fn commands(&self) -> Vec<CommandKind> {
        self.kind().commands()
    }

    fn features(&self) -> Features {
        Features { network_access: false, ..self.native.features() }
    }

    fn availability(&self) -> Availability {
        self.native.availability()
    }

    fn refuses(&self, profile: &Profile) -> Option<String> {
        match profile.network {
            Network::Loopback | Network::Egress => None,
            Network::None => Some(format!(
                "its engine speaks to its own inspector on a loopback, which the profile `{}` has not; name another profile, or take Deno",
                profile.name
            )),
        }
    }

    fn version(&self) -> Option<String> {
        self.native.version()
    }

    fn walls(&self, profile: &Profile) -> Vec<WallState> {
        let mut walls = self.native.walls(profile);
        walls.push(own_sandbox_row());
        walls
    }

    fn own_root(&self) -> Option<String> {
        self.native.own_root()
    }

    fn learn(&self, config: InstanceConfig) -> BoxFuture<'_, ()> {
        self.native.learn(config)
    }

    fn create(&self, config: InstanceConfig) -> BoxFuture<'_, Result<Arc<dyn Instance>, SandboxError>> {
        async move {
            let instance: Arc<dyn Instance> = self.open(config).await?;
            Ok(instance)
        }
        .boxed()
    }
}
