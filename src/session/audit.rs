//! The audit log, under the target [`TARGET`]: which session has which profile, and what the operator learns of refused calls, which are
//! counted too.
//!
//! Invariant: one line for each session that begins; one line and one count for each call of an execution, however often the program
//! makes it: the runtime tells each once.

use std::sync::Arc;

use crate::command::Stream;
use crate::id::{ExecutionId, SessionId};
use crate::runtime::{Instance, OutputSink, OutputVerdict, RuntimeKind};

use super::output::Output;

/// The audit log's target, for `log.filter`.
const TARGET: &str = "codebeaker::audit";

/// The sink of an execution, with what is audited noted on the way.
pub(super) struct Audited {
    pub(super) output: Arc<Output>,
    pub(super) session: SessionId,
    pub(super) execution: ExecutionId,
}

impl OutputSink for Audited {
    fn started(&self) {
        self.output.started();
    }

    fn write(&self, stream: Stream, data: &[u8]) -> OutputVerdict {
        self.output.write(stream, data)
    }

    fn is_followed(&self) -> bool {
        self.output.is_followed()
    }

    fn blocked(&self, syscall: &'static str) {
        metrics::counter!("codebeaker_blocked_syscalls_total", "syscall" => syscall).increment(1);
        tracing::info!(target: TARGET, session = %self.session, execution = %self.execution, syscall, "system call against the profile");
        self.output.blocked(syscall);
    }
}

/// A session begins: which profile holds for it, so that later lines can be read.
pub(super) fn opened(session: &SessionId, runtime: RuntimeKind, instance: &dyn Instance) {
    let profile = &instance.enforcement().profile;
    tracing::info!(
        target: TARGET,
        session = %session,
        runtime = runtime.name(),
        environment = %instance.environment_id(),
        profile = profile.name,
        version = profile.version,
        sha256 = profile.sha256,
        audit_only = profile.audit_only,
        seccomp_sha256 = profile.seccomp_sha256,
        bpf_sha256 = profile.bpf_sha256,
        "session created"
    );
}
