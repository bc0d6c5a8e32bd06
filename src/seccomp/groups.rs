//! System calls by topic: systemd's sets, so that a profile can be read by the words that unit files already use.
//!
//! Invariant: the sets are data (`data/groups.txt`); a call that no set names, because it is newer than the sets, stands in
//! `@unlisted` rather than nowhere.

use std::collections::BTreeSet;
use std::sync::OnceLock;

use super::arch::{self, Arch};

/// One set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Group {
    /// `@network-io`
    pub name: &'static str,
    /// What it is for.
    pub about: &'static str,
    /// Calls of any architecture, other sets resolved, sorted.
    pub members: BTreeSet<&'static str>,
}

const DATA: &str = include_str!("data/groups.txt");

/// The set of calls that systemd's sets do not name.
pub const UNLISTED: &str = "@unlisted";

/// Every set, in the order of systemd's table.
pub fn all() -> &'static [Group] {
    static ALL: OnceLock<Vec<Group>> = OnceLock::new();
    ALL.get_or_init(|| {
        let lines: Vec<[&str; 3]> = DATA.lines().filter(|line| line.starts_with('@')).filter_map(fields).collect();
        let mut groups: Vec<Group> = lines
            .iter()
            .map(|[name, about, _]| Group { name, about, members: members(&lines, name, GROUP_DEPTH_MAX) })
            .collect();
        let named: BTreeSet<&str> = groups.iter().filter(|group| is_narrow(group)).flat_map(|g| g.members.clone()).collect();
        let every = [Arch::X86_64, Arch::Aarch64].into_iter().flat_map(arch::names).map(|(_, name)| name);
        let rest = every.filter(|name| !named.contains(name)).collect();
        groups.push(Group { name: UNLISTED, about: "Calls that no other set names, most of them newer", members: rest });
        groups
    })
}

/// Not one of the two that hold nearly everything.
fn is_narrow(group: &Group) -> bool {
    !matches!(group.name, "@known" | "@system-service")
}

/// Sets within sets.
const GROUP_DEPTH_MAX: u32 = 4;

fn fields(line: &'static str) -> Option<[&'static str; 3]> {
    let mut parts = line.split(" | ");
    Some([parts.next()?, parts.next()?, parts.next()?])
}

fn members(lines: &[[&'static str; 3]], name: &str, depth: u32) -> BTreeSet<&'static str> {
    let listed = lines.iter().find(|[known, ..]| *known == name).map_or("", |[_, _, list]| *list);
    let nested = |word: &'static str| {
        if word.starts_with('@') && depth > 0 { members(lines, word, depth - 1) } else { BTreeSet::from([word]) }
    };
    listed.split_whitespace().flat_map(nested).collect()
}

/// The sets that name a call, the broad ones left out.
pub fn of(syscall: &str) -> Vec<&'static str> {
    all()
        .iter()
        .filter(|group| is_narrow(group))
        .filter(|group| group.members.contains(syscall))
        .map(|group| group.name)
        .collect()
}

/// The set of that name, with or without `@`.
pub fn find(name: &str) -> Option<&'static Group> {
    let bare = name.trim_start_matches('@');
    all().iter().find(|group| &group.name[1..] == bare)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_are_systemds_and_nested_sets_are_resolved() {
        assert!(find("@mount").expect("a set").members.contains("pivot_root"));
        assert!(find("system-service").expect("a set").members.contains("read"), "by way of @file-system or @io");
        assert!(all().iter().all(|group| group.members.iter().all(|name| !name.starts_with('@'))));
        assert_eq!(of("ptrace"), ["@debug"]);
    }

    #[test]
    fn every_call_of_the_tables_is_in_some_set() {
        for arch in [Arch::X86_64, Arch::Aarch64] {
            for (_, name) in arch::names(arch) {
                assert!(!of(name).is_empty(), "{name}");
            }
        }
        assert!(find(UNLISTED).expect("ours").members.contains("file_setattr"), "newer than the sets");
    }
}
