//! What a PROFILE on the command line is, and the target that it is looked at for.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use clap::{Args, ValueEnum};

use super::super::error::chain;
use super::super::{CliError, CommonArgs};
use crate::sandbox::profile::load::seccomp_source;
use crate::seccomp::bpf::Program;
use crate::seccomp::document::{Document, Format};
use crate::seccomp::policy::Policy;
use crate::seccomp::read::{self, BYTES_MAX, Contents};
use crate::seccomp::resolve::Target;
use crate::seccomp::ruleset::{Engine, Ruleset};
use crate::seccomp::{Arch, KernelVersion};

const KERNEL_RELEASE: &str = "/proc/sys/kernel/osrelease";

/// The target and the reading of a profile.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Target")]
pub(super) struct TargetArgs {
    /// Architecture [default: this machine's]
    #[arg(long, value_enum, value_name = "ARCH")]
    arch: Option<ArchWord>,
    /// Kernel for `minKernel`, as 6.1 [default: the running one]
    #[arg(long, value_name = "VERSION")]
    kernel: Option<KernelVersion>,
    /// A capability for `includes` and `excludes`, as CAP_SYS_ADMIN; may be repeated [default: the
    /// named profile's, none for a file]
    #[arg(long = "cap", value_name = "CAP")]
    caps: Vec<String>,
    /// Whose reading of the rules [default: codebeaker for its own profiles, seccompiler for its
    /// format, else libseccomp]
    #[arg(long, value_enum, value_name = "ENGINE")]
    engine: Option<EngineWord>,
    /// Format of the file [default: judged by what it holds]
    #[arg(long, value_enum, value_name = "FORMAT")]
    from: Option<FormatWord>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum ArchWord {
    #[value(name = "x86_64", alias = "amd64")]
    X86_64,
    #[value(name = "aarch64", alias = "arm64")]
    Aarch64,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum EngineWord {
    #[value(name = "codebeaker")]
    CodeBeaker,
    Libseccomp,
    Seccompiler,
}

/// Formats on the command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum FormatWord {
    /// OCI and Docker JSON
    Oci,
    /// seccompiler's JSON
    Seccompiler,
    /// SeccompProfile of the Security Profiles Operator, YAML
    Spo,
    /// Raw filters, an array of struct sock_filter
    Bpf,
}

impl From<FormatWord> for Format {
    fn from(word: FormatWord) -> Self {
        match word {
            FormatWord::Oci => Self::Oci,
            FormatWord::Seccompiler => Self::Seccompiler,
            FormatWord::Spo => Self::Spo,
            FormatWord::Bpf => Self::Bpf,
        }
    }
}

/// A profile, read.
pub(super) struct Source {
    /// As it was named.
    pub(super) name: String,
    /// For SARIF: the file, or `builtin:NAME`.
    pub(super) uri: String,
    /// The file behind it, where it has rules.
    pub(super) document: Option<Document>,
    /// What it decides.
    pub(super) policy: Policy,
    arch: Arch,
    kernel: KernelVersion,
    capabilities: Vec<String>,
}

impl Source {
    /// What gates are compared with.
    pub(super) fn target(&self) -> Target<'_> {
        Target { arch: self.arch, kernel: self.kernel, capabilities: &self.capabilities }
    }

    /// The format and the engine, in a word for people.
    pub(super) fn reading(&self) -> String {
        match &self.policy {
            Policy::Rules(set) => format!("read as {} does", set.engine),
            Policy::Programs { filters, .. } => format!("{} raw filter(s)", filters.len()),
        }
    }
}

struct Found {
    uri: String,
    contents: Holds,
    capabilities: Vec<String>,
    own: bool,
}

enum Holds {
    Document(Document),
    Programs(Vec<Program>),
}

