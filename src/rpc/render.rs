//! Domain types → answers on the wire. Pure; the way in is `convert`.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

use super::results::*;
use crate::command::*;
use crate::id::ExecutionId;
use crate::runtime::features::Features;
use crate::runtime::{Origin, RuntimeKind};
use crate::sandbox::enforcement::{Enforcement, WallState, WallStatus};
use crate::session::api::*;

/// The word beside base64 text.
const BASE64: &str = "base64";

/// Text when it is UTF-8; else base64 with the word that says so.
fn text(bytes: Vec<u8>) -> (String, Option<&'static str>) {
    match String::from_utf8(bytes) {
        Ok(text) => (text, None),
        Err(error) => (STANDARD.encode(error.as_bytes()), Some(BASE64)),
    }
}

/// A point in time as RFC 3339 in UTC with milliseconds.
pub fn time(at: SystemTime) -> String {
    let ms = match at.duration_since(UNIX_EPOCH) {
        Ok(after) => i64::try_from(after.as_millis()).unwrap_or(i64::MAX),
        Err(before) => i64::try_from(before.duration().as_millis()).map_or(i64::MIN, |ms| -ms),
    };
    time_ms(ms)
}

/// Milliseconds since the epoch as RFC 3339 in UTC; years past 9999 are shown as the last moment of 9999.
fn time_ms(ms: i64) -> String {
    let ms = ms.clamp(-62_167_219_200_000, 253_402_300_799_999);
    let (days, in_day) = (ms.div_euclid(86_400_000), ms.rem_euclid(86_400_000));
    let (year, month, day) = civil_date(days);
    let (hour, minute, second) = (in_day / 3_600_000, in_day / 60_000 % 60, in_day / 1000 % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{:03}Z", in_day % 1000)
}

/// Year, month and day of a day number, counted from 1970-01-01, in the Gregorian calendar. Years are counted from March, so that
/// the leap day is the last of its year.
fn civil_date(days: i64) -> (i64, i64, i64) {
    let days = days + 719_468;
    let (era, day_of_era) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let march_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * march_month + 2) / 5 + 1;
    let month = if march_month < 10 { march_month + 3 } else { march_month - 9 };
    (era * 400 + year_of_era + i64::from(month <= 2), month, day)
}

fn ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Minutes from then until now, to a hundredth; 0 when the clock was set back.
fn minutes_since(at: SystemTime) -> f64 {
    (minutes(at.elapsed().unwrap_or_default()) * 100.0).round() / 100.0
}

fn minutes(duration: Duration) -> f64 {
    (duration.as_secs_f64() / 60.0 * 1000.0).round() / 1000.0
}

/// CommandResult; `id` is the client's own.
pub fn command_result(result: CommandResult, id: Option<Value>) -> WireCommandResult {
    let execution_id = result.execution_id.to_string();
    let (error, error_kind) = match result.failure {
        Some(failure) => (Some(failure.message), Some(failure.kind.name())),
        None => (None, None),
    };
    WireCommandResult {
        id,
        success: error_kind.is_none(),
        result: result.output.map(|output| command_output(output, &execution_id)),
        execution_id,
        error,
        error_kind,
        duration_ms: ms(result.duration),
    }
}

fn command_output(output: CommandOutput, execution_id: &str) -> WireOutput {
    match output {
        CommandOutput::Written { path, bytes } => WireOutput::Written { path, bytes },
        CommandOutput::Read { path, content, encoding, size, truncated } => {
            let (content, encoding) = file_content(content, encoding);
            WireOutput::Read { path, content, encoding, size, truncated }
        }
        CommandOutput::DirectoryCreated { path, created } => WireOutput::DirectoryCreated { path, created },
        CommandOutput::Copied { source, destination, bytes } => WireOutput::Copied { source, destination, bytes },
        CommandOutput::Deleted { path, deleted } => WireOutput::Deleted { path, deleted },
        CommandOutput::Listing { path, entries, truncated } => {
            WireOutput::Listing { path, entries: entries.into_iter().map(entry).collect(), truncated }
        }
        CommandOutput::Execution(report) => WireOutput::Execution(Box::new(execution(report))),
        CommandOutput::Started => WireOutput::Started { execution_id: execution_id.to_owned(), status: "running" },
    }
}

fn file_content(content: Vec<u8>, asked: Encoding) -> (String, &'static str) {
    match asked {
        Encoding::Base64 => (STANDARD.encode(content), BASE64),
        Encoding::Utf8 => {
            let (content, encoding) = text(content);
            (content, encoding.unwrap_or("utf8"))
        }
    }
}

fn entry(entry: FileEntry) -> WireEntry {
    let (name, name_encoding) = text(entry.name);
    let (path, path_encoding) = text(entry.path);
    let (target, target_encoding) = match entry.target.map(text) {
        Some((target, encoding)) => (Some(target), encoding),
        None => (None, None),
    };
    let kind = match entry.kind {
        EntryType::File => "file",
        EntryType::Directory => "directory",
        EntryType::Symlink => "symlink",
        EntryType::Other => "other",
    };
    let (size, mode, modified) = (entry.size, format!("{:04o}", entry.mode), time_ms(entry.modified_ms));
    WireEntry { name, path, name_encoding, path_encoding, kind, size, mode, modified, target, target_encoding }
}

