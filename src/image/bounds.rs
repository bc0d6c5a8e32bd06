//! How much an image may hold, and the meter that says when it is too much.
//!
//! Invariant: every byte and every entry is charged before it is written.

use serde::{Deserialize, Serialize};

use super::ImageError;

/// Bounds of one import; `[images]` of the configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bounds {
    /// Of all files together, holes included.
    pub bytes_max: u64,
    /// Files, directories, links.
    pub entries_max: u64,
    /// Components of a path.
    pub depth_max: u64,
    /// Of one component.
    pub name_bytes_max: u64,
    /// Of one path: PATH_MAX without its NUL.
    pub path_bytes_max: u64,
    /// Of all names together: what the importer keeps in memory.
    pub names_bytes_max: u64,
    /// Of the extended headers (long names, attributes) of one entry.
    pub header_bytes_max: u64,
    /// Unpacked bytes for each packed byte, past the first [`EXPANSION_FREE_BYTES`].
    pub expansion_max: u64,
    /// Layers of one image.
    pub layers_max: u64,
    /// Of one manifest, index or configuration.
    pub document_bytes_max: u64,
}

/// Small archives of zeros are no bombs: the ratio counts from here on.
pub const EXPANSION_FREE_BYTES: u64 = 64 << 20;

impl Default for Bounds {
    fn default() -> Self {
        Self {
            bytes_max: 16 << 30,
            entries_max: 2_000_000,
            depth_max: 1024,
            name_bytes_max: 255,
            path_bytes_max: 4095,
            names_bytes_max: 512 << 20,
            header_bytes_max: 1 << 20,
            expansion_max: 200,
            layers_max: 512,
            document_bytes_max: 4 << 20,
        }
    }
}

/// What has been charged so far.
#[derive(Debug)]
pub struct Meter {
    bounds: Bounds,
    /// Bytes of file contents.
    pub bytes: u64,
    /// Entries.
    pub entries: u64,
    names_bytes: u64,
}

impl Meter {
    /// Nothing charged yet.
    pub fn new(bounds: Bounds) -> Self {
        Self { bounds, bytes: 0, entries: 0, names_bytes: 0 }
    }

    /// The bounds in force.
    pub fn bounds(&self) -> &Bounds {
        &self.bounds
    }

    /// One more entry of that name.
    pub fn entry(&mut self, entry: &str) -> Result<(), ImageError> {
        self.entries += 1;
        self.names_bytes += entry.len() as u64;
        check(entry, "entries_max", self.entries, self.bounds.entries_max)?;
        check(entry, "names_bytes_max", self.names_bytes, self.bounds.names_bytes_max)
    }

    /// That many more bytes of contents.
    pub fn bytes(&mut self, entry: &str, bytes: u64) -> Result<(), ImageError> {
        self.bytes = self.bytes.saturating_add(bytes);
        check(entry, "bytes_max", self.bytes, self.bounds.bytes_max)
    }
}

/// An error when `value` is past `limit`.
pub fn check(entry: &str, bound: &'static str, value: u64, limit: u64) -> Result<(), ImageError> {
    if value > limit {
        return Err(ImageError::BoundExceeded { entry: entry.to_owned(), bound: bound.into(), limit });
    }
    Ok(())
}
