//! One function per method: parameters in, the session manager called, the answer out.
//!
//! Invariant: `session.execute` and `session.stream` call the manager before anything is awaited, so pipelined calls stand in the
//! session's queue in the order received; dropping a call's future does not cancel its command. Read `middleware` next.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use futures_util::future::BoxFuture;
use jsonrpsee::RpcModule;
use jsonrpsee::server::{RegisterMethodError, ResponsePayload};
use jsonrpsee::types::ErrorObjectOwned;
use serde::Serialize;
use serde_json::Value;
use serde_json::value::{RawValue, to_raw_value};

use super::api::{METHODS, Method, OUTPUT_NOTIFICATION, SessionService, Target};
use super::error::RpcError;
use super::middleware::{Caller, InFlight};
use super::results::*;
use super::types::*;
use super::{convert, openrpc, params, render, stream};
use crate::command::CommandKind;
use crate::id::{ExecutionId, SessionId};

/// How much of a client's name goes to the log.
const CLIENT_NAME_BYTES_MAX: usize = 64;

/// An answer as text, so that a listing of 100,000 entries is not built a second time as a tree.
type Json = Box<RawValue>;

/// An answer that may still take its time.
type Answer = BoxFuture<'static, Result<Json, RpcError>>;

/// What the handlers share.
pub(super) struct Context {
    /// The session manager.
    pub service: Arc<dyn SessionService>,
    /// The OpenRPC document, made once.
    pub document: Arc<Value>,
}

impl Context {
    /// Makes the document.
    pub fn new(service: Arc<dyn SessionService>) -> Self {
        Self { service, document: Arc::new(openrpc::document()) }
    }
}

/// All methods of `api::METHODS`.
pub(super) fn module(context: Arc<Context>) -> Result<RpcModule<Context>, RegisterMethodError> {
    let mut module = RpcModule::from_arc(context);
    for (method, name, _) in METHODS {
        match method {
            Method::SessionStream => {
                let unstream = Method::SessionUnstream.name();
                module.register_subscription(name, OUTPUT_NOTIFICATION, unstream, |params, pending, context, extensions| {
                    stream::serve(params.as_str(), pending, &context, &extensions)
                })?;
            }
            // Registered together with session.stream.
            Method::SessionUnstream => {}
            Method::Initialize
            | Method::LanguageList
            | Method::RuntimeList
            | Method::SessionCreate
            | Method::SessionExecute
            | Method::SessionInput
            | Method::SessionSignal
            | Method::SessionCancel
            | Method::SessionGet
            | Method::SessionList
            | Method::SessionClose
            | Method::ExecutionRun
            | Method::ExecutionStatus
            | Method::Discover => register(&mut module, method, name)?,
        }
    }
    Ok(module)
}

fn register(module: &mut RpcModule<Context>, method: Method, name: &'static str) -> Result<(), RegisterMethodError> {
    module.register_async_method(name, move |params, context, extensions| async move {
        let in_flight = extensions.get::<InFlight>().cloned();
        let answer = match extensions.get::<Caller>() {
            Some(caller) => answer(method, params.as_str(), &context, caller),
            None => Err(RpcError::unauthorized()),
        };
        // What the parameters held is in the command now; only the answer is awaited.
        drop(params);
        let outcome = match answer {
            Ok(answer) => answer.await,
            Err(error) => Err(error),
        };
        payload(outcome, in_flight)
    })?;
    Ok(())
}

/// The response; the call counts as in flight until it is on its way to the client, so that a client that does not read its
/// answers can't have the server pile them up.
fn payload(outcome: Result<Json, RpcError>, in_flight: Option<InFlight>) -> ResponsePayload<'static, Json> {
    let payload = match outcome {
        Ok(value) => ResponsePayload::success(value),
        Err(error) => ResponsePayload::error(ErrorObjectOwned::from(error)),
    };
    let (payload, sent) = payload.notify_on_completion();
    tokio::spawn(async move {
        // An error means that the connection is gone: the call is over either way.
        if sent.await.is_err() {
            tracing::trace!("an answer was not sent");
        }
        drop(in_flight);
    });
    payload
}

