//! What the manager asks of languages, profiles and images, as traits so that it stands without them.
//!
//! Invariant: answers come from memory, but for images, which are looked up in the store: a few system calls, and for one that is there
//! the store's lock, which nobody holds for long. Read `manager` next.

use std::sync::Arc;

use crate::language::Language;
use crate::sandbox::profile::Profile;

/// The languages that are configured.
pub trait LanguageSource: Send + Sync {
    /// The language of that name or alias.
    fn get(&self, name_or_alias: &str) -> Option<Arc<Language>>;
    /// All of them, by name.
    fn all(&self) -> Vec<Arc<Language>>;
}

/// The profiles that are loaded.
pub trait ProfileSource: Send + Sync {
    /// The profile of that name.
    fn get(&self, name: &str) -> Option<Arc<Profile>>;
}

/// The images that are installed.
pub trait ImageSource: Send + Sync {
    /// Whether an image of that name can be used; `host` always can.
    fn installed(&self, image: &str) -> bool;
    /// Those of the language's programs that are not in that image; none when it is installed.
    fn missing_programs(&self, image: &str, language: &Language) -> Vec<String>;
}
