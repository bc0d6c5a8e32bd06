//! Runtimes in the OS sandbox: the main one, any image and any language, and those that bring a root of their own.
//!
//! A request gets a sandbox that is ready (`keeper`, `ready`, `pool`) or one that is made for it (`build`), which may have begun before (`ahead`). What tells one such runtime from another is its [`Flavour`]; walls,
//! limits and the life of a program are the same for all. Read `instance` for commands, `program` for the life of a program.

mod ahead;
mod ask;
mod build;
mod code;
pub(in crate::runtime) mod control;
pub(in crate::runtime) mod files;
mod flavour;
mod install;
pub(in crate::runtime) mod instance;
mod keeper;
mod launcher;
mod launchers;
mod maker;
mod pool;
mod prepare;
pub(in crate::runtime) mod program;
mod ready;
pub(in crate::runtime) mod reaper;
pub(in crate::runtime) mod sandbox;
pub(in crate::runtime) mod streams;
mod uses;
pub(in crate::runtime) mod verdict;
mod warm;

use std::path::PathBuf;
use std::sync::{Arc, Weak};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;

use crate::command::CommandKind;
use crate::id::EnvironmentId;
use crate::image::{ImageRoot, Store};
use crate::language::{Language, Languages};
use crate::plan::StepFailure;
use crate::sandbox::cgroups::CgroupTree;
use crate::sandbox::compile::{Compiled, Ids, Kernel, PACKAGES, Placement, Root, Spec, Workspace, compile};
use crate::sandbox::enforcement::{WallState, WallStatus};
use crate::sandbox::error::SandboxError;
use crate::sandbox::host::{HostFacts, UserNamespaces};
use crate::sandbox::profile::Profile;
use crate::sandbox::spec::Limits;
use crate::sandbox::uid_ranges::UidRanges;
use crate::sys::error::describe;

use super::egress::{Egress, NetworkGrant};
use super::features::Features;
use super::isolation::REQUIRED_WALLS;
use super::{Availability, Instance, InstanceConfig, Permissions, Runtime, RuntimeKind, Wants};
use ahead::Ahead;
use build::Name;
use flavour::Images;
pub use flavour::{Flavour, Word};
use instance::NativeInstance;
use keeper::Pool;
use launchers::{AtEnd, Launchers};
pub use maker::Maker;
pub use pool::PoolBounds;
pub use prepare::Preparation;
use sandbox::Sandbox;
pub use warm::WarmSettings;

/// A sandbox that does not stand after this long is taken for stuck.
const CREATE_TIME: Duration = Duration::from_secs(20);

/// Ids that one sandbox has when there are so many.
const IDS_OF_A_SANDBOX: u32 = 65_536;

/// What the runtime works with.
pub struct NativeParts {
    /// What the host offers.
    pub host: HostFacts,
    /// Images.
    pub images: Arc<Store>,
    /// Languages that `execute_code` may name.
    pub languages: Arc<Languages>,
    /// The server's groups; none where none is writable.
    pub cgroups: Option<CgroupTree>,
    /// Required walls that may be missing.
    pub allow_degraded: Vec<String>,
    /// What is said of warm interpreters.
    pub warm: WarmSettings,
    /// The operator's wheels and tarballs, which installers alone see.
    pub package_dir: Option<PathBuf>,
    /// The ways out of sandboxes.
    pub egress: Arc<Egress>,
    /// Wall time of a step before a program, compiler or installer: that of the profile `default`, whatever the session's.
    pub step_timeout: Duration,
    /// How many sandboxes may lie ready.
    pub pool: PoolBounds,
    /// Whether the next sandbox is begun after a request for one.
    pub begin_ahead: bool,
}

/// One runtime in the OS sandbox.
pub struct NativeRuntime {
    works: Arc<Works>,
    flavour: Box<dyn Flavour>,
    /// Held by whoever asks the flavour's question.
    asking: tokio::sync::Mutex<()>,
    /// Held by whoever makes what a language needs, which takes long: requests that need nothing don't wait for it.
    preparing: tokio::sync::Mutex<()>,
    itself: Weak<Self>,
}

