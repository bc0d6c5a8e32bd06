//! One question to one program: what does it print?
//!
//! Invariant: it runs in a sandbox like everything else, and what it prints is bounded.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::mpsc;

use crate::command::{Command, ExecuteShell, SessionPath, Stdin, Stream};
use crate::id::ExecutionId;
use crate::runtime::{ExecutionRequest, Instance, OutputSink, OutputVerdict};

/// Longest answer that is taken.
const ANSWER_BYTES_MAX: usize = 4096;

#[derive(Default)]
struct Answer(Mutex<Vec<u8>>);

impl OutputSink for Answer {
    fn started(&self) {}

    fn write(&self, _: Stream, data: &[u8]) -> OutputVerdict {
        let mut text = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let room = ANSWER_BYTES_MAX.saturating_sub(text.len());
        text.extend_from_slice(&data[..data.len().min(room)]);
        OutputVerdict::Continue
    }
}

/// What the program prints, or a sentence on why it did not end well.
pub(super) async fn ask(instance: &dyn Instance, mut question: Vec<String>) -> Result<String, String> {
    if question.is_empty() {
        return Err("there is no program to ask".into());
    }
    let command = Command::ExecuteShell(ExecuteShell {
        program: question.remove(0),
        args: question,
        working_directory: SessionPath::parse("/").ok(),
        env: BTreeMap::new(),
        stdin: Stdin::Empty,
        timeout: None,
        background: false,
    });
    let answer = Arc::new(Answer::default());
    let (_sender, control) = mpsc::channel(1);
    let sink = Arc::clone(&answer);
    let result = instance.execute(ExecutionRequest { id: ExecutionId::random(), command, sink, control }).await;
    let text = String::from_utf8_lossy(&answer.0.lock().unwrap_or_else(PoisonError::into_inner)).into_owned();
    result.failure.map_or(Ok(text), |failure| Err(failure.message))
}
