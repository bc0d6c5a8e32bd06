//! What every HTTP request and upgrade passes first: Host, Origin, token.
//!
//! Invariant: Host and Origin are checked in every mode, so that neither a rebound name nor a page in a browser reaches the
//! server; a principal stands beside a request only when its token was good. The decisions are pure.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use http::header::{AUTHORIZATION, HOST, ORIGIN, SEC_WEBSOCKET_PROTOCOL};
use http::{HeaderMap, StatusCode};

use super::auth::Tokens;
use super::error::{Retry, RpcError};
use crate::config::ServerConfig;
use crate::session::api::Principal;

/// The subprotocol that the server speaks.
pub(super) const SUBPROTOCOL: &str = "codebeaker";
/// Before the token, as a second subprotocol.
const BEARER_SUBPROTOCOL: &str = "bearer.";

/// How clients prove who they are.
#[derive(Debug, Clone)]
pub enum Authentication {
    /// By a token.
    Tokens(Arc<Tokens>),
    /// Not at all: all clients are the principal `anonymous`. On a loopback address only.
    Off,
}

/// The checks, parsed once.
pub(super) struct Gate {
    authentication: Authentication,
    listen: IpAddr,
    hosts: Vec<String>,
    origins: Vec<String>,
}

/// Why a request was turned away.
#[derive(Debug, PartialEq)]
pub(super) struct Refusal {
    pub status: StatusCode,
    pub error: RpcError,
}

impl Gate {
    pub fn new(authentication: Authentication, config: &ServerConfig, bound: SocketAddr) -> Self {
        Self {
            authentication,
            listen: bound.ip(),
            hosts: config.allowed_hosts.iter().map(|host| host.to_ascii_lowercase()).collect(),
            origins: config.allowed_origins.clone(),
        }
    }

    /// Host and Origin: for every path.
    pub fn check_source(&self, headers: &HeaderMap) -> Result<(), Refusal> {
        let mut hosts = headers.get_all(HOST).iter();
        let host = hosts.next().and_then(|value| value.to_str().ok()).filter(|_| hosts.next().is_none());
        if !host.is_some_and(|host| self.host_is_allowed(host)) {
            return Err(forbidden("this Host is not allowed", "add its name to server.allowed_hosts"));
        }
        let foreign = |value: &http::HeaderValue| !self.origins.iter().any(|allowed| allowed.as_bytes() == value.as_bytes());
        if headers.get_all(ORIGIN).iter().any(foreign) {
            return Err(forbidden("this Origin is not allowed", "add it to server.allowed_origins"));
        }
        Ok(())
    }

    /// Loopback names, the listen address, and what the operator allows. An address can't be rebound as a name can, so with a
    /// wildcard listen address every address passes.
    fn host_is_allowed(&self, host: &str) -> bool {
        let name = host_name(host).to_ascii_lowercase();
        if name == "localhost" || self.hosts.contains(&name) {
            return true;
        }
        match name.parse::<IpAddr>() {
            Ok(address) => address.is_loopback() || self.listen == address || self.listen.is_unspecified(),
            Err(_) => false,
        }
    }

    /// The token of the upgrade or the POST.
    pub fn principal(&self, headers: &HeaderMap) -> Result<Principal, Refusal> {
        let tokens = match &self.authentication {
            Authentication::Off => return Ok(Principal("anonymous".into())),
            Authentication::Tokens(tokens) => tokens,
        };
        presented_token(headers)
            .and_then(|token| tokens.verify(token))
            .ok_or_else(|| Refusal { status: StatusCode::UNAUTHORIZED, error: RpcError::unauthorized() })
    }
}

/// Whether the client speaks our subprotocol, so that the reply must select it.
pub(super) fn offers_subprotocol(headers: &HeaderMap) -> bool {
    subprotocols(headers).any(|name| name == SUBPROTOCOL)
}

fn forbidden(message: &str, hint: &str) -> Refusal {
    let error = RpcError::new(1400, "unauthorized", message, hint, Retry::Never);
    Refusal { status: StatusCode::FORBIDDEN, error }
}

/// The name without port and brackets.
fn host_name(host: &str) -> &str {
    if let Some(rest) = host.strip_prefix('[') {
        return rest.split(']').next().unwrap_or(rest);
    }
    host.rsplit_once(':').map_or(host, |(name, _)| name)
}

