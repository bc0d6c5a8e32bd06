//! Sandboxes that are ready before anybody asks: what the first and the second request get, what is in force in them, what is left.
//!
//! Invariant: each trial has a server of its own, since the pool is one for all sessions of a server.

use std::collections::BTreeSet;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::images::tiny_root;
use crate::support::http::request;
use crate::support::residue::descendants;
use crate::support::{Feature, Server, Session, Setup, eventually, host, page};

/// A sandbox is made in milliseconds; a loaded host takes longer.
const FILL_WAIT: Duration = Duration::from_secs(20);

/// What a program sees of its walls, in Python.
pub const WALLS: &str = "import os\n\
     status = [l for l in open('/proc/self/status') if l.startswith(('Cap', 'NoNew', 'Seccomp', 'Uid', 'Gid', 'Groups'))]\n\
     mounts = sorted(' '.join(l.split()[4:6]) for l in open('/proc/self/mountinfo'))\n\
     inside = [open('/proc/self/uid_map').read().split()[::2], open('/proc/self/cgroup').read(), os.listdir('/proc/self/fd')]\n\
     s = os.statvfs('/tmp')\n\
     print(status, mounts, open('/proc/self/limits').read(), inside, s.f_blocks, s.f_files, open('/proc/self/oom_score_adj').read())\n\
     print(os.uname().nodename, sorted(os.environ.items()), os.getcwd(), os.listdir('/dev'))";

pub fn trials() -> Vec<libtest_mimic::Trial> {
    page(
        "pool",
        &[
            ("the first session of a kind is made and the next ones were ready, and metrics tell it", hits_and_misses),
            ("each ready sandbox serves one session and nothing of one is there for the next", single_use),
            ("limits and variables of a request are in force in a sandbox that was ready", limits_on_claim),
            ("a limit that a ready sandbox can't be given is given by a new one", unfit),
            ("a sandbox that was ready has the walls of one that was made", same_walls),
            ("without a place for ready sandboxes every session is made, and nothing is ready", off),
            ("a ready sandbox whose init was killed is given to nobody", dead_init),
            ("ready sandboxes go with their launcher and the next launcher makes others", dead_launcher),
            ("an image is removed although sandboxes on it are ready, and they go with it", image_removed),
            ("ready sandboxes take no place of a session", no_place),
            ("fresh sandboxes for each execution come from the pool too", fresh_for_each),
            ("a kind that nobody asks for any more has nothing ready", forgotten),
            ("the first program of a session finds an interpreter ready, which is that session's alone", warm_at_once),
            (
                "an interpreter that was ready is given up where the session's own variables or limits tell against it",
                warm_no_more,
            ),
            ("sessions that run no program get none made ready, and the first that does brings it back", unused_interpreters),
        ],
    )
}

fn start(pool: &str) -> Server {
    Server::start(&Setup::plain().with_config(&format!("[runtimes]\nmeasure = false\n[pool]\nbegin_ahead = false\n{pool}")))
}

pub fn end(server: Server) {
    let left = server.end_and_check();
    assert!(left.is_empty(), "{}", left.join("; "));
}

/// The value of a line of /metrics; 0 while there is none.
pub fn metric(server: &Server, name: &str) -> f64 {
    let token = format!("Bearer {}", server.token);
    let body = request(server.address, "/metrics", &[("Authorization", &token)], None).body;
    let value = body.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok());
    value.unwrap_or(0.0)
}

fn requests(server: &Server, outcome: &str) -> f64 {
    metric(server, &format!("codebeaker_pool_requests_total{{outcome=\"{outcome}\"}}"))
}

fn wait_for_ready(server: &Server, count: f64) {
    // Two requests within a second are a burst, for which one more is kept.
    let filled = eventually(FILL_WAIT, || metric(server, "codebeaker_pool_ready") >= count);
    assert!(filled, "{count} are to be ready, {} are", metric(server, "codebeaker_pool_ready"));
    server.observe();
}

/// Asks for a kind once, so that it is kept ready from then on.
fn warm_up(server: &Server, parameters: &Value, count: f64) {
    Session::open(server, parameters).close();
    wait_for_ready(server, count);
}

pub fn origin<'a>(session: &'a Session<'_>) -> &'a Value {
    &session.created["selection"]["sandbox"]
}

pub fn ready_inits(server: &Server) -> Vec<i32> {
    let launcher = server.launcher().expect("a launcher");
    let below = descendants(launcher).into_iter();
    below.filter(|process| process.parent == launcher && !process.zombie).map(|process| process.identity.0).collect()
}

