//! Where values come from: defaults, then the TOML file, then `CODEBEAKER_*` variables, then flags; the last one wins.
//!
//! Invariant: every key of the outcome has an [`Origin`], and a key that `Config` does not know is an error that names it and
//! the place it stands in. Values of variables are read by the type of the default they replace, so `CODEBEAKER_LOG_FILTER=1`
//! stays text. Next page: `check`.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use figment::Figment;
use figment::providers::Serialized;
use figment::value::{Dict, Value};

use super::check::{Complaint, check};
use super::error::{ConfigError, Origin};
use super::{Config, LogFormat};

/// Begins every variable that is read.
const PREFIX: &str = "CODEBEAKER_";
/// The configuration file of a server run by root.
const SYSTEM_FILE: &str = "/etc/codebeaker/config.toml";

/// What the caller brings; the environment is read by [`load`] itself.
#[derive(Debug, Clone, Default)]
pub struct Sources {
    /// `--config`; absent: `$CODEBEAKER_CONFIG`, else the usual place when a file is there.
    pub file: Option<PathBuf>,
    /// What flags said.
    pub flags: FlagOverrides,
}

/// Flags that replace a value of the configuration.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FlagOverrides {
    /// `--listen`
    pub listen: Option<SocketAddr>,
    /// `--state-dir`
    pub state_dir: Option<PathBuf>,
    /// `--no-auth`; false leaves what the configuration says.
    pub no_auth: bool,
    /// `--log`
    pub log_filter: Option<String>,
    /// `--log-format`
    pub log_format: Option<LogFormat>,
}

/// The outcome.
#[derive(Debug, Clone, PartialEq)]
pub struct Loaded {
    /// Checked.
    pub config: Config,
    /// The file that was read, if any.
    pub file: Option<PathBuf>,
    /// Dotted key (`server.listen`) to where its value is from; holds every key.
    pub origins: BTreeMap<String, Origin>,
}

/// Reads every source and checks the outcome.
pub fn load(sources: Sources) -> Result<Loaded, ConfigError> {
    load_on(sources, &Host::current()?)
}

/// The part of the process that loading depends on, so that tests can state it.
struct Host {
    variables: BTreeMap<String, String>,
    is_root: bool,
}

impl Host {
    fn current() -> Result<Self, ConfigError> {
        use std::os::unix::fs::MetadataExt;
        // /proc/self belongs to the effective user; where it can't be read, no special right is assumed.
        let is_root = std::fs::metadata("/proc/self").is_ok_and(|entry| entry.uid() == 0);
        Ok(Self { variables: relevant_variables(std::env::vars_os())?, is_root })
    }

    /// A variable that is set and not empty.
    fn variable(&self, name: &str) -> Option<&str> {
        self.variables.get(name).map(String::as_str).filter(|value| !value.is_empty())
    }

    /// The XDG base directory of that name; relative values are ignored, as its specification asks.
    fn base_directory(&self, variable: &str, below_home: &str) -> Option<PathBuf> {
        let absolute = |text: &str| Some(PathBuf::from(text)).filter(|path| path.is_absolute());
        let named = self.variable(variable).and_then(absolute);
        named.or_else(|| Some(self.variable("HOME").and_then(absolute)?.join(below_home)))
    }

    fn state_dir(&self) -> Result<PathBuf, ConfigError> {
        if self.is_root {
            return Ok(Config::default().state_dir);
        }
        let data = self.base_directory("XDG_DATA_HOME", ".local/share").ok_or(ConfigError::NoStateDir)?;
        Ok(data.join("codebeaker"))
    }

    /// The file to read: one that was named must be there, one in the usual place may be missing.
    fn file(&self, named: Option<PathBuf>) -> Option<PathBuf> {
        if let Some(named) = named.or_else(|| self.variable("CODEBEAKER_CONFIG").map(PathBuf::from)) {
            return Some(named);
        }
        self.usual_file().filter(|usual| usual.exists())
    }