/// Everything up to the first await happens here.
fn answer(method: Method, params: Option<&str>, context: &Context, caller: &Caller) -> Result<Answer, RpcError> {
    let service = &context.service;
    match method {
        Method::SessionExecute => execute(params, service, caller),
        Method::Initialize => ready(&initialize(&params::parse(params)?, service.as_ref())),
        Method::LanguageList => {
            let NoParams {} = params::parse(params)?;
            let service = Arc::clone(service);
            // A client that goes away does not leave its question half answered for the next one.
            Ok(to_the_end(async move {
                json(&Languages { languages: service.probed_languages().await.into_iter().map(render::language).collect() })
            }))
        }
        Method::RuntimeList => {
            let NoParams {} = params::parse(params)?;
            ready(&Runtimes { runtimes: service.runtimes().into_iter().map(render::runtime).collect() })
        }
        Method::SessionCreate => create(params, service, caller),
        Method::SessionInput => input(params, service, caller),
        Method::SessionSignal => signal(params, service, caller),
        Method::SessionCancel => cancel(params, service, caller),
        Method::SessionClose => close(params, service, caller),
        Method::SessionGet => {
            let wire: SessionIdParams = params::parse(params)?;
            ready(&render::details(service.get(&caller.principal, &SessionId::from_client(&wire.session_id))?))
        }
        Method::SessionList => {
            let wire: SessionListParams = params::parse(params)?;
            let views = service.list(&caller.principal, wire.state.map(convert::session_state), wire.language.as_deref());
            ready(&SessionList { count: views.len(), sessions: views.iter().map(render::row).collect() })
        }
        Method::ExecutionRun => run(params, service, caller),
        Method::ExecutionStatus => {
            let wire: ExecutionStatusParams = params::parse(params)?;
            let id = ExecutionId::from_client(&wire.execution_id);
            ready(&render::execution_state(&id, service.status(&caller.principal, &id)))
        }
        Method::Discover => {
            let NoParams {} = params::parse(params)?;
            ready(context.document.as_ref())
        }
        Method::SessionStream | Method::SessionUnstream => Err(RpcError::internal(&"a subscription came as a call")),
    }
}

fn json(value: &impl Serialize) -> Result<Json, RpcError> {
    to_raw_value(value).map_err(|error| RpcError::internal(&error))
}

fn ready(value: &impl Serialize) -> Result<Answer, RpcError> {
    let value = json(value)?;
    Ok(Box::pin(async { Ok(value) }))
}

/// jsonrpsee drops a call when its connection closes; what must not stop half-way runs as a task of its own.
fn to_the_end(work: impl Future<Output = Result<Json, RpcError>> + Send + 'static) -> Answer {
    let task = tokio::spawn(work);
    Box::pin(async { task.await.unwrap_or_else(|error| Err(RpcError::internal(&error))) })
}

fn initialize(wire: &InitializeParams, service: &dyn SessionService) -> Initialized {
    let client = wire.client_info.as_ref().and_then(|info| info.get("name")).and_then(Value::as_str).unwrap_or_default();
    tracing::info!(client = client.get(..CLIENT_NAME_BYTES_MAX.min(client.len())), "initialize");
    let (max_timeout, memory_bytes, max_concurrency) = service.limits();
    let languages = service.languages().into_iter().filter(|row| row.installed).map(|row| row.name).collect();
    Initialized {
        protocol_version: "1.0",
        server_info: ServerInfo { name: "codebeaker", version: env!("CARGO_PKG_VERSION") },
        server_capabilities: ServerCapabilities {
            supports_streaming: true,
            supports_debugging: false,
            supports_port_forwarding: false,
            supports_file_watch: false,
            supported_languages: languages,
            commands: CommandKind::ALL.map(CommandKind::name).to_vec(),
            limits: ServerLimits { max_timeout, max_memory: memory_bytes >> 20, max_concurrency },
        },
    }
}

