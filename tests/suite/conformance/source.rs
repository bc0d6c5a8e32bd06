//! The source of `execute_code` is a file of the session, and can fail to be written as any file can: the verdict is that of its
//! cause, the error names it, and the session goes on.

use serde_json::{Value, json};

use crate::support::{Feature, Server, Session, Setup, host, page};

/// Bytes of a file that a disk is filled with.
const PIECE_BYTES: usize = 4 << 20;

/// MiB of disk; an engine of isolates has the disk of all its sessions, of which it may have one.
const DISK_MIB: usize = 48;

pub fn trials() -> Vec<libtest_mimic::Trial> {
    page(
        "source",
        &[
            ("a source for which there is no room on the disk is disk_full, in a program of an image", || {
                no_room(Feature::Python, "NativeProcess", &PYTHON);
            }),
            ("a source for which there is no room on the disk is disk_full, in Deno", || {
                no_room(Feature::Deno, "Deno", &JAVASCRIPT);
            }),
            ("a source for which there is no room on the disk is disk_full, in an isolate", || {
                no_room(Feature::Deno, "V8Isolate", &JAVASCRIPT);
            }),
            ("a source that finds a directory in its place is not_a_regular_file, in a program of an image", || {
                no_place(Feature::Python, "NativeProcess", &PYTHON);
            }),
            ("a source that finds a directory in its place is not_a_regular_file, in Deno", || {
                no_place(Feature::Deno, "Deno", &JAVASCRIPT);
            }),
            ("a source that finds a directory in its place is not_a_regular_file, in an isolate", || {
                no_place(Feature::Deno, "V8Isolate", &JAVASCRIPT);
            }),
        ],
    )
}

struct Words {
    language: &'static str,
    /// Prints 42.
    hello: &'static str,
    comment: &'static str,
    extension: &'static str,
}

const PYTHON: Words = Words { language: "python", hello: "print(6 * 7)\n", comment: "#", extension: "py" };
const JAVASCRIPT: Words = Words { language: "javascript", hello: "console.log(6 * 7);\n", comment: "//", extension: "js" };

/// A server of the trial's own: executions of isolates are numbered in their engine. Its profile `small` has little disk.
fn server(directory: &tempfile::TempDir) -> Server {
    let setup = Setup::engines().with_config("measure = false\nisolates_per_engine = 1\n");
    Server::start(&setup.with_profile(directory.path(), "small", &format!("disk_mib = {DISK_MIB}")))
}

fn open<'a>(server: &'a Server, runtime: &str, words: &Words) -> Session<'a> {
    let session = Session::open(server, &json!({"language": words.language, "runtimeType": runtime, "profile": "small"}));
    assert_eq!(session.created["runtimeType"], runtime, "{}", session.created);
    session
}

fn code(text: &str) -> Value {
    json!({"type": "execute_code", "code": text})
}

/// Runs a session of a server, and the server to its end.
fn with_session(feature: Feature, runtime: &str, words: &Words, claim: impl FnOnce(&mut Session<'_>)) {
    host().need(feature);
    let directory = tempfile::tempdir().expect("a temporary directory");
    let server = server(&directory);
    let mut session = open(&server, runtime, words);
    claim(&mut session);
    session.close();
    let left = server.end_and_check();
    assert!(left.is_empty(), "{}", left.join("; "));
}

fn no_room(feature: Feature, runtime: &str, words: &Words) {
    with_session(feature, runtime, words, |session| {
        let large = format!("{}{}{}\n", words.hello, words.comment, "x".repeat(PIECE_BYTES));
        assert_eq!(session.ok(&code(&large))["stdout"], "42\n", "the control: there is room for it in the beginning");
        session.write("piece", &"x".repeat(PIECE_BYTES));
        let copies = DISK_MIB * 1024 * 1024 / PIECE_BYTES + 1;
        let copy = |n| json!({"type": "copy_file", "source": "piece", "destination": format!("full/{n}")});
        let full = (0..copies).map(|n| session.execute(&copy(n))).find(|answer| answer["success"] == false);
        assert_eq!(full.expect("the disk has an end")["errorKind"], "disk_full");
        let answer = session.fails(&code(&large), "disk_full");
        let error = answer["error"].as_str().expect("a sentence");
        assert!(error.contains("/workspace/.main") && error.contains("No space left"), "{answer}");
        session.ok(&json!({"type": "delete_file", "path": "full", "recursive": true}));
        assert_eq!(session.ok(&code(&large))["stdout"], "42\n", "the session goes on");
    });
}

fn no_place(feature: Feature, runtime: &str, words: &Words) {
    with_session(feature, runtime, words, |session| {
        assert_eq!(session.ok(&code(words.hello))["stdout"], "42\n", "the control");
        // In an isolate the name has the number of the execution in it.
        let names: Vec<String> = std::iter::once(String::new()).chain((1..20).map(|n| n.to_string())).collect();
        let names: Vec<String> = names.iter().map(|number| format!(".main{number}.{}", words.extension)).collect();
        for name in &names {
            session.ok(&json!({"type": "create_directory", "path": name}));
        }
        let answer = session.fails(&code(words.hello), "not_a_regular_file");
        assert!(answer["error"].as_str().is_some_and(|error| error.contains("/workspace/.main")), "{answer}");
        for name in &names {
            // What lies in the place of the source goes with the source.
            session.execute(&json!({"type": "delete_file", "path": name, "recursive": true}));
        }
        assert_eq!(session.ok(&code(words.hello))["stdout"], "42\n", "the session goes on");
    });
}
