//! Programs of a session with a way out: the list and nothing else, whatever they say to the proxy.

use serde_json::json;

use super::index::Index;
use super::{PROXY_PORT, probed};
use crate::support::{Feature, Server, Session, Setup, host, page};

pub(super) fn trials() -> Vec<libtest_mimic::Trial> {
    page(
        "egress",
        &[
            ("a program of a session that was granted network reaches what is listed and nothing else", listed),
            ("the same probe finds no proxy in a session that was not granted network", without),
            ("execution.run with networkEnabled reaches what is listed", run_once),
            ("a session without persistence has its way out anew", anew),
            ("plan and enforcement say what is reached", told),
            ("a way out that a session fills with silent connections stays its own trouble", silent),
        ],
    )
}

fn granting(index: &Index) -> Setup {
    let config = "[sandbox]\nprofiles = [\"permissive\", \"default\"]\n[network]\n";
    let listed = format!("egress_allow = [\"127.0.0.1:{}\"]\n", index.port);
    Setup { config: format!("{config}{listed}"), ..Setup::bare() }
}

fn asks() -> serde_json::Value {
    json!({"profile": "permissive", "permissions": {"allowNet": true}})
}

/// Python that fetches by the variables of its environment, but for those that lead round the proxy.
fn fetch(port: u16) -> String {
    format!(
        "import os, urllib.request\nfor name in ('no_proxy', 'NO_PROXY'): os.environ.pop(name, None)\n\
         print(urllib.request.urlopen('http://127.0.0.1:{port}/word').read().decode())"
    )
}

fn listed() {
    host().need(Feature::Python);
    let (index, other) = (Index::of(|_| {}), Index::of(|_| {}));
    index.put("word", "reached");
    let server = Server::start(&granting(&index));
    let mut session = Session::open(&server, &asks());
    assert_eq!(session.run(&fetch(index.port)), "reached");
    let targets: Vec<String> = [index.port, other.port, server.address.port()].map(|port| format!("127.0.0.1:{port}")).to_vec();
    let names = ["localhost", "169.254.169.254", "a.example", "[::1]"].map(|host| format!("{host}:{}", index.port));
    let seen = probed(&mut session, &[PROXY_PORT, index.port, server.address.port()], &[targets, names.to_vec()].concat());
    let refused = ["403"; 4];
    assert_eq!(
        seen,
        json!([
            ["connected", "ECONNREFUSED", "ECONNREFUSED"],
            ["200", "403", "403", refused[0], refused[1], refused[2], refused[3]]
        ])
    );
    assert_eq!(other.asked(), "");
    session.close();
    assert_eq!(server.end_and_check(), Vec::<String>::new());
}

fn without() {
    host().need(Feature::Python);
    let index = Index::of(|_| {});
    let server = Server::start(&granting(&index));
    let target = format!("127.0.0.1:{}", index.port);
    for parameters in [json!({"profile": "permissive"}), json!({"profile": "default"})] {
        let mut session = Session::open(&server, &parameters);
        let seen = probed(&mut session, &[PROXY_PORT, index.port], std::slice::from_ref(&target));
        assert_eq!(seen, json!([["ECONNREFUSED", "ECONNREFUSED"], ["ECONNREFUSED"]]), "{parameters}");
        session.close();
    }
    // Beside one that has a way out, too: each has a network of its own.
    let mut granted = Session::open(&server, &asks());
    let mut beside = Session::open(&server, &json!({"profile": "permissive"}));
    let seen = probed(&mut granted, &[PROXY_PORT], std::slice::from_ref(&target));
    assert_eq!(seen, json!([["connected"], ["200"]]));
    let seen = probed(&mut beside, &[PROXY_PORT], &[target]);
    assert_eq!(seen, json!([["ECONNREFUSED"], ["ECONNREFUSED"]]));
    drop((granted, beside));
    assert_eq!(server.end_and_check(), Vec::<String>::new());
}

