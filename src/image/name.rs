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
        let refuse = |reason: &'static str| {
            Err(ImageError::NameInvalid { name: text.chars().take(80).collect(), reason: reason.into() })
        };
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

/// A name as a session gives it: `name`, `name:tag`, either with `@sha256:…` behind it for the digest that it must have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageReference {
    /// The name.
    pub name: ImageName,
    /// The digest that the image must have.
    pub digest: Option<String>,
}

impl ImageReference {
    /// Takes it apart.
    pub fn parse(text: &str) -> Result<Self, ImageError> {
        let Some((name, digest)) = text.split_once('@') else {
            return Ok(Self { name: ImageName::parse(text)?, digest: None });
        };
        let hex = digest.strip_prefix("sha256:").unwrap_or_default();
        if hex.len() != 64 || !hex.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')) {
            let reason = "what stands behind the @ is `sha256:` and 64 lower-case hexadecimal digits".into();
            return Err(ImageError::NameInvalid { name: text.chars().take(80).collect(), reason });
        }
        Ok(Self { name: ImageName::parse(name)?, digest: Some(digest.to_owned()) })
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
    fn a_reference_is_a_name_that_may_have_a_digest() {
        let digest = format!("sha256:{}", "0af".repeat(22).split_at(64).0);
        let reference = ImageReference::parse(&format!("python:3.12@{digest}")).expect("a reference");
        assert_eq!((reference.name.as_str(), reference.digest.as_deref()), ("python:3.12", Some(digest.as_str())));
        assert_eq!(ImageReference::parse("python").expect("a name").digest, None);
        for bad in ["python@", "python@sha256:", "python@sha512:00", "@x", &format!("p@{}", digest.to_uppercase()), "a@b@c"] {
            assert!(matches!(ImageReference::parse(bad), Err(ImageError::NameInvalid { .. })), "{bad}");
        }
    }

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
