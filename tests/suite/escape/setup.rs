//! Setup and exec: what a program, an image or a request can do to a sandbox while it is built and while programs start.

use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

use codebeaker::plan::OutsideStep;
use codebeaker::plan::messages::{InitMessage, LauncherRequest};

use super::{PROFILES, probe_under};
use crate::bench::{Bench, Draft};
use crate::images::tiny_root;
use crate::support::{Feature, Session, Setup, eventually, host, page};

pub fn trials() -> Vec<libtest_mimic::Trial> {
    page(
        "escape",
        &[
            ("no binary is overwritten through /proc/*/exe, one's own copy is", binaries),
            ("a program on its way to exec can't be read by another program", before_exec),
            ("a working directory behind a link of /proc leads nowhere outside", working_directory),
            ("an image whose mount targets are symlinks is refused, one with directories is not", image_links),
            ("init mounts on no symlink of a layer and makes nothing behind it", layer_links),
            ("an image with a fifo for passwd holds nothing up", fifo_for_passwd),
            ("LD_PRELOAD of a session reaches its programs and not init", preload),
        ],
    )
}

const CANARY: &str = "canary beside the sandbox";

fn binaries() {
    let code = "import shutil\nshutil.copy('/bin/true', '/tmp/own'); told = {}\n\
                for path in ('/proc/1/exe', '/proc/self/exe', '/proc/%d/exe' % os.getppid(), '/tmp/own'):\n\
                \x20 try: open(path, 'r+b').write(b'x'); told[path] = 'written'\n\
                \x20 except OSError as e: told[path] = errno.errorcode[e.errno]\n\
                print(json.dumps(told))";
    let binary = || {
        let metadata = std::fs::metadata(env!("CARGO_BIN_EXE_codebeaker")).expect("the binary is built");
        (metadata.len(), metadata.modified().expect("it has a time"))
    };
    let before = binary();
    for profile in PROFILES {
        let told = probe_under(profile, code);
        for (path, answer) in told.as_object().expect("a map") {
            assert_eq!(answer == "written", path == "/tmp/own", "{profile}: {told}");
        }
    }
    assert_eq!(binary(), before);
}

/// What was found so far, as the racer wrote it: processes met before exec, and those whose memory it could open.
fn found(session: &mut Session<'_>) -> (u64, u64) {
    let words = session.execute(&json!({"type": "read_file", "path": "found"}));
    let text = words["result"]["content"].as_str().unwrap_or_default().to_owned();
    let mut words = text.split(' ').filter_map(|word| word.parse().ok());
    (words.next().unwrap_or(0), words.next().unwrap_or(0))
}

fn before_exec() {
    host().need(Feature::Python);
    let server = Setup::plain().shared();
    for profile in ["default", "permissive"] {
        let mut session = Session::open(&server, &json!({"profile": profile}));
        // Until exec a program has init's name. Opened and still so named, it was opened before its exec.
        let racer = "import os\nmet = opened = 0\nname = lambda p: open('/proc/%s/comm' % p).read()\n\
            while True:\n\
            \x20 for p in os.listdir('/proc'):\n\
            \x20   if not p.isdigit() or p == '1': continue\n\
            \x20   try:\n\
            \x20     if name(p) != 'init\\n': continue\n\
            \x20     met += 1\n\
            \x20     try: held = open('/proc/%s/mem' % p, 'rb'); opened += name(p) == 'init\\n'; held.close()\n\
            \x20     except PermissionError: pass\n\
            \x20     open('new', 'w').write('%d %d' % (met, opened)); os.rename('new', 'found')\n\
            \x20   except OSError: pass\n";
        session.write("racer.py", racer);
        let command = json!({"type": "execute_shell", "commandName": "python3", "args": ["racer.py"], "background": true, "timeoutSeconds": 60});
        session.ok(&command);
        let met = eventually(Duration::from_secs(40), || {
            session.program("true", &[]);
            found(&mut session).0 >= 5
        });
        let (count, opened) = found(&mut session);
        assert!(met, "{profile}: the control: programs are met before exec, {count} of them");
        assert_eq!(opened, 0, "{profile}: of {count} programs met before exec");
    }
    let own = probe_under("default", "print(len(open('/proc/self/mem', 'rb').name))");
    assert_eq!(own, 14, "the control: one's own memory can be opened");
}

