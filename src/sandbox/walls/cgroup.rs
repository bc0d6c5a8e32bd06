//! Placement in control groups, and the namespace that hides where they are. The limits themselves are `sandbox::cgroups`.

use std::path::Path;

use crate::plan::{OutsideStep, ProgramStep, Step};
use crate::sandbox::compile::{Draft, Ids, Spec};

pub(in crate::sandbox) fn place(draft: &mut Draft, spec: &Spec<'_>) {
    for tasks in &spec.cgroup.join {
        draft.inside.push(Step::JoinCgroup { tasks: tasks.to_string_lossy().into_owned() });
    }
    // The kernel asks for write access to the target and to the common ancestor (cgroups(7), delegation containment). No program
    // of the session sees a cgroup file system, so this gives init a right and nobody else.
    if let (Some(run), Ids::Range { start, .. }) = (&spec.cgroup.programs_born_in, &spec.ids) {
        for group in [Some(run.as_path()), run.parent()].into_iter().flatten() {
            draft.outside.push(OutsideStep::OwnCgroup { procs: procs_of(group), uid: *start });
        }
    }
}

fn procs_of(group: &Path) -> String {
    group.join("cgroup.procs").to_string_lossy().into_owned()
}

/// After placement: a cgroup namespace made by the clone would be rooted at the launcher's group. Where programs have a group
/// of their own each makes its own namespace there: from inside a namespace rooted at init's, theirs could not be entered.
pub(in crate::sandbox) fn hide(draft: &mut Draft, spec: &Spec<'_>) {
    match &spec.cgroup.programs_born_in {
        Some(_) => draft.program.push(ProgramStep::CgroupNamespace),
        None => draft.inside.push(Step::CgroupNamespace),
    }
    if spec.cgroup.join.is_empty() && spec.cgroup.born_in.is_none() {
        draft.degraded("cgroup", "a namespace, but no group of its own: none is writable here");
    } else {
        draft.enforced("cgroup", "a group and a namespace of its own");
    }
}
