//! `create_directory`, `copy_file`, `delete_file` and `list_directory`, each with its alias.

use serde_json::{Value, json};

use crate::support::{Session, Setup, pace, page};

pub fn trials() -> Vec<libtest_mimic::Trial> {
    page(
        "tree",
        &[
            ("create_directory makes parents, and says whether it made it", create),
            ("copy_file copies files and trees, and keeps what overwrite protects", copy),
            ("delete_file counts entries and never follows a symlink", delete),
            ("list_directory tells name, path, type, size, mode and target", list),
            ("recursion, depth, globs, hidden entries and limit narrow a listing", list_options),
            ("a listing of 100,000 entries is whole, and a limit cuts it", list_large),
            ("names that are no UTF-8 come as base64", list_odd_names),
            ("the aliases of the file commands are taken", aliases),
        ],
    )
}

fn names(listing: &Value) -> Vec<&str> {
    listing["entries"].as_array().expect("entries").iter().filter_map(|entry| entry["name"].as_str()).collect()
}

fn create() {
    let server = Setup::plain().shared();
    let mut session = Session::python(&server);
    let deep = json!({"type": "create_directory", "path": "a/b/c"});
    assert_eq!(session.ok(&deep), json!({"path": "a/b/c", "created": true}));
    assert_eq!(session.ok(&deep), json!({"path": "a/b/c", "created": false}));
    session.fails(&json!({"type": "create_directory", "path": "x/y", "recursive": false}), "file_not_found");
    session.fails(&json!({"type": "create_directory", "path": "a", "recursive": false}), "already_exists");
    session.ok(&json!({"type": "create_directory", "path": "private", "permissions": "700"}));
    assert_eq!(session.bash("stat -c %a private"), "700");
    session.write("file", "");
    let answer = session.execute(&json!({"type": "create_directory", "path": "file"}));
    assert!(answer["errorKind"] == "already_exists" || answer["errorKind"] == "not_a_directory", "{answer}");
}

fn copy() {
    let server = Setup::plain().shared();
    let mut session = Session::python(&server);
    session.write("tree/one", "1");
    session.write("tree/sub/two", "22");
    session.bash("ln -s one tree/link; chmod 750 tree/one");
    let copied = session.ok(&json!({"type": "copy_file", "source": "tree", "destination": "twin"}));
    assert_eq!((&copied["source"], &copied["destination"], &copied["bytes"]), (&json!("tree"), &json!("twin"), &json!(3)));
    assert_eq!(session.bash("cat twin/one twin/sub/two; readlink twin/link; stat -c %a twin/one"), "122one\n750");
    session.write("to", "old");
    session
        .fails(&json!({"type": "copy_file", "source": "tree/one", "destination": "to", "overwrite": false}), "already_exists");
    assert_eq!(session.read("to"), "old");
    session.ok(&json!({"type": "copy_file", "source": "tree/one", "destination": "to"}));
    assert_eq!(session.read("to"), "1");
    session.fails(&json!({"type": "copy_file", "source": "absent", "destination": "x"}), "file_not_found");
    let shallow = session.execute(&json!({"type": "copy_file", "source": "tree", "destination": "flat", "recursive": false}));
    assert_eq!(shallow["success"], false, "{shallow}");
    let inward = session.execute(&json!({"type": "copy_file", "source": "tree", "destination": "tree/in"}));
    assert_eq!(inward["success"], false, "a tree can't be copied into itself: {inward}");
}

fn delete() {
    let server = Setup::plain().shared();
    let mut session = Session::python(&server);
    session.bash("mkdir -p d/e keep; touch d/1 d/e/2 keep/safe; ln -s ../keep d/link; ln -s keep top");
    let full = session.execute(&json!({"type": "delete_file", "path": "d", "recursive": false}));
    assert_eq!(full["success"], false, "{full}");
    assert_eq!(session.ok(&json!({"type": "delete_file", "path": "d"})), json!({"path": "d", "deleted": 5}));
    assert_eq!(session.ok(&json!({"type": "delete_file", "path": "top"}))["deleted"], 1);
    assert_eq!(session.bash("ls keep"), "safe", "the targets of the links live");
    session.fails(&json!({"type": "delete_file", "path": "d"}), "file_not_found");
    let root = session.execute(&json!({"type": "delete_file", "path": "/usr"}));
    assert_eq!(session.program("true", &[])["success"], true, "the image below is untouched after {root}");
}