fn run_once() {
    host().need(Feature::Python);
    let index = Index::of(|_| {});
    index.put("word", "reached");
    let config = format!("[sandbox]\nprofiles = [\"permissive\"]\n[network]\negress_allow = [\"127.0.0.1:{}\"]\n", index.port);
    let server = Server::start(&Setup { config, ..Setup::bare() });
    let mut client = server.client();
    let mut status_of = |enabled: bool| {
        let run = json!({"language": "python", "code": fetch(index.port), "networkEnabled": enabled});
        let run = client.ok("execution.run", &run);
        let mut status = serde_json::Value::Null;
        crate::support::eventually(std::time::Duration::from_secs(60), || {
            status = client.ok("execution.status", &json!({"executionId": run["executionId"]}));
            status["status"] != "queued" && status["status"] != "running"
        });
        status
    };
    let with = status_of(true);
    assert!(with["status"] == "completed" && with["stdout"] == "reached\n", "{with}");
    assert_eq!(status_of(false)["status"], "failed", "the control");
    drop(client);
    assert_eq!(server.end_and_check(), Vec::<String>::new());
}

fn anew() {
    host().need(Feature::Python);
    let index = Index::of(|_| {});
    index.put("word", "reached");
    let server = Server::start(&granting(&index));
    let mut parameters = asks();
    parameters["persistFilesystem"] = json!(false);
    let mut session = Session::open(&server, &parameters);
    for _ in 0..3 {
        assert_eq!(session.run(&fetch(index.port)), "reached");
    }
    session.close();
    assert_eq!(server.end_and_check(), Vec::<String>::new());
}

fn told() {
    let index = Index::of(|_| {});
    let server = Server::start(&granting(&index));
    let session = Session::open(&server, &asks());
    let walls = session.created["enforcement"]["walls"].to_string();
    let listed = format!("127.0.0.1:{}", index.port);
    assert!(walls.contains(&listed), "{walls}");
    let runtimes = server.client().ok("runtime.list", &json!({}));
    assert_eq!(runtimes["runtimes"][0]["capabilities"]["supportsNetworkAccess"], true, "{runtimes}");
    session.close();
    let plan = |profile: &str| {
        let config = server.outside().join("config.toml");
        server.cli(&["--config", config.to_str().expect("UTF-8"), "plan", "--profile", profile]).expect_code(0).stdout
    };
    assert!(plan("permissive").contains(&listed));
    assert!(!plan("strict").contains(&listed) && !plan("default").contains(&listed));
    assert_eq!(server.end_and_check(), Vec::<String>::new());
}

fn silent() {
    host().need(Feature::Python);
    let index = Index::of(|_| {});
    index.put("word", "reached");
    let setup = granting(&index).with_config("connections_per_session_max = 4\nidle_timeout_s = 5\n");
    let server = Server::start(&setup);
    let mut hostile = Session::open(&server, &asks());
    let mut other = Session::open(&server, &asks());
    let hold = "import os, socket, time\nheld = []\nfor _ in range(12):\n    s = socket.socket(); s.settimeout(2)\n    try: s.connect(('127.0.0.1', 3128)); \
                held.append(s)\n    except OSError: break\nopen('part', 'w').write(str(len(held)))\nos.rename('part', 'held')\ntime.sleep(600)";
    hostile.ok(&json!({"type": "execute_shell", "commandName": "python3", "args": ["-c", hold], "background": true}));
    let look = json!({"type": "read_file", "path": "held"});
    assert!(crate::support::eventually(std::time::Duration::from_secs(30), || hostile.execute(&look)["success"] == true));
    let held: u32 = hostile.read("held").parse().expect("a number");
    assert!(held > 4, "more than are served at once wait in the kernel: {held}");
    assert_eq!(other.run(&fetch(index.port)), "reached");
    // Silent ones end, and the session's own turn comes.
    let mut reached = false;
    crate::support::eventually(std::time::Duration::from_secs(60), || {
        reached = hostile.execute(&json!({"type": "execute_code", "code": fetch(index.port)}))["success"] == true;
        reached
    });
    assert!(reached);
    assert!(server.open_descriptors() < 200, "{}", server.open_descriptors());
    drop((hostile, other));
    assert_eq!(server.end_and_check(), Vec::<String>::new());
}
