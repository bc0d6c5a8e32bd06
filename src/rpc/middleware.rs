//! What every request passes, alone, in a batch, or as a notification: rate limit, in-flight bounds, a request id, metrics.
//!
//! Invariants: jsonrpsee hands batches and notifications past `call`, so both are led back through it here; the calls of a batch
//! are begun in their order before any is awaited; nothing is awaited before a call is begun. Who calls was settled by `gate`.

use std::borrow::Cow;
use std::future::{Future, poll_fn, ready};
use std::num::NonZeroU32;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::Poll;
use std::time::Instant;

use futures_util::future::{BoxFuture, FutureExt, MaybeDone, maybe_done};
use governor::clock::{Clock, DefaultClock};
use governor::{DefaultKeyedRateLimiter, Quota, RateLimiter};
use jsonrpsee::BatchResponseBuilder;
use jsonrpsee::core::middleware::{Batch, BatchEntry, Notification, RpcServiceT};
use jsonrpsee::server::MethodResponse;
use jsonrpsee::types::{ErrorObjectOwned, Id, Request};
use serde_json::value::{RawValue, to_raw_value};
use tower::Layer;
use tracing::Instrument;

use super::api::Method;
use super::error::{INVALID_REQUEST, METHOD_NOT_FOUND, Retry, RpcError};
use super::handler::Context;
use super::params;
use super::stream;
use super::types::SessionUnstreamParams;
use crate::config::ServerConfig;
use crate::session::api::Principal;

/// Who calls, and from where; `gate` puts it beside every request.
#[derive(Debug, Clone)]
pub(super) struct Caller {
    /// The owner of what the call makes.
    pub principal: Principal,
    /// Number of the WebSocket connection; absent over HTTP.
    pub connection: Option<u64>,
    /// True when that connection is gone.
    pub ended: Arc<AtomicBool>,
}

/// How many bytes of requests one connection may have in flight, in requests of the greatest size.
const FLIGHT_REQUESTS_OF_FULL_SIZE: u64 = 4;

/// The bounds, shared by all connections.
pub(super) struct Bounds {
    calls_max: u64,
    request_bytes_max: u64,
    response_bytes_max: usize,
    limiter: Option<DefaultKeyedRateLimiter<String>>,
}

impl Bounds {
    pub fn new(config: &ServerConfig) -> Self {
        let limiter = NonZeroU32::new(config.rate_limit_per_s).map(|rate| {
            let burst = NonZeroU32::new(config.rate_limit_burst).unwrap_or(rate);
            RateLimiter::keyed(Quota::per_second(rate).allow_burst(burst))
        });
        Self {
            calls_max: config.requests_in_flight_max.into(),
            request_bytes_max: config.request_bytes_max.into(),
            response_bytes_max: config.response_bytes_max as usize,
            limiter,
        }
    }

    fn check_rate(&self, principal: &Principal) -> Result<(), RpcError> {
        let Some(limiter) = &self.limiter else { return Ok(()) };
        limiter.check_key(&principal.0).map_err(|not_until| {
            let wait = not_until.wait_time_from(DefaultClock::default().now());
            RpcError::rate_limited(u64::try_from(wait.as_millis()).unwrap_or(u64::MAX).max(1))
        })
    }
}

/// What one connection has in flight.
#[derive(Default)]
struct Flight {
    calls: AtomicU64,
    bytes: AtomicU64,
}

/// One call in flight; it counts until the last clone is dropped.
#[derive(Clone)]
pub(super) struct InFlight {
    _counted: Arc<Counted>,
}

struct Counted {
    flight: Arc<Flight>,
    bytes: u64,
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.flight.calls.fetch_sub(1, Ordering::AcqRel);
        self.flight.bytes.fetch_sub(self.bytes, Ordering::AcqRel);
    }
}

impl InFlight {
    fn enter(flight: &Arc<Flight>, bytes: u64, bounds: &Bounds) -> Result<Self, RpcError> {
        let calls = flight.calls.fetch_add(1, Ordering::AcqRel) + 1;
        let total = flight.bytes.fetch_add(bytes, Ordering::AcqRel) + bytes;
        let counted = Arc::new(Counted { flight: Arc::clone(flight), bytes });
        if calls > bounds.calls_max {
            let message = format!("more than {} requests are in flight on this connection", bounds.calls_max);
            return Err(RpcError::busy(message, "wait for answers before sending more"));
        }
        let bytes_max = bounds.request_bytes_max.saturating_mul(FLIGHT_REQUESTS_OF_FULL_SIZE);
        if total > bytes_max {
            let message = format!("the requests in flight on this connection hold more than {bytes_max} bytes");
            return Err(RpcError::busy(message, "wait for answers before sending more"));
        }
        Ok(Self { _counted: counted })
    }
}

