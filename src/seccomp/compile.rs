//! Resolved rules become BPF programs, through seccompiler.
//!
//! One seccompiler filter has one action for a match and one for a mismatch, so a profile is a stack of them. The kernel runs
//! every filter, takes the strongest action, and on a tie the newest filter's. In the order of installation:
//!
//! 0. where refusals are told to a listener: `notify`'s one filter, which says all of that action;
//! 1. for each errno that answers for the arguments a call's conditional rules leave over: those conditions → allow, else that
//!    errno (for calls the profile does not know at all, the next filter is newer and has the last word);
//! 2. the allow-list: every call that is allowed for some arguments → allow, else the default (ENOSYS);
//! 3. for each refusing action: what is refused by rule → that action (EPERM), else allow.
//!
//! Invariant: the stack decides as `Resolved::verdict` for every number and argument; tests compare the two.

use std::collections::BTreeSet;

use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompRule, TargetArch,
};
use thiserror::Error;

use super::Action;
use super::arch::Arch;
use super::dispatch::{self, Rules};
use super::notify;
use super::resolve::{Call, Condition, ConditionalRule, Resolved, Test};
use super::width::Width;

/// Why seccompiler refused a filter.
#[derive(Debug, Error)]
#[error("seccomp filter {position} of the stack can't be compiled")]
pub struct CompileError {
    /// Counted from 0 in the order of installation.
    pub position: usize,
    /// seccompiler's reason: too many instructions.
    pub source: BackendError,
}

/// Compiles to the filters in the order they are installed: arrays of `struct sock_filter`, native byte order.
pub fn compile(resolved: &Resolved) -> Result<Vec<Vec<u8>>, CompileError> {
    let first = |source| CompileError { position: 0, source };
    let notifying = notify::filter(resolved).map_err(first)?;
    let mut programs: Vec<Vec<u8>> = notifying.iter().map(bytes).collect();
    for layer in stack(resolved).map_err(first)? {
        let position = programs.len();
        let program = layer.assemble(resolved.arch).map_err(|source| CompileError { position, source })?;
        programs.push(bytes(&program));
    }
    Ok(programs)
}

/// One filter before it is assembled.
struct Layer {
    rules: Rules,
    matched: Action,
    otherwise: Action,
}

impl Layer {
    fn assemble(self, arch: Arch) -> Result<BpfProgram, BackendError> {
        let (matched, otherwise) = (backend_action(self.matched), backend_action(self.otherwise));
        dispatch::assemble(&self.rules, &matched, &otherwise, backend_arch(arch))
    }
}

fn stack(resolved: &Resolved) -> Result<Vec<Layer>, BackendError> {
    let mut layers = Vec::new();
    let allow_list = allow_list(resolved)?;
    for fallback in fallbacks_with_exemptions(resolved) {
        layers.push(fallback_layer(resolved, fallback, &allow_list)?);
    }
    layers.push(Layer { rules: allow_list, matched: Action::Allow, otherwise: resolved.default });
    for action in resolved.order.iter().filter(|action| !notify::is_told(**action)) {
        let rules = refused_with(resolved, *action)?;
        if !rules.is_empty() {
            layers.push(Layer { rules, matched: *action, otherwise: Action::Allow });
        }
    }
    Ok(layers)
}

fn fallbacks_with_exemptions(resolved: &Resolved) -> Vec<Action> {
    let used: Vec<_> = resolved.calls.values().filter_map(exempted_fallback).collect();
    resolved.order.iter().copied().filter(|action| used.contains(action) && !notify::is_told(*action)).collect()
}

/// The fallback of a call that needs a filter of kind 1.
fn exempted_fallback(call: &Call) -> Option<Action> {
    call.fallback.filter(|fallback| *fallback != Action::Allow && call.has_exemption_from(*fallback))
}

