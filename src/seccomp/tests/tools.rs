//! The tools against each other: rules, filters, cases, differences and the documents that come out of them.

use super::super::bpf::Program;
use super::super::diff::{Kind, diff};
use super::super::document::{Document, Format};
use super::super::explain::{cases, explain};
use super::super::lift::lift;
use super::super::policy::{Policy, combinations};
use super::super::read::{Contents, read};
use super::super::ruleset::{Engine, Ruleset};
use super::super::summary::summary;
use super::super::verdict::Verdict;
use super::super::verify::verify;
use super::super::{paths, write};
use super::*;

fn document(name: &str) -> Document {
    Document::oci(built_in_rules(name, Arch::X86_64, KERNEL).1)
}

fn target() -> Target<'static> {
    Target { arch: Arch::X86_64, kernel: KERNEL, capabilities: &[] }
}

fn rules(name: &str, engine: Engine) -> Policy {
    Policy::Rules(Ruleset::new(&document(name), target(), engine))
}

fn filters(name: &str) -> Vec<Program> {
    let compiled = compile(&resolve(&document(name).profile, target()).expect("it resolves")).expect("it compiles");
    compiled.iter().map(|bytes| Program::parse(bytes).expect("the kernel would take it")).collect()
}

fn programs(name: &str) -> Policy {
    Policy::Programs { arch: Arch::X86_64, filters: filters(name) }
}

#[test]
fn verify_proves_the_built_in_profiles_and_finds_a_changed_filter() {
    for name in PROFILES {
        let report = verify(&rules(name, Engine::CodeBeaker), &programs(name));
        assert!(report.wrong.is_empty() && report.asked > 4000, "{name}: {:?}", report.wrong);
    }
    let report = verify(&rules("strict", Engine::CodeBeaker), &programs("default"));
    assert!(report.wrong.iter().any(|(call, ..)| call.starts_with("splice")), "the control: another profile's filters");
}

#[test]
fn ways_through_the_filters_are_true_and_cover_what_is_tried() {
    let policy = programs("default");
    for name in ["socket", "clone", "ioctl", "setsockopt", "read", "prlimit64"] {
        let number = Arch::X86_64.number(name).expect("a call");
        let ways = paths::cases(&filters("default"), Arch::X86_64, number).expect("they can be followed");
        for way in &ways {
            assert_eq!(policy.native(number, way.sample()), way.verdict, "{name} {way:?}");
        }
        let told: std::collections::BTreeSet<_> = ways.iter().map(|way| way.verdict).collect();
        assert_eq!(told, policy.outcomes(number), "{name}");
    }
}

#[test]
fn explain_names_rule_reason_and_meaning() {
    let policy = rules("default", Engine::CodeBeaker);
    let told = explain(&policy, 41, "socket", [38, 5, 0, 0, 0, 0]);
    assert_eq!(told.call, "socket(AF_ALG, SOCK_SEQPACKET, 0)");
    assert_eq!(told.verdict, Verdict::Errno(1));
    assert!(told.rule.is_some() && told.reason.as_deref().is_some_and(|reason| reason.contains("AF_ALG")));
    assert!(told.meaning.contains("CBS201"), "{}", told.meaning);
    assert!(told.otherwise.iter().any(|(when, verdict)| when.contains("arg0 == AF_UNIX") && *verdict == Verdict::Allow));
    let told = explain(&policy, 0, "read", [0; 6]);
    assert_eq!((told.verdict, told.otherwise.len()), (Verdict::Allow, 0));
    let raw = cases(&programs("default"), 41, "socket");
    assert!(raw.iter().any(|said| said.when.contains("arg0 (low) == AF_UNIX") && said.verdict == Verdict::Allow), "{raw:#?}");
}

#[test]
fn the_summary_counts_every_call_once() {
    for policy in [rules("strict", Engine::CodeBeaker), programs("strict")] {
        let page = summary(&policy);
        assert_eq!(page.known, names(Arch::X86_64).count());
        assert_eq!(page.always.values().map(Vec::len).sum::<usize>() + page.depends.len(), page.known);
        assert!(page.open > 150 && page.open < 260 && page.open_in_part > 3, "{} {}", page.open, page.open_in_part);
    }
}

