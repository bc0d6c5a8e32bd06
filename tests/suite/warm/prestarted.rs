//! Programs that are started before their source is there: each finds what it would find if it had been started for it, and nobody
//! else finds anything of it.
//!
//! Every trial proves by the server's own count that the program it speaks of was one of them, or was not. `programs.js` has the
//! programs that are run both ways.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::{Value, json};

use super::{INTERPRETERS, corpus, count, programs};
use crate::support::{Feature, Server, Session, Setup, eventually, host, page};

const PROGRAMS: &str = include_str!("programs.js");

pub fn trials() -> Vec<libtest_mimic::Trial> {
    page(
        "prestarted",
        &[
            ("a corpus of programs gives the same in Deno as one that was not started ahead", deno),
            ("a corpus of programs gives the same in Node's runtime as one that was not started ahead", node),
            ("a corpus of programs gives the same in Node's runtime in TypeScript", node_typescript),
            ("a corpus of programs gives the same in Bun as one that was not started ahead", bun),
            ("a Bun that waits knows what came and went meanwhile, and leaves nothing behind", bun_meanwhile),
            ("a corpus of programs gives the same in Node of an image as one that was not started ahead", node_of_an_image),
            ("Python and JavaScript in WebAssembly give the same as ones that were not started ahead", wasm),
            (
                "another command line, other variables, input, a large source and what an engine looks for take a fresh one",
                fresh,
            ),
            ("nothing of one that starts is seen, and nothing that is done meanwhile is lost", unseen),
            ("a file in the place of a source is run by nobody, and each program once", run_by_nobody),
            ("a program can't reach what waits, and whoever kills or stops it loses no program", out_of_reach),
            ("beside a program in the background none is started, and what runs is not disturbed", background),
            ("time and cancel end one as any program", ends),
            ("one whose source can't be written gets none, and the next program runs", no_source),
        ],
    )
}

fn setup(enabled: bool) -> Setup {
    with_warm(Setup::engines(), enabled)
}

fn with_warm(setup: Setup, enabled: bool) -> Setup {
    setup.with_config(&format!("[warm]\nenabled = {enabled}\n"))
}

fn code(language: &str, text: &str) -> Value {
    json!({"type": "execute_code", "language": language, "code": text, "timeoutSeconds": 30})
}

/// Runs a program until one that was started ahead has carried it out: the first of a session has none. The whole CommandResult.
#[track_caller]
fn by_one_ahead(server: &Server, session: &mut Session<'_>, command: &Value) -> Value {
    let (mut answer, mut pause) = (Value::Null, Duration::ZERO);
    let done = eventually(Duration::from_secs(30), || {
        // An engine takes its time to start, on a busy host more of it.
        std::thread::sleep(pause);
        pause += Duration::from_millis(100);
        let before = programs(server, "prestarted");
        answer = session.execute(command);
        programs(server, "prestarted") > before
    });
    assert!(done, "none that was started ahead carried it out: {answer}");
    answer
}

/// Runs each program both ways in sessions of `parameters`.
fn compare(parameters: &Value, all: &[(&str, Value)]) {
    compare_with(&Setup::engines(), parameters, all);
}

fn compare_with(engines: &Setup, parameters: &Value, all: &[(&str, Value)]) {
    let server = |enabled: bool| Server::start(&with_warm(engines.clone(), enabled));
    let (ahead, plain) = (server(true), server(false));
    let (mut one, mut other) = (Session::open(&ahead, parameters), Session::open(&plain, parameters));
    let mut different = Vec::new();
    for (name, command) in all {
        let by_ahead = corpus::essence(&by_one_ahead(&ahead, &mut one, command));
        let by_fresh = corpus::essence(&other.execute(command));
        if by_ahead != by_fresh {
            different.push(format!("{name}\n  ahead {by_ahead}\n  fresh {by_fresh}"));
        }
    }
    assert!(different.is_empty(), "{}", different.join("\n"));
    assert_eq!(programs(&plain, "prestarted"), 0);
}

