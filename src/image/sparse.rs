//! Sparse files in PAX form, version 1.0, as GNU tar writes them: a map of the pieces stands in front of their bytes.
//!
//! Invariant: the map is read once, bounded, ascending and inside the file; what lies between pieces reads as zeros.

use std::io::{self, Read};

/// Pieces of one file.
const PIECES_MAX: u64 = 65_536;
const BLOCK_BYTES: u64 = 512;
/// Digits of a number of the map, with its newline.
const LINE_BYTES_MAX: usize = 21;

/// The contents of a sparse file with its holes.
pub(super) struct Expanded<'r> {
    stored: &'r mut dyn Read,
    /// Offset and length, ascending, in reverse: the next one is the last.
    pieces: Vec<(u64, u64)>,
    at: u64,
    bytes: u64,
}

impl<'r> Expanded<'r> {
    /// Reads the map in front of `stored`, an entry of `stored_bytes`; the file is `bytes` long.
    pub(super) fn new(stored: &'r mut dyn Read, stored_bytes: u64, bytes: u64) -> io::Result<Self> {
        let mut map = Map { stored, taken: 0 };
        let count = map.number()?;
        if count > PIECES_MAX {
            return Err(broken("it has too many pieces"));
        }
        let mut pieces = Vec::new();
        let (mut end, mut data) = (0, 0_u64);
        for _ in 0..count {
            let (at, length) = (map.number()?, map.number()?);
            let next = at.checked_add(length).filter(|&next| at >= end && next <= bytes);
            end = next.ok_or_else(|| broken("its pieces overlap or pass its end"))?;
            data += length;
            pieces.push((at, length));
        }
        let padding = map.taken.next_multiple_of(BLOCK_BYTES) - map.taken;
        io::copy(&mut map.stored.take(padding), &mut io::sink())?;
        if map.taken + padding + data > stored_bytes {
            return Err(broken("its pieces are longer than what is stored"));
        }
        pieces.reverse();
        Ok(Self { stored, pieces, at: 0, bytes })
    }
}

fn broken(reason: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("the map of a sparse file is wrong: {reason}"))
}

struct Map<'a> {
    stored: &'a mut dyn Read,
    taken: u64,
}

impl Map<'_> {
    fn number(&mut self) -> io::Result<u64> {
        let mut digits = String::new();
        for _ in 0..LINE_BYTES_MAX {
            let mut byte = [0];
            self.stored.read_exact(&mut byte)?;
            self.taken += 1;
            match byte[0] {
                b'\n' => return digits.parse().map_err(|_| broken("a number was expected")),
                digit => digits.push(char::from(digit)),
            }
        }
        Err(broken("a number is too long"))
    }
}

impl Read for Expanded<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let (start, length) = self.pieces.last().copied().unwrap_or((self.bytes, 0));
        if self.at < start {
            let zeros = usize::try_from(start - self.at).unwrap_or(usize::MAX).min(buffer.len());
            buffer[..zeros].fill(0);
            self.at += zeros as u64;
            return Ok(zeros);
        }
        let left = usize::try_from(start + length - self.at).unwrap_or(usize::MAX).min(buffer.len());
        let read = self.stored.read(&mut buffer[..left])?;
        self.at += read as u64;
        if self.at == start + length && self.pieces.pop().is_some() && read == 0 && !buffer.is_empty() && self.at < self.bytes {
            return self.read(buffer);
        }
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expand(map: &str, data: &[u8], bytes: u64) -> io::Result<Vec<u8>> {
        let mut stored = map.as_bytes().to_vec();
        stored.resize(stored.len().next_multiple_of(512), 0);
        stored.extend_from_slice(data);
        let length = stored.len() as u64;
        let mut reader = stored.as_slice();
        let mut contents = Vec::new();
        Expanded::new(&mut reader, length, bytes)?.read_to_end(&mut contents)?;
        Ok(contents)
    }

    #[test]
    fn holes_read_as_zeros_and_pieces_as_their_bytes() {
        let contents = expand("3\n2\n3\n6\n0\n8\n1\n", b"abcd", 10).expect("a sound map");
        assert_eq!(contents, b"\0\0abc\0\0\0d\0");
        assert_eq!(expand("0\n", b"", 3).expect("one hole"), b"\0\0\0");
    }

    #[test]
    fn a_map_that_overlaps_passes_the_end_or_lies_is_refused() {
        for (map, data, bytes) in [
            ("2\n0\n4\n2\n2\n", "abcdef", 10),
            ("1\n8\n4\n", "abcd", 10),
            ("1\n18446744073709551615\n4\n", "abcd", 10),
            ("1\n0\n8\n", "abc", 10),
            ("99999999\n", "", 10),
            ("x\n", "", 10),
            ("111111111111111111111111111\n", "", 10),
        ] {
            assert!(expand(map, data.as_bytes(), bytes).is_err(), "{map:?}");
        }
    }
}
