//! The contract between those who decide (`sandbox`, `runtime`) and those who act (`launcher`, `init`).
//!
//! A sandbox is a list: [`Plan`] holds what the launcher does around the clone, what init does once, and what every program
//! goes through between fork and exec, in order. Invariant: plain data, no I/O; each step says all it needs, so that whoever
//! carries it out decides nothing. Read `messages` for what travels on the sockets and `files` for file commands.

pub mod devices;
pub mod files;
pub mod messages;
mod text;

pub use text::NAMESPACES;

use serde::{Deserialize, Serialize};

use crate::sys::seccomp::Waiting;

/// The ordered steps that build one sandbox.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// `CLONE_NEW*` flags of the one clone.
    pub namespaces: u64,
    /// Group to be born in (a cgroup v2 directory on the host).
    pub born_in: Option<String>,
    /// Group that programs are born in (a cgroup v2 directory on the host).
    pub programs_born_in: Option<String>,
    /// Done by the launcher, outside, after the clone.
    pub outside: Vec<OutsideStep>,
    /// Done by init, once.
    pub inside: Vec<Step>,
    /// Done by each program between fork and exec.
    pub program: Vec<ProgramStep>,
    /// How a program begins.
    pub start: Start,
    /// Whose rights file commands have.
    pub file_uid: u32,
    /// Whose group file commands have.
    pub file_gid: u32,
}

/// How a program begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Start {
    /// In init's own memory, while init sleeps until it executes: nothing is copied.
    Shared,
    /// In a copy of it: init may have to answer a call before the program executes, or the processor is one that has no other way.
    Copied,
}

/// Number of a detached mount that waits to be attached.
pub type Slot = u8;

/// What the launcher does for a new process that waits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum OutsideStep {
    /// Write `deny` to `setgroups`: what the kernel asks for before a gid map without privilege.
    DenySetgroups,
    /// Write `uid_map`.
    UidMap(String),
    /// Write `gid_map`.
    GidMap(String),
    /// Have `newuidmap` or `newgidmap` write the map: program and its arguments after the pid.
    MapByHelper {
        /// Path of the set-uid program.
        program: String,
        /// `inside outside count` triples.
        arguments: Vec<String>,
    },
    /// Give a `cgroup.procs` to the sandbox's root, so that init can have programs born in a group of theirs.
    OwnCgroup {
        /// The file.
        procs: String,
        /// Host uid of the sandbox's root.
        uid: u32,
    },
    /// Clone a host directory as a detached, read-only mount whose owners are shown as the new user namespace maps them: root's
    /// files belong to root inside.
    CloneTree {
        /// Where init finds it.
        slot: Slot,
        /// The directory on the host.
        source: String,
    },
    /// Clone the directory of [`devices`], which the launcher makes once, as a detached, read-only mount with mapped owners.
    CloneDevices {
        /// Where init finds it.
        slot: Slot,
    },
}

