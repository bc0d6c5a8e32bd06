//! One guest from its first to its last instruction: what it may open, how long, how much memory, and how it ended.
//!
//! Invariants: its memory and its time are bounded here as well as by the sandbox around; a guest that waits in a call of WASI past
//! its deadline takes the worker with it.

use std::fs::File;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use wasmtime::{Caller, Func, Instance, Linker, Module, ResourceLimiter, Store, Trap, TypedFunc};
use wasmtime_wasi::p1::{self, WasiP1Ctx};
use wasmtime_wasi::{FsPerms, I32Exit, WasiCtxBuilder};

use super::super::ends::{DEADLINE, End, signal_of};
use super::super::{DEADLINE_VARIABLE, MEMORY_VARIABLE};
use super::{Access, Grant, library, settings};
use crate::sys::process::end_by_signal;

/// Where files of the session are, and what a guest takes for its working directory: preview 1 has none, and programs of it begin at `/`.
const WORKSPACE: &str = "/workspace";

/// Entries of all tables of a guest.
const TABLE_ENTRIES_MAX: usize = 1 << 20;

/// How long a guest that is past its deadline may still be inside a call of WASI.
const GRACE: Duration = Duration::from_millis(500);

const WASI: &str = "wasi_snapshot_preview1";

/// What a guest is given.
pub(super) struct Guest {
    /// Its arguments, from its own name on.
    pub(super) arguments: Vec<String>,
    /// Directories besides the workspace.
    pub(super) grants: Vec<Grant>,
    /// Files of its engine.
    pub(super) library: Option<String>,
    /// Of an engine, the program that it runs: it is waited for when it is not there yet.
    pub(super) source: Option<PathBuf>,
}

/// What calls of a guest work on.
struct Host {
    wasi: WasiP1Ctx,
    bounds: Bounds,
    /// `path_open` in an instance that shares the guest's memory, once it was needed.
    open: Option<PathOpen>,
}

/// Memory of a guest.
struct Bounds {
    memory_bytes_max: usize,
    refused: bool,
}

impl ResourceLimiter for Bounds {
    fn memory_growing(&mut self, _: usize, desired: usize, _: Option<usize>) -> wasmtime::Result<bool> {
        let fits = desired <= self.memory_bytes_max;
        self.refused |= !fits;
        Ok(fits)
    }

    fn table_growing(&mut self, _: usize, desired: usize, _: Option<usize>) -> wasmtime::Result<bool> {
        Ok(desired <= TABLE_ENTRIES_MAX)
    }

    fn memories(&self) -> usize {
        1
    }
}

/// Runs it on a thread with room for its stack.
pub(super) fn run(module: &Module, guest: &Guest) -> End {
    let thread = std::thread::Builder::new().name("guest".into()).stack_size(settings::THREAD_BYTES);
    let ended = std::thread::scope(|scope| {
        let guest = thread.spawn_scoped(scope, || run_here(module, guest)).map_err(|error| error.to_string())?;
        guest.join().map_err(|_| "the worker failed".to_owned())
    });
    ended.and_then(|ended| ended).unwrap_or_else(End::Refused)
}

fn run_here(module: &Module, guest: &Guest) -> Result<End, String> {
    let memory_bytes_max = number(MEMORY_VARIABLE).and_then(|bytes| usize::try_from(bytes).ok()).unwrap_or(usize::MAX);
    let host = Host { wasi: wasi(guest)?, bounds: Bounds { memory_bytes_max, refused: false }, open: None };
    let mut store = Store::new(module.engine(), host);
    store.limiter(|host| &mut host.bounds);
    store.set_epoch_deadline(1);
    store.epoch_deadline_trap();
    let mut linker = Linker::new(module.engine());
    p1::add_to_linker_sync(&mut linker, |host: &mut Host| &mut host.wasi).map_err(|error| format!("{error:#}"))?;
    exit_with_any_code(&mut linker).map_err(|error| format!("{error:#}"))?;
    if guest.library.is_some() {
        look_up_builtins(&mut linker, &mut store).map_err(|error| format!("{error:#}"))?;
    }
    if guest.source.is_none() {
        // It may run when it is made.
        watch_time(module);
    }
    // Every import is looked up and every segment laid out before the first instruction.
    let begun = linker.instantiate(&mut store, module);
    if let Some(source) = &guest.source {
        wait_for(source);
        watch_time(module);
    }
    let begun = begun.and_then(|instance| instance.get_typed_func::<(), ()>(&mut store, "_start"));
    let start = match begun {
        Ok(start) => start,
        Err(error) => return Ok(not_begun(error, store.data().bounds.refused)),
    };
    let ended = start.call(&mut store, ());
    Ok(judged(ended, store.data().bounds.refused))
}

