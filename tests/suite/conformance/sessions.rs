//! The life of a session: create with every field, get, list, close, and what each refuses.

use std::time::Duration;

use serde_json::json;

use crate::support::{Client, Session, Setup, eventually, pace, page};

pub fn trials() -> Vec<libtest_mimic::Trial> {
    page(
        "sessions",
        &[
            ("session.create replies with everything that is in force", create_reply),
            ("every field of session.create is taken and told", create_every_field),
            ("a language is found by its alias", language_alias),
            ("an unknown language, image, runtime and profile each get their own error", create_errors),
            ("a limit past the operator's maximum is policy_denied", policy),
            ("strict is 256 MB and default 512 MB when nothing is said", profile_defaults),
            ("session.get has the row of session.list and more", get_and_list),
            ("session.list filters by state and language", list_filters),
            ("executionCount counts every command", execution_count),
            ("closing twice or an unknown id is no error", close_twice),
            ("a closed session is 1002 and an unknown one 1001", closed_and_unknown),
            ("metadata comes back as it was given", metadata),
            ("env of the session reaches its programs, and a command's own wins", env),
            ("env of the session wins over the language's and the defaults, a command's own over all", env_order),
            ("allowNet is policy_denied under every profile, and permissions are checked", permissions),
            ("state is Active while a command runs and Idle after it", states),
            ("a session past its idle timeout is closed by the sweeper, one with a running command is not", idle_sweep),
            ("a background execution is activity too", background_is_activity),
            ("a session past its lifetime is closed by the sweeper, whatever it runs", lifetime_sweep),
            ("minutes may be fractions, and whole ones are told as whole numbers", minutes),
        ],
    )
}

fn create_reply() {
    let server = Setup::bare().shared();
    let session = Session::python(&server);
    let created = &session.created;
    for field in ["sessionId", "environmentId", "containerId", "runtimeType", "language", "image", "createdAt"] {
        assert!(created[field].as_str().is_some_and(|text| !text.is_empty()), "{field}: {created}");
    }
    assert_eq!((&created["state"], &created["runtimeType"]), (&json!("Active"), &json!("NativeProcess")));
    assert_eq!((&created["containerId"], &created["language"]), (&created["environmentId"], &json!("python")));
    let selection = &created["selection"];
    assert!(selection["preference"].is_string() && selection["reason"].is_string(), "{selection}");
    assert!(selection["candidates"].as_array().is_some_and(|list| !list.is_empty()), "{selection}");
    let config = &created["config"];
    assert_eq!((&config["idleTimeoutMinutes"], &config["maxLifetimeMinutes"]), (&json!(30), &json!(120)), "{config}");
    assert_eq!((&config["persistFilesystem"], &config["memoryLimitMB"]), (&json!(true), &json!(512)), "{config}");
    assert_eq!((&config["profile"], &config["cpuShares"]), (&json!("default"), &json!(1024)), "{config}");
    let enforcement = &created["enforcement"];
    for wall in enforcement["walls"].as_array().expect("walls") {
        assert!(["enforced", "degraded", "absent"].iter().any(|state| wall["state"] == *state), "{wall}");
    }
    assert!(enforcement["profile"]["sha256"].as_str().is_some_and(|digest| digest.len() == 64), "{enforcement}");
}

fn create_every_field() {
    let server = Setup::plain().shared();
    let parameters = json!({
        "language": "python", "runtimePreference": "Security", "runtimeType": "NativeProcess", "image": "host", "profile": "strict",
        "idleTimeoutMinutes": 5, "maxLifetimeMinutes": 6, "persistFilesystem": true, "memoryLimitMB": 128, "cpuShares": 512,
        "cpuLimit": 0.5, "pidsLimit": 32, "diskLimitMB": 16, "env": {"A": "b"}, "packages": [], "metadata": {"k": [1]},
        "permissions": {"allowRead": ["/workspace"], "allowWrite": [], "allowNet": false, "allowEnv": true}, "onDisconnect": "keep",
    });
    let session = Session::open(&server, &parameters);
    let config = &session.created["config"];
    for field in [
        "profile",
        "idleTimeoutMinutes",
        "maxLifetimeMinutes",
        "memoryLimitMB",
        "cpuShares",
        "cpuLimit",
        "pidsLimit",
        "diskLimitMB",
    ] {
        assert_eq!(config[field], parameters[field], "{field}: {config}");
    }
    assert_eq!(session.created["selection"]["preference"], "Security");
    let by_alias = Session::open(&server, &json!({"dockerImage": "host"}));
    assert_eq!(by_alias.created["image"], "host");
}

