//! What waits for a program, seen from the server – a warm interpreter that forks, or a program that was started ahead –: which
//! languages have one, what it is started with, and which programs it may run.
//!
//! Invariant: a program is offered to it only when it would find there what a fresh interpreter finds; whatever decides about an
//! interpreter at its start must be the same for both. What can be seen only inside the sandbox, the interpreter itself looks at
//! before it takes a program (`warm/python.py`); how it is kept is in `init::warm`.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::language::{Language, WarmInterpreter, run_command, source_path};
use crate::plan::messages::{ExecuteRequest, PrestartRequest, WARM_ARCHIVE, WaitsIn, WarmRequest};
use crate::runtime::InstanceConfig;
use crate::sandbox::spec::Limits;

use super::control::{Gone, InitClient, Keep};
use super::program::Start;
use super::streams::{Feed, Outputs};

/// What makes a Python wait and fork.
const PYTHON: &str = concat!(
    include_str!("warm/python_end.py"),
    include_str!("warm/python_fork.py"),
    include_str!("warm/python_pages.py"),
    include_str!("warm/python.py")
);

/// Variables that only say where Bun keeps what it has made.
const BUN_PLACES: [&[u8]; 2] = [b"BUN_INSTALL_CACHE_DIR", b"BUN_RUNTIME_TRANSPILER_CACHE_PATH"];

/// What makes a Bun wait.
const BUN: &str = include_str!("warm/bun.js");

/// A session with fewer processes has none to spare: interpreter, fork and the one between are three.
const PROCESSES_MIN: u64 = 16;

/// The same where one waits that was started ahead, with all the threads of an engine.
const PRESTARTED_PROCESSES_MIN: u64 = 64;

/// A session with less memory keeps it for its programs.
const PRESTARTED_MEMORY_MIN: u64 = 256 << 20;

/// Variables that an interpreter or a library looks at when it starts, or is loaded.
const READ_AT_START: [&str; 12] =
    ["PATH", "HOME", "TZ", "TZDIR", "LANG", "LANGUAGE", "LOCPATH", "GCONV_PATH", "OPENSSL_CONF", "TERM", "COLUMNS", "LINES"];

/// The beginnings of others.
const READ_AT_START_PREFIXES: [&str; 15] = [
    "PYTHON",
    "__PYVENV",
    "LC_",
    "LD_",
    "MALLOC_",
    "GLIBC_",
    "OPENSSL_",
    "OMP_",
    "OPENBLAS_",
    "GOTO_",
    "MKL_",
    "BLIS_",
    "NUMEXPR_",
    "NPY_",
    "KMP_",
];

/// What the operator says of warm interpreters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WarmSettings {
    /// Whether there are any.
    pub enabled: bool,
    /// Whether a session has one from its beginning, or from its first program on.
    pub at_create: bool,
    /// Whether a ready sandbox has one already.
    pub pooled: bool,
}

impl WarmSettings {
    /// No interpreter anywhere.
    pub const OFF: Self = Self { enabled: false, at_create: false, pooled: false };
}

/// What a sandbox was asked to have ready.
#[derive(Debug, Default)]
pub struct Kept(Mutex<Keeping>);

#[derive(Debug, Default)]
struct Keeping {
    basis: Option<Basis>,
    /// Of the one that was started ahead, as long as no program has it.
    outputs: Option<Outputs>,
    /// The number of the last one that was started ahead.
    number: u64,
}

/// What it was started with.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Basis {
    kind: WarmInterpreter,
    arguments: Vec<Vec<u8>>,
    environment: Vec<Vec<u8>>,
}

impl Basis {
    fn of(language: &Language, kind: WarmInterpreter, environment: Vec<Vec<u8>>) -> Self {
        Self { kind, arguments: run_command(language).into_iter().map(String::into_bytes).collect(), environment }
    }
}

