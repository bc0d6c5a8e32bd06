//! What a container stands on: an image of our store, which the engine is given when it has it not, or one that only the engine has.
//!
//! Invariants: a tree of the store is imported once and found again by a name that stands for its content; what an engine's image
//! declares to be a volume is refused, since it would be kept outside every limit; a name is a name, never a part of a path.

use std::collections::BTreeMap;
use std::fs::Metadata;
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;

use bollard::models::ImageInspect;
use bollard::query_parameters::CreateImageOptionsBuilder;
use futures_util::{StreamExt, TryStreamExt, stream};
use sha2::{Digest, Sha256};
use tokio::sync::mpsc;

use crate::image::{ImageError, ImageRoot, Store};
use crate::runtime::native::exhausted;
use crate::sandbox::error::SandboxError;

use super::engine::{ASK_TIME, Engine, EngineError, IMPORT_TIME};

/// The repository of imported trees, in words that Docker and Podman read alike.
const REPOSITORY: &str = "localhost/codebeaker";

/// Of a name that the engine is asked for.
const NAME_BYTES_MAX: usize = 255;

/// Parts of an archive on their way to the engine: each has [`PART_BYTES`].
const PARTS_WAITING_MAX: usize = 4;
const PART_BYTES: usize = 256 << 10;

/// What a container stands on.
pub struct Ground {
    /// As the engine knows it.
    pub image: String,
    /// Read-only trees over it: host path and path inside.
    pub binds: Vec<(String, String)>,
    /// Variables of programs.
    pub env: BTreeMap<String, String>,
    /// Keeps the tree in the store.
    pub root: Option<ImageRoot>,
}

/// The image of that name: the store's comes first.
pub async fn ground(engine: &Arc<Engine>, store: &Store, name: &str) -> Result<Ground, SandboxError> {
    match store.resolve(name) {
        Ok(root) => of_store(engine, root).await,
        Err(ImageError::NotFound { .. } | ImageError::NameInvalid { .. }) => of_engine(engine, name).await,
        Err(ImageError::OtherDigest { .. }) => Err(SandboxError::ImageNotFound { image: name.into() }),
        Err(error) => Err(exhausted(&error).unwrap_or_else(|| SandboxError::Internal(error.to_string()))),
    }
}

async fn of_store(engine: &Arc<Engine>, root: ImageRoot) -> Result<Ground, SandboxError> {
    let image = format!("{REPOSITORY}:{}", tag(&root.lower));
    if inspect(engine, &image).await?.is_none() {
        import(engine, &root.lower, &image).await?;
    }
    let text = |path: &Path| path.to_string_lossy().into_owned();
    let binds = root.binds.iter().map(|bind| (text(&bind.source), bind.target.clone())).collect();
    Ok(Ground { image, binds, env: root.env.clone(), root: Some(root) })
}

/// A tree of the store is never changed, and its directory bears the digest of what it was made from.
fn tag(lower: &Path) -> String {
    let name = lower.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let kind = lower.parent().and_then(Path::file_name).unwrap_or_default().to_string_lossy().into_owned();
    let digest = Sha256::digest(format!("{kind}/{name}"));
    let begin = digest.iter().take(16).fold(0_u128, |number, byte| number << 8 | u128::from(*byte));
    format!("{begin:032x}")
}

async fn of_engine(engine: &Arc<Engine>, name: &str) -> Result<Ground, SandboxError> {
    let missing = || SandboxError::ImageNotFound { image: name.into() };
    if !is_name(name) {
        return Err(missing());
    }
    let found = inspect(engine, name).await?.ok_or_else(missing)?;
    let config = found.config.unwrap_or_default();
    if config.volumes.as_ref().is_some_and(|volumes| !volumes.is_empty()) {
        return Err(SandboxError::RuntimeUnusable {
            runtime: "Docker".into(),
            cause: format!(
                "the engine's image `{name}` declares volumes, whose files no limit of a session would count; `codebeaker image import` \
                 takes it without them"
            ),
        });
    }
    let env = config.env.unwrap_or_default();
    let env = env.iter().filter_map(|line| line.split_once('=')).map(|(name, value)| (name.to_owned(), value.to_owned()));
    // By its id: the name may soon be another's.
    Ok(Ground { image: found.id.ok_or_else(missing)?, binds: Vec::new(), env: env.collect(), root: None })
}

/// The name goes into the path of a call.
fn is_name(name: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-/:@".contains(&byte);
    let starts = name.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric());
    starts && name.len() <= NAME_BYTES_MAX && name.bytes().all(plain) && !name.contains("..") && !name.contains("//")
}

