//! The session manager: the surface `rpc` calls.
//!
//! Invariants: `execute` and `stream` take the place in the queue before they return, and everything a command can be refused
//! for is checked before that; whoever asks sees only its own. Must be called within a tokio runtime that lives as long as
//! the server, because session tasks are spawned on it. Read `opening` and `session` next; `once`, `probe` and `sweeper`
//! hold the rest of `Manager`.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::command::{Command, CommandKind, Stdin};
use crate::config::Config;
use crate::id::{EnvironmentId, ExecutionId, SessionId};
use crate::language::Language;
use crate::runtime::features::Ground;
use crate::runtime::registry::Registry;
use crate::runtime::{Availability, InstanceConfig, Runtime, RuntimeKind, Wants};
use crate::sandbox::error::SandboxError;
use crate::sandbox::profile::Profile;
use crate::sandbox::spec::Limits;
use crate::selector::{CandidateFacts, Need, Preference, Reach, Requirements, select};

use super::admission;
use super::api::*;
use super::book::Book;
use super::cause::CloseCause;
use super::network::{self, Asked};
use super::opening::{self, Opening};
use super::outcomes::Outcomes;
use super::output::Output;
use super::probe::Said;
use super::session::{Session, Visibility};
use super::sources::{ImageSource, LanguageSource, ProfileSource};

/// The image that is always there.
pub(super) const HOST_IMAGE: &str = "host";
/// How long `shutdown` waits for sessions to close once they have been told to.
const CLOSE_WAIT_MAX: Duration = Duration::from_secs(30);

/// What a manager is made of.
pub struct ManagerParts {
    /// The configuration.
    pub config: Arc<Config>,
    /// The runtimes.
    pub registry: Arc<Registry>,
    /// The languages.
    pub languages: Arc<dyn LanguageSource>,
    /// The profiles.
    pub profiles: Arc<dyn ProfileSource>,
    /// The images.
    pub images: Arc<dyn ImageSource>,
}

/// All sessions of the server.
pub struct Manager {
    pub(super) shared: Arc<Shared>,
}

/// What the manager shares with the tasks it spawns.
pub(super) struct Shared {
    pub(super) config: Arc<Config>,
    pub(super) registry: Arc<Registry>,
    pub(super) languages: Arc<dyn LanguageSource>,
    pub(super) profiles: Arc<dyn ProfileSource>,
    pub(super) images: Arc<dyn ImageSource>,
    pub(super) book: Arc<Book>,
    pub(super) outcomes: Arc<Outcomes>,
    /// What each language's `version` command said, by language and image.
    pub(super) said: Mutex<BTreeMap<(String, String), Said>>,
    /// Whose turn it is to ask them.
    pub(super) probing: tokio::sync::Mutex<()>,
}

impl Manager {
    /// A manager without sessions. Call `start` for its sweeper.
    pub fn new(parts: ManagerParts) -> Arc<Self> {
        let ManagerParts { config, registry, languages, profiles, images } = parts;
        Arc::new(Self {
            shared: Arc::new(Shared {
                book: Book::new(&config.session),
                outcomes: Arc::new(Outcomes::new(&config.session)),
                said: Mutex::default(),
                probing: tokio::sync::Mutex::default(),
                config,
                registry,
                languages,
                profiles,
                images,
            }),
        })
    }

    /// Makes a session and returns when it can take commands. When the caller goes away meanwhile it is closed again.
    pub async fn create(&self, principal: &Principal, request: CreateSession) -> Result<SessionView, SessionError> {
        let needed: &[CommandKind] = if request.packages.is_empty() { &[] } else { &[CommandKind::InstallPackages] };
        let opening = self.prepare_asking(principal, &request, needed, Visibility::Principal).await?;
        let session = opening::open_detached(&self.shared, opening).await?;
        Ok(session.row())
    }

    /// Takes the place in the session's queue before it returns; never waits.
    pub fn execute(&self, principal: &Principal, session: &SessionId, command: Command) -> Result<Accepted, SessionError> {
        let session = self.shared.book.find(principal, session)?;
        let (command, limits) = self.check(&session, command)?;
        let execution_id = ExecutionId::random();
        let output = Arc::new(Output::captured_only(&limits));
        let result = session.submit(execution_id.clone(), command, output)?;
        Ok(Accepted { execution_id, result })
    }

