//! Drives one execution in an isolate from its start to its end: input, output, signals, time.
//!
//! Invariants: the answer comes when the isolate's thread has ended; an isolate that can't be ended takes its engine with it;
//! dropping the future ends the isolate. The verdict is `native::verdict`'s, as for a process.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

use crate::command::{Control, ExecutionReport, Failure, Stdin, Stream, Usage};
use crate::plan::messages::{Born, ProgramEnd};
use crate::runtime::native::program::{Driven, EndedBy};
use crate::runtime::native::streams::Held;
use crate::runtime::native::verdict::{self, Counters};
use crate::runtime::{OutputSink, OutputVerdict};
use crate::sandbox::spec::Limits;

use super::engine::{Engine, Gone, Listener};
use super::seats::Room;
use super::wire::{Event, Id, Request, RunEnd, bytes};

/// How long an isolate may take to die: V8 stops a thread where it looks for interrupts, which a call of its own may put off.
const END_TIME: Duration = Duration::from_secs(20);

/// Bytes of input that are sent at once.
const INPUT_BYTES: usize = 48 << 10;

/// Signals that end a program which does not handle them; an isolate handles none.
const ENDING_SIGNALS: [i32; 4] = [libc::SIGHUP, libc::SIGINT, libc::SIGKILL, libc::SIGTERM];

/// What to run, and where.
pub struct Run<'a> {
    pub(super) engine: &'a Arc<Engine>,
    pub(super) listener: Listener,
    /// A [`Request::Run`]; its number is filled in.
    pub(super) request: Request,
    pub(super) stdin: Stdin,
    pub(super) timeout: Duration,
    pub(super) limits: &'a Limits,
}

/// Runs it to its end.
pub async fn drive(
    run: Run<'_>,
    sink: &dyn OutputSink,
    control: &mut mpsc::Receiver<Control>,
) -> Result<(ExecutionReport, Option<Failure>), Gone> {
    let Run { engine, listener, mut request, stdin, timeout, limits } = run;
    let id = listener.id;
    if let Request::Run { run, .. } = &mut request {
        *run = id;
    }
    engine.send(&request).await?;
    let _guard = EndOnDrop { engine, id };
    let mut drive =
        Drive { engine, listener, sink, id, ended_by: EndedBy::Itself, signal: None, deadline: Instant::now() + timeout };
    match stdin {
        Stdin::Empty => drive.input(&[], true).await?,
        Stdin::Bytes(data) => drive.input(&data, true).await?,
        Stdin::Open => {}
    }
    let end = drive.until_end(control).await?;
    Ok(judge(end, drive.ended_by, drive.signal, limits, timeout))
}

/// From an isolate's end to what the client is told. Pure.
fn judge(
    end: RunEnd,
    ended_by: EndedBy,
    signal: Option<i32>,
    limits: &Limits,
    timeout: Duration,
) -> (ExecutionReport, Option<Failure>) {
    // As wait(2) has it: an exit code in the second byte, a signal in the first.
    let status = match (signal, end.code) {
        (Some(signal), _) => signal,
        (None, _) if ended_by != EndedBy::Itself || end.oom => libc::SIGKILL,
        (None, Some(code)) => (code & 0xff) << 8,
        (None, None) => libc::SIGKILL,
    };
    let end_of_program =
        ProgramEnd::Ran { status, cpu_us: end.cpu_us, quota_full: end.full, blocked: Vec::new(), born: Born::Fresh };
    let driven = Driven { end: end_of_program, ended_by, held: Held::default() };
    let counters = Counters { oom_kills: u64::from(end.oom), pids_refusals: 0 };
    let usage = Usage { cpu_ms: None, memory_peak_bytes: Some(end.memory), pids_peak: Some(1) };
    verdict::of(&driven, counters, usage, limits, timeout)
}

struct Drive<'a> {
    engine: &'a Arc<Engine>,
    listener: Listener,
    sink: &'a dyn OutputSink,
    id: Id,
    ended_by: EndedBy,
    signal: Option<i32>,
    deadline: Instant,
}

