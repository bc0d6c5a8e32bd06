//! One language file: what it may hold, and the checks that make it a `Language`.
//!
//! Invariant: every refusal names the file, the field and what the field takes.

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;

use super::engines::{self, Engine, EnginePlan};
use super::plan::{FILE, OUTPUT, PACKAGES, helper_name};
use super::{Language, LanguageError, Languages, PackageSyntax, WarmInterpreter};
use crate::image::ImageName;

/// Longest file taken.
pub(super) const BYTES_MAX: usize = 64 << 10;
const NAME_BYTES_MAX: usize = 32;
const ARGUMENTS_MAX: usize = 64;
const MODULES_MAX: usize = 64;
const MODULE_BYTES_MAX: usize = 128;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Definition {
    name: String,
    display_name: String,
    #[serde(default)]
    aliases: Vec<String>,
    image: String,
    file_extension: String,
    source_name: Option<String>,
    output_name: Option<String>,
    compile: Option<Vec<String>>,
    run: Vec<String>,
    programs: Vec<String>,
    version: Vec<String>,
    #[serde(default)]
    host_packages: Vec<String>,
    install: Option<Vec<String>>,
    install_file: Option<Vec<String>>,
    package_syntax: Option<PackageSyntax>,
    packages_like: Option<String>,
    #[serde(default)]
    source_env: BTreeMap<String, String>,
    #[serde(default)]
    offline_env: BTreeMap<String, String>,
    #[serde(default)]
    index_env: BTreeMap<String, String>,
    #[serde(default)]
    not_found_words: Vec<String>,
    #[serde(default)]
    conflict_words: Vec<String>,
    #[serde(default)]
    env: BTreeMap<String, String>,
    #[serde(default)]
    helpers: BTreeMap<String, String>,
    warm: Option<WarmInterpreter>,
    #[serde(default)]
    preload: Vec<String>,
    #[serde(default)]
    prestarted_unless: Vec<String>,
    #[serde(default)]
    runtime: BTreeMap<Engine, EnginePlan>,
}

/// Parses and checks one file; `file` is its name in messages, `others` are the languages before it.
pub(super) fn parse(file: &str, text: &str, others: &Languages) -> Result<Language, LanguageError> {
    if text.len() > BYTES_MAX {
        return Err(field(file, "the file", "too long", "at most 64 KiB"));
    }
    let mut definition: Definition =
        toml::from_str(text).map_err(|error| LanguageError::Syntax { file: file.to_owned(), message: error.to_string() })?;
    if let Some(name) = definition.packages_like.take() {
        take_packages(file, &mut definition, &name, others)?;
    }
    check_names(file, &definition)?;
    check_places(file, &definition)?;
    check_vectors(file, &definition)?;
    check_helpers(file, &definition)?;
    check_packages(file, &definition)?;
    check_warm(file, &definition)?;
    check_env(file, "env", &definition.env)?;
    check_env(file, "source_env", &definition.source_env)?;
    check_env(file, "offline_env", &definition.offline_env)?;
    check_env(file, "index_env", &definition.index_env)?;
    engines::check(file, &definition.runtime)?;
    Ok(Language {
        name: definition.name,
        display_name: definition.display_name,
        aliases: definition.aliases,
        image: definition.image,
        source_name: definition.source_name.unwrap_or_else(|| format!(".main{}", definition.file_extension)),
        output_name: definition.output_name.unwrap_or_else(|| ".main.out".into()),
        file_extension: definition.file_extension,
        compile: definition.compile,
        run: definition.run,
        programs: definition.programs,
        version: definition.version,
        host_packages: definition.host_packages,
        install: definition.install,
        install_file: definition.install_file,
        package_syntax: definition.package_syntax,
        source_env: definition.source_env,
        offline_env: definition.offline_env,
        index_env: definition.index_env,
        not_found_words: definition.not_found_words,
        conflict_words: definition.conflict_words,
        env: definition.env,
        helpers: definition.helpers,
        warm: definition.warm,
        preload: definition.preload,
        prestarted_unless: definition.prestarted_unless,
        engines: definition.runtime,
    })
}

