//! Isolates that share an engine: what stands between neighbours is V8 and the engine's permissions, so each way around them is
//! tried, and each hog runs beside a neighbour that must be answered meanwhile.

use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::support::residue::descendants;
use crate::support::{Feature, Server, Session, Setup, eventually, host, page};

pub fn trials() -> Vec<libtest_mimic::Trial> {
    page(
        "isolates",
        &[
            ("isolates that share an engine reach their own files and none of a neighbour's", files),
            ("file commands of sessions that share an engine reach no neighbour", file_commands),
            ("what an isolate does to globals and prototypes no other sees, not even the session's next", globals),
            ("an isolate has no module, global or descriptor that leads to its engine", doors),
            ("an isolate that exits or ends itself leaves its neighbour alone", exits),
            ("an isolate that never ends is ended while its neighbour is answered", loops),
            ("an isolate that hoards memory is out of memory and its neighbour goes on", hogs),
            ("an isolate that opens what it can or writes without end harms no neighbour", floods),
            ("sessions of different principals share no engine", principals),
            ("an engine that dies closes its sessions with the reason, and the next one gets another", engine_killed),
            ("an engine that stands still refuses a session in time, and goes on with those that it has", engine_stopped),
            ("a shared sandbox is told, counts for less isolation, and is refused by the operator's floor", told),
        ],
    )
}

fn open<'a>(server: &'a Server, more: &Value) -> Session<'a> {
    let mut parameters = json!({"language": "javascript", "runtimeType": "V8Isolate"});
    parameters.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
    Session::open(server, &parameters)
}

fn code(code: &str) -> Value {
    json!({"type": "execute_code", "code": code})
}

/// Runs code that must end well; what it printed.
#[track_caller]
pub fn printed(session: &mut Session<'_>, text: &str) -> String {
    session.ok(&code(text))["stdout"].as_str().expect("stdout is a string").trim_end().to_owned()
}

/// Runs code that must print one JSON value.
#[track_caller]
fn told_json(session: &mut Session<'_>, text: &str) -> Value {
    let printed = printed(session, text);
    serde_json::from_str(&printed).unwrap_or_else(|error| panic!("{error}: {printed}"))
}

/// Where a session's directory lies in its engine: every isolate may know it, for its own.
#[track_caller]
pub fn place(session: &mut Session<'_>) -> String {
    printed(session, "console.log(decodeURIComponent(new URL('.', import.meta.url).pathname))").trim_end_matches('/').to_owned()
}

fn neighbours(server: &Server) -> (Session<'_>, Session<'_>) {
    host().need(Feature::Deno);
    let (mut one, mut other) = (open(server, &json!({})), open(server, &json!({})));
    one.write("own", "of the first");
    other.write("own", "of the second");
    (one, other)
}

fn files() {
    let server = Setup::engines().shared();
    let (mut one, mut other) = neighbours(&server);
    let (own, foreign) = (place(&mut one), place(&mut other));
    assert_ne!(own, foreign, "the control: they lie in one engine, in directories of their own");
    let text = format!(
        "import fs from 'node:fs';\nconst reached = [];\nconst attempts = {{\n\
         absolute: () => fs.readFileSync('{foreign}/own', 'utf8'),\n\
         up: () => fs.readFileSync('../../../../..{foreign}/own', 'utf8'),\n\
         url: () => fs.readFileSync(new URL('file://{foreign}/own'), 'utf8'),\n\
         deno: () => Deno.readTextFileSync('{own}/../../..{foreign}/own'),\n\
         link: () => {{ Deno.linkSync('{own}/../../..{foreign}/own', 'l'); return fs.readFileSync('l', 'utf8'); }},\n\
         copy: () => {{ fs.cpSync('{own}/../../..{foreign}', 'c', {{ recursive: true }}); return 'copied'; }},\n\
         symlink: () => {{ (fs.symlinkSync ?? Deno.symlinkSync)('{foreign}/own', 's'); return fs.readFileSync('s', 'utf8'); }},\n\
         module: async () => (await import('file://{foreign}/own', {{ with: {{ type: 'text' }} }})).default,\n\
         computed: async () => (await import(['file:/', '{foreign}/own'].join('/'), {{ with: {{ type: 'text' }} }})).default,\n\
         host: () => fs.readFileSync('/etc/passwd', 'utf8'),\n\
         engine: () => fs.readFileSync('/proc/self/environ', 'utf8'),\n}};\n\
         for (const [name, attempt] of Object.entries(attempts)) try {{ await attempt(); reached.push(name); }} catch {{}}\n\
         console.log(JSON.stringify([reached, fs.readFileSync('own', 'utf8'), fs.readFileSync('/workspace/own', 'utf8')]));"
    );
    assert_eq!(told_json(&mut one, &text), json!([[], "of the first", "of the first"]));
    // A static import is resolved before anything runs, so it is a program of its own.
    let literal = format!("import text from 'file://{foreign}/own' with {{ type: 'text' }};\nconsole.log(text);");
    let answer = one.fails(&code(&literal), "nonzero_exit");
    assert!(!answer["result"].to_string().contains("of the second"), "{answer}");
    let control = format!("import text from 'file://{own}/own' with {{ type: 'text' }};\nconsole.log(text);");
    assert_eq!(printed(&mut one, &control), "of the first", "the control: its own file can be imported");
    assert_eq!(other.read("own"), "of the second");
}