#[test]
fn diff_is_empty_for_the_same_and_tells_direction_and_arguments() {
    assert_eq!(diff(&rules("default", Engine::CodeBeaker), &programs("default")), []);
    let found = diff(&rules("strict", Engine::CodeBeaker), &rules("default", Engine::CodeBeaker));
    let of = |name: &str| found.iter().find(|difference| difference.call == name);
    assert_eq!(of("splice").map(|difference| (difference.kind, difference.whole)), Some((Kind::Wider, true)));
    let socket = of("socket").expect("strict has AF_UNIX only");
    assert!(!socket.whole && socket.samples.iter().any(|(call, ..)| call.contains("AF_INET")), "{:?}", socket.samples);
    assert_eq!(of("read"), None);
    let back = diff(&rules("default", Engine::CodeBeaker), &rules("strict", Engine::CodeBeaker));
    assert_eq!(back.iter().find(|difference| difference.call == "splice").map(|d| d.kind), Some(Kind::Narrower));
}

#[test]
fn engines_read_the_same_file_differently_where_they_are_known_to() {
    let (own, foreign) = (rules("default", Engine::CodeBeaker), rules("default", Engine::Libseccomp));
    let unix = [1, 1, 0, 0, 0, 0];
    assert_eq!(own.native(41, unix), Verdict::Allow, "a rule with arguments beats one without");
    assert_eq!(foreign.native(41, unix), Verdict::Errno(1), "a rule without arguments wins");
}

#[test]
fn the_lenient_reading_is_resolves_reading() {
    for name in PROFILES {
        let (resolved, _) = built_in_rules(name, Arch::X86_64, KERNEL);
        let policy = Policy::Rules(Ruleset::new(&document(name), Target { capabilities: &[], ..target() }, Engine::CodeBeaker));
        if name == "permissive" {
            continue;
        }
        for (number, _) in names(Arch::X86_64) {
            for args in combinations(&policy.probes(number)) {
                assert_eq!(policy.native(number, args), resolved.verdict(number, args).into(), "{name} {number} {args:x?}");
            }
        }
    }
}

#[test]
fn a_profile_goes_through_every_format_and_back() {
    let reread = |text: &str, format| match read(text.as_bytes(), format).expect(text) {
        Contents::Document(document) => document,
        Contents::Program(_) => panic!("a text"),
    };
    let start = document("default");
    let oci = write::oci(&start);
    assert_eq!((reread(&oci.text, Format::Oci).profile, oci.losses.len()), (start.profile.clone(), 0));
    let spo = write::spo(&start, "default", target());
    assert!(spo.losses.iter().any(|loss| loss.field == "defaultErrnoRet"), "an errno of the default can't be said");
    let back = reread(&spo.text, Format::Spo);
    let (one, two) = (Ruleset::new(&start, target(), Engine::CodeBeaker), Ruleset::new(&back, target(), Engine::CodeBeaker));
    let changed = diff(&Policy::Rules(one), &Policy::Rules(two));
    assert!(changed.iter().all(|difference| difference.kind == Kind::Action), "only the errno of the default: {changed:#?}");
    assert!(write::seccompiler(&start, target()).expect_err("two actions").to_string().contains("one action for all rules"));
    let simple = parse(
        r#"{"defaultAction": "SCMP_ACT_KILL_PROCESS", "syscalls": [
        {"names": ["read", "socket"], "action": "SCMP_ACT_ALLOW", "args": [{"index": 0, "value": 1, "op": "SCMP_CMP_EQ"}]}]}"#,
    );
    let simple = Document::oci(simple);
    let text = write::seccompiler(&simple, target()).expect("one action").text;
    let back = reread(&text, Format::Seccompiler);
    let (one, two) = (Ruleset::new(&simple, target(), Engine::CodeBeaker), Ruleset::new(&back, target(), Engine::Seccompiler));
    assert_eq!(diff(&Policy::Rules(one), &Policy::Rules(two)), []);
    assert!(
        seccompiler::compile_from_json(text.as_bytes(), seccompiler::TargetArch::x86_64).is_ok(),
        "seccompiler takes it: {text}"
    );
}

#[test]
fn rules_are_read_back_out_of_raw_filters() {
    let lifted = lift(&filters("strict"), Arch::X86_64);
    let lost: Vec<&str> = lifted.losses.iter().map(|loss| loss.field.as_str()).collect();
    let back = Policy::Rules(Ruleset::new(&lifted, target(), Engine::CodeBeaker));
    let wrong: Vec<String> =
        diff(&programs("strict"), &back).into_iter().map(|d| d.call).filter(|call| !lost.contains(&call.as_str())).collect();
    assert_eq!(wrong, Vec::<String>::new(), "what is not named as lost decides alike");
    assert!(lost.len() < 4, "{lost:?}");
}
