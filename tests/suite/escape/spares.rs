//! Places of an engine of isolates that are opened before their session comes: each is one session's, and nothing of them is left.

use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use super::isolates::{engines, place, printed};
use crate::support::{Feature, Server, Session, Setup, host, page};

pub fn trials() -> Vec<libtest_mimic::Trial> {
    page(
        "isolates",
        &[
            ("a session in an engine that stands finds a place that was opened ahead, and no other session has it", spare),
            ("a place that was opened ahead is no session's whose isolates have another memory limit", other_memory),
            ("an engine that stands still hands out no place that it opened ahead", stopped),
            ("no place is opened ahead when the operator wants none, and none takes a session's place", none),
            ("a session that keeps no files has its next place opened ahead too", forgetful),
        ],
    )
}

fn named() -> Value {
    json!({"language": "javascript", "runtimeType": "V8Isolate"})
}

fn server(more: &str) -> Server {
    host().need(Feature::Deno);
    Server::start(&Setup::engines().with_config(&format!("measure = false\n{more}")))
}

fn is_ready(session: &Session<'_>) -> bool {
    session.created["selection"]["sandbox"] == "pool"
}

/// Opens and closes sessions until one finds a place that was opened ahead: on a slow machine that takes its time.
#[track_caller]
fn ready<'a>(server: &'a Server, parameters: &Value) -> Session<'a> {
    for attempt in 1..=8 {
        std::thread::sleep(Duration::from_millis(300) * attempt * attempt);
        let session = Session::open(server, parameters);
        if is_ready(&session) {
            return session;
        }
        session.close();
    }
    panic!("none is ever opened ahead");
}

fn spare() {
    let server = server("");
    let mut first = Session::open(&server, &named());
    assert!(!is_ready(&first), "the control: an engine that starts has none");
    first.write("own", "of the first");
    let (mut second, mut third) = (ready(&server, &named()), ready(&server, &named()));
    assert_eq!(engines(&server).len(), 1, "all are in one engine");
    second.write("own", "of the second");
    let look = json!({"type": "list_directory", "path": "/workspace", "includeHidden": true});
    assert_eq!(third.ok(&look)["entries"], json!([]), "nothing is in it");
    assert_eq!((first.read("own"), second.read("own")), ("of the first".into(), "of the second".into()));
    let places = [place(&mut first), place(&mut second), place(&mut third)];
    assert!(places[0] != places[1] && places[1] != places[2] && places[0] != places[2], "{places:?}");
    let foreign = format!(
        "import fs from 'node:fs';\nlet seen = 'nothing';\ntry {{ seen = fs.readFileSync('{}/own', 'utf8'); }} catch {{}}\nconsole.log(seen);",
        places[1]
    );
    assert_eq!(printed(&mut third, &foreign), "nothing");
    assert_eq!(printed(&mut second, &foreign), "of the second", "the control: it is there");
    [first, second, third].into_iter().for_each(Session::close);
    let left = server.end_and_check();
    assert!(left.is_empty(), "{}", left.join("; "));
}

fn other_memory() {
    let server = server("");
    ready(&server, &named()).close();
    let mut small = named();
    small["memoryLimitMB"] = json!(96);
    let hoard = "const all = []; for (;;) all.push(new Array(1000).fill(Math.random()));";
    let mut first = Session::open(&server, &small);
    assert!(!is_ready(&first), "what is ready is for others");
    let mut second = ready(&server, &small);
    for session in [&mut first, &mut second] {
        let answer = session.fails(&json!({"type": "execute_code", "code": hoard}), "out_of_memory");
        let peak = answer["result"]["usage"]["memoryPeakBytes"].as_u64().expect("a number");
        assert!(peak < 256 << 20, "it keeps to its own limit: {answer}");
    }
    assert_eq!(printed(&mut second, "console.log(6 * 7)"), "42");
    first.close();
    second.close();
    let left = server.end_and_check();
    assert!(left.is_empty(), "{}", left.join("; "));
}

fn stopped() {
    let server = server("");
    // It takes the one that was ready; the next one comes while this waits, or does not come: neither is handed out.
    let mut one = ready(&server, &named());
    std::thread::sleep(Duration::from_secs(1));
    let engine = engines(&server)[0];
    kill(Pid::from_raw(engine), Signal::SIGSTOP).expect("a process of this test's own server");
    let refused = server.client().call("session.create", &named()).expect_err("nobody hands out a place").to_string();
    kill(Pid::from_raw(engine), Signal::SIGCONT).expect("a process of this test's own server");
    assert!(refused.contains("1302") && refused.contains("opened no place"), "{refused}");
    assert_eq!(printed(&mut one, "console.log(1)"), "1", "its session goes on");
    let next = Session::open(&server, &named());
    assert_eq!(engines(&server).len(), 2, "it takes no other session");
    next.close();
    one.close();
    let left = server.end_and_check();
    assert!(left.is_empty(), "{}", left.join("; "));
}

fn none() {
    // The engine's own time for opening one, several times over.
    let later = || std::thread::sleep(Duration::from_secs(3));
    let without = server("isolate_spares = 0\n");
    let one = Session::open(&without, &named());
    later();
    let other = Session::open(&without, &named());
    assert!(!is_ready(&one) && !is_ready(&other), "none is wanted");
    drop((one, other));
    let left = without.end_and_check();
    assert!(left.is_empty(), "{}", left.join("; "));
    let full = server("isolates_per_engine = 2\nisolate_engines_max = 1\n");
    let one = Session::open(&full, &named());
    let other = ready(&full, &named());
    let mut client = full.client();
    let error = client.error("session.create", &named());
    assert!(error.code == 1302, "there is no third place: {error}");
    other.close();
    // One place is left again, and the next one is opened ahead in it.
    let third = ready(&full, &named());
    drop((one, third));
    let left = full.end_and_check();
    assert!(left.is_empty(), "{}", left.join("; "));
}

fn forgetful() {
    let server = server("");
    let mut parameters = named();
    parameters["persistFilesystem"] = json!(false);
    let mut session = ready(&server, &parameters);
    let text =
        "import fs from 'node:fs';\nconst left = fs.existsSync('left');\nfs.writeFileSync('left', '');\nconsole.log(left);";
    for n in 0..4 {
        assert_eq!(printed(&mut session, text), "false", "execution {n}");
    }
    session.close();
    let left = server.end_and_check();
    assert!(left.is_empty(), "{}", left.join("; "));
}