fn hits_and_misses() {
    let server = start("ready_min = 2\n");
    assert!(metric(&server, "codebeaker_pool_ready").abs() < 0.5, "nobody has asked for anything");
    let first = Session::python(&server);
    assert_eq!(origin(&first), "new");
    wait_for_ready(&server, 2.0);
    let mut second = Session::python(&server);
    assert_eq!(origin(&second), "pool");
    assert_eq!(second.run("print(6 * 7)"), "42");
    let other = Session::open(&server, &json!({"profile": "strict"}));
    assert_eq!(origin(&other), "new", "another profile is another kind");
    let details = second.client.ok("session.get", &json!({"sessionId": second.id}));
    assert_eq!(details["selection"]["sandbox"], "pool", "{details}");
    assert!((requests(&server, "hit") - 1.0).abs() < 0.5 && (requests(&server, "miss") - 2.0).abs() < 0.5);
    assert!(metric(&server, "codebeaker_pool_refill_seconds_count") >= 2.0);
    assert!(metric(&server, "codebeaker_pool_memory_bytes") > 0.0);
    drop((first, second, other));
    end(server);
}

fn single_use() {
    host().need(Feature::Root);
    // No process but init is to be there.
    let server = start("ready_min = 2\n[warm]\nenabled = false\n");
    warm_up(&server, &json!({}), 2.0);
    let look = "import os\n\
                found = [d + '/' + n for d in ('/workspace', '/tmp', '/dev/shm') for n in os.listdir(d) if n != '.main.py']\n\
                pids = [p for p in os.listdir('/proc') if p.isdigit() and int(p) not in (1, os.getpid())]\n\
                print(found, pids, open('/proc/self/uid_map').read().split()[1], os.readlink('/proc/self/ns/pid'))";
    let (mut seen, mut names) = (BTreeSet::new(), BTreeSet::new());
    for round in 0..6 {
        wait_for_ready(&server, 2.0);
        let mut session = Session::python(&server);
        assert_eq!(origin(&session), "pool", "round {round}");
        let told = session.run(look);
        let (found, own) = told.split_once(" [] ").unwrap_or_else(|| panic!("a process is there: {told}"));
        assert_eq!(found, "[]", "files are there: {told}");
        assert!(seen.insert(own.to_owned()), "ids and namespaces of an earlier session: {own}");
        assert!(names.insert(session.environment().to_owned()), "a name twice");
        session.bash("echo secret > /workspace/left; echo secret > /tmp/left; echo secret > /dev/shm/left; setsid sleep 60 >/dev/null 2>&1 &");
        assert_eq!(session.bash("cat /workspace/left"), "secret", "the control: it is there while the session lives");
        session.close();
    }
    end(server);
}

fn limits_on_claim() {
    host().need(Feature::CgroupMemory);
    let server = start("ready_min = 1\n");
    warm_up(&server, &json!({}), 1.0);
    let asked = json!({"memoryLimitMB": 96, "pidsLimit": 12, "diskLimitMB": 8, "cpuLimit": 0.5, "env": {"COLOUR": "blue"}});
    let mut session = Session::open(&server, &asked);
    assert_eq!(origin(&session), "pool");
    let disk = "import os\ns = os.statvfs('/tmp')\nprint(s.f_blocks * s.f_frsize, os.environ['COLOUR'])";
    assert_eq!(session.run(disk), format!("{} blue", 8 << 20));
    let python = |code: &str| json!({"type": "execute_code", "language": "python", "code": code, "timeoutSeconds": 60});
    session.fails(&python("f = open('big', 'wb')\nwhile True: f.write(b'x' * (1 << 20))"), "disk_full");
    session.ok(&json!({"type": "delete_file", "path": "big"}));
    assert_eq!(session.run("x = b'a' * (40 << 20); print(len(x))"), "41943040", "below the limit it works");
    session.fails(&python("x = []\nwhile True: x.append(b'a' * (1 << 20))"), "out_of_memory");
    session.fails(&python("import os, time\nwhile True:\n  if os.fork() == 0: time.sleep(30)"), "pids_limit");
    let config = session.client.ok("session.get", &json!({"sessionId": session.id}))["config"].clone();
    assert_eq!((&config["memoryLimitMB"], &config["pidsLimit"], &config["diskLimitMB"]), (&json!(96), &json!(12), &json!(8)));
    session.close();
    wait_for_ready(&server, 1.0);
    // More than the profile gives unasked is as good as less.
    let mut larger = Session::open(&server, &json!({"memoryLimitMB": 1024, "diskLimitMB": 400}));
    assert_eq!(origin(&larger), "pool");
    assert_eq!(larger.run("x = b'a' * (700 << 20); print(len(x))"), (700_i64 << 20).to_string());
    assert_eq!(larger.run("f = open('/tmp/big', 'wb'); f.write(b'x' * (300 << 20)); f.close(); print('fits')"), "fits");
    larger.close();
    end(server);
}

