//! Installs over the network: what reaches an index, who does not, and what is said when it fails.

use serde_json::{Value, json};

use super::index::{self, Index};
use super::{PROBE, PROXY_PORT, install, probed, setup};
use crate::support::fixture_user::ORDINARY_UID;
use crate::support::trial::skip;
use crate::support::{Feature, Host, Server, Session, Setup, eventually, host, http, page};

pub(super) fn trials() -> Vec<libtest_mimic::Trial> {
    page(
        "egress",
        &[
            (
                "pip installs from the operator's index, and no program of the session reaches anything before, during or after",
                pip,
            ),
            ("pip trusts the operator's certificates and installs over TLS", tls),
            (
                "npm installs from the operator's registry, and what an install script starts reaches only that and ends with it",
                npm,
            ),
            ("gem installs from the operator's source", gem),
            ("without the request's word an install reaches no index, and says how to ask", not_asked),
            ("without the profile's word or the operator's it is policy_denied and the field named", denied),
            ("files that an index keeps elsewhere need a host in packages.hosts, and the answer names it", elsewhere),
            ("execution.run and execute_code install from the index too", every_place),
            ("an ordinary user's server has the same ways out", ordinary_user),
            ("an index whose name leads inwards is not reached unless its address is named", rebound),
        ],
    )
}

fn need_pip() {
    host().need(Feature::Python);
    if !std::path::Path::new("/usr/lib/python3/dist-packages/pip").exists() {
        skip("the host's Python has no pip in /usr (Debian: python3-pip)");
    }
}

fn pip_index(index: &Index) -> Setup {
    setup(&format!("[packages]\npip_index = \"http://127.0.0.1:{}/simple\"\n", index.port))
}

fn asking(language: &str) -> Value {
    json!({"language": language, "permissions": {"allowPackageIndex": true}})
}

/// Tries the proxy and the index without end, and keeps what it saw: how often, and which answers.
fn hammer(index: u16) -> String {
    format!(
        "{PROBE}\nseen, tries = set(), 0\nopen('begun', 'w').close()\nwhile True:\n    tries += 1\n    seen |= {{direct(3128), direct({index}), \
         through('127.0.0.1:{index}')}}\n    with open('seen.new', 'w') as file: json.dump([tries, sorted(seen)], file)\n    \
         import os; os.replace('seen.new', 'seen')\n"
    )
}

fn pip() {
    need_pip();
    let index = Index::of(index::wheels);
    let server = Server::start(&pip_index(&index));
    let mut session = Session::open(&server, &asking("python"));
    let network = session.created["enforcement"]["walls"]
        .as_array()
        .and_then(|walls| walls.iter().find(|row| row["name"] == "network").cloned())
        .expect("a row on the network");
    assert!(network["detail"].as_str().is_some_and(|text| text.contains(&format!("127.0.0.1:{}", index.port))), "{network}");
    let target = format!("127.0.0.1:{}", index.port);
    let nothing = json!([["ECONNREFUSED", "ECONNREFUSED"], ["ECONNREFUSED"]]);
    let ports = [PROXY_PORT, index.port];
    assert_eq!(probed(&mut session, &ports, std::slice::from_ref(&target)), nothing, "before");
    let shell =
        json!({"type": "execute_shell", "commandName": "python3", "args": ["-c", hammer(index.port)], "background": true});
    session.ok(&shell);
    let begun = json!({"type": "read_file", "path": "seen"});
    assert!(eventually(std::time::Duration::from_secs(20), || session.execute(&begun)["success"] == true));
    let tries = |session: &mut Session| -> Value { serde_json::from_str(&session.read("seen")).expect("JSON") };
    let before = tries(&mut session);
    assert_eq!(index.asked(), "");
    session.ok(&install(&["cb_needs"]));
    let after = tries(&mut session);
    assert!(after[0].as_u64() > before[0].as_u64(), "it tried while the install ran: {before} {after}");
    assert_eq!(after[1], json!(["ECONNREFUSED"]), "during");
    assert!(index.asked().contains("/simple/cb-needs/"), "{}", index.asked());
    assert_eq!(session.run("import cb_needs; print(cb_needs.WORD)"), "with from the index");
    assert_eq!(probed(&mut session, &ports, &[target]), nothing, "after");
    // What is not there is told as that, and pip is not asked to guess.
    let absent = session.fails(&install(&["cb_none"]), "package_unavailable");
    assert!(absent["error"].as_str().is_some_and(|told| told.contains("package index holds no such package")), "{absent}");
    let descriptors = server.open_descriptors();
    for _ in 0..3 {
        session.ok(&install(&["cb_web==1.0"]));
    }
    assert!(eventually(std::time::Duration::from_secs(10), || server.open_descriptors() <= descriptors), "descriptors stay");
    let metrics = http::request(server.address, "/metrics", &[], None).body;
    let allowed =
        metrics.lines().find(|line| line.starts_with("codebeaker_egress_connections_total") && line.contains("allowed"));
    assert!(allowed.is_some_and(|line| line.contains("install")), "{metrics}");
    session.close();
    assert!(server.log().contains("a sandbox connected outwards"), "the audit log has it");
    assert_eq!(server.end_and_check(), Vec::<String>::new());
}

