//! The way out of a sandbox: installs from indexes on the host's loopback with network for the step alone, and programs that reach
//! what the operator lists and nothing else. Each "cannot" stands beside the same attempt where it can.

mod index;
mod installs;
mod programs;

use serde_json::{Value, json};

use crate::support::{Session, Setup};

pub fn trials() -> Vec<libtest_mimic::Trial> {
    installs::trials().into_iter().chain(programs::trials()).collect()
}

/// All three profiles, and these lines.
fn setup(lines: &str) -> Setup {
    Setup::plain().with_config(lines)
}

/// Where every proxy is.
const PROXY_PORT: u16 = 3128;

/// Python that tries, in order: a connection to each port of its loopback; then, through the proxy, each `host:port`. It prints what
/// came of each.
const PROBE: &str = r#"
import errno, json, socket, sys
def direct(port):
    try:
        socket.create_connection(("127.0.0.1", port), 10).close()
        return "connected"
    except OSError as error:
        return errno.errorcode.get(error.errno, str(error))
def through(target):
    try:
        with socket.create_connection(("127.0.0.1", 3128), 10) as proxy:
            proxy.sendall(f"CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n".encode())
            return proxy.recv(4096).decode().split(" ")[1]
    except OSError as error:
        return errno.errorcode.get(error.errno, str(error))
"#;

/// What [`PROBE`] says of these, inside a session.
fn probed(session: &mut Session, ports: &[u16], targets: &[String]) -> Value {
    let facts = json!([ports, targets]);
    let code = format!(
        "{PROBE}\nports, targets = json.loads('{facts}')\nprint(json.dumps([[direct(p) for p in ports], [through(t) for t in targets]]))"
    );
    session.run_json(&code)
}

fn install(packages: &[&str]) -> Value {
    json!({"type": "install_packages", "packages": packages})
}
