//! What a request may have: fills in what it leaves out, and refuses what its profile does not allow.
//!
//! Invariant: pure. A request may lower a limit freely and raise it up to the profile's maximum; whatever is in force stands
//! in the returned settings. Read `opening` next, which acts on them.

use std::num::NonZeroU64;
use std::time::Duration;

use crate::command::Command;
use crate::config::SessionConfig;
use crate::language::{Language, PACKAGES_MAX, validate_package};
use crate::runtime::engine::permissions::{PATH_TAKES, PATHS_MAX, is_path};
use crate::sandbox::profile::Profile;
use crate::sandbox::spec::{Limits, NamedLimits};

use super::api::{CreateSession, SessionError, SessionSettings};

/// Less memory than this can't hold init and an interpreter: 16 MiB.
const MEMORY_BYTES_MIN: u64 = 16 << 20;
/// The range of `--cpu-shares`.
const CPU_SHARES: std::ops::RangeInclusive<u64> = 2..=262_144;
/// Docker's default weight.
const CPU_SHARES_DEFAULT: u64 = 1024;
const MIB: u64 = 1 << 20;

/// What is in force for a session of this request under this profile, and which limits the request named.
pub(super) fn settle(
    request: &CreateSession,
    profile: &Profile,
    config: &SessionConfig,
) -> Result<(SessionSettings, NamedLimits), SessionError> {
    if let Some(permissions) = &request.permissions {
        paths("permissions.allowRead", &permissions.allow_read)?;
        paths("permissions.allowWrite", &permissions.allow_write)?;
    }
    let settings = SessionSettings {
        profile: profile.name.clone(),
        idle_timeout: duration("idleTimeoutMinutes", request.idle_timeout, config.idle_timeout_minutes)?,
        lifetime: duration("maxLifetimeMinutes", request.lifetime, config.lifetime_minutes)?,
        persist_filesystem: request.persist_filesystem,
        limits: limits(request, profile)?,
        env: request.env.clone(),
        on_disconnect: request.on_disconnect,
    };
    let named = NamedLimits {
        memory: request.memory_limit_bytes.is_some(),
        cpu_shares: request.cpu_shares.is_some_and(|shares| shares != CPU_SHARES_DEFAULT),
        cpu_cores: request.cpu_limit.is_some(),
        pids: request.pids_limit.is_some(),
        disk: request.disk_limit_bytes.is_some(),
    };
    Ok((settings, named))
}

/// Whatever runtime is taken: a path that one of them would read as two, or as a pattern, is refused by all.
fn paths(field: &str, paths: &[String]) -> Result<(), SessionError> {
    if paths.len() > PATHS_MAX || !paths.iter().all(|path| is_path(path)) {
        return Err(invalid(field, format!("at most {PATHS_MAX} {PATH_TAKES}")));
    }
    Ok(())
}

/// A profile that the operator does not offer.
pub(super) fn profile_denied(name: &str, allowed: &[String]) -> SessionError {
    SessionError::PolicyDenied {
        field: "profile".into(),
        message: format!("`profile`: `{name}` is not offered here"),
        hint: format!("take one of: {}", allowed.join(", ")),
    }
}

fn limits(request: &CreateSession, profile: &Profile) -> Result<Limits, SessionError> {
    let (defaults, maximum) = (&profile.defaults, &profile.maximum);
    let memory = Bound { field: "memoryLimitMB", unit: MIB, profile }.settle(
        request.memory_limit_bytes,
        defaults.memory_bytes,
        maximum.memory_bytes,
    )?;
    let memory_bytes = NonZeroU64::new(memory)
        .filter(|bytes| bytes.get() >= MEMORY_BYTES_MIN)
        .ok_or_else(|| invalid("memoryLimitMB", format!("at least {}", MEMORY_BYTES_MIN / MIB)))?;
    let pids = Bound { field: "pidsLimit", unit: 1, profile }.settle(request.pids_limit, defaults.pids, maximum.pids)?;
    let disk = Bound { field: "diskLimitMB", unit: MIB, profile }.settle(
        request.disk_limit_bytes,
        defaults.disk_bytes,
        maximum.disk_bytes,
    )?;
    let cpu_shares = request.cpu_shares.unwrap_or(CPU_SHARES_DEFAULT);
    if !CPU_SHARES.contains(&cpu_shares) {
        return Err(invalid("cpuShares", format!("{} to {}", CPU_SHARES.start(), CPU_SHARES.end())));
    }
    Ok(Limits {
        memory_bytes,
        cpu_shares,
        cpu_cores: cpu_cores(request.cpu_limit, profile)?,
        pids,
        // A tmpfs is charged to the session's memory, so it gets at most half of it.
        disk_bytes: disk.min(memory_bytes.get() / 2),
        inodes: defaults.inodes,
        output_kept_bytes: defaults.output_kept_bytes,
        output_killed_bytes: defaults.output_killed_bytes,
        timeout: defaults.timeout,
        timeout_max: maximum.timeout.max(defaults.timeout),
        open_files: defaults.open_files,
    })
}

