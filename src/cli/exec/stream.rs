//! One streamed command of a session, with our own streams and signals attached.
//!
//! Invariants: one `session.input` is on its way at a time, so a program that does not read slows its input; an interrupt cancels
//! this execution and no other of the session; the exit code is that of the `exited` event.

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use crate::cli::CliError;
use crate::cli::client::{Client, Incoming};
use crate::cli::output::{note, warn};
use crate::cli::run::code_of;
use crate::cli::streams::{Interrupts, OutputPump};
use crate::command::Stream;

/// One streamed command.
pub(in crate::cli) struct Execution {
    session: String,
    id: Option<String>,
    pump: OutputPump,
    /// Begins to read what the program reads; called once it has started.
    open_input: fn() -> Result<mpsc::Receiver<Vec<u8>>, CliError>,
    /// Gone once its end was passed on, or the program has ended.
    input: Option<mpsc::Receiver<Vec<u8>>>,
    /// The `session.input` whose answer is awaited: one at a time, so that a slow program slows its input.
    input_call: Option<u64>,
    /// The exit code that an interrupt leads to.
    interrupted: Option<u8>,
    /// Output that the server could not keep for us; told once, at the end.
    dropped_bytes: u64,
}

impl Execution {
    pub fn new(session: &str, pump: OutputPump, open_input: fn() -> Result<mpsc::Receiver<Vec<u8>>, CliError>) -> Self {
        let session = session.to_owned();
        Self { session, id: None, pump, open_input, input: None, input_call: None, interrupted: None, dropped_bytes: 0 }
    }

    /// Runs it to its end and gives the exit code.
    pub async fn run(&mut self, client: &mut Client, command: Value, interrupts: &mut Interrupts) -> Result<u8, CliError> {
        client.call("session.stream", json!({ "sessionId": self.session, "command": command })).await?;
        loop {
            tokio::select! {
                incoming = client.receive() => match incoming? {
                    Incoming::Event(event) => {
                        let had_started = self.id.is_some();
                        if let Some(code) = self.event(event, interrupts).await? {
                            return self.end(code, interrupts).await;
                        }
                        if self.id.is_some() && !had_started && self.interrupted.is_some() {
                            self.cancel(client).await?;
                        }
                    }
                    Incoming::Answer(id, outcome) => self.answer(id, outcome),
                },
                chunk = next_chunk(self.input.as_mut()), if self.id.is_some() && self.input_call.is_none() => {
                    self.forward(client, chunk).await?;
                }
                code = interrupts.next() => {
                    if self.interrupted.replace(code).is_some() {
                        return Ok(code);
                    }
                    self.cancel(client).await?;
                }
                code = self.pump.reader_gone(), if self.interrupted.is_none() => {
                    self.interrupted = Some(code);
                    self.cancel(client).await?;
                }
            }
        }
    }

    /// Waits for our own reader, unless interrupted.
    async fn end(&self, code: u8, interrupts: &mut Interrupts) -> Result<u8, CliError> {
        // Who interrupts, or reads no further, does not miss them.
        if self.dropped_bytes > 0 && self.interrupted.is_none() && self.pump.lost().is_none() {
            warn(&format!("{} bytes of output were lost: the reader was too slow", self.dropped_bytes));
        }
        tokio::select! {
            finished = self.pump.finish() => finished.map(|()| self.interrupted.unwrap_or(code)),
            code = interrupts.next() => Ok(code),
        }
    }

    /// Takes an event; the exit code when it was the last one.
    async fn event(&mut self, event: Value, interrupts: &mut Interrupts) -> Result<Option<u8>, CliError> {
        match event["type"].as_str() {
            Some("started") => {
                self.id = event["executionId"].as_str().map(str::to_owned);
                self.input = Some((self.open_input)()?);
            }
            Some(name @ ("stdout" | "stderr")) => {
                let stream = if name == "stdout" { Stream::Stdout } else { Stream::Stderr };
                let data = decode(&event)?;
                tokio::select! {
                    () = self.pump.push_async(stream, &data) => {}
                    code = interrupts.next() => {
                        // The reader stalls: what is left of the output is given up, so that the end can come.
                        self.pump.discard();
                        self.interrupted = Some(code);
                    }
                }
            }
            Some("dropped") => self.dropped_bytes += event["bytes"].as_u64().unwrap_or(0),
            Some("exited") => return Ok(Some(exit_code(&event["result"], self.interrupted.is_some()))),
            // An event of a later server.
            Some(_) | None => {}
        }
        Ok(None)
    }

