//! The WebAssembly runtime: how modules end, what bounds them, what they can reach, and what becomes of compiled engines.
//!
//! Invariant: every module runs inside a session. What all runtimes have in common is tried by `conformance::matrix`.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::support::{Feature, Server, Session, Setup, eventually, host, page};

pub fn trials() -> Vec<libtest_mimic::Trial> {
    page(
        "wasm",
        &[
            ("a trap ends as the same fault does in a native program, with its words on standard error", traps),
            ("memory past the bound is refused, and who fails by that is out of memory", memory),
            ("what is no module, or wants what there is not, is refused with a reason", refused),
            ("a module comes as text, in base64 or as a path, and sees what file commands wrote", sources),
            ("a guest opens the session's directories and nothing else", reach),
            ("a guest past its deadline is ended by its worker when the server can't", deadline),
            ("a module too large to compile in time is a timeout, and the session lives on", large),
            ("a compiled engine that was tampered with is never used, but made anew", tampered),
            ("an engine that is missing is told with the command that brings it", missing),
            ("JavaScript has timers, files and true ends", javascript),
            ("Python on WebAssembly reaches the workspace and no more", python),
        ],
    )
}

fn code(text: &str) -> Value {
    json!({"type": "execute_code", "code": text})
}

/// A module whose `_start` is this, with a page of memory and whatever comes before it.
fn module(before: &str, start: &str) -> String {
    format!("(module {before} (memory (export \"memory\") 1) (func $start (export \"_start\") {start}))")
}

fn session<'a>(server: &'a Server, language: &str) -> Session<'a> {
    Session::open(server, &json!({"language": language, "runtimeType": "WebAssembly"}))
}

fn traps() {
    let server = Setup::engines().shared();
    let mut session = session(&server, "wasm");
    for (start, signal, words) in [
        ("unreachable", "SIGILL", "unreachable"),
        ("(drop (i32.div_u (i32.const 1) (i32.const 0)))", "SIGFPE", "divide by zero"),
        ("(drop (i32.load (i32.const 0x7fffffff)))", "SIGSEGV", "out of bounds"),
        ("(call $start)", "SIGSEGV", "stack"),
    ] {
        let answer = session.fails(&code(&module("", start)), "signaled");
        let result = &answer["result"];
        assert_eq!(result["signal"], signal, "{answer}");
        assert!(result["stderr"].as_str().is_some_and(|text| text.contains(words)), "{answer}");
    }
    // An exit code is the guest's own, also one that looks like a signal's.
    let import = "(import \"wasi_snapshot_preview1\" \"proc_exit\" (func $exit (param i32)))";
    let answer = session.fails(&code(&module(import, "(call $exit (i32.const 152))")), "nonzero_exit");
    assert_eq!((&answer["result"]["exitCode"], &answer["result"]["signal"]), (&json!(152), &Value::Null), "{answer}");
    session.ok(&code(""));
}

fn memory() {
    let server = Setup::engines().shared();
    let parameters = json!({"language": "wasm", "runtimeType": "WebAssembly", "memoryLimitMB": 256});
    let mut session = Session::open(&server, &parameters);
    // Pages are of 64 KiB; three quarters of the limit are the guest's.
    let grows_by = |pages: u32| format!("(i32.eq (memory.grow (i32.const {pages})) (i32.const -1))");
    let answer = session.fails(&code(&module("", &format!("(if {} (then unreachable))", grows_by(4000)))), "out_of_memory");
    assert_eq!(answer["result"]["oomKilled"], true, "{answer}");
    session.ok(&code(&module("", &format!("(if {} (then unreachable))", grows_by(1000)))));
    // Who can do without it has done well.
    session.ok(&code(&module("", &format!("(if (i32.eqz {}) (then unreachable))", grows_by(4000)))));
    let declared = "(module (memory (export \"memory\") 8000) (func (export \"_start\")))";
    session.fails(&code(declared), "out_of_memory");
}

