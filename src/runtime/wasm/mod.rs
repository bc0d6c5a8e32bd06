//! WebAssembly: a worker process of this binary runs modules, in the OS sandbox, on a root that holds little but the worker.
//!
//! Invariants: the walls are those of every sandbox (`native`); the server never compiles, loads or runs a module – an engine is
//! compiled by a worker in a sandbox where no guest runs, kept with a proof (`cache`), and mounted read-only; a session's own module
//! is compiled in its own sandbox and kept nowhere. Read `worker` for what runs inside, `ends` for how its end is told.

pub mod cache;
pub mod ends;
pub mod worker;

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use sha2::{Digest, Sha256};

use crate::image::minimal::{self, MinimalRoot};
use crate::image::{ImageRoot, Store};
use crate::language::Language;
use crate::language::engines::{Engine, EnginePlan, EngineVersion};
use crate::sandbox::enforcement::WallState;
use crate::sandbox::error::SandboxError;
use crate::sandbox::spec::Limits;

use super::engine::permissions;
use super::features::Features;
use super::native::{Flavour, NativeRuntime, Preparation, Word, exhausted};
use super::{Availability, InstanceConfig, Permissions, RuntimeKind};
use cache::{Cache, Subject};
use worker::settings;

/// The version of wasmtime that this binary holds: a test holds it to Cargo.lock.
pub const WASMTIME: &str = "48.0.8";

/// The program of this runtime, as `execute_code` starts it.
pub const PROGRAM: &str = "codebeaker";

/// In the worker's root: engines, compiled and not, and the files that their programs find.
const LIBRARY: &str = "/usr/local/lib/codebeaker";

/// Milliseconds that a guest may run.
const DEADLINE_VARIABLE: &str = "CODEBEAKER_WASM_DEADLINE_MS";

/// Bytes of memory that a guest may have.
const MEMORY_VARIABLE: &str = "CODEBEAKER_WASM_MEMORY_BYTES";

/// Where the worker writes what it compiled.
const RESULT: &str = "/workspace/engine.cwasm";

/// What JavaScript programs find.
const JAVASCRIPT_LIBRARY: [(&str, &str); 2] = [
    ("main.mjs", include_str!("../../../rootfs/wasm/javascript/main.mjs")),
    ("node:fs", include_str!("../../../rootfs/wasm/javascript/node_fs.mjs")),
];

/// An interpreter that is itself a module.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EngineModule {
    /// CPython.
    Python,
    /// QuickJS.
    Javascript,
}

impl EngineModule {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::Python, Self::Javascript];

    /// The language that it runs, which is also its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Python => "python",
            Self::Javascript => "javascript",
        }
    }

    /// The one of that name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|engine| engine.name() == name)
    }

    /// The one that a language is run with: `--engine=NAME` among its words.
    fn of(run: &[String]) -> Option<Self> {
        run.iter().find_map(|word| word.strip_prefix("--engine=")).and_then(Self::named)
    }
}

