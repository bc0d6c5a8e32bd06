//! How a runtime with an engine of its own runs a language: the tables `[runtime.Deno]` and their like of a language file.
//!
//! Invariant: `{flags}` stands in every such `run`, so that no file can run a program without what the request's permissions say.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{Language, LanguageError, WarmInterpreter};

/// Stands for the flags that an engine gets of the request's permissions.
pub const FLAGS: &str = "{flags}";

/// Names that a program looks for when it starts; each is looked up before one that waits is taken.
const NAMES_BESIDE_MAX: usize = 32;

/// An engine that runs a language without an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the runtimes of the same names")]
pub enum Engine {
    Deno,
    Bun,
    NodeJs,
    WebAssembly,
}

impl Engine {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Deno, Self::Bun, Self::NodeJs, Self::WebAssembly];

    /// Name of its program, and of the image that it is looked for in.
    pub fn program(self) -> &'static str {
        match self {
            Self::Deno => "deno",
            Self::Bun => "bun",
            Self::NodeJs => "node",
            Self::WebAssembly => "codebeaker",
        }
    }
}

impl Engine {
    /// A program that prints the version: an engine that only knows its number, and lacks what it runs programs with, must not
    /// pass for one that works.
    pub fn question(self) -> Vec<String> {
        let words: &[&str] = match self {
            Self::Deno => &["deno", "eval", "console.log(Deno.version.deno)"],
            Self::Bun => &["bun", "-e", "console.log(Bun.version)"],
            Self::NodeJs => &["node", "-p", "process.version"],
            // Its version is that of wasmtime, which is built in.
            Self::WebAssembly => &["codebeaker", "--version"],
        };
        words.iter().map(|word| (*word).to_owned()).collect()
    }

    /// How the names of those build options begin that leave a part of the engine out of its program, and say where it stands
    /// instead: `--shared-builtin-…` of Node's configure script.
    pub fn parts_mark(self) -> Option<&'static str> {
        match self {
            Self::NodeJs => Some("NODE_SHARED_BUILTIN_"),
            Self::Deno | Self::Bun | Self::WebAssembly => None,
        }
    }
}

/// Major, minor and patch of an engine's version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct EngineVersion(pub u32, pub u32, pub u32);

impl EngineVersion {
    /// The first thing in `text` that looks like `1.2.3`.
    pub fn find(text: &str) -> Option<Self> {
        text.split(|c: char| !c.is_ascii_digit() && c != '.').find_map(|word| {
            let mut parts = word.split('.').map(str::parse::<u32>);
            match (parts.next(), parts.next(), parts.next()) {
                (Some(Ok(major)), Some(Ok(minor)), Some(Ok(patch))) => Some(Self(major, minor, patch)),
                _ => None,
            }
        })
    }
}

impl std::fmt::Display for EngineVersion {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}.{}", self.0, self.1, self.2)
    }
}

/// One such table.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EnginePlan {
    /// The argument vector that runs a source file; `{file}` stands for its path, `{flags}` for the engine's flags.
    pub run: Vec<String>,
    /// The argument vector that installs packages; `{packages}` stands for the names.
    install: Option<Vec<String>>,
    /// Environment of its programs besides the language's own.
    #[serde(default)]
    env: BTreeMap<String, String>,
    /// The oldest version of the engine that runs this; absent: every one does.
    since: Option<String>,
    /// What of it can be started ahead: `prestarted`, or `bun`.
    warm: Option<WarmInterpreter>,
    /// As in the language.
    #[serde(default)]
    prestarted_unless: Vec<String>,
}

impl Language {
    /// The language as that version of the engine runs it, with these flags; none when it does not.
    pub fn on(&self, engine: Engine, version: EngineVersion, flags: &[String]) -> Option<Self> {
        let plan = self.plan_for(engine, version)?;
        let mut env = self.env.clone();
        env.extend(plan.env.clone());
        let mut run = plan.run.clone();
        if let Some(place) = run.iter().position(|argument| argument == FLAGS) {
            run.splice(place..=place, flags.iter().cloned());
        }
        Some(Self {
            compile: None,
            run,
            programs: vec![engine.program().to_owned()],
            install: plan.install.clone(),
            install_file: None,
            env,
            warm: plan.warm,
            prestarted_unless: plan.prestarted_unless.clone(),
            ..self.clone()
        })
    }

    /// How an engine of that version runs it; none when it does not.
    pub fn plan_for(&self, engine: Engine, version: EngineVersion) -> Option<&EnginePlan> {
        let since = |plan: &EnginePlan| plan.since.as_deref().and_then(EngineVersion::find);
        self.engines.get(&engine).filter(|plan| since(plan).is_none_or(|since| version >= since))
    }
}

