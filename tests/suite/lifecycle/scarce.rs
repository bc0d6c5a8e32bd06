//! A server whose state directory is full or read-only, whose group is tight in memory, and whose clock jumps.
//!
//! Invariant: mounts are made only in the server's own mount namespace, the clock is changed only for the server, and a group
//! that is made here is removed here.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use super::end;
use super::pressure::create;
use crate::support::fixture_user::{binary_for, directory_of};
use crate::support::server::refused_start;
use crate::support::trial::skip;
use crate::support::{Client, Feature, Server, Session, Setup, eventually, host, pace, page};

pub(super) fn trials() -> Vec<libtest_mimic::Trial> {
    page(
        "lifecycle",
        &[
            ("a server does not start on a full file system and says so", full_at_the_start),
            ("a server whose file system becomes full goes on, and so do its sessions", full_later),
            ("a server does not start on a read-only file system and says so", read_only_at_the_start),
            ("a server whose file system becomes read-only goes on, and so do its sessions", read_only_later),
            ("a clock that jumps a year ahead and two years back ends no session and no command early or late", clock_jumps),
            ("a server in a group that is tight in memory refuses or dies, and the next one clears up", tight_memory),
        ],
    )
}

/// A server whose state directory is a small file system of its own, which nobody else sees. `after` is done to it before the
/// server starts. Tokens are on that file system, so the server asks for none.
fn on_own_filesystem(after: &str) -> Setup {
    host().need(Feature::Root);
    if kernel() < (6, 3) {
        skip("a state directory on a tmpfs needs Linux 6.3, whose tmpfs can be id-mapped");
    }
    let script = format!(
        "mkdir -p \"$HOME/state\" && mount -t tmpfs -o size=4m,mode=700 small \"$HOME/state\" && cd \"$HOME/state\" && {{ {after}; }} && cd / && exec \"$@\""
    );
    let wrapper = ["unshare", "--mount", "--propagation", "private", "/bin/sh", "-c", &script, "sh"];
    Setup { wrapper: wrapper.map(str::to_owned).to_vec(), ..Setup::no_auth() }
}

