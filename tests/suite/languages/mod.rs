//! Ten languages × hello, standard input, arguments, exit code, exception, time-out, characters, what a compiler refuses, and a
//! package: one table, one trial a language and column; the interpreted ones once more under the profile `strict`, packages aside.
//!
//! Invariant: a language whose programs the host lacks is a named skip. Read `table` for the programs themselves.

mod own;
mod packages;
mod table;

use serde_json::{Value, json};

use crate::support::{Session, Setup, host, trial};
use table::{Language, TABLE};

/// A sentence, and what holds it.
type Column = (&'static str, fn(&Under));

/// A language, and the profile of its session.
struct Under {
    language: &'static Language,
    profile: &'static str,
}

/// What each language must do.
const COLUMNS: [Column; 8] = [
    ("says hello", hello),
    ("reads standard input to its end", stdin),
    ("takes arguments as they are given", arguments),
    ("ends with an exit code of its own", exit_code),
    ("an exception is a nonzero exit with its word on stderr", exception),
    ("an endless loop is a timeout", timeout),
    ("passes characters of every width through", unicode),
    ("what can't be compiled is told apart from what ends badly", refused),
];

/// Not under `strict`: npm wants a loopback interface, which that profile has not (docs/languages.md).
const PACKAGE: Column = ("installs a package, or says that it has none", packages::of_language);

/// All trials of the page.
pub fn trials() -> Vec<libtest_mimic::Trial> {
    let of_table = TABLE.iter().flat_map(|language| {
        COLUMNS.into_iter().chain([PACKAGE]).map(move |(claim, test)| {
            trial("languages", &format!("{} {claim}", language.name), move || {
                host().need_programs(language.name, language.programs);
                test(&Under { language, profile: "default" });
            })
        })
    });
    let interpreted = TABLE.iter().filter(|language| !language.compiled).map(|language| {
        trial("languages", &format!("{} passes its whole row under the profile strict too", language.name), move || {
            host().need_programs(language.name, language.programs);
            for (_, test) in COLUMNS {
                test(&Under { language, profile: "strict" });
            }
        })
    });
    of_table.chain(interpreted).chain(own::trials()).chain(packages::trials()).collect()
}

/// Carries out `execute_code` in a session of that language on the host's own programs.
fn execute(under: &Under, mut command: Value) -> Value {
    let server = Setup::plain().shared();
    let mut session =
        Session::open(&server, &json!({"language": under.language.name, "image": "host", "profile": under.profile}));
    command["type"] = json!("execute_code");
    let answer = session.execute(&command);
    let left = session.ok(&json!({"type": "list_directory", "path": "/workspace"}));
    assert_eq!(left["entries"], json!([]), "{}: an execution leaves nothing in the workspace", under.language.name);
    answer
}

fn prints(under: &Under, command: Value, expected: &str) {
    let answer = execute(under, command);
    assert_eq!((&answer["success"], &answer["result"]["stdout"]), (&json!(true), &json!(expected)), "{answer}");
}

fn hello(under: &Under) {
    prints(under, json!({"code": under.language.hello}), "hello\n");
}

fn stdin(under: &Under) {
    prints(under, json!({"code": under.language.echo, "stdin": "one\ntwo\n"}), "one|two|");
}

fn arguments(under: &Under) {
    let args = json!(["a b", "", "-x", "$HOME", "'\"\\", "*"]);
    prints(under, json!({"code": under.language.arguments, "args": args}), "[a b][][-x][$HOME]['\"\\][*]");
}

fn exit_code(under: &Under) {
    let answer = execute(under, json!({"code": under.language.exit_3}));
    assert_eq!((&answer["errorKind"], &answer["result"]["exitCode"]), (&json!("nonzero_exit"), &json!(3)), "{answer}");
}

fn exception(under: &Under) {
    let answer = execute(under, json!({"code": under.language.throws}));
    assert_eq!(answer["success"], false, "{answer}");
    let kind = answer["errorKind"].as_str().unwrap_or_default();
    assert!(kind == "nonzero_exit" || kind == "signaled", "{answer}");
    assert_ne!(answer["result"]["exitCode"], Value::Null, "{answer}");
    let stderr = answer["result"]["stderr"].as_str().unwrap_or_default();
    assert!(stderr.contains("a-word-of-its-own"), "{answer}");
}

fn timeout(under: &Under) {
    let answer = execute(under, json!({"code": under.language.endless, "timeoutSeconds": 1}));
    assert_eq!((&answer["errorKind"], &answer["result"]["timedOut"]), (&json!("timeout"), &json!(true)), "{answer}");
}

fn unicode(under: &Under) {
    prints(under, json!({"code": under.language.echo, "stdin": "grüße 日本 🦀\nя\n"}), "grüße 日本 🦀|я|");
}

/// A compiled language tells its compiler's word by a verdict of its own, in an interpreted one it is the program that ends badly.
fn refused(under: &Under) {
    let answer = execute(under, json!({"code": under.language.broken, "stdin": "x"}));
    let expected = if under.language.compiled {
        ("compile_error", Value::Null)
    } else {
        ("nonzero_exit", answer["result"]["exitCode"].clone())
    };
    assert_eq!((answer["errorKind"].as_str(), &answer["result"]["exitCode"]), (Some(expected.0), &expected.1), "{answer}");
    assert!(answer["result"]["stderr"].as_str().is_some_and(|text| text.contains(under.language.complaint)), "{answer}");
    assert_eq!(answer["result"]["stdout"], "", "{answer}");
}
