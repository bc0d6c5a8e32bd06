//! The shipped units and every way of delegation under a real systemd.
//!
//! Invariant: the machine's systemd is thrown away after the run, but each trial stops what it started, since the next one
//! counts processes.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard, Once, PoisonError};
use std::time::Duration;

use serde_json::json;

use super::units::{deployed, unit};
use crate::delegation::groups::{find, group_of, hold_a_session, read, state};
use crate::support::fixture_user::directory_of;
use crate::support::{Client, Feature, eventually, host, page};

pub fn trials() -> Vec<libtest_mimic::Trial> {
    page(
        "service",
        &[
            ("the shipped unit starts, holds a session's limits, and stops without a trace", shipped),
            ("a server that stands still is ended by the watchdog, and the next one serves", hung),
            ("Delegate=yes without a subgroup: the server moves into a leaf", delegated),
            ("Delegate=yes with DelegateSubgroup: systemd's own leaf is left as it is", subgroup),
            ("a scope with Delegate=yes serves as well", scope),
            ("a service without Delegate has its limits all the same, as root", undelegated),
            ("the user unit starts under a user manager and holds a session's limits", user_unit),
        ],
    )
}

/// Units of the machine that trials write.
const UNITS: &str = "/run/systemd/system";

/// Carries out a command that must succeed; what it printed.
#[track_caller]
pub(super) fn done(command: &mut Command) -> String {
    let output = command.output().expect("the program is there");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{command:?}: {said}");
    String::from_utf8_lossy(&output.stdout).trim_end().to_owned()
}

fn systemctl(arguments: &[&str]) -> String {
    done(Command::new("systemctl").args(arguments))
}

fn property(unit: &str, name: &str) -> String {
    systemctl(&["show", "--property", name, "--value", unit])
}

/// The shipped unit has one name and one port.
static SHIPPED: Mutex<()> = Mutex::new(());

/// A unit that is stopped when the trial is over, however it ends.
struct Running {
    unit: String,
    /// `systemd-run --scope` becomes what it was told to run.
    child: Option<Child>,
    /// Held by trials of the shipped unit.
    _turn: Option<MutexGuard<'static, ()>>,
}

impl Running {
    fn pid(&self) -> i32 {
        property(&self.unit, "MainPID").parse().expect("a number")
    }

    fn group(&self) -> PathBuf {
        Path::new("/sys/fs/cgroup").join(property(&self.unit, "ControlGroup").trim_start_matches('/'))
    }

    /// Stops it; nothing of it is left.
    fn stop(self) {
        let group = self.group();
        systemctl(&["stop", &self.unit]);
        assert!(eventually(Duration::from_secs(20), || !group.exists()), "{} stays", group.display());
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = Command::new("journalctl").args(["--no-pager", "--lines", "20", "--unit", &self.unit]).output();
            eprintln!("{}", log.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default());
        }
        // A unit that has ended and was transient is not known any more.
        Command::new("systemctl").args(["stop", &self.unit]).output().ok();
        Command::new("systemctl").args(["reset-failed", &self.unit]).output().ok();
        if let Some(mut child) = self.child.take() {
            child.wait().ok();
        }
    }
}

pub(super) fn install_binary() -> PathBuf {
    static ONCE: Once = Once::new();
    let installed = PathBuf::from("/usr/local/bin/codebeaker");
    ONCE.call_once(|| {
        std::fs::copy(env!("CARGO_BIN_EXE_codebeaker"), &installed).expect("root may write there");
    });
    installed
}

/// Writes and starts the shipped unit with lines of a drop-in.
fn start_shipped(drop_in: &str) -> Running {
    host().need(Feature::Systemd).need(Feature::Python);
    let turn = SHIPPED.lock().unwrap_or_else(PoisonError::into_inner);
    install_binary();
    std::fs::write(format!("{UNITS}/codebeaker.service"), deployed("codebeaker.service")).expect("root may write there");
    let directory = format!("{UNITS}/codebeaker.service.d");
    std::fs::create_dir_all(&directory).expect("root may write there");
    std::fs::write(format!("{directory}/trial.conf"), drop_in).expect("root may write there");
    systemctl(&["daemon-reload"]);
    systemctl(&["start", "codebeaker.service"]);
    Running { unit: "codebeaker.service".into(), child: None, _turn: Some(turn) }
}

