//! What clients get: the answer of every method, as it stands in JSON. `render` fills them in.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Serialize;
use serde_json::Value;

/// `initialize`
#[derive(Debug, Clone, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[expect(missing_docs, reason = "the fields of the protocol")]
pub struct Initialized {
    pub protocol_version: &'static str,
    pub server_info: ServerInfo,
    pub server_capabilities: ServerCapabilities,
}

/// `serverInfo`
#[derive(Debug, Clone, Serialize, JsonSchema)]
#[expect(missing_docs, reason = "the fields of the protocol")]
pub struct ServerInfo {
    pub name: &'static str,
    pub version: &'static str,
}

/// `serverCapabilities`
#[derive(Debug, Clone, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[expect(missing_docs, reason = "the fields of the protocol")]
pub struct ServerCapabilities {
    pub supports_streaming: bool,
    pub supports_debugging: bool,
    pub supports_port_forwarding: bool,
    pub supports_file_watch: bool,
    pub supported_languages: Vec<String>,
    pub commands: Vec<&'static str>,
    pub limits: ServerLimits,
}

/// `limits` of `initialize`.
#[derive(Debug, Clone, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ServerLimits {
    /// Seconds a command may take at most.
    pub max_timeout: u64,
    /// MiB a session may have at most.
    pub max_memory: u64,
    /// Sessions at once.
    pub max_concurrency: u64,
}

/// `language.list`
#[derive(Debug, Clone, Serialize, JsonSchema)]
#[expect(missing_docs, reason = "the fields of the protocol")]
pub struct Languages {
    pub languages: Vec<WireLanguage>,
}

