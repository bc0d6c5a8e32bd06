//! Reads parameters so that an error names the field and what it takes.
//!
//! serde says what is wrong, but not where: that is the field which was offered last. Fields are handed over, not copied, for one may hold
//! a file's contents.

use std::cell::RefCell;

use serde::de::DeserializeOwned;
use serde::de::value::MapDeserializer;
use serde_json::{Map, Value};

use super::error::RpcError;

/// Parameters by name; absent, `null` and `[]` are an object without fields.
pub fn parse<T: DeserializeOwned>(params: Option<&str>) -> Result<T, RpcError> {
    fields("", object(params)?)
}

/// The parameters as an object.
pub fn object(params: Option<&str>) -> Result<Map<String, Value>, RpcError> {
    let Some(text) = params else { return Ok(Map::new()) };
    let value = serde_json::from_str(text).map_err(|error| RpcError::invalid("params", error.to_string()))?;
    match value {
        Value::Object(map) => Ok(map),
        Value::Null => Ok(Map::new()),
        Value::Array(items) if items.is_empty() => Ok(Map::new()),
        Value::Array(_) | Value::Bool(_) | Value::Number(_) | Value::String(_) => {
            Err(RpcError::invalid("params", "parameters go by name: an object is expected"))
        }
    }
}

/// The fields of one object; `prefix` stands before their names in an error (`command.`).
pub fn fields<T: DeserializeOwned>(prefix: &str, map: Map<String, Value>) -> Result<T, RpcError> {
    let offered = RefCell::new(String::new());
    let each = map.into_iter().inspect(|(name, _)| offered.borrow_mut().clone_from(name));
    T::deserialize(MapDeserializer::new(each)).map_err(|error: serde_json::Error| {
        let message = error.to_string();
        let named = quoted_after(&message, "missing field ").or_else(|| quoted_after(&message, "unknown field "));
        let field = match (named, offered.take()) {
            (Some(name), _) => name.to_owned(),
            (None, last) if last.is_empty() => "params".into(),
            (None, last) => last,
        };
        RpcError::invalid(&format!("{prefix}{field}"), plain(&message))
    })
}

fn quoted_after<'a>(message: &'a str, start: &str) -> Option<&'a str> {
    message.strip_prefix(start)?.strip_prefix('`')?.split('`').next()
}

/// Rust's type names in words that a client's author knows.
fn plain(message: &str) -> String {
    let words = [
        ("expected u32", "expected a whole number from 0 to 4294967295"),
        ("expected u64", "expected a whole number from 0 up"),
        ("expected i32", "expected a whole number"),
        ("expected f64", "expected a number"),
        ("expected a sequence", "expected an array"),
        ("expected a map", "expected an object"),
    ];
    let start = message.strip_prefix("missing field").map_or(message.to_owned(), |_| "this field is required".to_owned());
    words.iter().fold(start, |text, (from, to)| text.replace(from, to))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rpc::types::SessionCreateParams;

    fn refusal(params: &str) -> String {
        parse::<SessionCreateParams>(Some(params)).expect_err("it must be refused").message().to_owned()
    }

    #[test]
    fn an_error_names_the_field_and_what_it_takes() {
        let cases = [
            (r#"{"language":5}"#, "`language`", "expected a string"),
            (r#"{"language":"python","memoryLimitMB":"x"}"#, "`memoryLimitMB`", "whole number"),
            (r#"{"memoryLimitMB":-1,"language":"python"}"#, "`memoryLimitMB`", "whole number"),
            (r#"{"language":"python","langauge":1}"#, "`langauge`", "expected one of"),
            (r"{}", "`language`", "required"),
            (r#"{"language":"python","runtimePreference":"Fast"}"#, "`runtimePreference`", "`Speed`"),
            (r#"{"language":"python","env":{"A":1}}"#, "`env`", "expected a string"),
            (r#"["python"]"#, "`params`", "by name"),
        ];
        for (params, field, takes) in cases {
            let message = refusal(params);
            assert!(message.contains(field) && message.contains(takes), "{params}: {message}");
        }
    }

    #[test]
    fn good_parameters_and_aliases_pass() {
        let read: SessionCreateParams =
            parse(Some(r#"{ "language": "python", "dockerImage": "x", "cpuLimit": 1 }"#)).expect("good parameters");
        assert_eq!((read.image.as_deref(), read.cpu_limit), (Some("x"), Some(1.0)));
    }

    #[test]
    fn deep_json_is_an_error_and_not_a_crash() {
        let deep = format!(r#"{{"language":"python","metadata":{}1{}}}"#, r#"{"a":"#.repeat(10_000), "}".repeat(10_000));
        assert!(refusal(&deep).contains("recursion limit"));
    }
}
