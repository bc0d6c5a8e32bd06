//! Who has which session: the quotas, the sessions by id, and the ids of closed ones while they stay known.
//!
//! Invariants: a place is taken before a sandbox is made and given back when no process of it lives; a session of another
//! principal is not found; at most `closed_max` closed ids are kept. Read `session` next.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use crate::config::SessionConfig;
use crate::id::SessionId;

use super::api::{Principal, SessionError};
use super::locked;
use super::session::{Session, Visibility};

/// All sessions.
pub(super) struct Book {
    inner: Mutex<Inner>,
    open: watch::Sender<usize>,
    sessions_max: usize,
    per_principal_max: usize,
    closed_max: usize,
    remember: Duration,
}

struct Inner {
    sessions: HashMap<SessionId, Arc<Session>>,
    closed: VecDeque<(Instant, SessionId)>,
    places: HashMap<Principal, usize>,
    admission: Admission,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Admission {
    Open,
    /// The server goes down.
    Stopped,
}

/// The right to have one sandbox; dropping it gives it back.
pub(super) struct Place {
    book: Arc<Book>,
    principal: Principal,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut inner = locked(&self.book.inner);
        if let Some(count) = inner.places.get_mut(&self.principal) {
            *count -= 1;
            if *count == 0 {
                inner.places.remove(&self.principal);
            }
        }
        self.book.publish(&inner);
    }
}

impl Book {
    /// With the bounds of the configuration.
    pub(super) fn new(config: &SessionConfig) -> Arc<Self> {
        Arc::new(Self {
            inner: Mutex::new(Inner {
                sessions: HashMap::new(),
                closed: VecDeque::new(),
                places: HashMap::new(),
                admission: Admission::Open,
            }),
            open: watch::Sender::new(0),
            sessions_max: bound(config.sessions_max),
            per_principal_max: bound(config.sessions_per_principal_max),
            closed_max: config.closed_max as usize,
            remember: Duration::from_secs(config.remember_s),
        })
    }

    /// A place for one more sandbox of that principal.
    pub(super) fn reserve(self: &Arc<Self>, principal: &Principal) -> Result<Place, SessionError> {
        let mut inner = locked(&self.inner);
        inner.check_admission()?;
        let own = inner.places.get(principal).copied().unwrap_or(0);
        if inner.total() >= self.sessions_max {
            return Err(quota(format!("the server has its {} sessions already", self.sessions_max)));
        }
        if own >= self.per_principal_max {
            return Err(quota(format!("you have your {} sessions already", self.per_principal_max)));
        }
        inner.places.insert(principal.clone(), own + 1);
        self.publish(&inner);
        drop(inner);
        Ok(Place { book: Arc::clone(self), principal: principal.clone() })
    }

    fn publish(&self, inner: &Inner) {
        let total = inner.total();
        metrics::gauge!("codebeaker_sessions_active").set(total as f64);
        self.open.send_replace(total);
    }

    /// Makes a session known.
    pub(super) fn insert(&self, session: &Arc<Session>) -> Result<(), SessionError> {
        let mut inner = locked(&self.inner);
        inner.check_admission()?;
        inner.sessions.insert(session.id.clone(), Arc::clone(session));
        Ok(())
    }

    /// Its id stays known for a while, unless nobody was ever told it.
    pub(super) fn closed(&self, session: &Arc<Session>) {
        let mut inner = locked(&self.inner);
        match session.visibility {
            Visibility::Internal => {
                inner.sessions.remove(&session.id);
            }
            Visibility::Principal => inner.closed.push_back((Instant::now(), session.id.clone())),
        }
        while inner.closed.len() > self.closed_max {
            inner.forget_oldest();
        }
    }

    /// Forgets the ids of sessions closed longer than `remember_s` ago.
    pub(super) fn purge(&self) {
        let now = Instant::now();
        let mut inner = locked(&self.inner);
        while inner.closed.front().is_some_and(|(at, _)| now.duration_since(*at) >= self.remember) {
            inner.forget_oldest();
        }
    }

    /// The principal's session of that id, open or closed.
    pub(super) fn find(&self, principal: &Principal, id: &SessionId) -> Result<Arc<Session>, SessionError> {
        let inner = locked(&self.inner);
        let session = inner
            .sessions
            .get(id)
            .filter(|session| session.principal == *principal && session.visibility == Visibility::Principal);
        session.cloned().ok_or_else(|| SessionError::NotFound(id.to_string()))
    }

    /// Closed sessions whose ids are known.
    #[cfg(test)]
    pub(super) fn closed_known(&self) -> usize {
        locked(&self.inner).closed.len()
    }

    /// Places that are taken.
    #[cfg(test)]
    pub(super) fn places_taken(&self) -> usize {
        locked(&self.inner).total()
    }

    /// All sessions, closed and internal ones too.
    pub(super) fn all(&self) -> Vec<Arc<Session>> {
        locked(&self.inner).sessions.values().cloned().collect()
    }

    /// From now on nothing is reserved or inserted.
    pub(super) fn stop_admission(&self) {
        locked(&self.inner).admission = Admission::Stopped;
    }

    /// Returns when no place is taken.
    pub(super) async fn wait_empty(&self) {
        // The sender lives in this very book, so waiting can't fail.
        drop(self.open.subscribe().wait_for(|open| *open == 0).await);
    }
}

impl Inner {
    fn total(&self) -> usize {
        self.places.values().sum()
    }

    fn check_admission(&self) -> Result<(), SessionError> {
        match self.admission {
            Admission::Open => Ok(()),
            Admission::Stopped => Err(SessionError::Busy("the server is going down".into())),
        }
    }

    fn forget_oldest(&mut self) {
        if let Some((_, id)) = self.closed.pop_front() {
            self.sessions.remove(&id);
        }
    }
}

/// A bound of the configuration, where 0 means that there is none of its own.
fn bound(configured: u32) -> usize {
    if configured == 0 { usize::MAX } else { configured as usize }
}

fn quota(message: String) -> SessionError {
    SessionError::QuotaExceeded {
        message,
        hint: "close a session that is no longer needed, or ask the operator for more".into(),
    }
}
