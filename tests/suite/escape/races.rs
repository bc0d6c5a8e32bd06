//! File commands against a program of the same session that moves, grows, leases or piles up what they work on.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::{Feature, Session, Setup, eventually, host, pace, page};

pub fn trials() -> Vec<libtest_mimic::Trial> {
    page(
        "escape",
        &[
            ("a racer that exchanges a directory with a symlink gains nothing from file commands", exchange),
            ("a tree thousands deep is listed within bounds and deleted whole", deep_tree),
            ("a file that grows while it is read or copied holds nothing up", growing),
            ("the quota holds for append, and what was written before stays", append_quota),
            ("a leased file is answered at once, and read when the lease is gone", leased),
        ],
    )
}

const CANARY: &str = "canary beyond the session";

/// Starts Python in the background and waits until it has written `ready`.
fn background(session: &mut Session<'_>, code: &str) -> Value {
    session.write("background.py", code);
    let command = json!({"type": "execute_shell", "commandName": "python3", "args": ["background.py"], "background": true});
    let execution = session.execute(&command)["executionId"].clone();
    let read = json!({"type": "read_file", "path": "ready"});
    assert!(eventually(Duration::from_secs(10), || session.execute(&read)["success"] == true), "it does not begin");
    execution
}

/// Ends a background program.
fn end(session: &mut Session<'_>, execution: &Value) {
    let target = json!({"sessionId": session.id, "executionId": execution});
    session.client.ok("session.cancel", &target);
}

fn exchange() {
    host().need(Feature::Python);
    let server = Setup::plain().shared();
    let outside = server.outside().join("raced");
    std::fs::create_dir_all(&outside).expect("the fixture's directory is writable");
    let canary = outside.join("f");
    std::fs::write(&canary, CANARY).expect("the fixture's directory is writable");
    let mut session = Session::python(&server);
    session.write("a/f", "own");
    // One link leads to the host's directory, another to what init itself has open.
    session.bash(&format!("ln -s ../../../..{} b; ln -s /proc/1/root{} c", outside.display(), outside.display()));
    let racer = "import ctypes\nlibc = ctypes.CDLL(None, use_errno=True)\nswap = lambda x, y: libc.renameat2(-100, x, -100, y, 2)\n\
                 assert swap(b'a', b'b') == 0 and swap(b'a', b'b') == 0\nopen('ready', 'w').write('1')\n\
                 while True:\n  for other in (b'b', b'c'): swap(b'a', other); swap(b'a', other)\n";
    let racing = background(&mut session, racer);
    let (mut own, mut refused) = (0, 0);
    let begin = Instant::now();
    // Two seconds of it at least; where few rounds fit into them, until both sides were met.
    while begin.elapsed() < Duration::from_secs(2)
        || ((own == 0 || refused == 0) && begin.elapsed() < Duration::from_secs(5) * pace())
    {
        let read = session.execute(&json!({"type": "read_file", "path": "a/f"}));
        assert!(!read.to_string().contains(CANARY), "{read}");
        if read["success"] == true {
            own += 1;
        } else {
            refused += 1;
        }
        session.execute(&json!({"type": "copy_file", "source": "a/f", "destination": "copy"}));
        session.execute(&json!({"type": "write_file", "path": "a/f", "content": "own", "mode": "Append"}));
        session.execute(&json!({"type": "write_file", "path": "a/g", "content": "own"}));
        session.execute(&json!({"type": "delete_file", "path": "a/g"}));
        session.execute(&json!({"type": "list_directory", "path": "a", "recursive": true}));
    }
    end(&mut session, &racing);
    assert!(own > 0 && refused > 0, "the control: the race was met on both sides, {own} and {refused} times");
    let copied = session.execute(&json!({"type": "read_file", "path": "copy"}));
    assert!(!copied.to_string().contains(CANARY), "{copied}");
    assert_eq!(std::fs::read_to_string(&canary).expect("the canary lives"), CANARY);
    assert_eq!(std::fs::read_dir(&outside).expect("it is there").count(), 1, "nothing was made beside it");
}

