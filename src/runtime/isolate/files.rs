//! What an engine of isolates consists of: its own few modules, laid into its root, and how they are started.

use std::time::Duration;

/// Time of a file command, past which the engine's sandbox is taken for stuck; init's own bound is shorter.
pub const TIME_MAX: Duration = Duration::from_secs(60);

/// Where the modules stand in the root, and what they say.
pub const MODULES: [(&str, &str); 9] = [
    ("/usr/lib/codebeaker/isolates/absent.mjs", include_str!("engine/absent.mjs")),
    ("/usr/lib/codebeaker/isolates/cell.mjs", include_str!("engine/cell.mjs")),
    ("/usr/lib/codebeaker/isolates/fs-promises.mjs", include_str!("engine/fs-promises.mjs")),
    ("/usr/lib/codebeaker/isolates/fs.mjs", include_str!("engine/fs.mjs")),
    ("/usr/lib/codebeaker/isolates/imports.json", include_str!("engine/imports.json")),
    ("/usr/lib/codebeaker/isolates/isolate.mjs", include_str!("engine/isolate.mjs")),
    ("/usr/lib/codebeaker/isolates/main.mjs", include_str!("engine/main.mjs")),
    ("/usr/lib/codebeaker/isolates/os.mjs", include_str!("engine/os.mjs")),
    ("/usr/lib/codebeaker/isolates/process.mjs", include_str!("engine/process.mjs")),
];

/// The engine's command line. Garbage is collected by the thread that made it, so that the kernel's counts of a thread are those of
/// its isolate. The inspector is what ends an isolate that never yields; it listens inside the engine's sandbox.
pub const ARGUMENTS: [&str; 14] = [
    "deno",
    "run",
    "--quiet",
    "--no-lock",
    "--no-config",
    "--no-prompt",
    "--no-check",
    "--cached-only",
    "--allow-all",
    "--unstable-worker-options",
    "--inspect=127.0.0.1:9229",
    "--import-map=/usr/lib/codebeaker/isolates/imports.json",
    "--v8-flags=--single-threaded-gc,--expose-gc",
    "/usr/lib/codebeaker/isolates/main.mjs",
];
