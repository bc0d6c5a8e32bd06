//! Control groups go with the process that made them: none is left to a moment after its end, nor to a next start that may
//! stand in other groups and not see them.

use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;

use super::end;
use crate::support::cli::codebeaker;
use crate::support::residue::groups_made_by;
use crate::support::{Feature, Server, Setup, eventually, host, page};

pub(super) fn trials() -> Vec<libtest_mimic::Trial> {
    page(
        "lifecycle",
        &[
            ("when a server has ended on SIGTERM its groups are gone, not a moment later", gone_with_the_server),
            ("a server whose launcher was killed a moment ago removes its groups itself", launcher_just_killed),
            ("when run, plan and runtimes return their groups are gone", gone_with_the_call),
            ("groups that a killed server left below another group are found by the next start", left_elsewhere),
        ],
    )
}

/// The groups of a server that lives; a trial of groups needs some.
fn groups_of(server: &Server) -> Vec<PathBuf> {
    let groups = groups_made_by(server.pid().cast_unsigned());
    host().need_that("server_groups", !groups.is_empty(), "a server here makes no control groups");
    groups
}

/// Ends a server; the moment its process is gone there is no group of it.
fn ends_with_its_groups(server: &Server) {
    server.signal(Signal::SIGTERM);
    let status = server.wait(Duration::from_secs(60)).expect("it ends");
    let left = groups_made_by(server.pid().cast_unsigned());
    assert!(status.success() && left.is_empty(), "{status}: {left:?}");
}

fn gone_with_the_server() {
    host().need(Feature::Root);
    let server = Server::start(&Setup::plain());
    server.client().ok("session.create", &json!({"language": "bash"}));
    groups_of(&server);
    ends_with_its_groups(&server);
}

fn launcher_just_killed() {
    host().need(Feature::Root);
    let server = Server::start(&Setup::plain());
    server.client().ok("session.create", &json!({"language": "bash"}));
    groups_of(&server);
    let launcher = server.launcher().expect("a launcher");
    kill(Pid::from_raw(launcher), Signal::SIGKILL).expect("a process below the trial's own server");
    ends_with_its_groups(&server);
}

fn gone_with_the_call() {
    host().need(Feature::Root);
    for arguments in [&["run", "--", "true"][..], &["plan"], &["runtimes"]] {
        let output = codebeaker(arguments).expect_code(0);
        let left = groups_made_by(output.pid);
        assert!(left.is_empty(), "after `{}`: {left:?}", arguments.join(" "));
    }
}

/// A group that processes of this trial are started in.
struct Elsewhere(PathBuf);

impl Elsewhere {
    /// Below the suite's own group of the v1 memory controller, which is a session's own on many hosts.
    fn make() -> Self {
        let membership = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        let own = membership.lines().find_map(|line| line.split_once(":memory:")).map(|(_, path)| path.to_owned());
        let base = own.map(|path| Path::new("/sys/fs/cgroup/memory").join(path.trim_start_matches('/')));
        let base = base.filter(|base| base.join("cgroup.procs").exists());
        host().need_that("memory_v1", base.is_some(), "the memory controller is not on a v1 hierarchy");
        let group = base.expect("just asked for").join(format!("codebeaker-elsewhere-{}", std::process::id()));
        std::fs::create_dir(&group).expect("root may make groups");
        Self(group)
    }
}

impl Drop for Elsewhere {
    fn drop(&mut self) {
        let gone = eventually(Duration::from_secs(10), || std::fs::remove_dir(&self.0).is_ok());
        assert!(gone || std::thread::panicking(), "{} can't be removed", self.0.display());
    }
}

fn left_elsewhere() {
    host().need(Feature::Root);
    let elsewhere = Elsewhere::make();
    let enter = format!("echo $$ > {}; exec \"$0\" \"$@\"", elsewhere.0.join("cgroup.procs").display());
    let wrapper = ["/bin/sh", "-c", &enter].map(str::to_owned).to_vec();
    let server = Server::start(&Setup { wrapper, ..Setup::plain() });
    server.client().ok("session.create", &json!({"language": "bash"}));
    let launcher = server.launcher().expect("a launcher");
    // Stopped, the server can't clean up after its launcher.
    server.signal(Signal::SIGSTOP);
    kill(Pid::from_raw(launcher), Signal::SIGKILL).expect("a process below the trial's own server");
    server.signal(Signal::SIGKILL);
    server.wait(Duration::from_secs(10)).expect("it is dead");
    let below = || elsewhere.0.read_dir().expect("an own group").flatten().filter(|entry| entry.path().is_dir()).count();
    assert_eq!(below(), 1, "the control: the dead server's group is there");
    let next = Server::start_in(&Setup::plain(), server.into_directory());
    assert_eq!(below(), 0, "the next start, which stands in another group, removes it");
    end(next);
}
