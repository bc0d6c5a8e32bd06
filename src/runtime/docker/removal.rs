//! Containers that must go: of servers that are gone, and of sessions whose end the engine did not see.
//!
//! Invariant: a container without our label is never touched, nor one of a server that may live.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use bollard::models::ContainerSummary;
use bollard::query_parameters::{ListContainersOptionsBuilder, RemoveContainerOptionsBuilder};
use tokio::time::Instant;

use crate::sandbox::state::ServerId;

use super::engine::{ASK_TIME, Engine, EngineError, MAKING_MAX, REMOVE_TIME};

/// The label of every container: which server made it.
pub const SERVER_LABEL: &str = "io.codebeaker.server";
/// And for which environment.
pub const ENVIRONMENT_LABEL: &str = "io.codebeaker.environment";

/// Between two tries, while the engine is removing by itself.
const PAUSE: Duration = Duration::from_millis(30);

impl Engine {
    /// Notes that a session is about to have that container.
    pub fn hold(&self, name: &str) {
        self.held.lock().unwrap_or_else(PoisonError::into_inner).insert(name.to_owned());
    }

    /// Removes a container that a session held; returns when the engine has none of that name, or can't be asked: then it is
    /// removed when it can.
    pub async fn discard(self: &Arc<Self>, name: &str) {
        self.doomed.lock().unwrap_or_else(PoisonError::into_inner).insert(name.to_owned());
        self.held.lock().unwrap_or_else(PoisonError::into_inner).remove(name);
        match self.remove(name).await {
            Ok(()) => {
                self.doomed.lock().unwrap_or_else(PoisonError::into_inner).remove(name);
            }
            Err(error) => {
                tracing::warn!(container = name, error = &error as &dyn std::error::Error, "a container stays for now");
            }
        }
    }

    /// Removes every container of this server, one that is just being made too. None is made from here on.
    pub(super) async fn discard_all(self: &Arc<Self>) {
        self.discard_held().await;
        // What was being made can be removed only once it is there, and nobody holds it any more.
        let all = self.making.acquire_many(MAKING_MAX).await;
        self.making.close();
        drop(all);
        self.discard_held().await;
        self.clear().await;
    }

    async fn discard_held(self: &Arc<Self>) {
        let held = self.held.lock().unwrap_or_else(PoisonError::into_inner).clone();
        futures_util::future::join_all(held.iter().map(|name| self.discard(name))).await;
    }

    /// Ends and removes a container; one that is not there is no error.
    async fn remove(self: &Arc<Self>, name: &str) -> Result<(), EngineError> {
        let deadline = Instant::now() + REMOVE_TIME;
        loop {
            let options = RemoveContainerOptionsBuilder::new().force(true).v(true).build();
            let target = name.to_owned();
            let removed = self
                .call("remove a container", REMOVE_TIME, move |client| async move {
                    client.remove_container(&target, Some(options)).await
                })
                .await;
            match removed {
                Err(EngineError::Refused { status: 404, .. }) => return Ok(()),
                // Somebody else is at it, as a rule the engine itself, or it has just ended: the next answer tells.
                Ok(()) | Err(EngineError::Refused { .. }) if Instant::now() < deadline => tokio::time::sleep(PAUSE).await,
                other => return other,
            }
        }
    }

    /// What a look at the engine finds to do: what is doomed, and what servers that are gone have left.
    pub(super) async fn clear(self: &Arc<Self>) {
        if self.facts().is_err() {
            return;
        }
        let doomed: Vec<String> = self.doomed.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect();
        for name in doomed {
            self.discard(&name).await;
        }
        for name in self.leftovers().await {
            tracing::info!(container = name, "a container of a server that is gone is removed");
            self.discard(&name).await;
        }
    }

    async fn leftovers(self: &Arc<Self>) -> Vec<String> {
        let filters = HashMap::from([("label", vec![SERVER_LABEL])]);
        let options = ListContainersOptionsBuilder::new().all(true).filters(&filters).build();
        let listed = self
            .call("list containers", ASK_TIME, move |client| async move { client.list_containers(Some(options)).await })
            .await;
        let all = listed.unwrap_or_else(|error| {
            tracing::warn!(error = &error as &dyn std::error::Error, "what servers that are gone have left is not known");
            Vec::new()
        });
        let held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        all.iter().filter_map(|row| leftover(row, &self.server, |name| held.contains(name))).collect()
    }
}

/// The name of a container that nobody holds any more.
fn leftover(row: &ContainerSummary, own: &ServerId, is_held: impl Fn(&str) -> bool) -> Option<String> {
    let server = row.labels.as_ref()?.get(SERVER_LABEL)?;
    let name = row.names.as_ref()?.first()?.trim_start_matches('/').to_owned();
    let ours = server == own.as_str();
    let left = if ours { !is_held(&name) } else { ServerId::parse(server).is_some_and(|server| server.is_gone()) };
    left.then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(server: Option<&str>, name: &str) -> ContainerSummary {
        let labels = server.map(|server| HashMap::from([(SERVER_LABEL.to_owned(), server.to_owned())]));
        ContainerSummary { labels, names: Some(vec![format!("/{name}")]), ..ContainerSummary::default() }
    }

    #[test]
    fn only_what_nobody_holds_is_left_over() {
        let own = ServerId::current().expect("this process");
        let text = own.as_str();
        let namespace = text.split('-').next().expect("three numbers");
        let dead = format!("{namespace}-{}-1", own.pid());
        let elsewhere = format!("1-{}-1", own.pid());
        let judge = |row: &ContainerSummary| leftover(row, &own, |name| name == "held");
        assert_eq!(judge(&row(Some(text), "held")), None);
        assert_eq!(judge(&row(Some(text), "forgotten")).as_deref(), Some("forgotten"));
        assert_eq!(judge(&row(Some(&dead), "dead")).as_deref(), Some("dead"), "the same number, another start");
        for foreign in [None, Some("something else"), Some(elsewhere.as_str())] {
            assert_eq!(judge(&row(foreign, "foreign")), None, "{foreign:?}");
        }
    }
}
