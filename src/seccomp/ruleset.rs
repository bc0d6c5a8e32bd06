//! What a document means for one target, as the engine that will read it understands it: nothing is refused here, so that what is
//! wrong with somebody's profile can be shown rather than stumbled over.
//!
//! The engines differ. CodeBeaker: a rule with arguments beats one without, arguments are as wide as the kernel takes them.
//! libseccomp (runc, crun, Docker, Podman, Kubernetes): a rule without arguments wins, every argument is 64 bits wide. seccompiler:
//! one action for what matches, widths as the file says.
//!
//! Invariant: for a profile that `resolve` accepts, CodeBeaker's engine here decides as `Resolved::verdict`; a test holds it.

use std::collections::BTreeMap;
use std::fmt;

use super::Invocation;
use super::arch::{Arch, KernelVersion};
use super::document::Document;
use super::model::{Arg, Gate, Operator, Rule as Entry};
use super::resolve::{Condition, Target, Test};
use super::verdict::Verdict;
use super::width::{self, Width};

/// `__X32_SYSCALL_BIT` of asm/unistd.h.
pub const X32_BIT: u32 = 0x4000_0000;

/// Who reads the profile.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Engine {
    /// This program.
    CodeBeaker,
    /// What most container runtimes use.
    Libseccomp,
    /// Firecracker's library, by its own JSON.
    Seccompiler,
}

impl fmt::Display for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::CodeBeaker => "codebeaker",
            Self::Libseccomp => "libseccomp",
            Self::Seccompiler => "seccompiler",
        })
    }
}

/// A profile for one target and engine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ruleset {
    /// Native calls.
    pub arch: Arch,
    /// Whose meaning.
    pub engine: Engine,
    /// For calls that nothing matches.
    pub default: Verdict,
    /// By number, in the order of the file.
    pub calls: BTreeMap<u32, Vec<Rule>>,
    /// Architectures that the file names beside the native one, by their OCI names.
    pub foreign: Vec<String>,
    /// Refusing actions by first appearance: of two equally strong ones CodeBeaker takes the later.
    order: Vec<Verdict>,
}

/// One rule for one call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// Its index among the file's rules.
    pub place: usize,
    /// All must hold; none: every argument.
    pub conditions: Vec<Condition>,
    /// What happens.
    pub verdict: Verdict,
    /// The file's comment.
    pub reason: Option<String>,
}

/// A verdict with the rule that gave it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Decision<'a> {
    /// What happens.
    pub verdict: Verdict,
    /// Absent: the default, or a foreign entry.
    pub rule: Option<&'a Rule>,
}

impl Ruleset {
    /// Reads a document; rules that the target leaves out are not in it.
    pub fn new(document: &Document, target: Target<'_>, engine: Engine) -> Self {
        let profile = &document.profile;
        let mut set = Self {
            arch: target.arch,
            engine,
            default: Verdict::from_word(profile.default_action, profile.default_errno_ret),
            calls: BTreeMap::new(),
            foreign: foreign(document, target.arch),
            order: Vec::new(),
        };
        for (place, entry) in profile.syscalls.iter().enumerate().filter(|(_, entry)| stands(entry, target)) {
            let verdict = Verdict::from_word(entry.action, entry.errno_ret);
            if verdict != Verdict::Allow && !set.order.contains(&verdict) {
                set.order.push(verdict);
            }
            for name in &entry.names {
                let Some(number) = target.arch.number(name) else { continue };
                let conditions = entry.args.iter().flatten().enumerate().map(|(position, arg)| Condition {
                    index: arg.index.min(5) as u8,
                    width: set.width(document, name, (place, position), arg),
                    test: test(*arg),
                });
                let rule = Rule { place, conditions: conditions.collect(), verdict, reason: entry.comment.clone() };
                set.calls.entry(number).or_default().push(rule);
            }
        }
        set
    }

    fn width(&self, document: &Document, name: &str, at: (usize, usize), arg: &Arg) -> Width {
        match self.engine {
            Engine::CodeBeaker => width::of(name, arg.index.min(5) as u8),
            Engine::Seccompiler if document.narrow.contains(&at) => Width::Bits32,
            Engine::Libseccomp | Engine::Seccompiler => Width::Bits64,
        }
    }

