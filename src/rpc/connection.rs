//! One connection: HTTP/1.1 with upgrades; the gate, the plain routes, and jsonrpsee's service.
//!
//! Invariant: nothing but the health, metrics and document routes answers without a principal. Each connection has a number,
//! under which its sessions may be tied to it, and which is told to the session manager when it ends.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::routing::{any, get};
use http::header::{CONTENT_TYPE, SEC_WEBSOCKET_PROTOCOL, WWW_AUTHENTICATE};
use http::{HeaderValue, Request, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use jsonrpsee::Methods;
use jsonrpsee::core::middleware::RpcServiceBuilder;
use jsonrpsee::server::ws::is_upgrade_request;
use jsonrpsee::server::{
    BatchRequestConfig, PingConfig, RandomStringIdProvider, RegisterMethodError, ServerConfig as RpcConfig, StopHandle,
    TowerServiceBuilder,
};
use metrics_exporter_prometheus::PrometheusHandle;
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::sync::{Notify, OwnedSemaphorePermit};
use tower::{Service, ServiceExt};

use super::api::SessionService;
use super::error::RpcError;
use super::gate::{Gate, Refusal, SUBPROTOCOL, offers_subprotocol};
use super::handler::{self, Context};
use super::middleware::{Bounds, Caller, GuardLayer};
use crate::config::ServerConfig;

/// How long a client may take for the head of a request.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a connection past the bound may take to read that it is.
const REFUSED_TIMEOUT: Duration = Duration::from_secs(5);
/// Messages that wait for one slow connection; small, so that events of a stream wait in the session's bounded buffer instead.
const OUTGOING_MESSAGES_MAX: u32 = 16;

/// Whether a connection is served, or only told that there are too many.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Served,
    Refused,
}

type Layered = tower::layer::util::Stack<GuardLayer, tower::layer::util::Identity>;

/// What all connections share.
pub(super) struct Services {
    gate: Gate,
    service: Arc<dyn SessionService>,
    methods: Methods,
    rpc: TowerServiceBuilder<Layered, tower::layer::util::Identity>,
    stop: StopHandle,
    metrics: Option<PrometheusHandle>,
    document: Arc<Value>,
    stopping: AtomicBool,
    upgraded: Arc<Upgraded>,
    next_number: AtomicU64,
}

/// How many WebSockets are open.
#[derive(Default)]
struct Upgraded {
    count: AtomicUsize,
    ended: Notify,
}

/// A connection as its requests see it; the permit is held until the last of them is over.
#[derive(Clone)]
struct Connection {
    number: u64,
    _permit: Arc<OwnedSemaphorePermit>,
}

impl Services {
    pub fn new(
        config: &ServerConfig,
        service: Arc<dyn SessionService>,
        gate: Gate,
        metrics: Option<PrometheusHandle>,
        stop: StopHandle,
    ) -> Result<Self, RegisterMethodError> {
        let context = Arc::new(Context::new(Arc::clone(&service)));
        let document = Arc::clone(&context.document);
        let layer = GuardLayer { bounds: Arc::new(Bounds::new(config)), context: Arc::clone(&context) };
        let rpc = jsonrpsee::server::Server::builder()
            .set_config(rpc_config(config))
            .set_rpc_middleware(RpcServiceBuilder::new().layer(layer))
            .to_service_builder();
        Ok(Self {
            gate,
            service,
            methods: handler::module(context)?.into(),
            rpc,
            stop,
            metrics,
            document,
            stopping: AtomicBool::new(false),
            upgraded: Arc::default(),
            next_number: AtomicU64::new(1),
        })
    }

    /// From now on the server is not ready, and takes no new client.
    pub fn set_stopping(&self) {
        self.stopping.store(true, Ordering::Release);
    }

    fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }

    /// Returns when no WebSocket is open.
    pub async fn upgraded_ended(&self) {
        loop {
            let ended = self.upgraded.ended.notified();
            if self.upgraded.count.load(Ordering::Acquire) == 0 {
                return;
            }
            // Other workers wait for the same notice, which wakes one: look again soon in any case.
            drop(tokio::time::timeout(Duration::from_millis(50), ended).await);
        }
    }
}

