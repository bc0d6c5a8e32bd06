//! Landlock through its crate. Rule sets are made once and applied per program.

use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use landlock::{
    ABI, Access, AccessFs, CompatLevel, Compatible, PathBeneath, PathFd, RestrictionStatus, Ruleset, RulesetAttr,
    RulesetCreatedAttr, RulesetError, Scope,
};

use rustix::io::Errno;

use super::error::CallError;

/// Which version of Landlock the kernel offers; 0 = none.
pub fn abi() -> u32 {
    // SAFETY: with a null attribute and the version flag the call only answers a number.
    let version = unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, std::ptr::null::<u8>(), 0, 1) };
    u32::try_from(version).unwrap_or(0)
}

/// Restricts this process and all it will make: no signal to and no abstract socket of anything outside.
pub fn restrict_scopes() -> Result<RestrictionStatus, CallError> {
    restrict().map_err(|error| refused(&error))
}

/// As soon as another layer has file rules, a layer that says nothing of moving files between directories forbids it:
/// landlock(7), LANDLOCK_ACCESS_FS_REFER. So this one allows it everywhere, and leaves it to the rules of programs.
fn restrict() -> Result<RestrictionStatus, RulesetError> {
    let created = Ruleset::default()
        .set_compatibility(CompatLevel::HardRequirement)
        .handle_access(AccessFs::Refer)?
        .scope(Scope::from_all(ABI::V6))?
        .create()?;
    let created = match PathFd::new("/") {
        Ok(root) => created.add_rule(PathBeneath::new(root, AccessFs::Refer))?,
        Err(_) => created,
    };
    created.no_new_privs(false).restrict_self()
}

/// Rules for programs: everything may be read and executed, only `writable` may be changed, nowhere may devices be made.
/// Absent where the kernel has no Landlock.
pub fn file_rules(writable: &[String]) -> Result<Option<OwnedFd>, CallError> {
    rules(writable).map_err(|error| refused(&error))
}

/// The crate's errors carry the errno as their innermost source.
fn refused(error: &RulesetError) -> CallError {
    let mut source: Option<&(dyn std::error::Error + 'static)> = Some(error);
    let mut errno = Errno::OPNOTSUPP;
    while let Some(current) = source {
        if let Some(found) = current.downcast_ref::<std::io::Error>().and_then(Errno::from_io_error) {
            errno = found;
        }
        source = current.source();
    }
    CallError { call: "landlock", errno }
}

fn rules(writable: &[String]) -> Result<Option<OwnedFd>, RulesetError> {
    let abi = ABI::V5;
    let read = AccessFs::from_read(abi);
    let devices = AccessFs::MakeChar | AccessFs::MakeBlock;
    let mut rules =
        Ruleset::default().set_compatibility(CompatLevel::BestEffort).handle_access(AccessFs::from_all(abi))?.create()?;
    if let Ok(root) = PathFd::new("/") {
        rules = rules.add_rule(PathBeneath::new(root, read | AccessFs::IoctlDev))?;
    }
    for path in writable {
        let Ok(place) = PathFd::new(path) else { continue };
        rules = rules.add_rule(PathBeneath::new(place, AccessFs::from_all(abi) & !devices))?;
    }
    Ok(rules.into())
}

/// Applies rules to this process and all it will make; the set can be applied again by the next program.
pub fn apply(rules: BorrowedFd<'_>) -> Result<(), CallError> {
    // SAFETY: integers only; the descriptor is open through the call.
    match unsafe { libc::syscall(libc::SYS_landlock_restrict_self, rules.as_raw_fd(), 0) } {
        0 => Ok(()),
        _ => Err(CallError::last("landlock_restrict_self")),
    }
}
