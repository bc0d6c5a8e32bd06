//! The command line from outside: `run` and its exit codes, the client commands, and what prints tables.

use serde_json::Value;

use crate::support::cli::{Invocation, codebeaker};
use crate::support::{Feature, Host, Session, Setup, eventually, page};

pub fn trials() -> Vec<libtest_mimic::Trial> {
    let mut all = page(
        "cli",
        &[
            ("run -e runs each language", run_languages),
            ("run passes streams and the exit code through", run_streams),
            ("run reads a file, standard input and arguments", run_sources),
            ("run tells 125, 126 and 127 apart", run_codes),
            ("run ends a program at its profile's wall time with a code of its own", run_timeout),
            ("exec, ps and close are a client of a running server", client),
        ],
    );
    all.extend(page(
        "cli",
        &[
            ("languages and runtimes print JSON", tables),
            ("doctor --json names each thing and its mend", doctor),
            ("plan prints the ordered steps without running them", plan),
            ("config show tells each value and where it is from", config_show),
            ("completion, --version and --help print on stdout", completion),
            ("an unknown call is a usage error on stderr", usage),
            ("a failure is one line with its cause and one with its mend", failures),
            ("a full disk is told and a closed pipe is not", lost_output),
        ],
    ));
    all
}

fn run_languages() {
    assert_eq!(codebeaker(&["run", "--language", "bash", "-e", "echo $((6*7))"]).expect_code(0).stdout, "42\n");
    if Host::has(Feature::Python) {
        assert_eq!(codebeaker(&["run", "--language", "python", "-e", "print(6*7)"]).expect_code(0).stdout, "42\n");
    }
    if Host::has(Feature::Node) {
        assert_eq!(codebeaker(&["run", "--language", "javascript", "-e", "console.log(6*7)"]).expect_code(0).stdout, "42\n");
    }
}

fn run_streams() {
    let output = codebeaker(&["run", "--language", "bash", "-e", "echo out; echo err >&2; exit 42"]).expect_code(42);
    assert_eq!(output.stdout, "out\n", "nothing but the program's own on stdout");
    assert!(output.stderr.contains("err\n"), "{}", output.stderr);
    let killed = codebeaker(&["run", "--language", "bash", "-e", "kill -KILL $$"]);
    assert_eq!(killed.code, 137, "{killed:?}");
}

fn run_sources() {
    let place = crate::support::fixture_user::directory_of(None);
    let file = place.path().join("program.sh");
    std::fs::write(&file, "read -r line\necho \"$line|$1|$#\"\n").expect("an own directory");
    let path = file.display().to_string();
    let output =
        Invocation::new(&["run", "--language", "bash", &path, "--", "a b", "c"]).stdin(b"input\n").run().expect_code(0);
    assert_eq!(output.stdout, "input|a b|2\n");
    let output = Invocation::new(&["run", "--language", "bash", "-"]).stdin(b"echo from stdin\n").run().expect_code(0);
    assert_eq!(output.stdout, "from stdin\n");
    let output =
        Invocation::new(&["run", "--language", "bash", "-e", "wc -c"]).stdin(&vec![b'x'; 300_000]).run().expect_code(0);
    assert_eq!(output.stdout.trim(), "300000");
}

fn run_codes() {
    for arguments in [
        &["run", "--language", "klingon", "-e", "x"][..],
        &["run", "--language", "bash", "--image", "no-such-image", "-e", "x"],
    ] {
        let output = codebeaker(arguments).expect_code(125);
        assert!(output.stdout.is_empty() && !output.stderr.is_empty(), "{output:?}");
    }
    codebeaker(&["run", "--language", "bash", "-e", "no-such-program"]).expect_code(127);
    codebeaker(&["run", "--language", "bash", "-e", "/etc/passwd"]).expect_code(126);
}

fn run_timeout() {
    let output = codebeaker(&["run", "--language", "bash", "--profile", "strict", "-e", "echo began; while :; do :; done"]);
    assert!(output.code != 0 && output.stdout == "began\n", "{output:?}");
    assert!(output.stderr.contains("time"), "it says why: {output:?}");
}

fn client() {
    let server = Setup::plain().shared();
    let session = Session::python(&server);
    let id = session.id.as_str();
    let list = server.cli(&["ps", "-o", "json"]).expect_code(0);
    assert!(list.json().to_string().contains(id), "{}", list.stdout);
    assert!(server.cli(&["ps"]).expect_code(0).stdout.contains(id));
    let output = server.cli(&["exec", id, "--", "bash", "-c", "echo out; exit 5"]).expect_code(5);
    assert_eq!(output.stdout, "out\n");
    server.cli(&["close", id]).expect_code(0);
    let gone = || !server.cli(&["ps", "-o", "json"]).stdout.contains(id);
    assert!(eventually(std::time::Duration::from_secs(2), gone));
}

/// The rows of a table in JSON: an array, or an object that holds one.
fn rows(value: &Value) -> Vec<Value> {
    let inner = value.as_object().and_then(|object| object.values().find(|value| value.is_array()));
    inner.unwrap_or(value).as_array().unwrap_or_else(|| panic!("no rows in {value}")).clone()
}

