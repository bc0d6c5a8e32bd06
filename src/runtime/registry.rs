//! The runtimes of this build, by kind.
//!
//! Invariant: at most one runtime of a kind (the first given counts); every kind has its row in `runtime.list`, also when
//! this build lacks it. Read `crate::selector` next, which chooses among them.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::sandbox::profile::Profile;

use super::features::{CandidateFacts, Features, Ground, RuntimeRow};
use super::figures::{Figure, Figures};
use super::{Availability, Runtime, RuntimeKind, isolation};

/// Whether the image that a language would run on holds its programs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "two words")]
pub enum InImage {
    Yes,
    No,
}

impl InImage {
    /// Of the answer to that question.
    pub fn of(answer: bool) -> Self {
        if answer { Self::Yes } else { Self::No }
    }
}

/// All runtimes of the server.
pub struct Registry {
    runtimes: Vec<Arc<dyn Runtime>>,
    figures: Figures,
    /// Isolation levels, where they follow from walls.
    levels: BTreeMap<RuntimeKind, u8>,
}

impl Registry {
    /// Of these runtimes, without measured figures, each with the isolation level that it says of itself.
    pub fn new(runtimes: Vec<Arc<dyn Runtime>>) -> Self {
        Self { runtimes, figures: Figures::default(), levels: BTreeMap::new() }
    }

    /// Goes by these figures, and by the walls that stand under this profile.
    #[must_use]
    pub fn with(mut self, figures: Figures, profile: Option<&Profile>) -> Self {
        let level = |runtime: &Arc<dyn Runtime>| Some((runtime.kind(), isolation::level(&runtime.walls(profile?))));
        self.levels = self.runtimes.iter().filter_map(level).collect();
        self.figures = figures;
        self
    }

    /// What is measured, and where it is kept.
    pub fn figures(&self) -> &Figures {
        &self.figures
    }

    /// The runtime of that kind.
    pub fn get(&self, kind: RuntimeKind) -> Option<Arc<dyn Runtime>> {
        self.runtimes.iter().find(|runtime| runtime.kind() == kind).cloned()
    }

    fn runtime(&self, kind: RuntimeKind) -> Option<&dyn Runtime> {
        self.runtimes.iter().map(Arc::as_ref).find(|runtime| runtime.kind() == kind)
    }

    /// Ends all of them: `Runtime::end`.
    pub fn end(&self) {
        self.runtimes.iter().for_each(|runtime| runtime.end());
    }

    /// Those that can run that language on this host now, where the image it would have holds its programs or not.
    pub fn running(&self, language: &str, in_image: InImage) -> Vec<RuntimeKind> {
        let runs = |runtime: &&Arc<dyn Runtime>| {
            let programs = in_image == InImage::Yes || runtime.own_root().is_some();
            programs && runtime.availability() == Availability::Available && runtime.serves(language)
        };
        let mut kinds: Vec<RuntimeKind> = self.runtimes.iter().filter(runs).map(|runtime| runtime.kind()).collect();
        kinds.sort_unstable();
        kinds
    }

    /// What the selector compares for a request in that language: one entry for each kind, in DESIGN's order.
    pub fn facts(&self, language: &str) -> Vec<CandidateFacts> {
        let figure = |kind, version: &str| self.figures.get(kind, version, language);
        let facts = |kind| match self.runtime(kind) {
            Some(runtime) => CandidateFacts {
                kind,
                serves: runtime.serves(language),
                commands: runtime.commands(),
                availability: runtime.availability(),
                features: self.features(runtime, figure),
                ground: if runtime.own_root().is_some() { Ground::Own } else { Ground::Image },
                lacks: runtime.lacks(language),
            },
            None => CandidateFacts {
                kind,
                serves: false,
                commands: kind.commands(),
                availability: not_built_in(kind),
                features: Features::NONE,
                ground: Ground::Own,
                lacks: None,
            },
        };
        RuntimeKind::ALL.into_iter().map(facts).collect()
    }

