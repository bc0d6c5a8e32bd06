//! From a request to a container whose init has said that every wall stands.
//!
//! Invariants: whatever fails, the container goes again; the control socket has one peer, the first process of that container, which
//! connects before any program exists; the end of that process is noticed by its pidfd, whatever the engine does.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustix::io::Errno;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::watch;

use crate::plan::Plan;
use crate::plan::messages::Go;
use crate::runtime::InstanceConfig;
use crate::runtime::egress::NetworkGrant;
use crate::runtime::native::control::InitClient;
use crate::runtime::native::reaper::Killed;
use crate::runtime::native::required_walls;
use crate::runtime::native::sandbox::{Holder, Sandbox, Standing};
use crate::sandbox::cgroups::SessionCgroup;
use crate::sandbox::contained;
use crate::sandbox::enforcement::{Enforcement, WallState, WallStatus};
use crate::sandbox::error::SandboxError;
use crate::sandbox::held;
use crate::seccomp::around;
use crate::sys::{channel, process, socket};

use super::DockerRuntime;
use super::container::{self, CONTROL, INIT, SESSION};
use super::engine::{Engine, Facts, MAKE_TIME, Product, going_down};
use super::images::{self, Ground};
use super::init_files::InitFiles;

/// From the start of a container to the word of its init.
const READY_TIME: Duration = Duration::from_secs(20);

/// The filter as a file, for engines that take no text.
const SECCOMP_FILE: &str = "seccomp.json";

impl DockerRuntime {
    pub(super) async fn contain(&self, config: &InstanceConfig, generation: u64) -> Result<Sandbox, SandboxError> {
        refuse_network(config.network)?;
        let facts = self.facts()?;
        let parts = self.native.parts();
        let (plan, mut walls) = contained::compile(&config.profile, &config.limits, self.native.kernel(), facts.users);
        required_walls(&walls, &parts.allow_degraded)?;
        let limits = limits(config, &facts, parts.host.nofile_hard);
        held::refuse_named(config.named_limits, &limits)?;
        let ground = images::ground(&self.engine, &parts.images, &config.image).await?;
        walls.extend(config.permissions.as_ref().map(|_| permissions_row()));
        let enforcement = Enforcement { walls, limits, profile: config.profile.identity(None), rootless: !parts.host.root };
        let made = self.start_container(config, generation, &facts, &ground).await?;
        let Init { client, pid, ended } = made.speak(&plan).await?;
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let cgroup = SessionCgroup::observed(&read(&format!("/proc/{pid}/cgroup")), &read("/proc/self/mountinfo"));
        let Ground { env, root, .. } = ground;
        let (holder, gone) = made.keep(ended, root);
        let name = config.environment_id.clone();
        Ok(Standing { holder, init: client, gone, name, cgroup: Some(cgroup), enforcement, environment: env }.into())
    }

    fn facts(&self) -> Result<Facts, SandboxError> {
        let unusable = |cause| SandboxError::RuntimeUnusable { runtime: "Docker".into(), cause };
        self.engine.facts().map_err(unusable)
    }

    async fn start_container(
        &self,
        config: &InstanceConfig,
        generation: u64,
        facts: &Facts,
        ground: &Ground,
    ) -> Result<Made, SandboxError> {
        let environment = config.environment_id.to_string();
        let name = match generation {
            0 => format!("codebeaker-{environment}"),
            later => format!("codebeaker-{environment}_{later}"),
        };
        let init = InitFiles::of_this_binary(&self.state_dir).map_err(|error| unmade(&error))?;
        let meeting = Meeting::make(&self.state_dir, &name).map_err(|error| unmade(&error))?;
        let seccomp = meeting.seccomp(config, facts.product).map_err(|error| unmade(&error))?;
        let mut binds = ground.binds.clone();
        let text = |path: &Path| path.to_string_lossy().into_owned();
        binds.push((text(&init.directory), INIT.into()));
        binds.push((text(&meeting.directory), SESSION.into()));
        binds.extend(
            self.native.parts().package_dir.iter().map(|source| (text(source), crate::sandbox::compile::PACKAGES.into())),
        );
        let body = container::body(&container::Request {
            product: facts.product,
            server: self.engine.server.as_str(),
            environment: &environment,
            image: &ground.image,
            profile: &config.profile,
            limits: &config.limits,
            binds: &binds,
            init: &init.command,
            seccomp: &seccomp,
        });
        self.engine.hold(&name);
        let made = Made { engine: Arc::clone(&self.engine), name: Some(name.clone()), meeting };
        let options = bollard::query_parameters::CreateContainerOptionsBuilder::new().name(&name).build();
        let permit = Arc::clone(&self.engine.making).acquire_owned().await.map_err(|_| going_down())?;
        self.engine
            .call("make a container", MAKE_TIME, move |client| async move {
                let _being_made = permit;
                client.create_container(Some(options), body).await.map(drop)
            })
            .await?;
        self.engine
            .call("start a container", MAKE_TIME, move |client| async move { client.start_container(&name, None).await })
            .await?;
        Ok(made)
    }
}