/// What all runtimes in the OS sandbox share.
struct Works {
    parts: NativeParts,
    launchers: Launchers,
    uids: Option<UidRanges>,
    pool: Pool,
    ahead: Ahead,
}

impl NativeRuntime {
    /// Starts the launcher; from then on it removes the server's groups, however the server ends.
    pub fn start(parts: NativeParts) -> std::io::Result<Arc<Self>> {
        match Self::launch(&parts) {
            Ok((launchers, uids)) => {
                let flavour = Images { store: Arc::clone(&parts.images) };
                let (pool, ahead) = (Pool::new(parts.pool), Ahead::new(parts.begin_ahead));
                Ok(Self::on(Arc::new(Works { parts, launchers, uids, pool, ahead }), Box::new(flavour)))
            }
            Err(error) => {
                if let Some(cgroups) = parts.cgroups {
                    cgroups.close().map_err(std::io::Error::other)?;
                }
                Err(error)
            }
        }
    }

    fn launch(parts: &NativeParts) -> std::io::Result<(Launchers, Option<UidRanges>)> {
        let uids = parts.host.root.then(UidRanges::new).transpose().map_err(std::io::Error::other)?;
        let groups = parts.cgroups.as_ref().map(CgroupTree::directories).unwrap_or_default();
        let directories = groups.iter().map(|path| path.to_string_lossy().into_owned()).collect();
        let way_back = parts.cgroups.as_ref().and_then(CgroupTree::way_back);
        Ok((Launchers::start(AtEnd { directories, way_back })?, uids))
    }

    fn on(works: Arc<Works>, flavour: Box<dyn Flavour>) -> Arc<Self> {
        let (asking, preparing) = Default::default();
        Arc::new_cyclic(|itself| Self { works, flavour, asking, preparing, itself: Weak::clone(itself) })
    }

    /// Another runtime behind the same walls.
    pub fn with(&self, flavour: Box<dyn Flavour>) -> Arc<Self> {
        Self::on(Arc::clone(&self.works), flavour)
    }

    /// What it was started with, for runtimes that build no walls of their own.
    pub(in crate::runtime) fn parts(&self) -> &NativeParts {
        &self.works.parts
    }

    /// The images. One store for all runtimes of a server, which so look at the host's files once.
    pub fn images(&self) -> &Arc<Store> {
        &self.works.parts.images
    }

    /// The ways out of sandboxes.
    pub fn egress(&self) -> &Arc<Egress> {
        &self.works.parts.egress
    }

    /// The steps that would build a sandbox, for `codebeaker plan`.
    pub fn plan(&self, config: &InstanceConfig) -> Result<Compiled, SandboxError> {
        let image = self.flavour.root(config)?;
        let ids = self.ids_for_show();
        Ok(compile(&self.spec(config, &image, ids, Placement::default())?))
    }

    /// Ids of the kind that a sandbox would have, without taking any.
    fn ids_for_show(&self) -> Ids {
        match &self.works.uids {
            Some(_) => Ids::Range { start: 0x1000_0000, count: IDS_OF_A_SANDBOX },
            None => self.own_ids(),
        }
    }

    pub(in crate::runtime) fn kernel(&self) -> Kernel {
        let host = &self.works.parts.host;
        Kernel {
            time_namespace: host.time_namespace,
            device_directory: host.device_directory,
            landlock_abi: host.landlock_abi,
            listener: host.seccomp_listener.waiting(),
            users_hide: host.users_hide,
            version: (host.kernel.0, host.kernel.1),
        }
    }

    fn own_ids(&self) -> Ids {
        let host = &self.works.parts.host;
        let subordinate = &host.subordinate;
        match (&subordinate.newuidmap, &subordinate.newgidmap, subordinate.uids.first(), subordinate.gids.first()) {
            (Some(newuidmap), Some(newgidmap), Some(uids), Some(gids)) => Ids::Helper {
                newuidmap: newuidmap.to_string_lossy().into_owned(),
                newgidmap: newgidmap.to_string_lossy().into_owned(),
                uids: (uids.start, uids.count.min(IDS_OF_A_SANDBOX)),
                gids: (gids.start, gids.count.min(IDS_OF_A_SANDBOX)),
            },
            _ => Ids::Single { uid: host.uid, gid: host.gid },
        }
    }

