//! Streams that pass through: a program's output to ours, our input to the program, and the signals that end it.
//!
//! Invariants: output waits in a queue bounded by [`QUEUE_BYTES_MAX`] and is written by a thread of its own, so a reader that
//! stalls never stalls signals; after [`OutputPump::discard`] nothing waits any more. A reader that went away is told by
//! [`OutputPump::reader_gone`], not by a panic. Used by `run` and `exec`.

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, watch};

use super::error::{CliError, NOT_SET_UP, PIPE_CLOSED};
use super::output::note;
use crate::command::Stream;

/// Output that waits for its reader; past it the producer waits.
pub const QUEUE_BYTES_MAX: usize = 8 << 20;
/// Input is read in pieces of at most this size.
const INPUT_CHUNK_BYTES: usize = 64 << 10;
/// Pieces of input that wait.
const INPUT_CHUNKS_MAX: usize = 4;

/// Writes output in order, from a thread.
pub struct OutputPump {
    shared: Arc<Shared>,
}

struct Shared {
    queue: Mutex<Queue>,
    /// Something was put in, taken out, or the mode changed.
    changed: Condvar,
    /// The exit code it leads to, once standard output can't be written any more: its reader has gone, or its disk is full.
    lost: watch::Sender<Option<u8>>,
    /// Counts up whenever there is room again.
    room: watch::Sender<u64>,
    /// Becomes true when the writer has ended.
    ended: watch::Sender<bool>,
}

#[derive(Default)]
struct Queue {
    chunks: VecDeque<(Stream, Vec<u8>)>,
    bytes: usize,
    mode: Mode,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Mode {
    /// Takes and writes.
    #[default]
    Open,
    /// Writes what is there, then ends.
    Finishing,
    /// Drops all.
    Discarding,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        // The queue is whole between any two statements, so a panic elsewhere leaves it usable.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set_mode(&self, mode: Mode) {
        let mut queue = self.lock();
        if queue.mode != Mode::Discarding {
            queue.mode = mode;
        }
        drop(queue);
        self.changed.notify_all();
        self.room.send_modify(|count| *count += 1);
    }
}

impl OutputPump {
    /// Starts the thread that writes to our own two streams.
    pub fn to_standard_streams() -> Result<Self, CliError> {
        Self::start(std::io::stdout(), std::io::stderr())
    }

    /// Starts the thread that writes to these two.
    pub fn start(stdout: impl Write + Send + 'static, stderr: impl Write + Send + 'static) -> Result<Self, CliError> {
        let shared = Arc::new(Shared {
            queue: Mutex::default(),
            changed: Condvar::new(),
            lost: watch::Sender::new(None),
            room: watch::Sender::new(0),
            ended: watch::Sender::new(false),
        });
        let for_writer = Arc::clone(&shared);
        std::thread::Builder::new()
            .name("output".into())
            .spawn(move || {
                write_all(&for_writer, stdout, stderr);
                for_writer.ended.send_replace(true);
            })
            .map_err(|error| CliError::new(format!("can't start a thread: {error}")))?;
        Ok(Self { shared })
    }