fn deep_tree() {
    host().need(Feature::Python);
    let server = Setup::plain().shared();
    let mut session = Session::python(&server);
    // 20,000 levels on an ordinary host; where each costs more, still more than a path could hold.
    let depth = (20_000 / pace()).max(1_500);
    // From the leaf up: what works at the bottom of such a tree costs the kernel a step for every level.
    session.run(&format!(
        "import os\nos.mkdir('d')\nfor n in range({}): os.mkdir('up'); os.rename('d', 'up/d'); os.rename('up', 'd')",
        depth - 1
    ));
    let listing = session.execute(&json!({"type": "list_directory", "recursive": true, "limit": 100}));
    assert!(listing["success"] == true && listing["result"]["truncated"] == true, "{listing}");
    let whole = session.execute(&json!({"type": "list_directory", "recursive": true}));
    assert!(whole["success"] == true || whole["errorKind"] == "limit_exceeded", "{}", whole["errorKind"]);
    let deleted = session.ok(&json!({"type": "delete_file", "path": "d"}));
    assert_eq!(deleted["deleted"], depth, "{deleted}");
    assert_eq!(session.bash("test -e d || echo gone"), "gone");
}

fn growing() {
    host().need(Feature::Python);
    let server = Setup::plain().shared();
    let mut session = Session::python(&server);
    let grower = "f = open('growing', 'wb', 0)\nopen('ready', 'w').write('1')\n\
                  while True:\n  f.write(b'x' * 65536)\n  if f.tell() > 100 << 20: f.seek(0); f.truncate()\n";
    let grower = background(&mut session, grower);
    let begin = Instant::now();
    for _ in 0..5 {
        let read = session.ok(&json!({"type": "read_file", "path": "growing", "length": 100_000}));
        assert!(read["content"].as_str().is_some_and(|text| text.len() <= 100_000), "no more than was asked for");
        let copy = session.execute(&json!({"type": "copy_file", "source": "growing", "destination": "copy"}));
        assert!(copy["success"] == true || copy["errorKind"] == "disk_full", "{copy}");
    }
    assert!(begin.elapsed() < Duration::from_secs(20) * pace(), "{:?}", begin.elapsed());
    end(&mut session, &grower);
}

fn append_quota() {
    let server = Setup::plain().shared();
    let mut session = Session::open(&server, &json!({"diskLimitMB": 8}));
    let append = json!({"type": "write_file", "path": "log", "content": "y".repeat(1 << 20), "mode": "Append"});
    let mut taken = 0_u64;
    let refused = loop {
        let answer = session.execute(&append);
        if answer["success"] == false {
            break answer;
        }
        taken += 1;
        assert!(taken <= 8, "{taken} MiB are in 8 MiB");
    };
    assert_eq!(refused["errorKind"], "disk_full", "{refused}");
    assert!(taken >= 4, "only {taken} MiB fit into 8 MiB");
    let size = session.ok(&json!({"type": "read_file", "path": "log", "length": 1}))["size"].as_u64().expect("a size");
    assert!(size >= taken << 20, "{size} bytes are left of {taken} MiB");
    session.ok(&json!({"type": "delete_file", "path": "log"}));
    session.write("after", "there is room again");
}

fn leased() {
    host().need(Feature::Python);
    let server = Setup::plain().shared();
    let mut session = Session::python(&server);
    session.write("held", "leased");
    let holder = "import fcntl, os, signal, time\nsignal.signal(signal.SIGIO, signal.SIG_IGN)\nf = open('held', 'r+')\n\
                  try: fcntl.fcntl(f, fcntl.F_SETLEASE, fcntl.F_WRLCK); word = 'held'\nexcept OSError as e: word = str(e)\n\
                  open('ready', 'w').write(word)\ntime.sleep(60)";
    let holder = background(&mut session, holder);
    assert_eq!(session.read("ready"), "held", "the control: this file system gives leases");
    let begin = Instant::now();
    let mut answers = Vec::new();
    for command in [
        json!({"type": "read_file", "path": "held"}),
        json!({"type": "copy_file", "source": "held", "destination": "copy"}),
        json!({"type": "write_file", "path": "held", "content": "x", "mode": "Append"}),
    ] {
        answers.push(session.execute(&command));
    }
    assert!(begin.elapsed() < Duration::from_secs(5) * pace(), "{:?}: {answers:?}", begin.elapsed());
    assert!(answers.iter().all(|answer| answer["success"] == false), "a lease is an answer of its own: {answers:?}");
    end(&mut session, &holder);
    let read = json!({"type": "read_file", "path": "held"});
    let mut again = || session.execute(&read)["result"]["content"] == "leased";
    assert!(eventually(Duration::from_secs(5), &mut again), "the holder is gone");
}
