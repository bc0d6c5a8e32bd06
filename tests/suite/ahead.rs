//! The beginning of the next sandbox: who gets it, what is in force in it, what becomes of it when nobody comes.
//!
//! Invariant: each trial has a server of its own, since there is one beginning for all sessions of a server.

use std::path::PathBuf;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::pool::{WALLS, end, metric, origin, ready_inits};
use crate::support::residue::groups_made_by;
use crate::support::{Feature, Server, Session, Setup, eventually, host, page};

/// It comes within milliseconds, and goes after two seconds; a loaded host takes longer.
const WAIT: Duration = Duration::from_secs(20);

pub fn trials() -> Vec<libtest_mimic::Trial> {
    page(
        "ahead",
        &[
            ("the next sandbox has begun when a session stands, and becomes the next session's", taken),
            ("a sandbox that had begun has the walls and limits of one that had not", same_walls),
            ("what waits has no ids and no view of its own yet, and is never in a session's way", knows_nothing),
            ("one that nobody takes is given up and leaves nothing", given_up),
            ("one that was killed, or whose launcher was, costs the next session nothing", killed),
            ("one that waits when the server ends, or is killed, leaves nothing", server_ends),
            ("a session with a way out, whose name is known outside, is made for itself", known_by_name),
            ("without it every sandbox is begun when it is asked for", off),
        ],
    )
}

fn setup(begin_ahead: bool) -> Setup {
    Setup::plain()
        .with_config(&format!("[runtimes]\nmeasure = false\n[pool]\nsandboxes_max = 0\nbegin_ahead = {begin_ahead}\n"))
}

fn counted(server: &Server, outcome: &str) -> u64 {
    metric(server, &format!("codebeaker_begun_ahead_total{{outcome=\"{outcome}\"}}")) as u64
}

/// The one that waits, beside the inits of sessions.
fn waiting(server: &Server, sessions: &[i32]) -> Option<i32> {
    let mut found = None;
    eventually(WAIT, || {
        found = ready_inits(server).into_iter().find(|pid| !sessions.contains(pid));
        found.is_some()
    });
    found
}

/// A server without sessions in which the next sandbox has begun.
fn begun() -> Server {
    host().need(Feature::Python);
    let server = Server::start(&setup(true));
    Session::python(&server).close();
    assert!(waiting(&server, &[]).is_some(), "the next has begun");
    server
}

/// A session that takes what has begun: on a slow host it may just have been given up, and then the next one does.
fn taking<'a>(server: &'a Server, parameters: &Value) -> Session<'a> {
    let mut session = None;
    let took = eventually(WAIT, || {
        std::thread::sleep(Duration::from_millis(100));
        let before = counted(server, "taken");
        session = Some(Session::open(server, parameters));
        counted(server, "taken") > before
    });
    assert!(took, "nothing had begun");
    session.expect("just opened")
}

fn taken() {
    host().need(Feature::Python);
    let server = Server::start(&setup(true));
    assert!(ready_inits(&server).is_empty(), "nobody has asked for anything");
    let first = Session::python(&server);
    assert_eq!(counted(&server, "taken"), 0);
    assert!(waiting(&server, &ready_inits(&server)[..1]).is_some(), "the next has begun");
    let mut second = taking(&server, &json!({"language": "python"}));
    assert_eq!((origin(&first), origin(&second)), (&json!("new"), &json!("new")), "it was made for its session");
    assert_eq!(second.run("print(1)"), "1");
    first.close();
    second.close();
    assert!(eventually(WAIT, || ready_inits(&server).is_empty()), "that process ended with its session");
    end(server);
}

fn same_walls() {
    host().need(Feature::Python);
    let (ahead, each) = (Server::start(&setup(true)), Server::start(&setup(false)));
    for profile in ["default", "strict"] {
        let parameters = json!({"profile": profile, "memoryLimitMB": 200, "env": {"A": "1"}});
        Session::open(&ahead, &parameters).close();
        let (mut begun, mut made) = (taking(&ahead, &parameters), Session::open(&each, &parameters));
        assert_eq!(begun.created["enforcement"], made.created["enforcement"], "{profile}");
        assert_eq!(begun.run(WALLS), made.run(WALLS), "{profile}");
        begun.close();
        made.close();
    }
    end(ahead);
    end(each);
}

/// Its maps, its mounts and its namespaces, while it waits.
fn seen(pid: i32) -> Option<([String; 3], Vec<PathBuf>)> {
    let read = |file: &str| std::fs::read_to_string(format!("/proc/{pid}/{file}")).ok();
    let namespaces = NAMESPACES.iter().map(|name| std::fs::read_link(format!("/proc/{pid}/ns/{name}")).ok());
    Some(([read("uid_map")?, read("gid_map")?, read("mountinfo")?], namespaces.collect::<Option<_>>()?))
}

