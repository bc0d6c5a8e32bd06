//! What one session or one client does to the server that all share: each attack ends with the server answering and other
//! sessions at work.
//!
//! Invariant: hostile programs run inside sessions only; every attack is beside its control.

use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::support::fixture_user::ORDINARY_UID;
use crate::support::{Feature, Server, Session, Setup, eventually, host, page};

pub fn trials() -> Vec<libtest_mimic::Trial> {
    page(
        "neighbours",
        &[
            ("a program that ended and whose output somebody else keeps filling is answered", borrowed_stdout),
            ("a program whose pipe tells of more than can be read holds up nobody", packets_on_stdout),
            ("a server without free descriptors refuses a session and makes the next", no_descriptors),
            ("descriptors in flight of one session do not end the others, rootless with one id", descriptors_in_flight),
            ("leftovers that fork beside a background execution are ended, and the background goes on", forking_leftovers),
            ("after close nothing of an earlier environment lives, be it held by the background", earlier_environments),
            ("a session that persists nothing has a bounded number of environments for its background", multiplied_limits),
            ("no program changes the limits of init", limits_of_init),
            ("a device can be written to and its node can't be changed", device_nodes),
        ],
    )
}

/// Starts Python that goes on in the background.
fn background(session: &mut Session<'_>, code: &str) -> String {
    let command = json!({"type": "execute_shell", "commandName": "python3", "args": ["-c", code], "background": true,
        "timeoutSeconds": 60});
    session.execute(&command)["executionId"].as_str().expect("an id").to_owned()
}

fn borrowed_stdout() {
    let server = Setup::plain().with_config("# neighbours\n").shared();
    let mut session = Session::python(&server);
    let flood = "import array, os, socket\n\
        s = socket.socket(socket.AF_UNIX); s.bind('/tmp/door'); s.listen(); c = s.accept()[0]\n\
        _, ancillary, _, _ = c.recvmsg(1, 64)\n\
        fd = array.array('i', ancillary[0][2])[0]\n\
        source = os.open('/tmp/source', os.O_RDWR | os.O_CREAT); os.write(source, b'y' * (1 << 20))\n\
        os.fork(); os.fork(); os.set_blocking(fd, False)\n\
        while True:\n\
        \x20 try:\n\
        \x20   while True: os.splice(source, fd, 1 << 20, 0)\n\
        \x20 except BlockingIOError: pass\n";
    background(&mut session, flood);
    // A pipe of 1 MiB is never empty between two reads of 64 KiB while others splice whole pages into it.
    let give = "import array, fcntl, os, socket, time\n\
        fcntl.fcntl(1, 1031, 1 << 20)\n\
        while not os.path.exists('/tmp/door'): time.sleep(0.05)\n\
        time.sleep(0.2)\n\
        s = socket.socket(socket.AF_UNIX); s.connect('/tmp/door')\n\
        s.sendmsg([b'f'], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array('i', [1]))])\n\
        time.sleep(20)\n";
    let begin = Instant::now();
    let answer = session.execute(&json!({"type": "execute_code", "code": give, "timeoutSeconds": 20}));
    assert!(begin.elapsed() < Duration::from_secs(30), "{:?}", begin.elapsed());
    assert_eq!(answer["errorKind"], "output_limit", "the control: the flood came through it: {}", answer["error"]);
    // Connections are dealt to the server's threads in turn: one that hangs is met.
    for _ in 0..4 {
        let mut other = Session::python(&server);
        assert_eq!(other.run("print('works')"), "works");
    }
}

/// The kernel drops what of a packet is not read at once, but counts it until then. Who keeps the pipe open meanwhile is somebody else.
fn packets_on_stdout() {
    let server = Setup::plain().with_config("# neighbours\n").shared();
    let mut session = Session::python(&server);
    let keep = "import socket\n\
        s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM); s.bind('/tmp/door')\n\
        while True: s.recvmsg(1, 64)\n";
    background(&mut session, keep);
    let tell = "import fcntl, os, _socket\n\
        s = _socket.socket(1, 2); s.connect('/tmp/door')\n\
        fcntl.fcntl(1, 1031, 1 << 20)\n\
        os.write(1, b'x' * 65000)\n\
        fcntl.fcntl(1, fcntl.F_SETFL, os.O_WRONLY | os.O_DIRECT)\n\
        os.write(1, b'x' * 4096)\n\
        s.sendmsg([b'f'], [(1, 1, (1).to_bytes(4, 'little'))])\n\
        os._exit(0)\n";
    assert!(eventually(Duration::from_secs(20), || session.run("import os; print(os.path.exists('/tmp/door'))") == "True"));
    let mut cut_short = 0;
    for _ in 0..40 {
        // With its warm interpreter ready a program is likely to have ended before anybody watches its output.
        std::thread::sleep(Duration::from_millis(100));
        let begin = Instant::now();
        let answer = session.execute(&json!({"type": "execute_code", "code": tell, "timeoutSeconds": 20}));
        assert!(begin.elapsed() < Duration::from_secs(15), "it was held up for {:?}", begin.elapsed());
        let length = answer["result"]["stdout"].as_str().map_or(0, str::len);
        assert!(answer["success"] == true && length >= 65_000, "{length}: {} {}", answer["error"], answer["result"]["stderr"]);
        cut_short += usize::from(length < 65_000 + 4096);
        if cut_short >= 8 {
            break;
        }
    }
    assert!(cut_short > 0, "the control: some was told that could not be read");
    assert_eq!(Session::python(&server).run("print('works')"), "works");
}

