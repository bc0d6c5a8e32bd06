//! The server as a service: what it tells the service manager, the units and the profile below `deploy/`, and both under a
//! systemd that the run may do with as it likes (`scripts/vm` has one).
//!
//! Read `units` for the files, `managed` for the real thing, `apparmor` for the profile where it is enforced.

mod apparmor;
mod managed;
mod units;

use std::os::unix::net::UnixDatagram;
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::support::fixture_user::directory_of;
use crate::support::{Server, Setup, page};

pub fn trials() -> Vec<libtest_mimic::Trial> {
    let mut trials = page(
        "service",
        &[
            ("a service manager hears of readiness, of the address and of the end", told),
            ("the watchdog is fed while the server runs, and not while it is stopped", watchdog),
            ("without a watchdog none is fed", unwatched),
        ],
    );
    trials.extend(units::trials());
    trials.extend(managed::trials());
    trials.extend(apparmor::trials());
    trials
}

/// The other end of `NOTIFY_SOCKET`.
struct Manager {
    socket: UnixDatagram,
    /// Holds the socket's file.
    directory: tempfile::TempDir,
}

impl Manager {
    fn listen() -> Self {
        let directory = directory_of(None);
        let socket = UnixDatagram::bind(directory.path().join("notify")).expect("an own directory");
        Self { socket, directory }
    }

    fn setup(&self) -> Setup {
        let path = self.directory.path().join("notify");
        Setup::bare().with_variable("NOTIFY_SOCKET", path.to_str().expect("an ASCII path"))
    }

    /// The lines of the next message; none when `wait` is over first.
    fn next(&self, wait: Duration) -> Option<Vec<String>> {
        self.socket.set_read_timeout(Some(wait)).expect("not zero");
        let mut buffer = [0_u8; 4096];
        let length = self.socket.recv(&mut buffer).ok()?;
        Some(String::from_utf8_lossy(&buffer[..length]).lines().map(str::to_owned).collect())
    }

    /// Messages that wait now are forgotten.
    fn forget(&self) {
        while self.next(Duration::from_millis(1)).is_some() {}
    }
}

/// Long enough for any host; a message that comes ends the wait.
const PATIENCE: Duration = Duration::from_secs(60);

fn told() {
    let manager = Manager::listen();
    let server = Server::start(&manager.setup());
    let ready = manager.next(PATIENCE).expect("a first message");
    assert_eq!(ready, ["READY=1".to_owned(), format!("STATUS=listening on ws://{}", server.address)]);
    server.client();
    server.signal(Signal::SIGTERM);
    let stopping = manager.next(PATIENCE).expect("a last message");
    assert_eq!(stopping, ["STOPPING=1", "STATUS=closing sessions"]);
    assert!(server.wait(PATIENCE).is_some_and(|status| status.success()));
    assert_eq!(manager.next(Duration::from_millis(1)), None, "nothing after the end");
}

fn watchdog() {
    let manager = Manager::listen();
    let server = Server::start(&manager.setup().with_variable("WATCHDOG_USEC", "300000"));
    let fed = || (0..).map_while(|_| manager.next(PATIENCE)).any(|lines| lines == ["WATCHDOG=1"]);
    assert!(fed() && fed() && fed(), "again and again");
    server.signal(Signal::SIGSTOP);
    manager.forget();
    assert_eq!(manager.next(Duration::from_secs(1)), None, "a server that stands still feeds nothing");
    server.signal(Signal::SIGCONT);
    assert!(fed(), "the control: it goes on");
}

fn unwatched() {
    let manager = Manager::listen();
    let _server = Server::start(&manager.setup());
    assert!(manager.next(PATIENCE).is_some_and(|lines| lines[0] == "READY=1"));
    assert_eq!(manager.next(Duration::from_secs(1)), None);
}
