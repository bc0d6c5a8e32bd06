//! One repository of a registry over HTTP: its manifests and blobs.
//!
//! Invariant: nothing that a registry or its token server sends is kept past a bound. A document past `document_bytes_max` is an error at
//! its first byte too many, of an error's text only the beginning is read, both within [`DOCUMENT_TIME`]; a blob is handed on piece by
//! piece. TLS is left out only where the operator said so, or on loopback where nobody speaks it. Read `login` next.

use std::net::IpAddr;
use std::path::Path;
use std::sync::Mutex;
use std::time::Duration;

use oci_spec::distribution::Reference;
use reqwest::header::{ACCEPT, AUTHORIZATION, CONTENT_RANGE, HeaderName, HeaderValue, RANGE};
use reqwest::{Client, Response, StatusCode, Url, redirect};

use super::credentials::Credentials;
use super::fault::{self, printable};
use super::{ACCEPTED, PullRequest};
use crate::image::ImageError;
use crate::image::bounds::check;

const CONNECT_TIME: Duration = Duration::from_secs(15);
/// Silence of a registry.
const READ_TIME: Duration = Duration::from_secs(60);
/// For a manifest or token, from the question to the last byte of the answer.
const DOCUMENT_TIME: Duration = Duration::from_secs(120);
/// Redirects that are followed: registries keep blobs elsewhere.
const REDIRECTS_MAX: usize = 5;
/// Of the text that comes with an error.
const ERROR_BYTES_MAX: u64 = 16 << 10;
/// Of a file with certificates.
const CA_BYTES_MAX: u64 = 4 << 20;

/// A repository of a registry, and who we are to it.
pub(super) struct Registry {
    client: Client,
    /// `https://HOST[:PORT]`.
    pub(super) origin: String,
    /// `HOST[:PORT]`.
    pub(super) host: String,
    pub(super) repository: String,
    /// As the user wrote it, completed.
    pub(super) shown: String,
    pub(super) credentials: Credentials,
    /// Hosts (`HOST[:PORT]`) that the operator lets be spoken to without TLS.
    plain_http: Vec<String>,
    /// What answered the last challenge.
    authorization: Mutex<Option<HeaderValue>>,
    document_bytes_max: u64,
}

/// A blob, or what comes behind the bytes that are there already.
pub(super) struct BlobBody {
    /// Where in the blob its first byte belongs.
    pub(super) begins: u64,
    response: Response,
}

impl Registry {
    /// Finds out how this registry is spoken to. On loopback, where nobody can listen in, one that has no TLS is spoken to without.
    pub(super) async fn open(
        reference: &Reference,
        request: &PullRequest<'_>,
        credentials: Credentials,
    ) -> Result<Self, ImageError> {
        // Whoever was first has installed the same.
        rustls::crypto::ring::default_provider().install_default().ok();
        let host = reference.resolve_registry().to_owned();
        let roots = request.ca_file.map(roots).transpose()?.unwrap_or_default();
        let plain = request.plain_http.contains(&host);
        let scheme = if plain { "http" } else { "https" };
        let mut registry = Self {
            client: client(&host, roots, plain)?,
            origin: format!("{scheme}://{host}"),
            host,
            repository: reference.repository().to_owned(),
            shown: reference.whole(),
            credentials,
            plain_http: request.plain_http.to_vec(),
            authorization: Mutex::new(None),
            document_bytes_max: request.bounds.document_bytes_max,
        };
        if !plain && is_loopback(&registry.host) {
            match registry.send(&format!("{}/v2/", registry.origin), &[]).await {
                Err(ImageError::NoTls { .. }) => {
                    registry.client = client(&registry.host, Vec::new(), true)?;
                    registry.origin = format!("http://{}", registry.host);
                }
                Err(error) => return Err(error),
                Ok(_) => {}
            }
        }
        Ok(registry)
    }

