//! Where engines are found, and whose their caches are: Deno, Bun and Node themselves, in every place that docs/runtimes.md names.
//!
//! Invariant: a trial that finds an engine in one place has it in no other that would come before. What all runtimes have in common is
//! tried by `conformance::matrix`, their walls by `escape::engines`.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use crate::support::{Feature, Server, Session, Setup, eventually, host, page};

pub fn trials() -> Vec<libtest_mimic::Trial> {
    page(
        "engines",
        &[
            ("an engine is found on the server's PATH", on_the_path),
            ("an engine is found where the configuration says, before the PATH", where_it_is_named),
            ("an engine is found in an image of its name and in one that is named", in_an_image),
            (
                "an engine that is nowhere says why, with the key that mends it, and so does one that is not where it was named",
                nowhere,
            ),
            ("a program that is the first request of all has an engine tell what it serves", first_of_all),
            ("what a session puts into Deno's cache serves that session and no other of the same principal", cache_of_deno),
            ("what a session puts into Bun's caches is there for no other of the same principal", cache_of_bun),
            ("what a session puts into Node's compile cache is there for no other of the same principal", cache_of_node),
        ],
    )
}

/// One of the engines: its runtime, its program, its key in the configuration, and a program that prints its version.
struct Engine {
    runtime: &'static str,
    program: &'static str,
    key: &'static str,
    version: &'static str,
}

const ENGINES: [Engine; 3] = [
    Engine { runtime: "Deno", program: "deno", key: "deno", version: "console.log(Deno.version.deno)" },
    Engine { runtime: "Bun", program: "bun", key: "bun", version: "console.log(Bun.version)" },
    Engine { runtime: "NodeJs", program: "node", key: "nodejs", version: "console.log(process.versions.node)" },
];

impl Engine {
    /// The program that `scripts/test` has installed.
    fn installed(&self) -> PathBuf {
        host::engine(self.program).expect("the trial needs it")
    }

    /// What it says of itself on the host.
    fn version_of(&self, program: &Path) -> String {
        let output = Command::new(program).arg("--version").output().expect("it runs");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let numbers = text.split(|c: char| !c.is_ascii_digit() && c != '.').find(|word| word.matches('.').count() == 2);
        numbers.unwrap_or_else(|| panic!("{} has no version in {text}", self.program)).to_owned()
    }

    /// Runs its program in a session; it must be this version, on that image.
    fn serves(&self, server: &Server, version: &str, image: &str) {
        let mut session = Session::open(server, &self.named());
        let said = session.ok(&json!({"type": "execute_code", "code": self.version}));
        assert_eq!(said["stdout"], format!("{version}\n"), "{}", self.program);
        assert_eq!((&session.created["runtimeType"], &session.created["image"]), (&json!(self.runtime), &json!(image)));
        session.close();
    }

    fn named(&self) -> Value {
        json!({"language": "javascript", "runtimeType": self.runtime})
    }

    /// Why `runtime.list` says that it is not there.
    fn reason(&self, server: &Server) -> String {
        let rows = server.client().ok("runtime.list", &json!({}));
        let row = rows["runtimes"].as_array().expect("rows").iter().find(|row| row["type"] == self.runtime).cloned();
        let row = row.expect("every runtime is listed");
        assert_eq!(row["available"], false, "{row}");
        row["reason"].as_str().expect("a reason").to_owned()
    }
}

fn need_all() {
    host().need(Feature::Deno).need(Feature::Bun).need(Feature::NewerNode);
}

fn directory() -> tempfile::TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory")
}

/// Without measuring, which would have the engines run beside the trial.
fn with_runtimes(lines: &str) -> Setup {
    Setup::plain().with_config(&format!("[runtimes]\nmeasure = false\n{lines}"))
}

#[track_caller]
fn end(server: Server) {
    let left = server.end_and_check();
    assert!(left.is_empty(), "{}", left.join("; "));
}

