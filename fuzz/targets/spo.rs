//! Bytes of a stranger, read as spo.
#![no_main]

use codebeaker_fuzz::seccomp::document::Format;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| codebeaker_fuzz::try_bytes(bytes, Format::Spo));
