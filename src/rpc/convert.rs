//! Wire types → the domain types of `command` and `session::api`, every value judged.
//!
//! Invariant: what passes here has no wrong syntax; every refusal is -32602 and names the field and what it takes. What only the
//! server's state can judge (limits of a profile, languages, images) is left to the session manager. The way back is `render`.

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value};

use super::error::RpcError;
use super::params::fields;
use super::types::*;
use crate::command::*;
use crate::runtime::RuntimeKind;
use crate::session::api::*;

/// Serialized bytes of `metadata` at most.
const METADATA_BYTES_MAX: usize = 64 << 10;
/// MiB that a limit may name at most, so that the number of bytes fits.
const LIMIT_MIB_MAX: u64 = 1 << 40;
/// Shorter than this a session would be swept before its first command.
const MINUTES_MIN: f64 = 0.01;
/// The greatest whole number that the field took when it took whole numbers only.
const MINUTES_MAX: f64 = u32::MAX as f64;

type Converted<T> = Result<T, RpcError>;

/// A command with the `id` to echo.
#[derive(Debug)]
pub struct ClientCommand {
    /// What to do.
    pub command: Command,
    /// `id` as the client gave it.
    pub id: Option<Value>,
}

/// Reads `type`, then the fields of the command that it names.
pub fn command(mut map: Map<String, Value>) -> Converted<ClientCommand> {
    let id = map.shift_remove("id").filter(|id| !id.is_null());
    if id.as_ref().is_some_and(|id| !(id.is_string() || id.is_number())) {
        return Err(RpcError::invalid("command.id", "expected a string or a number"));
    }
    let kind = match map.shift_remove("type") {
        Some(Value::String(name)) => command_kind(&name).ok_or_else(|| {
            RpcError::invalid("command.type", format!("unknown command `{name}`, expected one of {}", command_names()))
        })?,
        Some(_) => return Err(RpcError::invalid("command.type", format!("expected one of {}", command_names()))),
        None => return Err(RpcError::invalid("command.type", format!("this field is required: one of {}", command_names()))),
    };
    let command = match kind {
        CommandKind::WriteFile => Command::WriteFile(write_file(wire(map)?)?),
        CommandKind::ReadFile => Command::ReadFile(read_file(&wire(map)?)?),
        CommandKind::ExecuteShell => Command::ExecuteShell(execute_shell(wire(map)?)?),
        CommandKind::ExecuteCode => Command::ExecuteCode(execute_code(wire(map)?)?),
        CommandKind::CreateDirectory => Command::CreateDirectory(create_directory(&wire(map)?)?),
        CommandKind::CopyFile => Command::CopyFile(copy_file(&wire(map)?)?),
        CommandKind::DeleteFile => Command::DeleteFile(delete_file(&wire(map)?)?),
        CommandKind::ListDirectory => Command::ListDirectory(list_directory(wire(map)?)?),
        CommandKind::InstallPackages => Command::InstallPackages(install_packages(wire(map)?)?),
    };
    Ok(ClientCommand { command, id })
}

fn wire<T: serde::de::DeserializeOwned>(map: Map<String, Value>) -> Converted<T> {
    fields("command.", map)
}

/// The command of that name or alias.
fn command_kind(name: &str) -> Option<CommandKind> {
    let name = match name {
        "shell" => "execute_shell",
        "execute" => "execute_code",
        "create_dir" => "create_directory",
        "list_files" => "list_directory",
        other => other,
    };
    CommandKind::ALL.into_iter().find(|kind| kind.name() == name)
}

fn command_names() -> String {
    CommandKind::ALL.map(|kind| format!("`{}`", kind.name())).join(", ")
}

fn write_file(wire: WireWriteFile) -> Converted<WriteFile> {
    Ok(WriteFile {
        path: path("command.path", &wire.path)?,
        content: bytes("command.content", wire.content, wire.encoding)?,
        mode: match wire.mode {
            None | Some(WireWriteMode::Create) => WriteMode::Create,
            Some(WireWriteMode::Append) => WriteMode::Append,
            Some(WireWriteMode::CreateNew) => WriteMode::CreateNew,
        },
        permissions: permissions(wire.permissions.as_deref())?,
    })
}

fn read_file(wire: &WireReadFile) -> Converted<ReadFile> {
    Ok(ReadFile {
        path: path("command.path", &wire.path)?,
        encoding: encoding(wire.encoding),
        offset: wire.offset.unwrap_or(0),
        length: wire.length,
    })
}

