//! What each runtime costs on this host: a sandbox is made and the smallest program of each language is run in it.
//!
//! Invariants: one sandbox at a time, each within its bound, under the default profile's limits; a figure that is known for this
//! version is not measured again; what fails is logged and stays unmeasured. Read `runtime::figures` next.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;

use crate::command::{Command, CommandOutput, ExecuteCode, Stdin};
use crate::id::ExecutionId;
use crate::language::Language;
use crate::runtime::figures::{Figure, Subject};
use crate::runtime::{ExecutionRequest, InstanceConfig, Runtime, RuntimeKind, Wants};

use super::api::{CreateSession, Principal, SessionError};
use super::manager::Manager;
use super::opening::Opening;
use super::output::Output;
use super::session::Visibility;

/// Measurements of one runtime in one language; the least of them counts.
const TRIES: u32 = 2;

/// A measurement that takes longer says enough by that.
const TIME_MAX: Duration = Duration::from_secs(30);

impl Manager {
    /// Measures every runtime in every language that it can run here; `runtimes` and the selector go by the figures as they come.
    pub async fn measure_runtimes(&self) {
        if !self.shared.config.runtimes.measure {
            return;
        }
        // What an engine serves, and so what is to be measured, depends on its version.
        self.ask_engines(None).await;
        for row in self.languages() {
            let Some(language) = self.shared.languages.get(&row.name) else { continue };
            for kind in row.runtimes {
                let Some(runtime) = self.shared.registry.get(kind) else { continue };
                match tokio::time::timeout(TIME_MAX, self.measure(runtime.as_ref(), &language)).await {
                    Ok(Ok(())) => {}
                    Ok(Err(error)) => {
                        tracing::warn!(runtime = kind.name(), language = %language.name, %error, "it could not be measured");
                    }
                    Err(_) => tracing::warn!(runtime = kind.name(), language = %language.name, "measuring it takes too long"),
                }
            }
        }
    }

    async fn measure(&self, runtime: &dyn Runtime, language: &Arc<Language>) -> Result<(), SessionError> {
        let figures = self.shared.registry.figures();
        let kind = runtime.kind();
        let known = |version: &str| figures.get(kind, version, &language.name).is_some();
        if runtime.version().is_some_and(|version| known(&version)) {
            return Ok(());
        }
        let mut least: Option<Figure> = None;
        for _ in 0..TRIES {
            let asked_for_its_version = runtime.version().is_none();
            let figure = self.try_once(kind, language).await?;
            if runtime.version().is_some_and(|version| known(&version)) {
                return Ok(());
            }
            // The first environment of an engine costs a second one, in which it is asked for its version.
            let Some(figure) = figure.filter(|_| !asked_for_its_version) else { continue };
            least = Some(least.map_or(figure, |least| least.least(figure)));
        }
        if let (Some(figure), Some(version)) = (least, runtime.version()) {
            let subject = Subject { runtime: kind, version, language: language.name.clone() };
            if let Err(error) = figures.note(subject, figure) {
                tracing::warn!(%error, "measured figures are not kept for the next start");
            }
        }
        Ok(())
    }

    /// None when the language takes no empty program.
    async fn try_once(&self, kind: RuntimeKind, language: &Arc<Language>) -> Result<Option<Figure>, SessionError> {
        let request = CreateSession { runtime: Some(kind), ..CreateSession::of(&language.name) };
        let opening = self.prepare(&Principal(String::new()), &request, &[], Visibility::Internal)?;
        let Opening { runtime, config, settings, place, .. } = opening;
        // Measuring takes no place: what clients may have is theirs.
        drop(place);
        let begin = Instant::now();
        let config = InstanceConfig { wants: Wants::New, ..config };
        let instance = runtime.create(config).await?;
        let code = ExecuteCode {
            code: String::new(),
            language: None,
            packages: Vec::new(),
            args: Vec::new(),
            env: std::collections::BTreeMap::new(),
            stdin: Stdin::Empty,
            timeout: None,
        };
        let sink = Arc::new(Output::captured_only(&settings.limits));
        let (_sender, control) = mpsc::channel(1);
        let command = Command::ExecuteCode(code);
        let result = instance.execute(ExecutionRequest { id: ExecutionId::random(), command, sink, control }).await;
        let startup = begin.elapsed();
        instance.close().await;
        Ok(match (result.failure, result.output) {
            (None, Some(CommandOutput::Execution(report))) => Some(Figure::of(startup, report.usage.memory_peak_bytes)),
            (Some(_) | None, _) => None,
        })
    }
}
