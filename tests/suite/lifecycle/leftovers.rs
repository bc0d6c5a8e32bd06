//! What a next start finds: the leftovers of many sessions whose server and launcher were killed together, and state
//! directories that can't be used.

use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;

use super::end;
use crate::support::fixture_user::{ORDINARY_UID, directory_of};
use crate::support::server::refused_start;
use crate::support::{Feature, Server, Setup, host, page};

pub(super) fn trials() -> Vec<libtest_mimic::Trial> {
    page(
        "lifecycle",
        &[
            ("the leftovers of 1,000 sessions are gone two seconds after the next start begins", many_leftovers),
            ("a state directory that can't be written is refused with what mends it", unwritable_state),
            ("a state directory whose files may not grow is refused and nothing is left half made", full_state),
        ],
    )
}

fn many_leftovers() {
    const SESSIONS: usize = 1000;
    host().need(Feature::Root);
    let setup = Setup::plain().with_config("[session]\nsessions_max = 1020\n");
    let begin = Instant::now();
    let server = Server::start(&setup);
    let usual = begin.elapsed();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let mut client = server.client();
                for _ in 0..SESSIONS / 4 {
                    client.ok("session.create", &json!({"language": "bash", "memoryLimitMB": 32}));
                }
            });
        }
    });
    server.observe();
    for number in 0..SESSIONS {
        let path = server.state_dir().join(format!("run/env_{number}/upper"));
        std::fs::create_dir_all(path).expect("root may write there");
    }
    let launcher = server.launcher().expect("a launcher");
    // Stopped, the server can't clean up after its launcher, so that everything stays for the next start.
    server.signal(Signal::SIGSTOP);
    kill(Pid::from_raw(launcher), Signal::SIGKILL).expect("a process below the trial's own server");
    server.signal(Signal::SIGKILL);
    server.wait(Duration::from_secs(5)).expect("it is dead");
    let left = server.left_after(Duration::from_secs(1));
    assert!(left.len() >= SESSIONS, "the control: {} leftovers", left.len());
    let state = server.state_dir();
    assert!(state.join("run").is_dir());
    let tracked = server.take_tracker();
    let begin = Instant::now();
    let next = Server::start_in(&setup, server.into_directory());
    let took = begin.elapsed();
    let left = tracked.left(&next.state_dir());
    assert!(left.is_empty(), "{} leftovers, the first: {:?}", left.len(), left.first());
    println!("a start takes {usual:?}, with the leftovers of {SESSIONS} sessions {took:?}");
    // Two seconds are the promise; on a host that is slow at everything, a start without leftovers tells how slow.
    let promised = Duration::from_secs(2).max(usual * 10);
    assert!(took < promised, "the start took {took:?}, and {usual:?} without leftovers");
    end(next);
}

fn unwritable_state() {
    host().need(Feature::Root).need(Feature::OrdinaryUser);
    let setup = Setup { uid: Some(ORDINARY_UID), ..Setup::bare() };
    // The fixture's directory is the user's own; `state` in it is root's and others may only read it.
    let directory = directory_of(setup.uid);
    let state = directory.path().join("state");
    std::fs::create_dir(&state).expect("an own directory");
    std::fs::set_permissions(&state, PermissionsExt::from_mode(0o755)).expect("an own directory");
    let (status, said) = refused_start(&setup, directory.path());
    assert!(status.is_some_and(|status| !status.success()), "it must refuse: {said}");
    assert!(said.contains("chown") && said.contains("chmod 700"), "it must say what mends it: {said}");
    let closed = directory_of(None);
    std::fs::set_permissions(closed.path(), PermissionsExt::from_mode(0o755)).expect("an own directory");
    let (status, said) = refused_start(&setup, closed.path());
    assert!(status.is_some_and(|status| !status.success()), "it must refuse: {said}");
    assert!(said.contains("can't make") && said.contains("state"), "it must name what it could not do: {said}");
}

fn full_state() {
    let directory = directory_of(None);
    let setup = Setup { file_blocks: Some(0), ..Setup::bare() };
    let (status, said) = refused_start(&setup, directory.path());
    assert_eq!(status.and_then(|status| status.code()), Some(1), "it must refuse and not die of a signal: {said}");
    assert!(said.contains("no space") && said.contains("state_dir"), "it must say what is wrong and what mends it: {said}");
    // The control: the same directory is good for a server that may write.
    end(Server::start_in(&Setup::bare(), directory));
}