fn file_commands() {
    let server = Setup::engines().shared();
    let (mut one, mut other) = neighbours(&server);
    let foreign = place(&mut other);
    for path in
        [format!("{foreign}/own"), format!("../../..{foreign}/own"), "/../workspace/../../own".into(), "/etc/passwd".into()]
    {
        let answer = one.execute(&json!({"type": "read_file", "path": path}));
        assert_eq!(answer["errorKind"], "file_not_found", "{path}: {answer}");
    }
    let listed = one.ok(&json!({"type": "list_directory", "path": "/", "recursive": true, "includeHidden": true})).to_string();
    assert!(listed.contains("/workspace/own") && !listed.contains(&foreign), "{listed}");
    one.fails(&json!({"type": "copy_file", "source": format!("{foreign}/own"), "destination": "taken"}), "file_not_found");
    assert_eq!((one.read("own"), other.read("own")), ("of the first".into(), "of the second".into()));
}

fn globals() {
    let server = Setup::engines().shared();
    let (mut one, mut other) = neighbours(&server);
    let pollute = "Object.prototype.polluted = 'yes';\nArray.prototype.map = () => { throw 1; };\nglobalThis.left = 1;\n\
                   console.log(JSON.stringify([{}.polluted, typeof left]));";
    assert_eq!(told_json(&mut one, pollute), json!(["yes", "number"]), "the control: it takes hold where it is done");
    let look = "console.log(JSON.stringify([typeof {}.polluted, typeof left, [1].map((n) => n + 1)]));";
    for session in [&mut one, &mut other] {
        assert_eq!(told_json(session, look), json!(["undefined", "undefined", [2]]));
    }
}

fn doors() {
    let server = Setup::engines().shared();
    let (mut one, _other) = neighbours(&server);
    let modules = "const open = [];\nfor (const name of ['worker_threads', 'child_process', 'net', 'http', 'module', 'v8', 'inspector', 'sqlite', 'vm', \
                   'tty', 'cluster', 'repl', '_http_agent']) for (const form of [name, `node:${name}`]) try { await import(form); open.push(form); } catch {}\n\
                   try { await import('http://127.0.0.1:9229/json/version', { with: { type: 'json' } }); open.push('inspector'); } catch {}\n\
                   await import('node:path'); open.push('path');\nconsole.log(JSON.stringify(open));";
    assert_eq!(told_json(&mut one, modules), json!(["path"]), "the control: a module that is there");
    let names = "console.log(JSON.stringify(['Worker', 'BroadcastChannel', 'caches', 'navigator', 'postMessage', 'close', 'fetch', 'WebSocket', \
                 'require'].filter((name) => globalThis[name] !== undefined).concat(['binding', 'abort', 'kill', 'dlopen', 'chdir', 'getBuiltinModule'].filter((name) \
                 => process[name]), ['kill', 'Command', 'dlopen', 'exit', 'listen', 'permissions'].filter((name) => Deno[name]))));";
    assert_eq!(told_json(&mut one, names), json!(["exit"]), "the control: an exit of its own");
    one.write("asks.cjs", "module.exports = require('net');");
    one.fails(&code("console.log((await import('./asks.cjs')).default)"), "nonzero_exit");
    let descriptors = "import fs from 'node:fs';\nconst used = [];\nfor (let number = 3; number < 64; number++) {\n  \
                       try { fs.writeSync(number, 'x'); used.push(number); } catch {}\n  \
                       try { fs.readSync(number, new Uint8Array(1)); used.push(number); } catch {}\n}\n\
                       const own = fs.openSync('own', 'r');\nconsole.log(JSON.stringify([used, fs.readSync(own, new Uint8Array(99))]));";
    assert_eq!(told_json(&mut one, descriptors), json!([[], 12]), "the control: a descriptor of its own");
    let env = "console.log(JSON.stringify(Object.keys(process.env)));";
    assert_eq!(told_json(&mut one, env), json!([]), "nothing of the engine's variables");
    let frames = "Error.prepareStackTrace = (_, frames) => frames.map((frame) => [typeof frame.getFunction(), typeof frame.getThis()]);\n\
                  const seen = [];\ntry { Deno.readTextFileSync('absent'); } catch (error) { seen.push(...error.stack); }\n\
                  console.log(JSON.stringify([seen.length > 1, seen.flat().filter((kind) => kind !== 'undefined')]));";
    assert_eq!(told_json(&mut one, frames), json!([true, []]), "no function of the engine is handed out by a stack");
    let answer = one.ok(&json!({"type": "execute_code", "code": PORTS, "stdin": "of the cell"}));
    let told: Value = serde_json::from_str(answer["stdout"].as_str().expect("text").trim_end()).expect("JSON");
    assert_eq!(told, json!(["of the cell", 0, true]), "the port to its cell is not seen; the control: one of its own is");
}