fn execute_shell(wire: WireExecuteShell) -> Converted<ExecuteShell> {
    if wire.command_name.is_empty() {
        return Err(RpcError::invalid("command.commandName", "expected the name or path of a program"));
    }
    Ok(ExecuteShell {
        program: no_nul("command.commandName", wire.command_name)?,
        args: texts("command.args", wire.args)?,
        working_directory: wire.working_directory.as_deref().map(|text| path("command.workingDirectory", text)).transpose()?,
        env: environment("command.env", wire.env)?,
        stdin: stdin(wire.stdin),
        timeout: timeout(wire.timeout_seconds)?,
        background: wire.background.unwrap_or(false),
    })
}

fn execute_code(wire: WireExecuteCode) -> Converted<ExecuteCode> {
    Ok(ExecuteCode {
        code: wire.code,
        language: wire.language,
        packages: packages("command.packages", wire.packages.unwrap_or_default())?,
        args: texts("command.args", wire.args)?,
        env: environment("command.env", wire.env)?,
        stdin: stdin(wire.stdin),
        timeout: timeout(wire.timeout_seconds)?,
    })
}

fn create_directory(wire: &WireCreateDirectory) -> Converted<CreateDirectory> {
    Ok(CreateDirectory {
        path: path("command.path", &wire.path)?,
        recursive: wire.recursive.unwrap_or(true),
        permissions: permissions(wire.permissions.as_deref())?,
    })
}

fn copy_file(wire: &WireCopyFile) -> Converted<CopyFile> {
    Ok(CopyFile {
        source: path("command.source", &wire.source)?,
        destination: path("command.destination", &wire.destination)?,
        overwrite: wire.overwrite.unwrap_or(true),
        recursive: wire.recursive.unwrap_or(true),
    })
}

fn delete_file(wire: &WireDeleteFile) -> Converted<DeleteFile> {
    Ok(DeleteFile { path: path("command.path", &wire.path)?, recursive: wire.recursive.unwrap_or(true) })
}

fn list_directory(wire: WireListDirectory) -> Converted<ListDirectory> {
    if let Some(pattern) = &wire.pattern {
        globset::Glob::new(pattern)
            .map_err(|error| RpcError::invalid("command.pattern", format!("expected a glob: {error}")))?;
    }
    if wire.max_depth == Some(0) {
        return Err(RpcError::invalid("command.maxDepth", "expected a whole number from 1 up"));
    }
    Ok(ListDirectory {
        path: path("command.path", wire.path.as_deref().unwrap_or("."))?,
        recursive: wire.recursive.unwrap_or(false),
        pattern: wire.pattern,
        include_hidden: wire.include_hidden.unwrap_or(true),
        depth_max: wire.max_depth,
        limit: wire.limit,
    })
}

fn install_packages(wire: WireInstallPackages) -> Converted<InstallPackages> {
    if wire.packages.is_empty() && wire.requirements_file.is_none() {
        return Err(RpcError::invalid("command.packages", "expected at least one package, or `requirementsFile`"));
    }
    Ok(InstallPackages {
        packages: packages("command.packages", wire.packages)?,
        requirements_file: wire.requirements_file.as_deref().map(|text| path("command.requirementsFile", text)).transpose()?,
    })
}

fn path(field: &str, text: &str) -> Converted<SessionPath> {
    SessionPath::parse(text).map_err(|message| RpcError::invalid(field, message))
}

/// The bytes of a text field under its `encoding`.
fn bytes(field: &str, text: String, encoding: Option<WireEncoding>) -> Converted<Vec<u8>> {
    match encoding {
        None | Some(WireEncoding::Utf8) => Ok(text.into_bytes()),
        Some(WireEncoding::Base64) => {
            STANDARD.decode(&text).map_err(|error| RpcError::invalid(field, format!("expected base64 with padding: {error}")))
        }
    }
}

fn encoding(wire: Option<WireEncoding>) -> Encoding {
    match wire {
        None | Some(WireEncoding::Utf8) => Encoding::Utf8,
        Some(WireEncoding::Base64) => Encoding::Base64,
    }
}

fn permissions(text: Option<&str>) -> Converted<Option<u32>> {
    let Some(text) = text else { return Ok(None) };
    let digits = text.strip_prefix("0o").unwrap_or(text);
    match u32::from_str_radix(digits, 8) {
        Ok(bits) if bits <= 0o7777 && !digits.starts_with('+') => Ok(Some(bits)),
        Ok(_) | Err(_) => Err(RpcError::invalid("command.permissions", "expected octal digits such as \"0644\", at most 7777")),
    }
}

fn no_nul(field: &str, text: String) -> Converted<String> {
    if text.contains('\0') { Err(RpcError::invalid(field, "a NUL byte can't stand here")) } else { Ok(text) }
}

fn texts(field: &str, texts: Option<Vec<String>>) -> Converted<Vec<String>> {
    texts.unwrap_or_default().into_iter().map(|text| no_nul(field, text)).collect()
}

