//! Where the parts are put together: each function makes one part (or one answer) out of a configuration.
//!
//! Invariant: subcommands never name a concrete runtime, store or server; they ask here. [`runtime`] and [`serve`] start the
//! launcher.

mod build;
mod engines;
mod images;
mod outwards;

use std::error::Error;
use std::net::SocketAddr;
use std::num::NonZeroU64;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};

pub use build::{image_build, recipes};
pub use engines::{compile_engine, engine_rows, install_engine};
pub use images::{ImageRow, Incoming, Tls, image_import, image_inspect, image_list, image_prune, image_pull, image_remove};

use super::error::chain;
use super::{CliError, service_manager};
use crate::config::{Config, PoolConfig, RuntimesConfig};
use crate::image::Store;
use crate::language::engines::Engine;
use crate::language::{Language, Languages};
use crate::rpc::auth::Tokens;
use crate::rpc::server::{Authentication, Pulse, Server, ServerParts};
use crate::runtime::docker::{self, DockerRuntime};
use crate::runtime::engine::find::Place;
use crate::runtime::engine::{self, EnginePlaces};
use crate::runtime::figures::Figures;
use crate::runtime::isolate::{IsolateBounds, IsolateRuntime};
use crate::runtime::native::{NativeParts, NativeRuntime, PoolBounds, WarmSettings};
use crate::runtime::registry::{InImage, Registry};
use crate::runtime::wasm::{self, EngineModule, WasmPlaces};
use crate::runtime::{Availability, InstanceConfig, Runtime, RuntimeKind};
use crate::sandbox::cgroups::{CgroupTree, IoLimit};
use crate::sandbox::host::HostFacts;
use crate::sandbox::profile::{Profile, Profiles};
use crate::sandbox::state::{ServerId, StateDir};
use crate::session::api::{LanguageRow, RuntimeRow};
use crate::session::manager::{Manager, ManagerParts};
use crate::session::sources::{ImageSource, LanguageSource, ProfileSource};
use crate::{sys, telemetry};

/// The profile whose limits hold for compilers and installers.
const STEP_PROFILE: &str = "default";

/// Below the state directory: what runtimes cost on this host.
const FIGURES_FILE: &str = "figures.json";

/// One step of a plan, in the order it is carried out.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct PlanRow {
    /// Who carries it out: `launcher`, `init` or `program`.
    pub process: String,
    /// Which wall it belongs to.
    pub wall: String,
    /// The system call with its arguments.
    pub call: String,
}

/// One principal's token, without its secret.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct TokenRow {
    /// The principal.
    pub name: String,
    /// RFC 3339.
    pub created: String,
}

/// A failure that has no hint of its own in `causes`.
fn failed(error: &dyn Error) -> CliError {
    CliError::new(chain(error))
}

impl LanguageSource for Languages {
    fn get(&self, name_or_alias: &str) -> Option<Arc<Language>> {
        Self::get(self, name_or_alias)
    }

    fn all(&self) -> Vec<Arc<Language>> {
        Self::all(self).to_vec()
    }
}

impl ProfileSource for Profiles {
    fn get(&self, name: &str) -> Option<Arc<Profile>> {
        Self::get(self, name)
    }
}

impl ImageSource for Store {
    fn installed(&self, image: &str) -> bool {
        self.has(image)
    }

    fn missing_programs(&self, image: &str, language: &Language) -> Vec<String> {
        let Ok(root) = self.resolve(image) else { return language.programs.clone() };
        language.programs.iter().filter(|program| !self.has_program(&root, program)).cloned().collect()
    }
}

fn store(config: &Config) -> Result<Store, CliError> {
    StateDir::open(&config.state_dir)?;
    Ok(Store::open(&config.state_dir)?)
}

fn load_languages(config: &Config) -> Result<Arc<Languages>, CliError> {
    let languages = Languages::load(config.sandbox.language_dir.as_deref()).map_err(|error| failed(&error))?;
    Ok(Arc::new(languages))
}

fn load_profiles(config: &Config) -> Result<Arc<Profiles>, CliError> {
    let profiles = Profiles::load(config.sandbox.profile_dir.as_deref()).map_err(|error| failed(&error))?;
    for name in profiles.auditing() {
        tracing::warn!(profile = name, "this profile audits only: calls against it are let through, so it is no wall");
    }
    Ok(Arc::new(profiles))
}

