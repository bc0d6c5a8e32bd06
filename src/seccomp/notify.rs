//! Refusals that are told: the calls a profile answers with EPERM, answered by a listener instead, which learns their numbers. And
//! audits: everything a profile refuses runs once the listener has heard of it, but for what no profile may open.
//!
//! A program has one listener at most, so all such refusals are in one filter, and it holds no other. The kernel hands a listener
//! no errno, so there is one for all. ENOSYS stays the kernel's own answer: programs ask for calls that are not there all the
//! time (clone3 at every thread), and each would wait for the listener.
//!
//! Invariants: [`notifying`] changes who refuses, never what: a call that was refused with EPERM still is. [`auditing`] leaves what
//! `floor` keeps shut to the kernel, whatever a listener does.

use seccompiler::{BackendError, BpfProgram, SeccompAction};

use super::Action;
use super::arch::{self, Arch};
use super::compile::{backend_arch, backend_rules};
use super::dispatch::{self, Answers};
use super::floor;
use super::resolve::{Call, Resolved};

/// EPERM: what a listener must answer.
pub const ERRNO: u16 = 1;

const REFUSED: Action = Action::Errno(ERRNO);
const TOLD: Action = Action::Notify(ERRNO);

/// Calls that a program makes between installing the filter and being heard: a refusal of theirs has nobody to answer it yet.
const HAND_OVER: [&str; 1] = ["sendmsg"];

/// Calls that it makes from there until it executes, or tells why it can't: init sleeps meanwhile and answers nobody.
const UNTIL_IT_RUNS: [&str; 6] = ["close", "seccomp", "execve", "fcntl", "write", "exit_group"];

/// `SECCOMP_RET_USER_NOTIF` of linux/seccomp.h; the errno is in its data for who simulates the filter.
const NOTIFY: u32 = 0x7FC0_0000;

/// Stand for actions that seccompiler does not know; no filter of ours returns `SECCOMP_RET_TRACE`.
const MATCHED: SeccompAction = SeccompAction::Trace(1);
const NEXT: SeccompAction = SeccompAction::Trace(2);

/// The same rules with their refusals told; none when there is nothing to tell.
pub fn notifying(resolved: &Resolved) -> Option<Resolved> {
    let mut told = resolved.clone();
    let needed: Vec<u32> = HAND_OVER.iter().chain(&UNTIL_IT_RUNS).filter_map(|name| resolved.arch.number(name)).collect();
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

/// The same rules with all that they refuse audited: calls that a rule refuses and calls that no rule names. A call of `floor` keeps
/// its rules, and so does one that the architecture's table does not know.
pub fn auditing(resolved: &Resolved) -> Resolved {
    let mut audited = resolved.clone();
    let names = arch::names(resolved.arch).filter(|(_, name)| !floor::holds(name) && !HAND_OVER.contains(name));
    for (number, _) in names {
        let call = audited.calls.entry(number).or_default();
        call.fallback.get_or_insert(resolved.default);
        let actions = call.conditional.iter_mut().map(|rule| &mut rule.action).chain(&mut call.fallback);
        actions.filter(|action| !action.permits()).for_each(|action| *action = Action::Audit);
    }
    audited.order.push(Action::Audit);
    audited
}

/// Among several refusals of one call the strongest counts: a call with a second kind keeps its own.
fn can_be_told(call: &Call) -> bool {
    let mut actions = call.conditional.iter().map(|rule| rule.action).chain(call.fallback);
    actions.clone().any(|action| action == REFUSED) && actions.all(|action| action.permits() || action == REFUSED)
}

/// True for an action that only the notifying filter gives.
pub(super) fn is_told(action: Action) -> bool {
    told_value(action).is_some()
}

/// What the filter returns for such an action.
fn told_value(action: Action) -> Option<u32> {
    match action {
        Action::Notify(errno) => Some(NOTIFY | u32::from(errno)),
        Action::Audit => Some(NOTIFY),
        Action::Allow | Action::Log | Action::Errno(_) | Action::Trap | Action::KillThread | Action::KillProcess => None,
    }
}

/// The filter that tells; none when the rules tell nothing.
pub(super) fn filter(resolved: &Resolved) -> Result<Option<BpfProgram>, BackendError> {
    let mut answers = Answers::new();
    for (number, call) in &resolved.calls {
        // A call has one such action at most.
        if let Some(value) = call.conditional.iter().map(|rule| rule.action).chain(call.fallback).find_map(told_value) {
            answers.insert(*number, answer(*number, call, value, resolved.arch)?);
        }
    }
    if answers.is_empty() {
        return Ok(None);
    }
    dispatch::lay_out(&answers, u32::from(SeccompAction::Allow), backend_arch(resolved.arch)).map(Some)
}

/// What is refused for its arguments, then what is let through for them, then the rest.
fn answer(number: u32, call: &Call, told: u32, arch: Arch) -> Result<BpfProgram, BackendError> {
    let rest = match call.fallback {
        Some(fallback) if is_told(fallback) => {
            let exempted = backend_rules(call.exemptions(fallback))?;
            if exempted.is_empty() {
                dispatch::give(told)
            } else {
                let judged = dispatch::judge(number, exempted, [&SeccompAction::Allow, &NEXT], backend_arch(arch))?;
                dispatch::go_on_instead(judged, u32::from(NEXT), dispatch::give(told))
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
    Ok(dispatch::replace_return(judged, u32::from(MATCHED), told))
}
