//! Processes, time, output and descriptors.

use std::time::{Duration, Instant};

use serde_json::json;

use super::{beside_a_sibling, python};
use crate::support::{Feature, Session, eventually, host, pace};

/// Gives a program a name that its descendants inherit, to tell them from what else is in the session.
const NAMED: &str = "open('/proc/self/comm', 'w').write('left')";

/// Number of processes of the session that have this name, seen from inside by a program of its own.
fn named(session: &mut Session<'_>, name: &str) -> u32 {
    let code = format!(
        "import os\ndef name(n):\n  try: return open(f'/proc/{{n}}/comm').read().strip()\n  except OSError: return None\n\
         print(sum(name(n) == {name:?} for n in os.listdir('/proc') if n.isdigit()))"
    );
    session.run(&code).parse().expect("a number")
}

pub fn endless_loop() {
    beside_a_sibling(&json!({}), |session| {
        let begin = Instant::now();
        let command = json!({"type": "execute_code", "code": "while True: pass", "timeoutSeconds": 2});
        let answer = session.fails(&command, "timeout");
        assert_eq!((&answer["success"], &answer["result"]["timedOut"]), (&json!(false), &json!(true)));
        assert!(
            begin.elapsed() >= Duration::from_secs(2) && begin.elapsed() < Duration::from_secs(20) * pace(),
            "{:?}",
            begin.elapsed()
        );
        assert_eq!(session.run("print(1)"), "1");
    });
}

pub fn output_flood() {
    beside_a_sibling(&json!({"profile": "strict"}), |session| {
        assert_eq!(session.ok(&python("print('x' * (2 << 20))"))["exitCode"], 0, "below the limit it may print");
        let answer = session.fails(&python("while True: print('x' * 65536)"), "output_limit");
        assert_eq!(answer["result"]["truncated"]["stdout"], true, "{}", answer["error"]);
        let kept = answer["result"]["stdout"].as_str().map_or(0, str::len);
        assert!(kept <= (1 << 20) + 4096, "{kept} bytes kept");
        session.fails(&python("import sys\nwhile True: sys.stderr.write('x' * 65536)"), "output_limit");
    });
}

pub fn fork_bomb() {
    host().need(Feature::CgroupPids);
    beside_a_sibling(&json!({"pidsLimit": 32}), |session| {
        let some = "import os, time\nfor n in range(8):\n  if os.fork() == 0: time.sleep(0.2); os._exit(0)\nfor n in range(8): os.wait()\nprint('fits')";
        assert_eq!(session.run(some), "fits");
        let bomb = format!("import os\n{NAMED}\nwhile True: os.fork()");
        session.fails(&python(&bomb), "pids_limit");
        assert_eq!(named(session, "left"), 0, "the bomb is gone with its command");
        let bash = json!({"type": "execute_shell", "commandName": "bash", "args": ["-c", "b() { b | b & }; b; sleep 5; exit 1"], "timeoutSeconds": 60});
        let answer = session.execute(&bash);
        assert_eq!(answer["errorKind"], "pids_limit", "{answer}");
        assert_eq!(session.run("print(1)"), "1");
    });
}

pub fn setsid_bomb() {
    host().need(Feature::CgroupPids);
    beside_a_sibling(&json!({"pidsLimit": 32}), |session| {
        let bomb = format!(
            "import os, time\n{NAMED}\nwhile True:\n  try:\n    if os.fork() == 0: os.setsid()\n  except OSError: time.sleep(0.01)"
        );
        let command = json!({"type": "execute_code", "code": bomb, "timeoutSeconds": 3});
        session.fails(&command, "timeout");
        assert_eq!(named(session, "left"), 0, "every descendant is gone with its command");
    });
}

pub fn open_stdout() {
    beside_a_sibling(&json!({}), |session| {
        let begin = Instant::now();
        let code = format!(
            "import os, sys, time\n{NAMED}\nprint(open('/proc/self/comm').read(), end='', flush=True)\n\
             if os.fork() == 0:\n  os.setsid()\n  time.sleep(50)\n"
        );
        assert_eq!(session.ok(&python(&code))["stdout"], "left\n", "the name is taken");
        assert!(begin.elapsed() < Duration::from_secs(10) * pace(), "{:?}", begin.elapsed());
        assert_eq!(named(session, "left"), 0);
        let background = json!({"type": "execute_shell", "commandName": "bash", "args": ["-c", "setsid sleep 5555 & sleep 5555"], "background": true});
        let id = session.execute(&background)["executionId"].clone();
        std::thread::sleep(Duration::from_millis(300));
        session.run("print(1)");
        let kept = eventually(Duration::from_secs(20), || named(session, "sleep") == 2);
        assert!(kept, "a background execution keeps its children");
        session.client.ok("session.cancel", &json!({"sessionId": session.id, "executionId": id}));
    });
}

pub fn threads() {
    host().need(Feature::CgroupPids);
    beside_a_sibling(&json!({"pidsLimit": 32}), |session| {
        let code = "import threading, time\nn = 0\ntry:\n  while n < 200: threading.Thread(target=time.sleep, args=(3,), daemon=True).start(); n += 1\nexcept RuntimeError: pass\nprint(n)";
        let started: u32 = session.run(code).parse().expect("a number");
        assert!((8..32).contains(&started), "{started} threads");
    });
}

pub fn cpu_quota() {
    let measure = "import time\nbegin, used = time.monotonic(), time.process_time()\nwhile time.process_time() - used < 0.6: pass\nprint(time.monotonic() - begin)";
    beside_a_sibling(&json!({"cpuLimit": 0.2}), |session| {
        // Never an absolute time: a fifth of a core takes five times as long as the program computes, load only adds.
        let took: f64 = session.run(measure).parse().expect("seconds");
        assert!(took > 0.6 * 2.5, "0.6 s of computing took {took} s on a fifth of a core");
    });
}

pub fn descriptors() {
    beside_a_sibling(&json!({}), |session| {
        let code = "import os\nn = 0\ntry:\n  while n < 5000000: os.dup(0); n += 1\nexcept OSError as e: print(e.strerror)";
        assert_eq!(session.run(code), "Too many open files");
    });
}
