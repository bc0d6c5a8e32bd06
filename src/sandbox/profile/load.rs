//! Reads the profiles once, at the start of the server: the three built-in ones, then the operator's directory.
//!
//! Invariant: all or nothing – one bad file is an error that names file and field, and the server does not start with fewer walls
//! than its operator wrote down. An operator can't redefine a built-in name, whose meaning is documented.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use sha2::{Digest, Sha256};
use thiserror::Error;

use super::file::{FieldError, ProfileFile};
use super::{Notifying, Profile};
use crate::plan::ListenerAnswer;
use crate::seccomp::compile::{CompileError, compile};
use crate::seccomp::floor::{self, Breach};
use crate::seccomp::model::SeccompProfile;
use crate::seccomp::notify;
use crate::seccomp::resolve::{ResolveError, Resolved, Target, resolve};
use crate::seccomp::{Arch, KernelVersion};

/// Name, profile file, seccomp file.
const BUILT_IN: [(&str, &str, &str); 3] = [
    ("strict", include_str!("../../../profiles/strict.toml"), include_str!("../../../profiles/seccomp/strict.json")),
    ("default", include_str!("../../../profiles/default.toml"), include_str!("../../../profiles/seccomp/default.json")),
    (
        "permissive",
        include_str!("../../../profiles/permissive.toml"),
        include_str!("../../../profiles/seccomp/permissive.json"),
    ),
];

const PROFILES_MAX: usize = 64;
const FILE_BYTES_MAX: u64 = 1 << 20;
const NAME_CHARS_MAX: usize = 64;
const KERNEL_RELEASE: &str = "/proc/sys/kernel/osrelease";

/// Why the profiles can't be used.
#[derive(Debug, Error)]
pub enum ProfileError {
    /// The directory or a file in it can't be read.
    #[error("reading {path} failed")]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file is not UTF-8 or has more than a mebibyte.
    #[error("{path} is not a text of at most {FILE_BYTES_MAX} bytes")]
    Size {
        /// Which.
        path: PathBuf,
    },
    /// More files than `PROFILES_MAX`.
    #[error("{path} holds more than {PROFILES_MAX} profiles")]
    TooMany {
        /// The directory.
        path: PathBuf,
    },
    /// A name with other characters than `a-z`, `0-9`, `-`, `_`, or too long.
    #[error("profile `{name}`: a name has from 1 to {NAME_CHARS_MAX} of the characters a-z, 0-9, - and _")]
    Name {
        /// The file's name.
        name: String,
    },
    /// A file named as a built-in profile.
    #[error("profile `{name}`: this name is built in; choose another")]
    BuiltIn {
        /// The name.
        name: String,
    },
    /// Not TOML, or unknown, missing or mistyped fields.
    #[error("profile `{name}` can't be parsed")]
    Toml {
        /// The profile.
        name: String,
        /// Line, column and field.
        source: Box<toml::de::Error>,
    },
    /// A field's value can't be.
    #[error("profile `{name}` is wrong")]
    Field {
        /// The profile.
        name: String,
        /// Field and problem.
        source: FieldError,
    },
    /// `seccomp` names neither a built-in profile nor a file beside it.
    #[error("profile `{name}`: seccomp: neither a built-in name nor a plain file name that ends in .json")]
    SeccompName {
        /// The profile.
        name: String,
    },
    /// Not JSON, or unknown, missing or mistyped fields.
    #[error("the seccomp file of profile `{name}` can't be parsed")]
    Json {
        /// The profile.
        name: String,
        /// Line, column and field.
        source: serde_json::Error,
    },
    /// A rule can't be understood.
    #[error("the seccomp file of profile `{name}` is wrong")]
    Resolve {
        /// The profile.
        name: String,
        /// Field and problem.
        source: ResolveError,
    },
    /// A rule opens what must stay shut.
    #[error("the seccomp file of profile `{name}` allows too much")]
    Floor {
        /// The profile.
        name: String,
        /// Call and reason.
        source: Breach,
    },
    /// The rules do not fit into a filter.
    #[error("the seccomp file of profile `{name}` can't be compiled")]
    Compile {
        /// The profile.
        name: String,
        /// Why.
        source: CompileError,
    },
    /// The running kernel does not tell its version.
    #[error("{KERNEL_RELEASE} holds no kernel version: `{text}`")]
    Kernel {
        /// What it holds.
        text: String,
    },
    /// Neither AMD64 nor ARM64.
    #[error("sandboxes can be built on x86_64 and aarch64 only")]
    Architecture,
}

/// All profiles, by name.
#[derive(Debug, Clone)]
pub struct Profiles(BTreeMap<String, Arc<Profile>>);

impl Profiles {
    /// The built-in profiles and every `NAME.toml` of the operator's directory, for this host.
    pub fn load(dir: Option<&Path>) -> Result<Self, ProfileError> {
        let arch = Arch::native().ok_or(ProfileError::Architecture)?;
        let release = read_text(Path::new(KERNEL_RELEASE))?;
        let kernel = release.parse().map_err(|_| ProfileError::Kernel { text: release.trim().to_owned() })?;
        Self::load_for(dir, Host { arch, kernel })
    }

