//! Keeps sandboxes ready: beside requests, never on the way of one.
//!
//! Invariants: what the pool holds ends with it; a kind whose image means something else by now is taken away; a request takes what is
//! ready or goes the cold way, and waits for nobody here.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use futures_util::stream::{FuturesUnordered, StreamExt};
use tokio::sync::Notify;
use tokio::time::MissedTickBehavior;

use crate::id::EnvironmentId;
use crate::image::ImageRoot;
use crate::runtime::InstanceConfig;
use crate::runtime::egress::NetworkGrant;
use crate::sandbox::error::SandboxError;
use crate::sandbox::spec::NamedLimits;

use super::NativeRuntime;
use super::build::Name;
use super::instance::environment;
use super::pool::{Found, LULL, Next, PoolBounds, Shelves};
use super::ready::{Interpreter, Kind, Ready, Unfit};
use super::sandbox::Sandbox;
use super::uses::{Use, Uses};
use super::warm::{self, Kept};

/// Fillings at once: while init builds one's walls the launcher clones the next.
const FILLINGS_MAX: usize = 2;

/// Between two looks for images that changed and sandboxes that ended by themselves.
const LOOK_INTERVAL: Duration = Duration::from_secs(5);

/// The ready sandboxes of all runtimes in the OS sandbox.
pub(super) struct Pool {
    state: Mutex<State>,
    wake: Arc<Notify>,
}

struct State {
    shelves: Shelves<Kind, Arc<Recipe>, Ready>,
    phase: Phase,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Nobody fills it: nothing is ready, and nothing is noted.
    Idle,
    Kept,
    /// For good.
    Closed,
}

/// How one of a kind is made: by whom, and for which request without what is that request's own.
pub(super) struct Recipe {
    runtime: Weak<NativeRuntime>,
    config: InstanceConfig,
    uses: Arc<Uses>,
}

impl Recipe {
    /// None for a profile without limits of its own. `wake` is told when sandboxes with interpreters are wanted again.
    fn of(runtime: &NativeRuntime, config: &InstanceConfig, wake: &Arc<Notify>) -> Option<Arc<Self>> {
        let limits = config.profile.limits()?;
        let config = InstanceConfig {
            environment_id: EnvironmentId::random(),
            owner: String::new(),
            limits,
            named_limits: NamedLimits::default(),
            env: BTreeMap::new(),
            persist_filesystem: true,
            network: NetworkGrant::None,
            ..config.clone()
        };
        let uses = Arc::new(Uses::new(Arc::clone(wake)));
        Some(Arc::new(Self { runtime: Weak::clone(&runtime.itself), config, uses }))
    }
}

/// Why a filling gave nothing.
enum Spoiled {
    /// The kind is not what it was: its image is gone or another one.
    Changed,
    Failed(SandboxError),
    Unfit(Unfit),
}

type Filling = BoxFuture<'static, (Kind, Instant, Result<Ready, Spoiled>)>;