/// Everything the default must not answer for: what is allowed, what a filter of kind 1 looks after, and what is refused with
/// an action too weak to win over the default.
fn allow_list(resolved: &Resolved) -> Result<Rules, BackendError> {
    let passes = |action: Action| action.rank() < resolved.default.rank();
    let mut rules = Rules::new();
    for (number, call) in &resolved.calls {
        if call.fallback.is_some_and(passes) || exempted_fallback(call).is_some() {
            rules.insert(i64::from(*number), Vec::new());
        } else if call.fallback.is_none() {
            let conditional = backend_rules(call.conditional.iter().filter(|rule| passes(rule.action)))?;
            if !conditional.is_empty() {
                rules.insert(i64::from(*number), conditional);
            }
        }
    }
    Ok(rules)
}

fn fallback_layer(resolved: &Resolved, fallback: Action, allow_list: &Rules) -> Result<Layer, BackendError> {
    let mut rules: Rules = allow_list.keys().map(|number| (*number, Vec::new())).collect();
    for (number, call) in &resolved.calls {
        if exempted_fallback(call) == Some(fallback) {
            rules.insert(i64::from(*number), backend_rules(call.exemptions(fallback))?);
        }
    }
    Ok(Layer { rules, matched: Action::Allow, otherwise: fallback })
}

fn refused_with(resolved: &Resolved, action: Action) -> Result<Rules, BackendError> {
    let mut rules = Rules::new();
    let mut always = BTreeSet::new();
    for (number, call) in &resolved.calls {
        let number = i64::from(*number);
        if call.fallback == Some(action) && exempted_fallback(call).is_none() {
            always.insert(number);
        } else {
            let conditional = backend_rules(call.conditional.iter().filter(|rule| rule.action == action))?;
            if !conditional.is_empty() {
                rules.insert(number, conditional);
            }
        }
    }
    rules.extend(always.into_iter().map(|number| (number, Vec::new())));
    Ok(rules)
}

pub(super) fn backend_rules<'a>(rules: impl Iterator<Item = &'a ConditionalRule>) -> Result<Vec<SeccompRule>, BackendError> {
    rules.map(|rule| SeccompRule::new(rule.conditions.iter().map(backend_condition).collect::<Result<_, _>>()?)).collect()
}

fn backend_condition(condition: &Condition) -> Result<SeccompCondition, BackendError> {
    let length = match condition.width {
        Width::Bits32 => SeccompCmpArgLen::Dword,
        Width::Bits64 => SeccompCmpArgLen::Qword,
    };
    let (operator, value) = match condition.test {
        Test::Eq(value) => (SeccompCmpOp::Eq, value),
        Test::Ne(value) => (SeccompCmpOp::Ne, value),
        Test::Lt(value) => (SeccompCmpOp::Lt, value),
        Test::Le(value) => (SeccompCmpOp::Le, value),
        Test::Gt(value) => (SeccompCmpOp::Gt, value),
        Test::Ge(value) => (SeccompCmpOp::Ge, value),
        Test::Masked { mask, value } => (SeccompCmpOp::MaskedEq(mask), value),
    };
    SeccompCondition::new(condition.index, length, operator, value)
}

fn backend_action(action: Action) -> SeccompAction {
    match action {
        Action::Allow => SeccompAction::Allow,
        Action::Log => SeccompAction::Log,
        // seccompiler has no such actions; `notify` writes their filter, and in any other the call would be refused.
        Action::Audit => SeccompAction::Errno(u32::from(notify::ERRNO)),
        Action::Notify(number) | Action::Errno(number) => SeccompAction::Errno(u32::from(number)),
        Action::Trap => SeccompAction::Trap,
        Action::KillThread => SeccompAction::KillThread,
        Action::KillProcess => SeccompAction::KillProcess,
    }
}

pub(super) fn backend_arch(arch: Arch) -> TargetArch {
    match arch {
        Arch::X86_64 => TargetArch::x86_64,
        Arch::Aarch64 => TargetArch::aarch64,
    }
}

/// The layout of `struct sock_filter`: u16 code, u8 jt, u8 jf, u32 k.
fn bytes(program: &BpfProgram) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(program.len() * 8);
    for instruction in program {
        bytes.extend(instruction.code.to_ne_bytes());
        bytes.extend([instruction.jt, instruction.jf]);
        bytes.extend(instruction.k.to_ne_bytes());
    }
    bytes
}