/// From `Authorization`, else from the subprotocols when `codebeaker` is among them.
fn presented_token(headers: &HeaderMap) -> Option<&str> {
    if let Some(value) = headers.get(AUTHORIZATION) {
        let (scheme, token) = value.to_str().ok()?.split_once(' ')?;
        return scheme.eq_ignore_ascii_case("bearer").then(|| token.trim());
    }
    if !offers_subprotocol(headers) {
        return None;
    }
    subprotocols(headers).find_map(|name| name.strip_prefix(BEARER_SUBPROTOCOL))
}

fn subprotocols(headers: &HeaderMap) -> impl Iterator<Item = &str> {
    let values = headers.get_all(SEC_WEBSOCKET_PROTOCOL).iter();
    values.filter_map(|value| value.to_str().ok()).flat_map(|value| value.split(',')).map(str::trim)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gate(listen: &str, authentication: Authentication) -> Gate {
        let config = ServerConfig {
            allowed_hosts: vec!["beaker.example".into()],
            allowed_origins: vec!["https://app.example".into()],
            ..ServerConfig::default()
        };
        Gate::new(authentication, &config, listen.parse().expect("an address"))
    }

    fn headers(pairs: &[(http::HeaderName, &str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (name.clone(), value.parse().expect("a header value"))).collect()
    }

    #[test]
    fn only_known_hosts_pass() {
        let gate = gate("127.0.0.1:5000", Authentication::Off);
        let passes = |host: &str| gate.check_source(&headers(&[(HOST, host)])).is_ok();
        for host in ["localhost", "LOCALHOST:5000", "127.0.0.1:5000", "[::1]:5000", "beaker.example:443"] {
            assert!(passes(host), "{host}");
        }
        for host in ["evil.example", "localhost.evil.example:5000", "10.0.0.1:5000", "", "127.0.0.1.evil.example"] {
            assert!(!passes(host), "{host}");
        }
        assert!(gate.check_source(&HeaderMap::new()).is_err());
        assert!(gate.check_source(&headers(&[(HOST, "localhost"), (HOST, "evil.example")])).is_err());
    }

    #[test]
    fn an_origin_passes_when_absent_or_listed() {
        let gate = gate("127.0.0.1:5000", Authentication::Off);
        let passes = |origin: &str| gate.check_source(&headers(&[(HOST, "localhost"), (ORIGIN, origin)])).is_ok();
        assert!(gate.check_source(&headers(&[(HOST, "localhost")])).is_ok());
        assert!(passes("https://app.example"));
        for origin in ["null", "http://localhost:5000", "https://app.example.evil", ""] {
            assert!(!passes(origin), "{origin}");
        }
    }

    #[test]
    fn a_token_passes_in_the_header_or_as_a_subprotocol_pair() {
        let dir = tempfile::tempdir().expect("a directory for the test");
        let tokens = Arc::new(Tokens::open(dir.path()).expect("a first start"));
        let text = super::super::auth::first_token(dir.path()).expect("the first token");
        let gate = gate("127.0.0.1:5000", Authentication::Tokens(tokens));
        let passes = |pairs: &[(http::HeaderName, &str)]| gate.principal(&headers(pairs)).is_ok();
        assert!(passes(&[(AUTHORIZATION, &format!("Bearer {text}"))]));
        assert!(passes(&[(AUTHORIZATION, &format!("bearer {text}"))]));
        assert!(passes(&[(SEC_WEBSOCKET_PROTOCOL, &format!("codebeaker, bearer.{text}"))]));
        assert!(!passes(&[]));
        assert!(!passes(&[(AUTHORIZATION, "Bearer wrong")]));
        assert!(!passes(&[(AUTHORIZATION, &format!("Basic {text}"))]));
        assert!(!passes(&[(SEC_WEBSOCKET_PROTOCOL, &format!("bearer.{text}"))]));
        assert!(!passes(&[(SEC_WEBSOCKET_PROTOCOL, "codebeaker, bearer.wrong")]));
        // A wrong header is not made good by a right subprotocol.
        let both = format!("codebeaker, bearer.{text}");
        assert!(!passes(&[(AUTHORIZATION, "Bearer wrong"), (SEC_WEBSOCKET_PROTOCOL, &both)]));
    }
}