impl Pool {
    pub(super) fn new(bounds: PoolBounds) -> Self {
        let phase = if bounds.sandboxes_max == 0 { Phase::Closed } else { Phase::Idle };
        Self { state: Mutex::new(State { shelves: Shelves::new(bounds, Instant::now()), phase }), wake: Arc::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends what is ready, for good.
    pub(super) fn close(&self) {
        let mut state = self.state();
        state.phase = Phase::Closed;
        let ready = state.shelves.retain(|_| false);
        drop(state);
        drop(ready);
        self.wake.notify_one();
    }

    /// A command begins: nothing is made ready for a moment.
    pub(super) fn put_off(&self) {
        self.state().shelves.put_off(Instant::now());
    }

    /// One of the kind that `config` wants; none when a new one has to be made. Either way the kind that it is of, where there is such a one.
    /// Within a tokio runtime.
    pub(super) fn take(
        &self,
        runtime: &NativeRuntime,
        config: &InstanceConfig,
        image: &ImageRoot,
    ) -> (Option<Sandbox>, Option<Arc<Recipe>>) {
        if self.state().phase != Phase::Kept {
            return (None, None);
        }
        let (Some(kind), Some(recipe)) = (runtime.kind_of(config, image), Recipe::of(runtime, config, &self.wake)) else {
            return (None, None);
        };
        let (dead, found, recipe) = {
            let mut state = self.state();
            let dead = state.shelves.retain(Ready::is_alive);
            let found = state.shelves.take(&kind, Instant::now(), |ready| ready.suits(&config.limits), || recipe);
            state.tell();
            (dead, found, state.shelves.recipe(&kind))
        };
        discard(dead, "dead");
        let wake = Arc::clone(&self.wake);
        // Woken while one takes what is ready, the keeper would have a processor before whoever waits for the answer.
        tokio::spawn(async move {
            tokio::time::sleep(LULL).await;
            wake.notify_one();
        });
        (claimed(found, runtime, config, image), recipe)
    }

    /// Keeps it filled until it is closed.
    pub(super) async fn keep(&self) {
        {
            let mut state = self.state();
            if state.phase != Phase::Idle {
                return;
            }
            state.phase = Phase::Kept;
        }
        let mut fillings: FuturesUnordered<Filling> = FuturesUnordered::new();
        let mut looks = tokio::time::interval(LOOK_INTERVAL);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let Some(pause) = self.begin(&mut fillings) else { return };
            tokio::select! {
                Some((kind, begin, filled)) = fillings.next(), if !fillings.is_empty() => self.filled(&kind, begin, filled),
                () = self.wake.notified() => {}
                () = tokio::time::sleep_until(pause.into()) => {}
                _ = looks.tick() => self.look(),
            }
        }
    }

    /// Begins what is to be begun; when to come back at the latest. None: it is closed.
    fn begin(&self, fillings: &mut FuturesUnordered<Filling>) -> Option<Instant> {
        let now = Instant::now();
        let mut later = now + LOOK_INTERVAL;
        if fillings.len() < FILLINGS_MAX {
            let outdated = {
                let mut state = self.state();
                let outdated = state.shelves.outdated(now, Ready::is_as_wanted);
                if outdated.is_none() {
                    let due = state.shelves.outdated_at(now, Ready::is_as_wanted);
                    later = due.map_or(later, |due| due.min(later));
                }
                state.tell();
                outdated
            };
            discard(outdated.into_iter().collect(), "interpreter");
        }
        while fillings.len() < FILLINGS_MAX {
            let mut state = self.state();
            if state.phase == Phase::Closed {
                return None;
            }
            match state.shelves.next(now) {
                Next::Fill(kind) => {
                    let recipe = state.shelves.recipe(&kind);
                    drop(state);
                    fillings.extend(recipe.map(|recipe| fill(kind, recipe).boxed()));
                }
                Next::Drop(ready) => {
                    state.tell();
                    drop(state);
                    discard(vec![ready], "surplus");
                }
                Next::At(time) => return Some(time.min(later)),
                Next::Rest => return Some(later),
            }
        }
        Some(later)
    }

    fn filled(&self, kind: &Kind, begin: Instant, filled: Result<Ready, Spoiled>) {
        let mut state = self.state();
        let (discarded, why) = match filled {
            Ok(ready) if state.phase == Phase::Kept => {
                metrics::histogram!("codebeaker_pool_refill_seconds").record(begin.elapsed().as_secs_f64());
                let memory = ready.memory_bytes();
                (state.shelves.put(kind, ready, memory, Instant::now()).into_iter().collect(), "surplus")
            }
            Ok(ready) => (vec![ready], "closed"),
            Err(Spoiled::Changed) => (state.shelves.forget(kind), "image"),
            Err(spoiled) => {
                match spoiled {
                    Spoiled::Failed(error) => tracing::warn!(%error, "no sandbox could be made ready"),
                    Spoiled::Unfit(error) => tracing::warn!(%error, "a sandbox could not be laid aside"),
                    Spoiled::Changed => {}
                }
                count("failed");
                state.shelves.failed(kind, Instant::now());
                (Vec::new(), "failed")
            }
        };
        state.tell();
        drop(state);
        discard(discarded, why);
    }

    /// Takes away what is of no use any more.
    fn look(&self) {
        let dead = self.state().shelves.retain(Ready::is_alive);
        discard(dead, "dead");
        let stocked: Vec<(Kind, Arc<Recipe>)> = {
            let state = self.state();
            state.shelves.stocked().into_iter().filter_map(|kind| Some((kind.clone(), state.shelves.recipe(&kind)?))).collect()
        };
        for (kind, recipe) in stocked {
            if !recipe.is_of(&kind) {
                let changed = self.state().shelves.forget(&kind);
                discard(changed, "image");
            }
        }
        self.state().tell();
    }
}

impl State {
    fn tell(&self) {
        metrics::gauge!("codebeaker_pool_ready").set(self.shelves.ready() as f64);
        metrics::gauge!("codebeaker_pool_memory_bytes").set(self.shelves.memory_bytes() as f64);
    }
}

impl Recipe {
    /// Whether it still makes sandboxes of this kind.
    fn is_of(&self, kind: &Kind) -> bool {
        let Some(runtime) = self.runtime.upgrade() else { return false };
        let image = runtime.flavour.root(&self.config);
        image.is_ok_and(|image| runtime.kind_of(&self.config, &image).as_ref() == Some(kind))
    }

