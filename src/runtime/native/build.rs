//! A sandbox made from nothing: ids, a group, a process in it; the other groups and `sandbox::compile` while that is cloned; then the
//! launcher's steps, and init's word that every wall stands.
//!
//! Invariant: nothing is left behind when a step fails. Read `ahead` for who begins before there is a request.

use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use tokio::sync::watch;

use crate::id::EnvironmentId;
use crate::image::ImageRoot;
use crate::plan::messages::Birth;
use crate::runtime::{InstanceConfig, Origin};
use crate::sandbox::cgroups::{CgroupError, SessionCgroup};
use crate::sandbox::compile::{Compiled, Ids, Placement, ProcessBound, compile, namespaces};
use crate::sandbox::enforcement::{Enforcement, WallState};
use crate::sandbox::error::SandboxError;
use crate::sandbox::held;
use crate::sandbox::uid_ranges::UidRange;

use super::control::InitClient;
use super::launcher::{Begun, CreateFailure, Held, Launched, LauncherClient};
use super::sandbox::{AtLauncher, Body, Ends, HeldImage, Line, Sandbox};
use super::warm::Kept;
use super::{CREATE_TIME, NativeRuntime, exhausted, launcher_gone, not_standing, required_walls, wall_error};

/// A sandbox that has begun: its process waits for a plan, in groups of that name.
pub(super) struct Start {
    name: EnvironmentId,
    launcher: Arc<LauncherClient>,
    // Before the groups: should both be dropped, the process goes first.
    begun: Begun,
    cgroup: Option<SessionCgroup>,
}

impl Start {
    /// Whether this launcher has its process; one that has ended has none.
    pub(super) fn is_at(&self, launcher: &Arc<LauncherClient>) -> bool {
        Arc::ptr_eq(&self.launcher, launcher) && launcher.is_alive()
    }

    /// Ends it, and has its groups removed.
    pub(super) fn give_up(mut self) {
        let directories = self.cgroup.as_mut().map(hand_over).unwrap_or_default();
        self.begun.give_up(directories);
    }
}

/// What a new sandbox is called.
#[derive(Debug, Clone)]
pub(super) enum Name {
    /// As what was begun ahead is called, else so. Asked for by a request.
    Any(EnvironmentId),
    /// So.
    This(EnvironmentId),
}

/// Why a start came to nothing.
enum Failed {
    /// Its process, or its launcher, was gone or may have been: another may fare better.
    Gone(SandboxError),
    /// For a reason that another would meet as well.
    Other(SandboxError),
}

impl NativeRuntime {
    /// A new sandbox on this image.
    pub(super) async fn make(&self, config: &InstanceConfig, image: ImageRoot, name: Name) -> Result<Sandbox, SandboxError> {
        match tokio::time::timeout(CREATE_TIME, self.build(config, image, name)).await {
            Ok(answer) => answer,
            Err(_) => Err(not_standing()),
        }
    }

    async fn build(&self, config: &InstanceConfig, image: ImageRoot, name: Name) -> Result<Sandbox, SandboxError> {
        let mut launcher = self.works.launchers.current().await.ok_or_else(launcher_gone)?;
        let mut ids = self.ids()?;
        let ahead = match name {
            Name::Any(_) => self.works.ahead.take(&launcher),
            Name::This(_) => None,
        };
        if let Some(start) = ahead {
            match self.build_on(start, ids, config, image.clone(), &name).await {
                // Somebody may have ended it while it waited.
                Err(Failed::Gone(error)) => tracing::warn!(%error, "what was begun ahead could not be used; another is begun"),
                Err(Failed::Other(error)) => return Err(error),
                Ok(sandbox) => return Ok(sandbox),
            }
            launcher = self.works.launchers.current().await.ok_or_else(launcher_gone)?;
            ids = self.ids()?;
        }
        let (Name::Any(own) | Name::This(own)) = &name;
        let start = self.begin(launcher, own.clone())?;
        self.build_on(start, ids, config, image, &name).await.map_err(|(Failed::Gone(error) | Failed::Other(error))| error)
    }

