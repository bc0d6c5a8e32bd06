//! The root file system: a read-only image below, a tmpfs with the session's quota above, nothing of the host beside.
//!
//! The tmpfs is mounted over the host's `/tmp` in the new mount namespace, where nobody else sees it, and everything is put
//! together below it; the pivot then leaves the host behind. `/workspace`, `/tmp`, `/dev/shm` and, where the launcher clones none, `/dev` are on that one tmpfs: one
//! quota holds for all that can be written to, and the kernel keeps a table with every control group for each file system.

use crate::plan::{OutsideStep, Place, Slot, Step};
use crate::sandbox::compile::{Draft, Ids, PACKAGES, SLOT_LOWER, Spec, Workspace};
use crate::sandbox::profile::RootFilesystem;
use crate::sys::mount::attribute::{NO_DEVICES, NO_EXEC, NO_SETUID, READ_ONLY};

/// Where the sandbox is put together, on the host's view of the new mount namespace.
pub(super) const STAGING: &str = "/tmp";

/// Something to cover directories with.
pub(super) const EMPTY_DIRECTORY: &str = "/empty";

pub(super) fn host(path: &str) -> Place {
    Place::Host(format!("{STAGING}{path}"))
}

pub(super) fn inside(path: &str) -> Place {
    Place::Root(path.into())
}

/// `trees` are those that [`trees`] gave.
pub(in crate::sandbox) fn add(draft: &mut Draft, spec: &Spec<'_>, trees: &Trees) {
    let staging = draft.slot();
    let options = vec![
        ("size".into(), spec.limits.disk_bytes.to_string()),
        ("nr_inodes".into(), spec.limits.inodes.to_string()),
        ("mode".into(), "755".into()),
    ];
    draft.inside.extend([
        Step::Mount { slot: staging, kind: "tmpfs".into(), options, attributes: NO_SETUID | NO_DEVICES },
        Step::Attach { slot: staging, target: Place::Host(STAGING.into()) },
        Step::WatchQuota { path: Place::Host(STAGING.into()) },
    ]);
    for name in ["/lower", "/upper", "/work", "/root", EMPTY_DIRECTORY] {
        draft.inside.push(Step::Directory { path: host(name), mode: 0o755, owner: (0, 0) });
    }
    draft.inside.push(Step::Attach { slot: SLOT_LOWER, target: host("/lower") });
    overlay(draft);
    mount_points(draft, spec);
    for (slot, target) in &trees.over {
        draft.inside.push(Step::Attach { slot: *slot, target: inside(target) });
    }
    if trees.packages.is_some() {
        draft.inside.push(Step::Directory { path: inside(PACKAGES), mode: 0o755, owner: (0, 0) });
    }
    super::proc::add(draft);
    draft.enforced("mount", "its own root; nothing of the host but the image, read-only");
    match spec.root_filesystem() {
        RootFilesystem::ReadOnly => draft.enforced("root", "read-only; /workspace, /tmp and /dev/shm share one quota"),
        RootFilesystem::Overlay => draft.enforced("root", "an overlay; its changes and /workspace share one quota"),
    }
}

/// Trees of the host that wait to be attached.
pub(in crate::sandbox) struct Trees {
    over: Vec<(Slot, String)>,
    packages: Option<Slot>,
}

/// The image's trees and the operator's packages, cloned while the host is in view: by the launcher where it has the privilege to map their owners, else by
/// init, to whom the image's owners are nobody.
pub(in crate::sandbox) fn trees(draft: &mut Draft, spec: &Spec<'_>) -> Trees {
    let over: Vec<(Slot, String, String)> = spec
        .root
        .binds
        .iter()
        .map(|(source, target)| (draft.slot(), source.to_string_lossy().into_owned(), target.clone()))
        .collect();
    let packages = spec.root.packages.as_ref().map(|path| (draft.slot(), path.to_string_lossy().into_owned()));
    let lower = (SLOT_LOWER, spec.root.lower.to_string_lossy().into_owned());
    let sources =
        std::iter::once(lower).chain(over.iter().map(|(slot, source, _)| (*slot, source.clone()))).chain(packages.clone());
    for (slot, source) in sources {
        match spec.ids {
            Ids::Range { .. } => {
                draft.outside.push(OutsideStep::CloneTree { slot, source });
            }
            Ids::Helper { .. } | Ids::Single { .. } => {
                let attributes = READ_ONLY | NO_SETUID | NO_DEVICES;
                draft.inside.push(Step::CloneHostTree { slot, source, attributes });
            }
        }
    }
    let over = over.into_iter().map(|(slot, _, target)| (slot, target)).collect();
    Trees { over, packages: packages.map(|(slot, _)| slot) }
}