/// What the configuration says.
#[derive(Debug, Clone)]
pub struct WasmPlaces {
    /// False: `runtimes.wasm` is `off`.
    pub on: bool,
    /// Where `codebeaker engines install` puts engines, and where compiled ones are kept when it is this server's own.
    pub engines: PathBuf,
    /// Where compiled engines are kept otherwise.
    pub own: PathBuf,
    /// What the configuration says of each engine: empty, `off` or a path; and its key.
    pub named: [(EngineModule, &'static str, String); 2],
    /// This binary.
    pub program: PathBuf,
}

/// The runtime, behind the walls of `native`.
pub fn runtime(native: &NativeRuntime, places: WasmPlaces, store: &Arc<Store>) -> Arc<NativeRuntime> {
    let worker = if places.on {
        MinimalRoot::of(&places.program, PROGRAM).map_err(|cause| {
            format!("this program can't be put on a root of its own: {cause}; install it as a file that is not replaced while it runs")
        })
    } else {
        Err("`runtimes.wasm` of the configuration switches it off; leave the key empty to have it".into())
    };
    let engines = EngineModule::ALL.map(|engine| (engine, find(engine, &places)));
    let state = Mutex::new(State { cache: None, digests: [None; 2], root: None });
    native.with(Box::new(WasmFlavour { places, worker, engines, store: Arc::clone(store), state }))
}

/// Where an engine is; the error is a sentence with the cause and the mend.
fn find(engine: EngineModule, places: &WasmPlaces) -> Result<PathBuf, String> {
    let name = engine.name();
    let named = places.named.iter().find(|(known, ..)| *known == engine);
    let (key, place) = named.map(|(_, key, place)| (*key, place.trim())).unwrap_or_default();
    match place {
        "off" => {
            Err(format!("`{key}` of the configuration switches its engine off; leave the key empty to have it looked for"))
        }
        "" => {
            let path = places.engines.join(format!("{name}.wasm"));
            let absent =
                format!("its engine is not installed: run `codebeaker engines install wasm-{name}`, or name one with `{key}`");
            path.is_file().then_some(path).ok_or(absent)
        }
        place => {
            let path = PathBuf::from(place);
            let absent = format!("`{key}` of the configuration names a file that is not there; name another one");
            path.is_file().then_some(path).ok_or(absent)
        }
    }
}

struct WasmFlavour {
    places: WasmPlaces,
    worker: Result<MinimalRoot, String>,
    engines: [(EngineModule, Result<PathBuf, String>); 2],
    store: Arc<Store>,
    state: Mutex<State>,
}

struct State {
    /// Once it was needed.
    cache: Option<Arc<Cache>>,
    /// Of the engines, in their order, once they were needed.
    digests: [Option<[u8; 32]>; 2],
    /// What the last session stood on, and the compiled engines in it; it keeps the skeleton from being cleared away.
    root: Option<(Vec<PathBuf>, ImageRoot)>,
}

impl WasmFlavour {
    fn with<T>(&self, work: impl FnOnce(&mut State) -> T) -> T {
        work(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn engine(&self, engine: EngineModule) -> Result<&Path, &str> {
        let found = self.engines.iter().find(|(known, _)| *known == engine).map(|(_, found)| found);
        found.map_or(Err("there is no such engine"), |found| found.as_deref().map_err(String::as_str))
    }

    fn cache(&self) -> Result<Arc<Cache>, String> {
        self.with(|state| {
            if let Some(cache) = &state.cache {
                return Ok(Arc::clone(cache));
            }
            let shared = self.places.engines.join("compiled");
            let directory = if is_own(&self.places.engines) { shared } else { self.places.own.clone() };
            let cache = Cache::open(&directory).map_err(|error| format!("compiled engines can't be kept: {error}"))?;
            Ok(Arc::clone(state.cache.insert(Arc::new(cache))))
        })
    }

    fn subject(&self, engine: EngineModule) -> Result<Subject, String> {
        let index = usize::from(engine == EngineModule::Javascript);
        if let Some(module) = self.with(|state| state.digests[index]) {
            return Ok(Subject { module, compiler: compiler() });
        }
        let module = digest(self.engine(engine)?).map_err(|error| format!("its engine can't be read: {error}"))?;
        self.with(|state| state.digests[index] = Some(module));
        Ok(Subject { module, compiler: compiler() })
    }

    /// The compilation of an engine, where there is one whose proof holds.
    fn compiled(&self, engine: EngineModule) -> Option<PathBuf> {
        self.engine(engine).ok()?;
        self.cache().ok()?.get(&self.subject(engine).ok()?)
    }

    fn unusable(&self, cause: String) -> SandboxError {
        SandboxError::RuntimeUnusable { runtime: self.kind().name().into(), cause }
    }
}

/// True for a directory that nobody else can put compiled code into.
fn is_own(directory: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata(directory)
        .is_ok_and(|metadata| metadata.uid() == rustix::process::geteuid().as_raw() && metadata.mode() & 0o022 == 0)
}

/// What compiles: code is for one version of wasmtime, one edition of its settings, and processors that can do as much as this one.
/// wasmtime would tell it better, but takes over signals of the process that asks.
fn compiler() -> String {
    let cpu = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let features = cpu.lines().find(|line| line.starts_with("flags") || line.starts_with("Features")).unwrap_or_default();
    format!("wasmtime {WASMTIME} settings {} {} {features}", settings::EDITION, std::env::consts::ARCH)
}

fn plan_of(language: &Language) -> Option<&EnginePlan> {
    language.plan_for(Engine::WebAssembly, EngineVersion::find(WASMTIME)?)
}

/// The engine that a language is run with; none where it needs none, or is not run.
fn module_of(language: &Language) -> Option<EngineModule> {
    EngineModule::of(&plan_of(language)?.run)
}

fn digest(path: &Path) -> std::io::Result<[u8; 32]> {
    let mut file = File::open(path)?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        let count = file.read(&mut buffer)?;
        if count == 0 {
            return Ok(hash.finalize().into());
        }
        hash.update(&buffer[..count]);
    }
}

impl Flavour for WasmFlavour {
    fn name(&self) -> &'static str {
        "wasmtime in the OS sandbox"
    }

    fn kind(&self) -> RuntimeKind {
        RuntimeKind::WebAssembly
    }

    fn availability(&self) -> Availability {
        match &self.worker {
            Ok(worker) if worker.is_current() => Availability::Available,
            Ok(_) => Availability::Unavailable("this program was replaced since the server started; restart the server".into()),
            Err(cause) => Availability::Unavailable(cause.clone()),
        }
    }

    fn figures(&self) -> Features {
        Features { startup_time_ms: 80.0, memory_overhead_mb: 60.0, ..Features::NONE }
    }

    fn root(&self, _: &InstanceConfig) -> Result<ImageRoot, SandboxError> {
        let worker = self.worker.as_ref().map_err(|cause| self.unusable(cause.clone()))?;
        let mut root = worker.clone();
        for (name, text) in JAVASCRIPT_LIBRARY {
            root = root.and_text(&format!("{LIBRARY}/javascript/{name}"), text);
        }
        let mut compiled = Vec::new();
        for (engine, found) in &self.engines {
            let Ok(module) = found else { continue };
            root = root.and_file(&format!("{LIBRARY}/{}.wasm", engine.name()), module);
            if let Some(code) = self.compiled(*engine) {
                root = root.and_file(&format!("{LIBRARY}/{}.cwasm", engine.name()), &code);
                compiled.push(code);
            }
        }
        if let Some(root) = self.with(|state| state.root.clone()).filter(|(with, _)| *with == compiled) {
            return Ok(root.1);
        }
        let resolved = root.resolve(&self.store);
        let resolved =
            resolved.map_err(|error| exhausted(&error).unwrap_or_else(|| SandboxError::Internal(error.to_string())))?;
        self.with(|state| state.root = Some((compiled, resolved.clone())));
        Ok(resolved)
    }

    fn own_root(&self) -> Option<String> {
        Some(minimal::NAME.into())
    }

    fn language(&self, language: &Arc<Language>, permissions: &Permissions) -> Option<Arc<Language>> {
        let version = EngineVersion::find(WASMTIME)?;
        let flags = permissions::flags(Engine::WebAssembly, version, language, permissions);
        language.on(Engine::WebAssembly, version, &flags).filter(|_| self.serves(language)).map(Arc::new)
    }

    fn serves(&self, language: &Language) -> bool {
        plan_of(language).is_some_and(|plan| EngineModule::of(&plan.run).is_none_or(|engine| self.engine(engine).is_ok()))
    }

    fn lacks(&self, language: &Language) -> Option<String> {
        module_of(language).and_then(|engine| self.engine(engine).err().map(str::to_owned))
    }

    fn version(&self) -> Option<String> {
        Some(WASMTIME.into())
    }

    fn permissions_row(&self, _: &Permissions) -> WallState {
        permissions::row(Engine::WebAssembly, EngineVersion::find(WASMTIME))
    }

    fn question(&self) -> Option<Vec<String>> {
        None
    }

    fn learned(&self, _: Result<String, String>) {}

    fn preparation(&self, language: &Language) -> Option<Preparation> {
        let engine = module_of(language).filter(|engine| self.engine(*engine).is_ok())?;
        if self.compiled(engine).is_some() {
            return None;
        }
        let source = format!("{LIBRARY}/{}.wasm", engine.name());
        let arguments = [PROGRAM, "wasm-worker", "compile", source.as_str(), RESULT].map(str::to_owned).to_vec();
        Some(Preparation { arguments, result: RESULT.into() })
    }

    fn prepared(&self, language: &Language, made: Result<Vec<u8>, String>) -> Result<(), String> {
        let engine = module_of(language).ok_or("there is no such engine")?;
        let code = made.map_err(|cause| format!("its engine could not be compiled: {cause}"))?;
        let kept = self.cache()?.put(&self.subject(engine)?, &code);
        kept.map(|_| ()).map_err(|error| format!("the compiled engine can't be kept: {error}"))
    }

    fn variables(&self, limits: &Limits, timeout: Duration) -> Vec<(String, String)> {
        // The rest is for the worker itself: then its own refusal comes before the kernel's kill.
        let memory = limits.memory_bytes.get() / 4 * 3;
        vec![(DEADLINE_VARIABLE.into(), timeout.as_millis().to_string()), (MEMORY_VARIABLE.into(), memory.to_string())]
    }

    fn word(&self, signal: i32) -> Option<Word> {
        ends::word(signal)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::language::Languages;

    #[test]
    fn the_version_that_is_told_is_the_one_that_is_built_in() {
        let locked = include_str!("../../../Cargo.lock");
        assert!(
            locked.contains(&format!("name = \"wasmtime\"\nversion = \"{WASMTIME}\"\n")),
            "src/runtime/wasm/mod.rs: WASMTIME"
        );
    }

    #[test]
    fn every_engine_has_its_language() {
        let languages = Languages::load(None).expect("embedded");
        let version = EngineVersion::find(WASMTIME).expect("a version");
        for engine in EngineModule::ALL {
            let language = languages.get(engine.name()).expect("a language of that name");
            let fitted = language.on(Engine::WebAssembly, version, &[]).expect("it runs on WebAssembly");
            assert_eq!(EngineModule::of(&fitted.run), Some(engine));
        }
        let own = languages.get("wasm").and_then(|language| language.on(Engine::WebAssembly, version, &[])).expect("modules");
        assert_eq!(EngineModule::of(&own.run), None);
    }

    #[test]
    fn an_engine_that_is_missing_is_told_with_its_mend_and_without_a_path() {
        let dir = tempfile::tempdir().expect("a directory");
        let places = |python: &str| WasmPlaces {
            on: true,
            engines: dir.path().join("engines"),
            own: dir.path().join("own"),
            named: [
                (EngineModule::Python, "runtimes.wasm_python", python.into()),
                (EngineModule::Javascript, "runtimes.wasm_javascript", String::new()),
            ],
            program: "/bin/sh".into(),
        };
        for python in ["", "off", "/absent/python.wasm"] {
            let reason = find(EngineModule::Python, &places(python)).expect_err("not found");
            assert!(reason.contains("runtimes.wasm_python") && !reason.contains("/absent"), "{reason}");
        }
        let module = dir.path().join("python.wasm");
        std::fs::write(&module, "").expect("a file");
        assert_eq!(find(EngineModule::Python, &places(module.to_str().expect("UTF-8"))), Ok(module));
        std::fs::create_dir_all(dir.path().join("engines")).expect("a directory");
        std::fs::write(dir.path().join("engines/javascript.wasm"), "").expect("a file");
        assert!(find(EngineModule::Javascript, &places("off")).is_ok());
    }
}