fn corpus_of(engines: &Setup, runtime: &str, language: &str) {
    let all: Vec<(&str, Value)> = PROGRAMS
        .split("//== ")
        .skip(1)
        .map(|block| block.split_once('\n').expect("a name and a program"))
        .map(|(name, text)| (name, code(language, text)))
        .collect();
    assert!(all.len() > 20, "{}", all.len());
    compare_with(engines, &json!({"language": language, "runtimeType": runtime, "env": {"SESSION": "s"}}), &all);
}

fn deno() {
    host().need(Feature::Deno);
    corpus_of(&Setup::engines(), "Deno", "javascript");
}

fn node() {
    host().need(Feature::Node);
    corpus_of(&Setup::engines(), "NodeJs", "javascript");
    if let Some(older) = Setup::older_node() {
        corpus_of(&older, "NodeJs", "javascript");
    }
}

fn bun() {
    host().need(Feature::Bun);
    corpus_of(&Setup::engines(), "Bun", "javascript");
    let own = [
        (
            "programs that it starts",
            "const run = (...words) => Bun.spawnSync(words).stdout.toString(); console.log(run(\"env\").split(\"\\n\").sort().join())\n\
             console.log(run(process.execPath, \"-e\", \"console.log(process.argv.length)\"))",
        ),
        (
            "how it was called",
            "console.log(process.argv, process.execArgv, Bun.main, import.meta.main, require.main === module)",
        ),
        (
            "a worker",
            "const worker = new Worker(URL.createObjectURL(new Blob([\"postMessage(JSON.stringify(process.env))\"])))\n\
             worker.onmessage = (event) => { console.log(event.data); worker.terminate() }",
        ),
        ("types", "enum Kind { One = 1 }\nconst kind: Kind = Kind.One\nconsole.log(kind)"),
    ];
    let all: Vec<(&str, Value)> = own.map(|(name, text)| (name, code("typescript", text))).into();
    compare(&json!({"language": "typescript", "runtimeType": "Bun"}), &all);
}