    /// The same for a host that is told.
    pub(super) fn load_for(dir: Option<&Path>, host: Host) -> Result<Self, ProfileError> {
        let mut profiles = BTreeMap::new();
        for (name, text, seccomp) in BUILT_IN {
            profiles.insert(name.to_owned(), Arc::new(build(parse(name, text)?, text, seccomp, host)?));
        }
        for (name, path) in dir.map(operator_files).transpose()?.unwrap_or_default() {
            profiles.insert(name.clone(), Arc::new(load_operator_file(&name, &path, host)?));
        }
        Ok(Self(profiles))
    }

    /// The profile of that name.
    pub fn get(&self, name: &str) -> Option<Arc<Profile>> {
        self.0.get(name).cloned()
    }

    /// Names of the profiles that audit only.
    pub fn auditing(&self) -> impl Iterator<Item = &str> {
        let audits = |profile: &Profile| profile.notifying.as_ref().is_some_and(Notifying::lets_go);
        self.0.iter().filter(move |(_, profile)| audits(profile)).map(|(name, _)| name.as_str())
    }

    /// All names, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }
}

/// A profile's seccomp file before anything is made of it; what `codebeaker seccomp` looks at.
#[derive(Debug, Clone)]
pub struct SeccompSource {
    /// OCI JSON.
    pub text: String,
    /// Capabilities that programs hold under the profile, for `includes` and `excludes`.
    pub capabilities: Vec<String>,
}

/// The seccomp file of a built-in profile or of one in the operator's directory; nothing when there is no such profile.
pub fn seccomp_source(dir: Option<&Path>, name: &str) -> Result<Option<SeccompSource>, ProfileError> {
    if let Some((_, text, seccomp)) = BUILT_IN.iter().find(|(known, _, _)| *known == name) {
        return Ok(Some(SeccompSource { text: (*seccomp).to_owned(), capabilities: parse(name, text)?.capabilities }));
    }
    let files = dir.map(operator_files).transpose()?.unwrap_or_default();
    let Some(path) = files.get(name) else { return Ok(None) };
    let file = parse(name, &read_text(path)?)?;
    Ok(Some(SeccompSource { text: seccomp_text(name, &file, path)?, capabilities: file.capabilities }))
}

/// What filters are made for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Host {
    pub(super) arch: Arch,
    pub(super) kernel: KernelVersion,
}

/// Name and path of every `*.toml` in the directory, sorted, so that the first error is always the same.
fn operator_files(dir: &Path) -> Result<BTreeMap<String, PathBuf>, ProfileError> {
    let unreadable = |source| ProfileError::Read { path: dir.to_owned(), source };
    let mut files = BTreeMap::new();
    for entry in fs::read_dir(dir).map_err(unreadable)? {
        let path = entry.map_err(unreadable)?.path();
        if path.extension().is_none_or(|extension| extension != "toml") {
            continue;
        }
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        check_name(&name)?;
        files.insert(name, path);
        if files.len() > PROFILES_MAX {
            return Err(ProfileError::TooMany { path: dir.to_owned() });
        }
    }
    Ok(files)
}

fn check_name(name: &str) -> Result<(), ProfileError> {
    let plain = name.bytes().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-' || c == b'_');
    if name.is_empty() || name.len() > NAME_CHARS_MAX || !plain {
        return Err(ProfileError::Name { name: name.to_owned() });
    }
    if BUILT_IN.iter().any(|(known, _, _)| *known == name) {
        return Err(ProfileError::BuiltIn { name: name.to_owned() });
    }
    Ok(())
}

fn load_operator_file(name: &str, path: &Path, host: Host) -> Result<Profile, ProfileError> {
    let text = read_text(path)?;
    let file = parse(name, &text)?;
    let seccomp = seccomp_text(name, &file, path)?;
    build(file, &text, &seccomp, host)
}

fn seccomp_text(name: &str, file: &ProfileFile, path: &Path) -> Result<String, ProfileError> {
    match BUILT_IN.iter().find(|(known, _, _)| *known == file.seccomp) {
        Some((_, _, seccomp)) => Ok((*seccomp).to_owned()),
        None => read_text(&seccomp_path(name, &file.seccomp, path)?),
    }
}

/// A file beside the profile: no directory, nothing hidden.
fn seccomp_path(name: &str, seccomp: &str, profile: &Path) -> Result<PathBuf, ProfileError> {
    let plain = seccomp.bytes().all(|c| c.is_ascii_alphanumeric() || matches!(c, b'-' | b'_' | b'.'));
    if !plain || seccomp.starts_with('.') || Path::new(seccomp).extension().is_none_or(|extension| extension != "json") {
        return Err(ProfileError::SeccompName { name: name.to_owned() });
    }
    Ok(profile.with_file_name(seccomp))
}

