//! The shipped AppArmor profile where AppArmor keeps ordinary users out of user namespaces, for real: without the profile the
//! server refuses and says what mends it, with the profile it serves.
//!
//! Invariant: only profiles that the trial loaded are unloaded, and only in the machine, whose kernel is thrown away.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};

use super::managed::{done, install_binary};
use super::units::deployed;
use crate::support::fixture_user::{ORDINARY_UID, directory_of};
use crate::support::{Feature, Server, Session, Setup, eventually, host, page};

pub fn trials() -> Vec<libtest_mimic::Trial> {
    page(
        "service",
        &[("where AppArmor forbids user namespaces the server says so, and the shipped profile lets it work", enforced)],
    )
}

/// What a distribution that bounds user namespaces gives to every program of an ordinary user: everything but `userns`, and a program
/// that has a profile of its own gets that one.
const SHELL: &str = "abi <abi/4.0>,
include <tunables/global>
profile trial-shell flags=(attach_disconnected, mediate_deleted) {
  /{,**} rwlkm,
  /{,**} pix,
  capability, network, signal, ptrace, unix, mount, umount, pivot_root, mqueue, io_uring, change_profile, dbus,
}
";

/// A loaded profile, unloaded on drop.
struct Loaded(tempfile::TempDir);

impl Loaded {
    fn load(text: &str) -> Self {
        let loaded = Self(directory_of(None));
        std::fs::write(loaded.file(), text).expect("an own directory");
        done(Command::new("apparmor_parser").args(["--replace", "--skip-cache"]).arg(loaded.file()));
        loaded
    }

    fn file(&self) -> PathBuf {
        self.0.path().join("profile")
    }
}

impl Drop for Loaded {
    fn drop(&mut self) {
        let removed = Command::new("apparmor_parser").arg("--remove").arg(self.file()).status();
        assert!(removed.is_ok_and(|status| status.success()) || std::thread::panicking(), "the profile can't be unloaded");
    }
}

/// Executes what follows in the profile of the shell, in the place of the binary under test the one that the shipped profile names.
const IN_SHELL: [&str; 7] =
    ["/usr/bin/aa-exec", "-p", "trial-shell", "/bin/sh", "-c", "shift; exec /usr/local/bin/codebeaker \"$@\"", "sh"];

fn start() -> Server {
    Server::start(&Setup { uid: Some(ORDINARY_UID), wrapper: IN_SHELL.map(str::to_owned).to_vec(), ..Setup::plain() })
}

/// Name, state and mend of every row that `doctor` does not call ok, as the ordinary user in the profile of the shell.
fn complaints() -> Vec<(String, String, String)> {
    let directory = directory_of(Some(ORDINARY_UID));
    let id = ORDINARY_UID.to_string();
    let mut command = Command::new("setpriv");
    command.args(["--reuid", &id, "--regid", &id, "--clear-groups"]).args(IN_SHELL).args(["codebeaker", "doctor", "--json"]);
    command.arg("--state-dir").arg(directory.path().join("state")).env("HOME", directory.path()).current_dir("/");
    let output = command.output().expect("setpriv is there");
    let report: Value = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&output.stderr)));
    let rows = report.as_array().or_else(|| report["checks"].as_array()).unwrap_or_else(|| panic!("{report}"));
    let word = |row: &Value, key: &str| row[key].as_str().unwrap_or_default().to_owned();
    rows.iter()
        .filter(|row| row["state"] != "ok")
        .map(|row| (word(row, "name"), word(row, "state"), word(row, "mend")))
        .collect()
}

/// Fails unless doctor and server both name AppArmor and the profile that mends it.
fn refused() {
    let rows = complaints();
    let row = rows.iter().find(|(name, ..)| name == "user namespace").unwrap_or_else(|| panic!("{rows:?}"));
    assert!(row.1 == "failed" && row.2.contains("deploy/apparmor/codebeaker"), "{row:?}");
    let server = start();
    let error = server.client().error("session.create", &json!({"language": "bash"}));
    let text = error.to_string() + &error.data.to_string();
    assert_eq!((error.code, error.kind()), (1101, "runtime_not_available"), "{text}");
    assert!(text.contains("AppArmor profile `trial-shell`") && text.contains("deploy/apparmor/codebeaker"), "{text}");
    let left = server.end_and_check();
    assert!(left.is_empty(), "{}", left.join("; "));
}

fn label(pid: i32) -> String {
    let text = std::fs::read_to_string(format!("/proc/{pid}/attr/apparmor/current"));
    text.expect("it lives").trim().to_owned()
}

fn enforced() {
    host().need(Feature::ApparmorUserns).need(Feature::Apparmor4).need(Feature::Python);
    install_binary();
    let _shell = Loaded::load(SHELL);
    refused();
    let shipped = Loaded::load(&deployed("apparmor/codebeaker"));
    let rows = complaints();
    assert!(!rows.iter().any(|(_, state, _)| state == "failed"), "{rows:?}");
    let server = start();
    assert_eq!(label(server.pid()), "codebeaker (unconfined)", "the profile is attached by the path");
    let launcher = || server.launcher().map(label);
    assert!(eventually(Duration::from_secs(10), || launcher().is_some()));
    assert_eq!(launcher().as_deref(), Some("codebeaker (unconfined)"), "it is executed from a memory file, which has no path");
    let mut session = Session::open(&server, &json!({"language": "python"}));
    assert_eq!(session.run("print(6 * 7)"), "42");
    session.close();
    let left = server.end_and_check();
    assert!(left.is_empty(), "{}", left.join("; "));
    drop(shipped);
    refused();
}
