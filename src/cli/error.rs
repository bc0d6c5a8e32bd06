//! How a call fails: one line `error: …`, one line `hint: …`, an exit code.
//!
//! Invariant: the message says what and why, the hint what to do; neither is printed anywhere but in [`CliError::report`].

use std::process::ExitCode;

use super::output::printable;
use crate::config::ConfigError;
use crate::sandbox::error::SandboxError;

/// The call failed.
pub const FAILED: u8 = 1;
/// The call was wrongly written.
pub const USAGE: u8 = 2;
/// `run` and `exec`: the sandbox could not be set up, or its output not be written.
pub const NOT_SET_UP: u8 = 125;
/// The reader of our output went away: 128 + SIGPIPE, as a program without a handler ends.
pub const PIPE_CLOSED: u8 = 141;

/// Why a call failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CliError {
    message: String,
    hint: Option<String>,
    code: u8,
}

impl CliError {
    /// A failure with exit code 1.
    pub fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), hint: None, code: FAILED }
    }

    /// A call that was wrongly written: exit code 2.
    pub fn usage(message: impl Into<String>) -> Self {
        Self { message: message.into(), hint: None, code: USAGE }
    }

    /// The reader of standard output is gone; nothing is printed.
    pub fn pipe_closed() -> Self {
        Self::silent(PIPE_CLOSED)
    }

    /// An end that was told already, or needs no telling.
    pub fn silent(code: u8) -> Self {
        Self { message: String::new(), hint: None, code }
    }

    /// With what the user can do.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// With another exit code.
    #[must_use]
    pub fn code(mut self, code: u8) -> Self {
        self.code = code;
        self
    }

    /// With `NOT_SET_UP` in place of the general `FAILED`.
    #[must_use]
    pub fn not_set_up(self) -> Self {
        if self.code == FAILED { self.code(NOT_SET_UP) } else { self }
    }

    /// The exit code it ends with.
    pub fn exit_code(&self) -> u8 {
        self.code
    }

    /// What stands on standard error.
    pub fn text(&self) -> String {
        let message = Some(&self.message).filter(|message| !message.is_empty());
        let error = message.map(|message| format!("error: {}\n", one_line(message)));
        let hint = self.hint.as_ref().map(|hint| format!("hint: {}\n", one_line(hint)));
        [error, hint].into_iter().flatten().collect()
    }

    /// Prints it and gives the exit code.
    pub fn report(&self) -> ExitCode {
        super::output::note(&self.text());
        ExitCode::from(self.code)
    }
}

fn one_line(text: &str) -> String {
    printable(text).split('\n').map(str::trim).filter(|line| !line.is_empty()).collect::<Vec<_>>().join("; ")
}

/// An error with its chain of sources, as one line; what a foreign error already says of its source is not said twice.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.ends_with(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}

impl From<ConfigError> for CliError {
    fn from(error: ConfigError) -> Self {
        Self::new(chain(&error)).hint(error.hint())
    }
}

impl From<SandboxError> for CliError {
    fn from(error: SandboxError) -> Self {
        let hint = match &error {
            SandboxError::IsolationUnavailable { mend, .. } => format!("{mend}; `codebeaker doctor` shows all that is missing"),
            SandboxError::LimitUnenforceable { mend, .. } => mend.clone(),
            SandboxError::ImageNotFound { .. } => {
                "`codebeaker image list` shows what is there, `codebeaker image import` adds one".into()
            }
            SandboxError::RuntimeUnusable { .. } => "`codebeaker runtimes` shows what each runtime can do".into(),
            SandboxError::Busy { .. } => "close sessions or wait, then try again".into(),
            SandboxError::Internal(_) => "`codebeaker doctor` checks what this host offers".into(),
        };
        Self::new(error.to_string()).hint(hint)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_one_line_and_a_hint_another() {
        let error = CliError::new("first\n  second").hint("do this");
        assert_eq!(error.text(), "error: first; second\nhint: do this\n");
        assert_eq!(error.exit_code(), FAILED);
    }

    #[test]
    fn nothing_in_an_error_acts_on_a_terminal() {
        let error = CliError::new("a \u{1b}[2Jkind\r\u{202e}dnik\tü").hint("\u{9b}1m b");
        assert_eq!(error.text(), "error: a \u{fffd}[2Jkind\u{fffd}\u{fffd}dnik\tü\nhint: \u{fffd}1m b\n");
    }

    #[test]
    fn a_chain_names_each_cause_once() {
        #[derive(Debug, thiserror::Error)]
        enum Outer {
            #[error("opening failed")]
            Silent { source: std::io::Error },
            #[error("opening failed: {source}")]
            Repeating { source: std::io::Error },
        }
        let source = || std::io::Error::other("no disk");
        assert_eq!(chain(&Outer::Silent { source: source() }), "opening failed: no disk");
        assert_eq!(chain(&Outer::Repeating { source: source() }), "opening failed: no disk");
    }

    #[test]
    fn a_closed_pipe_is_silent() {
        assert_eq!(CliError::pipe_closed().text(), "");
    }

    #[test]
    fn only_a_general_failure_becomes_not_set_up() {
        assert_eq!(CliError::new("x").not_set_up().exit_code(), NOT_SET_UP);
        assert_eq!(CliError::usage("x").not_set_up().exit_code(), USAGE);
        assert_eq!(CliError::pipe_closed().not_set_up().exit_code(), PIPE_CLOSED);
    }

    #[test]
    fn a_missing_wall_says_what_mends_it() {
        let error =
            SandboxError::IsolationUnavailable { wall: "user".into(), cause: "c".into(), mend: "set the sysctl".into() };
        assert!(CliError::from(error).text().contains("hint: set the sysctl"));
    }
}
