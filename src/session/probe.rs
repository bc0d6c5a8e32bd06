//! Which languages are installed, and in which version: asked of the language itself, in a sandbox, when somebody wants to know.
//!
//! Invariant: a version is what the `version` command printed; a language whose command fails is not installed, whatever programs
//! the image holds. Nothing is run outside a sandbox, and nothing twice for one image. Read `manager` next.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::sync::mpsc;

use crate::command::{Command, CommandKind, ExecuteShell, Stdin};
use crate::id::ExecutionId;
use crate::language::Language;
use crate::language::plan::version_plan;
use crate::runtime::registry::InImage;
use crate::runtime::{Availability, ExecutionRequest, Instance, InstanceConfig, Runtime, RuntimeKind, Wants};

use super::admission;
use super::api::{CreateSession, LanguageRow, Principal, SessionError};
use super::locked;
use super::manager::Manager;
use super::opening::Opening;
use super::output::Output;
use super::session::Visibility;

/// Longest version or complaint kept, in characters.
const LINE_CHARS_MAX: usize = 200;

/// What a language said of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Said {
    /// Its version.
    Version(String),
    /// Why it does not work.
    Complaint(String),
}

impl Manager {
    /// The rows of `language.list`, each engine and each installed language asked for its version unless it was before.
    pub async fn probed_languages(&self) -> Vec<LanguageRow> {
        self.ask_engines(None).await;
        self.probe_languages().await;
        self.languages()
    }

    /// Like `prepare`; before a request is refused for want of a runtime, engines that have not told their version are asked.
    pub(super) async fn prepare_asking(
        &self,
        principal: &Principal,
        request: &CreateSession,
        needed: &[CommandKind],
        visibility: Visibility,
    ) -> Result<Opening, SessionError> {
        match self.prepare(principal, request, needed, visibility) {
            Err(SessionError::RuntimeNotAvailable { .. }) if self.ask_engines(request.runtime).await => {
                self.prepare(principal, request, needed, visibility)
            }
            prepared => prepared,
        }
    }

    /// Has engines that have not told their version do so, all of them or that one: until then they serve what every version serves.
    /// True when one told it.
    pub(super) async fn ask_engines(&self, only: Option<RuntimeKind>) -> bool {
        let mut told = false;
        for kind in RuntimeKind::ALL.into_iter().filter(|kind| only.is_none_or(|only| only == *kind)) {
            let Some(runtime) = self.shared.registry.get(kind) else { continue };
            if runtime.version().is_some() || runtime.availability() != Availability::Available {
                continue;
            }
            match self.plain_config(runtime.as_ref()) {
                Ok(Some(config)) => runtime.learn(config).await,
                Ok(None) => {}
                Err(error) => tracing::warn!(runtime = kind.name(), %error, "it could not be asked what it is"),
            }
            told |= runtime.version().is_some();
        }
        told
    }

    /// An environment of that runtime that nobody asked for, in a language that it serves; none when it serves none yet.
    fn plain_config(&self, runtime: &dyn Runtime) -> Result<Option<InstanceConfig>, SessionError> {
        let Some(language) = runtime.languages().first().and_then(|name| self.shared.languages.get(name)) else {
            return Ok(None);
        };
        let request = self.own_request(&language.name);
        let profile = self.profile(&request.profile)?;
        let (settings, _) = admission::settle(&request, &profile, &self.shared.config.session)?;
        let image = runtime.own_root().unwrap_or_else(|| self.default_image(&language));
        Ok(Some(InstanceConfig::without_server(language, image, profile, settings.limits)))
    }

    /// For what the server does of its own accord: under `default`, or the first profile where that one is not offered.
    fn own_request(&self, language: &str) -> CreateSession {
        let offered = &self.shared.config.sandbox.profiles;
        let profile = offered.iter().find(|name| *name == "default").or_else(|| offered.first());
        let request = CreateSession::of(language);
        CreateSession { profile: profile.cloned().unwrap_or_else(|| request.profile.clone()), ..request }
    }

