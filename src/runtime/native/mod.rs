//! The main runtime: the OS sandbox, any image, any language.
//!
//! From a request to a sandbox: image → limits in a group → ids → `sandbox::compile` → the launcher → init's word that every
//! wall stands. Nothing is left behind when a step fails. Read `instance` for commands, `program` for the life of a program.

mod code;
mod control;
mod files;
mod instance;
mod launcher;
mod launchers;
mod program;
mod sandbox;
mod verdict;

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::sync::watch;

use crate::command::CommandKind;
use crate::id::EnvironmentId;
use crate::image::{ImageError, ImageRoot, Store};
use crate::language::{Language, Languages};
use crate::plan::StepFailure;
use crate::sandbox::cgroups::{CgroupTree, SessionCgroup};
use crate::sandbox::compile::{Compiled, Ids, Kernel, PACKAGES, Placement, Root, Spec, compile};
use crate::sandbox::enforcement::{Enforcement, ProfileIdentity, WallState, WallStatus};
use crate::sandbox::error::SandboxError;
use crate::sandbox::host::{HostFacts, UserNamespaces};
use crate::sandbox::uid_ranges::UidRanges;
use crate::sys::error::describe;

use super::features::Features;
use super::{Availability, Instance, InstanceConfig, Runtime, RuntimeKind};
use control::InitClient;
use instance::NativeInstance;
use launcher::{CreateFailure, Held, Launched, LauncherClient};
use launchers::Launchers;
use sandbox::Sandbox;

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
    /// The operator's wheels and tarballs, which installers alone see.
    pub package_dir: Option<PathBuf>,
    /// Wall time of a step before a program, compiler or installer: that of the profile `default`, whatever the session's.
    pub step_timeout: Duration,
}

/// The runtime.
pub struct NativeRuntime {
    parts: NativeParts,
    launchers: Launchers,
    uids: Option<UidRanges>,
    measured: Measured,
    itself: Weak<Self>,
}

/// What the sandboxes made so far cost: the least seen, which is the cost without waiting for others.
#[derive(Default)]
struct Measured {
    /// 0 until the first sandbox stood.
    startup_us: AtomicU64,
    /// 0 until a group told.
    memory_bytes: AtomicU64,
}

impl Measured {
    fn note(&self, startup: Duration, memory_bytes: Option<u64>) {
        let least = |cell: &AtomicU64, value: u64| {
            // Relaxed: figures for people; `fetch_update` fails only when there is nothing to change.
            cell.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |old| (old == 0 || value < old).then_some(value)).ok();
        };
        least(&self.startup_us, u64::try_from(startup.as_micros()).unwrap_or(u64::MAX).max(1));
        if let Some(bytes) = memory_bytes {
            least(&self.memory_bytes, bytes.max(1));
        }
    }
}

impl NativeRuntime {
    /// Starts the launcher; from then on it removes the server's groups, however the server ends.
    pub fn start(parts: NativeParts) -> std::io::Result<Arc<Self>> {
        match Self::launch(&parts) {
            Ok((launchers, uids)) => Ok(Arc::new_cyclic(|itself| Self {
                parts,
                launchers,
                uids,
                measured: Measured::default(),
                itself: Weak::clone(itself),
            })),
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
        let at_end = groups.iter().map(|path| path.to_string_lossy().into_owned()).collect();
        Ok((Launchers::start(at_end)?, uids))
    }

    pub(in crate::runtime::native) fn language(&self, name: &str) -> Option<Arc<Language>> {
        self.parts.languages.get(name)
    }

    pub(in crate::runtime::native) fn step_timeout(&self) -> Duration {
        self.parts.step_timeout
    }

    /// Where installers find packages, when the operator has given any.
    pub(in crate::runtime::native) fn packages(&self) -> Option<&'static str> {
        self.parts.package_dir.as_ref().map(|_| PACKAGES)
    }

