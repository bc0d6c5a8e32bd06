//! How wasmtime compiles and runs: the same for the compilation of an engine and for every run of it, or it would be refused.

use wasmtime::{Config, Engine};

/// Stands for all that is set here: a change below needs a new number, so that engines are compiled anew.
pub const EDITION: u32 = 1;

/// Of a guest's own calls; Python's own bound on recursion comes first.
const STACK_BYTES: usize = 8 << 20;

/// Of the thread that runs the guest: its calls, and the worker's below them.
pub(super) const THREAD_BYTES: usize = STACK_BYTES + (4 << 20);

/// Engines start from a copy-on-write image of their memory, in the file that their code is in.
pub(super) fn of_engines() -> Result<Engine, String> {
    engine(Config::new().memory_init_cow(true))
}

/// A session's own module is compiled where it runs, and has no file that could be mapped.
pub(super) fn of_modules() -> Result<Engine, String> {
    engine(Config::new().memory_init_cow(false))
}

fn engine(config: &mut Config) -> Result<Engine, String> {
    config.epoch_interruption(true);
    config.max_wasm_stack(STACK_BYTES);
    config.async_stack_size(THREAD_BYTES);
    Engine::new(config).map_err(|error| format!("wasmtime can't work here: {error:#}"))
}
