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

    /// Ends all of them: `Runtime::end`.
    pub fn end(&self) {
        self.runtimes.iter().for_each(|runtime| runtime.end());
    }

    /// Those that can run that language on this host now, where the image it would have holds its programs or not.
    pub fn running(&self, language: &str, in_image: InImage) -> Vec<RuntimeKind> {
        let runs = |runtime: &&Arc<dyn Runtime>| {
            let programs = in_image == InImage::Yes || runtime.own_root().is_some();
            let serves = || runtime.languages().iter().any(|name| name == language);
            programs && runtime.availability() == Availability::Available && serves()
        };
        let mut kinds: Vec<RuntimeKind> = self.runtimes.iter().filter(runs).map(|runtime| runtime.kind()).collect();
        kinds.sort_unstable();
        kinds
    }

    /// What the selector compares for a request in that language: one entry for each kind, in DESIGN's order.
    pub fn facts(&self, language: &str) -> Vec<CandidateFacts> {
        let mut all = self.all_facts(|kind, version| self.figures.get(kind, version, language));
        for facts in &mut all {
            facts.lacks = self.get(facts.kind).and_then(|runtime| runtime.lacks(language));
        }
        all
    }

    fn all_facts(&self, figure: impl Fn(RuntimeKind, &str) -> Option<Figure>) -> Vec<CandidateFacts> {
        RuntimeKind::ALL.into_iter().map(|kind| self.facts_of(kind, &figure)).collect()
    }

    fn facts_of(&self, kind: RuntimeKind, figure: impl Fn(RuntimeKind, &str) -> Option<Figure>) -> CandidateFacts {
        match self.get(kind) {
            Some(runtime) => CandidateFacts {
                kind,
                languages: runtime.languages(),
                commands: runtime.commands(),
                availability: runtime.availability(),
                features: self.features(runtime.as_ref(), runtime.version().and_then(|version| figure(kind, &version))),
                ground: if runtime.own_root().is_some() { Ground::Own } else { Ground::Image },
                lacks: None,
            },
            None => CandidateFacts {
                kind,
                languages: Vec::new(),
                commands: kind.commands(),
                availability: Availability::Unavailable(format!("this build has no {} runtime", kind.name())),
                features: Features::NONE,
                ground: Ground::Own,
                lacks: None,
            },
        }
    }

    /// What the runtime says of itself, with what was measured and what follows from its walls in its place.
    fn features(&self, runtime: &dyn Runtime, figure: Option<Figure>) -> Features {
        let mut features = runtime.features();
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
        self.all_facts(|kind, version| self.figures.best(kind, version))
            .into_iter()
            .map(|facts| RuntimeRow {
                name: self.get(facts.kind).map_or_else(|| facts.kind.name().to_owned(), |runtime| runtime.name().to_owned()),
                kind: facts.kind,
                reason: match facts.availability {
                    Availability::Available => None,
                    Availability::Unavailable(reason) => Some(reason),
                },
                languages: facts.languages,
                commands: facts.commands,
                features: facts.features,
            })
            .collect()
    }
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