fn language_alias() {
    let server = Setup::plain().shared();
    for (alias, name) in [("py", "python"), ("python3", "python"), ("js", "javascript"), ("sh", "bash")] {
        let listed = server.client().ok("language.list", &json!({}));
        let known = listed["languages"]
            .as_array()
            .is_some_and(|rows| rows.iter().any(|row| row["aliases"].to_string().contains(&format!("\"{alias}\""))));
        if known {
            assert_eq!(Session::open(&server, &json!({"language": alias})).created["language"], name);
        }
    }
}

fn create_errors() {
    let server = Setup::bare().shared();
    let mut client = server.client();
    let error = client.error_is("session.create", &json!({"language": "klingon"}), 1100, "language_not_supported");
    assert!(error.to_string().contains("python"), "it lists what is supported: {error}");
    let error =
        client.error_is("session.create", &json!({"language": "python", "image": "no-such-image"}), 1103, "image_not_found");
    assert!(
        error.to_string().contains("image import") || error.to_string().contains("image pull"),
        "it says how to get it: {error}"
    );
    client.error_is(
        "session.create",
        &json!({"language": "bash", "runtimeType": "WebAssembly"}),
        1101,
        "runtime_not_available",
    );
    client.error_is("session.create", &json!({"language": "python", "profile": "permissive"}), 1202, "policy_denied");
    for name in ["../etc", "a\nb", "x,upperdir=/etc", "/etc/passwd"] {
        let error = client.error("session.create", &json!({"language": "python", "image": name}));
        assert!([1103, -32602].contains(&error.code), "{name:?}: {error}");
        assert!(!error.to_string().contains("/var/"), "no host path: {error}");
    }
}

fn policy() {
    let server = Setup::bare().shared();
    let mut client = server.client();
    client.error_is("session.create", &json!({"language": "python", "memoryLimitMB": 100_000_000}), 1202, "policy_denied");
    client.error_is("session.create", &json!({"language": "python", "pidsLimit": 100_000_000}), 1202, "policy_denied");
}

fn profile_defaults() {
    let server = Setup::plain().shared();
    for (profile, megabytes, pids) in [("strict", 256, 64), ("default", 512, 256), ("permissive", 2048, 1024)] {
        let session = Session::open(&server, &json!({"profile": profile}));
        let config = &session.created["config"];
        assert_eq!((&config["memoryLimitMB"], &config["pidsLimit"]), (&json!(megabytes), &json!(pids)), "{profile}: {config}");
        assert_eq!(session.created["enforcement"]["profile"]["name"], profile);
    }
}

fn get_and_list() {
    let server = Setup::plain().shared();
    let mut session = Session::python(&server);
    let id = session.id.clone();
    let got = session.client.ok("session.get", &json!({"sessionId": id}));
    let list = session.client.ok("session.list", &json!({}));
    let rows = list["sessions"].as_array().expect("rows");
    assert_eq!(list["count"].as_u64(), Some(rows.len() as u64));
    let row = rows.iter().find(|row| row["sessionId"] == id.as_str()).expect("the session has a row");
    for field in ["environmentId", "containerId", "runtimeType", "language", "createdAt", "state", "executionCount"] {
        assert!(!row[field].is_null(), "{field}: {row}");
        assert_eq!(row[field], got[field], "{field}");
    }
    assert!(row["lastActivity"].is_string() && row["idleMinutes"].is_number() && row["lifetimeMinutes"].is_number(), "{row}");
    assert_eq!((&got["config"], &got["enforcement"]), (&session.created["config"], &session.created["enforcement"]));
    assert!(got["usage"].is_object(), "{got}");
}

fn list_filters() {
    let server = Setup::plain().shared();
    let bash = Session::open(&server, &json!({"language": "bash"}));
    let mut client = server.client();
    let list = client.ok("session.list", &json!({"language": "bash"}));
    let rows = list["sessions"].as_array().expect("rows");
    assert!(
        rows.iter().all(|row| row["language"] == "bash") && rows.iter().any(|row| row["sessionId"] == bash.id.as_str()),
        "{list}"
    );
    let idle = client.ok("session.list", &json!({"state": "Closing"}));
    assert!(idle["sessions"].as_array().is_some_and(|rows| rows.iter().all(|row| row["state"] == "Closing")), "{idle}");
    client.invalid("session.list", &json!({"state": "Sleepy"}), "state");
}

fn execution_count() {
    let server = Setup::plain().shared();
    let mut session = Session::python(&server);
    session.write("a", "b");
    session.read("a");
    session.program("true", &[]);
    session.program("false", &[]);
    let got = session.client.ok("session.get", &json!({"sessionId": session.id}));
    assert_eq!(got["executionCount"], 4, "{got}");
}

