//! The kernel's surface: refused calls with the errno that SECURITY.md promises, socket families, /proc and terminals.

use serde_json::{Value, json};

use super::{PROFILES, probe_under};
use crate::support::{Feature, host, page};

pub fn trials() -> Vec<libtest_mimic::Trial> {
    page(
        "escape",
        &[
            ("mount, namespaces, bpf, keys, io_uring, perf and the like are EPERM under every profile", refused_calls),
            ("clone3 and unknown calls are ENOSYS, clone with namespaces is EPERM", clone_calls),
            ("socket families are those of the profile", socket_families),
            ("a socket family hidden in the upper half of its argument is refused too", upper_half),
            ("TIOCSTI and TIOCLINUX are refused, another ioctl is not", terminal_injection),
            ("i386 calls end the program and x32 numbers are ENOSYS", other_abis),
            ("/proc is masked and read-only, /sys and the cgroup tree are not there", proc_and_sys),
            ("device nodes can't be made, and only harmless ones are there", devices),
            ("a set-uid program gains nothing", setuid),
        ],
    )
}

fn refused_calls() {
    host().need(Feature::X86);
    let code = r#"
numbers = {"mount": 165, "umount2": 166, "pivot_root": 155, "unshare": 272, "setns": 308, "bpf": 321, "keyctl": 250, "add_key": 248,
  "request_key": 249, "io_uring_setup": 425, "io_uring_enter": 426, "io_uring_register": 427, "perf_event_open": 298,
  "userfaultfd": 323, "open_tree": 428, "move_mount": 429, "fsopen": 430, "fsmount": 432, "mount_setattr": 442,
  "kexec_load": 246, "init_module": 175, "finit_module": 313, "delete_module": 176, "swapon": 167, "acct": 163}
real = {"unshare": [0x10000000], "setns": [0, 0x10000000], "mount": [b"none", b"/tmp", b"tmpfs", 0, 0], "umount2": [b"/proc", 2]}
told = {name: call(nr, *real.get(name, [0, 0, 0, 0, 0])) for name, nr in numbers.items()}
told["getpid"] = call(39)
print(json.dumps(told))"#;
    for profile in PROFILES {
        let told = probe_under(profile, code);
        for (name, answer) in told.as_object().expect("a map") {
            let expected = if name == "getpid" { "ok" } else { "EPERM" };
            assert_eq!(answer[1], expected, "{profile}: {name}");
        }
    }
}

fn clone_calls() {
    host().need(Feature::X86);
    let code = "print(json.dumps({'clone3': call(435, 0, 0)[1], 'unknown': call(999)[1], \
                'user': call(56, 0x10000000 | 17, 0, 0, 0, 0)[1], 'fork': forked(lambda: 'ok')}))";
    for profile in PROFILES {
        let told = probe_under(profile, code);
        assert_eq!(told, json!({"clone3": "ENOSYS", "unknown": "ENOSYS", "user": "EPERM", "fork": "ok"}), "{profile}");
    }
}

fn socket_families() {
    host().need(Feature::X86);
    let code = "print(json.dumps({n: [call(41, f, t, p)[1] for t in (1, 2, 3)] for n, f, p in \
                [('UNIX', 1, 0), ('INET', 2, 0), ('INET6', 10, 0), ('NETLINK', 16, 0), ('PACKET', 17, 0), ('ALG', 38, 0), ('VSOCK', 40, 0), \
                ('KEY', 15, 2), ('BLUETOOTH', 31, 0), ('CAN', 29, 0), ('TIPC', 30, 0), ('RDS', 21, 0), ('SMC', 43, 0), ('XDP', 44, 0)]}))";
    for profile in PROFILES {
        let told = probe_under(profile, code);
        for family in ["PACKET", "ALG", "VSOCK", "KEY", "BLUETOOTH", "CAN", "TIPC", "RDS", "SMC", "XDP"] {
            assert_eq!(told[family][0], "EPERM", "{profile} {family}: {told}");
        }
        assert_eq!(told["UNIX"][0], "ok", "{profile}: {told}");
        let stream = if profile == "strict" { "EPERM" } else { "ok" };
        assert_eq!((&told["INET"][0], &told["INET6"][1]), (&json!(stream), &json!(stream)), "{profile}: {told}");
    }
    assert_eq!(probe_under("default", code)["INET"][2], "EPERM", "a raw socket is no stream and no datagram");
}

fn upper_half() {
    host().need(Feature::X86);
    let code = "print(json.dumps([call(41, f | (1 << 32), 1, 0)[1] for f in (1, 38, 40)]))";
    for profile in PROFILES {
        let told = probe_under(profile, code);
        assert_eq!((&told[1], &told[2]), (&json!("EPERM"), &json!("EPERM")), "{profile}: {told}");
    }
}

fn terminal_injection() {
    let code = "import pty, fcntl\n\
                master, slave = pty.openpty()\n\
                print(json.dumps([call(16, slave, 0x5412, b'x')[1], call(16, slave, 0x541C, b'x')[1], call(16, slave, 0x5412 | (1 << 32), b'x')[1], os.isatty(slave)]))";
    for profile in PROFILES {
        assert_eq!(probe_under(profile, code), json!(["EPERM", "EPERM", "EPERM", true]), "{profile}");
    }
}

