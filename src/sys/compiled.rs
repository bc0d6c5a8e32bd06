//! Machine code that wasmtime made earlier: the one call that believes a file.

use std::fs::File;

use wasmtime::{Engine, Module};

/// `Module::deserialize_open_file`: maps compiled code and makes it executable. wasmtime checks that its own version and settings
/// made it, and nothing more: whoever calls this vouches for the contents (`runtime::wasm::worker` for how).
pub fn map(engine: &Engine, file: File) -> wasmtime::Result<Module> {
    // SAFETY: the file is one that the server made, keeps to itself and has verified (`runtime::wasm::cache`); the worker has it on
    // a read-only mount, so that nothing inside the sandbox can change it while it is mapped.
    unsafe { Module::deserialize_open_file(engine, file) }
}
