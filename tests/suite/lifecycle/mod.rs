//! The server's own life: SIGTERM, SIGKILL in mid-command, leftovers, the lock on the state directory, descriptors.
//!
//! Read `closing` for the end of a session, `groups` for what becomes of control groups, `kills` for the deaths of launcher, init and server, `leftovers` for what a
//! next start finds, `pressure` for a server that lacks descriptors and for crowds of clients, `scarce` for one that lacks memory,
//! a place to write or the right time.

mod closing;
mod groups;
mod kills;
mod leftovers;
mod pressure;
mod scarce;

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::json;

use crate::support::server::refused_start;
use crate::support::{Server, Session, Setup, eventually, pace, page, residue};

pub fn trials() -> Vec<libtest_mimic::Trial> {
    let mut trials = page(
        "lifecycle",
        &[
            ("SIGTERM closes every session and ends with 0", graceful),
            ("SIGTERM the moment a server listens ends it with 0 like any other", at_once),
            ("SIGTERM gives a running command its grace and then ends it", grace),
            ("after SIGKILL in mid-command everything dies within a second and the next start clears up", killed),
            ("a second server on the same state directory is refused and the holder named", second_server),
            ("descriptors go back to where they were when sessions are closed", descriptors),
            ("the launcher holds no descriptor for a session", launcher_descriptors),
            ("a token survives a restart", token_survives),
            ("a broken configuration is refused with its field named", broken_configuration),
        ],
    );
    trials.extend(closing::trials());
    trials.extend(groups::trials());
    trials.extend(kills::trials());
    trials.extend(leftovers::trials());
    trials.extend(pressure::trials());
    trials.extend(scarce::trials());
    trials
}

fn end(server: Server) {
    let left = server.end_and_check();
    assert!(left.is_empty(), "{}", left.join("; "));
}

/// A session that the server's end closes, not the test.
fn abandoned(server: &Server, line: &str) {
    let mut client = server.client();
    let created = client.ok("session.create", &json!({"language": "bash"}));
    let command = json!({"type": "execute_shell", "commandName": "bash", "args": ["-c", line], "timeoutSeconds": 60});
    client.ok("session.stream", &json!({"sessionId": created["sessionId"], "command": command}));
    server.observe();
}

fn graceful() {
    let server = Server::start(&Setup::plain());
    server.client().ok("session.create", &json!({"language": "python"}));
    server.client().ok("session.create", &json!({"language": "bash"}));
    server.observe();
    end(server);
}

fn at_once() {
    for _ in 0..5 {
        end(Server::start(&Setup::bare()));
    }
}

fn grace() {
    let server = Server::start(&Setup::plain().with_config("[server]\nshutdown_grace_s = 2\n"));
    let mut client = server.client();
    let created = client.ok("session.create", &json!({"language": "bash"}));
    let id = created["sessionId"].clone();
    let short = json!({"sessionId": id, "command": {"type": "execute_shell", "commandName": "sleep", "args": ["1"]}});
    let request = client.send("session.execute", &short).expect("sent");
    abandoned(&server, "trap '' TERM; while :; do sleep 0.1; done");
    std::thread::sleep(Duration::from_millis(200));
    let begin = Instant::now();
    server.signal(Signal::SIGTERM);
    assert_eq!(client.wait(request).expect("an answer within the grace")["success"], true);
    let status = server.wait(Duration::from_secs(15)).expect("it ends");
    assert!(status.success(), "{status}");
    assert!(begin.elapsed() < Duration::from_secs(10) * pace(), "the grace is bounded: {:?}", begin.elapsed());
    let left = server.left_after(Duration::from_secs(1));
    assert!(left.is_empty(), "{}", left.join("; "));
}

fn killed() {
    let server = Server::start(&Setup::plain());
    for line in ["sleep 600", "setsid sleep 600 & sleep 600", "while :; do :; done"] {
        abandoned(&server, line);
    }
    std::thread::sleep(Duration::from_millis(300) * pace());
    server.observe();
    let descendants = crate::support::residue::descendants(server.pid());
    assert!(descendants.len() >= 6, "the control: launcher, three inits and their programs live: {descendants:?}");
    server.signal(Signal::SIGKILL);
    let gone = || descendants.iter().all(|process| !crate::support::residue::lives(process.identity));
    assert!(eventually(Duration::from_secs(1), gone), "a second after the server's death some of {descendants:?} live");
    server.wait(Duration::from_secs(5)).expect("it is dead");
    let token = server.token.clone();
    // Only the next start clears what the dead server could not.
    let next = Server::start_in(&Setup::plain(), server.into_directory());
    assert_eq!(next.token, token);
    let mut session = Session::python(&next);
    assert_eq!(session.run("print(1)"), "1");
    session.close();
    end(next);
}

fn second_server() {
    let server = Server::start(&Setup::plain());
    let (status, said) = refused_start(&Setup::plain(), server.outside());
    assert!(status.is_some_and(|status| !status.success()), "two servers on one state directory: {said}");
    assert!(said.contains(&server.pid().to_string()), "the holder {} must be named: {said}", server.pid());
    server.client().ok("session.list", &json!({}));
    end(server);
}

fn descriptors() {
    let server = Server::start(&Setup::without_pool());
    let work = || {
        let mut session = Session::python(&server);
        session.write("a", "b");
        session.run("print(1)");
        let (subscription, _) = session.stream(&json!({"type": "execute_shell", "commandName": "echo", "args": ["x"]}));
        session.client.events(&subscription);
        session.close();
    };
    work();
    std::thread::sleep(Duration::from_millis(500));
    let before = server.open_descriptors();
    for _ in 0..10 {
        work();
    }
    let back = || server.open_descriptors() <= before;
    assert!(eventually(Duration::from_secs(5), back), "{before} before, {} after ten sessions", server.open_descriptors());
    end(server);
}

fn launcher_descriptors() {
    let server = Server::start(&Setup::without_pool());
    let launcher = server.launcher().expect("a launcher");
    let held = || residue::open_descriptors(launcher).expect("it lives and is ours to look at");
    let first = Session::python(&server);
    let before = held();
    let more: Vec<_> = (0..5).map(|_| Session::python(&server)).collect();
    assert_eq!(held(), before, "each clone gets a copy of the table");
    for session in more.into_iter().chain([first]) {
        session.close();
    }
    end(server);
}

fn token_survives() {
    let server = Server::start(&Setup::plain());
    let token = server.token.clone();
    server.signal(Signal::SIGTERM);
    server.wait(Duration::from_secs(30)).expect("it ends");
    let next = Server::start_in(&Setup::plain(), server.into_directory());
    assert_eq!(next.token, token);
    next.client_of(&token).ok("session.list", &json!({}));
    end(next);
}

fn broken_configuration() {
    for (config, word) in [("[server]\nbogus = 1\n", "bogus"), ("[session]\nsessions_max = \"many\"\n", "sessions_max")] {
        let directory = crate::support::fixture_user::directory_of(None);
        let (status, said) = refused_start(&Setup::bare().with_config(config), directory.path());
        assert!(status.is_some_and(|status| !status.success()) && said.contains(word), "{config}: {said}");
    }
}