fn unfit() {
    let server = start("ready_min = 1\n");
    warm_up(&server, &json!({}), 1.0);
    let error = server.client().error("session.create", &json!({"language": "python", "memoryLimitMB": 1_000_000}));
    assert!(error.to_string().contains("memoryLimitMB"), "{error}");
    // The least memory that is taken: it fits into a ready sandbox or is given by a new one, and in both it holds.
    let mut session = Session::open(&server, &json!({"memoryLimitMB": 16}));
    assert_eq!(session.bash("echo works"), "works");
    session.close();
    end(server);
}

fn same_walls() {
    let server = start("ready_min = 1\n");
    for profile in ["strict", "default", "permissive"] {
        let parameters = json!({"profile": profile, "diskLimitMB": 32});
        let mut made = Session::open(&server, &parameters);
        assert_eq!(origin(&made), "new");
        // Those of other kinds are ready as well, so that their number says nothing of this one.
        let mut taken = None;
        let was_ready = eventually(FILL_WAIT, || {
            let session = Session::open(&server, &parameters);
            if origin(&session) == "pool" {
                taken = Some(session);
            }
            taken.is_some()
        });
        assert!(was_ready, "{profile}");
        let mut ready = taken.expect("one was ready");
        assert_eq!(made.created["enforcement"], ready.created["enforcement"], "{profile}");
        assert_eq!(made.created["config"], ready.created["config"], "{profile}");
        assert_eq!(made.run(WALLS), ready.run(WALLS), "{profile}");
        made.close();
        ready.close();
        // Other kinds must not keep this one's place.
        server.observe();
    }
    end(server);
}

fn off() {
    let server = start("sandboxes_max = 0\n");
    for _ in 0..3 {
        let mut session = Session::python(&server);
        assert_eq!(origin(&session), "new");
        assert_eq!(session.run("print(1)"), "1");
        session.close();
    }
    assert!(metric(&server, "codebeaker_pool_ready").abs() < 0.5);
    assert!(eventually(FILL_WAIT, || ready_inits(&server).is_empty()), "no sandbox but those of sessions");
    end(server);
}

fn dead_init() {
    let server = start("ready_min = 2\n");
    warm_up(&server, &json!({}), 2.0);
    let inits = ready_inits(&server);
    assert!(inits.len() >= 2, "the control: the ready ones live");
    for pid in inits {
        kill(Pid::from_raw(pid), Signal::SIGKILL).expect("a process below the trial's own server");
    }
    assert!(eventually(FILL_WAIT, || ready_inits(&server).is_empty()));
    let mut session = Session::python(&server);
    // Made for it, or by now ready again.
    assert_eq!(session.run("print(1)"), "1", "the dead ones are given to nobody");
    wait_for_ready(&server, 2.0);
    let mut next = Session::python(&server);
    assert_eq!(origin(&next), "pool", "others are ready by now");
    assert_eq!(next.run("print(2)"), "2");
    session.close();
    next.close();
    end(server);
}

fn dead_launcher() {
    let server = start("ready_min = 2\n");
    warm_up(&server, &json!({}), 2.0);
    let launcher = server.launcher().expect("a launcher");
    let inits = ready_inits(&server);
    assert!(inits.len() >= 2, "the control: the ready ones live");
    kill(Pid::from_raw(launcher), Signal::SIGKILL).expect("the trial's own server's launcher");
    let gone = || server.launcher().is_some_and(|pid| pid != launcher);
    assert!(eventually(FILL_WAIT, gone), "another launcher");
    let mut session = Session::python(&server);
    assert_eq!(session.run("print(1)"), "1");
    wait_for_ready(&server, 2.0);
    assert!(ready_inits(&server).iter().all(|pid| !inits.contains(pid)), "no ready sandbox outlives its launcher");
    let mut next = Session::python(&server);
    assert_eq!(origin(&next), "pool");
    assert_eq!(next.run("print(2)"), "2");
    session.close();
    next.close();
    end(server);
}