    /// Queues a piece, waiting for room on this thread.
    pub fn push(&self, stream: Stream, data: &[u8]) {
        let mut queue = self.shared.lock();
        while queue.mode == Mode::Open && queue.bytes >= QUEUE_BYTES_MAX {
            queue = self.shared.changed.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
        self.put(queue, stream, data);
    }

    /// Queues a piece, waiting for room without holding the thread.
    pub async fn push_async(&self, stream: Stream, data: &[u8]) {
        let mut room = self.shared.room.subscribe();
        loop {
            room.borrow_and_update();
            let has_room = {
                let queue = self.shared.lock();
                queue.mode != Mode::Open || queue.bytes < QUEUE_BYTES_MAX
            };
            if has_room || room.changed().await.is_err() {
                break;
            }
        }
        self.put(self.shared.lock(), stream, data);
    }

    fn put(&self, mut queue: MutexGuard<'_, Queue>, stream: Stream, data: &[u8]) {
        if queue.mode == Mode::Open && !data.is_empty() {
            queue.bytes += data.len();
            queue.chunks.push_back((stream, data.to_vec()));
            drop(queue);
            self.shared.changed.notify_all();
        }
    }

    /// Drops what waits and all that still comes.
    pub fn discard(&self) {
        self.shared.set_mode(Mode::Discarding);
    }

    /// Resolves when standard output can't be written any more, with the exit code that this leads to.
    pub async fn reader_gone(&self) -> u8 {
        let mut lost = self.shared.lost.subscribe();
        // The sender lives as long as `self`, so this only ends with the value.
        lost.wait_for(Option::is_some).await.ok();
        self.lost().unwrap_or(PIPE_CLOSED)
    }

    /// The exit code, when standard output can't be written any more.
    pub fn lost(&self) -> Option<u8> {
        *self.shared.lost.borrow()
    }

    /// Waits until all that was pushed is written or was discarded. Dropping the future leaves a stalled writer behind, which
    /// ends with the process.
    pub async fn finish(&self) -> Result<(), CliError> {
        self.shared.set_mode(Mode::Finishing);
        let mut ended = self.shared.ended.subscribe();
        // The sender lives as long as `self`, so this only ends with the value.
        ended.wait_for(|ended| *ended).await.ok();
        self.lost().map_or(Ok(()), |code| Err(CliError::silent(code)))
    }
}

fn write_all(shared: &Shared, mut stdout: impl Write, mut stderr: impl Write) {
    while let Some((stream, data)) = next_chunk(shared) {
        match stream {
            Stream::Stdout => {
                if let Err(error) = stdout.write_all(&data).and_then(|()| stdout.flush()) {
                    shared.set_mode(Mode::Discarding);
                    shared.lost.send_replace(Some(code_of_loss(&error)));
                    return;
                }
            }
            // Nobody reads our errors: the program's output still matters.
            Stream::Stderr => {
                stderr.write_all(&data).and_then(|()| stderr.flush()).ok();
            }
        }
    }
}

/// A reader that went away has seen enough; anything else is told.
fn code_of_loss(error: &std::io::Error) -> u8 {
    if error.kind() == std::io::ErrorKind::BrokenPipe {
        return PIPE_CLOSED;
    }
    note(&format!("error: can't write to standard output: {error}\n"));
    NOT_SET_UP
}

fn next_chunk(shared: &Shared) -> Option<(Stream, Vec<u8>)> {
    let mut queue = shared.lock();
    loop {
        if queue.mode == Mode::Discarding {
            return None;
        }
        if let Some((stream, data)) = queue.chunks.pop_front() {
            queue.bytes -= data.len();
            drop(queue);
            shared.changed.notify_all();
            shared.room.send_modify(|count| *count += 1);
            return Some((stream, data));
        }
        if queue.mode == Mode::Finishing {
            return None;
        }
        queue = shared.changed.wait(queue).unwrap_or_else(PoisonError::into_inner);
    }
}

/// Reads our standard input on a thread of its own (a read can't be interrupted); the channel closes at end of file.
pub fn standard_input() -> Result<mpsc::Receiver<Vec<u8>>, CliError> {
    let (sender, receiver) = mpsc::channel(INPUT_CHUNKS_MAX);
    std::thread::Builder::new()
        .name("input".into())
        .spawn(move || {
            let mut input = std::io::stdin().lock();
            let mut buffer = vec![0; INPUT_CHUNK_BYTES];
            // An input that can't be read has ended, as far as the program can tell.
            while let Ok(count @ 1..) = input.read(&mut buffer) {
                if sender.blocking_send(buffer[..count].to_vec()).is_err() {
                    return;
                }
            }
        })
        .map_err(|error| CliError::new(format!("can't start a thread: {error}")))?;
    Ok(receiver)
}

/// Ctrl-C and SIGTERM, from the moment this is made.
pub struct Interrupts {
    interrupt: Signal,
    terminate: Signal,
}

impl Interrupts {
    /// Takes both signals over from their default of ending the process; needs a tokio runtime.
    pub fn listen() -> Result<Self, CliError> {
        let open = |kind| signal(kind).map_err(|error| CliError::new(format!("can't handle signals: {error}")));
        Ok(Self { interrupt: open(SignalKind::interrupt())?, terminate: open(SignalKind::terminate())? })
    }

