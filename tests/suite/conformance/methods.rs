//! What the server says of itself: initialize, language.list, runtime.list, and execution.run.

use std::time::Duration;

use serde_json::{Value, json};

use crate::support::{Feature, Host, Setup, eventually, page};

/// The methods of PROTOCOL section 2.
pub const ALL: [&str; 15] = [
    "initialize",
    "language.list",
    "runtime.list",
    "session.create",
    "session.execute",
    "session.stream",
    "session.input",
    "session.signal",
    "session.cancel",
    "session.get",
    "session.list",
    "session.close",
    "execution.run",
    "execution.status",
    "rpc.discover",
];

/// The nine commands.
const COMMANDS: [&str; 9] = [
    "write_file",
    "read_file",
    "execute_shell",
    "execute_code",
    "create_directory",
    "copy_file",
    "delete_file",
    "list_directory",
    "install_packages",
];

pub fn trials() -> Vec<libtest_mimic::Trial> {
    page(
        "methods",
        &[
            ("initialize tells version, features and limits", initialize),
            ("language.list has rows of the promised shape for python, javascript and bash", languages),
            ("runtime.list tells for each runtime whether it can serve, and why not", runtimes),
            ("execution.run answers at once and execution.status tells the end", run_once),
            ("execution.run of a failing, an endless and an unknown program fails truly", run_once_failures),
            ("execution.status of an unknown id is not_found", unknown_execution),
        ],
    )
}

fn initialize() {
    let server = Setup::plain().shared();
    let mut client = server.client();
    let parameters = json!({"clientInfo": {"name": "suite", "version": "1"}, "protocolVersion": "1.0"});
    let reply = client.ok("initialize", &parameters);
    assert_eq!(reply["protocolVersion"], "1.0");
    assert!(reply["serverInfo"]["name"].is_string() && reply["serverInfo"]["version"].is_string(), "{reply}");
    let features = &reply["serverCapabilities"];
    assert_eq!(features["supportsStreaming"], true);
    for field in ["supportsDebugging", "supportsPortForwarding", "supportsFileWatch"] {
        assert!(features[field].is_boolean(), "{field}: {reply}");
    }
    for field in ["maxTimeout", "maxMemory", "maxConcurrency"] {
        assert!(features["limits"][field].as_u64().is_some_and(|limit| limit > 0), "{field}: {reply}");
    }
    let has = |list: &Value, word: &str| list.as_array().is_some_and(|list| list.iter().any(|entry| entry == word));
    assert!(has(&features["supportedLanguages"], "python"), "{reply}");
    assert!(COMMANDS.iter().all(|command| has(&features["commands"], command)), "{reply}");
    assert_eq!(client.ok("initialize", &json!({}))["protocolVersion"], "1.0", "every field may be left out");
}

fn languages() {
    let server = Setup::plain().shared();
    let mut client = server.client();
    // Versions are asked of the programs themselves after the start.
    let mut reply = Value::Null;
    let python_is_known = || {
        reply = client.ok("language.list", &json!({}));
        let rows = reply["languages"].as_array().expect("rows");
        rows.iter().any(|row| row["name"] == "python" && row["version"].is_string())
    };
    assert!(eventually(Duration::from_secs(20), python_is_known) || !Host::has(Feature::Python), "{reply}");
    let rows = reply["languages"].as_array().expect("rows");
    for name in ["python", "javascript", "bash"] {
        let row = rows.iter().find(|row| row["name"] == name).unwrap_or_else(|| panic!("no {name} in {reply}"));
        assert!(row["displayName"].is_string() && row["image"].is_string() && row["installed"].is_boolean(), "{row}");
        assert!(row["aliases"].is_array() && row["runtimes"].as_array().is_some(), "{row}");
    }
    if Host::has(Feature::Python) {
        // Versions are asked for once the server listens, so the first answers may be without.
        let mut reply = Value::Null;
        let told = eventually(Duration::from_secs(60), || {
            reply = server.client().ok("language.list", &json!({}));
            let rows = reply["languages"].as_array().expect("rows");
            let python = rows.iter().find(|row| row["name"] == "python").expect("a row");
            python["installed"] == true && python["version"].is_string()
        });
        assert!(told, "{reply}");
    }
}

