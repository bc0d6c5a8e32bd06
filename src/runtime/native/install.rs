//! `install_packages`, and the installs before other commands: an installer in its own view of mounts and, where the session was
//! granted the operator's index, in a network of its own with a proxy that leads there.
//!
//! Invariants: what an install reaches is closed when it ends, before its answer; nothing else of the session is in that network;
//! why an install failed is told in words, with the mend.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::mpsc;

use crate::command::*;
use crate::language::{Language, LanguageError, install_file_plan, install_plan};
use crate::plan::files::FileCommand;
use crate::plan::messages::View;
use crate::runtime::egress::{self, NetworkGrant, User, Way};
use crate::runtime::{OutputSink, OutputVerdict};

use super::instance::{Launch, Run, Warm, broken};
use super::streams::{Feed, Held};

/// What is kept of an installer's output to find its reason in.
const TAIL_BYTES_MAX: usize = 16 << 10;
/// Longest line of an installer that is told, in characters.
const LINE_CHARS_MAX: usize = 300;
/// Where installers find the certificates that they trust, while they run.
const CERTIFICATES: &str = "/tmp/.codebeaker-certificates.pem";

impl Run<'_> {
    pub(super) async fn install(&self, install: InstallPackages, control: &mut mpsc::Receiver<Control>) -> Answer {
        let language = Arc::clone(&self.instance.config.language);
        let answer = self.install_all(install, &language, control).await;
        self.keep_warm(&language).await;
        answer
    }

    async fn install_all(
        &self,
        install: InstallPackages,
        language: &Language,
        control: &mut mpsc::Receiver<Control>,
    ) -> Answer {
        let mut answer = None;
        if !install.packages.is_empty() {
            let plan = install_plan(language, &install.packages).map_err(|error| unplanned(&error))?;
            answer = Some(self.installed(language, plan, self.sink, control).await?.0);
        }
        match (&answer, &install.requirements_file) {
            (None | Some((_, None)), Some(path)) => {
                let plan = install_file_plan(language, path).map_err(|error| unplanned(&error))?;
                Ok(self.installed(language, plan, self.sink, control).await?.0)
            }
            _ => answer.ok_or_else(broken),
        }
    }

    /// Runs an installer in the view of installers, and says in words why it failed.
    pub(super) async fn installed(
        &self,
        language: &Language,
        plan: Command,
        sink: &dyn OutputSink,
        control: &mut mpsc::Receiver<Control>,
    ) -> Result<((CommandOutput, Option<Failure>), Held), Failure> {
        let Command::ExecuteShell(mut shell) = plan else { return Err(broken()) };
        let variables = std::mem::take(&mut shell.env);
        let directory = self.instance.runtime.packages();
        if let Some(directory) = directory {
            shell.env.extend(filled(&language.source_env, "{directory}", directory));
        }
        let opened = self.open_index(language)?;
        shell.env.extend(self.index_variables(language, opened.is_some()).await?);
        let (way, door) = opened.unzip();
        let timeout = self.instance.runtime.step_timeout();
        let feed = Feed::Later(Held::default());
        let launch = Launch {
            shell,
            language: &variables,
            feed,
            timeout,
            view: View::Installers,
            door,
            warm: Warm::Never,
            source: None,
        };
        let watched = Watched { sink, tail: Mutex::default() };
        let launched = self.launch(launch, &watched, control).await;
        // Also one that failed may have changed what an interpreter finds.
        self.sandbox.warm().outdate();
        let index = self.index_state(language, way.as_ref());
        if let Some(way) = way {
            way.close().await;
        }
        self.forget(CERTIFICATES.into()).await;
        let ((output, failure), held) = launched?;
        let failure = failure.map(|failure| match failure.kind {
            FailureKind::NonzeroExit => {
                let why = Sources { directory, index }.why_not_installed(language, &watched.tail());
                Failure { kind: FailureKind::PackageUnavailable, message: why }
            }
            FailureKind::ProgramNotFound => Failure { kind: failure.kind, message: "the installer is not in the image".into() },
            FailureKind::PackageUnavailable | FailureKind::Cancelled => failure,
            kind => Failure { kind, message: failure.message.replacen("the program", "the installer", 1) },
        });
        Ok(((output, failure), held))
    }

    /// A way out for the step that begins, when the session was granted one and there is an index for the language.
    fn open_index(&self, language: &Language) -> Result<Option<(Way, OwnedFd)>, Failure> {
        let Some(syntax) = language.package_syntax else { return Ok(None) };
        let config = &self.instance.config;
        self.instance.runtime.egress().open_for_install(syntax, config.network, &config.environment_id).map_err(|source| {
            tracing::warn!(%source, "no proxy for an install");
            Failure {
                kind: FailureKind::IoError,
                message: "the server has no descriptor left for the installer's proxy".into(),
            }
        })
    }

    /// What tells an installer where its index is, or that there is none.
    async fn index_variables(&self, language: &Language, reached: bool) -> Result<BTreeMap<String, String>, Failure> {
        let egress = self.instance.runtime.egress();
        let index = language.package_syntax.and_then(|syntax| egress.index(syntax)).filter(|_| reached);
        let Some(index) = index else { return Ok(language.offline_env.clone()) };
        let mut told = filled(&language.index_env, "{index}", index.as_str());
        match egress.certificates() {
            None => told.retain(|_, value| !value.contains("{ca}")),
            Some(certificates) => {
                let (path, mode) = (CERTIFICATES.into(), WriteMode::Create);
                let command =
                    FileCommand::Write { path, content: certificates.to_vec().into(), mode, permissions: Some(0o644) };
                if !matches!(self.sandbox.init().file(command).await, Ok(Ok(_))) {
                    let message = "the certificates of the package index could not be written into the session".into();
                    return Err(Failure { kind: FailureKind::IoError, message });
                }
                told = filled(&told, "{ca}", CERTIFICATES);
            }
        }
        told.extend(egress::variables(User::Install));
        Ok(told)
    }

    fn index_state(&self, language: &Language, way: Option<&Way>) -> Index {
        let egress = self.instance.runtime.egress();
        let there = language.package_syntax.is_some_and(|syntax| egress.index(syntax).is_some());
        match (way, self.instance.config.network) {
            (Some(way), _) => Index::Reached { denied: way.denied() },
            (None, NetworkGrant::None) if there => Index::NotGranted,
            (None, NetworkGrant::None | NetworkGrant::Installs | NetworkGrant::Programs) => Index::None,
        }
    }
}

