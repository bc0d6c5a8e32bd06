//! What containers stand on: the host, images of the store, images that only the engine has.

use std::path::Path;
use std::process::Command;

use serde_json::json;

use super::{parameters, session, shared};
use crate::support::fixture_user::directory_of;
use crate::support::{Feature, host};

/// A program that needs nothing but the kernel, as the whole of a tree.
fn static_program(tree: &Path) {
    host().need_that("gcc", Path::new("/usr/bin/gcc").exists(), "there is no gcc");
    let source = tree.join("hello.c");
    let text = "#include <stdio.h>\nint main(int argc, char **argv) { printf(\"hello %s\\n\", argc > 1 ? argv[1] : \"\"); return 0; }\n";
    std::fs::write(&source, text).expect("an own directory");
    let made = Command::new("/usr/bin/gcc").args(["-static", "-o"]).arg(tree.join("hello")).arg(&source).status();
    assert!(made.expect("gcc is there").success());
    std::fs::remove_file(source).expect("its own file");
}

fn hello(argument: &str) -> serde_json::Value {
    json!({"type": "execute_shell", "commandName": "/hello", "args": [argument]})
}

pub(super) fn of_the_store() {
    let (engine, server) = shared();
    host().need(Feature::ImageTools);
    let Some(archive) = crate::images::made::debian() else { crate::support::trial::skip("mmdebstrap could not make a tree") };
    let imported = server.cli(&["image", "import", &archive.to_string_lossy(), "--name", "for-docker"]);
    assert_eq!(imported.code, 0, "{}", imported.stderr);
    let count = || engine.ok(&["images", "--quiet", "localhost/codebeaker"]).lines().count();
    let mut first = session(&server, &json!({"language": "bash", "image": "for-docker"}));
    let version = first.bash("cat /etc/debian_version");
    assert!(version.starts_with("12"), "{version}");
    first.bash("test ! -e /usr/bin/python3 && touch /workspace/mine && test ! -w /etc");
    let images = count();
    let mut second = session(&server, &json!({"language": "bash", "image": "for-docker"}));
    assert_eq!(second.bash("echo again"), "again");
    assert_eq!(count(), images, "imported once");
}

pub(super) fn of_the_engine() {
    let (engine, server) = shared();
    let tree = directory_of(None);
    static_program(tree.path());
    engine.import(tree.path(), "only-here:1");
    // An image that would run something of its own, first and again and again.
    let dockerfile = tree.path().join("Dockerfile");
    let text =
        "FROM only-here:1\nENTRYPOINT [\"/never\"]\nENV LD_PRELOAD=/hello GREETING=kind\nHEALTHCHECK CMD /never\nUSER root\n";
    std::fs::write(&dockerfile, text).expect("an own directory");
    let place = tree.path().to_string_lossy().into_owned();
    engine.ok(&["build", "--network", "none", "--tag", "willful:1", &place]);
    let mut session = session(&server, &json!({"language": "bash", "image": "willful:1"}));
    assert_eq!(session.ok(&hello("there"))["stdout"], "hello there\n");
    let inspected = engine.inspect(&super::container(&session));
    assert_eq!(inspected["Config"]["User"], "1000:1000");
    assert_eq!(inspected["Config"]["Healthcheck"]["Test"], json!(["NONE"]));
    drop(session);
    let missing = parameters(&json!({"language": "bash", "image": "no-such-image:1"}));
    server.client().error_is("session.create", &missing, 1103, "image_not_found");
    let native = json!({"language": "bash", "image": "willful:1", "runtimeType": "NativeProcess"});
    server.client().error_is("session.create", &native, 1103, "image_not_found");
    std::fs::write(&dockerfile, "FROM only-here:1\nVOLUME /data\n").expect("an own directory");
    engine.ok(&["build", "--network", "none", "--tag", "keeping:1", &place]);
    let keeping = parameters(&json!({"language": "bash", "image": "keeping:1"}));
    let error = server.client().error("session.create", &keeping);
    assert!(error.to_string().contains("volumes"), "{error}");
}

pub(super) fn without_libraries() {
    let (engine, server) = shared();
    let tree = directory_of(None);
    static_program(tree.path());
    engine.import(tree.path(), "bare:1");
    let mut session = session(&server, &json!({"language": "bash", "image": "bare:1"}));
    assert_eq!(session.ok(&hello("world"))["stdout"], "hello world\n");
    session.write("text", "by init");
    assert_eq!(session.read("text"), "by init");
    let listed = session.ok(&json!({"type": "list_directory", "path": "/"}));
    assert!(!listed.to_string().contains("\"/lib"), "the control: it has no library: {listed}");
}