fn rpc_config(config: &ServerConfig) -> RpcConfig {
    let interval = Duration::from_secs(config.ping_interval_s.max(1));
    // jsonrpsee looks once per interval; the half keeps an answer that is a moment late from counting.
    let silent = interval.mul_f64(f64::from(config.ping_misses_max.max(1)) - 0.5);
    let ping = PingConfig::new().ping_interval(interval).inactive_limit(silent).max_failures(1);
    RpcConfig::builder()
        .max_request_body_size(config.request_bytes_max)
        .max_response_body_size(config.response_bytes_max)
        .max_connections(config.connections_max)
        .max_subscriptions_per_connection(config.requests_in_flight_max)
        .set_batch_request_config(BatchRequestConfig::Limit(config.batch_max))
        .set_message_buffer_capacity(OUTGOING_MESSAGES_MAX)
        .set_id_provider(RandomStringIdProvider::new(24))
        .enable_ws_ping(ping)
        .build()
}

/// Serves one connection to its end.
pub(super) async fn serve(
    stream: TcpStream,
    services: Arc<Services>,
    kind: Kind,
    permit: OwnedSemaphorePermit,
    stop: StopHandle,
) {
    let number = services.next_number.fetch_add(1, Ordering::Relaxed);
    let connection = Connection { number, _permit: Arc::new(permit) };
    metrics::counter!("codebeaker_connections_total").increment(1);
    let router = match kind {
        Kind::Served => router(services),
        Kind::Refused => Router::new().fallback(too_many),
    };
    let service = tower::service_fn(move |mut request: Request<hyper::body::Incoming>| {
        request.extensions_mut().insert(connection.clone());
        router.clone().oneshot(request.map(Body::new))
    });
    let http = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(service))
        .with_upgrades();
    let mut http = std::pin::pin!(http);
    let limit = async {
        match kind {
            Kind::Served => stop.shutdown().await,
            Kind::Refused => tokio::time::sleep(REFUSED_TIMEOUT).await,
        }
    };
    let ended = tokio::select! {
        ended = &mut http => ended,
        () = limit => {
            http.as_mut().graceful_shutdown();
            http.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection ended badly");
    }
}

fn router(services: Arc<Services>) -> Router {
    Router::new()
        .route("/health", get(health))
        .route("/health/live", get(live))
        .route("/health/ready", get(health_ready))
        .route("/metrics", get(show_metrics))
        .route("/openrpc.json", get(openrpc))
        .route("/", any(rpc))
        .route("/ws/jsonrpc", any(rpc))
        .layer(axum::middleware::from_fn_with_state(Arc::clone(&services), check_source))
        .with_state(services)
}

async fn check_source(State(services): State<Arc<Services>>, request: Request<Body>, next: axum::middleware::Next) -> Response {
    match services.gate.check_source(request.headers()) {
        Ok(()) => next.run(request).await,
        Err(refusal) => refused(&refusal),
    }
}

/// JSON-RPC: the token, then jsonrpsee.
async fn rpc(State(services): State<Arc<Services>>, mut request: Request<Body>) -> Response {
    let principal = match services.gate.principal(request.headers()) {
        Ok(principal) => principal,
        Err(refusal) => {
            metrics::counter!("codebeaker_unauthorized_total").increment(1);
            return refused(&refusal);
        }
    };
    if services.is_stopping() {
        let error = RpcError::busy("the server is shutting down", "connect again when it is back");
        return refused(&Refusal { status: StatusCode::SERVICE_UNAVAILABLE, error });
    }
    let Some(connection) = request.extensions().get::<Connection>().cloned() else {
        return refused(&Refusal {
            status: StatusCode::INTERNAL_SERVER_ERROR,
            error: RpcError::internal(&"a request without its connection"),
        });
    };
    let upgrade = is_upgrade_request(&request);
    let subprotocol = offers_subprotocol(request.headers());
    let ended = Arc::new(AtomicBool::new(false));
    let caller = Caller { principal, connection: upgrade.then_some(connection.number), ended: Arc::clone(&ended) };
    keep_only(request.extensions_mut(), connection.clone(), caller);
    let builder = services.rpc.clone().connection_id(connection.number as u32);
    let mut service = builder.build(services.methods.clone(), services.stop.clone());
    if upgrade {
        let closed = service.on_session_closed();
        tokio::spawn(watch(closed, ended, Arc::clone(&services), connection));
    }
    match service.call(request).await {
        Ok(response) => select_subprotocol(response.map(Body::new), subprotocol),
        Err(error) => refused(&Refusal { status: StatusCode::INTERNAL_SERVER_ERROR, error: RpcError::internal(&error) }),
    }
}

