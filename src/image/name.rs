//! Names of images.
//!
//! Invariant: an `ImageName` is one file name: no `/`, no NUL, not `.` or `..`, not hidden.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::ImageError;

const NAME_BYTES_MAX: usize = 64;
const TAG_BYTES_MAX: usize = 128;

/// `name` or `name:tag`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ImageName(String);

impl ImageName {
    /// The image that is always there.
    pub const HOST: &'static str = "host";

    /// Takes `[a-z0-9][a-z0-9._-]{0,63}`, and after a colon `[A-Za-z0-9_][A-Za-z0-9._-]{0,127}`.
    pub fn parse(text: &str) -> Result<Self, ImageError> {
        let refuse = |reason| Err(ImageError::NameInvalid { name: text.chars().take(80).collect(), reason });
        let (name, tag) = match text.split_once(':') {
            Some((name, tag)) => (name, Some(tag)),
            None => (text, None),
        };
        let first = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
        if name.is_empty() || name.len() > NAME_BYTES_MAX || !name.starts_with(first) {
            return refuse("it has 1 to 64 characters and begins with a lower-case letter or a digit");
        }
        if !name.chars().all(|c| first(c) || "._-".contains(c)) {
            return refuse("only lower-case letters, digits, `.`, `_` and `-` can stand in it");
        }
        let Some(tag) = tag else { return Ok(Self(text.to_owned())) };
        let first = |c: char| c.is_ascii_alphanumeric() || c == '_';
        if tag.is_empty() || tag.len() > TAG_BYTES_MAX || !tag.starts_with(first) {
            return refuse("its tag has 1 to 128 characters and begins with a letter, a digit or `_`");
        }
        if !tag.chars().all(|c| first(c) || ".-".contains(c)) {
            return refuse("only letters, digits, `.`, `_` and `-` can stand in its tag");
        }
        Ok(Self(text.to_owned()))
    }

    /// As written.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// True for `host`, with whatever tag: nothing can be stored under it.
    pub fn is_host(&self) -> bool {
        self.0.split(':').next() == Some(Self::HOST)
    }
}

impl fmt::Display for ImageName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for ImageName {
    type Error = ImageError;

    fn try_from(text: String) -> Result<Self, ImageError> {
        Self::parse(&text)
    }
}

impl From<ImageName> for String {
    fn from(name: ImageName) -> Self {
        name.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_never_a_path() {
        for good in ["python", "a", "0", "python:3.12", "a.b_c-d:Tag_1", &"a".repeat(64)] {
            assert!(ImageName::parse(good).is_ok(), "{good}");
        }
        let long = "a".repeat(65);
        for bad in [
            "",
            ".",
            "..",
            "../x",
            "/x",
            "a/b",
            "A",
            "a b",
            "a\n",
            "a\0",
            ".x",
            "-x",
            "a:",
            "a:b:c",
            "a:/b",
            "a:..",
            "a,upperdir=b",
            &long,
        ] {
            assert!(matches!(ImageName::parse(bad), Err(ImageError::NameInvalid { .. })), "{bad:?}");
        }
    }
}