/// The variables with one word replaced.
fn filled(variables: &BTreeMap<String, String>, word: &str, by: &str) -> BTreeMap<String, String> {
    variables.iter().map(|(name, value)| (name.clone(), value.replace(word, by))).collect()
}

/// Where an install could take packages from.
struct Sources {
    directory: Option<&'static str>,
    index: Index,
}

enum Index {
    /// The operator has none for this language.
    None,
    /// There is one, and the request did not ask for it.
    NotGranted,
    /// The installer could reach it.
    Reached {
        /// What it wanted to reach besides.
        denied: Vec<String>,
    },
}

impl Sources {
    /// From an installer's last words to a sentence with the mend.
    fn why_not_installed(&self, language: &Language, said: &str) -> String {
        let cut = |line: &str| line.chars().take(LINE_CHARS_MAX).collect::<String>();
        let line_with = |words: &[String]| {
            let holds = |line: &&str| words.iter().any(|word| line.contains(word.as_str()));
            said.lines().rev().map(str::trim).find(holds).map(cut)
        };
        if let Index::Reached { denied } = &self.index
            && !denied.is_empty()
        {
            let last = said.lines().rev().map(str::trim).find(|line| !line.is_empty()).map(cut).unwrap_or_default();
            let denied = denied.join(", ");
            return format!(
                "the installer wanted {denied}, which the operator does not open to installs (packages.hosts): {last}"
            );
        }
        if let Some(line) = line_with(&language.conflict_words) {
            return format!("the packages exclude each other: {line}");
        }
        let Some(line) = line_with(&language.not_found_words) else {
            let last = said.lines().rev().map(str::trim).find(|line| !line.is_empty()).unwrap_or("it said nothing");
            return format!("the installer failed: {}", cut(last));
        };
        match (self.directory, &self.index) {
            (Some(_), Index::Reached { .. }) => {
                format!("neither the operator's package directory nor the package index holds such a package: {line}")
            }
            (None, Index::Reached { .. }) => format!("the operator's package index holds no such package: {line}"),
            (Some(_), Index::None) => format!("the operator's package directory holds no such package: {line}"),
            (Some(_), Index::NotGranted) => format!(
                "the operator's package directory holds no such package: {line} (the request may ask for the package index with \
                 allowPackageIndex)"
            ),
            (None, Index::NotGranted) => format!(
                "a package is not in the image: {line} (the request may ask for the operator's package index with allowPackageIndex)"
            ),
            (None, Index::None) => format!(
                "a package is not in the image, and no package source is configured: {line} (the operator sets sandbox.package_dir to \
                 a directory of wheels and tarballs, or an index below [packages], or makes an image that holds it)"
            ),
        }
    }
}

