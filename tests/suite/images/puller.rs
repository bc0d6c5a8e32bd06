//! Calls of `codebeaker image` on a store of their own, with an environment of their own.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use tempfile::TempDir;

use crate::support::fixture_user::{binary_for, directory_of};

/// What a call of `image` gave.
#[derive(Debug)]
pub struct Told {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Told {
    pub fn good(&self) {
        assert_eq!(self.code, Some(0), "{self:?}");
    }

    /// Failed with these words on standard error, a hint among them.
    pub fn bad(&self, words: &[&str]) {
        assert_eq!(self.code, Some(1), "{self:?}");
        assert!(self.stderr.contains("\nhint: "), "{self:?}");
        for word in words {
            assert!(self.stderr.contains(word), "{word} in {self:?}");
        }
    }
}

/// A store of its own, and what its calls find in their environment.
pub struct Puller {
    state: TempDir,
    variables: Vec<(&'static str, PathBuf)>,
}

impl Puller {
    pub fn new() -> Self {
        Self { state: directory_of(None), variables: Vec::new() }
    }

    pub fn with(&self, name: &'static str, value: &Path) -> Self {
        let mut variables = self.variables.clone();
        variables.push((name, value.to_owned()));
        Self { state: directory_of(None), variables }
    }

    pub fn command(&self, arguments: &[&str]) -> Command {
        // A registry that keeps a pull for ever is a failure with an end.
        let mut command = Command::new("/usr/bin/timeout");
        command.args(["--foreground", "200"]).arg(binary_for(None)).arg("image").args(arguments);
        command.arg("--state-dir").arg(self.state.path());
        command.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").env("HOME", "/nonexistent");
        command.envs(self.variables.iter().map(|(name, value)| (name, value)));
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    pub fn call(&self, arguments: &[&str]) -> Told {
        told(self.command(arguments).spawn().expect("the binary starts"))
    }

    pub fn pull(&self, reference: &str) -> Told {
        self.call(&["pull", reference])
    }

    pub fn store(&self, place: &str) -> PathBuf {
        self.state.path().join("images").join(place)
    }

    /// The files of a directory of the store.
    pub fn files(&self, place: &str) -> BTreeMap<String, Vec<u8>> {
        let entries = std::fs::read_dir(self.store(place)).expect("the store is there").flatten();
        entries
            .map(|entry| (entry.file_name().to_string_lossy().into_owned(), std::fs::read(entry.path()).unwrap_or_default()))
            .collect()
    }

    /// Neither a name nor a root file system nor anything half-made.
    pub fn holds_no_image(&self) {
        for place in ["names", "layers", "tmp"] {
            assert_eq!(self.files(place).len(), 0, "{place}");
        }
    }
}

pub fn told(child: Child) -> Told {
    let output = child.wait_with_output().expect("it ends");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Told { code: output.status.code(), stdout: text(&output.stdout), stderr: text(&output.stderr) }
}