/// Reads what PROFILE names.
pub(super) fn load(common: &CommonArgs, name: &str, target: &TargetArgs) -> Result<Source, CliError> {
    let arch = match target.arch {
        Some(ArchWord::X86_64) => Arch::X86_64,
        Some(ArchWord::Aarch64) => Arch::Aarch64,
        None => Arch::native()
            .ok_or_else(|| CliError::usage("this machine's architecture has no table").hint("name one with --arch"))?,
    };
    let kernel = target.kernel.map_or_else(running_kernel, Ok)?;
    let read = find(common, name, target.from.map(Format::from))?;
    let capabilities = if target.caps.is_empty() { read.capabilities } else { target.caps.clone() };
    let asked = Target { arch, kernel, capabilities: &capabilities };
    let (document, policy) = match read.contents {
        Holds::Programs(filters) => (None, Policy::Programs { arch, filters }),
        Holds::Document(document) => {
            let engine = match (target.engine, document.format, read.own) {
                (Some(EngineWord::CodeBeaker), ..) | (None, Format::Oci, true) => Engine::CodeBeaker,
                (Some(EngineWord::Seccompiler), ..) | (None, Format::Seccompiler, _) => Engine::Seccompiler,
                (Some(EngineWord::Libseccomp), ..) | (None, Format::Oci | Format::Spo | Format::Bpf, _) => Engine::Libseccomp,
            };
            let policy = Policy::Rules(Ruleset::new(&document, asked, engine));
            (Some(document), policy)
        }
    };
    Ok(Source { name: name.to_owned(), uri: read.uri, document, policy, arch, kernel, capabilities })
}

fn running_kernel() -> Result<KernelVersion, CliError> {
    let text = std::fs::read_to_string(KERNEL_RELEASE).unwrap_or_default();
    text.parse().map_err(|_| CliError::new(format!("{KERNEL_RELEASE} holds no version")).hint("name one with --kernel 6.1"))
}

fn find(common: &CommonArgs, name: &str, format: Option<Format>) -> Result<Found, CliError> {
    if let Some(pid) = name.strip_prefix("pid:") {
        let pid =
            pid.parse().map_err(|_| CliError::usage(format!("`{name}` names no process")).hint("write it as pid:1234"))?;
        let filters = super::live::filters(pid)?;
        return Ok(Found {
            uri: name.to_owned(),
            contents: Holds::Programs(parse_all(&filters, name)?),
            capabilities: Vec::new(),
            own: false,
        });
    }
    let dir = common.load()?.config.sandbox.profile_dir;
    if let Some(source) = seccomp_source(dir.as_deref(), name).unwrap_or(None) {
        let document = text_document(source.text.as_bytes(), name)?;
        return Ok(Found {
            uri: format!("builtin:{name}"),
            contents: Holds::Document(document),
            capabilities: source.capabilities,
            own: true,
        });
    }
    let contents = match name.split(',').collect::<Vec<_>>()[..] {
        [one] => one_file(one, format)?,
        ref several => {
            let files = several.iter().map(|path| bytes_of(path)).collect::<Result<Vec<_>, _>>()?;
            Holds::Programs(parse_all(&files, name)?)
        }
    };
    Ok(Found { uri: name.to_owned(), contents, capabilities: Vec::new(), own: false })
}

fn text_document(bytes: &[u8], name: &str) -> Result<Document, CliError> {
    match read::read(bytes, Format::Oci).map_err(|error| broken(name, &error))? {
        Contents::Document(document) => Ok(document),
        Contents::Program(_) => Err(CliError::new(format!("{name}: rules are meant here"))),
    }
}

fn one_file(path: &str, format: Option<Format>) -> Result<Holds, CliError> {
    let bytes = bytes_of(path)?;
    let format = format.unwrap_or_else(|| read::guess(&bytes));
    match read::read(&bytes, format)
        .map_err(|error| broken(path, &error).hint(format!("it was read as {format}; --from says otherwise")))?
    {
        Contents::Document(document) => Ok(Holds::Document(document)),
        Contents::Program(program) => Ok(Holds::Programs(vec![program])),
    }
}

fn parse_all(files: &[Vec<u8>], name: &str) -> Result<Vec<Program>, CliError> {
    let parse = |(place, bytes): (usize, &Vec<u8>)| {
        Program::parse(bytes).map_err(|error| CliError::new(format!("{name}: filter {place}: {error}")))
    };
    files.iter().enumerate().map(parse).collect()
}

fn broken(name: &str, error: &read::ReadError) -> CliError {
    CliError::new(format!("{name}: {}", chain(error)))
}

/// A bounded read of a file or of standard input.
pub(super) fn bytes_of(path: &str) -> Result<Vec<u8>, CliError> {
    let mut bytes = Vec::new();
    let limit = BYTES_MAX as u64 + 1;
    let outcome = match path {
        "-" => io::stdin().lock().take(limit).read_to_end(&mut bytes),
        _ => File::open(Path::new(path)).and_then(|file| file.take(limit).read_to_end(&mut bytes)),
    };
    outcome.map_err(|error| {
        let hint = "a PROFILE is strict, default, permissive, the operator's own, a file, `-` or pid:N";
        CliError::new(format!("there is no profile `{path}`: {error}")).hint(hint)
    })?;
    Ok(bytes)
}