/// Whether a session of this language and with these limits may have one.
pub fn applies(settings: WarmSettings, language: &Language, limits: &Limits) -> bool {
    let has_room = match language.warm {
        None => false,
        Some(WarmInterpreter::Python) => limits.pids >= PROCESSES_MIN,
        Some(WarmInterpreter::Prestarted | WarmInterpreter::Bun) => {
            limits.pids >= PRESTARTED_PROCESSES_MIN && limits.memory_bytes.get() >= PRESTARTED_MEMORY_MIN
        }
    };
    settings.enabled && language.compile.is_none() && has_room
}

/// Whether one that was made ready under the limits `before` is of use to such a session: it was loaded without the session's variables, may have
/// looked at the limits when it started (engines size their heap by them), and takes what the session must be able to spare.
pub fn serves(settings: WarmSettings, config: &InstanceConfig, before: &Limits) -> bool {
    let InstanceConfig { language, limits, env, .. } = config;
    let same = (before.memory_bytes, before.cpu_cores) == (limits.memory_bytes, limits.cpu_cores);
    env.is_empty() && applies(settings, language, limits) && (same || language.warm == Some(WarmInterpreter::Python))
}

impl Kept {
    /// How a program with this input is to be carried out.
    pub fn offers(&self, request: &ExecuteRequest, feed: &Feed) -> Start {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(basis) = &kept.basis else { return Start::Fresh };
        let (arguments, environment) = (&request.arguments, &request.environment);
        match basis.kind {
            WarmInterpreter::Python
                if arguments.starts_with(&basis.arguments) && same_start(&basis.environment, environment) =>
            {
                Start::Warm
            }
            WarmInterpreter::Prestarted | WarmInterpreter::Bun
                if (arguments, environment) == (&basis.arguments, &basis.environment) && feed.is_nothing() =>
            {
                let number = kept.number;
                kept.outputs.take().map_or(Start::Fresh, |outputs| Start::Prestarted(number, outputs))
            }
            WarmInterpreter::Python | WarmInterpreter::Prestarted | WarmInterpreter::Bun => Start::Fresh,
        }
    }

    /// Has `init` keep one for programs of this language in this environment, unless it does already. Waits for nothing but room on
    /// the socket.
    pub async fn keep(&self, init: &InitClient, language: &Language, environment: Vec<Vec<u8>>) -> Result<(), Gone> {
        match self.next(language, environment) {
            Some(keep) => init.keep_warm(keep).await,
            None => Ok(()),
        }
    }

    /// What init is to be asked for; none when that is there, or is not to be had.
    fn next(&self, language: &Language, environment: Vec<Vec<u8>>) -> Option<Keep> {
        let basis = Basis::of(language, language.warm?, environment);
        if basis.kind == WarmInterpreter::Bun && tells_bun(&basis.environment) {
            return None;
        }
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let fits = kept.basis.as_ref().is_some_and(|kept| match basis.kind {
            WarmInterpreter::Python => {
                (kept.kind, &kept.arguments) == (basis.kind, &basis.arguments)
                    && same_start(&kept.environment, &basis.environment)
            }
            WarmInterpreter::Prestarted | WarmInterpreter::Bun => *kept == basis,
        });
        match basis.kind {
            WarmInterpreter::Python if fits => None,
            WarmInterpreter::Python => {
                *kept = Keeping { basis: Some(basis.clone()), number: kept.number, ..Keeping::default() };
                Some(Keep::Interpreter(Box::new(python(basis, &language.preload))))
            }
            WarmInterpreter::Prestarted | WarmInterpreter::Bun if fits && kept.outputs.is_some() => None,
            WarmInterpreter::Prestarted | WarmInterpreter::Bun => {
                // Without a descriptor left programs start as they do anyway.
                let (outputs, theirs) = Outputs::make().ok()?;
                let number = kept.number + 1;
                *kept = Keeping { basis: Some(basis.clone()), outputs: Some(outputs), number };
                Some(Keep::Prestarted(Box::new(prestarted(number, basis, language)), theirs))
            }
        }
    }

