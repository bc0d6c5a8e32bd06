//! Who may connect, and what belongs to whom.

use codebeaker_client::{Connect, Error};
use serde_json::json;

use crate::support::{Server, Session, Setup, page};

pub fn trials() -> Vec<libtest_mimic::Trial> {
    page(
        "auth",
        &[
            ("the upgrade without a valid token is 401", unauthorized),
            ("the subprotocol pair authenticates as a header does", subprotocol),
            ("the token lies in the state directory with mode 0600", token_file),
            ("a session of one principal does not exist for another", ownership),
            ("a revoked token is refused", revoked),
            ("with --no-auth all clients are one principal", no_auth),
            ("--no-auth is refused on an address that is not loopback", no_auth_loopback_only),
        ],
    )
}

fn unauthorized() {
    let server = Setup::plain().shared();
    let to = || Connect::to(server.address);
    let truncated = &server.token[..server.token.len() - 1];
    let attempts = [
        to(),
        to().bearer("wrong"),
        to().bearer(""),
        to().bearer(truncated),
        to().header("Authorization", &format!("Basic {}", server.token)),
        to().bearer_subprotocol("wrong"),
        to().path(&format!("/?token={}", server.token)),
    ];
    for attempt in attempts {
        let refused = attempt.open();
        assert!(matches!(refused, Err(Error::Http { status: 401, .. })), "{attempt:?}: {:?}", refused.err());
    }
}

fn subprotocol() {
    let server = Setup::plain().shared();
    let mut client = Connect::to(server.address).bearer_subprotocol(&server.token).open().expect("the pair authenticates");
    assert!(client.call("session.list", &json!({})).is_ok());
}

fn token_file() {
    let server = Setup::plain().shared();
    let metadata = std::fs::metadata(server.state_dir().join("token")).expect("the token is in the state directory");
    assert_eq!(std::os::unix::fs::PermissionsExt::mode(&metadata.permissions()) & 0o7777, 0o600);
    assert!(server.token.len() >= 32, "a token is long enough not to be guessed");
    assert!(!server.log().contains(&server.token), "the log never holds the token");
}

/// Makes a token on the command line; `token create NAME` prints it on stdout.
fn token(server: &Server, name: &str) -> String {
    let output = server.cli(&["token", "create", name]).expect_code(0);
    output.stdout.split_whitespace().last().expect("a token is printed").to_owned()
}

fn ownership() {
    let server = Setup::plain().shared();
    let mut session = Session::python(&server);
    session.write("mine", "secret");
    let other = token(&server, "other");
    let mut stranger = server.client_of(&other);
    let id = session.id.clone();
    let command = json!({"type": "read_file", "path": "mine"});
    for (method, parameters) in [
        ("session.get", json!({"sessionId": id})),
        ("session.execute", json!({"sessionId": id, "command": command})),
        ("session.stream", json!({"sessionId": id, "command": command})),
        ("session.cancel", json!({"sessionId": id})),
        ("session.input", json!({"sessionId": id, "executionId": "exe_1", "data": "x"})),
        ("session.signal", json!({"sessionId": id, "executionId": "exe_1", "signal": "SIGTERM"})),
    ] {
        stranger.error_is(method, &parameters, 1001, "session_not_found");
    }
    let execution = session.execute(&command)["executionId"].clone();
    assert_eq!(stranger.ok("execution.status", &json!({"executionId": execution}))["status"], "not_found");
    assert_eq!(session.client.ok("execution.status", &json!({"executionId": execution}))["status"], "completed");
    stranger.ok("session.close", &json!({"sessionId": id}));
    assert_eq!(stranger.ok("session.list", &json!({}))["count"], 0);
    assert_eq!(session.read("mine"), "secret", "closing another's session does nothing");
}

fn revoked() {
    let server = Setup::plain().shared();
    let token = token(&server, "short-lived");
    server.client_of(&token).ok("session.list", &json!({}));
    let list = server.cli(&["token", "list"]).expect_code(0);
    assert!(list.stdout.contains("short-lived") && !list.stdout.contains(&token), "{}", list.stdout);
    server.cli(&["token", "revoke", "short-lived"]).expect_code(0);
    let refused = || matches!(Connect::to(server.address).bearer(&token).open(), Err(Error::Http { status: 401, .. }));
    assert!(crate::support::eventually(std::time::Duration::from_secs(5), refused), "the token still opens the door");
}

fn no_auth() {
    let server = Setup::no_auth().shared();
    let mut session = Session::python(&server);
    session.write("x", "shared");
    let mut other = codebeaker_client::Connect::to(server.address).open().expect("no token is needed");
    let got = other.call("session.get", &json!({"sessionId": session.id})).expect("one principal");
    assert_eq!(got["sessionId"], session.id.as_str());
}

fn no_auth_loopback_only() {
    let setup = Setup { listen: Some("0.0.0.0:0".into()), ..Setup::no_auth() };
    let directory = crate::support::fixture_user::directory_of(None);
    let (status, said) = crate::support::server::refused_start(&setup, directory.path());
    assert!(status.is_some_and(|status| !status.success()), "it started: {said}");
    assert!(said.contains("loopback"), "it must say why: {said}");
}
