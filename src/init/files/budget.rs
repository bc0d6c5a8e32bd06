//! What one command may still spend: entries, names in memory, time.
//!
//! Invariant: every loop over what the sandbox's user can grow spends from here.

use std::time::Instant;

use super::FileBounds;
use super::error::refused;
use crate::plan::files::{FileError, FileErrorKind};

/// The rest of a command's allowance.
#[derive(Debug)]
pub struct Budget {
    deadline: Instant,
    entries_left: u64,
    names_bytes_left: usize,
    depth_max: usize,
}

impl Budget {
    /// A full allowance; the clock starts now.
    pub fn new(bounds: &FileBounds) -> Self {
        Self {
            deadline: Instant::now() + bounds.time_max,
            entries_left: bounds.entries_max,
            names_bytes_left: bounds.names_bytes_max,
            depth_max: bounds.depth_max,
        }
    }

    /// Fails once the command has run too long.
    pub fn check_time(&self) -> Result<(), FileError> {
        if Instant::now() >= self.deadline {
            return Err(refused(FileErrorKind::LimitExceeded, "finish in the time a file command has"));
        }
        Ok(())
    }

    /// Spends one directory entry.
    pub fn spend_entry(&mut self) -> Result<(), FileError> {
        self.check_time()?;
        self.entries_left = self
            .entries_left
            .checked_sub(1)
            .ok_or_else(|| refused(FileErrorKind::LimitExceeded, "visit more entries than a file command may"))?;
        Ok(())
    }

    /// No entry is left to spend.
    pub fn entries_spent(&self) -> bool {
        self.entries_left == 0
    }

    /// Fails for a level deeper than the bound.
    pub fn check_depth(&self, depth: usize) -> Result<(), FileError> {
        if depth > self.depth_max {
            return Err(refused(FileErrorKind::LimitExceeded, "go deeper than a file command may"));
        }
        Ok(())
    }

    /// Takes memory for a name; given back with [`Self::release`].
    pub fn hold(&mut self, bytes: usize) -> Result<(), FileError> {
        self.names_bytes_left = self
            .names_bytes_left
            .checked_sub(bytes)
            .ok_or_else(|| refused(FileErrorKind::LimitExceeded, "hold more names than a file command may"))?;
        Ok(())
    }

    /// Gives memory back.
    pub fn release(&mut self, bytes: usize) {
        self.names_bytes_left = self.names_bytes_left.saturating_add(bytes);
    }
}
