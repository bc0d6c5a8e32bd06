//! Languages are data: `rootfs/*.toml` (embedded, and the operator's own) parsed into execution plans.
//!
//! Invariant: a `Language` that `Languages` hands out has been checked, and no name or alias belongs to two of them.
//! Read `definition` for what a file may hold, `package` for what counts as a package's name.

pub mod definition;
pub mod engines;
pub mod package;

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use thiserror::Error;

use crate::command::{Command, ExecuteShell, SessionPath, Stdin, WriteFile, WriteMode};
pub use package::{PackageError, PackageSyntax, validate_package};

/// Where sessions keep their files and where `execute_code` writes its source.
pub const WORKSPACE: &str = "/workspace";

/// Languages of one directory at most.
const FILES_MAX: usize = 256;

/// One language.
#[derive(Debug, Clone, PartialEq)]
pub struct Language {
    /// Lower-case name on the wire (`python`).
    pub name: String,
    /// For people (`Python`).
    pub display_name: String,
    /// Other names a request may use (`py`, `python3`).
    pub aliases: Vec<String>,
    /// Image used when the request names none and it is installed; otherwise `host`.
    pub image: String,
    /// Of the file that `execute_code` writes, with the dot (`.py`).
    pub file_extension: String,
    /// The argument vector that runs a source file; `{file}` stands for its path. Programs are searched in the session's PATH.
    pub run: Vec<String>,
    /// Programs of which one must exist in the image for the language to be installed (`python3`).
    pub programs: Vec<String>,
    /// The argument vector that prints the version (`python3 --version`).
    pub version: Vec<String>,
    /// The argument vector that installs packages; `{packages}` stands for the names, one argument each. Absent: none can be.
    pub install: Option<Vec<String>>,
    /// The argument vector that installs what a requirements file names; `{file}` stands for its path.
    pub install_file: Option<Vec<String>>,
    /// What a package's name may look like; there whenever `install` is.
    pub package_syntax: Option<PackageSyntax>,
    /// Environment of its programs.
    pub env: BTreeMap<String, String>,
    /// Modules the warm interpreter imports (issue of its own).
    pub preload: Vec<String>,
    /// How engines run it that need no image.
    pub engines: BTreeMap<engines::Engine, engines::EnginePlan>,
}

/// Why the languages could not be loaded, or a plan not made.
#[derive(Debug, Error)]
pub enum LanguageError {
    /// The operator's directory or a file in it can't be read.
    #[error("reading {} failed", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// The kernel's answer.
        source: std::io::Error,
    },
    /// Not TOML, an unknown field, a missing one, or a value of the wrong type; the source names field and line.
    #[error("{file}: not a language definition: {message}")]
    Syntax {
        /// The file.
        file: String,
        /// What the parser said, with the line.
        message: String,
    },
    /// A value that can't be used.
    #[error("{file}: `{field}` is {found}, but takes {takes}")]
    Field {
        /// The file.
        file: String,
        /// Which field.
        field: &'static str,
        /// What stands there.
        found: String,
        /// What may stand there.
        takes: &'static str,
    },
    /// Two languages claim one name.
    #[error("{second}: the name `{name}` is taken already by {first}")]
    Collision {
        /// The name or alias.
        name: String,
        /// File that had it first.
        first: String,
        /// File that wants it too.
        second: String,
    },
    /// More files than are taken.
    #[error("{} holds more than {FILES_MAX} languages", path.display())]
    TooMany {
        /// The operator's directory.
        path: PathBuf,
    },
    /// The language has no such command.
    #[error("{language} has no way to {action}")]
    Unsupported {
        /// Name of the language.
        language: String,
        /// What was asked.
        action: &'static str,
    },
    /// A package's name was refused.
    #[error(transparent)]
    Package(#[from] PackageError),
    /// A path of the plan can't be one.
    #[error("{language}: {message}")]
    Path {
        /// Name of the language.
        language: String,
        /// Why not.
        message: String,
    },
}

/// All languages of this server.
#[derive(Debug, Clone, Default)]
pub struct Languages {
    all: Vec<Arc<Language>>,
    /// Name or alias → index in `all` and the file it came from.
    names: BTreeMap<String, (usize, String)>,
}

const EMBEDDED: [(&str, &str); 4] = [
    ("rootfs/python.toml", include_str!("../rootfs/python.toml")),
    ("rootfs/javascript.toml", include_str!("../rootfs/javascript.toml")),
    ("rootfs/typescript.toml", include_str!("../rootfs/typescript.toml")),
    ("rootfs/bash.toml", include_str!("../rootfs/bash.toml")),
];

