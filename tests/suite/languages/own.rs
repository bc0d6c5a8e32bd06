//! What languages share: rows of `language.list`, a language of the operator's own, limits of the compile step, input that comes
//! while the compiler runs.

use serde_json::{Value, json};

use crate::support::cli::codebeaker;
use crate::support::{Session, Setup, host, page};

pub fn trials() -> Vec<libtest_mimic::Trial> {
    page(
        "languages",
        &[
            ("language.list tells a version for what is installed and a reason for what is not", listed),
            ("a language of the operator's own is compiled and run", own_language),
            ("a file in `languages` beside the configuration adds a language", dropped),
            ("an unsound language file is refused with its name, the field and what it takes", unsound),
            ("the plan of a language can be printed", shown),
            ("under strict a compiler has the time of default, and the program that of strict", time_of_strict),
            ("a limit that ends the compiler is told as that limit", flooding_compiler),
            ("input that is sent while the compiler runs reaches the program", early_input),
            ("cancel ends a compiler, and no program runs", cancelled_compiler),
            ("code in another language of the session is compiled too", other_language),
        ],
    )
}

const SLOW: &str = include_str!("../fixtures/languages/slow.toml");

/// A server with a language whose "compiler" does what the code says.
fn with_slow() -> Setup {
    let directory = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/suite/fixtures/languages");
    Setup::plain().with_config(&format!("language_dir = \"{directory}\"\n"))
}

fn listed() {
    let server = with_slow().shared();
    let reply = server.client().ok("language.list", &json!({}));
    let rows = reply["languages"].as_array().expect("rows");
    assert_eq!(rows.len(), 12, "{reply}");
    for row in rows {
        let installed = row["installed"].as_bool().expect("a boolean");
        assert_eq!(row["version"].is_string(), installed, "{row}");
        assert_eq!(row["reason"].is_string(), !installed, "{row}");
    }
    let own = rows.iter().find(|row| row["name"] == "slowsh").expect("a row");
    assert_eq!((&own["version"], &own["image"], &own["aliases"]), (&json!("slowsh 1"), &json!("host"), &json!(["slow"])));
}

fn own_language() {
    let server = with_slow().shared();
    let mut session = Session::open(&server, &json!({"language": "slow"}));
    let result =
        session.ok(&json!({"type": "execute_code", "code": "echo \"$1 and $(cat)\"", "args": ["this"], "stdin": "that"}));
    assert_eq!((&result["stdout"], &result["stderr"]), (&json!("this and that\n"), &json!("building\n")));
    let answer = session.fails(&json!({"type": "execute_code", "code": "echo ran # BAD"}), "compile_error");
    assert_eq!((&answer["result"]["exitCode"], &answer["result"]["stdout"]), (&Value::Null, &json!("")), "{answer}");
    assert_eq!(answer["result"]["stderr"], "building\nno: BAD\n");
    let left = session.ok(&json!({"type": "list_directory"}));
    assert_eq!(left["entries"], json!([]), "neither source nor what was built stays");
}

fn unsound() {
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("mine.toml");
    let check = |text: &str| {
        std::fs::write(&file, text).expect("a file");
        codebeaker(&["languages", "check", file.to_str().expect("a path")])
    };
    check(SLOW).expect_code(0);
    for (text, words) in [
        (SLOW.replace("run = [\"bash\", \"{output}\"]", "run = [\"bash\", \"{file}\"]"), ["`run`", "{output}"]),
        (SLOW.replace("display_name", "displayname"), ["displayname", "unknown field"]),
        (SLOW.replace("\"slow\"", "\"py\""), ["`py`", "rootfs/python.toml"]),
        (SLOW.replace("\".main.built\"", "\"/etc/x\""), ["`output_name`", ".main"]),
    ] {
        let output = check(&text);
        assert_eq!(output.code, 1, "{}", output.stderr);
        for word in words.into_iter().chain(["mine.toml"]) {
            assert!(output.stderr.contains(word), "{word} in {}", output.stderr);
        }
    }
}

