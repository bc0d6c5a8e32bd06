//! The warm interpreter: a program finds in it what it finds in a fresh one, and nothing of it is within a program's reach.
//!
//! Every trial proves by the server's own count that the interpreter it speaks of was used, or was not. Read `corpus` for the
//! programs that are run both ways.

mod corpus;
pub mod prestarted;

use std::time::Duration;

use serde_json::{Value, json};

use crate::support::http::request;
use crate::support::{Feature, Server, Session, Setup, eventually, host, page, python};

pub fn trials() -> Vec<libtest_mimic::Trial> {
    page(
        "warm",
        &[
            ("a corpus of programs gives the same by a warm interpreter and by fresh ones", the_same_both_ways),
            ("a program of a warm interpreter begins as fresh as the one before", begins_fresh),
            ("an interpreter is taken down for a program that could tell, and for no other", quick_end),
            ("an interpreter forks in one step where its libraries are known, else in two", steps_of_a_fork),
            ("a library of C that a program loads late has its end", late_library),
            ("what an interpreter has loaded is put into huge pages where the kernel gives them", huge_pages),
            ("modules beside the script and installed since are imported, never those that were loaded before", own_modules),
            ("a variable that is looked at when an interpreter starts takes a fresh one", variables),
            ("a program can't read, trace or take descriptors of the interpreter, of its own child it can", out_of_reach),
            ("whoever kills or stops the interpreter loses no program, and it comes back", killed_and_stopped),
            ("what a program changes of the interpreter from outside, no later program finds", changed_from_outside),
            ("what a session puts in place of modules that were loaded is what its programs import", own_library),
            ("a module that was loaded and that a program changes in place is loaded anew", changed_in_place),
            ("a program of a warm interpreter takes its descendants along, and no other's", descendants),
            ("an interpreter that memory ran out for is replaced, and the verdict is out_of_memory", out_of_memory),
            ("refused calls are named for the program of a warm interpreter that made them", refused_calls),
            ("a program whose source can't be written does not run, and the reason is the source's", no_source),
            ("without `warm.enabled` there is none", off),
        ],
    )
}

/// A server with them wherever the suite runs.
fn on() -> Setup {
    Setup::plain().with_config("[warm]\nenabled = true\n")
}

/// What the server has counted so far.
fn count(server: &Server, sample: &str) -> u64 {
    let token = format!("Bearer {}", server.token);
    let text = request(server.address, "/metrics", &[("Authorization", &token)], None).body;
    let value = text.lines().find_map(|line| line.strip_prefix(sample)?.trim().parse::<f64>().ok());
    value.unwrap_or(0.0) as u64
}

fn programs(server: &Server, by: &str) -> u64 {
    count(server, &format!("codebeaker_warm_programs_total{{by=\"{by}\"}}"))
}

/// Runs programs of the session's language until one of them was carried out by the warm interpreter.
#[track_caller]
fn warmed(server: &Server, session: &mut Session<'_>) {
    let used = eventually(Duration::from_secs(20), || {
        let before = programs(server, "warm");
        assert_eq!(session.ok(&json!({"type": "execute_code", "code": "print(1)"}))["stdout"], "1\n");
        programs(server, "warm") > before
    });
    assert!(used, "no warm interpreter came to be");
}

fn code(text: &str) -> Value {
    json!({"type": "execute_code", "language": "python", "code": text})
}

/// Runs a program that must be carried out as `by` says; the whole CommandResult. One that finds no fork in time is run again: on a
/// busy host the next fork may take longer than a program waits. Meanwhile it may have changed the interpreter from outside, so first
/// there must be one again; and the interpreter that it did not find may pass the next program on, for what changed before.
#[track_caller]
fn carried_out(server: &Server, session: &mut Session<'_>, by: &str, command: &Value) -> Value {
    let mut answer = Value::Null;
    let done = eventually(Duration::from_secs(20), || {
        let others =
            || ["fresh", "passed"].iter().filter(|other| **other != by).map(|other| programs(server, other)).sum::<u64>();
        let before = (programs(server, by), others());
        answer = session.execute(command);
        let after = (programs(server, by), others());
        assert!(after.0 == before.0 + 1 || after.1 == before.1 + 1, "neither as {by} nor afresh: {answer}");
        if after.0 == before.0 && by == "warm" {
            warmed(server, session);
        }
        after.0 > before.0
    });
    assert!(done, "it was never carried out as {by}: {answer}");
    answer
}