fn refused() {
    let server = Setup::engines().shared();
    let mut session = session(&server, "wasm");
    let corrupt = STANDARD.encode(b"\0asm\x01\0\0\0\xff\xff\xff");
    for (text, words) in [
        ("print(42)", "no WebAssembly"),
        ("(module (func", "expected"),
        (corrupt.as_str(), "no WebAssembly module"),
        ("absent.wasm", "can't be read"),
        ("(module (import \"env\" \"system\" (func)) (func (export \"_start\")))", "env::system"),
        ("(module (memory (export \"memory\") 1))", "_start"),
    ] {
        let answer = session.fails(&code(text), "nonzero_exit");
        assert_eq!(answer["result"]["exitCode"], 126, "{text}: {answer}");
        let told = answer["result"]["stderr"].as_str().unwrap_or_default();
        assert!(told.contains(words), "{text}: {told}");
    }
}

/// `(module (func (export "_start")))` with a name of its own.
const SMALLEST: &[u8] = b"\0asm\x01\0\0\0\x01\x04\x01\x60\0\0\x03\x02\x01\0\x07\x0a\x01\x06_start\0\0\x0a\x04\x01\x02\0\x0b";

fn sources() {
    let server = Setup::engines().shared();
    let mut session = session(&server, "wasm");
    session.ok(&code(&STANDARD.encode(SMALLEST)));
    let packed =
        json!({"type": "write_file", "path": "built/app.wasm", "content": STANDARD.encode(SMALLEST), "encoding": "base64"});
    session.ok(&packed);
    session.ok(&code("built/app.wasm"));
    session.write("hello.wat", include_str!("fixtures/wasm/hello.wat"));
    assert_eq!(session.ok(&code("/workspace/hello.wat"))["stdout"], "42\n");
    let answer = session.fails(&code(include_str!("fixtures/wasm/copy_kept.wat")), "nonzero_exit");
    assert_eq!(answer["result"]["exitCode"], 44, "no such file, in the numbers of WASI: {answer}");
}

