//! From a destination to a connection: is it listed, where does its name lead, may that be dialled.
//!
//! Invariant: what is dialled is the very address that was judged, so a name that leads elsewhere a moment later leads nowhere.

use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpStream;

use super::Realm;
use crate::allowlist::{Destination, Host};
use crate::sys::network;

/// Time that a name may take to be resolved, and an address to answer.
const DIAL_TIME: Duration = Duration::from_secs(10);

/// Addresses of one name that are tried.
const ADDRESSES_MAX: usize = 4;

/// Why a destination was not reached. Display is what the program is told: no address of the host or of its networks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Refusal {
    #[error("it is not on the operator's list")]
    NotListed,
    #[error("its name leads to {0}, which only the operator's list can open by naming that address")]
    Address(&'static str),
    #[error("it is the server's own address")]
    Server,
    #[error("its name could not be resolved")]
    Unresolved,
    #[error("it does not answer")]
    Unreachable,
    #[error("the session has used up what may go through its proxy")]
    UsedUp,
    #[error("the host's own addresses can't be told")]
    HostUnknown,
}

impl Refusal {
    /// The status of the answer.
    pub(super) fn status(self) -> http::StatusCode {
        match self {
            Self::NotListed | Self::Address(_) | Self::Server | Self::UsedUp => http::StatusCode::FORBIDDEN,
            Self::Unresolved | Self::Unreachable => http::StatusCode::BAD_GATEWAY,
            Self::HostUnknown => http::StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    /// True when it is the operator's list that says no.
    pub(super) fn is_denial(self) -> bool {
        match self {
            Self::NotListed | Self::Address(_) | Self::Server => true,
            Self::Unresolved | Self::Unreachable | Self::UsedUp | Self::HostUnknown => false,
        }
    }
}

/// A connection to that destination, if it may be had; every outcome is audited.
pub(super) async fn reach(realm: &Realm, destination: &Destination) -> Result<TcpStream, Refusal> {
    let dialled = dial(realm, destination).await;
    match &dialled {
        Ok((_, address)) => realm.note_allowed(destination, *address),
        Err(refusal) => {
            realm.note_refused(&destination.to_string(), refusal);
            if refusal.is_denial() {
                realm.note_denied(destination);
            }
        }
    }
    dialled.map(|(stream, _)| stream)
}

async fn dial(realm: &Realm, destination: &Destination) -> Result<(TcpStream, SocketAddr), Refusal> {
    if !realm.list.names(destination) {
        return Err(Refusal::NotListed);
    }
    if realm.budget.is_used_up() {
        return Err(Refusal::UsedUp);
    }
    let addresses = resolve(realm, destination).await?;
    let own = network::own_addresses().map_err(|_| Refusal::HostUnknown)?;
    let judged = addresses.into_iter().map(|address| judge(realm, address, &own).map(|()| address));
    let (mut permitted, mut refusal) = (Vec::new(), Refusal::Unresolved);
    for outcome in judged {
        match outcome {
            Ok(address) => permitted.push(address),
            Err(why) => refusal = why,
        }
    }
    if permitted.is_empty() {
        return Err(refusal);
    }
    for address in permitted.into_iter().take(ADDRESSES_MAX) {
        if let Ok(Ok(stream)) = tokio::time::timeout(DIAL_TIME, TcpStream::connect(address)).await {
            stream.set_nodelay(true).map_err(|_| Refusal::Unreachable)?;
            return Ok((stream, address));
        }
    }
    Err(Refusal::Unreachable)
}

async fn resolve(realm: &Realm, destination: &Destination) -> Result<Vec<SocketAddr>, Refusal> {
    let Destination { host, port } = destination;
    let name = match host {
        Host::Address(address) => return Ok(vec![SocketAddr::new(*address, *port)]),
        Host::Name(name) => name,
    };
    if let Some(address) = realm.egress.rules.hosts.get(name) {
        return Ok(vec![SocketAddr::new(*address, *port)]);
    }
    match tokio::time::timeout(DIAL_TIME, look_up(realm, name.clone(), *port)).await {
        // IPv4 within IPv6 is dialled as what it is.
        Ok(Some(addresses)) => {
            Ok(addresses.into_iter().map(|address| SocketAddr::new(address.ip().to_canonical(), *port)).collect())
        }
        Ok(None) | Err(_) => Err(Refusal::Unresolved),
    }
}

/// The resolver blocks a thread, for as long as a name server likes; its place is free again when it has come back, whoever
/// still waits.
async fn look_up(realm: &Realm, name: String, port: u16) -> Option<Vec<SocketAddr>> {
    let own = Arc::clone(&realm.lookups).acquire_owned().await.ok()?;
    let place = Arc::clone(&realm.egress.lookups).acquire_owned().await.ok()?;
    let looked = tokio::task::spawn_blocking(move || {
        let found = (name.as_str(), port).to_socket_addrs();
        drop((own, place));
        found.map(Vec::from_iter)
    });
    looked.await.ok()?.ok()
}

/// The server's own port is out of reach on every address of this host, whatever the list says.
fn judge(realm: &Realm, address: SocketAddr, own: &[IpAddr]) -> Result<(), Refusal> {
    let ip = address.ip();
    if let Some(api) = realm.egress.api.get()
        && address.port() == api.port()
        && (ip == api.ip().to_canonical() || ip.is_loopback() || ip.is_unspecified() || own.contains(&ip))
    {
        return Err(Refusal::Server);
    }
    realm.list.admits(address, own).map_err(Refusal::Address)
}