fn tls() {
    need_pip();
    if !Host::has_program("openssl") {
        skip("there is no openssl to make a certificate with");
    }
    let keys = index::keys();
    let index = Index::with_tls(index::wheels, keys.path());
    let lines = |ca: &str| {
        format!(
            "[packages]\npip_index = \"https://index.test:{0}/simple\"\nhosts = [\"127.0.0.1:{0}\"]\n{ca}[network]\nhosts = \
             [\"index.test=127.0.0.1\"]\n",
            index.port
        )
    };
    let trusting = lines(&format!("ca_file = \"{}\"\n", keys.path().join("certificate.pem").display()));
    let server = Server::start(&setup(&trusting));
    let mut session = Session::open(&server, &asking("python"));
    session.ok(&install(&["cb_needs"]));
    assert_eq!(session.run("import cb_needs; print(cb_needs.WORD)"), "with from the index");
    let left = session.bash("ls -A /tmp | grep -c certificates || true");
    assert_eq!(left, "0", "the certificates go with the step");
    session.close();
    assert_eq!(server.end_and_check(), Vec::<String>::new());
    // The control: nobody else vouches for that certificate.
    let server = Server::start(&setup(&lines("")));
    let mut session = Session::open(&server, &asking("python"));
    session.fails(&install(&["cb_needs"]), "package_unavailable");
    session.close();
    assert_eq!(server.end_and_check(), Vec::<String>::new());
}

/// Run by npm in the step: what it reaches, and a child of its own session that goes on trying.
fn install_script(targets: &[String]) -> String {
    let child = "const net = require('net'), fs = require('fs'); let tries = 0; setInterval(() => { fs.writeFileSync('/workspace/child', String(++tries)); \
                 net.connect(3128, '127.0.0.1').on('connect', () => fs.writeFileSync('/workspace/child-connected', String(Date.now()))).on('error', () => {}); }, 20);";
    format!(
        "const net = require('net'), fs = require('fs');\n\
         const ask = (target) => new Promise((done) => {{ const s = net.connect(3128, '127.0.0.1', () => s.write(`CONNECT ${{target}} \
         HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n`)); s.on('data', (d) => {{ done(String(d).split(' ')[1]); s.destroy(); }}); s.on('error', (e) => done(e.code)); }});\n\
         const direct = (port) => new Promise((done) => {{ const s = net.connect(port, '127.0.0.1', () => {{ done('connected'); s.destroy(); }}); s.on('error', (e) => done(e.code)); }});\n\
         (async () => {{ const seen = []; for (const target of {targets}) seen.push(await ask(target)); seen.push(await direct({port}));\n\
         fs.writeFileSync('/workspace/probe.json', JSON.stringify(seen));\n\
         require('child_process').spawn(process.execPath, ['-e', {child}], {{ detached: true, stdio: 'ignore' }}).unref();\n\
         await new Promise((done) => setTimeout(done, 500)); }})();\n",
        targets = json!(targets),
        port = targets[0].rsplit(':').next().expect("a port"),
        child = json!(child),
    )
}

fn npm() {
    host().need_programs("javascript", &["node", "npm"]);
    let (index, other) = (Index::of(|_| {}), Index::of(|_| {}));
    let server = Server::start(&setup(&format!("[packages]\nnpm_registry = \"http://127.0.0.1:{}/\"\n", index.port)));
    let targets = [index.port, other.port, server.address.port()].map(|port| format!("127.0.0.1:{port}"));
    index::registry(&index, "cb-web", None);
    index::registry(&index, "cb-script", Some(&install_script(&targets)));
    let mut session = Session::open(&server, &asking("javascript"));
    session.ok(&install(&["cb-web"]));
    let code = json!({"type": "execute_code", "code": "console.log(require('cb-web').word)"});
    assert_eq!(session.ok(&code)["stdout"], "from the registry\n");
    assert!(index.asked().contains("/cb-web "), "{}", index.asked());
    session.ok(&install(&["cb-script"]));
    let seen: Value = serde_json::from_str(&session.read("probe.json")).expect("JSON");
    assert_eq!(
        seen,
        json!(["200", "403", "403", "ECONNREFUSED"]),
        "the registry, another port, the server's own, without a proxy"
    );
    assert_eq!(other.asked(), "");
    let tries = session.read("child");
    session.read("child-connected");
    std::thread::sleep(std::time::Duration::from_millis(300));
    assert_eq!(session.read("child"), tries, "what the script left behind has ended");
    let absent = session.fails(&install(&["cb-none"]), "package_unavailable");
    assert!(absent["error"].as_str().is_some_and(|told| told.contains("holds no such package")), "{absent}");
    session.close();
    assert_eq!(server.end_and_check(), Vec::<String>::new());
}

