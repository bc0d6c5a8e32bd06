//! The engine as it stands now: every call to it is bounded, and somebody looks after it as long as the server lives.
//!
//! Invariants: a call ends within its bound, whatever the engine does; an engine that did not answer is not asked by sessions until
//! it has answered the keeper again; only containers with our label whose server is gone, or ours that no session holds, are ever
//! removed. All calls run on a thread of their own, so that it does not matter who asks. Read `removal` for what must go.

use std::collections::BTreeSet;
use std::future::Future;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bollard::Docker;
use bollard::errors::Error as ApiError;
use bollard::models::{SystemInfo, SystemVersion};
use tokio::runtime::{Handle, Runtime};
use tokio::sync::{Notify, Semaphore};

use crate::sandbox::contained::Users;
use crate::sandbox::error::SandboxError;
use crate::sandbox::state::ServerId;

use super::find::Place;

/// What an engine may take to say how it is.
pub const ASK_TIME: Duration = Duration::from_secs(3);
/// To make or start a container: it unpacks nothing, but a busy disk is slow.
pub const MAKE_TIME: Duration = Duration::from_secs(20);
/// To remove one.
pub const REMOVE_TIME: Duration = Duration::from_secs(10);
/// To take an image.
pub const IMPORT_TIME: Duration = Duration::from_secs(600);

/// Between two looks at an engine that is there, and at one that is not.
const LOOK_PAUSE: Duration = Duration::from_secs(10);
const MISSING_PAUSE: Duration = Duration::from_secs(5);

/// Who made it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Product {
    /// Docker, or what says nothing else.
    Docker,
    /// Podman's API of the same form.
    Podman,
}

/// What an engine says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// Who made it.
    pub product: Product,
    /// Its version.
    pub version: String,
    /// Whose ids the programs of a container have.
    pub users: Users,
    /// Limits that it can't set here.
    pub lacks: Vec<&'static str>,
}

impl Facts {
    fn of(version: &SystemVersion, info: &SystemInfo) -> Self {
        let parts = version.components.iter().flatten();
        let podman = parts.into_iter().any(|part| part.name.to_ascii_lowercase().contains("podman"));
        let options = info.security_options.iter().flatten();
        let mapped = options.into_iter().any(|option| option.contains("name=userns") || option.contains("name=rootless"));
        let lacks = [("memory", info.memory_limit), ("pids", info.pids_limit), ("cpu", info.cpu_shares)];
        Self {
            product: if podman { Product::Podman } else { Product::Docker },
            version: version.version.clone().unwrap_or_else(|| "unknown".into()),
            users: if mapped { Users::Mapped } else { Users::Host },
            lacks: lacks.into_iter().filter(|(_, has)| *has == Some(false)).map(|(name, _)| name).collect(),
        }
    }
}

/// Why the engine did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// It is not there, or has not answered.
    #[error("the engine can't be used: {0}")]
    Gone(String),
    /// It said no.
    #[error("the engine refused to {what}: {message}")]
    Refused {
        /// The call, as a verb.
        what: &'static str,
        /// Of HTTP.
        status: u16,
        /// Its words.
        message: String,
    },
}

impl From<EngineError> for SandboxError {
    fn from(error: EngineError) -> Self {
        let cause = error.to_string();
        match error {
            EngineError::Gone(_) => Self::RuntimeUnusable { runtime: "Docker".into(), cause },
            EngineError::Refused { .. } => {
                Self::RuntimeUnusable { runtime: "Docker".into(), cause: format!("{cause}; the engine's own log says more") }
            }
        }
    }
}

struct Up {
    client: Docker,
    facts: Facts,
}

/// Containers that are made at once; whoever has more waits.
pub(super) const MAKING_MAX: u32 = 256;