fn bun_meanwhile() {
    host().need(Feature::Bun);
    let server = Server::start(&setup(true).with_config("[pool]\nsandboxes_max = 0\n"));
    let mut session = Session::open(&server, &json!({"language": "javascript", "runtimeType": "Bun"}));
    let list = json!({"type": "list_directory", "path": "/workspace", "recursive": true, "includeHidden": true});
    for pause in [0, 1, 2, 4, 8, 16, 64] {
        session.ok(&code("javascript", "1"));
        std::thread::sleep(Duration::from_millis(pause));
        assert_eq!(session.ok(&list)["entries"], json!([]), "{pause} ms after a program");
    }
    assert_eq!(ahead(&server, &mut session, "console.log(require('fs').readdirSync('/workspace').join())"), ".main.js");
    // What it has started ahead is not to be taken for another session's.
    drop(session);
    // What has come or gone since it was started is found, or is not, as by a fresh one, however it came.
    let changed = |before: &[&str], change: &dyn Fn(&mut Session<'_>), text: &str, printed: &str, by: &str| {
        let mut session = Session::open(&server, &json!({"language": "javascript", "runtimeType": "Bun"}));
        for path in before {
            session.write(path, &format!("export default '{path}'"));
        }
        waiting(&server, &mut session);
        change(&mut session);
        let count = programs(&server, "prestarted");
        assert_eq!(session.ok(&code("javascript", text))["stdout"], format!("{printed}\n"), "{text}");
        assert_eq!(programs(&server, "prestarted") - count, u64::from(by == "ahead"), "{text}");
    };
    let show = |name: &str| format!("console.log((await import('{name}')).default)");
    let part = show("./part");
    changed(&["part.js"], &|_| {}, &part, "part.js", "ahead");
    changed(&["inner/a.js"], &|session| session.write("inner/b.js", "export default 2"), &show("./inner/b"), "2", "ahead");
    changed(&["part.js"], &|session| session.write("part.ts", "export default 2 as number"), &part, "2", "fresh");
    changed(&["part/index.js"], &|session| session.write("part.js", "export default 2"), &part, "2", "fresh");
    let package = |session: &mut Session<'_>| session.write("node_modules/@s/p/index.js", "export default 2");
    changed(&[], &package, &show("@s/p"), "2", "fresh");
    let unlink = ["-e", "const fs = require('fs'); fs.renameSync('part.js', 'part.mjs')"];
    let renamed = json!({"type": "execute_shell", "commandName": "bun", "args": unlink});
    changed(&["part.js"], &|session| drop(session.ok(&renamed)), &part, "part.js", "fresh");
    let delete = json!({"type": "delete_file", "path": "inner/part.js"});
    let replace = |session: &mut Session<'_>| {
        session.ok(&delete);
        session.write("inner/part.mjs", "export default 2");
    };
    changed(&["inner/part.js"], &replace, &show("./inner/part"), "2", "fresh");
    // What it looks for when it starts, in files and in variables.
    let mut session = Session::open(&server, &json!({"language": "javascript", "runtimeType": "Bun"}));
    session.write("part.mjs", "console.log('first')");
    waiting(&server, &mut session);
    session.write("bunfig.toml", "preload = [\"./part.mjs\"]");
    let before = programs(&server, "prestarted");
    let keys = "console.log(Object.keys(require.cache).sort().join())";
    assert_eq!(session.ok(&code("javascript", keys))["stdout"], "first\n/workspace/.main.js,/workspace/part.mjs\n");
    assert_eq!(programs(&server, "prestarted"), before);
    let named = json!({"language": "javascript", "runtimeType": "Bun", "env": {"BUN_OPTIONS": "--preload=./part.mjs"}});
    let mut session = Session::open(&server, &named);
    session.write("part.mjs", "console.log('first')");
    for _ in 0..3 {
        assert_eq!(session.ok(&code("javascript", "console.log('then')"))["stdout"], "first\nthen\n");
        std::thread::sleep(Duration::from_millis(100));
    }
    assert_eq!(programs(&server, "prestarted"), before);
}

fn node_typescript() {
    host().need(Feature::NewerNode);
    corpus_of(&Setup::engines(), "NodeJs", "typescript");
}

fn node_of_an_image() {
    host().need(Feature::Node);
    corpus_of(&Setup::engines(), "NativeProcess", "javascript");
}

fn wasm() {
    host().need(Feature::WasmEngines);
    // A command that names its time tells the worker so, and is another one: these name none.
    let code = |language: &str, text: &str| json!({"type": "execute_code", "language": language, "code": text});
    let python = [
        ("an expression", code("python", "import sys, os; print(1 + 1, sys.argv, sorted(os.environ), os.getcwd(), __file__)")),
        ("its own source", code("python", "print(open(__file__).read(), __import__('os').stat(__file__).st_mode)")),
        ("an error", code("python", "def f(): raise ValueError('ä')\nf()")),
        ("an exit code", code("python", "import sys; print('a'); sys.exit(5)")),
        ("input", code("python", "import sys; print(repr(sys.stdin.read()))")),
    ];
    compare(&json!({"language": "python", "runtimeType": "WebAssembly"}), &python);
    let javascript = [
        ("an expression", code("javascript", "console.log(1 + 1, process.argv.join(), JSON.stringify(process.env))")),
        ("an error", code("javascript", "function f() { throw new Error('here') }\nf()")),
        ("an exit code", code("javascript", "console.log('a'); process.exit(5)")),
    ];
    compare(&json!({"language": "javascript", "runtimeType": "WebAssembly"}), &javascript);
}

/// A session of JavaScript on Node of the host's image, where every program of the host is there too.
fn native(server: &Server) -> Session<'_> {
    Session::open(server, &json!({"language": "javascript", "runtimeType": "NativeProcess"}))
}

