//! Places: a canary of the host is out of reach for every file command and every program, by every kind of link.

use serde_json::json;

use crate::support::{Feature, Session, Setup, host, page};

pub fn trials() -> Vec<libtest_mimic::Trial> {
    page(
        "escape",
        &[
            ("no path of a file command reaches a canary of the host", file_commands),
            ("no path of a program reaches a canary of the host", programs),
            ("file commands do not follow magic links and refuse procfs", magic_links),
            ("an abstract socket of the host is out of reach, one of the session is not", abstract_socket),
            ("a loopback listener of the host is out of reach, the API included", loopback_listener),
            ("the host's secrets and homes are not in the image host", host_image),
            ("the image is read-only for file commands under strict, and private under default", image_untouched),
        ],
    )
}

const CANARY: &str = "canary of the host";

fn file_commands() {
    let server = Setup::plain().shared();
    let canary = server.outside().join("canary");
    std::fs::write(&canary, CANARY).expect("the fixture's directory is writable");
    let mut session = Session::python(&server);
    let absolute = canary.display().to_string();
    session.write("own", "the control");
    session.bash(&format!(
        "ln -s {absolute} absolute; ln -s ../../../../../../..{absolute} relative; ln -s / top; ln -s own inside; ln -s .. up"
    ));
    assert_eq!(session.read("inside"), "the control", "a symlink within the session is followed");
    assert_eq!(session.read("up/workspace/own"), "the control");
    let up = format!("../../../../../../../..{absolute}");
    let paths = [
        absolute.as_str(),
        &up,
        "absolute",
        "relative",
        &format!("top{absolute}"),
        &format!("/proc/self/root{absolute}"),
        &format!("/proc/1/root{absolute}"),
        &format!("/proc/self/cwd/{up}"),
    ];
    for path in paths {
        let read = session.execute(&json!({"type": "read_file", "path": path}));
        assert!(!read.to_string().contains(CANARY), "{path}: {read}");
        let copy = session.execute(&json!({"type": "copy_file", "source": path, "destination": "stolen"}));
        assert!(copy["success"] == false || session.read("stolen") != CANARY, "{path}: {copy}");
        session.execute(&json!({"type": "write_file", "path": path, "content": "overwritten", "mode": "Append"}));
        session.execute(&json!({"type": "copy_file", "source": "own", "destination": path}));
        session.execute(&json!({"type": "list_directory", "path": path, "recursive": true, "limit": 10}));
        session.execute(&json!({"type": "delete_file", "path": path}));
        assert_eq!(std::fs::read_to_string(&canary).expect("the canary lives"), CANARY, "{path}");
    }
}

fn programs() {
    host().need(Feature::Python);
    let server = Setup::plain().shared();
    let canary = server.outside().join("canary-of-programs");
    std::fs::write(&canary, CANARY).expect("the fixture's directory is writable");
    for profile in super::PROFILES {
        let mut session = Session::open(&server, &json!({"profile": profile}));
        let code = format!(
            "import json, os\ntold = []\nfor p in ['', '/../../../../..', '/proc/self/root', '/proc/1/root', '/proc/1/cwd', '/proc/self/root/../..']:\n  try: open(p + {path:?}, 'r+'); told.append(p)\n  except OSError: pass\nos.makedirs('/tmp/x', exist_ok=True)\nprint(json.dumps(told))",
            path = canary.display().to_string()
        );
        assert_eq!(session.run_json(&code), json!([]), "{profile}");
    }
    assert_eq!(std::fs::read_to_string(&canary).expect("the canary lives"), CANARY);
}

fn magic_links() {
    let server = Setup::plain().shared();
    let mut session = Session::python(&server);
    session.bash("ln -s /proc/self/exe exe; ln -s /proc/self/fd fd; ln -s /proc/1/root root");
    for path in [
        "/proc/self/exe",
        "/proc/self/environ",
        "/proc/1/environ",
        "/proc/self/maps",
        "/proc/self/fd/3",
        "exe",
        "fd/0",
        "root/usr/bin/true",
        "/proc/self/mem",
    ] {
        let read = session.execute(&json!({"type": "read_file", "path": path}));
        assert_eq!(read["success"], false, "{path}: {}", read["result"]["size"]);
        let write = session.execute(&json!({"type": "write_file", "path": path, "content": "x"}));
        assert!(write["success"] == false || ["exe"].contains(&path), "{path}: {write}");
    }
}

fn abstract_socket() {
    let server = Setup::plain().shared();
    let name = format!("codebeaker-canary-{}", std::process::id());
    let address = <std::os::unix::net::SocketAddr as std::os::linux::net::SocketAddrExt>::from_abstract_name(&name)
        .expect("a short name");
    let _listener = std::os::unix::net::UnixListener::bind_addr(&address).expect("the name is free");
    assert!(std::os::unix::net::UnixStream::connect_addr(&address).is_ok(), "the control: on the host it is reached");
    let mut session = Session::open(&server, &json!({"profile": "permissive"}));
    let code = format!(
        "import json, socket\ndef reach(n):\n  try: socket.socket(socket.AF_UNIX).connect('\\0' + n); return True\n  except OSError: return False\ns = socket.socket(socket.AF_UNIX); s.bind('\\0own'); s.listen()\nprint(json.dumps([reach('{name}'), reach('own')]))"
    );
    assert_eq!(session.run_json(&code), json!([false, true]));
}

fn loopback_listener() {
    let server = Setup::plain().shared();
    let mut session = Session::open(&server, &json!({"profile": "permissive"}));
    let code = format!(
        "import json, socket\ntry: socket.create_connection(('127.0.0.1', {}), 2); print('true')\nexcept OSError: print('false')",
        server.address.port()
    );
    assert_eq!(session.run_json(&code), json!(false));
}

fn host_image() {
    let server = Setup::plain().shared();
    let mut session = Session::python(&server);
    let code = "import json, os\nprint(json.dumps([p for p in ('/etc/shadow', '/etc/ssh', '/root/.bashrc', '/home/user', '/var/log', '/run/dbus', '/boot', '/etc/ssl/private') if os.path.exists(p) and (os.path.isfile(p) or os.listdir(p))]))";
    assert_eq!(session.run_json(code), json!([]));
    assert!(session.bash("ls /usr/bin/env; cat /etc/passwd").contains("/usr/bin/env"), "the control: the image is there");
}

fn image_untouched() {
    // Without root nobody inside owns the image's files, so the control could not write.
    host().need(Feature::Root);
    let server = Setup::plain().shared();
    let mut strict = Session::open(&server, &json!({"profile": "strict"}));
    let write = json!({"type": "write_file", "path": "/etc/codebeaker-planted", "content": "x"});
    assert_eq!(strict.execute(&write)["success"], false, "the root file system is read-only");
    let mut permissive = Session::open(&server, &json!({"profile": "permissive"}));
    assert_eq!(
        permissive.bash("echo planted > /etc/codebeaker-planted; cat /etc/codebeaker-planted"),
        "planted",
        "the control"
    );
    let mut other = Session::python(&server);
    assert_eq!(other.bash("test -e /etc/codebeaker-planted || echo absent"), "absent");
    assert!(!std::path::Path::new("/etc/codebeaker-planted").exists());
}
