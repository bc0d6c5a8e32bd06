//! What any seccomp filter can answer, those that CodeBeaker does not write among them.
//!
//! `Action` is what our own profiles may say; `Verdict` is what a filter that is read, compared or explained may say. Invariant: the
//! order is the kernel's (seccomp(2)), and a return value that the kernel does not know kills, as there.

use std::fmt;

use super::Action;
use super::model::ActionWord;

/// The answer of a filter; `SECCOMP_RET_*` of linux/seccomp.h.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Verdict {
    /// It runs.
    Allow,
    /// It runs and the audit log has a line.
    Log,
    /// A tracer decides; without one it fails with ENOSYS.
    Trace(u16),
    /// A supervisor's listener decides; without one it fails with ENOSYS.
    Notify,
    /// It fails with this errno.
    Errno(u16),
    /// The thread gets SIGSYS.
    Trap,
    /// The thread ends.
    KillThread,
    /// The process ends.
    KillProcess,
}

/// The upper half of a return value, by verdict.
const RETURNS: [(u32, Verdict); 8] = [
    (0x7FFF_0000, Verdict::Allow),
    (0x7FFC_0000, Verdict::Log),
    (0x7FF0_0000, Verdict::Trace(0)),
    (0x7FC0_0000, Verdict::Notify),
    (0x0005_0000, Verdict::Errno(0)),
    (0x0003_0000, Verdict::Trap),
    (0x0000_0000, Verdict::KillThread),
    (0x8000_0000, Verdict::KillProcess),
];

impl Verdict {
    /// How strong it is among several filters' answers: the kernel takes the strongest.
    pub fn rank(self) -> u8 {
        match self {
            Self::Allow => 0,
            Self::Log => 1,
            Self::Trace(_) => 2,
            Self::Notify => 3,
            Self::Errno(_) => 4,
            Self::Trap => 5,
            Self::KillThread => 6,
            Self::KillProcess => 7,
        }
    }

    /// True when the call is carried out without anybody being asked.
    pub fn permits(self) -> bool {
        self.rank() <= 1
    }

    /// Reads the value that a filter returned.
    pub fn from_return(value: u32) -> Self {
        let data = value as u16;
        match RETURNS.iter().find(|(upper, _)| *upper == value & 0xFFFF_0000) {
            Some((_, Self::Errno(_))) => Self::Errno(data),
            Some((_, Self::Trace(_))) => Self::Trace(data),
            Some((_, verdict)) => *verdict,
            None => Self::KillProcess,
        }
    }

    /// Reads the word of an OCI profile, with the errno beside it.
    pub fn from_word(word: ActionWord, errno: Option<u32>) -> Self {
        let number = errno.map_or(1, |number| u16::try_from(number).unwrap_or(u16::MAX));
        match word {
            ActionWord::Allow => Self::Allow,
            ActionWord::Log => Self::Log,
            ActionWord::Trace => Self::Trace(number),
            ActionWord::Notify => Self::Notify,
            ActionWord::Errno => Self::Errno(number),
            ActionWord::Trap => Self::Trap,
            ActionWord::KillThread => Self::KillThread,
            ActionWord::KillProcess => Self::KillProcess,
        }
    }

    /// The word of an OCI profile, with the errno beside it.
    pub fn to_word(self) -> (ActionWord, Option<u32>) {
        match self {
            Self::Allow => (ActionWord::Allow, None),
            Self::Log => (ActionWord::Log, None),
            Self::Trace(number) => (ActionWord::Trace, Some(u32::from(number))),
            Self::Notify => (ActionWord::Notify, None),
            Self::Errno(number) => (ActionWord::Errno, Some(u32::from(number))),
            Self::Trap => (ActionWord::Trap, None),
            Self::KillThread => (ActionWord::KillThread, None),
            Self::KillProcess => (ActionWord::KillProcess, None),
        }
    }

    /// One word for programs that read the output: `allow`, `errno`, `kill_process`.
    pub fn word(self) -> &'static str {
        match self {
            Self::Allow => "allow",
            Self::Log => "log",
            Self::Trace(_) => "trace",
            Self::Notify => "notify",
            Self::Errno(_) => "errno",
            Self::Trap => "trap",
            Self::KillThread => "kill_thread",
            Self::KillProcess => "kill_process",
        }
    }
}

impl From<Action> for Verdict {
    fn from(action: Action) -> Self {
        match action {
            Action::Allow => Self::Allow,
            Action::Log => Self::Log,
            Action::Audit | Action::Notify(_) => Self::Notify,
            Action::Errno(number) => Self::Errno(number),
            Action::Trap => Self::Trap,
            Action::KillThread => Self::KillThread,
            Action::KillProcess => Self::KillProcess,
        }
    }
}

/// Names of errno-base.h and errno.h, for those that profiles answer with.
const ERRNOS: [(u16, &str); 17] = [
    (0, "0, pretending success"),
    (1, "EPERM"),
    (2, "ENOENT"),
    (3, "ESRCH"),
    (5, "EIO"),
    (9, "EBADF"),
    (11, "EAGAIN"),
    (12, "ENOMEM"),
    (13, "EACCES"),
    (14, "EFAULT"),
    (16, "EBUSY"),
    (19, "ENODEV"),
    (22, "EINVAL"),
    (25, "ENOTTY"),
    (38, "ENOSYS"),
    (95, "EOPNOTSUPP"),
    (97, "EAFNOSUPPORT"),
];

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Errno(number) => match ERRNOS.iter().find(|(known, _)| known == number) {
                Some((_, name)) => write!(f, "errno {name}"),
                None => write!(f, "errno {number}"),
            },
            Self::Trace(data) => write!(f, "trace {data}"),
            Self::Notify => f.write_str("notify a supervisor"),
            Self::KillThread => f.write_str("kill thread"),
            Self::KillProcess => f.write_str("kill process"),
            Self::Allow | Self::Log | Self::Trap => f.write_str(self.word()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn return_values_are_read_as_the_kernel_reads_them() {
        assert_eq!(Verdict::from_return(0x0005_0026), Verdict::Errno(38));
        assert_eq!(Verdict::from_return(0x7FF0_0007), Verdict::Trace(7));
        assert_eq!(Verdict::from_return(0x7FFF_0001), Verdict::Allow);
        assert_eq!(Verdict::from_return(0x1234_0000), Verdict::KillProcess, "unknown values kill");
    }

    #[test]
    fn the_order_is_that_of_the_table_and_words_go_both_ways() {
        assert!(RETURNS.is_sorted_by_key(|(_, verdict)| verdict.rank()));
        for (value, verdict) in RETURNS {
            assert_eq!(Verdict::from_return(value), verdict);
            let (word, errno) = verdict.to_word();
            assert_eq!(Verdict::from_word(word, errno), verdict);
        }
    }
}
