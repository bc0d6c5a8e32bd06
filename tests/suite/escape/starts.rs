//! The start of an engine of isolates, and of a session in it: nobody else waits for it, and what fails half-way leaves nothing.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use super::isolates::engines;
use crate::support::{Feature, Server, Session, Setup, eventually, host, page};

/// Files of a session under the profile of [`half_way`].
const INODES: u64 = 512;

pub fn trials() -> Vec<libtest_mimic::Trial> {
    page(
        "isolates",
        &[
            ("an engine that starts keeps no other principal waiting, and those who wait for it share it", starts),
            ("a session whose directories can't all be made is refused, and those that were made are gone", half_way),
        ],
    )
}

fn named() -> Value {
    json!({"language": "javascript", "runtimeType": "V8Isolate"})
}

/// Stops the first engine that appears.
fn stop_first(server: &Server) -> i32 {
    let mut first = None;
    // Seen as soon as it is there: it is not to come to stand before it is stopped.
    let seen = eventually(Duration::from_secs(20), || {
        first = engines(server).first().copied();
        first.is_some()
    });
    assert!(seen, "an engine is started for the first session");
    let first = first.expect("seen");
    kill(Pid::from_raw(first), Signal::SIGSTOP).expect("a process of this test's own server");
    first
}

fn starts() {
    host().need(Feature::Deno);
    let server = Server::start(&Setup::engines().with_config("measure = false\n"));
    let token = server.cli(&["token", "create", "second"]).expect_code(0);
    let token = token.stdout.split_whitespace().last().expect("a token is printed").to_owned();
    let answered = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let waiting: Vec<_> = (0..2)
            .map(|_| {
                let (server, answered) = (&server, &answered);
                scope.spawn(move || {
                    let session = Session::open(server, &named());
                    answered.store(true, Ordering::Release);
                    session
                })
            })
            .collect();
        let first = stop_first(&server);
        let mut other = Session::open_by(&server, server.client_of(&token), &named());
        let early = answered.load(Ordering::Acquire);
        kill(Pid::from_raw(first), Signal::SIGCONT).expect("a process of this test's own server");
        assert!(!early, "the control: the first engine had not come to stand");
        let hello = json!({"type": "execute_code", "code": "console.log(6 * 7)"});
        assert_eq!(other.ok(&hello)["stdout"], "42\n");
        let mut sessions: Vec<Session<'_>> = waiting.into_iter().map(|session| session.join().expect("opened")).collect();
        for session in &mut sessions {
            assert_eq!(session.ok(&hello)["stdout"], "42\n");
        }
        assert_eq!(engines(&server).len(), 2, "one for each principal");
        other.close();
        sessions.into_iter().for_each(Session::close);
    });
    let left = server.end_and_check();
    assert!(left.is_empty(), "{}", left.join("; "));
}

/// A server whose engines of isolates have two sessions and few files.
fn scarce(directory: &tempfile::TempDir) -> Server {
    let setup =
        Setup::engines().with_config("measure = false\nisolates_per_engine = 2\nisolate_engines_max = 1\nisolate_spares = 0\n");
    Server::start(&setup.with_profile(directory.path(), "scarce", &format!("inodes = {INODES}")))
}

fn half_way() {
    host().need(Feature::Deno);
    let directory = tempfile::tempdir().expect("a temporary directory");
    let server = scarce(&directory);
    let mut parameters = named();
    parameters["profile"] = json!("scarce");
    let mut one = Session::open(&server, &parameters);
    let write = |session: &mut Session<'_>, name: String| {
        session.execute(&json!({"type": "write_file", "path": name, "content": ""}))["success"] == true
    };
    let files = (0..3 * INODES).take_while(|n| write(&mut one, format!("file{n}"))).count();
    assert!(files < 2 * usize::try_from(INODES).expect("small"), "the control: there is an end to files: {files}");
    // Room for the session's directory and the first in it, not for the second.
    for name in ["file0", "file1"] {
        one.ok(&json!({"type": "delete_file", "path": name}));
    }
    let refused = server.client().call("session.create", &parameters).expect_err("there is no room for it").to_string();
    assert!(refused.contains("1302") && refused.contains("the session's directory: could not"), "{refused}");
    // The kernel may give an inode back late.
    for name in ["file0", "file1"] {
        assert!(eventually(Duration::from_secs(10), || write(&mut one, name.into())), "what was made of it is gone: {name}");
    }
    for n in 3..40 {
        one.ok(&json!({"type": "delete_file", "path": format!("file{n}")}));
    }
    let mut next = Session::open(&server, &parameters);
    assert_eq!(
        next.ok(&json!({"type": "execute_code", "code": "console.log(6 * 7)"}))["stdout"],
        "42\n",
        "the engine takes others"
    );
    next.close();
    one.close();
    let left = server.end_and_check();
    assert!(left.is_empty(), "{}", left.join("; "));
}