/// What init does, in its new namespaces.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Step {
    /// Move init, which has one thread, into a cgroup v1 group.
    JoinCgroup {
        /// Its file `tasks`, on the host.
        tasks: String,
    },
    /// Make every mount private.
    PrivateMounts,
    /// Make a file system, detached.
    Mount {
        /// Where it waits.
        slot: Slot,
        /// `tmpfs`, `overlay`, `proc`, `devpts`.
        kind: String,
        /// Key and value; an empty value is a flag.
        options: Vec<(String, String)>,
        /// `sys::mount::attribute`.
        attributes: u64,
    },
    /// Clone what is at a path as a detached mount.
    CloneTree {
        /// Where it waits.
        slot: Slot,
        /// What.
        source: Place,
        /// `sys::mount::attribute` set on the clone.
        attributes: u64,
    },
    /// Clone a host directory with the mounts below: in a user namespace the kernel shows no mount without those that cover parts
    /// of it. Done while init still has the server's own id, which may reach the directory.
    CloneHostTree {
        /// Where it waits.
        slot: Slot,
        /// The directory on the host.
        source: String,
        /// `sys::mount::attribute` set on the clone and the mounts below.
        attributes: u64,
    },
    /// Attach a detached mount.
    Attach {
        /// Which.
        slot: Slot,
        /// Over what; no link is followed.
        target: Place,
    },
    /// Make a directory unless there is one; a link or a file in its place is an error.
    Directory {
        /// Where.
        path: Place,
        /// Permission bits.
        mode: u32,
        /// Uid and gid inside.
        owner: (u32, u32),
    },
    /// Change the owner of what is there.
    Own {
        /// Where.
        path: Place,
        /// Uid and gid inside.
        owner: (u32, u32),
    },
    /// Put a copy of one thing over another.
    Cover {
        /// What is covered.
        path: Place,
        /// What it is covered with.
        source: Place,
        /// `sys::mount::attribute` set on the copy.
        attributes: u64,
        /// Whether a missing `path` is passed over.
        missing: Missing,
    },
    /// Make an empty file to attach a device over.
    File {
        /// Where.
        path: Place,
    },
    /// Make a symbolic link.
    Symlink {
        /// Its text.
        target: String,
        /// Where.
        path: Place,
    },
    /// Take the mount in a slot, which stays attached, as the root that `Place::Root` means.
    TakeRoot {
        /// Which.
        slot: Slot,
    },
    /// Take the root that this process already has: somebody else has built it.
    TakeOwnRoot,
    /// Keep a descriptor of a path: its file system is the session's quota, or a part of it.
    WatchQuota {
        /// Where.
        path: Place,
    },
    /// Change the root directory and let go of the host's.
    PivotRoot,
    /// Set mount attributes on what is mounted at a path.
    Restrict {
        /// Where.
        path: Place,
        /// `sys::mount::attribute`.
        attributes: u64,
    },
    /// Make a second view of the mounts, for installers alone, in which a tree is attached that the others do not see.
    InstallersView {
        /// The tree.
        slot: Slot,
        /// Where it is in that view, from the sandbox's root.
        target: Place,
    },
    /// Write to a file of the sandbox's `/proc/sys/user`: what its user namespace may take of the host's. Kernels without it
    /// have no such count.
    UserLimit {
        /// The file, below the new root.
        path: String,
        /// How many.
        limit: u32,
    },
    /// `sethostname`.
    Hostname(String),
    /// Bring loopback up.
    LoopbackUp,
    /// Make the group init is in the root of what it sees.
    CgroupNamespace,
    /// Landlock: no signals and no abstract sockets across the border.
    LandlockScopes,
    /// Landlock: make the rule set that programs apply.
    LandlockRules {
        /// Directories that may be changed.
        writable: Vec<String>,
    },
    /// No supplementary groups, and uid and gid 0 of the new user namespace: until then init has an id that is not mapped.
    BecomeRoot,
    /// Drop every capability from the bounding set but these bits: what init can't hand out, no program has to give up.
    BoundingSet {
        /// Bit n = capability n.
        keep: u64,
    },
}

/// Whether something may be missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Missing {
    /// Then the sandbox is not built.
    Fails,
    /// Kernels differ in what `/proc` holds: nothing there, nothing to hide.
    Skips,
}

/// A path, and what it starts from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Place {
    /// In the host's view that init still has before the pivot.
    Host(String),
    /// Below the new root, before and after the pivot.
    Root(String),
}

/// What each program goes through between fork and exec.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ProgramStep {
    /// `setrlimit`, soft and hard.
    Rlimit {
        /// `RLIMIT_*` number.
        resource: u32,
        /// Its name, for people.
        name: String,
        /// The limit.
        limit: u64,
    },
    /// Make the group the program was born in the root of what it sees.
    CgroupNamespace,
    /// Make the kernel prefer this program to init when memory runs out.
    OomScore(i32),
    /// `PR_SET_SECUREBITS`.
    Securebits(u32),
    /// Drop every capability that the bounding set still has but these bits.
    BoundingSet {
        /// Bit n = capability n.
        keep: u64,
    },
    /// Empty supplementary groups.
    ClearGroups,
    /// `setresgid`.
    Gid(u32),
    /// `setresuid`.
    Uid(u32),
    /// `capset` and an empty ambient set.
    Capabilities {
        /// Effective, permitted; inheritable is empty.
        keep: u64,
    },
    /// Orphans of this program become its children, so that they end with it.
    AdoptOrphans,
    /// `PR_SET_PDEATHSIG`.
    DieWithInit,
    /// `PR_SET_NO_NEW_PRIVS`.
    NoNewPrivs,
    /// Apply the rule set made by `Step::LandlockRules`.
    Landlock,
    /// Install a filter that hands calls to init, which answers them: the listener goes to init before anything else happens.
    SeccompListener {
        /// An array of `struct sock_filter`.
        #[serde(with = "serde_bytes")]
        filter: Vec<u8>,
        /// What init answers to every call that it is told of.
        answer: ListenerAnswer,
        /// How a program waits for that.
        waiting: Waiting,
    },
    /// Install a filter: an array of `struct sock_filter`.
    Seccomp(#[serde(with = "serde_bytes")] Vec<u8>),
}

/// What init says to a call that waits for its listener.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ListenerAnswer {
    /// It fails with this errno.
    Refuse(i32),
    /// It runs: the profile only audits.
    LetGo,
}

/// A step that could not be done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StepFailure {
    /// The step as `codebeaker plan` prints it.
    pub step: String,
    /// The wall it belongs to.
    pub wall: String,
    /// The system call.
    pub call: String,
    /// Its errno.
    pub errno: i32,
}