    /// True where a password may go: with TLS anywhere; without it, and where the registry has none either, to loopback and to whom
    /// the operator has named. That a registry on loopback needs no TLS says nothing of the realm that it names.
    pub(super) fn may_hear(&self, url: &Url) -> bool {
        let without_port = |host: &str| host.strip_suffix(":80").unwrap_or(host).to_owned();
        match (url.scheme(), url.host_str(), url.port()) {
            ("https", ..) => true,
            ("http", Some(host), port) if self.origin.starts_with("http://") => {
                let named = port.map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"));
                is_loopback(&named) || self.plain_http.iter().any(|listed| without_port(listed) == named)
            }
            _ => false,
        }
    }

    pub(super) fn failed(&self, operation: &'static str, cause: impl Into<String>) -> ImageError {
        ImageError::Registry { operation: operation.into(), reference: self.shown.clone(), cause: cause.into() }
    }

    /// A manifest or index, by tag or digest, with the digest that the registry gives for it.
    pub(super) async fn manifest(&self, tag_or_digest: &str) -> Result<(Vec<u8>, Option<String>), ImageError> {
        const OPERATION: &str = "asking for the manifest of";
        let url = format!("{}/v2/{}/manifests/{tag_or_digest}", self.origin, self.repository);
        let accept = HeaderValue::from_str(&ACCEPTED.join(", ")).map_err(|error| self.failed(OPERATION, error.to_string()))?;
        self.in_time(OPERATION, async {
            let answer = self.ask(OPERATION, &url, &[(ACCEPT, accept)]).await?;
            let digest = answer.headers().get("docker-content-digest").and_then(|value| value.to_str().ok()).map(str::to_owned);
            Ok((self.document(answer, "the manifest").await?, digest))
        })
        .await
    }

    /// A blob from that byte on, or from its beginning where the registry knows no ranges.
    pub(super) async fn blob(&self, digest: &str, from: u64) -> Result<BlobBody, ImageError> {
        const OPERATION: &str = "fetching a blob of";
        let url = format!("{}/v2/{}/blobs/{digest}", self.origin, self.repository);
        let range =
            HeaderValue::from_str(&format!("bytes={from}-")).map_err(|error| self.failed(OPERATION, error.to_string()))?;
        let headers = if from > 0 { vec![(RANGE, range)] } else { Vec::new() };
        let response = self.in_time(OPERATION, self.ask(OPERATION, &url, &headers)).await?;
        if response.status() != StatusCode::PARTIAL_CONTENT {
            return Ok(BlobBody { begins: 0, response });
        }
        let range = response.headers().get(CONTENT_RANGE).and_then(|value| value.to_str().ok());
        match range.and_then(first_byte) {
            Some(begins) if begins == from => Ok(BlobBody { begins, response }),
            Some(_) | None => Err(self.failed(OPERATION, "it answered with another range than the one that was asked for")),
        }
    }

    /// The next piece of a blob.
    pub(super) async fn piece(&self, body: &mut BlobBody) -> Result<Option<impl AsRef<[u8]> + use<>>, ImageError> {
        body.response.chunk().await.map_err(|error| self.failed("fetching a blob of", fault::chain(&error)))
    }

    /// Reads a whole answer, up to the bound of a document.
    pub(super) async fn document(&self, mut answer: Response, what: &str) -> Result<Vec<u8>, ImageError> {
        let mut bytes = Vec::new();
        while let Some(piece) =
            answer.chunk().await.map_err(|error| self.failed("reading the answer for", fault::chain(&error)))?
        {
            check(what, "document_bytes_max", (bytes.len() + piece.len()) as u64, self.document_bytes_max)?;
            bytes.extend_from_slice(&piece);
        }
        Ok(bytes)
    }

    /// Asks, answers one challenge, and takes nothing but success.
    async fn ask(
        &self,
        operation: &'static str,
        url: &str,
        headers: &[(HeaderName, HeaderValue)],
    ) -> Result<Response, ImageError> {
        let mut answer = self.send(url, headers).await?;
        if answer.status() == StatusCode::UNAUTHORIZED {
            let authorization = super::login::answer(self, answer.headers()).await?;
            *self.authorization.lock().expect("no holder panics") = Some(authorization);
            answer = self.send(url, headers).await?;
        }
        match answer.status() {
            status if status.is_success() => Ok(answer),
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Err(self.refused()),
            status => Err(ImageError::Answer {
                operation: operation.into(),
                reference: self.shown.clone(),
                status: status.as_u16(),
                said: self.said(answer).await,
            }),
        }
    }