/// One limit that a request may name.
struct Bound<'a> {
    field: &'static str,
    /// Of the field on the wire, in the limit's own unit.
    unit: u64,
    profile: &'a Profile,
}

impl Bound<'_> {
    fn settle(&self, asked: Option<u64>, default: u64, maximum: u64) -> Result<u64, SessionError> {
        match asked {
            None => Ok(default),
            Some(0) => Err(invalid(self.field, "at least 1".into())),
            Some(value) if value > maximum => Err(above(self.field, &(maximum / self.unit).to_string(), self.profile)),
            Some(value) => Ok(value),
        }
    }
}

fn cpu_cores(asked: Option<f64>, profile: &Profile) -> Result<Option<f64>, SessionError> {
    let Some(cores) = asked else { return Ok(profile.defaults.cpu_cores) };
    if !cores.is_finite() || cores <= 0.0 {
        return Err(invalid("cpuLimit", "a number of cores above 0".into()));
    }
    match profile.maximum.cpu_cores {
        Some(maximum) if cores > maximum => Err(above("cpuLimit", &maximum.to_string(), profile)),
        Some(_) | None => Ok(Some(cores)),
    }
}

fn above(field: &str, maximum: &str, profile: &Profile) -> SessionError {
    SessionError::PolicyDenied {
        field: field.into(),
        message: format!("`{field}`: the profile `{}` allows at most {maximum}", profile.name),
        hint: format!("ask for {maximum} or less"),
    }
}

fn invalid(field: &str, takes: String) -> SessionError {
    SessionError::InvalidField { field: field.into(), message: takes }
}

fn duration(field: &str, asked: Option<Duration>, default_minutes: u32) -> Result<Duration, SessionError> {
    match asked {
        None => Ok(Duration::from_secs(u64::from(default_minutes) * 60)),
        Some(Duration::ZERO) => Err(invalid(field, "above 0".into())),
        Some(duration) => Ok(duration),
    }
}

/// Refuses packages that the language does not have, and names that could be anything but a package's.
pub(super) fn check_packages(field: &str, language: &Language, packages: &[String]) -> Result<(), SessionError> {
    if packages.is_empty() {
        return Ok(());
    }
    if language.install.is_none() {
        return Err(invalid(field, format!("no packages can be installed for {}", language.name)));
    }
    if packages.len() > PACKAGES_MAX {
        return Err(invalid(field, format!("at most {PACKAGES_MAX} packages")));
    }
    packages
        .iter()
        .try_for_each(|package| validate_package(language, package))
        .map_err(|error| invalid(field, error.to_string()))
}

/// The packages that a command asks for, in the language it is for.
pub(super) fn check_command_packages(command: &Command, language: &Language) -> Result<(), SessionError> {
    match command {
        Command::ExecuteCode(code) => check_packages("command.packages", language, &code.packages),
        Command::InstallPackages(install) => {
            if install.requirements_file.is_some() && language.install_file.is_none() {
                let message = format!("{} has no requirements file", language.name);
                return Err(invalid("command.requirementsFile", message));
            }
            check_packages("command.packages", language, &install.packages)
        }
        Command::ExecuteShell(_)
        | Command::WriteFile(_)
        | Command::ReadFile(_)
        | Command::CreateDirectory(_)
        | Command::CopyFile(_)
        | Command::DeleteFile(_)
        | Command::ListDirectory(_) => Ok(()),
    }
}

