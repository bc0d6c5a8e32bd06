//! `write_file` and `read_file`: modes, encodings, offsets, permissions, atomic replace, and what is refused.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;

use crate::support::{Session, Setup, pace, page};

pub fn trials() -> Vec<libtest_mimic::Trial> {
    page(
        "files",
        &[
            ("what is written is read, relative paths start at /workspace", write_and_read),
            ("missing parents are made, an existing file is replaced", create_mode),
            ("Append adds, CreateNew fails when something is there", other_modes),
            ("base64 carries any bytes, and bytes that are no UTF-8 fall back to it", encodings),
            ("offset and length cut, and truncated says whether more follows", offsets),
            ("permissions are set as the octal string says", permissions),
            ("replacing is atomic for a program that reads meanwhile", atomic_replace),
            ("a fifo, a device and a socket are refused at once", special_files),
            ("NUL, an empty path and a path of 5,000 bytes are refused", bad_paths),
            ("names of 255 bytes and names with line ends work", odd_names),
            ("a missing file, a directory as a file and a denied one have their own verdicts", verdicts),
            ("the id of a command is echoed", echoed_id),
        ],
    )
}

fn write_and_read() {
    let server = Setup::plain().shared();
    let mut session = Session::python(&server);
    let written = session.ok(&json!({"type": "write_file", "path": "a.txt", "content": "grüße\n"}));
    assert_eq!((&written["path"], &written["bytes"]), (&json!("a.txt"), &json!(8)));
    let read = session.ok(&json!({"type": "read_file", "path": "/workspace/a.txt"}));
    assert_eq!((&read["content"], &read["encoding"]), (&json!("grüße\n"), &json!("utf8")));
    assert_eq!((&read["size"], &read["truncated"], &read["path"]), (&json!(8), &json!(false), &json!("/workspace/a.txt")));
    assert_eq!(
        session.run("import os; print(os.getcwd(), open('a.txt', encoding='utf8').read() == 'gr\\u00fc\\u00dfe\\n')"),
        "/workspace True"
    );
    session.write("/tmp/elsewhere", "t");
    assert_eq!(session.read("/tmp/elsewhere"), "t");
}

fn create_mode() {
    let server = Setup::plain().shared();
    let mut session = Session::python(&server);
    session.write("deep/er/est/file", "one and more");
    session.write("deep/er/est/file", "two");
    assert_eq!(session.read("deep/er/est/file"), "two");
    session.ok(&json!({"type": "write_file", "path": "deep/er/est/file", "content": "three", "mode": "Overwrite"}));
    assert_eq!(session.read("deep/er/est/file"), "three");
    session.write("empty", "");
    assert_eq!(session.read("empty"), "");
}

fn other_modes() {
    let server = Setup::plain().shared();
    let mut session = Session::python(&server);
    for part in ["a", "b"] {
        assert_eq!(session.ok(&json!({"type": "write_file", "path": "log", "content": part, "mode": "Append"}))["bytes"], 1);
    }
    assert_eq!(session.read("log"), "ab");
    let new = json!({"type": "write_file", "path": "new", "content": "first", "mode": "CreateNew"});
    session.ok(&new);
    session.fails(&new, "already_exists");
    session.bash("ln -s nowhere dangling");
    session.fails(&json!({"type": "write_file", "path": "dangling", "content": "x", "mode": "CreateNew"}), "already_exists");
    assert_eq!(session.read("new"), "first");
}

fn encodings() {
    let server = Setup::plain().shared();
    let mut session = Session::python(&server);
    let bytes: Vec<u8> = (0..=255).collect();
    let text = STANDARD.encode(&bytes);
    let written = session.ok(&json!({"type": "write_file", "path": "bin", "content": text, "encoding": "base64"}));
    assert_eq!(written["bytes"], 256);
    let read = session.ok(&json!({"type": "read_file", "path": "bin"}));
    assert_eq!((&read["encoding"], &read["content"]), (&json!("base64"), &json!(text)), "it falls back and says so");
    session.write("text", "plain");
    let read = session.ok(&json!({"type": "read_file", "path": "text", "encoding": "base64"}));
    assert_eq!((&read["encoding"], &read["content"]), (&json!("base64"), &json!(STANDARD.encode("plain"))));
}

fn offsets() {
    let server = Setup::plain().shared();
    let mut session = Session::python(&server);
    session.write("f", "0123456789");
    for (offset, length, content, truncated) in [
        (0, 3, "012", true),
        (7, 3, "789", false),
        (8, 100, "89", false),
        (10, 5, "", false),
        (1000, 5, "", false),
        (2, 0, "", true),
    ] {
        let read = session.ok(&json!({"type": "read_file", "path": "f", "offset": offset, "length": length}));
        assert_eq!((&read["content"], &read["size"]), (&json!(content), &json!(10)), "{offset}+{length}: {read}");
        assert_eq!(read["truncated"], truncated, "{offset}+{length}: {read}");
    }
    assert_eq!(session.ok(&json!({"type": "read_file", "path": "f", "offset": 4}))["content"], "456789");
}

