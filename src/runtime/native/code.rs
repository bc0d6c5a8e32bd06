//! `execute_code`: the steps of a language's plan, one program after the other. Installs are in `install`.
//!
//! Invariants: a step before the program (installer, compiler) has limits of its own, writes to standard error only, and its
//! failure is the answer; input that a client sends meanwhile is kept for the program; what the plan wrote is removed.

use std::sync::Arc;

use tokio::sync::mpsc;

use crate::command::*;
use crate::language::{execution_plan, install_plan, leftovers};
use crate::plan::files::{FileCommand, FileReply};
use crate::plan::messages::{Tag, View};
use crate::runtime::{OutputSink, OutputVerdict};

use super::control::{Coming, Gone};
use super::files;
use super::install::unplanned;
use super::instance::{FILE_COMMAND_TIME, Launch, Run, Warm, broken, file, gone};
use super::program::DriveError;
use super::sandbox::Sandbox;
use super::streams::{Feed, Held};
use super::verdict;

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
        self.note_use(&language);
        let answer = self.carry_out(plan, code, held, control).await;
        for path in leftovers(&language) {
            self.forget(path).await;
        }
        self.keep_warm(&language).await;
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
        let (mut code, mut on_its_way) = (Some(code), None);
        for (index, mut step) in plan.into_iter().enumerate() {
            if let Some(request) = files::request(&mut step) {
                if index + 1 == last {
                    on_its_way = Some(Source::send(self.sandbox, step, request).await?);
                } else {
                    file(self.sandbox, &step, request).await?;
                }
                continue;
            }
            let Command::ExecuteShell(shell) = step else { return Err(broken()) };
            if index == last {
                return self.run(shell, code.take().ok_or_else(broken)?, (held, on_its_way), control).await;
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
        (held, source): (Held, Option<Source>),
        control: &mut mpsc::Receiver<Control>,
    ) -> Answer {
        let language = std::mem::replace(&mut shell.env, code.env);
        let timeout = self.timeout(code.timeout);
        let launch = Launch {
            shell,
            language: &language,
            feed: Feed::Own(code.stdin, held),
            timeout,
            view: View::Programs,
            door: None,
            warm: Warm::Asked,
            source,
        };
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
        let launch = Launch {
            shell,
            language: &language,
            feed: Feed::Later(held),
            timeout,
            view: View::Programs,
            door: None,
            warm: Warm::Never,
            source: None,
        };
        let ((output, failure), held) = self.launch(launch, &OnStderr(self.sink), control).await?;
        let CommandOutput::Execution(report) = output else { return Err(broken()) };
        let (report, failure) = verdict::of_compiler((report, failure));
        Ok(((CommandOutput::Execution(report), failure), held))
    }

    /// Removes what a plan wrote, before the next command and without keeping this one's answer waiting. One that can't be removed stays,
    /// and the session goes on.
    pub(super) async fn forget(&self, path: String) {
        let command = FileCommand::Delete { path: path.into(), recursive: true };
        if self.sandbox.init().file_unheard(command).await.is_err() {
            // Whoever needs the sandbox next learns it by itself.
            tracing::debug!("a sandbox ended before it was asked to remove a file of a plan");
        }
    }
}

/// The source of the program that comes next, on its way into the session: the program is asked for at once, and begins only if this came to be.
pub struct Source {
    /// What writes it.
    step: Command,
    coming: Coming,
}

impl Source {
    /// Has it written.
    async fn send(sandbox: &Sandbox, step: Command, request: FileCommand) -> Result<Self, Failure> {
        match tokio::time::timeout(FILE_COMMAND_TIME, sandbox.init().file_to_come(request)).await {
            Ok(Ok(Ok(coming))) => Ok(Self { step, coming }),
            Ok(Ok(Err(error))) => Err(files::failure(&step, &error)),
            Ok(Err(Gone)) | Err(_) => {
                sandbox.give_up();
                Err(gone())
            }
        }
    }

    /// Names it in the request for the program.
    pub fn tag(&self) -> Tag {
        self.coming.tag
    }

    /// What came of it. Init says so before it says anything of the program.
    pub async fn written(self) -> Result<(), DriveError> {
        match tokio::time::timeout(FILE_COMMAND_TIME, self.coming.answer).await {
            Ok(Ok(Ok(FileReply::Written { .. }))) => Ok(()),
            Ok(Ok(Err(error))) => Err(DriveError::Source(files::failure(&self.step, &error))),
            Ok(Ok(Ok(_)) | Err(_)) | Err(_) => Err(DriveError::Gone),
        }
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

    fn is_followed(&self) -> bool {
        self.0.is_followed()
    }
}
