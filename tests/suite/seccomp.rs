//! The tools for security teams from outside: `codebeaker seccomp`, its exit codes, formats, and what the kernel itself says.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};

use crate::support::cli::{Invocation, codebeaker};
use crate::support::fixture_user::directory_of;
use crate::support::{Feature, Session, Setup, eventually, host, page};

pub fn trials() -> Vec<libtest_mimic::Trial> {
    page(
        "seccomp",
        &[
            ("show and groups print a page, and JSON for programs", show),
            ("explain tells verdict, rule, reason and meaning by symbolic names", explain),
            ("a misspelt call or argument is a usage error with a suggestion", misspelt),
            ("audit ends with 1 for what --fail-on names, and with 0 where it is waived", audit),
            ("convert writes every format, names what is lost, and what it wrote decides alike", convert),
            ("diff ends as diff does", diff),
            ("verify proves a profile by simulation and by asking the kernel", verify),
            ("simulate shows the path through the filters", simulate),
            ("a broken file is one line with its place", broken),
            ("record writes a profile that the recorded run passes, and minimise tells what it did not use", record),
            ("record follows a session of a running server, which goes on as before", record_session),
            ("the filters of a session's own program are read from outside and are the profile's", live),
        ],
    )
}

fn show() {
    let text = codebeaker(&["seccomp", "show", "default"]).expect_code(0).stdout;
    assert!(text.contains("attack surface: ") && text.contains("arg0 == AF_UNIX"), "{text}");
    let json = codebeaker(&["seccomp", "show", "strict", "--arch", "aarch64", "-o", "json"]).expect_code(0).json();
    assert_eq!(json["architecture"], "SCMP_ARCH_AARCH64");
    assert!(json["surface"]["open"].as_u64() < json["surface"]["known"].as_u64());
    let sets = codebeaker(&["seccomp", "groups"]).expect_code(0).stdout;
    assert!(sets.contains("@mount"));
    assert!(codebeaker(&["seccomp", "groups", "@mount"]).expect_code(0).stdout.lines().any(|line| line == "pivot_root"));
}

fn explain() {
    let arguments = ["seccomp", "explain", "default", "socket", "AF_ALG", "SOCK_SEQPACKET", "-o", "json"];
    let json = codebeaker(&arguments).expect_code(0).json();
    assert_eq!(json["call"], "socket(AF_ALG, SOCK_SEQPACKET, 0)");
    assert_eq!(json["text"], "errno EPERM");
    assert!(json["reason"].as_str().is_some_and(|reason| reason.contains("AF_ALG")), "{json}");
    assert!(json["meaning"].as_str().is_some_and(|meaning| meaning.contains("CBS201")), "{json}");
    let text = codebeaker(&["seccomp", "explain", "default", "read"]).expect_code(0).stdout;
    assert!(text.starts_with("read(): allow\n"), "the control: {text}");
}

fn misspelt() {
    let output = codebeaker(&["seccomp", "explain", "default", "opeant"]).expect_code(2);
    assert!(output.stderr.contains("did you mean `openat`?"), "{}", output.stderr);
    let output = codebeaker(&["seccomp", "explain", "default", "socket", "AF_NOWHERE"]).expect_code(2);
    assert!(output.stderr.contains("AF_UNIX"), "{}", output.stderr);
}

