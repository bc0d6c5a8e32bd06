//! Where an engine listens. Pure but for the question whether a socket is there.
//!
//! Invariant: only Unix sockets of this host: the control socket of a session is handed into its container through the host's file
//! system, so an engine on another machine could build a container that nobody could speak to.

use std::path::{Path, PathBuf};

/// What the configuration says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// The first of the usual places that has a socket.
    Usual {
        /// `DOCKER_HOST`.
        docker_host: Option<String>,
        /// `XDG_RUNTIME_DIR`, where an engine without root listens.
        runtime_dir: Option<PathBuf>,
    },
    /// This one.
    Socket(PathBuf),
    /// Not used.
    Off,
}

/// The names of sockets below `/var/run`, and below a user's runtime directory.
const OF_THE_HOST: [&str; 2] = ["/var/run/docker.sock", "/run/podman/podman.sock"];
const OF_THE_USER: [&str; 2] = ["docker.sock", "podman/podman.sock"];

impl Place {
    /// The value of `runtimes.docker`, with the variables that count when it is empty.
    pub fn parse(value: &str, docker_host: Option<String>, runtime_dir: Option<PathBuf>) -> Self {
        match value {
            "" => Self::Usual { docker_host: docker_host.filter(|host| !host.is_empty()), runtime_dir },
            "off" => Self::Off,
            path => Self::Socket(path.strip_prefix("unix://").unwrap_or(path).into()),
        }
    }

    /// The socket to speak to; the error is a sentence with the mend.
    pub fn socket(&self) -> Result<PathBuf, String> {
        match self {
            Self::Off => {
                Err("it is switched off: `runtimes.docker` is `off`; leave it empty to have an engine looked for".into())
            }
            Self::Socket(path) => there(path).ok_or_else(|| {
                "there is no socket where `runtimes.docker` says; start the engine, or name the socket it listens on".into()
            }),
            Self::Usual { docker_host: Some(host), .. } => of_variable(host),
            Self::Usual { docker_host: None, runtime_dir } => {
                let users = runtime_dir.iter().flat_map(|directory| OF_THE_USER.map(|name| directory.join(name)));
                let mut all = OF_THE_HOST.iter().map(PathBuf::from).chain(users);
                all.find_map(|path| there(&path)).ok_or_else(|| {
                    "there is no engine: neither Docker's nor Podman's socket is there; install docker.io or podman and start it, or \
                     name its socket with `runtimes.docker`"
                        .into()
                })
            }
        }
    }
}

fn of_variable(host: &str) -> Result<PathBuf, String> {
    let Some(path) = host.strip_prefix("unix://") else {
        return Err(
            "DOCKER_HOST names no Unix socket, and an engine must run on this very host: sessions are spoken to through its \
                    file system; name a socket with `runtimes.docker`"
                .into(),
        );
    };
    there(Path::new(path))
        .ok_or_else(|| "there is no socket where DOCKER_HOST says; start the engine, or unset the variable".into())
}

fn there(path: &Path) -> Option<PathBuf> {
    path.exists().then(|| path.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_configuration_names_comes_before_the_variable_and_that_before_the_usual_places() {
        let dir = tempfile::tempdir().expect("a directory");
        let [named, told] = ["named", "docker.sock"].map(|name| dir.path().join(name));
        for path in [&named, &told] {
            std::fs::write(path, "").expect("a file");
        }
        let host = || Some(format!("unix://{}", told.display()));
        assert_eq!(Place::parse(&named.to_string_lossy(), host(), None).socket(), Ok(named.clone()));
        assert_eq!(Place::parse(&format!("unix://{}", named.display()), host(), None).socket(), Ok(named));
        assert_eq!(Place::parse("", host(), None).socket(), Ok(told.clone()));
        assert!(Place::parse("off", host(), None).socket().expect_err("off").contains("runtimes.docker"));
    }

    #[test]
    fn an_engine_elsewhere_is_refused_and_so_is_a_socket_that_is_not_there() {
        for host in ["tcp://127.0.0.1:2375", "ssh://other", "unix:///nowhere/at/all"] {
            let error = Place::parse("", Some(host.into()), None).socket().expect_err(host);
            assert!(error.contains("DOCKER_HOST") && error.contains(';'), "{error}");
        }
    }
}
