//! Landlock: signals and abstract sockets end at the border (once, in init: a scope per program would keep a later command
//! from signalling an earlier one), and programs change files only where a session may.

use crate::plan::{ProgramStep, Step};
use crate::sandbox::compile::{Draft, Spec};
use crate::sandbox::profile::RootFilesystem;

/// Landlock version that scopes signals and abstract sockets: Linux 6.12.
const SCOPES_ABI: u32 = 6;

pub(in crate::sandbox) fn add(draft: &mut Draft, spec: &Spec<'_>) {
    if spec.kernel.landlock_abi == 0 {
        draft.absent("landlock", "the kernel has no Landlock, or it is not among the boot parameter lsm=");
        return;
    }
    // Devices and terminals live below /dev, and /proc/self has what a program may tune of itself.
    let writable: &[&str] = match spec.root_filesystem() {
        RootFilesystem::ReadOnly => &["/workspace", "/tmp", "/dev", "/proc"],
        RootFilesystem::Overlay => &["/"],
    };
    draft.inside.push(Step::LandlockRules { writable: writable.iter().map(|path| (*path).to_owned()).collect() });
    if spec.kernel.landlock_abi >= SCOPES_ABI {
        draft.inside.push(Step::LandlockScopes);
        draft.enforced("landlock", "file rules, no device nodes, signals and abstract sockets scoped");
    } else {
        draft.degraded("landlock", "file rules and no device nodes; scopes need Linux 6.12");
    }
}

/// Just before seccomp.
pub(in crate::sandbox) fn apply(draft: &mut Draft, spec: &Spec<'_>) {
    if spec.kernel.landlock_abi > 0 {
        draft.program.push(ProgramStep::Landlock);
    }
}
