//! How a plan reads: one line a step, as `codebeaker plan` prints it, and the wall each step belongs to.

use std::fmt;

use crate::sys::error::describe;
use crate::sys::seccomp::Waiting;

use super::{ListenerAnswer, Missing, OutsideStep, Place, Plan, ProgramStep, Step, devices};

/// The namespaces in the order they are named.
pub const NAMESPACES: [(u64, &str); 8] = [
    (libc::CLONE_NEWUSER as u64, "user"),
    (libc::CLONE_NEWNS as u64, "mount"),
    (libc::CLONE_NEWPID as u64, "pid"),
    (libc::CLONE_NEWNET as u64, "network"),
    (libc::CLONE_NEWIPC as u64, "ipc"),
    (libc::CLONE_NEWUTS as u64, "uts"),
    (libc::CLONE_NEWCGROUP as u64, "cgroup"),
    (libc::CLONE_NEWTIME as u64, "time"),
];

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<&str> =
            NAMESPACES.iter().filter(|(flag, _)| self.namespaces & flag != 0).map(|(_, name)| *name).collect();
        writeln!(f, "clone new namespaces: {}", names.join(" "))?;
        if let Some(group) = &self.born_in {
            writeln!(f, "  born in the group {group}")?;
        }
        writeln!(f, "\noutside, by the launcher:")?;
        for step in &self.outside {
            writeln!(f, "  {:<14} {step}", step.wall())?;
        }
        writeln!(f, "\ninside, by init:")?;
        for step in &self.inside {
            writeln!(f, "  {:<14} {step}", step.wall())?;
        }
        writeln!(f, "\neach program, between fork and exec:")?;
        for step in &self.program {
            writeln!(f, "  {:<14} {step}", step.wall())?;
        }
        writeln!(f, "\nfile commands act as {}:{}", self.file_uid, self.file_gid)
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Host(path) => write!(f, "host:{path}"),
            Self::Root(path) => write!(f, "{path}"),
        }
    }
}

impl OutsideStep {
    /// The wall this step belongs to.
    pub fn wall(&self) -> &'static str {
        match self {
            Self::DenySetgroups | Self::UidMap(_) | Self::GidMap(_) | Self::MapByHelper { .. } => "user",
            Self::OwnCgroup { .. } => "cgroup",
            Self::CloneTree { .. } | Self::CloneDevices { .. } => "mount",
        }
    }
}

impl ProgramStep {
    /// True for one that installs a filter.
    pub fn is_filter(&self) -> bool {
        matches!(self, Self::SeccompListener { .. } | Self::Seccomp(_))
    }
}

impl fmt::Display for OutsideStep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::DenySetgroups => f.write_str("setgroups deny"),
            Self::UidMap(map) => write!(f, "uid_map {map}"),
            Self::GidMap(map) => write!(f, "gid_map {map}"),
            Self::MapByHelper { program, arguments } => write!(f, "{program} PID {}", arguments.join(" ")),
            Self::OwnCgroup { procs, uid } => write!(f, "chown {procs} {uid}"),
            Self::CloneTree { slot, source } => write!(f, "open_tree {source} -> #{slot}, read-only, ids mapped"),
            Self::CloneDevices { slot } => {
                let names: Vec<_> = devices::NODES.iter().map(|(name, ..)| *name).collect();
                write!(f, "open_tree of a directory with {} -> #{slot}, read-only, ids mapped", names.join(", "))
            }
        }
    }
}

