//! One suite for all runtimes: every command on every runtime in every language that a running server offers.
//!
//! Invariant: what is tried comes from `runtime.list` and `language.list`, so a new runtime is tested without a line here; a new
//! language needs its programs below, and is named as skipped until it has them. Read `speech` for those programs.

use std::time::Duration;

use codebeaker_client::Error;
use serde_json::{Value, json};

use super::speech::{SPEECHES, Speech};
use crate::support::{Client, Feature, Server, Session, Setup, eventually, host, page, trial::skip};

/// The nine commands, each in a form that would succeed or fail as a result, never as an error of the call.
fn commands() -> [Value; 9] {
    [
        json!({"type": "write_file", "path": "declared", "content": "x"}),
        json!({"type": "read_file", "path": "declared"}),
        json!({"type": "execute_shell", "commandName": "no-such-program"}),
        json!({"type": "execute_code", "code": ""}),
        json!({"type": "create_directory", "path": "declared-too"}),
        json!({"type": "copy_file", "source": "declared", "destination": "copied"}),
        json!({"type": "delete_file", "path": "declared"}),
        json!({"type": "list_directory"}),
        json!({"type": "install_packages", "packages": ["codebeaker-no-such-package"]}),
    ]
}

pub fn trials() -> Vec<libtest_mimic::Trial> {
    page(
        "matrix",
        &[
            ("Deno takes part, in JavaScript and TypeScript", || {
                takes_part(Feature::Deno, "Deno", &["javascript", "typescript"]);
            }),
            ("Bun takes part, in JavaScript and TypeScript", || takes_part(Feature::Bun, "Bun", &["javascript", "typescript"])),
            ("Node takes part, in JavaScript", || takes_part(Feature::Node, "NodeJs", &["javascript"])),
            ("a newer Node takes part, in JavaScript and TypeScript, and an older one in JavaScript alone", newer_node),
            ("V8 isolates take part, in JavaScript and TypeScript", || {
                takes_part(Feature::Deno, "V8Isolate", &["javascript", "typescript"]);
            }),
            ("Docker takes part, in every language of the matrix", || {
                takes_part(Feature::Dockerd, "Docker", &["python", "bash"]);
            }),
            ("WebAssembly takes part with modules of a session's own", || {
                takes_part(Feature::X86, "WebAssembly", &["wasm"]);
            }),
            ("WebAssembly takes part with engines, in Python and JavaScript", || {
                takes_part(Feature::WasmEngines, "WebAssembly", &["python", "javascript"]);
            }),
            ("a runtime carries out exactly the commands that it declares", declared),
            ("file commands give the same results on every runtime", files),
            ("a program gets input, arguments and variables on every runtime, and its exit code is told", programs),
            ("a program and the file commands see the same files on every runtime", shared_files),
            ("a program that does not end is ended with the verdict timeout on every runtime", timeout),
            ("events of a stream come in order on every runtime", streams),
            ("execute_shell runs what is there and tells what is not, on every runtime that has it", shell),
            ("executions without persistence see nothing of the one before, on every runtime", fresh),
            ("execution.run gives its result on every runtime", run_once),
            ("one client script sees the same on every runtime", same_everywhere),
            ("a runtime that is named is taken, or refused with its reason", forced),
            ("a program that is no engine is refused once it was asked, and an engine that is switched off says so", no_engine),
            ("a session of no stated preference stands on an image, and every candidate has its reason", unasked),
            ("what a runtime costs is measured at the start and known at the next one", measured),
            ("every language that is installed has its programs here", unspoken),
        ],
    )
}

/// One runtime with one of its languages.
struct Pair {
    runtime: String,
    commands: Vec<String>,
    speech: &'static Speech,
}

fn words(list: &Value) -> Vec<String> {
    list.as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
}

fn rows(client: &mut Client, method: &str, field: &str) -> Vec<Value> {
    client.ok(method, &json!({}))[field].as_array().expect("rows").clone()
}

impl Pair {
    fn all(server: &Server) -> Vec<Self> {
        let mut client = server.client();
        // First: it has engines tell their version, on which depends what they serve.
        let languages = rows(&mut client, "language.list", "languages");
        let runtimes = rows(&mut client, "runtime.list", "runtimes");
        let mut pairs = Vec::new();
        for language in languages.iter().filter(|row| row["installed"] == true) {
            let Some(speech) = SPEECHES.iter().find(|speech| language["name"] == speech.language) else { continue };
            for runtime in words(&language["runtimes"]) {
                let row = runtimes.iter().find(|row| row["type"] == runtime.as_str()).expect("a language's runtime is listed");
                assert!(row["available"] == true && words(&row["languages"]).contains(&speech.language.to_owned()), "{row}");
                pairs.push(Self { commands: words(&row["commands"]), runtime, speech });
            }
        }
        assert!(!pairs.is_empty(), "no runtime serves any language here");
        pairs
    }

