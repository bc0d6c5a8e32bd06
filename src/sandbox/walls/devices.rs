//! A minimal `/dev`: six devices, its own pseudo-terminals, shared memory inside the quota.

use crate::plan::{Place, Step};
use crate::sandbox::compile::{Draft, Spec};
use crate::sys::mount::attribute::{NO_EXEC, NO_SETUID, READ_ONLY};

use super::root::{DATA_ONLY, inside, of_the_tmpfs};

/// The devices of the OCI runtime specification's default list.
const DEVICES: [&str; 6] = ["null", "zero", "full", "random", "urandom", "tty"];

/// The links of the same list.
const LINKS: [(&str, &str); 5] = [
    ("/proc/self/fd", "/dev/fd"),
    ("/proc/self/fd/0", "/dev/stdin"),
    ("/proc/self/fd/1", "/dev/stdout"),
    ("/proc/self/fd/2", "/dev/stderr"),
    ("pts/ptmx", "/dev/ptmx"),
];

/// Group `tty` of Debian and most others, when groups are mapped.
const TTY_GROUP: &str = "5";

pub(in crate::sandbox) fn add(draft: &mut Draft, spec: &Spec<'_>) {
    of_the_tmpfs(draft, "/dev", (0o755, (0, 0)), DATA_ONLY);
    // What is made in one directory is made without anything mounted in between, so that init opens that once.
    for name in DEVICES {
        draft.inside.push(Step::File { path: inside(&format!("/dev/{name}")) });
    }
    for (target, path) in LINKS {
        draft.inside.push(Step::Symlink { target: target.into(), path: inside(path) });
    }
    for (path, mode) in [("/dev/pts", 0o755), ("/dev/shm", 0o1777)] {
        draft.inside.push(Step::Directory { path: inside(path), mode, owner: (0, 0) });
    }
    // Read-only: the device can be written to all the same, its node, which is the host's, can't be changed.
    for name in DEVICES {
        let (slot, path) = (draft.slot(), format!("/dev/{name}"));
        draft.inside.extend([
            Step::CloneTree { slot, source: Place::Host(path.clone()), attributes: READ_ONLY | NO_SETUID | NO_EXEC },
            Step::Attach { slot, target: inside(&path) },
        ]);
    }
    terminals(draft, spec);
    of_the_tmpfs(draft, "/dev/shm", (0o1777, (0, 0)), DATA_ONLY);
    draft.inside.push(Step::Restrict { path: inside("/dev"), attributes: READ_ONLY });
    draft.enforced("devices", "null, zero, full, random, urandom, tty and its own terminals");
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