    fn answer(&mut self, id: u64, outcome: Result<Value, CliError>) {
        if self.input_call == Some(id) {
            self.input_call = None;
            let accepted = outcome.is_ok_and(|answer| answer["accepted"] == json!(true));
            if !accepted {
                // The program has ended or closed its input.
                self.input = None;
            }
        }
    }

    async fn forward(&mut self, client: &mut Client, chunk: Option<Vec<u8>>) -> Result<(), CliError> {
        let mut params = json!({ "sessionId": self.session, "executionId": self.id });
        if let Some(data) = chunk {
            params["data"] = json!(BASE64.encode(data));
            params["encoding"] = json!("base64");
        } else {
            params["eof"] = json!(true);
            self.input = None;
        }
        self.input_call = Some(client.send("session.input", params).await?);
        Ok(())
    }

    /// Cancels this execution and no other of its session: one that waits in the queue is cancelled when it starts.
    async fn cancel(&self, client: &mut Client) -> Result<(), CliError> {
        let Some(id) = &self.id else { return Ok(()) };
        client.send("session.cancel", json!({ "sessionId": self.session, "executionId": id })).await.map(|_| ())
    }
}

/// The next piece of input; never resolves when there is none to come.
async fn next_chunk(input: Option<&mut mpsc::Receiver<Vec<u8>>>) -> Option<Vec<u8>> {
    match input {
        Some(input) => input.recv().await,
        None => std::future::pending().await,
    }
}

fn decode(event: &Value) -> Result<Vec<u8>, CliError> {
    let data = event["data"].as_str().unwrap_or_default();
    if event["encoding"] == json!("base64") {
        return BASE64.decode(data).map_err(|_| CliError::new("the server sent output that is not base64"));
    }
    Ok(data.as_bytes().to_vec())
}