fn on_the_path() {
    need_all();
    let bin = directory();
    for engine in &ENGINES {
        std::os::unix::fs::symlink(engine.installed(), bin.path().join(engine.program)).expect("an own directory");
    }
    // The one on the PATH is another version than the host's own, which comes later.
    let path = format!("{}:/usr/sbin:/usr/bin:/sbin:/bin", bin.path().display());
    let server = Server::start(&with_runtimes("").with_variable("PATH", &path));
    for engine in &ENGINES {
        engine.serves(&server, &engine.version_of(&engine.installed()), "minimal");
    }
    end(server);
}

fn where_it_is_named() {
    need_all();
    let elsewhere = directory();
    let mut lines = String::new();
    for engine in &ENGINES {
        // Its name is nobody's, so nothing but the configuration leads there.
        let program = elsewhere.path().join(format!("our-{}", engine.key));
        std::os::unix::fs::symlink(engine.installed(), &program).expect("an own directory");
        lines = format!("{lines}{} = \"{}\"\n", engine.key, program.display());
    }
    // Another program of each name comes first on the PATH, and would not do.
    let bin = directory();
    for engine in &ENGINES {
        std::fs::copy("/bin/true", bin.path().join(engine.program)).expect("an own directory");
    }
    let path = format!("{}:/usr/sbin:/usr/bin:/sbin:/bin", bin.path().display());
    let server = Server::start(&with_runtimes(&lines).with_variable("PATH", &path));
    for engine in &ENGINES {
        engine.serves(&server, &engine.version_of(&engine.installed()), "minimal");
    }
    end(server);
    let server = Server::start(&with_runtimes("").with_variable("PATH", &path));
    let refused = server.client().error_is("session.create", &ENGINES[0].named(), 1101, "runtime_not_available");
    assert!(refused.message.contains("version"), "the control: what is on the PATH is taken, and is no engine: {refused}");
    end(server);
}

/// A tree with the three engines, and the loader and the libraries that they name.
fn tree() -> tempfile::TempDir {
    let tree = directory();
    let put = |from: &Path, to: &str| {
        let to = tree.path().join(to);
        std::fs::create_dir_all(to.parent().expect("below the tree")).expect("an own directory");
        std::fs::copy(from, to).expect("an own directory");
    };
    for engine in &ENGINES {
        let program = engine.installed();
        put(&program, &format!("usr/local/bin/{}", engine.program));
        let named = Command::new("ldd").arg(&program).output().expect("ldd is there");
        let named = String::from_utf8_lossy(&named.stdout).into_owned();
        for library in named.split_whitespace().filter(|word| word.starts_with('/')) {
            put(Path::new(library), library.trim_start_matches('/'));
        }
    }
    for directory in ["etc", "proc", "dev", "sys", "tmp"] {
        std::fs::create_dir_all(tree.path().join(directory)).expect("an own directory");
    }
    std::fs::write(tree.path().join("etc/made-here"), "by the trial").expect("an own directory");
    tree
}

fn in_an_image() {
    need_all();
    let tree = tree();
    // Deno is found by the image's name; the others are in an image that has another one.
    let lines = "bun = \"image:deno\"\nnodejs = \"image:deno\"\n";
    let server = Server::start(&with_runtimes(lines));
    for engine in &ENGINES {
        let reason = engine.reason(&server);
        assert!(
            reason.contains("image `deno`") && reason.contains(&format!("runtimes.{}", engine.key)),
            "the control: {reason}"
        );
    }
    let imported = server.cli(&["image", "import", &tree.path().display().to_string(), "--name", "deno"]);
    imported.expect_code(0);
    server.signal(nix::sys::signal::Signal::SIGTERM);
    assert!(server.wait(Duration::from_secs(60)).is_some(), "it ends after SIGTERM");
    let server = Server::start_in(&with_runtimes(lines), server.into_directory());
    for engine in &ENGINES {
        engine.serves(&server, &engine.version_of(&engine.installed()), "deno");
        let mut session = Session::open(&server, &engine.named());
        assert_eq!(session.read("/etc/made-here"), "by the trial", "it stands on the image");
    }
    end(server);
}