    fn usual_file(&self) -> Option<PathBuf> {
        if self.is_root {
            return Some(PathBuf::from(SYSTEM_FILE));
        }
        Some(self.base_directory("XDG_CONFIG_HOME", ".config")?.join("codebeaker/config.toml"))
    }

    /// `languages` beside the configuration file, or where one would be looked for.
    fn language_dir(&self, file: Option<&Path>) -> Option<PathBuf> {
        let file = file.map(Path::to_owned).or_else(|| self.usual_file())?;
        Some(file.parent()?.join("languages")).filter(|directory| directory.is_dir())
    }
}

fn relevant_variables(all: impl Iterator<Item = (OsString, OsString)>) -> Result<BTreeMap<String, String>, ConfigError> {
    let mut kept = BTreeMap::new();
    for (name, value) in all {
        let Ok(name) = name.into_string() else { continue };
        if !name.starts_with(PREFIX) && !["HOME", "XDG_DATA_HOME", "XDG_CONFIG_HOME"].contains(&name.as_str()) {
            continue;
        }
        let value = value.into_string().map_err(|_| ConfigError::NotUnicode { name: name.clone() })?;
        kept.insert(name, value);
    }
    Ok(kept)
}

/// What a key takes; decided by its default.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Shape {
    Text,
    Path,
    Number,
    Truth,
    List,
}

impl Shape {
    /// For a person.
    fn takes(self, key: &str) -> &'static str {
        match (key, self) {
            ("server.listen", _) => "an address with a port, such as 127.0.0.1:5000 or [::1]:5000",
            ("log.format", _) => "auto, text or json",
            (_, Self::Text) => "text",
            (_, Self::Path) => "a path",
            (_, Self::Number) => "a whole number, 0 or more",
            (_, Self::Truth) => "true or false",
            (_, Self::List) => "a list of texts: [\"a\", \"b\"] in the file, a,b in a variable",
        }
    }
}

/// One source's values under dotted keys.
struct Layer {
    values: Vec<(String, Value, Origin)>,
}

fn load_on(sources: Sources, host: &Host) -> Result<Loaded, ConfigError> {
    let keys = known_keys();
    let file = host.file(sources.file.clone());
    let mut layers = Vec::new();
    if let Some(path) = &file {
        layers.push(file_layer(path, &keys)?);
    }
    layers.push(environment_layer(host, &keys)?);
    layers.push(flag_layer(sources.flags));

    let mut figment = Figment::from(Serialized::defaults(Config::default()));
    let mut origins: BTreeMap<String, Origin> = keys.keys().map(|key| (key.clone(), Origin::Default)).collect();
    for (key, value, origin) in layers.into_iter().flat_map(|layer| layer.values) {
        figment = figment.merge(Serialized::default(&key, value));
        origins.insert(key, origin);
    }
    if origins.get("state_dir") == Some(&Origin::Default) {
        figment = figment.merge(Serialized::default("state_dir", host.state_dir()?));
    }
    if origins.get("sandbox.language_dir") == Some(&Origin::Default)
        && let Some(directory) = host.language_dir(file.as_deref())
    {
        figment = figment.merge(Serialized::default("sandbox.language_dir", directory));
    }
    let config = figment.extract::<Config>().map_err(|error| type_error(&error, &keys, &origins))?;
    let config = with_absolute_paths(config);
    check(&config).map_err(|complaint| value_error(complaint, &origins))?;
    Ok(Loaded { config, file, origins })
}

/// Every key of `Config` with its shape, taken from the defaults so that no list has to be kept.
fn known_keys() -> BTreeMap<String, Shape> {
    let defaults = Value::serialize(Config::default()).ok().and_then(Value::into_dict).unwrap_or_default();
    let mut keys = BTreeMap::new();
    for (name, value) in defaults {
        match value {
            Value::Dict(_, section) => {
                keys.extend(section.iter().map(|(field, value)| (format!("{name}.{field}"), shape_of(field, value))));
            }
            value => {
                let shape = shape_of(&name, &value);
                keys.insert(name, shape);
            }
        }
    }
    keys
}