/// A worker that was started ahead finds a fifo where the source will be (`init::prestarted`), and the source itself after that. The
/// instance is ready by then, and its time begins when the wait ends.
fn wait_for(source: &Path) {
    // One that can't be read is the guest's to complain of.
    if let Ok(mut file) = File::open(source)
        && file.metadata().is_ok_and(|metadata| metadata.file_type().is_fifo())
    {
        std::io::copy(&mut file, &mut std::io::sink()).ok();
    }
}

/// Why `_start` was never reached; a module may have code of its own that runs before it.
fn not_begun(error: wasmtime::Error, memory_refused: bool) -> End {
    if error.is::<Trap>() || error.is::<I32Exit>() {
        return judged(Err(error), memory_refused);
    }
    let words = format!("the module can't be started: {error:#}");
    if memory_refused { End::Memory(words) } else { End::Refused(words) }
}

fn judged(ended: wasmtime::Result<()>, memory_refused: bool) -> End {
    let Err(error) = ended else { return End::Code(0) };
    let code = error.downcast_ref::<I32Exit>().map(|exit| exit.0);
    let trap = error.downcast_ref::<Trap>().copied();
    match (code, trap) {
        (Some(0), _) => End::Code(0),
        (_, Some(Trap::Interrupt)) => End::Deadline,
        (Some(_), _) if memory_refused => End::Memory("the memory that it asked for was refused".into()),
        (Some(code), _) => End::Code(code),
        (None, _) if memory_refused => End::Memory(format!("the memory that it asked for was refused, and then: {error:?}")),
        (None, Some(trap)) => End::Trap(signal_of(trap), format!("{error:?}")),
        (None, None) => End::Trap(libc::SIGABRT, format!("{error:?}")),
    }
}

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok()?.parse().ok()
}

/// Interrupts the guest when its time is over; what waits inside a call can't be interrupted, and is ended with the worker.
fn watch_time(module: &Module) {
    let Some(milliseconds) = number(DEADLINE_VARIABLE) else { return };
    let engine = module.engine().clone();
    std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(milliseconds));
        engine.increment_epoch();
        std::thread::sleep(GRACE);
        end_by_signal(DEADLINE);
    });
}

fn wasi(guest: &Guest) -> Result<WasiP1Ctx, String> {
    let mut builder = WasiCtxBuilder::new();
    builder.inherit_stdio().allow_blocking_current_thread(true).args(&guest.arguments);
    for (name, value) in std::env::vars_os() {
        if let (Ok(name), Ok(value)) = (name.into_string(), value.into_string())
            && ![DEADLINE_VARIABLE, MEMORY_VARIABLE].contains(&name.as_str())
        {
            builder.env(name, value);
        }
    }
    // The first one has the descriptor 3: `look_up_builtins`.
    let library = guest.library.as_deref().map(|directory| (directory, library::GUEST_LIBRARY, Access::Read));
    let access_to = |directory: &str| guest.grants.iter().find(|grant| grant.directory == directory).map(|grant| grant.access);
    let workspace = access_to(WORKSPACE).unwrap_or(Access::Write);
    let named = guest.grants.iter().filter(|grant| grant.directory != WORKSPACE);
    let named = named.map(|grant| (grant.directory.as_str(), grant.directory.as_str(), grant.access));
    let all = library.into_iter().chain([(WORKSPACE, "/", workspace), (WORKSPACE, WORKSPACE, workspace)]).chain(named);
    for (directory, name, access) in all {
        let permissions = match access {
            Access::Read => FsPerms::ReadOnly,
            Access::Write => FsPerms::ReadWrite,
        };
        match builder.preopened_dir(directory, name, permissions) {
            Ok(_) => {}
            // What is named and not there is not there for the guest either.
            Err(_) if directory != WORKSPACE => {}
            Err(error) => return Err(format!("{directory} can't be opened: {error:#}")),
        }
    }
    Ok(builder.build_p1())
}

/// `proc_exit` of wasmtime takes no code from 126 on, which native programs may end with as well.
fn exit_with_any_code(linker: &mut Linker<Host>) -> wasmtime::Result<()> {
    linker.allow_shadowing(true);
    linker.func_wrap(WASI, "proc_exit", |code: i32| -> wasmtime::Result<()> { Err(I32Exit(code).into()) })?;
    linker.allow_shadowing(false);
    Ok(())
}

type PathOpen = TypedFunc<(i32, i32, i32, i32, i32, i64, i64, i32, i32), i32>;