    fn session<'a>(&self, server: &'a Server, more: &Value) -> Session<'a> {
        let mut parameters = json!({
            "language": self.speech.language,
            "runtimeType": self.runtime,
            "permissions": {"allowRead": ["/"], "allowEnv": true},
        });
        let fields = parameters.as_object_mut().expect("an object");
        fields.extend(more.as_object().expect("an object").clone());
        let session = Session::open(server, &parameters);
        assert_eq!(session.created["runtimeType"], self.runtime.as_str(), "{}", session.created);
        session
    }

    fn has(&self, command: &str) -> bool {
        self.commands.iter().any(|declared| declared == command)
    }
}

/// Tries a claim on every runtime in every language; what fails is told with both names.
fn everywhere(claim: fn(&Pair, &Server)) {
    let server = Setup::engines().shared();
    for pair in Pair::all(&server) {
        tried(&pair, &server, claim);
    }
    let Some(older) = Setup::older_node() else { return };
    let server = older.shared();
    for pair in Pair::all(&server).iter().filter(|pair| pair.runtime == "NodeJs") {
        tried(pair, &server, claim);
    }
}

fn tried(pair: &Pair, server: &Server, claim: fn(&Pair, &Server)) {
    let tried = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| claim(pair, server)));
    if let Err(panic) = tried {
        let text = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
        panic!("{} in {}: {}", pair.runtime, pair.speech.language, text.unwrap_or("a panic without a message"));
    }
}

fn newer_node() {
    takes_part(Feature::NewerNode, "NodeJs", &["javascript", "typescript"]);
    let Some(older) = Setup::older_node() else { return };
    let server = older.shared();
    let all = Pair::all(&server);
    let serves = |language: &str| all.iter().any(|pair| pair.runtime == "NodeJs" && pair.speech.language == language);
    assert!(serves("javascript"), "the control");
    let version = std::process::Command::new("/usr/bin/node").arg("--version").output().expect("it is there").stdout;
    let version = String::from_utf8_lossy(&version).into_owned();
    let mut numbers = version.trim_start_matches('v').split('.').map(|part| part.parse::<u32>().unwrap_or(0));
    let since = (numbers.next(), numbers.next()) >= (Some(22), Some(18));
    assert_eq!(serves("typescript"), since, "{version}");
}

/// What the host has must not be missing from the matrix.
fn takes_part(feature: Feature, runtime: &str, languages: &[&str]) {
    host().need(feature);
    let server = Setup::engines().shared();
    let pairs = Pair::all(&server);
    for language in languages {
        assert!(
            pairs.iter().any(|pair| pair.runtime == runtime && pair.speech.language == *language),
            "{runtime} in {language}"
        );
    }
}

fn declared() {
    everywhere(|pair, server| {
        let mut session = pair.session(server, &json!({}));
        for command in commands() {
            let kind = command["type"].as_str().expect("a type");
            let parameters = json!({"sessionId": session.id, "command": command});
            if pair.has(kind) {
                match session.client.call("session.execute", &parameters) {
                    Ok(_) => {}
                    // Not every language has packages.
                    Err(Error::Rpc(error)) if kind == "install_packages" && error.code == -32602 => {
                        assert!(error.message.contains("no packages can be installed"), "{error}");
                    }
                    Err(error) => panic!("{command}: {error}"),
                }
            } else {
                let error = match session.client.call("session.execute", &parameters) {
                    Err(Error::Rpc(error)) => error,
                    other => panic!("{command}: {other:?}"),
                };
                // A language without packages says so before its runtime is asked.
                let of_language = kind == "install_packages" && error.code == -32602;
                assert!(of_language || error.code == 1102, "{error}");
                let words = if of_language { "no packages can be installed" } else { kind };
                assert!(error.message.contains(words), "{error}");
            }
        }
    });
}