fn working_directory() {
    let server = Setup::plain().shared();
    let canary = server.outside().join("canary-of-directories");
    std::fs::write(&canary, CANARY).expect("the fixture's directory is writable");
    let mut session = Session::python(&server);
    let line = format!("pwd -P; cat ../../../../../../../..{0} {0} 2>/dev/null; true", canary.display());
    let mut links: Vec<String> = (0..12).map(|number| format!("/proc/self/fd/{number}")).collect();
    links.extend(["/proc/1/cwd", "/proc/1/root", "/proc/self/cwd", "/proc/self/root"].map(str::to_owned));
    for directory in links.iter().map(String::as_str).chain(["/tmp"]) {
        let command =
            json!({"type": "execute_shell", "commandName": "bash", "args": ["-c", line], "workingDirectory": directory});
        let answer = session.execute(&command);
        assert!(!answer.to_string().contains(CANARY), "{directory}: {answer}");
        assert!(directory != "/tmp" || answer["result"]["stdout"] == "/tmp\n", "the control: {answer}");
    }
}

fn image_links() {
    let server = Setup::plain().shared();
    let import = |root: &Path| {
        let path = root.display().to_string();
        server.cli(&["image", "import", &path, "--name", "mount-targets"])
    };
    import(tiny_root().path()).expect_code(0);
    server.cli(&["image", "remove", "mount-targets"]).expect_code(0);
    for name in ["dev", "proc", "workspace", "tmp"] {
        let root = tiny_root();
        std::fs::remove_dir(root.path().join(name)).expect("an empty directory");
        symlink("/var", root.path().join(name)).expect("an own directory");
        let refused = import(root.path()).expect_code(1);
        assert!(refused.stderr.contains(&format!("/{name} must be a directory")), "{}", refused.stderr);
    }
}

/// A lower layer that no import let in: init itself must not follow what lies there.
fn layer_links() {
    let mut bench = Bench::new();
    let target = tempfile::tempdir_in("/var/tmp").expect("/var/tmp is writable");
    std::fs::set_permissions(target.path(), PermissionsExt::from_mode(0o777)).expect("an own directory");
    for (name, is_link) in [("dev", false), ("dev", true), ("proc", true), ("workspace", true), ("tmp", true)] {
        let Draft { compiled, cgroups } = bench.draft("default");
        let mut plan = compiled.plan;
        let layer = tempfile::tempdir_in("/var/tmp").expect("/var/tmp is writable");
        let lower = plan.outside.iter_mut().find_map(|step| match step {
            OutsideStep::CloneTree { slot: 0, source } => Some(source),
            _ => None,
        });
        let lower = lower.expect("slot 0 is the lower layer");
        let copy = layer.path().join("lower");
        let copied = std::process::Command::new("cp").arg("-a").arg(&*lower).arg(&copy).status();
        assert!(copied.is_ok_and(|status| status.success()));
        if is_link {
            // The image `host` has no /workspace of its own.
            if copy.join(name).exists() {
                std::fs::remove_dir(copy.join(name)).expect("an empty directory");
            }
            symlink(target.path(), copy.join(name)).expect("an own directory");
        }
        *lower = copy.display().to_string();
        let made = bench.create(plan, &cgroups).expect("the launcher builds it");
        match made.says() {
            Some(InitMessage::Ready) => assert!(!is_link, "init followed the link /{name}"),
            Some(InitMessage::Failed(failure)) => assert!(is_link && failure.wall == "mount", "/{name}: {failure:?}"),
            other => panic!("/{name}: {other:?}"),
        }
        bench.ask(&LauncherRequest::End(made.tag));
        bench.expect_gone(made.tag);
        assert_eq!(target.path().read_dir().expect("it is there").count(), 0, "/{name}: something was made outside");
    }
}

fn fifo_for_passwd() {
    let server = Setup::plain().shared();
    let root = tiny_root();
    let passwd = root.path().join("etc/passwd");
    nix::unistd::mkfifo(&passwd, nix::sys::stat::Mode::from_bits_truncate(0o644)).expect("an own directory");
    server.cli(&["image", "import", &root.path().display().to_string(), "--name", "fifo-passwd"]).expect_code(0);
    let mut session = Session::open(&server, &json!({"language": "bash", "image": "fifo-passwd"}));
    assert_eq!(session.bash("echo lives"), "lives");
    session.write("file", "written");
    assert_eq!(session.read("file"), "written");
    session.close();
    server.cli(&["image", "remove", "fifo-passwd"]).expect_code(0);
}

fn preload() {
    let server = Setup::plain().shared();
    let complaint = |environment: &Value| {
        let mut session = Session::open(&server, &json!({"language": "bash", "env": environment}));
        session.write("file", "written by init");
        assert_eq!(session.read("file"), "written by init");
        let command = json!({"type": "execute_shell", "commandName": "bash", "args": ["-c", "true"]});
        session.ok(&command)["stderr"].as_str().unwrap_or_default().contains("none.so")
    };
    assert!(complaint(&json!({"LD_PRELOAD": "/workspace/none.so"})), "the control: the program's loader looks for it");
    assert!(!complaint(&json!({})));
    let log = server.log();
    assert!(!log.contains("none.so"), "neither server nor launcher looked for it");
}