/// The engine.
pub struct Engine {
    place: Place,
    pub(super) server: ServerId,
    /// Taken at the end.
    thread: Mutex<Option<Runtime>>,
    handle: Handle,
    state: Mutex<Result<Up, String>>,
    look: Notify,
    /// Names of the containers that sessions hold.
    pub(super) held: Mutex<BTreeSet<String>>,
    /// Names of containers that could not be removed yet.
    pub(super) doomed: Mutex<BTreeSet<String>>,
    /// A permit for each container that is being made; closed when none is to be made any more.
    pub(super) making: Arc<Semaphore>,
}

impl Engine {
    /// Looks once, and goes on looking on a thread of its own.
    pub fn start(place: Place, server: ServerId) -> io::Result<Arc<Self>> {
        let thread =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).thread_name("docker").enable_all().build()?;
        let engine = Arc::new(Self {
            place,
            server,
            handle: thread.handle().clone(),
            thread: Mutex::new(Some(thread)),
            state: Mutex::new(Err("it has not been asked yet".into())),
            look: Notify::new(),
            held: Mutex::default(),
            doomed: Mutex::default(),
            making: Arc::new(Semaphore::new(MAKING_MAX as usize)),
        });
        let (asked, answered) = std::sync::mpsc::channel();
        let keeper = Arc::downgrade(&engine);
        engine.handle.spawn(async move {
            let mut asked = Some(asked);
            while let Some(engine) = keeper.upgrade() {
                engine.look_once().await;
                // Whoever started it may have gone on: then nobody waits for the first look.
                asked.take().map(|asked| asked.send(()).ok());
                engine.clear().await;
                let pause = if engine.facts().is_ok() { LOOK_PAUSE } else { MISSING_PAUSE };
                tokio::time::timeout(pause, engine.look.notified()).await.ok();
            }
        });
        // The rows of `runtime.list` are right from the start, unless the engine hangs.
        answered.recv_timeout(ASK_TIME * 2).ok();
        Ok(engine)
    }

    /// What it is, or why it can't be used.
    pub fn facts(&self) -> Result<Facts, String> {
        self.state().as_ref().map(|up| up.facts.clone()).map_err(Clone::clone)
    }

    fn state(&self) -> std::sync::MutexGuard<'_, Result<Up, String>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs something on the engine's thread that outlives whoever asked.
    pub fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        self.handle.spawn(work);
    }

    async fn look_once(&self) {
        let next = match tokio::time::timeout(ASK_TIME, self.ask()).await {
            Ok(next) => next,
            Err(_) => Err(silent(ASK_TIME)),
        };
        let was_up = self.state().is_ok();
        match (&next, was_up) {
            (Ok(up), false) => tracing::info!(version = %up.facts.version, product = ?up.facts.product, "an engine is there"),
            (Err(cause), true) => tracing::warn!(%cause, "the engine is gone"),
            (Ok(_), true) | (Err(_), false) => {}
        }
        *self.state() = next;
    }

    async fn ask(&self) -> Result<Up, String> {
        let socket = self.place.socket()?;
        let mend = |error: &ApiError| {
            format!(
                "the engine does not answer on its socket: {}; start it, and let the server's user read and write it",
                words(error)
            )
        };
        let client = Docker::connect_with_unix(&socket.to_string_lossy(), IMPORT_TIME.as_secs(), bollard::API_DEFAULT_VERSION)
            .map_err(|error| mend(&error))?;
        let client = client.negotiate_version().await.map_err(|error| mend(&error))?;
        let version = client.version().await.map_err(|error| mend(&error))?;
        let info = client.info().await.map_err(|error| mend(&error))?;
        Ok(Up { facts: Facts::of(&version, &info), client })
    }

    /// One call, on the engine's thread; `what` is a verb with its object.
    pub async fn call<T, F>(
        self: &Arc<Self>,
        what: &'static str,
        bound: Duration,
        work: impl FnOnce(Docker) -> F,
    ) -> Result<T, EngineError>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, ApiError>> + Send + 'static,
    {
        let client = self.state().as_ref().map(|up| up.client.clone()).map_err(|cause| EngineError::Gone(cause.clone()))?;
        let work = tokio::time::timeout(bound, work(client));
        let answer = self.handle.spawn(work).await.map_err(|_| going_down())?;
        match answer {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(ApiError::DockerResponseServerError { status_code: status, message })) => {
                Err(EngineError::Refused { what, status, message })
            }
            // Within a stream the engine has no status left to say it with.
            Ok(Err(ApiError::DockerStreamError { error: message })) => Err(EngineError::Refused { what, status: 500, message }),
            Ok(Err(error)) => Err(self.lost(format!("it was asked to {what}: {}", words(&error)))),
            Err(_) => Err(self.lost(format!("it was asked to {what}: {}", silent(bound)))),
        }
    }

    /// Nobody else waits for an engine that has just failed.
    fn lost(&self, cause: String) -> EngineError {
        tracing::warn!(%cause, "the engine is gone");
        *self.state() = Err(cause.clone());
        self.look.notify_one();
        EngineError::Gone(cause)
    }

    /// Waits for work on the engine's thread, from wherever.
    pub fn wait_for(&self, bound: Duration, work: impl Future<Output = ()> + Send + 'static) {
        let (done, waiting) = std::sync::mpsc::channel();
        self.handle.spawn(async move {
            work.await;
            // Nobody waits any more when the bound is over.
            done.send(()).ok();
        });
        waiting.recv_timeout(bound).ok();
    }

    /// The keeper ends, and with it everything on the engine's thread.
    pub fn end(&self) {
        if let Some(thread) = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take() {
            thread.shutdown_background();
        }
    }
}

