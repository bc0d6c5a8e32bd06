//! Debian's docker-registry on loopback: plain, with TLS by an authority of the trial's own, with passwords.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tempfile::TempDir;

use super::made::tool;
use crate::support::fixture_user::directory_of;
use crate::support::trial::skip;

/// A registry on loopback; ends with this value.
pub struct Registry {
    child: Child,
    /// `127.0.0.1:PORT`.
    pub address: String,
    _directory: TempDir,
}

impl Registry {
    /// `extra` goes into its configuration as it is, behind `http:`.
    pub fn start(extra: &str) -> Self {
        let directory = directory_of(None);
        let root = directory.path().join("data");
        let text = format!(
            "version: 0.1\nlog:\n  level: info\n  formatter: text\nstorage:\n  filesystem:\n    rootdirectory: {}\nhttp:\n  addr: 127.0.0.1:0\n{extra}",
            root.display()
        );
        let file = directory.path().join("config.yml");
        std::fs::write(&file, text).expect("an own directory");
        let mut child = Command::new("docker-registry")
            .arg("serve")
            .arg(&file)
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the feature was asked for");
        let (send, receive) = std::sync::mpsc::channel();
        let log = BufReader::new(child.stderr.take().expect("piped"));
        // Read to its end, or the registry would wait for a reader.
        std::thread::spawn(move || {
            for line in log.lines().map_while(Result::ok) {
                if let Some((_, address)) = line.split_once("listening on ") {
                    let end = address.find(|c: char| !(c.is_ascii_digit() || ".:".contains(c))).unwrap_or(address.len());
                    send.send(address[..end].to_owned()).ok();
                }
            }
        });
        let address = receive.recv_timeout(Duration::from_secs(60)).expect("the registry says where it listens");
        Self { child, address, _directory: directory }
    }

    /// Pushes `image:v1` of a layout; the reference of what is there now.
    pub fn take(&self, layout: &Path, credentials: &[&str]) -> String {
        let source = format!("oci:{}:v1", layout.join("image").display());
        let reference = format!("{}/team/pulled:v1", self.address);
        let target = format!("docker://{reference}");
        let mut arguments = vec!["--insecure-policy", "copy", "--dest-tls-verify=false"];
        arguments.extend(credentials);
        arguments.extend([source.as_str(), target.as_str()]);
        tool("skopeo", &arguments);
        reference
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// The part of a registry's configuration that wants a password; only `user` with `secret` has one.
pub fn with_password(place: &Path) -> String {
    let file = place.join("htpasswd");
    // bcrypt of `secret`, as htpasswd -B writes it.
    let Some(hash) = bcrypt("secret") else { skip("no program here makes a bcrypt hash") };
    std::fs::write(&file, format!("user:{hash}\n")).expect("an own directory");
    format!("auth:\n  htpasswd:\n    realm: test\n    path: {}\n", file.display())
}

fn bcrypt(password: &str) -> Option<String> {
    let code = "import crypt,sys; print(crypt.crypt(sys.argv[1], crypt.mksalt(crypt.METHOD_BLOWFISH, rounds=16)).replace('$2b$', '$2y$', 1))";
    let output = Command::new("/usr/bin/python3").args(["-W", "ignore", "-c", code, password]).output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    text.starts_with("$2y$").then_some(text)
}

/// An authority that no system believes, made by openssl.
pub struct Authority {
    directory: TempDir,
}

impl Authority {
    /// A new one.
    pub fn new() -> Self {
        let directory = directory_of(None);
        let at = |name: &str| directory.path().join(name).display().to_string();
        let config = format!(
            "[ca]\ndefault_ca = own\n[own]\nnew_certs_dir = {place}\ndatabase = {place}/index\nrand_serial = yes\nunique_subject = no\n\
             default_md = sha256\npolicy = any\ncopy_extensions = copy\n[any]\ncommonName = supplied\n",
            place = directory.path().display()
        );
        std::fs::write(at("ca.cnf"), config).expect("an own directory");
        std::fs::write(at("index"), "").expect("an own directory");
        let subject = ["-subj", "/CN=an authority of one trial", "-days", "2", "-addext", "keyUsage=critical,keyCertSign"];
        let mut arguments = KEY.to_vec();
        let (key, certificate) = (at("ca.key"), at("ca.pem"));
        arguments.extend(["-x509", "-keyout", &key, "-out", &certificate]);
        arguments.extend(subject);
        tool("openssl", &arguments);
        Self { directory }
    }

    /// Its own certificate.
    pub fn file(&self) -> PathBuf {
        self.directory.path().join("ca.pem")
    }

    /// The part of a registry's configuration that speaks TLS with a certificate for `name` (`IP:…` or `DNS:…`), good from `start` to
    /// `end` (`YYYYMMDDHHMMSSZ`).
    pub fn tls(&self, name: &str, start: &str, end: &str) -> String {
        let own: String = format!("{name}-{end}").chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
        let at = |name: &str| self.directory.path().join(name).display().to_string();
        let (key, request, certificate) = (at(&format!("{own}.key")), at(&format!("{own}.csr")), at(&format!("{own}.pem")));
        let names = format!("subjectAltName={name}");
        let mut arguments = KEY.to_vec();
        arguments.extend(["-keyout", &key, "-out", &request, "-subj", "/CN=a registry of one trial", "-addext", &names]);
        tool("openssl", &arguments);
        let (config, authority, authority_key) = (at("ca.cnf"), at("ca.pem"), at("ca.key"));
        tool(
            "openssl",
            &[
                "ca",
                "-batch",
                "-notext",
                "-config",
                &config,
                "-cert",
                &authority,
                "-keyfile",
                &authority_key,
                "-in",
                &request,
                "-out",
                &certificate,
                "-startdate",
                start,
                "-enddate",
                end,
            ],
        );
        format!("  tls:\n    certificate: {certificate}\n    key: {key}\n")
    }
}

/// A request for a new key on a curve, which costs no time.
const KEY: [&str; 6] = ["req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"];