fn environment(field: &str, env: Option<BTreeMap<String, String>>) -> Converted<BTreeMap<String, String>> {
    let env = env.unwrap_or_default();
    for (name, value) in &env {
        if name.is_empty() || name.contains(['=', '\0']) {
            return Err(RpcError::invalid(field, "a variable's name is not empty and holds neither `=` nor NUL"));
        }
        if value.contains('\0') {
            return Err(RpcError::invalid(field, format!("the value of `{name}` can't hold a NUL byte")));
        }
    }
    Ok(env)
}

/// Names (with versions and extras) that no installer can take for an option.
fn packages(field: &str, packages: Vec<String>) -> Converted<Vec<String>> {
    for name in &packages {
        let first_is_fine = name.starts_with(|c: char| c.is_ascii_alphanumeric() || matches!(c, '@' | '_' | '/' | '.'));
        if !first_is_fine || name.contains(|c: char| c.is_control()) || name.len() > 512 {
            let message = "a package is a name of at most 512 bytes that begins with a letter, a digit, `@`, `_`, `.` or `/`";
            return Err(RpcError::invalid(field, message));
        }
    }
    Ok(packages)
}

fn stdin(text: Option<String>) -> Stdin {
    text.map_or(Stdin::Empty, |text| Stdin::Bytes(text.into_bytes()))
}

fn timeout(seconds: Option<u32>) -> Converted<Option<NonZeroU32>> {
    seconds
        .map(|seconds| {
            NonZeroU32::new(seconds)
                .ok_or_else(|| RpcError::invalid("command.timeoutSeconds", "expected a whole number of seconds from 1 up"))
        })
        .transpose()
}

/// `session.create`; `connection` is absent over HTTP.
pub fn create_session(wire: SessionCreateParams, connection: Option<u64>) -> Converted<CreateSession> {
    if let Some(metadata) = &wire.metadata
        && Value::Object(metadata.clone()).to_string().len() > METADATA_BYTES_MAX
    {
        return Err(RpcError::invalid("metadata", format!("expected at most {METADATA_BYTES_MAX} bytes of JSON")));
    }
    Ok(CreateSession {
        language: wire.language,
        preference: preference(wire.runtime_preference),
        runtime: runtime(wire.runtime_type)?,
        image: wire.image,
        profile: wire.profile.unwrap_or_else(|| "default".into()),
        idle_timeout: minutes("idleTimeoutMinutes", wire.idle_timeout_minutes)?,
        lifetime: minutes("maxLifetimeMinutes", wire.max_lifetime_minutes)?,
        persist_filesystem: wire.persist_filesystem.unwrap_or(true),
        memory_limit_bytes: mib("memoryLimitMB", wire.memory_limit_mb)?,
        cpu_shares: cpu_shares(wire.cpu_shares)?,
        cpu_limit: cores("cpuLimit", wire.cpu_limit)?,
        pids_limit: positive("pidsLimit", wire.pids_limit)?,
        disk_limit_bytes: mib("diskLimitMB", wire.disk_limit_mb)?,
        permissions: wire.permissions.map(|wire| Permissions {
            allow_read: wire.allow_read,
            allow_write: wire.allow_write,
            allow_net: wire.allow_net,
            allow_env: wire.allow_env,
            allow_package_index: wire.allow_package_index,
        }),
        env: environment("env", wire.env)?,
        packages: packages("packages", wire.packages.unwrap_or_default())?,
        metadata: wire.metadata.map(Value::Object),
        on_disconnect: on_disconnect(wire.on_disconnect, connection)?,
        connection,
    })
}

fn on_disconnect(wire: Option<WireOnDisconnect>, connection: Option<u64>) -> Converted<OnDisconnect> {
    match (wire, connection) {
        (None | Some(WireOnDisconnect::Keep), _) => Ok(OnDisconnect::Keep),
        (Some(WireOnDisconnect::Close), Some(_)) => Ok(OnDisconnect::Close),
        (Some(WireOnDisconnect::Close), None) => {
            Err(RpcError::invalid("onDisconnect", "`close` needs a WebSocket; expected `keep` over HTTP"))
        }
    }
}

/// `execution.run`
pub fn run_once(wire: ExecutionRunParams) -> Converted<RunOnce> {
    let timeout = wire.timeout.unwrap_or(30);
    if timeout == 0 {
        return Err(RpcError::invalid("timeout", "expected a whole number of seconds from 1 up"));
    }
    Ok(RunOnce {
        language: wire.language,
        code: wire.code,
        packages: packages("packages", wire.packages.unwrap_or_default())?,
        timeout: Duration::from_secs(timeout.into()),
        memory_limit_bytes: mib("memoryLimit", Some(wire.memory_limit.unwrap_or(512)))?.unwrap_or(512 << 20),
        cpu_limit: cores("cpuLimit", wire.cpu_limit)?.unwrap_or(1.0),
        network_enabled: wire.network_enabled.unwrap_or(false),
        allow_package_index: wire.allow_package_index.unwrap_or(false),
        preference: preference(wire.runtime_preference),
        runtime: runtime(wire.runtime_type)?,
    })
}

