//! What may stand where a pull expects a registry: a front before a real one that cuts, slows and counts, and one that means harm.
//!
//! Invariant: one request a connection; whatever comes without end stops after [`ENDLESS_BYTES_MAX`], so that a trial that fails ends.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// Past every bound of a pull, and little for the host.
pub const ENDLESS_BYTES_MAX: u64 = 256 << 20;
const HEAD_BYTES_MAX: usize = 64 << 10;
/// A question that never comes.
const SILENCE_MAX: Duration = Duration::from_secs(60);

/// Listens on loopback until it is dropped; each connection has a thread.
struct Listener {
    address: String,
    over: Arc<AtomicBool>,
}

impl Listener {
    fn start(serve: impl Fn(TcpStream) + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("loopback");
        let address = listener.local_addr().expect("bound").to_string();
        let over = Arc::new(AtomicBool::new(false));
        let (seen, serve) = (Arc::clone(&over), Arc::new(serve));
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if seen.load(Ordering::Relaxed) {
                    return;
                }
                let serve = Arc::clone(&serve);
                stream.set_read_timeout(Some(SILENCE_MAX)).expect("a socket");
                std::thread::spawn(move || serve(stream));
            }
        });
        Self { address, over }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        TcpStream::connect(&self.address).ok();
    }
}

/// The head of a request, or nothing when the peer speaks TLS: then it hears that nobody does here.
fn head(stream: &mut TcpStream) -> Option<String> {
    let mut bytes = Vec::new();
    let mut block = [0; 4096];
    while !bytes.windows(4).any(|window| window == b"\r\n\r\n") && bytes.len() < HEAD_BYTES_MAX {
        let read = stream.read(&mut block).ok().filter(|read| *read > 0)?;
        bytes.extend_from_slice(&block[..read]);
        if bytes[0] == 0x16 {
            stream.write_all(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n").ok();
            return None;
        }
    }
    String::from_utf8(bytes).ok()
}

fn path(head: &str) -> String {
    head.split(' ').nth(1).unwrap_or_default().to_owned()
}

/// How a front treats blobs.
#[derive(Debug, Clone, Copy, Default)]
pub struct Treatment {
    /// So many answers for each blob end after [`Treatment::cut_bytes`] of it.
    pub cuts: usize,
    /// See there.
    pub cut_bytes: usize,
    /// Between any two pieces of 16 KiB.
    pub pause: Duration,
}

/// One answer that has gone through.
#[derive(Debug, Clone)]
pub struct Seen {
    /// Digits of the blob's digest.
    pub blob: String,
    /// Where in the blob it was asked to begin.
    pub from: usize,
    /// Bytes of the blob that went through.
    pub sent: usize,
}

#[derive(Default)]
struct Counts {
    seen: Mutex<Vec<Seen>>,
    cut: Mutex<BTreeMap<String, usize>>,
    now: AtomicUsize,
    most: AtomicUsize,
}

/// A front before a registry that speaks plain HTTP.
pub struct Front {
    listener: Listener,
    counts: Arc<Counts>,
}

impl Front {
    /// Before the registry at `backend`.
    pub fn start(backend: &str, treatment: Treatment) -> Self {
        let counts = Arc::<Counts>::default();
        let (of_threads, backend) = (Arc::clone(&counts), backend.to_owned());
        // What the client or the registry breaks off is over for the front too.
        let listener = Listener::start(move |stream| drop(relay(stream, &backend, treatment, &of_threads)));
        Self { listener, counts }
    }

    /// Where it listens.
    pub fn address(&self) -> &str {
        &self.listener.address
    }

    /// The answers with blobs so far.
    pub fn seen(&self) -> Vec<Seen> {
        self.counts.seen.lock().expect("no holder panics").clone()
    }

    /// How many blobs were under way at once at most.
    pub fn most_at_once(&self) -> usize {
        self.counts.most.load(Ordering::Relaxed)
    }
}

fn relay(mut client: TcpStream, backend: &str, treatment: Treatment, counts: &Counts) -> std::io::Result<()> {
    let Some(head) = head(&mut client) else { return Ok(()) };
    let mut server = TcpStream::connect(backend)?;
    server.write_all(head.replacen("\r\n\r\n", "\r\nConnection: close\r\n\r\n", 1).as_bytes())?;
    let path = path(&head);
    let Some((_, blob)) = path.rsplit_once("/blobs/sha256:") else {
        return std::io::copy(&mut server, &mut client).map(|_| ());
    };
    let range =
        head.lines().find_map(|line| line.to_ascii_lowercase().strip_prefix("range: bytes=")?.split('-').next()?.parse().ok());
    let mut cuts = counts.cut.lock().expect("no holder panics");
    let made = cuts.entry(blob.to_owned()).or_default();
    let cut = *made < treatment.cuts;
    *made += usize::from(cut);
    drop(cuts);
    let under_way = UnderWay::begin(counts);
    let most = if cut { treatment.cut_bytes } else { usize::MAX };
    let sent = pass_on(&mut server, &mut client, most, treatment.pause, under_way);
    counts.seen.lock().expect("no holder panics").push(Seen { blob: blob.to_owned(), from: range.unwrap_or(0), sent });
    Ok(())
}

/// A blob that is counted among those under way.
struct UnderWay<'a>(&'a Counts);