fn nowhere() {
    let lines = "nodejs = \"/nowhere/node\"\n";
    let server = Server::start(&with_runtimes(lines));
    for engine in &ENGINES[..2] {
        let reason = engine.reason(&server);
        let key = format!("runtimes.{}", engine.key);
        assert!(reason.contains("PATH") && reason.contains("install it") && reason.contains(&key), "{reason}");
        let error = server.client().error_is("session.create", &engine.named(), 1101, "runtime_not_available");
        assert!(error.data.to_string().contains(&key), "{error}");
    }
    let reason = ENGINES[2].reason(&server);
    assert!(reason.contains("`runtimes.nodejs` of the configuration names a program that can't be used"), "{reason}");
    assert!(!reason.contains("/nowhere"), "no path of the host: {reason}");
    end(server);
}

/// How many entries are below a directory of the session, which may not be there.
fn entries(session: &mut Session<'_>, path: &str) -> usize {
    let list = json!({"type": "list_directory", "path": path, "recursive": true, "includeHidden": true});
    let answer = session.execute(&list);
    if answer["errorKind"] == "file_not_found" {
        return 0;
    }
    answer["result"]["entries"].as_array().unwrap_or_else(|| panic!("{answer}")).len()
}

/// Fills the cache of one session; another one of the same principal has nothing of it, neither beside it nor after it.
fn is_of_one_session(engine: &Engine, caches: &[&str], fill: fn(&mut Session<'_>), used: fn(&mut Session<'_>) -> bool) {
    let setup = Setup::engines().with_config("measure = false\n");
    let server = Server::start(&setup);
    let mut one = Session::open(&server, &engine.named());
    let mut beside = Session::open(&server, &engine.named());
    fill(&mut one);
    for cache in caches {
        assert!(entries(&mut one, cache) > 0, "the control: the session has something in {cache}");
    }
    assert!(used(&mut one), "the control: what is there serves the session");
    let has_none = |session: &mut Session<'_>, which: &str| {
        for cache in caches {
            assert_eq!(entries(session, cache), 0, "{which}: {cache}");
        }
        assert!(!used(session), "{which}");
    };
    has_none(&mut beside, "a session beside it");
    let environment = one.environment().to_owned();
    one.close();
    server.expect_no_residue_of(&environment);
    has_none(&mut Session::open(&server, &engine.named()), "a session after it");
    drop(beside);
    end(server);
}

fn first_of_all() {
    host().need(Feature::NewerNode);
    let node = host::engine("node").expect("the trial needs it");
    let lines = format!("deno = \"off\"\nbun = \"off\"\ndocker = \"off\"\nwasm = \"off\"\nnodejs = \"{}\"\n", node.display());
    let server = Server::start(&with_runtimes(&lines));
    let mut client = server.client();
    let runs = json!({"language": "typescript", "code": "const n: number = 42;\nconsole.log(n);", "timeout": 60});
    let queued = client.ok("execution.run", &runs);
    let status = crate::conformance::methods::finished(&mut client, &queued["executionId"]);
    assert_eq!((&status["status"], &status["stdout"]), (&json!("completed"), &json!("42\n")), "{status}");
    end(server);
}

/// Serves one module on the session's own loopback, until a file is there.
const MODULE_SERVER: &str = "const stop = new AbortController();\n\
    Deno.serve({ port: 8321, hostname: '127.0.0.1', signal: stop.signal, onListen() {} },\n  \
    () => new Response('export const word = \"of the cache\";', { headers: { 'content-type': 'text/javascript' } }));\n\
    setInterval(() => { try { Deno.statSync('/workspace/stop'); Deno.exit(0); } catch { /* not yet */ } }, 50);";