/// Refuses a table that could run a program without its flags.
pub(super) fn check(file: &str, engines: &BTreeMap<Engine, EnginePlan>) -> Result<(), LanguageError> {
    let refuse = |field, found: &dyn std::fmt::Debug, takes| {
        Err(LanguageError::Field { file: file.to_owned(), field, found: format!("{found:?}"), takes })
    };
    for (engine, plan) in engines {
        let once = |word: &str| plan.run.iter().filter(|argument| *argument == word).count() == 1;
        if plan.run.first().is_none_or(|program| program != engine.program()) || !once(FLAGS) || !once("{file}") {
            return refuse("runtime.*.run", &plan.run, "the engine's program, then `{flags}` and `{file}` once each");
        }
        let packages = |install: &Vec<String>| install.iter().skip(1).filter(|argument| *argument == "{packages}").count() == 1;
        if plan.install.as_ref().is_some_and(|install| !packages(install)) {
            return refuse("runtime.*.install", &plan.install, "a program and its arguments, one of which is `{packages}`");
        }
        if plan.since.as_deref().is_some_and(|since| EngineVersion::find(since).is_none()) {
            return refuse("runtime.*.since", &plan.since, "a version of three numbers: `22.18.0`");
        }
        let starts_ahead = match plan.warm {
            None | Some(WarmInterpreter::Prestarted) => true,
            Some(WarmInterpreter::Bun) => *engine == Engine::Bun,
            Some(WarmInterpreter::Python) => false,
        };
        if !starts_ahead {
            return refuse("runtime.*.warm", &plan.warm, "`prestarted`, for Bun `bun`");
        }
        check_beside(file, "runtime.*.prestarted_unless", &plan.prestarted_unless)?;
        super::definition::check_env(file, "runtime.*.env", &plan.env)?;
    }
    Ok(())
}

/// Names of entries of the workspace, not paths.
pub(super) fn check_beside(file: &str, field: &'static str, names: &[String]) -> Result<(), LanguageError> {
    let plain = |name: &String| !name.is_empty() && name.len() <= 255 && !name.contains(['/', '\0']);
    match names.iter().find(|name| !plain(name)) {
        None if names.len() <= NAMES_BESIDE_MAX => Ok(()),
        None => Err(LanguageError::Field {
            file: file.to_owned(),
            field,
            found: format!("{} names", names.len()),
            takes: "32 names at most",
        }),
        Some(name) => Err(LanguageError::Field {
            file: file.to_owned(),
            field,
            found: format!("{name:?}"),
            takes: "names without a slash",
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::language::Languages;

    #[test]
    fn a_version_is_found_where_an_engine_prints_it() {
        for (text, version) in [
            ("deno 2.9.8 (stable, release, x86_64-unknown-linux-gnu)\nv8 15.0.245.2", Some(EngineVersion(2, 9, 8))),
            ("v20.20.2\n", Some(EngineVersion(20, 20, 2))),
            ("1.4.2", Some(EngineVersion(1, 4, 2))),
            ("no version 3.", None),
        ] {
            assert_eq!(EngineVersion::find(text), version, "{text}");
        }
    }

    #[test]
    fn an_engine_runs_a_language_with_its_flags_from_the_version_that_can() {
        let languages = Languages::load(None).expect("the embedded languages load");
        let language = languages.get("javascript").expect("embedded");
        let flags = ["--one".to_owned(), "--two=a b".to_owned()];
        for engine in Engine::ALL {
            let fitted = language.on(engine, EngineVersion(99, 0, 0), &flags).expect("every engine runs JavaScript");
            assert_eq!(fitted.run.first().map(String::as_str), Some(engine.program()));
            assert!(flags.iter().all(|flag| fitted.run.contains(flag)) && fitted.run.contains(&"{file}".into()), "{fitted:?}");
            assert!(fitted.run.iter().all(|argument| argument != FLAGS));
        }
        let typescript = languages.get("typescript").expect("embedded");
        assert!(typescript.on(Engine::NodeJs, EngineVersion(20, 20, 2), &[]).is_none());
        assert!(typescript.on(Engine::NodeJs, EngineVersion(22, 18, 0), &[]).is_some());
        assert!(languages.get("python").expect("embedded").on(Engine::Deno, EngineVersion(2, 0, 0), &[]).is_none());
    }

    #[test]
    fn a_table_without_flags_is_refused() {
        let table = |run: &[&str]| {
            let run = run.iter().map(|word| (*word).to_owned()).collect();
            let plan =
                EnginePlan { run, install: None, env: BTreeMap::new(), since: None, warm: None, prestarted_unless: Vec::new() };
            BTreeMap::from([(Engine::Deno, plan)])
        };
        assert!(check("x.toml", &table(&["deno", "run", "{flags}", "{file}"])).is_ok());
        for run in [&["deno", "run", "{file}"][..], &["deno", "{flags}"], &["sh", "{flags}", "{file}"], &[]] {
            assert!(matches!(check("x.toml", &table(run)), Err(LanguageError::Field { .. })), "{run:?}");
        }
    }
}