fn the_same_both_ways() {
    host().need(Feature::Python);
    let setup = |enabled: bool| Setup::plain().with_config(&format!("[warm]\nenabled = {enabled}\n"));
    let (warm, fresh) = (Server::start(&setup(true)), Server::start(&setup(false)));
    let mut different = Vec::new();
    for profile in ["default", "strict"] {
        let parameters = json!({"profile": profile, "env": {"SESSION": "s"}});
        let mut one = Session::open(&warm, &parameters);
        let mut other = Session::open(&fresh, &parameters);
        for (name, command) in corpus::programs() {
            // What a program left behind (an ended interpreter, a file) must not decide about the next.
            warmed(&warm, &mut one);
            let by_warm = corpus::essence(&carried_out(&warm, &mut one, "warm", &command));
            let by_fresh = corpus::essence(&other.execute(&command));
            if by_warm != by_fresh {
                different.push(format!("{profile}: {name}\n  warm  {by_warm}\n  fresh {by_fresh}"));
            }
        }
    }
    assert!(different.is_empty(), "{}", different.join("\n"));
    assert_eq!(programs(&fresh, "warm"), 0);
}

/// A hook of audit hears how an interpreter is taken down; the file that names it is none that is looked through.
fn quick_end() {
    host().need(Feature::Python);
    let server = Server::start(&on());
    let mut session = Session::python(&server);
    session.write(
        "hook.py",
        "import os, sys\nsys.addaudithook(lambda event, _, say=os.write: event == 'cpython.PyInterpreterState_Clear' and say(1, b'down\\n'))",
    );
    warmed(&server, &mut session);
    let finaliser = "class C:\n    def __del__(self): pass\nheld = C()\n";
    for (more, output) in [("", "end\n"), (finaliser, "end\ndown\n"), ("import gc\n", "end\ndown\n")] {
        let answer = carried_out(&server, &mut session, "warm", &code(&format!("import hook\n{more}print('end')")));
        assert_eq!(answer["result"]["stdout"], output, "{more}: {answer}");
    }
}

/// The configuration of a server with one more language, `own`, which is Python with this preloaded too, and the directory of its file.
fn with_preloaded(module: &str) -> (Setup, tempfile::TempDir) {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let python = include_str!("../../../rootfs/python.toml").replace("name = \"python\"\n", "name = \"own\"\n");
    let python = python.replace("aliases = [\"py\", \"python3\"]", "aliases = []");
    let python = python.replace("preload = [", &format!("preload = [\"{module}\", "));
    std::fs::write(directory.path().join("own.toml"), python).expect("a file");
    let config = format!("[sandbox]\nlanguage_dir = \"{}\"\n[warm]\nenabled = true\n", directory.path().display());
    (Setup { config, ..Setup::plain() }, directory)
}

/// An interpreter that waits for the process between two forks is charged with what that one did; only `readline` needs a library that
/// is in no list.
fn steps_of_a_fork() {
    host().need(Feature::Python);
    let (setup, _directory) = with_preloaded("readline");
    let server = Server::start(&setup);
    let faults = "def of_children(pid):\n    with open(f'/proc/{pid}/stat') as file: return int(file.read().rpartition(')')[2].split()[8])\n\
                  print(sum(map(of_children, both())) > 0, 'readline' in sys.modules)";
    for (language, two) in [("python", "False False\n"), ("own", "True True\n")] {
        let mut session = Session::open(&server, &json!({"language": language}));
        warmed(&server, &mut session);
        let look = json!({"type": "execute_code", "code": format!("{INTERPRETERS}\n{faults}")});
        let answer = carried_out(&server, &mut session, "warm", &look);
        assert_eq!(answer["result"]["stdout"], two, "{language}: {answer}");
    }
}

