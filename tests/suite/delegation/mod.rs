//! The server finds its own subtree, whichever way it is given one, and what is missing from it is told. Each layout is made
//! for real below the root of the machine's unified tree; those that a systemd makes are in `service::managed`.
//!
//! Invariant: every trial works below a group of its own name, and removes it.

pub mod groups;

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::json;

use crate::support::{Feature, Server, Session, Setup, eventually, host, page};
use groups::{group_of, hold_a_session, limited, read, state};

pub fn trials() -> Vec<libtest_mimic::Trial> {
    page(
        "delegation",
        &[
            ("a root shell in the root group: sessions go below the root of the tree", root_group),
            ("alone in a group that has controllers the server moves into a leaf, and leaves nothing", alone),
            ("a root shell in a group with others leaves them alone and works above", shared),
            ("in a leaf below a delegated group the delegated group is used", delegated_leaf),
            ("a cgroup namespace with its own mount is the whole world", namespace),
            ("a controller that is not delegated is told, and an error when the request names its limit", no_pids),
            ("without cpu the other limits hold", no_cpu),
            ("io.max holds back a session that reads its image cold", cold_reads),
            ("close kills through the group, whatever is in it", kill_on_close),
        ],
    )
}

const ROOT: &str = "/sys/fs/cgroup";

/// A group below the root of the tree; removed with all below it when dropped, and nobody may be left in it.
struct Group(PathBuf);

impl Group {
    /// `controllers` are those that the group hands to its own children.
    fn make(name: &str) -> Self {
        host().need(Feature::Root).need(Feature::UnifiedCgroups).need(Feature::Python);
        write(Path::new(ROOT), "cgroup.subtree_control", "+cpu +memory +pids +io");
        let path = Path::new(ROOT).join(format!("trial-{name}"));
        std::fs::create_dir(&path).expect("root may make groups");
        Self(path)
    }

    fn child(&self, name: &str) -> PathBuf {
        let path = self.0.join(name);
        std::fs::create_dir(&path).expect("root may make groups");
        path
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let mut groups = vec![self.0.clone()];
        let mut next = 0;
        while let Some(group) = groups.get(next).cloned() {
            let entries = std::fs::read_dir(&group).into_iter().flatten().flatten().map(|entry| entry.path());
            groups.extend(entries.filter(|path| path.is_dir()));
            next += 1;
        }
        for group in groups.iter().rev() {
            let removed = eventually(Duration::from_secs(5), || std::fs::remove_dir(group).is_ok() || !group.exists());
            assert!(removed || std::thread::panicking(), "{} can't be removed", group.display());
        }
    }
}

fn write(group: &Path, file: &str, text: &str) {
    std::fs::write(group.join(file), text).unwrap_or_else(|error| panic!("{text} to {file} of {}: {error}", group.display()));
}

/// A server that `script` (with the group as `$1`) is executed before; the script ends with `exec` of what follows.
fn server_in(group: &Path, script: &str) -> Server {
    let words = ["/bin/sh", "-c", script, "sh", group.to_str().expect("an ASCII path")];
    Server::start(&Setup { wrapper: words.map(str::to_owned).to_vec(), ..Setup::plain() })
}

const ENTER: &str = "echo $$ > \"$1/cgroup.procs\"; shift; exec \"$@\"";

fn end(server: Server) {
    let left = server.end_and_check();
    assert!(left.is_empty(), "{}", left.join("; "));
}

fn root_group() {
    host().need(Feature::Root).need(Feature::UnifiedCgroups).need(Feature::Python);
    let server = server_in(Path::new(ROOT), ENTER);
    assert_eq!(group_of(server.pid()), Path::new(ROOT), "it stays where it is");
    hold_a_session(&mut server.client(), Path::new(ROOT));
    end(server);
}

fn alone() {
    let group = Group::make("alone");
    let server = server_in(&group.0, ENTER);
    let leaf = group_of(server.pid());
    assert!(leaf.starts_with(&group.0) && leaf != group.0, "it has moved into a leaf: {}", leaf.display());
    hold_a_session(&mut server.client(), &group.0);
    end(server);
    let below = std::fs::read_dir(&group.0).expect("it is there").flatten().filter(|entry| entry.path().is_dir()).count();
    assert_eq!(below, 0, "the last one out removes the leaf");
}

fn shared() {
    let group = Group::make("shared");
    let own = group.child("shell");
    write(&group.0, "cgroup.subtree_control", "+cpu +memory +pids");
    let mut neighbour = std::process::Command::new("/bin/sleep").arg("600").spawn().expect("sleep is there");
    write(&own, "cgroup.procs", &neighbour.id().to_string());
    let server = server_in(&own, ENTER);
    assert_eq!(group_of(server.pid()), own);
    hold_a_session(&mut server.client(), &group.0);
    assert_eq!(group_of(neighbour.id().cast_signed()), own, "the neighbour was not moved");
    end(server);
    neighbour.kill().expect("an own child");
    neighbour.wait().expect("an own child");
}

fn delegated_leaf() {
    // What systemd makes of Delegate=yes and DelegateSubgroup=: controllers in the group, the process in an empty leaf below.
    let group = Group::make("subgroup");
    let leaf = group.child("server");
    let server = server_in(&leaf, ENTER);
    assert_eq!(read(&leaf, "cgroup.subtree_control"), "", "nothing is handed to the leaf");
    hold_a_session(&mut server.client(), &group.0);
    assert_eq!(group_of(server.pid()), leaf);
    end(server);
}

