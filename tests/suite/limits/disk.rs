//! Memory, bytes of disk and inodes.

use serde_json::json;

use super::{beside_a_sibling, python};
use crate::support::{Feature, host};

pub fn memory_heap() {
    host().need(Feature::CgroupMemory);
    beside_a_sibling(&json!({"memoryLimitMB": 128}), |session| {
        assert_eq!(session.run("x = b'a' * (40 << 20); print(len(x))"), "41943040", "below the limit it works");
        let answer = session.fails(&python("x = []\nwhile True: x.append(b'a' * (1 << 20))"), "out_of_memory");
        assert_eq!(answer["result"]["oomKilled"], true, "{answer}");
        assert!(answer["result"]["limit"].is_string(), "the limit is named: {answer}");
        // The program's child is the one that grows: the verdict is the same.
        let child = "import os, sys\npid = os.fork()\nif pid == 0:\n  x = []\n  while True: x.append(b'a' * (1 << 20))\nsys.exit(os.waitpid(pid, 0)[1] and 1)";
        let answer = session.execute(&python(child));
        assert_eq!((&answer["success"], &answer["errorKind"]), (&json!(false), &json!("out_of_memory")), "{answer}");
        assert_eq!(session.run("print(1)"), "1", "the session lives on");
    });
}

/// What the kernel ends is what maps most, and each of these maps less than init; that they are programs counts for half of the limit, which has to be
/// more than what init maps, also in a build without optimisation.
pub fn memory_in_small_pieces() {
    host().need(Feature::CgroupMemory);
    beside_a_sibling(&json!({"memoryLimitMB": 48, "pidsLimit": 1000}), |session| {
        let many = json!({"type": "execute_shell", "commandName": "sh", "args": ["-c", "while :; do sleep 60 & done"], "timeoutSeconds": 8});
        let answer = session.execute(&many);
        let kind = answer["errorKind"].as_str().unwrap_or_default();
        // A shell that is refused a process for want of memory ends by itself or goes on trying.
        let kinds = ["out_of_memory", "nonzero_exit", "timeout"];
        assert!(answer["success"] == false && kinds.contains(&kind), "{answer}");
        let peak = answer["result"]["usage"]["memoryPeakBytes"].as_u64();
        assert!(
            peak.is_none_or(|peak| peak > 40 << 20),
            "the control, where the kernel tells it: memory was used up: {answer}"
        );
        assert_eq!(session.bash("echo lives"), "lives");
    });
}

pub fn memory_tmpfs() {
    beside_a_sibling(&json!({"memoryLimitMB": 128}), |session| {
        for directory in ["/dev/shm", "/tmp"] {
            let code = format!("f = open('{directory}/small', 'wb'); f.write(b'x' * (4 << 20)); f.close(); print('fits')");
            assert_eq!(session.run(&code), "fits");
            let code = format!("f = open('{directory}/big', 'wb')\nwhile True: f.write(b'x' * (1 << 20))");
            let answer = session.execute(&python(&code));
            assert!(["disk_full", "out_of_memory"].iter().any(|kind| answer["errorKind"] == *kind), "{directory}: {answer}");
            // The quota is full, so there is no room for a program's text either; what deletes needs none.
            for name in ["big", "small"] {
                session.ok(&json!({"type": "delete_file", "path": format!("{directory}/{name}")}));
            }
        }
        let shared = "from multiprocessing import shared_memory as s\nx = []\nwhile True:\n  m = s.SharedMemory(create=True, size=8 << 20)\n  m.buf[:] = b'x' * len(m.buf)\n  x.append(m)";
        let answer = session.execute(&python(shared));
        assert!(answer["success"] == false && answer["errorKind"] != "timeout", "{answer}");
    });
}

pub fn full() {
    beside_a_sibling(&json!({"diskLimitMB": 16}), |session| {
        assert_eq!(session.run("open('fits', 'wb').write(b'x' * (8 << 20)); print('fits')"), "fits");
        session.fails(&python("f = open('big', 'wb')\nwhile True: f.write(b'x' * (1 << 20))"), "disk_full");
        session.fails(&json!({"type": "write_file", "path": "more", "content": "y".repeat(4 << 20)}), "disk_full");
        assert_eq!(session.bash("test -s more || echo absent"), "absent", "half a file is not left in its place");
        session.fails(&json!({"type": "copy_file", "source": "fits", "destination": "twin"}), "disk_full");
        session.ok(&json!({"type": "delete_file", "path": "big"}));
        session.write("after", "there is room again");
    });
}

pub fn inodes() {
    beside_a_sibling(&json!({"profile": "strict"}), |session| {
        assert_eq!(session.run("[open('%d' % n, 'w').close() for n in range(1000)]; print('fits')"), "fits");
        session.fails(&python("n = 0\nwhile True:\n  n += 1\n  open('more%d' % n, 'w').close()"), "disk_full");
        // The program's own text is gone, and the kernel may give an inode back late: there is room for a few entries, not for more.
        let refused = (0..20).any(|n| {
            session.execute(&json!({"type": "create_directory", "path": format!("another{n}")}))["errorKind"] == "disk_full"
        });
        assert!(refused, "the quota holds for file commands too");
        session.ok(&json!({"type": "delete_file", "path": "more1"}));
        session.write("after", "");
    });
}

pub fn deleted_but_open() {
    beside_a_sibling(&json!({"diskLimitMB": 16}), |session| {
        let code = "import os\nf = open('ghost', 'wb')\nos.unlink('ghost')\nwhile True: f.write(b'x' * (1 << 20)); f.flush()";
        // The space comes back with the program's end, so the quota is not full when its verdict is made.
        let answer = session.fails(&python(code), "nonzero_exit");
        assert!(answer["result"]["stderr"].as_str().unwrap_or_default().contains("No space left"), "{answer}");
        assert_eq!(
            session.run("open('fits', 'wb').write(b'x' * (8 << 20)); print('fits')"),
            "fits",
            "it went with its program"
        );
    });
}

pub fn sparse() {
    beside_a_sibling(&json!({"diskLimitMB": 16}), |session| {
        assert_eq!(session.run("f = open('sparse', 'wb'); f.truncate(1 << 40); print('made')"), "made");
        let read = session.ok(&json!({"type": "read_file", "path": "sparse", "length": 4}));
        assert_eq!((&read["size"], &read["truncated"]), (&json!(1_u64 << 40), &json!(true)));
        let whole = session.execute(&json!({"type": "read_file", "path": "sparse"}));
        assert!(whole["success"] == false || whole["result"]["truncated"] == true, "a read is bounded: {}", whole["errorKind"]);
    });
}