fn image_removed() {
    let server = start("ready_min = 2\n");
    let root = tiny_root();
    let path = root.path().display().to_string();
    let parameters = json!({"language": "bash", "image": "tiny-pool"});
    server.cli(&["image", "import", &path, "--name", "tiny-pool"]).expect_code(0);
    warm_up(&server, &parameters, 2.0);
    let held = Session::open(&server, &parameters);
    assert_eq!(origin(&held), "pool");
    server.cli(&["image", "remove", "tiny-pool"]).expect_code(1);
    held.close();
    wait_for_ready(&server, 2.0);
    server.cli(&["image", "remove", "tiny-pool"]).expect_code(0);
    server.client().error_is("session.create", &parameters, 1103, "image_not_found");
    // The same again in its place is another tree: nothing of the old one is given out.
    std::fs::write(root.path().join("etc/marker"), "second\n").expect("an own directory");
    server.cli(&["image", "import", &path, "--name", "tiny-pool"]).expect_code(0);
    let mut session = Session::open(&server, &parameters);
    assert_eq!(session.read("/etc/marker"), "second\n");
    session.close();
    server.cli(&["image", "remove", "tiny-pool"]).expect_code(0);
    let gone =
        eventually(FILL_WAIT, || metric(&server, "codebeaker_pool_ready").abs() < 0.5 && ready_inits(&server).is_empty());
    assert!(gone, "the ready ones go with the image");
    end(server);
}

fn no_place() {
    let server = Server::start(
        &Setup::bare().with_config("[session]\nsessions_max = 1\n[runtimes]\nmeasure = false\n[pool]\nready_min = 2\n"),
    );
    let session = Session::python(&server);
    wait_for_ready(&server, 2.0);
    server.client().error_is("session.create", &json!({"language": "python"}), 1300, "quota_exceeded");
    let list = server.client().ok("session.list", &json!({}));
    assert_eq!(list["count"], 1, "{list}");
    session.close();
    let next = Session::python(&server);
    assert_eq!(origin(&next), "pool");
    next.close();
    end(server);
}

fn fresh_for_each() {
    let server = start("ready_min = 2\n");
    warm_up(&server, &json!({}), 2.0);
    let mut session = Session::open(&server, &json!({"persistFilesystem": false}));
    let before = requests(&server, "hit");
    assert_eq!(session.run("open('/tmp/left', 'w').close(); print('made')"), "made");
    assert_eq!(session.run("import os; print(os.path.exists('/tmp/left'))"), "False");
    assert_eq!(session.run("import os; print(os.path.exists('/tmp/left'))"), "False");
    assert!(requests(&server, "hit") > before, "{} is no more than {before}", requests(&server, "hit"));
    session.close();
    end(server);
}

fn forgotten() {
    let server = start("ready_min = 2\nkeep_s = 3\n");
    warm_up(&server, &json!({}), 2.0);
    let gone =
        eventually(FILL_WAIT, || metric(&server, "codebeaker_pool_ready").abs() < 0.5 && ready_inits(&server).is_empty());
    assert!(gone, "nothing stays ready for nobody");
    assert!(metric(&server, "codebeaker_pool_discarded_total{reason=\"surplus\"}") >= 2.0);
    end(server);
}

fn start_warm() -> Server {
    start("ready_min = 1\n[warm]\nenabled = true\n")
}

fn by_warm(server: &Server) -> f64 {
    metric(server, "codebeaker_warm_programs_total{by=\"warm\"}")
}

/// A session whose very first program, which is this one, an interpreter carried out that was ready; what it printed.
#[track_caller]
fn first_by_warm<'a>(server: &'a Server, parameters: &Value, code: &str) -> (Session<'a>, String) {
    let mut found = None;
    let there = eventually(FILL_WAIT, || {
        let before = by_warm(server);
        let mut session = Session::open(server, parameters);
        let printed = session.run(code);
        if by_warm(server) > before {
            assert_eq!(origin(&session), "pool");
            found = Some((session, printed));
        }
        found.is_some()
    });
    assert!(there, "no first program was carried out by an interpreter that was ready");
    server.observe();
    found.expect("it is there")
}

