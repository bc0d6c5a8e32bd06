//! What clients send: the parameters of every method and the fields of every command, as they stand in JSON.
//!
//! Invariant: these types know names, shapes and aliases only. What a value may be is judged once, in `convert`. The OpenRPC
//! document is generated from them, so a field that is missing here does not exist. Answers are in `results`.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::de::{DeserializeOwned, Error as _};
use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value};

/// `runtimePreference`.
#[derive(Debug, Clone, Copy, Deserialize, JsonSchema)]
#[expect(missing_docs, reason = "the words of the protocol")]
pub enum WirePreference {
    Speed,
    Security,
    Memory,
    Balanced,
}

/// `onDisconnect`.
#[derive(Debug, Clone, Copy, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[expect(missing_docs, reason = "the words of the protocol")]
pub enum WireOnDisconnect {
    Keep,
    Close,
}

/// `encoding`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum WireEncoding {
    /// Text.
    #[serde(alias = "utf-8")]
    Utf8,
    /// Base64, standard alphabet, with padding.
    Base64,
}

/// `state` of a session.
#[derive(Debug, Clone, Copy, Deserialize, JsonSchema)]
#[expect(missing_docs, reason = "the words of the protocol")]
pub enum WireState {
    Creating,
    Active,
    Idle,
    Closing,
    Closed,
}

/// `mode` of `write_file`.
#[derive(Debug, Clone, Copy, Deserialize, JsonSchema)]
pub enum WireWriteMode {
    /// Create or replace.
    #[serde(alias = "Overwrite")]
    Create,
    /// Add to the end.
    Append,
    /// Fail when something is there.
    CreateNew,
}

/// A method without parameters.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct NoParams {}

/// `initialize`
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct InitializeParams {
    /// Who the client is; written to the log.
    pub client_info: Option<Map<String, Value>>,
    /// The version the client speaks.
    pub protocol_version: Option<String>,
}

/// `permissions` of `session.create`.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[expect(missing_docs, reason = "the fields of the protocol")]
pub struct WirePermissions {
    #[serde(default)]
    pub allow_read: Vec<String>,
    #[serde(default)]
    pub allow_write: Vec<String>,
    #[serde(default)]
    pub allow_net: bool,
    #[serde(default)]
    pub allow_env: bool,
    /// Install steps reach the operator's package index.
    #[serde(default)]
    pub allow_package_index: bool,
}

/// An object or null: serde alone would take a list for the fields in their order.
fn by_name<'de, T: DeserializeOwned, D: Deserializer<'de>>(input: D) -> Result<Option<T>, D::Error> {
    let map = Option::<Map<String, Value>>::deserialize(input)?;
    map.map(|map| T::deserialize(Value::Object(map)).map_err(D::Error::custom)).transpose()
}

/// `session.create`
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[expect(missing_docs, reason = "the fields of the protocol")]
pub struct SessionCreateParams {
    pub language: String,
    pub runtime_preference: Option<WirePreference>,
    pub runtime_type: Option<String>,
    #[serde(alias = "dockerImage")]
    pub image: Option<String>,
    pub profile: Option<String>,
    /// Minutes; 0.5 is half a minute.
    pub idle_timeout_minutes: Option<f64>,
    /// Minutes; 0.5 is half a minute.
    pub max_lifetime_minutes: Option<f64>,
    pub persist_filesystem: Option<bool>,
    #[serde(rename = "memoryLimitMB")]
    pub memory_limit_mb: Option<u64>,
    pub cpu_shares: Option<u64>,
    /// Cores; 1.5 is one and a half.
    pub cpu_limit: Option<f64>,
    pub pids_limit: Option<u64>,
    #[serde(rename = "diskLimitMB")]
    pub disk_limit_mb: Option<u64>,
    #[serde(default, deserialize_with = "by_name")]
    pub permissions: Option<WirePermissions>,
    pub env: Option<BTreeMap<String, String>>,
    pub packages: Option<Vec<String>>,
    pub metadata: Option<Map<String, Value>>,
    pub on_disconnect: Option<WireOnDisconnect>,
}

/// `session.execute` and `session.stream`
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SessionExecuteParams {
    /// From `session.create`.
    pub session_id: String,
    /// What to do; `type` says which of the nine commands it is.
    #[schemars(with = "WireCommand")]
    pub command: Map<String, Value>,
}

/// `session.unstream`
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SessionUnstreamParams {
    /// The answer of `session.stream`.
    #[serde(alias = "subscriptionId")]
    pub subscription: String,
}

/// `session.input`
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[expect(missing_docs, reason = "the fields of the protocol")]
pub struct SessionInputParams {
    pub session_id: String,
    pub execution_id: String,
    pub data: Option<String>,
    pub encoding: Option<WireEncoding>,
    /// Close standard input after `data`.
    pub eof: Option<bool>,
}

/// `session.signal`
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[expect(missing_docs, reason = "the fields of the protocol")]
pub struct SessionSignalParams {
    pub session_id: String,
    pub execution_id: String,
    /// A name (`SIGTERM`, `TERM`) or a number.
    pub signal: WireSignal,
}

