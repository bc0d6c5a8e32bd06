//! The OpenRPC document: valid against the specification's objects, whole, and true of what the server answers.

use jsonschema::Validator;
use serde_json::{Map, Value, json};

use crate::support::{Session, Setup, page};

pub fn trials() -> Vec<libtest_mimic::Trial> {
    page(
        "openrpc",
        &[
            ("the document is valid against the OpenRPC meta-schema, and a broken one is not", valid),
            ("every method takes its parameters by name, and no reference leads nowhere", by_name),
            ("answers are valid against the schemas of their methods, and hold nothing else", answers),
            ("parameters that the server takes are valid, those it refuses are not", parameters),
        ],
    )
}

/// Written from the specification of OpenRPC 1.3; schemas within are judged by JSON Schema's own draft 7.
const META_SCHEMA: &str = include_str!("../fixtures/openrpc-meta-schema.json");

fn document() -> Value {
    Setup::plain().shared().client().ok("rpc.discover", &json!({}))
}

fn complaints(validator: &Validator, value: &Value) -> Vec<String> {
    validator.iter_errors(value).map(|error| format!("{}: {error}", error.instance_path)).take(5).collect()
}

fn valid() {
    let schema = serde_json::from_str(META_SCHEMA).expect("the fixture is JSON");
    let meta = jsonschema::draft7::new(&schema).expect("the fixture is a schema");
    let document = document();
    assert_eq!(complaints(&meta, &document), Vec::<String>::new());
    let broken: [fn(&mut Value); 6] = [
        |document| document["surprise"] = json!(1),
        |document| document["openrpc"] = json!("2.0"),
        |document| drop(document["info"].as_object_mut().map(|info| info.remove("title"))),
        |document| document["methods"][0]["paramStructure"] = json!("by-luck"),
        |document| document["methods"][3]["params"][0]["schema"] = json!({"type": "strin"}),
        |document| document["components"]["errors"]["internal"]["code"] = json!("1500"),
    ];
    for (number, spoil) in broken.into_iter().enumerate() {
        let mut spoilt = document.clone();
        spoil(&mut spoilt);
        assert!(!meta.is_valid(&spoilt), "the meta-schema takes the broken document {number}");
    }
}

