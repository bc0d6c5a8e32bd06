//! Every bound of the server, parsed once: TOML file, then `CODEBEAKER_*` variables, then flags.
//!
//! Invariant: a value of `Config` has been checked; no other module reads configuration from a file or the
//! environment (the client's `CODEBEAKER_URL` and `CODEBEAKER_TOKEN` are arguments of `cli`).
//! Units come last in names (`_bytes_max`, `_s`).
//!
//! This page is the vocabulary; read `load` next (where values come from), then `check` (what values are taken).

mod check;
mod error;
mod load;

pub use check::REQUIRED_WALLS;
pub use error::{ConfigError, Origin};
pub use load::{FlagOverrides, Loaded, Sources, load};

use std::net::SocketAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// The whole configuration.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Where state lives.
    pub state_dir: PathBuf,
    /// The wire.
    pub server: ServerConfig,
    /// Sessions.
    pub session: SessionConfig,
    /// Sandboxes.
    pub sandbox: SandboxConfig,
    /// The way out of a sandbox.
    pub network: NetworkConfig,
    /// Package indexes.
    pub packages: PackagesConfig,
    /// Sandboxes that are ready before anybody asks.
    pub pool: PoolConfig,
    /// Runtimes with an engine of their own.
    pub runtimes: RuntimesConfig,
    /// Interpreters that wait for their programs.
    pub warm: WarmConfig,
    /// Images.
    pub images: ImagesConfig,
    /// Logs.
    pub log: LogConfig,
}

/// `[server]`: bounds of PROTOCOL section 1.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ServerConfig {
    /// Default 127.0.0.1:5000.
    pub listen: SocketAddr,
    /// All clients are one principal; on a loopback address only.
    pub no_auth: bool,
    /// Names besides loopback ones and the listen address that `Host` may hold (without port).
    pub allowed_hosts: Vec<String>,
    /// Values of `Origin` that may connect.
    pub allowed_origins: Vec<String>,
    /// Default 16 MiB.
    pub request_bytes_max: u32,
    /// Default 64 MiB.
    pub response_bytes_max: u32,
    /// Requests in a batch, default 64.
    pub batch_max: u32,
    /// Default 1024.
    pub connections_max: u32,
    /// Default 256.
    pub requests_in_flight_max: u32,
    /// Default 120.
    pub ping_interval_s: u64,
    /// Silent pings before a peer is dropped, default 2.
    pub ping_misses_max: u32,
    /// Calls per second and principal; 0 = no limit (default).
    pub rate_limit_per_s: u32,
    /// What a burst may hold; 0 = the same as `rate_limit_per_s`.
    pub rate_limit_burst: u32,
    /// Seconds running commands get after SIGTERM, default 10.
    pub shutdown_grace_s: u64,
    /// Worker threads, each a current-thread runtime; 0 = one per core (default).
    pub workers: u32,
}

/// `[session]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SessionConfig {
    /// Sessions at once, default 256; 0 = what memory allows.
    pub sessions_max: u32,
    /// Of one principal; 0 = no own bound (default).
    pub sessions_per_principal_max: u32,
    /// Default 30.
    pub idle_timeout_minutes: u32,
    /// Default 120.
    pub lifetime_minutes: u32,
    /// Default 60.
    pub sweep_interval_s: u64,
    /// How long a closed session's id and an outcome stay known, default 3600.
    pub remember_s: u64,
    /// Commands waiting in one session's queue, default 256.
    pub queue_max: u32,
    /// Background executions at once in one session, default 16.
    pub background_max: u32,
    /// Bytes of events waiting for one slow reader, default 1 MiB.
    pub stream_buffer_bytes_max: u64,
    /// Outcomes kept for `execution.status`, of one principal, default 1000.
    pub outcomes_max: u32,
    /// Bytes of output in them, default 64 MiB; the newest is kept however large.
    pub outcome_bytes_max: u64,
    /// Closed sessions whose ids stay known, of all principals, default 16384.
    pub closed_max: u32,
}

/// `[sandbox]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SandboxConfig {
    /// Required walls that may be missing; empty by default.
    pub allow_degraded: Vec<String>,
    /// Profiles a client may ask for, default `default` and `strict`.
    pub profiles: Vec<String>,
    /// Directory of the operator's own profiles (`NAME.toml`).
    pub profile_dir: Option<PathBuf>,
    /// Directory of the operator's own languages (`NAME.toml`).
    pub language_dir: Option<PathBuf>,
    /// Bytes per second that one session may read from the disks of its image, and write to them; 0 = no limit. Default 512 MiB.
    pub io_bytes_per_s_max: u64,
    /// Lowest isolation level (0 to 10) a runtime must have, default 0.
    pub isolation_level_min: u8,
    /// Directory of wheels and tarballs that package installs may use.
    pub package_dir: Option<PathBuf>,
}