fn files() {
    everywhere(|pair, server| {
        let mut session = pair.session(server, &json!({}));
        let written = session.ok(&json!({"type": "write_file", "path": "a/b/text", "content": "übung\n"}));
        assert_eq!(written, json!({"path": "a/b/text", "bytes": 7}));
        let read = session.ok(&json!({"type": "read_file", "path": "/workspace/a/b/text"}));
        let expected =
            json!({"path": "/workspace/a/b/text", "content": "übung\n", "encoding": "utf8", "size": 7, "truncated": false});
        assert_eq!(read, expected);
        let copied = session.ok(&json!({"type": "copy_file", "source": "a", "destination": "c"}));
        assert_eq!(copied, json!({"source": "a", "destination": "c", "bytes": 7}));
        let made = session.ok(&json!({"type": "create_directory", "path": "d/e"}));
        assert_eq!(made, json!({"path": "d/e", "created": true}));
        let listed = session.ok(&json!({"type": "list_directory", "path": ".", "recursive": true, "includeHidden": false}));
        let mut paths: Vec<&str> =
            listed["entries"].as_array().expect("entries").iter().filter_map(|entry| entry["path"].as_str()).collect();
        paths.sort_unstable();
        let expected = ["a", "a/b", "a/b/text", "c", "c/b", "c/b/text", "d", "d/e"].map(|path| format!("/workspace/{path}"));
        assert_eq!(paths, expected);
        let deleted = session.ok(&json!({"type": "delete_file", "path": "c"}));
        assert_eq!(deleted, json!({"path": "c", "deleted": 3}));
        session.fails(&json!({"type": "read_file", "path": "c/b/text"}), "file_not_found");
    });
}

/// The fields that every execution has.
fn check_shape(result: &Value) {
    for field in ["stdout", "stderr", "exitCode", "signal", "timedOut", "oomKilled", "truncated", "usage"] {
        assert!(result.get(field).is_some(), "no {field} in {result}");
    }
    assert!(result["truncated"]["stdout"].is_boolean() && result["truncated"]["stderr"].is_boolean(), "{result}");
    assert!(["cpuMs", "memoryPeakBytes", "pidsPeak"].iter().all(|field| result["usage"].get(field).is_some()), "{result}");
}

fn programs() {
    everywhere(|pair, server| {
        let mut session = pair.session(server, &json!({"env": {"WORD": "of the session"}}));
        let command = json!({
            "type": "execute_code", "code": pair.speech.echo, "stdin": "in\n", "args": ["a b"], "env": {"WORD": "ü"},
        });
        let result = session.ok(&command);
        check_shape(&result);
        assert_eq!((&result["stdout"], &result["exitCode"]), (&json!("in|a b|ü\n"), &json!(0)), "{result}");
        let answer = session.fails(&json!({"type": "execute_code", "code": pair.speech.exit_3}), "nonzero_exit");
        check_shape(&answer["result"]);
        assert_eq!(answer["result"]["exitCode"], 3, "{answer}");
        let answer = session.execute(&json!({"type": "execute_code", "code": pair.speech.broken}));
        // Where a compiler reads it first, the compiler says so.
        assert!(matches!(answer["errorKind"].as_str(), Some("nonzero_exit" | "compile_error")), "{answer}");
        assert!(answer["result"]["stderr"].as_str().is_some_and(|text| !text.is_empty()), "{answer}");
    });
}

fn shared_files() {
    everywhere(|pair, server| {
        let mut session = pair.session(server, &json!({}));
        session.write("kept", "by a file command");
        let result = session.ok(&json!({"type": "execute_code", "code": pair.speech.copy_kept}));
        assert_eq!(result["stdout"].as_str().map(str::trim_end), Some("by a file command"), "{result}");
        assert_eq!(session.read("kept-too"), "by a file command");
        let names = session.ok(&json!({"type": "list_directory"}));
        assert!(names.to_string().contains("kept-too") && !names.to_string().contains(".main"), "the source is gone: {names}");
    });
}

fn timeout() {
    everywhere(|pair, server| {
        let mut session = pair.session(server, &json!({}));
        let command = json!({"type": "execute_code", "code": pair.speech.endless, "timeoutSeconds": 1});
        let answer = session.fails(&command, "timeout");
        check_shape(&answer["result"]);
        assert_eq!(answer["result"]["timedOut"], true, "{answer}");
        session.ok(&json!({"type": "execute_code", "code": ""}));
    });
}

