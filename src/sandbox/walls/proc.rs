//! `/proc` of the sandbox's own pid namespace, with what tells of the host masked and what changes the kernel read-only.
//!
//! The lists are those of the OCI runtime specification's common default (runc, containerd), with `/proc/kpage*` and
//! `/proc/pagetypeinfo` added: they show the host's memory.

use crate::plan::{Missing, Place, Step};
use crate::sandbox::compile::Draft;
use crate::sys::mount::attribute::READ_ONLY;

use super::root::{DATA_ONLY, EMPTY_DIRECTORY, host, inside};

/// Files that read as empty.
const MASKED_FILES: [&str; 13] = [
    "/proc/kcore",
    "/proc/keys",
    "/proc/key-users",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/kallsyms",
    "/proc/kpagecount",
    "/proc/kpageflags",
    "/proc/kpagecgroup",
    "/proc/pagetypeinfo",
    "/proc/interrupts",
];

/// Directories that look empty.
const MASKED_DIRECTORIES: [&str; 4] = ["/proc/acpi", "/proc/asound", "/proc/scsi", "/proc/driver"];

/// What can be read but not written.
const READ_ONLY_PATHS: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

pub(super) fn add(draft: &mut Draft) {
    let slot = draft.slot();
    draft.inside.extend([
        Step::Mount { slot, kind: "proc".into(), options: Vec::new(), attributes: DATA_ONLY },
        Step::Attach { slot, target: inside("/proc") },
    ]);
}

pub(in crate::sandbox) fn mask(draft: &mut Draft) {
    for path in READ_ONLY_PATHS {
        cover(draft, path, inside(path), DATA_ONLY | READ_ONLY);
    }
    for path in MASKED_FILES {
        cover(draft, path, inside("/dev/null"), DATA_ONLY & !crate::sys::mount::attribute::NO_DEVICES | READ_ONLY);
    }
    for path in MASKED_DIRECTORIES {
        cover(draft, path, host(EMPTY_DIRECTORY), DATA_ONLY | READ_ONLY);
    }
    draft.enforced("masked_paths", "/proc tells nothing of the host's memory and keys and changes nothing; there is no /sys");
}

/// Puts a copy of `source` over `path`, when the kernel has `path`.
fn cover(draft: &mut Draft, path: &str, source: Place, attributes: u64) {
    draft.inside.push(Step::Cover { path: inside(path), source, attributes, missing: Missing::Skips });
}