    /// The verdict for a call, with its rule.
    pub fn decide(&self, call: &Invocation) -> Decision<'_> {
        let bare = |verdict| Decision { verdict, rule: None };
        if call.arch != self.arch.audit_value() {
            return self.foreign_entry(call);
        }
        if self.arch == Arch::X86_64 && call.number & X32_BIT != 0 {
            return match self.engine {
                Engine::CodeBeaker | Engine::Seccompiler => bare(self.default),
                Engine::Libseccomp if self.names("SCMP_ARCH_X32") => self.native(call.number & !X32_BIT, call.args),
                Engine::Libseccomp => bare(Verdict::KillThread),
            };
        }
        self.native(call.number, call.args)
    }

    /// The answer to another architecture's entry. Of a 32-bit entry that the file opens only `read` is known here, by number 3.
    fn foreign_entry(&self, call: &Invocation) -> Decision<'_> {
        const READ_32: u32 = 3;
        let bare = |verdict| Decision { verdict, rule: None };
        let opened = self.names("SCMP_ARCH_X86") || self.names("SCMP_ARCH_ARM");
        match (self.engine, self.arch.number("read")) {
            (Engine::CodeBeaker | Engine::Seccompiler, _) => bare(Verdict::KillProcess),
            (Engine::Libseccomp, Some(read)) if opened && call.number == READ_32 => self.native(read, call.args),
            (Engine::Libseccomp, _) if opened => bare(self.default),
            (Engine::Libseccomp, _) => bare(Verdict::KillThread),
        }
    }

    /// Whether the file names an architecture beside the native one.
    fn names(&self, architecture: &str) -> bool {
        self.foreign.iter().any(|name| name == architecture)
    }

    fn native(&self, number: u32, args: [u64; 6]) -> Decision<'_> {
        let rules = self.calls.get(&number).map_or(&[][..], Vec::as_slice);
        let holds = |rule: &&Rule| rule.conditions.iter().all(|condition| condition.holds(args));
        let plain = self.strongest(rules.iter().filter(|rule| rule.conditions.is_empty()));
        let conditional = || self.strongest(rules.iter().filter(|rule| !rule.conditions.is_empty()).filter(holds));
        let chosen = match self.engine {
            Engine::CodeBeaker => conditional().or(plain),
            Engine::Libseccomp | Engine::Seccompiler => plain.or_else(conditional),
        };
        chosen
            .map_or(Decision { verdict: self.default, rule: None }, |rule| Decision { verdict: rule.verdict, rule: Some(rule) })
    }

    /// The first rule of the strongest action.
    fn strongest<'a>(&self, rules: impl Iterator<Item = &'a Rule>) -> Option<&'a Rule> {
        let place = |verdict| self.order.iter().position(|known| *known == verdict).map_or(0, |at| at + 1);
        let key = |rule: &Rule| (rule.verdict.rank(), place(rule.verdict));
        rules.fold(None, |best: Option<&Rule>, rule| match best {
            Some(best) if key(best) >= key(rule) => Some(best),
            Some(_) | None => Some(rule),
        })
    }

    /// The rules of a call, by number.
    pub fn rules(&self, number: u32) -> &[Rule] {
        self.calls.get(&number).map_or(&[], Vec::as_slice)
    }
}

fn foreign(document: &Document, native: Arch) -> Vec<String> {
    let listed = document.profile.architectures.iter();
    let own = |name: &str| Arch::X86_64.oci_name() == name || Arch::Aarch64.oci_name() == name;
    let mapped = document.profile.arch_map.iter().filter(|entry| entry.architecture == native.oci_name());
    let subordinate = mapped.flat_map(|entry| entry.sub_architectures.iter().flatten());
    listed.chain(subordinate).filter(|name| !own(name)).cloned().collect()
}

/// Whether the target has the rule. A condition that can't be read holds for nobody; `audit` names it.
pub fn stands(entry: &Entry, target: Target<'_>) -> bool {
    let included = entry.includes.as_ref().is_none_or(|gate| states(gate, target).iter().all(|holds| *holds));
    let excluded = entry.excludes.as_ref().is_some_and(|gate| states(gate, target).iter().any(|holds| *holds));
    included && !excluded
}

fn states(gate: &Gate, target: Target<'_>) -> Vec<bool> {
    let mut states: Vec<bool> = gate.caps.iter().map(|name| target.capabilities.contains(name)).collect();
    if !gate.arches.is_empty() {
        states.push(gate.arches.iter().any(|name| name == target.arch.go_name()));
    }
    states
        .extend(gate.min_kernel.as_ref().map(|text| text.parse::<KernelVersion>().is_ok_and(|oldest| target.kernel >= oldest)));
    states
}

fn test(arg: Arg) -> Test {
    match arg.op {
        Operator::MaskedEq => Test::Masked { mask: arg.value, value: arg.value_two },
        Operator::Eq => Test::Eq(arg.value),
        Operator::Ne => Test::Ne(arg.value),
        Operator::Lt => Test::Lt(arg.value),
        Operator::Le => Test::Le(arg.value),
        Operator::Gt => Test::Gt(arg.value),
        Operator::Ge => Test::Ge(arg.value),
    }
}
