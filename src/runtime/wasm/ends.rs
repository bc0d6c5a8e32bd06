//! How a guest's end becomes the worker's own: exit codes are the guest's, signals are the worker's words.
//!
//! Invariant: a guest of WASI preview 1 can end with any exit code but by no signal, so what a signal says is the worker's word and
//! nobody else's; the two that mean a limit are ignored while the guest runs, so that no client can say them either.

use wasmtime::Trap;

use crate::runtime::native::Word;

/// The deadline is over.
pub const DEADLINE: i32 = libc::SIGXCPU;

/// The guest failed after memory was refused to it.
pub const MEMORY: i32 = libc::SIGXFSZ;

/// The worker's word for the server, when the signal that ended it is one.
pub fn word(signal: i32) -> Option<Word> {
    match signal {
        DEADLINE => Some(Word::TimeIsUp),
        MEMORY => Some(Word::MemoryRefused),
        _ => None,
    }
}

/// How a guest ended.
#[derive(Debug, PartialEq, Eq)]
pub enum End {
    /// It said so itself.
    Code(i32),
    /// It never began: the sentence says why.
    Refused(String),
    /// It ran past its deadline.
    Deadline,
    /// It failed, and memory had been refused to it.
    Memory(String),
    /// It trapped: the signal that stands for it, and wasmtime's words.
    Trap(i32, String),
}

/// The signal that the same fault has in a native program.
pub fn signal_of(trap: Trap) -> i32 {
    match trap {
        Trap::UnreachableCodeReached => libc::SIGILL,
        Trap::StackOverflow | Trap::MemoryOutOfBounds | Trap::TableOutOfBounds | Trap::IndirectCallToNull => libc::SIGSEGV,
        Trap::IntegerOverflow | Trap::IntegerDivisionByZero | Trap::BadConversionToInteger => libc::SIGFPE,
        // wasmtime may add traps.
        _ => libc::SIGABRT,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trap_has_the_signal_of_the_same_fault_and_none_that_means_a_limit() {
        assert_eq!(signal_of(Trap::UnreachableCodeReached), libc::SIGILL);
        assert_eq!(signal_of(Trap::StackOverflow), libc::SIGSEGV);
        assert_eq!(signal_of(Trap::IntegerDivisionByZero), libc::SIGFPE);
        assert_eq!(signal_of(Trap::BadSignature), libc::SIGABRT);
        for trap in [Trap::UnreachableCodeReached, Trap::StackOverflow, Trap::IntegerDivisionByZero, Trap::BadSignature] {
            assert_eq!(word(signal_of(trap)), None);
        }
        assert_eq!((word(DEADLINE), word(MEMORY)), (Some(Word::TimeIsUp), Some(Word::MemoryRefused)));
    }
}
