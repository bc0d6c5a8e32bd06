//! What every program gives up between fork and exec: capabilities, users, privileges, system calls – in the order in which
//! the kernel allows it. Dropping the bounding set after setuid is EPERM; a change of credentials disarms the death signal.

use crate::plan::{ListenerAnswer, ProgramStep, Start, Step};
use crate::sandbox::compile::{Draft, Spec};
use crate::sandbox::profile::Notifying;
use crate::sys::start;

/// `SECBIT_*` of linux/securebits.h: noroot, no setuid fix-up, keep-caps off and no ambient raise, each locked; keep-caps itself
/// stays 0 and is locked.
const SECUREBITS_LOCKED: u32 = 0b1110_1111;

/// The same without noroot: in a profile whose user is root, exec gives root what the bounding set has left.
const SECUREBITS_ROOT: u32 = 0b1110_1100;

pub(in crate::sandbox) fn add(draft: &mut Draft, spec: &Spec<'_>) {
    let keep = capability_bits(&spec.profile.capabilities);
    draft.inside.push(Step::BoundingSet { keep });
    let securebits = if spec.profile.uid == 0 { SECUREBITS_ROOT } else { SECUREBITS_LOCKED };
    draft.program.extend([ProgramStep::Securebits(securebits), ProgramStep::BoundingSet { keep }]);
    if spec.has_id_range() {
        draft.program.push(ProgramStep::ClearGroups);
    }
    draft.program.extend([
        ProgramStep::Gid(spec.profile.gid),
        ProgramStep::Uid(spec.profile.uid),
        ProgramStep::Capabilities { keep },
        ProgramStep::AdoptOrphans,
        ProgramStep::DieWithInit,
        ProgramStep::NoNewPrivs,
    ]);
    super::landlock::apply(draft, spec);
    match spec.profile.capabilities.len() {
        0 => draft.enforced("capabilities", "none in any set, securebits locked"),
        kept => draft.enforced("capabilities", format!("{kept} kept inside its user namespace, none outside")),
    }
    draft.enforced("no_new_privs", "set");
    filters(draft, spec);
}

/// The filter with the listener comes first: handing the listener over is a call that a later filter may refuse.
fn filters(draft: &mut Draft, spec: &Spec<'_>) {
    let plain = &spec.profile.seccomp;
    let listening = spec.profile.notifying.as_ref().zip(spec.kernel.listener);
    let others = listening.map_or(plain, |(notifying, _)| &notifying.others);
    if let Some((Notifying { filter, answer, .. }, waiting)) = listening {
        draft.program.push(ProgramStep::SeccompListener { filter: filter.clone(), answer: *answer, waiting });
    }
    draft.program.extend(others.iter().cloned().map(ProgramStep::Seccomp));
    let count = others.len() + listening.iter().count();
    match (listening.map(|(notifying, _)| notifying.answer), &spec.profile.notifying) {
        (Some(ListenerAnswer::LetGo), _) => draft.degraded("seccomp", AUDIT_ONLY),
        (Some(ListenerAnswer::Refuse(_)), _) => {
            draft.enforced("seccomp", format!("{count} stacked filters; refused calls are named in `blockedSyscalls`"));
        }
        (None, Some(_)) => {
            let why = "refused calls are not named: the host offers no listener (see doctor)";
            draft.enforced("seccomp", format!("{count} stacked filters; {why}"));
        }
        (None, None) => {
            let why = "refused calls are not named: the profile refuses none with EPERM";
            draft.enforced("seccomp", format!("{count} stacked filters; {why}"));
        }
    }
}

/// An audit lets calls go on once init has heard of them, those that a program makes before it executes among them. And what could be
/// traced between its change of user and its exec must have no more than a copy.
pub(in crate::sandbox) fn start(spec: &Spec<'_>) -> Start {
    let audits = spec.kernel.listener.is_some() && spec.profile.notifying.as_ref().is_some_and(Notifying::lets_go);
    if start::POSSIBLE && spec.kernel.users_hide && !audits { Start::Shared } else { Start::Copied }
}

/// What an operator must not overlook.
const AUDIT_ONLY: &str = "AUDIT ONLY: calls against the profile are let through and named in `blockedSyscalls`; refused is only what no profile \
                          may open. This is no wall";

/// Names of capabilities(7) as bits; a name that the `caps` crate does not know was refused when the profile was read.
fn capability_bits(names: &[String]) -> u64 {
    names
        .iter()
        .filter_map(|name| name.parse::<caps::Capability>().ok())
        .fold(0, |bits, capability| bits | capability.bitmask())
}
