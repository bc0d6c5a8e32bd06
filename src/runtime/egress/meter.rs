//! Counts what goes through a connection of a sandbox: bytes against the budget of its way out, and when the last one came.
//!
//! Invariant: a connection whose budget is used up can neither be read nor written.

use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, sleep_until};

/// Bytes that may still go through a way out, in either direction.
#[derive(Debug, Clone)]
pub(super) struct Budget {
    used: Arc<AtomicU64>,
    most: u64,
}

impl Budget {
    pub(super) fn of(most: u64) -> Self {
        Self { used: Arc::default(), most }
    }

    pub(super) fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    pub(super) fn is_used_up(&self) -> bool {
        self.used() >= self.most
    }

    fn take(&self, bytes: usize) {
        self.used.fetch_add(bytes as u64, Ordering::Relaxed);
        metrics::counter!("codebeaker_egress_bytes_total").increment(bytes as u64);
    }
}

/// When something last went through a connection.
#[derive(Debug, Clone)]
pub(super) struct Pulse(Arc<Mutex<Instant>>);

impl Pulse {
    pub(super) fn new() -> Self {
        Self(Arc::new(Mutex::new(Instant::now())))
    }

    fn beat(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    /// Returns when nothing went through for that long.
    pub(super) async fn idle(&self, most: Duration) {
        loop {
            let deadline = *self.0.lock().unwrap_or_else(PoisonError::into_inner) + most;
            if Instant::now() >= deadline {
                return;
            }
            sleep_until(deadline).await;
        }
    }
}

/// A stream with a meter on it.
pub(super) struct Metered<S> {
    pub(super) stream: S,
    pub(super) budget: Budget,
    pub(super) pulse: Pulse,
}

impl<S> Metered<S> {
    fn check(&self) -> io::Result<()> {
        if self.budget.is_used_up() { Err(io::ErrorKind::QuotaExceeded.into()) } else { Ok(()) }
    }

    fn count(&self, bytes: usize) {
        if bytes > 0 {
            self.budget.take(bytes);
            self.pulse.beat();
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Metered<S> {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.check()?;
        let before = buffer.filled().len();
        let polled = Pin::new(&mut self.stream).poll_read(context, buffer);
        self.count(buffer.filled().len() - before);
        polled
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Metered<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        self.check()?;
        let polled = Pin::new(&mut self.stream).poll_write(context, data);
        if let Poll::Ready(Ok(bytes)) = &polled {
            self.count(*bytes);
        }
        polled
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
