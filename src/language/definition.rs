//! One language file: what it may hold, and the checks that make it a `Language`.
//!
//! Invariant: every refusal names the file, the field and what the field takes.

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;

use super::engines::{self, Engine, EnginePlan};
use super::{Language, LanguageError, PackageSyntax};
use crate::image::ImageName;

const BYTES_MAX: usize = 64 << 10;
const NAME_BYTES_MAX: usize = 32;
const ARGUMENTS_MAX: usize = 64;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Definition {
    name: String,
    display_name: String,
    #[serde(default)]
    aliases: Vec<String>,
    image: String,
    file_extension: String,
    run: Vec<String>,
    programs: Vec<String>,
    version: Vec<String>,
    install: Option<Vec<String>>,
    install_file: Option<Vec<String>>,
    package_syntax: Option<PackageSyntax>,
    #[serde(default)]
    env: BTreeMap<String, String>,
    #[serde(default)]
    preload: Vec<String>,
    #[serde(default)]
    runtime: BTreeMap<Engine, EnginePlan>,
}

/// Parses and checks one file; `file` is its name in messages.
pub(super) fn parse(file: &str, text: &str) -> Result<Language, LanguageError> {
    if text.len() > BYTES_MAX {
        return Err(field(file, "the file", "too long", "at most 64 KiB"));
    }
    let definition: Definition =
        toml::from_str(text).map_err(|error| LanguageError::Syntax { file: file.to_owned(), message: error.to_string() })?;
    check_names(file, &definition)?;
    check_vectors(file, &definition)?;
    check_packages(file, &definition)?;
    check_env(file, &definition.env)?;
    engines::check(file, &definition.runtime)?;
    Ok(Language {
        name: definition.name,
        display_name: definition.display_name,
        aliases: definition.aliases,
        image: definition.image,
        file_extension: definition.file_extension,
        run: definition.run,
        programs: definition.programs,
        version: definition.version,
        install: definition.install,
        install_file: definition.install_file,
        package_syntax: definition.package_syntax,
        env: definition.env,
        preload: definition.preload,
        engines: definition.runtime,
    })
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

fn check_vectors(file: &str, definition: &Definition) -> Result<(), LanguageError> {
    vector(file, "run", &definition.run, Some("{file}"))?;
    vector(file, "version", &definition.version, None)?;
    vector(file, "programs", &definition.programs, None)?;
    if let Some(install) = &definition.install {
        vector(file, "install", install, Some("{packages}"))?;
    }
    if let Some(install) = &definition.install_file {
        vector(file, "install_file", install, Some("{file}"))?;
    }
    Ok(())
}

fn vector(file: &str, name: &'static str, values: &[String], placeholder: Option<&str>) -> Result<(), LanguageError> {
    let found = format!("{values:?}");
    let sound = |value: &String| !value.is_empty() && !value.chars().any(char::is_control);
    if values.is_empty() || values.len() > ARGUMENTS_MAX || !values.iter().all(sound) {
        return Err(field(file, name, &found, "1 to 64 strings, none empty, without control characters"));
    }
    let Some(placeholder) = placeholder else { return Ok(()) };
    let holders = values.iter().filter(|value| value.contains(placeholder)).count();
    let exact = values.iter().skip(1).filter(|value| *value == placeholder).count();
    if holders != 1 || exact != 1 {
        let takes = match name {
            "install" => "a program and its arguments, one of which is `{packages}`",
            _ => "a program and its arguments, one of which is `{file}`",
        };
        return Err(field(file, name, &found, takes));
    }
    Ok(())
}

fn check_packages(file: &str, definition: &Definition) -> Result<(), LanguageError> {
    let installs = definition.install.is_some() || definition.install_file.is_some();
    if installs && definition.package_syntax.is_none() {
        return Err(field(file, "package_syntax", "absent", "`pep508` or `npm` where the language has `install`"));
    }
    Ok(())
}

pub(super) fn check_env(file: &str, env: &BTreeMap<String, String>) -> Result<(), LanguageError> {
    for (key, value) in env {
        let sound = key.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
            && key.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
        if !sound || value.contains('\0') {
            return Err(field(file, "env", &format!("{key:?}"), "names of letters, digits and `_`, values without NUL"));
        }
    }
    Ok(())
}