fn tables() {
    let languages = rows(&codebeaker(&["languages", "-o", "json"]).expect_code(0).json());
    for name in ["python", "javascript", "bash"] {
        assert!(languages.iter().any(|row| row["name"] == name), "{name}");
    }
    let runtimes = rows(&codebeaker(&["runtimes", "-o", "json"]).expect_code(0).json());
    assert!(runtimes.iter().any(|row| row["type"] == "NativeProcess" && row["available"] == true), "{runtimes:?}");
    assert!(!codebeaker(&["runtimes"]).expect_code(0).stdout.contains("0/10"), "what is not there has no figures");
    assert!(codebeaker(&["languages"]).expect_code(0).stdout.contains("python"));
    assert!(!codebeaker(&["runtimes"]).expect_code(0).stdout.contains('\u{1b}'), "no colours when it is no terminal");
}

fn doctor() {
    let output = codebeaker(&["doctor", "--json"]).expect_code(0);
    let checks = rows(&output.json());
    assert!(checks.len() >= 6, "{}", output.stdout);
    assert!(checks.iter().all(|check| check["name"].is_string()), "{}", output.stdout);
    let text = output.stdout.to_lowercase();
    for word in ["namespace", "overlay", "cgroup", "seccomp", "landlock"] {
        assert!(text.contains(word), "{word}: {}", output.stdout);
    }
    codebeaker(&["doctor"]).expect_code(0);
}

fn plan() {
    let output = codebeaker(&["plan", "--profile", "strict"]).expect_code(0);
    let place =
        |word: &str| output.stdout.to_lowercase().find(word).unwrap_or_else(|| panic!("no {word} in {}", output.stdout));
    assert!(place("pivot_root") < place("no_new_privs"), "in the order of the walls: {}", output.stdout);
    assert_eq!(codebeaker(&["plan", "--profile", "strict"]).expect_code(0).stdout, output.stdout, "a plan is pure");
    assert_ne!(codebeaker(&["plan", "--profile", "no-such"]).code, 0);
}

fn config_show() {
    let server = Setup::small_bounds().shared();
    let config = server.outside().join("config.toml").display().to_string();
    let output = codebeaker(&["config", "show", "--config", &config]).expect_code(0);
    assert!(output.stdout.contains("batch_max") && output.stdout.contains("config.toml"), "{}", output.stdout);
}

fn completion() {
    let output = codebeaker(&["completion", "bash"]).expect_code(0);
    assert!(output.stdout.contains("complete ") && output.stdout.contains("codebeaker"), "{}", output.stdout);
    assert!(codebeaker(&["--version"]).expect_code(0).stdout.starts_with("codebeaker "));
    assert!(codebeaker(&["--help"]).expect_code(0).stdout.contains("serve"));
}

fn usage() {
    let output = codebeaker(&["no-such-call"]);
    assert!(output.code != 0 && output.stdout.is_empty() && output.stderr.contains("no-such-call"), "{output:?}");
    assert_ne!(codebeaker(&["serve", "--listen", "nonsense"]).code, 0);
}

fn failures() {
    let server = Setup::plain().shared();
    let taken = server.address.to_string();
    let state = server.state_dir().display().to_string();
    let place = crate::support::fixture_user::directory_of(None);
    let free_state = place.path().join("state").display().to_string();
    for (arguments, cause) in [
        (&["serve", "--listen", &taken, "--state-dir", &free_state][..], "can't listen on"),
        (&["serve", "--listen", "127.0.0.1:0", "--state-dir", &state], "in use by process"),
        (&["serve", "--listen", "127.0.0.1:0", "--log", "a=b=c"], "log.filter"),
        (&["image", "import", "/etc/passwd", "--name", "x"], "neither a directory nor a tar archive"),
        (&["image", "import", "/nonexistent"], "/nonexistent"),
        (&["image", "import", "/usr/bin", "--name", "../x"], "`../x`"),
        (&["image", "remove", "host"], "reserved"),
        (&["token", "revoke", "nobody"], "`nobody`"),
        (&["languages", "--state-dir", "/dev/null/x"], "/dev/null/x"),
    ] {
        let output = codebeaker(arguments).expect_code(1);
        let lines: Vec<&str> = output.stderr.lines().filter(|line| !line.starts_with('{')).collect();
        assert!(output.stdout.is_empty() && lines.len() == 2, "{arguments:?}: {output:?}");
        assert!(lines[0].starts_with("error: ") && lines[0].contains(cause), "{arguments:?}: {output:?}");
        assert!(lines[1].starts_with("hint: "), "{arguments:?}: {output:?}");
    }
}

fn lost_output() {
    let script = "\"$0\" run --language bash -e 'echo hi' </dev/null >/dev/full; echo $?; \
                  { \"$0\" run --language bash -e yes </dev/null; echo $? >&2; } | head -n 1";
    let place = crate::support::fixture_user::directory_of(None);
    let output = std::process::Command::new("bash")
        .args(["-c", script])
        .arg(crate::support::fixture_user::binary_for(None))
        .env("CODEBEAKER_STATE_DIR", place.path().join("state"))
        .output()
        .expect("bash is there");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "125\ny\n");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(stderr.starts_with("error: can't write to standard output: No space") && stderr.ends_with("\n141\n"), "{stderr}");
    assert_eq!(stderr.lines().count(), 2, "a closed pipe is silent: {stderr}");
}
