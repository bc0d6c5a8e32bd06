//! An image as a session takes it, and what can be found in it without entering it.
//!
//! Invariant: looking a program up never leaves the image: links are resolved by their text against the image's own root.

use std::collections::{BTreeMap, VecDeque};
use std::ffi::OsString;
use std::fs::File;
use std::os::unix::fs::PermissionsExt;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

/// Where programs are searched when the image says nothing.
pub const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// As many links as the kernel follows.
const LINKS_MAX: usize = 40;

/// A read-only tree or file laid over an image.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Bind {
    /// Directory or file of the host.
    pub source: PathBuf,
    /// Absolute path inside the image; there one is the same, and no link.
    pub target: String,
}

/// An image that can't be removed while this value, or a clone of it, lives.
#[derive(Debug, Clone)]
pub struct ImageRoot {
    /// Name it was asked for by.
    pub name: String,
    /// The directory that becomes the overlay's lower layer.
    pub lower: PathBuf,
    /// Read-only trees laid over it, in this order.
    pub binds: Vec<Bind>,
    /// Environment that the image brings; `PATH` is always there.
    pub env: BTreeMap<String, String>,
    /// The shared lock.
    pub guard: Arc<ImageGuard>,
}

impl ImageRoot {
    /// Whether the image holds nothing at `/workspace`: no such name, or an empty directory.
    pub fn has_empty_workspace(&self) -> std::io::Result<bool> {
        let place = self.lower.join("workspace");
        match place.symlink_metadata() {
            Ok(metadata) if metadata.is_dir() => Ok(std::fs::read_dir(place)?.next().transpose()?.is_none()),
            Ok(_) => Ok(false),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(true),
            Err(error) => Err(error),
        }
    }
}

/// Keeps an image in the store: a shared lock (flock) on its lock file.
#[derive(Debug)]
pub struct ImageGuard(#[expect(dead_code, reason = "held for its lock")] pub(super) File);

/// True when the program (a name, searched in the image's `PATH`, or an absolute path) is an executable file of the image.
pub fn program_exists(root: &ImageRoot, program: &str) -> bool {
    if program.is_empty() || program.contains('\0') {
        return false;
    }
    if program.contains('/') {
        return program.starts_with('/') && is_executable(root, Path::new(program));
    }
    let path = root.env.get("PATH").map_or(DEFAULT_PATH, String::as_str);
    path.split(':').filter(|dir| dir.starts_with('/')).any(|dir| is_executable(root, &Path::new(dir).join(program)))
}

fn is_executable(root: &ImageRoot, path: &Path) -> bool {
    resolve(root, path)
        .and_then(|host| std::fs::symlink_metadata(host).ok())
        .is_some_and(|metadata| metadata.is_file() && metadata.permissions().mode() & 0o111 != 0)
}

/// The host's path of what `path` names inside the image, all links resolved; `None` when there is no such thing.
fn resolve(root: &ImageRoot, path: &Path) -> Option<PathBuf> {
    let mut left: VecDeque<OsString> = components(path);
    let mut inside = PathBuf::from("/");
    let mut links = 0;
    while let Some(component) = left.pop_front() {
        if component == ".." {
            inside.pop();
            continue;
        }
        let next = inside.join(&component);
        let host = host_path(root, &next);
        let metadata = std::fs::symlink_metadata(&host).ok()?;
        if !metadata.is_symlink() {
            inside = next;
            continue;
        }
        links += 1;
        if links > LINKS_MAX {
            return None;
        }
        let target = std::fs::read_link(&host).ok()?;
        if target.is_absolute() {
            inside = PathBuf::from("/");
        }
        let mut ahead = components(&target);
        ahead.append(&mut left);
        left = ahead;
    }
    Some(host_path(root, &inside))
}

fn components(path: &Path) -> VecDeque<OsString> {
    let part = |component: Component<'_>| match component {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some(OsString::from("..")),
        Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
    };
    path.components().filter_map(part).collect()
}