/// Packages of one language are installed as another one's are.
fn take_packages(file: &str, definition: &mut Definition, name: &str, others: &Languages) -> Result<(), LanguageError> {
    let wrong = || LanguageError::PackagesLike { file: file.to_owned(), name: name.to_owned() };
    let other = others.get(name).filter(|other| other.install.is_some()).ok_or_else(wrong)?;
    if definition.install.is_some() || definition.install_file.is_some() {
        return Err(field(file, "install", "there beside `packages_like`", "one of the two"));
    }
    definition.install.clone_from(&other.install);
    definition.install_file.clone_from(&other.install_file);
    definition.package_syntax = other.package_syntax;
    definition.source_env.clone_from(&other.source_env);
    definition.offline_env.clone_from(&other.offline_env);
    definition.index_env.clone_from(&other.index_env);
    definition.not_found_words.clone_from(&other.not_found_words);
    definition.conflict_words.clone_from(&other.conflict_words);
    for (name, text) in &other.helpers {
        definition.helpers.entry(name.clone()).or_insert_with(|| text.clone());
    }
    Ok(())
}

fn field(file: &str, field: &'static str, found: &str, takes: &'static str) -> LanguageError {
    LanguageError::Field { file: file.to_owned(), field, found: found.to_owned(), takes }
}

fn is_name(text: &str) -> bool {
    text.len() <= NAME_BYTES_MAX
        && text.starts_with(|c: char| c.is_ascii_lowercase())
        && text.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || "+#._-".contains(c))
}

fn check_names(file: &str, definition: &Definition) -> Result<(), LanguageError> {
    const NAME: &str = "a lower-case letter, then lower-case letters, digits and `+#._-`, 32 bytes at most";
    if !is_name(&definition.name) {
        return Err(field(file, "name", &format!("{:?}", definition.name), NAME));
    }
    let mut seen = BTreeSet::from([&definition.name]);
    for alias in &definition.aliases {
        if !is_name(alias) {
            return Err(field(file, "aliases", &format!("{alias:?}"), NAME));
        }
        if !seen.insert(alias) {
            return Err(field(file, "aliases", &format!("{alias:?} twice"), "each name once"));
        }
    }
    if definition.display_name.is_empty() || definition.display_name.chars().any(char::is_control) {
        return Err(field(file, "display_name", &format!("{:?}", definition.display_name), "a name for people, on one line"));
    }
    if ImageName::parse(&definition.image).is_err() {
        return Err(field(
            file,
            "image",
            &format!("{:?}", definition.image),
            "the name of an image, such as `python` or `python:3.12`",
        ));
    }
    let extension = definition.file_extension.strip_prefix('.').unwrap_or_default();
    if extension.is_empty() || extension.len() > 16 || !extension.chars().all(|c| c.is_ascii_alphanumeric()) {
        let found = format!("{:?}", definition.file_extension);
        return Err(field(file, "file_extension", &found, "a dot, then up to 16 letters and digits"));
    }
    Ok(())
}

/// What is written there is removed afterwards, so both names must be ones that nobody else uses.
fn check_places(file: &str, definition: &Definition) -> Result<(), LanguageError> {
    const TAKES: &str = "a path whose first component begins with `.main`, of letters, digits and `._-`: `.main/main.go`";
    let sound = |name: &String| {
        let parts: Vec<&str> = name.split('/').collect();
        let plain = |part: &&str| part.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c));
        name.starts_with(".main")
            && parts.len() <= 2
            && parts.iter().all(|part| !part.is_empty() && *part != ".." && *part != "." && plain(part))
    };
    for (name, value) in [("source_name", &definition.source_name), ("output_name", &definition.output_name)] {
        if let Some(value) = value.as_ref().filter(|value| !sound(value)) {
            return Err(field(file, name, &format!("{value:?}"), TAKES));
        }
    }
    Ok(())
}

fn check_vectors(file: &str, definition: &Definition) -> Result<(), LanguageError> {
    let Definition { compile, run, version, programs, install, install_file, .. } = definition;
    vector(file, "run", run, if compile.is_some() { &[OUTPUT] } else { &[FILE] })?;
    vector(file, "version", version, &[])?;
    vector(file, "programs", programs, &[])?;
    if let Some(compile) = compile {
        vector(file, "compile", compile, &[FILE, OUTPUT])?;
    }
    if let Some(install) = install {
        vector(file, "install", install, &[PACKAGES])?;
    }
    if let Some(install_file) = install_file {
        vector(file, "install_file", install_file, &[FILE])?;
    }
    Ok(())
}

