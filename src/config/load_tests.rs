//! Precedence, provenance and every class of error of `load`, on a stated environment.

use super::*;

fn host(variables: &[(&str, &str)]) -> Host {
    let variables = variables.iter().map(|&(name, value)| (name.to_owned(), value.to_owned()));
    Host { variables: [("HOME".to_owned(), "/home/ada".to_owned())].into_iter().chain(variables).collect(), is_root: false }
}

fn file(text: &str) -> (tempfile::TempDir, Sources) {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = directory.path().join("config.toml");
    std::fs::write(&path, text).expect("the directory is writable");
    (directory, Sources { file: Some(path), flags: FlagOverrides::default() })
}

fn error_of(text: &str, variables: &[(&str, &str)]) -> ConfigError {
    let (_directory, sources) = file(text);
    load_on(sources, &host(variables)).expect_err("the configuration is refused")
}

#[test]
fn without_any_source_every_value_is_the_default() {
    let loaded = load_on(Sources::default(), &host(&[])).expect("defaults hold");
    let expected = Config { state_dir: "/home/ada/.local/share/codebeaker".into(), ..Config::default() };
    assert_eq!(loaded.config, expected);
    assert!(loaded.origins.values().all(|origin| *origin == Origin::Default));
    assert!(loaded.origins.contains_key("session.sweep_interval_s"));
    assert_eq!(loaded.file, None);
}

#[test]
fn a_variable_wins_over_the_file_and_a_flag_over_both() {
    let (_directory, mut sources) = file("[server]\nlisten = \"127.0.0.1:1\"\nbatch_max = 7\n[session]\nqueue_max = 9\n");
    let path = sources.file.clone().expect("a file was made");
    sources.flags.listen = Some("127.0.0.1:3".parse().expect("an address"));
    let variables = [("CODEBEAKER_SERVER_LISTEN", "127.0.0.1:2"), ("CODEBEAKER_SERVER_BATCH_MAX", "8")];
    let loaded = load_on(sources, &host(&variables)).expect("all values are good");
    assert_eq!(loaded.config.server.listen.port(), 3);
    assert_eq!(loaded.config.server.batch_max, 8);
    assert_eq!(loaded.config.session.queue_max, 9);
    assert_eq!(loaded.origins["server.listen"], Origin::Flag("--listen"));
    assert_eq!(loaded.origins["server.batch_max"], Origin::Environment("CODEBEAKER_SERVER_BATCH_MAX".into()));
    assert_eq!(loaded.origins["session.queue_max"], Origin::File(path));
    assert_eq!(loaded.origins["server.no_auth"], Origin::Default);
}

#[test]
fn every_key_has_a_variable_of_its_own() {
    let keys = known_keys();
    let variables: std::collections::BTreeSet<String> = keys.keys().map(|key| variable_of(key)).collect();
    assert_eq!(variables.len(), keys.len());
    for name in ["CODEBEAKER_STATE_DIR", "CODEBEAKER_SESSION_SWEEP_INTERVAL_S", "CODEBEAKER_SANDBOX_PACKAGE_DIR"] {
        assert!(variables.contains(name), "{name}");
    }
}

#[test]
fn variables_are_read_by_the_type_of_their_key() {
    let loaded = load_on(
        Sources::default(),
        &host(&[
            ("CODEBEAKER_LOG_FILTER", "1"),
            ("CODEBEAKER_LOG_FORMAT", "json"),
            ("CODEBEAKER_SERVER_NO_AUTH", "1"),
            ("CODEBEAKER_SERVER_ALLOWED_HOSTS", "a.example, b.example"),
            ("CODEBEAKER_SANDBOX_PROFILE_DIR", "/etc/profiles"),
            ("CODEBEAKER_SESSION_SWEEP_INTERVAL_S", "5"),
            ("CODEBEAKER_SESSION_QUEUE_MAX", ""),
        ]),
    )
    .expect("all values are good");
    assert_eq!(loaded.config.log.filter, "1");
    assert_eq!(loaded.config.log.format, LogFormat::Json);
    assert!(loaded.config.server.no_auth);
    assert_eq!(loaded.config.server.allowed_hosts, ["a.example", "b.example"]);
    assert_eq!(loaded.config.sandbox.profile_dir, Some("/etc/profiles".into()));
    assert_eq!(loaded.config.session.sweep_interval_s, 5);
    assert_eq!(loaded.origins["session.queue_max"], Origin::Default, "an empty variable is as good as none");
}

