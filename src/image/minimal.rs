//! The root of an engine that needs no image: its program, the libraries that it names, the parts that its build left out, and an
//! `/etc` of a few lines.
//!
//! Invariants: what an engine needs is read from its files (`parts`, and ELF headers), never found out by running it; nothing of the
//! host but those files is in the root, each a read-only mount of its own. A root is never changed: another set of files is another skeleton.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::FlockOperation;
use sha2::{Digest, Sha256};

use super::host::{give_to_user, make_directory, write_accounts};
use super::parts;
use super::root::ImageGuard;
use super::staging::Staging;
use super::store::{Store, digest_text};
use super::{Bind, DEFAULT_PATH, ImageError, ImageRoot};

/// Changes whenever this page builds something else.
const GENERATION: &str = "minimal-root-1";

/// What a session says it stands on.
pub const NAME: &str = "minimal";

/// Where the program stands.
const PROGRAM_DIRECTORY: &str = "/usr/local/bin";

/// Where every loader looks for libraries that came from a place of their own.
const LIBRARY_DIRECTORY: &str = "/usr/lib";

/// More libraries than any engine has.
const LIBRARIES_MAX: usize = 64;

/// Directories every root has, with their modes.
const DIRECTORIES: [(&str, u32); 12] = [
    ("usr", 0o755),
    ("usr/lib", 0o755),
    ("usr/local", 0o755),
    ("usr/local/bin", 0o755),
    ("etc", 0o755),
    ("proc", 0o755),
    ("dev", 0o755),
    ("sys", 0o755),
    ("tmp", 0o1777),
    ("home", 0o755),
    ("home/user", 0o755),
    ("var", 0o755),
];

/// A program of the host that can be put on a root of its own.
#[derive(Debug, Clone)]
pub struct MinimalRoot {
    files: BTreeMap<String, PathBuf>,
    /// Files of a few lines that are in the root itself.
    texts: BTreeMap<String, &'static str>,
    program: PathBuf,
    stamp: [u64; 5],
}

impl MinimalRoot {
    /// Of the program at `path`, under the name `name`; the error is a sentence without host paths.
    pub fn of(path: &Path, name: &str) -> Result<Self, String> {
        let program = path.canonicalize().map_err(|error| format!("it can't be read: {}", error.kind()))?;
        let stamp = stamp(&program).ok_or("it is no file that can be executed")?;
        let tree = lddtree::DependencyAnalyzer::default().analyze(&program).map_err(|_| "it is no ELF program".to_owned())?;
        let mut files = BTreeMap::from([(format!("{PROGRAM_DIRECTORY}/{name}"), program.clone())]);
        if let Some(loader) = &tree.interpreter {
            let source = Path::new(loader).canonicalize().map_err(|_| format!("its loader {loader} is not there"))?;
            files.insert(resolved_directory(loader)?, source);
        }
        if tree.libraries.len() > LIBRARIES_MAX {
            return Err(format!("it names more than {LIBRARIES_MAX} libraries"));
        }
        for library in tree.libraries.values() {
            let source = library.realpath.as_ref().and_then(|path| path.canonicalize().ok());
            let source = source.ok_or_else(|| format!("the library {} that it names is not there", library.name))?;
            files.insert(place_of(&library.path, &library.name)?, source);
        }
        Ok(Self { files, texts: BTreeMap::new(), program, stamp })
    }

    /// With these files of our own in it: path and contents.
    #[must_use]
    pub fn with_texts(mut self, texts: &'static [(&'static str, &'static str)]) -> Self {
        self.texts.extend(texts.iter().map(|(path, text)| ((*path).to_owned(), *text)));
        self
    }

    /// With one more file of the host, at this path.
    #[must_use]
    pub fn and_file(mut self, target: &str, source: &Path) -> Self {
        self.files.insert(target.into(), source.to_owned());
        self
    }

    /// With one more file of this text.
    #[must_use]
    pub fn and_text(mut self, target: &str, text: &'static str) -> Self {
        self.texts.insert(target.into(), text);
        self
    }

    /// With the files that the build has left out of the program, by options whose names begin with `mark`. One that is not there,
    /// or that not everybody may read, stays out: the engine says then that it is missing.
    #[must_use]
    pub fn with_parts(mut self, mark: &str) -> Self {
        let named = |file: &PathBuf| File::open(file).and_then(|file| parts::named_in(file, mark)).unwrap_or_default();
        let places: BTreeSet<String> = self.files.values().flat_map(named).take(parts::PARTS_MAX).collect();
        for place in places {
            let source = Path::new(&place).canonicalize().ok().filter(|source| {
                std::fs::metadata(source).is_ok_and(|metadata| metadata.is_file() && metadata.mode() & 0o004 != 0)
            });
            if let (Ok(target), Some(source)) = (resolved_directory(&place), source) {
                self.files.entry(target).or_insert(source);
            }
        }
        self
    }

