//! The walls around engines: the same plan as for every sandbox, tried from JavaScript. Each engine's own permission flags are
//! open as far as they go, so that what holds is the sandbox.

use std::sync::Arc;

use serde_json::{Value, json};

use crate::support::host::node_parts;
use crate::support::{Feature, Server, Session, Setup, host, page};

pub fn trials() -> Vec<libtest_mimic::Trial> {
    page(
        "escape",
        &[
            ("an engine stands on its own root and finds nothing of the host in it", roots),
            ("Node finds the parts that its build left out of it, read-only, and nothing else that lies there", parts),
            ("no path of an engine's program reaches a canary of the host, and a path of the session is reached", canary),
            ("an engine's program has no capability, is filtered, and has no new privileges", identity),
            ("a loopback listener of the host is out of an engine's reach, one of its own is not", listener),
            ("permissions become Deno's flags: what is not named is denied, what is named is not", deno_permissions),
            ("permissions become Node's flags: what is not named is denied, what is named is not", node_permissions),
        ],
    )
}

/// Every engine that is here, with the server that has it.
fn engines() -> Vec<(Arc<Server>, &'static str)> {
    let all = [(Feature::Deno, "Deno"), (Feature::Bun, "Bun"), (Feature::Node, "NodeJs")];
    let here = all.into_iter().filter(|(feature, _)| crate::support::Host::has(*feature));
    let mut here: Vec<_> = here.map(|(_, name)| (Setup::engines().shared(), name)).collect();
    if here.is_empty() {
        host().need(Feature::Node);
    }
    here.extend(Setup::older_node().map(|setup| (setup.shared(), "NodeJs")));
    here
}

fn open<'a>(server: &'a Server, engine: &str) -> Session<'a> {
    let permissions = json!({"allowRead": ["/"], "allowWrite": ["/"], "allowEnv": true});
    Session::open(server, &json!({"language": "javascript", "runtimeType": engine, "permissions": permissions}))
}

/// Runs a program that prints one JSON value; `fs` is there in it.
#[track_caller]
fn told(session: &mut Session<'_>, code: &str) -> Value {
    let code = format!("import('node:fs').then(async (fs) => {{\n{code}\n}});");
    let result = session.ok(&json!({"type": "execute_code", "code": code}));
    let text = result["stdout"].as_str().expect("stdout is a string");
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {result}"))
}

fn roots() {
    for (server, engine) in engines() {
        let mut session = open(&server, engine);
        assert_eq!(session.created["image"], "minimal", "{engine}");
        let absent = "['/etc/shadow', '/usr/bin/env', '/bin/sh', '/usr/share/doc', '/root', '/home/user/.bashrc', '/var/log', '/run', '/boot']";
        let code = format!("console.log(JSON.stringify({absent}.filter((path) => fs.existsSync(path))));");
        assert_eq!(told(&mut session, &code), json!([]), "{engine}");
        let control = "console.log(JSON.stringify(fs.existsSync('/etc/passwd') && fs.readdirSync('/usr/local/bin').length));";
        assert_eq!(told(&mut session, control), json!(1), "the control: {engine} sees its root");
        let listed = session.ok(&json!({"type": "list_directory", "path": "/usr"}));
        assert!(!listed.to_string().contains("sbin"), "{engine}: {listed}");
    }
}

fn parts() {
    host().need(Feature::NodeParts);
    let server = Setup::older_node().unwrap_or_else(Setup::engines).shared();
    let mut session = open(&server, "NodeJs");
    let parts = node_parts();
    let neighbours: Vec<String> = parts
        .iter()
        .filter_map(|part| std::fs::read_dir(std::path::Path::new(part).parent()?).ok())
        .flat_map(|entries| entries.flatten().map(|entry| entry.path().display().to_string()))
        .filter(|path| !parts.iter().any(|part| part.starts_with(path.as_str())))
        .collect();
    assert!(!neighbours.is_empty(), "the control: other files lie beside them on the host");
    let code = format!(
        "const here = {}.filter((path) => fs.readFileSync(path).length > 0);\nconst written = here.filter((path) => {{\n  \
         try {{ fs.appendFileSync(path, ' '); return true; }} catch {{ return false; }}\n}});\n\
         console.log(JSON.stringify([here, written, {}.filter((path) => fs.existsSync(path)), typeof fetch]));",
        json!(parts),
        json!(neighbours)
    );
    assert_eq!(told(&mut session, &code), json!([parts, [], [], "function"]));
}

fn canary() {
    for (server, engine) in engines() {
        let canary = server.outside().join("canary-of-engines");
        std::fs::write(&canary, "canary of the host").expect("the fixture's directory is writable");
        let mut session = open(&server, engine);
        session.write("own", "the control");
        let path = canary.display();
        let code = format!(
            "const reached = [];\nfor (const before of ['', '/../../..', '/proc/self/root', '/proc/1/root', '/proc/1/cwd', '/proc/self/root/../..']) {{\n  \
             try {{ fs.closeSync(fs.openSync(before + '{path}', 'r+')); reached.push(before); }} catch {{}}\n}}\n\
             try {{ fs.symlinkSync('{path}', 'link'); fs.readFileSync('link'); reached.push('link'); }} catch {{}}\n\
             reached.push(fs.readFileSync('/workspace/own', 'utf8'));\nconsole.log(JSON.stringify(reached));"
        );
        assert_eq!(told(&mut session, &code), json!(["the control"]), "{engine}");
        let read = session.execute(&json!({"type": "read_file", "path": canary.display().to_string()}));
        assert_eq!(read["errorKind"], "file_not_found", "{engine}: {read}");
        assert_eq!(std::fs::read_to_string(&canary).expect("the canary lives"), "canary of the host");
    }
}