/// `prlimit` of util-linux: the soft limit on the descriptors of a server or of what is below it.
fn set_descriptors(uid: u32, pid: i32, soft: usize) {
    let mut command = Command::new("prlimit");
    command.uid(uid).gid(uid).args(["--pid", &pid.to_string(), &format!("--nofile={soft}:")]);
    match command.status() {
        Ok(status) => assert!(status.success(), "{pid} is below the fixture"),
        Err(_) => crate::support::trial::skip("prlimit of util-linux is missing"),
    }
}

fn no_descriptors() {
    host().need(Feature::Root);
    let server = Server::start(&Setup::plain());
    let mut sibling = Session::python(&server);
    let mut client = server.client();
    client.ok("session.list", &json!({}));
    let mut refused = 0;
    // From fewer than are open (a lower limit closes none) to more than a session takes.
    for free in 0..20 {
        set_descriptors(0, server.pid(), server.open_descriptors() + free - 8);
        match client.call("session.create", &json!({"language": "bash"})) {
            Ok(created) => drop(client.ok("session.close", &json!({"sessionId": created["sessionId"]}))),
            Err(_) => refused += 1,
        }
        set_descriptors(0, server.pid(), 1024);
        let created = client.ok("session.create", &json!({"language": "bash"}));
        client.ok("session.close", &json!({"sessionId": created["sessionId"]}));
    }
    assert!(refused > 0, "the control: without descriptors there is no session");
    assert_eq!(sibling.run("print('works')"), "works");
    drop(sibling);
    let left = server.end_and_check();
    assert!(left.is_empty(), "{}", left.join("; "));
}

fn descriptors_in_flight() {
    host().need(Feature::Root).need(Feature::OrdinaryUser);
    let server = Server::start(&Setup { uid: Some(ORDINARY_UID), ..Setup::plain() });
    let launcher = crate::support::residue::descendants(server.pid());
    assert_eq!(launcher.len(), 1, "{launcher:?}");
    let mut sibling = Session::python(&server);
    let mut attacker = Session::python(&server);
    let fill = "import array, socket, sys, time\n\
        keep, sent, refusal = [], 0, ''\n\
        fds = array.array('i', [0] * 250)\n\
        while not refusal and len(keep) < 100:\n\
        \x20 pair = socket.socketpair(); keep.append(pair)\n\
        \x20 try:\n\
        \x20   for n in range(2): pair[0].sendmsg([b'f'], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)]); sent += 250\n\
        \x20 except OSError as e: refusal = e.strerror\n\
        open('/tmp/filled', 'w').write(f'{sent} {refusal}')\n\
        time.sleep(30)\n";
    background(&mut attacker, fill);
    std::thread::sleep(Duration::from_secs(2));
    let filled = attacker.read("/tmp/filled");
    assert!(filled.contains("Too many references"), "the control: the attacker meets its own limit: {filled}");
    assert_eq!(sibling.run("print('works')"), "works");
    // As if the launcher had been started with the usual limit: then it can't hand over a control socket now.
    set_descriptors(ORDINARY_UID, launcher[0].identity.0, 1024);
    let refused = server.client().call("session.create", &json!({"language": "bash"}));
    assert!(refused.is_err(), "{refused:?}");
    assert_eq!(sibling.run("print('works')"), "works");
    attacker.close();
    let mut next = Session::python(&server);
    assert_eq!(next.run("print('works')"), "works");
}

/// Says once a second that it lives.
const CLOCK: &str = "import time\nn = 0\nwhile True:\n  n += 1\n  open('/tmp/clock', 'w').write(str(n))\n  time.sleep(0.1)\n";

