//! The runtimes of this build, by kind.
//!
//! Invariant: at most one runtime of a kind (the first given counts); every kind has its row in `runtime.list`, also when
//! this build lacks it. Read `crate::selector` next, which chooses among them.

use std::sync::Arc;

use super::features::{CandidateFacts, Features, Ground, RuntimeRow};
use super::{Availability, Runtime, RuntimeKind};

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
}

impl Registry {
    /// Of these runtimes.
    pub fn new(runtimes: Vec<Arc<dyn Runtime>>) -> Self {
        Self { runtimes }
    }

    /// The runtime of that kind.
    pub fn get(&self, kind: RuntimeKind) -> Option<Arc<dyn Runtime>> {
        self.runtimes.iter().find(|runtime| runtime.kind() == kind).cloned()
    }

    /// Those that can run that language on this host now, where the image it would have holds its programs or not.
    pub fn running(&self, language: &str, in_image: InImage) -> Vec<RuntimeKind> {
        let runs = |facts: &CandidateFacts| {
            let programs = facts.ground == Ground::Own || in_image == InImage::Yes;
            programs && facts.availability == Availability::Available && facts.languages.iter().any(|name| name == language)
        };
        self.facts().into_iter().filter(runs).map(|facts| facts.kind).collect()
    }

    /// What the selector compares: one entry for each kind, in DESIGN's order.
    pub fn facts(&self) -> Vec<CandidateFacts> {
        RuntimeKind::ALL.into_iter().map(|kind| self.facts_of(kind)).collect()
    }

    fn facts_of(&self, kind: RuntimeKind) -> CandidateFacts {
        match self.get(kind) {
            Some(runtime) => CandidateFacts {
                kind,
                languages: runtime.languages(),
                commands: runtime.commands(),
                availability: runtime.availability(),
                features: runtime.features(),
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

    /// The rows of `runtime.list`.
    pub fn rows(&self) -> Vec<RuntimeRow> {
        self.facts()
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
}
