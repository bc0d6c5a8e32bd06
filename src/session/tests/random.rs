//! A seeded random walk over everything a client can do and everything that can go wrong below, with the invariants of the
//! module checked after each step.
//!
//! `CODEBEAKER_TEST_SEED` and `CODEBEAKER_TEST_STEPS` repeat or lengthen it; a failure prints its seed. Time is simulated.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::sync::{mpsc::UnboundedReceiver, oneshot};
use tokio::task::JoinHandle;

use super::simulated::*;
use crate::command::{CommandResult, FailureKind};
use crate::config::{Config, SessionConfig};
use crate::id::{ExecutionId, SessionId};
use crate::session::api::*;
use crate::session::manager::Manager;

const SESSIONS_MAX: u32 = 4;
const CLOSED_MAX: u32 = 32;
const OUTCOMES_MAX: u32 = 200;
const STEPS: u64 = 100_000;
/// Connections that sessions may be tied to.
const CONNECTIONS: u64 = 3;

/// A command that was accepted.
struct Sent {
    principal: Principal,
    session: SessionId,
    words: String,
}

/// What the walk has been promised and not yet got.
#[derive(Default)]
struct Owed {
    creating: Vec<(Principal, JoinHandle<Result<SessionView, SessionError>>)>,
    replies: HashMap<ExecutionId, oneshot::Receiver<CommandResult>>,
    streams: HashMap<ExecutionId, UnboundedReceiver<StreamEvent>>,
    background: Vec<(Principal, ExecutionId)>,
}

struct Walk {
    manager: Arc<Manager>,
    runtime: Arc<SimulatedRuntime>,
    random: StdRng,
    /// Everything sent so far, in order: the number stands in the words of each command.
    count: u64,
    sessions: Vec<(Principal, SessionId)>,
    sent: HashMap<ExecutionId, Sent>,
    order: Vec<ExecutionId>,
    /// Executions that a cancel may have reached, and sessions all of whose executions one may have.
    cancelled: HashSet<ExecutionId>,
    cancelled_sessions: HashSet<SessionId>,
    signalled: HashSet<ExecutionId>,
    /// Sessions that were found closed.
    over: HashSet<SessionId>,
    /// Of each environment that lives, how much of its log is checked and the last number in it.
    logs: Vec<(Arc<SimulatedInstance>, usize, u64)>,
    seen: usize,
    owed: Owed,
}

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

#[tokio::test(start_paused = true)]
async fn whatever_a_client_does_every_command_is_answered_once_and_nothing_is_left() {
    let seed = number("CODEBEAKER_TEST_SEED", rand::random());
    println!("CODEBEAKER_TEST_SEED={seed}");
    let session = SessionConfig {
        sessions_max: SESSIONS_MAX,
        queue_max: 8,
        background_max: 2,
        closed_max: CLOSED_MAX,
        outcomes_max: OUTCOMES_MAX,
        ..SessionConfig::default()
    };
    let (manager, runtime) = manager(Config { session, ..Config::default() });
    let mut walk = Walk {
        manager,
        runtime,
        random: StdRng::seed_from_u64(seed),
        count: 0,
        sessions: Vec::new(),
        sent: HashMap::new(),
        order: Vec::new(),
        cancelled: HashSet::new(),
        cancelled_sessions: HashSet::new(),
        signalled: HashSet::new(),
        over: HashSet::new(),
        logs: Vec::new(),
        seen: 0,
        owed: Owed::default(),
    };
    for _ in 0..number("CODEBEAKER_TEST_STEPS", STEPS) {
        walk.step().await;
        walk.check().await;
    }
    walk.finish().await;
}

impl Walk {
    async fn step(&mut self) {
        match self.random.random_range(0..200) {
            0..22 => self.create(),
            22..80 => self.send(),
            80..110 => self.send_stream(),
            110..134 => self.poke().await,
            134..140 => self.close().await,
            140..144 => self.kill(),
            144..147 => self.manager.sweep(),
            147..150 => self.disconnect(),
            150..153 => self.go_away(),
            153..155 => tokio::time::sleep(Duration::from_secs(self.random.random_range(0..4000))).await,
            _ => tokio::time::sleep(Duration::from_millis(self.random.random_range(0..30))).await,
        }
    }