    fn spec<'a>(
        &self,
        config: &'a InstanceConfig,
        image: &ImageRoot,
        ids: Ids,
        cgroup: Placement,
    ) -> Result<Spec<'a>, SandboxError> {
        // Without a range of ids it makes no difference, and there may be no right to look.
        let is_empty = if matches!(ids, Ids::Range { .. }) { image.has_empty_workspace() } else { Ok(true) };
        let is_empty = is_empty.map_err(|error| {
            let told = || SandboxError::Internal(format!("the image's /workspace can't be looked at: {error}"));
            exhausted(&error).unwrap_or_else(told)
        })?;
        Ok(Spec {
            profile: &config.profile,
            limits: &config.limits,
            root: Root {
                lower: image.lower.clone(),
                binds: image.binds.iter().map(|bind| (bind.source.clone(), bind.target.clone())).collect(),
                packages: self.works.parts.package_dir.clone(),
                workspace: if is_empty { Workspace::Empty } else { Workspace::OfImage },
            },
            ids,
            cgroup,
            kernel: self.kernel(),
        })
    }

    /// Gives programs the way out that their session was granted.
    async fn connect(&self, config: &InstanceConfig, sandbox: &mut Sandbox) -> Result<(), SandboxError> {
        let egress = &self.works.parts.egress;
        egress.tell(&mut sandbox.body.enforcement.walls, config.network);
        if config.network != NetworkGrant::Programs {
            return Ok(());
        }
        let opened = egress.open_for_programs(&config.environment_id);
        let (mut way, door) =
            opened.map_err(|error| SandboxError::Busy { cause: format!("no proxy could be opened: {error}") })?;
        let asked = sandbox.init().listen(&door).await;
        drop(door);
        if asked.is_err() || !way.is_open().await {
            return Err(SandboxError::IsolationUnavailable {
                wall: "network".into(),
                cause: "the sandbox handed out no listener for its proxy".into(),
                mend: "leave `permissions.allowNet` out, or look into the server's log".into(),
            });
        }
        sandbox.body.way = Some(way);
        Ok(())
    }

    async fn ready_or_new(&self, config: &InstanceConfig, generation: u64) -> Result<Sandbox, SandboxError> {
        let image = self.flavour.root(config)?;
        // What leaves a sandbox is told by its environment's name, which one that is ready, or only begun, has already.
        let any_name = config.wants == Wants::Any && config.network == NetworkGrant::None;
        let (ready, recipe) = if any_name { self.works.pool.take(self, config, &image) } else { (None, None) };
        let name = match generation {
            0 => config.environment_id.clone(),
            // The sandbox that is replaced may still have its group.
            later => EnvironmentId::from_client(&format!("{}_{later}", config.environment_id)),
        };
        let mut sandbox = match ready {
            Some(ready) => ready,
            None => self.make(config, image, if any_name { Name::Any(name) } else { Name::This(name) }).await?,
        };
        sandbox.body.used = recipe.map(|recipe| recipe.use_of_one(self, config));
        Ok(sandbox)
    }

    /// Keeps sandboxes ready until the runtime ends; for a task of its own.
    pub async fn keep_ready(&self) {
        tokio::join!(self.works.pool.keep(), self.works.ahead.keep(self));
    }

    async fn instance(&self, mut config: InstanceConfig) -> Result<Arc<NativeInstance>, SandboxError> {
        let runtime = self.itself.upgrade().ok_or_else(|| SandboxError::Internal("the runtime is going down".into()))?;
        let sandbox = self.sandbox(&config, 0).await?;
        // One that was ready has a name already.
        config.environment_id = sandbox.name().clone();
        let instance = NativeInstance::new(runtime, config, sandbox);
        if self.works.parts.warm.at_create {
            instance.begin_warm().await;
        }
        Ok(instance)
    }

    /// Asks what the flavour has to know, in a sandbox like the one that is wanted.
    pub(in crate::runtime) async fn ask_what_it_is(&self, config: &InstanceConfig) -> Result<(), SandboxError> {
        let _one_at_a_time = self.asking.lock().await;
        if let Some(question) = self.flavour.question() {
            let config = InstanceConfig { environment_id: EnvironmentId::random(), wants: Wants::New, ..config.clone() };
            let instance = self.instance(config).await?;
            let answer = ask::ask(instance.as_ref(), question).await;
            instance.close().await;
            self.flavour.learned(answer);
        }
        match self.flavour.availability() {
            Availability::Available => Ok(()),
            Availability::Unavailable(cause) => {
                Err(SandboxError::RuntimeUnusable { runtime: self.kind().name().into(), cause })
            }
        }
    }
}

