//! Who this user is at a registry: docker's own configuration (`$DOCKER_CONFIG` or `~/.docker`) and its credential helpers.
//!
//! Invariant: a credential that is configured and can't be had is an error, never an anonymous call in its place.

use std::path::PathBuf;

use docker_credential::{CredentialRetrievalError, DockerCredential, get_credential};
use oci_client::secrets::RegistryAuth;

use crate::image::ImageError;

/// The key of Docker's own registry in that file.
const DOCKER_HUB: &str = "https://index.docker.io/v1/";

/// What is configured for a registry (`HOST[:PORT]`).
pub(super) fn of(registry: &str) -> Result<RegistryAuth, ImageError> {
    let failed = |cause: String| ImageError::Credentials { registry: registry.to_owned(), cause };
    if !file().is_some_and(|file| file.exists()) {
        return Ok(RegistryAuth::Anonymous);
    }
    let key = if matches!(registry, "docker.io" | "index.docker.io") { DOCKER_HUB } else { registry };
    match get_credential(key) {
        Ok(DockerCredential::UsernamePassword(user, password)) => Ok(RegistryAuth::Basic(user, password)),
        Ok(DockerCredential::IdentityToken(_)) => {
            Err(failed("it is an identity token; log in with a name and a password".into()))
        }
        Err(CredentialRetrievalError::NoCredentialConfigured | CredentialRetrievalError::ConfigNotFound) => {
            Ok(RegistryAuth::Anonymous)
        }
        Err(error) => Err(failed(error.to_string())),
    }
}

fn file() -> Option<PathBuf> {
    let directory = std::env::var_os("DOCKER_CONFIG").map(PathBuf::from);
    let home = || std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".docker"));
    directory.or_else(home).map(|directory| directory.join("config.json"))
}