fn execution(report: ExecutionReport) -> WireExecution {
    let truncated = WireTruncated { stdout: report.stdout.truncated, stderr: report.stderr.truncated };
    let (stdout, stdout_encoding) = text(report.stdout.data);
    let (stderr, stderr_encoding) = text(report.stderr.data);
    WireExecution {
        stdout,
        stdout_encoding,
        stderr,
        stderr_encoding,
        exit_code: report.exit_code,
        signal: report.signal,
        timed_out: report.timed_out,
        oom_killed: report.oom_killed,
        truncated,
        limit: report.limit,
        usage: usage(report.usage),
        blocked_syscalls: report.blocked_syscalls,
    }
}

fn usage(usage: Usage) -> WireUsage {
    WireUsage { cpu_ms: usage.cpu_ms, memory_peak_bytes: usage.memory_peak_bytes, pids_peak: usage.pids_peak }
}

/// `execution.status`
pub fn execution_state(id: &ExecutionId, status: ExecutionStatus) -> ExecutionState {
    let state = |status| ExecutionState { execution_id: id.to_string(), status, ..ExecutionState::default() };
    match status {
        ExecutionStatus::Queued => state("queued"),
        ExecutionStatus::Running => state("running"),
        ExecutionStatus::NotFound => state("not_found"),
        ExecutionStatus::Refused(sentence) => {
            ExecutionState { stderr: Some(sentence.clone()), error: Some(sentence), ..state("failed") }
        }
        ExecutionStatus::Ended(result) => ended(state, *result),
    }
}

fn ended(state: impl Fn(&'static str) -> ExecutionState, result: CommandResult) -> ExecutionState {
    let mut ended = state(if result.failure.is_none() { "completed" } else { "failed" });
    ended.duration_ms = Some(ms(result.duration));
    if let Some(failure) = result.failure {
        ended.error = Some(failure.message);
        ended.error_kind = Some(failure.kind.name());
    }
    if let Some(CommandOutput::Execution(report)) = result.output {
        let report = execution(report);
        ended.exit_code = report.exit_code;
        ended.timeout = Some(report.timed_out);
        (ended.stdout, ended.stdout_encoding) = (Some(report.stdout), report.stdout_encoding);
        (ended.stderr, ended.stderr_encoding) = (Some(report.stderr), report.stderr_encoding);
    }
    ended
}

/// `session.create`
pub fn created(view: SessionView) -> SessionCreated {
    SessionCreated {
        session_id: view.session_id.to_string(),
        environment_id: view.environment_id.to_string(),
        container_id: view.environment_id.to_string(),
        runtime_type: view.runtime.name(),
        selection: selection(view.selection, view.origin),
        language: view.language,
        image: view.image,
        created_at: time(view.created_at),
        state: state_name(view.state),
        config: settings(view.config),
        enforcement: enforcement(view.enforcement),
    }
}

/// One row of `session.list`.
pub fn row(view: &SessionView) -> SessionRow {
    SessionRow {
        session_id: view.session_id.to_string(),
        environment_id: view.environment_id.to_string(),
        container_id: view.environment_id.to_string(),
        runtime_type: view.runtime.name(),
        language: view.language.clone(),
        created_at: time(view.created_at),
        last_activity: time(view.last_activity),
        state: state_name(view.state),
        execution_count: view.execution_count,
        idle_minutes: minutes_since(view.last_activity),
        lifetime_minutes: minutes_since(view.created_at),
        close_reason: view.close_reason.clone(),
    }
}

/// `session.get`
pub fn details(view: SessionView) -> SessionDetails {
    SessionDetails {
        row: row(&view),
        image: view.image,
        selection: selection(view.selection, view.origin),
        config: settings(view.config),
        enforcement: enforcement(view.enforcement),
        usage: usage(view.usage),
        metadata: view.metadata,
    }
}

/// `state` on the wire.
fn state_name(state: SessionState) -> &'static str {
    match state {
        SessionState::Creating => "Creating",
        SessionState::Active => "Active",
        SessionState::Idle => "Idle",
        SessionState::Closing => "Closing",
        SessionState::Closed => "Closed",
    }
}

fn selection(selection: Selection, origin: Origin) -> WireSelection {
    let preference = match selection.preference {
        Preference::Speed => "Speed",
        Preference::Security => "Security",
        Preference::Memory => "Memory",
        Preference::Balanced => "Balanced",
    };
    let candidate = |row: Candidate| WireCandidate {
        runtime_type: row.runtime.name(),
        chosen: row.chosen,
        score: row.score,
        reason: row.reason,
    };
    WireSelection {
        preference,
        reason: selection.reason,
        candidates: selection.candidates.into_iter().map(candidate).collect(),
        sandbox: origin.name(),
    }
}