/// With `ctypes` there from the start a program can load a library that no list has, and keep no object of it.
fn late_library() {
    host().need(Feature::Python).need_programs("c", &["gcc", "as", "ld"]);
    let (setup, _directory) = with_preloaded("ctypes");
    let server = Server::start(&setup);
    let mut session = Session::open(&server, &json!({"language": "own"}));
    session.write(
        "late.c",
        "#include <unistd.h>\n__attribute__((destructor)) static void end(void) { write(1, \"of C\\n\", 5); }\n",
    );
    session
        .ok(&json!({"type": "execute_shell", "commandName": "gcc", "args": ["-shared", "-fPIC", "-o", "late.so", "late.c"]}));
    warmed(&server, &mut session);
    for (load, output) in [
        ("", "end\n"),
        ("ctypes._dlopen('/workspace/late.so', 2)\n", "end\nof C\n"),
        ("ctypes.CDLL(None).dlmopen(-1, b'/workspace/late.so', 2)\n", "end\nof C\n"),
        ("import _ctypes\n_ctypes.dlclose(ctypes._dlopen('/workspace/late.so', 2))\n", "of C\nend\n"),
    ] {
        let code = format!("import ctypes\n{load}print('end')");
        let answer = carried_out(&server, &mut session, "warm", &json!({"type": "execute_code", "code": code}));
        assert_eq!(answer["result"]["stdout"], output, "{answer}");
    }
}

/// By the interpreter's own file, in a process of its own: in a session each fork and the interpreter after it take huge pages apart again where they
/// write, so how many are left there is chance.
fn huge_pages() {
    const PROGRAM: &str = r#"
import io, os, sys, _ctypes
libc = _ctypes.dlopen(None, 2)
collapse = prepare_pages(os, io, _ctypes, lambda name: _ctypes.dlsym(libc, name))
held = [b"%d" % number * 500 for number in range(10000)]
if sys.argv[1] == "collapse": collapse()
print(next(int(line.split()[1]) for line in open("/proc/self/smaps_rollup") if line.startswith("AnonHugePages:")))
"#;
    // With larger pages nothing is put together.
    host().need(Feature::Python).need(Feature::X86);
    let huge_kib = |argument: &str| {
        let program = format!("{}{PROGRAM}", include_str!("../../../src/runtime/native/warm/python_pages.py"));
        let output = std::process::Command::new("/usr/bin/python3").args(["-c", &program, argument]).output().expect("Python");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        text.trim().parse::<u64>().unwrap_or_else(|_| panic!("{output:?}"))
    };
    let enabled = std::fs::read_to_string("/sys/kernel/mm/transparent_hugepage/enabled").unwrap_or_default();
    assert!(huge_kib("leave") == 0 || enabled.contains("[always]"), "the control");
    let is_given = enabled.contains('[') && !enabled.contains("[never]") && host::kernel() >= (6, 1);
    assert!(huge_kib("collapse") >= 4 << 10 || !is_given, "of some twenty mebibytes");
}

fn begins_fresh() {
    host().need(Feature::Python);
    let server = Server::start(&on());
    let mut session = Session::python(&server);
    warmed(&server, &mut session);
    let look = "import json, os, sys, random\nprint(hasattr(json, 'mark'), 'MARK' in os.environ, len(sys.argv), os.getcwd())\n\
                json.mark = os.environ['MARK'] = '1'; os.chdir('/'); sys.setrecursionlimit(77); print(random.random())";
    let texts: Vec<String> = (0..3)
        .map(|_| {
            let answer = carried_out(&server, &mut session, "warm", &code(look));
            answer["result"]["stdout"].as_str().expect("text").to_owned()
        })
        .collect();
    let lines: Vec<(&str, &str)> = texts.iter().map(|text| text.trim().split_once('\n').expect("two lines")).collect();
    assert!(lines.iter().all(|(state, _)| *state == "False False 1 /workspace"), "{lines:?}");
    assert!(lines[0].1 != lines[1].1 && lines[1].1 != lines[2].1, "random numbers are not those of the one before: {lines:?}");
}