/// Runs a program that the one which was started ahead must carry out; what it printed.
#[track_caller]
fn ahead(server: &Server, session: &mut Session<'_>, text: &str) -> String {
    let answer = by_one_ahead(server, session, &code("javascript", text));
    answer["result"]["stdout"].as_str().expect("text").trim_end().to_owned()
}

fn fresh() {
    host().need(Feature::Node);
    let server = Server::start(&setup(true));
    let mut session = native(&server);
    let own = "process.argv.slice(2).join() + process.env.MORE + require('fs').readFileSync(0, 'utf8')";
    let command = |more: &Value| {
        let mut command = code("javascript", &format!("console.log({own})"));
        for (name, value) in more.as_object().expect("an object") {
            command[name] = value.clone();
        }
        command
    };
    let large = format!("console.log('large'); /*{}*/", "x".repeat(70_000));
    for (more, printed) in [
        (json!({"args": ["a", "b"]}), "a,bundefined"),
        (json!({"env": {"MORE": "m"}}), "m"),
        (json!({"stdin": "in"}), "undefinedin"),
        (json!({"code": large}), "large"),
    ] {
        assert_eq!(ahead(&server, &mut session, "console.log('between')"), "between");
        let before = programs(&server, "prestarted");
        let result = session.ok(&command(&more));
        assert_eq!(result["stdout"].as_str().map(str::trim_end), Some(printed), "{more}");
        assert_eq!(programs(&server, "prestarted"), before, "{more}");
    }
    session.write("package.json", r#"{"type": "module"}"#);
    let before = programs(&server, "prestarted");
    let result = session.ok(&code("javascript", "console.log(typeof require, import.meta.url)"));
    assert_eq!(result["stdout"], "undefined file:///workspace/.main.js\n");
    assert_eq!(programs(&server, "prestarted"), before);
    session.ok(&json!({"type": "delete_file", "path": "package.json"}));
    assert_eq!(ahead(&server, &mut session, "console.log(typeof require)"), "function", "the control");
}

fn unseen() {
    host().need(Feature::Node);
    let server = Server::start(&setup(true));
    let mut session = native(&server);
    let pauses = [0, 1, 3, 6, 12, 25, 50, 100, 200];
    let mut commands = 0;
    for round in 0..3 {
        for pause in pauses {
            let marker = format!("{round}-{pause}");
            let result = session.ok(&code("javascript", &format!("console.log('{marker}')")));
            assert_eq!(result["stdout"], format!("{marker}\n"), "each program's output comes once, and is its own");
            std::thread::sleep(Duration::from_millis(pause));
            commands += 1;
            match commands % 4 {
                0 => {
                    let list =
                        json!({"type": "list_directory", "path": "/workspace", "recursive": true, "includeHidden": true});
                    assert_eq!(session.ok(&list)["entries"], json!([]), "{marker}");
                }
                1 => assert_eq!(session.bash("ls -A /workspace"), "", "{marker}"),
                2 => {
                    session.write("a/b.txt", "text");
                    assert_eq!(session.read("a/b.txt"), "text");
                    session.ok(&json!({"type": "copy_file", "source": "a", "destination": "c", "recursive": true}));
                    session.ok(&json!({"type": "delete_file", "path": "a", "recursive": true}));
                    session.ok(&json!({"type": "delete_file", "path": "c", "recursive": true}));
                }
                // What a client has under that name is his; the next program takes its place, as ever.
                _ => {
                    session.write(".main.js", "mine");
                    assert_eq!(session.read(".main.js"), "mine");
                }
            }
        }
    }
    assert!(programs(&server, "prestarted") > 0, "the control: some were there");
}

fn run_by_nobody() {
    host().need(Feature::Node);
    let server = Server::start(&setup(true).with_config("[pool]\nsandboxes_max = 0\n"));
    // Written while the engine starts that the program before has left, at different times of that.
    for pause in [0, 2, 5, 10, 15, 20, 30, 40, 60, 100] {
        let mut session = native(&server);
        session.ok(&code("javascript", "1"));
        std::thread::sleep(Duration::from_millis(pause));
        session.write(".main.js", "require('fs').writeFileSync('/workspace/ran', ''); setTimeout(() => {}, 5000)");
        std::thread::sleep(Duration::from_millis(150));
        let list = session.ok(&json!({"type": "list_directory", "path": "/workspace", "pattern": "ran"}));
        assert_eq!(list["entries"], json!([]), "{pause} ms: nobody asked for it");
        let once = "require('fs').appendFileSync('/workspace/log', 'x'); console.log(require('fs').readFileSync('/workspace/log', 'utf8'))";
        let mut command = code("javascript", once);
        command["args"] = json!(["an argument, so that no other one can take it"]);
        session.ok(&code("javascript", "1"));
        assert_eq!(session.ok(&command)["stdout"], "x\n", "{pause} ms");
        assert_eq!(session.ok(&code("javascript", once))["stdout"], "xx\n", "{pause} ms");
    }
}

/// After [`INTERPRETERS`]: what a program may do to another one.
const TRIES: &str = r#"
def tries(pid):
    numbers = os.listdir(f"/proc/{pid}/fd")
    writes = {attempt(lambda: os.close(os.open(f"/proc/{pid}/fd/{number}", os.O_WRONLY | os.O_NONBLOCK))) for number in numbers}
    return [attempt(lambda: os.readlink(f"/proc/{pid}/fd/0")), " ".join(sorted(writes & {"done", "EACCES"})),
            attempt(lambda: open(f"/proc/{pid}/mem", "rb").close()), attempt(lambda: open(f"/proc/{pid}/environ").read())]
"#;

/// Has a program start another one ahead, and waits until that waits.
#[track_caller]
fn waiting(server: &Server, session: &mut Session<'_>) {
    let before = count(server, "codebeaker_warm_interpreters_total{outcome=\"ready\"}");
    session.ok(&code("javascript", "1"));
    let ready = || count(server, "codebeaker_warm_interpreters_total{outcome=\"ready\"}") > before;
    assert!(eventually(Duration::from_secs(20), ready), "none waits");
}

fn out_of_reach() {
    host().need(Feature::Node);
    host().need(Feature::Python);
    // No other session's counts.
    let server = Server::start(&setup(true).with_config("[pool]\nsandboxes_max = 0\n"));
    for profile in ["default", "strict", "permissive"] {
        let named = json!({"language": "javascript", "runtimeType": "NativeProcess", "profile": profile});
        let mut session = Session::open(&server, &named);
        waiting(&server, &mut session);
        let text = format!(
            "{INTERPRETERS}{TRIES}\nimport json\nends = os.pipe()\nchild = os.fork()\nif child == 0: time.sleep(60); os._exit(0)\n\
             print(json.dumps([[tries(pid) for pid in interpreters()], tries(child)]))\nos.kill(child, 9)"
        );
        let seen = session.ok(&json!({"type": "execute_shell", "commandName": "python3", "args": ["-c", text]}));
        let seen: Value = serde_json::from_str(seen["stdout"].as_str().expect("text")).expect("JSON");
        let refused = json!(["EACCES", "EACCES", "EACCES", "EACCES"]);
        let all_refused = seen[0].as_array().is_some_and(|all| !all.is_empty() && all.iter().all(|one| *one == refused));
        assert!(all_refused, "{profile}: {seen}");
        let own = &seen[1];
        assert!([0, 2, 3].iter().all(|index| own[*index] == "done"), "{profile}, the control, its own child: {seen}");
        assert!(own[1].as_str().is_some_and(|words| words.contains("done")), "and the pipe that it shares with it: {seen}");
    }
    let mut session = native(&server);
    for signal in [9, 19, 2, 15] {
        let text =
            format!("{INTERPRETERS}\nfound = interpreters()\nfor pid in found: os.kill(pid, {signal})\nprint(len(found))");
        let signalled = eventually(Duration::from_secs(20), || {
            // What is told as ready may be what the programs of the round before have left, and be taken since.
            waiting(&server, &mut session);
            session.ok(&json!({"type": "execute_shell", "commandName": "python3", "args": ["-c", text]}))["stdout"] == "1\n"
        });
        assert!(signalled, "signal {signal}");
        for round in 0..3 {
            let result = session.ok(&code("javascript", &format!("console.log({round})")));
            assert_eq!(result["stdout"], format!("{round}\n"), "signal {signal}");
        }
    }
    assert_eq!(ahead(&server, &mut session, "console.log('back')"), "back");
}

fn background() {
    host().need(Feature::Node);
    let server = Server::start(&setup(true));
    let mut session = native(&server);
    let line = "until [ -e stop ]; do ls -A | grep -v -x -e log -e stop >> log; sleep 0.01; done";
    let shell = json!({"type": "execute_shell", "commandName": "bash", "args": ["-c", line], "background": true});
    session.ok(&shell);
    for round in 0..5 {
        let result = session.ok(&code("javascript", &format!("console.log({round})")));
        assert_eq!(result["stdout"], format!("{round}\n"));
        std::thread::sleep(Duration::from_millis(50));
    }
    session.write("stop", "");
    assert_eq!(programs(&server, "prestarted"), 0, "it could have met the fifo");
    assert!(eventually(Duration::from_secs(20), || session.bash("pgrep -x bash | wc -l") == "1"));
    let seen = session.bash("sort -u log | grep -v codebeaker");
    assert!(seen.is_empty() || seen == ".main.js", "only the source while it ran: {seen}");
}

fn ends() {
    host().need(Feature::Node);
    let server = Server::start(&setup(true));
    let mut session = native(&server);
    let mut endless = code("javascript", "console.log('begun'); while (true) {}");
    endless["timeoutSeconds"] = json!(1);
    let answer = by_one_ahead(&server, &mut session, &endless);
    assert_eq!((&answer["errorKind"], &answer["result"]["stdout"]), (&json!("timeout"), &json!("begun\n")), "{answer}");
    let command = code("javascript", "console.log('begun'); setTimeout(() => {}, 60000)");
    let (done, id) = (AtomicBool::new(false), session.id.clone());
    let answer = std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut client = server.client();
            while !done.load(Ordering::Acquire) {
                std::thread::sleep(Duration::from_millis(100));
                // Between two programs there may be nothing to cancel.
                client.call("session.cancel", &json!({"sessionId": id})).ok();
            }
        });
        let answer = by_one_ahead(&server, &mut session, &command);
        done.store(true, Ordering::Release);
        answer
    });
    assert_eq!(answer["errorKind"], "cancelled", "{answer}");
    assert_eq!(ahead(&server, &mut session, "console.log('after')"), "after");
}

