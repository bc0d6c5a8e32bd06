//! From what a sandbox shall be to the ordered list of steps that builds it.
//!
//! Pure: the same [`Spec`] gives the same [`Compiled`]. The order of walls is the order of the lines in [`compile`]; each wall's
//! own steps are in its file below `walls`. Invariant: a wall that is left out has a row that says so.

use std::path::PathBuf;

use crate::plan::{OutsideStep, Plan, Slot};
use crate::sys::seccomp::Waiting;

use super::enforcement::{WallState, WallStatus};
use super::profile::{Network, Profile, RootFilesystem};
use super::spec::Limits;
use super::walls;

/// Where installers find the operator's packages.
pub const PACKAGES: &str = "/packages";

/// Everything that decides how a sandbox is built.
#[derive(Debug, Clone)]
pub struct Spec<'a> {
    /// Walls, users, filters.
    pub profile: &'a Profile,
    /// The limits in force.
    pub limits: &'a Limits,
    /// What `/` is made of.
    pub root: Root,
    /// Whose ids the sandbox has on the host.
    pub ids: Ids,
    /// Where its processes are placed.
    pub cgroup: Placement,
    /// What the kernel offers.
    pub kernel: Kernel,
}

/// The image's trees on the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Root {
    /// The directory that becomes the lower layer.
    pub lower: PathBuf,
    /// Read-only trees laid over it: source on the host, target inside.
    pub binds: Vec<(PathBuf, String)>,
    /// The operator's packages, which installers alone see, at [`PACKAGES`].
    pub packages: Option<PathBuf>,
    /// What the image has at `/workspace`.
    pub workspace: Workspace,
}

/// What an image has at `/workspace`; it counts where the root can be written to and the server is root. Elsewhere a session finds it
/// empty.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Workspace {
    /// Nothing. Then it can be a directory of the session's own tmpfs, with no overlay on the way to its files.
    Empty,
    /// What the image holds there.
    OfImage,
}

/// How ids inside become ids on the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ids {
    /// As root: 65,536 ids of its own from `start` on.
    Range {
        /// First host id.
        start: u32,
        /// How many.
        count: u32,
    },
    /// Without privilege: a range from /etc/subuid and /etc/subgid, written by the set-uid helpers.
    Helper {
        /// Path of `newuidmap`.
        newuidmap: String,
        /// Path of `newgidmap`.
        newgidmap: String,
        /// First subordinate uid and how many.
        uids: (u32, u32),
        /// First subordinate gid and how many.
        gids: (u32, u32),
    },
    /// Without privilege and helpers: one id, that of the caller.
    Single {
        /// The caller's.
        uid: u32,
        /// The caller's.
        gid: u32,
    },
}

/// Where the processes of a sandbox are placed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Placement {
    /// Files `tasks` of v1 groups, to which init writes itself.
    pub join: Vec<PathBuf>,
    /// v2 directory for init.
    pub born_in: Option<PathBuf>,
    /// v2 directory for programs.
    pub programs_born_in: Option<PathBuf>,
    /// What bounds the number of processes.
    pub processes: ProcessBound,
}

/// What bounds the number of a sandbox's processes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum ProcessBound {
    /// `pids.max` of its group.
    Group,
    /// RLIMIT_NPROC: nothing else is to be had.
    #[default]
    Rlimit,
}

/// What the kernel offers beyond the oldest that is served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kernel {
    /// Time namespaces.
    pub time_namespace: bool,
    /// What is mounted nowhere can be cloned (Linux 6.15), and device nodes can be made.
    pub device_directory: bool,
    /// Version of Landlock; 0 = none.
    pub landlock_abi: u32,
    /// Whether a program's refused calls can be told to init, and how it waits then.
    pub listener: Option<Waiting>,
    /// A process that changes its user stays hidden from tracers.
    pub users_hide: bool,
    /// Version of the kernel, major and minor.
    pub version: (u32, u32),
}

/// A plan, and what it will enforce once it has been carried out.
#[derive(Debug, Clone, PartialEq)]
pub struct Compiled {
    /// The steps.
    pub plan: Plan,
    /// One row a wall.
    pub walls: Vec<WallState>,
}