    /// The steps that would build a sandbox, for `codebeaker plan`.
    pub fn plan(&self, config: &InstanceConfig) -> Result<Compiled, SandboxError> {
        let image = self.image(config)?;
        let ids = match &self.uids {
            Some(_) => Ids::Range { start: 0x1000_0000, count: IDS_OF_A_SANDBOX },
            None => self.own_ids(),
        };
        Ok(compile(&self.spec(config, &image, ids, Placement::default())))
    }

    fn image(&self, config: &InstanceConfig) -> Result<ImageRoot, SandboxError> {
        self.parts.images.resolve(&config.image).map_err(|error| match error {
            ImageError::NotFound { .. } | ImageError::NameInvalid { .. } => {
                SandboxError::ImageNotFound { image: config.image.clone() }
            }
            error => exhausted(&error).unwrap_or_else(|| SandboxError::Internal(error.to_string())),
        })
    }

    fn own_ids(&self) -> Ids {
        let host = &self.parts.host;
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

    fn spec<'a>(&self, config: &'a InstanceConfig, image: &ImageRoot, ids: Ids, cgroup: Placement) -> Spec<'a> {
        let host = &self.parts.host;
        Spec {
            profile: &config.profile,
            limits: &config.limits,
            root: Root {
                lower: image.lower.clone(),
                binds: image.binds.iter().map(|bind| (bind.source.clone(), bind.target.clone())).collect(),
                packages: self.parts.package_dir.clone(),
            },
            ids,
            cgroup,
            kernel: Kernel {
                time_namespace: host.time_namespace,
                landlock_abi: host.landlock_abi,
                version: (host.kernel.0, host.kernel.1),
            },
        }
    }

    /// A sandbox whose walls stand; `generation` counts those that an instance has had.
    pub(in crate::runtime::native) async fn sandbox(
        &self,
        config: &InstanceConfig,
        generation: u64,
    ) -> Result<Sandbox, SandboxError> {
        let started = Instant::now();
        match tokio::time::timeout(CREATE_TIME, self.build(config, generation)).await {
            Ok(Ok(sandbox)) => {
                self.measured.note(started.elapsed(), sandbox.usage().memory_peak_bytes);
                Ok(sandbox)
            }
            Ok(Err(error)) => Err(error),
            Err(_) => Err(SandboxError::Busy { cause: format!("it did not stand after {} s", CREATE_TIME.as_secs()) }),
        }
    }

    async fn build(&self, config: &InstanceConfig, generation: u64) -> Result<Sandbox, SandboxError> {
        let launcher = self.launchers.current().await.ok_or_else(launcher_gone)?;
        let image = self.image(config)?;
        let (ids, range) = match &self.uids {
            Some(uids) => {
                let range = uids.take().map_err(|error| SandboxError::Busy { cause: error.to_string() })?;
                (Ids::Range { start: range.start, count: range.count }, Some(range))
            }
            None => (self.own_ids(), None),
        };
        let mut cgroup = self.group(config, generation)?;
        let limits = Self::limits(config, cgroup.as_ref())?;
        let placement = cgroup.as_ref().map(|cgroup| placement(cgroup, &ids)).unwrap_or_default();
        let compiled = compile(&self.spec(config, &image, ids, placement));
        self.required_walls(&compiled.walls)?;
        let directories = cgroup.as_mut().map(hand_over).unwrap_or_default();
        let environment = image.env.clone();
        let held: Held = Box::new((range, image));
        let launched = launcher.create(compiled.plan, directories, held).await.map_err(|failure| match failure {
            CreateFailure::Step(failure) => wall_error(&failure),
            CreateFailure::ControlLost => SandboxError::Busy { cause: "no descriptor was left for its control socket".into() },
            CreateFailure::LauncherGone => launcher_gone(),
        })?;
        let profile = &config.profile;
        let enforcement = Enforcement {
            walls: compiled.walls,
            limits,
            profile: ProfileIdentity {
                name: profile.name.clone(),
                version: profile.version.clone(),
                sha256: profile.sha256.clone(),
            },
            rootless: !self.parts.host.root,
        };
        let Launched { tag, control, gone } = launched;
        let ended = Ended { launcher: &launcher, tag: Some(tag) };
        let init = match InitClient::connect(control).await {
            Ok(init) => init,
            Err(Ok(failure)) => return Err(wall_error(&failure)),
            Err(Err(_)) => return Err(early_end(&launcher, tag, gone).await),
        };
        ended.keep();
        Ok(Sandbox { launcher, tag, init, gone, cgroup, enforcement, environment, told: Mutex::default() })
    }

    fn group(&self, config: &InstanceConfig, generation: u64) -> Result<Option<SessionCgroup>, SandboxError> {
        let Some(tree) = &self.parts.cgroups else { return Ok(None) };
        // The sandbox that is replaced may still have its group.
        let name = match generation {
            0 => config.environment_id.clone(),
            later => EnvironmentId::from_client(&format!("{}_{later}", config.environment_id)),
        };
        tree.create(&name, &config.limits).map(Some).map_err(|error| {
            exhausted(&error).unwrap_or_else(|| SandboxError::IsolationUnavailable {
                wall: "cgroup".into(),
                cause: error.to_string(),
                mend: "run `codebeaker doctor`: its rows on cgroups name what is not writable".into(),
            })
        })
    }

    /// One row a limit; a limit that the request named and nothing here can hold is an error.
    fn limits(config: &InstanceConfig, cgroup: Option<&SessionCgroup>) -> Result<Vec<WallState>, SandboxError> {
        let mut rows = match cgroup {
            Some(cgroup) => cgroup.limits.clone(),
            None => ["memory", "pids", "cpu"].map(without_group).to_vec(),
        };
        let limits = &config.limits;
        for (name, detail) in [
            ("disk", format!("{} MiB on the session's tmpfs", limits.disk_bytes >> 20)),
            ("inodes", format!("{} on the session's tmpfs", limits.inodes)),
            ("output", format!("ended past {} MiB", limits.output_killed_bytes >> 20)),
            ("wall_time", format!("{} s, at most {} s", limits.timeout.as_secs(), limits.timeout_max.as_secs())),
        ] {
            rows.push(WallState { name: name.into(), state: WallStatus::Enforced, detail });
        }
        let named = &config.named_limits;
        for (limit, asked) in [("memory", named.memory), ("pids", named.pids), ("cpu", named.cpu_cores || named.cpu_shares)] {
            let absent = rows.iter().find(|row| row.name == limit && row.state == WallStatus::Absent);
            if let Some(row) = absent.filter(|_| asked) {
                return Err(SandboxError::LimitUnenforceable {
                    limit: limit.into(),
                    cause: row.detail.clone(),
                    mend: "delegate a cgroup to the server (systemd: Delegate=yes), or leave the limit out".into(),
                });
            }
        }
        Ok(rows)
    }

    /// The walls that must stand whatever the host: SECURITY and DESIGN section 3.
    fn required_walls(&self, walls: &[WallState]) -> Result<(), SandboxError> {
        const REQUIRED: [&str; 10] =
            ["user", "mount", "pid", "network", "ipc", "uts", "capabilities", "no_new_privs", "seccomp", "masked_paths"];
        for name in REQUIRED {
            let stands = walls.iter().any(|row| row.name == name && row.state != WallStatus::Absent);
            if !stands && !self.parts.allow_degraded.iter().any(|allowed| allowed == name) {
                return Err(SandboxError::IsolationUnavailable {
                    wall: name.into(),
                    cause: "it is not among the walls that this host can build".into(),
                    mend: "run `codebeaker doctor`".into(),
                });
            }
        }
        Ok(())
    }
}

