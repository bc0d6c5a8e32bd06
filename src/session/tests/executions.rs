//! Commands within a session: order, background, cancel, input, signals, streams, and a sandbox that goes away.

use std::time::Duration;

use tokio::sync::mpsc::UnboundedReceiver;

use super::simulated::*;
use crate::command::{
    Command, CommandOutput, CopyFile, DeleteFile, ExecuteCode, ExecuteShell, FailureKind, SessionPath, Stdin,
};
use crate::config::{Config, SessionConfig};
use crate::id::{ExecutionId, SessionId};
use crate::session::api::*;
use crate::session::manager::Manager;

fn me() -> Principal {
    Principal("me".into())
}

async fn session(manager: &Manager) -> SessionId {
    manager.create(&me(), request()).await.expect("created").session_id
}

async fn settle() {
    for _ in 0..20 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test(start_paused = true)]
async fn pipelined_commands_run_in_the_order_they_were_sent() {
    let (manager, runtime) = manager(Config::default());
    let id = session(&manager).await;
    let words: Vec<String> = (0..100).map(|index| format!("sleep {}", (index * 7) % 10)).collect();
    let accepted: Vec<_> = words.iter().map(|words| manager.execute(&me(), &id, shell(words)).expect("accepted")).collect();
    for accepted in accepted {
        assert_eq!(verdict(&accepted.result.await.expect("answered")), None);
    }
    assert_eq!(runtime.instance(0).log(), words);
}

#[tokio::test(start_paused = true)]
async fn a_background_command_is_answered_at_once_starts_in_its_turn_and_holds_nothing() {
    let (manager, runtime) = manager(Config::default());
    let id = session(&manager).await;
    let first = manager.execute(&me(), &id, shell("sleep 5")).expect("accepted");
    let mut server = manager.execute(&me(), &id, in_background("sleep 1000")).expect("accepted");
    let client = manager.execute(&me(), &id, shell("sleep 10")).expect("accepted");
    assert_eq!(server.result.try_recv().expect("at once").output, Some(CommandOutput::Started));
    assert_eq!(manager.status(&me(), &server.execution_id), ExecutionStatus::Queued);
    first.result.await.expect("answered");
    client.result.await.expect("answered");
    assert_eq!(runtime.instance(0).log(), ["sleep 5", "sleep 1000", "sleep 10"]);
    assert_eq!(manager.status(&me(), &server.execution_id), ExecutionStatus::Running);
    assert_eq!(manager.get(&me(), &id).expect("open").state, SessionState::Active);
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(matches!(manager.status(&me(), &server.execution_id), ExecutionStatus::Ended(_)));
}

#[tokio::test]
async fn a_background_command_starts_in_its_turn_beside_others_that_always_have_something_to_do() {
    let (manager, runtime) = manager(Config::default());
    let id = session(&manager).await;
    let _busy = [(); 2].map(|()| manager.execute(&me(), &id, in_background("busy")).expect("accepted"));
    settle().await;
    let _server = manager.execute(&me(), &id, in_background("sleep 60000")).expect("accepted");
    let client = manager.execute(&me(), &id, shell("echo here")).expect("accepted");
    client.result.await.expect("answered");
    assert_eq!(runtime.instance(0).log(), ["busy", "busy", "sleep 60000", "echo here"]);
}

#[tokio::test]
async fn the_queue_and_the_background_have_their_bounds() {
    let session_config = SessionConfig { queue_max: 2, background_max: 1, ..SessionConfig::default() };
    let (manager, _runtime) = manager(Config { session: session_config, ..Config::default() });
    let id = session(&manager).await;
    let _background = manager.execute(&me(), &id, in_background("sleep 60000")).expect("accepted");
    assert!(matches!(manager.execute(&me(), &id, in_background("sleep 1")), Err(SessionError::Busy(_))));
    let _running = manager.execute(&me(), &id, shell("sleep 60000")).expect("accepted");
    settle().await;
    let _waiting = [(); 2].map(|()| manager.execute(&me(), &id, shell("sleep 1")).expect("accepted"));
    assert!(matches!(manager.execute(&me(), &id, shell("sleep 1")), Err(SessionError::Busy(_))));
    assert!(manager.cancel(&me(), &id, None).await.expect("open"));
    settle().await;
    manager.execute(&me(), &id, shell("sleep 1")).expect("there is room again");
}

