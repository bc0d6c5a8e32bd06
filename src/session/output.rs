//! What becomes of a program's output: the first and last part kept for the result, events for a reader who streams.
//!
//! Invariants: memory is bounded whatever the program writes and however slowly the client reads; the program never waits;
//! `Exited` is sent exactly once and nothing follows it. Read `ticket` next, which ends every execution through `end`.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use tokio::sync::mpsc;

use crate::command::{Captured, CommandResult, Stream};
use crate::runtime::{OutputSink, OutputVerdict};
use crate::sandbox::spec::Limits;

use super::api::{Room, StreamEvent};
use super::locked;

/// Charged to the buffer for each event besides its bytes, so that a flood of one-byte writes is bounded too.
const EVENT_OVERHEAD_BYTES: u64 = 128;

/// The sink of one execution.
pub(super) struct Output {
    inner: Mutex<Inner>,
}

struct Inner {
    stdout: Kept,
    stderr: Kept,
    total_bytes: u64,
    killed_bytes: u64,
    phase: Phase,
    events: Option<Events>,
}

/// Where the execution stands, as its reader sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Waiting,
    Started,
    Ended,
}

impl Output {
    /// Keeps what the result needs.
    pub(super) fn captured_only(limits: &Limits) -> Self {
        Self::build(limits, None)
    }

    /// Sends events too; at most `buffer_bytes` of them wait for the reader.
    pub(super) fn streamed(limits: &Limits, buffer_bytes: u64) -> (Self, mpsc::UnboundedReceiver<StreamEvent>) {
        let (sender, receiver) = mpsc::unbounded_channel();
        let free = Arc::new(AtomicU64::new(buffer_bytes));
        (Self::build(limits, Some(Events { sender, free, seq: 0, dropped_bytes: 0 })), receiver)
    }

    fn build(limits: &Limits, events: Option<Events>) -> Self {
        let kept_bytes = usize::try_from(limits.output_kept_bytes).unwrap_or(usize::MAX);
        Self {
            inner: Mutex::new(Inner {
                stdout: Kept::new(kept_bytes),
                stderr: Kept::new(kept_bytes),
                total_bytes: 0,
                killed_bytes: limits.output_killed_bytes,
                phase: Phase::Waiting,
                events,
            }),
        }
    }

    /// Standard output and standard error as kept, taken out; later calls give nothing.
    pub(super) fn take_captured(&self) -> (Captured, Captured) {
        let mut inner = locked(&self.inner);
        (inner.stdout.take(), inner.stderr.take())
    }

    /// Whether a program was started.
    pub(super) fn has_started(&self) -> bool {
        locked(&self.inner).phase == Phase::Started
    }

    /// The last event; whatever is written later is thrown away.
    pub(super) fn end(&self, result: impl FnOnce() -> CommandResult) {
        let mut inner = locked(&self.inner);
        inner.phase = Phase::Ended;
        if let Some(mut events) = inner.events.take() {
            events.flush_dropped();
            events.send(StreamEvent::Exited(Box::new(result())));
        }
    }
}

impl OutputSink for Output {
    fn started(&self) {
        let mut inner = locked(&self.inner);
        if inner.phase == Phase::Waiting {
            inner.phase = Phase::Started;
            if let Some(events) = &inner.events {
                events.send(StreamEvent::Started);
            }
        }
    }

    fn write(&self, stream: Stream, data: &[u8]) -> OutputVerdict {
        let mut inner = locked(&self.inner);
        if inner.phase == Phase::Ended {
            // Its answer is out already, so nothing of it should live on.
            return OutputVerdict::LimitReached;
        }
        inner.total_bytes = inner.total_bytes.saturating_add(data.len() as u64);
        match stream {
            Stream::Stdout => inner.stdout.push(data),
            Stream::Stderr => inner.stderr.push(data),
        }
        if let Some(events) = &mut inner.events {
            events.data(stream, data);
        }
        if inner.total_bytes > inner.killed_bytes { OutputVerdict::LimitReached } else { OutputVerdict::Continue }
    }

    fn is_followed(&self) -> bool {
        locked(&self.inner).events.is_some()
    }

    fn blocked(&self, syscall: &'static str) {
        let inner = locked(&self.inner);
        if let (Phase::Waiting | Phase::Started, Some(events)) = (inner.phase, &inner.events) {
            events.send(StreamEvent::Blocked { syscall });
        }
    }
}

/// The reader's side of a streamed execution.
struct Events {
    sender: mpsc::UnboundedSender<StreamEvent>,
    free: Arc<AtomicU64>,
    seq: u64,
    dropped_bytes: u64,
}

