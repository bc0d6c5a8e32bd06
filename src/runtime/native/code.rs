//! `execute_code` and `install_packages`: the steps of a language's plan, one program after the other.
//!
//! Invariants: a step before the program (installer, compiler) has limits of its own, writes to standard error only, and its
//! failure is the answer; input that a client sends meanwhile is kept for the program; what the plan wrote is removed.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::mpsc;

use crate::command::*;
use crate::language::{Language, LanguageError, execution_plan, install_file_plan, install_plan, leftovers};
use crate::plan::files::FileCommand;
use crate::plan::messages::View;
use crate::runtime::{OutputSink, OutputVerdict};

use super::files;
use super::instance::{Answer, Launch, Run, broken, file};
use super::program::{Feed, Held};
use super::verdict;

/// What is kept of an installer's output to find its reason in.
const TAIL_BYTES_MAX: usize = 16 << 10;
/// Longest line of an installer that is told, in characters.
const LINE_CHARS_MAX: usize = 300;

impl Run<'_> {
    pub(super) async fn code(&self, code: ExecuteCode, control: &mut mpsc::Receiver<Control>) -> Answer {
        let language = match &code.language {
            None => Arc::clone(&self.instance.config.language),
            Some(name) => self.instance.language(name).ok_or_else(|| Failure {
                kind: FailureKind::ProgramNotFound,
                message: format!("there is no language `{name}`"),
            })?,
        };
        let mut held = Held::default();
        if !code.packages.is_empty() {
            let plan = install_plan(&language, &code.packages).map_err(|error| unplanned(&error))?;
            let (answer, kept) = self.installed(&language, plan, &OnStderr(self.sink), control).await?;
            if answer.1.is_some() {
                return Ok(answer);
            }
            held = kept;
        }
        let plan = execution_plan(&language, &code.code, &code.args).map_err(|error| unplanned(&error))?;
        let answer = self.carry_out(plan, code, held, control).await;
        for path in leftovers(&language) {
            self.forget(path).await;
        }
        answer
    }

    /// The steps in order, up to the first that fails.
    async fn carry_out(
        &self,
        plan: Vec<Command>,
        code: ExecuteCode,
        mut held: Held,
        control: &mut mpsc::Receiver<Control>,
    ) -> Answer {
        let last = plan.len().saturating_sub(1);
        let mut code = Some(code);
        for (index, mut step) in plan.into_iter().enumerate() {
            if let Some(request) = files::request(&mut step) {
                file(self.sandbox, &step, request).await?;
                continue;
            }
            let Command::ExecuteShell(shell) = step else { return Err(broken()) };
            if index == last {
                return self.run(shell, code.take().ok_or_else(broken)?, held, control).await;
            }
            let (answer, kept) = self.compile(shell, held, control).await?;
            if answer.1.is_some() {
                return Ok(answer);
            }
            held = kept;
        }
        Err(broken())
    }

    /// The program itself, with what the request said of input, time and environment.
    async fn run(
        &self,
        mut shell: ExecuteShell,
        code: ExecuteCode,
        held: Held,
        control: &mut mpsc::Receiver<Control>,
    ) -> Answer {
        let language = std::mem::replace(&mut shell.env, code.env);
        let timeout = self.timeout(code.timeout);
        let launch = Launch { shell, language: &language, feed: Feed::Own(code.stdin, held), timeout, view: View::Programs };
        let (answer, _) = self.launch(launch, self.sink, control).await?;
        Ok(answer)
    }

    async fn compile(
        &self,
        mut shell: ExecuteShell,
        held: Held,
        control: &mut mpsc::Receiver<Control>,
    ) -> Result<((CommandOutput, Option<Failure>), Held), Failure> {
        let language = std::mem::take(&mut shell.env);
        let timeout = self.instance.runtime.step_timeout();
        let launch = Launch { shell, language: &language, feed: Feed::Later(held), timeout, view: View::Programs };
        let ((output, failure), held) = self.launch(launch, &OnStderr(self.sink), control).await?;
        let CommandOutput::Execution(report) = output else { return Err(broken()) };
        let (report, failure) = verdict::of_compiler((report, failure));
        Ok(((CommandOutput::Execution(report), failure), held))
    }

    /// Removes what a plan wrote; the session goes on without it in any case.
    async fn forget(&self, path: String) {
        let command = FileCommand::Delete { path: path.into(), recursive: true };
        if let Ok(Err(error)) = self.sandbox.init().file(command).await {
            tracing::debug!(?error, "a file of a plan stays");
        }
    }

    pub(super) async fn install(&self, install: InstallPackages, control: &mut mpsc::Receiver<Control>) -> Answer {
        let language = Arc::clone(&self.instance.config.language);
        let mut answer = None;
        if !install.packages.is_empty() {
            let plan = install_plan(&language, &install.packages).map_err(|error| unplanned(&error))?;
            answer = Some(self.installed(&language, plan, self.sink, control).await?.0);
        }
        match (&answer, &install.requirements_file) {
            (None | Some((_, None)), Some(path)) => {
                let plan = install_file_plan(&language, path).map_err(|error| unplanned(&error))?;
                Ok(self.installed(&language, plan, self.sink, control).await?.0)
            }
            _ => answer.ok_or_else(broken),
        }
    }

    /// Runs an installer in the view of installers, and says in words why it failed.
    async fn installed(
        &self,
        language: &Language,
        plan: Command,
        sink: &dyn OutputSink,
        control: &mut mpsc::Receiver<Control>,
    ) -> Result<((CommandOutput, Option<Failure>), Held), Failure> {
        let Command::ExecuteShell(mut shell) = plan else { return Err(broken()) };
        let variables = std::mem::take(&mut shell.env);
        let source = self.instance.runtime.packages();
        if let Some(directory) = source {
            let told = language.source_env.iter().map(|(name, value)| (name.clone(), value.replace("{directory}", directory)));
            shell.env.extend(told);
        }
        let timeout = self.instance.runtime.step_timeout();
        let feed = Feed::Later(Held::default());
        let launch = Launch { shell, language: &variables, feed, timeout, view: View::Installers };
        let watched = Watched { sink, tail: Mutex::default() };
        let ((output, failure), held) = self.launch(launch, &watched, control).await?;
        let failure = failure.map(|failure| match failure.kind {
            FailureKind::NonzeroExit => {
                Failure { kind: FailureKind::PackageUnavailable, message: why_not_installed(language, source, &watched.tail()) }
            }
            FailureKind::ProgramNotFound => Failure { kind: failure.kind, message: "the installer is not in the image".into() },
            FailureKind::PackageUnavailable | FailureKind::Cancelled => failure,
            kind => Failure { kind, message: failure.message.replacen("the program", "the installer", 1) },
        });
        Ok(((output, failure), held))
    }
}

