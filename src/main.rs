//! The one binary. `codebeaker launcher` is the maker of sandboxes and `codebeaker unpack` reads images: both run before any thread
//! exists, and nothing of the command line is set up for them.

use std::process::ExitCode;

fn main() -> ExitCode {
    match std::env::args_os().nth(1) {
        Some(call) if call == "launcher" => ExitCode::from(codebeaker::launcher::main()),
        Some(call) if call == "unpack" => ExitCode::from(codebeaker::image::unpack_main()),
        _ => codebeaker::cli::main(),
    }
}
