//! `codebeaker wasm-worker`: the process that runs one WebAssembly module, inside the OS sandbox, as an ordinary confined program.
//!
//! Invariants: it is a program like any other of the session – walls, limits and verdicts are those of every sandbox; a guest sees
//! the directories that are opened to it and nothing else, not even the worker's own root; compiled code is taken only from a
//! read-only mount, where the server put it. Read `run` next, then `source`.

mod library;
mod run;
pub(super) mod settings;
mod source;

use std::ffi::OsString;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use rustix::fs::StatVfsMountFlags;
use wasmtime::Module;

use super::ends::{self, End};
use super::{EngineModule, LIBRARY};
use crate::sys::process::{end_by_signal, ignore_signal};

/// Exit code for what can't be run, as in a shell.
const CANNOT_RUN: i32 = 126;

/// What the command line asks for.
#[derive(Debug, PartialEq, Eq)]
enum Call {
    /// Compile an engine.
    Compile { source: PathBuf, target: PathBuf },
    /// Run an engine with a program of its language, or a module.
    Run { engine: Option<EngineModule>, grants: Vec<Grant>, file: String, arguments: Vec<String> },
}

/// A directory that is opened to the guest.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Grant {
    directory: String,
    access: Access,
}

/// What a guest may do with a directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Access {
    Read,
    Write,
}

/// The process's main function; it gives an exit code, or ends by the signal that says more.
pub fn main() -> u8 {
    for signal in [ends::DEADLINE, ends::MEMORY] {
        ignore_signal(signal);
    }
    let end = match parse(std::env::args_os().skip(2)) {
        Ok(call) => carry_out(call),
        Err(problem) => End::Refused(problem),
    };
    tell(end)
}

fn tell(end: End) -> u8 {
    let complain = |text: &str| {
        // Whoever closed standard error does not want to know.
        writeln!(std::io::stderr(), "{}", text.trim_end()).ok();
    };
    match end {
        End::Code(code) => u8::try_from(code & 0xff).unwrap_or(u8::MAX),
        End::Refused(problem) => {
            complain(&problem);
            u8::try_from(CANNOT_RUN).unwrap_or(u8::MAX)
        }
        End::Deadline => end_by_signal(ends::DEADLINE),
        End::Memory(words) => {
            complain(&words);
            end_by_signal(ends::MEMORY)
        }
        End::Trap(signal, words) => {
            complain(&words);
            end_by_signal(signal)
        }
    }
}

fn parse(arguments: impl Iterator<Item = OsString>) -> Result<Call, String> {
    let mut arguments = arguments.map(|argument| argument.into_string().map_err(|_| "an argument is no UTF-8".to_owned()));
    let (mut engine, mut grants) = (None, Vec::new());
    let mut next = || arguments.next().transpose();
    while let Some(argument) = next()? {
        let grant = |directory: &str, access| Grant { directory: directory.to_owned(), access };
        if let Some(name) = argument.strip_prefix("--engine=") {
            engine = Some(EngineModule::named(name).ok_or_else(|| format!("there is no engine {name}"))?);
        } else if let Some(directory) = argument.strip_prefix("--read=") {
            grants.push(grant(directory, Access::Read));
        } else if let Some(directory) = argument.strip_prefix("--write=") {
            grants.push(grant(directory, Access::Write));
        } else if argument == "compile" {
            let (Some(source), Some(target)) = (next()?, next()?) else { return Err("compile takes SOURCE TARGET".into()) };
            return Ok(Call::Compile { source: source.into(), target: target.into() });
        } else {
            let mut rest = Vec::new();
            while let Some(argument) = next()? {
                rest.push(argument);
            }
            return Ok(Call::Run { engine, grants, file: argument, arguments: rest });
        }
    }
    Err("no file is named".into())
}

fn carry_out(call: Call) -> End {
    let ended = match call {
        Call::Compile { source, target } => compile(&source, &target).map(|()| End::Code(0)),
        Call::Run { engine: Some(engine), grants, file, arguments } => compiled(engine).map(|module| {
            let arguments = library::command_line(engine, &file).into_iter().chain(arguments).collect();
            let source = Some(PathBuf::from(file));
            run::run(&module, &run::Guest { arguments, grants, library: library::directory(engine), source })
        }),
        Call::Run { engine: None, grants, file, arguments } => source::module(Path::new(&file)).map(|(module, name)| {
            let arguments = std::iter::once(name).chain(arguments).collect();
            run::run(&module, &run::Guest { arguments, grants, library: None, source: None })
        }),
    };
    ended.unwrap_or_else(End::Refused)
}

fn compile(source: &Path, target: &Path) -> Result<(), String> {
    let bytes = std::fs::read(source).map_err(|error| format!("the module can't be read: {error}"))?;
    let engine = settings::of_engines()?;
    let code = engine.precompile_module(&bytes).map_err(|error| format!("the module does not compile: {error:#}"))?;
    std::fs::write(target, code).map_err(|error| format!("the compiled module can't be written: {error}"))
}

/// The server's own compilation of an engine, from where it mounts it.
fn compiled(engine: EngineModule) -> Result<Module, String> {
    let path = format!("{LIBRARY}/{}.cwasm", engine.name());
    let absent = || format!("{} is not ready in this session; a session opened in its language has it", engine.name());
    let file = File::open(&path).map_err(|_| absent())?;
    let mount = rustix::fs::fstatvfs(&file).map_err(|errno| errno.to_string())?;
    if !mount.f_flag.contains(StatVfsMountFlags::RDONLY) {
        return Err("compiled code that could have been written to is not run".into());
    }
    let settings = settings::of_engines()?;
    crate::sys::compiled::map(&settings, file).map_err(|error| format!("the compiled engine can't be used: {error:#}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(words: &[&str]) -> Result<Call, String> {
        parse(words.iter().map(OsString::from))
    }

    #[test]
    fn a_command_line_says_what_runs_and_what_it_may_open() {
        let parsed = call(&["--read=/data", "--write=/workspace", "--engine=python", "/workspace/.main.py", "--read=x"]);
        let grants = vec![
            Grant { directory: "/data".into(), access: Access::Read },
            Grant { directory: "/workspace".into(), access: Access::Write },
        ];
        let file = "/workspace/.main.py".to_owned();
        let arguments = vec!["--read=x".to_owned()];
        assert_eq!(parsed, Ok(Call::Run { engine: Some(EngineModule::Python), grants, file, arguments }));
        assert_eq!(call(&["compile", "a", "b"]), Ok(Call::Compile { source: "a".into(), target: "b".into() }));
        for words in [&["--engine=cobol", "x"][..], &[], &["compile", "a"], &["--read=/"]] {
            assert!(call(words).is_err(), "{words:?}");
        }
    }
}