    /// Like `execute`, with events. `Stdin::Empty` of the command becomes `Stdin::Open`.
    pub fn stream(&self, principal: &Principal, session: &SessionId, command: Command) -> Result<AcceptedStream, SessionError> {
        let session = self.shared.book.find(principal, session)?;
        let (command, limits) = self.check(&session, with_open_stdin(command))?;
        let execution_id = ExecutionId::random();
        let (output, events) = Output::streamed(&limits, self.shared.config.session.stream_buffer_bytes_max);
        drop(session.submit(execution_id.clone(), command, Arc::new(output))?);
        Ok(AcceptedStream { execution_id, events })
    }

    /// False when the execution has ended or its stdin is closed. Waits while the program's stdin is full.
    pub async fn input(
        &self,
        principal: &Principal,
        session: &SessionId,
        execution: &ExecutionId,
        data: Vec<u8>,
        eof: bool,
    ) -> Result<bool, SessionError> {
        self.find_open(principal, session)?.input(execution, data, eof).await
    }

    /// False when the execution has ended, has not begun or never was a program.
    pub async fn signal(
        &self,
        principal: &Principal,
        session: &SessionId,
        execution: &ExecutionId,
        signal: i32,
    ) -> Result<bool, SessionError> {
        self.find_open(principal, session)?.signal(execution, signal).await
    }

    /// All executions (running, queued, background) when `execution` is absent. False when nothing was there to cancel.
    #[expect(clippy::unused_async, reason = "part of the surface rpc is written against")]
    pub async fn cancel(
        &self,
        principal: &Principal,
        session: &SessionId,
        execution: Option<&ExecutionId>,
    ) -> Result<bool, SessionError> {
        self.find_open(principal, session)?.cancel(execution)
    }

    /// A snapshot of an open session.
    pub fn get(&self, principal: &Principal, session: &SessionId) -> Result<SessionView, SessionError> {
        Ok(self.find_open(principal, session)?.view())
    }

    /// Open sessions, and closed ones that are still known when `state` asks for them.
    pub fn list(&self, principal: &Principal, state: Option<SessionState>, language: Option<&str>) -> Vec<SessionView> {
        let language = language.map(|asked| match self.shared.languages.get(asked) {
            Some(language) => language.name.clone(),
            None => asked.to_owned(),
        });
        let own = |session: &Arc<Session>| session.principal == *principal && session.visibility == Visibility::Principal;
        let wanted = |view: &SessionView| {
            let state_fits = match state {
                Some(state) => view.state == state,
                None => view.state != SessionState::Closed,
            };
            state_fits && language.as_ref().is_none_or(|language| view.language == *language)
        };
        let sessions = self.shared.book.all();
        let mut views: Vec<SessionView> =
            sessions.iter().filter(|session| own(session)).map(|session| session.row()).filter(wanted).collect();
        views.sort_by(|a, b| a.created_at.cmp(&b.created_at).then_with(|| a.session_id.cmp(&b.session_id)));
        views
    }

    /// Returns when no process of the session lives; an unknown or closed id is no error.
    pub async fn close(&self, principal: &Principal, session: &SessionId) {
        if let Ok(session) = self.shared.book.find(principal, session) {
            session.request_close(CloseCause::Asked);
            session.wait_closed().await;
        }
    }

    /// Of any execution of that principal.
    pub fn status(&self, principal: &Principal, execution: &ExecutionId) -> ExecutionStatus {
        self.shared.outcomes.status(principal, execution)
    }

    /// The connection of that number is gone: closes what was tied to it.
    pub fn disconnected(&self, connection: u64) {
        for session in self.shared.book.all() {
            if session.is_tied_to(connection) {
                session.request_close(CloseCause::Disconnected);
            }
        }
    }

    /// No new work; running commands get `grace`; every session closed when it returns.
    pub async fn shutdown(&self, grace: Duration) {
        let book = &self.shared.book;
        book.stop_admission();
        for session in book.all() {
            session.drain();
        }
        if tokio::time::timeout(grace, book.wait_empty()).await.is_ok() {
            return;
        }
        for session in book.all() {
            session.request_close(CloseCause::Shutdown);
        }
        if tokio::time::timeout(CLOSE_WAIT_MAX, book.wait_empty()).await.is_err() {
            tracing::error!("sessions are still closing after {CLOSE_WAIT_MAX:?}; the launcher ends what is left");
        }
    }

    /// The rows of `runtime.list`.
    pub fn runtimes(&self) -> Vec<RuntimeRow> {
        self.shared.registry.rows()
    }