/// Starts the launcher; `server` names the groups this process makes.
fn native(config: &Config, server: &ServerId) -> Result<Arc<NativeRuntime>, CliError> {
    // The launcher inherits it. A server of the usual 1024 would meet its end before its own bounds on connections and sessions.
    sys::process::raise_descriptor_limit().map_err(|error| failed(&error))?;
    let mut parts = NativeParts {
        host: HostFacts::probe(),
        images: Arc::new(store(config)?),
        languages: load_languages(config)?,
        cgroups: None,
        allow_degraded: config.sandbox.allow_degraded.clone(),
        warm: WarmSettings { enabled: config.warm.enabled, at_create: config.warm.at_create, pooled: config.warm.pooled },
        package_dir: package_dir(config)?,
        egress: outwards::egress(config)?,
        step_timeout: profile(config, STEP_PROFILE)?.defaults.timeout,
        pool: pool_bounds(&config.pool),
        begin_ahead: config.pool.begin_ahead,
    };
    // Last, for the runtime alone removes the groups again.
    let cgroups = CgroupTree::open(&parts.host.cgroup, server.as_str()).map_err(|error| failed(&error))?;
    let io_limit = IoLimit::on_disks_of(&[&config.state_dir, Path::new("/usr")], config.sandbox.io_bytes_per_s_max);
    parts.cgroups = cgroups.map(|tree| tree.with_io_limit(io_limit));
    NativeRuntime::start(parts).map_err(|error| failed(&error))
}

fn pool_bounds(pool: &PoolConfig) -> PoolBounds {
    PoolBounds {
        sandboxes_max: pool.sandboxes_max as usize,
        ready_min: pool.ready_min as usize,
        memory_bytes_max: pool.memory_bytes_max,
        keep: Duration::from_secs(pool.keep_s),
    }
}

/// The operator's packages, which the users of all sessions must be able to read.
fn package_dir(config: &Config) -> Result<Option<PathBuf>, CliError> {
    let Some(path) = &config.sandbox.package_dir else { return Ok(None) };
    let problem = match std::fs::metadata(path) {
        Err(error) => format!("can't be read: {error}"),
        Ok(metadata) if !metadata.is_dir() => "is no directory".into(),
        Ok(metadata) if metadata.permissions().mode() & 0o005 != 0o005 => "is not open to the users of sessions".into(),
        Ok(_) => return Ok(Some(path.clone())),
    };
    let error = CliError::new(format!("sandbox.package_dir: {} {problem}", path.display()));
    Err(error.hint("name a directory of wheels and tarballs that everyone may read (chmod -R a+rX DIR), or leave the key out"))
}

/// Where engines are: what the configuration names, else the PATH of this process, else where they put themselves.
fn engine_places(config: &Config) -> EnginePlaces {
    let RuntimesConfig { deno, bun, nodejs, .. } = &config.runtimes;
    let mut directories: Vec<PathBuf> = std::env::var_os("PATH").iter().flat_map(std::env::split_paths).collect();
    directories.push(engines::engines_dir(config));
    directories.extend(["/usr/local/bin", "/usr/bin", "/bin"].map(PathBuf::from));
    let home = std::env::var_os("HOME").map(PathBuf::from);
    directories.extend(home.iter().flat_map(|home| [home.join(".deno/bin"), home.join(".bun/bin")]));
    directories.retain(|directory| directory.is_absolute());
    EnginePlaces {
        named: vec![
            (Engine::Deno, "runtimes.deno", Place::parse(deno)),
            (Engine::Bun, "runtimes.bun", Place::parse(bun)),
            (Engine::NodeJs, "runtimes.nodejs", Place::parse(nodejs)),
        ],
        directories,
    }
}

fn isolate_bounds(config: &Config) -> IsolateBounds {
    let RuntimesConfig {
        isolates_per_engine,
        isolate_engines_max,
        isolate_executions_max,
        isolate_spares,
        isolate_engine_memory_mb,
        ..
    } = config.runtimes;
    IsolateBounds {
        sessions_max: isolates_per_engine,
        engines_max: isolate_engines_max,
        executions_max: isolate_executions_max,
        spares_max: isolate_spares,
        memory_bytes: NonZeroU64::new(isolate_engine_memory_mb << 20).unwrap_or(NonZeroU64::MAX),
    }
}