    fn principal(&mut self) -> Principal {
        Principal(if self.random.random_bool(0.7) { "one" } else { "two" }.into())
    }

    /// Creates in the background, so that everything else can happen meanwhile; slow ones, and ones that fail.
    fn create(&mut self) {
        let principal = self.principal();
        let mut request = request();
        request.connection = Some(self.random.random_range(1..=CONNECTIONS));
        request.on_disconnect = if self.random.random_bool(0.3) { OnDisconnect::Close } else { OnDisconnect::Keep };
        match self.random.random_range(0..10) {
            0 => request.packages = vec!["fail".into()],
            1 => request.packages = vec!["echo".into()],
            2 => drop(request.env.insert("SLOW".into(), "1".into())),
            3 => drop(request.env.insert("BROKEN".into(), "1".into())),
            _ => {}
        }
        let (manager, by) = (Arc::clone(&self.manager), principal.clone());
        self.owed.creating.push((principal, tokio::spawn(async move { manager.create(&by, request).await })));
    }

    fn session(&mut self) -> Option<(Principal, SessionId)> {
        let newest = self.sessions.len().saturating_sub(6);
        let count = self.sessions.len() - newest;
        (count > 0).then(|| self.sessions[newest + self.random.random_range(0..count)].clone())
    }

    fn words(&mut self) -> String {
        self.count += 1;
        let mark = format!("#{}", self.count);
        match self.random.random_range(0..12) {
            0 => format!("flood 3000 {mark}"),
            1 => format!("panic {mark}"),
            2 => format!("fail {mark}"),
            3 => format!("cat {mark}"),
            4 if self.random.random_bool(0.1) => format!("die {mark}"),
            5 => format!("deaf {mark}"),
            6..8 => format!("echo {mark}"),
            _ => format!("sleep {} {mark}", self.random.random_range(0..50)),
        }
    }

    fn note(&mut self, principal: Principal, session: SessionId, execution: &ExecutionId, words: String) {
        self.order.push(execution.clone());
        self.sent.insert(execution.clone(), Sent { principal, session, words });
    }

    fn send(&mut self) {
        let Some((principal, session)) = self.session() else { return };
        let words = self.words();
        let background = self.random.random_bool(0.2);
        let command = if background { in_background(&words) } else { shell(&words) };
        match self.manager.execute(&principal, &session, command) {
            Ok(Accepted { execution_id, mut result }) => {
                self.note(principal.clone(), session, &execution_id, words);
                if background {
                    result.try_recv().expect("a background command is answered at once");
                    self.owed.background.push((principal, execution_id));
                } else {
                    self.owed.replies.insert(execution_id, result);
                }
            }
            Err(SessionError::Busy(_) | SessionError::Closed { .. } | SessionError::NotFound(_)) => {}
            Err(other) => panic!("{other:?}"),
        }
    }

    fn send_stream(&mut self) {
        let Some((principal, session)) = self.session() else { return };
        let words = self.words();
        match self.manager.stream(&principal, &session, shell(&words)) {
            Ok(AcceptedStream { execution_id, events }) => {
                self.note(principal, session, &execution_id, words);
                self.owed.streams.insert(execution_id, events);
            }
            Err(SessionError::Busy(_) | SessionError::Closed { .. } | SessionError::NotFound(_)) => {}
            Err(other) => panic!("{other:?}"),
        }
    }

    async fn poke(&mut self) {
        let recent = self.order.len().saturating_sub(12);
        let count = self.order.len() - recent;
        if count == 0 {
            return;
        }
        let execution = self.order[recent + self.random.random_range(0..count)].clone();
        let Sent { principal, session, .. } = &self.sent[&execution];
        let manager = &self.manager;
        let eof = self.random.random_bool(0.5);
        let wait = Duration::from_millis(5);
        // A deaf program lets its input fill up; a client that stops waiting must not break anything.
        match self.random.random_range(0..4) {
            0 => drop(tokio::time::timeout(wait, manager.input(principal, session, &execution, b"x".to_vec(), eof)).await),
            1 => {
                self.signalled.insert(execution.clone());
                drop(tokio::time::timeout(wait, manager.signal(principal, session, &execution, 15)).await);
            }
            2 => {
                self.cancelled.insert(execution.clone());
                drop(manager.cancel(principal, session, Some(&execution)).await);
            }
            _ => {
                self.cancelled_sessions.insert(session.clone());
                drop(manager.cancel(principal, session, None).await);
            }
        }
    }

