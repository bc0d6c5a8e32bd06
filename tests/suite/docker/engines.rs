//! What is left, and what a client is told, when sessions close, the server dies, or the engine does.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::json;

use super::{container, is_gone, parameters, row, session, setup, shared};
use crate::support::dockerd::Dockerd;
use crate::support::{Feature, Server, Session, Setup, eventually, host};

/// A container of the trial's own, that no server knows; `labels` are `name=value`.
fn foreign(engine: &Dockerd, name: &str, labels: &[&str]) {
    let tree = crate::support::fixture_user::directory_of(None);
    for directory in ["usr", "proc", "dev", "sys"] {
        std::fs::create_dir(tree.path().join(directory)).expect("an own directory");
    }
    for (link, target) in [("bin", "usr/bin"), ("lib", "usr/lib"), ("lib64", "usr/lib64")] {
        std::os::unix::fs::symlink(target, tree.path().join(link)).expect("an own directory");
    }
    engine.import(tree.path(), "foreign:1");
    let mut arguments = vec!["run", "--detach", "--network", "none", "--name", name, "--volume", "/usr:/usr:ro"];
    arguments.extend(labels.iter().flat_map(|label| ["--label", label]));
    arguments.extend(["foreign:1", "sleep", "600"]);
    engine.ok(&arguments);
}

pub(super) fn close() {
    let (engine, server) = shared();
    foreign(&engine, "foreign-close", &[]);
    let mut session = session(&server, &json!({}));
    session.bash("sleep 300 & disown; echo started");
    let name = container(&session);
    let group = engine.inspect(&name)["Id"].as_str().expect("an id").to_owned();
    assert!(engine.containers().contains(&name), "the control");
    session.close();
    assert!(!engine.containers().contains(&name), "no container when close has answered");
    let found = std::process::Command::new("find").args(["/sys/fs/cgroup", "-name", &format!("*{group}*")]).output();
    assert!(found.expect("find is there").stdout.is_empty(), "its groups are gone");
    assert!(!server.state_dir().join("run").join(&name).exists(), "nor a file");
    assert_eq!(engine.inspect("foreign-close")["State"]["Running"], true);
    engine.ok(&["rm", "--force", "foreign-close"]);
}

pub(super) fn crash() {
    host().need(Feature::Dockerd);
    let engine = Dockerd::start();
    foreign(&engine, "foreign", &[]);
    let living = format!("io.codebeaker.server={}", identity(std::process::id()));
    foreign(&engine, "of-a-living-server", &[&living]);
    let server = Server::start(&setup(&engine));
    let mut client = server.client();
    let created = client.ok("session.create", &parameters(&json!({"language": "python"})));
    let name = format!("codebeaker-{}", created["environmentId"].as_str().expect("an id"));
    let other = client.ok("session.create", &parameters(&json!({"language": "python"})));
    let other = format!("codebeaker-{}", other["environmentId"].as_str().expect("an id"));
    // What is paused can't end by itself.
    engine.ok(&["pause", &name]);
    server.signal(Signal::SIGKILL);
    assert!(server.wait(Duration::from_secs(10)).is_some(), "it was killed");
    assert!(is_gone(&engine, &other), "an init whose server is gone ends its container by itself");
    assert!(engine.containers().contains(&name), "the control: what can't end is still there");
    let next = Server::start_in(&setup(&engine), server.into_directory());
    assert!(is_gone(&engine, &name), "{:?}", engine.containers());
    let mut left = engine.containers();
    left.sort();
    assert_eq!(left, ["foreign", "of-a-living-server"]);
    let left = next.end_and_check();
    assert!(left.is_empty(), "{}", left.join("; "));
    assert!(engine.end().is_empty());
}