impl Events {
    /// A reader who has gone away is no error: the program belongs to the session.
    fn send(&self, event: StreamEvent) {
        drop(self.sender.send(event));
    }

    /// Sends as much of `data` as the buffer has room for; the rest is counted as dropped.
    fn data(&mut self, stream: Stream, data: &[u8]) {
        if data.is_empty() || self.sender.is_closed() {
            return;
        }
        let room = self.reserve(data.len() as u64);
        let fitting = room.bytes.saturating_sub(EVENT_OVERHEAD_BYTES) as usize;
        if fitting > 0 {
            self.flush_dropped();
            let seq = self.seq;
            self.seq += 1;
            self.send(StreamEvent::Data { stream, seq, data: data[..fitting].to_vec(), room });
        }
        self.dropped_bytes += (data.len() - fitting) as u64;
    }

    /// Takes room for up to `bytes` and one event's overhead; an answer of 0 bytes means that the buffer is full.
    fn reserve(&self, bytes: u64) -> Room {
        let wanted = bytes.saturating_add(EVENT_OVERHEAD_BYTES);
        // Only this side takes (under the sink's lock); the reader only gives back, so what was seen free stays free.
        let free = self.free.load(Ordering::Acquire);
        let taken = if free > EVENT_OVERHEAD_BYTES { wanted.min(free) } else { 0 };
        self.free.fetch_sub(taken, Ordering::AcqRel);
        Room { free: Arc::clone(&self.free), bytes: taken }
    }

    /// One marker for everything lost since the last event that came through.
    fn flush_dropped(&mut self) {
        if self.dropped_bytes > 0 {
            self.send(StreamEvent::Dropped { bytes: self.dropped_bytes });
            self.dropped_bytes = 0;
        }
    }
}

/// The first and last part of one stream.
#[derive(Default)]
struct Kept {
    head: Vec<u8>,
    head_max: usize,
    tail: VecDeque<u8>,
    tail_max: usize,
    left_out_bytes: u64,
}

impl Kept {
    fn new(kept_bytes: usize) -> Self {
        let head_max = kept_bytes / 2;
        Self { head_max, tail_max: kept_bytes - head_max, ..Self::default() }
    }

    fn push(&mut self, data: &[u8]) {
        let to_head = data.len().min(self.head_max - self.head.len());
        self.head.extend_from_slice(&data[..to_head]);
        let rest = &data[to_head..];
        let (skipped, rest) = rest.split_at(rest.len().saturating_sub(self.tail_max));
        let overflow = (self.tail.len() + rest.len()).saturating_sub(self.tail_max);
        self.tail.drain(..overflow);
        self.tail.extend(rest);
        self.left_out_bytes += (skipped.len() + overflow) as u64;
    }

    fn take(&mut self) -> Captured {
        let mut data = std::mem::take(&mut self.head);
        let tail = std::mem::take(&mut self.tail);
        if self.left_out_bytes == 0 {
            data.extend(tail);
            return Captured { data, truncated: false };
        }
        // A character cut in two would turn a text into bytes, so the cut moves to its edge.
        let head_cut = incomplete_suffix(&data);
        data.truncate(data.len() - head_cut);
        let tail_cut = tail.iter().take(3).take_while(|byte| *byte & 0xC0 == 0x80).count();
        let left_out = self.left_out_bytes + (head_cut + tail_cut) as u64;
        data.extend_from_slice(format!("\n[{left_out} bytes left out]\n").as_bytes());
        data.extend(tail.into_iter().skip(tail_cut));
        Captured { data, truncated: true }
    }
}