/// One language.
#[derive(Debug, Clone, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[expect(missing_docs, reason = "the fields of the protocol")]
pub struct WireLanguage {
    pub name: String,
    pub display_name: String,
    pub aliases: Vec<String>,
    pub version: Option<String>,
    pub runtimes: Vec<&'static str>,
    pub image: String,
    pub installed: bool,
    /// Why it is not installed, and what mends it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// `runtime.list`
#[derive(Debug, Clone, Serialize, JsonSchema)]
#[expect(missing_docs, reason = "the fields of the protocol")]
pub struct Runtimes {
    pub runtimes: Vec<WireRuntime>,
}

/// One runtime.
#[derive(Debug, Clone, Serialize, JsonSchema)]
#[expect(missing_docs, reason = "the fields of the protocol")]
pub struct WireRuntime {
    pub name: String,
    #[serde(rename = "type")]
    pub kind: &'static str,
    pub available: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    pub languages: Vec<String>,
    pub commands: Vec<&'static str>,
    pub capabilities: WireFeatures,
}

/// `capabilities` of a runtime.
#[derive(Debug, Clone, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[expect(missing_docs, reason = "the fields of the protocol")]
pub struct WireFeatures {
    pub startup_time_ms: f64,
    #[serde(rename = "memoryOverheadMB")]
    pub memory_overhead_mb: f64,
    pub isolation_level: u8,
    pub supports_filesystem_persistence: bool,
    pub supports_network_access: bool,
    pub max_concurrent_executions: u32,
    pub measured: bool,
}

/// `session.create`
#[derive(Debug, Clone, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[expect(missing_docs, reason = "the fields of the protocol")]
pub struct SessionCreated {
    pub session_id: String,
    pub environment_id: String,
    /// The same as `environmentId`.
    pub container_id: String,
    pub runtime_type: &'static str,
    pub selection: WireSelection,
    pub language: String,
    pub image: String,
    pub created_at: String,
    pub state: &'static str,
    pub config: WireSettings,
    pub enforcement: WireEnforcement,
}

/// `selection`
#[derive(Debug, Clone, Serialize, JsonSchema)]
#[expect(missing_docs, reason = "the fields of the protocol")]
pub struct WireSelection {
    pub preference: &'static str,
    pub reason: String,
    pub candidates: Vec<WireCandidate>,
    /// `pool`: the sandbox was ready; `new`: it was made for this request.
    pub sandbox: &'static str,
}

/// One runtime that was looked at.
#[derive(Debug, Clone, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[expect(missing_docs, reason = "the fields of the protocol")]
pub struct WireCandidate {
    pub runtime_type: &'static str,
    pub chosen: bool,
    pub score: Option<f64>,
    pub reason: String,
}

/// Writes a whole number without a fraction: `30`, not `30.0`.
#[expect(clippy::trivially_copy_pass_by_ref, reason = "the shape that serde calls")]
fn number<S: serde::Serializer>(value: &f64, serializer: S) -> Result<S::Ok, S::Error> {
    /// Beyond this a double has no fraction to lose and no integer to be.
    const WHOLE_MAX: f64 = 9_007_199_254_740_992.0;
    if value.fract() == 0.0 && value.abs() < WHOLE_MAX {
        serializer.serialize_i64(*value as i64)
    } else {
        serializer.serialize_f64(*value)
    }
}

/// `config`: what is in force.
#[derive(Debug, Clone, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[expect(missing_docs, reason = "the fields of the protocol")]
pub struct WireSettings {
    pub profile: String,
    #[serde(serialize_with = "number")]
    pub idle_timeout_minutes: f64,
    #[serde(serialize_with = "number")]
    pub max_lifetime_minutes: f64,
    pub persist_filesystem: bool,
    #[serde(rename = "memoryLimitMB")]
    pub memory_limit_mb: u64,
    pub cpu_shares: u64,
    pub cpu_limit: Option<f64>,
    pub pids_limit: u64,
    #[serde(rename = "diskLimitMB", serialize_with = "number")]
    pub disk_limit_mb: f64,
    pub inodes_limit: u64,
    pub output_kept_bytes: u64,
    pub output_killed_bytes: u64,
    #[serde(serialize_with = "number")]
    pub timeout_seconds: f64,
    #[serde(serialize_with = "number")]
    pub max_timeout_seconds: f64,
    pub open_files_limit: u64,
    pub env: BTreeMap<String, String>,
    pub on_disconnect: &'static str,
}

/// `enforcement`: what really holds.
#[derive(Debug, Clone, Serialize, JsonSchema)]
#[expect(missing_docs, reason = "the fields of the protocol")]
pub struct WireEnforcement {
    pub walls: Vec<WireWall>,
    pub limits: Vec<WireWall>,
    pub profile: WireProfile,
    pub rootless: bool,
}

/// One wall or limit.
#[derive(Debug, Clone, Serialize, JsonSchema)]
#[expect(missing_docs, reason = "the fields of the protocol")]
pub struct WireWall {
    pub name: String,
    /// `enforced`, `degraded` or `absent`.
    pub state: &'static str,
    pub detail: String,
}

/// Which profile is in force.
#[derive(Debug, Clone, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[expect(missing_docs, reason = "the fields of the protocol")]
pub struct WireProfile {
    pub name: String,
    pub version: String,
    pub sha256: String,
    pub audit_only: bool,
    pub seccomp_sha256: String,
    pub bpf_sha256: String,
}

/// One row of `session.list`.
#[derive(Debug, Clone, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[expect(missing_docs, reason = "the fields of the protocol")]
pub struct SessionRow {
    pub session_id: String,
    pub environment_id: String,
    pub container_id: String,
    pub runtime_type: &'static str,
    pub language: String,
    pub created_at: String,
    pub last_activity: String,
    pub state: &'static str,
    pub execution_count: u64,
    /// Since the last activity.
    #[serde(serialize_with = "number")]
    pub idle_minutes: f64,
    /// Since it was made.
    #[serde(serialize_with = "number")]
    pub lifetime_minutes: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub close_reason: Option<String>,
}

/// `session.list`
#[derive(Debug, Clone, Serialize, JsonSchema)]
#[expect(missing_docs, reason = "the fields of the protocol")]
pub struct SessionList {
    pub count: usize,
    pub sessions: Vec<SessionRow>,
}

/// `session.get`
#[derive(Debug, Clone, Serialize, JsonSchema)]
#[expect(missing_docs, reason = "the fields of the protocol")]
pub struct SessionDetails {
    #[serde(flatten)]
    pub row: SessionRow,
    pub image: String,
    pub selection: WireSelection,
    pub config: WireSettings,
    pub enforcement: WireEnforcement,
    pub usage: WireUsage,
    pub metadata: Option<Value>,
}

/// `session.close`
#[derive(Debug, Clone, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[expect(missing_docs, reason = "the fields of the protocol")]
pub struct SessionClosed {
    pub session_id: String,
    pub closed: bool,
}

/// `session.input`
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub struct InputAccepted {
    /// False when the execution has ended or its standard input is closed.
    pub accepted: bool,
}

/// `session.signal`
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub struct SignalDelivered {
    /// False when the execution has ended or never was a program.
    pub delivered: bool,
}

/// `session.cancel`
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub struct Cancelled {
    /// False when nothing was there to cancel.
    pub cancelled: bool,
}

/// `execution.run`
#[derive(Debug, Clone, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[expect(missing_docs, reason = "the fields of the protocol")]
pub struct ExecutionQueued {
    pub execution_id: String,
    pub status: &'static str,
}

/// `execution.status`
#[derive(Debug, Clone, Default, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[expect(missing_docs, reason = "the fields of the protocol")]
pub struct ExecutionState {
    pub execution_id: String,
    /// `queued`, `running`, `completed`, `failed` or `not_found`.
    pub status: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stdout: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stdout_encoding: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stderr: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stderr_encoding: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub duration_ms: Option<u64>,
    /// The wall-time limit ended it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error_kind: Option<&'static str>,
}

/// CommandResult.
#[derive(Debug, Clone, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[expect(missing_docs, reason = "the fields of the protocol")]
pub struct WireCommandResult {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<Value>,
    pub execution_id: String,
    pub success: bool,
    pub result: Option<WireOutput>,
    pub error: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error_kind: Option<&'static str>,
    pub duration_ms: u64,
}

/// `result` of a command.
#[derive(Debug, Clone, Serialize, JsonSchema)]
#[serde(untagged, rename_all_fields = "camelCase")]
#[expect(missing_docs, reason = "the fields of the protocol")]
pub enum WireOutput {
    /// `execute_shell`, `execute_code`, `install_packages`
    Execution(Box<WireExecution>),
    /// `read_file`
    Read { path: String, content: String, encoding: &'static str, size: u64, truncated: bool },
    /// `list_directory`
    Listing { path: String, entries: Vec<WireEntry>, truncated: bool },
    /// `copy_file`
    Copied { source: String, destination: String, bytes: u64 },
    /// `write_file`
    Written { path: String, bytes: u64 },
    /// `create_directory`
    DirectoryCreated { path: String, created: bool },
    /// `delete_file`
    Deleted { path: String, deleted: u64 },
    /// A background command.
    Started { execution_id: String, status: &'static str },
}

/// Execution result.
#[derive(Debug, Clone, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[expect(missing_docs, reason = "the fields of the protocol")]
pub struct WireExecution {
    pub stdout: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stdout_encoding: Option<&'static str>,
    pub stderr: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stderr_encoding: Option<&'static str>,
    pub exit_code: Option<i32>,
    pub signal: Option<String>,
    pub timed_out: bool,
    pub oom_killed: bool,
    pub truncated: WireTruncated,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<String>,
    pub usage: WireUsage,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub blocked_syscalls: Option<Vec<String>>,
}

/// `truncated`
#[derive(Debug, Clone, Serialize, JsonSchema)]
#[expect(missing_docs, reason = "the fields of the protocol")]
pub struct WireTruncated {
    pub stdout: bool,
    pub stderr: bool,
}

/// `usage`
#[derive(Debug, Clone, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[expect(missing_docs, reason = "the fields of the protocol")]
pub struct WireUsage {
    pub cpu_ms: Option<u64>,
    pub memory_peak_bytes: Option<u64>,
    pub pids_peak: Option<u64>,
}

/// One entry of a listing.
#[derive(Debug, Clone, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[expect(missing_docs, reason = "the fields of the protocol")]
pub struct WireEntry {
    pub name: String,
    pub path: String,
    /// `base64` when `name` is not UTF-8.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name_encoding: Option<&'static str>,
    /// `base64` when `path` is not UTF-8.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path_encoding: Option<&'static str>,
    #[serde(rename = "type")]
    pub kind: &'static str,
    pub size: u64,
    /// Octal digits, such as `"0644"`.
    pub mode: String,
    pub modified: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
    /// `base64` when `target` is not UTF-8.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target_encoding: Option<&'static str>,
}

/// EVENT of `session.output`.
#[derive(Debug, Clone, Serialize, JsonSchema)]
#[serde(tag = "type", rename_all = "lowercase", rename_all_fields = "camelCase")]
#[expect(missing_docs, reason = "the fields of the protocol")]
pub enum WireEvent {
    Started { execution_id: String },
    Stdout { execution_id: String, seq: u64, data: String, encoding: &'static str },
    Stderr { execution_id: String, seq: u64, data: String, encoding: &'static str },
    Dropped { bytes: u64 },
    Blocked { execution_id: String, syscall: &'static str },
    Exited { execution_id: String, result: Box<WireCommandResult> },
}