/// Watches what a message passes through while standard input comes from the cell, and then while a message of its own comes.
const PORTS: &str = "const seen = [];\nfor (const [of, names] of [[EventTarget.prototype, ['dispatchEvent', 'addEventListener']], \
                     [MessagePort.prototype, ['postMessage', 'start', 'close']]]) for (const name of names) {\n  const was = of[name];\n  \
                     of[name] = function (...given) { if (this instanceof MessagePort) seen.push(name); return was.apply(this, given); };\n}\n\
                     let text = '';\nfor await (const piece of process.stdin) text += piece;\nconst before = seen.length;\n\
                     const { port1, port2 } = new MessageChannel();\nconst came = new Promise((ok) => { port2.onmessage = ok; });\n\
                     port1.postMessage('own');\nawait came;\nport1.close();\nconsole.log(JSON.stringify([text, before, seen.length > 0]));";

fn exits() {
    let server = Setup::engines().shared();
    let (mut one, mut other) = neighbours(&server);
    for (text, exit) in [("process.exit(7)", 7), ("Deno.exit(8)", 8), ("process.exitCode = 9", 9), ("throw new Error('x')", 1)]
    {
        let answer = one.fails(&code(text), "nonzero_exit");
        assert_eq!(answer["result"]["exitCode"], exit, "{text}: {answer}");
        assert_eq!(printed(&mut other, "console.log(1)"), "1", "{text}");
    }
    for text in ["process.abort()", "process.kill(process.pid, 'SIGKILL')", "Deno.kill(Deno.pid, 'SIGKILL')", "self.close()"] {
        one.fails(&code(text), "nonzero_exit");
        assert_eq!(printed(&mut other, "console.log(1)"), "1", "{text}");
    }
}

/// While one session runs `text` to this verdict, the other must be answered; the answer of the first.
#[track_caller]
fn beside(one: &mut Session<'_>, other: &mut Session<'_>, text: &str, verdict: &str) -> Value {
    let parameters = json!({"sessionId": one.id, "command": {"type": "execute_code", "code": text, "timeoutSeconds": 60}});
    let running = one.client.send("session.execute", &parameters).expect("sent");
    assert_eq!(printed(other, "console.log(6 * 7)"), "42", "beside {text}");
    let answer = one.client.wait(running).expect("answered");
    assert_eq!(answer["errorKind"], verdict, "{text}: {answer}");
    assert_eq!(printed(other, "console.log(6 * 7)"), "42", "after {text}");
    answer
}

const WASM_LOOP: &str = "const bytes = new Uint8Array([0,97,115,109,1,0,0,0,1,4,1,96,0,0,3,2,1,0,7,5,1,1,102,0,0,10,9,1,7,0,3,64,12,0,11,11]);\n\
                         new WebAssembly.Instance(new WebAssembly.Module(bytes)).exports.f();";

