//! One sandbox as the server holds it: a control socket, somebody who can end it, a group to read counters from.
//!
//! Invariant: dropping it ends it. What it holds on the host is released by its holder's word, not by ours. Read `ready` for
//! one that nobody uses yet.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::watch;

use crate::command::Usage;
use crate::id::EnvironmentId;
use crate::image::ImageRoot;
use crate::plan::messages::Tag;
use crate::runtime::Origin;
use crate::runtime::egress::Way;
use crate::sandbox::cgroups::{CgroupEvents, SessionCgroup};
use crate::sandbox::enforcement::{Enforcement, WallState};

use super::control::InitClient;
use super::launcher::LauncherClient;
use super::reaper::Killed;
use super::uses::Use;
use super::verdict::Counters;
use super::warm::Kept;

/// Who can end a sandbox from outside.
pub trait Holder: Send + Sync {
    /// Has it ended, without waiting for that. Gives, where there is such a thing, what becomes readable when no process of it lives.
    fn end(&self) -> Option<Killed>;
    /// Why it has ended when nobody asked for it.
    fn why_gone(&self) -> &'static str;
}

/// The launcher, and the number it knows the sandbox by.
pub(super) struct AtLauncher {
    pub(super) launcher: Arc<LauncherClient>,
    pub(super) tag: Tag,
}

impl Holder for AtLauncher {
    fn end(&self) -> Option<Killed> {
        self.launcher.end(self.tag)
    }

    fn why_gone(&self) -> &'static str {
        "its init ended"
    }
}

/// What a sandbox is made of that was built outside of this module, and never lies ready.
pub struct Standing {
    /// Who can end it.
    pub holder: Arc<dyn Holder>,
    /// Its init, which has said that every wall stands.
    pub init: InitClient,
    /// Becomes something when no process of it lives and nothing of it is left; its sender's end says that whoever knows is gone.
    pub gone: watch::Receiver<Option<i32>>,
    /// The environment's.
    pub name: EnvironmentId,
    /// Where its processes are counted.
    pub cgroup: Option<SessionCgroup>,
    /// What holds.
    pub enforcement: Enforcement,
    /// The image's environment.
    pub environment: BTreeMap<String, String>,
}

/// A sandbox whose walls stand.
pub struct Sandbox {
    pub(super) line: Line,
    pub(super) body: Body,
}

/// All of it but the connection to its init.
pub(super) struct Body {
    pub(super) ends: Ends,
    pub(super) gone: watch::Receiver<Option<i32>>,
    /// What its groups are named by.
    pub(super) name: EnvironmentId,
    pub(super) origin: Origin,
    pub(super) cgroup: Option<SessionCgroup>,
    /// Those that were built, without what a request adds.
    pub(super) walls: Vec<WallState>,
    pub(super) enforcement: Enforcement,
    pub(super) variables: BTreeMap<String, String>,
    pub(super) image: Arc<HeldImage>,
    /// The way out of its network, where its programs have one.
    pub(super) way: Option<Way>,
    /// What `new_events` has told.
    pub(super) told: Mutex<CgroupEvents>,
    /// The interpreter that it keeps.
    pub(super) warm: Kept,
    /// The use that it makes of an interpreter, where the pool has such ones.
    pub(super) used: Option<Use>,
}

impl From<Standing> for Sandbox {
    fn from(standing: Standing) -> Self {
        let Standing { holder, init, gone, name, cgroup, enforcement, environment } = standing;
        let body = Body {
            ends: Ends(holder),
            gone,
            name,
            origin: Origin::New,
            cgroup,
            walls: enforcement.walls.clone(),
            enforcement,
            variables: environment,
            image: Arc::default(),
            way: None,
            told: Mutex::default(),
            warm: Kept::default(),
            used: None,
        };
        Self { line: Line::to(init), body }
    }
}

/// Keeps the image of a sandbox in the store, as long as the sandbox may run anything.
#[derive(Default)]
pub(super) struct HeldImage(Mutex<Option<ImageRoot>>);

impl HeldImage {
    pub(super) fn hold(&self, image: ImageRoot) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(image);
    }

    /// Nobody is to be kept from removing an image for a sandbox that nobody uses.
    pub(super) fn let_go(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
    }
}

/// Has the sandbox ended when it is dropped.
pub(super) struct Ends(pub(super) Arc<dyn Holder>);

impl Drop for Ends {
    fn drop(&mut self) {
        self.0.end();
    }
}

/// The connection to its init; dropping it hangs up. That is the second way to the end, for a launcher that is gone: an init that
/// was in the middle of changing its credentials then has not got the signal that should have ended it (prctl(2), PR_SET_PDEATHSIG).
pub(super) struct Line(Option<InitClient>);