fn overlay(draft: &mut Draft) {
    let root = draft.slot();
    let layer = |name: &str| format!("{STAGING}/{name}");
    let options = vec![
        ("lowerdir".into(), layer("lower")),
        ("upperdir".into(), layer("upper")),
        ("workdir".into(), layer("work")),
        ("volatile".into(), String::new()),
        ("userxattr".into(), String::new()),
    ];
    draft.inside.extend([
        Step::Mount { slot: root, kind: "overlay".into(), options, attributes: NO_SETUID | NO_DEVICES },
        Step::Attach { slot: root, target: host("/root") },
        Step::TakeRoot { slot: root },
    ]);
}

fn mount_points(draft: &mut Draft, spec: &Spec<'_>) {
    for path in ["/proc", "/dev"] {
        draft.inside.push(Step::Directory { path: inside(path), mode: 0o755, owner: (0, 0) });
    }
    let user = if spec.has_id_range() { spec.user() } else { (0, 0) };
    draft.inside.push(Step::Directory { path: inside("/workspace"), mode: 0o755, owner: user });
    draft.inside.push(Step::Directory { path: inside("/tmp"), mode: 0o1777, owner: (0, 0) });
    let (workspace, tmp) = (("/workspace", 0o755, user), ("/tmp", 0o1777, (0, 0)));
    let places = if spec.root_filesystem() == RootFilesystem::ReadOnly || !matches!(spec.ids, Ids::Range { .. }) {
        // A read-only root can't be written to; and without mapped owners the image's directories are nobody's, to be given to nobody.
        vec![workspace, tmp]
    } else if spec.root.workspace == Workspace::OfImage {
        // It belongs to somebody of the image; the session's user must be able to work in it.
        draft.inside.push(Step::Own { path: inside("/workspace"), owner: user });
        Vec::new()
    } else {
        // The overlay opens, makes and renames each file twice.
        vec![workspace]
    };
    for (name, mode, owner) in places {
        of_the_tmpfs(draft, name, (mode, owner), NO_SETUID | NO_DEVICES);
    }
}

/// Mounts a directory of the one tmpfs at `target`.
pub(super) fn of_the_tmpfs(draft: &mut Draft, target: &str, (mode, owner): (u32, (u32, u32)), attributes: u64) {
    let directory = host(&format!("/at{}", target.replace('/', "-")));
    let slot = draft.slot();
    draft.inside.extend([
        Step::Directory { path: directory.clone(), mode, owner },
        Step::CloneTree { slot, source: directory, attributes },
        Step::Attach { slot, target: inside(target) },
    ]);
}

pub(in crate::sandbox) fn pivot(draft: &mut Draft, spec: &Spec<'_>) {
    draft.inside.push(Step::PivotRoot);
    if spec.root_filesystem() == RootFilesystem::ReadOnly {
        draft.inside.push(Step::Restrict { path: inside("/"), attributes: READ_ONLY });
    }
}

/// After the pivot, when nothing more is mounted for programs: installers see the operator's packages, nobody else does.
pub(in crate::sandbox) fn installers_view(draft: &mut Draft, trees: &Trees) {
    if let Some(slot) = trees.packages {
        draft.inside.push(Step::InstallersView { slot, target: inside(PACKAGES) });
    }
}

/// Attributes of what holds neither programs nor devices.
pub(super) const DATA_ONLY: u64 = NO_SETUID | NO_DEVICES | NO_EXEC;
