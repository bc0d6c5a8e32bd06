//! A session's own module: the text or the bytes that `execute_code` wrote, compiled here, where it runs.

use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use wasmtime::Module;

use super::settings;

/// Largest module that is looked at.
const BYTES_MAX: u64 = 128 << 20;

/// Longest text that can be a path.
const PATH_BYTES_MAX: usize = 4096;

/// What no code at all stands for.
const EMPTY: &[u8] = b"(module (memory (export \"memory\") 0) (func (export \"_start\")))";

const MAGIC: &[u8] = b"\0asm";

/// The module that the file holds or names, and the name that it has for itself.
pub(super) fn module(file: &Path) -> Result<(Module, String), String> {
    let text = read(file)?;
    let (bytes, name) = match named(&text) {
        Some(path) => (read(Path::new(&path))?, path),
        None => (text, "module".to_owned()),
    };
    let binary = binary(bytes)?;
    let engine = settings::of_modules()?;
    let module = Module::new(&engine, binary).map_err(|error| format!("this is no WebAssembly module: {error:#}"))?;
    Ok((module, name))
}

fn read(path: &Path) -> Result<Vec<u8>, String> {
    let shown = path.display();
    let size = std::fs::metadata(path).map_err(|error| format!("{shown} can't be read: {error}"))?.len();
    if size > BYTES_MAX {
        return Err(format!("{shown} has {} MiB, and a module may have {} MiB", size >> 20, BYTES_MAX >> 20));
    }
    std::fs::read(path).map_err(|error| format!("{shown} can't be read: {error}"))
}

/// The path, when the code is nothing but the path of a module below the workspace.
fn named(code: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(code).ok()?.trim();
    let is_path = text.len() <= PATH_BYTES_MAX
        && Path::new(text).extension().is_some_and(|extension| extension == "wasm" || extension == "wat")
        && !text.contains(['\n', '(', '\0']);
    is_path.then(|| if text.starts_with('/') { text.to_owned() } else { format!("/workspace/{text}") })
}

/// A module as it is, or in base64; text in the text format stays text.
fn binary(code: Vec<u8>) -> Result<Vec<u8>, String> {
    if code.iter().all(u8::is_ascii_whitespace) {
        // A program that says nothing does nothing, as in every language.
        return Ok(EMPTY.to_vec());
    }
    let is_text = || code.iter().find(|byte| !byte.is_ascii_whitespace()).is_some_and(|byte| matches!(byte, b'(' | b';'));
    if code.starts_with(MAGIC) || is_text() {
        return Ok(code);
    }
    let packed: Vec<u8> = code.into_iter().filter(|byte| !byte.is_ascii_whitespace()).collect();
    match STANDARD.decode(&packed) {
        Ok(bytes) if bytes.starts_with(MAGIC) => Ok(bytes),
        Ok(_) | Err(_) => {
            Err("this is no WebAssembly: the code is a module in the text format or in base64, or the path of one".into())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_is_text_base64_bytes_or_the_path_of_a_module() {
        let empty = b"\0asm\x01\0\0\0".to_vec();
        assert_eq!(binary(empty.clone()).as_ref(), Ok(&empty));
        assert_eq!(binary(format!("{}\n", STANDARD.encode(&empty)).into_bytes()).as_ref(), Ok(&empty));
        assert_eq!(binary(b" (module)".to_vec()), Ok(b" (module)".to_vec()));
        assert_eq!(binary(b";; words\n(module)".to_vec()), Ok(b";; words\n(module)".to_vec()));
        assert_eq!(binary(b" \n".to_vec()), Ok(EMPTY.to_vec()));
        for code in [&b"print(42)"[..], b"AAAA", b"\0asn"] {
            assert!(binary(code.to_vec()).is_err(), "{code:?}");
        }
        assert_eq!(named(b"built/app.wasm\n").as_deref(), Some("/workspace/built/app.wasm"));
        assert_eq!(named(b"/tmp/a b.wat").as_deref(), Some("/tmp/a b.wat"));
        assert_eq!(named(b"(module) ;; .wasm"), None);
        assert_eq!(named(b"a\nb.wasm"), None);
    }
}
