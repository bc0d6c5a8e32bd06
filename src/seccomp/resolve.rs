//! A profile becomes flat rules by number, for one architecture, kernel and set of capabilities.
//!
//! What a profile means: a rule with arguments beats a rule without; among several matching rules with arguments the strongest
//! action wins, and of two errnos the one whose action the file names later; a call that nothing matches gets the default.
//! So `socket`: allow (AF_UNIX …), and `socket`: EPERM without arguments, reads "these sockets, EPERM for the others".
//! libseccomp instead lets the rule without arguments win, which fails closed.
//!
//! Invariant: pure. Read `compile` next, which says the same in BPF.

use std::collections::BTreeMap;

use thiserror::Error;

use super::Action;
use super::arch::{self, Arch, KernelVersion};
use super::model::{ActionWord, Arg, Gate, Operator, Rule, SeccompProfile};
use super::width::{self, Width};

const EPERM: u16 = 1;
/// MAX_ERRNO of the kernel.
const ERRNO_MAX: u32 = 4095;
const ARGUMENT_INDEX_MAX: u32 = 5;

/// What a profile's `includes` and `excludes` are compared with.
#[derive(Debug, Clone, Copy)]
pub struct Target<'a> {
    /// The architecture programs run on.
    pub arch: Arch,
    /// The running kernel.
    pub kernel: KernelVersion,
    /// Names of the capabilities that programs hold.
    pub capabilities: &'a [String],
}

/// A profile for one target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resolved {
    /// Calls of other architectures kill the process.
    pub arch: Arch,
    /// For every number that `calls` lacks or does not match.
    pub default: Action,
    /// By number.
    pub calls: BTreeMap<u32, Call>,
    /// The actions that are not Allow, by their first appearance among the rules.
    pub order: Vec<Action>,
}

/// The rules of one system call.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Call {
    /// When no conditional rule matches; absent: the default.
    pub fallback: Option<Action>,
    /// Rules with arguments.
    pub conditional: Vec<ConditionalRule>,
}

/// A rule with arguments.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConditionalRule {
    /// All must hold; never empty.
    pub conditions: Vec<Condition>,
    /// What happens then.
    pub action: Action,
}

/// One comparison of one argument.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Condition {
    /// 0 to 5.
    pub index: u8,
    /// The bits that count.
    pub width: Width,
    /// How they are compared.
    pub test: Test,
}

/// A comparison of unsigned numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the operators of the OCI runtime specification")]
pub enum Test {
    Eq(u64),
    Ne(u64),
    Lt(u64),
    Le(u64),
    Gt(u64),
    Ge(u64),
    Masked { mask: u64, value: u64 },
}

impl Condition {
    /// Whether it holds for these arguments.
    pub fn holds(&self, args: [u64; 6]) -> bool {
        let whole = args[usize::from(self.index)];
        let argument = match self.width {
            Width::Bits32 => whole & u64::from(u32::MAX),
            Width::Bits64 => whole,
        };
        match self.test {
            Test::Eq(value) => argument == value,
            Test::Ne(value) => argument != value,
            Test::Lt(value) => argument < value,
            Test::Le(value) => argument <= value,
            Test::Gt(value) => argument > value,
            Test::Ge(value) => argument >= value,
            Test::Masked { mask, value } => argument & mask == value,
        }
    }
}

impl Resolved {
    /// The verdict for a native call; the specification that the compiled filters are tested against.
    pub fn verdict(&self, number: u32, args: [u64; 6]) -> Action {
        let Some(call) = self.calls.get(&number) else { return self.default };
        let matching = call.conditional.iter().filter(|rule| rule.conditions.iter().all(|condition| condition.holds(args)));
        let strongest = matching.map(|rule| rule.action).max_by_key(|action| (action.rank(), self.place(*action)));
        strongest.or(call.fallback).unwrap_or(self.default)
    }

    fn place(&self, action: Action) -> usize {
        self.order.iter().position(|known| *known == action).map_or(0, |at| at + 1)
    }
}

/// Why a profile can't be used, with the field to mend.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{field}: {problem}")]
pub struct ResolveError {
    /// As in `syscalls[3].args[0].index`.
    pub field: String,
    /// What is wrong with it.
    pub problem: Problem,
}

