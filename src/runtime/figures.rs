//! Figures measured on this host: start-up time and memory of each runtime in each language, kept in the state directory.
//!
//! Invariants: a figure belongs to one version of its runtime and goes with it; a file that can't be read is as good as none, for
//! everything in it can be measured again.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::RuntimeKind;

/// Largest file that is read: far more than all runtimes and languages need.
const FILE_BYTES_MAX: u64 = 256 << 10;

/// What one runtime costs in one language.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Figure {
    /// From the request for an environment to the end of the smallest program in it, in microseconds.
    pub startup_us: u64,
    /// The most memory that the environment had meanwhile, in bytes; absent where the host does not tell.
    pub memory_bytes: Option<u64>,
}

impl Figure {
    /// Of one measurement.
    pub fn of(startup: Duration, memory_bytes: Option<u64>) -> Self {
        Self { startup_us: u64::try_from(startup.as_micros()).unwrap_or(u64::MAX), memory_bytes }
    }

    /// The lesser of both, which is the cost without waiting for others.
    #[must_use]
    pub fn least(self, other: Self) -> Self {
        let memory_bytes = self.memory_bytes.into_iter().chain(other.memory_bytes).min();
        Self { startup_us: self.startup_us.min(other.startup_us), memory_bytes }
    }
}

/// Whose figure it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subject {
    /// Which runtime.
    pub runtime: RuntimeKind,
    /// Its version.
    pub version: String,
    /// Name of the language.
    pub language: String,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Row {
    runtime: String,
    version: String,
    language: String,
    #[serde(flatten)]
    figure: Figure,
}

impl Row {
    fn is_of(&self, runtime: RuntimeKind, version: &str) -> bool {
        self.runtime == runtime.name() && self.version == version
    }
}

/// All that is known.
#[derive(Debug, Default)]
pub struct Figures {
    file: Option<PathBuf>,
    /// By runtime and language: an upgrade takes the place of what was there.
    rows: Mutex<BTreeMap<(String, String), Row>>,
}

impl Figures {
    /// With what the file holds; what is measured goes there too.
    pub fn load(file: &Path) -> Self {
        let readable = std::fs::metadata(file).is_ok_and(|metadata| metadata.len() <= FILE_BYTES_MAX);
        let text = if readable { std::fs::read(file).unwrap_or_default() } else { Vec::new() };
        let rows: Vec<Row> = serde_json::from_slice(&text).unwrap_or_default();
        let rows = rows.into_iter().map(|row| ((row.runtime.clone(), row.language.clone()), row)).collect();
        Self { file: Some(file.to_owned()), rows: Mutex::new(rows) }
    }

    /// Of that runtime in that language.
    pub fn get(&self, runtime: RuntimeKind, version: &str, language: &str) -> Option<Figure> {
        let key = (runtime.name().to_owned(), language.to_owned());
        self.with(|rows| rows.get(&key).filter(|row| row.is_of(runtime, version)).map(|row| row.figure))
    }

    /// Of that runtime in the language in which it starts fastest.
    pub fn best(&self, runtime: RuntimeKind, version: &str) -> Option<Figure> {
        let figures = |rows: &mut BTreeMap<_, Row>| {
            rows.values().filter(|row| row.is_of(runtime, version)).map(|row| row.figure).min_by_key(|figure| figure.startup_us)
        };
        self.with(figures)
    }

    /// Keeps a figure; the error is of the file, and the figure counts all the same.
    pub fn note(&self, subject: Subject, figure: Figure) -> std::io::Result<()> {
        let Subject { runtime, version, language } = subject;
        let row = Row { runtime: runtime.name().to_owned(), version, language, figure };
        let all: Vec<Row> = self.with(|rows| {
            rows.insert((row.runtime.clone(), row.language.clone()), row);
            rows.values().cloned().collect()
        });
        let Some(file) = &self.file else { return Ok(()) };
        let text = serde_json::to_vec_pretty(&all).map_err(std::io::Error::other)?;
        // Whole or not at all; the state directory belongs to one server.
        let fresh = file.with_extension("new");
        std::fs::write(&fresh, text).and_then(|()| std::fs::rename(&fresh, file))
    }

    fn with<T>(&self, work: impl FnOnce(&mut BTreeMap<(String, String), Row>) -> T) -> T {
        work(&mut self.rows.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FAST: Figure = Figure { startup_us: 10, memory_bytes: Some(1 << 20) };
    const SLOW: Figure = Figure { startup_us: 900, memory_bytes: None };

    fn subject(version: &str, language: &str) -> Subject {
        Subject { runtime: RuntimeKind::Bun, version: version.into(), language: language.into() }
    }

    #[test]
    fn figures_outlive_the_server_and_go_with_their_version() {
        let dir = tempfile::tempdir().expect("a directory");
        let file = dir.path().join("figures.json");
        let figures = Figures::load(&file);
        figures.note(subject("1.0.0", "javascript"), FAST).expect("written");
        figures.note(subject("1.0.0", "typescript"), SLOW).expect("written");
        let again = Figures::load(&file);
        assert_eq!(again.get(RuntimeKind::Bun, "1.0.0", "javascript"), Some(FAST));
        assert_eq!(again.best(RuntimeKind::Bun, "1.0.0"), Some(FAST));
        assert_eq!(again.get(RuntimeKind::Deno, "1.0.0", "javascript"), None);
        assert_eq!((again.get(RuntimeKind::Bun, "2.0.0", "javascript"), again.best(RuntimeKind::Bun, "2.0.0")), (None, None));
        again.note(subject("2.0.0", "javascript"), SLOW).expect("written");
        assert_eq!(Figures::load(&file).get(RuntimeKind::Bun, "1.0.0", "javascript"), None, "its place is taken");
    }

    #[test]
    fn a_broken_file_is_as_good_as_none_and_is_replaced() {
        let dir = tempfile::tempdir().expect("a directory");
        let file = dir.path().join("figures.json");
        for text in [&b"{"[..], b"[1]", &[0xff; 16]] {
            std::fs::write(&file, text).expect("a file");
            let figures = Figures::load(&file);
            assert_eq!(figures.best(RuntimeKind::Bun, "1.0.0"), None);
            figures.note(subject("1.0.0", "javascript"), FAST).expect("written");
            assert_eq!(Figures::load(&file).best(RuntimeKind::Bun, "1.0.0"), Some(FAST));
        }
    }

    #[test]
    fn the_least_of_two_measurements_counts() {
        assert_eq!(FAST.least(SLOW), FAST);
        assert_eq!(SLOW.least(FAST), FAST);
    }
}
