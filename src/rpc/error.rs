//! Errors on the wire: code, one sentence, and `data {kind, hint, retryable, …}`.
//!
//! Invariant: nothing of the host (paths, stack traces, causes of internal errors) is in a message; an internal error carries an
//! id and the log has the rest under it.

use jsonrpsee::types::{ErrorObject, ErrorObjectOwned};
use serde_json::{Map, Value, json};

use crate::runtime::RuntimeKind;
use crate::sandbox::error::SandboxError;
use crate::session::api::{Candidate, SessionError};

/// -32602 of JSON-RPC 2.0.
pub const INVALID_PARAMS: i32 = -32602;
/// -32601 of JSON-RPC 2.0.
pub const METHOD_NOT_FOUND: i32 = -32601;
/// -32600 of JSON-RPC 2.0.
pub const INVALID_REQUEST: i32 = -32600;

/// Characters of a message or hint at most.
const TEXT_CHARS_MAX: usize = 1000;

/// An error as a client sees it.
#[derive(Debug, Clone, PartialEq)]
pub struct RpcError {
    code: i32,
    message: String,
    data: Map<String, Value>,
}

/// Whether the same call may succeed later without a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retry {
    /// It may.
    Later,
    /// It can't.
    Never,
}

impl RpcError {
    /// An error of one of our kinds.
    pub fn new(code: i32, kind: &str, message: impl Into<String>, hint: impl Into<String>, retry: Retry) -> Self {
        let mut data = Map::new();
        data.insert("kind".into(), kind.into());
        data.insert("hint".into(), shortened(hint.into()).into());
        data.insert("retryable".into(), (retry == Retry::Later).into());
        Self { code, message: shortened(message.into()), data }
    }

    /// -32602: `field` is the path of the field (`command.path`), `message` says what it takes.
    pub fn invalid(field: &str, message: impl AsRef<str>) -> Self {
        let text = format!("Invalid params: `{field}`: {}", message.as_ref());
        Self::new(INVALID_PARAMS, "invalid_params", text, message.as_ref(), Retry::Never)
            .with("field", shortened(field.to_owned()).into())
    }

    /// 1301 with the time to wait.
    pub fn rate_limited(retry_after_ms: u64) -> Self {
        let hint = format!("wait {retry_after_ms} ms, or ask the operator to raise server.rate_limit_per_s");
        Self::new(1301, "rate_limited", "too many calls in too short a time", hint, Retry::Later)
            .with("retryAfterMs", retry_after_ms.into())
    }

    /// 1302: a bound of the server is reached.
    pub fn busy(message: impl Into<String>, hint: &str) -> Self {
        Self::new(1302, "server_busy", message, hint, Retry::Later)
    }

    /// 1400, with HTTP 401.
    pub fn unauthorized() -> Self {
        let hint = "send `Authorization: Bearer TOKEN`, or the subprotocols `codebeaker` and `bearer.TOKEN`; the token is in the \
                    server's state directory, and `codebeaker token create NAME` makes another";
        Self::new(1400, "unauthorized", "a valid token is needed", hint, Retry::Never)
    }

    /// 1500: `cause` goes to the log only, under the id that the client gets.
    pub fn internal(cause: &dyn std::fmt::Display) -> Self {
        let id = format!("err_{:016x}", rand::random::<u64>());
        tracing::error!(error_id = %id, cause = %cause, "internal error");
        let hint = "the server's log has the cause under this id";
        Self::new(1500, "internal", format!("internal error {id}"), hint, Retry::Later).with("id", id.into())
    }

    /// Adds a field to `data`.
    #[must_use]
    pub fn with(mut self, name: &str, value: Value) -> Self {
        self.data.insert(name.into(), value);
        self
    }

    /// The code on the wire.
    pub fn code(&self) -> i32 {
        self.code
    }

    /// As a JSON-RPC error object.
    pub fn to_value(&self) -> Value {
        json!({"code": self.code, "message": self.message, "data": self.data})
    }

    /// The sentence.
    pub fn message(&self) -> &str {
        &self.message
    }
}

/// A client may put a name of many megabytes into a request; it does not come back.
fn shortened(mut text: String) -> String {
    if let Some((cut, _)) = text.char_indices().nth(TEXT_CHARS_MAX) {
        text.truncate(cut);
        text.push('…');
    }
    text
}

impl From<RpcError> for ErrorObjectOwned {
    fn from(error: RpcError) -> Self {
        ErrorObject::owned(error.code, error.message, Some(error.data))
    }
}

