//! Recipes: a real root file system from Debian packages by mmdebstrap, imported and used; what is refused before anything runs.

use std::time::Duration;

use serde_json::json;

use crate::support::cli::{Invocation, codebeaker};
use crate::support::trial::skip;
use crate::support::{Server, Session, Setup, host, page};

pub fn trials() -> Vec<libtest_mimic::Trial> {
    page(
        "recipes",
        &[
            ("the recipe bash becomes an image, and a session runs on it", bash),
            ("recipes are listed, with languages' images among them", listed),
            ("an unknown or unsound recipe is refused with the field and the mend", refused),
        ],
    )
}

fn bash() {
    host().need_programs("mmdebstrap", &["mmdebstrap"]);
    let server = Server::start(&Setup::plain());
    let call = |arguments: &[&str]| {
        Invocation::new(arguments).state_dir(&server.state_dir()).wait_at_most(Duration::from_secs(900)).run()
    };
    let built = call(&["image", "build", "bash", "--name", "built", "-o", "json"]);
    let unreachable = ["Could not resolve", "Could not connect", "Unable to connect", "Failed to fetch", "Temporary failure"];
    if built.code != 0 && unreachable.iter().any(|words| built.stderr.contains(words)) {
        skip("no Debian mirror is within reach");
    }
    let row = built.expect_code(0).json();
    assert_eq!((&row["name"], &row["source"]), (&json!("built"), &json!("rootfs-tar")), "{row}");
    let mut session = Session::open(&server, &json!({"language": "bash", "image": "built"}));
    let code = "test -e /usr/bin/python3 || echo \"Debian $(cut -d. -f1 < /etc/debian_version), no python\"";
    assert_eq!(session.ok(&json!({"type": "execute_code", "code": code}))["stdout"], "Debian 12, no python\n");
    session.close();
    let again = call(&["image", "build", "bash", "--name", "built"]);
    assert!(again.code == 1 && again.stderr.contains("built"), "a name that is taken costs no build: {}", again.stderr);
    assert_eq!(server.end_and_check(), Vec::<String>::new());
}

fn listed() {
    let recipes = codebeaker(&["image", "build", "--list", "-o", "json"]).expect_code(0).json();
    let names: Vec<&str> = recipes["recipes"].as_array().expect("rows").iter().filter_map(|row| row["name"].as_str()).collect();
    for name in ["bash", "python", "python-data", "node", "go", "csharp", "ruby", "gcc", "rust"] {
        assert!(names.contains(&name), "{name} in {names:?}");
    }
    for language in ["python", "typescript", "c", "cpp", "rust"] {
        let shown = codebeaker(&["languages", "show", language, "-o", "json"]).expect_code(0).json();
        assert!(names.contains(&shown["image"].as_str().expect("an image")), "{shown}");
    }
}

fn refused() {
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("mine.toml");
    let sound = "name = \"mine\"\nsummary = \"x\"\npackages = [\"lua5.4\"]\nprograms = [\"lua5.4\"]\n";
    for (text, words) in [
        (sound.replace("lua5.4\"]\np", "--setup-hook=id\"]\np"), ["`packages`", "--setup-hook=id"]),
        (sound.replace("name = \"mine\"", "name = \"../mine\""), ["`name`", "../mine"]),
        (sound.replace("summary", "summery"), ["summery", "unknown field"]),
    ] {
        std::fs::write(&file, text).expect("a file");
        let output = codebeaker(&["image", "build", file.to_str().expect("a path")]);
        assert_eq!(output.code, 1, "{}", output.stderr);
        assert!(words.iter().all(|word| output.stderr.contains(word)), "{}", output.stderr);
    }
    let unknown = codebeaker(&["image", "build", "cobol"]);
    assert!(unknown.code == 1 && unknown.stderr.contains("python-data"), "{}", unknown.stderr);
    assert_eq!(codebeaker(&["image", "build"]).code, 2);
}
