//! From a language to commands: what `execute_code` and `install_packages` do, as a list that can be printed.
//!
//! Invariant: pure. A plan writes below `/workspace/.main…` only, so `leftovers` names all that is to be removed afterwards.

use std::num::NonZeroU32;

use crate::command::{Command, ExecuteShell, SessionPath, Stdin, WriteFile, WriteMode};

use super::{Language, LanguageError, WORKSPACE, validate_package};

/// Where the source goes.
pub(super) const FILE: &str = "{file}";
/// Where the compiler's output goes.
pub(super) const OUTPUT: &str = "{output}";
/// The names of packages.
pub(super) const PACKAGES: &str = "{packages}";

/// Where `execute_code` writes the source of that language: beside the session's own files, so that they can be imported, under
/// a name that takes nobody's place; it is removed afterwards.
pub fn source_path(language: &Language) -> String {
    format!("{WORKSPACE}/{}", language.source_name)
}

fn output_path(language: &Language) -> String {
    format!("{WORKSPACE}/{}", language.output_name)
}

/// What a plan leaves in the workspace, to be removed with what is in it: files, or a directory for both.
pub fn leftovers(language: &Language) -> Vec<String> {
    let top = |name: &String| format!("{WORKSPACE}/{}", name.split('/').next().unwrap_or(name));
    let mut paths = vec![top(&language.source_name)];
    if language.compile.is_some() && !paths.contains(&top(&language.output_name)) {
        paths.push(top(&language.output_name));
    }
    paths
}

/// The commands that run `code`: write the file, compile it where the language is compiled, run it with `args`. The last command
/// is the program; one between is the compiler. The caller fills in input, time and the request's environment.
pub fn execution_plan(language: &Language, code: &str, args: &[String]) -> Result<Vec<Command>, LanguageError> {
    let file = source_path(language);
    let path = SessionPath::parse(&file).map_err(|message| LanguageError::Path { language: language.name.clone(), message })?;
    let write = WriteFile { path, content: code.as_bytes().to_vec(), mode: WriteMode::Create, permissions: Some(0o644) };
    let mut plan = vec![Command::WriteFile(write)];
    if let Some(compile) = &language.compile {
        plan.push(Command::ExecuteShell(program(language, expand(language, compile, &[]))?));
    }
    let mut argv = run_command(language);
    argv.extend_from_slice(args);
    plan.push(Command::ExecuteShell(program(language, argv)?));
    Ok(plan)
}

/// The command that installs `packages`, whose names it checks first.
pub fn install_plan(language: &Language, packages: &[String]) -> Result<Command, LanguageError> {
    let template = language.install.as_ref().ok_or_else(|| no_packages(language))?;
    for package in packages {
        validate_package(language, package)?;
    }
    Ok(Command::ExecuteShell(program(language, expand(language, template, packages))?))
}

/// The command that installs what the requirements file names.
pub fn install_file_plan(language: &Language, file: &SessionPath) -> Result<Command, LanguageError> {
    let template = language.install_file.as_ref().ok_or_else(|| no_packages(language))?;
    // A name that begins with a dash would be an option.
    let file = if file.as_str().starts_with('/') { file.as_str().to_owned() } else { format!("./{}", file.as_str()) };
    let argv = template.iter().map(|argument| if argument == FILE { file.clone() } else { fill(language, argument) }).collect();
    Ok(Command::ExecuteShell(program(language, argv)?))
}

/// The argument vector of every program, without its own arguments.
pub fn run_command(language: &Language) -> Vec<String> {
    expand(language, &language.run, &[])
}

/// The version's argument vector.
pub fn version_plan(language: &Language) -> Vec<String> {
    language.version.iter().map(|argument| fill(language, argument)).collect()
}

/// One command of a language, for a reader.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlanStep {
    /// `write`, `compile`, `run`, `install`, `install_file` or `version`.
    pub name: &'static str,
    /// Program and arguments; of `write` the path.
    pub command: Vec<String>,
}

/// What a language does, in order: how code is run, then how packages are installed and the version is asked.
pub fn describe(language: &Language) -> Vec<PlanStep> {
    let mut steps = vec![PlanStep { name: "write", command: vec![source_path(language)] }];
    let filled = |template: &Vec<String>| template.iter().map(|argument| fill(language, argument)).collect();
    // Names and files of installs are the request's: their placeholders stay.
    let named = |template: &Vec<String>| {
        let keep = |argument: &String| if argument == FILE { argument.clone() } else { fill(language, argument) };
        template.iter().map(keep).collect()
    };
    steps.extend(language.compile.as_ref().map(|compile| PlanStep { name: "compile", command: filled(compile) }));
    steps.push(PlanStep { name: "run", command: filled(&language.run) });
    steps.extend(language.install.as_ref().map(|install| PlanStep { name: "install", command: named(install) }));
    steps.extend(language.install_file.as_ref().map(|install| PlanStep { name: "install_file", command: named(install) }));
    steps.push(PlanStep { name: "version", command: filled(&language.version) });
    steps
}

fn no_packages(language: &Language) -> LanguageError {
    LanguageError::Unsupported { language: language.name.clone(), action: "install packages" }
}

fn expand(language: &Language, template: &[String], packages: &[String]) -> Vec<String> {
    let mut argv = Vec::with_capacity(template.len() + packages.len());
    for argument in template {
        if argument == PACKAGES {
            argv.extend_from_slice(packages);
        } else {
            argv.push(fill(language, argument));
        }
    }
    argv
}

/// A helper's text in place of its name, paths in place of theirs.
fn fill(language: &Language, argument: &str) -> String {
    match helper_name(argument).and_then(|name| language.helpers.get(name)) {
        Some(text) => text.clone(),
        None => argument.replace(FILE, &source_path(language)).replace(OUTPUT, &output_path(language)),
    }
}

/// `NAME` of `{helper:NAME}`.
pub(super) fn helper_name(argument: &str) -> Option<&str> {
    argument.strip_prefix("{helper:")?.strip_suffix('}')
}

fn program(language: &Language, argv: Vec<String>) -> Result<ExecuteShell, LanguageError> {
    let mut argv = argv.into_iter();
    let program = argv.next().ok_or_else(|| LanguageError::Unsupported { language: language.name.clone(), action: "run" })?;
    Ok(ExecuteShell {
        program,
        args: argv.collect(),
        working_directory: None,
        env: language.env.clone(),
        stdin: Stdin::Empty,
        timeout: None::<NonZeroU32>,
        background: false,
    })
}
