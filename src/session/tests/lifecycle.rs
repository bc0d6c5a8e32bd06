//! How sessions begin and end: limits, quotas, ownership, sweeps, disconnects, shutdown.

use std::time::Duration;

use super::simulated::*;
use crate::command::FailureKind;
use crate::config::{Config, SessionConfig};
use crate::id::{ExecutionId, SessionId};
use crate::runtime::RuntimeKind;
use crate::sandbox::error::SandboxError;
use crate::session::api::*;

fn me() -> Principal {
    Principal("me".into())
}

fn with(session: SessionConfig) -> Config {
    Config { session, ..Config::default() }
}

/// Lets the session tasks do what they can without the clock moving.
async fn settle() {
    for _ in 0..20 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_fresh_session_is_active_then_idle_and_closed_twice_without_error() {
    let (manager, runtime) = manager(Config::default());
    let view = manager.create(&me(), request()).await.expect("created");
    assert_eq!((view.state, view.runtime, view.image.as_str()), (SessionState::Active, RuntimeKind::NativeProcess, "host"));
    let accepted = manager.execute(&me(), &view.session_id, shell("sleep 0")).expect("accepted");
    accepted.result.await.expect("answered");
    let row = manager.get(&me(), &view.session_id).expect("open");
    assert_eq!((row.state, row.execution_count), (SessionState::Idle, 1));
    manager.close(&me(), &view.session_id).await;
    assert_eq!(runtime.instance(0).closed.load(std::sync::atomic::Ordering::SeqCst), 1);
    manager.close(&me(), &view.session_id).await;
    manager.close(&me(), &SessionId::random()).await;
    assert!(matches!(manager.get(&me(), &view.session_id), Err(SessionError::Closed { .. })));
    assert!(matches!(manager.get(&me(), &SessionId::random()), Err(SessionError::NotFound(_))));
    assert!(manager.list(&me(), None, None).is_empty());
    let closed = manager.list(&me(), Some(SessionState::Closed), Some("py"));
    assert_eq!(closed[0].close_reason.as_deref(), Some("it was closed by request"));
}

#[tokio::test]
async fn another_principal_finds_nothing_and_can_close_nothing() {
    let (manager, _runtime) = manager(Config::default());
    let other = Principal("other".into());
    let id = manager.create(&me(), request()).await.expect("created").session_id;
    assert!(matches!(manager.get(&other, &id), Err(SessionError::NotFound(_))));
    assert!(matches!(manager.execute(&other, &id, shell("sleep 0")), Err(SessionError::NotFound(_))));
    assert!(matches!(manager.cancel(&other, &id, None).await, Err(SessionError::NotFound(_))));
    assert!(manager.list(&other, None, None).is_empty());
    manager.close(&other, &id).await;
    assert!(manager.get(&me(), &id).is_ok(), "the control: its owner still has it");
}

#[tokio::test(start_paused = true)]
async fn an_idle_session_is_swept_and_a_running_command_keeps_one() {
    let (manager, _runtime) = manager(Config::default());
    manager.start();
    let idle = manager.create(&me(), request()).await.expect("created").session_id;
    let busy = manager.create(&me(), request()).await.expect("created").session_id;
    let running = manager.execute(&me(), &busy, shell("sleep 3600000")).expect("accepted");
    tokio::time::sleep(Duration::from_secs(29 * 60)).await;
    assert!(manager.get(&me(), &idle).is_ok(), "the control: its time is not up");
    tokio::time::sleep(Duration::from_secs(2 * 60)).await;
    match manager.get(&me(), &idle) {
        Err(SessionError::Closed { reason, .. }) => assert!(reason.contains("idle"), "{reason}"),
        other => panic!("{other:?}"),
    }
    assert!(manager.get(&me(), &busy).is_ok());
    assert_eq!(verdict(&running.result.await.expect("answered")), None);
}

#[tokio::test(start_paused = true)]
async fn a_lifetime_ends_a_session_in_mid_command_and_its_id_is_forgotten_an_hour_later() {
    let (manager, _runtime) = manager(Config::default());
    manager.start();
    let id = manager.create(&me(), request()).await.expect("created").session_id;
    let running = manager.execute(&me(), &id, shell("sleep 36000000")).expect("accepted");
    let result = running.result.await.expect("answered");
    assert_eq!(verdict(&result), Some(FailureKind::Cancelled));
    assert!(result.failure.expect("failed").message.contains("lifetime"));
    settle().await;
    assert!(matches!(manager.get(&me(), &id), Err(SessionError::Closed { .. })));
    tokio::time::sleep(Duration::from_secs(3700)).await;
    assert!(matches!(manager.get(&me(), &id), Err(SessionError::NotFound(_))));
    assert_eq!(manager.status(&me(), &running.execution_id), ExecutionStatus::NotFound);
}

#[tokio::test]
async fn quotas_hold_and_a_closed_session_makes_room() {
    let session = SessionConfig { sessions_max: 3, sessions_per_principal_max: 2, ..SessionConfig::default() };
    let (manager, _runtime) = manager(with(session));
    let other = Principal("other".into());
    let first = manager.create(&me(), request()).await.expect("created").session_id;
    manager.create(&me(), request()).await.expect("created");
    assert!(matches!(manager.create(&me(), request()).await, Err(SessionError::QuotaExceeded { .. })));
    manager.create(&other, request()).await.expect("another principal has its own quota");
    assert!(matches!(manager.create(&other, request()).await, Err(SessionError::QuotaExceeded { .. })));
    manager.close(&me(), &first).await;
    manager.create(&me(), request()).await.expect("there is room again");
}

#[tokio::test]
async fn a_failed_creation_gives_its_place_back() {
    let (manager, _runtime) = manager(with(SessionConfig { sessions_max: 1, ..SessionConfig::default() }));
    let broken = CreateSession { env: [("BROKEN".into(), String::new())].into(), ..request() };
    assert!(matches!(manager.create(&me(), broken).await, Err(SessionError::Sandbox(SandboxError::Busy { .. }))));
    settle().await;
    manager.create(&me(), request()).await.expect("the place is free");
}

#[tokio::test]
async fn what_a_request_may_not_have_is_refused_with_its_kind() {
    let (manager, _runtime) = manager(Config::default());
    let refused = |request: CreateSession| {
        let manager = &manager;
        async move { manager.create(&me(), request).await.expect_err("refused") }
    };
    let language = refused(CreateSession { language: "cobol".into(), ..request() }).await;
    assert!(matches!(language, SessionError::LanguageNotSupported { supported, .. } if supported == ["bash", "python"]));
    let profile = refused(CreateSession { profile: "permissive".into(), ..request() }).await;
    assert!(matches!(profile, SessionError::PolicyDenied { field, .. } if field == "profile"));
    let image = refused(CreateSession { image: Some("absent".into()), ..request() }).await;
    assert!(matches!(image, SessionError::Sandbox(SandboxError::ImageNotFound { .. })));
    let runtime = refused(CreateSession { runtime: Some(RuntimeKind::Deno), ..request() }).await;
    assert!(matches!(runtime, SessionError::RuntimeNotAvailable { candidates } if candidates.len() == 7));
    let named = CreateSession { image: Some("slim".into()), language: "py".into(), ..request() };
    let view = manager.create(&me(), named).await.expect("the control");
    assert_eq!((view.image.as_str(), view.language.as_str()), ("slim", "python"));
}

#[tokio::test]
async fn packages_are_installed_before_the_session_is_handed_out_or_it_is_not() {
    let (manager, runtime) = manager(Config::default());
    let good = CreateSession { packages: vec!["echo".into()], ..request() };
    let view = manager.create(&me(), good).await.expect("installed");
    assert_eq!((view.state, view.execution_count), (SessionState::Active, 0));
    assert_eq!(runtime.instance(0).log(), ["echo"]);
    let bad = CreateSession { packages: vec!["fail".into()], ..request() };
    match manager.create(&me(), bad).await {
        Err(SessionError::PolicyDenied { field, hint, .. }) => {
            assert_eq!(field, "packages");
            assert!(hint.contains("no such package"), "{hint}");
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(runtime.instance(1).closed.load(std::sync::atomic::Ordering::SeqCst), 1);
    let none = CreateSession { packages: vec!["x".into()], language: "bash".into(), ..request() };
    assert!(matches!(manager.create(&me(), none).await, Err(SessionError::InvalidField { .. })));
}

#[tokio::test]
async fn a_disconnect_closes_what_was_tied_to_it_and_nothing_else() {
    let (manager, _runtime) = manager(Config::default());
    let tied = CreateSession { on_disconnect: OnDisconnect::Close, connection: Some(7), ..request() };
    let kept = CreateSession { connection: Some(7), ..request() };
    let tied = manager.create(&me(), tied).await.expect("created").session_id;
    let kept = manager.create(&me(), kept).await.expect("created").session_id;
    manager.disconnected(8);
    assert!(manager.get(&me(), &tied).is_ok(), "the control: another connection's end");
    manager.disconnected(7);
    assert!(matches!(manager.get(&me(), &tied), Err(SessionError::Closed { .. })));
    assert!(manager.get(&me(), &kept).is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_caller_that_goes_away_during_creation_leaves_no_session() {
    let (manager, runtime) = manager(Config::default());
    let slow = CreateSession { env: [("SLOW".into(), String::new())].into(), ..request() };
    let creation = tokio::time::timeout(Duration::from_millis(10), async { manager.create(&me(), slow.clone()).await });
    assert!(creation.await.is_err());
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(runtime.instance(0).closed.load(std::sync::atomic::Ordering::SeqCst), 1);
    assert!(manager.list(&me(), None, None).is_empty());
    assert!(manager.create(&me(), slow).await.is_ok(), "the control: a caller that waits");
}

#[tokio::test(start_paused = true)]
async fn shutdown_gives_running_commands_their_grace_and_then_ends_them() {
    let (manager, runtime) = manager(Config::default());
    let id = manager.create(&me(), request()).await.expect("created").session_id;
    let idle = manager.create(&me(), request()).await.expect("created").session_id;
    let quick = manager.execute(&me(), &id, shell("sleep 1000")).expect("accepted");
    let waiting = manager.execute(&me(), &id, shell("sleep 1")).expect("accepted");
    let slow = manager.create(&me(), request()).await.expect("created").session_id;
    let slow = manager.execute(&me(), &slow, shell("sleep 100000")).expect("accepted");
    settle().await;
    manager.shutdown(Duration::from_secs(10)).await;
    assert_eq!(verdict(&quick.result.await.expect("answered")), None);
    assert_eq!(verdict(&waiting.result.await.expect("answered")), Some(FailureKind::Cancelled));
    assert_eq!(verdict(&slow.result.await.expect("answered")), Some(FailureKind::Cancelled));
    assert!((0..3).all(|index| runtime.instance(index).closed.load(std::sync::atomic::Ordering::SeqCst) == 1));
    assert!(matches!(manager.create(&me(), request()).await, Err(SessionError::Busy(_))));
    assert!(matches!(manager.execute(&me(), &idle, shell("sleep 0")), Err(SessionError::Closed { .. })));
}

fn once(code: &str) -> RunOnce {
    RunOnce {
        language: "python".into(),
        code: code.into(),
        packages: Vec::new(),
        timeout: Duration::from_secs(30),
        memory_limit_bytes: 512 << 20,
        cpu_limit: 1.0,
        network_enabled: false,
        allow_package_index: false,
        preference: Preference::Balanced,
        runtime: None,
    }
}

async fn ended(manager: &crate::session::manager::Manager, id: &ExecutionId) -> ExecutionStatus {
    for _ in 0..1000 {
        match manager.status(&me(), id) {
            ExecutionStatus::Queued | ExecutionStatus::Running => tokio::time::sleep(Duration::from_millis(1)).await,
            status @ (ExecutionStatus::Ended(_) | ExecutionStatus::Refused(_) | ExecutionStatus::NotFound) => return status,
        }
    }
    panic!("it did not end");
}

#[tokio::test(start_paused = true)]
async fn a_single_run_goes_from_queued_to_its_result_and_leaves_nothing() {
    let (manager, runtime) = manager(Config::default());
    let id = manager.run_once(&me(), once("sleep 5")).await.expect("accepted");
    assert_eq!(manager.status(&me(), &id), ExecutionStatus::Queued);
    tokio::time::sleep(Duration::from_millis(2)).await;
    assert_eq!(manager.status(&me(), &id), ExecutionStatus::Running);
    assert!(manager.list(&me(), None, None).is_empty(), "it is nobody's session");
    match ended(&manager, &id).await {
        ExecutionStatus::Ended(result) => assert_eq!(verdict(&result), None),
        other => panic!("{other:?}"),
    }
    tokio::time::sleep(Duration::from_millis(1)).await;
    assert_eq!(runtime.instance(0).closed.load(std::sync::atomic::Ordering::SeqCst), 1);
    assert_eq!(manager.status(&Principal("other".into()), &id), ExecutionStatus::NotFound);
}

#[tokio::test(start_paused = true)]
async fn a_single_run_without_a_sandbox_is_refused_in_its_status_and_a_bad_one_at_once() {
    let (manager, _runtime) = manager(Config::default());
    let broken = RunOnce { memory_limit_bytes: 99 << 20, ..once("sleep 1") };
    let id = manager.run_once(&me(), broken).await.expect("accepted");
    assert!(matches!(ended(&manager, &id).await, ExecutionStatus::Refused(sentence) if sentence.contains("on purpose")));
    let network = RunOnce { network_enabled: true, ..once("sleep 1") };
    assert!(matches!(manager.run_once(&me(), network).await, Err(SessionError::PolicyDenied { .. })));
    let long = RunOnce { timeout: Duration::from_secs(301), ..once("sleep 1") };
    assert!(matches!(manager.run_once(&me(), long).await, Err(SessionError::InvalidField { .. })));
}

#[tokio::test]
async fn languages_tell_their_version_once_it_was_asked() {
    let (manager, runtime) = manager(Config::default());
    let version = || manager.languages().into_iter().find(|row| row.name == "python").and_then(|row| row.version);
    assert_eq!(version(), None);
    manager.probed_languages().await;
    manager.probed_languages().await;
    assert_eq!(version().as_deref(), Some("Python 3"));
    assert_eq!(crate::session::locked(&runtime.instances).len(), 1, "it is asked once");
    assert_eq!(runtime.instance(0).closed.load(std::sync::atomic::Ordering::SeqCst), 1);
    let bash = manager.languages().into_iter().find(|row| row.name == "bash").expect("listed");
    assert_eq!((bash.installed, bash.version), (false, None));
    assert!(bash.reason.is_some_and(|reason| reason.contains("`bash`")), "it is said what is missing");
}