fn forking_leftovers() {
    host().need(Feature::CgroupPids);
    let server = Setup::plain().with_config("# neighbours\n").shared();
    let mut session = Session::open(&server, &json!({"pidsLimit": 64}));
    background(&mut session, CLOCK);
    let read = json!({"type": "read_file", "path": "/tmp/clock"});
    assert!(eventually(Duration::from_secs(10), || session.execute(&read)["success"] == true), "the control: it goes on");
    // Runs beside the ending: everything that is stopped goes on at once.
    let wake = "import os, signal, time\n\
        while not os.path.exists('/tmp/ended'): time.sleep(0.001)\n\
        end = time.monotonic() + 20\n\
        while time.monotonic() < end: os.kill(-1, signal.SIGCONT)\n";
    background(&mut session, wake);
    let bomb = "import os, signal\n\
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)\n\
        if os.fork():\n\
        \x20 open('/tmp/ended', 'w').close(); os._exit(0)\n\
        for n in range(5):\n\
        \x20 os.fork()\n\
        while True:\n\
        \x20 try:\n\
        \x20   if os.fork(): os._exit(0)\n\
        \x20   os.setsid()\n\
        \x20 except OSError: pass\n";
    let begin = Instant::now();
    session.execute(&json!({"type": "execute_code", "code": bomb, "timeoutSeconds": 15}));
    assert!(begin.elapsed() < Duration::from_secs(15), "{:?}", begin.elapsed());
    let before: u64 = session.read("/tmp/clock").parse().unwrap_or(0);
    std::thread::sleep(Duration::from_secs(1));
    let after: u64 = session.read("/tmp/clock").parse().unwrap_or(0);
    assert!(after > before, "the background was stopped and never went on: {before} {after}");
}

/// Programs below a server whose arguments contain a word.
fn programs_with(server: &Server, word: &str) -> usize {
    let says = |pid: i32| std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let all = crate::support::residue::descendants(server.pid());
    all.iter().filter(|process| String::from_utf8_lossy(&says(process.identity.0)).contains(word)).count()
}

fn earlier_environments() {
    let server = Server::start(&Setup::plain());
    for _ in 0..5 {
        let mut session = Session::open(&server, &json!({"persistFilesystem": false}));
        background(&mut session, "import time\ntime.sleep(54)");
        session.run("print(1)");
        // It was answered before it was executed.
        let goes_on = eventually(Duration::from_secs(10), || programs_with(&server, "sleep(54)") == 1);
        assert!(goes_on, "the control: the background goes on in its own environment");
        let id = json!({"sessionId": session.id});
        session.client.ok("session.close", &id);
        assert_eq!(programs_with(&server, "sleep(54)"), 0, "it lives when close has answered");
    }
    let left = server.end_and_check();
    assert!(left.is_empty(), "{}", left.join("; "));
}

fn multiplied_limits() {
    let server = Setup::plain().with_config("# neighbours\n").shared();
    let mut session = Session::open(&server, &json!({"persistFilesystem": false}));
    for _ in 0..4 {
        background(&mut session, "import time\ntime.sleep(30)");
    }
    session.fails(&json!({"type": "execute_code", "code": "print(1)"}), "limit_exceeded");
    session.client.ok("session.cancel", &json!({"sessionId": session.id}));
    let works = || {
        let answer = session.execute(&json!({"type": "execute_code", "code": "print(1)"}));
        answer["success"] == true
    };
    assert!(eventually(Duration::from_secs(5), works), "the control: with the background gone there is room");
    for _ in 0..12 {
        assert_eq!(session.run("print(1)"), "1", "one after the other there is no bound");
    }
}

fn limits_of_init() {
    host().need(Feature::Python);
    let server = Setup::plain().with_config("# neighbours\n").shared();
    for profile in ["default", "permissive"] {
        let mut session = Session::open(&server, &json!({"profile": profile}));
        let code = "import resource\n\
            print(resource.prlimit(0, resource.RLIMIT_NOFILE)[0] > 0)\n\
            try: resource.prlimit(1, resource.RLIMIT_CPU, (1, 1)); print('changed')\n\
            except PermissionError: print('refused')";
        assert_eq!(session.run(code), "True\nrefused", "{profile}");
    }
}

fn device_nodes() {
    host().need(Feature::Python);
    let server = Setup::plain().with_config("# neighbours\n").shared();
    for profile in ["strict", "default", "permissive"] {
        let mut session = Session::open(&server, &json!({"profile": profile}));
        let code = "import os\n\
            open('/tmp/own', 'w').close(); os.utime('/tmp/own')\n\
            for name in ('null', 'zero', 'full', 'random', 'urandom', 'tty'):\n\
            \x20 try: os.utime('/dev/' + name); print(name, 'changed')\n\
            \x20 except OSError as e: print(end=str(e.errno) + ' ')\n\
            print(open('/dev/null', 'w').write('x'), len(open('/dev/zero', 'rb').read(8)))";
        assert_eq!(session.run(code), "30 30 30 30 30 30 1 8", "{profile}");
        assert_eq!(session.bash("echo x > /dev/null && echo written"), "written", "{profile}");
    }
}