fn loops() {
    let server = Setup::engines().shared();
    let (mut one, mut other) = neighbours(&server);
    for text in [
        "for (;;) {}",
        WASM_LOOP,
        "/(a+)+$/.test('a'.repeat(40) + 'b')",
        "for (;;) structuredClone({})",
        "setInterval(() => {}, 1000)",
    ] {
        let parameters = json!({"sessionId": one.id, "command": {"type": "execute_code", "code": text, "timeoutSeconds": 1}});
        let running = one.client.send("session.execute", &parameters).expect("sent");
        assert_eq!(printed(&mut other, "console.log(6 * 7)"), "42", "beside {text}");
        let answer = one.client.wait(running).expect("answered");
        assert_eq!(answer["errorKind"], "timeout", "{text}: {answer}");
    }
    assert_eq!(printed(&mut one, "console.log(1)"), "1", "the session goes on");
}

fn hogs() {
    host().need(Feature::Deno);
    let server = Setup::engines().shared();
    let mut one = open(&server, &json!({"memoryLimitMB": 128}));
    let (_, mut other) = neighbours(&server);
    for text in [
        "const all = []; for (;;) all.push(new Array(1000).fill(Math.random()));",
        "const all = []; for (;;) all.push(new Uint8Array(1 << 20).fill(1));",
        "const all = [], one = new Uint8Array(1 << 20).fill(1); for (;;) all.push(structuredClone(one));",
        "const all = new Array(3e7).fill(0.5); console.log(all.length);",
        "const all = [], one = new Blob([new Uint8Array(1 << 20)]); for (;;) all.push(await one.arrayBuffer());",
    ] {
        let answer = beside(&mut one, &mut other, text, "out_of_memory");
        assert_eq!(answer["result"]["oomKilled"], true, "{text}: {answer}");
    }
    let churn = "let sum = 0; for (let n = 0; n < 400; n++) sum += new Uint8Array(1 << 20).fill(1)[5]; console.log(sum);";
    assert_eq!(printed(&mut one, churn), "400", "the control: what is let go of does not count");
}

fn floods() {
    // An engine that lacks a descriptor for a place that it is opening at that moment ends (docs/threat-model.md), so nobody has one opened.
    let server = Server::start(&Setup::engines().with_config("isolate_spares = 0\n"));
    let (mut one, mut other) = neighbours(&server);
    beside(&mut one, &mut other, "for (;;) console.log('x'.repeat(4096));", "output_limit");
    let opens = "import fs from 'node:fs';\nlet count = 0;\ntry { for (;;) { fs.openSync('own'); count++; } } catch { console.log(count > 100); }";
    assert_eq!(printed(&mut one, opens), "true");
    let closed = || other.execute(&code("console.log(1)"))["success"] == true;
    assert!(eventually(Duration::from_secs(10), closed), "its descriptors go with it");
    assert_eq!(other.read("own"), "of the second");
    one.close();
    other.close();
    let left = server.end_and_check();
    assert!(left.is_empty(), "{}", left.join("; "));
}

fn principals() {
    host().need(Feature::Deno);
    let setup = Setup::engines().with_config("isolate_engines_max = 1\n");
    let server = Server::start(&setup);
    let token = server.cli(&["token", "create", "second"]).expect_code(0);
    let token = token.stdout.split_whitespace().last().expect("a token is printed").to_owned();
    let first = open(&server, &json!({}));
    let again = open(&server, &json!({}));
    let named = json!({"language": "javascript", "runtimeType": "V8Isolate"});
    let mut stranger = server.client_of(&token);
    let error = stranger.error("session.create", &named);
    assert!(error.code == 1302 && error.message.contains("engines of isolates"), "{error}");
    again.close();
    first.close();
    // The control: once nobody is in it, the engine gives way.
    stranger.ok("session.create", &named);
    let left = server.end_and_check();
    assert!(left.is_empty(), "{}", left.join("; "));
}

/// The engines of a server, as processes of the host.
pub fn engines(server: &Server) -> Vec<i32> {
    let is_engine = |pid: &i32| {
        std::fs::read(format!("/proc/{pid}/cmdline"))
            .is_ok_and(|line| String::from_utf8_lossy(&line).contains("isolates/main.mjs"))
    };
    descendants(server.pid()).into_iter().map(|process| process.identity.0).filter(is_engine).collect()
}