fn read_text(path: &Path) -> Result<String, ProfileError> {
    let unreadable = |source| ProfileError::Read { path: path.to_owned(), source };
    let mut bytes = Vec::new();
    fs::File::open(path).map_err(unreadable)?.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(unreadable)?;
    let text = String::from_utf8(bytes).ok().filter(|text| text.len() as u64 <= FILE_BYTES_MAX);
    text.ok_or_else(|| ProfileError::Size { path: path.to_owned() })
}

fn parse(name: &str, text: &str) -> Result<ProfileFile, ProfileError> {
    let file: ProfileFile =
        toml::from_str(text).map_err(|source| ProfileError::Toml { name: name.to_owned(), source: Box::new(source) })?;
    file.check(name).map_err(|source| ProfileError::Field { name: name.to_owned(), source })?;
    Ok(file)
}

fn build(file: ProfileFile, text: &str, seccomp: &str, host: Host) -> Result<Profile, ProfileError> {
    let document = model(&file.name, seccomp)?;
    let resolved = resolve_for(&file, &document, host)?;
    let failed = |source| ProfileError::Compile { name: file.name.clone(), source };
    let filters = compile(&resolved).map_err(failed)?;
    let notifying = if file.audit_only {
        auditing_filters(&resolved, &file.name)?
    } else {
        notifying_filters(&resolved).map_err(failed)?
    };
    Ok(Profile {
        sha256: digest([text, seccomp]),
        seccomp_sha256: digest([seccomp]),
        bpf_sha256: digest(&filters),
        uid: file.uid,
        gid: file.gid,
        root_filesystem: file.root_filesystem.into(),
        network: file.network.into(),
        installs: file.installs.into(),
        document: Arc::new(document),
        seccomp: filters,
        notifying,
        defaults: file.defaults.into(),
        maximum: file.maximum.into(),
        name: file.name,
        version: file.version,
        capabilities: file.capabilities,
    })
}

fn notifying_filters(resolved: &Resolved) -> Result<Option<Notifying>, CompileError> {
    let Some(told) = notify::notifying(resolved) else { return Ok(None) };
    Ok(with_listener(compile(&told)?, ListenerAnswer::Refuse(i32::from(notify::ERRNO))))
}

/// The floor is looked at once more: what an audit lets go on counts as allowed.
fn auditing_filters(resolved: &Resolved, name: &str) -> Result<Option<Notifying>, ProfileError> {
    let audited = notify::auditing(resolved);
    floor::check(&audited).map_err(|source| ProfileError::Floor { name: name.to_owned(), source })?;
    let filters = compile(&audited).map_err(|source| ProfileError::Compile { name: name.to_owned(), source })?;
    Ok(with_listener(filters, ListenerAnswer::LetGo))
}

/// The first of the filters is the one that tells.
fn with_listener(filters: Vec<Vec<u8>>, answer: ListenerAnswer) -> Option<Notifying> {
    let bpf_sha256 = digest(&filters);
    let mut filters = filters.into_iter();
    filters.next().map(|filter| Notifying { filter, answer, others: filters.collect(), bpf_sha256 })
}

fn model(name: &str, seccomp: &str) -> Result<SeccompProfile, ProfileError> {
    serde_json::from_str(seccomp).map_err(|source| ProfileError::Json { name: name.to_owned(), source })
}

fn resolve_for(file: &ProfileFile, document: &SeccompProfile, host: Host) -> Result<Resolved, ProfileError> {
    let name = &file.name;
    let target = Target { arch: host.arch, kernel: host.kernel, capabilities: &file.capabilities };
    let resolved = resolve(document, target).map_err(|source| ProfileError::Resolve { name: name.clone(), source })?;
    floor::check(&resolved).map_err(|source| ProfileError::Floor { name: name.clone(), source })?;
    Ok(resolved)
}

/// Of the parts one after the other, hexadecimal.
fn digest<T: AsRef<[u8]>>(parts: impl IntoIterator<Item = T>) -> String {
    use std::fmt::Write as _;
    let bytes = parts.into_iter().fold(Sha256::new(), Sha256::chain_update).finalize();
    bytes.iter().fold(String::with_capacity(64), |mut hexadecimal, byte| {
        // Writing to a String has no way to fail.
        write!(hexadecimal, "{byte:02x}").unwrap_or_default();
        hexadecimal
    })
}

/// The rules of a built-in profile for a host that is told; the golden lists and the tests of `seccomp` start from them.
#[cfg(test)]
pub(crate) fn built_in_rules(name: &str, arch: Arch, kernel: KernelVersion) -> (Resolved, SeccompProfile) {
    let (_, text, seccomp) = BUILT_IN.into_iter().find(|(known, _, _)| *known == name).expect("a built-in profile");
    let file = parse(name, text).expect("the profile parses");
    let document = model(name, seccomp).expect("the seccomp file parses");
    (resolve_for(&file, &document, Host { arch, kernel }).expect("the rules resolve"), document)
}