/// A signal by name or number.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(untagged, expecting = "a signal name such as \"SIGTERM\" or a number from 1 to 64")]
pub enum WireSignal {
    /// `SIGTERM`
    Name(String),
    /// `15`
    Number(i32),
}

/// `session.cancel`
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SessionCancelParams {
    /// Which session.
    pub session_id: String,
    /// All executions when absent.
    pub execution_id: Option<String>,
}

/// `session.get` and `session.close`
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SessionIdParams {
    /// Which session.
    pub session_id: String,
}

/// `session.list`
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SessionListParams {
    /// Only sessions in this state.
    pub state: Option<WireState>,
    /// Only sessions of this language.
    pub language: Option<String>,
}

/// `execution.run`
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[expect(missing_docs, reason = "the fields of the protocol")]
pub struct ExecutionRunParams {
    pub language: String,
    pub code: String,
    pub packages: Option<Vec<String>>,
    /// Seconds, default 30.
    pub timeout: Option<u32>,
    /// MiB, default 512.
    pub memory_limit: Option<u64>,
    /// Cores, default 1.0.
    pub cpu_limit: Option<f64>,
    pub network_enabled: Option<bool>,
    /// Packages may come from the operator's index.
    pub allow_package_index: Option<bool>,
    pub runtime_preference: Option<WirePreference>,
    pub runtime_type: Option<String>,
}

/// `execution.status`
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ExecutionStatusParams {
    /// From `execution.run` or any CommandResult.
    pub execution_id: String,
}

/// The nine commands as the OpenRPC document shows them; `convert::command` reads `type` first and then the one that it names.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
#[expect(missing_docs, reason = "each variant is the command of the same name")]
pub enum WireCommand {
    WriteFile(WireWriteFile),
    ReadFile(WireReadFile),
    #[serde(alias = "shell")]
    ExecuteShell(WireExecuteShell),
    #[serde(alias = "execute")]
    ExecuteCode(WireExecuteCode),
    #[serde(alias = "create_dir")]
    CreateDirectory(WireCreateDirectory),
    CopyFile(WireCopyFile),
    DeleteFile(WireDeleteFile),
    #[serde(alias = "list_files")]
    ListDirectory(WireListDirectory),
    InstallPackages(WireInstallPackages),
}

/// `write_file`
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[expect(missing_docs, reason = "the fields of the protocol")]
pub struct WireWriteFile {
    pub path: String,
    pub content: String,
    pub encoding: Option<WireEncoding>,
    pub mode: Option<WireWriteMode>,
    /// Octal digits, such as `"0644"`.
    pub permissions: Option<String>,
}

/// `read_file`
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[expect(missing_docs, reason = "the fields of the protocol")]
pub struct WireReadFile {
    pub path: String,
    pub encoding: Option<WireEncoding>,
    pub offset: Option<u64>,
    pub length: Option<u64>,
}

/// `execute_shell`
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[expect(missing_docs, reason = "the fields of the protocol")]
pub struct WireExecuteShell {
    #[serde(alias = "command")]
    pub command_name: String,
    pub args: Option<Vec<String>>,
    pub working_directory: Option<String>,
    pub env: Option<BTreeMap<String, String>>,
    pub stdin: Option<String>,
    pub timeout_seconds: Option<u32>,
    pub background: Option<bool>,
}

/// `execute_code`
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[expect(missing_docs, reason = "the fields of the protocol")]
pub struct WireExecuteCode {
    pub code: String,
    pub language: Option<String>,
    pub packages: Option<Vec<String>>,
    pub stdin: Option<String>,
    pub args: Option<Vec<String>>,
    pub env: Option<BTreeMap<String, String>>,
    #[serde(alias = "timeout")]
    pub timeout_seconds: Option<u32>,
}

/// `create_directory`
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[expect(missing_docs, reason = "the fields of the protocol")]
pub struct WireCreateDirectory {
    pub path: String,
    pub recursive: Option<bool>,
    /// Octal digits, such as `"0755"`.
    pub permissions: Option<String>,
}

/// `copy_file`
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[expect(missing_docs, reason = "the fields of the protocol")]
pub struct WireCopyFile {
    #[serde(alias = "sourcePath")]
    pub source: String,
    #[serde(alias = "destinationPath")]
    pub destination: String,
    pub overwrite: Option<bool>,
    pub recursive: Option<bool>,
}

/// `delete_file`
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[expect(missing_docs, reason = "the fields of the protocol")]
pub struct WireDeleteFile {
    pub path: String,
    pub recursive: Option<bool>,
}

/// `list_directory`
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[expect(missing_docs, reason = "the fields of the protocol")]
pub struct WireListDirectory {
    pub path: Option<String>,
    pub recursive: Option<bool>,
    /// A glob.
    pub pattern: Option<String>,
    pub include_hidden: Option<bool>,
    pub max_depth: Option<u32>,
    pub limit: Option<u64>,
}

/// `install_packages`
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[expect(missing_docs, reason = "the fields of the protocol")]
pub struct WireInstallPackages {
    #[serde(default)]
    pub packages: Vec<String>,
    pub requirements_file: Option<String>,
}