pub(super) fn unplanned(error: &LanguageError) -> Failure {
    Failure { kind: FailureKind::PackageUnavailable, message: error.to_string() }
}

/// Hands on what an installer writes, and keeps its end.
struct Watched<'a> {
    sink: &'a dyn OutputSink,
    tail: Mutex<Vec<u8>>,
}

impl Watched<'_> {
    fn tail(&self) -> String {
        String::from_utf8_lossy(&self.tail.lock().unwrap_or_else(PoisonError::into_inner)).into_owned()
    }
}

impl OutputSink for Watched<'_> {
    fn started(&self) {
        self.sink.started();
    }

    fn blocked(&self, syscall: &'static str) {
        self.sink.blocked(syscall);
    }

    fn write(&self, stream: Stream, data: &[u8]) -> OutputVerdict {
        let mut tail = self.tail.lock().unwrap_or_else(PoisonError::into_inner);
        tail.extend_from_slice(data);
        let surplus = tail.len().saturating_sub(TAIL_BYTES_MAX);
        tail.drain(..surplus);
        drop(tail);
        self.sink.write(stream, data)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reason_of_an_installer_is_told_with_its_mend() {
        let language = Language {
            not_found_words: vec!["No matching".into()],
            conflict_words: vec!["Impossible".into()],
            ..Language::default()
        };
        let why = |directory, index, said| Sources { directory, index }.why_not_installed(&language, said);
        let reached = |denied: &[&str]| Index::Reached { denied: denied.iter().map(|name| (*name).to_owned()).collect() };
        assert!(why(None, Index::None, "ERROR: No matching x\n").contains("sandbox.package_dir"));
        assert_eq!(
            why(Some("/packages"), Index::None, "a\nERROR: No matching x\n"),
            "the operator's package directory holds no such package: ERROR: No matching x"
        );
        assert!(why(Some("/packages"), Index::NotGranted, "No matching x").contains("allowPackageIndex"));
        assert!(why(None, Index::NotGranted, "No matching x").contains("allowPackageIndex"));
        assert_eq!(
            why(None, reached(&[]), "No matching x"),
            "the operator's package index holds no such package: No matching x"
        );
        let denied = why(None, reached(&["files.example:443"]), "No matching x\n");
        assert!(denied.contains("files.example:443") && denied.contains("packages.hosts"), "{denied}");
        assert_eq!(why(None, Index::None, "ERROR: Impossible\nmore"), "the packages exclude each other: ERROR: Impossible");
        assert_eq!(why(None, Index::None, "Traceback\nOSError: full\n\n"), "the installer failed: OSError: full");
        assert_eq!(why(None, Index::None, ""), "the installer failed: it said nothing");
    }

    #[test]
    fn no_more_than_the_end_of_an_installer_s_output_is_kept() {
        struct Nowhere;
        impl OutputSink for Nowhere {
            fn started(&self) {}
            fn write(&self, _: Stream, _: &[u8]) -> OutputVerdict {
                OutputVerdict::Continue
            }
        }
        let watched = Watched { sink: &Nowhere, tail: Mutex::default() };
        watched.write(Stream::Stdout, &vec![b'a'; TAIL_BYTES_MAX * 2]);
        watched.write(Stream::Stderr, b"end");
        assert_eq!(watched.tail().len(), TAIL_BYTES_MAX);
        assert!(watched.tail().ends_with("aend"));
    }
}