const NAMESPACES: [&str; 6] = ["pid", "net", "mnt", "ipc", "uts", "user"];

fn knows_nothing() {
    host().need(Feature::Root);
    let server = Server::start(&setup(true));
    let mut found = None;
    let looked = eventually(WAIT, || {
        let mut session = Session::open(&server, &json!({"language": "bash"}));
        // The one that it is about may have been the one that waited before.
        let inits = ready_inits(&server);
        let own = inits.first().and_then(|init| seen(*init));
        found = waiting(&server, &inits[..1]).and_then(seen).zip(own);
        assert_eq!(session.bash("cd /proc; set -- [0-9]*; echo $#"), "2", "init and the shell: nobody waits in its view");
        session.close();
        found.is_some()
    });
    assert!(looked, "nothing waits");
    let (([uids, gids, mounts], waits), (_, of_session)) = found.expect("just seen");
    assert_eq!((uids, gids), (String::new(), String::new()));
    assert!(!mounts.contains("/workspace"), "no mount was made in it");
    let of_host = seen(std::process::id().cast_signed()).expect("the suite's own").1;
    let apart = waits.iter().zip(&of_session).zip(&of_host).all(|((own, session), host)| own != session && own != host);
    assert!(apart, "{waits:?}");
    end(server);
}

fn given_up() {
    let server = begun();
    server.observe();
    assert!(eventually(WAIT, || ready_inits(&server).is_empty()), "nobody came");
    assert_eq!((counted(&server, "taken"), counted(&server, "given_up")), (0, 1));
    let groups = groups_made_by(server.pid().cast_unsigned());
    let of_sandboxes = || groups.iter().filter(|group| below(group)).count();
    assert!(eventually(WAIT, || of_sandboxes() == 0), "its groups went with it");
    let mut session = Session::python(&server);
    assert_eq!(session.run("print(1)"), "1", "the next one is begun when it is asked for");
    session.close();
    end(server);
}

/// Whether a server's own group has one of a sandbox in it.
fn below(group: &std::path::Path) -> bool {
    let entries = group.read_dir().into_iter().flatten().flatten();
    entries.into_iter().any(|entry| entry.file_name().to_string_lossy().starts_with("env_"))
}

fn killed() {
    let server = begun();
    let next = waiting(&server, &[]).expect("it waits");
    // On a slow host it may just have been given up.
    kill(Pid::from_raw(next), Signal::SIGKILL).ok();
    let mut session = Session::python(&server);
    assert_eq!(session.run("print(1)"), "1");
    session.close();
    let launcher = server.launcher().expect("a launcher");
    assert!(waiting(&server, &[]).is_some(), "the next has begun");
    server.observe();
    kill(Pid::from_raw(launcher), Signal::SIGKILL).expect("the trial's own server's launcher");
    assert!(eventually(WAIT, || server.launcher().is_some_and(|pid| pid != launcher)), "another launcher");
    let mut session = Session::python(&server);
    assert_eq!(session.run("print(1)"), "1");
    session.close();
    end(server);
}

fn server_ends() {
    end(begun());
    let server = begun();
    server.signal(Signal::SIGKILL);
    assert!(server.wait(WAIT).is_some(), "it was killed");
    let left = server.left_after(Duration::from_secs(5));
    assert!(left.is_empty(), "{}", left.join("; "));
    assert!(eventually(WAIT, || groups_made_by(server.pid().cast_unsigned()).is_empty()), "the launcher removed the groups");
}

fn known_by_name() {
    host().need(Feature::Python);
    let pool = "[pool]\nsandboxes_max = 0\nbegin_ahead = true\n";
    let config =
        format!("[sandbox]\nprofiles = [\"permissive\", \"default\"]\n[network]\negress_allow = [\"127.0.0.1:9\"]\n{pool}");
    let server = Server::start(&Setup { config, ..Setup::bare() });
    let session = Session::python(&server);
    assert!(waiting(&server, &ready_inits(&server)[..1]).is_some(), "the next has begun");
    let granted = json!({"language": "python", "profile": "permissive", "permissions": {"allowNet": true}});
    let with_a_way = Session::open(&server, &granted);
    assert_eq!(counted(&server, "taken"), 0, "it goes on waiting");
    let control = taking(&server, &json!({"language": "python"}));
    for session in [session, with_a_way, control] {
        session.close();
    }
    end(server);
}

fn off() {
    host().need(Feature::Python);
    let server = Server::start(&setup(false));
    for _ in 0..3 {
        let session = Session::python(&server);
        std::thread::sleep(Duration::from_millis(50));
        assert_eq!(ready_inits(&server).len(), 1, "no sandbox but the session's");
        session.close();
    }
    assert_eq!((counted(&server, "taken"), counted(&server, "given_up")), (0, 0));
    end(server);
}
