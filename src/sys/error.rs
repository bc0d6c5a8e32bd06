//! A system call that failed: which one and with which errno.

use rustix::io::Errno;
use thiserror::Error;

/// A system call that failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("{call}: {errno}")]
pub struct CallError {
    /// Name of the call, with its operation where one call has many (`prctl(PR_SET_DUMPABLE)`).
    pub call: &'static str,
    /// What the kernel said.
    pub errno: Errno,
}

impl CallError {
    /// The error of `call` with errno as libc has just set it.
    pub fn last(call: &'static str) -> Self {
        Self { call, errno: Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO) }
    }

    /// The raw number of [`Self::errno`].
    pub fn raw(&self) -> i32 {
        self.errno.raw_os_error()
    }
}

/// Names the call of a rustix result.
pub trait Named<T> {
    /// The same result, its error naming `call`.
    fn named(self, call: &'static str) -> Result<T, CallError>;
}

impl<T> Named<T> for Result<T, Errno> {
    fn named(self, call: &'static str) -> Result<T, CallError> {
        self.map_err(|errno| CallError { call, errno })
    }
}

/// The errno's text as the C library has it, for messages to people.
pub fn describe(errno: i32) -> String {
    let text = std::io::Error::from_raw_os_error(errno).to_string();
    text.split(" (os error").next().unwrap_or_default().to_owned()
}
