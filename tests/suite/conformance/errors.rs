//! Error codes that need a host, a load or an accident of their own.

use std::time::Duration;

use serde_json::{Value, json};

use crate::support::fixture_user::ORDINARY_UID;
use crate::support::{Feature, Session, Setup, eventually, host, page};

pub fn trials() -> Vec<libtest_mimic::Trial> {
    page(
        "errors",
        &[
            ("a runtime that is not there is 1101 and names each candidate with its reason", no_such_runtime),
            ("a host without user namespaces is 1101 with cause and mend", no_user_namespaces),
            ("a wall that can't be built is 1200 before any code runs, and names wall and mend", isolation_unavailable),
            ("a limit that nothing can hold is 1201 when named, and told in enforcement when not", limit_unenforceable),
            ("calls past the rate are 1301 with retryAfterMs, and pass after that time", rate_limited),
            ("an accident of the server is 1500 with an id of its log and no path of the host", internal),
        ],
    )
}

fn no_such_runtime() {
    let server = Setup::bare().shared();
    let mut client = server.client();
    for runtime in ["Deno", "Docker"] {
        let parameters = json!({"language": "javascript", "runtimeType": runtime});
        let error = client.error_is("session.create", &parameters, 1101, "runtime_not_available");
        let candidates = error.data["candidates"].as_array().expect("candidates");
        let of_it = candidates.iter().find(|row| row["type"] == runtime).unwrap_or_else(|| panic!("{error}"));
        assert!(of_it["reason"].as_str().is_some_and(|reason| !reason.is_empty()), "{error}");
        let parameters = json!({"language": "javascript", "code": "1", "runtimeType": runtime});
        let run = client.call("execution.run", &parameters);
        assert!(matches!(run, Err(codebeaker_client::Error::Rpc(error)) if error.code == 1101));
    }
}

/// An ordinary user's server in a user namespace of its own, in which so many further ones can be made. The number is that
/// namespace's own; the host's stays.
fn with_user_namespaces(count: u32) -> Setup {
    host().need(Feature::Root).need(Feature::OrdinaryUser);
    let uid = ORDINARY_UID.to_string();
    let lower = format!(
        "echo {count} > /proc/sys/user/max_user_namespaces && exec setpriv --ambient-caps=-all --inh-caps=-all \"$0\" \"$@\""
    );
    let map = [format!("--map-user={uid}"), format!("--map-group={uid}")];
    let words = ["unshare", "--user", &map[0], &map[1], "--keep-caps", "sh", "-c", &lower];
    Setup { uid: Some(ORDINARY_UID), wrapper: words.map(str::to_owned).to_vec(), ..Setup::bare() }
}

fn no_user_namespaces() {
    let server = with_user_namespaces(0).shared();
    let mut client = server.client();
    let error = client.error_is("session.create", &json!({"language": "bash"}), 1101, "runtime_not_available");
    let native = error.data["candidates"].as_array().into_iter().flatten().find(|row| row["type"] == "NativeProcess");
    let reason = native.and_then(|row| row["reason"].as_str()).unwrap_or_else(|| panic!("{error}"));
    assert!(reason.contains("max_user_namespaces is 0") && reason.contains("sysctl -w"), "{reason}");
}

fn isolation_unavailable() {
    let server = with_user_namespaces(2).shared();
    let mut client = server.client();
    let mut open = Vec::new();
    let mut create = || client.call("session.create", &json!({"language": "bash"}));
    // The probes of the languages need namespaces too, for a moment after the start.
    let mut first = || create().map(|created| open.push(created)).is_ok();
    assert!(eventually(Duration::from_secs(5), &mut first), "the control: while namespaces are left, sessions are made");
    let mut refused = None;
    for _ in 0..2 {
        match create() {
            Ok(created) => open.push(created),
            Err(codebeaker_client::Error::Rpc(error)) => refused = Some(error),
            Err(error) => panic!("{error}"),
        }
    }
    let error = refused.expect("the third session has no namespace left");
    assert_eq!((error.code, error.kind()), (1200, "isolation_unavailable"), "{error}");
    assert!(error.data["wall"].is_string() && error.to_string().contains("doctor"), "{error}");
    for created in open {
        client.ok("session.close", &json!({"sessionId": created["sessionId"]}));
    }
    // The kernel gives namespaces back a moment after the last process in them.
    let mut again = || match client.call("session.create", &json!({"language": "bash"})) {
        Ok(created) => client.ok("session.close", &json!({"sessionId": created["sessionId"]}))["closed"] == true,
        Err(_) => false,
    };
    assert!(eventually(Duration::from_secs(5), &mut again), "the server recovers when namespaces are left");
}

