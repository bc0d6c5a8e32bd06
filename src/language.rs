//! Languages are data: `rootfs/*.toml` (embedded, and the operator's own) parsed into execution plans.
//!
//! Invariant: a `Language` that `Languages` hands out has been checked, and no name or alias belongs to two of them.
//! Read `definition` for what a file may hold, `plan` for the commands it becomes, `package` for what counts as a package's
//! name.

pub mod definition;
pub mod engines;
pub mod package;
pub mod plan;

use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use thiserror::Error;

pub use package::{PACKAGES_MAX, PackageError, PackageSyntax, validate_package};
pub use plan::{execution_plan, install_file_plan, install_plan, leftovers, run_command, source_path};

/// Where sessions keep their files and where `execute_code` writes its source.
pub const WORKSPACE: &str = "/workspace";

/// Languages of one directory at most.
const FILES_MAX: usize = 256;

/// One language.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Language {
    /// Lower-case name on the wire (`python`).
    pub name: String,
    /// For people (`Python`).
    pub display_name: String,
    /// Other names a request may use (`py`, `python3`).
    pub aliases: Vec<String>,
    /// Image used when the request names none and it is installed; otherwise `host`.
    pub image: String,
    /// Of a source file, with the dot (`.py`).
    pub file_extension: String,
    /// The file that `execute_code` writes, below the workspace (`.main.py`).
    pub source_name: String,
    /// The file that the compiler writes, below the workspace (`.main.out`).
    pub output_name: String,
    /// The argument vector that makes `{output}` of `{file}`. Absent: the language is interpreted.
    pub compile: Option<Vec<String>>,
    /// The argument vector that runs a source file or what was compiled: `{file}` or `{output}` stands for its path. Programs
    /// are searched in the session's PATH.
    pub run: Vec<String>,
    /// Programs that must all be in the image for the language to be installed (`mcs`, `mono`).
    pub programs: Vec<String>,
    /// The argument vector that prints the version (`python3 --version`); when it fails the language is not installed.
    pub version: Vec<String>,
    /// Debian packages that bring the programs to a host.
    pub host_packages: Vec<String>,
    /// The argument vector that installs packages; `{packages}` stands for the names, one argument each. Absent: none can be.
    pub install: Option<Vec<String>>,
    /// The argument vector that installs what a requirements file names; `{file}` stands for its path.
    pub install_file: Option<Vec<String>>,
    /// Variables of installers when the operator has given packages; `{directory}` stands for where they are.
    pub source_env: BTreeMap<String, String>,
    /// Variables of installers when they have no index.
    pub offline_env: BTreeMap<String, String>,
    /// Variables of installers when they reach the operator's index: `{index}` stands for its address, `{ca}` for the file of
    /// certificates to trust; a variable with `{ca}` is left out where there is none.
    pub index_env: BTreeMap<String, String>,
    /// What the installer says when a package is not there.
    pub not_found_words: Vec<String>,
    /// What the installer says when packages exclude each other.
    pub conflict_words: Vec<String>,
    /// What a package's name may look like; there whenever `install` is.
    pub package_syntax: Option<PackageSyntax>,
    /// Environment of its programs.
    pub env: BTreeMap<String, String>,
    /// Programs in a language of the image, passed as an argument: `{helper:NAME}`.
    pub helpers: BTreeMap<String, String>,
    /// The interpreter that can be kept warm, if it is one.
    pub warm: Option<WarmInterpreter>,
    /// Modules that the warm interpreter loads where the image has them.
    pub preload: Vec<String>,
    /// Names in the workspace that its program looks for when it starts: with one of them there, none is started ahead.
    pub prestarted_unless: Vec<String>,
    /// How engines run it that need no image.
    pub engines: BTreeMap<engines::Engine, engines::EnginePlan>,
}

/// An interpreter of which a started one can be kept for programs to come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WarmInterpreter {
    /// `CPython` 3, which forks for each program.
    Python,
    /// Any program that reads its source once, from a file that it opens: it is started ahead, waits there, and runs one program.
    Prestarted,
    /// Bun, which opens only regular files: it is started ahead, waits in a script that it loads before its source, and runs one program.
    Bun,
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
    /// `packages_like` leads nowhere.
    #[error("{file}: `packages_like` is {name:?}, but takes the name of another language that installs packages itself")]
    PackagesLike {
        /// The file.
        file: String,
        /// What stands there.
        name: String,
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

const EMBEDDED: [(&str, &str); 11] = [
    ("rootfs/python.toml", include_str!("../rootfs/python.toml")),
    ("rootfs/javascript.toml", include_str!("../rootfs/javascript.toml")),
    ("rootfs/typescript.toml", include_str!("../rootfs/typescript.toml")),
    ("rootfs/bash.toml", include_str!("../rootfs/bash.toml")),
    ("rootfs/go.toml", include_str!("../rootfs/go.toml")),
    ("rootfs/csharp.toml", include_str!("../rootfs/csharp.toml")),
    ("rootfs/ruby.toml", include_str!("../rootfs/ruby.toml")),
    ("rootfs/c.toml", include_str!("../rootfs/c.toml")),
    ("rootfs/cpp.toml", include_str!("../rootfs/cpp.toml")),
    ("rootfs/rust.toml", include_str!("../rootfs/rust.toml")),
    ("rootfs/wasm.toml", include_str!("../rootfs/wasm.toml")),
];

impl Languages {
    /// The embedded languages and every `*.toml` of `dir`, in the order of file names.
    pub fn load(dir: Option<&Path>) -> Result<Self, LanguageError> {
        let mut languages = Self::default();
        for (file, text) in EMBEDDED {
            languages.add(file, definition::parse(file, text, &languages)?)?;
        }
        let Some(dir) = dir else { return Ok(languages) };
        for path in definition_files(dir)? {
            languages.load_file(&path)?;
        }
        Ok(languages)
    }

    /// Adds the language of one file.
    pub fn load_file(&mut self, path: &Path) -> Result<Arc<Language>, LanguageError> {
        let unreadable = |source| LanguageError::Read { path: path.to_owned(), source };
        let mut text = String::new();
        let file = std::fs::File::open(path).map_err(unreadable)?;
        file.take(definition::BYTES_MAX as u64 + 1).read_to_string(&mut text).map_err(unreadable)?;
        let name = path.display().to_string();
        self.add(&name, definition::parse(&name, &text, self)?)
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

    fn add(&mut self, file: &str, language: Language) -> Result<Arc<Language>, LanguageError> {
        let index = self.all.len();
        for name in std::iter::once(&language.name).chain(&language.aliases) {
            if let Some((_, first)) = self.names.insert(name.clone(), (index, file.to_owned())) {
                return Err(LanguageError::Collision { name: name.clone(), first, second: file.to_owned() });
            }
        }
        let language = Arc::new(language);
        self.all.push(Arc::clone(&language));
        Ok(language)
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

#[cfg(test)]
mod tests;
