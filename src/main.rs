//! The one binary. `codebeaker launcher` is the maker of sandboxes, `codebeaker unpack` reads images, `codebeaker contained` is the
//! first process of an engine's container, and `codebeaker wasm-worker` runs WebAssembly inside a sandbox: they begin before any thread
//! exists, and nothing of the command line is set up for them.

use std::process::ExitCode;

fn main() -> ExitCode {
    match std::env::args_os().nth(1) {
        Some(call) if call == "launcher" => ExitCode::from(codebeaker::launcher::main()),
        Some(call) if call == "unpack" => ExitCode::from(codebeaker::image::unpack_main()),
        Some(call) if call == "contained" => {
            let control = std::env::args_os().nth(2).map(std::path::PathBuf::from);
            ExitCode::from(codebeaker::init::contained::main(control.as_deref()))
        }
        Some(call) if call == "wasm-worker" => ExitCode::from(codebeaker::runtime::wasm::worker::main()),
        _ => codebeaker::cli::main(),
    }
}
