//! The beginning of the next sandbox, made before anybody asks for one: groups without limits, and a process in them that waits for its
//! plan.
//!
//! Invariants: there is one at most, and only for a moment after the last sandbox that was made on the way of a request; whoever takes it is the only one who
//! has it; it knows nothing of any request. Read `build` for what becomes of it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;

use crate::id::EnvironmentId;

use super::NativeRuntime;
use super::build::Start;
use super::launcher::LauncherClient;

/// Without another request it is given up: less than PROTOCOL gives a closed session to leave nothing on the host.
const KEPT: Duration = Duration::from_secs(2);

/// Whether there may be one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Open,
    Closed,
}

/// The beginning, if there is one.
pub(super) struct Ahead {
    state: Mutex<(Phase, Option<Start>)>,
    wake: Notify,
}

impl Ahead {
    /// Without `on` there is never one.
    pub(super) fn new(on: bool) -> Self {
        let phase = if on { Phase::Open } else { Phase::Closed };
        Self { state: Mutex::new((phase, None)), wake: Notify::new() }
    }

    fn state(&self) -> MutexGuard<'_, (Phase, Option<Start>)> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_open(&self) -> bool {
        self.state().0 == Phase::Open
    }

    /// The one that waits at this launcher, if there is one.
    pub(super) fn take(&self, launcher: &Arc<LauncherClient>) -> Option<Start> {
        let start = self.state().1.take()?;
        if start.is_at(launcher) {
            tell("taken");
            return Some(start);
        }
        give_up(start);
        None
    }

    /// A sandbox is being made for a request, and its launcher has done its part; another request may follow.
    pub(super) fn asked(&self) {
        self.wake.notify_one();
    }

    /// Gives up what waits, for good.
    pub(super) fn close(&self) {
        let mut state = self.state();
        state.0 = Phase::Closed;
        let start = state.1.take();
        drop(state);
        start.into_iter().for_each(give_up);
        self.wake.notify_one();
    }

    /// Begins one after each request, until it is closed.
    pub(super) async fn keep(&self, runtime: &NativeRuntime) {
        while self.is_open() {
            self.wake.notified().await;
            while self.is_open() {
                self.begin(runtime).await;
                if tokio::time::timeout(KEPT, self.wake.notified()).await.is_err() {
                    break;
                }
            }
            let start = self.state().1.take();
            start.into_iter().for_each(give_up);
        }
    }

    async fn begin(&self, runtime: &NativeRuntime) {
        if !matches!(*self.state(), (Phase::Open, None)) {
            return;
        }
        let Some(launcher) = runtime.works.launchers.current().await else { return };
        let start = match runtime.begin(launcher, EnvironmentId::random()).and_then(|start| runtime.fill_up(start)) {
            Ok(start) => start,
            // Whoever asks for a sandbox tries the same, and is told.
            Err(error) => return tracing::debug!(%error, "the next sandbox could not be begun"),
        };
        let mut state = self.state();
        if let (Phase::Open, none @ None) = &mut *state {
            *none = Some(start);
        } else {
            drop(state);
            give_up(start);
        }
    }
}

fn give_up(start: Start) {
    tell("given_up");
    start.give_up();
}

fn tell(outcome: &'static str) {
    metrics::counter!("codebeaker_begun_ahead_total", "outcome" => outcome).increment(1);
}
