//! Each finding is found where it is and not where it is not; the built-in profiles have none that nobody answers for.

use std::collections::BTreeSet;

use super::super::bpf::Program;
use super::super::document::Document;
use super::super::document::Format;
use super::super::policy::Policy;
use super::super::read::{Contents, read};
use super::super::resolve::Target;
use super::super::ruleset::{Engine, Ruleset};
use super::super::{Arch, KernelVersion};
use super::waiver::{Day, Waivers};
use super::*;

const KERNEL: KernelVersion = KernelVersion { major: 6, minor: 18 };

fn findings_as(json: &str, engine: Engine) -> Vec<Finding> {
    let Contents::Document(document) = read(json.as_bytes(), Format::Oci).expect("it reads") else { panic!("rules") };
    let target = Target { arch: Arch::X86_64, kernel: KERNEL, capabilities: &[] };
    let policy = Policy::Rules(Ruleset::new(&document, target, engine));
    audit(&policy, Some(&document), target)
}

fn ids(findings: &[Finding]) -> BTreeSet<&'static str> {
    findings.iter().map(|finding| finding.check.id).collect()
}

/// A default of ENOSYS and these rules.
fn profile(rules: &str) -> String {
    format!(r#"{{"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 38, "syscalls": [{rules}]}}"#)
}

fn allow(name: &str) -> String {
    profile(&format!(r#"{{"names": ["{name}"], "action": "SCMP_ACT_ALLOW", "comment": "c"}}"#))
}

#[test]
fn a_small_sound_profile_has_no_finding() {
    assert_eq!(
        ids(&findings_as(&allow("read"), Engine::CodeBeaker)),
        BTreeSet::from(["CBS301"]),
        "read is allowed, its kin refused"
    );
    assert_eq!(ids(&findings_as(&allow("getpid"), Engine::Libseccomp)), BTreeSet::new());
}

#[test]
fn every_open_call_is_found_by_its_name() {
    for (id, calls) in catalogue::OPEN {
        for call in calls.iter().filter(|call| Arch::X86_64.number(call).is_some()) {
            let found = findings_as(&allow(call), Engine::CodeBeaker);
            assert!(ids(&found).contains(id), "{call}: {:?}", ids(&found));
        }
    }
}

#[test]
fn every_dangerous_argument_is_found_and_refusing_it_mends_it() {
    for (id, call, args, _) in catalogue::PROBED {
        let open = findings_as(&allow(call), Engine::CodeBeaker);
        assert!(ids(&open).contains(id), "{call}");
        let conditions: Vec<String> = args
            .iter()
            .enumerate()
            .filter(|(_, value)| **value != 0)
            .map(|(index, value)| format!(r#"{{"index": {index}, "value": {value}, "op": "SCMP_CMP_EQ"}}"#))
            .collect();
        let rules = format!(
            r#"{{"names": ["{call}"], "action": "SCMP_ACT_ALLOW"}},
               {{"names": ["{call}"], "action": "SCMP_ACT_ERRNO", "args": [{}]}}"#,
            conditions.join(",")
        );
        let subject = |found: &[Finding]| found.iter().filter(|finding| finding.check.id == *id).count();
        assert_eq!(subject(&findings_as(&profile(&rules), Engine::CodeBeaker)) + 1, subject(&open), "{call} {args:x?}");
    }
}

#[test]
fn defaults_and_entries_are_judged() {
    let open =
        r#"{"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"]}"#;
    let found = findings_as(open, Engine::Libseccomp);
    assert!(BTreeSet::from(["CBS101", "CBS102", "CBS103", "CBS201", "CBS214"]).is_subset(&ids(&found)), "{:?}", ids(&found));
    let socketcall = r#"{"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 38, "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"],
        "syscalls": [{"names": ["socketcall"], "action": "SCMP_ACT_ALLOW", "comment": "c"}]}"#;
    assert_eq!(ids(&findings_as(socketcall, Engine::Libseccomp)), BTreeSet::from(["CBS102", "CBS104"]));
    let killing = r#"{"defaultAction": "SCMP_ACT_KILL_PROCESS"}"#;
    assert_eq!(ids(&findings_as(killing, Engine::Libseccomp)), BTreeSet::from(["CBS105", "CBS215"]));
    let asking = profile(r#"{"names": ["getpid"], "action": "SCMP_ACT_NOTIFY", "comment": "c"}"#);
    assert_eq!(ids(&findings_as(&asking, Engine::Libseccomp)), BTreeSet::from(["CBS106"]));
}

#[test]
fn a_raw_filter_that_ignores_the_architecture_is_found() {
    let allow_all = Program::parse(&[6, 0, 0, 0, 0, 0, 0xFF, 0x7F]).expect("a return");
    let target = Target { arch: Arch::X86_64, kernel: KERNEL, capabilities: &[] };
    let found = audit(&Policy::Programs { arch: Arch::X86_64, filters: vec![allow_all] }, None, target);
    assert!(BTreeSet::from(["CBS101", "CBS102", "CBS103", "CBS104"]).is_subset(&ids(&found)), "{:?}", ids(&found));
}

#[test]
fn a_comparison_of_64_bits_is_found_where_the_kernel_takes_32() {
    let rule = r#"{"names": ["socket"], "action": "SCMP_ACT_ALLOW", "args": [{"index": 0, "value": 38, "op": "SCMP_CMP_NE"}], "comment": "c"}"#;
    assert!(ids(&findings_as(&profile(rule), Engine::Libseccomp)).contains("CBS302"), "38 + 1<<32 is not 38 for libseccomp");
    assert!(!ids(&findings_as(&profile(rule), Engine::CodeBeaker)).contains("CBS302"), "CodeBeaker looks at the low word");
}

#[test]
fn rules_that_do_not_do_what_they_seem_to_are_found() {
    let only = |rules: &str, engine| {
        let found = findings_as(&profile(rules), engine);
        found.into_iter().filter(|finding| finding.check.id.starts_with("CBS4")).collect::<Vec<_>>()
    };
    let shadowed = r#"{"names": ["personality"], "action": "SCMP_ACT_ALLOW", "comment": "c"},
        {"names": ["personality"], "action": "SCMP_ACT_ERRNO", "comment": "c", "args": [{"index": 0, "value": 262144, "op": "SCMP_CMP_EQ"}]}"#;
    let found = only(shadowed, Engine::Libseccomp);
    assert_eq!(ids(&found), BTreeSet::from(["CBS401", "CBS408"]));
    assert_eq!(found[0].field.as_deref(), Some("syscalls[1]"));
    assert_eq!(ids(&only(shadowed, Engine::CodeBeaker)), BTreeSet::from(["CBS408"]));
    let cases = [
        (r#"{"names": ["getpid"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38, "comment": "c"}"#, "CBS402"),
        (r#"{"names": ["opeant"], "action": "SCMP_ACT_ALLOW", "comment": "c"}"#, "CBS403"),
        (r#"{"names": ["getpid", "getpid"], "action": "SCMP_ACT_ALLOW", "comment": "c"}"#, "CBS404"),
        (r#"{"names": ["getpid"], "action": "SCMP_ACT_ALLOW"}"#, "CBS407"),
        (r#"{"names": ["getpid"], "action": "SCMP_ACT_ALLOW", "comment": "c", "includes": {"minKernel": "new"}}"#, "CBS409"),
        (
            r#"{"names": ["getpid"], "action": "SCMP_ACT_ALLOW", "comment": "c", "args": [{"index": 7, "op": "SCMP_CMP_EQ"}]}"#,
            "CBS410",
        ),
    ];
    for (rule, id) in cases {
        assert!(ids(&only(rule, Engine::CodeBeaker)).contains(id), "{id}: {rule}");
    }
    let contradiction = r#"{"names": ["getpid"], "action": "SCMP_ACT_ALLOW", "comment": "c"}, {"names": ["getpid"], "action": "SCMP_ACT_KILL", "comment": "c"}"#;
    assert!(ids(&only(contradiction, Engine::CodeBeaker)).contains("CBS405"));
    let misspelt = only(cases[1].0, Engine::CodeBeaker);
    assert_eq!(misspelt[0].detail, "`opeant` is no system call; did you mean `openat`?");
}

#[test]
fn a_waiver_counts_until_its_day_and_then_the_finding_is_back() {
    let text = "[[waiver]]\nid = \"CBS225\"\nsubjects = [\"bpf\"]\nreason = \"a loader\"\nexpires = \"2027-02-28\"\n";
    let waivers = Waivers::parse(text).expect("it parses");
    let day = |text: &str| text.parse::<Day>().expect("a day");
    let mut found = findings_as(&allow("bpf"), Engine::CodeBeaker);
    assert_eq!(waivers.apply("p", day("2027-02-28"), &mut found), Vec::<String>::new());
    assert_eq!(found.iter().find(|finding| finding.check.id == "CBS225").and_then(|f| f.waived.as_deref()), Some("a loader"));
    let mut found = findings_as(&allow("bpf"), Engine::CodeBeaker);
    assert_eq!(waivers.apply("p", day("2027-03-01"), &mut found), ["waiver[0] for CBS225 expired on 2027-02-28"]);
    assert!(found.iter().all(|finding| finding.waived.is_none()));
    let mut none = findings_as(&allow("getpid"), Engine::CodeBeaker);
    assert_eq!(waivers.apply("p", day("2027-01-01"), &mut none), ["waiver[0] for CBS225 matches nothing"]);
    for broken in [
        text.replace("a loader", " "),
        text.replace("CBS225", "CBS999"),
        text.replace("expires", "expire"),
        text.replace("02-28", "13-01"),
    ] {
        assert!(Waivers::parse(&broken).is_err(), "{broken}");
    }
}

#[test]
fn days_are_those_of_the_calendar() {
    for (seconds, text) in
        [(0, "1970-01-01"), (951_782_400, "2000-02-29"), (1_798_675_200, "2026-12-31"), (1_798_761_600, "2027-01-01")]
    {
        assert_eq!(Day::of_unix_time(seconds).to_string(), text);
    }
}

#[test]
fn sarif_has_what_its_schema_requires() {
    let mut found = findings_as(&allow("bpf"), Engine::CodeBeaker);
    found[0].waived = Some("r".to_owned());
    let written = sarif::sarif("p.json", &found);
    // The required members of the schema's sarifLog, run, tool, toolComponent, reportingDescriptor, result, message, and its enums.
    let schema = serde_json::json!({
        "type": "object", "required": ["version", "runs"],
        "properties": { "version": { "const": "2.1.0" }, "runs": { "type": "array", "items": {
            "type": "object", "required": ["tool"],
            "properties": {
                "columnKind": { "enum": ["utf16CodeUnits", "unicodeCodePoints"] },
                "tool": { "type": "object", "required": ["driver"], "properties": { "driver": { "type": "object", "required": ["name"],
                    "properties": { "rules": { "type": "array", "uniqueItems": true, "items": { "type": "object", "required": ["id"],
                        "properties": { "shortDescription": { "required": ["text"] }, "defaultConfiguration": { "properties": {
                            "level": { "enum": ["none", "note", "warning", "error"] } } } } } } } } } },
                "results": { "type": "array", "items": { "type": "object", "required": ["message", "ruleId", "level"], "properties": {
                    "message": { "type": "object", "required": ["text"], "properties": { "text": { "type": "string", "minLength": 1 } } },
                    "level": { "enum": ["none", "note", "warning", "error"] },
                    "ruleIndex": { "type": "integer", "minimum": 0 },
                    "suppressions": { "type": "array", "items": { "required": ["kind"], "properties": { "kind": { "enum": ["inSource", "external"] } } } },
                    "locations": { "type": "array", "items": { "type": "object" } } } } }
            } } } }
    });
    let validator = jsonschema::validator_for(&schema).expect("a schema");
    let wrong: Vec<String> = validator.iter_errors(&written).map(|error| error.to_string()).collect();
    assert!(wrong.is_empty(), "{wrong:?}");
    let mut broken = written.clone();
    broken["runs"][0]["results"][0]["level"] = "high".into();
    assert!(!validator.is_valid(&broken), "the control: the schema can refuse");
    assert_eq!(written["runs"][0]["results"][0]["suppressions"][0]["justification"], "r");
}

#[test]
fn the_built_in_profiles_have_no_finding_that_nobody_answers_for() {
    let waivers = Waivers::parse(include_str!("../../../profiles/seccomp/waivers.toml")).expect("the waivers parse");
    for name in ["strict", "default", "permissive"] {
        for arch in [Arch::X86_64, Arch::Aarch64] {
            let (_, model) = crate::sandbox::profile::load::built_in_rules(name, arch, KERNEL);
            let document = Document::oci(model);
            let target = Target { arch, kernel: KERNEL, capabilities: &[] };
            let policy = Policy::Rules(Ruleset::new(&document, target, Engine::CodeBeaker));
            let mut found = audit(&policy, Some(&document), target);
            waivers.apply(name, Day::of_unix_time(1_800_000_000), &mut found);
            let open: Vec<_> = found
                .iter()
                .filter(|finding| finding.waived.is_none())
                .map(|f| format!("{} {}", f.check.id, f.detail))
                .collect();
            assert!(open.is_empty(), "{name} {arch:?}: {open:#?}");
        }
    }
}