    async fn close(&mut self) {
        if let Some((principal, session)) = self.session() {
            self.manager.close(&principal, &session).await;
            let found = self.manager.get(&principal, &session);
            assert!(matches!(found, Err(SessionError::Closed { .. } | SessionError::NotFound(_))), "{found:?}");
        }
    }

    fn kill(&mut self) {
        let count = super::super::locked(&self.runtime.instances).len();
        if count > 0 {
            let instance = self.runtime.instance(count - 1 - self.random.random_range(0..count.min(4)));
            instance.die();
        }
    }

    fn disconnect(&mut self) {
        self.manager.disconnected(self.random.random_range(1..=CONNECTIONS));
    }

    /// A client that no longer waits: for a session, an answer or events.
    fn go_away(&mut self) {
        match self.random.random_range(0..3) {
            0 => {
                if let Some((_, create)) = self.owed.creating.pop() {
                    create.abort();
                }
            }
            1 => {
                let first = self.owed.replies.keys().min_by_key(ToString::to_string).cloned();
                first.map(|id| self.owed.replies.remove(&id));
            }
            _ => {
                let first = self.owed.streams.keys().min_by_key(ToString::to_string).cloned();
                first.map(|id| self.owed.streams.remove(&id));
            }
        }
    }

    async fn check(&mut self) {
        self.take_created().await;
        self.check_sessions();
        self.check_environments();
        self.check_replies();
        self.check_streams();
        self.check_bounds();
    }

    async fn take_created(&mut self) {
        let (done, waiting): (Vec<_>, Vec<_>) = self.owed.creating.drain(..).partition(|(_, create)| create.is_finished());
        self.owed.creating = waiting;
        for (principal, create) in done {
            match create.await.expect("creating does not panic") {
                Ok(view) => self.sessions.push((principal, view.session_id)),
                // Too many, packages that fail, a sandbox that is broken; or it ended before it was handed out.
                Err(
                    SessionError::QuotaExceeded { .. }
                    | SessionError::PolicyDenied { .. }
                    | SessionError::Sandbox(_)
                    | SessionError::Closed { .. },
                ) => {}
                Err(other) => panic!("{other:?}"),
            }
        }
    }

    fn check_sessions(&mut self) {
        let mut open = 0;
        for name in ["one", "two"] {
            for view in self.manager.list(&Principal(name.into()), None, None) {
                open += 1;
                assert!(view.state != SessionState::Closed && view.close_reason.is_none());
                let closing = view.state == SessionState::Closing;
                assert!(closing || !self.over.contains(&view.session_id), "a session that was closed is open again");
            }
        }
        assert!(open <= SESSIONS_MAX as usize, "the quota holds");
        let Some((principal, session)) = self.session() else { return };
        let stranger = Principal(if principal.0 == "one" { "two" } else { "one" }.into());
        let seen = self.manager.get(&stranger, &session);
        assert!(matches!(seen, Err(SessionError::NotFound(_))), "another principal sees {seen:?}");
        if self.manager.get(&principal, &session).is_err() {
            self.over.insert(session);
        }
    }

    /// Environments that live are no more than sessions may be, and each begins its commands in the order they were sent.
    fn check_environments(&mut self) {
        let instances = super::super::locked(&self.runtime.instances);
        self.logs.extend(instances[self.seen..].iter().map(|instance| (Arc::clone(instance), 0, 0)));
        self.seen = instances.len();
        drop(instances);
        for (instance, checked, last) in &mut self.logs {
            let log = instance.log();
            for words in &log[*checked..] {
                let Some(number) = words.split_once('#').and_then(|(_, number)| number.parse().ok()) else { continue };
                assert!(number > *last, "`{words}` began after #{last}");
                *last = number;
            }
            *checked = log.len();
        }
        let closed = |instance: &SimulatedInstance| instance.closed.load(std::sync::atomic::Ordering::SeqCst);
        for (instance, ..) in &self.logs {
            assert!(closed(instance) <= 1 && (closed(instance) == 0 || instance.running() == 0));
        }
        self.logs.retain(|(instance, ..)| closed(instance) == 0);
        let places = self.manager.shared.book.places_taken();
        assert!(self.logs.len() <= places && places <= SESSIONS_MAX as usize, "every environment that lives has a place");
    }