    /// Makes the group and asks for the process.
    pub(super) fn begin(&self, launcher: Arc<LauncherClient>, name: EnvironmentId) -> Result<Start, SandboxError> {
        let cgroup = self.begin_group(&name)?;
        let begun = launcher.begin(self.birth(cgroup.as_ref())).map_err(|failure| refused(&failure))?;
        Ok(Start { name, launcher, begun, cgroup })
    }

    /// Makes the other groups, which wait for their limits; a start for which that fails is given up.
    pub(super) fn fill_up(&self, mut start: Start) -> Result<Start, SandboxError> {
        let filled = match (&self.works.parts.cgroups, &mut start.cgroup) {
            (Some(tree), Some(cgroup)) => tree.fill_up(cgroup, &start.name),
            _ => Ok(()),
        };
        match filled {
            Ok(()) => Ok(start),
            Err(error) => {
                start.give_up();
                Err(no_group(&error))
            }
        }
    }

    async fn build_on(
        &self,
        mut start: Start,
        (ids, range): (Ids, Option<UidRange>),
        config: &InstanceConfig,
        image: ImageRoot,
        asked_as: &Name,
    ) -> Result<Sandbox, Failed> {
        let (compiled, enforcement) = match self.draft(config, &image, &start.name, ids, start.cgroup.as_mut()) {
            Ok(drafted) => drafted,
            Err(error) => {
                start.give_up();
                return Err(Failed::Other(error));
            }
        };
        let Start { name, launcher, mut cgroup, begun } = start;
        let directories = cgroup.as_mut().map(hand_over).unwrap_or_default();
        let variables = image.env.clone();
        let held_image = Arc::new(HeldImage::default());
        held_image.hold(image);
        let held: Held = Box::new((range, Arc::clone(&held_image)));
        let launched = launcher.create(begun, compiled.plan, directories, held).await;
        let launched = launched.map_err(|failure| match &failure {
            // What the launcher does to a process fails in many ways once that is gone.
            CreateFailure::Step(_) | CreateFailure::LauncherGone => Failed::Gone(refused(&failure)),
            CreateFailure::ControlLost | CreateFailure::Backlog => Failed::Other(refused(&failure)),
        })?;
        if matches!(asked_as, Name::Any(_)) {
            // While its init is at work this process and the launcher have nothing to do.
            self.works.ahead.asked();
        }
        let Launched { tag, control, gone } = launched;
        let ends = Ends(Arc::new(AtLauncher { launcher: Arc::clone(&launcher), tag }));
        let init = match InitClient::connect(control).await {
            Ok(init) => init,
            Err(Ok(failure)) => return Err(Failed::Other(wall_error(&failure))),
            Err(Err(_)) => return Err(Failed::Gone(early_end(&launcher, tag, gone).await)),
        };
        let body = Body {
            ends,
            gone,
            name,
            origin: Origin::New,
            cgroup,
            walls: compiled.walls,
            enforcement,
            variables,
            image: held_image,
            way: None,
            told: Mutex::default(),
            warm: Kept::default(),
            used: None,
        };
        Ok(Sandbox { line: Line::to(init), body })
    }

    /// The ids of a new sandbox, and what keeps them from others.
    fn ids(&self) -> Result<(Ids, Option<UidRange>), SandboxError> {
        let Some(uids) = &self.works.uids else { return Ok((self.own_ids(), None)) };
        let range = uids.take().map_err(|error| SandboxError::Busy { cause: error.to_string() })?;
        Ok((Ids::Range { start: range.start, count: range.count }, Some(range)))
    }

    /// What holds for a request in a sandbox that has these walls and this group.
    pub(super) fn enforcement(
        &self,
        config: &InstanceConfig,
        mut walls: Vec<WallState>,
        cgroup: Option<&SessionCgroup>,
    ) -> Result<Enforcement, SandboxError> {
        let host = &self.works.parts.host;
        let limits = held::rows(&config.limits, cgroup.map(|cgroup| cgroup.limits.as_slice()), host.nofile_hard);
        held::refuse_named(config.named_limits, &limits)?;
        walls.extend(config.permissions.as_ref().map(|permissions| self.flavour.permissions_row(permissions)));
        let profile = config.profile.identity(host.seccomp_listener.waiting());
        Ok(Enforcement { walls, limits, profile, rootless: !host.root })
    }