/// From an installer's last words to a sentence with the mend.
fn why_not_installed(language: &Language, source: Option<&str>, said: &str) -> String {
    let line_with = |words: &[String]| {
        let holds = |line: &&str| words.iter().any(|word| line.contains(word.as_str()));
        said.lines().rev().map(str::trim).find(holds).map(|line| line.chars().take(LINE_CHARS_MAX).collect::<String>())
    };
    if let Some(line) = line_with(&language.conflict_words) {
        return format!("the packages exclude each other: {line}");
    }
    match (line_with(&language.not_found_words), source) {
        (Some(line), Some(_)) => format!("the operator's package directory holds no such package: {line}"),
        (Some(line), None) => format!(
            "a package is not in the image, and no package source is configured: {line} (the operator sets sandbox.package_dir to a \
             directory of wheels and tarballs, or makes an image that holds it)"
        ),
        (None, _) => {
            let last = said.lines().rev().map(str::trim).find(|line| !line.is_empty()).unwrap_or("it said nothing");
            format!("the installer failed: {}", last.chars().take(LINE_CHARS_MAX).collect::<String>())
        }
    }
}

fn unplanned(error: &LanguageError) -> Failure {
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

/// A step before the program: standard output is the program's alone.
struct OnStderr<'a>(&'a dyn OutputSink);

impl OutputSink for OnStderr<'_> {
    fn started(&self) {
        self.0.started();
    }

    fn blocked(&self, syscall: &'static str) {
        self.0.blocked(syscall);
    }

    fn write(&self, _: Stream, data: &[u8]) -> OutputVerdict {
        self.0.write(Stream::Stderr, data)
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
        let why = |source, said| why_not_installed(&language, source, said);
        assert!(why(None, "ERROR: No matching x\n").contains("sandbox.package_dir"));
        assert_eq!(
            why(Some("/packages"), "a\nERROR: No matching x\n"),
            "the operator's package directory holds no such package: ERROR: No matching x"
        );
        assert_eq!(why(None, "ERROR: Impossible\nmore"), "the packages exclude each other: ERROR: Impossible");
        assert_eq!(why(None, "Traceback\nOSError: full\n\n"), "the installer failed: OSError: full");
        assert_eq!(why(None, ""), "the installer failed: it said nothing");
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
