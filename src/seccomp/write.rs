//! Documents in another format, with everything that is lost on the way named.
//!
//! Invariant: what the target format can't say is a loss or, where the filter would then decide otherwise, an error. Nothing is softened
//! in silence.

use serde_json::{Value, json};
use thiserror::Error;

use super::arch;
use super::document::{Document, Loss};
use super::model::{ActionWord, Arg, Operator, Rule};
use super::resolve::Target;
use super::ruleset;
use super::verdict::Verdict;
use super::width::{self, Width};

/// Why a document can't be written.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum WriteError {
    /// seccompiler has one action for what matches.
    #[error(
        "syscalls[{place}]: seccompiler's format has one action for all rules; this one says {says}, an earlier one {before}"
    )]
    TwoActions {
        /// The rule.
        place: usize,
        /// What it says.
        says: String,
        /// What the first said.
        before: String,
    },
    /// seccompiler does not know the action.
    #[error("{field}: seccompiler's format has no {says}")]
    NoSuchAction {
        /// Where.
        field: String,
        /// Which.
        says: String,
    },
}

/// A text with what it lacks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Written {
    /// The file.
    pub text: String,
    /// What the other file said beyond it.
    pub losses: Vec<Loss>,
}

/// As OCI JSON.
pub fn oci(document: &Document) -> Written {
    let mut losses = document.losses.clone();
    let mut profile = document.profile.clone();
    for (place, rule) in profile.syscalls.iter_mut().enumerate() {
        for (position, arg) in rule.args.iter_mut().flatten().enumerate() {
            let narrow = document.narrow.contains(&(place, position));
            losses.extend(narrow.then(|| keep_narrow(arg, place, position)).flatten());
        }
    }
    let text = serde_json::to_string_pretty(&profile).unwrap_or_default();
    Written { text: format!("{text}\n"), losses }
}

/// A comparison of a low word in OCI's words; only equality can be said exactly.
fn keep_narrow(arg: &mut Arg, place: usize, position: usize) -> Option<Loss> {
    const LOW: u64 = 0xFFFF_FFFF;
    match arg.op {
        Operator::Eq => *arg = Arg { op: Operator::MaskedEq, value: LOW, value_two: arg.value & LOW, ..*arg },
        Operator::MaskedEq => *arg = Arg { value: arg.value & LOW, value_two: arg.value_two & LOW, ..*arg },
        Operator::Ne | Operator::Lt | Operator::Le | Operator::Ge | Operator::Gt => {
            return Some(Loss::at(
                format!("syscalls[{place}].args[{position}]"),
                "that only 32 bits are compared: libseccomp compares 64, so values with a high word are judged differently",
            ));
        }
    }
    None
}

/// As a `SeccompProfile` of the Security Profiles Operator, for one target: it has no conditions on host and container.
pub fn spo(document: &Document, name: &str, target: Target<'_>) -> Written {
    let (standing, mut losses) = for_target(document, target);
    let Written { losses: narrowed, .. } = oci(document);
    losses.extend(narrowed);
    let mut syscalls = Vec::new();
    for (place, rule) in &standing {
        if rule.comment.is_some() {
            losses
                .push(Loss::at(format!("syscalls[{place}].comment"), "the reason: the operator's format has no place for it"));
        }
        syscalls.push(Rule { comment: None, includes: None, excludes: None, ..(*rule).clone() });
    }
    let errno = document.profile.default_errno_ret.filter(|errno| *errno != 1);
    if let Some(errno) = errno {
        losses
            .push(Loss::at("defaultErrnoRet", format!("the errno {errno} of the default: the operator's format gives EPERM")));
    }
    let object = json!({
        "apiVersion": "security-profiles-operator.x-k8s.io/v1beta1",
        "kind": "SeccompProfile",
        "metadata": { "name": name },
        "spec": {
            "defaultAction": document.profile.default_action,
            "architectures": [target.arch.oci_name()],
            "syscalls": syscalls,
        },
    });
    Written { text: serde_saphyr::to_string(&object).unwrap_or_default(), losses }
}

