//! The HTTP side of the port: POST, health, metrics, the OpenRPC document, `Host` and `Origin`.

use std::collections::BTreeSet;

use codebeaker_client::{Connect, Error};
use serde_json::{Value, json};

use crate::support::http::request;
use crate::support::{Server, Session, Setup, page};

pub fn trials() -> Vec<libtest_mimic::Trial> {
    page(
        "endpoints",
        &[
            ("JSON-RPC over POST works on both paths", post),
            ("POST without a token is 401", post_unauthorized),
            ("the health endpoints answer without a token", health),
            ("metrics are Prometheus text", metrics),
            ("the OpenRPC document lists every method and is the same over both ways", openrpc),
            ("the upgrade works on both paths and nowhere else", upgrade_paths),
            ("a foreign Host is refused in every mode, an allowed one is not", host_matrix),
            ("a foreign Origin is refused in every mode, an allowed or absent one is not", origin_matrix),
        ],
    )
}

fn bearer(server: &Server) -> String {
    format!("Bearer {}", server.token)
}

fn call(method: &str) -> String {
    json!({"jsonrpc": "2.0", "id": 3, "method": method}).to_string()
}

fn post() {
    let server = Setup::plain().shared();
    for path in ["/", "/ws/jsonrpc"] {
        let answer = request(server.address, path, &[("Authorization", &bearer(&server))], Some(&call("language.list")));
        assert_eq!(answer.status, 200, "{answer:?}");
        assert!(answer.json()["result"]["languages"].is_array(), "{answer:?}");
        let broken = request(server.address, path, &[("Authorization", &bearer(&server))], Some("{"));
        assert_eq!(broken.json()["error"]["code"], -32700, "{broken:?}");
    }
}

fn post_unauthorized() {
    let server = Setup::plain().shared();
    for headers in [&[][..], &[("Authorization", "Bearer wrong")], &[("Authorization", "Basic eDp5")]] {
        let batch = format!("[{}]", call("language.list"));
        for body in [call("language.list"), batch] {
            assert_eq!(request(server.address, "/", headers, Some(&body)).status, 401);
        }
    }
}

fn health() {
    let server = Setup::plain().shared();
    for path in ["/health", "/health/live", "/health/ready"] {
        let answer = request(server.address, path, &[], None);
        assert_eq!(answer.status, 200, "{path}: {answer:?}");
    }
}

fn metrics() {
    let server = Setup::plain().shared();
    let mut session = Session::python(&server);
    assert_eq!(session.run("print(1)"), "1");
    session.close();
    let answer = request(server.address, "/metrics", &[("Authorization", &bearer(&server))], None);
    assert_eq!(answer.status, 200, "{answer:?}");
    assert!(answer.head.contains("content-type: text/plain"), "{}", answer.head);
    assert!(answer.body.contains("# TYPE ") && answer.body.contains("codebeaker_"), "{}", answer.body);
    // The first look for sessions past their time comes at once.
    assert!(answer.body.contains("\ncodebeaker_sweep_seconds_count "), "{}", answer.body);
    let named = |what: &str| {
        let lines = answer.body.lines().filter_map(|line| line.strip_prefix(what));
        lines.filter_map(|rest| rest.split(' ').next()).map(str::to_owned).collect::<BTreeSet<String>>()
    };
    let (typed, helped) = (named("# TYPE "), named("# HELP "));
    assert!(typed.contains("codebeaker_commands_total") && typed.contains("codebeaker_sessions_closed_total"), "{typed:?}");
    assert_eq!(typed.difference(&helped).collect::<Vec<_>>(), Vec::<&String>::new(), "each says what it counts");
}

fn openrpc() {
    let server = Setup::plain().shared();
    let answer = request(server.address, "/openrpc.json", &[("Authorization", &bearer(&server))], None);
    assert_eq!(answer.status, 200, "{answer:?}");
    let document = answer.json();
    assert_eq!(document, server.client().ok("rpc.discover", &json!({})));
    assert!(document["openrpc"].as_str().is_some_and(|version| version.starts_with("1.")), "{document}");
    let methods = document["methods"].as_array().expect("methods");
    let names: Vec<&str> = methods.iter().filter_map(|method| method["name"].as_str()).collect();
    for method in super::methods::ALL {
        assert!(names.contains(&method), "{method} is not in {names:?}");
    }
    let named =
        |method: &&Value| method["params"].is_array() && (method["result"].is_object() || method["name"] == "session.stream");
    assert!(methods.iter().all(|method| named(&method)), "every method has params and a result");
}

fn upgrade_paths() {
    let server = Setup::plain().shared();
    for path in ["/", "/ws/jsonrpc"] {
        let mut client = Connect::to(server.address).bearer(&server.token).path(path).open().expect("an upgrade");
        assert!(client.call("runtime.list", &json!({})).is_ok());
    }
    let elsewhere = Connect::to(server.address).bearer(&server.token).path("/elsewhere").open();
    assert!(matches!(elsewhere, Err(Error::Http { status: 404 | 405, .. })), "{:?}", elsewhere.err());
}

/// The HTTP status of a refused upgrade, or 101.
fn upgrade(server: &Server, header: &str, value: &str) -> u16 {
    let connect = Connect::to(server.address).header(header, value);
    let connect = if server.token.is_empty() { connect } else { connect.bearer(&server.token) };
    match connect.open() {
        Ok(_) => 101,
        Err(Error::Http { status, .. }) => status,
        Err(error) => panic!("{header}: {value}: {error}"),
    }
}

fn host_matrix() {
    for setup in [Setup::plain(), Setup::no_auth(), Setup::small_bounds()] {
        let server = setup.shared();
        let port = server.address.port();
        for good in [format!("127.0.0.1:{port}"), format!("localhost:{port}"), format!("[::1]:{port}")] {
            assert_eq!(upgrade(&server, "Host", &good), 101, "{good}");
        }
        for bad in
            ["evil.example", "evil.example:5000", "127.0.0.1.evil.example", "localhost.evil.example", "127.0.0.2@evil.example"]
        {
            assert!([400, 403, 421].contains(&upgrade(&server, "Host", bad)), "{bad}");
            let posted = request(
                server.address,
                "/",
                &[("Host", bad), ("Authorization", &bearer(&server))],
                Some(&call("language.list")),
            );
            assert!([400, 403, 421].contains(&posted.status), "{bad}: {posted:?}");
        }
    }
    assert_eq!(upgrade(&Setup::small_bounds().shared(), "Host", "beaker.example"), 101);
}

fn origin_matrix() {
    for setup in [Setup::plain(), Setup::no_auth(), Setup::small_bounds()] {
        let server = setup.shared();
        for bad in
            ["https://evil.example", "null", "http://127.0.0.1.evil.example", "https://app.example.evil.example", "file://"]
        {
            assert_eq!(upgrade(&server, "Origin", bad), 403, "{bad}");
            let headers = [("Origin", bad), ("Authorization", &*bearer(&server))];
            assert_eq!(request(server.address, "/", &headers, Some(&call("language.list"))).status, 403, "{bad}");
        }
    }
    let allowing = Setup::small_bounds().shared();
    assert_eq!(upgrade(&allowing, "Origin", "https://app.example"), 101);
    assert_eq!(upgrade(&allowing, "Origin", "http://app.example"), 403);
}