#[test]
fn variables_that_are_no_configuration_are_left_alone() {
    load_on(Sources::default(), &host(&[("CODEBEAKER_URL", "ws://x"), ("CODEBEAKER_TOKEN", "t")])).expect("they are not keys");
}

#[test]
fn the_state_directory_follows_its_rule() {
    let state_dir = |host: &Host| load_on(Sources::default(), host).map(|loaded| loaded.config.state_dir);
    let named = host(&[("CODEBEAKER_STATE_DIR", "/srv/state"), ("XDG_DATA_HOME", "/data")]);
    assert_eq!(state_dir(&named).expect("named"), Path::new("/srv/state"));
    assert_eq!(state_dir(&host(&[("XDG_DATA_HOME", "/data")])).expect("XDG"), Path::new("/data/codebeaker"));
    let relative = host(&[("XDG_DATA_HOME", "data")]);
    assert_eq!(state_dir(&relative).expect("HOME"), Path::new("/home/ada/.local/share/codebeaker"));
    let root = Host { variables: BTreeMap::new(), is_root: true };
    assert_eq!(root.state_dir().expect("root"), Path::new("/var/lib/codebeaker"));
    let nowhere = Host { variables: BTreeMap::new(), is_root: false };
    assert!(matches!(state_dir(&nowhere), Err(ConfigError::NoStateDir)));
}

#[test]
fn an_unknown_key_is_named_with_its_place_and_the_nearest_one() {
    let error = error_of("[server]\nlistenn = \"127.0.0.1:1\"\n", &[]);
    assert!(error.to_string().starts_with("unknown key `server.listenn` (file /"), "{error}");
    assert_eq!(error.hint(), "did you mean `server.listen`?");
    let error = error_of("[sever]\nlisten = \"127.0.0.1:1\"\n", &[]);
    assert_eq!(error.hint(), "did you mean `server`?");
    let error = error_of("", &[("CODEBEAKER_SESSION_SWEEP_INTERVALS", "5")]);
    assert_eq!(
        error.to_string(),
        "unknown key `CODEBEAKER_SESSION_SWEEP_INTERVALS` (variable CODEBEAKER_SESSION_SWEEP_INTERVALS)"
    );
    assert_eq!(error.hint(), "did you mean `CODEBEAKER_SESSION_SWEEP_INTERVAL_S`?");
}

#[test]
fn a_wrong_type_is_named_with_its_place_and_what_the_key_takes() {
    let error = error_of("", &[("CODEBEAKER_SERVER_BATCH_MAX", "many")]);
    let ConfigError::Type { key, origin, takes, .. } = error else { panic!("{error}") };
    assert_eq!((key.as_str(), takes.as_str()), ("server.batch_max", "a whole number, 0 or more"));
    assert_eq!(origin, Origin::Environment("CODEBEAKER_SERVER_BATCH_MAX".into()));
    for (text, key) in [
        ("[server]\nlisten = \"localhost\"\n", "server.listen"),
        ("[server]\nbatch_max = -1\n", "server.batch_max"),
        ("[server]\nallowed_hosts = [1]\n", "server.allowed_hosts"),
        ("[log]\nformat = \"xml\"\n", "log.format"),
        ("server = 5\n", "server"),
    ] {
        let error = error_of(text, &[]);
        assert!(matches!(&error, ConfigError::Type { key: named, .. } if named == key), "{text}: {error:?}");
    }
}

#[test]
fn a_value_out_of_range_is_named_with_its_place_and_the_mend() {
    let error = error_of("[server]\nno_auth = true\nlisten = \"0.0.0.0:5000\"\n", &[]);
    assert!(error.to_string().contains("`server.no_auth` (file /"), "{error}");
    assert!(error.hint().contains("loopback"), "{}", error.hint());
}

