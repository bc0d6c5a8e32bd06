//! `codebeaker languages`: what can be run here, and the commands that each language's code becomes.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::output::{FormatArgs, OutputFormat, emit_json, emit_table, note};
use super::{CliError, CommonArgs, compose};
use crate::language::plan::{PlanStep, describe};
use crate::language::{Language, Languages};
use crate::runtime::RuntimeKind;
use crate::session::api::LanguageRow;

/// Lists the languages, and what runs them
///
/// Each is asked for its version in a sandbox. What is missing is said with the command that mends it.
#[derive(Debug, Args)]
#[command(
    args_conflicts_with_subcommands = true,
    after_help = "\
Examples:
  codebeaker languages
  codebeaker languages -o json | jq -r '.languages[] | select(.installed) | .name'
  codebeaker languages show rust
  codebeaker languages check ./elixir.toml"
)]
pub(super) struct LanguagesArgs {
    #[command(subcommand)]
    call: Option<LanguagesCall>,
    #[command(flatten)]
    format: FormatArgs,
}

#[derive(Debug, Subcommand)]
enum LanguagesCall {
    /// Prints the commands that code of a language becomes
    #[command(after_help = "\
Examples:
  codebeaker languages show rust
  codebeaker languages show ts -o json | jq '.steps'")]
    Show {
        /// Name or alias
        name: String,
        #[command(flatten)]
        format: FormatArgs,
    },
    /// Checks a language file of your own, without installing it
    #[command(after_help = "\
Examples:
  codebeaker languages check ./elixir.toml")]
    Check {
        /// The TOML file
        file: PathBuf,
    },
}

pub(super) fn languages(common: &CommonArgs, args: &LanguagesArgs) -> Result<(), CliError> {
    match &args.call {
        None => list(common, args.format.format),
        Some(LanguagesCall::Show { name, format }) => {
            let language = compose::language(&common.load()?.config, name)?;
            show(&language, format.format)
        }
        Some(LanguagesCall::Check { file }) => check(common, file),
    }
}

/// The file among all the others, so that a name which is taken is told too.
fn check(common: &CommonArgs, file: &std::path::Path) -> Result<(), CliError> {
    let config = common.load()?.config;
    let mut languages =
        Languages::load(config.sandbox.language_dir.as_deref()).map_err(|error| CliError::new(error.to_string()))?;
    let language = languages.load_file(file).map_err(|error| CliError::new(error.to_string()))?;
    note(&format!("{}: sound; its language is `{}`\n", file.display(), language.name));
    Ok(())
}

fn show(language: &Language, format: OutputFormat) -> Result<(), CliError> {
    let steps = describe(language);
    match format {
        OutputFormat::Json => emit_json(&json!({
            "name": language.name,
            "displayName": language.display_name,
            "aliases": language.aliases,
            "image": language.image,
            "programs": language.programs,
            "env": language.env,
            "steps": steps.iter().map(|step| json!({ "step": step.name, "command": step.command })).collect::<Vec<_>>(),
        })),
        OutputFormat::Table => emit_table(&["step", "command"], steps.iter().map(step_row)),
    }
}

fn step_row(step: &PlanStep) -> Vec<String> {
    vec![step.name.to_owned(), step.command.iter().map(|word| quoted(word)).collect::<Vec<_>>().join(" ")]
}

/// As a shell would take it; a text of many lines by its size.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "_-./:=+,@%{}".contains(c);
    match word.trim().lines().count() {
        0 | 1 if !word.is_empty() && word.chars().all(plain) => word.to_owned(),
        0 | 1 => format!("'{}'", word.trim().replace('\'', r"'\''")),
        lines => format!("'… {lines} lines …'"),
    }
}

fn list(common: &CommonArgs, format: OutputFormat) -> Result<(), CliError> {
    let rows = compose::language_rows(&common.load()?.config)?;
    match format {
        OutputFormat::Json => emit_json(&json!({ "languages": rows.iter().map(as_json).collect::<Vec<_>>() })),
        OutputFormat::Table => {
            emit_table(&["name", "aliases", "version", "image", "runtimes", "installed"], rows.iter().map(as_row))?;
            for row in &rows {
                if let Some(reason) = &row.reason {
                    note(&format!("{}: {reason}\n", row.name));
                }
            }
            Ok(())
        }
    }
}

fn runtime_names(row: &LanguageRow) -> Vec<&'static str> {
    row.runtimes.iter().copied().map(RuntimeKind::name).collect()
}

/// As in `language.list`.
fn as_json(row: &LanguageRow) -> Value {
    json!({
        "name": row.name,
        "displayName": row.display_name,
        "aliases": row.aliases,
        "version": row.version,
        "runtimes": runtime_names(row),
        "image": row.image,
        "installed": row.installed,
        "reason": row.reason,
    })
}

fn as_row(row: &LanguageRow) -> Vec<String> {
    let or_dash = |text: String| if text.is_empty() { "-".to_owned() } else { text };
    vec![
        row.name.clone(),
        or_dash(row.aliases.join(",")),
        or_dash(row.version.clone().unwrap_or_default()),
        row.image.clone(),
        or_dash(runtime_names(row).join(",")),
        if row.installed { "yes" } else { "no" }.to_owned(),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_language_that_is_not_installed_shows_dashes_and_null() {
        let row = LanguageRow {
            name: "python".into(),
            display_name: "Python".into(),
            aliases: vec!["py".into()],
            version: None,
            runtimes: vec![],
            image: "host".into(),
            installed: false,
            reason: None,
        };
        assert_eq!(as_row(&row), ["python", "py", "-", "host", "-", "no"]);
        assert_eq!(as_json(&row)["version"], Value::Null);
    }
    #[test]
    fn a_step_reads_as_a_shell_would_take_it() {
        let row = |words: &[&str]| {
            step_row(&PlanStep { name: "run", command: words.iter().map(|word| (*word).to_owned()).collect() })[1].clone()
        };
        assert_eq!(row(&["go", "build", "-o", "/x", "a b", "it's", ""]), r"go build -o /x 'a b' 'it'\''s' ''");
        assert_eq!(row(&["node", "-e", "\none\ntwo\n"]), "node -e '… 2 lines …'");
    }
}