/// What the kernel says of a program, whatever runs it.
const STATUS: &str = "const text = fs.readFileSync('/proc/self/status', 'utf8');\nconst rows = {};\n\
                      for (const name of ['CapEff', 'CapBnd', 'NoNewPrivs', 'Seccomp', 'Uid']) {\n  \
                      rows[name] = text.match(new RegExp(name + ':\\\\s*(\\\\S+)'))[1];\n}\nconsole.log(JSON.stringify(rows));";

fn identity() {
    let none = "0000000000000000";
    for (server, engine) in engines() {
        let status = if engine == "Deno" {
            // Deno keeps /proc from every program that is not allowed everything; a command of the session's own is.
            let mut session = open(&server, engine);
            let code = format!("import fs from 'node:fs';\n{STATUS}");
            session.write("status.mjs", &code);
            let answer = session.program("deno", &["run", "--allow-all", "--quiet", "status.mjs"]);
            let text = answer["result"]["stdout"].as_str().unwrap_or_default().to_owned();
            serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {answer}"))
        } else {
            told(&mut open(&server, engine), STATUS)
        };
        let expected = json!({"CapEff": none, "CapBnd": none, "NoNewPrivs": "1", "Seccomp": "2", "Uid": "1000"});
        assert_eq!(status, expected, "{engine}");
    }
}

fn listener() {
    for (server, engine) in engines() {
        let mut session = open(&server, engine);
        // Deno has a flag for the network, which no profile lets a request open: there a command of the session's own asks.
        let code = format!(
            "import net from 'node:net';\nconst reach = (port) => new Promise((tell) => {{\n  \
             const socket = net.connect(port, '127.0.0.1', () => {{ socket.destroy(); tell(true); }});\n  \
             socket.on('error', () => tell(false));\n}});\n\
             const own = net.createServer().listen(0, '127.0.0.1', async () => {{\n  \
             console.log(JSON.stringify([await reach({}), await reach(own.address().port)]));\n  process.exit(0);\n}});",
            server.address.port()
        );
        session.write("reach.mjs", &code);
        let (program, arguments): (&str, &[&str]) = match engine {
            "Deno" => ("deno", &["run", "--allow-all", "--quiet", "reach.mjs"]),
            "Bun" => ("bun", &["reach.mjs"]),
            _ => ("node", &["reach.mjs"]),
        };
        let answer = session.program(program, arguments);
        assert_eq!(answer["result"]["stdout"], "[false,true]\n", "{engine}: {answer}");
    }
}

/// Tries each of these and prints which went well.
fn tries(attempts: &[(&str, &str)]) -> String {
    let attempts: Vec<String> =
        attempts.iter().map(|(name, code)| format!("try {{ {code}; went.push('{name}'); }} catch {{}}")).collect();
    format!("const went = [];\n{}\nconsole.log(JSON.stringify(went));", attempts.join("\n"))
}

const ATTEMPTS: [(&str, &str); 5] = [
    ("read the workspace", "fs.readFileSync('/workspace/own')"),
    ("write the workspace", "fs.writeFileSync('/workspace/new', 'x')"),
    ("read elsewhere", "fs.readFileSync('/etc/passwd')"),
    ("write elsewhere", "fs.writeFileSync('/tmp/new', 'x')"),
    ("run", "const { execFileSync } = await import('node:child_process'); execFileSync(process.argv0, ['--version'])"),
];

fn with_permissions(server: &Server, engine: &str, permissions: &Value, attempts: &[(&str, &str)]) -> (Value, Value) {
    let parameters = json!({"language": "javascript", "runtimeType": engine, "permissions": permissions, "env": {"WORD": "x"}});
    let mut session = Session::open(server, &parameters);
    session.write("own", "x");
    let walls = session.created["enforcement"]["walls"].as_array().expect("walls").clone();
    let row = walls.into_iter().find(|row| row["name"] == "permissions").unwrap_or_default();
    (told(&mut session, &tries(attempts)), row)
}

fn deno_permissions() {
    host().need(Feature::Deno);
    let server = Setup::engines().shared();
    let with_env = [&ATTEMPTS[..], &[("env", "if (process.env.WORD !== 'x') throw 1")]].concat();
    let (went, row) = with_permissions(&server, "Deno", &json!({}), &with_env);
    assert_eq!((went, &row["state"]), (json!(["read the workspace", "write the workspace"]), &json!("enforced")), "{row}");
    let wide = json!({"allowRead": ["/"], "allowWrite": ["/tmp"], "allowEnv": true});
    let (went, _) = with_permissions(&server, "Deno", &wide, &with_env);
    assert_eq!(went, json!(["read the workspace", "read elsewhere", "write elsewhere", "env"]));
}

fn node_permissions() {
    host().need(Feature::Node);
    permissions_of_node(&Setup::engines().shared());
    // Its flags have other names.
    if let Some(older) = Setup::older_node() {
        permissions_of_node(&older.shared());
    }
}

fn permissions_of_node(server: &Server) {
    let (went, row) = with_permissions(server, "NodeJs", &json!({}), &ATTEMPTS);
    assert_eq!((went, &row["state"]), (json!(["read the workspace", "write the workspace"]), &json!("degraded")), "{row}");
    let (went, _) = with_permissions(server, "NodeJs", &json!({"allowRead": ["/"], "allowWrite": ["/tmp"]}), &ATTEMPTS);
    assert_eq!(went, json!(["read the workspace", "read elsewhere", "write elsewhere"]));
}