fn shape_of(field: &str, default: &Value) -> Shape {
    match default {
        _ if field.ends_with("_dir") || field.ends_with("_file") => Shape::Path,
        Value::Bool(..) => Shape::Truth,
        Value::Num(..) => Shape::Number,
        Value::Array(..) => Shape::List,
        Value::String(..) | Value::Char(..) | Value::Empty(..) | Value::Dict(..) => Shape::Text,
    }
}

fn file_layer(path: &Path, keys: &BTreeMap<String, Shape>) -> Result<Layer, ConfigError> {
    let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Unreadable { path: path.to_owned(), source })?;
    let table: toml::Table = toml::from_str(&text).map_err(|error| syntax_error(path, &text, &error))?;
    let origin = Origin::File(path.to_owned());
    let dict = Value::serialize(table).ok().and_then(Value::into_dict).unwrap_or_default();
    let mut values = Vec::new();
    for (name, value) in dict {
        match value {
            Value::Dict(_, section) if is_section(&name, keys) => flatten(&name, section, &mut values),
            value => values.push((name, value)),
        }
    }
    let mut layer = Layer { values: Vec::new() };
    for (key, value) in values {
        if is_section(&key, keys) {
            let message = "a section was expected, not a value".to_owned();
            return Err(ConfigError::Type { takes: format!("keys below [{key}]"), key, origin, message });
        }
        if !keys.contains_key(&key) {
            return Err(unknown_key(key, origin, keys));
        }
        layer.values.push((key, value, origin.clone()));
    }
    Ok(layer)
}

fn flatten(section: &str, dict: Dict, into: &mut Vec<(String, Value)>) {
    into.extend(dict.into_iter().map(|(field, value)| (format!("{section}.{field}"), value)));
}

fn is_section(name: &str, keys: &BTreeMap<String, Shape>) -> bool {
    keys.keys().any(|key| key.split_once('.').is_some_and(|(section, _)| section == name))
}

fn syntax_error(path: &Path, text: &str, error: &toml::de::Error) -> ConfigError {
    let before = error.span().and_then(|span| text.get(..span.start)).unwrap_or_default();
    let line = before.matches('\n').count() + 1;
    ConfigError::Syntax { path: path.to_owned(), line, message: error.message().to_owned() }
}

/// `CODEBEAKER_SECTION_FIELD`; the list of known keys decides where the section ends, so nothing is ambiguous. Variables whose
/// name begins with no section (`CODEBEAKER_URL`) are not configuration and are left alone.
fn environment_layer(host: &Host, keys: &BTreeMap<String, Shape>) -> Result<Layer, ConfigError> {
    let by_variable: BTreeMap<String, (&String, Shape)> =
        keys.iter().map(|(key, shape)| (variable_of(key), (key, *shape))).collect();
    let mut layer = Layer { values: Vec::new() };
    for (name, text) in &host.variables {
        let origin = Origin::Environment(name.clone());
        if let Some(&(key, shape)) = by_variable.get(name) {
            // An empty variable is as good as none, except where it can mean an empty list.
            if !text.is_empty() || shape == Shape::List {
                layer.values.push((key.clone(), read_variable(text, shape), origin));
            }
        } else if names_a_section(name, keys) {
            return Err(unknown_key(name.clone(), origin, keys));
        }
    }
    Ok(layer)
}

fn variable_of(key: &str) -> String {
    format!("{PREFIX}{}", key.replace('.', "_").to_ascii_uppercase())
}

fn names_a_section(variable: &str, keys: &BTreeMap<String, Shape>) -> bool {
    let Some((section, _)) = variable.strip_prefix(PREFIX).and_then(|rest| rest.split_once('_')) else { return false };
    is_section(&section.to_ascii_lowercase(), keys)
}

/// Reads text by shape; text that does not fit stays text, and extraction then says what was expected.
fn read_variable(text: &str, shape: Shape) -> Value {
    match shape {
        Shape::Text | Shape::Path => Value::from(text),
        Shape::Number => text.parse::<i64>().map_or_else(|_| Value::from(text), Value::from),
        Shape::Truth => match text {
            "1" => Value::from(true),
            "0" => Value::from(false),
            _ => text.parse::<bool>().map_or_else(|_| Value::from(text), Value::from),
        },
        Shape::List => Value::from(text.split(',').map(str::trim).filter(|item| !item.is_empty()).collect::<Vec<_>>()),
    }
}

