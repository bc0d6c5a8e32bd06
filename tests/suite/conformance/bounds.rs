//! Bounds of the transport and of the server: past each a typed error, never a hang.

use std::time::Duration;

use serde_json::{Value, json};

use crate::support::{Server, Session, Setup, eventually, page};

pub fn trials() -> Vec<libtest_mimic::Trial> {
    page(
        "bounds",
        &[
            ("a frame of 17 MiB is refused with a typed error, and the connection lives on", big_frame),
            ("a frame just below the bound is taken", frame_below_bound),
            ("the memory of large transfers goes back to the host", large_transfers),
            ("a batch over the bound is refused with -32010, one of its size is not", batch_over_bound),
            ("requests past the bound in flight are refused or wait, and none is lost", in_flight),
            ("a session past the bound is quota_exceeded until another is closed", sessions_bound),
        ],
    )
}

fn big_frame() {
    let server = Setup::plain().shared();
    let mut session = Session::python(&server);
    let content = "x".repeat(17 << 20);
    let command = json!({"type": "write_file", "path": "big", "content": content});
    let request = json!({"jsonrpc": "2.0", "id": 99, "method": "session.execute", "params": {"sessionId": session.id, "command": command}});
    let reply = session.client.raw(&request.to_string());
    let code = reply["error"]["code"].as_i64().expect("an error");
    assert!(code == -32007 || code == 1303, "{reply}");
    session.write("small", "still here");
    assert_eq!(session.read("small"), "still here");
}

fn frame_below_bound() {
    let server = Setup::plain().shared();
    let mut session = Session::python(&server);
    let content = "y".repeat(15 << 20);
    let command = json!({"type": "write_file", "path": "big", "content": content});
    assert_eq!(session.ok(&command)["bytes"], 15 << 20);
    // The JSON of control characters is six times as long as the text, which the response bound allows for.
    session.run("open('control', 'w').write('\\x01' * (9 << 20))");
    let read = session.ok(&json!({"type": "read_file", "path": "control", "length": 9 << 20}));
    assert_eq!(read["content"].as_str().map(str::len), Some(9 << 20));
}

/// Resident KiB of a server.
fn resident(server: &Server) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", server.pid())).expect("the server lives");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("a process has a size");
    line.trim().trim_end_matches(" kB").parse().expect("a number of KiB")
}

fn large_transfers() {
    // A server of its own: transfers of other trials would count.
    let server = Setup::bare().with_config("[session]\nsessions_max = 7\n").shared();
    let mut session = Session::open(&server, &json!({"language": "bash"}));
    session.bash("true");
    let before = resident(&server);
    session.write("big", &"z".repeat(8 << 20));
    for _ in 0..20 {
        let read = session.ok(&json!({"type": "read_file", "path": "big", "length": 8 << 20}));
        assert_eq!(read["content"].as_str().map(str::len), Some(8 << 20));
    }
    let grown = || resident(&server).saturating_sub(before);
    assert!(eventually(Duration::from_secs(10), || grown() < 16 << 10), "{before} KiB and {} more", grown());
}

fn batch_over_bound() {
    let server = Setup::small_bounds().shared();
    let mut client = server.client();
    let batch = |count: usize| {
        let one = |id| json!({"jsonrpc": "2.0", "id": id, "method": "language.list"});
        (0..count).map(one).collect::<Value>().to_string()
    };
    assert_eq!(client.raw(&batch(4)).as_array().map(Vec::len), Some(4));
    let reply = client.raw(&batch(5));
    let error = reply.get(0).unwrap_or(&reply);
    assert_eq!(error["error"]["code"], -32010, "{reply}");
    client.ok("language.list", &json!({}));
}

fn in_flight() {
    let server = Setup::small_bounds().shared();
    let mut client = server.client();
    let requests: Vec<u64> = (0..64).map(|_| client.send("language.list", &json!({})).expect("sent")).collect();
    for request in requests {
        match client.wait(request) {
            Ok(reply) => assert!(reply["languages"].is_array()),
            Err(codebeaker_client::Error::Rpc(error)) => assert!([1302, -32009].contains(&error.code), "{error}"),
            Err(error) => panic!("{error}"),
        }
    }
}

fn sessions_bound() {
    // A server of its own: sessions of other trials would count.
    let server = Setup::small_bounds().with_config("background_max = 15\n").shared();
    let (first, second) = (Session::python(&server), Session::python(&server));
    let mut client = server.client();
    client.error_is("session.create", &json!({"language": "python"}), 1300, "quota_exceeded");
    first.close();
    Session::python(&server).close();
    second.close();
}