    /// One request to the registry, with what is known of authorization.
    async fn send(&self, url: &str, headers: &[(HeaderName, HeaderValue)]) -> Result<Response, ImageError> {
        let authorization = self.authorization.lock().expect("no holder panics").clone();
        let all: Vec<_> = headers.iter().cloned().chain(authorization.map(|value| (AUTHORIZATION, value))).collect();
        self.send_to(url, &all).await
    }

    /// One request to wherever, with these headers.
    pub(super) async fn send_to(&self, url: &str, headers: &[(HeaderName, HeaderValue)]) -> Result<Response, ImageError> {
        let mut request = self.client.get(url);
        for (name, value) in headers {
            request = request.header(name, value);
        }
        request.send().await.map_err(|error| fault::of(&error, &self.host, &self.shown))
    }

    /// Nobody, or not this user.
    pub(super) fn refused(&self) -> ImageError {
        match &self.credentials {
            Credentials::None => ImageError::LoginWanted { registry: self.host.clone(), reference: self.shown.clone() },
            Credentials::Password { user, .. } => {
                ImageError::LoginRefused { registry: self.host.clone(), reference: self.shown.clone(), user: printable(user) }
            }
        }
    }

    /// The beginning of what a registry says to an error, for people.
    async fn said(&self, mut answer: Response) -> String {
        let mut bytes = Vec::new();
        while let Ok(Some(piece)) = answer.chunk().await {
            bytes.extend_from_slice(&piece);
            if bytes.len() as u64 > ERROR_BYTES_MAX {
                break;
            }
        }
        fault::envelope(&bytes)
    }

    async fn in_time<T>(
        &self,
        operation: &'static str,
        work: impl Future<Output = Result<T, ImageError>>,
    ) -> Result<T, ImageError> {
        let late = || self.failed(operation, format!("no whole answer came within {} s", DOCUMENT_TIME.as_secs()));
        tokio::time::timeout(DOCUMENT_TIME, work).await.map_err(|_| late())?
    }
}

fn client(host: &str, roots: Vec<reqwest::Certificate>, plain: bool) -> Result<Client, ImageError> {
    // A proxy would hear what is meant for this machine, and could not reach it.
    let builder = if is_loopback(host) { Client::builder().no_proxy() } else { Client::builder() };
    builder
        .https_only(!plain)
        .tls_certs_merge(roots)
        .connect_timeout(CONNECT_TIME)
        .read_timeout(READ_TIME)
        .redirect(redirect::Policy::limited(REDIRECTS_MAX))
        .user_agent(concat!("codebeaker/", env!("CARGO_PKG_VERSION")))
        .build()
        .map_err(|error| ImageError::Registry {
            operation: "preparing TLS for".into(),
            reference: host.to_owned(),
            cause: fault::chain(&error),
        })
}

/// The certificates of a file, to be believed beside those of the system.
fn roots(path: &Path) -> Result<Vec<reqwest::Certificate>, ImageError> {
    let wrong = |reason: String| ImageError::CaFile { path: path.to_owned(), reason };
    let size = std::fs::metadata(path).map_err(|error| wrong(error.to_string()))?.len();
    if size > CA_BYTES_MAX {
        return Err(wrong(format!("it has more than {CA_BYTES_MAX} bytes")));
    }
    let bytes = std::fs::read(path).map_err(|error| wrong(error.to_string()))?;
    let roots = reqwest::Certificate::from_pem_bundle(&bytes).map_err(|error| wrong(fault::chain(&error)))?;
    if roots.is_empty() { Err(wrong("it holds no certificate in PEM".into())) } else { Ok(roots) }
}