/// `[network]`: what programs of a session reach when profile and request allow it, and bounds of the proxy that they reach it
/// through.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct NetworkConfig {
    /// Hosts (`allowlist::Pattern`); empty by default: nothing.
    pub egress_allow: Vec<String>,
    /// `name=address`: what names lead to instead of what the domain name system says.
    pub hosts: Vec<String>,
    /// Connections of all sessions at once, default 512.
    pub connections_max: u32,
    /// Of one session or one install step at once, default 32.
    pub connections_per_session_max: u32,
    /// Seconds without a byte after which a connection ends, default 60.
    pub idle_timeout_s: u64,
    /// Bytes in both directions together, of one sandbox or one install step; default 4 GiB.
    pub bytes_max: u64,
}

/// `[packages]`: indexes that install steps reach when profile and request allow it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PackagesConfig {
    /// Of pip (PEP 503), with its path (`/simple`); empty: none.
    pub pip_index: String,
    /// Of npm; empty: none.
    pub npm_registry: String,
    /// Of gem; empty: none.
    pub gem_source: String,
    /// Hosts besides the indexes' own that install steps reach: where an index keeps its files.
    pub hosts: Vec<String>,
    /// Certificates (PEM) that installers trust.
    pub ca_file: Option<PathBuf>,
}

/// `[pool]`: how many sandboxes are kept ready, of the kinds (runtime, image, profile, language) that were asked for lately.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PoolConfig {
    /// At once, of all kinds; 0 = no pool. Default 16.
    pub sandboxes_max: u32,
    /// Of each kind, at least; more are kept after a burst. Default 2.
    pub ready_min: u32,
    /// Memory of all of them, default 256 MiB.
    pub memory_bytes_max: u64,
    /// How long a kind is kept ready after somebody asked for it, default 600.
    pub keep_s: u64,
    /// Whether groups and process of the next sandbox are made after a session without a way out whose sandbox had to be made, default true.
    pub begin_ahead: bool,
}

/// `[runtimes]`: where engines are. Empty: on PATH, in the usual places, in an image of the engine's name; `off`: not used;
/// `image:NAME`: in that image; else a path.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RuntimesConfig {
    /// Deno.
    pub deno: String,
    /// Bun.
    pub bun: String,
    /// Node.js.
    pub nodejs: String,
    /// The socket of a Docker engine, or of Podman: a path, with or without `unix://`; `off`: not used. Empty: `DOCKER_HOST`, else the
    /// usual places.
    pub docker: String,
    /// WebAssembly: empty, or `off`.
    pub wasm: String,
    /// CPython for WASI: a module's path; empty: the installed one.
    pub wasm_python: String,
    /// QuickJS for WASI: a module's path; empty: the installed one.
    pub wasm_javascript: String,
    /// Where `codebeaker engines install` puts engines; absent: `engines` of the state directory.
    pub engines_dir: Option<PathBuf>,
    /// Whether start-up time and memory of each runtime are measured at the start.
    pub measure: bool,
    /// Sessions of V8Isolate that share one engine, default 16.
    pub isolates_per_engine: u64,
    /// Engines of V8Isolate at once, default 8.
    pub isolate_engines_max: u64,
    /// Executions after which an engine of V8Isolate takes no further session, default 1000.
    pub isolate_executions_max: u64,
    /// Places of an engine of V8Isolate that are opened before their session comes; 0 = none. Default 1.
    pub isolate_spares: u64,
    /// Memory of an engine of V8Isolate with all its isolates, in MiB; default 4096.
    pub isolate_engine_memory_mb: u64,
}

/// `[warm]`: interpreters that have started before their program is known.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct WarmConfig {
    /// Whether sessions have one, where their language can; default true.
    pub enabled: bool,
    /// Whether a session has it from its beginning, and not only after its first program; default false.
    pub at_create: bool,
    /// Whether sandboxes of the pool have it while they wait; default true.
    pub pooled: bool,
}

/// `[images]`: how much an image may hold before its import is refused, and which registries are spoken to without TLS.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ImagesConfig {
    /// Of all files of all layers, holes included; default 16 GiB.
    pub bytes_max: u64,
    /// Files, directories and links of all layers, default 2,000,000.
    pub entries_max: u64,
    /// Components of a path, default 1024.
    pub depth_max: u64,
    /// Layers of one image, default 512.
    pub layers_max: u64,
    /// Of one manifest, index or configuration, default 4 MiB.
    pub document_bytes_max: u64,
    /// Of the extended headers of one entry, default 1 MiB.
    pub header_bytes_max: u64,
    /// Of all names together, default 512 MiB.
    pub names_bytes_max: u64,
    /// Unpacked bytes for each packed byte, past the first 64 MiB; default 200.
    pub expansion_max: u64,
    /// Registries (`HOST[:PORT]`) that are spoken to in plain HTTP; empty by default.
    pub plain_http_registries: Vec<String>,
    /// Certificates in PEM that `image pull` believes beside those of the system; unset by default.
    pub ca_file: Option<PathBuf>,
}