fn kernel() -> (u32, u32) {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").expect("the kernel tells its release");
    let mut numbers = release.split(['.', '-']).map_while(|word| word.parse().ok());
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

const FILL: &str = "cat /dev/zero > fill 2>/dev/null || test -s fill";

fn refused(setup: &Setup, words: [&str; 2]) {
    let directory = directory_of(None);
    let (status, said) = refused_start(setup, directory.path());
    assert_eq!(status.and_then(|status| status.code()), Some(1), "it must refuse and not die of a signal: {said}");
    assert!(words.iter().all(|word| said.contains(word)), "it must say {words:?}: {said}");
}

fn full_at_the_start() {
    refused(&on_own_filesystem(FILL), ["no space", "state_dir"]);
    // The control: the same small file system is large enough.
    end(Server::start(&on_own_filesystem("true")));
}

fn read_only_at_the_start() {
    refused(&on_own_filesystem("mkdir run && mount -o remount,ro ."), ["read-only", "state_dir"]);
}

/// The state directory as the server sees it.
fn seen(server: &Server) -> PathBuf {
    PathBuf::from(format!("/proc/{}/root{}", server.pid(), server.state_dir().display()))
}

/// A session from its creation to its end.
fn works(server: &Server) {
    let mut session = Session::open(server, &json!({"language": "bash"}));
    session.write("file", "content");
    assert_eq!(session.read("file"), "content");
    assert_eq!(session.bash("echo x"), "x");
    session.close();
}

fn full_later() {
    let server = Server::start(&on_own_filesystem("true"));
    let mut before = Session::open(&server, &json!({"language": "bash"}));
    let fill = seen(&server).join("fill");
    let filled = std::fs::write(&fill, vec![0; 8 << 20]);
    assert_eq!(filled.expect_err("8 MiB do not fit into 4").kind(), std::io::ErrorKind::StorageFull, "the control");
    works(&server);
    assert_eq!(before.bash("echo x"), "x");
    std::fs::remove_file(&fill).expect("the trial's own file");
    before.close();
    works(&server);
    end(server);
}

fn read_only_later() {
    let server = Server::start(&on_own_filesystem("true"));
    let mut before = Session::open(&server, &json!({"language": "bash"}));
    let change = |line: &str| {
        let (pid, state) = (server.pid().to_string(), server.state_dir());
        let mut command = std::process::Command::new("nsenter");
        command.args(["--target", &pid, "--mount", "/bin/sh", "-c", line, "sh"]).arg(state);
        assert!(command.status().expect("nsenter can be executed").success(), "{line}");
    };
    // A file system with a file open for writing can't be made read-only by hand; what lies over it can.
    change("mount --bind \"$1\" \"$1\" && mount -o remount,bind,ro \"$1\"");
    let written = std::fs::write(seen(&server).join("file"), "x");
    assert_eq!(written.expect_err("read-only").kind(), std::io::ErrorKind::ReadOnlyFilesystem, "the control");
    works(&server);
    assert_eq!(before.bash("echo x"), "x");
    change("umount \"$1\"");
    before.close();
    works(&server);
    end(server);
}

const FAKETIME: &str = "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1";

fn clock_jumps() {
    if !std::path::Path::new(FAKETIME).exists() {
        skip("there is no libfaketime (Debian's package faketime)");
    }
    let directory = directory_of(None);
    let clock = directory.path().join("clock");
    let set = |offset: &str| std::fs::write(&clock, format!("{offset}\n")).expect("an own file");
    set("+0");
    let setup = Setup::plain()
        .with_config("[session]\nidle_timeout_minutes = 30\n")
        .with_variable("LD_PRELOAD", FAKETIME)
        .with_variable("FAKETIME_TIMESTAMP_FILE", &clock.to_string_lossy())
        .with_variable("FAKETIME_NO_CACHE", "1")
        // The kernel's monotonic clock does not jump when somebody sets the time.
        .with_variable("FAKETIME_DONT_FAKE_MONOTONIC", "1");
    let server = Server::start(&setup);
    let mut session = Session::open(&server, &json!({"language": "bash"}));
    let year = |session: &Session<'_>| session.created["createdAt"].as_str().map(|at| at[..4].to_owned()).expect("a time");
    let sleep = |seconds: u32, timeout: u32| {
        let line = format!("sleep {seconds}; echo done");
        json!({"type": "execute_shell", "commandName": "bash", "args": ["-c", line], "timeoutSeconds": timeout})
    };
    let mut years = vec![year(&session)];
    for offset in ["+366d", "-366d"] {
        let parameters = json!({"sessionId": session.id, "command": sleep(2, 60)});
        let running = session.client.send("session.execute", &parameters).expect("sent");
        std::thread::sleep(Duration::from_millis(300));
        set(offset);
        let answer = session.client.wait(running).expect("an answer");
        assert_eq!((&answer["success"], &answer["result"]["stdout"]), (&json!(true), &json!("done\n")), "{offset}: {answer}");
        let begin = Instant::now();
        session.fails(&sleep(60, 1), "timeout");
        assert!(begin.elapsed() >= Duration::from_secs(1) && begin.elapsed() < Duration::from_secs(50) * pace(), "{offset}");
        let other = Session::open(&server, &json!({"language": "bash"}));
        years.push(year(&other));
        other.close();
        assert_eq!(session.bash("echo x"), "x", "{offset}: the session goes on");
    }
    assert!(years[1] > years[0] && years[2] < years[0], "the control: the server's clock jumped: {years:?}");
    session.close();
    end(server);
}

/// A group of the memory controller, removed on drop: below the suite's own on v1, at the root of the machine's unified tree.
struct TightGroup {
    directory: PathBuf,
    /// Where the server enters it. On v2 that is a leaf below, since a group that hands controllers down takes no process.
    entry: PathBuf,
    /// The file, and the word in it, where the kernel counts how often the group was full.
    counter: (&'static str, &'static str),
}

impl TightGroup {
    fn new(bytes: u64) -> Self {
        host().need(Feature::Root).need(Feature::CgroupMemory);
        let own = std::fs::read_to_string("/proc/self/cgroup").expect("/proc is mounted");
        let on_v1 = own.lines().find_map(|line| line.split_once(":memory:").map(|(_, path)| path.to_owned()));
        let (base, limit, counter) = if let Some(path) = on_v1 {
            (format!("/sys/fs/cgroup/memory{path}"), "memory.limit_in_bytes", ("memory.failcnt", ""))
        } else {
            host().need(Feature::UnifiedCgroups);
            std::fs::write("/sys/fs/cgroup/cgroup.subtree_control", "+cpu +memory +pids").expect("root of the machine may");
            ("/sys/fs/cgroup".to_owned(), "memory.max", ("memory.events", "max "))
        };
        let directory = PathBuf::from(format!("{base}/suite-tight-{}", std::process::id()));
        let entry = if limit == "memory.max" { directory.join("service") } else { directory.clone() };
        std::fs::create_dir_all(&entry).expect("root may make groups");
        std::fs::write(directory.join(limit), bytes.to_string()).expect("an own group");
        Self { directory, entry, counter }
    }

    /// How often it was full.
    fn times_full(&self) -> u64 {
        let (file, word) = self.counter;
        let text = std::fs::read_to_string(self.directory.join(file)).expect("an own group");
        let value = text.lines().find_map(|line| line.strip_prefix(word)).unwrap_or_default();
        value.trim().parse().unwrap_or_else(|_| panic!("{file} has no `{word}`: {text}"))
    }
}

impl Drop for TightGroup {
    fn drop(&mut self) {
        // The server's groups lie in it until the server has ended. A failed trial may have ended it before it could remove them.
        let removed = eventually(Duration::from_secs(10), || {
            if std::thread::panicking() {
                remove_groups(&self.directory);
            } else if self.entry != self.directory {
                // Gone since the last try, or still with the server in it.
                std::fs::remove_dir(&self.entry).ok();
            }
            std::fs::remove_dir(&self.directory).is_ok()
        });
        assert!(removed || std::thread::panicking(), "{} stays", self.directory.display());
    }
}

/// Removes the groups below one of the trial's own, deepest first; one that is busy stays for the next try.
fn remove_groups(directory: &Path) {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    for group in entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())) {
        remove_groups(&group.path());
        std::fs::remove_dir(group.path()).ok();
    }
}