/// A container has its own empty network, and no proxy listens in it.
fn refuse_network(granted: NetworkGrant) -> Result<(), SandboxError> {
    let cause = match granted {
        NetworkGrant::None => return Ok(()),
        NetworkGrant::Installs => "its install steps can't reach an index: leave `permissions.allowPackageIndex` out",
        NetworkGrant::Programs => "its programs can't reach anything: leave `permissions.allowNet` out",
    };
    let cause = format!("a container has no way out of its network, so {cause}, or take the OS sandbox");
    Err(SandboxError::RuntimeUnusable { runtime: "Docker".into(), cause })
}

/// The rows of limits: the engine carries what control groups carry.
fn limits(config: &InstanceConfig, facts: &Facts, nofile_hard: Option<u64>) -> Vec<WallState> {
    let row = |name: &str, state, detail: &str| WallState { name: name.into(), state, detail: detail.into() };
    let carried: Vec<WallState> = ["memory", "pids", "cpu"]
        .into_iter()
        .map(|name| {
            if facts.lacks.contains(&name) {
                row(name, WallStatus::Absent, "the engine says that it can't set it on this host")
            } else {
                row(name, WallStatus::Enforced, "the engine's group of the container")
            }
        })
        .chain([row("io", WallStatus::Absent, "nothing of a session is on a disk")])
        .collect();
    let mut rows = held::rows(&config.limits, Some(&carried), nofile_hard);
    let (bytes, files) = (config.limits.disk_bytes >> 20, config.limits.inodes);
    for row in &mut rows {
        match row.name.as_str() {
            "disk" => row.detail = format!("{bytes} MiB on each tmpfs: /workspace, /tmp, /dev/shm; all count as memory"),
            "inodes" if facts.product == Product::Podman => {
                row.state = WallStatus::Absent;
                row.detail = "Podman gives a tmpfs no bound on files; all count as memory".into();
            }
            "inodes" => row.detail = format!("{files} on each tmpfs: /workspace, /tmp"),
            _ => {}
        }
    }
    rows
}

fn permissions_row() -> WallState {
    let detail = "a program of an image takes no permission flags; the container's walls hold for it";
    WallState { name: "permissions".into(), state: WallStatus::Absent, detail: detail.into() }
}

/// The state directory is full or read-only, as a rule.
fn unmade(error: &io::Error) -> SandboxError {
    crate::runtime::native::exhausted(error)
        .unwrap_or_else(|| SandboxError::Busy { cause: format!("what a container needs could not be written: {error}") })
}

/// Where init finds the server: a directory that lives until they have met.
struct Meeting {
    directory: PathBuf,
    listener: OwnedFd,
}

impl Meeting {
    fn make(state_dir: &Path, name: &str) -> io::Result<Self> {
        let parent = state_dir.join("run");
        DirBuilder::new().recursive(true).mode(0o700).create(&parent)?;
        let directory = parent.join(name);
        DirBuilder::new().mode(0o711).create(&directory)?;
        // The umask may have taken what init's user needs.
        fs::set_permissions(&directory, fs::Permissions::from_mode(0o711))?;
        let opened = fs::File::open(&directory)?;
        let listener = socket::listen(opened.as_fd(), CONTROL).map_err(|error| io::Error::from_raw_os_error(error.raw()))?;
        Ok(Self { directory, listener })
    }

    /// Docker takes a filter's text, Podman the path of its file.
    fn seccomp(&self, config: &InstanceConfig, product: Product) -> io::Result<String> {
        let text = serde_json::to_string(&around::init(&config.profile.document)).map_err(io::Error::other)?;
        match product {
            Product::Docker => Ok(text),
            Product::Podman => {
                let path = self.directory.join(SECCOMP_FILE);
                fs::write(&path, text)?;
                Ok(path.to_string_lossy().into_owned())
            }
        }
    }
}

impl Drop for Meeting {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.directory) {
            tracing::warn!(%error, "the meeting place of a container stays behind");
        }
    }
}