    /// The use that a sandbox for this session makes of an interpreter.
    pub(super) fn use_of_one(&self, runtime: &NativeRuntime, config: &InstanceConfig) -> Use {
        let serves = warm::serves(runtime.works.parts.warm, config, &self.config.limits);
        Use::new(Arc::clone(&self.uses), serves)
    }
}

async fn fill(kind: Kind, recipe: Arc<Recipe>) -> (Kind, Instant, Result<Ready, Spoiled>) {
    let begin = Instant::now();
    let filled = make(&kind, &recipe).await;
    (kind, begin, filled)
}

async fn make(kind: &Kind, recipe: &Recipe) -> Result<Ready, Spoiled> {
    let runtime = recipe.runtime.upgrade().ok_or(Spoiled::Changed)?;
    let config = &recipe.config;
    let image = runtime.flavour.root(config).map_err(|_| Spoiled::Changed)?;
    if runtime.kind_of(config, &image).as_ref() != Some(kind) {
        return Err(Spoiled::Changed);
    }
    let sandbox = runtime.make(config, image, Name::This(EnvironmentId::random())).await.map_err(Spoiled::Failed)?;
    let warm = interpreter(&runtime, recipe, &sandbox);
    Ready::lay_aside(sandbox, config.limits.clone(), warm).await.map_err(Spoiled::Unfit)
}

/// The interpreter that waits in such a sandbox for its first program, where it is to have one.
fn interpreter(runtime: &NativeRuntime, recipe: &Recipe, sandbox: &Sandbox) -> Interpreter {
    let (settings, config) = (runtime.works.parts.warm, &recipe.config);
    if !settings.pooled || !warm::applies(settings, &config.language, &config.limits) {
        return Interpreter::None;
    }
    if !settings.at_create && !recipe.uses.are_likely() {
        return Interpreter::Spared(Arc::clone(&recipe.uses));
    }
    let told = runtime.flavour.variables(&config.limits, config.limits.usual_time());
    let environment = environment(config, sandbox, &config.language.env, &BTreeMap::new(), &told);
    Kept::ahead(&config.language, environment).map_or(Interpreter::None, |(kept, keep)| Interpreter::Ahead(kept, keep))
}

/// What was found, made what the request asks for.
fn claimed(found: Found<Ready>, runtime: &NativeRuntime, config: &InstanceConfig, image: &ImageRoot) -> Option<Sandbox> {
    let (sandbox, outcome) = match found {
        Found::Nothing => (None, "miss"),
        Found::Unsuited => (None, "unfit"),
        Found::Ready(ready) => match ready.claim(runtime, config, image) {
            Ok(sandbox) => (Some(sandbox), "hit"),
            Err(unfit) => {
                tracing::debug!(error = &unfit as &dyn std::error::Error, "a ready sandbox could not be taken");
                (None, "unfit")
            }
        },
    };
    count(outcome);
    sandbox
}

fn count(outcome: &'static str) {
    metrics::counter!("codebeaker_pool_requests_total", "outcome" => outcome).increment(1);
}

fn discard(ready: Vec<Ready>, why: &'static str) {
    metrics::counter!("codebeaker_pool_discarded_total", "reason" => why).increment(ready.len() as u64);
    drop(ready);
}
