//! A profile as it was read, whatever its format: the OCI words, and what only the other formats can say.
//!
//! Invariant: nothing of the file is lost without an entry in `losses`. `read` makes documents, `ruleset` says what they mean.

use std::collections::BTreeSet;
use std::fmt;

use super::model::SeccompProfile;

/// A format that profiles are kept in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// The OCI runtime specification's `LinuxSeccomp`, with Docker's additions.
    Oci,
    /// seccompiler's JSON: filters by thread.
    Seccompiler,
    /// `SeccompProfile` of the Security Profiles Operator.
    Spo,
    /// An array of `struct sock_filter`.
    Bpf,
}

impl Format {
    /// Every format.
    pub const ALL: [Self; 4] = [Self::Oci, Self::Seccompiler, Self::Spo, Self::Bpf];

    /// The word on the command line.
    pub fn word(self) -> &'static str {
        match self {
            Self::Oci => "oci",
            Self::Seccompiler => "seccompiler",
            Self::Spo => "spo",
            Self::Bpf => "bpf",
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

/// Something that one format says and another can't.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Loss {
    /// Where, as in `syscalls[3].comment`.
    pub field: String,
    /// What is lost.
    pub what: String,
}

impl Loss {
    /// At a field.
    pub fn at(field: impl Into<String>, what: impl Into<String>) -> Self {
        Self { field: field.into(), what: what.into() }
    }
}

/// One profile.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Document {
    /// What it was read from.
    pub format: Format,
    /// Its rules, in OCI's words.
    pub profile: SeccompProfile,
    /// Rule and position of the arguments that are compared by their low word, where the file itself says so.
    pub narrow: BTreeSet<(usize, usize)>,
    /// What the file says beyond rules, which nothing here acts on.
    pub losses: Vec<Loss>,
}

impl Document {
    /// A document of OCI words alone.
    pub fn oci(profile: SeccompProfile) -> Self {
        Self { format: Format::Oci, profile, narrow: BTreeSet::new(), losses: Vec::new() }
    }
}