fn flag_layer(flags: FlagOverrides) -> Layer {
    let FlagOverrides { listen, state_dir, no_auth, log_filter, log_format } = flags;
    let mut values = Vec::new();
    let mut add = |key: &str, value: Option<String>, flag| {
        values.extend(value.map(|value| (key.to_owned(), Value::from(value), Origin::Flag(flag))));
    };
    add("server.listen", listen.map(|address| address.to_string()), "--listen");
    add("log.filter", log_filter, "--log");
    add("log.format", log_format.map(|format| format.name().to_owned()), "--log-format");
    // A path that is not UTF-8 can't be a configuration value; the lossy one is refused where it is opened.
    add("state_dir", state_dir.map(|path| path.to_string_lossy().into_owned()), "--state-dir");
    if no_auth {
        values.push(("server.no_auth".into(), Value::from(true), Origin::Flag("--no-auth")));
    }
    Layer { values }
}

/// Paths stay what they were when the working directory changes later.
fn with_absolute_paths(mut config: Config) -> Config {
    let sandbox = &mut config.sandbox;
    let optional = [&mut sandbox.profile_dir, &mut sandbox.language_dir, &mut sandbox.package_dir];
    let files = [&mut config.packages.ca_file];
    for path in optional.into_iter().chain(files).flatten().chain([&mut config.state_dir]) {
        if let Ok(absolute) = std::path::absolute(&*path) {
            *path = absolute;
        }
    }
    config
}

fn type_error(error: &figment::Error, keys: &BTreeMap<String, Shape>, origins: &BTreeMap<String, Origin>) -> ConfigError {
    // The path may go on below the key, into the items of a list.
    let depth = error.path.len().min(2);
    let key = (1..=depth).rev().map(|depth| error.path[..depth].join(".")).find(|key| keys.contains_key(key));
    let key = key.unwrap_or_else(|| error.path.join("."));
    let takes = keys.get(&key).map_or("what `codebeaker config show` shows", |shape| shape.takes(&key)).to_owned();
    let origin = origins.get(&key).cloned().unwrap_or(Origin::Default);
    ConfigError::Type { key, origin, message: error.kind.to_string(), takes }
}

fn value_error(complaint: Complaint, origins: &BTreeMap<String, Origin>) -> ConfigError {
    let origin = origins.get(complaint.key).cloned().unwrap_or(Origin::Default);
    ConfigError::Value { key: complaint.key, origin, problem: complaint.problem, mend: complaint.mend }
}

/// Names the nearest known key, in the spelling of the place the unknown one stands in.
fn unknown_key(key: String, origin: Origin, keys: &BTreeMap<String, Shape>) -> ConfigError {
    let spelled = |known: &String| match origin {
        Origin::Environment(_) => variable_of(known),
        Origin::Default | Origin::File(_) | Origin::Flag(_) => known.clone(),
    };
    let sections = keys.keys().filter_map(|known| Some(known.split_once('.')?.0.to_owned()));
    let nearest = keys.keys().map(spelled).chain(sections).map(|known| (distance(&key, &known), known)).min();
    let hint = match nearest {
        Some((distance, known)) if distance <= 3 => format!("did you mean `{known}`?"),
        Some(_) | None => "`codebeaker config show` lists every key".to_owned(),
    };
    ConfigError::UnknownKey { key, origin, hint }
}

/// Edit distance (insert, delete, replace).
fn distance(left: &str, right: &str) -> usize {
    let right: Vec<char> = right.chars().collect();
    let mut row: Vec<usize> = (0..=right.len()).collect();
    for (i, a) in left.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, &b) in right.iter().enumerate() {
            let replaced = diagonal + usize::from(a != b);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[right.len()]
}

#[cfg(test)]
#[path = "load_tests.rs"]
mod tests;