impl<'a> UnderWay<'a> {
    fn begin(counts: &'a Counts) -> Self {
        counts.most.fetch_max(counts.now.fetch_add(1, Ordering::Relaxed) + 1, Ordering::Relaxed);
        Self(counts)
    }
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.0.now.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Bytes of the body that a head announces.
fn body_length(head: &[u8]) -> Option<usize> {
    String::from_utf8_lossy(head)
        .lines()
        .find_map(|line| line.to_ascii_lowercase().strip_prefix("content-length:")?.trim().parse().ok())
}

/// Passes a head and that much of the body on; the bytes of the body that went through. The blob is no longer under way before the last of
/// them goes, for who has it may ask for the next.
fn pass_on(server: &mut TcpStream, client: &mut TcpStream, most: usize, pause: Duration, under_way: UnderWay<'_>) -> usize {
    let (mut head, mut sent, mut block) = (Vec::new(), 0, [0; 16 << 10]);
    let mut under_way = Some(under_way);
    let mut in_body = false;
    while let Ok(read @ 1..) = server.read(&mut block) {
        let mut piece = block[..read].to_vec();
        if !in_body {
            head.extend_from_slice(&piece);
            let Some(end) = head.windows(4).position(|window| window == b"\r\n\r\n") else { continue };
            in_body = true;
            piece = head.split_off(end + 4);
            if client.write_all(&head).is_err() {
                return sent;
            }
        }
        piece.truncate(most - sent);
        if sent + piece.len() >= body_length(&head).unwrap_or(usize::MAX).min(most) {
            drop(under_way.take());
        }
        if client.write_all(&piece).is_err() {
            return sent;
        }
        sent += piece.len();
        if sent == most {
            return sent;
        }
        std::thread::sleep(pause);
    }
    sent
}

/// What a registry that means harm says to one path.
#[derive(Debug, Clone)]
pub enum Reply {
    /// Status line and headers, then a body that ends.
    Whole(String, Vec<u8>),
    /// Status line and headers, then this letter without end.
    Endless(String, u8),
}

/// A registry that means harm.
pub struct Hostile {
    listener: Listener,
    sent: Arc<AtomicU64>,
    heads: Arc<Mutex<Vec<String>>>,
}

impl Hostile {
    /// Answers every path as `says`, which is told its own address too.
    pub fn start(says: impl Fn(&str, &str) -> Reply + Send + Sync + 'static) -> Self {
        let sent = Arc::new(AtomicU64::new(0));
        let heads = Arc::<Mutex<Vec<String>>>::default();
        let (counted, kept) = (Arc::clone(&sent), Arc::clone(&heads));
        let listener = Listener::start(move |mut stream| {
            let Some(head) = head(&mut stream) else { return };
            kept.lock().expect("no holder panics").push(head.to_ascii_lowercase());
            let address = stream.local_addr().expect("connected").to_string();
            let reply = says(&path(&head), &address);
            let (start, body, endless) = match &reply {
                Reply::Whole(start, body) => (start, body.clone(), false),
                Reply::Endless(start, letter) => (start, vec![*letter; 64 << 10], true),
            };
            let length = if endless { String::new() } else { format!("Content-Length: {}\r\n", body.len()) };
            let mut good = write!(stream, "{start}\r\n{length}Connection: close\r\n\r\n").is_ok();
            while good {
                good = stream.write_all(&body).is_ok() && endless;
                let all = counted.fetch_add(body.len() as u64, Ordering::Relaxed);
                good = good && all < ENDLESS_BYTES_MAX;
            }
        });
        Self { listener, sent, heads }
    }

    /// What it was asked so far, in lower case: request line and headers.
    pub fn heads(&self) -> Vec<String> {
        self.heads.lock().expect("no holder panics").clone()
    }

    /// Where it listens.
    pub fn address(&self) -> &str {
        &self.listener.address
    }

    /// Bytes of bodies so far.
    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }
}