    /// (seconds a command may take at most, bytes of memory a session may have at most, sessions at once) for `initialize`.
    /// A server without a bound of its own on sessions says `u32::MAX`.
    pub fn limits(&self) -> (u64, u64, u64) {
        let config = &self.shared.config;
        let offered: Vec<Arc<Profile>> =
            config.sandbox.profiles.iter().filter_map(|name| self.shared.profiles.get(name)).collect();
        let timeout = offered.iter().map(|profile| profile.maximum.timeout.max(profile.defaults.timeout).as_secs()).max();
        let memory = offered.iter().map(|profile| profile.maximum.memory_bytes).max();
        let sessions = if config.session.sessions_max == 0 { u32::MAX } else { config.session.sessions_max };
        (timeout.unwrap_or(0), memory.unwrap_or(0), u64::from(sessions))
    }

    fn find_open(&self, principal: &Principal, session: &SessionId) -> Result<Arc<Session>, SessionError> {
        let session = self.shared.book.find(principal, session)?;
        session.check_open()?;
        Ok(session)
    }

    /// Decides everything about a session that can be decided before it is made, and takes its place.
    pub(super) fn prepare(
        &self,
        principal: &Principal,
        request: &CreateSession,
        needed: &[CommandKind],
        visibility: Visibility,
    ) -> Result<Opening, SessionError> {
        let shared = &self.shared;
        let language = self.language(&request.language)?;
        let profile = self.profile(&request.profile)?;
        let (settings, named_limits) = admission::settle(request, &profile, &shared.config.session)?;
        let network = network::grant(Asked::by(request.permissions.as_ref()), &profile, &shared.config)?;
        let image = self.image(request, &language)?;
        let (selection, runtime) = self.choose(request, &language, &image, needed)?;
        admission::check_packages("packages", &language, &request.packages)?;
        if !request.packages.is_empty() && !request.persist_filesystem {
            let message =
                "they are gone before the first execution when `persistFilesystem` is false; name them in `execute_code`";
            return Err(SessionError::InvalidField { field: "packages".into(), message: message.into() });
        }
        let image = runtime.own_root().unwrap_or(image);
        let place = shared.book.reserve(principal)?;
        Ok(Opening {
            principal: principal.clone(),
            visibility,
            connection: request.connection,
            runtime,
            config: InstanceConfig {
                environment_id: EnvironmentId::random(),
                owner: principal.0.clone(),
                language,
                image,
                profile,
                limits: settings.limits.clone(),
                named_limits,
                env: settings.env.clone(),
                persist_filesystem: settings.persist_filesystem,
                permissions: request.permissions.clone(),
                network,
                wants: Wants::Any,
            },
            selection,
            settings,
            metadata: request.metadata.clone(),
            packages: request.packages.clone(),
            place,
        })
    }

    fn choose(
        &self,
        request: &CreateSession,
        language: &Language,
        image: &str,
        needed: &[CommandKind],
    ) -> Result<(Selection, Arc<dyn Runtime>), SessionError> {
        let registry = &self.shared.registry;
        let mut needs = BTreeSet::new();
        needs.extend(request.persist_filesystem.then_some(Need::Persistence));
        needs.extend(request.image.is_some().then_some(Need::Image));
        needs.extend(request.permissions.as_ref().is_some_and(|permissions| permissions.allow_net).then_some(Need::Network));
        let code_only = needed.contains(&CommandKind::ExecuteCode) || request.preference != Preference::Balanced;
        let requirements = Requirements {
            preference: request.preference,
            language: language.name.clone(),
            runtime: request.runtime,
            isolation_level_min: self.shared.config.sandbox.isolation_level_min,
            needs,
            commands: needed.to_vec(),
            // A session that states no preference may send any program; one that does weighs what the runtimes differ in.
            reach: if code_only { Reach::Code } else { Reach::Programs },
        };
        let unavailable = |candidates| SessionError::RuntimeNotAvailable { candidates };
        let mut facts = self.facts(language, image);
        let profile = self.profile(&request.profile)?;
        for facts in facts.iter_mut().filter(|facts| facts.availability == Availability::Available) {
            if let Some(reason) = registry.get(facts.kind).and_then(|runtime| runtime.refuses(&profile)) {
                facts.availability = Availability::Unavailable(reason);
            }
        }
        let selection = select(&requirements, &facts).map_err(unavailable)?;
        if request.runtime.is_none() && selection.candidates.first().is_some_and(|best| best.runtime == RuntimeKind::Docker) {
            tracing::warn!(reason = %selection.reason, "a session falls back to Docker");
        }
        let chosen = selection.candidates.first().and_then(|candidate| registry.get(candidate.runtime));
        let runtime = chosen.ok_or_else(|| unavailable(selection.candidates.clone()))?;
        Ok((selection, runtime))
    }

