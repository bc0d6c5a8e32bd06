//! The port: accepts connections, hands each to a worker, ends in good order.
//!
//! Invariants: a connection lives on one current-thread runtime, where tasks run in the order they were spawned, so pipelined
//! calls are begun in the order received; every connection is counted until its last byte, upgraded or not; when `run` returns
//! every session is closed. What one connection serves is in `connection`.

use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use jsonrpsee::server::{ServerHandle, StopHandle, stop_channel};
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch};
use tokio::task::JoinSet;

use super::api::SessionService;
use super::connection::{self, Kind, Services};
use super::gate::Gate;
use crate::config::ServerConfig;
use crate::sys::socket;

pub use super::gate::Authentication;

/// Connections past the bound that are told so at once; more than these are closed without a word.
const REFUSED_CONNECTIONS_MAX: usize = 64;
/// Time between two foldings of histograms.
const METRICS_UPKEEP: Duration = Duration::from_secs(5);
/// How long connections get to send what they have after the last session is closed.
const CLOSE_GRACE: Duration = Duration::from_secs(3);
/// Pause after `accept` failed, for want of descriptors most likely.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What a server is made of.
pub struct ServerParts {
    /// `[server]` of the configuration.
    pub config: ServerConfig,
    /// The session manager.
    pub service: Arc<dyn SessionService>,
    /// How clients prove who they are.
    pub authentication: Authentication,
    /// What `/metrics` shows; absent: 404.
    pub metrics: Option<PrometheusHandle>,
    /// Becomes true, or loses its sender, when the server shall end.
    pub shutdown: watch::Receiver<bool>,
    /// Questions whether the server's loops still turn; absent: nobody asks.
    pub pulse: Option<mpsc::Receiver<Pulse>>,
}

/// Answered once the loop that accepts and the loop of every worker have come round; dropped when one never will.
pub type Pulse = oneshot::Sender<()>;

