//! The sweeper: closes what is past its idle timeout or lifetime, and forgets what was remembered long enough.
//!
//! Invariant: it never waits for a session; closing is the work of the session's own task. Read `session` next.

use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use tokio::time::MissedTickBehavior;

use super::manager::Manager;

/// Sweeps until the manager is gone.
pub(super) async fn sweep_regularly(manager: Weak<Manager>, interval: Duration) {
    let mut ticks = tokio::time::interval(interval.max(Duration::from_secs(1)));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let Some(manager) = manager.upgrade() else { return };
        manager.sweep();
    }
}

impl Manager {
    /// Starts the sweeper on the runtime that calls; it ends with the manager.
    pub fn start(self: &Arc<Self>) {
        let interval = Duration::from_secs(self.shared.config.session.sweep_interval_s);
        tokio::spawn(sweep_regularly(Arc::downgrade(self), interval));
    }

    /// One sweep, now.
    pub fn sweep(&self) {
        let begin = Instant::now();
        for session in self.shared.book.all() {
            if let Some(cause) = session.overdue() {
                session.request_close(cause);
            }
        }
        self.shared.book.purge();
        self.shared.outcomes.purge();
        metrics::histogram!("codebeaker_sweep_seconds").record(begin.elapsed().as_secs_f64());
    }
}