/// The Docker engine that the configuration names, else the one that `DOCKER_HOST` or its usual place leads to.
fn docker_runtime(config: &Config, native: &Arc<NativeRuntime>) -> Result<Arc<DockerRuntime>, CliError> {
    let server = ServerId::current().map_err(|error| failed(&error))?;
    let runtime_dir = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
    let place = docker::find::Place::parse(&config.runtimes.docker, std::env::var("DOCKER_HOST").ok(), runtime_dir);
    // The engine has another working directory.
    let state_dir = std::path::absolute(&config.state_dir).map_err(|error| failed(&error))?;
    DockerRuntime::start(Arc::clone(native), place, server, state_dir).map_err(|error| failed(&error))
}

/// What WebAssembly runs with.
fn wasm_places(config: &Config) -> Result<WasmPlaces, CliError> {
    let RuntimesConfig { wasm, wasm_python, wasm_javascript, .. } = &config.runtimes;
    Ok(WasmPlaces {
        on: wasm.is_empty(),
        engines: engines::engines_dir(config),
        own: config.state_dir.join("compiled"),
        named: [
            (EngineModule::Python, "runtimes.wasm_python", wasm_python.clone()),
            (EngineModule::Javascript, "runtimes.wasm_javascript", wasm_javascript.clone()),
        ],
        program: std::env::current_exe().map_err(|error| failed(&error))?,
    })
}

/// Every runtime of this build, behind one launcher.
fn registry(config: &Config, native: Arc<NativeRuntime>) -> Result<Registry, CliError> {
    let (places, store) = (engine_places(config), Arc::clone(native.images()));
    let isolates = IsolateRuntime::new(&native, &places, &store, isolate_bounds(config));
    let engines = engine::runtimes(&native, &places, &store);
    let wasm = wasm::runtime(&native, wasm_places(config)?, &store);
    let docker: Arc<dyn Runtime> = docker_runtime(config, &native)?;
    let all = std::iter::once(native).chain(engines).chain([wasm]).map(|runtime| runtime as Arc<dyn Runtime>);
    let all = all.chain(isolates.map(|runtime| runtime as Arc<dyn Runtime>)).chain([docker]);
    Ok(Registry::new(all.collect()))
}

/// With what was measured here before, and with the walls that stand under the profile that a request gets unasked.
fn compared(config: &Config, registry: Registry, profiles: &Profiles) -> Registry {
    let profile = profiles.get("default");
    registry.with(Figures::load(&config.state_dir.join(FIGURES_FILE)), profile.as_deref())
}

fn manager(
    config: &Config,
    registry: Arc<Registry>,
    profiles: Arc<Profiles>,
    images: Arc<Store>,
) -> Result<Arc<Manager>, CliError> {
    Ok(Manager::new(ManagerParts {
        config: Arc::new(config.clone()),
        registry,
        languages: load_languages(config)?,
        profiles,
        images,
    }))
}

/// Runs the server until a signal ends it; `ready` is called once connections are accepted.
pub fn serve(config: &Config, ready: &dyn Fn(SocketAddr) -> Result<(), CliError>) -> Result<(), CliError> {
    telemetry::init_logs(&config.log)?;
    let metrics = telemetry::init_metrics()?;
    let state = StateDir::open(&config.state_dir).and_then(StateDir::lock)?;
    let cgroup = HostFacts::probe().cgroup;
    match CgroupTree::remove_stale(&cgroup, &state.group_bases()) {
        Ok(report) => tracing::debug!(?report, "control groups of servers that are gone"),
        Err(error) => tracing::warn!(error = &error as &dyn Error, "control groups of a server that is gone stay behind"),
    }
    state.note_group_bases(&cgroup.bases())?;
    let native = native(config, state.server_id())?;
    let profiles = load_profiles(config)?;
    let registry = Arc::new(compared(config, registry(config, Arc::clone(&native))?, &profiles));
    let _ends = EndsWith(Arc::clone(&registry));
    let manager = manager(config, registry, profiles, Arc::clone(native.images()))?;
    let authentication = if config.server.no_auth {
        Authentication::Off
    } else {
        Authentication::Tokens(Arc::new(Tokens::open(&config.state_dir)?))
    };
    let (stop, shutdown) = watch::channel(false);
    let service = Arc::clone(&manager);
    let (pulses, pulse) = mpsc::channel(1);
    let server = Server::bind(ServerParts {
        config: config.server.clone(),
        service,
        authentication,
        metrics: Some(metrics),
        shutdown,
        pulse: Some(pulse),
    })?;
    let address = server.local_addr();
    native.egress().set_api(address);
    let upkeep = upkeep(manager, native, stop, pulses)?;
    let mut told = Ok(());
    tracing::info!(%address, state_dir = %config.state_dir.display(), no_auth = config.server.no_auth, "starting");
    let accepting = || {
        told = ready(address);
        service_manager::ready(address);
    };
    let served = server.run(accepting).map_err(CliError::from);
    upkeep.shutdown_timeout(Duration::from_secs(1));
    served.and(told)
}

