//! Identifiers that travel on the wire.
//!
//! Invariant: an identifier is made here from 128 random bits, so it can't be guessed, and it holds nothing but `[a-z0-9_]`,
//! so it is safe as a directory or cgroup name. Text from a client is only ever compared with one, never used as a path.

use std::fmt;

/// 128 random bits as 32 lower-case hexadecimal digits.
fn random_hex() -> String {
    let bits: u128 = rand::random();
    format!("{bits:032x}")
}

macro_rules! identifier {
    ($(#[$doc:meta])* $name:ident, $prefix:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(String);

        impl $name {
            /// A fresh identifier that nobody can guess.
            pub fn random() -> Self {
                Self(format!(concat!($prefix, "_{}"), random_hex()))
            }

            /// The text a client sent, to look up; it need not name anything.
            pub fn from_client(text: &str) -> Self {
                Self(text.to_owned())
            }

            /// The identifier as it stands on the wire.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

identifier!(
    /// One session of one principal.
    SessionId,
    "ses"
);
identifier!(
    /// One sandbox (or container) that serves a session; `containerId` on the wire is the same value.
    EnvironmentId,
    "env"
);
identifier!(
    /// One command that was accepted.
    ExecutionId,
    "exe"
);