fn gem() {
    host().need_programs("ruby", &["ruby", "gem"]);
    let index = Index::of(index::gems);
    // Ruby goes round every proxy where a name leads to loopback; inside a sandbox this one leads nowhere.
    let server = Server::start(&setup(&format!(
        "[packages]\ngem_source = \"http://gems.test:{0}/\"\nhosts = [\"127.0.0.1:{0}\"]\n[network]\nhosts = [\"gems.test=127.0.0.1\"]\n",
        index.port
    )));
    let mut session = Session::open(&server, &asking("ruby"));
    let code = json!({"type": "execute_code", "code": "require 'cb_gem'; puts CB_GEM"});
    session.fails(&code, "nonzero_exit");
    session.ok(&install(&["cb_gem:1.2"]));
    assert_eq!(session.ok(&code)["stdout"], "from the source\n");
    let absent = session.fails(&install(&["cb_none"]), "package_unavailable");
    assert!(absent["error"].as_str().is_some_and(|told| told.contains("holds no such package")), "{absent}");
    session.close();
    assert_eq!(server.end_and_check(), Vec::<String>::new());
}

fn not_asked() {
    need_pip();
    let index = Index::of(index::wheels);
    let server = Server::start(&pip_index(&index));
    let mut session = Session::python(&server);
    let answer = session.fails(&install(&["cb_web"]), "package_unavailable");
    assert!(answer["error"].as_str().is_some_and(|told| told.contains("allowPackageIndex")), "{answer}");
    assert_eq!(index.asked(), "");
    let mut asks = Session::open(&server, &asking("python"));
    asks.ok(&install(&["cb_web"]));
    assert_ne!(index.asked(), "", "the control");
    drop((session, asks));
    assert_eq!(server.end_and_check(), Vec::<String>::new());
}

fn denied() {
    let index = Index::of(|_| {});
    let server = Server::start(&pip_index(&index));
    let mut client = server.client();
    let create =
        |profile: &str, permission: &str| json!({"language": "python", "profile": profile, "permissions": {permission: true}});
    for (profile, permission) in
        [("strict", "allowPackageIndex"), ("strict", "allowNet"), ("default", "allowNet"), ("permissive", "allowNet")]
    {
        let refused = client.error_is("session.create", &create(profile, permission), 1202, "policy_denied");
        assert!(refused.to_string().contains(&format!("permissions.{permission}")), "{profile}: {refused}");
    }
    let plain = Setup::plain().shared();
    let mut without = plain.client();
    let refused = without.error_is("session.create", &create("default", "allowPackageIndex"), 1202, "policy_denied");
    assert!(refused.to_string().contains("no package index"), "{refused}");
    for field in ["allowPackageIndex", "networkEnabled"] {
        let run = json!({"language": "python", "code": "1", field: true});
        let refused = without.error_is("execution.run", &run, 1202, "policy_denied");
        assert!(refused.to_string().contains(field), "{refused}");
    }
    drop(client);
    assert_eq!(server.end_and_check(), Vec::<String>::new());
}

fn elsewhere() {
    need_pip();
    let (index, files) = (Index::of(|_| {}), Index::of(index::wheels));
    let link = format!("http://127.0.0.1:{}/simple/cb-web/cb_web-1.0-py3-none-any.whl", files.port);
    index.put("simple/cb-web/index.html", &format!("<!DOCTYPE html><a href=\"{link}\">cb_web-1.0-py3-none-any.whl</a>"));
    let base = pip_index(&index);
    let server = Server::start(&base);
    let mut session = Session::open(&server, &asking("python"));
    let answer = session.fails(&install(&["cb_web"]), "package_unavailable");
    let told = answer["error"].as_str().expect("a sentence");
    assert!(told.contains(&format!("127.0.0.1:{}", files.port)) && told.contains("packages.hosts"), "{told}");
    assert_eq!(files.asked(), "");
    session.close();
    assert_eq!(server.end_and_check(), Vec::<String>::new());
    let server = Server::start(&base.with_config(&format!("hosts = [\"127.0.0.1:{}\"]\n", files.port)));
    let mut session = Session::open(&server, &asking("python"));
    session.ok(&install(&["cb_web"]));
    session.close();
    assert_eq!(server.end_and_check(), Vec::<String>::new());
}