/// The walls that must stand whatever the host: SECURITY and DESIGN section 3.
pub(in crate::runtime) fn required_walls(walls: &[WallState], allow_degraded: &[String]) -> Result<(), SandboxError> {
    for name in REQUIRED_WALLS {
        let row = walls.iter().find(|row| row.name == name);
        let stands = row.is_some_and(|row| row.state != WallStatus::Absent);
        if !stands && !allow_degraded.iter().any(|allowed| allowed == name) {
            let cause = row.map_or("it is not among the walls that this host can build", |row| &row.detail);
            return Err(SandboxError::IsolationUnavailable {
                wall: name.into(),
                cause: cause.into(),
                mend: "run `codebeaker doctor`".into(),
            });
        }
    }
    Ok(())
}

impl Maker for NativeRuntime {
    fn made_as(&self) -> RuntimeKind {
        self.kind()
    }

    fn language(&self, name: &str, permissions: &Permissions) -> Option<Arc<Language>> {
        self.flavour.language(&self.works.parts.languages.get(name)?, permissions)
    }

    fn step_timeout(&self) -> Duration {
        self.works.parts.step_timeout
    }

    fn command_begins(&self) {
        self.works.pool.put_off();
    }

    fn warm(&self) -> WarmSettings {
        self.works.parts.warm
    }

    fn egress(&self) -> &Arc<Egress> {
        &self.works.parts.egress
    }

    fn packages(&self) -> Option<&'static str> {
        self.works.parts.package_dir.as_ref().map(|_| PACKAGES)
    }

    fn variables(&self, limits: &Limits, timeout: Duration) -> Vec<(String, String)> {
        self.flavour.variables(limits, timeout)
    }

    fn word(&self, signal: i32) -> Option<Word> {
        self.flavour.word(signal)
    }

    fn sandbox<'a>(&'a self, config: &'a InstanceConfig, generation: u64) -> BoxFuture<'a, Result<Sandbox, SandboxError>> {
        async move {
            let standing = async {
                let mut sandbox = self.ready_or_new(config, generation).await?;
                self.connect(config, &mut sandbox).await?;
                Ok(sandbox)
            };
            match tokio::time::timeout(CREATE_TIME, standing).await {
                Ok(answer) => answer,
                Err(_) => Err(not_standing()),
            }
        }
        .boxed()
    }
}

pub(in crate::runtime) fn wall_error(failure: &StepFailure) -> SandboxError {
    if let Some(busy) = out_of(failure.errno) {
        return busy;
    }
    SandboxError::IsolationUnavailable {
        wall: failure.wall.clone(),
        cause: format!("{} failed with {}", failure.call, describe(failure.errno)),
        mend: "run `codebeaker doctor`: it tries each wall and names what mends it".into(),
    }
}

/// What is missing for the moment only, and no fault of a wall.
fn out_of(errno: i32) -> Option<SandboxError> {
    let what = match errno {
        libc::EMFILE => "the server may not open more descriptors (RLIMIT_NOFILE)",
        libc::ENFILE => "the host has no descriptor left",
        libc::ENOMEM => "the host has no memory left",
        libc::EAGAIN => "the host has no process left for the server (RLIMIT_NPROC or pids.max)",
        _ => return None,
    };
    Some(SandboxError::Busy { cause: what.into() })
}