fn close_twice() {
    let server = Setup::plain().shared();
    let session = Session::python(&server);
    let id = session.id.clone();
    session.close();
    let mut client = server.client();
    assert_eq!(client.ok("session.close", &json!({"sessionId": id}))["closed"], true);
    assert_eq!(
        client.ok("session.close", &json!({"sessionId": "../../etc"})),
        json!({"sessionId": "../../etc", "closed": true})
    );
}

fn closed_and_unknown() {
    let server = Setup::plain().shared();
    let session = Session::python(&server);
    let id = session.id.clone();
    session.close();
    let mut client = server.client();
    let command = json!({"type": "list_directory"});
    for (id, code, kind) in [
        (id.as_str(), 1002, "session_closed"),
        ("ses_unknown", 1001, "session_not_found"),
        ("../../x", 1001, "session_not_found"),
    ] {
        client.error_is("session.execute", &json!({"sessionId": id, "command": command}), code, kind);
        client.error_is("session.stream", &json!({"sessionId": id, "command": command}), code, kind);
    }
    client.error_is("session.get", &json!({"sessionId": "ses_unknown"}), 1001, "session_not_found");
}

fn metadata() {
    let server = Setup::plain().shared();
    let mut session = Session::open(&server, &json!({"metadata": {"z": 1, "a": ["ü", null, {"b": 0.5}]}}));
    let got = session.client.ok("session.get", &json!({"sessionId": session.id}));
    assert_eq!(got["metadata"], json!({"z": 1, "a": ["ü", null, {"b": 0.5}]}));
}

fn env() {
    let server = Setup::plain().shared();
    let mut session = Session::open(&server, &json!({"env": {"WORD": "session", "OTHER": "o"}}));
    assert_eq!(session.bash("echo $WORD $OTHER"), "session o");
    let command = json!({"type": "execute_shell", "commandName": "bash", "args": ["-c", "echo $WORD $OTHER"], "env": {"WORD": "command"}});
    assert_eq!(session.ok(&command)["stdout"], "command o\n");
    assert_eq!(session.bash("echo $WORD"), "session", "the command's own environment is gone after it");
}

fn env_order() {
    let server = Setup::plain().shared();
    let code = "import os\nprint(os.environ.get('PYTHONUNBUFFERED'), os.environ['HOME'])";
    let mut plain = Session::python(&server);
    assert_eq!(plain.run(code), "1 /workspace", "the control: what the language and the defaults say");
    let mut session = Session::open(&server, &json!({"env": {"PYTHONUNBUFFERED": "session", "HOME": "/tmp"}}));
    assert_eq!(session.run(code), "session /tmp");
    assert_eq!(session.bash("echo $PYTHONUNBUFFERED"), "session", "the same for execute_shell");
    let command = json!({"type": "execute_code", "code": code, "env": {"PYTHONUNBUFFERED": "command"}});
    assert_eq!(session.ok(&command)["stdout"], "command /tmp\n");
    for bad in [json!({"": "x"}), json!({"A=B": "x"}), json!({"A\0": "x"}), json!({"A": "x\0"}), json!({"A": null})] {
        session.client.invalid("session.create", &json!({"language": "python", "env": bad}), "env");
    }
}

fn permissions() {
    let server = Setup::plain().shared();
    let mut client = server.client();
    for profile in ["strict", "default", "permissive"] {
        let parameters = json!({"language": "python", "profile": profile, "permissions": {"allowNet": true}});
        let error = client.error_is("session.create", &parameters, 1202, "policy_denied");
        assert_eq!(error.data["field"], "permissions.allowNet", "{error}");
    }
    for bad in [json!({"allowNet": "yes"}), json!({"allowRead": "/"}), json!([])] {
        client.invalid("session.create", &json!({"language": "python", "permissions": bad}), "permissions");
    }
    client.invalid("session.create", &json!({"language": "python", "permissions": {"allowAll": true}}), "allowAll");
    let permissions = json!({"allowRead": ["/workspace"], "allowWrite": ["/workspace"], "allowNet": false, "allowEnv": false});
    let mut narrow = Session::open(&server, &json!({"permissions": permissions}));
    assert_eq!(narrow.run("print(1)"), "1", "what narrows a runtime with flags of its own takes nothing away here");
}

fn states() {
    let server = Setup::plain().shared();
    let mut session = Session::python(&server);
    let id = session.id.clone();
    let command = json!({"type": "execute_shell", "commandName": "sleep", "args": ["1"]});
    let request = session.client.send("session.execute", &json!({"sessionId": id, "command": command})).expect("sent");
    let mut other = server.client();
    assert_eq!(other.ok("session.get", &json!({"sessionId": id}))["state"], "Active");
    session.client.wait(request).expect("a reply");
    assert!(eventually(Duration::from_secs(2), || other.ok("session.get", &json!({"sessionId": id}))["state"] == "Idle"));
}

