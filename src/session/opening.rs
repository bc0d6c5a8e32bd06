//! From an accepted request to a session that can be handed out.
//!
//! Invariants: an opening runs in a task of its own, so that it is never abandoned half way; a session whose caller has gone
//! before it learned the id is closed again; whatever fails leaves nothing behind. Read `session` next.

use std::sync::Arc;
use std::time::SystemTime;

use tokio::sync::oneshot;

use crate::command::{Command, CommandOutput, CommandResult, InstallPackages, Usage};
use crate::id::{ExecutionId, SessionId};
use crate::runtime::{Instance, InstanceConfig, Runtime};

use super::api::{Principal, Selection, SessionError, SessionSettings, SessionState, SessionView};
use super::audit;
use super::book::Place;
use super::cause::CloseCause;
use super::manager::Shared;
use super::outcomes::OutcomeWriter;
use super::output::Output;
use super::session::{Bounds, Parts, Session, Visibility};
use super::worker;

/// How much of a failed installation's standard error a client is shown.
const STDERR_TAIL_BYTES: usize = 2000;

/// Everything decided about a session before it is made.
pub(super) struct Opening {
    pub(super) principal: Principal,
    pub(super) visibility: Visibility,
    pub(super) connection: Option<u64>,
    pub(super) runtime: Arc<dyn Runtime>,
    pub(super) config: InstanceConfig,
    pub(super) selection: Selection,
    pub(super) settings: SessionSettings,
    pub(super) metadata: Option<serde_json::Value>,
    pub(super) packages: Vec<String>,
    pub(super) place: Place,
}

/// Opens a session in a task of its own and waits for it.
pub(super) async fn open_detached(shared: &Arc<Shared>, opening: Opening) -> Result<Arc<Session>, SessionError> {
    let (sender, receiver) = oneshot::channel();
    let shared = Arc::clone(shared);
    tokio::spawn(async move {
        let opened = open(&shared, opening).await.map(Handover::new);
        // A caller who is gone drops the handover, and that closes the session.
        drop(sender.send(opened));
    });
    match receiver.await {
        Ok(opened) => opened.map(Handover::taken),
        Err(_) => Err(internal("the task that opened the session ended early")),
    }
}

/// A session on its way to its caller; dropped on the way, it closes.
struct Handover(Option<Arc<Session>>);

impl Handover {
    fn new(session: Arc<Session>) -> Self {
        Self(Some(session))
    }

    fn taken(mut self) -> Arc<Session> {
        self.0.take().expect("a handover holds its session until it is taken, which consumes it")
    }
}

impl Drop for Handover {
    fn drop(&mut self) {
        if let Some(session) = self.0.take() {
            session.request_close(CloseCause::Abandoned);
        }
    }
}

/// Makes the environment, starts the session's task, installs packages.
pub(super) async fn open(shared: &Arc<Shared>, mut opening: Opening) -> Result<Arc<Session>, SessionError> {
    let packages = std::mem::take(&mut opening.packages);
    let kind = opening.runtime.kind();
    let instance = opening.runtime.create(opening.config.clone()).await?;
    let (session, place) = describe(shared, opening, &instance);
    if let Err(error) = shared.book.insert(&session) {
        instance.close().await;
        return Err(error);
    }
    metrics::counter!("codebeaker_sessions_created_total", "runtime" => kind.name()).increment(1);
    audit::opened(&session.id, kind, instance.as_ref());
    tokio::spawn(worker::work(Arc::clone(&session), instance, Arc::clone(&shared.book), place));
    if let Err(error) = install(&session, packages).await {
        session.request_close(CloseCause::SetupFailed);
        session.wait_closed().await;
        return Err(error);
    }
    session.opened();
    Ok(session)
}

/// The session around a fresh environment.
fn describe(shared: &Shared, opening: Opening, instance: &Arc<dyn Instance>) -> (Arc<Session>, Place) {
    let Opening { principal, visibility, connection, runtime, config, selection, settings, metadata, place, .. } = opening;
    let now = SystemTime::now();
    let view = SessionView {
        session_id: SessionId::random(),
        environment_id: instance.environment_id().clone(),
        runtime: runtime.kind(),
        selection,
        origin: instance.origin(),
        language: config.language.name.clone(),
        image: config.image,
        created_at: now,
        last_activity: now,
        state: SessionState::Creating,
        close_reason: None,
        execution_count: 0,
        idle: settings.idle_timeout,
        lifetime: settings.lifetime,
        config: settings,
        enforcement: instance.enforcement(),
        usage: Usage::default(),
        metadata,
    };
    let bounds = &shared.config.session;
    let session = Session::new(Parts {
        outcomes: OutcomeWriter::new(Arc::clone(&shared.outcomes), principal.clone()),
        principal,
        visibility,
        connection,
        commands: runtime.commands(),
        bounds: Bounds { queue_max: bounds.queue_max as usize, background_max: bounds.background_max as usize },
        view,
        instance: Arc::clone(instance),
    });
    (session, place)
}

/// Installs what `session.create` names, before the session is handed out.
async fn install(session: &Session, packages: Vec<String>) -> Result<(), SessionError> {
    if packages.is_empty() {
        return Ok(());
    }
    let command = Command::InstallPackages(InstallPackages { packages, requirements_file: None });
    let output = Arc::new(session.with_view(|view| Output::captured_only(&view.config.limits)));
    let result = session.submit(ExecutionId::random(), command, output)?.await;
    match result {
        Ok(CommandResult { failure: None, .. }) => Ok(()),
        Ok(CommandResult { failure: Some(failure), output, .. }) => Err(SessionError::PolicyDenied {
            field: "packages".into(),
            message: format!("`packages`: they could not be installed: {}", failure.message),
            hint: stderr_tail(output.as_ref()),
        }),
        Err(_) => Err(internal("the session ended while packages were installed")),
    }
}

fn stderr_tail(output: Option<&CommandOutput>) -> String {
    match output {
        Some(CommandOutput::Execution(report)) if !report.stderr.data.is_empty() => {
            let stderr = &report.stderr.data;
            let tail = &stderr[stderr.len().saturating_sub(STDERR_TAIL_BYTES)..];
            format!("the installer said: {}", String::from_utf8_lossy(tail).trim())
        }
        Some(_) | None => "ask for packages that the operator has made available".into(),
    }
}

fn internal(what: &str) -> SessionError {
    SessionError::Sandbox(crate::sandbox::error::SandboxError::Internal(what.into()))
}
