//! `execution.run`: one program in a session of its own that nobody sees.
//!
//! Invariant: the session closes when the program's result is kept, whatever it was. Read `opening` next.

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::sync::Arc;

use crate::command::{Command, CommandKind, ExecuteCode, Stdin};
use crate::id::ExecutionId;

use super::admission;
use super::api::{CreateSession, Permissions, Principal, RunOnce, SessionError};
use super::cause::CloseCause;
use super::manager::{Manager, Shared};
use super::network::{self, Asked};
use super::opening::{self, Opening};
use super::output::Output;
use super::session::Visibility;

/// What rpc fills in for `memoryLimit`; a request that says the same is held to have named nothing.
const MEMORY_BYTES_DEFAULT: u64 = 512 << 20;
/// What rpc fills in for `cpuLimit`.
const CPU_CORES_DEFAULT: f64 = 1.0;

impl Manager {
    /// Answers at once; makes a session of its own, runs, closes.
    pub async fn run_once(&self, principal: &Principal, request: RunOnce) -> Result<ExecutionId, SessionError> {
        let session = self.session_for(&request);
        // The same is asked of the session's permissions; here it is refused under the name that the request has for it.
        let asked = Asked {
            programs: request.network_enabled.then_some("networkEnabled"),
            installs: request.allow_package_index.then_some("allowPackageIndex"),
        };
        network::grant(asked, self.profile(&session.profile)?.as_ref(), &self.shared.config)?;
        let mut opening = self.prepare_asking(principal, &session, &[CommandKind::ExecuteCode], Visibility::Internal).await?;
        opening.config.named_limits.memory &= request.memory_limit_bytes != MEMORY_BYTES_DEFAULT;
        opening.config.named_limits.cpu_cores &= (request.cpu_limit - CPU_CORES_DEFAULT).abs() > f64::EPSILON;
        admission::check_packages("packages", &opening.config.language, &request.packages)?;
        let command = command(&request)?;
        let most = opening.settings.limits.timeout_max;
        if request.timeout > most {
            let message = format!("at most {}", most.as_secs());
            return Err(SessionError::InvalidField { field: "timeout".into(), message });
        }
        let execution = ExecutionId::random();
        self.shared.outcomes.queued(principal, &execution, None);
        tokio::spawn(run(Arc::clone(&self.shared), opening, execution.clone(), command));
        Ok(execution)
    }

    fn session_for(&self, request: &RunOnce) -> CreateSession {
        let offered = &self.shared.config.sandbox.profiles;
        let profile = offered.iter().find(|name| *name == "default").or_else(|| offered.first());
        let permissions = Permissions {
            allow_net: request.network_enabled,
            allow_package_index: request.allow_package_index,
            ..Permissions::default()
        };
        // The command installs packages itself, so that a failure is the execution's own.
        CreateSession {
            permissions: (request.network_enabled || request.allow_package_index).then_some(permissions),
            preference: request.preference,
            runtime: request.runtime,
            profile: profile.cloned().unwrap_or_else(|| "default".into()),
            memory_limit_bytes: Some(request.memory_limit_bytes),
            cpu_limit: Some(request.cpu_limit),
            ..CreateSession::of(&request.language)
        }
    }
}

fn command(request: &RunOnce) -> Result<Command, SessionError> {
    let seconds = u32::try_from(request.timeout.as_secs()).ok().and_then(NonZeroU32::new);
    let timeout = seconds
        .ok_or_else(|| SessionError::InvalidField { field: "timeout".into(), message: "whole seconds, at least 1".into() })?;
    Ok(Command::ExecuteCode(ExecuteCode {
        code: request.code.clone(),
        language: None,
        packages: request.packages.clone(),
        args: Vec::new(),
        env: BTreeMap::new(),
        stdin: Stdin::Empty,
        timeout: Some(timeout),
    }))
}

async fn run(shared: Arc<Shared>, opening: Opening, execution: ExecutionId, command: Command) {
    let principal = opening.principal.clone();
    let session = match opening::open(&shared, opening).await {
        Ok(session) => session,
        Err(error) => return shared.outcomes.refused(&principal, &execution, error.to_string()),
    };
    let output = Arc::new(session.with_view(|view| Output::captured_only(&view.config.limits)));
    match session.submit(execution.clone(), command, output) {
        // Either way the ticket has written the outcome.
        Ok(result) => drop(result.await),
        Err(error) => shared.outcomes.refused(&principal, &execution, error.to_string()),
    }
    session.request_close(CloseCause::Finished);
}