fn connect(address: &str, state: &Path) -> Client {
    let token = std::fs::read_to_string(state.join("token")).expect("made at the first start");
    let address = address.parse().expect("an address");
    Client::new(codebeaker_client::Connect::to(address).bearer(token.trim()).open().expect("it accepts"))
}

const SHIPPED_ADDRESS: &str = "127.0.0.1:5000";

fn shipped() {
    let unit = start_shipped("");
    assert_eq!(property(&unit.unit, "StatusText"), format!("listening on ws://{SHIPPED_ADDRESS}"));
    let group = unit.group();
    assert_eq!(group_of(unit.pid()), group.join("server"), "systemd or the server has made the leaf");
    let mut client = connect(SHIPPED_ADDRESS, Path::new("/var/lib/codebeaker"));
    hold_a_session(&mut client, &group);
    walls_stand(&mut client);
    unit.stop();
    assert!(!Path::new("/var/lib/codebeaker/token").metadata().expect("the token stays").permissions().readonly());
}

/// Under the unit's hardening every wall stands as it does without.
fn walls_stand(client: &mut Client) {
    let created = client.ok("session.create", &json!({"language": "bash", "profile": "strict"}));
    let walls = created["enforcement"]["walls"].as_array().expect("rows");
    let absent: Vec<_> = walls.iter().filter(|row| row["state"] == "absent").collect();
    assert!(absent.is_empty(), "{absent:?}");
    let line = "echo $(hostname) $(id -u); echo x > /dev/null; head -c 4 /dev/urandom | wc -c; test -c /dev/tty && echo tty";
    let command = json!({"type": "execute_shell", "commandName": "bash", "args": ["-c", line]});
    let answer = client.ok("session.execute", &json!({"sessionId": created["sessionId"], "command": command}));
    let text = answer["result"]["stdout"].as_str().unwrap_or_default();
    assert!(text.ends_with("4\ntty\n"), "{answer}");
    client.ok("session.close", &json!({"sessionId": created["sessionId"]}));
}

fn hung() {
    let unit = start_shipped("[Service]\nWatchdogSec=8\nWatchdogSignal=SIGKILL\n");
    let first = unit.pid();
    assert_eq!(property(&unit.unit, "NRestarts"), "0");
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(first), nix::sys::signal::Signal::SIGSTOP).expect("root may");
    let restarted = || property(&unit.unit, "NRestarts") == "1" && property(&unit.unit, "ActiveState") == "active";
    assert!(eventually(Duration::from_secs(90), restarted), "{}", systemctl(&["show", "codebeaker.service"]));
    assert_ne!(unit.pid(), first);
    let mut client = connect(SHIPPED_ADDRESS, Path::new("/var/lib/codebeaker"));
    client.ok("session.create", &json!({"language": "bash"}));
    // The control: a server that runs is fed for longer than the period.
    std::thread::sleep(Duration::from_secs(10));
    assert_eq!(property(&unit.unit, "NRestarts"), "1");
    unit.stop();
}

/// A transient unit with these properties; its address and the base that sessions are expected below.
fn transient(name: &str, arguments: &[&str], port: u16) -> (Running, Client, tempfile::TempDir) {
    host().need(Feature::Systemd).need(Feature::Python);
    let binary = install_binary();
    let directory = directory_of(None);
    let state = directory.path().join("state");
    let unit = format!("trial-{name}");
    let mut command = Command::new("systemd-run");
    command.args(["--quiet", "--collect", "--unit", &unit]).args(arguments).arg(binary);
    command.args(["serve", "--listen", &format!("127.0.0.1:{port}"), "--state-dir"]).arg(&state);
    let scope = arguments.contains(&"--scope");
    let child = scope.then(|| command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("systemd-run is there"));
    if !scope {
        done(&mut command);
    }
    let address = format!("127.0.0.1:{port}");
    assert!(eventually(Duration::from_secs(60), || std::net::TcpStream::connect(&address).is_ok()), "it does not listen");
    let suffix = if scope { "scope" } else { "service" };
    let client = connect(&address, &state);
    (Running { unit: format!("{unit}.{suffix}"), child, _turn: None }, client, directory)
}

const NOTIFY: &str = "--property=Type=notify";
const DELEGATE: &str = "--property=Delegate=yes";