#[tokio::test(start_paused = true)]
async fn cancel_ends_a_queued_a_running_and_a_background_execution_and_only_that() {
    let (manager, runtime) = manager(Config::default());
    let id = session(&manager).await;
    let background = manager.execute(&me(), &id, in_background("sleep 60000")).expect("accepted");
    let running = manager.execute(&me(), &id, shell("sleep 50000")).expect("accepted");
    let queued = manager.execute(&me(), &id, shell("sleep 40000")).expect("accepted");
    let last = manager.execute(&me(), &id, shell("sleep 3")).expect("accepted");
    settle().await;
    assert!(manager.cancel(&me(), &id, Some(&queued.execution_id)).await.expect("known"));
    assert_eq!(verdict(&queued.result.await.expect("answered")), Some(FailureKind::Cancelled));
    assert_eq!(runtime.instance(0).running(), 2);
    assert!(manager.cancel(&me(), &id, Some(&running.execution_id)).await.expect("known"));
    assert_eq!(verdict(&running.result.await.expect("answered")), Some(FailureKind::Cancelled));
    assert!(!manager.cancel(&me(), &id, Some(&running.execution_id)).await.expect("known"), "it has ended");
    assert_eq!(verdict(&last.result.await.expect("answered")), None);
    assert!(manager.cancel(&me(), &id, Some(&background.execution_id)).await.expect("known"));
    settle().await;
    match manager.status(&me(), &background.execution_id) {
        ExecutionStatus::Ended(result) => assert_eq!(verdict(&result), Some(FailureKind::Cancelled)),
        other => panic!("{other:?}"),
    }
    assert!(!runtime.instance(0).log().contains(&"sleep 40000".to_owned()), "it never started");
    assert!(!manager.cancel(&me(), &id, None).await.expect("open"), "nothing is left to cancel");
    let unknown = manager.cancel(&me(), &id, Some(&ExecutionId::random())).await;
    assert!(matches!(unknown, Err(SessionError::ExecutionNotFound(_))));
}

#[tokio::test(start_paused = true)]
async fn a_runtime_that_does_not_listen_is_cancelled_all_the_same() {
    let (manager, runtime) = manager(Config::default());
    let id = session(&manager).await;
    let deaf = manager.execute(&me(), &id, shell("deaf")).expect("accepted");
    settle().await;
    assert!(manager.cancel(&me(), &id, Some(&deaf.execution_id)).await.expect("known"));
    assert_eq!(verdict(&deaf.result.await.expect("answered")), Some(FailureKind::Cancelled));
    assert_eq!(runtime.instance(0).running(), 0);
    let next = manager.execute(&me(), &id, shell("echo alive")).expect("the session lives on");
    assert_eq!(stdout(&next.result.await.expect("answered")), "alive");
}

#[tokio::test]
async fn a_sandbox_that_goes_in_mid_command_closes_the_session_with_its_reason() {
    let (manager, _runtime) = manager(Config::default());
    let id = session(&manager).await;
    let background = manager.execute(&me(), &id, in_background("sleep 60000")).expect("accepted");
    let dying = manager.execute(&me(), &id, shell("die")).expect("accepted");
    let queued = manager.execute(&me(), &id, shell("echo never")).expect("accepted");
    for accepted in [dying, queued] {
        assert_eq!(verdict(&accepted.result.await.expect("answered")), Some(FailureKind::SandboxGone));
    }
    settle().await;
    assert!(matches!(manager.status(&me(), &background.execution_id), ExecutionStatus::Ended(_)));
    match manager.execute(&me(), &id, shell("echo late")) {
        Err(SessionError::Closed { reason, .. }) => assert_eq!(reason, "its sandbox ended: init was killed"),
        other => panic!("{:?}", other.map(|accepted| accepted.execution_id)),
    }
}

