//! The one binary. `codebeaker launcher` is the maker of sandboxes: it runs before any thread exists, and nothing of the
//! command line is set up for it.

use std::process::ExitCode;

fn main() -> ExitCode {
    if std::env::args_os().nth(1).is_some_and(|call| call == "launcher") {
        return ExitCode::from(codebeaker::launcher::main());
    }
    codebeaker::cli::main()
}
