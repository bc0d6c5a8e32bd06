//! HTTP on a sandbox's listener: `CONNECT` becomes a tunnel, a request in absolute form is sent on as a request of our own.
//!
//! Invariants: each request is judged by itself, also on a connection that had one allowed; a request that is sent on is written
//! anew, so what it says of its own framing, host and connection is not what the other side reads; every connection, tunnel and
//! transfer ends with the task that serves the way out.

use std::convert::Infallible;
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::uri::{PathAndQuery, Uri};
use http::{Method, Request, Response, StatusCode, Version};
use http_body_util::{Either, Full};
use hyper::body::{Body, Bytes, Frame, Incoming, SizeHint};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::OwnedSemaphorePermit;
use tokio::task::AbortHandle;

use super::Realm;
use super::dial::{Refusal, reach};
use super::meter::{Metered, Pulse};
use crate::allowlist::Destination;

/// Of a request's line and headers together, and of a response's.
const HEADER_BYTES_MAX: usize = 32 << 10;

/// Header lines of one message.
const HEADERS_MAX: usize = 100;

/// Pause after `accept` failed, for want of descriptors most likely.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What concerns one connection only and is never handed on (RFC 9110, 7.6.1), and what is ours to say.
const NOT_HANDED_ON: [HeaderName; 10] = [
    header::CONNECTION,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    header::CONTENT_LENGTH,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
];

/// Accepts until it is dropped; past the bounds connections wait. All of them are part of this one future, so that they end the
/// moment that it is dropped.
pub(super) async fn serve(listener: TcpListener, realm: Arc<Realm>) {
    let mut connections = FuturesUnordered::new();
    loop {
        // It outlives the turns of the loop below it: one that waits for a place has its connection already.
        let mut next = pin!(accept(&listener, &realm));
        let accepted = loop {
            tokio::select! {
                Some(()) = connections.next() => {}
                accepted = &mut next => break accepted,
            }
        };
        match accepted {
            Some((stream, places)) => connections.push(connection(stream, &realm, places)),
            None => return,
        }
    }
}

/// Places that a connection takes, of its way out and of the server.
type Places = (OwnedSemaphorePermit, OwnedSemaphorePermit);

