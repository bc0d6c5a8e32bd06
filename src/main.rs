//! The one binary. `codebeaker launcher` is the maker of sandboxes: it runs before any thread exists.

use std::process::ExitCode;

fn main() -> ExitCode {
    ExitCode::from(codebeaker::launcher::main())
}
