//! The launcher, an init or the server is killed from outside: what a client is told, and what is left.
//!
//! Only processes below the trial's own server are signalled.

use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use super::end;
use crate::support::fixture_user::ORDINARY_UID;
use crate::support::residue::{descendants, groups_made_by, lives};
use crate::support::{Client, Feature, Server, Session, Setup, eventually, host, pace, page};

pub(super) fn trials() -> Vec<libtest_mimic::Trial> {
    page(
        "lifecycle",
        &[
            ("an init killed from outside closes its session with the reason and no other", init_killed),
            ("a launcher that is killed takes its sessions with it and another one takes its place", launcher_killed),
            ("without root too a launcher that is killed is replaced", launcher_killed_rootless),
            ("a launcher that is killed again and again while clients create leaves nothing", launcher_killed_under_load),
            ("a server killed at any moment of create, execute and close leaves nothing behind", server_killed_at_random),
            ("a server that was stopped for ten seconds goes on where it was", stopped),
        ],
    )
}

fn slay(pid: i32) {
    kill(Pid::from_raw(pid), Signal::SIGKILL).expect("a process below the trial's own server");
}

fn shell(session: &Value, line: &str) -> Value {
    let command = json!({"type": "execute_shell", "commandName": "bash", "args": ["-c", line], "timeoutSeconds": 60});
    json!({"sessionId": session["sessionId"], "command": command})
}

/// The inits that live below a launcher.
fn inits(server: &Server) -> Vec<i32> {
    let Some(launcher) = server.launcher() else { return Vec::new() };
    let below = descendants(launcher).into_iter();
    below.filter(|process| process.parent == launcher && !process.zombie).map(|process| process.identity.0).collect()
}

/// Fails unless the session is Closed and says why.
fn expect_closed(client: &mut Client, session: &Value, reason: &str) {
    let id = json!({"sessionId": session["sessionId"]});
    let refused = || client.call("session.execute", &shell(session, "true")).err().map(|error| error.to_string());
    let mut refused = refused;
    let mut said = String::new();
    let closed = eventually(Duration::from_secs(10), || {
        said = refused().unwrap_or_default();
        said.contains(reason)
    });
    assert!(closed, "the session {id} must be closed and say `{reason}`: {said}");
}

fn init_killed() {
    let server = Server::start(&Setup::without_pool());
    let mut other = Session::python(&server);
    let mut client = server.client();
    let before = inits(&server);
    let session = client.ok("session.create", &json!({"language": "bash"}));
    server.observe();
    let new: Vec<i32> = inits(&server).into_iter().filter(|pid| !before.contains(pid)).collect();
    let running = client.send("session.execute", &shell(&session, "sleep 60")).expect("sent");
    std::thread::sleep(Duration::from_millis(300) * pace());
    assert_eq!(new.len(), 1, "one session, one init");
    slay(new[0]);
    let answer = client.wait(running).expect("the command in flight is answered");
    assert_eq!((&answer["success"], &answer["errorKind"]), (&json!(false), &json!("sandbox_gone")), "{answer}");
    expect_closed(&mut client, &session, "its init ended");
    assert_eq!(client.error("session.execute", &shell(&session, "true")).code, 1002);
    server.expect_no_residue_of(session["environmentId"].as_str().expect("a name"));
    assert_eq!(other.run("print(1)"), "1", "another session goes on");
    other.close();
    end(server);
}

fn launcher_killed() {
    launcher_killed_of(&Setup::plain());
}

fn launcher_killed_rootless() {
    host().need(Feature::Root).need(Feature::OrdinaryUser);
    launcher_killed_of(&Setup { uid: Some(ORDINARY_UID), ..Setup::plain() });
}

fn launcher_killed_of(setup: &Setup) {
    let server = Server::start(setup);
    let mut client = server.client();
    let sessions: Vec<Value> = (0..3).map(|_| client.ok("session.create", &json!({"language": "bash"}))).collect();
    let running = client.send("session.execute", &shell(&sessions[0], "setsid sleep 60 & sleep 60")).expect("sent");
    // Its init acts as its programs then, and changes of that kind disarm death signals.
    let write = json!({"sessionId": sessions[1]["sessionId"], "command": {"type": "write_file", "path": "a", "content": "b"}});
    assert_eq!(client.ok("session.execute", &write)["success"], true);
    std::thread::sleep(Duration::from_millis(300) * pace());
    server.observe();
    let launcher = server.launcher().expect("a launcher");
    let below = descendants(launcher);
    assert!(below.len() >= 6, "the control: three inits and programs live: {below:?}");
    slay(launcher);
    let gone = || below.iter().all(|process| !lives(process.identity));
    assert!(eventually(Duration::from_secs(1), gone), "a second after the launcher's death some of {below:?} live");
    let answer = client.wait(running).expect("the command in flight is answered");
    assert_eq!(answer["errorKind"], "sandbox_gone", "{answer}");
    for session in &sessions {
        expect_closed(&mut client, session, "the launcher ended");
        server.expect_no_residue_of(session["environmentId"].as_str().expect("a name"));
    }
    // This call may come while the next launcher starts; then it waits for it.
    let mut next = Session::python(&server);
    assert_eq!(next.run("print(1)"), "1");
    assert!(server.launcher().is_some_and(|pid| pid != launcher), "another launcher");
    next.close();
    end(server);
}