fn every_place() {
    need_pip();
    let index = Index::of(index::wheels);
    let server = Server::start(&pip_index(&index));
    let code = "import cb_needs; print(cb_needs.WORD)";
    let mut client = server.client();
    let run = json!({"language": "python", "code": code, "packages": ["cb_needs"], "allowPackageIndex": true});
    let run = client.ok("execution.run", &run);
    let mut status = Value::Null;
    let done = eventually(std::time::Duration::from_secs(60), || {
        status = client.ok("execution.status", &json!({"executionId": run["executionId"]}));
        status["status"] != "queued" && status["status"] != "running"
    });
    assert!(done && status["status"] == "completed" && status["stdout"] == "with from the index\n", "{status}");
    let mut created = asking("python");
    created["packages"] = json!(["cb_web==1.0"]);
    created["persistFilesystem"] = json!(true);
    let mut session = Session::open(&server, &created);
    assert_eq!(session.run("import cb_web; print(cb_web.WORD)"), "from the index");
    let mut fresh = asking("python");
    fresh["persistFilesystem"] = json!(false);
    let mut anew = Session::open(&server, &fresh);
    for _ in 0..2 {
        let result = anew.ok(&json!({"type": "execute_code", "code": code, "packages": ["cb_needs"]}));
        assert_eq!(result["stdout"], "with from the index\n");
    }
    anew.fails(&json!({"type": "execute_code", "code": code}), "nonzero_exit");
    drop((session, anew, client));
    assert_eq!(server.end_and_check(), Vec::<String>::new());
}

fn ordinary_user() {
    need_pip();
    host().need(Feature::Root).need(Feature::OrdinaryUser);
    let index = Index::of(index::wheels);
    let egress = format!("[network]\negress_allow = [\"127.0.0.1:{}\"]\n", index.port);
    let server = Server::start(&Setup { uid: Some(ORDINARY_UID), ..pip_index(&index).with_config(&egress) });
    let target = [format!("127.0.0.1:{}", index.port)];
    let mut session = Session::open(&server, &asking("python"));
    assert_eq!(session.created["enforcement"]["rootless"], true);
    session.ok(&install(&["cb_needs"]));
    assert_eq!(session.run("import cb_needs; print(cb_needs.WORD)"), "with from the index");
    assert_eq!(probed(&mut session, &[PROXY_PORT], &target), json!([["ECONNREFUSED"], ["ECONNREFUSED"]]));
    session.close();
    let granted = json!({"profile": "permissive", "permissions": {"allowNet": true}});
    let mut session = Session::open(&server, &granted);
    assert_eq!(probed(&mut session, &[PROXY_PORT], &target), json!([["connected"], ["200"]]));
    session.close();
    assert_eq!(server.end_and_check(), Vec::<String>::new());
}

fn rebound() {
    need_pip();
    if !Host::has_program("openssl") {
        skip("there is no openssl to make a certificate with");
    }
    let keys = index::keys();
    let index = Index::with_tls(index::wheels, keys.path());
    let lines = |hosts: &str| {
        format!(
            "[packages]\npip_index = \"https://index.test:{}/simple\"\nca_file = \"{}\"\n{hosts}[network]\nhosts = \
             [\"index.test=127.0.0.1\"]\n",
            index.port,
            keys.path().join("certificate.pem").display()
        )
    };
    let server = Server::start(&setup(&lines("")));
    let mut session = Session::open(&server, &asking("python"));
    let answer = session.fails(&install(&["cb_web"]), "package_unavailable");
    assert!(answer["error"].as_str().is_some_and(|told| told.contains("index.test")), "{answer}");
    assert_eq!(index.asked(), "");
    session.close();
    assert!(server.log().contains("a loopback address"), "the audit log says why");
    assert_eq!(server.end_and_check(), Vec::<String>::new());
    let server = Server::start(&setup(&lines(&format!("hosts = [\"127.0.0.1:{}\"]\n", index.port))));
    let mut session = Session::open(&server, &asking("python"));
    session.ok(&install(&["cb_web"]));
    session.close();
    assert_eq!(server.end_and_check(), Vec::<String>::new());
}