impl Step {
    /// The wall this step belongs to.
    pub fn wall(&self) -> &'static str {
        match self {
            Self::PrivateMounts
            | Self::Mount { .. }
            | Self::CloneTree { .. }
            | Self::CloneHostTree { .. }
            | Self::Attach { .. }
            | Self::Directory { .. }
            | Self::Own { .. }
            | Self::Cover { .. }
            | Self::File { .. }
            | Self::Symlink { .. }
            | Self::TakeRoot { .. }
            | Self::TakeOwnRoot
            | Self::WatchQuota { .. }
            | Self::PivotRoot
            | Self::InstallersView { .. }
            | Self::Restrict { .. } => "mount",
            Self::UserLimit { .. } => "rlimits",
            Self::Hostname(_) => "uts",
            Self::LoopbackUp => "network",
            Self::JoinCgroup { .. } | Self::CgroupNamespace => "cgroup",
            Self::LandlockScopes | Self::LandlockRules { .. } => "landlock",
            Self::BecomeRoot => "user",
            Self::BoundingSet { .. } => "capabilities",
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::JoinCgroup { tasks } => write!(f, "write itself to {tasks}"),
            Self::PrivateMounts => f.write_str("mount / private, recursively"),
            Self::Mount { slot, kind, options, attributes } => {
                let options: Vec<String> = options
                    .iter()
                    .map(|(key, value)| if value.is_empty() { key.clone() } else { format!("{key}={value}") })
                    .collect();
                write!(f, "fsmount {kind} [{}]{} -> #{slot}", options.join(","), Attributes(*attributes))
            }
            Self::CloneTree { slot, source, attributes } => {
                write!(f, "open_tree {source}{} -> #{slot}", Attributes(*attributes))
            }
            Self::CloneHostTree { slot, source, attributes } => {
                write!(f, "open_tree host:{source}, recursively{} -> #{slot}", Attributes(*attributes))
            }
            Self::Attach { slot, target } => write!(f, "move_mount #{slot} -> {target}"),
            Self::Directory { path, mode, owner } => write!(f, "mkdir {path} {mode:04o} {}:{}", owner.0, owner.1),
            Self::Own { path, owner } => write!(f, "chown {path} {}:{}", owner.0, owner.1),
            Self::Cover { path, source, attributes, missing } => {
                let condition = match missing {
                    Missing::Fails => "",
                    Missing::Skips => " where it exists",
                };
                write!(f, "cover {path} with {source}{}{condition}", Attributes(*attributes))
            }
            Self::File { path } => write!(f, "create {path}"),
            Self::Symlink { target, path } => write!(f, "symlink {path} -> {target}"),
            Self::TakeRoot { slot } => write!(f, "take #{slot} as the root"),
            Self::TakeOwnRoot => f.write_str("take this process's own root as the root"),
            Self::WatchQuota { path } => write!(f, "watch the quota of {path}"),
            Self::PivotRoot => f.write_str("pivot_root, detach the host's"),
            Self::Restrict { path, attributes } => write!(f, "mount_setattr {path}{}", Attributes(*attributes)),
            Self::InstallersView { slot, target } => {
                write!(f, "unshare the mount namespace for installers, move_mount #{slot} -> {target} there, and return")
            }
            Self::UserLimit { path, limit } => write!(f, "write {limit} to {path} where it exists"),
            Self::Hostname(name) => write!(f, "sethostname {name}"),
            Self::LoopbackUp => f.write_str("loopback up"),
            Self::CgroupNamespace => f.write_str("unshare the cgroup namespace"),
            Self::LandlockScopes => f.write_str("scope signals and abstract sockets"),
            Self::LandlockRules { writable } => write!(f, "rules: change only below {}", writable.join(" ")),
            Self::BecomeRoot => f.write_str("become 0:0, no other groups"),
            Self::BoundingSet { keep } => write!(f, "bounding set {keep:#x}"),
        }
    }
}

/// Mount attributes as words.
struct Attributes(u64);

impl fmt::Display for Attributes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use crate::sys::mount::attribute as a;
        for (bit, word) in [(a::READ_ONLY, "ro"), (a::NO_SETUID, "nosuid"), (a::NO_DEVICES, "nodev"), (a::NO_EXEC, "noexec")] {
            if self.0 & bit != 0 {
                write!(f, " {word}")?;
            }
        }
        Ok(())
    }
}

impl ProgramStep {
    /// The wall this step belongs to.
    pub fn wall(&self) -> &'static str {
        match self {
            Self::Rlimit { .. } => "rlimits",
            Self::CgroupNamespace | Self::OomScore(_) => "cgroup",
            Self::Securebits(_) | Self::BoundingSet { .. } | Self::Capabilities { .. } => "capabilities",
            Self::ClearGroups | Self::Gid(_) | Self::Uid(_) => "user",
            Self::AdoptOrphans | Self::DieWithInit => "pid",
            Self::NoNewPrivs => "no_new_privs",
            Self::Landlock => "landlock",
            Self::SeccompListener { .. } | Self::Seccomp(_) => "seccomp",
        }
    }
}

impl fmt::Display for ProgramStep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Rlimit { name, limit, .. } => write!(f, "{name} {limit}"),
            Self::CgroupNamespace => f.write_str("unshare the cgroup namespace"),
            Self::OomScore(score) => write!(f, "oom_score_adj {score}"),
            Self::Securebits(bits) => write!(f, "securebits {bits:#x}"),
            Self::BoundingSet { keep } => write!(f, "bounding set {keep:#x}"),
            Self::ClearGroups => f.write_str("setgroups to none"),
            Self::Gid(gid) => write!(f, "setresgid {gid}"),
            Self::Uid(uid) => write!(f, "setresuid {uid}"),
            Self::Capabilities { keep } => write!(f, "capset {keep:#x}, ambient empty"),
            Self::AdoptOrphans => f.write_str("child subreaper"),
            Self::DieWithInit => f.write_str("die with init"),
            Self::NoNewPrivs => f.write_str("no_new_privs"),
            Self::Landlock => f.write_str("apply the file rules"),
            Self::SeccompListener { filter, answer, waiting } => {
                let waiting = match waiting {
                    Waiting::Killable => "killable",
                    Waiting::Interruptible => "interruptible",
                };
                write!(f, "filter of {} instructions, ", filter.len() / 8)?;
                match answer {
                    ListenerAnswer::Refuse(errno) => {
                        write!(f, "its refusals told to init, which answers {}", describe(*errno))?;
                    }
                    ListenerAnswer::LetGo => {
                        f.write_str("AUDIT ONLY: what it would refuse is told to init, which lets it go on")?;
                    }
                }
                write!(f, "; the wait is {waiting}")
            }
            Self::Seccomp(program) => write!(f, "filter of {} instructions", program.len() / 8),
        }
    }
}
