//! The isolation level of a runtime: a rule on the walls that stand. Pure; docs/runtimes.md states it.
//!
//! Invariants: one more wall never lowers the level; a required wall that is missing weighs more than all others together; 10 is
//! for a kernel of one's own, which no runtime behind the host's kernel has.

use crate::sandbox::enforcement::{WallState, WallStatus};

/// The walls without which nothing runs unless the operator allows it: DESIGN section 3.
pub const REQUIRED_WALLS: [&str; 10] =
    ["user", "mount", "pid", "network", "ipc", "uts", "capabilities", "no_new_privs", "seccomp", "masked_paths"];

/// The level of a sandbox with every required wall.
const WITH_REQUIRED: u8 = 5;

/// A level more for each of these that stands as designed: host ids that nobody else has, a group that bounds memory and
/// processes, rules on files and signals that outlast a change of rights, clocks of its own.
const FURTHER_WALLS: [&str; 4] = ["user", "cgroup", "landlock", "time"];

/// The row of a runtime that puts several sessions into one sandbox: absent. Others have no such row.
pub const OWN_SANDBOX: &str = "own_sandbox";

/// The most where sessions share a sandbox: then a hole in the engine is enough, and the kernel's walls are not asked.
const SHARED_MAX: u8 = 3;

/// The level of a sandbox with these walls, 0 to 9.
pub fn level(walls: &[WallState]) -> u8 {
    let shared = walls.iter().any(|row| row.name == OWN_SANDBOX && row.state == WallStatus::Absent);
    let level = of_the_sandbox(walls);
    if shared { level.min(SHARED_MAX) } else { level }
}

fn of_the_sandbox(walls: &[WallState]) -> u8 {
    let state = |name: &str| walls.iter().find(|row| row.name == name).map_or(WallStatus::Absent, |row| row.state);
    if REQUIRED_WALLS.iter().any(|name| state(name) == WallStatus::Absent) {
        return 1;
    }
    let further = FURTHER_WALLS.iter().filter(|name| state(name) == WallStatus::Enforced).count();
    WITH_REQUIRED + u8::try_from(further).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn walls(states: &[(&str, WallStatus)]) -> Vec<WallState> {
        states.iter().map(|(name, state)| WallState { name: (*name).into(), state: *state, detail: String::new() }).collect()
    }

    fn all(state_of: impl Fn(&str) -> WallStatus) -> Vec<WallState> {
        let names = REQUIRED_WALLS.iter().chain(&FURTHER_WALLS[1..]);
        walls(&names.map(|name| (*name, state_of(name))).collect::<Vec<_>>())
    }

    #[test]
    fn the_level_follows_from_the_walls() {
        assert_eq!(level(&all(|_| WallStatus::Enforced)), 9);
        assert_eq!(level(&all(|name| if name == "user" { WallStatus::Degraded } else { WallStatus::Enforced })), 8);
        let bare = |name: &str| if FURTHER_WALLS[1..].contains(&name) { WallStatus::Absent } else { WallStatus::Degraded };
        assert_eq!(level(&all(bare)), 5);
        assert_eq!(level(&all(|name| if name == "seccomp" { WallStatus::Absent } else { WallStatus::Enforced })), 1);
        assert_eq!(level(&[]), 1);
    }

    #[test]
    fn a_sandbox_that_sessions_share_is_below_every_one_that_they_do_not() {
        let mut walls = all(|_| WallStatus::Enforced);
        walls.extend(self::walls(&[(OWN_SANDBOX, WallStatus::Absent)]));
        let least = |name: &str| if FURTHER_WALLS[1..].contains(&name) { WallStatus::Absent } else { WallStatus::Degraded };
        assert!(level(&walls) < level(&all(least)), "{}", level(&walls));
        let mut broken = all(|name| if name == "seccomp" { WallStatus::Absent } else { WallStatus::Enforced });
        broken.extend(self::walls(&[(OWN_SANDBOX, WallStatus::Absent)]));
        assert_eq!(level(&broken), 1);
    }

    fn any_state() -> impl Strategy<Value = WallStatus> {
        prop::sample::select(vec![WallStatus::Absent, WallStatus::Degraded, WallStatus::Enforced])
    }

    proptest! {
        #[test]
        fn a_wall_that_gets_better_never_lowers_the_level(states in prop::collection::vec(any_state(), 13), at in 0usize..13) {
            let mut rows = all(|_| WallStatus::Absent);
            for (row, state) in rows.iter_mut().zip(&states) {
                row.state = *state;
            }
            let before = level(&rows);
            rows[at].state = WallStatus::Enforced;
            prop_assert!(level(&rows) >= before && level(&rows) < 10);
        }
    }
}