fn own_modules() {
    host().need(Feature::Python);
    let server = Server::start(&on());
    let mut session = Session::python(&server);
    warmed(&server, &mut session);
    let stdout = |answer: &Value| answer["result"]["stdout"].as_str().unwrap_or_default().trim().to_owned();
    session.write("own.py", "where = 'beside'");
    let beside = carried_out(&server, &mut session, "warm", &code("import own; print(own.where)"));
    assert_eq!(stdout(&beside), "beside", "{beside}");
    session.write("json.py", "where = 'mine'");
    let hidden = carried_out(&server, &mut session, "passed", &code("import json; print(json.where)"));
    assert_eq!(stdout(&hidden), "mine", "{hidden}");
    session.ok(&json!({"type": "delete_file", "path": "json.py"}));
    let back = carried_out(&server, &mut session, "warm", &code("import json; print(json.dumps([1]))"));
    assert_eq!(stdout(&back), "[1]", "{back}");
    let place = session.run("import site; print(site.getusersitepackages())");
    session.write(&format!("{place}/late.py"), "where = 'installed'");
    let late = carried_out(&server, &mut session, "passed", &code("import late; print(late.where)"));
    assert_eq!(stdout(&late), "installed", "{late}");
    warmed(&server, &mut session);
    let again = carried_out(&server, &mut session, "warm", &code("import late; print(late.where)"));
    assert_eq!(stdout(&again), "installed", "{again}");
}

fn variables() {
    host().need(Feature::Python);
    let server = Server::start(&on());
    let mut session = Session::python(&server);
    warmed(&server, &mut session);
    let with = |name: &str, value: &str| {
        let text = format!("import os, sys; print(os.environ[{name:?}], sys.flags.optimize)");
        json!({"type": "execute_code", "language": "python", "code": text, "env": {name: value}})
    };
    let before = programs(&server, "warm");
    let answer = session.ok(&with("PYTHONOPTIMIZE", "2"));
    assert_eq!((answer["stdout"].as_str(), programs(&server, "warm")), (Some("2 2\n"), before), "it was not even offered");
    let control = carried_out(&server, &mut session, "warm", &with("ANYTHING", "else"));
    assert_eq!(control["result"]["stdout"], "else 0\n", "the control");
}

/// `interpreters()`: children of init that are not this program, which are the interpreter and the fork that waits.
const INTERPRETERS: &str = r#"
import os, sys, time, errno
def parent(pid):
    try:
        with open(f"/proc/{pid}/stat") as file: return int(file.read().rpartition(")")[2].split()[1])
    except (OSError, ValueError): return None
def interpreters():
    return sorted(int(name) for name in os.listdir("/proc") if name.isdigit() and parent(name) == 1 and int(name) != os.getpid())
def both():
    begin = time.monotonic()
    # Where there is no interpreter at all, one comes only when this program has ended.
    while len(interpreters()) < 2 and time.monotonic() - begin < (10 if interpreters() else 2): time.sleep(0.01)
    return interpreters()
def attempt(action):
    try: action()
    except OSError as error: return errno.errorcode[error.errno]
    return "done"
"#;

fn out_of_reach() {
    host().need(Feature::Python);
    let server = Server::start(&on());
    for profile in ["default", "strict", "permissive"] {
        let mut session = Session::open(&server, &json!({"profile": profile}));
        warmed(&server, &mut session);
        let text = format!(
            r#"{INTERPRETERS}
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
def call(function, *arguments):
    if function(*arguments) == -1: raise OSError(ctypes.get_errno(), "")
def tries(pid):
    return [attempt(lambda: os.readlink(f"/proc/{{pid}}/fd/0")), attempt(lambda: open(f"/proc/{{pid}}/mem", "rb").close()),
            attempt(lambda: open(f"/proc/{{pid}}/maps").read()), attempt(lambda: open(f"/proc/{{pid}}/environ").read())]
def steals(pid):
    return [attempt(lambda: call(libc.ptrace, 16, pid, None, None)),
            attempt(lambda: call(libc.syscall, 438, os.pidfd_open(pid), 5, 0))]
both()
child = os.fork()
if child == 0: time.sleep(60); os._exit(0)
print([tries(pid) for pid in interpreters()], [steals(pid) for pid in interpreters()], tries(child)[0])
os.kill(child, 9)"#
        );
        let answer = carried_out(&server, &mut session, "warm", &code(&text));
        let stdout = answer["result"]["stdout"].as_str().expect("text");
        assert!(stdout.starts_with("[[") && stdout.contains("], ['EACCES'"), "both are seen: {answer}");
        assert_eq!(stdout.matches("done").count(), 1, "only of its own child: {stdout}");
        assert!(stdout.trim_end().ends_with("done"), "the control: {stdout}");
    }
}

