//! A sandbox made from nothing: ids, a group, a process in it; the other groups and `sandbox::compile` while that is cloned; then the
//! launcher's steps, and init's word that every wall stands.
//!
//! Invariant: nothing is left behind when a step fails.

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

use super::control::InitClient;
use super::launcher::{CreateFailure, Held, Launched, LauncherClient};
use super::sandbox::{AtLauncher, Body, Ends, HeldImage, Line, Sandbox};
use super::warm::Kept;
use super::{CREATE_TIME, NativeRuntime, exhausted, launcher_gone, not_standing, required_walls, wall_error};

impl NativeRuntime {
    /// A new sandbox on this image, whose groups have this name.
    pub(super) async fn make(
        &self,
        config: &InstanceConfig,
        image: ImageRoot,
        name: EnvironmentId,
    ) -> Result<Sandbox, SandboxError> {
        match tokio::time::timeout(CREATE_TIME, self.build(config, image, name)).await {
            Ok(answer) => answer,
            Err(_) => Err(not_standing()),
        }
    }

    async fn build(&self, config: &InstanceConfig, image: ImageRoot, name: EnvironmentId) -> Result<Sandbox, SandboxError> {
        let launcher = self.works.launchers.current().await.ok_or_else(launcher_gone)?;
        let (ids, range) = match &self.works.uids {
            Some(uids) => {
                let range = uids.take().map_err(|error| SandboxError::Busy { cause: error.to_string() })?;
                (Ids::Range { start: range.start, count: range.count }, Some(range))
            }
            None => (self.own_ids(), None),
        };
        let mut cgroup = self.begin_group(&name)?;
        let begun = launcher.begin(self.birth(cgroup.as_ref())).map_err(|failure| refused(&failure))?;
        let drafted = self.draft(config, &image, &name, ids, cgroup.as_mut());
        let directories = cgroup.as_mut().map(hand_over).unwrap_or_default();
        let (compiled, enforcement) = match drafted {
            Ok(drafted) => drafted,
            Err(error) => {
                begun.give_up(directories);
                return Err(error);
            }
        };
        let variables = image.env.clone();
        let held_image = Arc::new(HeldImage::default());
        held_image.hold(image);
        let held: Held = Box::new((range, Arc::clone(&held_image)));
        let launched = launcher.create(begun, compiled.plan, directories, held).await.map_err(|failure| refused(&failure))?;
        let Launched { tag, control, gone } = launched;
        let ends = Ends(Arc::new(AtLauncher { launcher: Arc::clone(&launcher), tag }));
        let init = match InitClient::connect(control).await {
            Ok(init) => init,
            Err(Ok(failure)) => return Err(wall_error(&failure)),
            Err(Err(_)) => return Err(early_end(&launcher, tag, gone).await),
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