async fn inspect(engine: &Arc<Engine>, name: &str) -> Result<Option<ImageInspect>, EngineError> {
    let target = name.to_owned();
    let found =
        engine.call("look for an image", ASK_TIME, move |client| async move { client.inspect_image(&target).await }).await;
    match found {
        Ok(found) => Ok(Some(found)),
        Err(EngineError::Refused { status: 404, .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

/// The name goes with its tag in one field, which is how Podman and Docker both read it.
async fn import(engine: &Arc<Engine>, tree: &Path, image: &str) -> Result<(), EngineError> {
    let (parts, received) = mpsc::channel::<io::Result<Vec<u8>>>(PARTS_WAITING_MAX);
    let tree = tree.to_owned();
    let packing = tokio::task::spawn_blocking(move || {
        let archive = Parts { to: parts.clone(), waiting: Vec::with_capacity(PART_BYTES) };
        if let Err(error) = pack(&tree, archive) {
            // The engine hung up, or learns now that the archive is broken.
            parts.blocking_send(Err(error)).ok();
        }
    });
    let options = CreateImageOptionsBuilder::new().from_src("-").repo(image).build();
    let taken = engine
        .call("take an image", IMPORT_TIME, move |client| async move {
            let body = stream::unfold(received, |mut received| async move {
                let part = received.recv().await?;
                Some((part.map(Into::into), received))
            });
            let answers = client.create_image(Some(options), Some(bollard::body_try_stream(body)), None);
            answers.map(|answer| answer.map(drop)).try_collect::<()>().await
        })
        .await;
    packing.await.ok();
    taken
}

/// The archive on its way, in parts.
struct Parts {
    to: mpsc::Sender<io::Result<Vec<u8>>>,
    waiting: Vec<u8>,
}

impl Write for Parts {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.waiting.extend_from_slice(bytes);
        if self.waiting.len() >= PART_BYTES {
            self.flush()?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        let part = std::mem::replace(&mut self.waiting, Vec::with_capacity(PART_BYTES));
        self.to.blocking_send(Ok(part)).map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}

/// Files, directories and links; a store without privilege holds everything as its own user, which is root inside.
fn pack(tree: &Path, archive: impl Write) -> io::Result<()> {
    let mut builder = tar::Builder::new(archive);
    let mut left = vec![tree.to_owned()];
    while let Some(directory) = left.pop() {
        for entry in std::fs::read_dir(&directory)? {
            let path = entry?.path();
            let metadata = std::fs::symlink_metadata(&path)?;
            let name = path.strip_prefix(tree).map_err(io::Error::other)?;
            let mut header = header(&metadata);
            if metadata.is_dir() {
                builder.append_data(&mut header, name, io::empty())?;
                left.push(path);
            } else if metadata.is_symlink() {
                builder.append_link(&mut header, name, std::fs::read_link(&path)?)?;
            } else if metadata.is_file() {
                builder.append_data(&mut header, name, std::fs::File::open(&path)?)?;
            }
        }
    }
    builder.into_inner()?.flush()
}

fn header(metadata: &Metadata) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_metadata(metadata);
    if !metadata.is_file() {
        header.set_size(0);
    }
    let own = rustix::process::geteuid().as_raw();
    if own != 0 && metadata.uid() == own {
        header.set_uid(0);
        header.set_gid(0);
    }
    header
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_can_not_lead_to_another_call() {
        for name in ["python", "python:3.12-slim", "localhost:5000/a/b@sha256:00", "sha256:00"] {
            assert!(is_name(name), "{name}");
        }
        for name in ["", "../containers", "a/../b", "a?b", "a b", "/a", "a//b", "a%2f", "ü", &"a".repeat(256)] {
            assert!(!is_name(name), "{name}");
        }
    }

    #[test]
    fn a_tree_is_packed_whole_with_its_links_and_modes() {
        let dir = tempfile::tempdir().expect("a directory");
        std::fs::create_dir_all(dir.path().join("a/b")).expect("directories");
        std::fs::write(dir.path().join("a/b/text"), "content").expect("a file");
        std::os::unix::fs::symlink("b/text", dir.path().join("a/link")).expect("a link");
        let mut archive = Vec::new();
        pack(dir.path(), &mut archive).expect("packed");
        let target = tempfile::tempdir().expect("a directory");
        tar::Archive::new(archive.as_slice()).unpack(target.path()).expect("it can be read");
        assert_eq!(std::fs::read_to_string(target.path().join("a/link")).expect("through the link"), "content");
    }

    #[test]
    fn another_tree_has_another_name() {
        assert_eq!(tag(Path::new("/x/layers/00")), tag(Path::new("/y/layers/00")));
        assert_ne!(tag(Path::new("/x/layers/00")), tag(Path::new("/x/layers/01")));
        assert_ne!(tag(Path::new("/x/layers/00")), tag(Path::new("/x/host/00")));
    }
}