    /// What the registry knows, with what the image lacks of the language.
    fn facts(&self, language: &Language, image: &str) -> Vec<CandidateFacts> {
        let mut facts = self.shared.registry.facts(&language.name);
        let serves = |facts: &CandidateFacts| facts.availability == Availability::Available && facts.serves;
        // With one candidate there is nothing to compare, and looking into the image costs.
        if facts.iter().filter(|facts| serves(facts)).count() > 1
            && !self.shared.images.missing_programs(image, language).is_empty()
        {
            let lacks = format!("no program of {} is in the image `{image}`", language.display_name);
            for facts in facts.iter_mut().filter(|facts| facts.ground == Ground::Image) {
                facts.lacks = Some(lacks.clone());
            }
        }
        facts
    }

    fn language(&self, name: &str) -> Result<Arc<Language>, SessionError> {
        self.shared.languages.get(name).ok_or_else(|| SessionError::LanguageNotSupported {
            language: name.to_owned(),
            supported: self.shared.languages.all().iter().map(|language| language.name.clone()).collect(),
        })
    }

    /// A profile that the operator offers.
    pub(super) fn profile(&self, name: &str) -> Result<Arc<Profile>, SessionError> {
        let offered = &self.shared.config.sandbox.profiles;
        let profile = if offered.iter().any(|offer| offer == name) { self.shared.profiles.get(name) } else { None };
        profile.ok_or_else(|| admission::profile_denied(name, offered))
    }

    fn image(&self, request: &CreateSession, language: &Language) -> Result<String, SessionError> {
        let elsewhere = || {
            let named = request.runtime.and_then(|kind| self.shared.registry.get(kind));
            named.is_some_and(|runtime| runtime.brings_images())
        };
        match request.image.as_deref() {
            Some(image) if image == HOST_IMAGE || self.shared.images.installed(image) || elsewhere() => Ok(image.to_owned()),
            Some(image) => Err(SessionError::Sandbox(SandboxError::ImageNotFound { image: image.to_owned() })),
            None => Ok(self.default_image(language)),
        }
    }

    /// The language's own image when it is installed, else the host's.
    pub(super) fn default_image(&self, language: &Language) -> String {
        if self.shared.images.installed(&language.image) { language.image.clone() } else { HOST_IMAGE.to_owned() }
    }

    /// What a command can be refused for before it has a place in the queue; `submit` checks the rest.
    fn check(&self, session: &Session, mut command: Command) -> Result<(Command, Limits), SessionError> {
        session.check_open()?;
        let (limits, runtime, own) =
            session.with_view(|view| (view.config.limits.clone(), view.runtime, view.language.clone()));
        admission::check_timeout(&command, &limits)?;
        if let Command::ExecuteCode(code) = &mut command
            && let Some(asked) = &mut code.language
        {
            *asked = self.language_of_runtime(asked, runtime)?;
        }
        let asked = if let Command::ExecuteCode(code) = &command { code.language.as_deref() } else { None };
        admission::check_command_packages(&command, self.language(asked.unwrap_or(&own))?.as_ref())?;
        Ok((command, limits))
    }

    /// The name of a language that this runtime serves.
    fn language_of_runtime(&self, asked: &str, runtime: RuntimeKind) -> Result<String, SessionError> {
        let name = self.language(asked)?.name.clone();
        let runtime = self.shared.registry.get(runtime);
        if runtime.as_ref().is_some_and(|runtime| runtime.serves(&name)) {
            return Ok(name);
        }
        let supported = runtime.map(|runtime| runtime.languages()).unwrap_or_default();
        Err(SessionError::LanguageNotSupported { language: name, supported })
    }
}

/// Under `session.stream` standard input stays open for `session.input`.
fn with_open_stdin(mut command: Command) -> Command {
    let stdin = match &mut command {
        Command::ExecuteShell(shell) => Some(&mut shell.stdin),
        Command::ExecuteCode(code) => Some(&mut code.stdin),
        Command::WriteFile(_)
        | Command::ReadFile(_)
        | Command::CreateDirectory(_)
        | Command::CopyFile(_)
        | Command::DeleteFile(_)
        | Command::ListDirectory(_)
        | Command::InstallPackages(_) => None,
    };
    if let Some(stdin) = stdin
        && *stdin == Stdin::Empty
    {
        *stdin = Stdin::Open;
    }
    command
}
