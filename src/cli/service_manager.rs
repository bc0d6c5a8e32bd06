//! The service manager above `serve`: sd_notify(3) messages, and silence where nobody set `NOTIFY_SOCKET`.
//!
//! Invariant: the watchdog is fed only after every event loop of the server has come round, so a server that hangs is found
//! and restarted. A message that can't be sent is logged and ends nothing: whoever waits for it has its own timeout.

use std::net::SocketAddr;
use std::time::Duration;

use sd_notify::NotifyState;
use tokio::sync::{mpsc, oneshot};

use crate::rpc::server::Pulse;

/// The watchdog hears of the server this often in its period: one late answer is no failure.
const BEATS_PER_PERIOD: u32 = 3;

/// Connections are accepted.
pub(super) fn ready(address: SocketAddr) {
    tell(&[NotifyState::Ready, NotifyState::Status(&format!("listening on ws://{address}"))]);
}

/// The end has begun: sessions are being closed.
pub(super) fn stopping() {
    tell(&[NotifyState::Stopping, NotifyState::Status("closing sessions")]);
}

/// How often the watchdog is to be fed; absent where the service manager has none for this process.
pub(super) fn watchdog_interval() -> Option<Duration> {
    sd_notify::watchdog_enabled().map(|period| period / BEATS_PER_PERIOD).filter(|interval| !interval.is_zero())
}

/// Feeds the watchdog each time that the server's loops have answered. Ends with the server.
pub(super) async fn feed_watchdog(interval: Duration, server: mpsc::Sender<Pulse>) {
    let mut interval = tokio::time::interval(interval);
    interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        interval.tick().await;
        let (answer, answered) = oneshot::channel();
        if server.send(answer).await.is_err() {
            return;
        }
        if answered.await.is_ok() {
            // The socket's queue may be full, and this runtime also waits for signals.
            tokio::task::spawn_blocking(|| tell(&[NotifyState::Watchdog])).await.ok();
        }
    }
}

fn tell(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::warn!(%error, "the service manager could not be told");
    }
}
