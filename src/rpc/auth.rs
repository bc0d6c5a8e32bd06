//! Tokens: who may call.
//!
//! Invariants: the state directory holds hashes only, except for the first token, which the command line must be able to read;
//! both files have mode 0600 and are replaced whole; a comparison takes the same time wherever two hashes differ.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use crate::session::api::Principal;

/// The name of the token that the first start makes.
pub const FIRST_TOKEN_NAME: &str = "default";
/// File of the first token's text, in the state directory.
pub const TOKEN_FILE: &str = "token";
/// File of all hashes, in the state directory.
pub const TOKENS_FILE: &str = "tokens.json";

/// Why tokens could not be read or changed.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// A file operation failed.
    #[error("can't {operation} {path}")]
    File {
        /// `read`, `write` or `replace`.
        operation: &'static str,
        /// Which file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file is not what this program writes.
    #[error("{path} is not a list of tokens")]
    Broken {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: serde_json::Error,
    },
    /// A name that can't be one.
    #[error("a token's name has 1 to 64 letters, digits, `.`, `_` or `-`; `{0}` is none")]
    BadName(String),
    /// The name is in use.
    #[error("there is a token `{0}` already; revoke it first")]
    Exists(String),
    /// Nothing of that name.
    #[error("there is no token `{0}`")]
    Unknown(String),
}

/// One token, without its text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenRow {
    /// The principal.
    pub name: String,
    /// SHA-256 of the text, hexadecimal.
    pub sha256: String,
    /// When it was made, RFC 3339.
    pub created: String,
}

/// The tokens of one state directory. A change by another process is seen at the next use.
#[derive(Debug)]
pub struct Tokens {
    dir: PathBuf,
    seen: Mutex<Seen>,
}

/// The file as it was last read.
#[derive(Debug, Default, Clone)]
struct Seen {
    modified: Option<(SystemTime, u64, u64)>,
    rows: Vec<TokenRow>,
}

impl Tokens {
    /// Reads the tokens of `state_dir`; makes the first one, readable in `TOKEN_FILE`, when there is no list yet.
    pub fn open(state_dir: &Path) -> Result<Self, TokenError> {
        let tokens = Self { dir: state_dir.to_owned(), seen: Mutex::default() };
        if tokens.path().exists() {
            tokens.rows()?;
        } else {
            let text = tokens.create(FIRST_TOKEN_NAME)?;
            replace(&tokens.dir.join(TOKEN_FILE), text.as_bytes())?;
        }
        Ok(tokens)
    }

    /// Makes a token for the principal `name` and returns its text, which is kept nowhere.
    pub fn create(&self, name: &str) -> Result<String, TokenError> {
        let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
        if name.is_empty() || name.len() > 64 || !name.chars().all(fits) {
            return Err(TokenError::BadName(name.to_owned()));
        }
        let _lock = self.lock()?;
        let mut rows = if self.path().exists() { self.rows()? } else { Vec::new() };
        if rows.iter().any(|row| row.name == name) {
            return Err(TokenError::Exists(name.to_owned()));
        }
        let text = format!("cbk_{:032x}{:032x}", rand::random::<u128>(), rand::random::<u128>());
        let created = super::render::time(SystemTime::now());
        rows.push(TokenRow { name: name.to_owned(), sha256: hash(&text), created });
        self.store(&rows)?;
        Ok(text)
    }

    /// All tokens.
    pub fn list(&self) -> Result<Vec<TokenRow>, TokenError> {
        self.rows()
    }

    /// Takes the token back; connections that are open stay.
    pub fn revoke(&self, name: &str) -> Result<(), TokenError> {
        let _lock = self.lock()?;
        let mut rows = self.rows()?;
        let before = rows.len();
        rows.retain(|row| row.name != name);
        if rows.len() == before { Err(TokenError::Unknown(name.to_owned())) } else { self.store(&rows) }
    }

    /// Whose token this is.
    pub fn verify(&self, text: &str) -> Option<Principal> {
        let rows = self.rows().map_err(|error| tracing::error!(%error, "tokens can't be read")).ok()?;
        let presented = hash(text);
        let mut found = None;
        for row in &rows {
            if bool::from(row.sha256.as_bytes().ct_eq(presented.as_bytes())) {
                found = Some(Principal(row.name.clone()));
            }
        }
        found
    }

    fn path(&self) -> PathBuf {
        self.dir.join(TOKENS_FILE)
    }

