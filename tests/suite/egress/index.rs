//! Package indexes of the tests' own, on the host's loopback: wheels, npm tarballs and gems made by the ordinary tools, served as files.
//!
//! Invariant: the server of an index ends with it, and what it was asked for stands in its log.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use serde_json::json;
use tempfile::TempDir;

/// One web server.
pub(super) struct Index {
    /// Where it listens on 127.0.0.1.
    pub(super) port: u16,
    /// What it serves.
    pub(super) directory: TempDir,
    outside: TempDir,
    child: Child,
}

impl Index {
    /// Serves what `fill` puts into a directory.
    pub(super) fn of(fill: impl FnOnce(&Path)) -> Self {
        Self::start(fill, &[])
    }

    /// The same with TLS, under the name `index.test`; the certificate is [`Self::certificate`].
    pub(super) fn with_tls(fill: impl FnOnce(&Path), keys: &Path) -> Self {
        let (certificate, key) = (keys.join("certificate.pem"), keys.join("key.pem"));
        Self::start(fill, &[certificate, key])
    }

    fn start(fill: impl FnOnce(&Path), keys: &[PathBuf]) -> Self {
        let (directory, outside) = (tempfile::tempdir().expect("a directory"), tempfile::tempdir().expect("a directory"));
        fill(directory.path());
        let mut child = Command::new("/usr/bin/python3")
            .arg("-c")
            .arg(include_str!("../fixtures/index.py"))
            .arg(directory.path())
            .arg(outside.path().join("log"))
            .args(keys)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("python3 runs");
        let mut line = String::new();
        let stdout = child.stdout.take().expect("it is piped");
        BufReader::new(stdout).read_line(&mut line).expect("it says its port");
        Self { port: line.trim().parse().expect("a port"), directory, outside, child }
    }

    /// What it was asked for so far, one line a request.
    pub(super) fn asked(&self) -> String {
        std::fs::read_to_string(self.outside.path().join("log")).unwrap_or_default()
    }

    /// Adds a file.
    pub(super) fn put(&self, path: &str, content: &str) {
        let path = self.directory.path().join(path);
        std::fs::create_dir_all(path.parent().expect("a file has a directory")).expect("a directory");
        std::fs::write(path, content).expect("a file");
    }
}

impl Drop for Index {
    fn drop(&mut self) {
        // The fixture's own child.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// A key and a certificate for `index.test`, signed by itself.
pub(super) fn keys() -> TempDir {
    let directory = tempfile::tempdir().expect("a directory");
    let made = Command::new("openssl")
        .args(["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=index.test"])
        .args(["-addext", "subjectAltName=DNS:index.test", "-keyout", "key.pem", "-out", "certificate.pem"])
        .current_dir(directory.path())
        .output();
    assert!(made.as_ref().is_ok_and(|made| made.status.success()), "openssl: {made:?}");
    directory
}

/// `/simple/cb-web/` with a wheel of one module, and `/simple/cb-needs/` with one that needs it.
pub(super) fn wheels(directory: &Path) {
    const WHEELS: &str = r#"
import os, sys, zipfile
def wheel(name, version, body, needs=()):
    info, place = f"{name}-{version}.dist-info", f"{sys.argv[1]}/simple/{name.replace('_', '-')}"
    os.makedirs(place, exist_ok=True)
    with zipfile.ZipFile(f"{place}/{name}-{version}-py3-none-any.whl", "w") as archive:
        archive.writestr(f"{name}/__init__.py", body)
        requires = "".join(f"Requires-Dist: {need}\n" for need in needs)
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{requires}")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: cb\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
wheel("cb_web", "1.0", "WORD = 'from the index'")
wheel("cb_web", "2.0", "WORD = 'a later one'")
wheel("cb_needs", "1.0", "import cb_web; WORD = 'with ' + cb_web.WORD", ["cb_web<2"])
"#;
    let made = Command::new("/usr/bin/python3").arg("-c").arg(WHEELS).arg(directory).status();
    assert!(made.is_ok_and(|status| status.success()), "wheels are made");
}

/// A registry with one package; `script` is run by npm when it is installed.
pub(super) fn registry(index: &Index, name: &str, script: Option<&str>) {
    let source = tempfile::tempdir().expect("a directory");
    let mut manifest = json!({"name": name, "version": "1.0.0", "main": "main.js"});
    if let Some(script) = script {
        std::fs::write(source.path().join("install.js"), script).expect("a file");
        manifest["scripts"] = json!({"install": "node install.js"});
    }
    std::fs::write(source.path().join("package.json"), manifest.to_string()).expect("a file");
    std::fs::write(source.path().join("main.js"), "exports.word = 'from the registry'").expect("a file");
    let done = Command::new("npm")
        .args(["pack", "--silent", "--pack-destination"])
        .arg(index.directory.path())
        .env("npm_config_cache", source.path().join("cache"))
        .current_dir(source.path())
        .output();
    assert!(done.as_ref().is_ok_and(|done| done.status.success()), "npm pack: {done:?}");
    let tarball = format!("http://127.0.0.1:{}/{name}-1.0.0.tgz", index.port);
    manifest["dist"] = json!({"tarball": tarball});
    if script.is_some() {
        manifest["hasInstallScript"] = json!(true);
    }
    let document = json!({"name": name, "dist-tags": {"latest": "1.0.0"}, "versions": {"1.0.0": manifest}});
    index.put(name, &document.to_string());
}

/// A source of gems with one gem, as `gem generate_index` writes it.
pub(super) fn gems(directory: &Path) {
    let gems = directory.join("gems");
    std::fs::create_dir_all(&gems).expect("a directory");
    let gem = "File.write('cb_gem.rb', %q(CB_GEM = 'from the source')); \
               spec = Gem::Specification.new { |s| s.name = 'cb_gem'; s.version = '1.2'; s.summary = 'x'; s.authors = ['x']; \
               s.files = ['cb_gem.rb']; s.require_paths = ['.'] }; require 'rubygems/package'; Gem::Package.build(spec, true)";
    let built = Command::new("/usr/bin/ruby").arg("-e").arg(gem).current_dir(&gems).output();
    assert!(built.as_ref().is_ok_and(|built| built.status.success()), "a gem is made: {built:?}");
    let indexed = Command::new("/usr/bin/gem").args(["generate_index", "--directory"]).arg(directory).output();
    assert!(indexed.as_ref().is_ok_and(|indexed| indexed.status.success()), "gem generate_index: {indexed:?}");
}
