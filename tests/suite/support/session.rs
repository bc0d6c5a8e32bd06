//! A connection and a session as tests use them: calls that must succeed, calls that must fail, programs that print.
//!
//! Invariant: a session is closed when it leaves its test, and what it leaves on the host fails the test.

use std::ops::{Deref, DerefMut};
use std::time::Duration;

use codebeaker_client::{Error, RpcError};
use serde_json::{Value, json};

use super::Server;

/// A connection whose helpers panic with the whole answer.
pub struct Client(codebeaker_client::Client);

impl Deref for Client {
    type Target = codebeaker_client::Client;

    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

impl DerefMut for Client {
    fn deref_mut(&mut self) -> &mut Self::Target {
        &mut self.0
    }
}

impl Client {
    /// Wraps an open connection.
    pub fn new(mut client: codebeaker_client::Client) -> Self {
        client.set_timeout(Duration::from_secs(90) * super::pace());
        Self(client)
    }

    /// A call that must succeed.
    #[track_caller]
    pub fn ok(&mut self, method: &str, params: &Value) -> Value {
        self.call(method, params).unwrap_or_else(|error| panic!("{method} {}: {error}", short(params)))
    }

    /// A call that must be answered with an error.
    #[track_caller]
    pub fn error(&mut self, method: &str, params: &Value) -> RpcError {
        match self.call(method, params) {
            Err(Error::Rpc(error)) => error,
            other => panic!("{method} {} gave {other:?} instead of an error", short(params)),
        }
    }

    /// A call that must be answered with this code and kind.
    #[track_caller]
    pub fn error_is(&mut self, method: &str, params: &Value, code: i64, kind: &str) -> RpcError {
        let error = self.error(method, params);
        assert_eq!((error.code, error.kind()), (code, kind), "{error}");
        assert!(error.data["hint"].is_string() && error.data["retryable"].is_boolean(), "{error}");
        error
    }

    /// A call that must be answered with -32602 naming `field`.
    #[track_caller]
    pub fn invalid(&mut self, method: &str, params: &Value, field: &str) {
        let error = self.error(method, params);
        assert_eq!(error.code, -32602, "{error}");
        assert!(error.to_string().contains(field), "the error must name `{field}`: {error}");
    }

    /// Sends a text and gives the next message.
    #[track_caller]
    pub fn raw(&mut self, text: &str) -> Value {
        self.send_text(text).expect("the connection is open");
        self.read(Duration::from_secs(30) * super::pace())
            .unwrap_or_else(|error| panic!("{}: {error}", &text[..text.len().min(200)]))
    }

    /// All events of a streamed command up to `exited`.
    pub fn events(&mut self, subscription: &Value) -> Vec<Value> {
        let mut events = Vec::new();
        loop {
            let event = self.event(subscription).unwrap_or_else(|error| panic!("{error} after {events:?}"));
            let last = event["type"] == "exited";
            events.push(event);
            if last {
                return events;
            }
        }
    }
}

fn short(value: &Value) -> String {
    value.to_string().chars().take(300).collect()
}

/// A session of one test, with a connection of its own.
pub struct Session<'a> {
    /// Its connection.
    pub client: Client,
    /// `sessionId`.
    pub id: String,
    /// The whole reply of `session.create`.
    pub created: Value,
    server: &'a Server,
    open: bool,
}

impl<'a> Session<'a> {
    /// A Python session with defaults.
    pub fn python(server: &'a Server) -> Self {
        Self::open(server, &json!({}))
    }

    /// A session with these parameters; the language is Python when they name none.
    pub fn open(server: &'a Server, parameters: &Value) -> Self {
        Self::open_by(server, server.client(), parameters)
    }

    /// The same on a connection of the caller's choice.
    pub fn open_by(server: &'a Server, mut client: Client, parameters: &Value) -> Self {
        let mut parameters = parameters.clone();
        let fields = parameters.as_object_mut().expect("parameters are an object");
        fields.entry("language").or_insert_with(|| json!("python"));
        let created = client.ok("session.create", &parameters);
        let id = created["sessionId"].as_str().expect("session.create gives a sessionId").to_owned();
        server.observe();
        Self { client, id, created, server, open: true }
    }