    /// False when the program is another one by now.
    pub fn is_current(&self) -> bool {
        stamp(&self.program) == Some(self.stamp)
    }

    /// A text that is another one for another program.
    pub fn identity(&self) -> String {
        let numbers = self.stamp.map(|number| number.to_string());
        format!("{}:{}", self.program.display(), numbers.join("."))
    }

    /// The root as a session takes it, its skeleton made when there is none.
    pub fn resolve(&self, store: &Store) -> Result<ImageRoot, ImageError> {
        let dir = store.host_dir().join(format!("minimal-{}", self.fingerprint()));
        let lock = store.lock(FlockOperation::LockShared)?;
        if !dir.is_dir() {
            let staging = Staging::new(&store.tmp())?;
            self.build(&staging.path().join("root"))?;
            staging.publish("root", &dir)?;
        }
        let guard = File::open(&dir).map_err(ImageError::io("opening", &dir))?;
        rustix::fs::flock(&guard, FlockOperation::NonBlockingLockShared).map_err(ImageError::errno("locking", &dir))?;
        drop(lock);
        let binds = self.files.iter().map(|(target, source)| Bind { source: source.clone(), target: target.clone() });
        Ok(ImageRoot {
            name: NAME.into(),
            lower: dir,
            binds: binds.collect(),
            env: BTreeMap::from([("PATH".into(), DEFAULT_PATH.into())]),
            guard: Arc::new(ImageGuard(guard)),
        })
    }

    fn fingerprint(&self) -> String {
        let mut hash = Sha256::new();
        hash.update(GENERATION);
        for target in self.files.keys() {
            hash.update(target);
            hash.update([0]);
        }
        for (target, text) in &self.texts {
            hash.update(target);
            hash.update([1]);
            hash.update(text);
            hash.update([0]);
        }
        digest_text(hash.finalize().into()).trim_start_matches("sha256:").to_owned()
    }

    fn build(&self, root: &Path) -> Result<(), ImageError> {
        make_directory(root, 0o755)?;
        let mut made = BTreeSet::new();
        for (name, mode) in DIRECTORIES {
            make_directory(&root.join(name), mode)?;
            made.insert(PathBuf::from(name));
        }
        // A file of the host needs nothing but a place to mount on.
        let places = self.files.keys().map(|target| (target, ""));
        for (target, text) in places.chain(self.texts.iter().map(|(target, text)| (target, *text))) {
            let target = Path::new(target.trim_start_matches('/'));
            let mut parents: Vec<&Path> = target.ancestors().skip(1).filter(|path| !path.as_os_str().is_empty()).collect();
            parents.reverse();
            for parent in parents {
                if made.insert(parent.to_owned()) {
                    make_directory(&root.join(parent), 0o755)?;
                }
            }
            std::fs::write(root.join(target), text).map_err(ImageError::io("making", root.join(target)))?;
        }
        give_to_user(root, &["home/user"])?;
        write_accounts(&root.join("etc"))
    }
}

/// What changes when a file is replaced: device, inode, size, seconds and nanoseconds. None for what is no program.
fn stamp(path: &Path) -> Option<[u64; 5]> {
    let metadata = std::fs::metadata(path).ok().filter(|metadata| metadata.is_file() && metadata.mode() & 0o111 != 0)?;
    Some([
        metadata.dev(),
        metadata.ino(),
        metadata.size(),
        metadata.mtime().cast_unsigned(),
        metadata.mtime_nsec().cast_unsigned(),
    ])
}

/// Where a library stands in the root: where it stands on the host if the loader looks there by itself.
fn place_of(path: &Path, name: &str) -> Result<String, String> {
    let path = if path.is_absolute() { path.to_owned() } else { Path::new("/").join(path) };
    let system = ["/lib", "/lib64", "/lib32", "/usr/lib", "/usr/lib64"];
    let directory = path.parent().unwrap_or(Path::new("/"));
    let by_itself = system.iter().any(|system| directory.starts_with(system)) && directory.components().count() <= 4;
    let file = if by_itself { path } else { Path::new(LIBRARY_DIRECTORY).join(name) };
    resolved_directory(file.to_str().ok_or("a library's name is no UTF-8")?)
}

