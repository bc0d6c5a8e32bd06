//! What a failure of a layer means to whoever typed the call: its text, and the hint that mends it.
//!
//! Invariant: exhaustive, so that a new kind of failure can't come without its hint being thought of. Read `error` for how a
//! failure is printed.

use super::CliError;
use super::error::chain;
use crate::image::{CertificateFault, ImageError};
use crate::rpc::auth::TokenError;
use crate::rpc::server::ServeError;
use crate::sandbox::state::StateError;
use crate::telemetry::TelemetryError;

/// What mends a state directory that can't be used.
const OTHER_STATE_DIR: &str =
    "name a directory of your own with --state-dir or CODEBEAKER_STATE_DIR; `codebeaker doctor` tries it";
/// Where image names are told.
const LIST_IMAGES: &str = "`codebeaker image list` shows what there is";
/// What an import takes.
const SOURCES: &str =
    "SOURCE is a directory, an OCI layout, or an archive as `docker save`, `docker export` or skopeo writes it";

impl From<ImageError> for CliError {
    fn from(error: ImageError) -> Self {
        let hint = match &error {
            ImageError::NameInvalid { .. } => "write it as python-slim or python:3.12",
            ImageError::NameReserved { .. } => "take another name; `host` is always there and can't be replaced or removed",
            ImageError::NotFound { .. } | ImageError::OtherDigest { .. } => LIST_IMAGES,
            ImageError::InUse { .. } => "close its sessions first: `codebeaker ps`, `codebeaker close`",
            ImageError::AlreadyExists { .. } => "give --replace, or take another --name",
            ImageError::Io { operation, .. } if matches!(&**operation, "opening" | "looking at") => {
                "check the path and its permissions"
            }
            ImageError::Io { .. } => "check that the disk has space and that the state directory is yours",
            ImageError::Record { .. } => "the store was changed by something else; restore that file, or remove its directory",
            ImageError::SourceUnsupported { .. } => SOURCES,
            ImageError::SourceHoldsStore { .. } => "copy what belongs to the image to a directory of its own",
            ImageError::EntryRefused { .. } => "nothing was imported; make the archive anew without that entry",
            ImageError::BoundExceeded { .. } => {
                "nothing was imported; when you trust the image, raise the bound in [images] of the configuration"
            }
            ImageError::Archive { .. } => "nothing was imported; is the archive whole? `tar -tf` reads it to its end",
            ImageError::Entry { .. } => "nothing was imported; check space on the disk and permissions of the source",
            ImageError::MountPoint { .. } => "make it a directory in the source",
            ImageError::Confine { .. } => "`codebeaker doctor` checks what this host offers",
            ImageError::Cancelled => "nothing of it stays",
            ImageError::PullCancelled => "pull again to go on from there, or `codebeaker image prune` to drop what has come",
            ImageError::Document { .. }
            | ImageError::MediaType { .. }
            | ImageError::DigestMismatch { .. }
            | ImageError::SizeMismatch { .. }
            | ImageError::LayerMismatch { .. }
            | ImageError::BlobMissing { .. } => {
                "nothing was imported: the image is damaged or was altered; make or fetch it anew (`codebeaker image prune` first)"
            }
            ImageError::NoneFits { .. } => "choose another with --platform or --tag",
            ImageError::Ambiguous { .. } => "choose one with --tag",
            ImageError::Reference { .. } => "write it as docker does: [REGISTRY/]REPOSITORY[:TAG][@sha256:DIGEST]",
            ImageError::Registry { .. } => "check the registry's name and the network; pull again to go on where it stopped",
            ImageError::Answer { status, .. } => answered(*status),
            ImageError::LoginWanted { .. } => {
                "`docker login REGISTRY`, or write auths into ~/.docker/config.json; or is the name wrong?"
            }
            ImageError::LoginRefused { .. } => {
                "`docker login REGISTRY` again; or is the name wrong, or that user without a right to it?"
            }
            ImageError::Certificate { fault, .. } => certificate(fault),
            ImageError::NoTls { .. } => {
                "--plain-http, or images.plain_http_registries, when what you say to it may be read on the way"
            }
            ImageError::CaFile { .. } => "give a file of certificates in PEM as images.ca_file or --ca-file",
            ImageError::Credentials { .. } => "check ~/.docker/config.json and the credential helper that it names",
            ImageError::WorkerLost { .. } => "nothing was imported; please report this with what you imported",
        };
        Self::new(chain(&error)).hint(hint)
    }
}