/// The same for an error that has an errno somewhere below it.
pub(in crate::runtime) fn exhausted(error: &(dyn std::error::Error + 'static)) -> Option<SandboxError> {
    let mut causes = std::iter::successors(Some(error), |error| error.source());
    let errno = causes.find_map(|error| error.downcast_ref::<std::io::Error>()?.raw_os_error());
    errno.and_then(out_of)
}

fn not_standing() -> SandboxError {
    SandboxError::Busy { cause: format!("it did not stand after {} s", CREATE_TIME.as_secs()) }
}

fn launcher_gone() -> SandboxError {
    SandboxError::Busy { cause: "the launcher ended; another is being started".into() }
}

impl Runtime for NativeRuntime {
    fn name(&self) -> &str {
        self.flavour.name()
    }

    fn kind(&self) -> RuntimeKind {
        self.flavour.kind()
    }

    fn languages(&self) -> Vec<String> {
        let all = self.works.parts.languages.all();
        all.iter().map(|language| language.name.clone()).filter(|name| self.serves(name)).collect()
    }

    fn serves(&self, language: &str) -> bool {
        let found = self.works.parts.languages.get(language);
        found.is_some_and(|found| found.name == language && self.flavour.serves(&found))
    }

    fn commands(&self) -> Vec<CommandKind> {
        self.kind().commands()
    }

    fn features(&self) -> Features {
        Features {
            filesystem_persistence: true,
            network_access: self.egress().serves_programs(),
            concurrent_executions_max: 16,
            ..self.flavour.figures()
        }
    }

    fn availability(&self) -> Availability {
        match &self.works.parts.host.user_namespaces {
            UserNamespaces::Allowed => self.flavour.availability(),
            UserNamespaces::Refused { cause, mend } => Availability::Unavailable(format!("{cause}; {mend}")),
        }
    }

    fn version(&self) -> Option<String> {
        self.flavour.version()
    }

    fn walls(&self, profile: &Profile) -> Vec<WallState> {
        let Some(limits) = profile.limits() else { return Vec::new() };
        let ids = self.ids_for_show();
        let group = || Placement { join: vec!["/".into()], ..Placement::default() };
        let spec = Spec {
            profile,
            limits: &limits,
            root: Root { lower: "/".into(), binds: Vec::new(), packages: None, workspace: Workspace::Empty },
            ids,
            cgroup: self.works.parts.cgroups.as_ref().map_or_else(Placement::default, |_| group()),
            kernel: self.kernel(),
        };
        compile(&spec).walls
    }

    fn own_root(&self) -> Option<String> {
        self.flavour.own_root()
    }

    fn lacks(&self, language: &str) -> Option<String> {
        self.flavour.lacks(self.works.parts.languages.get(language)?.as_ref())
    }

    fn learn(&self, config: InstanceConfig) -> BoxFuture<'_, ()> {
        async move {
            if let Err(error) = self.ask_what_it_is(&config).await {
                tracing::info!(runtime = self.kind().name(), %error, "it could not be asked what it is");
            }
        }
        .boxed()
    }

    fn create(&self, mut config: InstanceConfig) -> BoxFuture<'_, Result<Arc<dyn Instance>, SandboxError>> {
        async move {
            self.ask_what_it_is(&config).await?;
            self.prepare(&config).await?;
            let permissions = config.permissions.clone().unwrap_or_default();
            config.language = self.flavour.language(&config.language, &permissions).ok_or_else(|| {
                let cause = format!("this version of it does not run {}", config.language.display_name);
                SandboxError::RuntimeUnusable { runtime: self.kind().name().into(), cause }
            })?;
            let instance: Arc<dyn Instance> = self.instance(config).await?;
            Ok(instance)
        }
        .boxed()
    }

    fn end(&self) {
        self.works.end();
    }
}

impl Works {
    /// Ends the launcher and every sandbox, and removes the groups.
    fn end(&self) {
        self.pool.close();
        self.ahead.close();
        if !self.launchers.end() {
            // It removes the groups when it is through; if it never is, the next start does.
            tracing::warn!("the launcher takes long to end, and is left to itself");
            return;
        }
        // What a launcher that was killed could not remove.
        if let Some(Err(error)) = self.parts.cgroups.as_ref().map(CgroupTree::close) {
            tracing::warn!(error = &error as &dyn std::error::Error, "a control group of this server stays behind");
        }
    }
}

impl Drop for Works {
    fn drop(&mut self) {
        self.end();
    }
}
