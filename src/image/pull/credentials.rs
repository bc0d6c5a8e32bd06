//! Who this user is at a registry: docker's own configuration (`$DOCKER_CONFIG` or `~/.docker`) and its credential helpers.
//!
//! Invariant: a credential that is configured and can't be had is an error, never an anonymous call in its place. A helper that
//! says that it has none for this registry is no error, as in docker: its store is asked for every registry.

use std::path::PathBuf;

use docker_credential::{CredentialRetrievalError, DockerCredential, get_credential};

use crate::image::ImageError;

/// The key of Docker's own registry in that file.
const DOCKER_HUB: &str = "https://index.docker.io/v1/";
/// What every helper says when it has none.
const NOT_FOUND: &str = "credentials not found in native keychain";

/// Who asks a registry.
pub(super) enum Credentials {
    /// Nobody in particular.
    None,
    /// Somebody with a password.
    Password { user: String, password: String },
}

/// What is configured for a registry (`HOST[:PORT]`).
pub(super) fn of(registry: &str) -> Result<Credentials, ImageError> {
    let failed = |cause: String| ImageError::Credentials { registry: registry.to_owned(), cause };
    if !file().is_some_and(|file| file.exists()) {
        return Ok(Credentials::None);
    }
    let key = if matches!(registry, "docker.io" | "index.docker.io") { DOCKER_HUB } else { registry };
    match get_credential(key) {
        Ok(DockerCredential::UsernamePassword(user, password)) => Ok(Credentials::Password { user, password }),
        Ok(DockerCredential::IdentityToken(_)) => {
            Err(failed("it is an identity token; log in with a name and a password".into()))
        }
        Err(CredentialRetrievalError::NoCredentialConfigured | CredentialRetrievalError::ConfigNotFound) => {
            Ok(Credentials::None)
        }
        Err(CredentialRetrievalError::HelperFailure { stdout, stderr, .. })
            if [&stdout, &stderr].into_iter().any(|text| text.contains(NOT_FOUND)) =>
        {
            Ok(Credentials::None)
        }
        Err(CredentialRetrievalError::HelperCommunicationError) => Err(failed(
            "the credential helper that the configuration names can't be started, or does not listen (docker-credential-… on PATH)".into(),
        )),
        Err(error) => Err(failed(super::fault::printable(&error.to_string()))),
    }
}

fn file() -> Option<PathBuf> {
    let directory = std::env::var_os("DOCKER_CONFIG").map(PathBuf::from);
    let home = || std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".docker"));
    directory.or_else(home).map(|directory| directory.join("config.json"))
}
