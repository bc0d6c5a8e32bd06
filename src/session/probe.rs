//! Which version of each language is installed: asked once of the language itself, in a sandbox.
//!
//! Invariant: a version is what the `version` command printed under the default profile; nothing is run outside a sandbox.
//! Read `manager` next.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::sync::mpsc;

use crate::command::{Command, ExecuteShell, Stdin};
use crate::id::ExecutionId;
use crate::language::Language;
use crate::runtime::registry::InImage;
use crate::runtime::{ExecutionRequest, RuntimeKind};

use super::api::{CreateSession, LanguageRow, Principal, SessionError};
use super::locked;
use super::manager::Manager;
use super::output::Output;
use super::session::Visibility;

/// Longest version kept, in characters.
const VERSION_CHARS_MAX: usize = 200;

impl Manager {
    /// Asks every installed language for its version; `languages` tells what is known. Failures are logged, not returned: a
    /// language without a version is still listed.
    pub async fn probe_languages(&self) {
        for language in self.shared.languages.all() {
            let image = self.default_image(&language);
            if !self.shared.images.language_installed(&image, &language) {
                continue;
            }
            match self.version_of(&language).await {
                Ok(Some(version)) => drop(locked(&self.shared.versions).insert(language.name.clone(), version)),
                Ok(None) => tracing::warn!(language = %language.name, "the language did not tell its version"),
                Err(error) => tracing::warn!(language = %language.name, %error, "the language's version could not be asked"),
            }
        }
    }

    /// The rows of `language.list`.
    pub fn languages(&self) -> Vec<LanguageRow> {
        let shared = &self.shared;
        let versions = locked(&shared.versions).clone();
        let row = |language: Arc<Language>| {
            let image = self.default_image(&language);
            let in_image = shared.images.language_installed(&image, &language);
            let runtimes = shared.registry.running(&language.name, InImage::of(in_image));
            LanguageRow {
                name: language.name.clone(),
                display_name: language.display_name.clone(),
                aliases: language.aliases.clone(),
                version: versions.get(&language.name).cloned().or_else(|| self.version_of_engine(*runtimes.first()?)),
                installed: in_image || !runtimes.is_empty(),
                runtimes,
                image,
            }
        };
        shared.languages.all().into_iter().map(row).collect()
    }

    /// Of a language that only an engine runs here, the engine's version is the best there is.
    fn version_of_engine(&self, kind: RuntimeKind) -> Option<String> {
        let runtime = self.shared.registry.get(kind).filter(|runtime| runtime.own_root().is_some())?;
        Some(format!("{} {}", kind.name(), runtime.version()?))
    }

    async fn version_of(&self, language: &Arc<Language>) -> Result<Option<String>, SessionError> {
        let Some((program, args)) = language.version.split_first() else { return Ok(None) };
        let principal = Principal(String::new());
        let opening = self.prepare(&principal, &CreateSession::of(&language.name), &[], Visibility::Internal)?;
        let output = Arc::new(Output::captured_only(&opening.settings.limits));
        // Asking takes no place: what clients may have is theirs.
        drop(opening.place);
        let instance = opening.runtime.create(opening.config).await?;
        let command = Command::ExecuteShell(ExecuteShell {
            program: program.clone(),
            args: args.to_vec(),
            working_directory: None,
            env: BTreeMap::new(),
            stdin: Stdin::Empty,
            timeout: None,
            background: false,
        });
        let (_sender, control) = mpsc::channel(1);
        let sink = Arc::clone(&output);
        let result = instance.execute(ExecutionRequest { id: ExecutionId::random(), command, sink, control }).await;
        instance.close().await;
        let (stdout, stderr) = output.take_captured();
        let printed = [stdout.data, stderr.data].into_iter().find_map(|data| first_line(&data));
        Ok(printed.filter(|_| result.failure.is_none()))
    }
}

fn first_line(data: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(data);
    let line = text.lines().map(str::trim).find(|line| !line.is_empty())?;
    Some(line.chars().filter(|letter| !letter.is_control()).take(VERSION_CHARS_MAX).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_line_with_something_on_it_is_the_version() {
        assert_eq!(first_line(b"\n  Python 3.13.1 \nmore\n"), Some("Python 3.13.1".into()));
        assert_eq!(first_line(b"\x1b[1mv22\n"), Some("[1mv22".into()));
        assert_eq!(first_line(b" \n"), None);
    }
}
