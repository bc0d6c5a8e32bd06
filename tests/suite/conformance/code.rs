//! `execute_code` in each language that is installed, and `install_packages`.

use serde_json::{Value, json};

use crate::support::{Feature, Session, Setup, host, page};

pub fn trials() -> Vec<libtest_mimic::Trial> {
    page(
        "code",
        &[
            ("python runs with input, arguments, environment and exit code", python),
            ("javascript runs with input, arguments, environment and exit code", javascript),
            ("bash runs with input, arguments, environment and exit code", bash),
            ("an uncaught exception is a nonzero exit with its trace on stderr", exception),
            ("a command may name another language than the session's", other_language),
            ("an unknown language in a command is 1100", unknown_language),
            ("code does not remember the interpreter of the command before", fresh_interpreter),
            ("a package name can't be an option", package_names),
        ],
    )
}

/// Seconds for an interpreter to start, also where Node is emulated: as much as the default profile grants.
const PATIENCE: u32 = 300;

/// Runs `good`, which reads a word, prints it with an argument and a variable, and `bad`, which ends with 3.
fn speaks(language: &str, good: &str, bad: &str) {
    let server = Setup::plain().shared();
    let mut session = Session::open(&server, &json!({"language": language}));
    let command = json!({"type": "execute_code", "code": good, "stdin": "in\n", "args": ["a b"], "env": {"WORD": "ü"}, "timeoutSeconds": PATIENCE});
    assert_eq!(session.ok(&command)["stdout"], "in|a b|ü\n");
    let answer = session.fails(&json!({"type": "execute_code", "code": bad}), "nonzero_exit");
    assert_eq!(answer["result"]["exitCode"], 3, "{answer}");
    let large = format!("{good}\n{}", if language == "javascript" { "//" } else { "#" }.repeat(150_000));
    let command = json!({"type": "execute_code", "code": large, "stdin": "in\n", "args": ["a b"], "env": {"WORD": "ü"}, "timeoutSeconds": PATIENCE});
    assert_eq!(session.ok(&command)["stdout"], "in|a b|ü\n", "source longer than an argument may be");
}

fn python() {
    host().need(Feature::Python);
    speaks("python", "import os, sys\nprint(input(), sys.argv[1], os.environ['WORD'], sep='|')", "raise SystemExit(3)");
}

fn javascript() {
    host().need(Feature::Node);
    let good = "const line = require('fs').readFileSync(0, 'utf8').trim(); console.log([line, process.argv[2], process.env.WORD].join('|'));";
    speaks("javascript", good, "process.exit(3)");
}

fn bash() {
    speaks("bash", "read -r line\necho \"$line|$1|$WORD\"", "exit 3");
}

fn exception() {
    let server = Setup::plain().shared();
    let mut session = Session::python(&server);
    let answer =
        session.fails(&json!({"type": "execute_code", "code": "print('before')\nraise ValueError('word')"}), "nonzero_exit");
    assert_eq!((&answer["result"]["exitCode"], &answer["result"]["stdout"]), (&json!(1), &json!("before\n")));
    assert!(
        answer["result"]["stderr"].as_str().is_some_and(|text| text.contains("ValueError: word") && text.contains("line 2")),
        "{answer}"
    );
    session.fails(&json!({"type": "execute_code", "code": "def ("}), "nonzero_exit");
}

fn other_language() {
    let server = Setup::plain().shared();
    let mut session = Session::python(&server);
    session.write("shared", "by both");
    assert_eq!(session.ok(&json!({"type": "execute_code", "language": "bash", "code": "cat shared"}))["stdout"], "by both");
}

fn unknown_language() {
    let server = Setup::plain().shared();
    let mut session = Session::python(&server);
    let parameters = json!({"sessionId": session.id, "command": {"type": "execute_code", "language": "klingon", "code": ""}});
    session.client.error_is("session.execute", &parameters, 1100, "language_not_supported");
}

fn fresh_interpreter() {
    let server = Setup::plain().shared();
    let mut session = Session::python(&server);
    session.run("import builtins; builtins.left = 1; left_too = 2");
    assert_eq!(session.run("print('left' in dir(__builtins__), 'left_too' in globals())"), "False False");
}

fn package_names() {
    let server = Setup::plain().shared();
    let mut session = Session::python(&server);
    let id = session.id.clone();
    for name in ["--index-url=http://evil.example", "-r/etc/passwd", "a\0b", ""] {
        let command = json!({"type": "install_packages", "packages": [name]});
        session.client.invalid("session.execute", &json!({"sessionId": id, "command": command}), "packages");
    }
    // No package source is configured: the command is carried out and fails as a result.
    let answer = session.execute(&json!({"type": "install_packages", "packages": ["codebeaker-no-such-package"]}));
    assert!(answer["success"] == false && answer["errorKind"] != Value::Null, "{answer}");
}