fn limit_unenforceable() {
    host().need(Feature::Root).need(Feature::OrdinaryUser);
    let server = Setup { uid: Some(ORDINARY_UID), ..Setup::plain() }.shared();
    let session = Session::open(&server, &json!({"language": "bash"}));
    let rows = session.created["enforcement"]["limits"].as_array().expect("limits").clone();
    let memory = rows.iter().find(|row| row["name"] == "memory").expect("a row of the memory limit");
    let mut client = server.client();
    let asked = client.call("session.create", &json!({"language": "bash", "memoryLimitMB": 128}));
    if memory["state"] != "absent" {
        // This host delegates a group to everybody: the limit is held, and that is all there is to claim.
        let created = asked.expect("a limit that can be held is no error");
        client.ok("session.close", &json!({"sessionId": created["sessionId"]}));
        return;
    }
    let Err(codebeaker_client::Error::Rpc(error)) = asked else { panic!("{asked:?}") };
    assert_eq!((error.code, error.kind(), &error.data["limit"]), (1201, "limit_unenforceable", &json!("memory")), "{error}");
    assert!(error.data["hint"].as_str().is_some_and(|hint| hint.contains("Delegate")), "{error}");
    assert!(memory["detail"].as_str().is_some_and(|detail| !detail.is_empty()), "{memory}");
}

fn rate_limited() {
    let server = Setup::bare().with_config("[server]\nrate_limit_per_s = 4\nrate_limit_burst = 4\n").shared();
    let mut client = server.client();
    let mut limited = None;
    for _ in 0..12 {
        if let Err(codebeaker_client::Error::Rpc(error)) = client.call("session.list", &json!({})) {
            limited.get_or_insert(error);
        }
    }
    let error = limited.expect("twelve calls at once are more than four");
    assert_eq!((error.code, error.kind(), &error.data["retryable"]), (1301, "rate_limited", &json!(true)), "{error}");
    let wait = error.data["retryAfterMs"].as_u64().expect("a time to wait");
    assert!((1..=1000).contains(&wait), "{wait} ms");
    // A batch is no way round.
    let call = |id| json!({"jsonrpc": "2.0", "id": id, "method": "session.list"});
    let replies = client.raw(&(0..12).map(call).collect::<Value>().to_string());
    assert!(replies.as_array().is_some_and(|list| list.iter().any(|reply| reply["error"]["code"] == 1301)), "{replies}");
    std::thread::sleep(Duration::from_secs(1));
    client.ok("session.list", &json!({}));
}

fn internal() {
    let server = Setup::bare().with_config("[log]\nfilter = \"info\"\n").shared();
    let images = server.state_dir().join("images");
    let aside = server.state_dir().join("images.aside");
    Session::open(&server, &json!({"language": "bash"})).close();
    std::fs::rename(&images, &aside).expect("the state directory is the suite's");
    std::fs::write(&images, "no directory").expect("the state directory is the suite's");
    let outcome = server.client().call("session.create", &json!({"language": "bash"}));
    std::fs::remove_file(&images).expect("it was just written");
    std::fs::rename(&aside, &images).expect("it was just moved");
    let Err(codebeaker_client::Error::Rpc(error)) = outcome else { panic!("{outcome:?}") };
    assert_eq!((error.code, error.kind()), (1500, "internal"), "{error}");
    let id = error.data["id"].as_str().expect("an id to find it in the log");
    assert!(server.log().contains(id), "the log does not have {id}");
    let mut fields: Vec<&String> = error.data.as_object().expect("an object").keys().collect();
    fields.sort();
    assert_eq!(fields, ["hint", "id", "kind", "retryable"], "nothing else");
    assert!(!error.to_string().contains(&server.outside().display().to_string()), "{error}");
    Session::open(&server, &json!({"language": "bash"})).close();
}