/// Why there is no server.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// Without tokens everyone who reaches the port is in.
    #[error("--no-auth is for a loopback address only, and {0} is none")]
    NoAuthBeyondLoopback(SocketAddr),
    /// The address is taken or not ours.
    #[error("can't listen on {address}")]
    Bind {
        /// The address asked for.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// A thread or a runtime could not be made.
    #[error("can't start a worker")]
    Worker(#[source] io::Error),
    /// Two methods of one name.
    #[error("the table of methods is wrong")]
    Methods(#[source] jsonrpsee::server::RegisterMethodError),
}

/// A server that holds its port and does not accept yet.
pub struct Server {
    parts: ServerParts,
    listener: std::net::TcpListener,
    address: SocketAddr,
}

/// Binds, prints `listening on ws://HOST:PORT` on standard output, serves until `shutdown`. Blocks; needs no runtime around it.
pub fn serve(parts: ServerParts) -> Result<(), ServeError> {
    let server = Server::bind(parts)?;
    let address = server.local_addr();
    server.run(move || println!("listening on ws://{address}"))
}

impl Server {
    /// Takes the port. Port 0 picks one.
    pub fn bind(parts: ServerParts) -> Result<Self, ServeError> {
        let address = parts.config.listen;
        if matches!(parts.authentication, Authentication::Off) && !address.ip().is_loopback() {
            return Err(ServeError::NoAuthBeyondLoopback(address));
        }
        let failed = |source| ServeError::Bind { address, source };
        let listener = std::net::TcpListener::bind(address).map_err(failed)?;
        listener.set_nonblocking(true).map_err(failed)?;
        // A peer that reads nothing holds up the very task that would notice that it answers no ping.
        let silent = Duration::from_secs(parts.config.ping_interval_s.max(1)) * parts.config.ping_misses_max.max(1);
        socket::set_stalled_limit(listener.as_fd(), silent).map_err(|error| failed(error.errno.into()))?;
        let address = listener.local_addr().map_err(failed)?;
        Ok(Self { parts, listener, address })
    }

    /// The address with the port that was picked.
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// Serves until `shutdown`; calls `accepting` when connections are accepted.
    pub fn run(self, accepting: impl FnOnce()) -> Result<(), ServeError> {
        let Self { parts, listener, address } = self;
        let ServerParts { config, service, authentication, metrics, shutdown, pulse } = parts;
        let (stop, stopper) = stop_channel();
        let gate = Gate::new(authentication, &config, address);
        let histograms = metrics.clone();
        let services =
            Services::new(&config, Arc::clone(&service), gate, metrics, stop.clone()).map_err(ServeError::Methods)?;
        let services = Arc::new(services);
        let workers = start_workers(&config, &services, &stop)?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(ServeError::Worker)?;
        let grace = Duration::from_secs(config.shutdown_grace_s);
        runtime.block_on(async {
            let listener = TcpListener::from_std(listener).map_err(|source| ServeError::Bind { address, source })?;
            accepting();
            let acceptor = Acceptor::new(listener, &config, &workers);
            let closing = async {
                ended(shutdown).await;
                tracing::info!("shutting down");
                services.set_stopping();
                service.shutdown(grace).await;
            };
            // Health checks are answered, with 503, until the last session is closed.
            tokio::select! {
                () = acceptor.run() => {}
                () = upkeep(histograms) => {}
                () = answer_pulses(pulse, &workers) => {}
                () = closing => {}
            }
            Ok(())
        })?;
        stop_workers(workers, &stopper);
        Ok(())
    }
}

/// Folds what histograms were told into their buckets: between two visits to `/metrics` it would pile up. Never ends.
async fn upkeep(metrics: Option<PrometheusHandle>) {
    let mut interval = tokio::time::interval(METRICS_UPKEEP);
    loop {
        interval.tick().await;
        if let Some(metrics) = &metrics {
            metrics.run_upkeep();
        }
    }
}

/// Answers each question when every worker has answered it. Never ends.
async fn answer_pulses(pulse: Option<mpsc::Receiver<Pulse>>, workers: &[Worker]) {
    if let Some(mut questions) = pulse {
        while let Some(answer) = questions.recv().await {
            if all_turn(workers).await && answer.send(()).is_err() {
                tracing::debug!("whoever asked for a pulse did not wait for it");
            }
        }
    }
    std::future::pending::<()>().await;
}

/// True when every worker has come round; waits for those that are late.
async fn all_turn(workers: &[Worker]) -> bool {
    let asked = workers.iter().map(|worker| {
        let (answer, answered) = oneshot::channel();
        worker.errands.send(Errand::Answer(answer)).ok().map(|()| answered)
    });
    // All are asked before the first is waited for.
    for answered in asked.collect::<Vec<_>>() {
        let Some(answered) = answered else { return false };
        if answered.await.is_err() {
            return false;
        }
    }
    true
}

/// Returns when the server shall end.
async fn ended(mut shutdown: watch::Receiver<bool>) {
    // An error means that the sender is gone, and nobody could tell us later.
    drop(shutdown.wait_for(|stop| *stop).await);
}

/// A connection on its way to a worker.
struct Arrival {
    stream: std::net::TcpStream,
    kind: Kind,
    permit: OwnedSemaphorePermit,
}

/// What a worker is told.
enum Errand {
    Serve(Arrival),
    Answer(Pulse),
}

struct Worker {
    errands: mpsc::UnboundedSender<Errand>,
    thread: JoinHandle<()>,
}

fn start_workers(config: &ServerConfig, services: &Arc<Services>, stop: &StopHandle) -> Result<Vec<Worker>, ServeError> {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let count = if config.workers == 0 { cores } else { config.workers as usize };
    (0..count).map(|number| start_worker(number, Arc::clone(services), stop.clone())).collect()
}

fn start_worker(number: usize, services: Arc<Services>, stop: StopHandle) -> Result<Worker, ServeError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(ServeError::Worker)?;
    // The connection bound bounds this queue too, and of pulses there is one at a time.
    let (errands, receiver) = mpsc::unbounded_channel();
    let thread = std::thread::Builder::new()
        .name(format!("rpc-{number}"))
        .spawn(move || runtime.block_on(work(receiver, services, stop)))
        .map_err(ServeError::Worker)?;
    Ok(Worker { errands, thread })
}

/// Serves connections until the acceptor is gone, then gives the open ones a moment to end.
async fn work(mut errands: mpsc::UnboundedReceiver<Errand>, services: Arc<Services>, stop: StopHandle) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            errand = errands.recv() => match errand {
                Some(Errand::Serve(arrival)) => begin(arrival, &services, &stop, &mut connections),
                Some(Errand::Answer(answer)) => drop(answer.send(())),
                None => break,
            },
            Some(_) = connections.join_next() => {}
        }
    }
    let all_ended = async {
        while connections.join_next().await.is_some() {}
        services.upgraded_ended().await;
    };
    if tokio::time::timeout(CLOSE_GRACE, all_ended).await.is_err() {
        tracing::warn!("connections that did not end were cut");
    }
}