fn streams() {
    everywhere(|pair, server| {
        let mut session = pair.session(server, &json!({}));
        let command = json!({"type": "execute_code", "code": pair.speech.echo, "args": ["x"], "env": {"WORD": "y"}});
        let (subscription, execution) = session.stream(&command);
        let input = json!({"sessionId": session.id, "executionId": execution, "data": "typed\n", "eof": true});
        assert_eq!(session.client.ok("session.input", &input)["accepted"], true);
        let events = session.client.events(&subscription);
        let text: String =
            events.iter().filter(|event| event["type"] == "stdout").filter_map(|event| event["data"].as_str()).collect();
        assert_eq!(text, "typed|x|y\n", "{events:?}");
        assert_eq!(events.last().expect("exited")["result"]["success"], true, "{events:?}");
    });
}

fn shell() {
    everywhere(|pair, server| {
        if !pair.has("execute_shell") {
            return;
        }
        let mut session = pair.session(server, &json!({}));
        let itself = session.ok(&json!({"type": "execute_code", "code": pair.speech.itself}));
        let program = itself["stdout"].as_str().expect("a string").trim().to_owned();
        let answer = session.program(&program, &["--version"]);
        assert_eq!(answer["success"], true, "{program}: {answer}");
        check_shape(&answer["result"]);
        session.fails(&json!({"type": "execute_shell", "commandName": "no-such-program"}), "program_not_found");
    });
}

fn fresh() {
    everywhere(|pair, server| {
        let mut session = pair.session(server, &json!({"persistFilesystem": false}));
        session.write("kept", "for the next one");
        session.ok(&json!({"type": "execute_code", "code": pair.speech.copy_kept}));
        let answer = session.execute(&json!({"type": "execute_code", "code": pair.speech.copy_kept}));
        assert_eq!(answer["success"], false, "the file of the execution before is gone: {answer}");
    });
}

fn run_once() {
    everywhere(|pair, server| {
        let mut client = server.client();
        let parameters = json!({"language": pair.speech.language, "runtimeType": pair.runtime, "code": pair.speech.hello});
        let reply = client.ok("execution.run", &parameters);
        let status = super::methods::finished(&mut client, &reply["executionId"]);
        assert_eq!((&status["status"], &status["stdout"]), (&json!("completed"), &json!("42\n")), "{status}");
    });
}

fn same_everywhere() {
    host().need(Feature::Python);
    let server = Setup::engines().shared();
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/clients/python/same_everywhere.py");
    let url = format!("ws://{}", server.address);
    for row in rows(&mut server.client(), "language.list", "languages").iter().filter(|row| row["installed"] == true) {
        let Some(language @ ("javascript" | "python" | "bash")) = row["name"].as_str() else { continue };
        let output =
            std::process::Command::new("/usr/bin/python3").args(["-B", script, &url, &server.token, language]).output();
        let output = output.expect("python3 is there");
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
        for runtime in words(&row["runtimes"]) {
            assert!(said.contains(&format!("{language} on {runtime}: the ")), "{runtime}: {said}");
        }
    }
}

fn forced() {
    let server = Setup::engines().shared();
    let mut client = server.client();
    let reason_of = |error: &codebeaker_client::RpcError, runtime: &str| {
        let candidates = error.data["candidates"].as_array().cloned().unwrap_or_default();
        let own = candidates.iter().find(|candidate| candidate["type"] == runtime);
        own.and_then(|own| own["reason"].as_str()).unwrap_or_default().to_owned()
    };
    for row in rows(&mut client, "runtime.list", "runtimes") {
        let runtime = row["type"].as_str().expect("a type");
        let named = |language: &str| json!({"language": language, "runtimeType": runtime});
        if row["available"] == false {
            let why = row["reason"].as_str().expect("what is not available says why");
            assert!(why.len() > 20, "a cause and a mend: {row}");
            let error = client.error_is("session.create", &named("javascript"), 1101, "runtime_not_available");
            assert_eq!(reason_of(&error, runtime), why, "{error}");
            client.error_is(
                "execution.run",
                &json!({"language": "javascript", "code": "", "runtimeType": runtime}),
                1101,
                "runtime_not_available",
            );
            continue;
        }
        for language in
            ["python", "bash"].iter().filter(|language| !words(&row["languages"]).contains(&(**language).to_owned()))
        {
            let error = client.error_is("session.create", &named(language), 1101, "runtime_not_available");
            assert!(reason_of(&error, runtime).contains(language), "{error}");
        }
    }
}

