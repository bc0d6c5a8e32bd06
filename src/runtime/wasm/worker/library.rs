//! What an engine is started with, and the files that its programs find besides their own.

use super::super::{EngineModule, LIBRARY};

/// Where a guest finds them.
pub(super) const GUEST_LIBRARY: &str = "/usr/lib/codebeaker";

/// The engine's arguments up to the program's own.
pub(super) fn command_line(engine: EngineModule, file: &str) -> Vec<String> {
    let words: &[&str] = match engine {
        EngineModule::Python => &["python"],
        EngineModule::Javascript => &["qjs", "--module", "/usr/lib/codebeaker/main.mjs"],
    };
    words.iter().map(|word| (*word).to_owned()).chain([file.to_owned()]).collect()
}

/// The directory of those files in the worker's root.
pub(super) fn directory(engine: EngineModule) -> Option<String> {
    match engine {
        EngineModule::Python => None,
        EngineModule::Javascript => Some(format!("{LIBRARY}/javascript")),
    }
}
