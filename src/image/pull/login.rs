//! The answer to a registry's challenge: name and password themselves, or a token that they get from the realm that it names.
//!
//! Invariant: a password is sent in the clear only to whom the operator lets hear it ([`Registry::may_hear`]); what comes as a token
//! is bounded and can't be more than one header's value.

use base64::Engine as _;
use reqwest::header::{AUTHORIZATION, HeaderMap, HeaderValue, WWW_AUTHENTICATE};
use reqwest::{StatusCode, Url};
use serde::Deserialize;

use super::credentials::Credentials;
use super::registry::Registry;
use crate::image::ImageError;

const OPERATION: &str = "logging in for";

/// What a registry asks for.
#[derive(Debug, PartialEq, Eq)]
enum Challenge {
    Basic,
    /// A token from `realm`.
    Bearer {
        realm: String,
        service: Option<String>,
    },
}

/// The value of `Authorization` that the registry asks for.
pub(super) async fn answer(registry: &Registry, headers: &HeaderMap) -> Result<HeaderValue, ImageError> {
    let Some(challenge) = challenge(headers) else {
        return Err(registry.failed(OPERATION, "it asks for a kind of login that is not understood"));
    };
    let value = match (challenge, &registry.credentials) {
        (Challenge::Basic, Credentials::None) => return Err(registry.refused()),
        (Challenge::Basic, Credentials::Password { user, password }) => basic(user, password),
        (Challenge::Bearer { realm, service }, _) => format!("Bearer {}", token(registry, &realm, service.as_deref()).await?),
    };
    sensitive(registry, &value)
}

fn basic(user: &str, password: &str) -> String {
    format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(format!("{user}:{password}")))
}

fn sensitive(registry: &Registry, value: &str) -> Result<HeaderValue, ImageError> {
    let mut value = HeaderValue::from_str(value)
        .map_err(|_| registry.failed(OPERATION, "the token holds a character that none may hold"))?;
    value.set_sensitive(true);
    Ok(value)
}

/// The first that is understood; a token before a password.
fn challenge(headers: &HeaderMap) -> Option<Challenge> {
    let values = headers.get_all(WWW_AUTHENTICATE).iter().filter_map(|value| value.to_str().ok());
    let all: Vec<Challenge> = values
        .filter_map(|value| http_auth::parse_challenges(value).ok())
        .flatten()
        .filter_map(|challenge| {
            let parameter = |wanted: &str| {
                let found = challenge.params.iter().find(|(name, _)| name.eq_ignore_ascii_case(wanted));
                found.map(|(_, value)| value.to_unescaped())
            };
            match challenge.scheme.to_ascii_lowercase().as_str() {
                "basic" => Some(Challenge::Basic),
                "bearer" => Some(Challenge::Bearer { realm: parameter("realm")?, service: parameter("service") }),
                _ => None,
            }
        })
        .collect();
    let (tokens, others): (Vec<_>, Vec<_>) =
        all.into_iter().partition(|challenge| matches!(challenge, Challenge::Bearer { .. }));
    tokens.into_iter().chain(others).next()
}

async fn token(registry: &Registry, realm: &str, service: Option<&str>) -> Result<String, ImageError> {
    #[derive(Deserialize)]
    struct Token {
        #[serde(alias = "access_token")]
        token: String,
    }
    let mut url =
        Url::parse(realm).map_err(|error| registry.failed(OPERATION, format!("the realm of its tokens is none: {error}")))?;
    if !registry.may_hear(&url) {
        let place = super::fault::printable(url.host_str().unwrap_or_default());
        let cause =
            format!("it sends for a token to a place without TLS, `{place}`, which images.plain_http_registries does not name");
        return Err(registry.failed(OPERATION, cause));
    }
    url.query_pairs_mut().append_pair("scope", &format!("repository:{}:pull", registry.repository));
    if let Some(service) = service {
        url.query_pairs_mut().append_pair("service", service);
    }
    let headers = match &registry.credentials {
        Credentials::None => Vec::new(),
        Credentials::Password { user, password } => vec![(AUTHORIZATION, sensitive(registry, &basic(user, password))?)],
    };
    let answer = registry.send_to(url.as_str(), &headers).await?;
    match answer.status() {
        StatusCode::OK => {}
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => return Err(registry.refused()),
        status => return Err(registry.failed(OPERATION, format!("the server of its tokens answered {status}"))),
    }
    let text = registry.document(answer, "the token").await?;
    let token: Token = serde_json::from_slice(&text)
        .map_err(|error| registry.failed(OPERATION, format!("the token can't be read: {error}")))?;
    Ok(token.token)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(values: &[&str]) -> Option<Challenge> {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(WWW_AUTHENTICATE, HeaderValue::from_str(value).expect("a header"));
        }
        challenge(&headers)
    }

    #[test]
    fn a_token_is_preferred_and_what_is_not_understood_is_no_challenge() {
        let token = r#"Bearer realm="https://auth.example.org/token",service="example.org""#;
        let expected =
            Challenge::Bearer { realm: "https://auth.example.org/token".into(), service: Some("example.org".into()) };
        assert_eq!(asked(&[r#"Basic realm="x""#, token]), Some(expected));
        assert_eq!(asked(&[r#"Basic realm="x""#]), Some(Challenge::Basic));
        for other in [&[][..], &["Bearer"], &[r#"Digest realm="x""#], &["\""]] {
            assert_eq!(asked(other), None, "{other:?}");
        }
    }
}
