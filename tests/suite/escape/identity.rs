//! Who a program is: uid, capabilities, namespaces, descriptors, environment.

use std::time::Duration;

use serde_json::{Value, json};

use super::{PROFILES, probe_under};
use crate::support::residue::descendants;
use crate::support::{Feature, Server, Session, Setup, eventually, host, page};

pub fn trials() -> Vec<libtest_mimic::Trial> {
    page(
        "escape",
        &[
            ("a program is 65534, 1000 or root of its own user namespace, as its profile says", uid),
            ("a session's uids are a range of its own on the host", host_uid_range),
            ("no capability is held; the control under permissive holds some", capabilities),
            ("no_new_privs is set and seccomp filters, under every profile", status),
            ("exactly the descriptors 0, 1 and 2 are open", descriptors),
            ("the pid namespace holds only the session, pid 1 is init", pid_namespace),
            ("the only interface is loopback: up by default, down under strict", network),
            ("the host name, ipc and cgroup of the host do not show", other_namespaces),
            ("the server's environment does not leak", environment),
            ("init can't be killed, stopped or traced, a child of one's own can", init_out_of_reach),
            ("after a file command init has no capability until anything else is asked of it", rights_of_init),
            ("two sessions see nothing of each other", sessions_apart),
        ],
    )
}

fn uid() {
    for (profile, uid) in [("strict", 65534), ("default", 1000), ("permissive", 0)] {
        let told = probe_under(profile, "print(json.dumps([os.getuid(), os.geteuid(), os.getgid(), os.getresuid()[2]]))");
        assert_eq!(told, json!([uid, uid, uid, uid]), "{profile}");
    }
}

fn host_uid_range() {
    host().need(Feature::Root);
    let server = Setup::plain().shared();
    let outer = |session: &mut Session<'_>| {
        let map = session.run("print(open('/proc/self/uid_map').read())");
        map.split_whitespace().nth(1).and_then(|word| word.parse::<u64>().ok()).expect("an outer uid")
    };
    let (mut one, mut two) = (Session::python(&server), Session::python(&server));
    let (first, second) = (outer(&mut one), outer(&mut two));
    assert!(first >= 65536 && second >= 65536, "no uid of the host's accounts: {first} {second}");
    assert!(first.abs_diff(second) >= 65536, "the ranges overlap: {first} {second}");
}

/// One field of /proc/self/status under a profile.
fn status_field(profile: &str, field: &str) -> String {
    let code = format!("print(json.dumps([l.split()[1] for l in open('/proc/self/status') if l.startswith('{field}:')][0]))");
    probe_under(profile, &code).as_str().expect("text").to_owned()
}

fn capabilities() {
    for field in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        for profile in ["strict", "default"] {
            assert_eq!(status_field(profile, field), "0000000000000000", "{profile} {field}");
        }
    }
    assert_ne!(status_field("permissive", "CapEff"), "0000000000000000", "the control");
    // CAP_SYS_ADMIN, CAP_SYS_PTRACE, CAP_SYS_MODULE, CAP_NET_ADMIN and CAP_SYS_RAWIO stay out even there.
    let effective = u64::from_str_radix(&status_field("permissive", "CapEff"), 16).expect("hexadecimal");
    for bit in [21, 19, 16, 12, 17] {
        assert_eq!(effective & (1 << bit), 0, "capability {bit} under permissive");
    }
}

fn status() {
    for profile in PROFILES {
        assert_eq!(
            (status_field(profile, "NoNewPrivs"), status_field(profile, "Seccomp")),
            ("1".into(), "2".into()),
            "{profile}"
        );
    }
}

fn descriptors() {
    // The listing itself opens one more, whose number is the lowest free one.
    let open = probe_under("default", "print(json.dumps(sorted(map(int, os.listdir('/proc/self/fd')))))");
    assert_eq!(open, json!([0, 1, 2, 3]));
    let server = Setup::plain().shared();
    let mut session = Session::python(&server);
    let inherited = session.bash("exec 3</dev/null; ls /proc/self/fd | wc -l");
    assert_eq!(inherited, "5", "the control: an inherited descriptor shows");
}

fn pid_namespace() {
    let pids =
        probe_under("default", "print(json.dumps([os.getpid(), sorted(int(n) for n in os.listdir('/proc') if n.isdigit())]))");
    let all = pids[1].as_array().expect("a list");
    assert!(all.len() <= 4 && all[0] == 1, "{pids}");
    assert!(pids[0].as_u64().is_some_and(|pid| pid < 1000), "{pids}");
}

