//! Refusals that are told: the calls a profile answers with EPERM, answered by a listener instead, which learns their numbers.
//!
//! A program has one listener at most, so all such refusals are in one filter, and it holds no other. The kernel hands a listener
//! no errno, so there is one for all. ENOSYS stays the kernel's own answer: programs ask for calls that are not there all the
//! time (clone3 at every thread), and each would wait for the listener.
//!
//! Invariant: [`notifying`] changes who refuses, never what: a call that was refused with EPERM still is.

use seccompiler::{BackendError, BpfProgram, SeccompAction};

use super::Action;
use super::arch::Arch;
use super::compile::{backend_arch, backend_rules};
use super::dispatch::{self, Answers};
use super::resolve::{Call, Resolved};

/// EPERM: what a listener must answer.
pub const ERRNO: u16 = 1;

const REFUSED: Action = Action::Errno(ERRNO);
const TOLD: Action = Action::Notify(ERRNO);

/// Calls that a program makes between installing the filter and being heard: a refusal of theirs has nobody to answer it yet.
const HAND_OVER: [&str; 1] = ["sendmsg"];

/// `SECCOMP_RET_USER_NOTIF` of linux/seccomp.h, with the errno in its data for who simulates the filter.
const NOTIFY: u32 = 0x7FC0_0000 | ERRNO as u32;

/// Stand for actions that seccompiler does not know; no filter of ours returns `SECCOMP_RET_TRACE`.
const MATCHED: SeccompAction = SeccompAction::Trace(1);
const NEXT: SeccompAction = SeccompAction::Trace(2);

/// The same rules with their refusals told; none when there is nothing to tell.
pub fn notifying(resolved: &Resolved) -> Option<Resolved> {
    let mut told = resolved.clone();
    let needed: Vec<u32> = HAND_OVER.iter().filter_map(|name| resolved.arch.number(name)).collect();
    let calls = told.calls.iter_mut().filter(|(number, call)| !needed.contains(number) && can_be_told(call));
    let mut any = false;
    for (_, call) in calls {
        any = true;
        let actions = call.conditional.iter_mut().map(|rule| &mut rule.action).chain(&mut call.fallback);
        actions.filter(|action| **action == REFUSED).for_each(|action| *action = TOLD);
    }
    let place = told.order.iter().position(|action| *action == REFUSED)?;
    told.order.insert(place, TOLD);
    any.then_some(told)
}

/// Among several refusals of one call the strongest counts: a call with a second kind keeps its own.
fn can_be_told(call: &Call) -> bool {
    let mut actions = call.conditional.iter().map(|rule| rule.action).chain(call.fallback);
    actions.clone().any(|action| action == REFUSED) && actions.all(|action| action.permits() || action == REFUSED)
}

/// True for the action that only the notifying filter gives.
pub(super) fn is_told(action: Action) -> bool {
    matches!(action, Action::Notify(_))
}

/// The filter that tells; none when the rules tell nothing.
pub(super) fn filter(resolved: &Resolved) -> Result<Option<BpfProgram>, BackendError> {
    let mut answers = Answers::new();
    for (number, call) in &resolved.calls {
        if call.conditional.iter().map(|rule| rule.action).chain(call.fallback).any(is_told) {
            answers.insert(*number, answer(*number, call, resolved.arch)?);
        }
    }
    if answers.is_empty() {
        return Ok(None);
    }
    dispatch::lay_out(&answers, u32::from(SeccompAction::Allow), backend_arch(resolved.arch)).map(Some)
}

/// What is refused for its arguments, then what is let through for them, then the rest.
fn answer(number: u32, call: &Call, arch: Arch) -> Result<BpfProgram, BackendError> {
    let rest = match call.fallback {
        Some(fallback) if is_told(fallback) => {
            let exempted = backend_rules(call.exemptions(fallback))?;
            if exempted.is_empty() {
                dispatch::give(NOTIFY)
            } else {
                let judged = dispatch::judge(number, exempted, [&SeccompAction::Allow, &NEXT], backend_arch(arch))?;
                dispatch::go_on_instead(judged, u32::from(NEXT), dispatch::give(NOTIFY))
            }
        }
        Some(_) | None => dispatch::give(u32::from(SeccompAction::Allow)),
    };
    let refused = backend_rules(call.conditional.iter().filter(|rule| is_told(rule.action)))?;
    if refused.is_empty() {
        return Ok(rest);
    }
    let judged = dispatch::judge(number, refused, [&MATCHED, &NEXT], backend_arch(arch))?;
    let judged = dispatch::go_on_instead(judged, u32::from(NEXT), rest);
    Ok(dispatch::replace_return(judged, u32::from(MATCHED), NOTIFY))
}
