//! seccompiler's JSON: an object of filters by thread, each with one action for what matches and one for the rest.
//!
//! Invariant: one document holds one filter, so a file with several threads is an error that names them; `thread` in the message is
//! how to choose.

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;

use super::super::document::{Document, Format};
use super::super::model::{ActionWord, Arg, Operator, Rule, SeccompProfile};
use super::super::verdict::Verdict;
use super::ReadError;

/// One filter of the file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Filter {
    mismatch_action: Answer,
    match_action: Answer,
    #[serde(rename = "filter")]
    entries: Vec<Entry>,
}

/// An action in seccompiler's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Answer {
    Allow,
    Errno(u32),
    KillThread,
    KillProcess,
    Log,
    Trace(u32),
    Trap,
}

/// One call.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    syscall: String,
    #[serde(default)]
    args: Option<Vec<Comparison>>,
    #[serde(default)]
    comment: Option<String>,
}

/// One comparison.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Comparison {
    index: u32,
    #[serde(rename = "type")]
    width: Wide,
    op: Op,
    val: u64,
    #[serde(default)]
    comment: Option<String>,
}

/// Bits that are compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Wide {
    Dword,
    Qword,
}

/// How.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Op {
    Eq,
    Ge,
    Gt,
    Le,
    Lt,
    MaskedEq(u64),
    Ne,
}

impl Answer {
    fn verdict(self) -> Verdict {
        let short = |number: u32| u16::try_from(number).unwrap_or(u16::MAX);
        match self {
            Self::Allow => Verdict::Allow,
            Self::Errno(number) => Verdict::Errno(short(number)),
            Self::KillThread => Verdict::KillThread,
            Self::KillProcess => Verdict::KillProcess,
            Self::Log => Verdict::Log,
            Self::Trace(number) => Verdict::Trace(short(number)),
            Self::Trap => Verdict::Trap,
        }
    }
}

pub(super) fn read(text: &str) -> Result<Document, ReadError> {
    let mut threads: BTreeMap<String, Filter> = serde_json::from_str(text).map_err(ReadError::Json)?;
    let names = threads.keys().cloned().collect::<Vec<_>>().join(", ");
    match (threads.pop_first(), threads.is_empty()) {
        (Some((_, filter)), true) => document(filter),
        (None, _) => Err(ReadError::at("file", "there is no filter in it")),
        (Some(_), false) => Err(ReadError::at("file", format!("it holds filters of several threads ({names}); keep one"))),
    }
}

fn document(filter: Filter) -> Result<Document, ReadError> {
    let (default_action, default_errno_ret) = filter.mismatch_action.verdict().to_word();
    let (action, errno_ret) = filter.match_action.verdict().to_word();
    let mut narrow = BTreeSet::new();
    let mut syscalls = Vec::new();
    for (place, entry) in filter.entries.into_iter().enumerate() {
        if entry.syscall.is_empty() {
            return Err(ReadError::at(format!("filter[{place}].syscall"), "the name is empty"));
        }
        let mut args = Vec::new();
        for (position, comparison) in entry.args.iter().flatten().enumerate() {
            if comparison.width == Wide::Dword {
                narrow.insert((place, position));
            }
            args.push(arg(comparison));
        }
        syscalls.push(rule(entry, action, errno_ret, args));
    }
    let profile =
        SeccompProfile { default_action, default_errno_ret, architectures: Vec::new(), arch_map: Vec::new(), syscalls };
    Ok(Document { format: Format::Seccompiler, profile, narrow, losses: Vec::new() })
}

fn rule(entry: Entry, action: ActionWord, errno_ret: Option<u32>, args: Vec<Arg>) -> Rule {
    // Reasons of single comparisons are joined to the rule's own.
    let own = entry.comment.into_iter();
    let reasons: Vec<String> =
        own.chain(entry.args.into_iter().flatten().filter_map(|comparison| comparison.comment)).collect();
    Rule {
        names: vec![entry.syscall],
        action,
        errno_ret,
        args: (!args.is_empty()).then_some(args),
        comment: (!reasons.is_empty()).then(|| reasons.join("; ")),
        includes: None,
        excludes: None,
    }
}

fn arg(comparison: &Comparison) -> Arg {
    let (op, value, value_two) = match comparison.op {
        Op::Eq => (Operator::Eq, comparison.val, 0),
        Op::Ge => (Operator::Ge, comparison.val, 0),
        Op::Gt => (Operator::Gt, comparison.val, 0),
        Op::Le => (Operator::Le, comparison.val, 0),
        Op::Lt => (Operator::Lt, comparison.val, 0),
        Op::Ne => (Operator::Ne, comparison.val, 0),
        Op::MaskedEq(mask) => (Operator::MaskedEq, mask, comparison.val & mask),
    };
    Arg { index: comparison.index, value, value_two, op }
}
