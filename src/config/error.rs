//! Where a value is from, and why there is no configuration.
//!
//! Invariant: every error names the key (or file) and the place, and has a hint that mends it.

use std::fmt;
use std::path::PathBuf;

use thiserror::Error;

/// Why there is no configuration. Display says what; [`ConfigError::hint`] says what mends it.
#[derive(Debug, Error)]
#[expect(missing_docs, reason = "the fields are what the messages hold")]
pub enum ConfigError {
    #[error("the configuration file {} can't be read", path.display())]
    Unreadable { path: PathBuf, source: std::io::Error },
    #[error("the configuration file {} is not valid TOML, line {line}: {message}", path.display())]
    Syntax { path: PathBuf, line: usize, message: String },
    #[error("unknown key `{key}` ({origin})")]
    UnknownKey { key: String, origin: Origin, hint: String },
    #[error("`{key}` ({origin}): {message}")]
    Type { key: String, origin: Origin, message: String, takes: String },
    #[error("the variable {name} is not UTF-8")]
    NotUnicode { name: String },
    #[error("`{key}` ({origin}) {problem}")]
    Value { key: &'static str, origin: Origin, problem: String, mend: String },
    #[error("there is no place for the state directory: neither XDG_DATA_HOME nor HOME is set")]
    NoStateDir,
}

impl ConfigError {
    /// What the operator can do, one sentence.
    pub fn hint(&self) -> String {
        match self {
            Self::Unreadable { .. } => "check the path and its permissions, or leave --config and CODEBEAKER_CONFIG out".into(),
            Self::Syntax { .. } => "sections are written [server], text stands in quotes: listen = \"127.0.0.1:5000\"".into(),
            Self::UnknownKey { hint, .. } => hint.clone(),
            Self::Type { takes, .. } => format!("it takes {takes}"),
            Self::NotUnicode { name } => format!("set {name} to plain text, or unset it"),
            Self::Value { mend, .. } => mend.clone(),
            Self::NoStateDir => "give --state-dir DIR or set CODEBEAKER_STATE_DIR".into(),
        }
    }
}

/// Where a value is from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// Built in.
    Default,
    /// The configuration file.
    File(PathBuf),
    /// The variable of that name.
    Environment(String),
    /// The flag of that name.
    Flag(&'static str),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File(path) => write!(f, "file {}", path.display()),
            Self::Environment(name) => write!(f, "variable {name}"),
            Self::Flag(name) => write!(f, "flag {name}"),
        }
    }
}
