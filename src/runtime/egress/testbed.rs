//! What the tests of this module stand on: a way out whose listener the test makes itself, and a web server to reach, all on
//! loopback.

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

use super::meter::Budget;
use super::*;

/// A way out and where it listens. The listener is the test's own, so it is not on [`PROXY`].
pub(super) struct Bed {
    pub(super) address: SocketAddr,
    pub(super) realm: Arc<Realm>,
    pub(super) serving: JoinHandle<()>,
}

impl Bed {
    pub(super) async fn with(rules: EgressRules, api: Option<SocketAddr>) -> Self {
        let egress = Egress::new(rules);
        if let Some(api) = api {
            egress.set_api(api);
        }
        Self::of(egress).await
    }

    /// One of several that share what a server has.
    pub(super) async fn of(egress: Arc<Egress>) -> Self {
        let realm = Arc::new(Realm {
            list: egress.of_programs(),
            user: User::Programs,
            environment: EnvironmentId::random(),
            slots: Arc::new(Semaphore::new(egress.rules.bounds.connections_per_way_max)),
            lookups: Arc::new(Semaphore::new(LOOKUPS_PER_WAY_MAX)),
            budget: Budget::of(egress.rules.bounds.bytes_max),
            ledger: Ledger::default(),
            egress,
        });
        let listener = TcpListener::bind(SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0)).await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let serving = tokio::spawn(proxy::serve(listener, Arc::clone(&realm)));
        Self { address, realm, serving }
    }

    /// Lists these hosts.
    pub(super) async fn listing(hosts: &[&str]) -> Self {
        Self::with(rules(hosts), None).await
    }

    pub(super) async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address).await.expect("it listens")
    }

    /// Sends `text` on a connection of its own and gives what comes until the other side ends it.
    pub(super) async fn say(&self, text: &str) -> String {
        let mut stream = self.connect().await;
        // A proxy that refuses may close before it has read everything.
        stream.write_all(text.as_bytes()).await.ok();
        until_end(&mut stream).await
    }

    /// The status of the answer to a request that asks for the connection to be closed.
    pub(super) async fn status(&self, line: &str, headers: &str) -> u16 {
        let answer = self.say(&format!("{line} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{headers}\r\n")).await;
        let status = answer.split(' ').nth(1).and_then(|word| word.parse().ok());
        status.unwrap_or_else(|| panic!("no status in {answer:?}"))
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

pub(super) fn rules(hosts: &[&str]) -> EgressRules {
    let words: Vec<String> = hosts.iter().map(|host| (*host).to_owned()).collect();
    EgressRules { programs: Allowlist::parse(&words).expect("patterns"), ..EgressRules::default() }
}

pub(super) async fn until_end(stream: &mut TcpStream) -> String {
    let mut answer = Vec::new();
    // A reset is an end too.
    stream.read_to_end(&mut answer).await.ok();
    String::from_utf8_lossy(&answer).into_owned()
}

/// A web server that keeps every request as it came and answers each with the same.
pub(super) struct Web {
    pub(super) address: SocketAddr,
    pub(super) seen: Arc<Mutex<Vec<String>>>,
    serving: JoinHandle<()>,
}

impl Web {
    /// Answers with these bytes.
    pub(super) async fn answering(answer: &'static str) -> Self {
        let listener = TcpListener::bind(SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0)).await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let seen = Arc::new(Mutex::new(Vec::new()));
        let kept = Arc::clone(&seen);
        let serving = tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let kept = Arc::clone(&kept);
                tokio::spawn(async move {
                    let mut request = vec![0; 64 << 10];
                    let mut length = 0;
                    // The head at least; bodies of these tests come along with it or soon after.
                    while !request[..length].windows(4).any(|end| end == b"\r\n\r\n") {
                        match stream.read(&mut request[length..]).await {
                            Ok(0) | Err(_) => return,
                            Ok(bytes) => length += bytes,
                        }
                    }
                    if let Ok(Ok(bytes)) =
                        tokio::time::timeout(Duration::from_millis(100), stream.read(&mut request[length..])).await
                    {
                        length += bytes;
                    }
                    let text = String::from_utf8_lossy(&request[..length]).into_owned();
                    kept.lock().unwrap_or_else(PoisonError::into_inner).push(text);
                    stream.write_all(answer.as_bytes()).await.ok();
                });
            }
        });
        Self { address, seen, serving }
    }

    pub(super) fn requests(&self) -> Vec<String> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Web {
    fn drop(&mut self) {
        self.serving.abort();
    }
}
