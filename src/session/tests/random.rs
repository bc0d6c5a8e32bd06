//! A seeded random walk over everything a client can do, with the invariants of the module checked at each step.
//!
//! `CODEBEAKER_TEST_SEED` and `CODEBEAKER_TEST_STEPS` repeat or lengthen it; a failure prints its seed.

use std::collections::HashMap;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::sync::{mpsc::UnboundedReceiver, oneshot};

use super::simulated::*;
use crate::command::{CommandResult, FailureKind};
use crate::config::{Config, SessionConfig};
use crate::id::{ExecutionId, SessionId};
use crate::session::api::*;
use crate::session::manager::Manager;

const SESSIONS_MAX: u32 = 4;

/// What the walk has been promised and not yet got.
#[derive(Default)]
struct Owed {
    replies: HashMap<ExecutionId, oneshot::Receiver<CommandResult>>,
    streams: HashMap<ExecutionId, UnboundedReceiver<StreamEvent>>,
    background: Vec<ExecutionId>,
}

struct Walk {
    manager: std::sync::Arc<Manager>,
    runtime: std::sync::Arc<SimulatedRuntime>,
    random: StdRng,
    sessions: Vec<SessionId>,
    executions: Vec<(SessionId, ExecutionId)>,
    owed: Owed,
}

fn me() -> Principal {
    Principal("me".into())
}

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

#[tokio::test(start_paused = true)]
async fn whatever_a_client_does_every_command_is_answered_once_and_nothing_is_left() {
    let seed = number("CODEBEAKER_TEST_SEED", rand::random());
    println!("CODEBEAKER_TEST_SEED={seed}");
    let session = SessionConfig { sessions_max: SESSIONS_MAX, queue_max: 8, background_max: 2, ..SessionConfig::default() };
    let (manager, runtime) = manager(Config { session, ..Config::default() });
    let random = StdRng::seed_from_u64(seed);
    let mut walk = Walk { manager, runtime, random, sessions: Vec::new(), executions: Vec::new(), owed: Owed::default() };
    for _ in 0..number("CODEBEAKER_TEST_STEPS", 5000) {
        walk.step().await;
        walk.check();
    }
    walk.finish().await;
}

impl Walk {
    async fn step(&mut self) {
        match self.random.random_range(0..100) {
            0..12 => self.create().await,
            12..45 => self.send(),
            45..60 => self.send_stream(),
            60..70 => self.poke().await,
            70..73 => self.close().await,
            73..75 => self.kill(),
            75..76 => self.manager.sweep(),
            76..77 => self.manager.disconnected(1),
            77..78 => tokio::time::sleep(Duration::from_secs(self.random.random_range(0..4000))).await,
            _ => tokio::time::sleep(Duration::from_millis(self.random.random_range(0..30))).await,
        }
    }

    async fn create(&mut self) {
        let on_disconnect = if self.random.random_bool(0.3) { OnDisconnect::Close } else { OnDisconnect::Keep };
        let packages = match self.random.random_range(0..6) {
            0 => vec!["fail".into()],
            1 => vec!["echo".into()],
            _ => Vec::new(),
        };
        let request = CreateSession { on_disconnect, packages, connection: Some(1), ..request() };
        match self.manager.create(&me(), request).await {
            Ok(view) => self.sessions.push(view.session_id),
            Err(SessionError::QuotaExceeded { .. } | SessionError::PolicyDenied { .. }) => {}
            Err(other) => panic!("{other:?}"),
        }
    }

    fn session(&mut self) -> Option<SessionId> {
        let newest = self.sessions.len().saturating_sub(6);
        let count = self.sessions.len() - newest;
        (count > 0).then(|| self.sessions[newest + self.random.random_range(0..count)].clone())
    }

    fn words(&mut self) -> String {
        match self.random.random_range(0..12) {
            0 => "flood 3000".into(),
            1 => "panic".into(),
            2 => "fail".into(),
            3 => "cat".into(),
            4 if self.random.random_bool(0.1) => "die".into(),
            5 => "deaf".into(),
            6..8 => "echo hello".into(),
            _ => format!("sleep {}", self.random.random_range(0..50)),
        }
    }