#[test]
fn broken_toml_is_named_with_its_line() {
    let error = error_of("[server]\nbatch_max = 1\nlisten = 127.0.0.1:5000\n", &[]);
    assert!(matches!(error, ConfigError::Syntax { line: 3, .. }), "{error:?}");
}

#[test]
fn a_file_that_was_named_must_be_there_and_one_in_the_usual_place_need_not() {
    let missing = Sources { file: Some("/nonexistent/config.toml".into()), flags: FlagOverrides::default() };
    assert!(matches!(load_on(missing, &host(&[])), Err(ConfigError::Unreadable { .. })));
    let by_variable = host(&[("CODEBEAKER_CONFIG", "/nonexistent/config.toml")]);
    assert!(matches!(load_on(Sources::default(), &by_variable), Err(ConfigError::Unreadable { .. })));
    load_on(Sources::default(), &host(&[("XDG_CONFIG_HOME", "/nonexistent")])).expect("nothing was named");
}

#[test]
fn a_file_in_the_usual_place_is_found() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    std::fs::create_dir(directory.path().join("codebeaker")).expect("the directory is writable");
    let path = directory.path().join("codebeaker/config.toml");
    std::fs::write(&path, "[session]\nqueue_max = 3\n").expect("the directory is writable");
    let home = directory.path().to_str().expect("a UTF-8 path");
    let loaded = load_on(Sources::default(), &host(&[("XDG_CONFIG_HOME", home)])).expect("all values are good");
    assert_eq!((loaded.config.session.queue_max, loaded.file), (3, Some(path)));
}

#[test]
fn a_variable_that_is_not_text_is_refused() {
    use std::os::unix::ffi::OsStringExt;
    let broken = OsString::from_vec(vec![0xff]);
    let ours = relevant_variables([("CODEBEAKER_LOG_FILTER".into(), broken.clone())].into_iter());
    assert!(matches!(ours, Err(ConfigError::NotUnicode { .. })));
    assert!(relevant_variables([("OTHER".into(), broken)].into_iter()).expect("not ours").is_empty());
}

/// What a default looks like in the page: as in a file, or `none`.
fn in_the_page(default: &serde_json::Value) -> String {
    if default.is_null() { "none".to_owned() } else { format!("`{default}`").replace("\",\"", "\", \"") }
}

#[test]
fn the_page_of_the_configuration_tells_every_key_with_default_and_variable() {
    let page = include_str!("../../docs/configuration.md");
    let defaults = serde_json::to_value(Config::default()).expect("a configuration is JSON");
    for key in known_keys().keys() {
        let begin = format!("| `{key}` |");
        let row = page.lines().find(|line| line.starts_with(&begin)).unwrap_or_else(|| panic!("no row of {key}"));
        assert!(row.contains(&variable_of(key)), "{row}");
        let default = &defaults[key.split('.').next().expect("a key has a name")];
        let default = key.split_once('.').map_or(default, |(_, field)| &default[field]);
        let shown = if key == "state_dir" { "`/var/lib/codebeaker` for root".to_owned() } else { in_the_page(default) };
        assert!(row.contains(&format!("| {shown}")), "{row} against {shown}");
    }
    let rows = page.lines().filter(|line| line.starts_with("| `")).count();
    assert_eq!(rows, known_keys().len(), "a row of a key that is gone");
}

#[test]
fn languages_beside_the_configuration_file_are_found_and_a_key_wins() {
    let (directory, sources) = file("");
    let beside = directory.path().join("languages");
    let dir = |sources: Sources| load_on(sources, &host(&[])).expect("sound").config.sandbox.language_dir;
    let again = || Sources { file: sources.file.clone(), flags: FlagOverrides::default() };
    assert_eq!(dir(again()), None, "the control: there is no such directory");
    std::fs::create_dir(&beside).expect("made");
    assert_eq!(dir(again()), Some(beside));
    let (_other, named) = file("[sandbox]\nlanguage_dir = \"/named\"\n");
    assert_eq!(dir(named), Some("/named".into()));
}