/// The end of all runtimes comes with the server's, also with one that never listened: whoever else still holds them.
struct EndsWith(Arc<Registry>);

impl Drop for EndsWith {
    fn drop(&mut self) {
        self.0.end();
    }
}

/// What happens beside connections, on a thread of its own: signals, sweeps, the watchdog.
fn upkeep(
    manager: Arc<Manager>,
    native: Arc<NativeRuntime>,
    stop: watch::Sender<bool>,
    pulses: mpsc::Sender<Pulse>,
) -> Result<tokio::runtime::Runtime, CliError> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .thread_name("upkeep")
        .enable_all()
        .build()
        .map_err(|error| failed(&error))?;
    // Before anybody is told that the server listens: whoever then ends it must find somebody who takes the signal.
    let (mut terminate, mut interrupt) = {
        let _within = runtime.enter();
        let caught = |kind| signal(kind).map_err(|error| failed(&error));
        (caught(SignalKind::terminate())?, caught(SignalKind::interrupt())?)
    };
    runtime.spawn(async move {
        manager.start();
        if let Some(interval) = service_manager::watchdog_interval() {
            tokio::spawn(service_manager::feed_watchdog(interval, pulses));
        }
        tokio::spawn(async move { native.keep_ready().await });
        let measured = Arc::clone(&manager);
        tokio::spawn(async move { measured.measure_runtimes().await });
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        service_manager::stopping();
        stop.send_replace(true);
    });
    Ok(runtime)
}

/// All languages: the embedded ones and those of `sandbox.language_dir`.
pub fn languages(config: &Config) -> Result<Vec<Arc<Language>>, CliError> {
    Ok(load_languages(config)?.all().to_vec())
}

/// The rows of `language.list`: each language that has its programs is asked for its version, in a sandbox.
pub fn language_rows(config: &Config) -> Result<Vec<LanguageRow>, CliError> {
    let id = ServerId::current().map_err(|error| failed(&error))?;
    let profiles = load_profiles(config)?;
    let native = native(config, &id)?;
    let images = Arc::clone(native.images());
    let registry = Arc::new(compared(config, registry(config, native)?, &profiles));
    let manager = manager(config, Arc::clone(&registry), profiles, images)?;
    let tokio = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    let tokio = tokio.map_err(|error| failed(&error))?;
    let rows = tokio.block_on(manager.probed_languages());
    tokio.shutdown_timeout(Duration::from_secs(1));
    registry.end();
    Ok(rows)
}

/// One language by name or alias; the error lists what there is.
pub fn language(config: &Config, name: &str) -> Result<Arc<Language>, CliError> {
    let languages = load_languages(config)?;
    languages.get(name).ok_or_else(|| {
        let names: Vec<&str> = languages.all().iter().map(|language| language.name.as_str()).collect();
        CliError::new(format!("there is no language `{name}`")).hint(format!("there are: {}", names.join(", ")))
    })
}

/// The rows of `runtime.list`.
pub fn runtime_rows(config: &Config) -> Result<Vec<RuntimeRow>, CliError> {
    let id = ServerId::current().map_err(|error| failed(&error))?;
    let profiles = load_profiles(config)?;
    Ok(compared(config, registry(config, native(config, &id)?)?, &profiles).rows())
}

/// A profile by name; the error lists what there is.
pub fn profile(config: &Config, name: &str) -> Result<Arc<Profile>, CliError> {
    let profiles = load_profiles(config)?;
    profiles.get(name).ok_or_else(|| {
        let names: Vec<&str> = profiles.names().collect();
        CliError::new(format!("there is no profile `{name}`")).hint(format!("there are: {}", names.join(", ")))
    })
}