/// Creates and closes until `over`; every refusal must be typed. The number of sessions that worked.
fn churn(mut client: Client, over: Instant) -> usize {
    let mut worked = 0;
    while Instant::now() < over {
        match client.call("session.create", &json!({"language": "bash"})) {
            Ok(session) => {
                match client.call("session.execute", &shell(&session, "echo x")) {
                    Ok(answer) if answer["success"] == true => {
                        assert_eq!(answer["result"]["stdout"], "x\n", "{answer}");
                        worked += 1;
                    }
                    Ok(answer) => assert_eq!(answer["errorKind"], "sandbox_gone", "{answer}"),
                    Err(codebeaker_client::Error::Rpc(error)) => assert_eq!(error.code, 1002, "{error}"),
                    Err(error) => panic!("the connection must live: {error}"),
                }
                client.ok("session.close", &json!({"sessionId": session["sessionId"]}));
            }
            Err(codebeaker_client::Error::Rpc(error)) => assert_eq!(error.code, 1302, "a typed refusal: {error}"),
            Err(error) => panic!("the connection must live: {error}"),
        }
    }
    worked
}

fn launcher_killed_under_load() {
    let server = Server::start(&Setup::plain());
    // The kills take three seconds; after the last a launcher has to come and to serve.
    let over = Instant::now() + Duration::from_secs(3) + Duration::from_secs(3) * pace();
    let clients: Vec<_> =
        (0..3).map(|_| server.client()).map(|client| std::thread::spawn(move || churn(client, over))).collect();
    for pause in [150, 730, 410, 90, 620, 350, 260] {
        std::thread::sleep(Duration::from_millis(pause));
        if let Some(launcher) = server.launcher() {
            server.observe();
            // One that another kill has just ended may be gone already.
            kill(Pid::from_raw(launcher), Signal::SIGKILL).ok();
        }
    }
    let worked: usize = clients.into_iter().map(|client| client.join().expect("a client that saw only typed answers")).sum();
    assert!(worked > 0, "between the kills sessions work");
    // On a slow host the launcher after the last kill may only just have come.
    let ready = || server.client().call("session.create", &json!({"language": "bash"})).is_ok();
    assert!(eventually(Duration::from_secs(30), ready), "after the last kill sessions can be made again");
    let mut session = Session::python(&server);
    assert_eq!(session.run("print(1)"), "1");
    session.close();
    let reaped = || !descendants(server.pid()).into_iter().any(|process| process.zombie);
    assert!(eventually(Duration::from_secs(10), reaped), "what the server adopted is reaped");
    end(server);
}

/// A client that creates, executes and closes until its server is gone.
fn busy(server: &Server) -> std::thread::JoinHandle<()> {
    let mut client = server.client();
    std::thread::spawn(move || {
        loop {
            let Ok(session) = client.call("session.create", &json!({"language": "bash"})) else { return };
            let file = json!({"type": "write_file", "path": "a/b", "content": "x".repeat(10_000)});
            let write = json!({"sessionId": session["sessionId"], "command": file});
            let calls = [("session.execute", write), ("session.execute", shell(&session, "setsid sleep 30 & echo x"))];
            if calls.iter().any(|(method, params)| client.call(method, params).is_err()) {
                return;
            }
            if client.call("session.close", &json!({"sessionId": session["sessionId"]})).is_err() {
                return;
            }
        }
    })
}

fn server_killed_at_random() {
    const ROUNDS: u64 = 20;
    let mut directory = crate::support::fixture_user::directory_of(None);
    // A fixed seed: a failing round can be run again.
    let mut state: u64 = 0x5eed;
    for round in 0..ROUNDS {
        let server = Server::start_in(&Setup::plain(), directory);
        let left = server.left_after(Duration::ZERO);
        assert!(left.is_empty(), "round {round}, after the start: {}", left.join("; "));
        let client = busy(&server);
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        std::thread::sleep(Duration::from_millis(20 + (state >> 33) % 230));
        let below = descendants(server.pid());
        server.signal(Signal::SIGKILL);
        let gone = || below.iter().all(|process| !lives(process.identity));
        assert!(eventually(Duration::from_secs(1), gone), "round {round}: a second after the kill some of {below:?} live");
        server.wait(Duration::from_secs(5)).expect("it is dead");
        client.join().expect("a client that lost its server");
        let left = server.left_after(Duration::from_secs(2));
        let hard: Vec<&String> =
            left.iter().filter(|sentence| sentence.contains("lives") || sentence.contains("mount")).collect();
        assert!(hard.is_empty(), "round {round}: {hard:?}");
        // Groups that the server had made and not yet told of are the launcher's to remove, too.
        let pid = server.pid().cast_unsigned();
        let cleared = eventually(Duration::from_secs(5), || groups_made_by(pid).is_empty());
        assert!(cleared, "round {round}: {:?} is left", groups_made_by(pid));
        directory = server.into_directory();
    }
    end(Server::start_in(&Setup::plain(), directory));
}

fn stopped() {
    let server = Server::start(&Setup::plain());
    let mut session = Session::python(&server);
    let request = session.client.send("session.execute", &shell(&session.created, "sleep 1; echo done")).expect("sent");
    std::thread::sleep(Duration::from_millis(200));
    server.signal(Signal::SIGSTOP);
    std::thread::sleep(Duration::from_secs(10));
    server.signal(Signal::SIGCONT);
    let answer = session.client.wait(request).expect("an answer after the pause");
    assert_eq!((&answer["success"], &answer["result"]["stdout"]), (&json!(true), &json!("done\n")), "{answer}");
    assert_eq!(session.run("print(1)"), "1");
    session.close();
    end(server);
}