fn placement(cgroup: &SessionCgroup, ids: &Ids) -> Placement {
    let programs_born_in = match ids {
        Ids::Range { .. } | Ids::Single { .. } => cgroup.run.clone(),
        // Init is then another host user than the one the groups were delegated to, and may not move anything in them.
        Ids::Helper { .. } => None,
    };
    Placement { join: cgroup.join.clone(), born_in: cgroup.born_in.clone(), programs_born_in }
}

/// The launcher removes the groups from here on: it knows when nothing is in them.
fn hand_over(cgroup: &mut SessionCgroup) -> Vec<String> {
    cgroup.hand_over();
    cgroup.directories.iter().map(|path| path.to_string_lossy().into_owned()).collect()
}

fn without_group(name: &str) -> WallState {
    let (state, detail) = match name {
        "pids" => (WallStatus::Degraded, "RLIMIT_NPROC of the host id: no group is writable here"),
        _ => (WallStatus::Absent, "no group is writable here; systemd: Delegate=yes"),
    };
    WallState { name: name.into(), state, detail: detail.into() }
}

fn wall_error(failure: &StepFailure) -> SandboxError {
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
fn exhausted(error: &(dyn std::error::Error + 'static)) -> Option<SandboxError> {
    let mut causes = std::iter::successors(Some(error), |error| error.source());
    let errno = causes.find_map(|error| error.downcast_ref::<std::io::Error>()?.raw_os_error());
    errno.and_then(out_of)
}

fn launcher_gone() -> SandboxError {
    SandboxError::Busy { cause: "the launcher ended; another is being started".into() }
}

/// Why an init ended before its walls stood: by itself, or with its launcher.
async fn early_end(launcher: &LauncherClient, tag: u64, mut gone: watch::Receiver<Option<i32>>) -> SandboxError {
    launcher.end(tag);
    match gone.wait_for(Option::is_some).await {
        Ok(_) => SandboxError::Internal("init ended before its walls stood".into()),
        Err(_) => launcher_gone(),
    }
}

/// A sandbox that was launched but never stood.
struct Ended<'a> {
    launcher: &'a LauncherClient,
    tag: Option<u64>,
}

impl Ended<'_> {
    fn keep(mut self) {
        self.tag = None;
    }
}

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        if let Some(tag) = self.tag {
            self.launcher.end(tag);
        }
    }
}