/// A module that opens one path to read, and ends with the error of that.
fn opens(path: &str) -> String {
    let import = format!(
        "(import \"wasi_snapshot_preview1\" \"path_open\" (func $open (param i32 i32 i32 i32 i32 i64 i64 i32 i32) (result i32)))
         (import \"wasi_snapshot_preview1\" \"proc_exit\" (func $exit (param i32)))
         (data (i32.const 64) \"{path}\")"
    );
    let arguments = "(i32.const 3) (i32.const 1) (i32.const 64)";
    let rest = "(i32.const 0) (i64.const 2) (i64.const 0) (i32.const 0) (i32.const 16)";
    module(&import, &format!("(call $exit (call $open {arguments} (i32.const {}) {rest}))", path.len()))
}

fn reach() {
    let server = Setup::engines().shared();
    let mut session = session(&server, "wasm");
    session.write("kept", "x");
    session.ok(&code(&opens("kept")));
    session.ok(&code(&opens("./kept")));
    for path in ["/etc/passwd", "../etc/passwd", "../usr/local/bin/codebeaker", "/proc/self/maps", "../proc/1/environ"] {
        let answer = session.fails(&code(&opens(path)), "nonzero_exit");
        // 76 is ENOTCAPABLE, 63 EPERM and 44 ENOENT of WASI.
        assert!([76, 63, 44].contains(&answer["result"]["exitCode"].as_i64().unwrap_or_default()), "{path}: {answer}");
    }
    // Narrowed by the request: a directory that is opened to read only.
    let narrow = json!({"language": "wasm", "runtimeType": "WebAssembly", "permissions": {"allowWrite": ["out"]}});
    let mut narrow = Session::open(&server, &narrow);
    narrow.write("kept", "x");
    narrow.fails(&code(include_str!("fixtures/wasm/copy_kept.wat")), "nonzero_exit");
    let lists_no_more = narrow.ok(&json!({"type": "list_directory"}));
    assert!(!lists_no_more.to_string().contains("kept-too"), "{lists_no_more}");
}

/// Processes of the host whose command line holds all these words.
fn processes(words: &[&str]) -> usize {
    let holds = |path: &Path| {
        let line = std::fs::read(path.join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).into_owned();
        words.iter().all(|word| line.contains(word))
    };
    std::fs::read_dir("/proc").expect("procfs").flatten().filter(|entry| holds(&entry.path())).count()
}

fn deadline() {
    let server = Server::start(&Setup::engines());
    let mut session = session(&server, "wasm");
    let endless = json!({
        "type": "execute_code", "args": ["codebeaker-deadline"], "timeoutSeconds": 2,
        "code": module("", "(loop $on (br $on))"),
    });
    let (subscription, _) = session.stream(&endless);
    let words = ["wasm-worker", "codebeaker-deadline"];
    assert!(eventually(Duration::from_secs(2), || processes(&words) > 0), "the control: it runs");
    server.signal(Signal::SIGSTOP);
    let ended = eventually(Duration::from_secs(20), || processes(&words) == 0);
    server.signal(Signal::SIGCONT);
    assert!(ended, "the worker ends a guest without the server");
    let events = session.client.events(&subscription);
    let result = &events.last().expect("exited")["result"];
    assert_eq!((&result["errorKind"], &result["result"]["timedOut"]), (&json!("timeout"), &json!(true)), "{events:?}");
    session.close();
    let left = server.end_and_check();
    assert!(left.is_empty(), "{}", left.join("; "));
}

fn large() {
    let server = Setup::engines().shared();
    let mut session = session(&server, "wasm");
    let many = "(func (param i64) (result i64) (i64.mul (i64.add (local.get 0) (i64.const 3)) (i64.const 5)))".repeat(60_000);
    session.write("large.wat", &format!("(module {many} (func (export \"_start\")))"));
    let begin = Instant::now();
    session.fails(&json!({"type": "execute_code", "code": "large.wat", "timeoutSeconds": 1}), "timeout");
    assert!(begin.elapsed() < Duration::from_secs(20), "{:?}", begin.elapsed());
    session.ok(&code(""));
}

/// Compiled code in that directory of engines.
fn compiled(engines: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(engines.join("compiled")).expect("a directory").flatten();
    entries.map(|entry| entry.path()).filter(|path| path.extension().is_some_and(|e| e == "cwasm")).collect()
}

fn tampered() {
    host().need(Feature::WasmEngines);
    let engines = tempfile::tempdir().expect("a directory");
    let module = host::engine("javascript.wasm").expect("it is there");
    std::fs::copy(module, engines.path().join("javascript.wasm")).expect("a copy");
    let config = format!("[runtimes]\nmeasure = false\nengines_dir = \"{}\"\n", engines.path().display());
    let server = Server::start(&Setup::plain().with_config(&config));
    let hello = code("console.log(6 * 7);");
    assert_eq!(session(&server, "javascript").ok(&hello)["stdout"], "42\n");
    let files = compiled(engines.path());
    let [file] = files.as_slice() else { panic!("one engine was compiled: {files:?}") };
    let sound = std::fs::read(file).expect("read");
    let mut evil = sound.clone();
    let middle = evil.len() / 2;
    evil[middle] ^= 0xff;
    std::fs::write(file, &evil).expect("written");
    assert_eq!(session(&server, "javascript").ok(&hello)["stdout"], "42\n");
    assert_ne!(std::fs::read(file).expect("read"), evil, "it was made anew");
    assert!(server.log().contains("a compiled engine is not the one that this server made"), "it is told");
    // The control: what nobody touched is not made anew.
    let before = std::fs::metadata(file).and_then(|metadata| metadata.modified()).expect("a time");
    assert_eq!(session(&server, "javascript").ok(&hello)["stdout"], "42\n");
    assert_eq!(std::fs::metadata(file).and_then(|metadata| metadata.modified()).expect("a time"), before);
    let left = server.end_and_check();
    assert!(left.is_empty(), "{}", left.join("; "));
}

fn missing() {
    let engines = tempfile::tempdir().expect("a directory");
    let config = format!("[runtimes]\nmeasure = false\nengines_dir = \"{}\"\n", engines.path().display());
    let server = Server::start(&Setup::plain().with_config(&config));
    let named = json!({"language": "python", "runtimeType": "WebAssembly"});
    let error = server.client().error_is("session.create", &named, 1101, "runtime_not_available");
    assert!(error.data.to_string().contains("codebeaker engines install wasm-python"), "{error}");
    session(&server, "wasm").ok(&code(""));
    let listed = server.cli(&["engines", "list", "-o", "json"]);
    assert!(listed.stdout.contains("wasm-javascript"), "{listed:?}");
    let unknown = server.cli(&["engines", "install", "cobol"]);
    assert!(unknown.stderr.contains("wasm-python, wasm-javascript"), "{unknown:?}");
    let left = server.end_and_check();
    assert!(left.is_empty(), "{}", left.join("; "));
}

fn javascript() {
    host().need(Feature::WasmEngines);
    let server = Setup::engines().shared();
    let mut session = session(&server, "javascript");
    // The first tick is due long before the promise has its turn, and still comes after it.
    let timers = "let count = 0;\n\
                  const ticks = setInterval(() => { count += 1; console.log(count); if (count === 2) { clearInterval(ticks); \
                  setTimeout(() => console.log('late'), 1); } }, 1);\n\
                  Promise.resolve().then(() => console.log('soon')).then(() => console.log('then'));\n\
                  const begin = Date.now();\nwhile (Date.now() - begin < 20) {}\nconsole.log('first');";
    assert_eq!(session.ok(&code(timers))["stdout"], "first\nsoon\nthen\n1\n2\nlate\n");
    let files = "import fs from 'node:fs';\nfs.mkdirSync('a/b', { recursive: true });\nfs.writeFileSync('a/b/c', 'übung');\n\
                 console.log(fs.readdirSync('a/b')[0], fs.readFileSync('a/b/c', 'utf8'), fs.statSync('a/b/c').size);";
    assert_eq!(session.ok(&code(files))["stdout"], "c übung 6\n");
    assert_eq!(session.read("a/b/c"), "übung");
    for failing in [
        "setTimeout(() => { throw new Error('told'); }, 1);",
        "(async () => { throw new Error('told'); })();",
        "throw new Error('told');",
    ] {
        let answer = session.fails(&code(failing), "nonzero_exit");
        assert!(answer["result"]["stderr"].as_str().is_some_and(|text| text.contains("told")), "{failing}: {answer}");
    }
    let hungry = "const all = []; for (;;) all.push(new Uint8Array(1 << 20).fill(1));";
    session.fails(&code(hungry), "out_of_memory");
}

fn python() {
    host().need(Feature::WasmEngines);
    let server = Setup::engines().shared();
    let mut session = session(&server, "python");
    session.write("kept", "by a file command");
    let looks = "import json, os, sys\n\
                 def denied(path):\n    try: open(path)\n    except OSError: return True\n\
                 print(json.dumps([open('/workspace/kept').read(), open('kept').read(), denied('/etc/passwd'), denied('/proc/self/maps'), sys.platform]))";
    let result = session.ok(&code(looks));
    let seen: Value = serde_json::from_str(result["stdout"].as_str().unwrap_or_default()).expect("JSON");
    assert_eq!(seen, json!(["by a file command", "by a file command", true, true, "wasi"]));
    let answer = session.fails(&code("raise ValueError('told')"), "nonzero_exit");
    assert!(answer["result"]["stderr"].as_str().is_some_and(|text| text.contains("ValueError: told")), "{answer}");
    session.fails(&code("bytearray(600 << 20)"), "out_of_memory");
}