/// Leaves what calls and the upgrade read: jsonrpsee copies all of them for each call.
fn keep_only(extensions: &mut http::Extensions, connection: Connection, caller: Caller) {
    let mut all = std::mem::take(extensions);
    if let Some(upgrade) = all.remove::<hyper::upgrade::OnUpgrade>() {
        extensions.insert(upgrade);
    }
    extensions.insert(connection);
    extensions.insert(caller);
}

/// Waits for the end of a WebSocket and tells the session manager.
async fn watch(closed: impl Future<Output = ()>, ended: Arc<AtomicBool>, services: Arc<Services>, connection: Connection) {
    services.upgraded.count.fetch_add(1, Ordering::AcqRel);
    metrics::gauge!("codebeaker_websockets").increment(1.0);
    closed.await;
    metrics::gauge!("codebeaker_websockets").decrement(1.0);
    // In this order: what is made after the notice sees the flag (`handler::create`).
    ended.store(true, Ordering::SeqCst);
    services.service.disconnected(connection.number);
    services.upgraded.count.fetch_sub(1, Ordering::AcqRel);
    services.upgraded.ended.notify_waiters();
}

/// A browser ends the connection when none of the subprotocols it offered is selected; the token never is.
fn select_subprotocol(mut response: Response, offered: bool) -> Response {
    if offered && response.status() == StatusCode::SWITCHING_PROTOCOLS {
        response.headers_mut().insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(SUBPROTOCOL));
    }
    response
}

/// A JSON-RPC error without an id, under an HTTP status.
fn refused(refusal: &Refusal) -> Response {
    let body = json!({"jsonrpc": "2.0", "error": refusal.error.to_value(), "id": null});
    let mut response = json_response(refusal.status, &body);
    if refusal.status == StatusCode::UNAUTHORIZED {
        response.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    response
}

async fn too_many() -> Result<Response, Infallible> {
    let error = RpcError::busy("the server has as many connections as it takes", "close one, or try again in a moment");
    Ok(refused(&Refusal { status: StatusCode::SERVICE_UNAVAILABLE, error }))
}

fn json_response(status: StatusCode, body: &Value) -> Response {
    (status, [(CONTENT_TYPE, "application/json")], body.to_string()).into_response()
}

async fn live() -> Response {
    json_response(StatusCode::OK, &json!({"status": "ok"}))
}

async fn health_ready(State(services): State<Arc<Services>>) -> Response {
    if services.is_stopping() {
        json_response(StatusCode::SERVICE_UNAVAILABLE, &json!({"status": "shutting_down"}))
    } else {
        json_response(StatusCode::OK, &json!({"status": "ok"}))
    }
}

/// Every check by name; 503 when one fails.
async fn health(State(services): State<Arc<Services>>) -> Response {
    let accepting = if services.is_stopping() { "shutting_down" } else { "ok" };
    let a_runtime = services.service.runtimes().iter().any(|row| row.reason.is_none());
    let runtimes = if a_runtime { "ok" } else { "none_available" };
    let healthy = accepting == "ok" && a_runtime;
    let status = if healthy { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let word = if healthy { "ok" } else { "failing" };
    let body = json!({
        "status": word,
        "version": env!("CARGO_PKG_VERSION"),
        "checks": {"live": "ok", "ready": accepting, "runtimes": runtimes},
    });
    json_response(status, &body)
}

async fn show_metrics(State(services): State<Arc<Services>>) -> Response {
    match &services.metrics {
        Some(handle) => ([(CONTENT_TYPE, "text/plain; version=0.0.4")], handle.render()).into_response(),
        None => StatusCode::NOT_FOUND.into_response(),
    }
}

async fn openrpc(State(services): State<Arc<Services>>) -> Response {
    json_response(StatusCode::OK, &services.document)
}
