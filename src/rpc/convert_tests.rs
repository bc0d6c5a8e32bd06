//! Tests of `convert`: every alias and default, and refusals that name their field.

use serde_json::json;

use super::*;

fn read(value: Value) -> Converted<ClientCommand> {
    match value {
        Value::Object(map) => command(map),
        other => panic!("a command is an object, not {other}"),
    }
}

fn taken(value: Value) -> Command {
    read(value).expect("a good command").command
}

fn refused(value: Value) -> String {
    read(value).expect_err("a bad command").message().to_owned()
}

#[test]
fn an_alias_is_the_same_command_as_its_name() {
    let pairs = [
        (json!({"type":"execute_shell","commandName":"ls"}), json!({"type":"shell","command":"ls"})),
        (json!({"type":"execute_code","code":"1","timeoutSeconds":3}), json!({"type":"execute","code":"1","timeout":3})),
        (json!({"type":"create_directory","path":"a"}), json!({"type":"create_dir","path":"a"})),
        (json!({"type":"list_directory"}), json!({"type":"list_files","path":"."})),
        (
            json!({"type":"copy_file","source":"a","destination":"b"}),
            json!({"type":"copy_file","sourcePath":"a","destinationPath":"b"}),
        ),
        (
            json!({"type":"write_file","path":"a","content":"x","mode":"Create"}),
            json!({"type":"write_file","path":"a","content":"eA==","encoding":"base64","mode":"Overwrite"}),
        ),
    ];
    for (name, alias) in pairs {
        assert_eq!(taken(name), taken(alias));
    }
    assert_ne!(taken(json!({"type":"create_dir","path":"a"})), taken(json!({"type":"create_dir","path":"b"})));
}

#[test]
fn a_refusal_names_the_field() {
    let cases = [
        (json!({"type":"fly"}), "`command.type`"),
        (json!({"path":"a"}), "`command.type`"),
        (json!({"type":"read_file","path":"a\0b"}), "`command.path`"),
        (json!({"type":"read_file","path":""}), "`command.path`"),
        (json!({"type":"read_file","path":"a","size":1}), "`command.size`"),
        (json!({"type":"read_file","path":"a","offset":-1}), "`command.offset`"),
        (json!({"type":"write_file","path":"a","content":"?","encoding":"base64"}), "`command.content`"),
        (json!({"type":"write_file","path":"a","content":"","permissions":"9"}), "`command.permissions`"),
        (json!({"type":"write_file","path":"a","content":"","mode":"Truncate"}), "`command.mode`"),
        (json!({"type":"execute_shell","commandName":"ls","args":["a\0"]}), "`command.args`"),
        (json!({"type":"execute_shell","commandName":""}), "`command.commandName`"),
        (json!({"type":"execute_shell","commandName":"ls","env":{"A=B":""}}), "`command.env`"),
        (json!({"type":"execute_code","code":"1","timeout":0}), "`command.timeoutSeconds`"),
        (json!({"type":"list_directory","pattern":"[a"}), "`command.pattern`"),
        (json!({"type":"install_packages","packages":["--index-url=x"]}), "`command.packages`"),
        (json!({"type":"install_packages","packages":[]}), "`command.packages`"),
        (json!({"type":"delete_file","path":"a","id":[1]}), "`command.id`"),
    ];
    for (value, field) in cases {
        let message = refused(value.clone());
        assert!(message.contains(field), "{value}: {message}");
    }
}

#[test]
fn the_id_of_a_command_is_kept_for_the_answer() {
    let with = read(json!({"type":"read_file","path":"a","id":"7"})).expect("good");
    let without = read(json!({"type":"read_file","path":"a"})).expect("good");
    assert_eq!((with.id, without.id), (Some(json!("7")), None));
}

#[test]
fn permissions_are_octal_with_or_without_a_prefix() {
    for text in ["644", "0644", "0o644"] {
        assert_eq!(permissions(Some(text)).expect("octal"), Some(0o644));
    }
    assert!(permissions(Some("17777")).is_err() && permissions(Some("-1")).is_err());
}

#[test]
fn a_signal_goes_by_name_or_number() {
    let by = |name: &str| signal(&WireSignal::Name(name.into()));
    assert_eq!((by("SIGTERM").expect("known"), by("KILL").expect("known")), (15, 9));
    assert_eq!(signal(&WireSignal::Number(2)).expect("in range"), 2);
    assert!(by("SIGNOPE").is_err() && signal(&WireSignal::Number(0)).is_err());
}

#[test]
fn close_on_disconnect_needs_a_connection() {
    let wire = |on: &str| -> SessionCreateParams {
        serde_json::from_value(json!({"language":"python","onDisconnect":on})).expect("good parameters")
    };
    assert!(create_session(wire("close"), None).is_err());
    assert_eq!(create_session(wire("close"), Some(4)).expect("over a WebSocket").connection, Some(4));
    assert_eq!(create_session(wire("keep"), None).expect("over HTTP").preference, Preference::Balanced);
}

#[test]
fn limits_out_of_range_are_refused() {
    for (name, value) in [("memoryLimitMB", json!(0)), ("cpuShares", json!(1)), ("cpuLimit", json!(0)), ("pidsLimit", json!(0))]
    {
        let wire: SessionCreateParams =
            serde_json::from_value(json!({"language":"python", name: value})).expect("shape is fine");
        let error = create_session(wire, None).expect_err("out of range");
        assert!(error.message().contains(name), "{}", error.message());
    }
    let wire: SessionCreateParams = serde_json::from_value(json!({"language":"python","memoryLimitMB":64})).expect("good");
    assert_eq!(create_session(wire, None).expect("in range").memory_limit_bytes, Some(64 << 20));
}
