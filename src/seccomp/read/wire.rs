//! OCI's words as JSON and, inside a `SeccompProfile` of the Security Profiles Operator, as YAML.
//!
//! Invariant: the union of what runc, Docker, containers-common and the operator write; any other field is an error. What has no
//! meaning for a filter is kept as a loss.

use serde::Deserialize;

use super::super::document::{Document, Format, Loss};
use super::super::model::{ActionWord, ArchMapping, Arg, Gate, Operator, Rule, SeccompProfile};
use super::ReadError;
use std::collections::BTreeSet;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Profile {
    default_action: ActionWord,
    default_errno_ret: Option<u32>,
    /// containers-common says the errno by name, too.
    default_errno: Option<String>,
    #[serde(default)]
    architectures: Option<Vec<String>>,
    #[serde(default)]
    arch_map: Option<Vec<ArchMapping>>,
    #[serde(default)]
    syscalls: Option<Vec<Entry>>,
    #[serde(default)]
    flags: Option<Vec<String>>,
    listener_path: Option<String>,
    listener_metadata: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Entry {
    /// Docker's old form.
    name: Option<String>,
    #[serde(default)]
    names: Option<Vec<String>>,
    action: ActionWord,
    errno_ret: Option<u32>,
    errno: Option<String>,
    args: Option<Vec<Argument>>,
    comment: Option<String>,
    includes: Option<Gate>,
    excludes: Option<Gate>,
    priority: Option<i64>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Argument {
    index: u32,
    #[serde(default)]
    value: u64,
    #[serde(default)]
    value_two: u64,
    op: Operator,
}

/// Kubernetes' envelope; only `spec` says something about calls.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Object {
    api_version: String,
    kind: String,
    #[serde(default)]
    metadata: serde_json::Value,
    spec: Spec,
    #[serde(default, rename = "status")]
    _status: serde_json::Value,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Spec {
    base_profile_name: Option<String>,
    disabled: Option<bool>,
    default_action: ActionWord,
    architectures: Option<Vec<String>>,
    listener_path: Option<String>,
    listener_metadata: Option<String>,
    syscalls: Option<Vec<Entry>>,
    flags: Option<Vec<String>>,
}

pub(super) fn oci(text: &str) -> Result<Document, ReadError> {
    let wire: Profile = serde_json::from_str(text).map_err(ReadError::Json)?;
    document(wire, Format::Oci, Vec::new())
}

pub(super) fn spo(text: &str) -> Result<Document, ReadError> {
    let object: Object = serde_saphyr::from_str(text).map_err(|error| ReadError::Yaml(error.to_string()))?;
    if object.kind != "SeccompProfile" {
        return Err(ReadError::at("kind", format!("it is `{}`, not SeccompProfile", object.kind)));
    }
    if !object.api_version.starts_with("security-profiles-operator.x-k8s.io/") {
        return Err(ReadError::at("apiVersion", "it is not security-profiles-operator.x-k8s.io/…"));
    }
    let spec = object.spec;
    let mut losses = Vec::new();
    if let Some(name) = object.metadata.get("name").and_then(serde_json::Value::as_str) {
        losses.push(Loss::at("metadata.name", format!("the object's name `{name}`")));
    }
    if let Some(base) = spec.base_profile_name {
        losses.push(Loss::at("spec.baseProfileName", format!("the rules of `{base}`, which are in another file")));
    }
    if spec.disabled == Some(true) {
        losses.push(Loss::at("spec.disabled", "that the profile is switched off"));
    }
    let wire = Profile {
        default_action: spec.default_action,
        default_errno_ret: None,
        default_errno: None,
        architectures: spec.architectures,
        arch_map: None,
        syscalls: spec.syscalls,
        flags: spec.flags,
        listener_path: spec.listener_path,
        listener_metadata: spec.listener_metadata,
    };
    document(wire, Format::Spo, losses)
}

/// Errnos that containers-common's profile names without a number.
const ERRNO_NAMES: [(&str, u32); 4] = [("EPERM", 1), ("EACCES", 13), ("EINVAL", 22), ("ENOSYS", 38)];

fn errno(number: Option<u32>, name: Option<&str>, field: &str) -> Result<Option<u32>, ReadError> {
    let named = name.map(|name| {
        let known = ERRNO_NAMES.iter().find(|(known, _)| *known == name).map(|(_, number)| *number);
        known.ok_or_else(|| ReadError::at(field, format!("`{name}`: give the number in {field}Ret")))
    });
    let named = named.transpose()?;
    match (number, named) {
        (Some(number), Some(named)) if number != named => Err(ReadError::at(field, "name and number differ")),
        (number, named) => Ok(number.or(named)),
    }
}

fn document(wire: Profile, format: Format, mut losses: Vec<Loss>) -> Result<Document, ReadError> {
    let stray = [
        ("listenerPath", wire.listener_path.is_some()),
        ("listenerMetadata", wire.listener_metadata.is_some()),
        ("flags", wire.flags.as_ref().is_some_and(|flags| !flags.is_empty())),
    ];
    losses.extend(
        stray
            .iter()
            .filter(|(_, there)| *there)
            .map(|(field, _)| Loss::at(*field, "how the filter is installed, not what it says")),
    );
    let entries = wire.syscalls.unwrap_or_default();
    let syscalls = entries.into_iter().enumerate().map(|(place, entry)| rule(entry, place, &mut losses));
    let profile = SeccompProfile {
        default_action: wire.default_action,
        default_errno_ret: errno(wire.default_errno_ret, wire.default_errno.as_deref(), "defaultErrno")?,
        architectures: Vec::new(),
        arch_map: wire.arch_map.unwrap_or_default(),
        syscalls: syscalls.collect::<Result<_, _>>()?,
    };
    let profile = SeccompProfile { architectures: wire.architectures.unwrap_or_default(), ..profile };
    Ok(Document { format, profile, narrow: BTreeSet::new(), losses })
}

fn rule(entry: Entry, place: usize, losses: &mut Vec<Loss>) -> Result<Rule, ReadError> {
    let field = format!("syscalls[{place}]");
    let names: Vec<String> = entry.name.into_iter().chain(entry.names.unwrap_or_default()).collect();
    if names.is_empty() {
        return Err(ReadError::at(format!("{field}.names"), "the list is empty"));
    }
    if entry.priority.is_some_and(|priority| priority != 0) {
        losses.push(Loss::at(format!("{field}.priority"), "the order that libseccomp asks in"));
    }
    let argument = |arg: &Argument| Arg { index: arg.index, value: arg.value, value_two: arg.value_two, op: arg.op };
    let args: Vec<Arg> = entry.args.iter().flatten().map(argument).collect();
    Ok(Rule {
        names,
        action: entry.action,
        errno_ret: errno(entry.errno_ret, entry.errno.as_deref(), &format!("{field}.errno"))?,
        args: (!args.is_empty()).then_some(args),
        comment: entry.comment.filter(|comment| !comment.is_empty()),
        includes: entry.includes,
        excludes: entry.excludes,
    })
}