fn warm_at_once() {
    let server = start_warm();
    let code = "import os, json, sys\n\
                print(hash('x'), os.readlink('/proc/self/ns/pid'), hasattr(json, 'mark'), 'MARK' in os.environ, os.path.exists('/tmp/mark'), os.getcwd(), len(sys.argv))\n\
                json.mark = os.environ['MARK'] = '1'; open('/tmp/mark', 'w').close(); os.chdir('/')";
    let (first, one) = first_by_warm(&server, &json!({}), code);
    let (second, other) = first_by_warm(&server, &json!({}), code);
    let own = |printed: &str| printed.splitn(3, ' ').map(str::to_owned).collect::<Vec<_>>();
    let (one, other) = (own(&one), own(&other));
    assert_eq!((one[2].as_str(), other[2].as_str()), ("False False False /workspace 1", "False False False /workspace 1"));
    assert_ne!(one[0], other[0], "each session has a hash secret of its own");
    assert_ne!(one[1], other[1], "each has a sandbox of its own");
    first.close();
    second.close();
    // Sessions whose sandboxes are used once each have it for every program.
    let mut session = Session::open(&server, &json!({"persistFilesystem": false}));
    for _ in 0..2 {
        let before = by_warm(&server);
        let used = eventually(FILL_WAIT, || {
            session.run("import json; print(hasattr(json, 'mark'))") == "False" && by_warm(&server) > before
        });
        assert!(used, "a sandbox of such a session has none");
    }
    session.close();
    end(server);
}

fn warm_no_more() {
    host().need(Feature::CgroupPids);
    let server = start_warm();
    let (session, _) = first_by_warm(&server, &json!({}), "print(1)");
    session.close();
    wait_for_ready(&server, 1.0);
    let before = by_warm(&server);
    let mut coloured = Session::open(&server, &json!({"env": {"COLOUR": "blue"}}));
    assert_eq!(origin(&coloured), "pool");
    assert_eq!(coloured.run("import os; print(os.environ['COLOUR'])"), "blue");
    assert!((by_warm(&server) - before).abs() < 0.5, "its first program began afresh");
    let again =
        eventually(FILL_WAIT, || coloured.run("import os; print(os.environ['COLOUR'])") == "blue" && by_warm(&server) > before);
    assert!(again, "the control: one that was loaded with its variables came after it");
    coloured.close();
    wait_for_ready(&server, 1.0);
    let before = by_warm(&server);
    let mut small = Session::open(&server, &json!({"pidsLimit": 12}));
    assert_eq!(origin(&small), "pool");
    let alone = "import os; print([p for p in os.listdir('/proc') if p.isdigit() and int(p) not in (1, os.getpid())])";
    assert!(eventually(FILL_WAIT, || small.run(alone) == "[]"), "no process is taken of the few it has");
    assert!((by_warm(&server) - before).abs() < 0.5);
    small.close();
    end(server);
}

/// How many processes stand below each ready sandbox's init.
fn below_ready_inits(server: &Server) -> Vec<usize> {
    ready_inits(server).into_iter().map(|init| descendants(init).len()).collect()
}

fn unused_interpreters() {
    // One, so that a burst keeps none that lay there before.
    let server = start("ready_min = 1\nsandboxes_max = 1\n[warm]\nenabled = true\n");
    let all_have = |wanted: fn(usize) -> bool| {
        let reached = eventually(FILL_WAIT, || {
            let below = below_ready_inits(&server);
            !below.is_empty() && below.into_iter().all(wanted) && metric(&server, "codebeaker_pool_ready") >= 1.0
        });
        assert!(reached, "{:?} processes below the ready ones", below_ready_inits(&server));
        server.observe();
    };
    warm_up(&server, &json!({}), 1.0);
    all_have(|processes| processes > 0);
    // More than it takes: the first ones are made where none lies ready, which counts the same, and the others leave none that lay there before.
    for round in 0..20 {
        if round >= 12 {
            wait_for_ready(&server, 1.0);
        }
        let mut session = Session::python(&server);
        assert!(round < 12 || origin(&session) == "pool");
        assert_eq!(session.bash("echo no program of Python"), "no program of Python");
        session.close();
    }
    all_have(|processes| processes == 0);
    let mut session = Session::python(&server);
    assert_eq!(origin(&session), "pool");
    wait_for_ready(&server, 1.0);
    assert_eq!(session.run("print(1)"), "1", "it runs one all the same");
    session.close();
    all_have(|processes| processes > 0);
    assert!(metric(&server, "codebeaker_pool_discarded_total{reason=\"interpreter\"}") >= 1.0);
    end(server);
}