fn list() {
    let server = Setup::plain().shared();
    let mut session = Session::python(&server);
    session.bash("mkdir dir; printf 12345 > file; chmod 640 file; ln -s file link; mkfifo pipe");
    let listing = session.ok(&json!({"type": "list_directory"}));
    assert_eq!(names(&listing), ["dir", "file", "link", "pipe"], "sorted by path: {listing}");
    let types: Vec<&str> =
        listing["entries"].as_array().expect("entries").iter().filter_map(|entry| entry["type"].as_str()).collect();
    assert_eq!(types, ["directory", "file", "symlink", "other"]);
    let file = &listing["entries"][1];
    assert_eq!((&file["path"], &file["size"]), (&json!("/workspace/file"), &json!(5)), "{file}");
    assert!(file["mode"].to_string().contains("640") || file["mode"] == 0o640, "{file}");
    assert!(!file["modified"].is_null() && file.get("target").is_none_or(Value::is_null), "{file}");
    assert_eq!(listing["entries"][2]["target"], "file");
    session.fails(&json!({"type": "list_directory", "path": "absent"}), "file_not_found");
    let on_file = session.execute(&json!({"type": "list_directory", "path": "file"}));
    assert_eq!(on_file["success"], false, "{on_file}");
}

fn list_options() {
    let server = Setup::plain().shared();
    let mut session = Session::python(&server);
    session.bash("mkdir -p a/b/c .hid; touch top.py a/in.py a/in.txt a/b/deep.py .dot .hid/in.py");
    let mut list = |options: Value| {
        let mut command = json!({"type": "list_directory"});
        command.as_object_mut().expect("an object").extend(options.as_object().expect("an object").clone());
        let listing = session.ok(&command);
        (names(&listing).into_iter().map(str::to_owned).collect::<Vec<_>>(), listing["truncated"].clone())
    };
    assert_eq!(list(json!({"includeHidden": false})).0, ["a", "top.py"]);
    assert_eq!(list(json!({"recursive": true})).0.len(), 10);
    assert_eq!(list(json!({"recursive": true, "pattern": "*.py", "includeHidden": false})).0, ["deep.py", "in.py", "top.py"]);
    assert_eq!(list(json!({"recursive": true, "pattern": "a/*.txt"})).0, ["in.txt"]);
    assert_eq!(
        list(json!({"recursive": true, "maxDepth": 2, "includeHidden": false, "pattern": "*.py"})).0,
        ["in.py", "top.py"]
    );
    let (cut, truncated) = list(json!({"recursive": true, "limit": 3}));
    assert_eq!((cut.len(), truncated), (3, json!(true)));
    assert_eq!(list(json!({"path": "a", "limit": 3})).1, json!(false), "exactly as many as there are");
}

fn list_large() {
    let server = Setup::plain().shared();
    // The default of 64k inodes is less than the entries wanted, and a tmpfs counts hard links too.
    let mut session = Session::open(&server, &json!({"profile": "permissive"}));
    // A file command has 20 s, whatever the host.
    let entries = 100_000 / pace() as usize;
    let make = format!("for n in range(1, {entries}): os.link('many/0', 'many/%d' % n)");
    session.run(&format!("import os\nos.mkdir('many')\nopen('many/0', 'w')\n{make}"));
    let listing = session.ok(&json!({"type": "list_directory", "path": "many"}));
    assert_eq!((names(&listing).len(), &listing["truncated"]), (entries, &json!(false)));
    let cut = session.ok(&json!({"type": "list_directory", "path": "many", "limit": 1000}));
    assert_eq!((names(&cut).len(), &cut["truncated"]), (1000, &json!(true)));
    assert_eq!(session.ok(&json!({"type": "delete_file", "path": "many"}))["deleted"], entries + 1);
}

fn list_odd_names() {
    let server = Setup::plain().shared();
    let mut session = Session::python(&server);
    session.run("open(b'/workspace/\\xff\\xfe', 'w')");
    let listing = session.ok(&json!({"type": "list_directory"}));
    let entry = &listing["entries"][0];
    assert_eq!((&entry["name"], &entry["nameEncoding"]), (&json!("//4="), &json!("base64")), "{listing}");
}

fn aliases() {
    let server = Setup::plain().shared();
    let mut session = Session::python(&server);
    assert_eq!(session.ok(&json!({"type": "create_dir", "path": "d"}))["created"], true);
    session.write("d/f", "x");
    assert_eq!(names(&session.ok(&json!({"type": "list_files", "path": "d"}))), ["f"]);
    assert_eq!(session.ok(&json!({"type": "copy_file", "sourcePath": "d/f", "destinationPath": "g"}))["bytes"], 1);
    assert_eq!(session.ok(&json!({"type": "shell", "command": "cat", "args": ["g"]}))["stdout"], "x");
    assert_eq!(session.ok(&json!({"type": "execute", "code": "print(5)", "timeout": 20}))["stdout"], "5\n");
}
