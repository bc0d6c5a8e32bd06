//! That no wall is without a pair: what plans and `enforcement` name, what SECURITY lists, what docs/threat-model.md says.

use std::collections::BTreeSet;

use codebeaker::plan::NAMESPACES;

use super::{Pair, pairs};
use crate::bench::Bench;
use crate::escape::PROFILES;
use crate::support::page;

pub(super) fn trials() -> Vec<libtest_mimic::Trial> {
    page(
        "escape",
        &[
            ("every wall that a plan or enforcement names has a pair", every_wall),
            ("docs/threat-model.md names every pair", documented),
        ],
    )
}

/// Walls that no step and no row of `enforcement` speaks of.
const BESIDE_THE_PLAN: [&str; 1] = ["file_commands"];

fn every_wall() {
    let bench = Bench::new();
    let mut named: BTreeSet<String> = BESIDE_THE_PLAN.iter().map(|name| (*name).to_owned()).collect();
    for profile in PROFILES {
        let compiled = bench.draft_without_groups(profile);
        let plan = &compiled.plan;
        named.extend(compiled.walls.iter().map(|row| row.name.clone()));
        named.extend(plan.outside.iter().map(|step| step.wall().to_owned()));
        named.extend(plan.inside.iter().map(|step| step.wall().to_owned()));
        named.extend(plan.program.iter().map(|step| step.wall().to_owned()));
        let namespaces = NAMESPACES.iter().filter(|(flag, _)| plan.namespaces & flag != 0);
        named.extend(namespaces.map(|(_, name)| (*name).to_owned()));
    }
    let paired: BTreeSet<String> = pairs().map(|pair| pair.wall.to_owned()).collect();
    let without: Vec<&String> = named.difference(&paired).collect();
    assert!(without.is_empty(), "walls without a pair: {without:?}");
    let unknown: Vec<&String> = paired.difference(&named).collect();
    assert!(unknown.is_empty(), "pairs of no wall: {unknown:?}");
    let names: BTreeSet<String> = pairs().map(Pair::name).collect();
    assert_eq!(names.len(), pairs().count(), "two pairs have one name");
    for pair in pairs() {
        assert_ne!(pair.held, pair.open, "{}: both sides see the same", pair.name());
    }
}

fn documented() {
    let text = include_str!("../../../../docs/threat-model.md");
    let missing: Vec<String> =
        pairs().filter(|pair| !text.contains(&row(pair))).map(|pair| format!("\n{}", row(pair))).collect();
    assert!(missing.is_empty(), "the table has no line{}", missing.join(""));
}

fn row(pair: &Pair) -> String {
    format!("| {} | {} | {} | {} |", pair.wall, pair.claim, pair.held, pair.open)
}
