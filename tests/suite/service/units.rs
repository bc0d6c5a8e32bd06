//! The files below `deploy/`, judged by the tools of those who read them: `systemd-analyze` and `apparmor_parser`.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;
use tempfile::TempDir;

use crate::support::fixture_user::directory_of;
use crate::support::{Feature, host, page};

pub fn trials() -> Vec<libtest_mimic::Trial> {
    page(
        "service",
        &[
            ("systemd finds nothing to complain of in the units, and does in a broken one", verified),
            ("every protection that the unit goes without is named in it with its reason", hardened),
            ("the AppArmor profile is parsed, and a broken one is not", profile),
        ],
    )
}

/// A file of `deploy/`.
pub fn deployed(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy").join(name);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The unit with the binary under test in the place of the installed one.
pub fn unit(name: &str, binary: &Path) -> String {
    let binary = binary.to_str().expect("an ASCII path");
    deployed(name).replace("/usr/local/bin/codebeaker", binary).replace("%h/.local/bin/codebeaker", binary)
}

fn written(directory: &TempDir, name: &str, text: &str) -> PathBuf {
    let path = directory.path().join(name);
    std::fs::write(&path, text).expect("an own directory");
    path
}

fn analyze(directory: &TempDir, arguments: &[&str], unit: &Path) -> Output {
    let mut command = Command::new("systemd-analyze");
    command.args(arguments).arg(unit).env("XDG_RUNTIME_DIR", directory.path());
    command.output().expect("systemd-analyze is there")
}

/// What `verify` says, but for the one line that a systemd before 254 has on a key that it does not know yet.
fn complaints(directory: &TempDir, manager: &str, unit: &Path) -> Vec<String> {
    let output = analyze(directory, &["verify", "--man=no", manager], unit);
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    let own = unit.file_name().and_then(|name| name.to_str()).expect("an ASCII name");
    let known = |line: &str| line.contains("Unknown key") && line.contains("'DelegateSubgroup'");
    // Units that this one is ordered after may have complaints of their own.
    text.lines().filter(|line| line.contains(own) && !known(line)).map(str::to_owned).collect()
}

fn verified() {
    host().need(Feature::SystemdAnalyze);
    let directory = directory_of(None);
    let binary = Path::new(env!("CARGO_BIN_EXE_codebeaker"));
    for (name, manager) in [("codebeaker.service", "--system"), ("codebeaker-user.service", "--user")] {
        let text = unit(name, binary);
        let good = written(&directory, name, &text);
        assert_eq!(complaints(&directory, manager, &good), Vec::<String>::new(), "{name}");
        let broken = written(&directory, name, &text.replace("KillMode=mixed", "KillMode=gently"));
        assert_eq!(complaints(&directory, manager, &broken).len(), 1, "the control: {name}");
    }
}

/// Settings that `security` finds off.
fn missing(directory: &TempDir, unit: &Path) -> Vec<String> {
    let output = analyze(directory, &["security", "--offline=true", "--json=short", "--no-pager"], unit);
    let rows: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let rows = rows.as_array().expect("rows").iter();
    rows.filter(|row| row["set"] == false).map(|row| row["name"].as_str().expect("a name").to_owned()).collect()
}

fn hardened() {
    host().need(Feature::SystemdAnalyze);
    let directory = directory_of(None);
    let text = unit("codebeaker.service", Path::new(env!("CARGO_BIN_EXE_codebeaker")));
    let off = missing(&directory, &written(&directory, "codebeaker.service", &text));
    assert!(off.iter().any(|name| name.starts_with("RestrictNamespaces")), "the control: {off:?}");
    for name in &off {
        // `CapabilityBoundingSet=~CAP_KILL` and `User=/DynamicUser=` are found by their first word.
        let setting = name.split('=').next().expect("a first word");
        assert!(text.contains(setting), "{name} is off, and the unit does not say why");
    }
    for name in ["NoNewPrivileges", "ProtectSystem", "ProtectHome", "PrivateTmp", "UMask", "KeyringMode"] {
        assert!(!off.iter().any(|row| row.starts_with(name)), "{name} is on");
        let without = text.lines().filter(|line| !line.starts_with(name)).collect::<Vec<_>>().join("\n");
        let weaker = missing(&directory, &written(&directory, "codebeaker.service", &without));
        // systemd's own default for KeyringMode of a system service is private as well.
        assert!(name == "KeyringMode" || weaker.iter().any(|row| row.starts_with(name)), "the control: {name}, {weaker:?}");
    }
}

fn profile() {
    host().need(Feature::Apparmor4);
    let parse = |text: &str| {
        let directory = directory_of(None);
        let path = written(&directory, "codebeaker", text);
        let arguments = ["--skip-kernel-load", "--skip-cache", "--abort-on-error"];
        Command::new("apparmor_parser").args(arguments).arg(&path).output().expect("apparmor_parser is there")
    };
    let text = deployed("apparmor/codebeaker");
    let good = parse(&text);
    assert!(good.status.success(), "{}", String::from_utf8_lossy(&good.stderr));
    assert!(!parse(&text.replace("userns,", "usernames,")).status.success(), "the control");
}
