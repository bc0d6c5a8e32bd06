//! Packages from the operator's directory: real wheels, npm tarballs and gems, made here by the ordinary tools; what can't be had is
//! told with the mend; no name can be an option.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use serde_json::{Value, json};

use super::Under;
use crate::support::trial::skip;
use crate::support::{Feature, Host, Session, Setup, host, page};

pub fn trials() -> Vec<libtest_mimic::Trial> {
    page(
        "packages",
        &[
            ("a wheel of the operator's directory is installed with what it needs and lasts for the session", wheel),
            ("a package of the index that was put into the directory is installed", downloaded),
            ("programs never see the directory, installers do", unseen),
            ("under strict a wheel is installed too", strict),
            ("what the image holds needs no source", satisfied),
            ("without a source the answer says what to configure", no_source),
            ("what the directory lacks and what excludes each other is told apart", not_there),
            ("session.create, execute_code and execution.run take packages", every_place),
            ("a requirements file of the session is honoured", requirements),
            ("npm takes tarballs, with what they need and by version", npm),
            ("typescript has the packages of javascript", typescript),
            ("ruby takes gems", gem),
            ("no name of a package can be an option, a path or an address", hostile_names),
            ("packages that would be gone at once are refused", not_persistent),
        ],
    )
}

/// A directory of packages: wheels cb_a (needs cb_b<2) and cb_b 1 and 2; npm cb-x 1 and 2 and cb-y (needs cb-x ^1); a gem cb_gem.
fn directory() -> &'static Path {
    static DIRECTORY: OnceLock<PathBuf> = OnceLock::new();
    DIRECTORY.get_or_init(|| {
        let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("packages-{}", std::process::id()));
        std::fs::create_dir_all(&directory).expect("a directory");
        let made = Command::new("/usr/bin/python3").arg("-c").arg(WHEELS).arg(&directory).status();
        assert!(made.is_ok_and(|status| status.success()), "wheels are made");
        if Host::has_program("npm") {
            tarballs(&directory);
        }
        if Host::has_program("gem") {
            let gem = "File.write('cb_gem.rb', %q(CB_GEM = 'from a gem')); \
                       spec = Gem::Specification.new { |s| s.name = 'cb_gem'; s.version = '1.2'; s.summary = 'x'; s.authors = ['x']; \
                       s.files = ['cb_gem.rb']; s.require_paths = ['.'] }; require 'rubygems/package'; Gem::Package.build(spec, true)";
            let done = Command::new("/usr/bin/ruby").arg("-e").arg(gem).current_dir(&directory).output();
            assert!(done.as_ref().is_ok_and(|done| done.status.success()), "a gem is made: {done:?}");
        }
        directory
    })
}

/// Writes wheels with nothing but the format's own words (PEP 427).
const WHEELS: &str = r#"
import sys, zipfile
def wheel(name, version, body, needs=()):
    info = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(f"{sys.argv[1]}/{name}-{version}-py3-none-any.whl", "w") as archive:
        archive.writestr(f"{name}/__init__.py", body)
        requires = "".join(f"Requires-Dist: {need}\n" for need in needs)
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{requires}")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: cb\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
wheel("cb_a", "1.0", "import cb_b; WORD = f'a with b {cb_b.VERSION}'", ["cb_b<2"])
wheel("cb_b", "1.0", "VERSION = 1")
wheel("cb_b", "2.0", "VERSION = 2")
"#;

fn tarballs(directory: &Path) {
    let packages = [
        r#"{"name": "cb-x", "version": "1.1.0", "main": "main.js"}"#,
        r#"{"name": "cb-x", "version": "2.0.0", "main": "main.js"}"#,
        r#"{"name": "@cb/y", "version": "1.0.0", "main": "main.js", "dependencies": {"cb-x": "^1.0.0"}}"#,
    ];
    for manifest in packages {
        let source = tempfile::tempdir().expect("a directory");
        std::fs::write(source.path().join("package.json"), manifest).expect("a file");
        let needs = manifest.contains("dependencies");
        let code = if needs {
            "exports.word = 'y with ' + require('cb-x').word"
        } else {
            "exports.word = 'x ' + require('./package.json').version"
        };
        std::fs::write(source.path().join("main.js"), code).expect("a file");
        let done = Command::new("npm")
            .args(["pack", "--silent", "--pack-destination"])
            .arg(directory)
            .env("npm_config_cache", source.path().join("cache"))
            .current_dir(source.path())
            .output();
        assert!(done.as_ref().is_ok_and(|done| done.status.success()), "npm pack: {done:?}");
    }
}

