//! The way out of a sandbox: a forward proxy in the server, on a listener that lives in the sandbox's network namespace.
//!
//! A sandbox has no route anywhere. What it has, where profile, operator and request allow it, is one port on its loopback
//! ([`PROXY`]); the server accepts there and dials from the host's namespace, and only what the operator lists. Invariants: a way
//! out is open as long as its [`Way`] is held and no longer; what is not listed, and what a listed name leads to and must not, is
//! not dialled; every bound has a number; what goes wrong closes. Read `proxy` for requests, `dial` for destinations.

mod dial;
mod meter;
mod proxy;

#[cfg(test)]
mod testbed;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, oneshot};
use tokio::task::JoinHandle;

use crate::allowlist::{Allowlist, Destination, IndexUrl, Pattern};
use crate::id::EnvironmentId;
use crate::language::PackageSyntax;
use crate::plan::messages::PROXY;
use crate::sandbox::enforcement::WallState;
use crate::sys::network;
use crate::sys::socket::{self, Wait};

use meter::Budget;

/// The audit log's target, for `log.filter`.
const TARGET: &str = "codebeaker::audit";

/// Lines that one way out may write into the audit log; what is beyond is counted only.
const AUDIT_LINES_MAX: u64 = 200;

/// Of what a program wrote for a destination, in one of those lines.
const AUDIT_CHARS_MAX: usize = 300;

/// Destinations that an install was refused and is told of.
const DENIED_TOLD_MAX: usize = 4;

/// Names that are looked up at once, for all sandboxes: each blocks a thread of the server.
const LOOKUPS_MAX: usize = 32;

/// And for one way out.
const LOOKUPS_PER_WAY_MAX: usize = 4;

/// What a session was granted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum NetworkGrant {
    /// Nothing.
    #[default]
    None,
    /// Install steps reach the operator's index.
    Installs,
    /// Programs reach what the operator lists, and install steps the index besides.
    Programs,
}

/// Whose word a session's network takes, under one profile.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GrantedBy {
    /// The profile refuses.
    Nobody,
    /// The request's.
    Request,
}

/// What the operator configured.
#[derive(Debug, Default)]
pub struct EgressRules {
    /// What programs reach.
    pub programs: Allowlist,
    /// What install steps reach besides their index.
    pub package_hosts: Allowlist,
    /// The index of each way to name packages.
    pub indexes: BTreeMap<PackageSyntax, IndexUrl>,
    /// Certificates (PEM) that installers trust.
    pub certificates: Option<Vec<u8>>,
    /// What names lead to instead of what the domain name system says.
    pub hosts: BTreeMap<String, IpAddr>,
    /// How much.
    pub bounds: EgressBounds,
}

/// How much may go through a proxy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EgressBounds {
    /// Connections of all sandboxes at once.
    pub connections_max: usize,
    /// Connections of one way out at once.
    pub connections_per_way_max: usize,
    /// Time without a byte after which a connection ends.
    pub idle_timeout: Duration,
    /// Time in which a request's headers must have come.
    pub header_timeout: Duration,
    /// Bytes of one way out, both directions together.
    pub bytes_max: u64,
}

impl Default for EgressBounds {
    fn default() -> Self {
        Self {
            connections_max: 512,
            connections_per_way_max: 32,
            idle_timeout: Duration::from_secs(60),
            header_timeout: Duration::from_secs(10),
            bytes_max: 4 << 30,
        }
    }
}

/// What all ways out of a server share.
pub struct Egress {
    rules: EgressRules,
    /// Where the server itself listens: never reached.
    api: OnceLock<SocketAddr>,
    connections: Arc<Semaphore>,
    lookups: Arc<Semaphore>,
}

/// Whose way out it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum User {
    /// The programs of a session.
    Programs,
    /// One install step.
    Install,
}

impl User {
    fn name(self) -> &'static str {
        match self {
            Self::Programs => "programs",
            Self::Install => "install",
        }
    }
}

impl Egress {
    /// By the operator's rules.
    pub fn new(rules: EgressRules) -> Arc<Self> {
        let connections = Arc::new(Semaphore::new(rules.bounds.connections_max));
        let lookups = Arc::new(Semaphore::new(LOOKUPS_MAX));
        Arc::new(Self { rules, api: OnceLock::new(), connections, lookups })
    }

    /// Says where the server listens, before it does.
    pub fn set_api(&self, address: SocketAddr) {
        // A server listens once.
        self.api.set(address).ok();
    }

    /// True when there is anything that programs could be granted.
    pub fn serves_programs(&self) -> bool {
        !self.rules.programs.patterns().is_empty()
    }

    /// The index for packages of that kind.
    pub fn index(&self, syntax: PackageSyntax) -> Option<&IndexUrl> {
        self.rules.indexes.get(&syntax)
    }

