//! A session's place in an engine: its directory, and the cell that may reach that directory alone. It is opened for a session that
//! comes, or ahead of it.
//!
//! Invariants: a place is one session's and never comes back; one that nobody has in the end is closed and its directory removed;
//! what can't be closed ends the engine, what can't be removed keeps others out of it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::runtime::Handle;
use tokio::sync::oneshot;

use crate::command::{Failure, FailureKind};
use crate::plan::files::{FileCommand, FileErrorKind};
use crate::runtime::native::files;
use crate::runtime::{InstanceConfig, Origin, Wants};

use super::engine::{Engine, Gone};
use super::seats::Room;
use super::spares::Found;
use super::wire::{Event, Id, Request};

/// How long an engine may take to open a session's place: its worker and the first isolate in it start, beside others that are busy.
const OPEN_TIME: Duration = Duration::from_secs(20);

/// How long the isolates of a session may take to die: V8 stops a thread where it looks for interrupts, which a call of its own may put off.
const CLOSE_TIME: Duration = Duration::from_secs(10);

/// To open a place stops the engine for as long as that takes, so the next one is opened when nothing has run for this long…
const QUIET_TIME: Duration = Duration::from_millis(50);

/// …or all the same when something always runs.
const PATIENCE: Duration = Duration::from_secs(2);

/// What a session's executions see.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cell {
    pub(super) id: Id,
    pub(super) root: String,
}

/// The engine ended.
pub fn gone(_: Gone) -> Failure {
    Failure { kind: FailureKind::SandboxGone, message: "the engine of the session's isolates ended under the command".into() }
}

fn too_late() -> Failure {
    let message = format!("the engine of the session's isolates opened no place for it within {OPEN_TIME:?}");
    Failure { kind: FailureKind::IoError, message }
}

/// A place for a session, and whether it was ready. The next one is seen to.
pub async fn take(engine: &Arc<Engine>, config: &InstanceConfig) -> Result<(Cell, Origin), Failure> {
    let memory = config.limits.memory_bytes.get();
    if config.wants == Wants::New {
        return Ok((open(engine, memory, false).await?, Origin::New));
    }
    let found = engine.spares().take(memory);
    let ready = match found {
        Found::Ready(cell) => Some(cell),
        Found::Soon(soon) => match (Waiting { engine, soon }).over().await {
            // It was as long in coming as one may be.
            None if !engine.is_fit() => return Err(too_late()),
            came => came,
        },
        Found::None => None,
    };
    let taken = match ready {
        Some(cell) => (claim(engine, cell).await?, Origin::Pool),
        None => (open(engine, memory, false).await?, Origin::New),
    };
    let away = engine.spares().clear(engine.free());
    for cell in away {
        drop(Unowned::new(engine, cell));
    }
    see_to_next(engine);
    Ok(taken)
}

/// Waits for the place that is being opened; one that comes when nobody waits any more is closed.
struct Waiting<'a> {
    engine: &'a Arc<Engine>,
    soon: oneshot::Receiver<Cell>,
}

impl Waiting<'_> {
    async fn over(mut self) -> Option<Cell> {
        (&mut self.soon).await.ok()
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.soon.close();
        if let Ok(cell) = self.soon.try_recv() {
            drop(Unowned::new(self.engine, cell));
        }
    }
}

/// Closes the place of whoever went away before it had it.
struct Unowned<'a> {
    engine: &'a Arc<Engine>,
    cell: Option<Cell>,
}

impl<'a> Unowned<'a> {
    fn new(engine: &'a Arc<Engine>, cell: Cell) -> Self {
        Self { engine, cell: Some(cell) }
    }

    fn into_owned(mut self) -> Option<Cell> {
        self.cell.take()
    }
}

impl Drop for Unowned<'_> {
    fn drop(&mut self) {
        // A server that ends takes its engines with it.
        if let (Some(cell), Ok(server)) = (self.cell.take(), Handle::try_current()) {
            let engine = Arc::clone(self.engine);
            server.spawn(async move { close(&engine, &cell).await });
        }
    }
}