/// Numbers of the mounts that the launcher hands in; those that init makes come after.
pub(super) const SLOT_LOWER: Slot = 0;

/// [`Plan::namespaces`] of every plan for such a kernel, known before the rest of it is.
pub fn namespaces(kernel: &Kernel) -> u64 {
    walls::namespaces::flags(kernel)
}

/// Orders the walls.
pub fn compile(spec: &Spec<'_>) -> Compiled {
    let mut draft = Draft::default();
    walls::user::add(&mut draft, spec);
    walls::cgroup::place(&mut draft, spec);
    walls::namespaces::add(&mut draft, spec);
    let trees = walls::root::trees(&mut draft, spec);
    walls::user::become_root(&mut draft, spec);
    walls::root::add(&mut draft, spec, &trees);
    walls::devices::add(&mut draft, spec);
    walls::rlimits::of_the_sandbox(&mut draft);
    walls::proc::mask(&mut draft);
    walls::root::pivot(&mut draft, spec);
    walls::namespaces::hostname(&mut draft);
    walls::namespaces::network(&mut draft, spec);
    walls::root::installers_view(&mut draft, &trees);
    walls::cgroup::hide(&mut draft, spec);
    walls::landlock::add(&mut draft, spec);
    walls::rlimits::add(&mut draft, spec);
    walls::program::add(&mut draft, spec);
    let (uid, gid) = (spec.profile.uid, spec.profile.gid);
    let text = |path: &Option<PathBuf>| path.as_ref().map(|path| path.to_string_lossy().into_owned());
    let plan = Plan {
        namespaces: draft.namespaces,
        born_in: text(&spec.cgroup.born_in),
        programs_born_in: text(&spec.cgroup.programs_born_in),
        outside: draft.outside,
        inside: draft.inside,
        program: draft.program,
        start: walls::program::start(spec),
        file_uid: uid,
        file_gid: gid,
    };
    Compiled { plan, walls: draft.walls }
}

/// A plan in the making.
#[derive(Debug, Default)]
pub(super) struct Draft {
    pub(super) namespaces: u64,
    pub(super) outside: Vec<OutsideStep>,
    pub(super) inside: Vec<crate::plan::Step>,
    pub(super) program: Vec<crate::plan::ProgramStep>,
    walls: Vec<WallState>,
    slots: Slot,
}

impl Draft {
    /// A row for a wall that stands as designed.
    pub(super) fn enforced(&mut self, name: &str, detail: impl Into<String>) {
        self.row(name, WallStatus::Enforced, detail.into());
    }

    /// A row for a wall that stands, but weaker.
    pub(super) fn degraded(&mut self, name: &str, detail: impl Into<String>) {
        self.row(name, WallStatus::Degraded, detail.into());
    }

    /// A row for a wall that does not stand.
    pub(super) fn absent(&mut self, name: &str, detail: impl Into<String>) {
        self.row(name, WallStatus::Absent, detail.into());
    }

    fn row(&mut self, name: &str, state: WallStatus, detail: String) {
        self.walls.push(WallState { name: name.into(), state, detail });
    }

    /// The rows so far.
    pub(super) fn rows(&mut self) -> Vec<WallState> {
        std::mem::take(&mut self.walls)
    }

    /// A number for another detached mount.
    pub(super) fn slot(&mut self) -> Slot {
        self.slots += 1;
        SLOT_LOWER + self.slots
    }
}

impl Spec<'_> {
    /// True when the sandbox's ids are a range, so that root inside and the user are two.
    pub(super) fn has_id_range(&self) -> bool {
        match self.ids {
            Ids::Range { .. } | Ids::Helper { .. } => true,
            Ids::Single { .. } => false,
        }
    }

    /// Owner, inside, of what init makes: root where there is one.
    pub(super) fn user(&self) -> (u32, u32) {
        (self.profile.uid, self.profile.gid)
    }

    /// The profile's way of building `/`.
    pub(super) fn root_filesystem(&self) -> RootFilesystem {
        self.profile.root_filesystem
    }

    /// The profile's network.
    pub(super) fn network(&self) -> Network {
        self.profile.network
    }
}