fn settings(settings: SessionSettings) -> WireSettings {
    let limits = settings.limits;
    WireSettings {
        profile: settings.profile,
        idle_timeout_minutes: minutes(settings.idle_timeout),
        max_lifetime_minutes: minutes(settings.lifetime),
        persist_filesystem: settings.persist_filesystem,
        memory_limit_mb: limits.memory_bytes.get() >> 20,
        cpu_shares: limits.cpu_shares,
        cpu_limit: limits.cpu_cores,
        pids_limit: limits.pids,
        disk_limit_mb: limits.disk_bytes as f64 / f64::from(1 << 20),
        inodes_limit: limits.inodes,
        output_kept_bytes: limits.output_kept_bytes,
        output_killed_bytes: limits.output_killed_bytes,
        timeout_seconds: limits.timeout.as_secs_f64(),
        max_timeout_seconds: limits.timeout_max.as_secs_f64(),
        open_files_limit: limits.open_files,
        env: settings.env,
        on_disconnect: match settings.on_disconnect {
            OnDisconnect::Keep => "keep",
            OnDisconnect::Close => "close",
        },
    }
}

fn enforcement(enforcement: Enforcement) -> WireEnforcement {
    let wall = |wall: WallState| WireWall {
        name: wall.name,
        state: match wall.state {
            WallStatus::Enforced => "enforced",
            WallStatus::Degraded => "degraded",
            WallStatus::Absent => "absent",
        },
        detail: wall.detail,
    };
    let profile = enforcement.profile;
    WireEnforcement {
        walls: enforcement.walls.into_iter().map(wall).collect(),
        limits: enforcement.limits.into_iter().map(wall).collect(),
        profile: WireProfile {
            name: profile.name,
            version: profile.version,
            sha256: profile.sha256,
            audit_only: profile.audit_only,
            seccomp_sha256: profile.seccomp_sha256,
            bpf_sha256: profile.bpf_sha256,
        },
        rootless: enforcement.rootless,
    }
}

/// One row of `language.list`.
pub fn language(row: LanguageRow) -> WireLanguage {
    WireLanguage {
        name: row.name,
        display_name: row.display_name,
        aliases: row.aliases,
        version: row.version,
        runtimes: row.runtimes.into_iter().map(RuntimeKind::name).collect(),
        image: row.image,
        installed: row.installed,
        reason: row.reason,
    }
}

/// One row of `runtime.list`.
pub fn runtime(row: RuntimeRow) -> WireRuntime {
    WireRuntime {
        name: row.name,
        kind: row.kind.name(),
        available: row.reason.is_none(),
        reason: row.reason,
        languages: row.languages,
        commands: row.commands.into_iter().map(CommandKind::name).collect(),
        capabilities: features(row.features),
    }
}

fn features(features: Features) -> WireFeatures {
    WireFeatures {
        startup_time_ms: features.startup_time_ms,
        memory_overhead_mb: features.memory_overhead_mb,
        isolation_level: features.isolation_level,
        supports_filesystem_persistence: features.filesystem_persistence,
        supports_network_access: features.network_access,
        max_concurrent_executions: features.concurrent_executions_max,
        measured: features.measured,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_rfc_3339_in_utc_with_milliseconds() {
        let cases = [
            (0, "1970-01-01T00:00:00.000Z"),
            (951_827_696_789, "2000-02-29T12:34:56.789Z"),
            (1_735_689_599_999, "2024-12-31T23:59:59.999Z"),
            (-1, "1969-12-31T23:59:59.999Z"),
            (i64::MAX, "9999-12-31T23:59:59.999Z"),
        ];
        for (ms, shown) in cases {
            assert_eq!(time_ms(ms), shown);
        }
    }

    #[test]
    fn output_that_is_not_utf8_is_base64_and_says_so() {
        let captured = |data: &[u8]| Captured { data: data.to_vec(), truncated: false };
        let report = ExecutionReport { stdout: captured(b"\xff\x00"), stderr: captured("é".as_bytes()), ..Default::default() };
        let shown = serde_json::to_value(execution(report)).expect("it serializes");
        assert_eq!((&shown["stdout"], &shown["stdoutEncoding"]), (&"/wA=".into(), &"base64".into()));
        assert_eq!((&shown["stderr"], shown.get("stderrEncoding")), (&"é".into(), None));
    }

    #[test]
    fn a_program_that_ended_badly_is_a_result_with_its_verdict() {
        let report = ExecutionReport { exit_code: Some(124), timed_out: true, ..Default::default() };
        let failure = Failure { kind: FailureKind::Timeout, message: "it took more than 1 s".into() };
        let result = CommandResult {
            execution_id: ExecutionId::from_client("exe_1"),
            output: Some(CommandOutput::Execution(report)),
            failure: Some(failure),
            duration: Duration::from_millis(1001),
        };
        let shown = serde_json::to_value(command_result(result, Some("a".into()))).expect("it serializes");
        assert_eq!((&shown["success"], &shown["errorKind"], &shown["id"]), (&false.into(), &"timeout".into(), &"a".into()));
        assert_eq!((&shown["result"]["timedOut"], &shown["durationMs"]), (&true.into(), &1001.into()));
    }
}
