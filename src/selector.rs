//! Which runtime serves a request: a pure function of requirements and features.
//!
//! Invariants: what is chosen meets every requirement and the isolation floor; the order of the candidates does not matter;
//! Docker is taken unasked only where the OS sandbox can't be built, and the reason then says so; every candidate gets a reason.
//! Read `runtime::registry` next.

use std::cmp::Ordering;
use std::collections::BTreeSet;

use crate::command::CommandKind;
pub use crate::runtime::features::CandidateFacts;
use crate::runtime::features::{Features, Ground};
use crate::runtime::{Availability, RuntimeKind};

/// What a request needs of its runtime.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Requirements {
    /// What to weigh.
    pub preference: Preference,
    /// Name (not alias) of the language.
    pub language: String,
    /// The runtime that the request names; then no other is taken.
    pub runtime: Option<RuntimeKind>,
    /// The operator's floor, 0 to 10.
    pub isolation_level_min: u8,
    /// Features it can't do without.
    pub needs: BTreeSet<Need>,
    /// Commands it is going to send for certain.
    pub commands: Vec<CommandKind>,
    /// What else it may send.
    pub reach: Reach,
}

/// What a request may send that it does not say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    /// Code in its language, and nothing else.
    Code,
    /// Any program that an image has.
    Programs,
}

/// A feature that a request may need.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Need {
    /// Files stay between executions.
    Persistence,
    /// Network beyond loopback.
    Network,
    /// The image that it names.
    Image,
}

/// `runtimePreference`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the words of PROTOCOL")]
pub enum Preference {
    Speed,
    Security,
    Memory,
    Balanced,
}

/// How the runtime was chosen: `selection` on the wire.
#[derive(Debug, Clone, PartialEq)]
pub struct Selection {
    /// What was asked for.
    pub preference: Preference,
    /// One sentence.
    pub reason: String,
    /// All that were looked at, the chosen one first.
    pub candidates: Vec<Candidate>,
}

/// One runtime in a selection.
#[derive(Debug, Clone, PartialEq)]
pub struct Candidate {
    /// Which.
    pub runtime: RuntimeKind,
    /// Whether it was taken.
    pub chosen: bool,
    /// Its score under the preference; absent when it was not eligible.
    pub score: Option<f64>,
    /// Why, or why not.
    pub reason: String,
}

/// Chooses among `candidates`; the error holds why each was not eligible.
pub fn select(requirements: &Requirements, candidates: &[CandidateFacts]) -> Result<Selection, Vec<Candidate>> {
    let (mut eligible, mut refused): (Vec<&CandidateFacts>, Vec<Candidate>) = (Vec::new(), Vec::new());
    for facts in candidates {
        match refusal(requirements, facts).or_else(|| fallback_refused(requirements, facts, candidates)) {
            None => eligible.push(facts),
            Some(reason) => refused.push(Candidate { runtime: facts.kind, chosen: false, score: None, reason }),
        }
    }
    set_aside(&mut eligible, &mut refused, |facts| facts.lacks.clone());
    set_aside(&mut eligible, &mut refused, |facts| {
        let narrow = requirements.reach == Reach::Programs && facts.ground == Ground::Own;
        narrow.then(|| {
            "it has no program but its engine, and the request may send any; a `runtimeType` or a preference takes it".into()
        })
    });
    eligible.sort_by(|left, right| compare(requirements.preference, left, right));
    // The one that was asked for comes first, since its reason is the one that counts.
    refused.sort_by_key(|candidate| (requirements.runtime != Some(candidate.runtime), candidate.runtime));
    let Some(best) = eligible.first() else { return Err(refused) };
    let mut reason = chosen_reason(requirements, best, eligible.len());
    if best.kind == RuntimeKind::Docker
        && let Some(cause) = sandbox_missing(candidates)
    {
        reason = format!("Docker is the fallback, for the OS sandbox can't be built here: {cause}");
    }
    let mut all: Vec<Candidate> =
        eligible.iter().enumerate().map(|(rank, facts)| ranked(requirements.preference, facts, rank)).collect();
    all[0].reason.clone_from(&reason);
    all.extend(refused);
    Ok(Selection { preference: requirements.preference, reason, candidates: all })
}

/// Sets aside those that a reason speaks against, if there are others.
fn set_aside(
    eligible: &mut Vec<&CandidateFacts>,
    refused: &mut Vec<Candidate>,
    against: impl Fn(&CandidateFacts) -> Option<String>,
) {
    if eligible.iter().all(|facts| against(facts).is_some()) {
        return;
    }
    eligible.retain(|facts| {
        let reason = against(facts);
        refused.extend(reason.clone().map(|reason| Candidate { runtime: facts.kind, chosen: false, score: None, reason }));
        reason.is_none()
    });
}

/// Why the OS sandbox can't be built here; `None` when it can.
fn sandbox_missing(candidates: &[CandidateFacts]) -> Option<&str> {
    let native = candidates.iter().find(|facts| facts.kind == RuntimeKind::NativeProcess);
    match native.map(|facts| &facts.availability) {
        Some(Availability::Available) => None,
        Some(Availability::Unavailable(cause)) => Some(cause),
        None => Some("this build has no OS sandbox"),
    }
}