    /// What the runtime says of itself, with what was measured and what follows from its walls in its place.
    fn features(&self, runtime: &dyn Runtime, figure: impl FnOnce(RuntimeKind, &str) -> Option<Figure>) -> Features {
        let mut features = runtime.features();
        let figure = runtime.version().and_then(|version| figure(runtime.kind(), &version));
        if let Some(level) = self.levels.get(&runtime.kind()) {
            features.isolation_level = *level;
        }
        if let Some(figure) = figure {
            features.startup_time_ms = figure.startup_us as f64 / 1000.0;
            if let Some(bytes) = figure.memory_bytes {
                features.memory_overhead_mb = bytes as f64 / f64::from(1 << 20);
            }
            // Where the host does not tell the memory, one of the two figures is a guess.
            features.measured = figure.memory_bytes.is_some();
        }
        features
    }

    /// The rows of `runtime.list`.
    pub fn rows(&self) -> Vec<RuntimeRow> {
        let figure = |kind, version: &str| self.figures.best(kind, version);
        let row = |kind: RuntimeKind| {
            let runtime = self.runtime(kind);
            RuntimeRow {
                name: runtime.map_or_else(|| kind.name(), |runtime| runtime.name()).to_owned(),
                kind,
                reason: match runtime.map_or_else(|| not_built_in(kind), Runtime::availability) {
                    Availability::Available => None,
                    Availability::Unavailable(reason) => Some(reason),
                },
                languages: runtime.map(Runtime::languages).unwrap_or_default(),
                commands: runtime.map_or_else(|| kind.commands(), Runtime::commands),
                features: runtime.map_or(Features::NONE, |runtime| self.features(runtime, figure)),
            }
        };
        RuntimeKind::ALL.into_iter().map(row).collect()
    }
}

fn not_built_in(kind: RuntimeKind) -> Availability {
    Availability::Unavailable(format!("this build has no {} runtime", kind.name()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::CommandKind;
    use crate::session::tests::simulated::SimulatedRuntime;

    #[test]
    fn every_kind_is_listed_and_those_not_built_in_say_so() {
        let registry = Registry::new(vec![SimulatedRuntime::new()]);
        let rows = registry.rows();
        let kinds: Vec<_> = rows.iter().map(|row| row.kind).collect();
        assert_eq!(kinds, RuntimeKind::ALL);
        let available: Vec<_> = rows.iter().filter(|row| row.reason.is_none()).map(|row| row.kind).collect();
        assert_eq!(available, [RuntimeKind::NativeProcess]);
        let deno = rows.iter().find(|row| row.kind == RuntimeKind::Deno).expect("listed");
        assert_eq!(deno.reason.as_deref(), Some("this build has no Deno runtime"));
    }

    #[test]
    fn a_language_is_run_only_by_those_that_have_it_and_its_programs() {
        let registry = Registry::new(vec![SimulatedRuntime::new()]);
        assert_eq!(registry.running("python", InImage::Yes), [RuntimeKind::NativeProcess]);
        assert!(registry.running("python", InImage::No).is_empty());
        assert!(registry.running("cobol", InImage::Yes).is_empty());
    }

    /// The table of docs/runtimes.md, from what is declared.
    fn table() -> String {
        let kinds = [
            RuntimeKind::NativeProcess,
            RuntimeKind::Deno,
            RuntimeKind::Bun,
            RuntimeKind::NodeJs,
            RuntimeKind::WebAssembly,
            RuntimeKind::V8Isolate,
            RuntimeKind::Docker,
        ];
        let row = |begin: &str, cells: [String; 7]| format!("{begin}{}", cells.concat());
        let mut lines = vec![row("| command |", kinds.map(|kind| format!(" `{}` |", kind.name())))];
        lines.push(row("| --- |", kinds.map(|_| " --- |".to_owned())));
        lines.extend(CommandKind::ALL.into_iter().map(|command| {
            let cells = kinds.map(|kind| if kind.commands().contains(&command) { " yes |" } else { " – |" }.to_owned());
            row(&format!("| `{}` |", command.name()), cells)
        }));
        lines.join("\n")
    }

    #[test]
    fn the_table_of_commands_in_the_docs_is_what_runtimes_declare() {
        let page = include_str!("../../docs/runtimes.md");
        let (_, rest) = page.split_once("<!-- commands -->\n").expect("the table begins");
        let (shown, _) = rest.split_once("\n<!-- /commands -->").expect("the table ends");
        assert_eq!(shown, table(), "docs/runtimes.md must hold:\n{}", table());
    }
}
