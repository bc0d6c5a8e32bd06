//! The walls of a sandbox as the kernel tells them, in one text that is the same for every whole sandbox of a server.

use serde_json::{Value, json};

use crate::support::Client;

const NAMESPACES: [&str; 8] = ["user", "mnt", "pid", "net", "ipc", "uts", "cgroup", "time"];

/// What a program of the session says of itself and of what it is refused.
const PROBE: &str = "grep -E '^(Uid|Gid|Groups|Cap|NoNewPrivs|Seccomp)' /proc/self/status; ulimit -a; hostname; umask; \
                     cat /proc/self/oom_score_adj /proc/self/cgroup; mknod /tmp/node c 0 0 2>&1; ls /dev; \
                     (: < /dev/tcp/127.0.0.1/9) 2>&1 | grep -o 'Connection refused'; head -c 1 /proc/kcore 2>&1 | wc -c; \
                     (: > /proc/sys/kernel/hostname) 2>&1 | grep -o 'Read-only.*'";

/// Init's namespaces, maps, mounts and groups, and what a program sees.
pub fn of(client: &mut Client, session: &Value, init: i32) -> String {
    let mut lines: Vec<String> = Vec::new();
    for name in NAMESPACES {
        let (own, host) = (link(init, name), std::fs::read_link(format!("/proc/self/ns/{name}")).ok());
        lines.push(format!("{name} {}", if own == host { "of the host" } else { "its own" }));
    }
    for file in ["uid_map", "gid_map"] {
        let map = read(init, file);
        let counts: Vec<&str> =
            map.split_whitespace().enumerate().filter(|(at, _)| at % 3 != 1).map(|(_, word)| word).collect();
        lines.push(format!("{file} {counts:?}"));
    }
    for line in read(init, "mountinfo").lines() {
        let (left, right) = line.split_once(" - ").unwrap_or((line, ""));
        let left: Vec<&str> = left.split(' ').skip(3).take(3).collect();
        lines.push(format!("mount {} {}", left.join(" "), without_numbers(right)));
    }
    let environment = session["environmentId"].as_str().expect("a session has an environment");
    lines.push(read(init, "cgroup").replace(environment, "ENVIRONMENT"));
    let command = json!({"type": "execute_shell", "commandName": "bash", "args": ["-c", PROBE]});
    let answer = client.ok("session.execute", &json!({"sessionId": session["sessionId"], "command": command}));
    lines.push(answer["result"]["stdout"].as_str().unwrap_or_else(|| panic!("the probe runs: {answer}")).to_owned());
    lines.join("\n")
}

/// Fails unless the text can tell a wall from none.
pub fn expect_whole(text: &str) {
    for name in NAMESPACES {
        assert!(text.contains(&format!("{name} its own\n")), "{text}");
    }
    let words = ["Seccomp:\t2", "NoNewPrivs:\t1", "CapEff:\t0000000000000000", "Connection refused", "Permission denied"];
    for word in words {
        assert!(text.contains(word), "no `{word}` in {text}");
    }
}

fn link(init: i32, namespace: &str) -> Option<std::path::PathBuf> {
    std::fs::read_link(format!("/proc/{init}/ns/{namespace}")).ok()
}

fn read(init: i32, file: &str) -> String {
    std::fs::read_to_string(format!("/proc/{init}/{file}")).unwrap_or_else(|error| panic!("{file} of {init}: {error}"))
}

/// Mount options without what differs between two sandboxes: ids of users and numbers of devices.
fn without_numbers(options: &str) -> String {
    options.split(',').filter(|option| !option.starts_with("uid=") && !option.starts_with("gid=")).collect::<Vec<_>>().join(",")
}
