//! One sandbox as the server holds it: a control socket, a number at the launcher, a group to read counters from.
//!
//! Invariant: dropping it ends it. What it holds on the host is released by the launcher's word, not by ours.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::watch;

use crate::command::Usage;
use crate::plan::messages::Tag;
use crate::sandbox::cgroups::{CgroupEvents, SessionCgroup};
use crate::sandbox::enforcement::Enforcement;

use crate::runtime::egress::Way;

use super::control::InitClient;
use super::launcher::LauncherClient;
use super::verdict::Counters;

/// A sandbox whose walls stand.
pub struct Sandbox {
    pub(super) launcher: Arc<LauncherClient>,
    pub(super) tag: Tag,
    pub(super) init: InitClient,
    pub(super) gone: watch::Receiver<Option<i32>>,
    pub(super) cgroup: Option<SessionCgroup>,
    pub(super) enforcement: Enforcement,
    pub(super) environment: BTreeMap<String, String>,
    /// The way out of its network, where its programs have one.
    pub(super) way: Option<Way>,
    /// What `new_events` has told.
    pub(super) told: Mutex<CgroupEvents>,
}

impl Sandbox {
    /// Its init.
    pub fn init(&self) -> &InitClient {
        &self.init
    }

    /// Becomes something when no process of it lives.
    pub fn gone(&self) -> watch::Receiver<Option<i32>> {
        self.gone.clone()
    }

    /// What holds.
    pub fn enforcement(&self) -> &Enforcement {
        &self.enforcement
    }

    /// The image's environment.
    pub fn environment(&self) -> &BTreeMap<String, String> {
        &self.environment
    }

    /// Kills and refusals since the last time this was asked. Of executions that overlap, the first to end has them.
    pub fn new_events(&self) -> Counters {
        let events = self.cgroup.as_ref().map(SessionCgroup::events).unwrap_or_default();
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        let before = *told;
        // A counter that could not be read must not have what it counted before told again the next time.
        told.oom_kills = before.oom_kills.max(events.oom_kills);
        told.pids_refusals = before.pids_refusals.max(events.pids_refusals);
        Counters { oom_kills: told.oom_kills - before.oom_kills, pids_refusals: told.pids_refusals - before.pids_refusals }
    }

    /// What it used so far, as far as the host tells.
    pub fn usage(&self) -> Usage {
        self.cgroup.as_ref().map(SessionCgroup::usage).unwrap_or_default()
    }

    /// Peaks count from here on.
    pub fn reset_peaks(&self) {
        if let Some(cgroup) = &self.cgroup {
            // Where it can't be reset the peak stays the session's, which `usage` may tell.
            cgroup.reset_peak().ok();
        }
    }

    /// Ends it; returns when no process of it lives.
    pub async fn end(&self) {
        self.give_up();
        self.ending().end().await;
    }

    /// Has it ended without waiting for that.
    pub fn give_up(&self) {
        self.launcher.end(self.tag);
        // The second way is for a launcher that is gone: an init that was in the middle of changing its credentials then has not
        // got the signal that should have ended it (prctl(2), PR_SET_PDEATHSIG).
        self.init.hang_up();
    }

    /// What ends it later, whoever holds it then.
    pub fn ending(&self) -> Ending {
        Ending { launcher: Arc::clone(&self.launcher), tag: self.tag, gone: self.gone.clone() }
    }
}

/// The end of a sandbox, for somebody who does not hold it.
pub struct Ending {
    launcher: Arc<LauncherClient>,
    tag: Tag,
    gone: watch::Receiver<Option<i32>>,
}

impl Ending {
    /// True while processes of it may live.
    pub fn is_pending(&self) -> bool {
        self.gone.borrow().is_none() && self.gone.has_changed().is_ok()
    }

    /// Ends it; returns when no process of it lives.
    pub async fn end(mut self) {
        self.launcher.end(self.tag);
        // An error means that the launcher is gone, and every sandbox with it.
        self.gone.wait_for(Option::is_some).await.ok();
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        self.give_up();
    }
}
