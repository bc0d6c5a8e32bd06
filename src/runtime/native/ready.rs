//! A sandbox that nobody has yet: its walls stand, it has run no program of anybody but the interpreter that waits for one (`warm`),
//! and its image may be removed under it.
//!
//! Invariants: it becomes one session's and never comes back; what the session asks for is in force before it has it; what can't be put
//! in force that way is made anew instead. Read `pool` for which there are.

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use crate::image::{Bind, ImageRoot};
use crate::runtime::{InstanceConfig, Origin, Permissions, RuntimeKind};
use crate::sandbox::cgroups::{CgroupTree, SessionCgroup};
use crate::sandbox::error::SandboxError;
use crate::sandbox::spec::Limits;
use crate::sys::{CallError, mount};

use super::NativeRuntime;
use super::control::{Gone, InitClient, Keep, Resting};
use super::sandbox::{Body, Line, Sandbox};
use super::uses::Uses;
use super::warm::{self, Kept};

/// Taken for the memory of a sandbox where no group tells it.
const MEMORY_BYTES_GUESS: u64 = 1 << 20;

/// A session has at least so many times what the ready sandbox holds already.
const MEMORY_MARGIN: u64 = 2;

/// Init itself gives up an interpreter before this.
const WARM_TIME: Duration = Duration::from_secs(15);

/// So long it starts with what others leave of the processors; on a host without quiet it takes its part after that.
const WAY_TIME: Duration = Duration::from_secs(1);

/// Init answers at once or is stuck.
const ANSWER_TIME: Duration = Duration::from_secs(1);

/// What two sandboxes have in common when one can serve for the other.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Kind {
    runtime: RuntimeKind,
    language: String,
    /// Digest of the profile's files.
    profile: (String, String),
    lower: PathBuf,
    /// Device and inode of `lower`: a directory that is made again in its place is another one. A ready sandbox keeps the inode, so its number is
    /// not used again meanwhile.
    tree: (u64, u64),
    binds: Vec<Bind>,
    /// Flags of an engine follow from them.
    permissions: Option<Permissions>,
    /// Limits that are part of how programs are started.
    open_files: u64,
    pids: Option<u64>,
}

impl NativeRuntime {
    /// What a request wants of a ready sandbox; none where there can't be such a thing.
    pub(super) fn kind_of(&self, config: &InstanceConfig, image: &ImageRoot) -> Option<Kind> {
        let tree = std::fs::metadata(&image.lower).ok()?;
        let bound_by_group = self.works.parts.cgroups.as_ref().is_some_and(CgroupTree::bounds_processes);
        Some(Kind {
            runtime: self.flavour.kind(),
            language: config.language.name.clone(),
            profile: (config.profile.name.clone(), config.profile.sha256.clone()),
            lower: image.lower.clone(),
            tree: (tree.dev(), tree.ino()),
            binds: image.binds.clone(),
            permissions: config.permissions.clone(),
            open_files: config.limits.open_files,
            pids: (!bound_by_group).then_some(config.limits.pids),
        })
    }
}

/// What waits in a ready sandbox for the first program.
pub enum Interpreter {
    /// Sessions of this kind have none.
    None,
    /// None, because sandboxes of this kind run no programs in theirs.
    Spared(Arc<Uses>),
    /// This one.
    Ahead(Kept, Keep),
}

/// A ready sandbox.
pub struct Ready {
    resting: Resting,
    body: Body,
    /// What the size of its file system is changed with; none where the kernel gives no such thing.
    quota: Option<OwnedFd>,
    /// In force.
    limits: Limits,
    memory_bytes: u64,
    /// What sessions of its kind do, where it has no interpreter because of that.
    spared: Option<Arc<Uses>>,
}

