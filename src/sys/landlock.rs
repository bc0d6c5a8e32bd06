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
///
/// As soon as another layer has file rules, a layer that says nothing of moving files between directories forbids it:
/// landlock(7), LANDLOCK_ACCESS_FS_REFER. So this one allows it everywhere, and leaves it to the rules of programs.
pub fn restrict_scopes() -> Result<RestrictionStatus, CallError> {
    let root = place("/")?;
    let restricted = || -> Result<RestrictionStatus, RulesetError> {
        Ruleset::default()
            .set_compatibility(CompatLevel::HardRequirement)
            .handle_access(AccessFs::Refer)?
            .scope(Scope::from_all(ABI::V6))?
            .create()?
            .add_rule(PathBeneath::new(root, AccessFs::Refer))?
            .no_new_privs(false)
            .restrict_self()
    };
    restricted().map_err(|error| refused(&error))
}

/// Rules for programs: everything may be read and executed, only `writable` may be changed, nowhere may devices be made.
/// An error also where the kernel has no Landlock: who asks for rules must not get none.
pub fn file_rules(writable: &[String]) -> Result<OwnedFd, CallError> {
    let abi = ABI::V5;
    let read = AccessFs::from_read(abi);
    let devices = AccessFs::MakeChar | AccessFs::MakeBlock;
    let root = place("/")?;
    let writable = writable.iter().map(|path| place(path)).collect::<Result<Vec<PathFd>, CallError>>()?;
    let made = || -> Result<Option<OwnedFd>, RulesetError> {
        let rules =
            Ruleset::default().set_compatibility(CompatLevel::BestEffort).handle_access(AccessFs::from_all(abi))?.create()?;
        let rules = rules.add_rule(PathBeneath::new(root, read | AccessFs::IoctlDev))?;
        let change = AccessFs::from_all(abi) & !devices;
        let rules = writable.into_iter().try_fold(rules, |rules, place| rules.add_rule(PathBeneath::new(place, change)))?;
        Ok(rules.into())
    };
    // What the crate leaves out where it finds no Landlock is everything.
    made().map_err(|error| refused(&error))?.ok_or(CallError { call: "landlock", errno: Errno::OPNOTSUPP })
}

fn place(path: &str) -> Result<PathFd, CallError> {
    PathFd::new(path).map_err(|error| refused(&error))
}

/// The crate's errors carry the errno as their innermost source.
fn refused(error: &(dyn std::error::Error + 'static)) -> CallError {
    let mut source = Some(error);
    let mut errno = Errno::OPNOTSUPP;
    while let Some(current) = source {
        if let Some(found) = current.downcast_ref::<std::io::Error>().and_then(Errno::from_io_error) {
            errno = found;
        }
        source = current.source();
    }
    CallError { call: "landlock", errno }
}

/// Applies rules to this process and all it will make; the set can be applied again by the next program.
pub fn apply(rules: BorrowedFd<'_>) -> Result<(), CallError> {
    // SAFETY: integers only; the descriptor is open through the call.
    match unsafe { libc::syscall(libc::SYS_landlock_restrict_self, rules.as_raw_fd(), 0) } {
        0 => Ok(()),
        _ => Err(CallError::last("landlock_restrict_self")),
    }
}