/// What mends an answer of a registry that is no success.
fn answered(status: u16) -> &'static str {
    match status {
        404 => "check repository and tag: the registry has nothing of that name",
        429 => "wait a while, or log in: the registry lets you fetch no more for now",
        500.. => "try again later; pull again to go on where it stopped",
        _ => "check the name; is this a registry?",
    }
}

/// What mends a certificate that can't be believed.
fn certificate(fault: &CertificateFault) -> &'static str {
    match fault {
        CertificateFault::UnknownIssuer => "name the file of its authority with --ca-file or images.ca_file",
        CertificateFault::Expired | CertificateFault::NotValidYet => {
            "have it renewed at the registry, unless it is this host's clock that is wrong"
        }
        CertificateFault::OtherName => "write the registry by the name that its certificate has",
        CertificateFault::Other(_) => "have it made anew at the registry",
    }
}

impl From<StateError> for CliError {
    fn from(error: StateError) -> Self {
        let hint = match &error {
            StateError::Held { .. } => "a second server takes --state-dir DIR or CODEBEAKER_STATE_DIR, and a port of its own",
            StateError::ReadOnly { .. } | StateError::Full { .. } | StateError::Io { .. } => OTHER_STATE_DIR,
            StateError::NotPrivate { .. } => "or name another directory with --state-dir or CODEBEAKER_STATE_DIR",
        };
        Self::new(chain(&error)).hint(hint)
    }
}

impl From<TokenError> for CliError {
    fn from(error: TokenError) -> Self {
        let hint = match &error {
            TokenError::File { .. } => OTHER_STATE_DIR,
            TokenError::Broken { .. } => "restore the file; without it the next start of the server makes a new first token",
            TokenError::BadName(_) => "write it as ci or agent-2",
            TokenError::Exists(_) => "`codebeaker token revoke NAME`, or take another name",
            TokenError::Unknown(_) => "`codebeaker token list` shows what there is",
        };
        Self::new(chain(&error)).hint(hint)
    }
}

impl From<ServeError> for CliError {
    fn from(error: ServeError) -> Self {
        let hint = match &error {
            ServeError::NoAuthBeyondLoopback(_) => "listen on 127.0.0.1, or leave --no-auth out and use tokens",
            ServeError::Bind { .. } => {
                "end what listens there, or name another address with --listen or `server.listen`; port 0 takes a free one"
            }
            ServeError::Worker(_) => "check the limits of processes and memory of this user",
            ServeError::Methods(_) => "please report this",
        };
        Self::new(chain(&error)).hint(hint)
    }
}

impl From<TelemetryError> for CliError {
    fn from(error: TelemetryError) -> Self {
        let hint = match &error {
            TelemetryError::Filter { .. } => {
                "--log and `log.filter` take a level (error, warn, info, debug, trace, off), or \
                                              targets with levels: codebeaker=debug,info"
            }
            TelemetryError::Subscriber(_) | TelemetryError::Metrics(_) => "please report this",
        };
        Self::new(chain(&error)).hint(hint)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_that_is_taken_says_what_to_do() {
        let error = ServeError::Bind {
            address: ([127, 0, 0, 1], 5000).into(),
            source: std::io::Error::from(std::io::ErrorKind::AddrInUse),
        };
        let text = CliError::from(error).text();
        assert!(text.starts_with("error: can't listen on 127.0.0.1:5000: ") && text.contains("\nhint: end what"), "{text}");
    }

    #[test]
    fn a_filter_that_is_none_names_its_key_and_its_flag_once() {
        let config = crate::config::LogConfig { filter: "a=b=c".into(), format: crate::config::LogFormat::Text };
        let text = CliError::from(crate::telemetry::init_logs(&config).expect_err("no filter")).text();
        assert!(text.contains("log.filter `a=b=c`") && text.contains("--log"), "{text}");
        assert_eq!(text.matches("error parsing").count(), 1, "{text}");
    }
}