    /// Asks every language whose programs are there for its version; `languages` tells what is known. Failures to ask are
    /// logged, not returned: a language without a version is still listed, and asked again the next time.
    async fn probe_languages(&self) {
        let _turn = self.shared.probing.lock().await;
        let mut by_image: BTreeMap<String, Vec<Arc<Language>>> = BTreeMap::new();
        for language in self.shared.languages.all() {
            let image = self.default_image(&language);
            let known = locked(&self.shared.said).contains_key(&(language.name.clone(), image.clone()));
            if !known && self.shared.images.missing_programs(&image, &language).is_empty() {
                by_image.entry(image).or_default().push(language);
            }
        }
        for (image, languages) in by_image {
            if let Err(error) = self.ask(&image, &languages).await {
                tracing::warn!(%image, %error, "the versions of its languages could not be asked");
            }
        }
    }

    /// The rows of `language.list`, as far as they are known.
    pub fn languages(&self) -> Vec<LanguageRow> {
        let shared = &self.shared;
        let row = |language: Arc<Language>| {
            let image = self.default_image(&language);
            let missing = shared.images.missing_programs(&image, &language);
            let said = locked(&shared.said).get(&(language.name.clone(), image.clone())).cloned();
            let (version, reason) = match (missing.is_empty(), said) {
                (false, _) => (None, Some(reason(&image, &language, &missing))),
                (true, None) => (None, None),
                (true, Some(Said::Version(version))) => (Some(version), None),
                (true, Some(Said::Complaint(complaint))) => (None, Some(complaint)),
            };
            let runtimes = shared.registry.running(&language.name, InImage::of(reason.is_none()));
            LanguageRow {
                name: language.name.clone(),
                display_name: language.display_name.clone(),
                aliases: language.aliases.clone(),
                version: version.or_else(|| self.version_of_engine(*runtimes.first()?)),
                installed: !runtimes.is_empty(),
                reason: reason.filter(|_| runtimes.is_empty()),
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

    /// Asks all languages of one image in one sandbox.
    async fn ask(&self, image: &str, languages: &[Arc<Language>]) -> Result<(), SessionError> {
        let Some(first) = languages.first() else { return Ok(()) };
        let request = CreateSession { runtime: Some(RuntimeKind::NativeProcess), ..self.own_request(&first.name) };
        let opening = self.prepare(&Principal(String::new()), &request, &[], Visibility::Internal)?;
        // Asking takes no place: what clients may have is theirs.
        drop(opening.place);
        let limits = opening.settings.limits;
        let instance = opening.runtime.create(InstanceConfig { wants: Wants::New, ..opening.config }).await?;
        for language in languages {
            let output = Arc::new(Output::captured_only(&limits));
            let said = version_of(instance.as_ref(), language, output).await;
            if let Some(said) = said {
                locked(&self.shared.said).insert((language.name.clone(), image.to_owned()), said);
            }
        }
        instance.close().await;
        Ok(())
    }
}

/// Why a language is not installed, and what mends it.
fn reason(image: &str, language: &Language, missing: &[String]) -> String {
    let mend = if image == super::manager::HOST_IMAGE && !language.host_packages.is_empty() {
        format!(
            "; on Debian: apt-get install {}, or have an image named `{}` (codebeaker image build --list)",
            language.host_packages.join(" "),
            language.image
        )
    } else {
        String::new()
    };
    format!("the image `{image}` has no `{}`{mend}", missing.join("`, `"))
}

async fn version_of(instance: &dyn Instance, language: &Language, output: Arc<Output>) -> Option<Said> {
    let mut argv = version_plan(language).into_iter();
    let command = Command::ExecuteShell(ExecuteShell {
        program: argv.next()?,
        args: argv.collect(),
        working_directory: None,
        env: language.env.clone(),
        stdin: Stdin::Empty,
        timeout: None,
        background: false,
    });
    let (_sender, control) = mpsc::channel(1);
    let sink = Arc::clone(&output);
    let result = instance.execute(ExecutionRequest { id: ExecutionId::random(), command, sink, control }).await;
    let (stdout, stderr) = output.take_captured();
    match result.failure {
        None => [stdout.data, stderr.data].into_iter().find_map(|data| first_line(&data)).map(Said::Version),
        Some(failure) => Some(Said::Complaint(first_line(&stderr.data).unwrap_or(failure.message))),
    }
}

fn first_line(data: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(data);
    let line = text.lines().map(str::trim).find(|line| !line.is_empty())?;
    Some(line.chars().filter(|letter| !letter.is_control()).take(LINE_CHARS_MAX).collect())
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