    /// Certificates that installers trust.
    pub fn certificates(&self) -> Option<&[u8]> {
        self.rules.certificates.as_deref()
    }

    /// What programs of a session reach.
    fn of_programs(&self) -> Allowlist {
        self.rules.programs.clone()
    }

    /// What an install step of that kind reaches; none where there is no index for it.
    fn of_install(&self, syntax: PackageSyntax, grant: NetworkGrant) -> Option<Allowlist> {
        let index = Pattern::of(self.index(syntax)?.destination());
        let list = self.rules.package_hosts.and([index]);
        match grant {
            NetworkGrant::None => None,
            NetworkGrant::Installs => Some(list),
            NetworkGrant::Programs => Some(list.and(self.rules.programs.patterns().iter().cloned())),
        }
    }

    /// Opens a way out for the programs of a sandbox; its listener comes through the other end of the returned socket.
    pub fn open_for_programs(self: &Arc<Self>, environment: &EnvironmentId) -> io::Result<(Way, OwnedFd)> {
        self.open(User::Programs, self.of_programs(), environment)
    }

    /// The same for one install step; none where there is nothing for it to reach.
    pub fn open_for_install(
        self: &Arc<Self>,
        syntax: PackageSyntax,
        grant: NetworkGrant,
        environment: &EnvironmentId,
    ) -> io::Result<Option<(Way, OwnedFd)>> {
        self.of_install(syntax, grant).map(|list| self.open(User::Install, list, environment)).transpose()
    }

    fn open(self: &Arc<Self>, user: User, list: Allowlist, environment: &EnvironmentId) -> io::Result<(Way, OwnedFd)> {
        let (ours, theirs) = socket::pair().map_err(|error| io::Error::from_raw_os_error(error.raw()))?;
        rustix::io::ioctl_fionbio(&ours, true)?;
        #[expect(
            deprecated,
            reason = "sound for an OwnedFd, which stays open and the same; its successor is an unsafe function"
        )]
        let door = AsyncFd::new(ours)?;
        let (opened, opens) = oneshot::channel();
        let realm = Arc::new(Realm {
            egress: Arc::clone(self),
            list,
            user,
            environment: environment.clone(),
            slots: Arc::new(Semaphore::new(self.rules.bounds.connections_per_way_max)),
            lookups: Arc::new(Semaphore::new(LOOKUPS_PER_WAY_MAX)),
            budget: Budget::of(self.rules.bounds.bytes_max),
            ledger: Ledger::default(),
        });
        let serving = Arc::clone(&realm);
        let task = tokio::spawn(async move {
            match listener(&door).await {
                Ok(listener) => {
                    // Nobody may wait for it.
                    opened.send(()).ok();
                    proxy::serve(listener, serving).await;
                }
                Err(error) => tracing::debug!(%error, "a sandbox handed out no listener"),
            }
        });
        Ok((Way { task, realm, opens: Some(opens) }, theirs))
    }

    /// The row of `enforcement` on the network, with what the session was granted.
    pub fn tell(&self, walls: &mut [WallState], grant: NetworkGrant) {
        let added = match grant {
            NetworkGrant::None => return,
            NetworkGrant::Installs => format!("install steps reach, through a proxy of their own: {}", self.every_index()),
            NetworkGrant::Programs => {
                let indexes = if self.rules.indexes.is_empty() {
                    String::new()
                } else {
                    format!("; install steps {}", self.every_index())
                };
                format!("programs reach, through a proxy: {}{indexes}", self.rules.programs)
            }
        };
        for row in walls.iter_mut().filter(|row| row.name == "network") {
            row.detail = format!("{}; {added}", row.detail);
        }
    }

    /// Every index, and what goes with them.
    fn every_index(&self) -> Allowlist {
        let indexes = self.rules.indexes.values().map(|index| Pattern::of(index.destination()));
        Allowlist::default().and(indexes).and(self.rules.package_hosts.patterns().iter().cloned())
    }

    /// What a session could be granted, for `codebeaker plan`: who does it, and what.
    pub fn describe(&self, programs: GrantedBy, installs: GrantedBy) -> Vec<(&'static str, String)> {
        let mut rows = Vec::new();
        if programs == GrantedBy::Request && self.serves_programs() {
            rows.push(("init", format!("with permissions.allowNet: listen on {PROXY}, hand the listener to the server")));
            rows.push(("server", format!("with permissions.allowNet: a proxy on it that dials {}", self.rules.programs)));
        }
        if installs == GrantedBy::Request && !self.rules.indexes.is_empty() {
            rows.push((
                "installer",
                format!(
                    "with permissions.allowPackageIndex: unshare(CLONE_NEWNET), loopback up, listen on {PROXY}, hand the listener to the \
                     server"
                ),
            ));
            let reach = self.every_index();
            rows.push((
                "server",
                format!("with permissions.allowPackageIndex: a proxy on it, for the step alone, that dials {reach}"),
            ));
        }
        rows
    }
}

