use proptest::prelude::*;

use super::*;

fn facts(kind: RuntimeKind, startup_time_ms: f64, memory_overhead_mb: f64, isolation_level: u8) -> CandidateFacts {
    CandidateFacts {
        kind,
        serves: true,
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
            RuntimeKind::Deno | RuntimeKind::Bun | RuntimeKind::NodeJs | RuntimeKind::WebAssembly | RuntimeKind::V8Isolate => {
                Ground::Own
            }
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
    let other = [CandidateFacts { serves: false, ..poor[0].clone() }];
    let refused = select(&wanted, &other).expect_err("another language");
    assert_eq!(refused[0].reason, "it does not serve python");
    assert!(chosen(&Requirements { needs: [Need::Persistence].into(), ..wanted.clone() }, &poor).is_none());
    assert!(chosen(&Requirements { commands: vec![CommandKind::ExecuteCode], ..wanted }, &poor).is_none());
}

fn any_preference() -> impl Strategy<Value = Preference> {
    prop::sample::select(vec![Preference::Speed, Preference::Security, Preference::Memory, Preference::Balanced])
}

fn any_candidates() -> impl Strategy<Value = Vec<CandidateFacts>> {
    let figures = (0.01f64..50_000.0, 0.1f64..4000.0, 0u8..=10, prop::collection::vec(any::<bool>(), 6));
    prop::collection::vec(figures, 7).prop_map(|rows| {
        RuntimeKind::ALL
            .into_iter()
            .zip(rows)
            .map(|(kind, (startup, memory, isolation, truths))| {
                let down = Availability::Unavailable("down".into());
                let mut facts = facts(kind, startup, memory, isolation);
                facts.availability = if truths[0] { Availability::Available } else { down };
                facts.features.filesystem_persistence = truths[1];
                facts.features.network_access = truths[2];
                facts.commands.retain(|command| truths[3] || *command != CommandKind::InstallPackages);
                facts.lacks = truths[4].then(|| "its programs are not there".into());
                facts.serves = truths[5];
                facts
            })
            .collect()
    })
}

fn any_requirements() -> impl Strategy<Value = Requirements> {
    let runtime = prop::option::weighted(0.2, prop::sample::select(RuntimeKind::ALL.to_vec()));
    let needs = prop::collection::btree_set(prop::sample::select(vec![Need::Persistence, Need::Network, Need::Image]), 0..3);
    let commands = prop::collection::vec(prop::sample::select(CommandKind::ALL.to_vec()), 0..2);
    let reach = prop::sample::select(vec![Reach::Code, Reach::Programs]);
    (any_preference(), runtime, 0u8..=10, needs, commands, reach).prop_map(
        |(preference, runtime, isolation_level_min, needs, commands, reach)| Requirements {
            runtime,
            isolation_level_min,
            needs,
            commands,
            reach,
            ..wanting(preference)
        },
    )
}

/// Whether the facts meet everything that the requirements demand, told anew and not as `refusal` does.
fn meets(requirements: &Requirements, facts: &CandidateFacts) -> bool {
    let features = &facts.features;
    facts.availability == Availability::Available
        && requirements.runtime.is_none_or(|kind| kind == facts.kind)
        && facts.serves
        && features.isolation_level >= requirements.isolation_level_min
        && requirements.commands.iter().all(|command| facts.commands.contains(command))
        && (!requirements.needs.contains(&Need::Persistence) || features.filesystem_persistence)
        && (!requirements.needs.contains(&Need::Network) || features.network_access)
        && (!requirements.needs.contains(&Need::Image) || facts.ground == Ground::Image)
}

proptest! {
    #[test]
    fn what_is_chosen_meets_everything_and_every_candidate_has_one_reason(
        requirements in any_requirements(), candidates in any_candidates(),
    ) {
        let told = match select(&requirements, &candidates) {
            Ok(selection) => {
                let best = &selection.candidates[0];
                let facts = candidates.iter().find(|facts| facts.kind == best.runtime).expect("one of them");
                prop_assert!(best.chosen && meets(&requirements, facts), "{selection:?}");
                prop_assert_eq!(selection.candidates.iter().filter(|candidate| candidate.chosen).count(), 1);
                prop_assert_eq!(&selection.reason, &best.reason);
                selection.candidates
            }
            Err(refused) => {
                // Docker alone may meet everything and yet be refused: it is no fallback where the sandbox can be built.
                prop_assert!(!candidates.iter().any(|facts| facts.kind != RuntimeKind::Docker && meets(&requirements, facts)));
                refused
            }
        };
        let kinds: BTreeSet<RuntimeKind> = told.iter().map(|candidate| candidate.runtime).collect();
        prop_assert_eq!(kinds.len(), candidates.len());
        prop_assert_eq!(told.len(), candidates.len());
        prop_assert!(told.iter().all(|candidate| !candidate.reason.is_empty()));
    }

    #[test]
    fn docker_steps_in_only_where_the_sandbox_can_not_be_built(
        requirements in any_requirements(), candidates in any_candidates(),
    ) {
        let taken = chosen(&requirements, &candidates) == Some(RuntimeKind::Docker);
        let named = requirements.runtime == Some(RuntimeKind::Docker);
        let sandbox = candidates.iter().any(|facts| {
            facts.kind == RuntimeKind::NativeProcess && facts.availability == Availability::Available
        });
        prop_assert!(!taken || named || !sandbox);
    }

    #[test]
    fn the_best_by_the_preference_is_taken_of_those_that_can_serve(
        preference in any_preference(), candidates in any_candidates(),
    ) {
        let wanted = wanting(preference);
        let Some(kind) = chosen(&wanted, &candidates) else { return Ok(()) };
        let best = candidates.iter().find(|facts| facts.kind == kind).expect("one of them");
        // Whose programs are not there comes after all others.
        let rivals = candidates.iter().filter(|facts| facts.lacks.is_none() || best.lacks.is_some());
        for rival in rivals.filter(|facts| facts.kind != RuntimeKind::Docker && meets(&wanted, facts)) {
            let (best, rival) = (&best.features, &rival.features);
            let none_better = match preference {
                Preference::Speed => best.startup_time_ms <= rival.startup_time_ms,
                Preference::Memory => best.memory_overhead_mb <= rival.memory_overhead_mb,
                Preference::Security => best.isolation_level >= rival.isolation_level,
                Preference::Balanced => balance(best) >= balance(rival),
            };
            prop_assert!(none_better);
        }
    }

    #[test]
    fn the_order_of_the_candidates_does_not_matter(
        requirements in any_requirements(), (candidates, turned) in any_candidates().prop_flat_map(|candidates| {
            (Just(candidates.clone()), Just(candidates).prop_shuffle())
        }),
    ) {
        prop_assert_eq!(select(&requirements, &candidates), select(&requirements, &turned));
    }

    #[test]
    fn who_was_chosen_stays_chosen_when_any_one_of_its_figures_gets_better_or_anothers_gets_worse(
        requirements in any_requirements(), candidates in any_candidates(), figure in 0usize..3, factor in 0.01f64..1.0,
        (other, worse) in (0usize..7, any::<bool>()),
    ) {
        let Some(kind) = chosen(&requirements, &candidates) else { return Ok(()) };
        let mut changed = candidates;
        let at = if worse { other } else { changed.iter().position(|facts| facts.kind == kind).expect("one of them") };
        if worse && changed[at].kind == kind {
            return Ok(());
        }
        let features = &mut changed[at].features;
        let (factor, level) = if worse { (1.0 / factor, features.isolation_level.saturating_sub(1)) } else { (factor, features.isolation_level + 1) };
        match figure {
            0 => features.startup_time_ms *= factor,
            1 => features.memory_overhead_mb *= factor,
            _ => features.isolation_level = level.min(10),
        }
        prop_assert_eq!(chosen(&requirements, &changed), Some(kind));
    }

    #[test]
    fn who_is_named_is_taken_or_its_reason_comes_first(
        requirements in any_requirements(), candidates in any_candidates(), kind in prop::sample::select(RuntimeKind::ALL.to_vec()),
    ) {
        let named = Requirements { runtime: Some(kind), ..requirements };
        let able = candidates.iter().any(|facts| meets(&named, facts));
        match select(&named, &candidates) {
            Ok(selection) => prop_assert!(able && selection.candidates[0].runtime == kind),
            Err(refused) => {
                let other = format!("the request names {}", kind.name());
                prop_assert!(!able && refused[0].runtime == kind && refused[0].reason != other);
                prop_assert!(refused[1..].iter().all(|candidate| candidate.reason == other));
            }
        }
    }

    #[test]
    fn who_was_chosen_stays_chosen_when_it_gets_better(
        requirements in any_requirements(), candidates in any_candidates(), factor in 0.1f64..1.0,
    ) {
        if let Some(kind) = chosen(&requirements, &candidates) {
            let mut better = candidates;
            for facts in better.iter_mut().filter(|facts| facts.kind == kind) {
                facts.features.startup_time_ms *= factor;
                facts.features.memory_overhead_mb *= factor;
                facts.features.isolation_level = (facts.features.isolation_level + 1).min(10);
            }
            prop_assert_eq!(chosen(&requirements, &better), Some(kind));
        }
    }
}
