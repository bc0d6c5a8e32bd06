//! Init as a container gets it: a copy of this binary, with the loader and the libraries it was itself started with.
//!
//! So it runs on any image, whatever C library that has or lacks; what it starts uses the image's own. Invariants: the copies
//! belong to one binary, and lie in the state directory, where the engine finds them; nobody in a container can write to them.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use super::container::{CONTROL, INIT, SESSION};

/// The binary's name there.
const BINARY: &str = "codebeaker";

/// Below `state_dir/docker`.
const PREFIX: &str = "init-";

/// What a container needs to start init.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InitFiles {
    /// The directory on the host, laid at [`INIT`].
    pub directory: PathBuf,
    /// Program and arguments.
    pub command: Vec<String>,
}

/// One at a time: the first session makes the copies.
static MAKING: Mutex<()> = Mutex::new(());

impl InitFiles {
    /// The copies of this binary, made when there are none.
    pub fn of_this_binary(state_dir: &Path) -> io::Result<Self> {
        let _one = MAKING.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let binary = fs::metadata("/proc/self/exe")?;
        let name = format!("{PREFIX}{}-{}-{}-{}", binary.dev(), binary.ino(), binary.size(), binary.mtime_nsec());
        let parent = state_dir.join("docker");
        let directory = parent.join(&name);
        let libraries = libraries(&fs::read_to_string("/proc/self/maps")?);
        if !directory.is_dir() {
            DirBuilder::new().recursive(true).mode(0o711).create(&parent)?;
            remove_others(&parent, &name);
            make(&parent, &directory, &libraries)?;
        }
        Ok(Self { directory, command: command(&libraries) })
    }
}

/// Copies of other binaries; a container that runs one of them keeps it by its mount.
fn remove_others(parent: &Path, name: &str) {
    for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
        let other = entry.file_name();
        if other != name && other.to_string_lossy().starts_with(PREFIX) {
            // What stays is a matter of space alone.
            fs::remove_dir_all(entry.path()).ok();
        }
    }
}

fn make(parent: &Path, directory: &Path, libraries: &[PathBuf]) -> io::Result<()> {
    let staging = parent.join(format!("new-{}", std::process::id()));
    fs::remove_dir_all(&staging).or_else(|error| if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) })?;
    DirBuilder::new().mode(0o755).create(&staging)?;
    let executable = |target: &Path| fs::set_permissions(target, fs::Permissions::from_mode(0o555));
    let target = staging.join(BINARY);
    fs::copy("/proc/self/exe", &target)?;
    executable(&target)?;
    for library in libraries {
        let target = staging.join(library.file_name().unwrap_or_default());
        fs::copy(library, &target)?;
        executable(&target)?;
    }
    // The umask may have taken what init's user needs.
    fs::set_permissions(&staging, fs::Permissions::from_mode(0o755))?;
    match fs::rename(&staging, directory) {
        // Another process of this binary was faster.
        Err(_) if directory.is_dir() => fs::remove_dir_all(&staging),
        renamed => renamed,
    }
}

/// The loader and the libraries among the files that a process has mapped: `/proc/PID/maps`.
fn libraries(maps: &str) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = maps
        .lines()
        .filter_map(|line| line.split_once('/').map(|(_, path)| PathBuf::from(format!("/{path}"))))
        .filter(|path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            name.ends_with(".so") || name.contains(".so.")
        })
        .collect();
    found.sort();
    found.dedup();
    found
}

fn is_loader(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    name.starts_with("ld-") || name.starts_with("ld.so")
}

/// Without libraries the binary is static and starts by itself.
fn command(libraries: &[PathBuf]) -> Vec<String> {
    let inside = |name: &str| format!("{INIT}/{name}");
    let loader = libraries.iter().find(|path| is_loader(path)).and_then(|path| path.file_name());
    let begin = match loader {
        Some(loader) => vec![inside(&loader.to_string_lossy()), "--library-path".into(), INIT.into()],
        None => Vec::new(),
    };
    begin.into_iter().chain([inside(BINARY), "contained".into(), format!("{SESSION}/{CONTROL}")]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAPS: &str = "\
55d0 r-xp 00000000 08:01 1 /usr/bin/codebeaker
7f00 r-xp 00000000 08:01 2 /usr/lib/x86_64-linux-gnu/libc.so.6
7f01 r--p 00001000 08:01 2 /usr/lib/x86_64-linux-gnu/libc.so.6
7f02 r-xp 00000000 08:01 3 /usr/lib64/ld-linux-x86-64.so.2
7ffc rw-p 00000000 00:00 0 [stack]
";

    #[test]
    fn a_dynamic_binary_starts_by_the_loader_it_was_started_with_and_a_static_one_by_itself() {
        let found = libraries(MAPS);
        assert_eq!(found, ["/usr/lib/x86_64-linux-gnu/libc.so.6", "/usr/lib64/ld-linux-x86-64.so.2"].map(PathBuf::from));
        let begin = ["/.codebeaker/init/ld-linux-x86-64.so.2", "--library-path", "/.codebeaker/init"];
        let end = ["/.codebeaker/init/codebeaker", "contained", "/.codebeaker/session/control"];
        assert_eq!(command(&found), [begin, end].concat());
        assert_eq!(command(&libraries("55d0 r-xp 00000000 08:01 1 /usr/bin/codebeaker\n")), end);
    }

    #[test]
    fn copies_are_made_once_and_those_of_another_binary_go() {
        let dir = tempfile::tempdir().expect("a directory");
        let old = dir.path().join("docker/init-of-another");
        fs::create_dir_all(&old).expect("a directory");
        let first = InitFiles::of_this_binary(dir.path()).expect("copies");
        let made = fs::metadata(first.directory.join(BINARY)).expect("the binary");
        assert_eq!(made.permissions().mode() & 0o777, 0o555);
        assert!(!old.exists());
        let second = InitFiles::of_this_binary(dir.path()).expect("the same");
        assert_eq!(second, first);
        assert_eq!(fs::metadata(second.directory.join(BINARY)).expect("the binary").ino(), made.ino());
    }
}