fn killed_and_stopped() {
    host().need(Feature::Python);
    let server = Server::start(&on());
    let mut session = Session::python(&server);
    for signal in ["SIGKILL", "SIGSTOP", "SIGINT", "SIGTERM"] {
        warmed(&server, &mut session);
        let text = format!(
            "{INTERPRETERS}\nimport signal\nfound = both()\n\
             for pid in found: attempt(lambda: os.kill(pid, signal.{signal}))\nprint(len(found))"
        );
        let answer = carried_out(&server, &mut session, "warm", &code(&text));
        let found: u32 = answer["result"]["stdout"].as_str().expect("text").trim().parse().expect("a number");
        assert_eq!(found, 2, "{signal}: interpreter and fork: {answer}");
        for round in 0..3 {
            assert_eq!(session.run(&format!("print({round})")), round.to_string(), "{signal}");
        }
        if signal == "SIGSTOP" {
            session.run(&format!("{INTERPRETERS}\nfor pid in interpreters(): attempt(lambda: os.kill(pid, 18))"));
        }
    }
    warmed(&server, &mut session);
}

/// What the same user may change of any process of his, and the root of a sandbox of some more.
const CHANGES: [(&str, &str, bool); 4] = [
    (
        "resource.prlimit(pid, resource.RLIMIT_FSIZE, (4096, 4096))",
        "resource.prlimit(pid, resource.RLIMIT_FSIZE)[1] == 4096",
        false,
    ),
    ("os.setpriority(os.PRIO_PROCESS, pid, 11)", "os.getpriority(os.PRIO_PROCESS, pid) == 11", false),
    ("os.sched_setaffinity(pid, {min(os.sched_getaffinity(pid))})", "len(os.sched_getaffinity(pid)) == 1", false),
    ("open(f'/proc/{pid}/oom_score_adj', 'w').write('900')", "open(f'/proc/{pid}/oom_score_adj').read() == '900\\n'", true),
];

fn changed_from_outside() {
    host().need(Feature::Python);
    let server = Server::start(&on());
    let look = "import os, resource\n\
                print([resource.getrlimit(n) for n in range(16)], os.getpriority(os.PRIO_PROCESS, 0), \
                sorted(os.sched_getaffinity(0)), open('/proc/self/oom_score_adj').read().strip())";
    for profile in ["default", "strict", "permissive"] {
        let mut session = Session::open(&server, &json!({"profile": profile}));
        let fresh = session.run(look);
        for (change, control, _) in CHANGES.iter().filter(|(.., root)| !root || profile == "permissive") {
            warmed(&server, &mut session);
            let text = format!(
                "{INTERPRETERS}\nimport resource\nfound = both()\nfor pid in found: {change}\n\
                 print(len(found), all({control} for pid in found))"
            );
            let answer = carried_out(&server, &mut session, "warm", &code(&text));
            assert_eq!(answer["result"]["stdout"], "2 True\n", "the control: {profile}: {change}: {answer}");
            assert_eq!(session.run(look), fresh, "{profile}: {change}");
            let again = carried_out(&server, &mut session, "warm", &code(look));
            assert_eq!(again["result"]["stdout"], format!("{fresh}\n"), "{profile}: {change}");
        }
    }
}