/// The same path; a root has `/lib` and its like as directories, whatever the host has.
fn resolved_directory(path: &str) -> Result<String, String> {
    let sound = path.starts_with('/')
        && Path::new(path).components().skip(1).all(|part| matches!(part, std::path::Component::Normal(_)));
    if sound && !path.as_bytes().contains(&0) && Path::new(path).as_os_str().as_bytes().len() < 4096 {
        Ok(path.to_owned())
    } else {
        Err(format!("it names {path:?}, which is no place in a root"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::program_exists;

    /// A program of every host that tests run on.
    const PROGRAM: &str = "/bin/sh";

    #[test]
    fn a_root_holds_the_program_its_libraries_and_little_else() {
        let dir = tempfile::tempdir().expect("a directory");
        let store = Store::open(dir.path()).expect("a store");
        let minimal = MinimalRoot::of(Path::new(PROGRAM), "sh").expect("an ELF program");
        let root = minimal.resolve(&store).expect("a root");
        assert!(program_exists(&root, "sh") && program_exists(&root, "/usr/local/bin/sh"));
        assert!(!program_exists(&root, "ls") && !program_exists(&root, "/bin/sh"));
        let libc = root.binds.iter().find(|bind| bind.target.contains("libc.")).expect("it names a libc");
        assert!(libc.source.is_file() && root.lower.join(libc.target.trim_start_matches('/')).is_file());
        assert!(root.lower.join("etc/passwd").is_file() && !root.lower.join("usr/share").exists());
        assert_eq!(minimal.resolve(&store).expect("again").lower, root.lower);
    }

    #[test]
    fn what_is_no_program_is_refused_with_a_sentence() {
        let dir = tempfile::tempdir().expect("a directory");
        let script = dir.path().join("script");
        std::fs::write(&script, "#!/bin/sh\n").expect("a file");
        for path in [&script, &dir.path().join("absent"), &dir.path().to_owned()] {
            let reason = MinimalRoot::of(path, "x").expect_err("no program");
            assert!(!reason.contains(&dir.path().display().to_string()), "{reason}");
        }
        std::fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("permissions");
        assert_eq!(MinimalRoot::of(&script, "x").expect_err("a script"), "it is no ELF program");
    }

    #[test]
    fn another_program_under_the_same_path_is_noticed() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("program");
        std::fs::copy(PROGRAM, &path).expect("a copy");
        let minimal = MinimalRoot::of(&path, "x").expect("an ELF program");
        assert!(minimal.is_current());
        std::fs::remove_file(&path).expect("removed");
        assert!(!minimal.is_current());
        std::fs::copy(PROGRAM, &path).expect("a copy");
        assert!(!minimal.is_current() && minimal.identity() != MinimalRoot::of(&path, "x").expect("it is there").identity());
    }

    #[test]
    fn what_a_build_left_out_of_its_program_is_in_the_root() {
        let dir = tempfile::tempdir().expect("a directory");
        let store = Store::open(&dir.path().join("state")).expect("a store");
        let part = |name: &str, mode: u32| {
            let path = dir.path().join(name);
            std::fs::write(&path, "a part").expect("a file");
            std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(mode)).expect("permissions");
            path.display().to_string()
        };
        let (named, secret, other) = (part("named.js", 0o644), part("secret.js", 0o600), part("other.js", 0o644));
        let program = dir.path().join("engine");
        let options = format!(r#"["BUILTIN_A_PATH={named}", "BUILTIN_B_PATH={secret}", "BUILTIN_C_PATH=/absent.js"]"#);
        let mut text = std::fs::read(PROGRAM).expect("a program");
        text.extend(options.as_bytes());
        std::fs::write(&program, text).expect("a program");
        std::fs::set_permissions(&program, std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("permissions");
        let without = MinimalRoot::of(&program, "engine").expect("an ELF program");
        let with = without.clone().with_parts("BUILTIN_");
        let targets = |root: &MinimalRoot| root.files.keys().cloned().collect::<BTreeSet<String>>();
        assert_eq!(targets(&with).difference(&targets(&without)).collect::<Vec<_>>(), [&named]);
        let root = with.resolve(&store).expect("a root");
        assert!(root.binds.iter().any(|bind| bind.target == named && bind.source == Path::new(&named)));
        assert!(root.lower.join(named.trim_start_matches('/')).is_file() && !root.lower.join(&other[1..]).exists());
        assert_ne!(without.resolve(&store).expect("a root").lower, root.lower, "another set of files is another skeleton");
    }

    #[test]
    fn libraries_of_unusual_places_go_where_every_loader_looks() {
        let place = |path: &str| place_of(Path::new(path), "libx.so.1").expect("a place");
        assert_eq!(place("/lib/x86_64-linux-gnu/libx.so.1"), "/lib/x86_64-linux-gnu/libx.so.1");
        assert_eq!(place("/opt/engine/lib/libx.so.1"), "/usr/lib/libx.so.1");
        assert_eq!(place("/usr/lib/x/y/z/libx.so.1"), "/usr/lib/libx.so.1");
        assert!(resolved_directory("/lib/../etc/passwd").is_err());
    }
}
