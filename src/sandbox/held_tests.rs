//! Every limit on every kind of host.

use std::num::NonZeroU64;
use std::time::Duration;

use super::*;

fn limits() -> Limits {
    Limits {
        memory_bytes: NonZeroU64::MIN,
        cpu_shares: 1024,
        cpu_cores: None,
        pids: 16,
        disk_bytes: 1 << 20,
        inodes: 100,
        output_kept_bytes: 1,
        output_killed_bytes: 1 << 20,
        timeout: Duration::from_secs(1),
        timeout_max: Duration::from_secs(2),
        open_files: 1024,
    }
}

fn group(states: [(&str, WallStatus); 4]) -> Vec<WallState> {
    states.map(|(name, state)| WallState { name: name.into(), state, detail: format!("what carries {name}") }).to_vec()
}

use WallStatus::{Absent, Degraded, Enforced};

/// A kind of host: what groups say, and the states that a session is told of memory, pids, cpu and io.
type Host = (&'static str, Option<Vec<WallState>>, [WallStatus; 4]);

fn hosts() -> Vec<Host> {
    let all = |pids, cpu, io| Some(group([("memory", Enforced), ("pids", pids), ("cpu", cpu), ("io", io)]));
    vec![
        ("v2 with everything", all(Enforced, Enforced, Enforced), [Enforced; 4]),
        ("v1", all(Enforced, Enforced, Absent), [Enforced, Enforced, Enforced, Absent]),
        ("v2 without cpu and io", all(Enforced, Absent, Absent), [Enforced, Enforced, Absent, Absent]),
        ("v2 with memory only", all(Absent, Absent, Absent), [Enforced, Degraded, Absent, Absent]),
        (
            "no swap accounting",
            Some(group([("memory", Degraded), ("pids", Enforced), ("cpu", Enforced), ("io", Absent)])),
            [Degraded, Enforced, Enforced, Absent],
        ),
        ("no group at all", None, [Absent, Degraded, Absent, Absent]),
    ]
}

#[test]
fn every_limit_has_a_row_on_every_host_and_each_says_how_it_holds_or_why_not() {
    for (host, carried, expected) in hosts() {
        let rows = rows(&limits(), carried.as_deref(), None);
        let names: Vec<&str> = rows.iter().map(|row| row.name.as_str()).collect();
        assert_eq!(names, ["memory", "pids", "cpu", "io", "disk", "inodes", "open_files", "output", "wall_time"], "{host}");
        let states: Vec<WallStatus> = rows.iter().map(|row| row.state).collect();
        assert_eq!(states[..4], expected, "{host}");
        assert!(states[4..].iter().all(|state| *state == Enforced), "{host}: no group is needed for the others");
        assert!(rows.iter().all(|row| !row.detail.is_empty()), "{host}");
    }
}

#[test]
fn a_named_limit_is_refused_exactly_where_its_row_says_that_it_does_not_hold() {
    let named: [(&str, NamedLimits); 5] = [
        ("memory", NamedLimits { memory: true, ..NamedLimits::default() }),
        ("pids", NamedLimits { pids: true, ..NamedLimits::default() }),
        ("cpu", NamedLimits { cpu_cores: true, ..NamedLimits::default() }),
        ("cpu", NamedLimits { cpu_shares: true, ..NamedLimits::default() }),
        ("disk", NamedLimits { disk: true, ..NamedLimits::default() }),
    ];
    for (host, carried, _) in hosts() {
        let rows = rows(&limits(), carried.as_deref(), None);
        assert_eq!(refuse_named(NamedLimits::default(), &rows), Ok(()), "{host}: nothing is named");
        for (limit, named) in named {
            let row = rows.iter().find(|row| row.name == limit).expect("a row each");
            let held = row.state == Enforced || (limit == "memory" && row.state == Degraded);
            match refuse_named(named, &rows) {
                Ok(()) => assert!(held, "{host}: {limit}"),
                Err(SandboxError::LimitUnenforceable { limit: told, cause, .. }) => {
                    assert!(!held && told == limit && cause == row.detail, "{host}: {limit}, told {told}");
                }
                Err(other) => panic!("{host}: {other}"),
            }
        }
    }
}

#[test]
fn a_server_that_may_open_less_than_the_profile_says_so() {
    let state = |hard| rows(&limits(), None, hard).into_iter().find(|row| row.name == "open_files").expect("a row");
    assert_eq!(state(Some(1024)).state, Enforced);
    assert_eq!(state(None).state, Enforced);
    let less = state(Some(64));
    assert!(less.state == Degraded && less.detail.contains("RLIMIT_NOFILE 64"), "{}", less.detail);
}