fn no_source() {
    host().need(Feature::Node);
    host().need(Feature::Python);
    let server = Server::start(&setup(true).with_config("[pool]\nsandboxes_max = 0\n"));
    let mut session = native(&server);
    let fill = "f = open('/tmp/big', 'wb')\ntry:\n  while True: f.write(b'x' * (1 << 20)); f.flush()\nexcept OSError: pass";
    let program = code(
        "javascript",
        &format!("require('fs').writeFileSync('/workspace/ran', ''); console.log(1) // {}", "x".repeat(20_000)),
    );
    waiting(&server, &mut session);
    session.execute(&json!({"type": "execute_shell", "commandName": "python3", "args": ["-c", fill]}));
    let before = programs(&server, "prestarted");
    let answer = session.fails(&program, "disk_full");
    assert_eq!((&answer["result"], programs(&server, "prestarted")), (&Value::Null, before), "{answer}");
    session.fails(&json!({"type": "read_file", "path": "ran"}), "file_not_found");
    session.ok(&json!({"type": "delete_file", "path": "/tmp/big"}));
    assert_eq!(session.ok(&program)["stdout"], "1\n", "the control");
    session.ok(&json!({"type": "read_file", "path": "ran"}));
    assert_eq!(ahead(&server, &mut session, "console.log('back')"), "back");
}