/// Modules on a path of the session's own: the library that it names, changed in every way that leaves the directory as it was.
fn own_library() {
    host().need(Feature::Python);
    let server = Server::start(&on());
    let mut session = Session::open(&server, &json!({"env": {"PYTHONPATH": "/workspace/lib"}}));
    session.ok(&json!({"type": "create_directory", "path": "lib"}));
    session.write("lib/mine.py", "where = 1");
    warmed(&server, &mut session);
    let show = code("import mine; print(mine.where)");
    assert_eq!(carried_out(&server, &mut session, "warm", &show)["result"]["stdout"], "1\n");
    session.run("import os\nwith open('lib/mine.py', 'r+') as f: f.write('where = 2')\nos.utime('lib/mine.py', (1, 1))");
    assert_eq!(session.execute(&show)["result"]["stdout"], "2\n", "changed in place");
    session.write("lib/json.py", "where = 'mine'");
    let hidden = code("import json; print(json.where)");
    assert_eq!(session.execute(&hidden)["result"]["stdout"], "mine\n", "in place of one that is loaded");
    session.run("with open('lib/json.py', 'r+') as f: f.write(\"where = 'ours'\")");
    for _ in 0..3 {
        assert_eq!(session.execute(&hidden)["result"]["stdout"], "ours\n", "changed in place");
    }
}

fn changed_in_place() {
    host().need(Feature::Python);
    let server = Server::start(&on());
    // A library of the session's own: what the image has, and one package that its programs may write to.
    let mut session = Session::open(&server, &json!({"env": {"PYTHONHOME": "/workspace/home"}}));
    let place = session.bash("env -u PYTHONHOME python3 -c 'import os; print(os.path.dirname(os.__file__))'");
    let own = format!("home/lib/{}", place.rsplit('/').next().expect("a name"));
    session.bash(&format!("mkdir -p {own} && ln -s {place}/* {own}/ && rm {own}/json && cp -r {place}/json {own}/json"));
    warmed(&server, &mut session);
    let show = code("import json.decoder; print(json.decoder.__file__, getattr(json.decoder, 'where', None))");
    let file = format!("/workspace/{own}/json/decoder.py");
    assert_eq!(carried_out(&server, &mut session, "warm", &show)["result"]["stdout"], format!("{file} None\n"), "the control");
    session.run(&format!("with open({file:?}, 'a') as f: f.write('\\nwhere = 3\\n')\nimport os; os.utime({file:?}, (1, 1))"));
    assert_eq!(session.execute(&show)["result"]["stdout"], format!("{file} 3\n"));
    let again = carried_out(&server, &mut session, "warm", &show);
    assert_eq!(again["result"]["stdout"], format!("{file} 3\n"), "by the next interpreter too");
}

fn descendants() {
    host().need(Feature::Python);
    let server = Server::start(&on());
    let mut session = Session::python(&server);
    warmed(&server, &mut session);
    let sleeper = json!({"type": "execute_shell", "commandName": "sleep", "args": ["1234"], "background": true});
    session.execute(&sleeper);
    let daemon = "import os, time\nif os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0:\n        time.sleep(4321)\n    os._exit(0)\n\
                  os.wait()\nprint(os.getppid(), os.getsid(0) == os.getpid())";
    let answer = carried_out(&server, &mut session, "warm", &code(daemon));
    assert_eq!(answer["result"]["stdout"], "1 True\n", "{answer}");
    let others = session.bash("cat /proc/[0-9]*/cmdline | tr '\\0' ' '");
    assert!(others.contains("sleep 1234"), "the other execution goes on: {others}");
    // One program is left of those with an interpreter's name: the two that wait, and no daemon.
    let text = format!("{INTERPRETERS}\nprint(all(parent(pid) == 1 for pid in interpreters()), len(interpreters()))");
    let left = session.run(&text);
    assert!(left == "True 2" || left == "True 3", "sleep, interpreter and perhaps its fork: {left}");
}

fn out_of_memory() {
    host().need(Feature::Python).need(Feature::CgroupMemory);
    let server = Server::start(&on());
    let mut session = Session::open(&server, &json!({"memoryLimitMB": 64}));
    for _ in 0..2 {
        warmed(&server, &mut session);
        let answer = carried_out(&server, &mut session, "warm", &code("x = bytearray(1 << 30)\nprint(len(x))"));
        assert_eq!(answer["errorKind"], "out_of_memory", "{answer}");
        assert_eq!(session.run("print('goes on')"), "goes on");
    }
    warmed(&server, &mut session);
}

