//! Profiles of every format become documents: OCI and Docker JSON, seccompiler JSON, the Security Profiles Operator's YAML; raw BPF
//! becomes programs.
//!
//! Invariant: what is not understood is an error with its place (line and column, field, or instruction), never a guess and never a
//! panic; sizes are bounded.

mod seccompiler;
mod wire;

#[cfg(test)]
mod tests;

use thiserror::Error;

use super::bpf::{BpfError, Program};
use super::document::{Document, Format};

/// Bytes of a profile.
pub const BYTES_MAX: usize = 4 << 20;

/// Why a text or a file is no profile.
#[derive(Debug, Error)]
pub enum ReadError {
    /// More than `BYTES_MAX`.
    #[error("it has more than {BYTES_MAX} bytes")]
    Size,
    /// Not UTF-8, where a text is meant.
    #[error("byte {0} is not UTF-8")]
    Text(usize),
    /// Not JSON of this form.
    #[error("line {}, column {}: {}", .0.line(), .0.column(), message(.0))]
    Json(serde_json::Error),
    /// Not YAML of this form.
    #[error("{0}")]
    Yaml(String),
    /// A field's value can't be.
    #[error("{field}: {problem}")]
    Field {
        /// As in `main-thread.filter[3].action`.
        field: String,
        /// What is wrong.
        problem: String,
    },
    /// No filter of the kernel's.
    #[error(transparent)]
    Bpf(#[from] BpfError),
}

impl ReadError {
    fn at(field: impl Into<String>, problem: impl Into<String>) -> Self {
        Self::Field { field: field.into(), problem: problem.into() }
    }
}

/// serde_json's message without the place, which stands before it.
fn message(error: &serde_json::Error) -> String {
    let text = error.to_string();
    text.rsplit_once(" at line ").map_or(text.clone(), |(message, _)| message.to_owned())
}

/// What a file holds.
#[derive(Debug, Clone)]
pub enum Contents {
    /// Rules.
    Document(Document),
    /// One filter.
    Program(Program),
}

/// The format, judged by the bytes alone.
pub fn guess(bytes: &[u8]) -> Format {
    let text = std::str::from_utf8(bytes).unwrap_or("\0");
    let plain = text.chars().all(|c| !c.is_control() || c.is_whitespace());
    match text.trim_start().chars().next() {
        Some('{') if plain && text.contains("\"defaultAction\"") => Format::Oci,
        Some('{') if plain && text.contains("\"mismatch_action\"") => Format::Seccompiler,
        Some('{') if plain && text.contains("\"SeccompProfile\"") => Format::Spo,
        Some('{') if plain => Format::Oci,
        Some(_) if plain && text.contains(':') => Format::Spo,
        Some(_) | None => Format::Bpf,
    }
}

/// Reads bytes as the format says.
pub fn read(bytes: &[u8], format: Format) -> Result<Contents, ReadError> {
    if bytes.len() > BYTES_MAX {
        return Err(ReadError::Size);
    }
    let text = || std::str::from_utf8(bytes).map_err(|error| ReadError::Text(error.valid_up_to()));
    Ok(match format {
        Format::Oci => Contents::Document(wire::oci(text()?)?),
        Format::Seccompiler => Contents::Document(seccompiler::read(text()?)?),
        Format::Spo => Contents::Document(wire::spo(text()?)?),
        Format::Bpf => Contents::Program(Program::parse(bytes)?),
    })
}
