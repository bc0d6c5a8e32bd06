//! What a runtime has to make in a sandbox before sessions can use it: an engine that is compiled once.
//!
//! Invariants: it is made behind the same walls as everything else, by nothing of a session's; the server takes the result for bytes
//! and never for code; whoever waits for it gives up without ending it.

use std::num::NonZeroU64;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;

use crate::command::{Command, CommandOutput, Encoding, ReadFile, SessionPath};
use crate::id::{EnvironmentId, ExecutionId};
use crate::language::Language;
use crate::runtime::egress::NetworkGrant;
use crate::runtime::{ExecutionRequest, Instance, InstanceConfig, OutputSink, OutputVerdict, Runtime, Wants};
use crate::sandbox::error::SandboxError;
use crate::sandbox::spec::{Limits, NamedLimits};

use super::{NativeRuntime, ask};

/// How long a session that needs it is kept waiting.
const WAIT_MAX: Duration = Duration::from_secs(120);

/// How long making it may take.
const TIME_MAX: Duration = Duration::from_secs(900);

const MEMORY_BYTES: NonZeroU64 = NonZeroU64::new(2 << 30).expect("not zero");
const DISK_BYTES: u64 = 1 << 30;

/// Bytes that one command reads of the result.
const PART_BYTES: u64 = 8 << 20;

/// Largest result.
const RESULT_BYTES_MAX: usize = 512 << 20;

/// Something to be made.
pub struct Preparation {
    /// The program that makes it, and its arguments.
    pub arguments: Vec<String>,
    /// The file that it makes.
    pub result: String,
}

impl NativeRuntime {
    /// Makes what sessions in this language need and do not have yet.
    pub(super) async fn prepare(&self, config: &InstanceConfig) -> Result<(), SandboxError> {
        if self.flavour.preparation(&config.language).is_none() {
            return Ok(());
        }
        let runtime = self.itself.upgrade().ok_or_else(|| SandboxError::Internal("the runtime is going down".into()))?;
        let own = config.clone();
        let work = tokio::spawn(async move { runtime.prepare_now(own).await });
        match tokio::time::timeout(WAIT_MAX, work).await {
            Ok(Ok(Ok(()))) => Ok(()),
            Ok(Ok(Err(cause))) => Err(SandboxError::RuntimeUnusable { runtime: self.kind().name().into(), cause }),
            Ok(Err(_)) => Err(SandboxError::Internal("making what the runtime needs failed".into())),
            Err(_) => {
                Err(SandboxError::Busy { cause: "the engine of this language is being compiled, once for this host".into() })
            }
        }
    }

    async fn prepare_now(&self, config: InstanceConfig) -> Result<(), String> {
        let _one_at_a_time = self.preparing.lock().await;
        let language = Arc::clone(&config.language);
        let Some(preparation) = self.flavour.preparation(&language) else { return Ok(()) };
        let made = self.produce(config, &preparation).await;
        self.flavour.prepared(&language, made)
    }

    async fn produce(&self, config: InstanceConfig, preparation: &Preparation) -> Result<Vec<u8>, String> {
        let limits = Limits {
            memory_bytes: MEMORY_BYTES,
            disk_bytes: DISK_BYTES,
            timeout: TIME_MAX,
            timeout_max: TIME_MAX,
            ..config.limits.clone()
        };
        // The language's own interpreter is not on this root, so none is kept warm.
        let language = Arc::new(Language { warm: None, ..config.language.as_ref().clone() });
        let config = InstanceConfig {
            environment_id: EnvironmentId::random(),
            language,
            limits,
            named_limits: NamedLimits::default(),
            env: std::collections::BTreeMap::new(),
            persist_filesystem: true,
            permissions: None,
            network: NetworkGrant::None,
            wants: Wants::New,
            ..config
        };
        let instance = self.instance(config).await.map_err(|error| error.to_string())?;
        let said = ask::ask(instance.as_ref(), preparation.arguments.clone()).await;
        let made = match said {
            Ok(_) => read(instance.as_ref(), &preparation.result).await,
            Err(cause) => Err(cause),
        };
        instance.close().await;
        made
    }
}

struct Nowhere;

impl OutputSink for Nowhere {
    fn started(&self) {}

    fn write(&self, _: crate::command::Stream, _: &[u8]) -> OutputVerdict {
        OutputVerdict::Continue
    }
}

async fn read(instance: &dyn Instance, path: &str) -> Result<Vec<u8>, String> {
    let path = SessionPath::parse(path)?;
    let mut all = Vec::new();
    loop {
        let part =
            ReadFile { path: path.clone(), encoding: Encoding::Base64, offset: all.len() as u64, length: Some(PART_BYTES) };
        let (_sender, control) = mpsc::channel(1);
        let command = Command::ReadFile(part);
        let request = ExecutionRequest { id: ExecutionId::random(), command, sink: Arc::new(Nowhere), control };
        let result = instance.execute(request).await;
        match (result.output, result.failure) {
            (Some(CommandOutput::Read { content, .. }), None) if !content.is_empty() => all.extend_from_slice(&content),
            (Some(CommandOutput::Read { .. }), None) => return Ok(all),
            (_, failure) => {
                return Err(failure.map_or_else(|| "the result could not be read".into(), |failure| failure.message));
            }
        }
        if all.len() > RESULT_BYTES_MAX {
            return Err(format!("the result has more than {} MiB", RESULT_BYTES_MAX >> 20));
        }
    }
}
