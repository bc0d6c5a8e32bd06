//! The namespaces of the clone, and what is set inside them.

use crate::plan::Step;
use crate::sandbox::compile::{Draft, Kernel, Spec};
use crate::sandbox::profile::Network;

/// The name every sandbox has inside.
const HOSTNAME: &str = "codebeaker";

/// `CLONE_NEW*` of every sandbox on such a kernel: whatever else it shall be, its process begins the same way.
pub(in crate::sandbox) fn flags(kernel: &Kernel) -> u64 {
    let always = libc::CLONE_NEWUSER
        | libc::CLONE_NEWNS
        | libc::CLONE_NEWPID
        | libc::CLONE_NEWNET
        | libc::CLONE_NEWIPC
        | libc::CLONE_NEWUTS;
    let time = if kernel.time_namespace { libc::CLONE_NEWTIME } else { 0 };
    (always | time) as u64
}

pub(in crate::sandbox) fn add(draft: &mut Draft, spec: &Spec<'_>) {
    draft.namespaces = flags(&spec.kernel);
    draft.inside.push(Step::PrivateMounts);
    draft.enforced("pid", "its own pid namespace; init can't be signalled or traced from inside");
    draft.enforced("ipc", "its own System V and POSIX queues");
    if spec.kernel.time_namespace {
        draft.enforced("time", "its own monotonic and boot clocks");
    } else {
        draft.absent("time", "the kernel has no time namespaces (Linux 5.6)");
    }
}

pub(in crate::sandbox) fn hostname(draft: &mut Draft) {
    draft.inside.push(Step::Hostname(HOSTNAME.into()));
    draft.enforced("uts", "its own host name");
}

pub(in crate::sandbox) fn network(draft: &mut Draft, spec: &Spec<'_>) {
    match spec.network() {
        Network::None => draft.enforced("network", "empty, loopback down"),
        // The way out is a listener that the server asks init for; until then there is none.
        Network::Loopback | Network::Egress => {
            draft.inside.push(Step::LoopbackUp);
            draft.enforced("network", "empty but for its own loopback");
        }
    }
}