pub(super) fn ends_meanwhile() {
    host().need(Feature::Dockerd);
    let engine = Dockerd::start();
    // What measures makes one container after the other, and nobody closes it as a session is closed.
    let off = ["deno", "bun", "nodejs", "wasm"].map(|name| format!("{name} = \"off\"\n")).concat();
    let setup = setup(&engine).with_variable("CODEBEAKER_RUNTIMES_MEASURE", "true").with_config(&off);
    for round in 0..10 {
        let server = Server::start(&setup);
        let begun = eventually(Duration::from_secs(60), || !engine.containers().is_empty());
        assert!(begun, "the control: it measures containers");
        std::thread::sleep(Duration::from_millis(round * 45));
        server.signal(Signal::SIGTERM);
        assert!(server.wait(Duration::from_secs(60)).is_some(), "it ends after SIGTERM");
        assert_eq!(engine.containers(), Vec::<String>::new(), "round {round}");
    }
    assert!(engine.end().is_empty());
}

/// Pid namespace, pid and start time, as servers are named.
fn identity(pid: u32) -> String {
    use std::os::unix::fs::MetadataExt;
    let namespace = std::fs::metadata("/proc/self/ns/pid").expect("/proc is mounted").ino();
    let start = crate::support::residue::process(pid.cast_signed()).expect("it lives").identity.1;
    format!("{namespace}-{pid}-{start}")
}

pub(super) fn killed() {
    host().need(Feature::Dockerd);
    let engine = Dockerd::start();
    let server = Server::start(&setup(&engine));
    let mut client = server.client();
    let created = client.ok("session.create", &parameters(&json!({"language": "bash"})));
    let id = created["sessionId"].clone();
    let echo = json!({"sessionId": id, "command": {"type": "execute_code", "code": "echo lives"}});
    engine.signal(Signal::SIGKILL);
    assert_eq!(client.ok("session.execute", &echo)["result"]["stdout"], "lives\n", "containers outlive their daemon");
    let begin = Instant::now();
    let error = client.error_is("session.create", &parameters(&json!({"language": "bash"})), 1101, "runtime_not_available");
    assert!(begin.elapsed() < Duration::from_secs(30), "{error}");
    assert!(eventually(Duration::from_secs(30), || row(&server)["available"] == false), "{}", row(&server));
    engine.run();
    // A daemon that was killed ends, as it starts, what it finds running.
    let mut said = String::new();
    let closed = eventually(Duration::from_secs(30), || match client.call("session.execute", &echo) {
        Ok(_) => false,
        Err(error) => {
            said = error.to_string();
            true
        }
    });
    assert!(closed && said.contains("its container ended"), "{said}");
    assert!(eventually(Duration::from_secs(30), || row(&server)["available"] == true), "{}", row(&server));
    let again = client.ok("session.create", &parameters(&json!({"language": "bash"})));
    client.ok("session.close", &json!({"sessionId": again["sessionId"]}));
    assert!(eventually(Duration::from_secs(20), || engine.containers().is_empty()), "{:?}", engine.containers());
    let left = server.end_and_check();
    assert!(left.is_empty(), "{}", left.join("; "));
    assert!(engine.end().is_empty());
}

pub(super) fn hung() {
    host().need(Feature::Dockerd);
    let engine = Dockerd::start();
    let server = Server::start(&setup(&engine));
    let mut client = server.client();
    let created = client.ok("session.create", &parameters(&json!({"language": "bash"})));
    let name = format!("codebeaker-{}", created["environmentId"].as_str().expect("an id"));
    engine.signal(Signal::SIGSTOP);
    let begin = Instant::now();
    let error = client.error_is("session.create", &parameters(&json!({"language": "bash"})), 1101, "runtime_not_available");
    assert!(begin.elapsed() < Duration::from_secs(60), "{error} after {:?}", begin.elapsed());
    let said = row(&server);
    assert!(said["reason"].as_str().is_some_and(|reason| reason.contains("did not answer")), "{said}");
    let run = json!({"sessionId": created["sessionId"], "command": {"type": "execute_code", "code": "echo lives"}});
    assert_eq!(client.ok("session.execute", &run)["result"]["stdout"], "lives\n");
    let begin = Instant::now();
    client.ok("session.close", &json!({"sessionId": created["sessionId"]}));
    assert!(begin.elapsed() < Duration::from_secs(40), "{:?}", begin.elapsed());
    engine.signal(Signal::SIGCONT);
    assert!(is_gone(&engine, &name), "{:?}", engine.containers());
    assert!(eventually(Duration::from_secs(30), || row(&server)["available"] == true), "{}", row(&server));
    let again = client.ok("session.create", &parameters(&json!({"language": "bash"})));
    client.ok("session.close", &json!({"sessionId": again["sessionId"]}));
    let left = server.end_and_check();
    assert!(left.is_empty(), "{}", left.join("; "));
    assert!(engine.end().is_empty());
}

