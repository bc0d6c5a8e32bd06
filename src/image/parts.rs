//! Files that a program takes from fixed places of the host while it runs, because its build left them out of the program.
//!
//! Debian builds Node like that. The options of the build stand in the program, or in one of its libraries, as text: it is what
//! `process.config` shows. There they are read, since such a program does not start without its parts and so can't be asked.
//!
//! Invariant: nothing is run, and a file of any size is read through one window.

use std::collections::BTreeSet;
use std::io::{self, Read};

use memchr::memmem::Finder;

/// Bytes that are looked at together.
const WINDOW_BYTES: usize = 1 << 20;

/// What stays of one window for the next; longer than any option.
const OVERLAP_BYTES: usize = 8 << 10;

/// More parts than any engine has.
pub const PARTS_MAX: usize = 64;

/// Longest path, as the kernel has it.
const PATH_BYTES_MAX: usize = 4096;

/// The places that options named `{mark}…_PATH` give, as far as [`PARTS_MAX`].
pub fn named_in(mut file: impl Read, mark: &str) -> io::Result<BTreeSet<String>> {
    let finder = Finder::new(mark);
    let mut found = BTreeSet::new();
    let mut window = Vec::with_capacity(WINDOW_BYTES + OVERLAP_BYTES);
    loop {
        let read = (&mut file).take(WINDOW_BYTES as u64).read_to_end(&mut window)?;
        found.extend(finder.find_iter(&window).filter_map(|at| place(&window[at + mark.len()..])));
        if read == 0 || found.len() >= PARTS_MAX {
            return Ok(found.into_iter().take(PARTS_MAX).collect());
        }
        window.drain(..window.len().saturating_sub(OVERLAP_BYTES));
    }
}

/// The path of an option's text after its mark: the rest of the name, `=`, the path, a quote.
fn place(text: &[u8]) -> Option<String> {
    let name = text.iter().position(|byte| !byte.is_ascii_uppercase() && !byte.is_ascii_digit() && *byte != b'_')?;
    let value = text[name..].strip_prefix(b"=").filter(|_| text[..name].ends_with(b"_PATH"))?;
    let end = value.iter().take(PATH_BYTES_MAX).position(|byte| matches!(byte, b'"' | b'\''))?;
    let path = std::str::from_utf8(&value[..end]).ok()?;
    path.starts_with('/').then(|| path.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const MARK: &str = "SHARED_BUILTIN_";

    fn found(text: &[u8]) -> Vec<String> {
        named_in(text, MARK).expect("read").into_iter().collect()
    }

    #[test]
    fn what_a_build_left_out_is_read_from_its_options() {
        let text =
            br#"x"defines": ["SHARED_BUILTIN_A_B_PATH=/usr/share/a/b.js", "SHARED_BUILTIN_C_PATH=/opt/c.js","_OTHER=1"]"#;
        assert_eq!(found(text), ["/opt/c.js", "/usr/share/a/b.js"]);
        for other in [
            &b"SHARED_BUILTIN_A_PATH"[..],
            b"SHARED_BUILTIN_A_PATH=",
            b"SHARED_BUILTIN_A_PATH=relative.js\"",
            b"SHARED_BUILTIN_A_NAME=/a.js\"",
            b"SHARED_BUILTIN_a_PATH=/a.js\"",
            b"SHARED_BUILTIN_A_PATH=/never/ends",
            b"SHARED_BUILTIN_A_PATH=/\xff.js\"",
            b"",
        ] {
            assert!(found(other).is_empty(), "{}", String::from_utf8_lossy(other));
        }
    }

    #[test]
    fn an_option_across_the_border_of_two_windows_is_whole() {
        let option = br#"SHARED_BUILTIN_A_PATH=/usr/share/a.js""#;
        for before in [WINDOW_BYTES - option.len() - 1, WINDOW_BYTES - 30, WINDOW_BYTES - 3, WINDOW_BYTES, 2 * WINDOW_BYTES - 7]
        {
            let mut text = vec![0; before];
            text.extend_from_slice(option);
            text.extend([0; 5]);
            assert_eq!(found(&text), ["/usr/share/a.js"], "{before}");
        }
    }

    #[test]
    fn no_more_is_taken_than_any_engine_has() {
        let options: Vec<String> = (0..500).map(|n| format!("SHARED_BUILTIN_A_PATH=/{n}\"")).collect();
        assert_eq!(found(options.concat().as_bytes()).len(), PARTS_MAX);
    }
}