    /// One of this language for a sandbox that nobody has yet, and what its init is to be asked for.
    pub fn ahead(language: &Language, environment: Vec<Vec<u8>>) -> Option<(Self, Keep)> {
        let kept = Self::default();
        let keep = kept.next(language, environment)?;
        Some((kept, keep))
    }

    /// Whether there is one, or was.
    pub fn is_any(&self) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).basis.is_some()
    }

    /// Something was installed: the next [`Self::keep`] replaces it, and until then programs start afresh.
    pub fn outdate(&self) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *kept = Keeping { number: kept.number, ..Keeping::default() };
    }
}

/// Whether a variable may tell Bun how to start, so that its configuration does not say all, whoever has set it.
fn tells_bun(environment: &[Vec<u8>]) -> bool {
    let mut names = environment.iter().filter_map(|entry| entry.split(|byte| *byte == b'=').next());
    names.any(|name| name.starts_with(b"BUN_") && !BUN_PLACES.contains(&name))
}

/// What has a Bun load the script that it waits in.
fn bun() -> WaitsIn {
    let script = STANDARD.encode(BUN);
    WaitsIn::Preload {
        name: b"bunfig.toml".to_vec(),
        content: format!("preload = [\"data:text/javascript;base64,{script}\"]\n").into_bytes(),
    }
}

fn prestarted(number: u64, basis: Basis, language: &Language) -> PrestartRequest {
    let waits_in = if basis.kind == WarmInterpreter::Bun { bun() } else { WaitsIn::Source };
    PrestartRequest {
        number,
        arguments: basis.arguments,
        environment: basis.environment,
        directory: super::instance::WORKSPACE.into(),
        source: source_path(language).into_bytes(),
        unless: language.prestarted_unless.iter().map(|name| name.clone().into_bytes()).collect(),
        waits_in,
    }
}

/// A Python that finds our file as `sitecustomize`: on its path before all others, until that file takes it off again.
fn python(basis: Basis, preload: &[String]) -> WarmRequest {
    let Basis { arguments, mut environment, .. } = basis;
    let place = format!("PYTHONPATH=/proc/self/fd/{WARM_ARCHIVE}").into_bytes();
    match environment.iter_mut().find(|entry| entry.starts_with(b"PYTHONPATH=")) {
        Some(entry) => {
            let others = entry.split_off(b"PYTHONPATH=".len());
            *entry = [place.as_slice(), b":", &others].concat();
        }
        None => environment.push(place),
    }
    WarmRequest {
        arguments,
        environment,
        directory: super::instance::WORKSPACE.into(),
        archive: archive("sitecustomize.py", PYTHON.as_bytes()),
        greeting: preload.join("\0").into_bytes(),
    }
}

/// A zip archive of one file that is not compressed: APPNOTE sections 4.3.7, 4.3.12 and 4.3.16. Python imports from such.
fn archive(name: &str, content: &[u8]) -> Vec<u8> {
    let size = (content.len() as u32).to_le_bytes();
    // Version 1.0, no flags, stored, the first of January 1980.
    let facts = [&[10, 0, 0, 0, 0, 0, 0, 0, 0x21, 0][..], &checksum(content).to_le_bytes(), &size, &size].concat();
    let length = (name.len() as u16).to_le_bytes();
    let local = [b"PK\x03\x04", &facts[..], &length, &[0; 2], name.as_bytes(), content].concat();
    let central = [b"PK\x01\x02", &[10, 0][..], &facts, &length, &[0; 16], name.as_bytes()].concat();
    let places = [(central.len() as u32).to_le_bytes(), (local.len() as u32).to_le_bytes()].concat();
    let end = [b"PK\x05\x06", &[0; 4][..], &[1, 0, 1, 0], &places, &[0; 2]].concat();
    [local, central, end].concat()
}

/// CRC-32 as in zip.
fn checksum(content: &[u8]) -> u32 {
    !content.iter().fold(u32::MAX, |sum, byte| {
        (0..8).fold(sum ^ u32::from(*byte), |sum, _| if sum & 1 == 1 { sum >> 1 ^ 0xEDB8_8320 } else { sum >> 1 })
    })
}