/// A server that looks every second, so that a trial need not wait a minute.
fn sweeping() -> Setup {
    Setup::plain().with_variable("CODEBEAKER_SESSION_SWEEP_INTERVAL_S", "1")
}

/// A time in seconds that is longer than this host takes to send a command, and short enough to wait for.
fn short_s() -> f64 {
    1.2 * f64::from(pace())
}

/// Waits until the sweeper has closed a session; its `closeReason`.
fn swept(client: &mut Client, id: &str) -> String {
    let mut reason = None;
    let mut look = || {
        let closed = client.ok("session.list", &json!({"state": "Closed"}));
        let rows = closed["sessions"].as_array().expect("rows").clone();
        reason = rows.iter().find(|row| row["sessionId"] == id).map(|row| row["closeReason"].to_string());
        reason.is_some()
    };
    assert!(eventually(Duration::from_secs(8), &mut look), "{id} is not closed");
    reason.expect("it was found")
}

fn idle_sweep() {
    let server = sweeping().shared();
    let mut client = server.client();
    let patient = Session::open(&server, &json!({"idleTimeoutMinutes": 5}));
    let mut idle = Session::open(&server, &json!({"idleTimeoutMinutes": 0.02}));
    assert_eq!(idle.created["config"]["idleTimeoutMinutes"], 0.02);
    let mut busy = Session::open(&server, &json!({"idleTimeoutMinutes": short_s() / 60.0}));
    let seconds = (short_s() * 3.5).to_string();
    let command = json!({"type": "execute_shell", "commandName": "sleep", "args": [seconds], "timeoutSeconds": 120});
    let request = busy.client.send("session.execute", &json!({"sessionId": busy.id, "command": command})).expect("sent");
    let reason = swept(&mut client, &idle.id);
    assert!(reason.contains("idle"), "{reason}");
    let parameters = json!({"sessionId": idle.id, "command": {"type": "list_directory"}});
    idle.client.error_is("session.execute", &parameters, 1002, "session_closed");
    assert_eq!(busy.client.wait(request).expect("a reply")["success"], true, "a running command is activity");
    assert_eq!(client.ok("session.get", &json!({"sessionId": patient.id}))["state"], "Active", "five minutes are not over");
}

fn background_is_activity() {
    let server = sweeping().shared();
    let mut session = Session::open(&server, &json!({"idleTimeoutMinutes": short_s() / 60.0}));
    let seconds = (short_s() * 2.5).to_string();
    let command =
        json!({"type": "execute_shell", "commandName": "sleep", "args": [seconds], "background": true, "timeoutSeconds": 120});
    session.ok(&command);
    std::thread::sleep(Duration::from_secs_f64(short_s() * 2.0));
    let got = session.client.ok("session.get", &json!({"sessionId": session.id}));
    assert_ne!(got["state"], "Closed", "{got}");
    let id = session.id.clone();
    swept(&mut session.client, &id);
}

fn lifetime_sweep() {
    let server = sweeping().shared();
    let mut client = server.client();
    let mut session = Session::open(&server, &json!({"maxLifetimeMinutes": short_s() / 60.0}));
    let command = json!({"type": "execute_shell", "commandName": "sleep", "args": ["120"], "timeoutSeconds": 200});
    let request = session.client.send("session.execute", &json!({"sessionId": session.id, "command": command})).expect("sent");
    let reason = swept(&mut client, &session.id);
    assert!(reason.contains("lifetime"), "{reason}");
    let ended = session.client.wait(request).expect("the command is answered all the same");
    assert_eq!((&ended["success"], &ended["errorKind"]), (&json!(false), &json!("cancelled")), "{ended}");
}

fn minutes() {
    let server = Setup::bare().shared();
    let mut client = server.client();
    for value in [json!(0), json!(0.001), json!(-1), json!(1e300), json!("5")] {
        for field in ["idleTimeoutMinutes", "maxLifetimeMinutes"] {
            client.invalid("session.create", &json!({"language": "python", (field): value}), field);
        }
    }
    let session = Session::open(&server, &json!({"idleTimeoutMinutes": 7, "maxLifetimeMinutes": 1.5}));
    let config = session.created["config"].to_string();
    assert!(config.contains(r#""idleTimeoutMinutes":7,"#) && config.contains(r#""maxLifetimeMinutes":1.5,"#), "{config}");
}
