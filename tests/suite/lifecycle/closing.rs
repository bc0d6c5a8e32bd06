//! What holds when `session.close` is answered, and what follows.

use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;

use super::end;
use crate::pool::metric;
use crate::support::host::kernel;
use crate::support::residue::{descendants, lives};
use crate::support::{Server, Session, Setup, eventually, host, page};

pub(super) fn trials() -> Vec<libtest_mimic::Trial> {
    page(
        "lifecycle",
        &[
            ("a session closes when nothing of it runs, also while its launcher sleeps", without_the_launcher),
            ("of a hundred sessions that are closed at once the server soon keeps no file system", many_at_once),
        ],
    )
}

/// Mount namespaces that the server keeps from ending.
fn namespaces(server: &Server) -> usize {
    let held = std::fs::read_dir(format!("/proc/{}/fd", server.pid())).expect("it lives").flatten();
    held.filter_map(|entry| std::fs::read_link(entry.path()).ok())
        .filter(|to| to.to_string_lossy().starts_with("mnt:["))
        .count()
}

fn none_waits(server: &Server) -> bool {
    namespaces(server) == 0 && metric(server, "codebeaker_mounts_leaving").abs() < 0.5
}

/// A process below the trial's own server that goes on when this is dropped: a launcher that sleeps cleans up after nobody.
struct Asleep(Pid);

impl Asleep {
    fn put(pid: i32) -> Self {
        let pid = Pid::from_raw(pid);
        kill(pid, Signal::SIGSTOP).expect("a process below the trial's own server");
        Self(pid)
    }
}

impl Drop for Asleep {
    fn drop(&mut self) {
        // An error means that it has ended.
        kill(self.0, Signal::SIGCONT).ok();
    }
}

fn without_the_launcher() {
    host().need_that("pidfs", kernel() >= (6, 9), "before Linux 6.9 the launcher alone ends sandboxes");
    let server = Server::start(&Setup::without_pool());
    let mut session = Session::open(&server, &json!({"language": "bash"}));
    let line = "head -c 64M /dev/zero > large; sleep 60 & sleep 61 & setsid sleep 62 & wait";
    session.execute(&json!({"type": "execute_shell", "commandName": "bash", "args": ["-c", line], "background": true}));
    let launcher = server.launcher().expect("a launcher");
    let below = || -> Vec<_> { descendants(launcher).into_iter().filter(|process| !process.zombie).collect() };
    let runs = eventually(Duration::from_secs(10), || below().len() >= 5);
    let running = below();
    assert!(runs, "the control: init, bash and three that sleep: {running:?}");
    let asleep = Asleep::put(launcher);
    // By hand: the suite's own way of closing looks at once for what the launcher does.
    session.client.ok("session.close", &json!({"sessionId": session.id}));
    let living = below();
    drop(asleep);
    assert!(living.is_empty(), "{living:?}");
    let reaped = || !running.iter().any(|process| lives(process.identity)) && none_waits(&server);
    assert!(eventually(Duration::from_secs(10), reaped), "the launcher reaps, and the file systems go");
    session.close();
    end(server);
}

fn many_at_once() {
    let server = Server::start(&Setup::without_pool());
    let mut maker = server.client();
    let mut open = || maker.ok("session.create", &json!({"language": "bash"}))["sessionId"].clone();
    let sessions: Vec<_> = (0..100).map(|_| open()).collect();
    std::thread::scope(|scope| {
        for some in sessions.chunks(25) {
            let server = &server;
            scope.spawn(move || {
                let mut client = server.client();
                for id in some {
                    client.ok("session.close", &json!({"sessionId": id}));
                }
            });
        }
    });
    assert!(eventually(Duration::from_secs(10), || none_waits(&server)), "{}", metric(&server, "codebeaker_mounts_leaving"));
    end(server);
}
