//! Which texts are names of packages: so strict that none can be an option, a path or an address.
//!
//! Invariant: what `validate_package` lets through names a package of the index in force, and nothing else. Markers, direct
//! references (`name @ https://…`), npm aliases and everything that the installers take for a file are refused.

use serde::Deserialize;
use thiserror::Error;

use super::Language;

const BYTES_MAX: usize = 214;

/// Whose rules a package's name follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PackageSyntax {
    /// `name[extra]>=1,<2` of PEP 508, without white space, marker or address.
    Pep508,
    /// `name@version` or `@scope/name@version`.
    Npm,
    /// `name` or `name:version`, of letters, digits and `._-`.
    Gem,
}

/// A package's name was refused.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("`{}` is not the name of a package: {reason}", package.escape_debug())]
pub struct PackageError {
    /// As given.
    pub package: String,
    /// What is wrong and what is taken.
    pub reason: &'static str,
}

/// Packages of one request.
pub const PACKAGES_MAX: usize = 256;

/// Takes names with versions as the language's index knows them.
pub fn validate_package(language: &Language, package: &str) -> Result<(), PackageError> {
    let refuse = |reason| Err(PackageError { package: package.chars().take(BYTES_MAX).collect(), reason });
    if package.is_empty() || package.len() > BYTES_MAX {
        return refuse("it has 1 to 214 bytes");
    }
    if package.starts_with('-') {
        return refuse("a leading `-` would make it an option");
    }
    if package.chars().any(|c| c.is_whitespace() || c.is_control() || !c.is_ascii()) {
        return refuse("white space, control characters and non-ASCII letters can't stand in it");
    }
    let sound = match language.package_syntax {
        None => return refuse("the language has no packages"),
        Some(PackageSyntax::Pep508) => is_pep508(package),
        Some(PackageSyntax::Npm) => is_npm(package),
        Some(PackageSyntax::Gem) => is_gem(package),
    };
    if !sound {
        return refuse("only a name and a version of the package index are taken, no path, address or marker");
    }
    if looks_like_archive(package) {
        return refuse("the installer would take it for a file");
    }
    Ok(())
}

fn looks_like_archive(package: &str) -> bool {
    let lower = package.to_ascii_lowercase();
    [".zip", ".whl", ".tar", ".tgz", ".tar.gz", ".tar.bz2", ".tbz", ".tar.xz", ".txz", ".tlz", ".tar.lz", ".tar.lzma", ".gem"]
        .iter()
        .any(|suffix| lower.ends_with(suffix))
}

fn is_pep508_word(word: &str) -> bool {
    let edge = |c: char| c.is_ascii_alphanumeric();
    word.starts_with(edge) && word.ends_with(edge) && word.chars().all(|c| edge(c) || "._-".contains(c))
}

fn is_pep508(package: &str) -> bool {
    let name_end = package.find(['[', '=', '!', '<', '>', '~']).unwrap_or(package.len());
    let (name, mut rest) = package.split_at(name_end);
    if !is_pep508_word(name) {
        return false;
    }
    if let Some(inner) = rest.strip_prefix('[') {
        let Some((extras, after)) = inner.split_once(']') else { return false };
        if !extras.split(',').all(is_pep508_word) {
            return false;
        }
        rest = after;
    }
    rest.is_empty() || rest.split(',').all(is_version_clause)
}

fn is_version_clause(clause: &str) -> bool {
    let version = ["===", "==", "!=", "<=", ">=", "~=", "<", ">"].iter().find_map(|operator| clause.strip_prefix(operator));
    version.is_some_and(|version| {
        version.starts_with(|c: char| c.is_ascii_alphanumeric())
            && version.chars().all(|c| c.is_ascii_alphanumeric() || "._*+!-".contains(c))
    })
}

fn is_npm_word(word: &str) -> bool {
    word.starts_with(|c: char| c.is_ascii_alphanumeric())
        && word.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c))
        && !looks_like_archive(word)
}

fn is_npm(package: &str) -> bool {
    let (scope, rest) = match package.strip_prefix('@') {
        Some(scoped) => match scoped.split_once('/') {
            Some((scope, rest)) => (Some(scope), rest),
            None => return false,
        },
        None => (None, package),
    };
    let (name, version) = match rest.split_once('@') {
        Some((name, version)) => (name, Some(version)),
        None => (rest, None),
    };
    scope.is_none_or(is_npm_word) && is_npm_word(name) && version.is_none_or(is_npm_version)
}

fn is_gem(package: &str) -> bool {
    let word = |word: &str| {
        word.starts_with(|c: char| c.is_ascii_alphanumeric())
            && word.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c))
    };
    let (name, version) = package.split_once(':').map_or((package, None), |(name, version)| (name, Some(version)));
    word(name) && version.is_none_or(|version| version.starts_with(|c: char| c.is_ascii_digit()) && word(version))
}

fn is_npm_version(version: &str) -> bool {
    // `.` or `~/` at the start would be a path; `:` and `/` never are part of a version or tag.
    version.starts_with(|c: char| c.is_ascii_alphanumeric() || "^~<>=*".contains(c))
        && version.chars().all(|c| c.is_ascii_alphanumeric() || "._+-^~<>=*|".contains(c))
}