fn runtimes() {
    let server = Setup::plain().shared();
    let reply = server.client().ok("runtime.list", &json!({}));
    let rows = reply["runtimes"].as_array().expect("rows");
    for row in rows {
        assert!(
            row["name"].is_string() && row["type"].is_string() && row["languages"].is_array() && row["commands"].is_array(),
            "{row}"
        );
        assert_eq!(row["available"] == false, row["reason"].is_string(), "what can't serve says why: {row}");
        let features = &row["capabilities"];
        let numbers = ["startupTimeMs", "memoryOverheadMB", "isolationLevel", "maxConcurrentExecutions"];
        assert!(numbers.iter().all(|field| features[field].is_number()), "{row}");
        let truths = ["supportsFilesystemPersistence", "supportsNetworkAccess", "measured"];
        assert!(truths.iter().all(|field| features[field].is_boolean()), "{row}");
    }
    let native = rows.iter().find(|row| row["type"] == "NativeProcess").expect("the main runtime has a row");
    assert_eq!(native["available"], true, "{native}");
    assert!(
        COMMANDS.iter().all(|command| native["commands"].as_array().is_some_and(|list| list.iter().any(|one| one == command)))
    );
}

/// Waits for the end of an `execution.run`; its last status.
pub fn finished(client: &mut crate::support::Client, execution: &Value) -> Value {
    let mut status = Value::Null;
    let ended = eventually(Duration::from_secs(60), || {
        status = client.ok("execution.status", &json!({"executionId": execution}));
        let word = status["status"].as_str().unwrap_or_default().to_owned();
        assert!(["queued", "running", "completed", "failed"].contains(&word.as_str()), "{status}");
        word == "completed" || word == "failed"
    });
    assert!(ended, "{status}");
    status
}

fn run_once() {
    let server = Setup::plain().shared();
    let mut client = server.client();
    let code = "import sys; print(6 * 7); print('word', file=sys.stderr)";
    let reply = client.ok("execution.run", &json!({"language": "python", "code": code, "timeout": 120, "memoryLimit": 128}));
    assert_eq!(reply["status"], "queued");
    let status = finished(&mut client, &reply["executionId"]);
    assert_eq!((&status["status"], &status["exitCode"]), (&json!("completed"), &json!(0)), "{status}");
    assert_eq!((&status["stdout"], &status["stderr"]), (&json!("42\n"), &json!("word\n")));
    assert!(status["durationMs"].is_number(), "{status}");
    let later = server.client().ok("execution.status", &json!({"executionId": reply["executionId"]}));
    assert_eq!(later, status, "another connection of the same principal hears the same");
}

fn run_once_failures() {
    let server = Setup::plain().shared();
    let mut client = server.client();
    let failing = client.ok("execution.run", &json!({"language": "python", "code": "raise SystemExit(7)"}));
    let status = finished(&mut client, &failing["executionId"]);
    assert_eq!((&status["status"], &status["exitCode"]), (&json!("failed"), &json!(7)), "{status}");
    let endless = client.ok("execution.run", &json!({"language": "python", "code": "while True: pass", "timeout": 1}));
    let status = finished(&mut client, &endless["executionId"]);
    assert_eq!((&status["status"], &status["timeout"]), (&json!("failed"), &json!(true)), "{status}");
    client.error_is("execution.run", &json!({"language": "klingon", "code": ""}), 1100, "language_not_supported");
}

fn unknown_execution() {
    let server = Setup::plain().shared();
    let id = "exe_00000000000000000000000000000000";
    let status = server.client().ok("execution.status", &json!({"executionId": id}));
    assert_eq!((&status["status"], &status["executionId"]), (&json!("not_found"), &json!(id)));
}