fn dropped() {
    let directory = tempfile::tempdir().expect("a directory");
    let config = directory.path().join("config.toml");
    std::fs::write(&config, "").expect("a file");
    let show = || codebeaker(&["--config", config.to_str().expect("a path"), "languages", "show", "slow"]);
    assert_eq!(show().code, 1, "the control: it is not there yet");
    std::fs::create_dir(directory.path().join("languages")).expect("a directory");
    std::fs::write(directory.path().join("languages/slow.toml"), SLOW).expect("a file");
    assert!(show().expect_code(0).stdout.contains("/workspace/.main.built"));
}

fn shown() {
    let shown = codebeaker(&["languages", "show", "rs", "-o", "json"]).expect_code(0).json();
    let steps: Vec<&str> = shown["steps"].as_array().expect("steps").iter().filter_map(|step| step["step"].as_str()).collect();
    assert_eq!(steps, ["write", "compile", "run", "version"]);
    assert_eq!(shown["steps"][2]["command"], json!(["/workspace/.main/main"]));
    let table = codebeaker(&["languages", "show", "python"]).expect_code(0);
    assert!(table.stdout.contains("python3 /workspace/.main.py"), "{}", table.stdout);
    let unknown = codebeaker(&["languages", "show", "klingon"]);
    assert!(unknown.code == 1 && unknown.stderr.contains("python"), "{}", unknown.stderr);
}

fn time_of_strict() {
    let server = with_slow().shared();
    let mut session = Session::open(&server, &json!({"language": "slow", "profile": "strict"}));
    // One second is the program's; its compiler takes two.
    let result = session.ok(&json!({"type": "execute_code", "code": "echo ran # WAIT", "timeoutSeconds": 1}));
    assert_eq!(result["stdout"], "ran\n");
    session.fails(&json!({"type": "execute_code", "code": "sleep 20", "timeoutSeconds": 1}), "timeout");
}

fn flooding_compiler() {
    let server = with_slow().shared();
    let mut session = Session::open(&server, &json!({"language": "slow", "profile": "strict"}));
    let answer = session.fails(&json!({"type": "execute_code", "code": "echo ran # FLOOD"}), "output_limit");
    assert!(answer["error"].as_str().is_some_and(|text| text.contains("compiler")), "{answer}");
    assert_eq!((&answer["result"]["stdout"], &answer["result"]["exitCode"]), (&json!(""), &Value::Null));
    session.ok(&json!({"type": "execute_code", "code": "echo ran"}));
}

fn early_input() {
    let server = with_slow().shared();
    let mut session = Session::open(&server, &json!({"language": "slow"}));
    let (subscription, execution) = session.stream(&json!({"type": "execute_code", "code": "cat # WAIT"}));
    for (data, eof) in [("one ", false), ("two", true)] {
        let input = json!({"sessionId": session.id, "executionId": execution, "data": data, "eof": eof});
        assert_eq!(session.client.ok("session.input", &input)["accepted"], true);
    }
    let events = session.client.events(&subscription);
    assert_eq!(events.last().expect("exited")["result"]["result"]["stdout"], "one two", "{events:?}");
}

fn cancelled_compiler() {
    let server = with_slow().shared();
    let mut session = Session::open(&server, &json!({"language": "slow"}));
    let (subscription, _) = session.stream(&json!({"type": "execute_code", "code": "echo ran # LOOP"}));
    session.client.ok("session.cancel", &json!({"sessionId": session.id}));
    let events = session.client.events(&subscription);
    let result = &events.last().expect("exited")["result"];
    assert_eq!((&result["errorKind"], &result["result"]["stdout"]), (&json!("cancelled"), &json!("")), "{result}");
}

fn other_language() {
    host().need_programs("c", &["gcc"]);
    let server = Setup::plain().shared();
    let mut session = Session::python(&server);
    session.write("word.h", "#define WORD \"from a header of the session\"\n");
    let code = "#include <stdio.h>\n#include \"word.h\"\nint main(void) { puts(WORD); }";
    let result = session.ok(&json!({"type": "execute_code", "language": "c", "code": code}));
    assert_eq!(result["stdout"], "from a header of the session\n");
}