    /// The rest of the groups, and the plan.
    fn draft(
        &self,
        config: &InstanceConfig,
        image: &ImageRoot,
        name: &EnvironmentId,
        ids: Ids,
        mut cgroup: Option<&mut SessionCgroup>,
    ) -> Result<(Compiled, Enforcement), SandboxError> {
        self.finish_group(cgroup.as_deref_mut(), config, name)?;
        let placement = cgroup.as_deref().map(|cgroup| placement(cgroup, &ids)).unwrap_or_default();
        let compiled = compile(&self.spec(config, image, ids, placement)?);
        required_walls(&compiled.walls, &self.works.parts.allow_degraded)?;
        let enforcement = self.enforcement(config, compiled.walls.clone(), cgroup.as_deref())?;
        Ok((compiled, enforcement))
    }

    fn birth(&self, cgroup: Option<&SessionCgroup>) -> Birth {
        let born_in = cgroup.and_then(|cgroup| cgroup.born_in.as_ref());
        Birth { namespaces: namespaces(&self.kernel()), born_in: born_in.map(|group| group.to_string_lossy().into_owned()) }
    }

    fn begin_group(&self, name: &EnvironmentId) -> Result<Option<SessionCgroup>, SandboxError> {
        self.works.parts.cgroups.as_ref().map(|tree| tree.begin(name)).transpose().map_err(|error| no_group(&error))
    }

    fn finish_group(
        &self,
        cgroup: Option<&mut SessionCgroup>,
        config: &InstanceConfig,
        name: &EnvironmentId,
    ) -> Result<(), SandboxError> {
        match (&self.works.parts.cgroups, cgroup) {
            (Some(tree), Some(cgroup)) => tree.finish(cgroup, name, &config.limits).map_err(|error| no_group(&error)),
            _ => Ok(()),
        }
    }
}

fn no_group(error: &CgroupError) -> SandboxError {
    exhausted(error).unwrap_or_else(|| SandboxError::IsolationUnavailable {
        wall: "cgroup".into(),
        cause: error.to_string(),
        mend: "run `codebeaker doctor`: its rows on cgroups name what is not writable".into(),
    })
}

fn refused(failure: &CreateFailure) -> SandboxError {
    match failure {
        CreateFailure::Step(failure) => wall_error(failure),
        CreateFailure::ControlLost => SandboxError::Busy { cause: "no descriptor was left for its control socket".into() },
        CreateFailure::LauncherGone => launcher_gone(),
        CreateFailure::Backlog => {
            SandboxError::Busy { cause: "the control groups of closed sessions are still being removed".into() }
        }
    }
}

fn placement(cgroup: &SessionCgroup, ids: &Ids) -> Placement {
    let programs_born_in = match ids {
        Ids::Range { .. } | Ids::Single { .. } => cgroup.run.clone(),
        // Init is then another host user than the one the groups were delegated to, and may not move anything in them.
        Ids::Helper { .. } => None,
    };
    let processes = if cgroup.bounds_processes() { ProcessBound::Group } else { ProcessBound::Rlimit };
    Placement { join: cgroup.join.clone(), born_in: cgroup.born_in.clone(), programs_born_in, processes }
}

/// The launcher removes the groups from here on: it knows when nothing is in them.
fn hand_over(cgroup: &mut SessionCgroup) -> Vec<PathBuf> {
    cgroup.hand_over();
    cgroup.directories.clone()
}

/// Why an init ended before its walls stood: by itself, or with its launcher.
async fn early_end(launcher: &LauncherClient, tag: u64, mut gone: watch::Receiver<Option<i32>>) -> SandboxError {
    launcher.end(tag);
    match gone.wait_for(Option::is_some).await {
        Ok(_) => SandboxError::Internal("init ended before its walls stood".into()),
        Err(_) => launcher_gone(),
    }
}