async fn open(engine: &Arc<Engine>, memory: u64, spare: bool) -> Result<Cell, Failure> {
    let id = engine.number();
    let cell = Cell { id, root: format!("/workspace/{id}") };
    let unowned = Unowned::new(engine, cell.clone());
    for name in ["workspace", "tmp"] {
        let path = format!("{}/{name}", cell.root).into_bytes();
        let create = FileCommand::CreateDirectory { path, recursive: true, permissions: None };
        if let Err(error) = engine.file("/", create).await.map_err(gone)? {
            unowned.into_owned();
            remove(engine, &cell.root).await;
            return Err(files::refusal("the session's directory", &error));
        }
    }
    answered(unowned, &cell, Request::Open { cell: id, root: cell.root.clone(), memory, spare }).await
}

/// One that was opened ahead becomes a session's. The engine is asked, so that one that stands still is found out now.
async fn claim(engine: &Arc<Engine>, cell: Cell) -> Result<Cell, Failure> {
    answered(Unowned::new(engine, cell.clone()), &cell, Request::Claim { cell: cell.id }).await
}

/// Asks for a place that is nobody's yet; with the answer it is the caller's.
async fn answered(unowned: Unowned<'_>, cell: &Cell, request: Request) -> Result<Cell, Failure> {
    let engine = unowned.engine;
    let mut listener = engine.adopt(cell.id).map_err(gone)?;
    let opened = async {
        engine.send(&request).await?;
        while listener.next().await? != (Event::Opened { cell: cell.id }) {}
        Ok(())
    };
    let opened = tokio::time::timeout(OPEN_TIME, opened).await;
    // Whoever closes the place listens under the same number.
    drop(listener);
    match opened {
        Ok(Ok(())) => unowned.into_owned().ok_or_else(|| gone(Gone)),
        Ok(Err(error)) => Err(gone(error)),
        Err(_) => {
            // Sessions that it has may go on: whether it still does what it is told is found out by closing the place.
            engine.retire();
            Err(too_late())
        }
    }
}

/// Opens the next place when the engine is quiet, for sessions like the one that came last.
pub fn see_to_next(engine: &Arc<Engine>) {
    if engine.spares().see_to(engine.free()) {
        let turn = Turn(Arc::clone(engine));
        tokio::spawn(async move {
            let engine = &turn.0;
            while quiet(engine).await {
                let Some(memory) = engine.spares().open(engine.free()) else { return };
                let Ok(cell) = open(engine, memory, true).await else { return };
                let surplus = engine.spares().stands(cell, engine.free());
                if let Some(cell) = surplus {
                    close(engine, &cell).await;
                }
            }
        });
    }
}

/// Sees to the next place of an engine, until it is dropped.
struct Turn(Arc<Engine>);

impl Drop for Turn {
    fn drop(&mut self) {
        self.0.spares().over();
    }
}

/// Waits for a time at which nobody is kept waiting; false when the engine takes no further session.
async fn quiet(engine: &Engine) -> bool {
    let begin = Instant::now();
    loop {
        let before = engine.executions();
        tokio::time::sleep(QUIET_TIME).await;
        if engine.free() == 0 {
            return false;
        }
        if (engine.runs() == 0 && engine.executions() == before) || begin.elapsed() > PATIENCE {
            return true;
        }
    }
}

/// Ends a cell with its isolates and removes what they left. What can't be removed makes the engine unfit for others.
pub async fn close(engine: &Arc<Engine>, cell: &Cell) {
    let Ok(mut listener) = engine.adopt(cell.id) else { return };
    let closed = async {
        engine.send(&Request::Close { cell: cell.id }).await?;
        while listener.next().await? != (Event::Closed { cell: cell.id }) {}
        Ok::<(), Gone>(())
    };
    match tokio::time::timeout(CLOSE_TIME, closed).await {
        Ok(Ok(())) => {}
        Ok(Err(Gone)) => return,
        Err(_) => return engine.give_up("an isolate could not be ended"),
    }
    remove(engine, &cell.root).await;
}

/// Removes a cell's directories, as far as they are there. What stays makes the engine unfit for others.
async fn remove(engine: &Engine, root: &str) {
    let delete = FileCommand::Delete { path: root.to_owned().into(), recursive: true };
    match engine.file("/", delete).await {
        Ok(Ok(_)) => {}
        Ok(Err(error)) if error.kind == FileErrorKind::FileNotFound => {}
        Ok(Err(_)) | Err(Gone) => engine.retire(),
    }
}
