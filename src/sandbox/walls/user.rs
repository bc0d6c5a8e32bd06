//! The user namespace: which ids inside are which outside.

use crate::plan::{OutsideStep, Step};
use crate::sandbox::compile::{Draft, Ids, Spec};

pub(in crate::sandbox) fn add(draft: &mut Draft, spec: &Spec<'_>) {
    match &spec.ids {
        Ids::Range { start, count } => {
            draft.outside.push(OutsideStep::UidMap(format!("0 {start} {count}")));
            draft.outside.push(OutsideStep::GidMap(format!("0 {start} {count}")));
            draft.enforced("user", format!("{count} host ids of its own"));
        }
        Ids::Helper { newuidmap, newgidmap, uids, gids } => {
            for (program, (start, count)) in [(newuidmap, uids), (newgidmap, gids)] {
                draft.outside.push(OutsideStep::MapByHelper {
                    program: program.clone(),
                    arguments: vec!["0".into(), start.to_string(), count.to_string()],
                });
            }
            draft.degraded("user", "subordinate ids of the server's user, shared by its sessions");
        }
        Ids::Single { uid, gid } => {
            let (user, group) = spec.user();
            draft.outside.push(OutsideStep::DenySetgroups);
            draft.outside.push(OutsideStep::UidMap(format!("{user} {uid} 1")));
            draft.outside.push(OutsideStep::GidMap(format!("{group} {gid} 1")));
            draft.degraded("user", "one id, the server's own; init and programs share it");
        }
    }
}

/// After the image's trees have been cloned with the server's own rights.
pub(in crate::sandbox) fn become_root(draft: &mut Draft, spec: &Spec<'_>) {
    if spec.has_id_range() {
        draft.inside.push(Step::BecomeRoot);
    }
}