fn network() {
    let code = "names = sorted(l.split(':')[0].strip() for l in open('/proc/net/dev') if ':' in l)\n\
                import socket\n\
                try:\n  s = socket.socket(); s.bind(('127.0.0.1', 0)); s.listen(); c = socket.create_connection(s.getsockname(), 2); up = 'up'\n\
                except OSError as e: up = errno.errorcode.get(e.errno, 'timeout')\n\
                try: socket.create_connection(('10.0.0.1', 80), 2); out = 'out'\n\
                except OSError as e: out = errno.errorcode.get(e.errno, 'timeout')\n\
                print(json.dumps([names, up, out]))";
    let told = probe_under("default", code);
    assert_eq!((&told[0], &told[1]), (&json!(["lo"]), &json!("up")), "the control: loopback works");
    assert_eq!(told[2], "ENETUNREACH", "{told}");
    let strict = probe_under("strict", code);
    assert!(strict[0] == json!(["lo"]) && strict[1] != "up", "{strict}");
}

fn other_namespaces() {
    let told = probe_under(
        "default",
        "print(json.dumps([os.uname().nodename, open('/proc/self/cgroup').read(), open('/proc/sysvipc/shm').read().count(chr(10))]))",
    );
    let host_name = nix::unistd::gethostname().expect("the host has a name").to_string_lossy().into_owned();
    assert_ne!(told[0], host_name.as_str());
    assert!(!told[1].as_str().expect("text").contains("codebeaker"), "the cgroup path of the host shows: {told}");
    assert_eq!(told[2], 1, "only the heading: {told}");
}

fn environment() {
    let server =
        Setup::plain().with_variable("CODEBEAKER_LOG_FILTER", "info").with_variable("HOST_CANARY", "leaked-word").shared();
    let mut session = Session::open(&server, &json!({"env": {"OWN": "control"}}));
    let environment = session.run_json("import json, os; print(json.dumps(dict(os.environ)))");
    assert_eq!(environment["OWN"], "control");
    let text = environment.to_string();
    assert!(!text.contains("leaked-word") && !text.contains("CODEBEAKER") && !text.contains(&server.token), "{text}");
    let init = session.run("try: print(open('/proc/1/environ').read())\nexcept OSError as e: print(e.strerror)");
    assert!(!init.contains("leaked-word") && !init.contains("CODEBEAKER"), "{init}");
}

fn init_out_of_reach() {
    let code = r#"
def attempt(f):
    try: return str(f())
    except OSError as e: return errno.errorcode[e.errno]
import time
child = os.fork()
if child == 0: time.sleep(60)
told = {"memory": attempt(lambda: open('/proc/1/mem', 'rb').read(1)), "root": attempt(lambda: os.listdir('/proc/1/root')),
        "descriptors": attempt(lambda: os.listdir('/proc/1/fd')), "own memory": attempt(lambda: open('/proc/self/mem', 'rb').name)}
for name in ('SIGKILL', 'SIGSTOP', 'SIGTERM', 'SIGSEGV'): told[name] = attempt(lambda: os.kill(1, getattr(signal, name)))
told["attach"] = call(101, 16, 1, 0, 0)[1]
told["own child"] = attempt(lambda: os.kill(child, signal.SIGKILL))
os.waitpid(child, 0)
print(json.dumps(told))"#;
    for profile in PROFILES {
        let told = probe_under(profile, code);
        for wall in ["memory", "root", "descriptors"] {
            assert!(told[wall] == "EACCES" || told[wall] == "EPERM", "{profile} {wall}: {told}");
        }
        assert_eq!(told["attach"], "EPERM", "{profile}: {told}");
        assert_eq!((&told["own child"], &told["own memory"]), (&json!("None"), &json!("/proc/self/mem")), "the controls");
    }
    // The signals are either refused or have no effect; that the session still answers is the proof.
    let server = Setup::plain().shared();
    let mut session = Session::open(&server, &json!({"profile": "permissive"}));
    session.bash("kill -KILL 1; kill -STOP 1; kill -TERM 1; kill -SEGV 1; true");
    assert_eq!(session.bash("echo alive"), "alive");
}

