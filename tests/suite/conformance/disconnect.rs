//! What outlives a connection, and what does not.

use std::time::Duration;

use serde_json::json;

use crate::support::{Session, Setup, eventually, page};

pub fn trials() -> Vec<libtest_mimic::Trial> {
    page(
        "disconnect",
        &[
            ("a session and its files survive a disconnect", survives),
            ("a command goes on when its connection ends, and execution.status tells the outcome", mid_command),
            ("onDisconnect close ties a session to its connection", tied),
            ("a client that closes politely gets a closing handshake", polite),
        ],
    )
}

fn survives() {
    let server = Setup::plain().shared();
    let mut session = Session::python(&server);
    session.write("kept", "still here");
    std::mem::replace(&mut session.client, server.client()).abort();
    assert_eq!(session.read("kept"), "still here");
}

fn mid_command() {
    let server = Setup::plain().shared();
    let mut session = Session::python(&server);
    let code = "import time; print('began', flush=True); time.sleep(1.5); open('done', 'w').write('yes'); print('ended')";
    let (subscription, execution) = session.stream(&json!({"type": "execute_code", "code": code}));
    session.client.event(&subscription).expect("it began");
    std::mem::replace(&mut session.client, server.client()).abort();
    let status = |session: &mut Session<'_>| session.client.ok("execution.status", &json!({"executionId": execution}));
    assert_eq!(status(&mut session)["status"], "running");
    assert!(eventually(Duration::from_secs(10), || status(&mut session)["status"] == "completed"), "{}", status(&mut session));
    assert_eq!(status(&mut session)["stdout"], "began\nended\n");
    assert_eq!(session.read("done"), "yes");
}

fn tied() {
    let server = Setup::plain().shared();
    let mut session = Session::open(&server, &json!({"onDisconnect": "close"}));
    assert_eq!(session.created["config"]["onDisconnect"], "close");
    std::mem::replace(&mut session.client, server.client()).abort();
    let parameters = json!({"sessionId": session.id, "command": {"type": "list_directory"}});
    let mut closed = || match session.client.call("session.execute", &parameters) {
        Err(codebeaker_client::Error::Rpc(error)) => error.code == 1002,
        _ => false,
    };
    assert!(eventually(Duration::from_secs(5), &mut closed), "the session outlives its connection");
    server.expect_no_residue_of(session.environment());
}

fn polite() {
    let server = Setup::plain().shared();
    let client = codebeaker_client::Connect::to(server.address).bearer(&server.token).open().expect("connected");
    client.close().expect("the server answers the closing handshake");
}
