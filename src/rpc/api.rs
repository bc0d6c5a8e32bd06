//! The methods of the wire, and the surface below them.
//!
//! Invariant: `METHODS` is the one table of names; the handlers, the OpenRPC document and the metrics are made from it.
//! `SessionService` is what the wire needs from the session manager, so that the whole server can be tested over a real socket
//! with another one in its place. Read `types` and `handler` next.

use std::time::Duration;

use futures_util::future::BoxFuture;

use crate::command::Command;
use crate::id::{ExecutionId, SessionId};
use crate::session::api::*;
use crate::session::manager::Manager;

/// One method.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "each variant is the method of the same name")]
pub enum Method {
    Initialize,
    LanguageList,
    RuntimeList,
    SessionCreate,
    SessionExecute,
    SessionStream,
    SessionUnstream,
    SessionInput,
    SessionSignal,
    SessionCancel,
    SessionGet,
    SessionList,
    SessionClose,
    ExecutionRun,
    ExecutionStatus,
    Discover,
}

/// All methods with their names and what each does, in one sentence.
pub const METHODS: [(Method, &str, &str); 16] = [
    (Method::Initialize, "initialize", "Tells what this server is and can do; other calls work without it."),
    (Method::LanguageList, "language.list", "Languages, and which of them are installed."),
    (Method::RuntimeList, "runtime.list", "Runtimes, and why one is not available."),
    (Method::SessionCreate, "session.create", "Makes a sandbox that lives until it is closed or idle."),
    (Method::SessionExecute, "session.execute", "Carries out one command; commands of a session run in the order received."),
    (Method::SessionStream, "session.stream", "Like session.execute, with `session.output` notifications; WebSocket only."),
    (Method::SessionUnstream, "session.unstream", "Ends the notifications of a session.stream; the execution goes on."),
    (Method::SessionInput, "session.input", "Writes to the standard input of a running execution."),
    (Method::SessionSignal, "session.signal", "Sends a signal to a running execution."),
    (Method::SessionCancel, "session.cancel", "Ends one execution, or all of a session."),
    (Method::SessionGet, "session.get", "One session with its configuration, enforcement and usage."),
    (Method::SessionList, "session.list", "The sessions of this token."),
    (Method::SessionClose, "session.close", "Ends a session; doing it twice is no error."),
    (Method::ExecutionRun, "execution.run", "Runs code once in a sandbox of its own; answers at once."),
    (Method::ExecutionStatus, "execution.status", "The state and outcome of an execution."),
    (Method::Discover, "rpc.discover", "This document."),
];

/// Name of the notifications of `session.stream`.
pub const OUTPUT_NOTIFICATION: &str = "session.output";

impl Method {
    /// The name on the wire.
    pub fn name(self) -> &'static str {
        METHODS.iter().find(|(method, _, _)| *method == self).map_or("", |(_, name, _)| name)
    }

    /// The method of that name.
    pub fn from_name(name: &str) -> Option<Self> {
        METHODS.iter().find(|(_, known, _)| *known == name).map(|(method, _, _)| *method)
    }
}

/// What the wire calls. Every method is that of the same name of `session::manager::Manager`.
#[expect(missing_docs, reason = "said at `Manager`")]
pub trait SessionService: Send + Sync + 'static {
    fn create<'a>(
        &'a self,
        principal: &'a Principal,
        request: CreateSession,
    ) -> BoxFuture<'a, Result<SessionView, SessionError>>;
    fn execute(&self, principal: &Principal, session: &SessionId, command: Command) -> Result<Accepted, SessionError>;
    fn stream(&self, principal: &Principal, session: &SessionId, command: Command) -> Result<AcceptedStream, SessionError>;
    fn input<'a>(&'a self, target: Target<'a>, data: Vec<u8>, eof: bool) -> BoxFuture<'a, Result<bool, SessionError>>;
    fn signal<'a>(&'a self, target: Target<'a>, signal: i32) -> BoxFuture<'a, Result<bool, SessionError>>;
    fn cancel<'a>(
        &'a self,
        principal: &'a Principal,
        session: &'a SessionId,
        execution: Option<&'a ExecutionId>,
    ) -> BoxFuture<'a, Result<bool, SessionError>>;
    fn get(&self, principal: &Principal, session: &SessionId) -> Result<SessionView, SessionError>;
    fn list(&self, principal: &Principal, state: Option<SessionState>, language: Option<&str>) -> Vec<SessionView>;
    fn close<'a>(&'a self, principal: &'a Principal, session: &'a SessionId) -> BoxFuture<'a, ()>;
    fn run_once<'a>(&'a self, principal: &'a Principal, request: RunOnce) -> BoxFuture<'a, Result<ExecutionId, SessionError>>;
    fn status(&self, principal: &Principal, execution: &ExecutionId) -> ExecutionStatus;
    fn disconnected(&self, connection: u64);
    fn shutdown(&self, grace: Duration) -> BoxFuture<'_, ()>;
    fn languages(&self) -> Vec<LanguageRow>;
    fn probed_languages(&self) -> BoxFuture<'_, Vec<LanguageRow>>;
    fn runtimes(&self) -> Vec<RuntimeRow>;
    fn limits(&self) -> (u64, u64, u64);
}