    /// Held from reading the list to replacing it: of two processes that change it at once neither undoes the other's change.
    fn lock(&self) -> Result<File, TokenError> {
        let path = self.path().with_extension("lock");
        let failed = |source| TokenError::File { operation: "lock", path: path.clone(), source };
        let file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&path).map_err(failed)?;
        rustix::fs::flock(&file, rustix::fs::FlockOperation::LockExclusive).map_err(|errno| failed(errno.into()))?;
        Ok(file)
    }

    /// The list; read again only when the file is another one.
    fn rows(&self) -> Result<Vec<TokenRow>, TokenError> {
        let path = self.path();
        let failed = |source| TokenError::File { operation: "read", path: path.clone(), source };
        let metadata = std::fs::metadata(&path).map_err(failed)?;
        let modified = Some((metadata.modified().map_err(failed)?, metadata.len(), metadata.ino()));
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if seen.modified != modified {
            let text = std::fs::read(&path).map_err(failed)?;
            let rows = serde_json::from_slice(&text).map_err(|source| TokenError::Broken { path: path.clone(), source })?;
            *seen = Seen { modified, rows };
        }
        Ok(seen.rows.clone())
    }

    fn store(&self, rows: &[TokenRow]) -> Result<(), TokenError> {
        let path = self.path();
        let text = serde_json::to_vec_pretty(rows).map_err(|source| TokenError::Broken { path: path.clone(), source })?;
        replace(&path, &text)?;
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).modified = None;
        Ok(())
    }
}

/// The text of the first token, for the command line.
pub fn first_token(state_dir: &Path) -> Result<String, TokenError> {
    let path = state_dir.join(TOKEN_FILE);
    let text = std::fs::read_to_string(&path).map_err(|source| TokenError::File { operation: "read", path, source })?;
    Ok(text.trim().to_owned())
}

fn hash(text: &str) -> String {
    Sha256::digest(text.as_bytes()).iter().flat_map(|byte| [byte >> 4, byte & 15]).map(hex_digit).collect()
}

fn hex_digit(half: u8) -> char {
    char::from(if half < 10 { b'0' + half } else { b'a' + half - 10 })
}

/// Writes a new file of mode 0600 beside the old one and puts it in its place.
fn replace(path: &Path, content: &[u8]) -> Result<(), TokenError> {
    let failed = |operation| move |source| TokenError::File { operation, path: path.to_owned(), source };
    let beside = path.with_extension(format!("{:016x}.new", rand::random::<u64>()));
    let mut file: File = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&beside).map_err(failed("write"))?;
    file.write_all(content).and_then(|()| file.sync_all()).map_err(failed("write"))?;
    std::fs::rename(&beside, path).map_err(failed("replace"))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn dir() -> tempfile::TempDir {
        tempfile::tempdir().expect("a directory for the test")
    }

    #[test]
    fn tokens_that_are_made_at_once_are_all_kept() {
        let dir = dir();
        Tokens::open(dir.path()).expect("new");
        std::thread::scope(|scope| {
            for number in 0..8 {
                let path = dir.path();
                // Each with an instance of its own, as processes have.
                scope.spawn(move || Tokens::open(path).expect("there").create(&format!("user-{number}")).expect("a free name"));
            }
        });
        assert_eq!(Tokens::open(dir.path()).expect("there").list().expect("readable").len(), 9);
    }

    #[test]
    fn the_first_start_makes_a_token_that_only_the_owner_can_read() {
        let dir = dir();
        let tokens = Tokens::open(dir.path()).expect("a first start");
        let text = first_token(dir.path()).expect("the first token");
        assert_eq!(tokens.verify(&text), Some(Principal(FIRST_TOKEN_NAME.into())));
        assert_eq!(tokens.verify(&text[1..]), None);
        for name in [TOKEN_FILE, TOKENS_FILE] {
            let mode = std::fs::metadata(dir.path().join(name)).expect("it exists").permissions().mode();
            assert_eq!(mode & 0o777, 0o600, "{name}");
        }
        let list = std::fs::read_to_string(dir.path().join(TOKENS_FILE)).expect("the list");
        assert!(!list.contains(&text));
        // A second start keeps it.
        assert!(Tokens::open(dir.path()).expect("a second start").verify(&text).is_some());
    }

    #[test]
    fn a_token_of_another_process_is_seen_and_a_revoked_one_is_not() {
        let dir = dir();
        let server = Tokens::open(dir.path()).expect("the server's");
        let cli = Tokens::open(dir.path()).expect("the command line's");
        let text = cli.create("ci").expect("a new token");
        assert_eq!(server.verify(&text), Some(Principal("ci".into())));
        cli.revoke("ci").expect("it is there");
        assert_eq!(server.verify(&text), None);
        assert_eq!(cli.list().expect("the list").len(), 1);
    }

    #[test]
    fn names_that_are_taken_or_odd_are_refused() {
        let dir = dir();
        let tokens = Tokens::open(dir.path()).expect("a first start");
        assert!(matches!(tokens.create(FIRST_TOKEN_NAME), Err(TokenError::Exists(_))));
        for name in ["", "a/b", "a b", &"x".repeat(65)] {
            assert!(matches!(tokens.create(name), Err(TokenError::BadName(_))), "{name}");
        }
        assert!(matches!(tokens.revoke("nobody"), Err(TokenError::Unknown(_))));
        assert!(tokens.create("agent-1").is_ok());
    }
}