fn refused_calls() {
    host().need(Feature::Python);
    let server = Server::start(&on());
    let mut session = Session::python(&server);
    warmed(&server, &mut session);
    let names = |answer: &Value| answer["result"].get("blockedSyscalls").cloned();
    let text = python::probe(
        "import threading, subprocess\n_libc.umount2(b'/proc', 2)\nthread = threading.Thread(target=_libc.unshare, args=(0x10000000,))\n\
         thread.start(); thread.join()\nsubprocess.run([sys.executable, '-c', 'import ctypes; ctypes.CDLL(None).mount(b\"n\", b\"/tmp\", b\"tmpfs\", 0, None)'])",
    );
    let answer = carried_out(&server, &mut session, "warm", &code(&text));
    assert_eq!(names(&answer), Some(json!(["mount", "umount2", "unshare"])), "thread and child too: {answer}");
    let quiet = carried_out(&server, &mut session, "warm", &code("print(1)"));
    assert_eq!(names(&quiet), None, "of this execution alone");
    session.write(
        "mounts.py",
        &python::probe("_libc.umount2(b'/proc', 2)\nopen('begun', 'w').close()\nwhile True: _libc.umount2(b'/proc', 2)"),
    );
    let beside = json!({"type": "execute_shell", "commandName": "python3", "args": ["mounts.py"], "background": true});
    let started = session.execute(&beside)["executionId"].clone();
    assert!(eventually(Duration::from_secs(20), || {
        session.execute(&json!({"type": "read_file", "path": "begun"}))["success"] == true
    }));
    let own = carried_out(&server, &mut session, "warm", &code(&python::probe("_libc.unshare(0x10000000)")));
    assert_eq!(names(&own), Some(json!(["unshare"])), "{own}");
    session.client.ok("session.cancel", &json!({"sessionId": session.id, "executionId": started}));
}

fn off() {
    host().need(Feature::Python);
    let server = Server::start(&Setup::plain().with_config("[warm]\nenabled = false\n"));
    let mut session = Session::python(&server);
    for _ in 0..3 {
        assert_eq!(session.run(&format!("{INTERPRETERS}\nprint(interpreters())")), "[]");
    }
    assert_eq!(count(&server, "codebeaker_warm_interpreters_total{outcome=\"ready\"}"), 0);
    let other = Server::start(&Setup::plain().with_config("[warm]\nat_create = true\npooled = false\n"));
    let _session = Session::python(&other);
    let ready = || count(&other, "codebeaker_warm_interpreters_total{outcome=\"ready\"}") == 1;
    assert!(eventually(Duration::from_secs(20), ready), "the control: one that begins with the session");
    assert!(count(&other, "codebeaker_warm_interpreter_bytes") > 1 << 20, "its memory is shown");
}

/// The program is asked for before it is known what became of its source.
fn no_source() {
    host().need(Feature::Python);
    for enabled in [true, false] {
        let server = Server::start(&Setup::plain().with_config(&format!("[warm]\nenabled = {enabled}\n")));
        let mut session = Session::python(&server);
        if enabled {
            warmed(&server, &mut session);
        }
        let program = code("open('/workspace/ran', 'w').write('x')");
        session.ok(&json!({"type": "create_directory", "path": ".main.py"}));
        let answer = session.fails(&program, "not_a_regular_file");
        assert_eq!(answer["result"], Value::Null, "as for a file command: {answer}");
        let not_run = |session: &mut Session<'_>| session.fails(&json!({"type": "read_file", "path": "ran"}), "file_not_found");
        not_run(&mut session);
        // What stood in its place went with the plan's leftovers.
        session.ok(&program);
        assert_eq!(session.ok(&json!({"type": "read_file", "path": "ran"}))["content"], "x", "the control");
        session.ok(&json!({"type": "delete_file", "path": "ran"}));
        // A source that could be run stands there, and there is no room for the one that is to take its place.
        session.write(".main.py", "open('/workspace/ran', 'w')");
        let fill = "f = open('big', 'wb')\ntry:\n  while True: f.write(b'x' * (1 << 20)); f.flush()\nexcept OSError: pass";
        session.execute(&json!({"type": "execute_shell", "commandName": "python3", "args": ["-c", fill]}));
        session.fails(&code(&format!("print(1) # {}", "x".repeat(20_000))), "disk_full");
        not_run(&mut session);
    }
}