fn cache_of_deno() {
    host().need(Feature::Deno);
    let fill = |session: &mut Session<'_>| {
        session.write("server.mjs", MODULE_SERVER);
        let arguments = json!(["run", "--allow-net", "--allow-read", "--quiet", "server.mjs"]);
        session.ok(&json!({"type": "execute_shell", "commandName": "deno", "args": arguments, "background": true}));
        let fetch = ["cache", "--quiet", "--allow-import", "http://127.0.0.1:8321/module.js"];
        let mut said = Value::Null;
        let fetched = eventually(Duration::from_secs(30), || {
            said = session.program("deno", &fetch);
            said["success"] == true
        });
        assert!(fetched, "{said}");
        session.write("stop", "");
        // Types are taken away once, and that is kept too.
        session.write("own.ts", "export const word: string = 'typed';");
        session.ok(&json!({
            "type": "execute_code", "language": "typescript",
            "code": "import { word } from './own.ts';\nconst said: string = word;\nconsole.log(said);",
        }));
    };
    let used = |session: &mut Session<'_>| {
        session.write("user.mjs", "import { word } from 'http://127.0.0.1:8321/module.js';\nconsole.log(word);");
        let answer = session.program("deno", &["run", "--cached-only", "--allow-import", "--quiet", "user.mjs"]);
        answer["result"]["stdout"] == "of the cache\n"
    };
    is_of_one_session(&ENGINES[0], &["/tmp/.deno/remote", "/tmp/.deno/gen"], fill, used);
}

/// A package as npm packs them.
fn package() -> String {
    let source = directory();
    let inside = source.path().join("package");
    std::fs::create_dir(&inside).expect("an own directory");
    std::fs::write(inside.join("package.json"), r#"{"name": "cb-cached", "version": "1.0.0", "main": "main.js"}"#)
        .expect("an own directory");
    std::fs::write(inside.join("main.js"), "exports.word = 'of the package';").expect("an own directory");
    let packed = Command::new("tar").args(["--create", "--gzip", "package"]).current_dir(source.path()).output();
    STANDARD.encode(packed.expect("tar is there").stdout)
}

fn cache_of_bun() {
    host().need(Feature::Bun);
    let fill = |session: &mut Session<'_>| {
        session.ok(&json!({"type": "write_file", "path": "package.tgz", "encoding": "base64", "content": package()}));
        session.ok(&json!({"type": "execute_shell", "commandName": "bun", "args": ["add", "--no-progress", "./package.tgz"]}));
        // What is small is not worth a place in its cache.
        let large = format!("export const word: string = 'typed'; /*{}*/", "x".repeat(200_000));
        session.write("large.ts", &large);
        session
            .ok(&json!({"type": "execute_code", "code": "const { word } = await import('./large.ts');\nconsole.log(word);"}));
    };
    let used = |session: &mut Session<'_>| {
        let answer = session.execute(&json!({"type": "execute_code", "code": "console.log(require('cb-cached').word)"}));
        answer["result"]["stdout"] == "of the package\n"
    };
    is_of_one_session(&ENGINES[1], &["/tmp/.bun/install", "/tmp/.bun/transpiler"], fill, used);
}

/// Keeps what it compiles, and says whether something was kept before.
const STATUS: &str = "const { enableCompileCache, constants } = require('node:module');\n\
    const before = require('node:fs').existsSync('/tmp/node-compile-cache');\nconst enabled = enableCompileCache();\n\
    if (enabled.status !== constants.compileCacheStatus.ENABLED) throw new Error(JSON.stringify(enabled));\n\
    require('./kept.js');\nconsole.log(before);";

fn with_compile_cache(session: &mut Session<'_>) -> Value {
    session.write("kept.js", "exports.word = () => 'kept';");
    session.write("status.js", STATUS);
    let answer = session.program("node", &["status.js"]);
    assert_eq!(answer["success"], true, "{answer}");
    answer["result"]["stdout"].clone()
}

fn cache_of_node() {
    host().need(Feature::NewerNode);
    let used = |session: &mut Session<'_>| with_compile_cache(session) == "true\n";
    is_of_one_session(
        &ENGINES[2],
        &["/tmp/node-compile-cache"],
        |session| assert_eq!(with_compile_cache(session), "false\n"),
        used,
    );
}