    /// The next one, as the exit code it leads to (130 or 143).
    pub async fn next(&mut self) -> u8 {
        tokio::select! {
            _ = self.interrupt.recv() => 130,
            _ = self.terminate.recv() => 143,
        }
    }
}

/// A stream for tests that keeps what is written to it.
#[cfg(test)]
#[derive(Debug, Clone, Default)]
pub(super) struct Captured(Arc<Mutex<Vec<u8>>>);

#[cfg(test)]
impl Captured {
    /// What was written so far.
    pub(super) fn bytes(&self) -> Vec<u8> {
        self.0.lock().expect("no writer panics").clone()
    }
}

#[cfg(test)]
impl Write for Captured {
    fn write(&mut self, data: &[u8]) -> std::io::Result<usize> {
        self.0.lock().expect("no writer panics").extend_from_slice(data);
        Ok(data.len())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A stream that takes nothing until it is allowed to, or that is closed.
    struct Gate(std::sync::mpsc::Receiver<()>, Arc<Mutex<Vec<u8>>>);

    impl Write for Gate {
        fn write(&mut self, data: &[u8]) -> std::io::Result<usize> {
            self.0.recv().map_err(|_| std::io::Error::from(std::io::ErrorKind::BrokenPipe))?;
            self.1.lock().expect("no panic").extend_from_slice(data);
            Ok(data.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    fn runtime() -> tokio::runtime::Runtime {
        tokio::runtime::Builder::new_current_thread().build().expect("a runtime")
    }

    #[test]
    fn output_arrives_whole_and_in_order() {
        let (allow, gate) = std::sync::mpsc::channel();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let pump = OutputPump::start(Gate(gate, Arc::clone(&seen)), std::io::sink()).expect("a thread");
        for piece in ["a", "b", "c"] {
            allow.send(()).expect("the gate is open");
            pump.push(Stream::Stdout, piece.as_bytes());
        }
        assert_eq!(runtime().block_on(pump.finish()), Ok(()));
        assert_eq!(*seen.lock().expect("no panic"), b"abc");
    }

    #[test]
    fn a_reader_that_went_away_is_told_and_ends_nothing_else() {
        let (allow, gate) = std::sync::mpsc::channel();
        drop(allow);
        let pump = OutputPump::start(Gate(gate, Arc::default()), std::io::sink()).expect("a thread");
        pump.push(Stream::Stdout, b"lost");
        runtime().block_on(pump.reader_gone());
        pump.push(Stream::Stdout, &vec![0; QUEUE_BYTES_MAX * 2]);
        assert_eq!(runtime().block_on(pump.finish()), Err(CliError::pipe_closed()));
    }

    #[test]
    fn a_full_disk_is_no_reader_that_went_away() {
        struct Full;
        impl Write for Full {
            fn write(&mut self, _data: &[u8]) -> std::io::Result<usize> {
                Err(std::io::ErrorKind::StorageFull.into())
            }
            fn flush(&mut self) -> std::io::Result<()> {
                Ok(())
            }
        }
        let pump = OutputPump::start(Full, std::io::sink()).expect("a thread");
        pump.push(Stream::Stdout, b"lost");
        assert_eq!(runtime().block_on(pump.reader_gone()), NOT_SET_UP);
        assert_eq!(runtime().block_on(pump.finish()), Err(CliError::silent(NOT_SET_UP)));
    }

    #[test]
    fn a_stalled_reader_holds_the_producer_until_the_rest_is_discarded() {
        let (allow, gate) = std::sync::mpsc::channel();
        let pump = Arc::new(OutputPump::start(Gate(gate, Arc::default()), std::io::sink()).expect("a thread"));
        pump.push(Stream::Stdout, b"in the writer's hands");
        pump.push(Stream::Stdout, &vec![0; QUEUE_BYTES_MAX]);
        let producer = Arc::clone(&pump);
        let waiting = std::thread::spawn(move || producer.push(Stream::Stdout, b"waits"));
        std::thread::sleep(std::time::Duration::from_millis(50));
        assert!(!waiting.is_finished(), "the queue is full");
        pump.discard();
        waiting.join().expect("the producer goes on");
        allow.send(()).expect("the writer lives");
    }
}