impl Runtime for NativeRuntime {
    fn name(&self) -> &'static str {
        "OS sandbox"
    }

    fn kind(&self) -> RuntimeKind {
        RuntimeKind::NativeProcess
    }

    fn languages(&self) -> Vec<String> {
        self.parts.languages.all().iter().map(|language| language.name.clone()).collect()
    }

    fn commands(&self) -> Vec<CommandKind> {
        CommandKind::ALL.to_vec()
    }

    fn features(&self) -> Features {
        let startup_us = self.measured.startup_us.load(Ordering::Relaxed);
        let memory_bytes = self.measured.memory_bytes.load(Ordering::Relaxed);
        Features {
            // Until the first sandbox has stood these are the figures of one test host.
            startup_time_ms: if startup_us == 0 { 5.0 } else { startup_us as f64 / 1000.0 },
            memory_overhead_mb: if memory_bytes == 0 { 1.0 } else { memory_bytes as f64 / f64::from(1 << 20) },
            isolation_level: if self.parts.host.root { 9 } else { 8 },
            filesystem_persistence: true,
            network_access: false,
            concurrent_executions_max: 16,
            measured: startup_us != 0,
        }
    }

    fn availability(&self) -> Availability {
        match &self.parts.host.user_namespaces {
            UserNamespaces::Allowed => Availability::Available,
            UserNamespaces::Refused { cause, mend } => Availability::Unavailable(format!("{cause}; {mend}")),
        }
    }

    fn create(&self, config: InstanceConfig) -> BoxFuture<'_, Result<Arc<dyn Instance>, SandboxError>> {
        async move {
            let sandbox = self.sandbox(&config, 0).await?;
            let runtime = self.itself.upgrade().ok_or_else(|| SandboxError::Internal("the runtime is going down".into()))?;
            let instance: Arc<dyn Instance> = NativeInstance::new(runtime, config, sandbox);
            Ok(instance)
        }
        .boxed()
    }
}