/// Nothing is asked of the engine any more.
pub(super) fn going_down() -> EngineError {
    EngineError::Gone("the server is going down".into())
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.end();
    }
}

fn silent(bound: Duration) -> String {
    format!("it did not answer within {} s", bound.as_secs())
}

/// An error with its causes: the first alone says no more than that something failed.
fn words(error: &(dyn std::error::Error + 'static)) -> String {
    let mut words: Vec<String> = Vec::new();
    for cause in std::iter::successors(Some(error), |error| error.source()) {
        let text = cause.to_string();
        if words.last().is_none_or(|last| !last.contains(&text)) {
            words.push(text);
        }
    }
    words.join(": ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use bollard::models::SystemVersionComponents;

    #[test]
    fn an_engine_says_what_it_is_and_what_it_lacks() {
        let docker = SystemVersion { version: Some("20.10".into()), ..SystemVersion::default() };
        let facts =
            Facts::of(&docker, &SystemInfo { pids_limit: Some(false), memory_limit: Some(true), ..SystemInfo::default() });
        let expected = Facts { product: Product::Docker, version: "20.10".into(), users: Users::Host, lacks: vec!["pids"] };
        assert_eq!(facts, expected);
        let part = SystemVersionComponents { name: "Podman Engine".into(), ..SystemVersionComponents::default() };
        let podman = SystemVersion { components: Some(vec![part]), ..SystemVersion::default() };
        let rootless = SystemInfo { security_options: Some(vec!["name=rootless".into()]), ..SystemInfo::default() };
        let facts = Facts::of(&podman, &rootless);
        assert_eq!((facts.product, facts.users), (Product::Podman, Users::Mapped));
    }

    #[test]
    fn an_engine_that_takes_calls_and_never_answers_is_unusable_within_its_bound() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("sock");
        let _listener = std::os::unix::net::UnixListener::bind(&path).expect("a socket");
        let begin = std::time::Instant::now();
        let server = ServerId::current().expect("this process");
        let engine = Engine::start(Place::Socket(path), server).expect("a thread");
        assert!(engine.facts().expect_err("it is silent").contains("did not answer"));
        assert!(begin.elapsed() < ASK_TIME * 4, "{:?}", begin.elapsed());
    }
}
