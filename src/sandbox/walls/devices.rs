//! A minimal `/dev`: six devices, its own pseudo-terminals, shared memory inside the quota.

use crate::plan::devices::{LINKS, MOUNT_POINTS, NODES};
use crate::plan::{OutsideStep, Place, Step};
use crate::sandbox::compile::{Draft, Ids, Spec};
use crate::sys::mount::attribute::{NO_EXEC, NO_SETUID, READ_ONLY};

use super::root::{DATA_ONLY, inside, of_the_tmpfs};

/// Group `tty` of Debian and most others, when groups are mapped.
const TTY_GROUP: &str = "5";

pub(in crate::sandbox) fn add(draft: &mut Draft, spec: &Spec<'_>) {
    let shared = spec.kernel.device_directory && matches!(spec.ids, Ids::Range { .. });
    if shared {
        let slot = draft.slot();
        draft.outside.push(OutsideStep::CloneDevices { slot });
        draft.inside.push(Step::Attach { slot, target: inside("/dev") });
    } else {
        of_the_host(draft);
    }
    terminals(draft, spec);
    of_the_tmpfs(draft, "/dev/shm", (0o1777, (0, 0)), DATA_ONLY);
    if !shared {
        draft.inside.push(Step::Restrict { path: inside("/dev"), attributes: READ_ONLY });
    }
    draft.enforced("devices", "null, zero, full, random, urandom, tty and its own terminals");
}

/// A directory of the session's tmpfs with the host's own nodes mounted in it, where there can be no clone of what the launcher makes.
fn of_the_host(draft: &mut Draft) {
    of_the_tmpfs(draft, "/dev", (0o755, (0, 0)), DATA_ONLY);
    let named = |name: &str| format!("/dev/{name}");
    // What is made in one directory is made without anything mounted in between, so that init opens that once.
    for (name, ..) in NODES {
        draft.inside.push(Step::File { path: inside(&named(name)) });
    }
    for (name, target) in LINKS {
        draft.inside.push(Step::Symlink { target: target.into(), path: inside(&named(name)) });
    }
    for (name, mode) in MOUNT_POINTS {
        draft.inside.push(Step::Directory { path: inside(&named(name)), mode, owner: (0, 0) });
    }
    // Read-only: the device can be written to all the same, its node, which is the host's, can't be changed.
    for (name, ..) in NODES {
        let (slot, path) = (draft.slot(), named(name));
        draft.inside.extend([
            Step::CloneTree { slot, source: Place::Host(path.clone()), attributes: READ_ONLY | NO_SETUID | NO_EXEC },
            Step::Attach { slot, target: inside(&path) },
        ]);
    }
}

fn terminals(draft: &mut Draft, spec: &Spec<'_>) {
    let slot = draft.slot();
    let mut options: Vec<(String, String)> =
        vec![("newinstance".into(), String::new()), ("ptmxmode".into(), "0666".into()), ("mode".into(), "0620".into())];
    if spec.has_id_range() {
        options.push(("gid".into(), TTY_GROUP.into()));
    }
    draft.inside.extend([
        Step::Mount { slot, kind: "devpts".into(), options, attributes: NO_SETUID | NO_EXEC },
        Step::Attach { slot, target: inside("/dev/pts") },
    ]);
}