    /// Carries out a command; any CommandResult will do.
    #[track_caller]
    pub fn execute(&mut self, command: &Value) -> Value {
        let parameters = json!({"sessionId": self.id, "command": command});
        let result = self.client.ok("session.execute", &parameters);
        assert!(
            result["executionId"].is_string() && result["success"].is_boolean() && result["durationMs"].is_number(),
            "{result}"
        );
        assert_eq!(result["success"], result["errorKind"].is_null(), "success and errorKind exclude each other: {result}");
        result
    }

    /// Carries out a command that must succeed; its `result`.
    #[track_caller]
    pub fn ok(&mut self, command: &Value) -> Value {
        let mut answer = self.execute(command);
        assert_eq!(answer["success"], true, "{} gave {}", short(command), short(&answer));
        answer["result"].take()
    }

    /// Carries out a command that must fail with this verdict; the whole CommandResult.
    #[track_caller]
    pub fn fails(&mut self, command: &Value, kind: &str) -> Value {
        let answer = self.execute(command);
        assert_eq!(answer["errorKind"], kind, "{} gave {}", short(command), short(&answer));
        assert!(answer["error"].as_str().is_some_and(|sentence| !sentence.is_empty()), "{answer}");
        answer
    }

    /// Runs Python that must end well; what it printed, without the last line end.
    #[track_caller]
    pub fn run(&mut self, code: &str) -> String {
        let result = self.ok(&json!({"type": "execute_code", "language": "python", "code": code}));
        result["stdout"].as_str().expect("stdout is a string").trim_end().to_owned()
    }

    /// Runs Python that must end well and print one JSON value.
    #[track_caller]
    pub fn run_json(&mut self, code: &str) -> Value {
        let text = self.run(code);
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
    }

    /// Runs a program directly; any CommandResult will do.
    #[track_caller]
    pub fn program(&mut self, program: &str, arguments: &[&str]) -> Value {
        self.execute(&json!({"type": "execute_shell", "commandName": program, "args": arguments}))
    }

    /// Runs a line of bash that must end well; what it printed, without the last line end.
    #[track_caller]
    pub fn bash(&mut self, line: &str) -> String {
        let result = self.ok(&json!({"type": "execute_shell", "commandName": "bash", "args": ["-c", line]}));
        result["stdout"].as_str().expect("stdout is a string").trim_end().to_owned()
    }

    /// Writes a text file.
    #[track_caller]
    pub fn write(&mut self, path: &str, content: &str) {
        self.ok(&json!({"type": "write_file", "path": path, "content": content}));
    }

    /// Reads a text file.
    #[track_caller]
    pub fn read(&mut self, path: &str) -> String {
        let result = self.ok(&json!({"type": "read_file", "path": path}));
        result["content"].as_str().expect("content is a string").to_owned()
    }

    /// Starts a streamed command: the subscription and the execution id of its `started`.
    pub fn stream(&mut self, command: &Value) -> (Value, String) {
        let subscription = self.client.ok("session.stream", &json!({"sessionId": self.id, "command": command}));
        let event = self.client.event(&subscription).expect("a first event");
        assert_eq!(event["type"], "started", "{event}");
        (subscription, event["executionId"].as_str().expect("started names the execution").to_owned())
    }

    /// `environmentId`.
    pub fn environment(&self) -> &str {
        self.created["environmentId"].as_str().expect("session.create gives an environmentId")
    }

    /// Closes it and checks what it leaves on the host.
    pub fn close(mut self) {
        self.end();
    }

    fn end(&mut self) {
        self.open = false;
        // A test may have used up its own connection (aborted, or full of events), so that closing takes a new one.
        let closed = self.server.client().ok("session.close", &json!({"sessionId": self.id}));
        assert_eq!(closed, json!({"sessionId": self.id, "closed": true}));
        self.server.expect_no_residue_of(self.environment());
    }
}

impl Drop for Session<'_> {
    fn drop(&mut self) {
        if !self.open {
            return;
        }
        if std::thread::panicking() {
            // The test has failed already; only the sandbox's resources are given back.
            if let Ok(mut client) = codebeaker_client::Connect::to(self.server.address).bearer(&self.server.token).open() {
                client.set_timeout(Duration::from_secs(10));
                client.call("session.close", &json!({"sessionId": self.id})).ok();
            }
        } else {
            self.end();
        }
    }
}
