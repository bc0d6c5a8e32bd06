//! Limits that hold, each with the true verdict, a sibling session unharmed, and a server that answers meanwhile.
//!
//! Invariant: every hostile program runs inside a session, one at a time; each "cannot" has its "can" beside it: the same
//! program below the limit ends well.

mod disk;
mod processes;

use std::sync::Mutex;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::{Server, Session, Setup, pace, page};

/// Two bombs at once would make each other late.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// Longest answer of the server while a bomb goes off.
const ANSWER_WAIT: Duration = Duration::from_secs(1);

pub fn trials() -> Vec<libtest_mimic::Trial> {
    let mut all = page(
        "limits",
        &[
            ("memory on the heap past the limit is out_of_memory, below it is not", disk::memory_heap),
            ("memory that many small processes use up ends them and never init", disk::memory_in_small_pieces),
            ("memory in /dev/shm and /tmp past the limit ends as a full disk or out of memory", disk::memory_tmpfs),
            ("a full disk is disk_full, for programs and for file commands", disk::full),
            ("too many files are disk_full", disk::inodes),
            ("a deleted file that is still open counts", disk::deleted_but_open),
            ("a sparse file costs only what it holds", disk::sparse),
            ("an endless loop is a timeout", processes::endless_loop),
            ("an output flood is output_limit", processes::output_flood),
        ],
    );
    all.extend(page(
        "limits",
        &[
            ("a fork bomb is pids_limit, and the session lives on", processes::fork_bomb),
            ("a fork bomb that leaves its session of processes is ended too", processes::setsid_bomb),
            ("a child that keeps stdout open does not hold up the answer", processes::open_stdout),
            ("threads count as processes", processes::threads),
            ("a cpu quota holds", processes::cpu_quota),
            ("open descriptors are bounded", processes::descriptors),
        ],
    ));
    all
}

/// Runs `attack` on a session with these limits, while a sibling session and the server are watched.
fn beside_a_sibling(parameters: &Value, attack: impl FnOnce(&mut Session<'_>)) {
    let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let server = Setup::plain().with_config("# limits\n").shared();
    let mut sibling = Session::python(&server);
    sibling.write("canary", "unharmed");
    let mut victim = Session::open(&server, parameters);
    let over = std::sync::atomic::AtomicBool::new(false);
    let slowest = std::thread::scope(|scope| {
        let watch = scope.spawn(|| watch(&server, &over));
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| attack(&mut victim)));
        over.store(true, std::sync::atomic::Ordering::Release);
        let slowest = watch.join().expect("the server answers");
        if let Err(payload) = outcome {
            std::panic::resume_unwind(payload);
        }
        slowest
    });
    assert!(slowest < ANSWER_WAIT * pace(), "the server took {slowest:?} to answer meanwhile");
    assert_eq!(sibling.read("canary"), "unharmed");
    assert_eq!(sibling.bash("echo works"), "works");
}

/// Asks the server again and again; the longest time to an answer.
fn watch(server: &Server, over: &std::sync::atomic::AtomicBool) -> Duration {
    let mut client = server.client();
    let mut slowest = Duration::ZERO;
    while !over.load(std::sync::atomic::Ordering::Acquire) {
        let begin = Instant::now();
        client.ok("session.list", &json!({}));
        slowest = slowest.max(begin.elapsed());
        std::thread::sleep(Duration::from_millis(50));
    }
    slowest
}

fn python(code: &str) -> Value {
    json!({"type": "execute_code", "language": "python", "code": code, "timeoutSeconds": 60})
}