/// The next connection, when there is a place for it; none when there never will be. Of the server's places a way out takes none
/// before somebody connects, so that those who are silent leave them to the others.
async fn accept(listener: &TcpListener, realm: &Realm) -> Option<(TcpStream, Places)> {
    let own = Arc::clone(&realm.slots).acquire_owned().await.ok()?;
    let stream = loop {
        match listener.accept().await {
            Ok((stream, _)) => break stream,
            Err(error) => {
                tracing::debug!(%error, "a sandbox's listener");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    };
    let place = Arc::clone(&realm.egress.connections).acquire_owned().await.ok()?;
    Some((stream, (own, place)))
}

/// A tunnel that was granted, waiting for the connection to become one.
type Granted = Mutex<Option<(OnUpgrade, TcpStream)>>;

async fn connection(stream: TcpStream, realm: &Realm, places: Places) {
    let pulse = Pulse::new();
    let io = TokioIo::new(Metered { stream, budget: realm.budget.clone(), pulse: pulse.clone() });
    let granted = Granted::default();
    let served = async {
        let service = service_fn(|request| answer(request, realm, &granted));
        let outcome = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(realm.bounds().header_timeout)
            .max_buf_size(HEADER_BYTES_MAX)
            .max_headers(HEADERS_MAX)
            .serve_connection(io, service)
            .with_upgrades()
            .await;
        if let Err(error) = outcome {
            realm.note_refused("", &error);
        }
        let tunnel = granted.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some((upgrade, mut upstream)) = tunnel
            && let Ok(upgraded) = upgrade.await
        {
            // Either side may end it at any time.
            copy_bidirectional(&mut TokioIo::new(upgraded), &mut upstream).await.ok();
        }
    };
    tokio::select! {
        () = served => {}
        () = pulse.idle(realm.bounds().idle_timeout) => {}
    }
    drop(places);
}

type Answer = Response<Either<Full<Bytes>, Passing>>;

async fn answer(mut request: Request<Incoming>, realm: &Realm, granted: &Granted) -> Result<Answer, Infallible> {
    let destination = match destination(request.method(), request.uri()) {
        Ok(destination) => destination,
        Err(problem) => {
            realm.note_refused(&request.uri().to_string(), &problem);
            return Ok(refused(StatusCode::BAD_REQUEST, problem));
        }
    };
    let stream = match reach(realm, &destination).await {
        Ok(stream) => stream,
        Err(refusal) => return Ok(refused(refusal.status(), &format!("{destination} is not reached: {refusal}"))),
    };
    if request.method() == Method::CONNECT {
        let upgrade = hyper::upgrade::on(&mut request);
        *granted.lock().unwrap_or_else(PoisonError::into_inner) = Some((upgrade, stream));
        return Ok(Response::new(Either::Left(Full::default())));
    }
    Ok(send_on(request, &destination, stream).await.unwrap_or_else(|problem| {
        realm.note_refused(&destination.to_string(), &problem);
        refused(StatusCode::BAD_GATEWAY, &format!("{destination}: {}", Refusal::Unreachable))
    }))
}

/// Where a request wants to go.
fn destination(method: &Method, uri: &Uri) -> Result<Destination, &'static str> {
    let authority = uri.authority().ok_or("this is a proxy: a request names host and path, or is CONNECT host:port")?;
    if authority.as_str().contains('@') {
        return Err("no credentials belong before a host");
    }
    let port = match (method, uri.scheme_str()) {
        (&Method::CONNECT, None) => None,
        (&Method::CONNECT, Some(_)) => return Err("CONNECT takes host:port and nothing else"),
        (_, Some("http")) => Some(80),
        (_, Some(_) | None) => return Err("https is reached with CONNECT; no other scheme is served"),
    };
    Destination::parse(authority.as_str(), port)
}

fn refused(status: StatusCode, why: &str) -> Answer {
    let mut response = Response::new(Either::Left(Full::from(format!("{why}\n"))));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}

/// A request of our own on a connection of its own, and the response as it comes.
async fn send_on(request: Request<Incoming>, destination: &Destination, stream: TcpStream) -> Result<Answer, hyper::Error> {
    let (mut sender, connection) = hyper::client::conn::http1::Builder::new()
        .max_buf_size(HEADER_BYTES_MAX)
        .max_headers(HEADERS_MAX)
        .handshake(TokioIo::new(stream))
        .await?;
    let driver = Driver(tokio::spawn(async move { drop(connection.await) }).abort_handle());
    let is_head = request.method() == Method::HEAD;
    let mut response = sender.send_request(anew(request, destination)).await?;
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        return Ok(refused(StatusCode::BAD_GATEWAY, "the other side speaks another protocol"));
    }
    // A body has its length from its framing; an answer to HEAD has none, and says what it would be.
    let length = response.headers().get(header::CONTENT_LENGTH).filter(|_| is_head).cloned();
    strip(response.headers_mut());
    response.headers_mut().extend(length.map(|length| (header::CONTENT_LENGTH, length)));
    *response.version_mut() = Version::HTTP_11;
    Ok(response.map(|body| Either::Right(Passing { body, _driver: driver })))
}

fn anew(request: Request<Incoming>, destination: &Destination) -> Request<Incoming> {
    let (mut parts, body) = request.into_parts();
    strip(&mut parts.headers);
    let path = parts.uri.path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/"));
    parts.uri = Uri::from(path);
    parts.version = Version::HTTP_11;
    let host = if destination.port == 80 { destination.host.to_string() } else { destination.to_string() };
    if let Ok(host) = HeaderValue::try_from(host) {
        parts.headers.insert(header::HOST, host);
    }
    parts.headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    Request::from_parts(parts, body)
}

/// Takes out what is not handed on, and what `Connection` names besides.
fn strip(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| HeaderName::try_from(name.trim()).ok())
        .collect();
    for name in NOT_HANDED_ON.iter().chain(&named) {
        headers.remove(name);
    }
}

/// The task behind a connection to the outside; it ends with whoever holds this.
struct Driver(AbortHandle);

impl Drop for Driver {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// A response's body, with the connection that it comes from.
struct Passing {
    body: Incoming,
    _driver: Driver,
}

impl Body for Passing {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