/// The program's own exit code, or what a shell would say of one that never ran.
fn exit_code(result: &Value, was_interrupted: bool) -> u8 {
    let kind = result["errorKind"].as_str().unwrap_or_default();
    if let (Some(message), false) = (result["error"].as_str(), was_interrupted || kind == "nonzero_exit") {
        note(&format!("error: {message}\n"));
    }
    let own = result["result"]["exitCode"].as_i64().and_then(|code| u8::try_from(code).ok());
    code_of(own, kind, result["success"] == json!(true))
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use futures_util::{SinkExt, StreamExt};
    use tokio_tungstenite::tungstenite::Message;

    use super::*;
    use crate::cli::CommonArgs;
    use crate::cli::client::{ServerArgs, block_on};

    /// A server of one connection that answers calls as told: each answer is a list of messages, `ID` in them is the call's id.
    async fn server(answers: fn(&Value) -> Vec<Value>) -> SocketAddr {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("loopback is there");
        let address = listener.local_addr().expect("it is bound");
        tokio::spawn(async move {
            let (stream, _) = listener.accept().await.expect("a client comes");
            let mut socket = tokio_tungstenite::accept_async(stream).await.expect("a handshake");
            while let Some(Ok(Message::Text(text))) = socket.next().await {
                let call: Value = serde_json::from_str(&text).expect("calls are JSON");
                for mut message in answers(&call) {
                    if message.get("method").is_none() {
                        message["id"] = call["id"].clone();
                    }
                    socket.send(Message::text(message.to_string())).await.expect("the client reads");
                }
            }
        });
        address
    }

    async fn client_of(answers: fn(&Value) -> Vec<Value>) -> Client {
        let address = server(answers).await;
        let common = CommonArgs { state_dir: Some("/nonexistent".into()), ..CommonArgs::default() };
        Client::connect(&common, &ServerArgs::to_url(&format!("ws://{address}"))).await.expect("the server accepts")
    }

    fn event(event: &Value) -> Value {
        json!({ "method": "session.output", "params": { "subscription": 1, "result": event } })
    }

    /// `cat`: what comes in goes out, its end ends it with 7.
    fn cat(call: &Value) -> Vec<Value> {
        let params = &call["params"];
        match call["method"].as_str() {
            Some("session.stream") => {
                vec![json!({ "result": 1 }), event(&json!({ "type": "started", "executionId": "exe_1" }))]
            }
            Some("session.input") if params["eof"] == json!(true) => {
                let result = json!({ "success": false, "errorKind": "nonzero_exit", "result": { "exitCode": 7 } });
                vec![json!({ "result": { "accepted": true } }), event(&json!({ "type": "exited", "result": result }))]
            }
            Some("session.input") => {
                let out = json!({ "type": "stdout", "seq": 0, "data": params["data"], "encoding": params["encoding"] });
                vec![event(&out), json!({ "result": { "accepted": true } })]
            }
            Some(_) | None => vec![json!({ "error": { "code": -32601, "message": "no such method" } })],
        }
    }

    #[expect(clippy::unnecessary_wraps, reason = "the shape of `standard_input`")]
    fn two_pieces() -> Result<mpsc::Receiver<Vec<u8>>, CliError> {
        let (sender, receiver) = mpsc::channel(2);
        for piece in [&b"a\xff"[..], b"b"] {
            sender.try_send(piece.to_vec()).expect("there is room");
        }
        Ok(receiver)
    }

    #[test]
    fn input_output_and_exit_code_pass_through() {
        let captured = crate::cli::streams::Captured::default();
        let outcome = block_on(async {
            let mut client = client_of(cat).await;
            let pump = OutputPump::start(captured.clone(), std::io::sink())?;
            let mut interrupts = Interrupts::listen()?;
            let mut execution = Execution::new("ses_1", pump, two_pieces);
            execution.run(&mut client, json!({ "type": "execute_shell" }), &mut interrupts).await
        });
        assert_eq!(outcome, Ok(7));
        assert_eq!(captured.bytes(), b"a\xffb");
    }

    #[test]
    fn an_event_that_overtakes_an_answer_is_kept() {
        let answers: fn(&Value) -> Vec<Value> = |_| vec![event(&json!({ "type": "started" })), json!({ "result": 5 })];
        let (answer, incoming) = block_on(async {
            let mut client = client_of(answers).await;
            Ok((client.call("session.stream", json!({})).await, client.receive().await))
        })
        .expect("a connection");
        assert_eq!(answer, Ok(json!(5)));
        assert_eq!(incoming, Ok(Incoming::Event(json!({ "type": "started" }))));
    }

    #[test]
    fn an_error_of_the_server_is_the_error_of_the_call() {
        let answer = block_on(async { client_of(cat).await.call("session.list", json!({})).await });
        assert_eq!(answer, Err(CliError::new("no such method (-32601)")));
    }

    #[test]
    fn exit_codes_pass_through() {
        let result = |kind: &str, code: Value| json!({ "success": false, "errorKind": kind, "result": { "exitCode": code } });
        assert_eq!(exit_code(&json!({ "success": true, "result": { "exitCode": 0 } }), false), 0);
        assert_eq!(exit_code(&result("nonzero_exit", json!(3)), false), 3);
        assert_eq!(exit_code(&result("program_not_found", Value::Null), false), 127);
        assert_eq!(exit_code(&result("permission_denied", Value::Null), false), 126);
        assert_eq!(exit_code(&result("sandbox_gone", Value::Null), false), 125);
    }

    #[test]
    fn output_is_decoded_by_its_encoding() {
        assert_eq!(decode(&json!({ "data": "aGk=", "encoding": "base64" })), Ok(b"hi".to_vec()));
        assert_eq!(decode(&json!({ "data": "hi", "encoding": "utf8" })), Ok(b"hi".to_vec()));
        assert!(decode(&json!({ "data": "!", "encoding": "base64" })).is_err());
    }
}