fn engine_killed() {
    host().need(Feature::Deno);
    let server = Server::start(&Setup::engines());
    let (mut one, other) = neighbours(&server);
    let before = engines(&server);
    assert_eq!(before.len(), 1, "the control: both are in one engine");
    let parameters = json!({"sessionId": one.id, "command": code("for (;;) {}")});
    let running = one.client.send("session.execute", &parameters).expect("sent");
    std::thread::sleep(Duration::from_millis(300));
    kill(Pid::from_raw(before[0]), Signal::SIGKILL).expect("a process of this test's own server");
    let answer = one.client.wait(running).expect("answered");
    assert_eq!(answer["errorKind"], "sandbox_gone", "{answer}");
    let mut client = server.client();
    for id in [&one.id, &other.id] {
        let parameters = json!({"sessionId": id, "command": code("console.log(1)")});
        let closed = || {
            let refused = client.call("session.execute", &parameters).err();
            refused.is_some_and(|error| error.to_string().contains("the engine of its isolates ended"))
        };
        assert!(eventually(Duration::from_secs(10), closed), "{id} must be closed and say why");
    }
    let mut next = open(&server, &json!({}));
    assert_eq!(printed(&mut next, "console.log(1)"), "1");
    assert!(engines(&server) != before, "another engine");
    next.close();
    drop((one, other));
    let left = server.end_and_check();
    assert!(left.is_empty(), "{}", left.join("; "));
}

fn engine_stopped() {
    host().need(Feature::Deno);
    let server = Server::start(&Setup::engines());
    let mut one = open(&server, &json!({}));
    let before = engines(&server);
    kill(Pid::from_raw(before[0]), Signal::SIGSTOP).expect("a process of this test's own server");
    let parameters = json!({"language": "javascript", "runtimeType": "V8Isolate"});
    let refused = server.client().call("session.create", &parameters).expect_err("nobody opens a place").to_string();
    kill(Pid::from_raw(before[0]), Signal::SIGCONT).expect("a process of this test's own server");
    assert!(refused.contains("1302") && refused.contains("opened no place"), "{refused}");
    assert_eq!(printed(&mut one, "console.log(1)"), "1", "its session goes on");
    let mut next = open(&server, &json!({}));
    assert_eq!(printed(&mut next, "console.log(2)"), "2");
    assert_eq!(engines(&server).len(), 2, "it takes no other session");
    next.close();
    drop(one);
    let left = server.end_and_check();
    assert!(left.is_empty(), "{}", left.join("; "));
}

fn told() {
    host().need(Feature::Deno);
    let server = Setup::engines().shared();
    let session = open(&server, &json!({}));
    let walls = session.created["enforcement"]["walls"].as_array().expect("walls").clone();
    let own = walls.iter().find(|row| row["name"] == "own_sandbox").expect("a row");
    assert_eq!(own["state"], "absent", "{own}");
    let rows = server.client().ok("runtime.list", &json!({}))["runtimes"].as_array().expect("rows").clone();
    let level = |kind: &str| {
        let row = rows.iter().find(|row| row["type"] == kind).expect("listed");
        row["capabilities"]["isolationLevel"].as_u64().expect("a number")
    };
    assert!(level("V8Isolate") < level("Deno"), "{} {}", level("V8Isolate"), level("Deno"));
    let mut client = server.client();
    for (limit, value) in [("pidsLimit", 10), ("diskLimitMB", 10), ("cpuLimit", 1)] {
        let named = json!({"language": "javascript", "runtimeType": "V8Isolate", limit: value});
        client.error_is("session.create", &named, 1201, "limit_unenforceable");
    }
    let under = |kind: &str| json!({"language": "javascript", "runtimeType": kind, "profile": "strict"});
    let refused = client.error("session.create", &under("V8Isolate"));
    assert!(refused.code == 1101 && refused.to_string().contains("loopback"), "{refused}");
    client.ok("session.create", &under("Deno"));
    let floor = Setup::engines();
    let floor = Setup { config: floor.config.replace("[sandbox]\n", "[sandbox]\nisolation_level_min = 4\n"), ..floor };
    let strict = Server::start(&floor);
    let named = |kind: &str| json!({"language": "javascript", "runtimeType": kind});
    strict.client().error_is("session.create", &named("V8Isolate"), 1101, "runtime_not_available");
    strict.client().ok("session.create", &named("Deno"));
    let left = strict.end_and_check();
    assert!(left.is_empty(), "{}", left.join("; "));
}