/// One execution of one session of one principal.
#[derive(Debug, Clone, Copy)]
#[expect(missing_docs, reason = "said by their types")]
pub struct Target<'a> {
    pub principal: &'a Principal,
    pub session: &'a SessionId,
    pub execution: &'a ExecutionId,
}

impl SessionService for Manager {
    fn create<'a>(
        &'a self,
        principal: &'a Principal,
        request: CreateSession,
    ) -> BoxFuture<'a, Result<SessionView, SessionError>> {
        Box::pin(Manager::create(self, principal, request))
    }
    fn execute(&self, principal: &Principal, session: &SessionId, command: Command) -> Result<Accepted, SessionError> {
        Manager::execute(self, principal, session, command)
    }
    fn stream(&self, principal: &Principal, session: &SessionId, command: Command) -> Result<AcceptedStream, SessionError> {
        Manager::stream(self, principal, session, command)
    }
    fn input<'a>(&'a self, target: Target<'a>, data: Vec<u8>, eof: bool) -> BoxFuture<'a, Result<bool, SessionError>> {
        Box::pin(Manager::input(self, target.principal, target.session, target.execution, data, eof))
    }
    fn signal<'a>(&'a self, target: Target<'a>, signal: i32) -> BoxFuture<'a, Result<bool, SessionError>> {
        Box::pin(Manager::signal(self, target.principal, target.session, target.execution, signal))
    }
    fn cancel<'a>(
        &'a self,
        principal: &'a Principal,
        session: &'a SessionId,
        execution: Option<&'a ExecutionId>,
    ) -> BoxFuture<'a, Result<bool, SessionError>> {
        Box::pin(Manager::cancel(self, principal, session, execution))
    }
    fn get(&self, principal: &Principal, session: &SessionId) -> Result<SessionView, SessionError> {
        Manager::get(self, principal, session)
    }
    fn list(&self, principal: &Principal, state: Option<SessionState>, language: Option<&str>) -> Vec<SessionView> {
        Manager::list(self, principal, state, language)
    }
    fn close<'a>(&'a self, principal: &'a Principal, session: &'a SessionId) -> BoxFuture<'a, ()> {
        Box::pin(Manager::close(self, principal, session))
    }
    fn run_once<'a>(&'a self, principal: &'a Principal, request: RunOnce) -> BoxFuture<'a, Result<ExecutionId, SessionError>> {
        Box::pin(Manager::run_once(self, principal, request))
    }
    fn status(&self, principal: &Principal, execution: &ExecutionId) -> ExecutionStatus {
        Manager::status(self, principal, execution)
    }
    fn disconnected(&self, connection: u64) {
        Manager::disconnected(self, connection);
    }
    fn shutdown(&self, grace: Duration) -> BoxFuture<'_, ()> {
        Box::pin(Manager::shutdown(self, grace))
    }
    fn languages(&self) -> Vec<LanguageRow> {
        Manager::languages(self)
    }
    fn probed_languages(&self) -> BoxFuture<'_, Vec<LanguageRow>> {
        Box::pin(Manager::probed_languages(self))
    }
    fn runtimes(&self) -> Vec<RuntimeRow> {
        Manager::runtimes(self)
    }
    fn limits(&self) -> (u64, u64, u64) {
        Manager::limits(self)
    }
}