/// Waits for the listener of a sandbox. It is not trusted to be one.
async fn listener(door: &AsyncFd<OwnedFd>) -> io::Result<TcpListener> {
    let to_io = |error: crate::sys::CallError| io::Error::from_raw_os_error(error.raw());
    let mut word = [0; 8];
    let packet =
        door.async_io(Interest::READABLE, |door| socket::receive(door.as_fd(), &mut word, Wait::No).map_err(to_io)).await?;
    let descriptor = packet.descriptors.into_iter().next().ok_or(io::ErrorKind::UnexpectedEof)?;
    TcpListener::from_std(network::checked_listener(descriptor, PROXY).map_err(to_io)?)
}

/// A way out, open while this is held.
pub struct Way {
    task: JoinHandle<()>,
    realm: Arc<Realm>,
    opens: Option<oneshot::Receiver<()>>,
}

impl Way {
    /// Waits until the sandbox has handed out its listener; false when it never will.
    pub async fn is_open(&mut self) -> bool {
        match self.opens.take() {
            Some(opens) => opens.await.is_ok(),
            None => true,
        }
    }

    /// Closes it; returns when nothing goes through any more.
    pub async fn close(mut self) {
        self.task.abort();
        // That it was aborted is what was wanted.
        (&mut self.task).await.ok();
    }

    /// Destinations that were refused, the first few.
    pub fn denied(&self) -> Vec<String> {
        self.realm.ledger.denied.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Way {
    fn drop(&mut self) {
        // Everything of it is within this task: listener, connections, tunnels.
        self.task.abort();
        let Realm { environment, user, ledger, budget, .. } = self.realm.as_ref();
        let Ledger { allowed, refused, .. } = ledger;
        let (allowed, refused, bytes) = (allowed.load(Ordering::Relaxed), refused.load(Ordering::Relaxed), budget.used());
        tracing::info!(target: TARGET, %environment, user = user.name(), allowed, refused, bytes, "a way out is closed");
    }
}

/// Variables that lead programs to the proxy; hosts without it are those of the sandbox itself.
pub fn variables(user: User) -> BTreeMap<String, String> {
    let proxy = format!("http://{PROXY}");
    let around = match user {
        User::Programs => "localhost,127.0.0.1,::1",
        // What an index is called must not lead past the proxy.
        User::Install => "",
    };
    let named = |name: &str, value: &str| [(name.to_owned(), value.to_owned()), (name.to_lowercase(), value.to_owned())];
    ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"]
        .into_iter()
        .flat_map(|name| named(name, &proxy))
        .chain(named("NO_PROXY", around))
        .collect()
}

/// What one way out leads to, and what went through it.
struct Realm {
    egress: Arc<Egress>,
    list: Allowlist,
    user: User,
    environment: EnvironmentId,
    slots: Arc<Semaphore>,
    lookups: Arc<Semaphore>,
    budget: Budget,
    ledger: Ledger,
}

/// What happened on one way out.
#[derive(Default)]
struct Ledger {
    allowed: AtomicU64,
    refused: AtomicU64,
    denied: Mutex<Vec<String>>,
}

impl Realm {
    fn bounds(&self) -> &EgressBounds {
        &self.egress.rules.bounds
    }

    /// A line and a count for a destination that was dialled.
    fn note_allowed(&self, destination: &Destination, address: SocketAddr) {
        self.count("allowed");
        if self.ledger.allowed.fetch_add(1, Ordering::Relaxed) < AUDIT_LINES_MAX {
            let (environment, user) = (&self.environment, self.user.name());
            tracing::info!(target: TARGET, %environment, user, %destination, %address, "a sandbox connected outwards");
        }
    }

    /// A line and a count for what was refused; `destination` is whatever the program wrote, when it was no destination.
    fn note_refused(&self, destination: &str, why: &dyn std::fmt::Display) {
        self.count("refused");
        if self.ledger.refused.fetch_add(1, Ordering::Relaxed) < AUDIT_LINES_MAX {
            let (environment, user) = (&self.environment, self.user.name());
            let destination: String = destination.chars().take(AUDIT_CHARS_MAX).collect();
            tracing::warn!(target: TARGET, %environment, user, destination, %why, "a sandbox was refused a connection outwards");
        }
    }

    fn note_denied(&self, destination: &Destination) {
        let mut denied = self.ledger.denied.lock().unwrap_or_else(PoisonError::into_inner);
        let destination = destination.to_string();
        if denied.len() < DENIED_TOLD_MAX && !denied.contains(&destination) {
            denied.push(destination);
        }
    }

    fn count(&self, outcome: &'static str) {
        metrics::counter!("codebeaker_egress_connections_total", "user" => self.user.name(), "outcome" => outcome).increment(1);
    }
}