fn no_engine() {
    let config = "[runtimes]\nbun = \"/bin/true\"\nnodejs = \"off\"\n";
    let server = Server::start(&Setup::plain().with_config(config));
    let mut client = server.client();
    let reason_of = |client: &mut Client, runtime: &str| {
        let all = rows(client, "runtime.list", "runtimes");
        let row = all.iter().find(|row| row["type"] == runtime).expect("every runtime is listed");
        row["reason"].as_str().unwrap_or_default().to_owned()
    };
    let named = |runtime: &str| json!({"language": "javascript", "runtimeType": runtime});
    let error = client.error_is("session.create", &named("Bun"), 1101, "runtime_not_available");
    assert!(error.message.contains("version"), "{error}");
    assert!(reason_of(&mut client, "Bun").contains("runtimes.bun"), "from now on it says why");
    client.error_is("session.create", &named("NodeJs"), 1101, "runtime_not_available");
    assert!(reason_of(&mut client, "NodeJs").contains("switches it off"));
    let left = server.end_and_check();
    assert!(left.is_empty(), "{}", left.join("; "));
}

fn unasked() {
    host().need(Feature::Node);
    let server = Setup::engines().shared();
    let session = Session::open(&server, &json!({"language": "javascript"}));
    let candidates = session.created["selection"]["candidates"].as_array().expect("candidates").clone();
    assert_eq!(session.created["runtimeType"], "NativeProcess", "{candidates:?}");
    assert_eq!(candidates.len(), rows(&mut server.client(), "runtime.list", "runtimes").len());
    assert!(candidates.iter().all(|candidate| candidate["reason"].as_str().is_some_and(|reason| !reason.is_empty())));
    let engine = candidates.iter().find(|candidate| candidate["runtimeType"] == "NodeJs").expect("a row");
    assert!(engine["reason"].as_str().is_some_and(|reason| reason.contains("no program but its engine")), "{engine}");
    // The control: named, the same engine serves; and an image of the request's choice is not for it.
    let named = json!({"language": "javascript", "runtimeType": "NodeJs"});
    assert_eq!(Session::open(&server, &named).created["runtimeType"], "NodeJs");
    let with_image = json!({"language": "javascript", "runtimeType": "NodeJs", "image": "host"});
    let error = server.client().error_is("session.create", &with_image, 1101, "runtime_not_available");
    assert!(error.to_string().contains("stands on no image"), "{error}");
}

/// Until each runtime that can serve has figures of its own.
fn wait_for_figures(server: &Server) -> Vec<Value> {
    let mut client = server.client();
    let mut available = Vec::new();
    let all = eventually(Duration::from_secs(120), || {
        available = rows(&mut client, "runtime.list", "runtimes");
        available.retain(|row| row["available"] == true);
        available.iter().all(|row| row["capabilities"]["measured"] == true)
    });
    assert!(all, "{available:?}");
    available
        .iter()
        .map(|row| json!([row["type"], row["capabilities"]["startupTimeMs"], row["capabilities"]["memoryOverheadMB"]]))
        .collect()
}

fn measured() {
    host().need(Feature::CgroupMemory).need(Feature::Root);
    let setup = Setup::engines().with_variable("CODEBEAKER_RUNTIMES_MEASURE", "true");
    let first = Server::start(&setup);
    let figures = wait_for_figures(&first);
    assert!(figures.iter().all(|row| row[1].as_f64() > Some(0.0) && row[2].as_f64() > Some(0.0)), "{figures:?}");
    first.signal(nix::sys::signal::Signal::SIGTERM);
    assert!(first.wait(Duration::from_secs(60)).is_some(), "it ends after SIGTERM");
    let second = Server::start_in(&setup, first.into_directory());
    let again = wait_for_figures(&second);
    // A language whose figure was missing at the first end may be measured yet, and may start faster.
    assert!(
        again.iter().zip(&figures).all(|(new, old)| new[0] == old[0] && new[1].as_f64() <= old[1].as_f64()),
        "{figures:?} {again:?}"
    );
    let left = second.end_and_check();
    assert!(left.is_empty(), "{}", left.join("; "));
}

fn unspoken() {
    let server = Setup::engines().shared();
    let languages = rows(&mut server.client(), "language.list", "languages");
    let without: Vec<&str> = languages
        .iter()
        .filter(|row| row["installed"] == true)
        .filter_map(|row| row["name"].as_str())
        .filter(|name| !SPEECHES.iter().any(|speech| speech.language == *name))
        .collect();
    if !without.is_empty() {
        skip(&format!("the matrix has no programs in {}", without.join(", ")));
    }
}
