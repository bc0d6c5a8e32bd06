//! `session.stream`: the events of one execution as `session.output` notifications.
//!
//! Invariants: `exited` comes last, once; an event's room in the session's buffer is given back only when the connection has
//! taken the event, so a slow reader costs bounded memory and never holds up the program; ending the notifications does not
//! end the execution.

use std::future::Future;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use jsonrpsee::{Extensions, PendingSubscriptionSink, SubscriptionSink};
use serde_json::Value;
use serde_json::value::to_raw_value;

use super::error::RpcError;
use super::handler::Context;
use super::middleware::Caller;
use super::results::WireEvent;
use super::types::SessionExecuteParams;
use super::{convert, params, render};
use crate::command::Stream;
use crate::id::SessionId;
use crate::session::api::{AcceptedStream, StreamEvent};

/// Takes the place in the session's queue at once; what it returns sends the events.
pub(super) fn serve(
    params: Option<&str>,
    pending: PendingSubscriptionSink,
    context: &Context,
    extensions: &Extensions,
) -> impl Future<Output = ()> + Send + use<> {
    let started = start(params, context, extensions);
    async move {
        match started {
            Ok((stream, id)) => {
                if let Ok(sink) = pending.accept().await {
                    forward(stream, id, &sink).await;
                }
            }
            Err(error) => pending.reject(error).await,
        }
    }
}

/// Accepts the command; the `id` to echo comes along.
pub(super) fn start(
    params: Option<&str>,
    context: &Context,
    extensions: &Extensions,
) -> Result<(AcceptedStream, Option<Value>), RpcError> {
    let caller = extensions.get::<Caller>().ok_or_else(RpcError::unauthorized)?;
    let wire: SessionExecuteParams = params::parse(params)?;
    let client = convert::command(wire.command)?;
    let stream = context.service.stream(&caller.principal, &SessionId::from_client(&wire.session_id), client.command)?;
    Ok((stream, client.id))
}

async fn forward(mut stream: AcceptedStream, mut id: Option<Value>, sink: &SubscriptionSink) {
    let execution_id = stream.execution_id.to_string();
    let mut decoders = Decoders::default();
    loop {
        let event = tokio::select! {
            event = stream.events.recv() => event,
            () = sink.closed() => return,
        };
        let Some(event) = event else { return };
        let (events, room) = match event {
            StreamEvent::Started => (vec![WireEvent::Started { execution_id: execution_id.clone() }], None),
            StreamEvent::Dropped { bytes } => {
                let mut events = decoders.flush(&execution_id);
                events.push(WireEvent::Dropped { bytes });
                (events, None)
            }
            StreamEvent::Blocked { syscall } => {
                (vec![WireEvent::Blocked { execution_id: execution_id.clone(), syscall }], None)
            }
            StreamEvent::Data { stream, seq, data, room } => {
                (decoders.push(&execution_id, Chunk { stream, seq, data }).into_iter().collect(), Some(room))
            }
            StreamEvent::Exited(result) => {
                let mut events = decoders.flush(&execution_id);
                let result = Box::new(render::command_result(*result, id.take()));
                events.push(WireEvent::Exited { execution_id: execution_id.clone(), result });
                (events, None)
            }
        };
        for event in events {
            let last = matches!(event, WireEvent::Exited { .. });
            let Ok(json) = to_raw_value(&event) else { return };
            let sent = tokio::select! {
                // In this order, so that nothing follows the answer to session.unstream.
                biased;
                () = sink.closed() => return,
                sent = sink.send(json) => sent,
            };
            if sent.is_err() || last {
                return;
            }
        }
        drop(room);
    }
}

/// Bytes of one stream as the session cut them.
struct Chunk {
    stream: Stream,
    seq: u64,
    data: Vec<u8>,
}

/// Bytes held back from each stream because a UTF-8 sequence is not complete yet; never more than three.
#[derive(Default)]
struct Decoders {
    stdout: Held,
    stderr: Held,
}