#[expect(deprecated, reason = "sound for a descriptor that is borrowed; its successor is an unsafe function")]
fn watched(fd: BorrowedFd<'_>) -> io::Result<AsyncFd<BorrowedFd<'_>>> {
    AsyncFd::with_interest(fd, Interest::READABLE)
}

/// A container that was asked for; dropped, it goes again.
struct Made {
    engine: Arc<Engine>,
    name: Option<String>,
    meeting: Meeting,
}

/// An init that can be spoken to.
struct Init {
    client: InitClient,
    pid: i32,
    /// Readable when it has ended.
    ended: OwnedFd,
}

impl Made {
    async fn speak(&self, plan: &Plan) -> Result<Init, SandboxError> {
        let silent = || {
            let cause = format!(
                "the init of a container did not connect within {} s: the engine must see the same file system and the same processes \
                 as the server",
                READY_TIME.as_secs()
            );
            SandboxError::RuntimeUnusable { runtime: "Docker".into(), cause }
        };
        let (control, pid) =
            tokio::time::timeout(READY_TIME, self.accept()).await.map_err(|_| silent())?.map_err(|error| unmade(&error))?;
        let ended = process::open_pidfd(pid).map_err(|_| silent())?;
        channel::send(control.as_fd(), plan, &[])
            .and_then(|()| channel::send(control.as_fd(), &Go { slots: Vec::new() }, &[]))
            .map_err(|_| early())?;
        let connected = tokio::time::timeout(READY_TIME, InitClient::connect(control)).await.map_err(|_| silent())?;
        let client = connected.map_err(|failure| match failure {
            Ok(failure) => crate::runtime::native::wall_error(&failure),
            Err(_) => early(),
        })?;
        Ok(Init { client, pid, ended })
    }

    async fn accept(&self) -> io::Result<(OwnedFd, i32)> {
        let listener = watched(self.meeting.listener.as_fd())?;
        loop {
            let mut ready = listener.readable().await?;
            match socket::accept(listener.get_ref().as_fd()) {
                Ok(met) => return Ok(met),
                Err(error) if error.errno == Errno::AGAIN => ready.clear_ready(),
                Err(error) => return Err(io::Error::from_raw_os_error(error.raw())),
            }
        }
    }

    /// From here on the container ends with its session; the receiver hears when nothing is left of it.
    fn keep(
        mut self,
        ended: OwnedFd,
        root: Option<crate::image::ImageRoot>,
    ) -> (Arc<dyn Holder>, watch::Receiver<Option<i32>>) {
        let (told, gone) = watch::channel(None);
        let name = self.name.take().unwrap_or_default();
        let ended = Arc::new(ended);
        let holder = AtEngine { engine: Arc::clone(&self.engine), name: name.clone(), init: Arc::clone(&ended) };
        let engine = Arc::clone(&self.engine);
        self.engine.spawn(async move {
            let end = watched(ended.as_fd());
            match &end {
                Ok(end) => drop(end.readable().await),
                Err(error) => tracing::warn!(%error, "the end of a container's init can't be waited for"),
            }
            engine.discard(&name).await;
            drop(root);
            told.send_replace(Some(0));
        });
        (Arc::new(holder), gone)
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        if let Some(name) = self.name.take() {
            let engine = Arc::clone(&self.engine);
            self.engine.spawn(async move { engine.discard(&name).await });
        }
    }
}

fn early() -> SandboxError {
    SandboxError::RuntimeUnusable {
        runtime: "Docker".into(),
        cause: "the init of a container ended before its walls stood".into(),
    }
}

/// A container as a session holds it.
struct AtEngine {
    engine: Arc<Engine>,
    name: String,
    init: Arc<OwnedFd>,
}

impl Holder for AtEngine {
    /// The end of init is the end of everything in the container. Where this user may not kill it, the engine does.
    fn end(&self) -> Option<Killed> {
        if process::kill_pidfd(self.init.as_fd()).is_err() {
            let (engine, name) = (Arc::clone(&self.engine), self.name.clone());
            self.engine.spawn(async move { engine.discard(&name).await });
        }
        None
    }

    fn why_gone(&self) -> &'static str {
        "its container ended"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_that_was_granted_network_is_refused_and_told_which_field_to_leave_out() {
        assert!(refuse_network(NetworkGrant::None).is_ok(), "the control");
        for (granted, field) in
            [(NetworkGrant::Installs, "permissions.allowPackageIndex"), (NetworkGrant::Programs, "permissions.allowNet")]
        {
            let error = refuse_network(granted).expect_err("it has no way out");
            assert!(matches!(error, SandboxError::RuntimeUnusable { .. }) && error.to_string().contains(field), "{error}");
        }
    }
}