/// Whether no variable differs that is looked at when an interpreter starts.
fn same_start(one: &[Vec<u8>], other: &[Vec<u8>]) -> bool {
    let decisive = |environment: &[Vec<u8>]| -> BTreeMap<Vec<u8>, Vec<u8>> {
        let pairs = environment.iter().filter_map(|entry| {
            let at = entry.iter().position(|byte| *byte == b'=')?;
            Some((entry[..at].to_vec(), entry[at + 1..].to_vec()))
        });
        pairs.filter(|(name, _)| is_read_at_start(name)).collect()
    };
    decisive(one) == decisive(other)
}

fn is_read_at_start(name: &[u8]) -> bool {
    READ_AT_START.iter().any(|known| known.as_bytes() == name)
        || READ_AT_START_PREFIXES.iter().any(|prefix| name.starts_with(prefix.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::language::Languages;
    use crate::language::engines::{Engine, EngineVersion};
    use crate::runtime::native::streams::Held;

    fn words(list: &[&str]) -> Vec<Vec<u8>> {
        list.iter().map(|word| word.as_bytes().to_vec()).collect()
    }

    fn request(arguments: &[&str], environment: &[&str]) -> ExecuteRequest {
        ExecuteRequest::ahead(&words(arguments), &words(environment), super::super::instance::WORKSPACE.as_bytes())
    }

    fn is_prestarted(start: &Start) -> bool {
        matches!(start, Start::Prestarted(..))
    }

    #[test]
    fn one_that_was_started_ahead_is_offered_once_and_only_to_the_very_program_that_was_started() {
        let language = Languages::load(None).ok().and_then(|languages| languages.get("javascript")).expect("embedded");
        let environment = || words(&["A=1"]);
        let (kept, keep) = Kept::ahead(&language, environment()).expect("it can be started ahead");
        let Keep::Prestarted(sent, _) = keep else { panic!("it is no interpreter that forks: {keep:?}") };
        assert_eq!((sent.source.as_slice(), sent.arguments[0].as_slice()), (&b"/workspace/.main.js"[..], &b"node"[..]));
        let own = run_command(&language);
        let own: Vec<&str> = own.iter().map(String::as_str).collect();
        let input = Feed::Own(crate::command::Stdin::Bytes(b"x".to_vec()), Held::default());
        let more = [own.as_slice(), &["argument"]].concat();
        for (arguments, environment, feed) in [
            (more.as_slice(), &["A=1"][..], Feed::nothing()),
            (own.as_slice(), &["A=2"], Feed::nothing()),
            (own.as_slice(), &["A=1"], input),
        ] {
            let start = kept.offers(&request(arguments, environment), &feed);
            assert!(!is_prestarted(&start), "{arguments:?} {environment:?} {feed:?}");
        }
        assert!(kept.next(&language, environment()).is_none(), "it waits yet");
        assert!(is_prestarted(&kept.offers(&request(&own, &["A=1"]), &Feed::nothing())));
        assert!(!is_prestarted(&kept.offers(&request(&own, &["A=1"]), &Feed::nothing())), "each runs one program");
        assert!(kept.next(&language, environment()).is_some());
    }

    #[test]
    fn no_bun_is_started_ahead_that_a_variable_may_tell_how_to_start() {
        let languages = Languages::load(None).expect("embedded");
        let javascript = languages.get("javascript").expect("embedded");
        let bun = javascript.on(Engine::Bun, EngineVersion(1, 4, 2), &[]).expect("it runs there");
        let starts = |language: &Language| {
            let environment = language.env.iter().map(|(name, value)| format!("{name}={value}").into_bytes()).collect();
            Kept::ahead(language, environment).is_some()
        };
        assert!(starts(&bun), "the control: with what its own definition sets");
        for name in ["BUN_OPTIONS", "BUN_INSPECT_PRELOAD", "BUN_CONFIG_VERBOSE_FETCH"] {
            let mut told = bun.clone();
            told.env.insert(name.into(), String::new());
            assert!(!starts(&told), "{name}, though a definition sets it");
        }
    }

    #[test]
    fn a_program_is_offered_only_when_nothing_differs_that_an_interpreter_looks_at_when_it_starts() {
        let (arguments, environment) = (words(&["python3", "/f"]), words(&["LANG=C", "A=1"]));
        let basis = Basis { kind: WarmInterpreter::Python, arguments, environment };
        let kept = Kept(Mutex::new(Keeping { basis: Some(basis), ..Keeping::default() }));
        let offers = |arguments: &[&str], environment: &[&str]| kept.offers(&request(arguments, environment), &Feed::nothing());
        let is_warm = |start: Start| matches!(start, Start::Warm);
        assert!(is_warm(offers(&["python3", "/f"], &["LANG=C", "A=1"])));
        assert!(is_warm(offers(&["python3", "/f", "-x"], &["B=2", "LANG=C"])), "what only the program reads may differ");
        for environment in
            [&["A=1"][..], &["LANG=D"], &["LANG=C", "PYTHONHASHSEED=0"], &["LANG=C", "LC_ALL=C"], &["LANG=C", "TZ="]]
        {
            assert!(!is_warm(offers(&["python3", "/f"], environment)), "{environment:?}");
        }
        assert!(!is_warm(offers(&["python3", "/g"], &["LANG=C"])));
        kept.outdate();
        assert!(!is_warm(offers(&["python3", "/f"], &["LANG=C", "A=1"])));
    }

    #[test]
    fn a_python_finds_our_file_before_all_that_its_path_has_already() {
        let request = |environment: &[&str]| {
            let (arguments, environment) = (words(&["python3"]), words(environment));
            python(Basis { kind: WarmInterpreter::Python, arguments, environment }, &["re".into(), "json".into()])
        };
        assert_eq!(request(&["A=1"]).environment, words(&["A=1", "PYTHONPATH=/proc/self/fd/6"]));
        assert_eq!(request(&["PYTHONPATH=/x", "Z=1"]).environment, words(&["PYTHONPATH=/proc/self/fd/6:/x", "Z=1"]));
        assert_eq!(request(&[]).greeting, b"re\0json");
    }

    #[test]
    fn the_archive_has_the_checksum_and_the_places_of_its_file() {
        assert_eq!(checksum(b"123456789"), 0xCBF4_3926, "the check value of CRC-32");
        let bytes = archive("a.py", b"1");
        let at = |mark: &[u8]| bytes.windows(4).position(|window| window == mark).expect("it is there") as u32;
        let end = &bytes[at(b"PK\x05\x06") as usize..];
        assert_eq!((end.len(), &end[16..20]), (22, &at(b"PK\x01\x02").to_le_bytes()[..]));
    }

    #[test]
    fn a_session_with_few_processes_or_another_language_has_none() {
        let languages = Languages::load(None).expect("the embedded languages load");
        let language = |name: &str| languages.get(name).expect("embedded");
        let limits = crate::sandbox::profile::Profiles::load(None)
            .ok()
            .and_then(|profiles| profiles.get("default")?.limits())
            .expect("a built-in profile");
        let on = WarmSettings { enabled: true, at_create: false, pooled: true };
        assert!(applies(on, &language("python"), &limits));
        assert!(!applies(WarmSettings { enabled: false, ..on }, &language("python"), &limits));
        assert!(!applies(on, &language("bash"), &limits));
        assert!(!applies(on, &language("python"), &Limits { pids: PROCESSES_MIN - 1, ..limits.clone() }));
        assert!(applies(on, &language("javascript"), &limits));
        assert!(!applies(on, &language("javascript"), &Limits { pids: PRESTARTED_PROCESSES_MIN - 1, ..limits.clone() }));
    }
}