/// As seccompiler's JSON, for one target.
pub fn seccompiler(document: &Document, target: Target<'_>) -> Result<Written, WriteError> {
    let (standing, mut losses) = for_target(document, target);
    let mut action: Option<(ActionWord, Option<u32>)> = None;
    let default = Verdict::from_word(document.profile.default_action, document.profile.default_errno_ret);
    let mut filter = Vec::new();
    for (place, rule) in standing {
        let says = Verdict::from_word(rule.action, rule.errno_ret);
        if says == default && rule.args.is_none() {
            losses.push(Loss::at(format!("syscalls[{place}]"), "a rule that says what the default says"));
            continue;
        }
        match action {
            None => action = Some((rule.action, rule.errno_ret)),
            Some((word, errno)) if Verdict::from_word(word, errno) != says => {
                let before = Verdict::from_word(word, errno).to_string();
                return Err(WriteError::TwoActions { place, says: says.to_string(), before });
            }
            Some(_) => {}
        }
        for name in rule.names.iter().filter(|name| target.arch.number(name).is_some()) {
            let args: Vec<Value> =
                rule.args.iter().flatten().enumerate().map(|(at, arg)| comparison(document, name, (place, at), arg)).collect();
            let mut entry = json!({ "syscall": name });
            if !args.is_empty() {
                entry["args"] = Value::Array(args);
            }
            if let Some(comment) = &rule.comment {
                entry["comment"] = json!(comment);
            }
            filter.push(entry);
        }
    }
    let matched = action.map_or(Verdict::Allow, |(word, errno)| Verdict::from_word(word, errno));
    let file = json!({ "main": {
        "mismatch_action": answer(default, "defaultAction")?,
        "match_action": answer(matched, "syscalls")?,
        "filter": filter,
    }});
    Ok(Written { text: format!("{file:#}\n"), losses })
}

fn comparison(document: &Document, name: &str, at: (usize, usize), arg: &Arg) -> Value {
    let narrow = document.narrow.contains(&at) || width::of(name, arg.index.min(5) as u8) == Width::Bits32;
    let (op, value) = match arg.op {
        Operator::MaskedEq => (json!({ "masked_eq": arg.value }), arg.value_two),
        Operator::Ne => (json!("ne"), arg.value),
        Operator::Lt => (json!("lt"), arg.value),
        Operator::Le => (json!("le"), arg.value),
        Operator::Eq => (json!("eq"), arg.value),
        Operator::Ge => (json!("ge"), arg.value),
        Operator::Gt => (json!("gt"), arg.value),
    };
    json!({ "index": arg.index, "type": if narrow { "dword" } else { "qword" }, "op": op, "val": value })
}

fn answer(verdict: Verdict, field: &str) -> Result<Value, WriteError> {
    match verdict {
        Verdict::Errno(number) => Ok(json!({ "errno": number })),
        Verdict::Trace(data) => Ok(json!({ "trace": data })),
        Verdict::Notify => Err(WriteError::NoSuchAction { field: field.to_owned(), says: verdict.to_string() }),
        Verdict::Allow | Verdict::Log | Verdict::Trap | Verdict::KillThread | Verdict::KillProcess => Ok(json!(verdict.word())),
    }
}

/// The rules that the target has, with their places; conditions and names that are gone afterwards are losses.
fn for_target<'a>(document: &'a Document, target: Target<'_>) -> (Vec<(usize, &'a Rule)>, Vec<Loss>) {
    let mut losses = document.losses.clone();
    let mut standing = Vec::new();
    for (place, rule) in document.profile.syscalls.iter().enumerate() {
        let gated = rule.includes.is_some() || rule.excludes.is_some();
        let stands = ruleset::stands(rule, target);
        if gated {
            let fate = if stands { "kept, its condition holds" } else { "left out, its condition does not hold" };
            losses.push(Loss::at(format!("syscalls[{place}]"), format!("the condition on host and container: {fate}")));
        }
        if stands {
            standing.push((place, rule));
        }
        let elsewhere: Vec<&str> = rule
            .names
            .iter()
            .map(String::as_str)
            .filter(|name| arch::is_known(name) && target.arch.number(name).is_none())
            .collect();
        if !elsewhere.is_empty() {
            losses.push(Loss::at(
                format!("syscalls[{place}].names"),
                format!("calls of other architectures: {}", elsewhere.join(", ")),
            ));
        }
    }
    (standing, losses)
}
