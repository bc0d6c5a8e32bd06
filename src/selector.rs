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
    if !facts.languages.contains(&requirements.language) {
        return Some(format!("it does not serve {}", requirements.language));
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
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn facts(kind: RuntimeKind, startup_time_ms: f64, memory_overhead_mb: f64, isolation_level: u8) -> CandidateFacts {
        CandidateFacts {
            kind,
            languages: vec!["python".into()],
            commands: CommandKind::ALL.to_vec(),
            availability: Availability::Available,
            features: Features {
                startup_time_ms,
                memory_overhead_mb,
                isolation_level,
                filesystem_persistence: true,
                network_access: false,
                concurrent_executions_max: 1,
                measured: true,
            },
            ground: match kind {
                RuntimeKind::NativeProcess | RuntimeKind::Docker => Ground::Image,
                RuntimeKind::Deno
                | RuntimeKind::Bun
                | RuntimeKind::NodeJs
                | RuntimeKind::WebAssembly
                | RuntimeKind::V8Isolate => Ground::Own,
            },
            lacks: None,
        }
    }

    fn wanting(preference: Preference) -> Requirements {
        Requirements {
            preference,
            language: "python".into(),
            runtime: None,
            isolation_level_min: 0,
            needs: BTreeSet::new(),
            commands: Vec::new(),
            reach: Reach::Code,
        }
    }

    fn chosen(requirements: &Requirements, candidates: &[CandidateFacts]) -> Option<RuntimeKind> {
        select(requirements, candidates).ok().map(|selection| selection.candidates[0].runtime)
    }

    fn three() -> Vec<CandidateFacts> {
        vec![
            facts(RuntimeKind::NativeProcess, 1.0, 2.0, 8),
            facts(RuntimeKind::WebAssembly, 30.0, 20.0, 9),
            facts(RuntimeKind::V8Isolate, 0.5, 40.0, 6),
        ]
    }

    #[test]
    fn each_preference_has_its_own_winner() {
        assert_eq!(chosen(&wanting(Preference::Speed), &three()), Some(RuntimeKind::V8Isolate));
        assert_eq!(chosen(&wanting(Preference::Memory), &three()), Some(RuntimeKind::NativeProcess));
        assert_eq!(chosen(&wanting(Preference::Security), &three()), Some(RuntimeKind::WebAssembly));
        assert_eq!(chosen(&wanting(Preference::Balanced), &three()), Some(RuntimeKind::NativeProcess));
    }

    #[test]
    fn isolation_can_win_the_balance() {
        let weak = facts(RuntimeKind::V8Isolate, 1.0, 2.0, 1);
        let strong = facts(RuntimeKind::NativeProcess, 2.0, 3.0, 9);
        assert_eq!(chosen(&wanting(Preference::Balanced), &[weak, strong]), Some(RuntimeKind::NativeProcess));
    }

    #[test]
    fn docker_is_taken_by_name_or_where_the_sandbox_can_not_be_built_and_that_is_said() {
        let docker = facts(RuntimeKind::Docker, 0.1, 0.5, 10);
        let native = facts(RuntimeKind::NativeProcess, 500.0, 500.0, 5);
        let both = [docker.clone(), native.clone()];
        assert_eq!(chosen(&wanting(Preference::Speed), &both), Some(RuntimeKind::NativeProcess));
        let above = Requirements { isolation_level_min: 9, ..wanting(Preference::Speed) };
        let refused = select(&above, &both).expect_err("the sandbox can be built, so Docker does not step in for it");
        assert!(refused.iter().any(|candidate| candidate.reason.contains("the fallback")), "{refused:?}");
        let down = CandidateFacts { availability: Availability::Unavailable("no user namespaces".into()), ..native };
        let fallen = select(&wanting(Preference::Speed), &[docker, down]).expect("Docker");
        assert_eq!(fallen.candidates[0].runtime, RuntimeKind::Docker);
        assert!(fallen.reason.contains("the fallback") && fallen.reason.contains("no user namespaces"), "{}", fallen.reason);
        let named = Requirements { runtime: Some(RuntimeKind::Docker), ..wanting(Preference::Speed) };
        assert_eq!(chosen(&named, &both), Some(RuntimeKind::Docker));
    }

    #[test]
    fn who_has_only_its_engine_comes_after_who_has_programs_unless_code_is_all() {
        let native = facts(RuntimeKind::NativeProcess, 500.0, 500.0, 5);
        let bun = facts(RuntimeKind::Bun, 1.0, 1.0, 9);
        let both = [native.clone(), bun.clone()];
        let wide = Requirements { reach: Reach::Programs, ..wanting(Preference::Balanced) };
        assert_eq!(chosen(&wide, &both), Some(RuntimeKind::NativeProcess));
        assert_eq!(chosen(&wanting(Preference::Balanced), &both), Some(RuntimeKind::Bun), "the control");
        let named = Requirements { runtime: Some(RuntimeKind::Bun), ..wide.clone() };
        assert_eq!(chosen(&named, &both), Some(RuntimeKind::Bun));
        assert_eq!(chosen(&wide, &[bun]), Some(RuntimeKind::Bun), "there is no other");
        let bare = CandidateFacts { lacks: Some("no program of it is in the image".into()), ..native };
        let selection = select(&wide, &[bare.clone(), both[1].clone()]).expect("Bun");
        assert_eq!(selection.candidates[0].runtime, RuntimeKind::Bun);
        assert!(selection.candidates[1].reason.contains("in the image"));
        assert_eq!(chosen(&wide, &[bare]), Some(RuntimeKind::NativeProcess), "there is no other");
    }

    #[test]
    fn the_reason_of_the_runtime_that_was_named_comes_first() {
        let down = CandidateFacts {
            availability: Availability::Unavailable("it is not installed".into()),
            ..facts(RuntimeKind::NodeJs, 1.0, 1.0, 9)
        };
        let named = Requirements { runtime: Some(RuntimeKind::NodeJs), ..wanting(Preference::Speed) };
        let refused = select(&named, &[facts(RuntimeKind::NativeProcess, 1.0, 1.0, 9), down]).expect_err("not there");
        assert_eq!((refused[0].runtime, refused[0].reason.as_str()), (RuntimeKind::NodeJs, "it is not installed"));
    }

    #[test]
    fn each_requirement_refuses_who_lacks_it_and_says_so() {
        let some = CommandKind::ALL.into_iter().filter(|command| *command != CommandKind::CopyFile).collect();
        let one = [CandidateFacts { commands: some, ..facts(RuntimeKind::NativeProcess, 1.0, 2.0, 8) }];
        let wanted = wanting(Preference::Balanced);
        assert!(chosen(&wanted, &one).is_some(), "the control");
        let cases = [
            (Requirements { language: "cobol".into(), ..wanted.clone() }, "it does not serve cobol"),
            (Requirements { isolation_level_min: 9, ..wanted.clone() }, "below the operator's floor 9"),
            (Requirements { needs: [Need::Network].into(), ..wanted.clone() }, "it has no network"),
            (Requirements { runtime: Some(RuntimeKind::Deno), ..wanted.clone() }, "the request names Deno"),
            (Requirements { commands: vec![CommandKind::CopyFile], ..wanted.clone() }, "it has no command copy_file"),
        ];
        for (requirements, words) in cases {
            let refused = select(&requirements, &one).expect_err(words);
            assert!(refused[0].reason.contains(words), "{}", refused[0].reason);
        }
        let mut poor = one;
        poor[0].features.filesystem_persistence = false;
        poor[0].commands.clear();
        assert!(chosen(&Requirements { needs: [Need::Persistence].into(), ..wanted.clone() }, &poor).is_none());
        assert!(chosen(&Requirements { commands: vec![CommandKind::ExecuteCode], ..wanted }, &poor).is_none());
    }

    fn any_preference() -> impl Strategy<Value = Preference> {
        prop::sample::select(vec![Preference::Speed, Preference::Security, Preference::Memory, Preference::Balanced])
    }

    fn any_candidates() -> impl Strategy<Value = Vec<CandidateFacts>> {
        let figures = (0.01f64..50_000.0, 0.1f64..4000.0, 0u8..=10, any::<bool>());
        prop::collection::vec(figures, 7).prop_map(|rows| {
            RuntimeKind::ALL
                .into_iter()
                .zip(rows)
                .map(|(kind, (startup, memory, isolation, available))| {
                    let down = Availability::Unavailable("down".into());
                    let availability = if available { Availability::Available } else { down };
                    CandidateFacts { availability, ..facts(kind, startup, memory, isolation) }
                })
                .collect()
        })
    }

    proptest! {
        #[test]
        fn what_is_chosen_is_available_and_never_below_the_floor(
            preference in any_preference(), candidates in any_candidates(), floor in 0u8..=10,
        ) {
            let requirements = Requirements { isolation_level_min: floor, ..wanting(preference) };
            match select(&requirements, &candidates) {
                Ok(selection) => {
                    let best = &selection.candidates[0];
                    let facts = candidates.iter().find(|facts| facts.kind == best.runtime).expect("one of them");
                    prop_assert!(best.chosen && facts.features.isolation_level >= floor);
                    prop_assert_eq!(&facts.availability, &Availability::Available);
                    prop_assert_eq!(selection.candidates.len(), candidates.len());
                }
                Err(refused) => prop_assert_eq!(refused.len(), candidates.len()),
            }
        }

        #[test]
        fn the_order_of_the_candidates_does_not_matter(
            preference in any_preference(), candidates in any_candidates(), turn in 0usize..7,
        ) {
            let mut turned = candidates.clone();
            turned.rotate_left(turn);
            prop_assert_eq!(select(&wanting(preference), &candidates), select(&wanting(preference), &turned));
        }

        #[test]
        fn who_was_chosen_stays_chosen_when_it_gets_better(
            preference in any_preference(), candidates in any_candidates(), factor in 0.1f64..1.0,
        ) {
            if let Some(kind) = chosen(&wanting(preference), &candidates) {
                let mut better = candidates;
                for facts in better.iter_mut().filter(|facts| facts.kind == kind) {
                    facts.features.startup_time_ms *= factor;
                    facts.features.memory_overhead_mb *= factor;
                    facts.features.isolation_level = (facts.features.isolation_level + 1).min(10);
                }
                prop_assert_eq!(chosen(&wanting(preference), &better), Some(kind));
            }
        }
    }
}
