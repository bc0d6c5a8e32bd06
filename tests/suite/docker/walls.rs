//! The walls of a container, from outside and from inside, and the verdicts of programs that run against them.

use serde_json::{Value, json};

use super::{container, session, shared};
use crate::support::{Feature, host};

/// What a program reads of itself and its surroundings.
const LOOK: &str = r#"
import json, os
status = dict(line.rstrip("\n").split(":\t", 1) for line in open("/proc/self/status") if ":\t" in line)
def can(action):
    try:
        action()
        return True
    except OSError as error:
        return error.errno
mounts = {line.split()[1]: line.split()[3] for line in open("/proc/self/mounts")}
print(json.dumps({
    "caps": [status[name] for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")],
    "nnp": status["NoNewPrivs"], "filters": int(status["Seccomp_filters"]), "uid": os.getuid(), "gid": os.getgid(),
    "groups": os.getgroups(), "pid1": open("/proc/1/comm").read().strip(), "interfaces": sorted(os.listdir("/sys/class/net")) if os.path.isdir("/sys/class/net") else [],
    "net": [line.split(":")[0].strip() for line in open("/proc/net/dev").readlines()[2:]],
    "root": can(lambda: open("/etc/new", "w")), "workspace": can(lambda: open("/workspace/new", "w")),
    "usr": can(lambda: open("/usr/new", "w")), "sys": os.listdir("/sys"), "symbols": len(open("/proc/kallsyms").read()),
    "workspace_options": mounts["/workspace"], "unshare": can(lambda: os.unshare(os.CLONE_NEWUSER)) if hasattr(os, "unshare") else None,
    "host": os.uname().nodename,
}))
"#;

pub(super) fn in_force() {
    let (engine, server) = shared();
    host().need(Feature::Python);
    let mut session = session(&server, &json!({"memoryLimitMB": 256, "cpuLimit": 0.5, "pidsLimit": 40}));
    let outside = engine.inspect(&container(&session));
    let config = &outside["HostConfig"];
    for (key, expected) in [
        ("NetworkMode", json!("none")),
        ("Memory", json!(256 << 20)),
        ("MemorySwap", json!(256 << 20)),
        ("CpuShares", json!(1024)),
        ("NanoCpus", json!(500_000_000)),
        ("PidsLimit", json!(41)),
        ("CapDrop", json!(["ALL"])),
        ("ReadonlyRootfs", json!(true)),
        ("Privileged", json!(false)),
        ("IpcMode", json!("private")),
        ("AutoRemove", json!(true)),
    ] {
        assert_eq!(config[key], expected, "{key}");
    }
    let options = config["SecurityOpt"].as_array().expect("options");
    assert!(options.contains(&json!("no-new-privileges")), "{options:?}");
    assert!(options.iter().any(|option| option.as_str().is_some_and(|text| text.starts_with("seccomp={"))));
    assert_eq!(outside["Config"]["User"], "1000:1000");
    let labels = &outside["Config"]["Labels"];
    assert_eq!(labels["io.codebeaker.environment"], session.environment());
    assert!(labels["io.codebeaker.server"].as_str().is_some_and(|text| text.contains(&format!("-{}-", server.pid()))));
    let inside = session.run_json(LOOK);
    let none = "0000000000000000";
    assert_eq!(inside["caps"], json!([none, none, none, none, none]), "{inside}");
    assert_eq!((&inside["nnp"], &inside["uid"], &inside["gid"]), (&json!("1"), &json!(1000), &json!(1000)), "{inside}");
    assert!(inside["filters"].as_u64() >= Some(2), "the engine's filter and the program's own: {inside}");
    assert_eq!((&inside["net"], &inside["pid1"]), (&json!(["lo"]), &json!("init")), "{inside}");
    assert_eq!(
        (&inside["sys"], &inside["symbols"], &inside["host"]),
        (&json!([]), &json!(0), &json!("codebeaker")),
        "{inside}"
    );
    assert_eq!(inside["workspace"], true, "the control: {inside}");
    assert!(inside["root"] != json!(true) && inside["usr"] != json!(true), "{inside}");
    let options = inside["workspace_options"].as_str().expect("options");
    assert!(options.contains("size=") && options.contains("nosuid") && options.contains("nodev"), "{options}");
    let walls = session.created["enforcement"]["walls"].as_array().expect("walls").clone();
    let state = |name: &str| walls.iter().find(|row| row["name"] == name).map(|row| row["state"].clone());
    assert_eq!(state("seccomp"), Some(json!("enforced")), "{walls:?}");
    assert_eq!(state("user"), Some(json!("degraded")), "this engine maps no ids: {walls:?}");
}

pub(super) fn strict() {
    let (engine, server) = shared();
    host().need(Feature::Python);
    let mut session = session(&server, &json!({"profile": "strict"}));
    let outside = engine.inspect(&container(&session));
    assert_eq!(outside["Config"]["User"], "65534:65534");
    assert_eq!(outside["HostConfig"]["PidsLimit"], 65);
    let unnamed = super::session(&server, &json!({}));
    let config = engine.inspect(&container(&unnamed))["HostConfig"].clone();
    assert_eq!((&config["Memory"], &config["PidsLimit"]), (&json!(512 << 20), &json!(257)), "what `default` gives");
    drop(unnamed);
    // Init needs `capset`, so the engine's filter lets it through; the program's own filter does not.
    let refused = session.program("setpriv", &["--inh-caps=-all", "true"]);
    assert_eq!(refused["errorKind"], "nonzero_exit", "{refused}");
    assert!(refused["result"]["stderr"].as_str().is_some_and(|text| text.contains("not permitted")), "{refused}");
    let mut other = super::session(&server, &json!({}));
    let allowed = other.program("setpriv", &["--inh-caps=-all", "true"]);
    assert_eq!(allowed["success"], true, "the control: the profile `default` allows it: {allowed}");
}

pub(super) fn apart() {
    let (_, server) = shared();
    let (mut one, mut other) = (session(&server, &json!({})), session(&server, &json!({})));
    assert_ne!(container(&one), container(&other));
    one.write("secret", "of one");
    one.write("/tmp/secret", "of one");
    other.fails(&json!({"type": "read_file", "path": "secret"}), "file_not_found");
    other.fails(&json!({"type": "read_file", "path": "/tmp/secret"}), "file_not_found");
    let (mine, theirs) = (one.bash("readlink /proc/self/ns/*"), other.bash("readlink /proc/self/ns/*"));
    let shared: Vec<&str> = mine.lines().filter(|line| theirs.contains(line)).collect();
    let only = ["time:", "user:", "time_for_children:"];
    assert!(shared.iter().all(|line| only.iter().any(|kind| line.starts_with(kind))), "{shared:?}");
    assert_eq!(one.read("secret"), "of one", "the control");
}

pub(super) fn verdicts() {
    let (_, server) = shared();
    host().need(Feature::Python);
    let mut session = session(&server, &json!({"memoryLimitMB": 128}));
    let fill = |mib: u32| json!({"type": "execute_code", "code": format!("b = bytearray({mib} << 20)\nfor i in range(0, len(b), 4096): b[i] = 1\nprint('ok')")});
    assert_eq!(session.ok(&fill(32))["stdout"], "ok\n", "the control");
    let answer = session.fails(&fill(300), "out_of_memory");
    assert_eq!(answer["result"]["oomKilled"], true, "{answer}");
    let endless = json!({"type": "execute_code", "code": "while True: pass", "timeoutSeconds": 1});
    let answer = session.fails(&endless, "timeout");
    assert_eq!(answer["result"]["timedOut"], true, "{answer}");
    let result = session.ok(&fill(32));
    assert!(result["usage"]["memoryPeakBytes"].as_u64() > Some(32 << 20), "{result}");
    assert!(result["usage"]["cpuMs"].is_u64(), "{result}");
}

pub(super) fn flood() {
    let (_, server) = shared();
    let mut session = session(&server, &json!({}));
    let answer = session.fails(&json!({"type": "execute_shell", "commandName": "yes"}), "output_limit");
    assert_eq!(answer["result"]["truncated"]["stdout"], true);
    assert_eq!(session.bash("echo lives"), "lives");
}

pub(super) fn fork_bomb() {
    let (_, server) = shared();
    host().need(Feature::Python);
    let mut session = session(&server, &json!({"pidsLimit": 32}));
    let some = "import os\nfor n in range(8):\n  if os.fork() == 0: os._exit(0)\nfor n in range(8): os.wait()\nprint('fits')";
    assert_eq!(session.run(some), "fits", "the control");
    let bomb = json!({"type": "execute_code", "code": "import os\nwhile True: os.fork()", "timeoutSeconds": 20});
    session.fails(&bomb, "pids_limit");
    assert_eq!(session.bash("echo lives"), "lives");
}

pub(super) fn descendants() {
    let (_, server) = shared();
    let mut session = session(&server, &json!({}));
    session.bash("setsid sleep 300 & nohup sleep 300 >/dev/null 2>&1 & echo started");
    let others = session.bash("for p in /proc/[0-9]*; do read -r name < $p/comm; echo $name; done | sort | uniq -c");
    assert!(!others.contains("sleep"), "{others}");
    assert!(others.contains("init") && others.contains("bash"), "the control: {others}");
}

pub(super) fn disk() {
    let (_, server) = shared();
    let mut session = session(&server, &json!({"memoryLimitMB": 512, "diskLimitMB": 16}));
    for place in ["/workspace", "/tmp"] {
        let fill = |mib: u32| json!({"type": "execute_shell", "commandName": "bash", "args": ["-c", format!("head -c {mib}M /dev/zero > {place}/fill")]});
        session.ok(&fill(8));
        session.fails(&fill(64), "disk_full");
        session.ok(&json!({"type": "delete_file", "path": format!("{place}/fill")}));
    }
}

pub(super) fn init() {
    let (_, server) = shared();
    host().need(Feature::Python);
    let mut session = session(&server, &json!({}));
    let code = r#"
import json, os, signal
def errno_of(action):
    try:
        action()
        return 0
    except OSError as error:
        return error.errno
os.kill(1, signal.SIGTERM)
os.kill(1, signal.SIGKILL)
print(json.dumps({
    "memory": errno_of(lambda: open("/proc/1/mem", "rb").read(1)),
    "descriptors": errno_of(lambda: os.listdir("/proc/1/fd")),
    "binary": errno_of(lambda: open("/.codebeaker/init/codebeaker", "wb")),
    "own": errno_of(lambda: open("/proc/self/mem", "rb").close()),
    "socket": os.path.exists("/.codebeaker/session/control"),
}))
"#;
    let seen: Value = session.run_json(code);
    assert_eq!((&seen["memory"], &seen["descriptors"]), (&json!(13), &json!(13)), "{seen}");
    assert!(matches!(seen["binary"].as_i64(), Some(13 | 30)), "{seen}");
    assert_eq!((&seen["own"], &seen["socket"]), (&json!(0), &json!(false)), "{seen}");
    assert_eq!(session.bash("echo lives"), "lives");
}
