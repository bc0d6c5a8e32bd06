//! Architectures with their system-call tables, and kernel versions.
//!
//! Invariant: only 64-bit architectures exist here; i386 and x32 can't be named, so no rule can ever allow them.

use std::fmt;
use std::str::FromStr;

use thiserror::Error;

use super::table;

/// An architecture that filters can be made for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Arch {
    /// AMD64.
    X86_64,
    /// ARM64.
    Aarch64,
}

impl Arch {
    /// The architecture this program was compiled for; none where sandboxes can't be made.
    pub fn native() -> Option<Self> {
        if cfg!(target_arch = "x86_64") {
            Some(Self::X86_64)
        } else if cfg!(target_arch = "aarch64") {
            Some(Self::Aarch64)
        } else {
            None
        }
    }

    /// `AUDIT_ARCH_*` as the kernel puts it into `struct seccomp_data`.
    pub fn audit_value(self) -> u32 {
        match self {
            Self::X86_64 => 0xC000_003E,
            Self::Aarch64 => 0xC000_00B7,
        }
    }

    /// The word of the OCI runtime specification.
    pub fn oci_name(self) -> &'static str {
        match self {
            Self::X86_64 => "SCMP_ARCH_X86_64",
            Self::Aarch64 => "SCMP_ARCH_AARCH64",
        }
    }

    /// The word in Docker's `includes.arches` (GOARCH).
    pub fn go_name(self) -> &'static str {
        match self {
            Self::X86_64 => "amd64",
            Self::Aarch64 => "arm64",
        }
    }

    /// The number of a system call.
    pub fn number(self, name: &str) -> Option<u32> {
        self.table().iter().find(|(_, known)| *known == name).map(|(number, _)| *number)
    }

    /// The name of a system call; how a blocked call is told to people.
    pub fn name(self, number: u32) -> Option<&'static str> {
        let table = self.table();
        table.binary_search_by_key(&number, |(known, _)| *known).ok().map(|at| table[at].1)
    }

    fn table(self) -> &'static [(u32, &'static str)] {
        match self {
            Self::X86_64 => table::X86_64,
            Self::Aarch64 => table::AARCH64,
        }
    }
}

/// Every system call of an architecture up to Linux 6.18, by number.
pub fn names(arch: Arch) -> impl Iterator<Item = (u32, &'static str)> {
    arch.table().iter().copied()
}

/// True when the name is a system call on some Linux architecture.
pub(super) fn is_known(name: &str) -> bool {
    let named = |table: &[(u32, &str)]| table.iter().any(|(_, known)| *known == name);
    named(table::X86_64) || named(table::AARCH64) || table::ELSEWHERE.contains(&name)
}

/// A kernel's version: the two figures that `minKernel` compares.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct KernelVersion {
    /// 6 of 6.18.
    pub major: u32,
    /// 18 of 6.18.
    pub minor: u32,
}

impl fmt::Display for KernelVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// A text that is no kernel version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("a kernel version is written as MAJOR.MINOR")]
pub struct KernelVersionError;

impl FromStr for KernelVersion {
    type Err = KernelVersionError;

    /// Reads `4.8` and also uname(2)'s `6.18.44-generic`; what follows the second figure is not looked at.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (major, rest) = text.trim().split_once('.').ok_or(KernelVersionError)?;
        let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        let major = major.parse().map_err(|_| KernelVersionError)?;
        let minor = rest[..digits].parse().map_err(|_| KernelVersionError)?;
        Ok(Self { major, minor })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn no_number_and_no_name_stands_twice_in_a_table() {
        for arch in [Arch::X86_64, Arch::Aarch64] {
            assert!(arch.table().is_sorted_by(|a, b| a.0 < b.0), "{arch:?}");
            let distinct: BTreeSet<_> = names(arch).map(|(_, name)| name).collect();
            assert_eq!(distinct.len(), names(arch).count(), "{arch:?}");
        }
    }

    #[test]
    fn the_table_agrees_with_libc_and_goes_further() {
        let arch = Arch::native().expect("tests run on a supported architecture");
        let samples = [("read", libc::SYS_read), ("clone3", libc::SYS_clone3), ("seccomp", libc::SYS_seccomp)];
        for (name, number) in samples {
            assert_eq!(arch.number(name).map(i64::from), Some(number), "{name}");
        }
        assert_eq!(arch.name(469), Some("file_setattr"));
        assert_eq!(arch.name(470), None);
    }

    #[test]
    fn kernel_versions_are_compared_as_numbers() {
        let version = |text: &str| text.parse::<KernelVersion>();
        assert!(version("6.18.44-generic").expect("uname") > version("6.9").expect("short"));
        assert_eq!(version("4"), Err(KernelVersionError));
        assert_eq!(version("four.8"), Err(KernelVersionError));
    }
}