/// `[log]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LogConfig {
    /// A tracing filter, default `info`.
    pub filter: String,
    /// `auto` (text on a terminal, JSON otherwise), `text` or `json`.
    pub format: LogFormat,
}

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[expect(missing_docs, reason = "said at `LogConfig::format`")]
pub enum LogFormat {
    Auto,
    Text,
    Json,
}

impl LogFormat {
    /// The word in the configuration.
    pub fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Text => "text",
            Self::Json => "json",
        }
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            state_dir: PathBuf::from("/var/lib/codebeaker"),
            server: ServerConfig::default(),
            session: SessionConfig::default(),
            sandbox: SandboxConfig::default(),
            network: NetworkConfig::default(),
            packages: PackagesConfig::default(),
            pool: PoolConfig::default(),
            runtimes: RuntimesConfig::default(),
            warm: WarmConfig::default(),
            images: ImagesConfig::default(),
            log: LogConfig::default(),
        }
    }
}

impl Default for ServerConfig {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 5000)),
            no_auth: false,
            allowed_hosts: Vec::new(),
            allowed_origins: Vec::new(),
            request_bytes_max: 16 << 20,
            response_bytes_max: 64 << 20,
            batch_max: 64,
            connections_max: 1024,
            requests_in_flight_max: 256,
            ping_interval_s: 120,
            ping_misses_max: 2,
            rate_limit_per_s: 0,
            rate_limit_burst: 0,
            shutdown_grace_s: 10,
            workers: 0,
        }
    }
}

impl Default for SessionConfig {
    fn default() -> Self {
        Self {
            sessions_max: 256,
            sessions_per_principal_max: 0,
            idle_timeout_minutes: 30,
            lifetime_minutes: 120,
            sweep_interval_s: 60,
            remember_s: 3600,
            queue_max: 256,
            background_max: 16,
            stream_buffer_bytes_max: 1 << 20,
            outcomes_max: 1000,
            outcome_bytes_max: 64 << 20,
            closed_max: 16_384,
        }
    }
}

impl Default for SandboxConfig {
    fn default() -> Self {
        Self {
            allow_degraded: Vec::new(),
            profiles: vec!["default".into(), "strict".into()],
            profile_dir: None,
            language_dir: None,
            io_bytes_per_s_max: 512 << 20,
            isolation_level_min: 0,
            package_dir: None,
        }
    }
}

impl Default for NetworkConfig {
    fn default() -> Self {
        Self {
            egress_allow: Vec::new(),
            hosts: Vec::new(),
            connections_max: 512,
            connections_per_session_max: 32,
            idle_timeout_s: 60,
            bytes_max: 4 << 30,
        }
    }
}

impl Default for PoolConfig {
    fn default() -> Self {
        Self { sandboxes_max: 16, ready_min: 2, memory_bytes_max: 256 << 20, keep_s: 600, begin_ahead: true }
    }
}

impl Default for RuntimesConfig {
    fn default() -> Self {
        Self {
            deno: String::new(),
            bun: String::new(),
            nodejs: String::new(),
            docker: String::new(),
            wasm: String::new(),
            wasm_python: String::new(),
            wasm_javascript: String::new(),
            engines_dir: None,
            measure: true,
            isolates_per_engine: 16,
            isolate_engines_max: 8,
            isolate_executions_max: 1000,
            isolate_spares: 1,
            isolate_engine_memory_mb: 4096,
        }
    }
}

impl Default for WarmConfig {
    fn default() -> Self {
        Self { enabled: true, at_create: false, pooled: true }
    }
}

impl Default for ImagesConfig {
    fn default() -> Self {
        Self {
            bytes_max: 16 << 30,
            entries_max: 2_000_000,
            depth_max: 1024,
            layers_max: 512,
            document_bytes_max: 4 << 20,
            header_bytes_max: 1 << 20,
            names_bytes_max: 512 << 20,
            expansion_max: 200,
            plain_http_registries: Vec::new(),
            ca_file: None,
        }
    }
}

impl Default for LogConfig {
    fn default() -> Self {
        Self { filter: "info".into(), format: LogFormat::Auto }
    }
}