impl Drive<'_> {
    async fn until_end(&mut self, control: &mut mpsc::Receiver<Control>) -> Result<RunEnd, Gone> {
        let mut listening = true;
        loop {
            tokio::select! {
                event = self.listener.next() => match event? {
                    Event::Ended { end, .. } => return Ok(end),
                    Event::Started { .. } => self.sink.started(),
                    Event::Out { stream, data, .. } => self.output(stream, &data).await?,
                    Event::Up | Event::Worn | Event::Opened { .. } | Event::Closed { .. } => {}
                },
                command = control.recv(), if listening => match command {
                    Some(Control::Input { data, eof }) => self.input(&data, eof).await?,
                    Some(Control::Signal(signal)) if ENDING_SIGNALS.contains(&signal) => {
                        self.signal.get_or_insert(signal);
                        self.end(EndedBy::Itself).await?;
                    }
                    // No isolate handles it.
                    Some(Control::Signal(_)) => {}
                    Some(Control::Cancel) => self.end(EndedBy::Cancel).await?,
                    None => listening = false,
                },
                () = sleep_until(self.deadline) => match self.ended_by {
                    EndedBy::Itself if self.signal.is_none() => self.end(EndedBy::Timeout).await?,
                    EndedBy::Itself | EndedBy::Timeout | EndedBy::Cancel | EndedBy::Output => {
                        self.engine.give_up("an isolate could not be ended");
                        return Err(Gone);
                    }
                },
            }
        }
    }

    /// The first reason stays.
    async fn end(&mut self, by: EndedBy) -> Result<(), Gone> {
        if self.ended_by == EndedBy::Itself {
            self.ended_by = by;
            self.deadline = Instant::now() + END_TIME;
        }
        self.engine.send(&Request::End { run: self.id }).await
    }

    async fn output(&mut self, stream: u8, data: &str) -> Result<(), Gone> {
        let stream = if stream == 1 { Stream::Stdout } else { Stream::Stderr };
        let data = bytes(data).unwrap_or_default();
        if self.sink.write(stream, &data) == OutputVerdict::LimitReached && self.ended_by == EndedBy::Itself {
            self.end(EndedBy::Output).await?;
        }
        Ok(())
    }

    async fn input(&self, data: &[u8], eof: bool) -> Result<(), Gone> {
        for piece in data.chunks(INPUT_BYTES) {
            self.engine.send(&Request::input(self.id, piece, false)).await?;
        }
        if eof { self.engine.send(&Request::input(self.id, &[], true)).await } else { Ok(()) }
    }
}

/// An execution whose caller went away; one that is over is ended again, which does nothing.
struct EndOnDrop<'a> {
    engine: &'a Arc<Engine>,
    id: Id,
}

impl Drop for EndOnDrop<'_> {
    fn drop(&mut self) {
        self.engine.send_later(Request::End { run: self.id });
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU64;

    use super::*;
    use crate::command::FailureKind;

    fn limits() -> Limits {
        Limits {
            memory_bytes: NonZeroU64::new(64 << 20).expect("not zero"),
            cpu_shares: 1024,
            cpu_cores: None,
            pids: 1,
            disk_bytes: 1 << 20,
            inodes: 100,
            output_kept_bytes: 1 << 10,
            output_killed_bytes: 1 << 20,
            timeout: Duration::from_secs(1),
            timeout_max: Duration::from_secs(2),
            open_files: 64,
        }
    }

    fn judged(end: RunEnd, ended_by: EndedBy, signal: Option<i32>) -> (Option<i32>, Option<FailureKind>) {
        let (report, failure) = judge(end, ended_by, signal, &limits(), Duration::from_secs(1));
        (report.exit_code, failure.map(|failure| failure.kind))
    }

    #[test]
    fn an_isolate_is_judged_as_a_program_is() {
        let code = |code| RunEnd { code: Some(code), ..RunEnd::default() };
        assert_eq!(judged(code(0), EndedBy::Itself, None), (Some(0), None));
        assert_eq!(judged(code(3), EndedBy::Itself, None), (Some(3), Some(FailureKind::NonzeroExit)));
        assert_eq!(judged(code(1), EndedBy::Timeout, None).1, Some(FailureKind::Timeout));
        assert_eq!(judged(code(1), EndedBy::Cancel, None).1, Some(FailureKind::Cancelled));
        assert_eq!(judged(code(1), EndedBy::Output, None).1, Some(FailureKind::OutputLimit));
        let oom = RunEnd { oom: true, ..code(0) };
        assert_eq!(judged(oom, EndedBy::Itself, None).1, Some(FailureKind::OutOfMemory));
        assert_eq!(judged(code(1), EndedBy::Itself, Some(libc::SIGTERM)), (Some(143), Some(FailureKind::Signaled)));
        let full = RunEnd { full: true, ..code(1) };
        assert_eq!(judged(full, EndedBy::Itself, None).1, Some(FailureKind::DiskFull));
    }
}