impl Line {
    pub(super) fn to(init: InitClient) -> Self {
        Self(Some(init))
    }

    /// Without hanging up.
    pub(super) fn release(mut self) -> Option<InitClient> {
        self.0.take()
    }

    fn init(&self) -> &InitClient {
        self.0.as_ref().expect("a line holds its client until it is released, which consumes it")
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        if let Some(init) = &self.0 {
            init.hang_up();
        }
    }
}

impl Body {
    /// False once its init has ended, or its launcher.
    pub(super) fn is_alive(&self) -> bool {
        self.gone.borrow().is_none() && self.gone.has_changed().is_ok()
    }
}

impl Sandbox {
    /// Why it has ended when nobody asked for it.
    pub fn why_gone(&self) -> &'static str {
        self.body.ends.0.why_gone()
    }

    /// Its init.
    pub fn init(&self) -> &InitClient {
        self.line.init()
    }

    /// Becomes something when no process of it lives.
    pub fn gone(&self) -> watch::Receiver<Option<i32>> {
        self.body.gone.clone()
    }

    /// What its groups are named by: the environment's own name, for the first sandbox of one.
    pub fn name(&self) -> &EnvironmentId {
        &self.body.name
    }

    /// Whether it was ready.
    pub fn origin(&self) -> Origin {
        self.body.origin
    }

    /// What holds.
    pub fn enforcement(&self) -> &Enforcement {
        &self.body.enforcement
    }

    /// A program begins that an interpreter is for.
    pub fn note_use(&self) {
        if let Some(used) = &self.body.used {
            used.begin();
        }
    }

    /// The interpreter that it keeps.
    pub fn warm(&self) -> &Kept {
        &self.body.warm
    }

    /// The image's environment.
    pub fn environment(&self) -> &BTreeMap<String, String> {
        &self.body.variables
    }

    /// Kills and refusals since the last time this was asked. Of executions that overlap, the first to end has them.
    pub fn new_events(&self) -> Counters {
        let events = self.body.cgroup.as_ref().map(SessionCgroup::events).unwrap_or_default();
        let mut told = self.body.told.lock().unwrap_or_else(PoisonError::into_inner);
        let before = *told;
        // A counter that could not be read must not have what it counted before told again the next time.
        told.oom_kills = before.oom_kills.max(events.oom_kills);
        told.pids_refusals = before.pids_refusals.max(events.pids_refusals);
        Counters { oom_kills: told.oom_kills - before.oom_kills, pids_refusals: told.pids_refusals - before.pids_refusals }
    }

    /// What it used so far, as far as the host tells.
    pub fn usage(&self) -> Usage {
        self.body.cgroup.as_ref().map(SessionCgroup::usage).unwrap_or_default()
    }

    /// Peaks count from here on.
    pub fn reset_peaks(&self) {
        if let Some(cgroup) = &self.body.cgroup {
            // Where it can't be reset the peak stays the session's, which `usage` may tell.
            cgroup.reset_peak().ok();
        }
    }

    /// Ends it; returns when no process of it lives.
    pub async fn end(&self) {
        let killed = self.give_up();
        self.ending().over(killed).await;
    }

    /// Has it ended without waiting for that; gives what [`Holder::end`] does.
    pub fn give_up(&self) -> Option<Killed> {
        let killed = self.body.ends.0.end();
        self.init().hang_up();
        killed
    }

    /// What ends it later, whoever holds it then.
    pub fn ending(&self) -> Ending {
        Ending { holder: Arc::clone(&self.body.ends.0), gone: self.body.gone.clone() }
    }
}

/// The end of a sandbox, for somebody who does not hold it.
pub struct Ending {
    holder: Arc<dyn Holder>,
    gone: watch::Receiver<Option<i32>>,
}

impl Ending {
    /// True while processes of it may live.
    pub fn is_pending(&self) -> bool {
        self.gone.borrow().is_none() && self.gone.has_changed().is_ok()
    }

    /// Ends it; returns when no process of it lives.
    pub async fn end(self) {
        let killed = self.holder.end();
        self.over(killed).await;
    }

    /// Whoever holds it tells later than the kernel does, by two processes that have to wake for it.
    async fn over(mut self, killed: Option<Killed>) {
        let told_by_kernel = async {
            match killed {
                Some(killed) => killed.ended().await.is_ok(),
                None => false,
            }
        };
        tokio::select! {
            true = told_by_kernel => {}
            // An error means that the launcher is gone, and every sandbox with it.
            _ = self.gone.wait_for(Option::is_some) => {}
        }
    }
}
