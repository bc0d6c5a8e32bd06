//! The OpenRPC document of this server, generated from the wire types.
//!
//! Invariant: a method that is in `api::METHODS` is in the document, with the parameters and the answer that its handler reads
//! and writes.

use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, SchemaGenerator};
use serde_json::{Map, Value, json};

use super::api::{METHODS, Method, OUTPUT_NOTIFICATION};
use super::results::*;
use super::types::*;

/// Our error codes and kinds; those of JSON-RPC 2.0 and of the transport stay as they are.
const ERRORS: [(i32, &str); 16] = [
    (1001, "session_not_found"),
    (1002, "session_closed"),
    (1003, "execution_not_found"),
    (1100, "language_not_supported"),
    (1101, "runtime_not_available"),
    (1102, "command_not_supported"),
    (1103, "image_not_found"),
    (1200, "isolation_unavailable"),
    (1201, "limit_unenforceable"),
    (1202, "policy_denied"),
    (1300, "quota_exceeded"),
    (1301, "rate_limited"),
    (1302, "server_busy"),
    (1303, "request_too_large"),
    (1400, "unauthorized"),
    (1500, "internal"),
];

/// Generators for what clients send and what they get: the two can differ in one type.
struct Generators {
    sent: SchemaGenerator,
    answered: SchemaGenerator,
}

/// The whole document.
pub fn document() -> Value {
    let settings = || {
        SchemaSettings::draft07().with(|settings| {
            settings.definitions_path = "/components/schemas".into();
            settings.meta_schema = None;
        })
    };
    let mut generators =
        Generators { sent: settings().into_generator(), answered: settings().for_serialize().into_generator() };
    let methods: Vec<Value> =
        METHODS.iter().map(|(method, name, summary)| entry(*method, name, summary, &mut generators)).collect();
    let mut schemas = generators.sent.take_definitions(true);
    schemas.extend(generators.answered.take_definitions(true));
    let errors: Map<String, Value> =
        ERRORS.iter().map(|(code, kind)| ((*kind).to_owned(), json!({"code": code, "message": kind}))).collect();
    json!({
        "openrpc": "1.3.2",
        "info": {
            "title": "CodeBeaker",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "Untrusted code in long-lived sandboxes.",
            "license": {"name": "MIT OR Apache-2.0"},
        },
        "methods": methods,
        "components": {"schemas": schemas, "errors": errors},
    })
}

fn entry(method: Method, name: &str, summary: &str, generators: &mut Generators) -> Value {
    let (params, result) = match method {
        Method::Initialize => shapes::<InitializeParams, Initialized>(generators),
        Method::LanguageList => shapes::<NoParams, Languages>(generators),
        Method::RuntimeList => shapes::<NoParams, Runtimes>(generators),
        Method::SessionCreate => shapes::<SessionCreateParams, SessionCreated>(generators),
        Method::SessionExecute => shapes::<SessionExecuteParams, WireCommandResult>(generators),
        Method::SessionStream => shapes::<SessionExecuteParams, String>(generators),
        Method::SessionUnstream => shapes::<SessionUnstreamParams, bool>(generators),
        Method::SessionInput => shapes::<SessionInputParams, InputAccepted>(generators),
        Method::SessionSignal => shapes::<SessionSignalParams, SignalDelivered>(generators),
        Method::SessionCancel => shapes::<SessionCancelParams, Cancelled>(generators),
        Method::SessionGet => shapes::<SessionIdParams, SessionDetails>(generators),
        Method::SessionList => shapes::<SessionListParams, SessionList>(generators),
        Method::SessionClose => shapes::<SessionIdParams, SessionClosed>(generators),
        Method::ExecutionRun => shapes::<ExecutionRunParams, ExecutionQueued>(generators),
        Method::ExecutionStatus => shapes::<ExecutionStatusParams, ExecutionState>(generators),
        Method::Discover => shapes::<NoParams, Map<String, Value>>(generators),
    };
    let errors: Vec<Value> = ERRORS.iter().map(|(_, kind)| json!({"$ref": format!("#/components/errors/{kind}")})).collect();
    let mut entry = json!({
        "name": name,
        "summary": summary,
        "paramStructure": "by-name",
        "params": params,
        "result": {"name": "result", "schema": result},
        "errors": errors,
    });
    if method == Method::SessionStream {
        let event = generators.answered.subschema_for::<WireEvent>();
        entry["x-notification"] = json!({"name": OUTPUT_NOTIFICATION, "schema": event});
    }
    entry
}

/// The list of parameters and the schema of the answer.
fn shapes<P: JsonSchema, R: JsonSchema>(generators: &mut Generators) -> (Value, Value) {
    let schema = P::json_schema(&mut generators.sent).to_value();
    let required: Vec<&str> = schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    let parameter = |(name, schema): (&String, &Value)| {
        // A content descriptor carries the description itself.
        let mut schema = schema.clone();
        let description = schema.as_object_mut().and_then(|schema| schema.shift_remove("description"));
        let mut descriptor = json!({"name": name, "required": required.contains(&name.as_str()), "schema": schema});
        if let Some(description) = description {
            descriptor["description"] = description;
        }
        descriptor
    };
    let params: Vec<Value> = schema["properties"].as_object().into_iter().flatten().map(parameter).collect();
    (params.into(), generators.answered.subschema_for::<R>().to_value())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn references<'a>(value: &'a Value, found: &mut Vec<&'a str>) {
        match value {
            Value::Object(map) => {
                found.extend(map.get("$ref").and_then(Value::as_str));
                map.values().for_each(|value| references(value, found));
            }
            Value::Array(items) => items.iter().for_each(|value| references(value, found)),
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
        }
    }

    #[test]
    fn every_method_is_in_it_and_every_reference_leads_somewhere() {
        let document = document();
        let methods = document["methods"].as_array().expect("a list");
        assert_eq!(methods.len(), METHODS.len());
        let mut found = Vec::new();
        references(&document, &mut found);
        assert!(found.len() > METHODS.len());
        for reference in found {
            let pointer = reference.strip_prefix('#').expect("a local reference");
            assert!(document.pointer(pointer).is_some(), "{reference}");
        }
    }

    #[test]
    fn parameters_say_whether_they_are_required() {
        let document = document();
        let create = document["methods"].as_array().into_iter().flatten().find(|method| method["name"] == "session.create");
        let params = create.expect("it is there")["params"].as_array().expect("a list").clone();
        let required = |name: &str| params.iter().find(|param| param["name"] == name).expect("it is there")["required"].clone();
        assert_eq!((required("language"), required("memoryLimitMB")), (true.into(), false.into()));
    }

    #[test]
    fn it_has_the_fields_the_meta_schema_requires() {
        let document = document();
        for pointer in ["/openrpc", "/info/title", "/info/version", "/methods"] {
            assert!(document.pointer(pointer).is_some(), "{pointer}");
        }
        for method in document["methods"].as_array().expect("a list") {
            assert!(method["name"].is_string() && method["result"]["schema"].is_object(), "{method}");
            for param in method["params"].as_array().expect("a list") {
                let schema_is_fine = param["schema"].is_object() || param["schema"].is_boolean();
                assert!(param["name"].is_string() && schema_is_fine, "{param}");
            }
        }
    }
}