/// Makes a `Guarded` for each connection.
#[derive(Clone)]
pub(super) struct GuardLayer {
    pub bounds: Arc<Bounds>,
    pub context: Arc<Context>,
}

impl<S> Layer<S> for GuardLayer {
    type Service = Guarded<S>;

    fn layer(&self, inner: S) -> Guarded<S> {
        Guarded { inner, shared: self.clone(), flight: Arc::default() }
    }
}

/// The middleware of one connection.
#[derive(Clone)]
pub(super) struct Guarded<S> {
    inner: S,
    shared: GuardLayer,
    flight: Arc<Flight>,
}

/// jsonrpsee's own service, or what stands before it.
pub(super) trait Service:
    RpcServiceT<MethodResponse = MethodResponse, BatchResponse = MethodResponse, NotificationResponse = MethodResponse>
    + Clone
    + Send
    + Sync
    + 'static
{
}

impl<S> Service for S where
    S: RpcServiceT<MethodResponse = MethodResponse, BatchResponse = MethodResponse, NotificationResponse = MethodResponse>
        + Clone
        + Send
        + Sync
        + 'static
{
}

impl<S: Service> Guarded<S> {
    /// Checks and counts the request, and gives streams the shape that jsonrpsee reads.
    fn admit(&self, request: &mut Request<'_>) -> Result<(), RpcError> {
        let caller = request.extensions.get::<Caller>().ok_or_else(RpcError::unauthorized)?.clone();
        self.shared.bounds.check_rate(&caller.principal)?;
        let bytes = request.params.as_ref().map_or(0, |params| params.get().len() as u64);
        let in_flight = InFlight::enter(&self.flight, bytes, &self.shared.bounds)?;
        request.extensions.insert(in_flight);
        match Method::from_name(&request.method) {
            Some(Method::SessionStream | Method::SessionUnstream) if caller.connection.is_none() => {
                let message = format!("`{}` needs a WebSocket", request.method);
                let hint = "connect to this address with ws://, or use session.execute";
                Err(RpcError::new(METHOD_NOT_FOUND, "websocket_required", message, hint, Retry::Never))
            }
            Some(Method::SessionUnstream) => {
                request.params = Some(Cow::Owned(unstream_params(request.params.as_deref())?));
                Ok(())
            }
            Some(_) | None => Ok(()),
        }
    }

    /// One call from its beginning to its answer.
    fn begin<'a>(&self, mut request: Request<'a>) -> impl Future<Output = MethodResponse> + Send + 'a + use<'a, S> {
        let method = Method::from_name(&request.method).map_or("unknown", Method::name);
        let admitted = self.admit(&mut request);
        let inner = self.inner.clone();
        let span = call_span(method, &request);
        async move {
            let begun = Instant::now();
            let response = match admitted {
                Ok(()) => inner.call(request).await,
                Err(error) => MethodResponse::error(request.id, ErrorObjectOwned::from(error)),
            };
            tell(method, &response, begun);
            response
        }
        .instrument(span)
    }

    /// A notification is a call whose answer nobody gets.
    fn run_silently<'a>(&self, notification: Notification<'a>) -> BoxFuture<'a, ()> {
        let mut request = Request::owned(notification.method.into_owned(), None, Id::Null);
        request.params = notification.params;
        request.extensions = notification.extensions;
        if Method::from_name(&request.method) == Some(Method::SessionStream) {
            // Nobody could know the subscription: the command runs, its events go nowhere.
            if let Err(error) = self.admit(&mut request).and_then(|()| {
                let params = request.params.as_ref().map(|params| params.get());
                stream::start(params, &self.shared.context, &request.extensions).map(drop)
            }) {
                tracing::debug!(error = error.message(), "a notification was refused");
            }
            return ready(()).boxed();
        }
        let call = self.begin(request);
        async move { drop(call.await) }.boxed()
    }

    fn batch_entry<'a>(&self, entry: BatchEntry<'a>) -> BoxFuture<'a, Option<MethodResponse>> {
        match entry {
            BatchEntry::Call(request) if Method::from_name(&request.method) == Some(Method::SessionStream) => {
                let hint = "send session.stream as a message of its own";
                let error = RpcError::new(
                    INVALID_REQUEST,
                    "batch_not_possible",
                    "a batch can't hold session.stream",
                    hint,
                    Retry::Never,
                );
                ready(Some(MethodResponse::error(request.id, ErrorObjectOwned::from(error)))).boxed()
            }
            BatchEntry::Call(request) => self.begin(request).map(Some).boxed(),
            BatchEntry::Notification(notification) => self.run_silently(notification).map(|()| None).boxed(),
        }
    }
}

