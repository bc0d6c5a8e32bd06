//! `codebeaker config show`: every value in force and where it is from.

use clap::{Args, Subcommand};
use serde_json::{Map, Value, json};

use super::output::{FormatArgs, OutputFormat, emit_json, emit_table};
use super::{CliError, CommonArgs};
use crate::config::Loaded;

/// The configuration
///
/// Values come from a TOML file, then from CODEBEAKER_* variables, then from flags; the last one wins.
#[derive(Debug, Args)]
pub(super) struct ConfigArgs {
    #[command(subcommand)]
    call: ConfigCall,
}

#[derive(Debug, Subcommand)]
enum ConfigCall {
    Show(ShowArgs),
}

/// Prints every value in force and where it is from
///
/// The key `server.listen` is `listen` below `[server]` in the file, and the variable CODEBEAKER_SERVER_LISTEN.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  codebeaker config show
  codebeaker config show --config ./config.toml
  codebeaker config show -o json | jq '.values[\"server.listen\"]'")]
struct ShowArgs {
    #[command(flatten)]
    format: FormatArgs,
}

pub(super) fn config(common: &CommonArgs, args: &ConfigArgs) -> Result<(), CliError> {
    let ConfigCall::Show(args) = &args.call;
    let loaded = common.load()?;
    let values = values(&loaded)?;
    match args.format.format {
        OutputFormat::Json => emit_json(&as_json(&loaded, &values)),
        OutputFormat::Table => emit_table(
            &["key", "value", "from"],
            values.iter().map(|(key, value)| vec![key.clone(), for_people(value), origin(&loaded, key)]),
        ),
    }
}

/// Dotted key to value, in the order of the configuration's own page.
fn values(loaded: &Loaded) -> Result<Vec<(String, Value)>, CliError> {
    let whole = serde_json::to_value(&loaded.config)
        .map_err(|error| CliError::new(format!("the configuration can't be shown: {error}")))?;
    let mut values = Vec::new();
    for (name, value) in whole.as_object().into_iter().flatten() {
        match value {
            Value::Object(section) => {
                values.extend(section.iter().map(|(field, value)| (format!("{name}.{field}"), value.clone())));
            }
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_) => {
                values.push((name.clone(), value.clone()));
            }
        }
    }
    Ok(values)
}

fn origin(loaded: &Loaded, key: &str) -> String {
    loaded.origins.get(key).map_or_else(|| "default".to_owned(), ToString::to_string)
}

fn as_json(loaded: &Loaded, values: &[(String, Value)]) -> Value {
    let rows: Map<String, Value> =
        values.iter().map(|(key, value)| (key.clone(), json!({ "value": value, "from": origin(loaded, key) }))).collect();
    json!({ "file": loaded.file, "values": rows })
}

fn for_people(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => text.clone(),
        Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_) => value.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Config, Origin};

    #[test]
    fn every_value_stands_with_its_origin() {
        let origins = [("server.listen".to_owned(), Origin::Flag("--listen"))].into();
        let loaded = Loaded { config: Config::default(), file: None, origins };
        let values = values(&loaded).expect("a configuration is JSON");
        assert_eq!(values[0], ("state_dir".into(), json!("/var/lib/codebeaker")));
        let shown = as_json(&loaded, &values);
        assert_eq!(shown["values"]["server.listen"], json!({ "value": "127.0.0.1:5000", "from": "flag --listen" }));
        assert_eq!(shown["values"]["log.format"], json!({ "value": "auto", "from": "default" }));
        assert_eq!(shown["file"], Value::Null);
    }
}