fn execute(params: Option<&str>, service: &Arc<dyn SessionService>, caller: &Caller) -> Result<Answer, RpcError> {
    let wire: SessionExecuteParams = params::parse(params)?;
    let client = convert::command(wire.command)?;
    let accepted = service.execute(&caller.principal, &SessionId::from_client(&wire.session_id), client.command)?;
    Ok(Box::pin(async move {
        match accepted.result.await {
            Ok(result) => json(&render::command_result(result, client.id)),
            Err(_) => Err(RpcError::busy("the server is shutting down", "connect again when it is back")),
        }
    }))
}

fn create(params: Option<&str>, service: &Arc<dyn SessionService>, caller: &Caller) -> Result<Answer, RpcError> {
    let wire: SessionCreateParams = params::parse(params)?;
    let request = convert::create_session(wire, caller.connection)?;
    let (service, caller) = (Arc::clone(service), caller.clone());
    Ok(to_the_end(async move {
        let view = service.create(&caller.principal, request).await?;
        if let Some(number) = caller.connection.filter(|_| caller.ended.load(Ordering::SeqCst)) {
            // The first notice came before there was a session to close.
            service.disconnected(number);
        }
        json(&render::created(view))
    }))
}

fn input(params: Option<&str>, service: &Arc<dyn SessionService>, caller: &Caller) -> Result<Answer, RpcError> {
    let wire: SessionInputParams = params::parse(params)?;
    let data = convert::input(wire.data, wire.encoding)?;
    let eof = wire.eof.unwrap_or(false);
    let (service, principal) = (Arc::clone(service), caller.principal.clone());
    let (session, execution) = (SessionId::from_client(&wire.session_id), ExecutionId::from_client(&wire.execution_id));
    Ok(Box::pin(async move {
        let target = Target { principal: &principal, session: &session, execution: &execution };
        json(&InputAccepted { accepted: service.input(target, data, eof).await? })
    }))
}

fn signal(params: Option<&str>, service: &Arc<dyn SessionService>, caller: &Caller) -> Result<Answer, RpcError> {
    let wire: SessionSignalParams = params::parse(params)?;
    let number = convert::signal(&wire.signal)?;
    let (service, principal) = (Arc::clone(service), caller.principal.clone());
    let (session, execution) = (SessionId::from_client(&wire.session_id), ExecutionId::from_client(&wire.execution_id));
    Ok(Box::pin(async move {
        let target = Target { principal: &principal, session: &session, execution: &execution };
        json(&SignalDelivered { delivered: service.signal(target, number).await? })
    }))
}

fn cancel(params: Option<&str>, service: &Arc<dyn SessionService>, caller: &Caller) -> Result<Answer, RpcError> {
    let wire: SessionCancelParams = params::parse(params)?;
    let (service, principal) = (Arc::clone(service), caller.principal.clone());
    let session = SessionId::from_client(&wire.session_id);
    let execution = wire.execution_id.as_deref().map(ExecutionId::from_client);
    Ok(Box::pin(async move { json(&Cancelled { cancelled: service.cancel(&principal, &session, execution.as_ref()).await? }) }))
}

fn run(params: Option<&str>, service: &Arc<dyn SessionService>, caller: &Caller) -> Result<Answer, RpcError> {
    let request = convert::run_once(params::parse(params)?)?;
    let (service, principal) = (Arc::clone(service), caller.principal.clone());
    Ok(to_the_end(async move {
        let id = service.run_once(&principal, request).await?;
        json(&ExecutionQueued { execution_id: id.to_string(), status: "queued" })
    }))
}

fn close(params: Option<&str>, service: &Arc<dyn SessionService>, caller: &Caller) -> Result<Answer, RpcError> {
    let wire: SessionIdParams = params::parse(params)?;
    let (service, principal) = (Arc::clone(service), caller.principal.clone());
    Ok(to_the_end(async move {
        service.close(&principal, &SessionId::from_client(&wire.session_id)).await;
        json(&SessionClosed { session_id: wire.session_id, closed: true })
    }))
}