fn permissions() {
    let server = Setup::plain().shared();
    let mut session = Session::python(&server);
    session.ok(&json!({"type": "write_file", "path": "tool", "content": "#!/bin/sh\necho ran\n", "permissions": "755"}));
    assert_eq!(session.ok(&json!({"type": "execute_shell", "commandName": "./tool"}))["stdout"], "ran\n");
    session.ok(&json!({"type": "write_file", "path": "private", "content": "", "permissions": "0600"}));
    session.ok(&json!({"type": "write_file", "path": "setuid", "content": "", "permissions": "6755"}));
    assert_eq!(session.bash("stat -c %a private setuid"), "600\n755", "set-id bits are dropped");
    assert_eq!(session.bash("stat -c %u private"), session.bash("id -u"), "the file is the session's user's own");
}

fn atomic_replace() {
    let server = Setup::plain().shared();
    let mut session = Session::python(&server);
    let (old, new) = ("a".repeat(100_000), "b".repeat(100_000));
    session.write("f", &old);
    let reader = "import sys\nwhile True:\n  t = open('f').read()\n  if len(t) != 100000 or len(set(t)) != 1: print('torn', len(t), flush=True); sys.exit(1)\n";
    session.write("reader.py", reader);
    let command = json!({"type": "execute_shell", "commandName": "python3", "args": ["reader.py"], "background": true});
    let background = session.execute(&command)["executionId"].clone();
    for round in 0..50 {
        session.write("f", if round % 2 == 0 { &new } else { &old });
    }
    let status = session.client.ok("execution.status", &json!({"executionId": background}));
    assert_eq!(status["status"], "running", "the reader saw a torn file: {status}");
    let id = session.id.clone();
    session.client.ok("session.cancel", &json!({"sessionId": id, "executionId": background}));
}

fn special_files() {
    let server = Setup::plain().shared();
    let mut session = Session::python(&server);
    session.run("import os, socket\nos.mkfifo('fifo')\ns = socket.socket(socket.AF_UNIX)\ns.bind('sock')");
    let begin = std::time::Instant::now();
    for path in ["fifo", "sock", "/dev/null", "/dev/zero"] {
        session.fails(&json!({"type": "read_file", "path": path}), "not_a_regular_file");
        session.fails(&json!({"type": "write_file", "path": path, "content": "x", "mode": "Append"}), "not_a_regular_file");
        session.fails(&json!({"type": "copy_file", "source": path, "destination": "copy"}), "not_a_regular_file");
    }
    assert!(begin.elapsed() < std::time::Duration::from_secs(10) * pace(), "refused at once, not waited for");
}

fn bad_paths() {
    let server = Setup::plain().shared();
    let mut session = Session::python(&server);
    let id = session.id.clone();
    let long = "x/".repeat(2500);
    for path in ["a\0b", "", long.as_str()] {
        // A path that can't be one is either invalid input or a verdict; PROTOCOL names both.
        let command = json!({"type": "read_file", "path": path});
        match session.client.call("session.execute", &json!({"sessionId": id, "command": command})) {
            Ok(answer) => assert_eq!(answer["errorKind"], "path_invalid", "{answer}"),
            Err(codebeaker_client::Error::Rpc(error)) => assert_eq!(error.code, -32602, "{error}"),
            Err(error) => panic!("{error}"),
        }
    }
    session.fails(&json!({"type": "write_file", "path": "n".repeat(256), "content": ""}), "path_invalid");
    session.write("after", "lives on");
}

fn odd_names() {
    let server = Setup::plain().shared();
    let mut session = Session::python(&server);
    for name in ["n".repeat(255), "line\nend".into(), "-rf".into(), " ".into(), "ü€😀".into(), "a,upperdir=b".into()] {
        session.write(&name, &name);
        assert_eq!(session.read(&name), name);
    }
}

fn verdicts() {
    let server = Setup::plain().shared();
    let mut session = Session::python(&server);
    session.fails(&json!({"type": "read_file", "path": "absent"}), "file_not_found");
    session.fails(&json!({"type": "read_file", "path": "/workspace"}), "not_a_regular_file");
    session.fails(&json!({"type": "write_file", "path": "/workspace", "content": "x"}), "not_a_regular_file");
    session.bash("echo x > locked; chmod 000 locked");
    session.fails(&json!({"type": "read_file", "path": "locked"}), "permission_denied");
    session.write("file", "x");
    let answer = session.execute(&json!({"type": "read_file", "path": "file/below"}));
    assert!(["not_a_directory", "file_not_found", "path_invalid"].iter().any(|kind| answer["errorKind"] == *kind), "{answer}");
}

fn echoed_id() {
    let server = Setup::plain().shared();
    let mut session = Session::python(&server);
    assert_eq!(session.execute(&json!({"type": "list_directory", "id": "mine"}))["id"], "mine");
    assert_eq!(session.execute(&json!({"type": "read_file", "path": "absent", "id": "also"}))["id"], "also");
    assert!(session.execute(&json!({"type": "list_directory"})).get("id").is_none_or(serde_json::Value::is_null));
}