/// It could not be made what the request asks for; it has ended.
#[derive(Debug, thiserror::Error)]
pub enum Unfit {
    /// A limit could not be put in force.
    #[error("a limit was not taken")]
    Limit(#[from] crate::sandbox::cgroups::CgroupError),
    /// The request named a limit that this host does not hold.
    #[error("a limit that was named does not hold here")]
    Named(#[from] Box<SandboxError>),
    /// Its own file system keeps its size.
    #[error("the size of its file system was not taken")]
    Size(#[from] CallError),
    /// The kernel gave nothing to change that size with.
    #[error("the size of its file system can't be changed")]
    NoQuota,
    /// It ended meanwhile, or does not answer.
    #[error("it has ended, or is stuck")]
    Gone,
}

impl From<Gone> for Unfit {
    fn from(_: Gone) -> Self {
        Self::Gone
    }
}

impl Ready {
    /// Lays a sandbox aside that has `limits` in force, with an interpreter where there is to be one.
    pub async fn lay_aside(sandbox: Sandbox, limits: Limits, interpreter: Interpreter) -> Result<Self, Unfit> {
        let Sandbox { line, mut body } = sandbox;
        let init = line.release().ok_or(Unfit::Gone)?;
        let quota = tokio::time::timeout(ANSWER_TIME, init.quota()).await.map_err(|_| Unfit::Gone)??.ok();
        let (ahead, spared) = match interpreter {
            Interpreter::None => (None, None),
            Interpreter::Spared(uses) => (None, Some(uses)),
            Interpreter::Ahead(kept, keep) => (Some((kept, keep)), None),
        };
        if let Some((kept, keep)) = ahead {
            // Only now: it runs what the image has. One that does not get ready costs a session its warm start and nothing else.
            body.warm = kept;
            warm_up(&init, keep, body.cgroup.as_ref(), &limits).await?;
        }
        // What happened until now is nobody's.
        body.told = body.cgroup.as_ref().map(SessionCgroup::events).unwrap_or_default().into();
        let resting = init.rest().await?;
        body.image.let_go();
        let memory_bytes = body.cgroup.as_ref().and_then(SessionCgroup::memory_bytes).unwrap_or(MEMORY_BYTES_GUESS);
        Ok(Self { resting, body, quota, limits, memory_bytes, spared })
    }

    /// What it holds.
    pub fn memory_bytes(&self) -> u64 {
        self.memory_bytes
    }

    /// False once its init or its launcher has ended.
    pub fn is_alive(&self) -> bool {
        self.body.is_alive()
    }

    /// False when it has no interpreter, though its kind's are used again.
    pub fn is_as_wanted(&self) -> bool {
        !self.spared.as_ref().is_some_and(|uses| uses.are_likely())
    }

    /// Whether a session with these limits has room in it.
    pub fn suits(&self, limits: &Limits) -> bool {
        limits.memory_bytes.get() / MEMORY_MARGIN >= self.memory_bytes
    }

    /// Makes it what the request asks for.
    pub fn claim(self, runtime: &NativeRuntime, config: &InstanceConfig, image: &ImageRoot) -> Result<Sandbox, Unfit> {
        let Self { resting, mut body, quota, limits, .. } = self;
        body.image.hold(image.clone());
        if let (Some(tree), Some(cgroup)) = (&runtime.works.parts.cgroups, &body.cgroup) {
            tree.change(cgroup, &limits, &config.limits)?;
        }
        let (bytes, inodes) = (config.limits.disk_bytes, config.limits.inodes);
        if (limits.disk_bytes, limits.inodes) != (bytes, inodes) {
            mount::resize(quota.ok_or(Unfit::NoQuota)?.as_fd(), bytes, inodes)?;
        }
        body.origin = Origin::Pool;
        body.variables.clone_from(&image.env);
        body.enforcement = runtime.enforcement(config, body.walls.clone(), body.cgroup.as_ref()).map_err(Box::new)?;
        let init = resting.wake()?;
        if body.warm.is_any() && !warm::serves(runtime.works.parts.warm, config, &limits) {
            body.warm.outdate();
            if !init.cool_now() {
                return Err(Unfit::Gone);
            }
        }
        let line = Line::to(init);
        if body.is_alive() { Ok(Sandbox { line, body }) } else { Err(Unfit::Gone) }
    }
}

/// Starts the interpreter and waits for what becomes of it. Nobody waits for it, so whoever works meanwhile goes first.
async fn warm_up(init: &InitClient, keep: Keep, cgroup: Option<&SessionCgroup>, limits: &Limits) -> Result<(), Unfit> {
    let behind = cgroup.filter(|cgroup| cgroup.give_way());
    let mut told = pin!(tokio::time::timeout(WARM_TIME, init.warm_up(keep)));
    let soon = match behind {
        Some(_) => tokio::time::timeout(WAY_TIME, &mut told).await.ok(),
        None => None,
    };
    if let Some(cgroup) = behind {
        cgroup.take_part(limits)?;
    }
    let told = match soon {
        Some(told) => told,
        None => told.await,
    };
    Ok(told.map_err(|_| Unfit::Gone)??)
}