/// `HOST[:PORT]` that never leaves this machine.
fn is_loopback(registry: &str) -> bool {
    let host = registry.rsplit_once(':').filter(|(_, port)| port.bytes().all(|byte| byte.is_ascii_digit()));
    let host = host.map_or(registry, |(host, _)| host);
    let bare = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(host);
    bare == "localhost" || bare.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// 5 of `bytes 5-9/10`.
fn first_byte(range: &str) -> Option<u64> {
    range.strip_prefix("bytes ")?.split('-').next()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request<'a>(
        reference: &'a str,
        plain_http: &'a [String],
        choice: &'a crate::image::Choice,
        cancel: &'a std::sync::atomic::AtomicBool,
    ) -> PullRequest<'a> {
        PullRequest {
            reference,
            name: None,
            choice,
            taken: crate::image::Taken::Refuse,
            bounds: crate::image::Bounds::default(),
            plain_http,
            ca_file: None,
            cancel,
        }
    }

    #[test]
    fn loopback_is_known_in_every_spelling_and_nothing_else_is() {
        for registry in ["127.0.0.1", "127.0.0.1:5000", "localhost", "localhost:5000", "[::1]:5000", "127.8.8.8:1"] {
            assert!(is_loopback(registry), "{registry}");
        }
        for registry in
            ["docker.io", "127.0.0.1.example.org", "localhost.example.org:5000", "10.0.0.1:5000", "[fe80::1]:5000", ""]
        {
            assert!(!is_loopback(registry), "{registry}");
        }
    }

    #[tokio::test]
    async fn a_password_is_heard_with_tls_or_by_whom_the_operator_lets_hear_it() {
        let choice = crate::image::Choice::native();
        let cancel = std::sync::atomic::AtomicBool::new(false);
        let hears = async |reference: &str, plain_http: &[&str], realm: &str| {
            let plain_http: Vec<String> = plain_http.iter().map(|host| (*host).to_owned()).collect();
            let request = request(reference, &plain_http, &choice, &cancel);
            let reference: Reference = reference.parse().expect("a reference");
            let registry = Registry::open(&reference, &request, Credentials::None).await.expect("nothing is sent yet");
            registry.may_hear(&realm.parse().expect("an address"))
        };
        let (tls, plain) = ("registry.example.org:80/tool", &["registry.example.org:80", "token.example.org:81"]);
        assert!(hears(tls, &[], "https://elsewhere.example.org/token").await);
        assert!(!hears(tls, &[], "http://registry.example.org/token").await, "it speaks TLS");
        for realm in
            ["https://x.example.org/", "http://registry.example.org/", "http://token.example.org:81/", "http://127.0.0.1:9/"]
        {
            assert!(hears(tls, plain, realm).await, "{realm}");
        }
        for realm in
            ["http://x.example.org/", "http://token.example.org/", "http://registry.example.org:81/", "ftp://127.0.0.1/"]
        {
            assert!(!hears(tls, plain, realm).await, "{realm}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_that_never_ends_is_given_up_and_one_that_comes_late_is_not() {
        let (plain_http, choice) = ([String::from("127.0.0.1:1")], crate::image::Choice::native());
        let cancel = std::sync::atomic::AtomicBool::new(false);
        let request = request("127.0.0.1:1/tool", &plain_http, &choice, &cancel);
        let reference: Reference = request.reference.parse().expect("a reference");
        let registry = Registry::open(&reference, &request, Credentials::None).await.expect("nothing is sent yet");
        let late = registry.in_time("asking for", async {
            tokio::time::sleep(DOCUMENT_TIME * 9 / 10).await;
            Ok(1)
        });
        assert_eq!(late.await.expect("the control: just in time"), 1);
        let never = registry.in_time("asking for", std::future::pending::<Result<(), _>>()).await;
        assert!(matches!(&never, Err(ImageError::Registry { cause, .. }) if cause.contains("120 s")), "{never:?}");
    }

    #[test]
    fn the_beginning_of_a_range_is_read_or_it_is_none() {
        assert_eq!(first_byte("bytes 5-9/10"), Some(5));
        for range in ["", "bytes", "bytes */10", "5-9/10", "bytes -9/10"] {
            assert_eq!(first_byte(range), None, "{range}");
        }
    }
}
