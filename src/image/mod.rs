//! Images: the root file systems that sessions live on, unpacked once and shared read-only.
//!
//! Invariants: a name is never a path; what is half made is never seen under a name; what a session uses is never removed; an
//! image is hostile input, so a confined process reads it, and nothing of it is ever followed by path outside its own
//! directory. Read `store` next, then `import`, `unpack`, `tree` (the only writer of an image's files), `pull`, `host` and `minimal`.

pub mod bounds;
mod confine;
pub mod copy;
pub mod entry;
mod error;
pub mod host;
pub mod import;
pub mod layer;
pub mod manifest;
pub mod members;
pub mod minimal;
mod name;
mod parts;
pub mod pull;
pub mod recipe;
mod root;
pub mod settings;
mod sparse;
mod staging;
pub mod store;
pub mod tree;
mod unpack;
mod whiteout;

pub use bounds::Bounds;
pub use error::{CertificateFault, ImageError, Refusal};
pub use import::{Imported, Progress, Taken, import};
pub use manifest::Choice;
pub use name::{ImageName, ImageReference};
pub use root::{Bind, DEFAULT_PATH, ImageRoot, program_exists};
pub use settings::Settings;
pub use store::{ImageInfo, SourceKind, Store};
pub use unpack::main as unpack_main;