fn other_abis() {
    host().need(Feature::X86);
    let code = "print(json.dumps({'x32': [call(0x40000000 | nr)[1] for nr in (0, 1, 39, 60, 512)], 'native': call(39)[1]}))";
    let told = probe_under("default", code);
    assert_eq!(told["native"], "ok");
    assert!(told["x32"].as_array().is_some_and(|list| list.iter().all(|answer| answer == "ENOSYS")), "{told}");
    let code = r#"
import mmap
def old(nr):
    page = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    page.write(b"\xb8" + nr.to_bytes(4, "little") + b"\xcd\x80\xc3")
    return ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(page)))()
def new(nr):
    page = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    page.write(b"\xb8" + nr.to_bytes(4, "little") + b"\x0f\x05\xc3")
    return ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(page)))()
print(json.dumps([forked(lambda: old(20)), forked(lambda: new(39) > 0)]))"#;
    let told = probe_under("default", code);
    let died = told[0].as_str().and_then(|text| text.strip_prefix("died:")).and_then(|status| status.parse::<u32>().ok());
    assert_eq!(died.map(|status| status & 0x7f), Some(31), "SIGSYS ends it: {told}");
    assert_eq!(told[1], true, "the control: the same page with the 64-bit call lives");
}

fn proc_and_sys() {
    let code = r"
def attempt(f):
    try: return f()
    except OSError as e: return errno.errorcode[e.errno]
masked = {p: attempt(lambda: len(open(p, 'rb').read(16))) for p in ('/proc/kcore', '/proc/keys', '/proc/timer_list', '/proc/kmsg', '/proc/sysrq-trigger', '/proc/latency_stats') if os.path.lexists(p)}
write = {p: attempt(lambda: open(p, 'w').write('1') and 'wrote') for p in ('/proc/sys/kernel/core_pattern', '/proc/sysrq-trigger', '/proc/sys/kernel/hostname', '/proc/irq/default_smp_affinity', '/proc/sys/vm/drop_caches')}
print(json.dumps([masked, write, attempt(lambda: sorted(os.listdir('/sys'))), len(open('/proc/meminfo').read()) > 0, attempt(lambda: open('/proc/self/comm', 'w').write('x'))]))";
    for profile in PROFILES {
        let told = probe_under(profile, code);
        let open: Vec<(&String, &Value)> = told[0]
            .as_object()
            .expect("a map")
            .iter()
            .filter(|(_, answer)| answer.as_u64().is_some_and(|read| read > 0))
            .collect();
        assert!(open.is_empty(), "{profile}: readable: {open:?}");
        let written: Vec<&String> =
            told[1].as_object().expect("a map").iter().filter(|(_, answer)| *answer == "wrote").map(|(path, _)| path).collect();
        assert!(written.is_empty(), "{profile}: writable: {written:?}");
        assert!(told[2] == "ENOENT" || told[2] == json!([]), "{profile}: {}", told[2]);
        assert_eq!(
            (&told[3], &told[4]),
            (&json!(true), &json!(1)),
            "the controls: an open file, and a writable one of one's own"
        );
    }
}

fn devices() {
    let code = r#"
def attempt(f):
    try: f(); return "ok"
    except OSError as e: return errno.errorcode[e.errno]
names = sorted(os.listdir('/dev'))
print(json.dumps([names, attempt(lambda: os.mknod('/tmp/mem', 0o20600, os.makedev(1, 1))), attempt(lambda: os.mknod('/tmp/disk', 0o60600, os.makedev(8, 0))), attempt(lambda: os.mkfifo('/tmp/fifo'))]))"#;
    for profile in PROFILES {
        let told = probe_under(profile, code);
        for name in told[0].as_array().expect("a list") {
            let harmless = [
                "null", "zero", "full", "random", "urandom", "tty", "console", "ptmx", "pts", "shm", "mqueue", "fd", "stdin",
                "stdout", "stderr", "core",
            ];
            assert!(harmless.iter().any(|word| name == *word), "{profile}: /dev/{name}");
        }
        assert!(told[1] != "ok" && told[2] != "ok", "{profile}: {told}");
        assert_eq!(told[3], "ok", "the control: a fifo can be made");
    }
}

fn setuid() {
    let code = "import subprocess\n\
                found = [p for p in ('/usr/bin/su', '/usr/bin/passwd', '/usr/bin/mount', '/bin/su') if os.path.exists(p)]\n\
                print(json.dumps([os.geteuid(), [open('/proc/self/status').read().count('NoNewPrivs:\\t1')], \
                os.statvfs('/').f_flag & os.ST_NOSUID, os.statvfs('/workspace').f_flag & os.ST_NOSUID]))";
    let told = probe_under("default", code);
    assert_eq!((&told[1], told[0] != 0), (&json!([1]), true));
    assert!(told[2] != 0 && told[3] != 0, "both file systems are nosuid: {told}");
}