fn namespace() {
    let group = Group::make("namespace");
    let script = "echo $$ > \"$1/cgroup.procs\"; shift; exec unshare --cgroup --mount /bin/sh -c '\
                  umount /sys/fs/cgroup && mount -t cgroup2 cgroup2 /sys/fs/cgroup && exec \"$@\"' sh \"$@\"";
    let server = server_in(&group.0, script);
    hold_a_session(&mut server.client(), &group.0);
    end(server);
}

/// A server alone in a group that was given only these controllers.
fn server_with(name: &str, controllers: &str) -> (Group, Server) {
    let group = Group::make(name);
    write(&group.0, "cgroup.subtree_control", controllers);
    let own = group.child("service");
    let server = server_in(&own, ENTER);
    (group, server)
}

fn no_pids() {
    let (_group, server) = server_with("memory-only", "+memory");
    let mut client = server.client();
    for (field, value, limit) in
        [("pidsLimit", json!(32), "pids"), ("cpuLimit", json!(0.5), "cpu"), ("cpuShares", json!(512), "cpu")]
    {
        let mut parameters = json!({"language": "python"});
        parameters[field] = value;
        let error = client.error_is("session.create", &parameters, 1201, "limit_unenforceable");
        assert!(error.message.contains(limit), "{error}");
    }
    let mut session = Session::open(&server, &json!({"memoryLimitMB": 128}));
    assert_eq!(state(&session.created, "memory"), "enforced");
    assert_eq!(state(&session.created, "cpu"), "absent");
    assert_eq!(state(&session.created, "pids"), "degraded");
    // What holds in the place of the group: processes of the session's own host id, which no other session has.
    let code = "import resource; print(resource.getrlimit(resource.RLIMIT_NPROC)[1])";
    assert_eq!(session.run(code), "256");
    session.close();
    end(server);
}

fn no_cpu() {
    let (group, server) = server_with("no-cpu", "+memory +pids");
    let mut parameters = limited();
    let fields = parameters.as_object_mut().expect("an object");
    fields.remove("cpuLimit");
    fields.remove("cpuShares");
    let session = Session::open(&server, &parameters);
    assert_eq!(["memory", "pids", "cpu"].map(|limit| state(&session.created, limit)), ["enforced", "enforced", "absent"]);
    let made = groups::find(&group.0, session.environment()).expect("its group");
    assert_eq!(read(&made, "pids.max"), "32");
    session.close();
    end(server);
}

/// Reads a file of the image that is in no cache; the seconds that the program took.
fn cold_read(name: &str, bytes_per_s: u64) -> f64 {
    let group = Group::make(name);
    let words = ["/bin/sh", "-c", ENTER, "sh", group.0.to_str().expect("an ASCII path")];
    let setup = Setup { wrapper: words.map(str::to_owned).to_vec(), ..Setup::plain() };
    let server = Server::start(&setup.with_config(&format!("io_bytes_per_s_max = {bytes_per_s}\n")));
    let mut session = Session::python(&server);
    assert_eq!(state(&session.created, "io"), if bytes_per_s == 0 { "absent" } else { "enforced" });
    session.run("import time");
    // The cache is shared, so what the other run has read must go.
    write(Path::new("/proc/sys/vm"), "drop_caches", "3");
    let code = "import time\nbegin = time.monotonic()\nsize = len(open('/usr/local/trial-io', 'rb').read())\n\
                assert size == 8 << 20, size\nprint(time.monotonic() - begin)";
    let seconds = session.run(code).parse().expect("seconds");
    session.close();
    end(server);
    seconds
}

fn cold_reads() {
    host().need(Feature::Root).need(Feature::UnifiedCgroups).need(Feature::Python);
    std::fs::write("/usr/local/trial-io", vec![7; 8 << 20]).expect("root of the machine may write there");
    done_sync();
    let (held, free) = (cold_read("io-held", 1 << 20), cold_read("io-free", 0));
    // Never an absolute time alone: the bound gives a least time, load only adds to it.
    assert!(held > 4.0 && held > 2.0 * free, "8 MiB at 1 MiB/s took {held} s, without the bound {free} s");
}

/// Dirty pages are no cold ones.
fn done_sync() {
    assert!(std::process::Command::new("/bin/sync").status().expect("sync is there").success());
}

fn kill_on_close() {
    let group = Group::make("kill");
    let server = server_in(&group.0, ENTER);
    let session = Session::python(&server);
    let made = groups::find(&group.0, session.environment()).expect("its group");
    let sleeper = || std::process::Command::new("/bin/sleep").arg("600").spawn().expect("sleep is there");
    let (mut inside, mut outside) = (sleeper(), sleeper());
    // Not of the session's pid namespace, so the end of init is not its end.
    write(&made.join("run"), "cgroup.procs", &inside.id().to_string());
    session.close();
    assert!(eventually(Duration::from_secs(5), || !matches!(inside.try_wait(), Ok(None))), "what is in the group dies");
    assert!(matches!(outside.try_wait(), Ok(None)), "the control: what is not lives");
    outside.kill().expect("an own child");
    outside.wait().expect("an own child");
    end(server);
}