impl From<SessionError> for RpcError {
    fn from(error: SessionError) -> Self {
        let message = error.to_string();
        match error {
            SessionError::NotFound(_) => {
                Self::new(1001, "session_not_found", message, "session.list shows the sessions of this token", Retry::Never)
            }
            SessionError::Closed { reason, .. } => {
                Self::new(1002, "session_closed", message, "make another with session.create", Retry::Never)
                    .with("reason", reason.into())
            }
            SessionError::ExecutionNotFound(_) => Self::new(
                1003,
                "execution_not_found",
                message,
                "an executionId stands in every CommandResult and `started` event",
                Retry::Never,
            ),
            SessionError::LanguageNotSupported { supported, .. } => {
                let hint = format!("supported: {}", supported.join(", "));
                Self::new(1100, "language_not_supported", message, hint, Retry::Never).with("supported", supported.into())
            }
            SessionError::RuntimeNotAvailable { candidates } => runtime_not_available(message, &candidates),
            SessionError::CommandNotSupported { .. } => {
                Self::new(1102, "command_not_supported", message, "runtime.list shows what each runtime can do", Retry::Never)
            }
            SessionError::PolicyDenied { field, hint, .. } => {
                Self::new(1202, "policy_denied", message, hint, Retry::Never).with("field", field.into())
            }
            SessionError::QuotaExceeded { hint, .. } => Self::new(1300, "quota_exceeded", message, hint, Retry::Later),
            SessionError::Busy(_) => Self::busy(message, "try again in a moment"),
            SessionError::InvalidField { field, message } => Self::invalid(&field, message),
            SessionError::Sandbox(error) => error.into(),
        }
    }
}

fn runtime_not_available(message: String, candidates: &[Candidate]) -> RpcError {
    let rows: Vec<Value> = candidates.iter().map(|row| json!({"type": row.runtime.name(), "reason": row.reason})).collect();
    let known: Vec<&str> = RuntimeKind::ALL.into_iter().map(RuntimeKind::name).collect();
    let hint = match candidates.first() {
        Some(first) => format!("{}: {}", first.runtime.name(), first.reason),
        None => format!("the runtime types are {}", known.join(", ")),
    };
    RpcError::new(1101, "runtime_not_available", message, hint, Retry::Never).with("candidates", rows.into())
}

impl From<SandboxError> for RpcError {
    fn from(error: SandboxError) -> Self {
        let message = error.to_string();
        match error {
            SandboxError::IsolationUnavailable { wall, mend, .. } => {
                Self::new(1200, "isolation_unavailable", message, mend, Retry::Never).with("wall", wall.into())
            }
            SandboxError::LimitUnenforceable { limit, mend, .. } => {
                Self::new(1201, "limit_unenforceable", message, mend, Retry::Never).with("limit", limit.into())
            }
            SandboxError::ImageNotFound { image } => {
                let hint = "on the server's host, `codebeaker image pull REF` or `codebeaker image import SOURCE --name NAME` \
                            puts one into the store, and `codebeaker image list` shows what there is; `host` is always there";
                Self::new(1103, "image_not_found", message, hint, Retry::Never).with("image", image.into())
            }
            SandboxError::RuntimeUnusable { cause, .. } => {
                Self::new(1101, "runtime_not_available", message, cause, Retry::Never)
            }
            SandboxError::Busy { .. } => Self::busy(message, "close a session, or try again in a moment"),
            SandboxError::Internal(_) => Self::internal(&message),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_internal_error_shows_an_id_and_nothing_of_its_cause() {
        let shown = RpcError::from(SandboxError::Internal("open /var/lib/secret".into())).to_value().to_string();
        assert!(shown.contains("err_") && shown.contains("1500"), "{shown}");
        assert!(!shown.contains("secret"), "{shown}");
        // The control: another kind does show its cause.
        let cause = "user.max_user_namespaces is 0";
        let wall = SandboxError::IsolationUnavailable { wall: "user".into(), cause: cause.into(), mend: "raise it".into() };
        assert!(RpcError::from(wall).to_value().to_string().contains(cause));
    }

    #[test]
    fn what_a_client_sent_comes_back_shortened() {
        let long = RpcError::from(SessionError::NotFound("é".repeat(1 << 20))).to_value().to_string();
        assert!(long.len() < 4000);
        let short = RpcError::from(SessionError::NotFound("ses_2".into()));
        assert!(short.message().contains("`ses_2`"));
    }

    #[test]
    fn every_kind_has_its_code_and_its_three_fields() {
        let denied = SessionError::PolicyDenied { field: "profile".into(), message: "no".into(), hint: "ask".into() };
        let cases = [
            (SessionError::NotFound("x".into()), 1001),
            (SessionError::Closed { id: "x".into(), reason: "idle".into() }, 1002),
            (SessionError::ExecutionNotFound("x".into()), 1003),
            (SessionError::LanguageNotSupported { language: "x".into(), supported: vec![] }, 1100),
            (SessionError::RuntimeNotAvailable { candidates: vec![] }, 1101),
            (SessionError::CommandNotSupported { runtime: "r", command: "c" }, 1102),
            (SandboxError::ImageNotFound { image: "x".into() }.into(), 1103),
            (denied, 1202),
            (SessionError::QuotaExceeded { message: "m".into(), hint: "h".into() }, 1300),
            (SessionError::Busy("m".into()), 1302),
            (SessionError::InvalidField { field: "f".into(), message: "m".into() }, INVALID_PARAMS),
        ];
        for (error, code) in cases {
            let value = RpcError::from(error).to_value();
            assert_eq!(value["code"], code);
            for field in ["kind", "hint", "retryable"] {
                assert!(!value["data"][field].is_null(), "{value}");
            }
        }
    }
}
