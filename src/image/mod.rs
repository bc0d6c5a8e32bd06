//! Images: the root file systems that sessions live on, unpacked once and shared read-only.
//!
//! Invariants: a name is never a path; what is half made is never seen under a name; what a session uses is never removed; an
//! image is hostile input, so nothing of it is ever followed by path outside its own directory. Read `store` next, then
//! `import`, then `tree` (the only writer of an image's files), `host` and `minimal`.

pub mod bounds;
mod confine;
pub mod copy;
pub mod entry;
mod error;
pub mod host;
pub mod import;
pub mod layer;
pub mod minimal;
mod name;
mod root;
mod staging;
pub mod store;
pub mod tree;

pub use bounds::Bounds;
pub use error::{ImageError, Refusal};
pub use import::{Imported, Progress, import};
pub use name::ImageName;
pub use root::{Bind, DEFAULT_PATH, ImageRoot, program_exists};
pub use store::{ImageInfo, SourceKind, Store};
