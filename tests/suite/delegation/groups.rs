//! What a session's groups must look like from the host, wherever the server has made them.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};

use crate::support::{Client, eventually};

/// The parameters whose values are looked for in the files.
pub fn limited() -> Value {
    json!({"language": "python", "memoryLimitMB": 128, "pidsLimit": 32, "cpuLimit": 0.5, "cpuShares": 512})
}

/// The directory of the unified tree that a process is in.
pub fn group_of(pid: i32) -> PathBuf {
    let text = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).expect("the process lives");
    let path = text.lines().find_map(|line| line.strip_prefix("0::/")).expect("a unified tree");
    Path::new("/sys/fs/cgroup").join(path)
}

/// A file of a group, without its line end.
pub fn read(group: &Path, file: &str) -> String {
    let path = group.join(file);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display())).trim_end().to_owned()
}

/// The group of an environment at any depth below `base`.
pub fn find(base: &Path, environment: &str) -> Option<PathBuf> {
    let entries = std::fs::read_dir(base).ok()?;
    let directories = entries.flatten().map(|entry| entry.path()).filter(|path| path.is_dir());
    let mut directories = directories.collect::<Vec<_>>();
    if let Some(found) = directories.iter().find(|path| path.ends_with(environment)) {
        return Some(found.clone());
    }
    directories.sort();
    directories.iter().find_map(|path| find(path, environment))
}

/// The state of a row of `enforcement.limits`.
pub fn state<'a>(created: &'a Value, limit: &str) -> &'a str {
    let rows = created["enforcement"]["limits"].as_array().expect("rows");
    let row = rows.iter().find(|row| row["name"] == limit).unwrap_or_else(|| panic!("no row {limit}: {created}"));
    row["state"].as_str().expect("a word")
}

/// Makes a session below `base`, looks at its groups and closes it: limits are in the kernel's files, programs are born in their
/// own leaf, usage is told, too much memory ends the program alone, and close removes the groups.
pub fn hold_a_session(client: &mut Client, base: &Path) {
    let created = client.ok("session.create", &limited());
    let environment = created["environmentId"].as_str().expect("an id");
    for limit in ["memory", "pids", "cpu"] {
        assert_eq!(state(&created, limit), "enforced", "{created}");
    }
    let group = find(base, environment).unwrap_or_else(|| panic!("no group of {environment} below {}", base.display()));
    let files = ["memory.max", "memory.swap.max", "pids.max", "cpu.max"].map(|file| read(&group, file));
    assert_eq!(files, ["134217728", "0", "32", "50000 100000"]);
    let weight: u32 = read(&group, "cpu.weight").parse().expect("a number");
    assert!((2..100).contains(&weight), "half of the default shares is less than the default weight: {weight}");
    assert_eq!(read(&group.join("run"), "memory.oom.group"), "1");
    if state(&created, "io") == "enforced" {
        let line = read(&group, "io.max");
        assert!(line.contains("rbps=536870912 wbps=536870912"), "{line}");
    }
    assert_eq!(read(&group.join("init"), "cgroup.procs").lines().count(), 1, "init alone is in its leaf");

    let execute = |client: &mut Client, code: &str| {
        let command = json!({"type": "execute_code", "language": "python", "code": code, "timeoutSeconds": 60});
        client.ok("session.execute", &json!({"sessionId": created["sessionId"], "command": command}))
    };
    let usage = execute(client, "x = b'a' * (16 << 20); print(len(x))")["result"]["usage"].clone();
    assert!(usage["memoryPeakBytes"].as_u64().is_some_and(|bytes| bytes > 16 << 20), "{usage}");
    assert!(usage["cpuMs"].is_number(), "{usage}");
    // What the kernel does not tell is left out.
    assert_eq!(usage["pidsPeak"].is_null(), !group.join("pids.peak").exists(), "{usage}");
    let bomb = execute(client, "x = []\nwhile True: x.append(b'a' * (1 << 20))");
    assert_eq!((&bomb["errorKind"], &bomb["result"]["oomKilled"]), (&json!("out_of_memory"), &json!(true)), "{bomb}");
    assert_eq!(execute(client, "print(1)")["result"]["stdout"], "1\n", "init outlived it");

    client.ok("session.close", &json!({"sessionId": created["sessionId"]}));
    assert!(eventually(Duration::from_secs(20), || !group.exists()), "{} stays", group.display());
}