#[derive(Default)]
struct Held {
    bytes: Vec<u8>,
    seq: u64,
}

impl Decoders {
    fn held(&mut self, stream: Stream) -> &mut Held {
        match stream {
            Stream::Stdout => &mut self.stdout,
            Stream::Stderr => &mut self.stderr,
        }
    }

    /// The event for what is complete; nothing when all of it is held back.
    fn push(&mut self, execution_id: &str, mut chunk: Chunk) -> Option<WireEvent> {
        let held = self.held(chunk.stream);
        let mut data = std::mem::take(&mut held.bytes);
        data.append(&mut chunk.data);
        let complete = data.len() - incomplete_tail(&data);
        held.bytes = data.split_off(complete);
        held.seq = chunk.seq;
        chunk.data = data;
        (!chunk.data.is_empty()).then(|| output_event(execution_id, chunk))
    }

    /// What is still held back, as it is.
    fn flush(&mut self, execution_id: &str) -> Vec<WireEvent> {
        let mut events = Vec::new();
        for stream in [Stream::Stdout, Stream::Stderr] {
            let held = std::mem::take(self.held(stream));
            if !held.bytes.is_empty() {
                events.push(output_event(execution_id, Chunk { stream, seq: held.seq, data: held.bytes }));
            }
        }
        events
    }
}

/// How many bytes at the end begin a UTF-8 sequence that more bytes could complete.
fn incomplete_tail(data: &[u8]) -> usize {
    match std::str::from_utf8(data) {
        // No length means that the input ended inside a sequence that was right so far.
        Err(error) if error.error_len().is_none() => data.len() - error.valid_up_to(),
        // It is whole, or no text at all and goes as base64.
        Ok(_) | Err(_) => 0,
    }
}

fn output_event(execution_id: &str, chunk: Chunk) -> WireEvent {
    let (data, encoding) = match String::from_utf8(chunk.data) {
        Ok(text) => (text, "utf8"),
        Err(error) => (STANDARD.encode(error.as_bytes()), "base64"),
    };
    let (execution_id, seq) = (execution_id.to_owned(), chunk.seq);
    match chunk.stream {
        Stream::Stdout => WireEvent::Stdout { execution_id, seq, data, encoding },
        Stream::Stderr => WireEvent::Stderr { execution_id, seq, data, encoding },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(decoders: &mut Decoders, data: &[u8]) -> Option<(String, &'static str)> {
        let chunk = Chunk { stream: Stream::Stdout, seq: 0, data: data.to_vec() };
        decoders.push("exe_1", chunk).map(|event| match event {
            WireEvent::Stdout { data, encoding, .. } => (data, encoding),
            other => panic!("standard output was expected, not {other:?}"),
        })
    }

    #[test]
    fn a_sequence_cut_anywhere_comes_out_whole() {
        let text = "aé€😀z";
        for cut in 0..=text.len() {
            let mut decoders = Decoders::default();
            let mut whole = String::new();
            for part in [&text.as_bytes()[..cut], &text.as_bytes()[cut..]] {
                if let Some((data, encoding)) = told(&mut decoders, part) {
                    assert_eq!(encoding, "utf8");
                    whole.push_str(&data);
                }
            }
            assert_eq!(whole, text);
        }
    }

    #[test]
    fn bytes_that_are_no_text_are_base64_and_an_open_sequence_is_told_at_the_end() {
        let mut decoders = Decoders::default();
        assert_eq!(told(&mut decoders, b"a\xffb"), Some(("Yf9i".into(), "base64")));
        assert_eq!(told(&mut decoders, b"\xe2\x82"), None);
        assert!(matches!(&decoders.flush("exe_1")[..], [WireEvent::Stdout { encoding: "base64", .. }]));
        assert!(decoders.flush("exe_1").is_empty());
    }
}
