//! How a server is to be started: its configuration, environment, flags and user.

use std::path::Path;
use std::sync::{Arc, Mutex};

use super::{Server, dockerd, fixture_user, host};

/// One configuration of a server.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Setup {
    /// TOML for `--config`.
    pub config: String,
    /// Variables besides a clean environment.
    pub environment: Vec<(String, String)>,
    /// `--listen`, when it is not a free port of 127.0.0.1.
    pub listen: Option<String>,
    /// Flags after those that the fixture gives.
    pub flags: Vec<String>,
    /// A program with its arguments that executes the server in its own place, after it has changed what it lives in.
    pub wrapper: Vec<String>,
    /// The user to run as, when it is not the suite's own.
    pub uid: Option<u32>,
    /// Descriptors that it may have open, when not as many as the suite.
    pub open_files: Option<u32>,
    /// Blocks of 512 bytes that a file of its may grow to, when not as many as the disk has.
    pub file_blocks: Option<u32>,
}

/// Servers that trials share, each with the setup that it was started with.
static SHARED: Mutex<Vec<(Setup, Arc<Server>)>> = Mutex::new(Vec::new());

impl Setup {
    /// What a server is when nothing is said, but that all three built-in profiles may be asked for.
    pub fn plain() -> Self {
        Self { config: "[sandbox]\nprofiles = [\"default\", \"strict\", \"permissive\"]\n".into(), ..Self::default() }
    }

    /// With every engine that was installed for tests, else the one that the host has, and the Docker engine of the suite.
    pub fn engines() -> Self {
        let place = |engine: &str, key: &str| {
            host::engine(engine).map(|path| format!("{key} = \"{}\"\n", path.display())).unwrap_or_default()
        };
        let docker = if host::Host::has(host::Feature::Dockerd) {
            format!("docker = \"{}\"\n", dockerd::dockerd().socket().display())
        } else {
            String::new()
        };
        // What is compiled for WebAssembly is kept there too, so that only the first server of a run compiles.
        let directory = host::engines_dir();
        Self::plain().with_config(&format!(
            "[runtimes]\nengines_dir = \"{}\"\n{}{}{}{docker}",
            directory.display(),
            place("deno", "deno"),
            place("bun", "bun"),
            place("node", "nodejs"),
        ))
    }

    /// With the host's Node and no other engine, where [`Setup::engines`] has a newer one: what an older version can't do, and the flags
    /// that it takes, are tried too.
    pub fn older_node() -> Option<Self> {
        let config =
            "[runtimes]\ndeno = \"off\"\nbun = \"off\"\ndocker = \"off\"\nwasm = \"off\"\nnodejs = \"/usr/bin/node\"\n";
        let both = host::Host::has(host::Feature::Node) && host::Host::has(host::Feature::NewerNode);
        both.then(|| Self::plain().with_config(config))
    }

    /// With a profile `name` in `directory`, which is the one by default with `line` in the place of the line of the same key.
    pub fn with_profile(mut self, directory: &Path, name: &str, line: &str) -> Self {
        let key = line.split_once(" = ").expect("a key and its value").0;
        let own = include_str!("../../../profiles/default.toml").lines().map(|old| match old.split_once(" = ") {
            Some(("name", _)) => format!("name = \"{name}\"\n"),
            Some((old, _)) if old == key => format!("{line}\n"),
            _ => format!("{old}\n"),
        });
        let text: String = own.collect();
        assert!(text.contains(line), "the profile has {key}");
        std::fs::write(directory.join(format!("{name}.toml")), text).expect("an own directory");
        let places = format!("[sandbox]\nprofile_dir = \"{}\"\n", directory.display());
        let with =
            self.config.replace("[sandbox]\n", &places).replace("\"permissive\"]", &format!("\"permissive\", \"{name}\"]"));
        assert!(with.contains(&places) && with.contains(name), "its profiles are those of `plain`: {}", self.config);
        self.config = with;
        self
    }

    /// Without ready sandboxes, or any that has begun: for trials that count what a session takes.
    pub fn without_pool() -> Self {
        Self::plain().with_config("[pool]\nsandboxes_max = 0\nbegin_ahead = false\n")
    }

    /// Nothing but the defaults.
    pub fn bare() -> Self {
        Self::default()
    }

    /// `--no-auth`.
    pub fn no_auth() -> Self {
        Self { flags: vec!["--no-auth".into()], ..Self::plain() }
    }

    /// Bounds small enough to be passed.
    pub fn small_bounds() -> Self {
        let config = "[server]\nbatch_max = 4\nrequests_in_flight_max = 8\nrequest_bytes_max = 65536\nallowed_origins = [\"https://app.example\"]\n\
                      allowed_hosts = [\"beaker.example\"]\n[session]\nsessions_max = 2\nstream_buffer_bytes_max = 65536\n";
        Self { config: config.into(), ..Self::default() }
    }

    /// Adds lines to the configuration.
    pub fn with_config(mut self, lines: &str) -> Self {
        self.config.push_str(lines);
        self
    }

    /// Adds a variable.
    pub fn with_variable(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.into(), value.into()));
        self
    }

    /// Bounds what it may open.
    pub fn with_open_files(mut self, open_files: u32) -> Self {
        self.open_files = Some(open_files);
        self
    }

    /// The server that all trials with this setup share; started by the first, ended after the last trial of the run.
    pub fn shared(&self) -> Arc<Server> {
        let mut shared = SHARED.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some((_, server)) = shared.iter().find(|(setup, _)| setup == self) {
            return Arc::clone(server);
        }
        let server = Arc::new(Server::start(self));
        shared.push((self.clone(), Arc::clone(&server)));
        server
    }
}

/// Ends every shared server with SIGTERM; the sentences say what was left behind.
pub fn end_shared() -> Vec<String> {
    let servers = std::mem::take(&mut *SHARED.lock().unwrap_or_else(std::sync::PoisonError::into_inner));
    let mut left = Vec::new();
    for (_, server) in servers {
        let server = Arc::into_inner(server).expect("a trial that ended holds no server");
        left.extend(server.end_and_check());
    }
    left.extend(super::residue::groups_left());
    left.extend(dockerd::end_shared());
    fixture_user::remove_kept();
    left
}