/// Docker serves unasked only where the OS sandbox can't be built.
fn fallback_refused(requirements: &Requirements, facts: &CandidateFacts, candidates: &[CandidateFacts]) -> Option<String> {
    let unasked = facts.kind == RuntimeKind::Docker && requirements.runtime.is_none();
    (unasked && sandbox_missing(candidates).is_none()).then(|| {
        "it is the fallback for hosts where the OS sandbox can't be built, and here it can; `runtimeType` takes it".into()
    })
}

/// Why it can't serve; `None` when it can.
fn refusal(requirements: &Requirements, facts: &CandidateFacts) -> Option<String> {
    if let Some(asked) = requirements.runtime
        && asked != facts.kind
    {
        return Some(format!("the request names {}", asked.name()));
    }
    if let Availability::Unavailable(reason) = &facts.availability {
        return Some(reason.clone());
    }
    if !facts.serves {
        let unserved = || format!("it does not serve {}", requirements.language);
        return Some(
            facts
                .lacks
                .as_ref()
                .map_or_else(unserved, |lacks| format!("it does not serve {} yet: {lacks}", requirements.language)),
        );
    }
    let level = facts.features.isolation_level;
    if level < requirements.isolation_level_min {
        return Some(format!("its isolation level {level} is below the operator's floor {}", requirements.isolation_level_min));
    }
    let lacking = requirements.needs.iter().find(|need| match need {
        Need::Persistence => !facts.features.filesystem_persistence,
        Need::Network => !facts.features.network_access,
        Need::Image => facts.ground == Ground::Own,
    });
    if let Some(need) = lacking {
        return Some(match need {
            Need::Persistence => "it does not keep files between executions".into(),
            Need::Network => "it has no network".into(),
            Need::Image => "it stands on no image, and the request names one".into(),
        });
    }
    let command = requirements.commands.iter().find(|command| !facts.commands.contains(command))?;
    Some(format!("it has no command {}", command.name()))
}

/// The better one first; ties go to the better balance, then to DESIGN's order, so that the outcome never depends on the input's.
fn compare(preference: Preference, left: &CandidateFacts, right: &CandidateFacts) -> Ordering {
    let (a, b) = (&left.features, &right.features);
    let by_preference = match preference {
        Preference::Speed => figure(a.startup_time_ms).total_cmp(&figure(b.startup_time_ms)),
        Preference::Memory => figure(a.memory_overhead_mb).total_cmp(&figure(b.memory_overhead_mb)),
        Preference::Security => b.isolation_level.cmp(&a.isolation_level),
        Preference::Balanced => Ordering::Equal,
    };
    by_preference.then_with(|| balance(b).total_cmp(&balance(a))).then_with(|| left.kind.cmp(&right.kind))
}

/// A figure that is no number counts as the worst.
fn figure(value: f64) -> f64 {
    if value.is_nan() { f64::INFINITY } else { value }
}

fn score(preference: Preference, features: &Features) -> f64 {
    match preference {
        Preference::Speed => speed_score(features),
        Preference::Memory => memory_score(features),
        Preference::Security => f64::from(features.isolation_level),
        Preference::Balanced => balance(features),
    }
}

/// Speed and memory, 0 to 10 each, and half of the isolation level.
fn balance(features: &Features) -> f64 {
    speed_score(features) + memory_score(features) + f64::from(features.isolation_level) / 2.0
}

/// 10 at 0.1 ms and less, 0 at 10 s and more.
fn speed_score(features: &Features) -> f64 {
    log_score(features.startup_time_ms, 0.1, 10_000.0)
}

/// 10 at half a MiB and less, 0 at 1 GiB and more.
fn memory_score(features: &Features) -> f64 {
    log_score(features.memory_overhead_mb, 0.5, 1024.0)
}

fn log_score(value: f64, best: f64, worst: f64) -> f64 {
    let clamped = figure(value).clamp(best, worst);
    10.0 * (worst.ln() - clamped.ln()) / (worst.ln() - best.ln())
}

fn figures(features: &Features) -> String {
    let Features { startup_time_ms, memory_overhead_mb, isolation_level, .. } = features;
    format!("{startup_time_ms:.2} ms to start, {memory_overhead_mb:.1} MiB, isolation level {isolation_level}")
}

fn ranked(preference: Preference, facts: &CandidateFacts, rank: usize) -> Candidate {
    Candidate {
        runtime: facts.kind,
        chosen: rank == 0,
        score: Some(score(preference, &facts.features)),
        reason: format!("it can serve, and others come first: {}", figures(&facts.features)),
    }
}

fn chosen_reason(requirements: &Requirements, best: &CandidateFacts, eligible: usize) -> String {
    let name = best.kind.name();
    let figures = figures(&best.features);
    if requirements.runtime.is_some() {
        return format!("the request names {name} ({figures})");
    }
    if eligible == 1 {
        return format!("{name} is the only runtime here that can serve this ({figures})");
    }
    let virtue = match requirements.preference {
        Preference::Speed => "starts fastest",
        Preference::Memory => "needs least memory",
        Preference::Security => "isolates best",
        Preference::Balanced => "has the best balance of speed, memory and isolation",
    };
    format!("{name} {virtue} ({figures})")
}

#[cfg(test)]
mod tests;
