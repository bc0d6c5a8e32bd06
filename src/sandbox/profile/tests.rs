//! What loads, what is refused, and which field the refusal names.

use std::fs;

use super::load::{Host, ProfileError, Profiles};
use super::*;
use crate::seccomp::{Action, Arch, Invocation, KernelVersion, decide};

const HOST: Host = Host { arch: Arch::X86_64, kernel: KernelVersion { major: 6, minor: 18 } };
const MIB: u64 = 1 << 20;

fn built_in(name: &str) -> std::sync::Arc<Profile> {
    Profiles::load_for(None, HOST).expect("the built-in profiles load").get(name).expect("it is built in")
}

fn operator(files: &[(&str, &str)]) -> Result<Profiles, ProfileError> {
    let dir = tempfile::tempdir().expect("a temporary directory");
    for (name, text) in files {
        fs::write(dir.path().join(name), text).expect("the file is written");
    }
    Profiles::load_for(Some(dir.path()), HOST)
}

fn mine(from: &str, to: &str) -> String {
    let text = include_str!("../../../profiles/default.toml").replace("name = \"default\"", "name = \"mine\"");
    assert!(text.contains(from), "{from}");
    text.replacen(from, to, 1)
}

/// The error with its causes, as a log line has them.
fn told(error: &dyn std::error::Error) -> String {
    std::iter::successors(Some(error), |error| error.source()).map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

#[test]
fn the_built_in_profiles_have_the_documented_values() {
    let rows = [("strict", 65534, 256, 64, 64, 4096, 10), ("default", 1000, 512, 256, 256, 65536, 60)];
    for (name, uid, memory, pids, disk, inodes, seconds) in rows {
        let profile = built_in(name);
        assert_eq!((profile.uid, profile.gid), (uid, uid), "{name}");
        assert!(profile.capabilities.is_empty(), "{name}");
        assert_eq!(profile.defaults.memory_bytes, memory * MIB, "{name}");
        assert_eq!((profile.defaults.pids, profile.defaults.inodes), (pids, inodes), "{name}");
        assert_eq!(profile.defaults.disk_bytes, disk * MIB, "{name}");
        assert_eq!(profile.defaults.timeout, Duration::from_secs(seconds), "{name}");
        assert_eq!(profile.sha256.len(), 64, "{name}");
    }
    assert_eq!(built_in("default").maximum.timeout, Duration::from_secs(300));
    assert_eq!(built_in("permissive").capabilities.len(), 11);
    assert_eq!(built_in("strict").network, Network::None);
    assert_eq!(built_in("strict").root_filesystem, RootFilesystem::ReadOnly);
}

#[test]
fn the_profiles_load_on_this_host() {
    let profiles = Profiles::load(None).expect("the built-in profiles load");
    assert_eq!(profiles.names().collect::<Vec<_>>(), ["default", "permissive", "strict"]);
    assert_eq!(profiles.get("other"), None);
}

#[test]
fn an_operators_profile_stands_beside_the_built_in_ones() {
    let seccomp =
        r#"{"defaultAction": "SCMP_ACT_KILL_PROCESS", "syscalls": [{"names": ["read"], "action": "SCMP_ACT_ALLOW"}]}"#;
    let file = mine("seccomp = \"default\"", "seccomp = \"mine.json\"");
    let profiles = operator(&[("mine.toml", &file), ("mine.json", seccomp)]).expect("it loads");
    let profile = profiles.get("mine").expect("it is there");
    let verdict = |number| decide(&profile.seccomp, &Invocation::native(Arch::X86_64, number, [0; 6]));
    assert_eq!(verdict(0), Ok(Action::Allow));
    assert_eq!(verdict(1), Ok(Action::KillProcess));
}

#[test]
fn the_digest_covers_both_files() {
    let seccomp = include_str!("../../../profiles/seccomp/strict.json");
    let file = mine("seccomp = \"default\"", "seccomp = \"mine.json\"");
    let digest = |file: &str, seccomp: &str| {
        let profiles = operator(&[("mine.toml", file), ("mine.json", seccomp)]).expect("it loads");
        profiles.get("mine").expect("it is there").sha256.clone()
    };
    let first = digest(&file, seccomp);
    assert_eq!(first, digest(&file, seccomp));
    assert_ne!(first, digest(&file, &format!("{seccomp}\n")));
    assert_ne!(first, digest(&format!("{file}\n"), seccomp));
}

#[test]
fn the_identity_has_the_digest_of_the_filters_that_programs_get() {
    let profiles = Profiles::load(None).expect("the built-in profiles load");
    let [default, strict] = ["default", "strict"].map(|name| profiles.get(name).expect("built in"));
    let (told, plain) = (default.identity(Some(Waiting::Killable)), default.identity(None));
    assert_eq!((told.bpf_sha256.len(), plain.bpf_sha256.len(), told.seccomp_sha256.len()), (64, 64, 64));
    assert_ne!(told.bpf_sha256, plain.bpf_sha256, "they are other filters");
    assert_eq!((&told.sha256, &told.seccomp_sha256), (&plain.sha256, &plain.seccomp_sha256), "of one profile");
    assert_ne!(told.bpf_sha256, strict.identity(Some(Waiting::Killable)).bpf_sha256);
}

#[test]
fn a_wrong_profile_is_refused_and_its_field_named() {
    let cases = [
        ("uid = 1000", "uid = 65536", "uid"),
        ("capabilities = []", "capabilities = [\"CAP_SYS_ADMIN\"]", "capabilities[0]"),
        ("memory_mib = 512", "memory_mib = 0", "defaults.memory_mib"),
        ("memory_mib = 512", "memory_mib = 8192", "defaults.memory_mib"),
        ("disk_mib = 256", "disk_mib = 257", "defaults.disk_mib"),
        ("output_kept_mib = 4", "output_kept_mib = 65", "defaults.output_kept_mib"),
        ("pids = 256", "pids = 256\ncpu_cores = nan", "defaults.cpu_cores"),
        ("pids = 256", "pids = -1", "pids"),
        ("pids = 256", "pids = 256\nsurprise = 1", "surprise"),
        ("network = \"loopback\"", "network = \"host\"", "host"),
        ("installs = \"index\"", "installs = \"all\"", "all"),
        ("version = \"2\"", "version = \"\"", "version"),
        ("name = \"mine\"", "name = \"other\"", "name"),
        ("seccomp = \"default\"", "seccomp = \"../mine.json\"", "seccomp"),
        ("seccomp = \"default\"", "seccomp = \"absent.json\"", "absent.json"),
    ];
    assert!(operator(&[("mine.toml", &mine("uid = 1000", "uid = 1001"))]).is_ok());
    for (from, to, named) in cases {
        let error = operator(&[("mine.toml", &mine(from, to))]).expect_err(to);
        assert!(told(&error).contains(named), "{to}: {}", told(&error));
    }
}

#[test]
fn a_profile_that_opens_what_must_stay_shut_is_refused() {
    let file = mine("seccomp = \"default\"", "seccomp = \"mine.json\"");
    let rules = |rules: &str| format!(r#"{{"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [{rules}]}}"#);
    let load = |text: &str| operator(&[("mine.toml", &file), ("mine.json", &rules(text))]);
    assert!(load(r#"{"names": ["read"], "action": "SCMP_ACT_ALLOW"}"#).is_ok());
    for (text, named) in [
        (r#"{"names": ["mount"], "action": "SCMP_ACT_ALLOW"}"#, "mount"),
        (r#"{"names": ["clone"], "action": "SCMP_ACT_ALLOW"}"#, "clone"),
        (r#"{"names": ["ioctl"], "action": "SCMP_ACT_LOG"}"#, "ioctl"),
        (
            r#"{"names": ["socket"], "action": "SCMP_ACT_ALLOW", "args": [{"index": 0, "value": 40, "op": "SCMP_CMP_NE"}]}"#,
            "socket",
        ),
    ] {
        let error = load(text).expect_err(text);
        assert!(matches!(&error, ProfileError::Floor { source, .. } if source.syscall == named), "{}", told(&error));
    }
}

#[test]
fn built_in_names_and_odd_names_can_not_be_taken() {
    let file = mine("uid", "uid");
    assert!(matches!(operator(&[("strict.toml", &file)]), Err(ProfileError::BuiltIn { .. })));
    assert!(matches!(operator(&[("My Own.toml", &file)]), Err(ProfileError::Name { .. })));
    assert!(operator(&[("notes.txt", "not a profile")]).is_ok());
}