/// Each placeholder that a vector needs stands in it once, and no other does. That of packages is an argument of its own, and
/// so is that of a requirements file, whose name is the client's; the others may be a part of one (`-o{output}`).
fn vector(file: &str, name: &'static str, values: &[String], placeholders: &[&str]) -> Result<(), LanguageError> {
    let refuse = |takes| Err(field(file, name, &format!("{values:?}"), takes));
    let sound = |value: &String| !value.is_empty() && !value.chars().any(char::is_control);
    if values.is_empty() || values.len() > ARGUMENTS_MAX || !values.iter().all(sound) {
        return refuse("1 to 64 strings, none empty, without control characters");
    }
    for placeholder in [FILE, OUTPUT, PACKAGES] {
        let times: usize = values.iter().map(|value| value.matches(placeholder).count()).sum();
        if times != usize::from(placeholders.contains(&placeholder)) {
            return refuse(takes(name));
        }
    }
    let alone = match name {
        "install" => Some(PACKAGES),
        "install_file" => Some(FILE),
        _ => None,
    };
    let is_program = |placeholder: &&str| values[0].contains(*placeholder) && (*placeholder != OUTPUT || name != "run");
    if alone.is_some_and(|alone| !values.iter().any(|value| value == alone)) || placeholders.iter().any(is_program) {
        return refuse(takes(name));
    }
    Ok(())
}

fn takes(vector: &str) -> &'static str {
    match vector {
        "run" => "a program and its arguments, with `{file}` once, or `{output}` once where the language has `compile`",
        "compile" => "a program and its arguments, with `{file}` once and `{output}` once",
        "install" => "a program and its arguments, one of which is `{packages}`",
        "install_file" => "a program and its arguments, one of which is `{file}`",
        _ => "strings without a placeholder",
    }
}

fn check_helpers(file: &str, definition: &Definition) -> Result<(), LanguageError> {
    let Definition { compile, run, version, install, install_file, helpers, .. } = definition;
    for (name, text) in helpers {
        if !is_name(name) || text.is_empty() || text.contains('\0') {
            let takes = "a name of lower-case letters, digits and `+#._-`, and a text without NUL";
            return Err(field(file, "helpers", &format!("{name:?}"), takes));
        }
    }
    let all = [Some(run), Some(version), compile.as_ref(), install.as_ref(), install_file.as_ref()];
    let named = all.into_iter().flatten().flatten().filter(|argument| argument.contains("{helper"));
    for argument in named {
        if helper_name(argument).is_none_or(|name| !helpers.contains_key(name)) {
            return Err(field(file, "helpers", &format!("without {argument:?}"), "each NAME that stands as `{helper:NAME}`"));
        }
    }
    Ok(())
}

fn check_packages(file: &str, definition: &Definition) -> Result<(), LanguageError> {
    let installs = definition.install.is_some() || definition.install_file.is_some();
    if installs && definition.package_syntax.is_none() {
        return Err(field(file, "package_syntax", "absent", "`pep508`, `npm` or `gem` where the language has `install`"));
    }
    Ok(())
}

/// An option could make the interpreter pass over what makes it wait; a name that is no module's would only be passed over.
fn check_warm(file: &str, definition: &Definition) -> Result<(), LanguageError> {
    let Definition { warm, run, compile, preload, .. } = definition;
    let waits = match warm {
        None => true,
        Some(WarmInterpreter::Python) => run.len() == 2 && run[1] == FILE && compile.is_none(),
        Some(WarmInterpreter::Prestarted | WarmInterpreter::Bun) => {
            run.iter().any(|argument| argument == FILE) && compile.is_none()
        }
    };
    if !waits {
        let takes = "absent where the language has `compile`, or `run` lacks `{file}`; `python` also where `run` is more than the interpreter and `{file}`";
        return Err(field(file, "warm", "there", takes));
    }
    engines::check_beside(file, "prestarted_unless", &definition.prestarted_unless)?;
    let is_module = |name: &String| {
        let plain = |part: &str| !part.is_empty() && part.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
        name.len() <= MODULE_BYTES_MAX && name.split('.').all(plain)
    };
    match preload.iter().find(|name| !is_module(name)) {
        Some(name) => Err(field(file, "preload", &format!("{name:?}"), "names of modules: letters, digits, `_` and `.`")),
        None if preload.len() > MODULES_MAX => Err(field(file, "preload", "too long", "64 modules at most")),
        None => Ok(()),
    }
}

pub(super) fn check_env(file: &str, name: &'static str, env: &BTreeMap<String, String>) -> Result<(), LanguageError> {
    for (key, value) in env {
        let sound = key.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
            && key.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
        if !sound || value.contains('\0') {
            return Err(field(file, name, &format!("{key:?}"), "names of letters, digits and `_`, values without NUL"));
        }
    }
    Ok(())
}