impl Languages {
    /// The embedded languages and every `*.toml` of `dir`, in the order of file names.
    pub fn load(dir: Option<&Path>) -> Result<Self, LanguageError> {
        let mut languages = Self::default();
        for (file, text) in EMBEDDED {
            languages.add(file, definition::parse(file, text)?)?;
        }
        let Some(dir) = dir else { return Ok(languages) };
        for path in definition_files(dir)? {
            let text = std::fs::read_to_string(&path).map_err(|source| LanguageError::Read { path: path.clone(), source })?;
            let file = path.display().to_string();
            languages.add(&file, definition::parse(&file, &text)?)?;
        }
        Ok(languages)
    }

    /// The language of that name or alias; upper and lower case are the same.
    pub fn get(&self, name: &str) -> Option<Arc<Language>> {
        let (index, _) = self.names.get(&name.to_ascii_lowercase())?;
        self.all.get(*index).cloned()
    }

    /// All of them: the embedded first.
    pub fn all(&self) -> &[Arc<Language>] {
        &self.all
    }

    fn add(&mut self, file: &str, language: Language) -> Result<(), LanguageError> {
        let index = self.all.len();
        for name in std::iter::once(&language.name).chain(&language.aliases) {
            if let Some((_, first)) = self.names.insert(name.clone(), (index, file.to_owned())) {
                return Err(LanguageError::Collision { name: name.clone(), first, second: file.to_owned() });
            }
        }
        self.all.push(Arc::new(language));
        Ok(())
    }
}

fn definition_files(dir: &Path) -> Result<Vec<PathBuf>, LanguageError> {
    let unreadable = |source| LanguageError::Read { path: dir.to_owned(), source };
    let mut files = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(unreadable)? {
        let path = entry.map_err(unreadable)?.path();
        if path.extension().is_some_and(|extension| extension == "toml") {
            files.push(path);
        }
        if files.len() > FILES_MAX {
            return Err(LanguageError::TooMany { path: dir.to_owned() });
        }
    }
    files.sort();
    Ok(files)
}

/// Where `execute_code` writes the source of that language: beside the session's own files, so that they can be imported, under
/// a name that takes nobody's place; it is removed afterwards.
pub fn source_path(language: &Language) -> String {
    format!("{WORKSPACE}/.main{}", language.file_extension)
}

/// The commands that run `code`: write the file, then run it. The caller fills in input, time and the request's environment.
pub fn execution_plan(language: &Language, code: &str, args: &[String]) -> Result<Vec<Command>, LanguageError> {
    let file = source_path(language);
    let path = SessionPath::parse(&file).map_err(|message| LanguageError::Path { language: language.name.clone(), message })?;
    let write = WriteFile { path, content: code.as_bytes().to_vec(), mode: WriteMode::Create, permissions: Some(0o644) };
    let mut argv = expand(&language.run, "{file}", std::slice::from_ref(&file));
    argv.extend_from_slice(args);
    Ok(vec![Command::WriteFile(write), Command::ExecuteShell(run(language, argv)?)])
}

/// The command that installs `packages`, whose names it checks first.
pub fn install_plan(language: &Language, packages: &[String]) -> Result<Command, LanguageError> {
    let template = language.install.as_ref().ok_or_else(|| no_packages(language))?;
    for package in packages {
        validate_package(language, package)?;
    }
    Ok(Command::ExecuteShell(run(language, expand(template, "{packages}", packages))?))
}

/// The command that installs what the requirements file names.
pub fn install_file_plan(language: &Language, file: &SessionPath) -> Result<Command, LanguageError> {
    let template = language.install_file.as_ref().ok_or_else(|| no_packages(language))?;
    // A name that begins with a dash would be an option.
    let file = if file.as_str().starts_with('/') { file.as_str().to_owned() } else { format!("./{}", file.as_str()) };
    Ok(Command::ExecuteShell(run(language, expand(template, "{file}", &[file]))?))
}

fn no_packages(language: &Language) -> LanguageError {
    LanguageError::Unsupported { language: language.name.clone(), action: "install packages" }
}

fn expand(template: &[String], placeholder: &str, values: &[String]) -> Vec<String> {
    let mut argv = Vec::with_capacity(template.len() + values.len());
    for argument in template {
        if argument == placeholder {
            argv.extend_from_slice(values);
        } else {
            argv.push(argument.clone());
        }
    }
    argv
}

fn run(language: &Language, argv: Vec<String>) -> Result<ExecuteShell, LanguageError> {
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

#[cfg(test)]
mod tests;