fn begin(arrival: Arrival, services: &Arc<Services>, stop: &StopHandle, connections: &mut JoinSet<()>) {
    let Arrival { stream, kind, permit } = arrival;
    match TcpStream::from_std(stream) {
        Ok(stream) => {
            connections.spawn(connection::serve(stream, Arc::clone(services), kind, permit, stop.clone()));
        }
        Err(error) => tracing::warn!(%error, "a connection could not be taken over"),
    }
}

fn stop_workers(workers: Vec<Worker>, stopper: &ServerHandle) {
    if stopper.stop().is_err() {
        tracing::debug!("every connection had ended before");
    }
    let threads: Vec<JoinHandle<()>> = workers.into_iter().map(|worker| worker.thread).collect();
    for thread in threads {
        if thread.join().is_err() {
            tracing::error!("a worker panicked");
        }
    }
}

/// Takes connections off the port, one worker after the other.
struct Acceptor<'a> {
    listener: TcpListener,
    workers: &'a [Worker],
    open: Arc<Semaphore>,
    refused: Arc<Semaphore>,
}

impl<'a> Acceptor<'a> {
    fn new(listener: TcpListener, config: &ServerConfig, workers: &'a [Worker]) -> Self {
        let open = Arc::new(Semaphore::new(config.connections_max as usize));
        Self { listener, workers, open, refused: Arc::new(Semaphore::new(REFUSED_CONNECTIONS_MAX)) }
    }

    /// Never ends by itself.
    async fn run(self) {
        for worker in self.workers.iter().cycle() {
            let stream = self.accept().await;
            if let Some(arrival) = self.admit(stream)
                && worker.errands.send(Errand::Serve(arrival)).is_err()
            {
                tracing::error!("a worker is gone");
            }
        }
    }

    async fn accept(&self) -> TcpStream {
        loop {
            match self.listener.accept().await {
                Ok((stream, _)) => return stream,
                Err(error) => {
                    tracing::warn!(%error, "accepting a connection failed");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    /// Counts the connection; one past the bound is only told so.
    fn admit(&self, stream: TcpStream) -> Option<Arrival> {
        let (kind, permit) = match Arc::clone(&self.open).try_acquire_owned() {
            Ok(permit) => (Kind::Served, permit),
            Err(_) => (Kind::Refused, Arc::clone(&self.refused).try_acquire_owned().ok()?),
        };
        let prepared = stream.set_nodelay(true).and_then(|()| stream.into_std());
        match prepared {
            Ok(stream) => Some(Arrival { stream, kind, permit }),
            Err(error) => {
                tracing::debug!(%error, "a connection ended before it was served");
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A worker that does with its errands what `life` does.
    fn worker(life: impl FnOnce(mpsc::UnboundedReceiver<Errand>) + Send + 'static) -> Worker {
        let (errands, receiver) = mpsc::unbounded_channel();
        Worker { errands, thread: std::thread::spawn(move || life(receiver)) }
    }

    fn turning(mut errands: mpsc::UnboundedReceiver<Errand>) {
        while let Some(errand) = errands.blocking_recv() {
            if let Errand::Answer(answer) = errand {
                answer.send(()).expect("somebody waits");
            }
        }
    }

    #[tokio::test]
    async fn a_pulse_is_answered_when_all_workers_turn_and_not_while_one_hangs_or_is_gone() {
        assert!(all_turn(&[worker(turning), worker(turning)]).await);
        assert!(!all_turn(&[worker(turning), worker(drop)]).await, "one is gone");
        let (free, held) = std::sync::mpsc::channel::<()>();
        let hanging = [worker(turning), worker(move |errands| held.recv().map_or_else(|_| turning(errands), |()| ()))];
        let patience = Duration::from_millis(50);
        assert!(tokio::time::timeout(patience, all_turn(&hanging)).await.is_err(), "one hangs");
        drop(free);
    }
}