fn audit() {
    let place = directory_of(None);
    let file = place.path().join("open.json");
    let rule = r#"{"names": ["bpf", "getpid"], "action": "SCMP_ACT_ALLOW", "comment": "c"}"#;
    let text = format!(r#"{{"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 38, "syscalls": [{rule}]}}"#);
    std::fs::write(&file, text).expect("an own directory");
    let path = file.to_str().expect("a plain path");
    codebeaker(&["seccomp", "audit", path, "--fail-on", "high"]).expect_code(1);
    codebeaker(&["seccomp", "audit", path]).expect_code(0);
    let waivers = place.path().join("waivers.toml");
    let waiver = |day: &str| format!("[[waiver]]\nid = \"CBS225\"\nreason = \"a loader\"\nexpires = \"{day}\"\n");
    let waived = |day: &str| {
        std::fs::write(&waivers, waiver(day)).expect("an own directory");
        codebeaker(&["seccomp", "audit", path, "--fail-on", "high", "--waivers", waivers.to_str().expect("plain")])
    };
    waived("9999-12-31").expect_code(0);
    assert!(waived("2001-01-01").expect_code(1).stderr.contains("expired"));
    let sarif = codebeaker(&["seccomp", "audit", path, "--format", "sarif"]).expect_code(0).json();
    assert_eq!((&sarif["version"], &sarif["runs"][0]["results"][0]["ruleId"]), (&Value::from("2.1.0"), &Value::from("CBS225")));
    codebeaker(&["seccomp", "audit", "--list"]).expect_code(0);
}

fn convert() {
    let place = directory_of(None);
    let path = |name: &str| place.path().join(name).display().to_string();
    codebeaker(&["seccomp", "convert", "strict", "--to", "oci", "--out", &path("s.json")]).expect_code(0);
    codebeaker(&["seccomp", "diff", "strict", &path("s.json"), "--engine", "codebeaker"]).expect_code(0);
    let spo = codebeaker(&["seccomp", "convert", "strict", "--to", "spo", "--out", &path("s.yaml")]).expect_code(0);
    assert!(spo.stderr.contains("lost: defaultErrnoRet"), "{}", spo.stderr);
    codebeaker(&["seccomp", "convert", "strict", "--to", "spo", "--strict-losses"]).expect_code(1);
    codebeaker(&["seccomp", "show", &path("s.yaml")]).expect_code(0);
    codebeaker(&["seccomp", "convert", "strict", "--to", "bpf", "--out", &path("s")]).expect_code(0);
    let stack: Vec<String> =
        (0..9).map(|number| path(&format!("s.{number}.bpf"))).filter(|file| std::path::Path::new(file).exists()).collect();
    codebeaker(&["seccomp", "diff", "strict", &stack.join(",")]).expect_code(0);
    let refused = codebeaker(&["seccomp", "convert", "strict", "--to", "seccompiler"]).expect_code(1);
    assert!(refused.stderr.contains("one action for all rules"), "{}", refused.stderr);
}

fn diff() {
    let same = codebeaker(&["seccomp", "diff", "strict", "strict"]).expect_code(0);
    assert_eq!(same.stdout, "");
    let json = codebeaker(&["seccomp", "diff", "strict", "default", "-o", "json"]).expect_code(1).json();
    let rows = json["differences"].as_array().expect("a list");
    assert!(rows.iter().any(|row| row["call"] == "splice" && row["kind"] == "wider"), "{json}");
    codebeaker(&["seccomp", "diff", "strict"]).expect_code(2);
}

fn verify() {
    for profile in ["strict", "default", "permissive"] {
        let json = codebeaker(&["seccomp", "verify", profile, "--kernel-too", "-o", "json"]).expect_code(0).json();
        assert_eq!(json["wrong"], serde_json::json!([]), "{profile}");
        assert!(json["asked"].as_u64() > Some(4000) && json["kernel"].as_u64() > Some(20), "{json}");
    }
    let output =
        Invocation::new(&["seccomp", "verify", "-"]).stdin(br#"{"defaultAction": "SCMP_ACT_ALLOW"}"#).run().expect_code(1);
    assert!(output.stderr.contains("defaultAction"), "{}", output.stderr);
}

fn simulate() {
    let text = codebeaker(&["seccomp", "simulate", "strict", "socket", "AF_UNIX", "SOCK_STREAM"]).expect_code(0).stdout;
    assert!(text.starts_with("socket(AF_UNIX, SOCK_STREAM, 0): allow\n") && text.contains("A = arg0 (low)"), "{text}");
    let i386 = codebeaker(&["seccomp", "simulate", "strict", "getpid", "--entry", "i386"]);
    if cfg!(target_arch = "x86_64") {
        assert!(i386.expect_code(0).stdout.starts_with("getpid(): kill process\n"));
    }
}

fn broken() {
    let place = directory_of(None);
    let file = place.path().join("broken.json");
    std::fs::write(&file, "{\n  \"defaultAction\": \"SCMP_ACT_NONE\"\n}\n").expect("an own directory");
    let output = codebeaker(&["seccomp", "show", file.to_str().expect("plain")]).expect_code(1);
    assert!(output.stderr.contains("line 2, column ") && output.stderr.lines().count() == 2, "{}", output.stderr);
    assert_eq!(output.stderr.matches("SCMP_ACT_NONE").count(), 1, "said once: {}", output.stderr);
    let output = Invocation::new(&["seccomp", "show", "-", "--from", "bpf"]).stdin(&[0; 12]).run().expect_code(1);
    assert!(output.stderr.contains("12 bytes"), "{}", output.stderr);
    assert!(codebeaker(&["seccomp", "show", "no-such-profile"]).expect_code(1).stderr.contains("hint: "));
}

fn record() {
    let place = directory_of(None);
    let path = |name: &str| place.path().join(name).display().to_string();
    let program = ["--", "bash", "-c", "exec 3<>/dev/tcp/127.0.0.1/9 || exit 7"];
    let words = |first: &[&str]| first.iter().chain(&program).map(|word| (*word).to_owned()).collect::<Vec<_>>();
    let call = |first: &[&str]| {
        let words = words(first);
        Invocation::new(&words.iter().map(String::as_str).collect::<Vec<_>>()).run()
    };
    let output = call(&["seccomp", "record", "--out", &path("one.json")]).expect_code(7);
    assert!(output.stderr.contains("calls recorded"), "{}", output.stderr);
    let told = codebeaker(&["seccomp", "explain", &path("one.json"), "socket", "AF_INET", "SOCK_STREAM", "0", "-o", "json"]);
    // bash asks for protocol 6 or 0, as its C library resolves the address.
    let json = told.expect_code(0).json();
    let seen = std::fs::read_to_string(path("one.json")).expect("it is written");
    assert!(seen.contains("socket(AF_INET, SOCK_STREAM") && seen.contains("first as call"), "{json} {seen}");
    let raw = codebeaker(&["seccomp", "explain", &path("one.json"), "socket", "AF_PACKET", "SOCK_RAW"]).expect_code(0);
    assert!(raw.stdout.contains("errno ENOSYS"), "what was not seen is not allowed: {}", raw.stdout);
    call(&["seccomp", "record", "--base", "strict"]).expect_code(7);
    merged(&path("two.json"));
    let minimised =
        codebeaker(&["seccomp", "minimise", "default", "--run", &path("one.json"), "-o", "json"]).expect_code(0).json();
    let unused = minimised["unused"].as_array().expect("a list");
    assert!(unused.iter().any(|name| name == "mq_open") && unused.iter().all(|name| name != "execve"), "{minimised}");
    runs_under(&place, &path("one.json"));
}

/// What an earlier run asked is kept beside what another one asks.
fn merged(file: &str) {
    let record = |merge: &[&str], code: &str| {
        codebeaker(&[&["seccomp", "record", "--out", file], merge, &["--", "bash", "-c", code]].concat()).expect_code(0);
    };
    let allows = |calls: [&str; 2]| {
        calls
            .into_iter()
            .any(|call| codebeaker(&["seccomp", "explain", file, call]).stdout.starts_with(&format!("{call}(): allow")))
    };
    let (pipes, links) = (["mknod", "mknodat"], ["symlink", "symlinkat"]);
    record(&[], "mkfifo left");
    assert_eq!((allows(pipes), allows(links)), (true, false), "the control: one run alone");
    record(&["--merge", file], "ln -s left right");
    assert_eq!((allows(pipes), allows(links)), (true, true));
}

/// The recorded profile is enough for the recorded run: as an operator's own profile it carries it out again.
fn runs_under(place: &tempfile::TempDir, recorded: &str) {
    let profiles = place.path().join("profiles");
    std::fs::create_dir(&profiles).expect("an own directory");
    std::fs::copy(recorded, profiles.join("recorded.json")).expect("an own directory");
    let text = include_str!("../../profiles/default.toml");
    let text = text
        .replace("name = \"default\"", "name = \"recorded\"")
        .replace("seccomp = \"default\"", "seccomp = \"recorded.json\"");
    std::fs::write(profiles.join("recorded.toml"), text).expect("an own directory");
    let config = place.path().join("config.toml");
    std::fs::write(&config, format!("[sandbox]\nprofile_dir = \"{}\"\n", profiles.display())).expect("an own directory");
    let run = |code: &str| {
        codebeaker(&["run", "--config", config.to_str().expect("plain"), "--profile", "recorded", "--", "bash", "-c", code])
    };
    run("exec 3<>/dev/tcp/127.0.0.1/9 || exit 7").expect_code(7);
    let other = run("mkfifo f && echo made");
    assert_ne!((other.code, other.stdout.as_str()), (0, "made\n"), "the control: what was not recorded is refused");
}

fn record_session() {
    host().need(Feature::Root);
    let server = Setup::plain().shared();
    let mut session = Session::open(&server, &json!({"language": "bash", "profile": "strict"}));
    let place = directory_of(None);
    let file = place.path().join("seen.json");
    let path = file.to_str().expect("plain");
    let call = ["seccomp", "record", "--session", &session.id, "--out", path, "--"];
    let program = ["bash", "-c", "mkfifo left; unshare -r true; exit 7"];
    let output = server.cli(&[&call[..], &program[..]].concat()).expect_code(7);
    assert!(output.stderr.contains("refused and left out: unshare"), "by the session's own profile: {}", output.stderr);
    let seen = std::fs::read_to_string(&file).expect("it is written");
    assert!(seen.contains("\"mknodat\"") || seen.contains("\"mknod\""), "{seen}");
    assert!(!seen.contains("\"recvmsg\""), "init's own calls are not the program's: {seen}");
    assert_eq!(session.bash("ls; echo on"), "left\non", "the session goes on");
    let output = server.cli(&["seccomp", "record", "--session", "ses_0", "--base", "strict", "--", "true"]).expect_code(125);
    assert!(output.stderr.contains("ses_0") || output.stderr.contains("session"), "{}", output.stderr);
}

/// A `sleep` in a session of its own, which ends with the call that made it.
fn live() {
    host().need(Feature::Root);
    let binary = env!("CARGO_BIN_EXE_codebeaker");
    let place = directory_of(None);
    let mut session = Command::new(binary)
        .args(["run", "--profile", "strict", "-l", "bash", "-e", "echo ready; exec sleep 30"])
        .env("CODEBEAKER_STATE_DIR", place.path().join("state"))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .expect("the binary starts");
    let mut line = String::new();
    BufReader::new(session.stdout.take().expect("a pipe")).read_line(&mut line).expect("the program speaks");
    assert_eq!(line, "ready\n");
    let sleeper = descendant_named(session.id(), "sleep");
    let same = codebeaker(&["seccomp", "diff", "strict", &format!("pid:{sleeper}")]);
    let other = codebeaker(&["seccomp", "diff", "default", &format!("pid:{sleeper}")]);
    let alive = std::path::Path::new(&format!("/proc/{sleeper}")).exists();
    session.kill().expect("our own child");
    session.wait().expect("our own child");
    // Init answers the refusals with EPERM; who answers is all that differs from the profile.
    let told = |line: &str| !line.contains("->") || line.ends_with("errno EPERM -> notify a supervisor");
    assert!(same.stdout.lines().all(told), "{same:?}");
    assert!(!other.stdout.lines().all(told) && other.code == 1, "the control: {other:?}");
    assert!(alive, "reading filters does not end the process");
    let gone = codebeaker(&["seccomp", "show", &format!("pid:{}", session.id())]).expect_code(1);
    assert!(gone.stderr.contains("hint: "), "{}", gone.stderr);
}

/// The process of that name below another; both are the trial's own.
fn descendant_named(ancestor: u32, name: &str) -> u32 {
    let stat = |pid: u32| std::fs::read_to_string(format!("/proc/{pid}/stat")).ok();
    let parent = |pid: u32| stat(pid)?.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok();
    let below = |pid: u32| std::iter::successors(Some(pid), |pid| parent(*pid)).take(16).any(|pid| pid == ancestor);
    let mut found = None;
    let seen = eventually(Duration::from_secs(30), || {
        let pids =
            std::fs::read_dir("/proc").expect("procfs").flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        found = pids
            .filter(|pid: &u32| std::fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|text| text.trim() == name))
            .find(|pid| below(*pid));
        found.is_some()
    });
    assert!(seen, "the program becomes {name}");
    found.expect("it was seen")
}