/// What is wrong with a field.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum Problem {
    #[error("the default must refuse: an allowing default lets x32 numbers and tomorrow's system calls through")]
    AllowingDefault,
    #[error("an action that hands the call to another process is not supported")]
    UnsupportedAction,
    #[error("an errno stands only beside SCMP_ACT_ERRNO")]
    StrayErrno,
    #[error("an errno is from 1 to {ERRNO_MAX}")]
    ErrnoRange,
    #[error("the list is empty")]
    Empty,
    #[error("there is no system call `{0}` on any architecture")]
    UnknownSyscall(String),
    #[error("an argument index is from 0 to {ARGUMENT_INDEX_MAX}")]
    ArgumentIndex,
    #[error("an argument is compared twice in one rule, which engines read differently")]
    RepeatedIndex,
    #[error("valueTwo has a meaning only for SCMP_CMP_MASKED_EQ, where its bits lie within value")]
    StraySecondValue,
    #[error("the kernel takes 32 bits of this argument; the value has more")]
    ValueTooWide,
    #[error("the profile is not for this architecture ({0})")]
    ArchitectureMissing(&'static str),
    #[error("architectures and archMap exclude each other")]
    TwoArchitectureLists,
    #[error("a capability is written as CAP_CHOWN")]
    CapabilityName,
    #[error("a kernel version is written as MAJOR.MINOR")]
    KernelVersion,
    #[error("`{0}` has two rules without arguments that contradict each other")]
    Contradiction(&'static str),
    #[error("`{0}` is allowed for some arguments, so its action for the others can't be stronger than the default action")]
    FallbackTooStrong(&'static str),
}

/// Flattens a profile for one target.
pub fn resolve(profile: &SeccompProfile, target: Target<'_>) -> Result<Resolved, ResolveError> {
    check_architectures(profile, target.arch)?;
    let default = action(profile.default_action, profile.default_errno_ret).map_err(|problem| at("defaultAction", problem))?;
    if default.permits() {
        return Err(at("defaultAction", Problem::AllowingDefault));
    }
    let mut resolved = Resolved { arch: target.arch, default, calls: BTreeMap::new(), order: Vec::new() };
    for (position, rule) in profile.syscalls.iter().enumerate() {
        add_rule(&mut resolved, rule, target, &format!("syscalls[{position}]"))?;
    }
    check_fallbacks(&resolved)?;
    Ok(resolved)
}

fn at(field: &str, problem: Problem) -> ResolveError {
    ResolveError { field: field.to_owned(), problem }
}

fn check_architectures(profile: &SeccompProfile, arch: Arch) -> Result<(), ResolveError> {
    let (field, listed) = match (profile.architectures.is_empty(), profile.arch_map.is_empty()) {
        (true, true) => return Ok(()),
        (false, false) => return Err(at("archMap", Problem::TwoArchitectureLists)),
        (false, true) => ("architectures", profile.architectures.iter().any(|name| name == arch.oci_name())),
        (true, false) => ("archMap", profile.arch_map.iter().any(|entry| entry.architecture == arch.oci_name())),
    };
    if listed { Ok(()) } else { Err(at(field, Problem::ArchitectureMissing(arch.oci_name()))) }
}

fn action(word: ActionWord, errno: Option<u32>) -> Result<Action, Problem> {
    let plain = match word {
        ActionWord::Errno => return errno.map_or(Ok(EPERM), checked_errno).map(Action::Errno),
        ActionWord::Trace | ActionWord::Notify => return Err(Problem::UnsupportedAction),
        ActionWord::Allow => Action::Allow,
        ActionWord::Log => Action::Log,
        ActionWord::Trap => Action::Trap,
        ActionWord::KillThread => Action::KillThread,
        ActionWord::KillProcess => Action::KillProcess,
    };
    if errno.is_some() { Err(Problem::StrayErrno) } else { Ok(plain) }
}

fn checked_errno(errno: u32) -> Result<u16, Problem> {
    match u16::try_from(errno) {
        Ok(number) if (1..=ERRNO_MAX).contains(&errno) => Ok(number),
        Ok(_) | Err(_) => Err(Problem::ErrnoRange),
    }
}

/// Adds one rule; everything in it is checked even when the target leaves the rule out.
fn add_rule(resolved: &mut Resolved, rule: &Rule, target: Target<'_>, field: &str) -> Result<(), ResolveError> {
    let action = action(rule.action, rule.errno_ret).map_err(|problem| at(&format!("{field}.action"), problem))?;
    if rule.names.is_empty() {
        return Err(at(&format!("{field}.names"), Problem::Empty));
    }
    let included = gate_states(rule.includes.as_ref(), target, &format!("{field}.includes"))?.iter().all(|holds| *holds);
    let excluded = gate_states(rule.excludes.as_ref(), target, &format!("{field}.excludes"))?.iter().any(|holds| *holds);
    let stands = included && !excluded;
    if stands && action != Action::Allow && !resolved.order.contains(&action) {
        resolved.order.push(action);
    }
    for (position, name) in rule.names.iter().enumerate() {
        if !arch::is_known(name) {
            return Err(at(&format!("{field}.names[{position}]"), Problem::UnknownSyscall(name.clone())));
        }
        let conditions = conditions(name, rule.args.as_deref().unwrap_or_default(), field)?;
        if let (true, Some(number)) = (stands, target.arch.number(name)) {
            insert(resolved, number, ConditionalRule { conditions, action }, field)?;
        }
    }
    Ok(())
}

fn insert(resolved: &mut Resolved, number: u32, rule: ConditionalRule, field: &str) -> Result<(), ResolveError> {
    let call = resolved.calls.entry(number).or_default();
    if !rule.conditions.is_empty() {
        call.conditional.push(rule);
        return Ok(());
    }
    match call.fallback {
        Some(known) if known != rule.action => {
            let name = resolved.arch.name(number).unwrap_or_default();
            Err(at(&format!("{field}.action"), Problem::Contradiction(name)))
        }
        Some(_) | None => {
            call.fallback = Some(rule.action);
            Ok(())
        }
    }
}

/// Whether each condition of a gate holds; an absent gate has none.
fn gate_states(gate: Option<&Gate>, target: Target<'_>, field: &str) -> Result<Vec<bool>, ResolveError> {
    let Some(gate) = gate else { return Ok(Vec::new()) };
    let mut states = Vec::new();
    for (position, name) in gate.caps.iter().enumerate() {
        if !name.starts_with("CAP_") || name.chars().any(|c| !(c.is_ascii_uppercase() || c == '_' || c.is_ascii_digit())) {
            return Err(at(&format!("{field}.caps[{position}]"), Problem::CapabilityName));
        }
        states.push(target.capabilities.contains(name));
    }
    if !gate.arches.is_empty() {
        states.push(gate.arches.iter().any(|name| name == target.arch.go_name()));
    }
    if let Some(text) = &gate.min_kernel {
        let oldest: KernelVersion = text.parse().map_err(|_| at(&format!("{field}.minKernel"), Problem::KernelVersion))?;
        states.push(target.kernel >= oldest);
    }
    Ok(states)
}

fn conditions(name: &str, args: &[Arg], field: &str) -> Result<Vec<Condition>, ResolveError> {
    let mut conditions: Vec<Condition> = Vec::with_capacity(args.len());
    for (position, arg) in args.iter().enumerate() {
        let place = |part: &str, problem| at(&format!("{field}.args[{position}].{part}"), problem);
        if arg.index > ARGUMENT_INDEX_MAX {
            return Err(place("index", Problem::ArgumentIndex));
        }
        let index = arg.index as u8;
        if conditions.iter().any(|known| known.index == index) {
            return Err(place("index", Problem::RepeatedIndex));
        }
        let width = width::of(name, index);
        if width == Width::Bits32 && arg.value > u64::from(u32::MAX) {
            return Err(place("value", Problem::ValueTooWide));
        }
        let test = test(*arg).map_err(|problem| place("valueTwo", problem))?;
        conditions.push(Condition { index, width, test });
    }
    Ok(conditions)
}

fn test(arg: Arg) -> Result<Test, Problem> {
    let plain = match arg.op {
        Operator::MaskedEq if arg.value_two & !arg.value != 0 => return Err(Problem::StraySecondValue),
        Operator::MaskedEq => return Ok(Test::Masked { mask: arg.value, value: arg.value_two }),
        Operator::Eq => Test::Eq(arg.value),
        Operator::Ne => Test::Ne(arg.value),
        Operator::Lt => Test::Lt(arg.value),
        Operator::Le => Test::Le(arg.value),
        Operator::Gt => Test::Gt(arg.value),
        Operator::Ge => Test::Ge(arg.value),
    };
    if arg.value_two == 0 { Ok(plain) } else { Err(Problem::StraySecondValue) }
}

/// A stacked filter whose mismatch is the fallback also answers for unknown numbers, so it must not outrank the default.
fn check_fallbacks(resolved: &Resolved) -> Result<(), ResolveError> {
    for (number, call) in &resolved.calls {
        let Some(fallback) = call.fallback else { continue };
        if call.has_exemption_from(fallback) && fallback.rank() > resolved.default.rank() {
            let name = resolved.arch.name(*number).unwrap_or_default();
            return Err(at("syscalls", Problem::FallbackTooStrong(name)));
        }
    }
    Ok(())
}

impl Call {
    /// True when some conditional rule must keep the fallback from answering: it is weaker, or another action of equal rank.
    pub(super) fn has_exemption_from(&self, fallback: Action) -> bool {
        self.exemptions(fallback).next().is_some()
    }

    /// The rules meant by `has_exemption_from`.
    pub(super) fn exemptions(&self, fallback: Action) -> impl Iterator<Item = &ConditionalRule> {
        self.conditional.iter().filter(move |rule| rule.action != fallback && rule.action.rank() <= fallback.rank())
    }
}