/// One package of a language that has any; the others say that they have none.
pub(super) fn of_language(under: &Under) {
    let language = under.language;
    let (package, code, says) = match language.name {
        "python" => {
            need_pip();
            ("cb_b==1.0", "import cb_b; print(cb_b.VERSION)", "1\n")
        }
        "javascript" => {
            host().need_programs("javascript", &["npm"]);
            ("cb-x@1", "console.log(require('cb-x').word)", "x 1.1.0\n")
        }
        "typescript" => {
            host().need_programs("typescript", &["npm"]);
            ("cb-x@2", "import x from 'cb-x';\nconst word: string = x.word;\nconsole.log(word)", "x 2.0.0\n")
        }
        "ruby" => {
            host().need_programs("ruby", &["gem"]);
            ("cb_gem", "require 'cb_gem'; puts CB_GEM", "from a gem\n")
        }
        without => {
            let parameters = json!({"language": without, "packages": ["cb_b"]});
            with_directory().shared().client().invalid("session.create", &parameters, "packages");
            return;
        }
    };
    let server = with_directory().shared();
    let mut session =
        Session::open(&server, &json!({"language": language.name, "packages": [package], "profile": under.profile}));
    assert_eq!(session.ok(&json!({"type": "execute_code", "code": code}))["stdout"], says);
}

fn with_directory() -> Setup {
    Setup::plain().with_config(&format!("package_dir = \"{}\"\n", directory().display()))
}

fn need_pip() {
    host().need(Feature::Python);
    if !Path::new("/usr/lib/python3/dist-packages/pip").exists() {
        skip("the host's Python has no pip in /usr (Debian: python3-pip)");
    }
}

fn install(packages: &[&str]) -> Value {
    json!({"type": "install_packages", "packages": packages})
}

fn wheel() {
    need_pip();
    let server = with_directory().shared();
    let mut session = Session::python(&server);
    session.fails(&json!({"type": "execute_code", "code": "import cb_a"}), "nonzero_exit");
    session.ok(&install(&["cb_a"]));
    assert_eq!(session.run("import cb_a; print(cb_a.WORD)"), "a with b 1", "2.0 is there too, and not what cb_a takes");
    let again = session.ok(&install(&["cb-a==1.0"]));
    assert!(again["stdout"].as_str().is_some_and(|text| text.contains("already satisfied")), "{again}");
    let mut other = Session::python(&server);
    other.fails(&json!({"type": "execute_code", "code": "import cb_a"}), "nonzero_exit");
}