/// How many bytes at the end begin a UTF-8 character without finishing it; 0 when they can't be one.
fn incomplete_suffix(data: &[u8]) -> usize {
    for (length, byte) in data.iter().rev().take(3).enumerate().map(|(index, byte)| (index + 1, *byte)) {
        if byte & 0xC0 == 0x80 {
            continue;
        }
        let needed = match byte {
            0xC0..=0xDF => 2,
            0xE0..=0xEF => 3,
            0xF0..=0xF7 => 4,
            0x00..=0xBF | 0xF8..=0xFF => 1,
        };
        return if needed > length { length } else { 0 };
    }
    0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::{ExecutionId, SessionId};
    use crate::session::audit::Audited;
    use crate::session::tests::simulated::{limits, plain_result};

    fn small(kept: u64, killed: u64) -> Limits {
        Limits { output_kept_bytes: kept, output_killed_bytes: killed, ..limits() }
    }

    #[test]
    fn only_a_stream_is_followed_and_the_audit_on_the_way_does_not_change_that() {
        let audited =
            |output| Audited { output: Arc::new(output), session: SessionId::random(), execution: ExecutionId::random() };
        assert!(!audited(Output::captured_only(&limits())).is_followed());
        let (streamed, _reader) = Output::streamed(&limits(), 1 << 20);
        assert!(audited(streamed).is_followed());
    }

    #[test]
    fn output_within_the_limit_is_kept_whole() {
        let output = Output::captured_only(&small(10, 100));
        output.write(Stream::Stdout, b"01234");
        output.write(Stream::Stdout, b"56789");
        let (stdout, stderr) = output.take_captured();
        assert_eq!(stdout, Captured { data: b"0123456789".to_vec(), truncated: false });
        assert_eq!(stderr, Captured::default());
    }

    #[test]
    fn past_the_limit_the_first_and_last_part_stay_and_the_marker_counts_the_rest() {
        let output = Output::captured_only(&small(10, 1000));
        for _ in 0..10 {
            output.write(Stream::Stderr, b"0123456789");
        }
        let (_, stderr) = output.take_captured();
        assert!(stderr.truncated);
        assert_eq!(stderr.data, b"01234\n[90 bytes left out]\n56789");
    }

    #[test]
    fn a_cut_never_splits_a_character() {
        let output = Output::captured_only(&small(10, 1000));
        output.write(Stream::Stdout, "ÄÄÄÄÄÄÄÄÄÄÄÄ".as_bytes());
        let (stdout, _) = output.take_captured();
        let text = String::from_utf8(stdout.data).expect("still a text");
        assert_eq!(text, "ÄÄ\n[16 bytes left out]\nÄÄ");
    }

    #[test]
    fn the_kill_limit_is_passed_only_past_it_and_counts_both_streams() {
        let output = Output::captured_only(&small(10, 20));
        assert_eq!(output.write(Stream::Stdout, &[b'x'; 10]), OutputVerdict::Continue);
        assert_eq!(output.write(Stream::Stderr, &[b'x'; 10]), OutputVerdict::Continue);
        assert_eq!(output.write(Stream::Stdout, b"x"), OutputVerdict::LimitReached);
    }

    #[test]
    fn a_slow_reader_gets_one_marker_and_a_quick_one_gets_everything() {
        let buffer_bytes = EVENT_OVERHEAD_BYTES + 4;
        let (output, mut events) = Output::streamed(&small(10, 1000), buffer_bytes);
        output.started();
        output.started();
        output.write(Stream::Stdout, b"abcdef");
        output.write(Stream::Stdout, b"ghi");
        assert!(matches!(events.try_recv(), Ok(StreamEvent::Started)));
        match events.try_recv() {
            Ok(StreamEvent::Data { data, seq: 0, .. }) => assert_eq!(data, b"abcd"),
            other => panic!("{other:?}"),
        }
        output.write(Stream::Stderr, b"jk");
        assert!(matches!(events.try_recv(), Ok(StreamEvent::Dropped { bytes: 5 })));
        match events.try_recv() {
            Ok(StreamEvent::Data { data, seq: 1, stream: Stream::Stderr, .. }) => assert_eq!(data, b"jk"),
            other => panic!("{other:?}"),
        }
        output.write(Stream::Stdout, &[b'z'; 50]);
        output.end(|| plain_result(&ExecutionId::random()));
        output.end(|| plain_result(&ExecutionId::random()));
        assert!(matches!(events.try_recv(), Ok(StreamEvent::Data { .. })));
        assert!(matches!(events.try_recv(), Ok(StreamEvent::Dropped { bytes: 46 })));
        assert!(matches!(events.try_recv(), Ok(StreamEvent::Exited(_))));
        assert_eq!(output.write(Stream::Stdout, b"late"), OutputVerdict::LimitReached);
        assert!(events.try_recv().is_err(), "nothing follows `exited`");
    }

    #[test]
    fn a_flood_of_tiny_writes_holds_no_more_than_the_buffer() {
        let (output, mut events) = Output::streamed(&small(10, 1 << 30), 64 << 10);
        for _ in 0..100_000 {
            output.write(Stream::Stdout, b"x");
        }
        let mut waiting = 0;
        while events.try_recv().is_ok() {
            waiting += 1;
        }
        assert!(waiting <= (64 << 10) / 129 + 1, "{waiting} events");
    }
}