/// Sessions that are tried, and how many of them after the group was full for the first time.
const SESSIONS_MAX: usize = 24;
const SESSIONS_PRESSED: usize = 4;

/// Creates sessions and lets each take memory until the group has been full for a while; every answer is right or typed. False when
/// the server is gone.
fn load(client: &mut Client, group: &TightGroup) -> bool {
    let mut pressed = 0;
    for _ in 0..SESSIONS_MAX {
        if !takes_memory(client) {
            return false;
        }
        pressed += usize::from(group.times_full() > 0);
        if pressed > SESSIONS_PRESSED {
            break;
        }
    }
    true
}

/// One session and its command. False when the server is gone.
fn takes_memory(client: &mut Client) -> bool {
    let session = match client.call("session.create", &json!({"language": "bash", "memoryLimitMB": 64})) {
        Ok(session) => session,
        Err(codebeaker_client::Error::Rpc(error)) => {
            assert!([1200, 1300, 1302, 1500].contains(&error.code), "{error}");
            return true;
        }
        Err(_) => return false,
    };
    let line = "x=$(head -c 12000000 /dev/zero | tr '\\0' x); head -c 12000000 /dev/zero > file; echo ${#x}";
    let command = json!({"type": "execute_shell", "commandName": "bash", "args": ["-c", line]});
    match client.call("session.execute", &json!({"sessionId": session["sessionId"], "command": command})) {
        Ok(answer) if answer["success"] == true => assert_eq!(answer["result"]["stdout"], "12000000\n", "{answer}"),
        Ok(answer) => {
            let kinds = ["out_of_memory", "sandbox_gone", "io_error", "signaled", "nonzero_exit", "disk_full"];
            assert!(kinds.iter().any(|kind| answer["errorKind"] == *kind), "{answer}");
        }
        Err(codebeaker_client::Error::Rpc(error)) => assert!([1002, 1302].contains(&error.code), "{error}"),
        Err(_) => return false,
    }
    true
}

fn tight_memory() {
    // The launcher's sealed copy of the binary stays in memory, and an unoptimized one is several times an optimized one.
    let copy = std::fs::metadata(binary_for(None)).expect("the server is built").len();
    let group = TightGroup::new(copy + (16 << 20));
    let script = format!("echo $$ > {}/cgroup.procs && exec \"$@\"", group.entry.display());
    let setup = Setup { wrapper: ["/bin/sh", "-c", &script, "sh"].map(str::to_owned).to_vec(), ..Setup::plain() };
    let mut server = Server::start(&setup);
    let mut client = server.client();
    let lives = load(&mut client, &group);
    assert!(group.times_full() > 0, "the control: the group is full at times");
    if !lives {
        server.wait(Duration::from_secs(10)).expect("a server that does not answer has been ended by the kernel");
        let tracker = server.take_tracker();
        server = Server::start_in(&setup, server.into_directory());
        let mut left = Vec::new();
        let clear = eventually(Duration::from_secs(5), || {
            left = tracker.left(&server.state_dir());
            left.is_empty()
        });
        assert!(clear, "{left:?}");
    }
    // What is full empties, and then there is room again.
    let ids = |list: &Value| list["sessions"].as_array().cloned().unwrap_or_default();
    let mut client = server.client();
    for session in ids(&client.ok("session.list", &json!({}))) {
        client.ok("session.close", &json!({"sessionId": session["sessionId"]}));
    }
    let mut last = Ok(Value::Null);
    let again = eventually(Duration::from_secs(30), || {
        last = create(&mut client);
        last.is_ok()
    });
    assert!(again, "sessions can be made again: {last:?}");
    server.signal(Signal::SIGTERM);
    assert!(server.wait(Duration::from_secs(30)).is_some_and(|status| status.success()), "it ends");
    let left = server.left_after(Duration::from_secs(5));
    assert!(left.is_empty(), "{}", left.join("; "));
}