/// Refuses a command that asks for more wall time than the session may have.
pub(super) fn check_timeout(command: &Command, limits: &Limits) -> Result<(), SessionError> {
    let asked = match command {
        Command::ExecuteShell(shell) => shell.timeout,
        Command::ExecuteCode(code) => code.timeout,
        Command::WriteFile(_)
        | Command::ReadFile(_)
        | Command::CreateDirectory(_)
        | Command::CopyFile(_)
        | Command::DeleteFile(_)
        | Command::ListDirectory(_)
        | Command::InstallPackages(_) => None,
    };
    let most = limits.timeout_max.as_secs();
    match asked {
        Some(seconds) if u64::from(seconds.get()) > most => Err(SessionError::PolicyDenied {
            field: "timeoutSeconds".into(),
            message: format!("a command of this session may take {most} s at most, not {seconds}"),
            hint: format!("ask for {most} or less, or for a session under a profile that allows more"),
        }),
        Some(_) | None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::api::Permissions;
    use crate::session::tests::simulated::{profile, request};

    fn settled(request: &CreateSession) -> Result<SessionSettings, SessionError> {
        settle(request, &profile(), &SessionConfig::default()).map(|(settings, _)| settings)
    }

    #[test]
    fn what_is_left_out_comes_from_profile_and_configuration() {
        let settings = settled(&request()).expect("nothing is asked for");
        assert_eq!(settings.limits.memory_bytes.get(), profile().defaults.memory_bytes);
        assert_eq!(settings.limits.cpu_shares, 1024);
        assert_eq!(settings.idle_timeout, Duration::from_secs(30 * 60));
        assert_eq!(settings.lifetime, Duration::from_secs(120 * 60));
    }

    #[test]
    fn a_limit_may_be_raised_to_the_maximum_and_no_further() {
        let maximum = profile().maximum.memory_bytes;
        let ask = |bytes| settled(&CreateSession { memory_limit_bytes: Some(bytes), ..request() });
        assert_eq!(ask(maximum).expect("the control").limits.memory_bytes.get(), maximum);
        match ask(maximum + 1) {
            Err(SessionError::PolicyDenied { field, message, .. }) => {
                assert_eq!(field, "memoryLimitMB");
                assert!(message.contains(&(maximum / MIB).to_string()), "{message}");
            }
            other => panic!("{other:?}"),
        }
        assert!(matches!(ask(MEMORY_BYTES_MIN - 1), Err(SessionError::InvalidField { .. })));
    }

    #[test]
    fn the_disk_gets_at_most_half_of_the_memory() {
        let memory = 64 * MIB;
        let asked = CreateSession { memory_limit_bytes: Some(memory), disk_limit_bytes: Some(60 * MIB), ..request() };
        assert_eq!(settled(&asked).expect("allowed").limits.disk_bytes, memory / 2);
        let less = CreateSession { disk_limit_bytes: Some(10 * MIB), ..asked };
        assert_eq!(settled(&less).expect("allowed").limits.disk_bytes, 10 * MIB);
    }

    #[test]
    fn the_range_of_each_cpu_limit_is_kept() {
        let shares = |shares| settled(&CreateSession { cpu_shares: Some(shares), ..request() }).is_ok();
        assert_eq!([1, 2, 262_144, 262_145].map(shares), [false, true, true, false]);
        let cores = |cores| settled(&CreateSession { cpu_limit: Some(cores), ..request() }).is_ok();
        assert_eq!([0.0, -1.0, f64::NAN, 0.5, 4.0, 4.5].map(cores), [false, false, false, true, true, false]);
    }

    #[test]
    fn a_permission_that_would_be_two_paths_or_a_pattern_is_refused_and_its_field_named() {
        let ask = |allow_read: &[&str]| {
            let allow_read = allow_read.iter().map(|path| (*path).to_owned()).collect();
            settled(&CreateSession { permissions: Some(Permissions { allow_read, ..Permissions::default() }), ..request() })
        };
        assert!(ask(&["/workspace/a b", "data"]).is_ok());
        for path in ["/a,/etc", "/*", ""] {
            assert!(
                matches!(ask(&[path]), Err(SessionError::InvalidField { field, .. }) if field == "permissions.allowRead"),
                "{path}"
            );
        }
        assert!(ask(&["/a"; PATHS_MAX + 1]).is_err());
    }
}
