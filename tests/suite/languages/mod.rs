//! Ten languages × hello, standard input, arguments, exit code, exception, time-out, characters, what a compiler refuses, and a
//! package: one table, one trial a language and column.
//!
//! Invariant: a language whose programs the host lacks is a named skip. Read `table` for the programs themselves.

mod own;
mod packages;
mod table;

use serde_json::{Value, json};

use crate::support::{Session, Setup, host, trial};
use table::{Language, TABLE};

/// A sentence, and what holds it.
type Column = (&'static str, fn(&Language));

/// What each language must do.
const COLUMNS: [Column; 9] = [
    ("says hello", hello),
    ("reads standard input to its end", stdin),
    ("takes arguments as they are given", arguments),
    ("ends with an exit code of its own", exit_code),
    ("an exception is a nonzero exit with its word on stderr", exception),
    ("an endless loop is a timeout", timeout),
    ("passes characters of every width through", unicode),
    ("what can't be compiled is told apart from what ends badly", refused),
    ("installs a package, or says that it has none", packages::of_language),
];

/// All trials of the page.
pub fn trials() -> Vec<libtest_mimic::Trial> {
    let of_table = TABLE.iter().flat_map(|language| {
        COLUMNS.iter().map(move |(claim, test)| {
            trial("languages", &format!("{} {claim}", language.name), move || {
                host().need_programs(language.name, language.programs);
                test(language);
            })
        })
    });
    of_table.chain(own::trials()).chain(packages::trials()).collect()
}

/// Carries out `execute_code` in a session of that language on the host's own programs.
fn execute(language: &Language, mut command: Value) -> Value {
    let server = Setup::plain().shared();
    let mut session = Session::open(&server, &json!({"language": language.name, "image": "host"}));
    command["type"] = json!("execute_code");
    let answer = session.execute(&command);
    let left = session.ok(&json!({"type": "list_directory", "path": "/workspace"}));
    assert_eq!(left["entries"], json!([]), "{}: an execution leaves nothing in the workspace", language.name);
    answer
}

fn prints(language: &Language, command: Value, expected: &str) {
    let answer = execute(language, command);
    assert_eq!((&answer["success"], &answer["result"]["stdout"]), (&json!(true), &json!(expected)), "{answer}");
}

fn hello(language: &Language) {
    prints(language, json!({"code": language.hello}), "hello\n");
}

fn stdin(language: &Language) {
    prints(language, json!({"code": language.echo, "stdin": "one\ntwo\n"}), "one|two|");
}

fn arguments(language: &Language) {
    let args = json!(["a b", "", "-x", "$HOME", "'\"\\", "*"]);
    prints(language, json!({"code": language.arguments, "args": args}), "[a b][][-x][$HOME]['\"\\][*]");
}

fn exit_code(language: &Language) {
    let answer = execute(language, json!({"code": language.exit_3}));
    assert_eq!((&answer["errorKind"], &answer["result"]["exitCode"]), (&json!("nonzero_exit"), &json!(3)), "{answer}");
}

fn exception(language: &Language) {
    let answer = execute(language, json!({"code": language.throws}));
    assert_eq!(answer["success"], false, "{answer}");
    let kind = answer["errorKind"].as_str().unwrap_or_default();
    assert!(kind == "nonzero_exit" || kind == "signaled", "{answer}");
    assert_ne!(answer["result"]["exitCode"], Value::Null, "{answer}");
    let stderr = answer["result"]["stderr"].as_str().unwrap_or_default();
    assert!(stderr.contains("a-word-of-its-own"), "{answer}");
}

fn timeout(language: &Language) {
    let answer = execute(language, json!({"code": language.endless, "timeoutSeconds": 1}));
    assert_eq!((&answer["errorKind"], &answer["result"]["timedOut"]), (&json!("timeout"), &json!(true)), "{answer}");
}

fn unicode(language: &Language) {
    prints(language, json!({"code": language.echo, "stdin": "grüße 日本 🦀\nя\n"}), "grüße 日本 🦀|я|");
}

/// A compiled language tells its compiler's word by a verdict of its own, in an interpreted one it is the program that ends badly.
fn refused(language: &Language) {
    let answer = execute(language, json!({"code": language.broken, "stdin": "x"}));
    let expected =
        if language.compiled { ("compile_error", Value::Null) } else { ("nonzero_exit", answer["result"]["exitCode"].clone()) };
    assert_eq!((answer["errorKind"].as_str(), &answer["result"]["exitCode"]), (Some(expected.0), &expected.1), "{answer}");
    assert!(answer["result"]["stderr"].as_str().is_some_and(|text| text.contains(language.complaint)), "{answer}");
    assert_eq!(answer["result"]["stdout"], "", "{answer}");
}