/// A call of WASI finds paths in the memory of the instance that calls it, and the worker's side of a call is no instance: this one
/// stands between, with the guest's memory for its own.
const BETWEEN: &str = r#"(module
    (import "" "open" (func $open (param i32 i32 i32 i32 i32 i64 i64 i32 i32) (result i32)))
    (import "" "memory" (memory 0))
    (export "memory" (memory 0))
    (func (export "open") (param i32 i32 i32 i32 i32 i64 i64 i32 i32) (result i32)
        (call $open (local.get 0) (local.get 1) (local.get 2) (local.get 3) (local.get 4)
            (local.get 5) (local.get 6) (local.get 7) (local.get 8))))"#;

/// A module that begins with `node:` is one of the engine's library: QuickJS asks for it as a file beside the root, and finds it where
/// the library is.
fn look_up_builtins(linker: &mut Linker<Host>, store: &mut Store<Host>) -> wasmtime::Result<()> {
    const LIBRARY_DESCRIPTOR: i32 = 3;
    const ROOT_DESCRIPTOR: i32 = 4;
    let name = "path_open";
    let found = linker.get(&mut *store, WASI, name)?.into_func();
    let original = found.ok_or_else(|| wasmtime::format_err!("there is no {name}"))?;
    let between = Module::new(store.engine(), BETWEEN)?;
    let open = move |mut caller: Caller<'_, Host>,
                     directory: i32,
                     lookup: i32,
                     path: i32,
                     length: i32,
                     flags: i32,
                     rights: i64,
                     inherited: i64,
                     descriptor_flags: i32,
                     opened: i32|
          -> wasmtime::Result<i32> {
        let builtin = directory == ROOT_DESCRIPTOR && begins_with_node(&mut caller, path, length);
        let directory = if builtin { LIBRARY_DESCRIPTOR } else { directory };
        let arguments = (directory, lookup, path, length, flags, rights, inherited, descriptor_flags, opened);
        with_memory_of(&mut caller, &between, original)?.call(&mut caller, arguments)
    };
    linker.allow_shadowing(true);
    linker.func_wrap(WASI, name, open)?;
    linker.allow_shadowing(false);
    Ok(())
}

/// The original `path_open`, as called from an instance with the caller's memory.
fn with_memory_of(caller: &mut Caller<'_, Host>, between: &Module, original: Func) -> wasmtime::Result<PathOpen> {
    if let Some(known) = &caller.data().open {
        return Ok(known.clone());
    }
    let memory = caller.get_export("memory").ok_or_else(|| wasmtime::format_err!("the engine exports no memory"))?;
    let instance = Instance::new(&mut *caller, between, &[original.into(), memory])?;
    let open: PathOpen = instance.get_typed_func(&mut *caller, "open")?;
    caller.data_mut().open = Some(open.clone());
    Ok(open)
}

fn begins_with_node(caller: &mut Caller<'_, Host>, path: i32, length: i32) -> bool {
    let Some(memory) = caller.get_export("memory").and_then(wasmtime::Extern::into_memory) else { return false };
    // Addresses of a guest are unsigned.
    let (begin, length) = (path.cast_unsigned() as usize, length.cast_unsigned() as usize);
    let bytes = memory.data(&*caller).get(begin..).and_then(|rest| rest.get(..length));
    bytes.is_some_and(|bytes| bytes.starts_with(b"node:"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_past_the_bound_is_refused_and_remembered() {
        let mut bounds = Bounds { memory_bytes_max: 1 << 20, refused: false };
        assert!(bounds.memory_growing(0, 1 << 20, None).expect("an answer") && !bounds.refused);
        assert!(!bounds.memory_growing(1 << 20, (1 << 20) + 1, None).expect("an answer") && bounds.refused);
        assert!(!bounds.table_growing(0, TABLE_ENTRIES_MAX + 1, None).expect("an answer"));
    }

    #[test]
    fn an_end_is_told_as_what_it_was() {
        let exit = |code| Err(I32Exit(code).into());
        assert_eq!(judged(Ok(()), true), End::Code(0));
        assert_eq!(judged(exit(0), true), End::Code(0));
        assert_eq!(judged(exit(3), false), End::Code(3));
        assert!(matches!(judged(exit(3), true), End::Memory(_)));
        assert_eq!(judged(Err(Trap::Interrupt.into()), false), End::Deadline);
        assert!(matches!(judged(Err(Trap::UnreachableCodeReached.into()), false), End::Trap(libc::SIGILL, _)));
        assert!(matches!(judged(Err(Trap::UnreachableCodeReached.into()), true), End::Memory(_)));
    }
}