fn delegated() {
    let (unit, mut client, _directory) = transient("delegated", &[NOTIFY, DELEGATE], 5101);
    let group = unit.group();
    let own = group_of(unit.pid());
    assert!(own.starts_with(&group) && own != group, "{}", own.display());
    hold_a_session(&mut client, &group);
    unit.stop();
}

fn subgroup() {
    let arguments = [NOTIFY, DELEGATE, "--property=DelegateSubgroup=leaf"];
    let (unit, mut client, _directory) = transient("subgroup", &arguments, 5102);
    let group = unit.group();
    assert_eq!(group_of(unit.pid()), group.join("leaf"));
    hold_a_session(&mut client, &group);
    unit.stop();
}

fn scope() {
    let (unit, mut client, _directory) = transient("scope", &["--scope", DELEGATE], 5103);
    let group = unit.group();
    hold_a_session(&mut client, &group);
    unit.stop();
}

fn undelegated() {
    // Without Delegate= systemd stops a unit for an out-of-memory kill anywhere below it, unless told not to.
    let (unit, mut client, _directory) = transient("undelegated", &[NOTIFY, "--property=OOMPolicy=continue"], 5104);
    let group = unit.group();
    let created = client.ok("session.create", &json!({"language": "python", "memoryLimitMB": 128, "pidsLimit": 32}));
    assert_eq!(["memory", "pids"].map(|limit| state(&created, limit)), ["enforced", "enforced"], "{created}");
    let made = find(&group, created["environmentId"].as_str().expect("an id")).expect("its group");
    assert_eq!((read(&made, "memory.max").as_str(), read(&made, "pids.max").as_str()), ("134217728", "32"));
    out_of_memory(&mut client, &created);
    client.ok("session.close", &json!({"sessionId": created["sessionId"]}));
    unit.stop();
}

/// A program that takes too much is ended, and told so.
fn out_of_memory(client: &mut Client, created: &serde_json::Value) {
    let bomb = json!({"type": "execute_code", "code": "x = []\nwhile True: x.append(b'a' * (1 << 20))", "timeoutSeconds": 60});
    let answer = client.ok("session.execute", &json!({"sessionId": created["sessionId"], "command": bomb}));
    assert_eq!(answer["errorKind"], "out_of_memory", "{answer}");
}

/// Carries out a command as the machine's ordinary user, beside its user manager.
fn as_user(arguments: &[&str]) -> String {
    let words =
        ["--reuid", "1000", "--regid", "1000", "--clear-groups", "env", "XDG_RUNTIME_DIR=/run/user/1000", "HOME=/home/tester"];
    done(Command::new("setpriv").args(words).args(arguments).current_dir("/"))
}

fn user_unit() {
    host().need(Feature::Systemd).need(Feature::Python);
    let binary = install_binary();
    systemctl(&["start", "user@1000.service"]);
    let units = Path::new("/home/tester/.config/systemd/user");
    as_user(&["mkdir", "-p", units.to_str().expect("ASCII")]);
    // The port of the shipped unit belongs to another trial.
    let text = unit("codebeaker-user.service", &binary).replace(" serve\n", " serve --listen 127.0.0.1:5105\n");
    std::fs::write(units.join("codebeaker.service"), text).expect("root may write there");
    as_user(&["systemctl", "--user", "daemon-reload"]);
    as_user(&["systemctl", "--user", "start", "codebeaker.service"]);
    let show = |name: &str| as_user(&["systemctl", "--user", "show", "--property", name, "--value", "codebeaker.service"]);
    assert_eq!(show("StatusText"), "listening on ws://127.0.0.1:5105");
    let state_dir = ["/home/tester/.local/state/codebeaker", "/home/tester/.config/codebeaker"];
    let state_dir = state_dir.iter().map(Path::new).find(|path| path.join("token").exists()).expect("a state directory");
    let mut client = connect("127.0.0.1:5105", state_dir);
    let created = client.ok("session.create", &json!({"language": "python", "memoryLimitMB": 128, "pidsLimit": 32}));
    assert_eq!(created["enforcement"]["rootless"], true);
    assert_eq!(["memory", "pids"].map(|limit| state(&created, limit)), ["enforced", "enforced"], "{created}");
    out_of_memory(&mut client, &created);
    as_user(&["systemctl", "--user", "stop", "codebeaker.service"]);
    systemctl(&["stop", "user@1000.service"]);
}