pub(super) fn fallback() {
    let (engine, server) = shared();
    let here = Session::open(&server, &json!({"language": "bash"}));
    assert_eq!(here.created["runtimeType"], "NativeProcess", "the control: the OS sandbox stands");
    drop(here);
    // A user namespace in which no other can be made: the server is root there, and owns the engine's socket.
    let closed = "echo 0 > /proc/sys/user/max_user_namespaces && exec \"$0\" \"$@\"";
    let wrapper = ["unshare", "--user", "--map-root-user", "/bin/sh", "-c", closed].map(str::to_owned).to_vec();
    let server = Server::start(&Setup { wrapper, ..setup(&engine) });
    let mut session = Session::open(&server, &json!({"language": "bash"}));
    assert_eq!(session.created["runtimeType"], "Docker", "{}", session.created);
    let reason = session.created["selection"]["reason"].as_str().expect("a reason").to_owned();
    assert!(reason.contains("fallback") && reason.contains("OS sandbox can't be built"), "{reason}");
    assert_eq!(session.bash("echo contained"), "contained");
    session.close();
    assert!(server.log().contains("falls back to Docker"), "the log says so too");
    let left = server.end_and_check();
    assert!(left.is_empty(), "{}", left.join("; "));
}

pub(super) fn missing() {
    let server = Server::start(&Setup::plain().with_config("[runtimes]\ndocker = \"/nowhere/docker.sock\"\n"));
    let said = row(&server);
    assert_eq!(said["available"], false);
    assert!(said["reason"].as_str().is_some_and(|reason| reason.contains("runtimes.docker")), "{said}");
    server.client().error_is("session.create", &parameters(&json!({"language": "bash"})), 1101, "runtime_not_available");
    let left = server.end_and_check();
    assert!(left.is_empty(), "{}", left.join("; "));
}

pub(super) fn podman() {
    host().need(Feature::Podman).need(Feature::Dockerd).need(Feature::Python);
    let engine = Dockerd::podman();
    let server = Server::start(&setup(&engine));
    assert_eq!(row(&server)["available"], true, "{}", row(&server));
    let mut session = session(&server, &json!({"memoryLimitMB": 128}));
    let name = container(&session);
    let status = session.bash("grep -E 'CapBnd|NoNewPrivs|Seccomp:' /proc/self/status; ls /sys; id -u");
    assert_eq!(status, "CapBnd:\t0000000000000000\nNoNewPrivs:\t1\nSeccomp:\t2\n1000");
    assert_eq!(session.bash("tail -n +3 /proc/net/dev | cut -d: -f1").trim(), "lo");
    session.write("text", "by init");
    assert_eq!(session.run("print(open('text').read())"), "by init");
    let hungry = json!({"type": "execute_code", "code": "b = bytearray(300 << 20)\nfor i in range(0, len(b), 4096): b[i] = 1"});
    session.fails(&hungry, "out_of_memory");
    session.fails(&json!({"type": "execute_code", "code": "while True: pass", "timeoutSeconds": 1}), "timeout");
    assert!(engine.containers().contains(&name), "the control");
    session.close();
    assert!(is_gone(&engine, &name), "{:?}", engine.containers());
    let left = server.end_and_check();
    assert!(left.is_empty(), "{}", left.join("; "));
    assert!(engine.end().is_empty());
}