impl<S: Service> RpcServiceT for Guarded<S> {
    type MethodResponse = MethodResponse;
    type NotificationResponse = MethodResponse;
    type BatchResponse = MethodResponse;

    fn call<'a>(&self, request: Request<'a>) -> impl Future<Output = MethodResponse> + Send + 'a {
        self.begin(request)
    }

    fn batch<'a>(&self, batch: Batch<'a>) -> impl Future<Output = MethodResponse> + Send + 'a {
        let this = self.clone();
        async move {
            let was_empty = batch.is_empty();
            let entries = batch.into_iter().map(|entry| match entry {
                Ok(entry) => this.batch_entry(entry),
                Err(error) => {
                    let (error, id) = error.into_parts();
                    ready(Some(MethodResponse::error(id, error))).boxed()
                }
            });
            let answers = all_in_order(entries.collect()).await;
            batch_response(answers.into_iter().flatten(), was_empty, this.shared.bounds.response_bytes_max)
        }
    }

    fn notification<'a>(&self, notification: Notification<'a>) -> impl Future<Output = MethodResponse> + Send + 'a {
        let run = self.run_silently(notification);
        async move {
            run.await;
            MethodResponse::notification()
        }
    }
}

/// One answer for the whole batch: an array, nothing when all were notifications, -32600 when it was empty.
fn batch_response(answers: impl Iterator<Item = MethodResponse>, was_empty: bool, bytes_max: usize) -> MethodResponse {
    let mut response = BatchResponseBuilder::new_with_limit(bytes_max);
    for answer in answers {
        if let Err(too_large) = response.append(answer) {
            return too_large;
        }
    }
    if response.is_empty() && !was_empty {
        MethodResponse::notification()
    } else {
        MethodResponse::from_batch(response.finish())
    }
}

/// Polls all, the first time in their order; waits for all.
async fn all_in_order<T>(futures: Vec<BoxFuture<'_, T>>) -> Vec<T> {
    let mut futures: Vec<MaybeDone<BoxFuture<'_, T>>> = futures.into_iter().map(maybe_done).collect();
    poll_fn(|cx| {
        let mut all = Poll::Ready(());
        for future in &mut futures {
            if Pin::new(future).poll(cx).is_pending() {
                all = Poll::Pending;
            }
        }
        all
    })
    .await;
    futures.iter_mut().filter_map(|future| Pin::new(future).take_output()).collect()
}

fn call_span(method: &'static str, request: &Request<'_>) -> tracing::Span {
    let request_id = format!("req_{:016x}", rand::random::<u64>());
    let principal = request.extensions.get::<Caller>().map_or("", |caller| caller.principal.0.as_str());
    tracing::info_span!("call", request_id, method, principal)
}

fn tell(method: &'static str, response: &MethodResponse, begun: Instant) {
    let outcome = if response.is_success() { "ok" } else { "error" };
    metrics::counter!("codebeaker_rpc_calls_total", "method" => method, "outcome" => outcome).increment(1);
    metrics::histogram!("codebeaker_rpc_call_seconds", "method" => method).record(begun.elapsed().as_secs_f64());
    tracing::debug!(outcome, code = response.as_error_code(), "answered");
}

/// By name as in all methods; by position as jsonrpsee's own clients send it.
fn unstream_params(params: Option<&RawValue>) -> Result<Box<RawValue>, RpcError> {
    let text = params.map(RawValue::get);
    let by_position = text.and_then(|text| serde_json::from_str::<[String; 1]>(text).ok());
    let id = match by_position {
        Some([id]) => id,
        None => params::parse::<SessionUnstreamParams>(text)?.subscription,
    };
    to_raw_value(&[id]).map_err(|error| RpcError::internal(&error))
}