    fn check_replies(&mut self) {
        let mut replies = std::mem::take(&mut self.owed.replies);
        replies.retain(|id, reply| match reply.try_recv() {
            Ok(result) => {
                self.check_result(id, &result);
                false
            }
            Err(oneshot::error::TryRecvError::Empty) => true,
            Err(oneshot::error::TryRecvError::Closed) => panic!("{id} was never answered"),
        });
        self.owed.replies = replies;
    }

    fn check_result(&self, id: &ExecutionId, result: &CommandResult) {
        assert_eq!(&result.execution_id, id);
        let Sent { principal, session, words } = &self.sent[id];
        let lives = self.manager.get(principal, session).is_ok();
        match (verdict(result), words.split(' ').next().unwrap_or_default()) {
            (Some(FailureKind::SandboxGone), _) => assert!(!lives, "{id} was lost in a session that lives"),
            (Some(FailureKind::Cancelled), _) => {
                let asked = self.cancelled.contains(id) || self.cancelled_sessions.contains(session);
                assert!(asked || !lives, "{id} `{words}` was cancelled by nobody");
            }
            (Some(FailureKind::Signaled), _) => assert!(self.signalled.contains(id), "{id} `{words}` was signalled by nobody"),
            (Some(FailureKind::NonzeroExit), word) => assert_eq!(word, "fail"),
            (Some(FailureKind::OutputLimit), word) => assert_eq!(word, "flood"),
            (Some(FailureKind::IoError), word) => assert_eq!(word, "panic"),
            (Some(FailureKind::Timeout), word) => assert!(["cat", "deaf"].contains(&word), "`{words}` takes no such time"),
            (None, word) => assert!(["echo", "sleep", "cat"].contains(&word), "`{words}` can't succeed"),
            (Some(other), _) => panic!("`{words}` can't end as {other:?}"),
        }
        let status = self.manager.status(principal, id);
        assert!(!matches!(status, ExecutionStatus::Queued | ExecutionStatus::Running), "{id} was answered and is {status:?}");
    }

    /// After `exited` nothing comes.
    fn check_streams(&mut self) {
        self.owed.streams.retain(|id, events| {
            while let Ok(event) = events.try_recv() {
                if matches!(event, StreamEvent::Exited(_)) {
                    assert!(events.try_recv().is_err(), "{id}: an event after `exited`");
                    return false;
                }
            }
            assert!(!events.is_closed(), "{id}: its events ended without `exited`");
            true
        });
    }

    fn check_bounds(&mut self) {
        let shared = &self.manager.shared;
        assert!(shared.book.closed_known() <= CLOSED_MAX as usize, "closed sessions that are known");
        assert!(shared.outcomes.ended_kept() <= OUTCOMES_MAX as usize, "outcomes of one principal");
    }

    async fn finish(mut self) {
        for (_, create) in self.owed.creating.drain(..) {
            drop(create.await.expect("creating does not panic"));
        }
        self.manager.shutdown(Duration::from_secs(1)).await;
        self.check().await;
        for name in ["one", "two"] {
            assert!(self.manager.list(&Principal(name.into()), None, None).is_empty(), "every session is closed");
        }
        assert_eq!(self.manager.shared.book.places_taken(), 0, "every place was given back");
        assert!(self.owed.replies.is_empty(), "every command was answered");
        assert!(self.owed.streams.is_empty(), "every stream has ended");
        for (principal, id) in &self.owed.background {
            assert!(!matches!(self.manager.status(principal, id), ExecutionStatus::Queued | ExecutionStatus::Running));
        }
        for instance in super::super::locked(&self.runtime.instances).iter() {
            assert_eq!(instance.running(), 0);
            assert_eq!(instance.closed.load(std::sync::atomic::Ordering::SeqCst), 1, "closed once");
        }
    }
}