/// Where a path of the image stands on the host; the last bind that covers it wins.
fn host_path(root: &ImageRoot, inside: &Path) -> PathBuf {
    for bind in root.binds.iter().rev() {
        if let Ok(rest) = inside.strip_prefix(&bind.target) {
            // A bind may be of one file, which has nothing below it.
            return if rest.as_os_str().is_empty() { bind.source.clone() } else { bind.source.join(rest) };
        }
    }
    root.lower.join(inside.strip_prefix("/").unwrap_or(inside))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn image(dir: &Path) -> ImageRoot {
        let lower = dir.join("lower");
        std::fs::create_dir_all(lower.join("usr/bin")).expect("directories");
        ImageRoot {
            name: "test".into(),
            lower,
            binds: Vec::new(),
            env: BTreeMap::from([("PATH".into(), "/usr/bin:/bin".into())]),
            guard: Arc::new(ImageGuard(File::open(dir).expect("the directory"))),
        }
    }

    fn program(path: &Path, mode: u32) {
        std::fs::write(path, "").expect("a file");
        std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).expect("permissions");
    }

    #[test]
    fn programs_are_found_through_links_that_stay_inside() {
        let dir = tempfile::tempdir().expect("a directory");
        let image = image(dir.path());
        program(&image.lower.join("usr/bin/real"), 0o755);
        program(&image.lower.join("usr/bin/text"), 0o644);
        symlink("usr/bin", image.lower.join("bin")).expect("a link");
        symlink("/bin/real", image.lower.join("usr/bin/absolute")).expect("a link");
        symlink("../../../../usr/bin/real", image.lower.join("usr/bin/clamped")).expect("a link");
        for name in ["real", "absolute", "clamped", "/bin/real"] {
            assert!(program_exists(&image, name), "{name}");
        }
        for name in ["text", "absent", "", "bin/real", "real\0"] {
            assert!(!program_exists(&image, name), "{name:?}");
        }
    }

    #[test]
    fn a_workspace_is_empty_where_there_is_none_or_nothing_in_it() {
        let dir = tempfile::tempdir().expect("a directory");
        let image = image(dir.path());
        let workspace = image.lower.join("workspace");
        let is_empty = || image.has_empty_workspace().expect("an own directory");
        assert!(is_empty(), "none");
        std::fs::create_dir(&workspace).expect("a directory");
        assert!(is_empty());
        std::fs::write(workspace.join(".keep"), "").expect("a file");
        assert!(!is_empty(), "a file");
        std::fs::remove_dir_all(&workspace).expect("removed");
        symlink("usr", &workspace).expect("a link");
        assert!(!is_empty(), "a link");
        std::fs::remove_dir_all(&image.lower).expect("removed");
        std::fs::write(&image.lower, "").expect("a file");
        assert!(image.has_empty_workspace().is_err(), "in doubt it is said");
    }

    #[test]
    fn a_link_never_leads_to_the_host() {
        let dir = tempfile::tempdir().expect("a directory");
        let image = image(dir.path());
        let outside = dir.path().join("outside");
        program(&outside, 0o755);
        symlink(&outside, image.lower.join("usr/bin/escape")).expect("a link");
        symlink("../../../outside", image.lower.join("usr/bin/relative")).expect("a link");
        symlink("loop", image.lower.join("usr/bin/loop")).expect("a link");
        for name in ["escape", "relative", "loop"] {
            assert!(!program_exists(&image, name), "{name}");
        }
        program(&image.lower.join("outside"), 0o755);
        assert!(program_exists(&image, "relative"), "the control: the same link finds a file of the image");
    }

    #[test]
    fn a_bind_covers_what_is_below_it() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut image = image(dir.path());
        let usr = dir.path().join("host-usr");
        std::fs::create_dir_all(usr.join("bin")).expect("directories");
        program(&usr.join("bin/bound"), 0o755);
        assert!(!program_exists(&image, "bound"));
        image.binds.push(Bind { source: usr, target: "/usr".into() });
        assert!(program_exists(&image, "bound"));
    }
}
