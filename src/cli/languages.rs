//! `codebeaker languages`: what can be run here.

use clap::Args;
use serde_json::{Value, json};

use super::output::{FormatArgs, OutputFormat, emit_json, emit_table};
use super::{CliError, CommonArgs, compose};
use crate::runtime::RuntimeKind;
use crate::session::api::LanguageRow;

/// Lists the languages, and what runs them
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  codebeaker languages
  codebeaker languages -o json | jq -r '.languages[] | select(.installed) | .name'")]
pub(super) struct LanguagesArgs {
    #[command(flatten)]
    format: FormatArgs,
}

pub(super) fn languages(common: &CommonArgs, args: &LanguagesArgs) -> Result<(), CliError> {
    let rows = compose::language_rows(&common.load()?.config)?;
    match args.format.format {
        OutputFormat::Json => emit_json(&json!({ "languages": rows.iter().map(as_json).collect::<Vec<_>>() })),
        OutputFormat::Table => {
            emit_table(&["name", "aliases", "version", "image", "runtimes", "installed"], rows.iter().map(as_row))
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
        };
        assert_eq!(as_row(&row), ["python", "py", "-", "host", "-", "no"]);
        assert_eq!(as_json(&row)["version"], Value::Null);
    }
}