/// Every `$ref` below a value.
fn references(value: &Value, found: &mut Vec<String>) {
    match value {
        Value::Object(map) => {
            found.extend(map.get("$ref").and_then(Value::as_str).map(str::to_owned));
            map.values().for_each(|value| references(value, found));
        }
        Value::Array(items) => items.iter().for_each(|value| references(value, found)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

fn by_name() {
    let document = document();
    for name in super::methods::ALL {
        let method = method(&document, name);
        assert_eq!(method["paramStructure"], "by-name", "{name}");
        assert!(method["result"]["schema"].is_object() || method["result"]["schema"].is_boolean(), "{name}");
    }
    let mut found = Vec::new();
    references(&document, &mut found);
    assert!(!found.is_empty());
    for reference in found {
        let pointer = reference.strip_prefix('#').unwrap_or_else(|| panic!("{reference} leads out of the document"));
        assert!(document.pointer(pointer).is_some(), "{reference}");
    }
}

fn method<'a>(document: &'a Value, name: &str) -> &'a Value {
    let methods = document["methods"].as_array().expect("methods");
    methods.iter().find(|method| method["name"] == name).unwrap_or_else(|| panic!("{name} is not in the document"))
}

/// A schema of the document with the components that it refers to.
fn schema(document: &Value, schema: &Value) -> Validator {
    let whole = json!({"allOf": [schema], "components": document["components"]});
    jsonschema::draft7::new(&whole).expect("a schema of the document compiles")
}

/// The properties that a schema names, through one reference.
fn properties(document: &Value, schema: &Value) -> Map<String, Value> {
    let resolved = match schema["$ref"].as_str() {
        Some(reference) => document.pointer(&reference[1..]).expect("it leads somewhere"),
        None => schema,
    };
    resolved["properties"].as_object().cloned().unwrap_or_default()
}

fn answers() {
    let document = document();
    let server = Setup::plain().shared();
    let mut session = Session::open(&server, &json!({"metadata": {"a": [1]}, "idleTimeoutMinutes": 1.5}));
    let id = session.id.clone();
    let check = |name: &str, answer: &Value| {
        let result = &method(&document, name)["result"]["schema"];
        assert_eq!(complaints(&schema(&document, result), answer), Vec::<String>::new(), "{name}: {answer}");
        let known = properties(&document, result);
        for field in answer.as_object().expect("an object").keys() {
            assert!(known.contains_key(field), "{name}: `{field}` is not in the document");
        }
        let mut spoilt = answer.clone();
        // A list of a list is no value of any field but those that take everything.
        let (field, _) = known.iter().find(|(_, schema)| schema["type"].is_string()).expect("a field with a type");
        spoilt[field] = json!([[]]);
        assert!(!schema(&document, result).is_valid(&spoilt), "{name}: {spoilt} is taken for valid");
    };
    check("session.create", &session.created);
    let execute = |command: Value| json!({"sessionId": id, "command": command});
    for command in [
        json!({"type": "execute_code", "code": "print(1)", "id": 7}),
        json!({"type": "execute_shell", "commandName": "false"}),
        json!({"type": "write_file", "path": "a", "content": "b"}),
        json!({"type": "read_file", "path": "a"}),
        json!({"type": "list_directory"}),
        json!({"type": "delete_file", "path": "absent"}),
        json!({"type": "execute_shell", "commandName": "sleep", "args": ["9"], "background": true}),
    ] {
        check("session.execute", &session.client.ok("session.execute", &execute(command)));
    }
    let run = session.client.ok("execution.run", &json!({"language": "bash", "code": "true"}));
    check("execution.run", &run);
    check("execution.status", &session.client.ok("execution.status", &json!({"executionId": run["executionId"]})));
    check("execution.status", &session.client.ok("execution.status", &json!({"executionId": "exe_none"})));
    for name in ["initialize", "language.list", "runtime.list", "session.list"] {
        check(name, &session.client.ok(name, &json!({})));
    }
    check("session.cancel", &session.client.ok("session.cancel", &json!({"sessionId": id})));
    check("session.get", &session.client.ok("session.get", &json!({"sessionId": id})));
    check("session.close", &session.client.ok("session.close", &json!({"sessionId": "ses_none"})));
}

/// The schema of all parameters of a method, as its descriptors give it.
fn parameters_of(document: &Value, name: &str) -> Validator {
    let descriptors = method(document, name)["params"].as_array().expect("params");
    let required: Vec<&Value> =
        descriptors.iter().filter(|param| param["required"] == true).map(|param| &param["name"]).collect();
    let fields: Map<String, Value> =
        descriptors.iter().map(|param| (param["name"].as_str().expect("a name").to_owned(), param["schema"].clone())).collect();
    schema(document, &json!({"type": "object", "properties": fields, "required": required, "additionalProperties": false}))
}

fn parameters() {
    let document = document();
    let create = parameters_of(&document, "session.create");
    let good = json!({"language": "python", "idleTimeoutMinutes": 0.5, "permissions": {"allowNet": false}, "env": {"A": "b"},
                      "runtimePreference": "Speed", "metadata": {"x": null}, "onDisconnect": "keep"});
    assert_eq!(complaints(&create, &good), Vec::<String>::new());
    for bad in [
        json!({}),
        json!({"language": 1}),
        json!({"language": "python", "bogus": 1}),
        json!({"language": "python", "env": {"A": 1}}),
        json!({"language": "python", "runtimePreference": "Fast"}),
    ] {
        assert!(!create.is_valid(&bad), "{bad} is taken for valid");
    }
    let execute = parameters_of(&document, "session.execute");
    let command = |command: Value| json!({"sessionId": "ses_1", "command": command});
    for good in [
        json!({"type": "write_file", "path": "a", "content": "", "mode": "Append"}),
        json!({"type": "execute_shell", "commandName": "ls", "args": ["-l"], "timeoutSeconds": 3, "background": true}),
        json!({"type": "list_directory"}),
    ] {
        assert_eq!(complaints(&execute, &command(good)), Vec::<String>::new());
    }
    for bad in [json!({"type": "fly"}), json!({"path": "a"}), json!({"type": "read_file", "path": 1})] {
        assert!(!execute.is_valid(&command(bad.clone())), "{bad} is taken for valid");
    }
}