/// A runtime that serves the language: the one of that kind, else the OS sandbox on an image that has the language, else an
/// engine that runs it; the error says why not.
pub fn runtime(
    config: &Config,
    kind: Option<RuntimeKind>,
    language: &Language,
    image: &str,
) -> Result<Arc<dyn Runtime>, CliError> {
    let id = ServerId::current().map_err(|error| failed(&error))?;
    let registry = registry(config, native(config, &id)?)?;
    let unasked = kind.is_none();
    let kind = kind.unwrap_or_else(|| {
        let in_image = store(config).is_ok_and(|store| store.missing_programs(image, language).is_empty());
        registry.running(&language.name, InImage::of(in_image)).first().copied().unwrap_or(RuntimeKind::NativeProcess)
    });
    let absent = || CliError::new(format!("the runtime {} is not there", kind.name()));
    let hint = "`codebeaker runtimes` lists what is, and why the rest is not";
    let runtime = registry.get(kind).ok_or_else(|| absent().hint(hint))?;
    match runtime.availability() {
        Availability::Available => {
            if unasked && kind == RuntimeKind::Docker {
                eprintln!("warning: this runs in a container of the Docker engine, for the OS sandbox can't be built here");
            }
            Ok(runtime)
        }
        Availability::Unavailable(reason) if kind == RuntimeKind::NativeProcess => {
            Err(CliError::new(reason).hint("run `codebeaker doctor`"))
        }
        Availability::Unavailable(reason) => Err(absent().hint(reason)),
    }
}

fn image_of(store: &Store, language: &Language) -> String {
    if store.installed(&language.image) { language.image.clone() } else { "host".into() }
}

/// The image a language runs on when the call names none: its own when it is installed, else `host`.
pub fn default_image(config: &Config, language: &Language) -> Result<String, CliError> {
    Ok(image_of(&store(config)?, language))
}

/// The ordered steps that would build a sandbox here.
pub fn plan(config: &Config, profile: &str, image: &str) -> Result<Vec<PlanRow>, CliError> {
    let profile = self::profile(config, profile)?;
    let languages = load_languages(config)?;
    let Some(language) = languages.all().first().cloned() else {
        return Err(CliError::new("there is no language"));
    };
    let id = ServerId::current().map_err(|error| failed(&error))?;
    let (limits, _) = super::run::limits_of(&profile, None, None)?;
    let grantable = Arc::clone(&profile);
    let native = native(config, &id)?;
    let compiled = native.plan(&InstanceConfig::without_server(language, image.to_owned(), profile, limits));
    let mut rows = rows(&compiled?.plan);
    rows.extend(outwards::rows(native.egress(), &grantable));
    Ok(rows)
}

fn rows(plan: &crate::plan::Plan) -> Vec<PlanRow> {
    let row = |process: &str, wall: &str, call: String| PlanRow { process: process.into(), wall: wall.into(), call };
    let namespaces: Vec<&str> =
        crate::plan::NAMESPACES.iter().filter(|(flag, _)| plan.namespaces & flag != 0).map(|(_, name)| *name).collect();
    let clone = row("launcher", "namespaces", format!("clone3 with new namespaces: {}", namespaces.join(" ")));
    std::iter::once(clone)
        .chain(plan.outside.iter().map(|step| row("launcher", step.wall(), step.to_string())))
        .chain(plan.inside.iter().map(|step| row("init", step.wall(), step.to_string())))
        .chain(plan.program.iter().map(|step| row("program", step.wall(), step.to_string())))
        .collect()
}

fn tokens(config: &Config) -> Result<Tokens, CliError> {
    StateDir::open(&config.state_dir)?;
    Ok(Tokens::open(&config.state_dir)?)
}

/// Makes a token for a new principal and gives its secret, which is stored as a hash only.
pub fn token_create(config: &Config, name: &str) -> Result<String, CliError> {
    Ok(tokens(config)?.create(name)?)
}

/// All principals.
pub fn token_list(config: &Config) -> Result<Vec<TokenRow>, CliError> {
    let rows = tokens(config)?.list()?;
    Ok(rows.into_iter().map(|row| TokenRow { name: row.name, created: row.created }).collect())
}

/// Revokes a principal's token; an unknown name is an error.
pub fn token_revoke(config: &Config, name: &str) -> Result<(), CliError> {
    Ok(tokens(config)?.revoke(name)?)
}