    fn send(&mut self) {
        let Some(session) = self.session() else { return };
        let words = self.words();
        let background = self.random.random_bool(0.2);
        let command = if background { in_background(&words) } else { shell(&words) };
        match self.manager.execute(&me(), &session, command) {
            Ok(Accepted { execution_id, mut result }) => {
                self.executions.push((session, execution_id.clone()));
                if background {
                    result.try_recv().expect("a background command is answered at once");
                    self.owed.background.push(execution_id);
                } else {
                    self.owed.replies.insert(execution_id, result);
                }
            }
            Err(SessionError::Busy(_) | SessionError::Closed { .. } | SessionError::NotFound(_)) => {}
            Err(other) => panic!("{other:?}"),
        }
    }

    fn send_stream(&mut self) {
        let Some(session) = self.session() else { return };
        let words = self.words();
        match self.manager.stream(&me(), &session, shell(&words)) {
            Ok(AcceptedStream { execution_id, events }) => {
                self.executions.push((session, execution_id.clone()));
                self.owed.streams.insert(execution_id, events);
            }
            Err(SessionError::Busy(_) | SessionError::Closed { .. } | SessionError::NotFound(_)) => {}
            Err(other) => panic!("{other:?}"),
        }
    }

    async fn poke(&mut self) {
        let recent = self.executions.len().saturating_sub(12);
        let count = self.executions.len() - recent;
        if count == 0 {
            return;
        }
        let (session, execution) = self.executions[recent + self.random.random_range(0..count)].clone();
        let manager = &self.manager;
        let eof = self.random.random_bool(0.5);
        let wait = Duration::from_millis(5);
        // A deaf program lets its input fill up; a client that stops waiting must not break anything.
        match self.random.random_range(0..4) {
            0 => drop(tokio::time::timeout(wait, manager.input(&me(), &session, &execution, b"x".to_vec(), eof)).await),
            1 => drop(tokio::time::timeout(wait, manager.signal(&me(), &session, &execution, 15)).await),
            2 => drop(manager.cancel(&me(), &session, Some(&execution)).await),
            _ => drop(manager.cancel(&me(), &session, None).await),
        }
    }

    async fn close(&mut self) {
        if let Some(session) = self.session() {
            self.manager.close(&me(), &session).await;
            assert!(matches!(self.manager.get(&me(), &session), Err(SessionError::Closed { .. } | SessionError::NotFound(_))));
        }
    }

    fn kill(&mut self) {
        let count = super::super::locked(&self.runtime.instances).len();
        if count > 0 {
            let instance = self.runtime.instance(count - 1 - self.random.random_range(0..count.min(4)));
            instance.die();
        }
    }

    fn check(&mut self) {
        let open = self.manager.list(&me(), None, None);
        assert!(open.len() <= SESSIONS_MAX as usize, "the quota holds");
        for view in &open {
            assert!(view.state != SessionState::Closed && view.close_reason.is_none());
        }
        let (manager, executions) = (&self.manager, &self.executions);
        self.owed.replies.retain(|id, reply| match reply.try_recv() {
            Ok(result) => {
                assert_eq!(&result.execution_id, id);
                if verdict(&result) == Some(FailureKind::SandboxGone) {
                    let session = &executions.iter().find(|(_, execution)| execution == id).expect("it was sent").0;
                    assert!(manager.get(&me(), session).is_err(), "{id} was lost in a session that lives");
                }
                assert!(!matches!(manager.status(&me(), id), ExecutionStatus::Queued | ExecutionStatus::Running));
                false
            }
            Err(oneshot::error::TryRecvError::Empty) => true,
            Err(oneshot::error::TryRecvError::Closed) => panic!("{id} was never answered"),
        });
    }

    async fn finish(mut self) {
        self.manager.shutdown(Duration::from_secs(1)).await;
        assert!(self.manager.list(&me(), None, None).is_empty(), "every session is closed");
        self.check();
        assert!(self.owed.replies.is_empty(), "every command was answered");
        for (id, mut events) in self.owed.streams {
            let (mut exits, mut last_is_exit) = (0, false);
            while let Ok(event) = events.try_recv() {
                last_is_exit = matches!(event, StreamEvent::Exited(_));
                exits += usize::from(last_is_exit);
            }
            assert!(exits == 1 && last_is_exit, "{id}: exited {exits} times");
        }
        for id in &self.owed.background {
            assert!(!matches!(self.manager.status(&me(), id), ExecutionStatus::Queued | ExecutionStatus::Running));
        }
        for instance in super::super::locked(&self.runtime.instances).iter() {
            assert_eq!(instance.running(), 0);
            assert_eq!(instance.closed.load(std::sync::atomic::Ordering::SeqCst), 1, "closed once");
        }
    }
}
