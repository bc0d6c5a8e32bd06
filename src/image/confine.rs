//! The thread that reads an image gives up what it does not need before it reads the first byte.
//!
//! Invariant: it holds no capability beyond those for owning files, and, where the kernel has Landlock, reaches no file outside
//! the directory it fills and the directory it copies. Both belong to the thread and end with it.

use std::os::fd::BorrowedFd;

use landlock::{
    ABI, Access, AccessFs, BitFlags, PathBeneath, RestrictionStatus, Ruleset, RulesetAttr, RulesetCreatedAttr, RulesetError,
    RulesetStatus,
};
use rustix::thread::{CapabilitySet, CapabilitySets};

use super::ImageError;

/// Confines the calling thread: it may write below `target` and read below `source`. The answer says how far
/// the kernel's Landlock holds it to that; where it does not, the writer's own openat2 rules still stand.
pub(super) fn confine_thread(target: BorrowedFd<'_>, source: Option<BorrowedFd<'_>>) -> Result<RulesetStatus, ImageError> {
    drop_capabilities().map_err(|errno| ImageError::Confine { step: "capset", cause: errno.to_string() })?;
    let status = landlock(target, source);
    let status = status.map_err(|error| ImageError::Confine { step: "Landlock", cause: error.to_string() })?;
    Ok(status.ruleset)
}

fn drop_capabilities() -> Result<(), rustix::io::Errno> {
    let needed = CapabilitySet::CHOWN | CapabilitySet::DAC_OVERRIDE | CapabilitySet::FOWNER;
    let held = rustix::thread::capabilities(None)?;
    let kept = held.permitted & needed;
    let sets = CapabilitySets { effective: kept, permitted: kept, inheritable: CapabilitySet::empty() };
    rustix::thread::set_capabilities(None, sets)
}

fn landlock(target: BorrowedFd<'_>, source: Option<BorrowedFd<'_>>) -> Result<RestrictionStatus, RulesetError> {
    let abi = ABI::V3;
    let special = AccessFs::MakeChar | AccessFs::MakeBlock | AccessFs::MakeFifo | AccessFs::MakeSock | AccessFs::Execute;
    let write: BitFlags<AccessFs> = AccessFs::from_all(abi) & !special;
    let mut ruleset =
        Ruleset::default().handle_access(AccessFs::from_all(abi))?.create()?.add_rule(PathBeneath::new(target, write))?;
    if let Some(source) = source {
        let read = AccessFs::ReadFile | AccessFs::ReadDir;
        ruleset = ruleset.add_rule(PathBeneath::new(source, read))?;
    }
    ruleset.restrict_self()
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::AsFd;
    use std::path::Path;

    use super::*;

    fn reads(path: &Path) -> bool {
        File::open(path).is_ok()
    }

    #[test]
    fn the_confined_thread_reaches_only_what_it_fills_and_copies() {
        let dir = tempfile::tempdir().expect("a directory");
        for name in ["target", "source", "other"] {
            std::fs::create_dir(dir.path().join(name)).expect("a directory");
            std::fs::write(dir.path().join(name).join("file"), "").expect("a file");
        }
        let open = |name: &str| File::open(dir.path().join(name)).expect("the directory");
        let (target, source) = (open("target"), open("source"));
        let path = |name: &str| dir.path().join(name);
        assert!(reads(&path("other/file")), "the control: before");
        let status = std::thread::scope(|scope| {
            let confined = scope.spawn(|| {
                let landlock = confine_thread(target.as_fd(), Some(source.as_fd())).expect("confined");
                let held = rustix::thread::capabilities(None).expect("the capabilities");
                assert!(!held.permitted.intersects(CapabilitySet::SYS_ADMIN | CapabilitySet::MKNOD | CapabilitySet::SETUID));
                assert!(std::fs::write(path("target/new"), "").is_ok() && reads(&path("source/file")));
                (landlock, reads(&path("other/file")), std::fs::write(path("source/new"), "").is_ok())
            });
            confined.join().expect("the thread")
        });
        match status {
            (RulesetStatus::NotEnforced, ..) => eprintln!("skipped: this kernel has no Landlock for the thread's file rules"),
            (RulesetStatus::FullyEnforced | RulesetStatus::PartiallyEnforced, read, written) => {
                assert_eq!((read, written), (false, false));
            }
        }
        assert!(reads(&path("other/file")), "the thread's confinement ended with it");
    }
}