#[tokio::test]
async fn a_runtime_that_panics_fails_its_command_and_no_other() {
    let (manager, _runtime) = manager(Config::default());
    let id = session(&manager).await;
    let panicking = manager.stream(&me(), &id, shell("panic")).expect("accepted");
    let next = manager.execute(&me(), &id, shell("echo alive")).expect("accepted");
    assert_eq!(stdout(&next.result.await.expect("answered")), "alive");
    let events = all(panicking.events).await;
    assert!(matches!(events.last(), Some(StreamEvent::Exited(result)) if verdict(result) == Some(FailureKind::IoError)));
}

/// Everything that came, to the end of the channel.
async fn all(mut events: UnboundedReceiver<StreamEvent>) -> Vec<StreamEvent> {
    let mut all = Vec::new();
    while let Some(event) = events.recv().await {
        all.push(event);
    }
    all
}

fn exits(events: &[StreamEvent]) -> usize {
    events.iter().filter(|event| matches!(event, StreamEvent::Exited(_))).count()
}

#[tokio::test]
async fn a_stream_begins_with_started_and_ends_with_exited_whatever_ends_it() {
    let (manager, _runtime) = manager(Config::default());
    let id = session(&manager).await;
    let echo = manager.stream(&me(), &id, shell("echo hello")).expect("accepted");
    let cancelled = manager.stream(&me(), &id, shell("cat")).expect("accepted");
    let closed = manager.stream(&me(), &id, shell("cat")).expect("accepted");
    let queued = manager.stream(&me(), &id, shell("cat")).expect("accepted");
    let events = all(echo.events).await;
    assert!(matches!(events[0], StreamEvent::Started));
    assert!(matches!(&events[1], StreamEvent::Data { seq: 0, data, .. } if data == b"hello"));
    assert!(matches!(&events[2], StreamEvent::Exited(result) if stdout(result) == "hello"));
    assert!(manager.cancel(&me(), &id, Some(&cancelled.execution_id)).await.expect("known"));
    let events = all(cancelled.events).await;
    assert!(exits(&events) == 1 && matches!(events.last(), Some(StreamEvent::Exited(_))));
    settle().await;
    manager.close(&me(), &id).await;
    for events in [all(closed.events).await, all(queued.events).await] {
        assert!(exits(&events) == 1 && matches!(events.last(), Some(StreamEvent::Exited(_))));
    }
}

#[tokio::test]
async fn a_slow_reader_loses_bytes_but_the_program_does_not_wait() {
    let (manager, _runtime) = manager(Config {
        session: SessionConfig { stream_buffer_bytes_max: 10_000, ..SessionConfig::default() },
        ..Config::default()
    });
    let id = session(&manager).await;
    let flood = manager.stream(&me(), &id, shell("flood 500")).expect("accepted");
    let next = manager.execute(&me(), &id, shell("echo done")).expect("accepted");
    next.result.await.expect("the flood has ended without a reader");
    let (mut seen, mut dropped) = (0, 0);
    for event in all(flood.events).await {
        match event {
            StreamEvent::Data { data, .. } => seen += data.len() as u64,
            StreamEvent::Dropped { bytes } => dropped += bytes,
            StreamEvent::Exited(result) => assert_eq!(verdict(&result), None),
            StreamEvent::Started | StreamEvent::Blocked { .. } => {}
        }
    }
    assert!(seen < 10_000 && dropped > 0);
    assert_eq!(seen + dropped, 500 * 1024, "every byte is accounted for");
}

#[tokio::test]
async fn output_past_the_kill_limit_ends_the_program() {
    let (manager, _runtime) = manager(Config::default());
    let id = session(&manager).await;
    let flood = manager.execute(&me(), &id, shell("flood 100000")).expect("accepted");
    assert_eq!(verdict(&flood.result.await.expect("answered")), Some(FailureKind::OutputLimit));
    let less = manager.execute(&me(), &id, shell("flood 1000")).expect("accepted");
    assert_eq!(verdict(&less.result.await.expect("answered")), None);
}