fn preference(wire: Option<WirePreference>) -> Preference {
    match wire {
        Some(WirePreference::Speed) => Preference::Speed,
        Some(WirePreference::Security) => Preference::Security,
        Some(WirePreference::Memory) => Preference::Memory,
        None | Some(WirePreference::Balanced) => Preference::Balanced,
    }
}

fn runtime(name: Option<String>) -> Converted<Option<RuntimeKind>> {
    let Some(name) = name else { return Ok(None) };
    let known = RuntimeKind::ALL.map(|kind| format!("`{}`", kind.name())).join(", ");
    let kind = RuntimeKind::from_name(&name)
        .ok_or_else(|| RpcError::invalid("runtimeType", format!("unknown runtime `{name}`, expected one of {known}")))?;
    Ok(Some(kind))
}

fn minutes(field: &str, value: Option<f64>) -> Converted<Option<Duration>> {
    match value {
        Some(minutes) if !(MINUTES_MIN..=MINUTES_MAX).contains(&minutes) => {
            Err(RpcError::invalid(field, format!("expected a number of minutes from {MINUTES_MIN} to {MINUTES_MAX}")))
        }
        // To the millisecond, which is what `config` can tell.
        Some(minutes) => Ok(Some(Duration::from_millis((minutes * 60_000.0).round() as u64))),
        None => Ok(None),
    }
}

fn mib(field: &str, value: Option<u64>) -> Converted<Option<u64>> {
    match value {
        Some(mib) if mib == 0 || mib > LIMIT_MIB_MAX => {
            Err(RpcError::invalid(field, format!("expected a whole number of MiB from 1 to {LIMIT_MIB_MAX}")))
        }
        Some(mib) => Ok(Some(mib << 20)),
        None => Ok(None),
    }
}

fn positive(field: &str, value: Option<u64>) -> Converted<Option<u64>> {
    if value == Some(0) { Err(RpcError::invalid(field, "expected a whole number from 1 up")) } else { Ok(value) }
}

fn cpu_shares(value: Option<u64>) -> Converted<Option<u64>> {
    match value {
        Some(shares) if !(2..=262_144).contains(&shares) => {
            Err(RpcError::invalid("cpuShares", "expected a whole number from 2 to 262144"))
        }
        Some(_) | None => Ok(value),
    }
}

fn cores(field: &str, value: Option<f64>) -> Converted<Option<f64>> {
    match value {
        Some(cores) if !(0.01..=4096.0).contains(&cores) => {
            Err(RpcError::invalid(field, "expected a number of cores from 0.01 to 4096"))
        }
        Some(_) | None => Ok(value),
    }
}

/// `session.list`'s filter.
pub fn session_state(wire: WireState) -> SessionState {
    match wire {
        WireState::Creating => SessionState::Creating,
        WireState::Active => SessionState::Active,
        WireState::Idle => SessionState::Idle,
        WireState::Closing => SessionState::Closing,
        WireState::Closed => SessionState::Closed,
    }
}

/// The bytes of `session.input`.
pub fn input(data: Option<String>, encoding: Option<WireEncoding>) -> Converted<Vec<u8>> {
    bytes("data", data.unwrap_or_default(), encoding)
}

/// Names of signal(7) on Linux, in the order of their numbers on x86-64 and arm64, from 1.
const SIGNALS: [&str; 31] = [
    "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2", "PIPE", "ALRM", "TERM",
    "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG", "XCPU", "XFSZ", "VTALRM", "PROF", "WINCH", "IO", "PWR",
    "SYS",
];

/// A signal by name (with or without `SIG`) or number.
pub fn signal(wire: &WireSignal) -> Converted<i32> {
    let number = match wire {
        WireSignal::Number(number) => Some(*number).filter(|number| (1..=64).contains(number)),
        WireSignal::Name(name) => {
            let short = name.strip_prefix("SIG").unwrap_or(name);
            SIGNALS.iter().zip(1..).find(|(known, _)| **known == short).map(|(_, number)| number)
        }
    };
    number.ok_or_else(|| RpcError::invalid("signal", "expected a signal name such as \"SIGTERM\" or a number from 1 to 64"))
}

#[cfg(test)]
#[path = "convert_tests.rs"]
mod tests;