fn sessions_apart() {
    let server = Setup::plain().shared();
    let (mut one, mut two) = (Session::python(&server), Session::python(&server));
    one.write("/workspace/secret", "of one");
    one.write("/tmp/secret", "of one");
    one.write("/dev/shm/secret", "of one");
    let listen = "import socket, time\ns = socket.socket(); s.bind(('127.0.0.1', 4999)); s.listen()\nu = socket.socket(socket.AF_UNIX); u.bind('\\0codebeaker-test'); u.listen()\ntime.sleep(30)";
    one.write("listen.py", listen);
    one.ok(&json!({"type": "execute_shell", "commandName": "python3", "args": ["listen.py"], "background": true}));
    let reach = "import json, os, socket, time\n\
                 def attempt(family, address):\n\
                 \x20 try: socket.socket(family).connect(address); return True\n\
                 \x20 except OSError: return False\n\
                 def all(): return [attempt(socket.AF_INET, ('127.0.0.1', 4999)), attempt(socket.AF_UNIX, '\\0codebeaker-test')] + [os.path.exists(d + '/secret') for d in ('/workspace', '/tmp', '/dev/shm')]\n\
                 told = all()\n\
                 for n in range(40):\n\
                 \x20 if told[0]: break\n\
                 \x20 time.sleep(0.05); told = all()\n\
                 print(json.dumps(told))";
    assert_eq!(one.run_json(reach)[0], true, "the control: within one session the listener is reached");
    assert_eq!(two.run_json(reach), json!([false, false, false, false, false]));
    let processes = two.bash("for p in /proc/[0-9]*; do tr '\\0' ' ' < $p/cmdline; echo; done");
    assert!(!processes.contains("listen.py"), "{processes}");
    assert!(two.created["environmentId"] != one.created["environmentId"] && one.created != Value::Null);
}

/// Init keeps the rights of file commands from one to the next; whatever else it does needs its own, which nobody may miss.
fn rights_of_init() {
    host().need(Feature::Root);
    let server = Server::start(&Setup::without_pool());
    let mut session = Session::python(&server);
    let launcher = server.launcher().expect("a launcher");
    let below = descendants(launcher);
    let init =
        below.iter().find(|process| process.parent == launcher && !process.zombie).expect("the session's init").identity.0;
    let field = |name: &str| {
        let status = std::fs::read_to_string(format!("/proc/{init}/status")).expect("it lives");
        let line = status.lines().find_map(|line| line.strip_prefix(name)).expect("a field of that name");
        line.split_whitespace().map(str::to_owned).collect::<Vec<String>>()
    };
    let has_own = || field("CapEff:") != ["0000000000000000"] && field("Uid:")[0] == field("Uid:")[3];
    assert!(has_own(), "the control");
    let background = json!({"type": "execute_shell", "commandName": "sleep", "args": ["1111"], "background": true});
    let background = session.execute(&background)["executionId"].clone();
    let has_theirs = |session: &mut Session<'_>| {
        // What a program that starts has to say may reach init after it.
        eventually(Duration::from_secs(5), || {
            session.write("a.txt", "one");
            field("CapEff:") == ["0000000000000000"] && field("Uid:")[0] != field("Uid:")[3]
        })
    };
    assert!(has_theirs(&mut session), "as the programs are");
    assert_eq!(session.read("a.txt"), "one");
    let cancel = json!({"sessionId": session.id, "executionId": background});
    session.client.ok("session.cancel", &cancel);
    let ended = || descendants(init).iter().all(|process| process.zombie);
    assert!(eventually(Duration::from_secs(5), ended), "a program of another user is ended: {:?}", descendants(init));
    assert!(has_own());
    // One that ends by itself, and leaves one that does not, when init has heard of nothing but files.
    let line = "setsid sleep 2222 >/dev/null 2>&1 & sleep 1";
    let leaving = json!({"type": "execute_shell", "commandName": "bash", "args": ["-c", line], "background": true});
    session.execute(&leaving);
    assert!(has_theirs(&mut session) && !descendants(init).is_empty(), "the control");
    let ended = || descendants(init).iter().all(|process| process.zombie);
    assert!(eventually(Duration::from_secs(10), ended), "what a program leaves is ended with it: {:?}", descendants(init));
    session.write("b.py", "print(2)");
    assert_eq!((session.run("print(1)"), session.bash("python3 b.py")), ("1".into(), "2".into()));
    session.close();
}