#[tokio::test]
async fn input_reaches_a_streamed_program_until_its_end_of_file() {
    let (manager, _runtime) = manager(Config::default());
    let id = session(&manager).await;
    let cat = manager.stream(&me(), &id, shell("cat")).expect("accepted");
    let send = async |data: &[u8], eof| manager.input(&me(), &id, &cat.execution_id, data.to_vec(), eof).await;
    assert!(send(b"one ", false).await.expect("known"));
    assert!(send(b"two", true).await.expect("known"));
    assert!(!send(b"three", false).await.expect("known"), "its stdin is closed");
    let events = all(cat.events).await;
    assert!(matches!(events.last(), Some(StreamEvent::Exited(result)) if stdout(result) == "one two"));
    let plain = manager.execute(&me(), &id, shell("sleep 60000")).expect("accepted");
    let refused = manager.input(&me(), &id, &plain.execution_id, b"x".to_vec(), false).await;
    assert!(!refused.expect("known"), "without a stream its stdin is empty");
    let unknown = manager.input(&me(), &id, &ExecutionId::random(), Vec::new(), false).await;
    assert!(matches!(unknown, Err(SessionError::ExecutionNotFound(_))));
}

#[tokio::test]
async fn a_signal_reaches_a_running_program_and_not_one_that_waits_or_has_ended() {
    let (manager, _runtime) = manager(Config::default());
    let id = session(&manager).await;
    let running = manager.execute(&me(), &id, shell("sleep 60000")).expect("accepted");
    let queued = manager.execute(&me(), &id, shell("sleep 0")).expect("accepted");
    settle().await;
    let signal = async |execution: &ExecutionId| manager.signal(&me(), &id, execution, 15).await.expect("known");
    assert!(!signal(&queued.execution_id).await);
    assert!(signal(&running.execution_id).await);
    assert_eq!(verdict(&running.result.await.expect("answered")), Some(FailureKind::Signaled));
    assert!(!signal(&running.execution_id).await);
}

#[tokio::test]
async fn an_outcome_outlives_its_session_and_the_call_that_brought_the_command() {
    let (manager, _runtime) = manager(Config::default());
    let id = session(&manager).await;
    let accepted = manager.execute(&me(), &id, shell("echo kept")).expect("accepted");
    drop(accepted.result);
    settle().await;
    manager.close(&me(), &id).await;
    match manager.status(&me(), &accepted.execution_id) {
        ExecutionStatus::Ended(result) => assert_eq!(stdout(&result), "kept"),
        other => panic!("{other:?}"),
    }
    assert_eq!(manager.status(&me(), &ExecutionId::random()), ExecutionStatus::NotFound);
}

#[tokio::test]
async fn what_a_command_can_be_refused_for_is_refused_before_the_queue() {
    let (manager, runtime) = manager(Config::default());
    let id = session(&manager).await;
    let path = || SessionPath::parse("a").expect("a path");
    let copy = Command::CopyFile(CopyFile { source: path(), destination: path(), overwrite: true, recursive: true });
    let refused = |command| manager.execute(&me(), &id, command).map(|accepted| accepted.execution_id).expect_err("refused");
    assert!(matches!(refused(copy), SessionError::CommandNotSupported { command: "copy_file", .. }));
    let with_timeout = |seconds: u32| match shell("sleep 0") {
        Command::ExecuteShell(shell) => {
            Command::ExecuteShell(ExecuteShell { timeout: std::num::NonZeroU32::new(seconds), ..shell })
        }
        other => other,
    };
    assert!(matches!(refused(with_timeout(301)), SessionError::PolicyDenied { field, .. } if field == "timeoutSeconds"));
    let code = |language: &str| {
        Command::ExecuteCode(ExecuteCode {
            code: "echo 1".into(),
            language: Some(language.into()),
            packages: Vec::new(),
            args: Vec::new(),
            env: std::collections::BTreeMap::new(),
            stdin: Stdin::Empty,
            timeout: None,
        })
    };
    assert!(matches!(refused(code("cobol")), SessionError::LanguageNotSupported { .. }));
    assert!(runtime.instance(0).log().is_empty());
    for accepted in [with_timeout(300), code("py"), Command::DeleteFile(DeleteFile { path: path(), recursive: true })] {
        let result = manager.execute(&me(), &id, accepted).expect("the control").result.await.expect("answered");
        assert_eq!(verdict(&result), None);
    }
}