fn downloaded() {
    need_pip();
    let packages = tempfile::tempdir().expect("a directory");
    std::fs::set_permissions(packages.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("opened");
    let fetched = Command::new("/usr/bin/python3")
        .args([
            "-m",
            "pip",
            "download",
            "--quiet",
            "--disable-pip-version-check",
            "--no-deps",
            "--timeout",
            "10",
            "--retries",
            "1",
            "-d",
        ])
        .arg(packages.path())
        .arg("toolz==0.12.1")
        .output()
        .expect("pip runs");
    if !fetched.status.success() {
        skip("no package index is within reach");
    }
    let setup = Setup::plain().with_config(&format!("package_dir = \"{}\"\n", packages.path().display()));
    let server = crate::support::Server::start(&setup);
    let mut session = Session::python(&server);
    session.ok(&install(&["toolz>=0.10,<2"]));
    assert_eq!(session.run("import toolz; print(toolz.__version__, toolz.__file__.startswith('/workspace'))"), "0.12.1 True");
    session.close();
    assert_eq!(server.end_and_check(), Vec::<String>::new());
}

fn unseen() {
    need_pip();
    let server = with_directory().shared();
    let mut session = Session::python(&server);
    let look = "import glob; print(glob.glob('/packages/*'), 'packages' in open('/proc/self/mountinfo').read())";
    assert_eq!(session.run(look), "[] False");
    let list = json!({"type": "list_directory", "path": "/packages"});
    assert_eq!(session.ok(&list)["entries"], json!([]));
    // The control: an installer sees it; nothing of it stays in sight afterwards.
    session.ok(&install(&["cb_b"]));
    assert_eq!(session.run(look), "[] False");
    assert_eq!(session.ok(&list)["entries"], json!([]));
    let plain = Setup::plain().shared();
    let mut without = Session::python(&plain);
    without.fails(&install(&["cb_b"]), "package_unavailable");
}

fn strict() {
    need_pip();
    let server = with_directory().shared();
    let mut session = Session::open(&server, &json!({"profile": "strict"}));
    session.ok(&install(&["cb_a"]));
    assert_eq!(session.run("import cb_a; print(cb_a.WORD)"), "a with b 1");
    let write = "open('/packages/x', 'w')";
    session.fails(&json!({"type": "execute_code", "code": write}), "nonzero_exit");
}

fn satisfied() {
    need_pip();
    let server = Setup::plain().shared();
    let mut session = Session::python(&server);
    session.ok(&install(&["pip>=1"]));
}

fn no_source() {
    need_pip();
    let server = Setup::plain().shared();
    let mut session = Session::python(&server);
    let answer = session.fails(&install(&["cb_a"]), "package_unavailable");
    let told = answer["error"].as_str().expect("a sentence");
    assert!(told.contains("cb_a") && told.contains("sandbox.package_dir"), "{told}");
    let refused =
        server.client().error_is("session.create", &json!({"language": "python", "packages": ["cb_a"]}), 1202, "policy_denied");
    assert!(refused.to_string().contains("packages"), "{refused}");
}

fn not_there() {
    need_pip();
    let server = with_directory().shared();
    let mut session = Session::python(&server);
    for (packages, words) in [
        (&["cb_none"][..], ["cb_none", "holds no such package"]),
        (&["cb_b==7"][..], ["cb_b==7", "holds no such package"]),
        (&["cb_a", "cb_b>=2"][..], ["exclude each other", ""]),
    ] {
        let answer = session.fails(&install(packages), "package_unavailable");
        let told = answer["error"].as_str().expect("a sentence");
        assert!(words.iter().all(|word| told.contains(word)), "{told}");
    }
    session.ok(&install(&["cb_b>=2"]));
}

fn every_place() {
    need_pip();
    let server = with_directory().shared();
    let mut created = Session::open(&server, &json!({"packages": ["cb_b==1.0"]}));
    assert_eq!(created.run("import cb_b; print(cb_b.VERSION)"), "1");
    let code = "import cb_a; print(cb_a.WORD)";
    let mut session = Session::python(&server);
    let result = session.ok(&json!({"type": "execute_code", "code": code, "packages": ["cb_a"]}));
    assert_eq!(result["stdout"], "a with b 1\n", "the installer's words are not the program's");
    let answer =
        session.fails(&json!({"type": "execute_code", "code": "print('ran')", "packages": ["cb_none"]}), "package_unavailable");
    assert_eq!(answer["result"]["stdout"], "", "{answer}");
    let mut client = server.client();
    let run = client.ok("execution.run", &json!({"language": "python", "code": code, "packages": ["cb_a"]}));
    let mut status = Value::Null;
    let done = crate::support::eventually(std::time::Duration::from_secs(60), || {
        status = client.ok("execution.status", &json!({"executionId": run["executionId"]}));
        status["status"] != "queued" && status["status"] != "running"
    });
    assert!(done && status["status"] == "completed" && status["stdout"] == "a with b 1\n", "{status}");
}

fn requirements() {
    need_pip();
    let server = with_directory().shared();
    let mut session = Session::python(&server);
    session.write("needs.txt", "# what it takes\ncb_a>=1\n");
    session.ok(&json!({"type": "install_packages", "packages": [], "requirementsFile": "needs.txt"}));
    assert_eq!(session.run("import cb_a; print(cb_a.WORD)"), "a with b 1");
    let absent = json!({"type": "install_packages", "packages": [], "requirementsFile": "absent.txt"});
    session.fails(&absent, "package_unavailable");
    let mut ruby = Session::open(&server, &json!({"language": "ruby"}));
    let id = ruby.id.clone();
    ruby.client.invalid("session.execute", &json!({"sessionId": id, "command": absent}), "requirementsFile");
}

fn npm() {
    host().need_programs("javascript", &["node", "npm"]);
    let server = with_directory().shared();
    let mut session = Session::open(&server, &json!({"language": "javascript"}));
    let says = |session: &mut Session, name: &str| {
        let code = format!("console.log(require('{name}').word)");
        session.ok(&json!({"type": "execute_code", "code": code}))["stdout"].clone()
    };
    session.ok(&install(&["@cb/y"]));
    assert_eq!(says(&mut session, "@cb/y"), "y with x 1.1.0\n");
    session.ok(&install(&["cb-x@2.0.0"]));
    assert_eq!(says(&mut session, "cb-x"), "x 2.0.0\n");
    assert_eq!(says(&mut session, "@cb/y"), "y with x 1.1.0\n", "each has the version that it asked for");
    for name in ["cb-none", "cb-x@7"] {
        let answer = session.fails(&install(&[name]), "package_unavailable");
        assert!(answer["error"].as_str().is_some_and(|told| told.contains("holds no such package")), "{answer}");
    }
    let mut other = Session::open(&server, &json!({"language": "javascript"}));
    other.write("own/package.json", r#"{"dependencies": {"cb-x": "^2"}}"#);
    other.ok(&json!({"type": "install_packages", "packages": [], "requirementsFile": "own/package.json"}));
    assert_eq!(says(&mut other, "cb-x"), "x 2.0.0\n");
    other.write("own/package.json", r#"{"dependencies": {"cb-x": "file:../x"}}"#);
    other.fails(
        &json!({"type": "install_packages", "packages": [], "requirementsFile": "own/package.json"}),
        "package_unavailable",
    );
}

fn typescript() {
    host().need_programs("typescript", &["node", "npm", "esbuild"]);
    let server = with_directory().shared();
    let mut session = Session::open(&server, &json!({"language": "ts", "packages": ["cb-x@1"]}));
    let code = "import x from 'cb-x';\nconst word: string = x.word;\nconsole.log(word)";
    assert_eq!(session.ok(&json!({"type": "execute_code", "code": code}))["stdout"], "x 1.1.0\n");
}

fn gem() {
    host().need_programs("ruby", &["ruby", "gem"]);
    let server = with_directory().shared();
    let mut session = Session::open(&server, &json!({"language": "ruby"}));
    let code = json!({"type": "execute_code", "code": "require 'cb_gem'; puts CB_GEM"});
    session.fails(&code, "nonzero_exit");
    session.ok(&install(&["cb_gem:1.2"]));
    assert_eq!(session.ok(&code)["stdout"], "from a gem\n");
    let answer = session.fails(&install(&["cb_none"]), "package_unavailable");
    assert!(answer["error"].as_str().is_some_and(|told| told.contains("holds no such package")), "{answer}");
}

/// What pip, npm or gem would take for something else than a name.
const HOSTILE: [&str; 22] = [
    "",
    "-r",
    "--index-url=http://127.0.0.1",
    "-e.",
    "a b",
    "a\nb",
    "a\0b",
    ".",
    "./a",
    "../a",
    "/packages/cb_a-1.0-py3-none-any.whl",
    "~/a",
    "cb_a-1.0-py3-none-any.whl",
    "cb-x-1.1.0.tgz",
    "cb_gem-1.2.gem",
    "https://127.0.0.1/a.whl",
    "git+ssh://127.0.0.1/a",
    "cb_a @ file:///packages/cb_a-1.0-py3-none-any.whl",
    "cb_a;python_version>'3'",
    "file:x",
    "$(id)",
    "é",
];

fn hostile_names() {
    host().need(Feature::Python);
    let server = with_directory().shared();
    for language in ["python", "javascript", "ruby"] {
        let mut session = Session::open(&server, &json!({"language": language}));
        let id = session.id.clone();
        for name in HOSTILE {
            for command in [install(&["cb_b", name]), json!({"type": "execute_code", "code": "", "packages": [name]})] {
                session.client.invalid("session.execute", &json!({"sessionId": id, "command": command}), "command.packages");
            }
            session.client.invalid("session.create", &json!({"language": language, "packages": [name]}), "packages");
            session.client.invalid("execution.run", &json!({"language": language, "code": "", "packages": [name]}), "packages");
        }
    }
    // The control: a language with no packages has none, whatever their name; the name itself is sound.
    server.client().invalid("session.create", &json!({"language": "bash", "packages": ["cb_b"]}), "packages");
}

fn not_persistent() {
    need_pip();
    let server = with_directory().shared();
    let parameters = json!({"language": "python", "packages": ["cb_b"], "persistFilesystem": false});
    server.client().invalid("session.create", &parameters, "persistFilesystem");
    let mut session = Session::open(&server, &json!({"persistFilesystem": false}));
    let result =
        session.ok(&json!({"type": "execute_code", "code": "import cb_b; print(cb_b.VERSION)", "packages": ["cb_b==1.0"]}));
    assert_eq!(result["stdout"], "1\n");
    session.fails(&json!({"type": "execute_code", "code": "import cb_b"}), "nonzero_exit");
}
