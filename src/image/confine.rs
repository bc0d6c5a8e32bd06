//! The process that reads an image gives up what it does not need before it reads the first byte.
//!
//! Invariant: it stands in user, mount, network, ipc and uts namespaces of its own, its root is the directory it fills, it holds no
//! capability beyond those for owning files (and those over nothing but its namespace), can't gain any, and may make only the
//! calls of `profiles/seccomp/unpack.json`. A wall that can't be built ends the import; only Landlock is left out where the
//! kernel has none, and the import says so.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};

use landlock::{
    ABI, Access, AccessFs, BitFlags, PathBeneath, RestrictionStatus, Ruleset, RulesetAttr, RulesetCreatedAttr, RulesetError,
    RulesetStatus,
};
use rustix::thread::CapabilitySet;
use serde::{Deserialize, Serialize};

use super::ImageError;
use super::tree::Ownership;
use super::unpack::{Input, Job, Places};
use crate::seccomp::compile::compile;
use crate::seccomp::model::SeccompProfile;
use crate::seccomp::resolve::{Target, resolve};
use crate::seccomp::{Arch, KernelVersion};
use crate::sys::channel::ChannelError;
use crate::sys::seccomp as syscalls;
use crate::sys::{CallError, credentials, mount, process};

const SECCOMP: &str = include_str!("../../profiles/seccomp/unpack.json");
/// Address space: the names of an import in memory and a window of zstd, with room.
const ADDRESS_BYTES_MAX: u64 = 4 << 30;
const DESCRIPTORS_MAX: u64 = 64;

/// What holds the process besides the walls that must.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Confined {
    /// Landlock's file rules.
    pub(super) landlock: bool,
}

/// Asks the parent for id maps, and waits for them.
pub(super) type Maps<'a> = &'a mut dyn FnMut() -> Result<(), ChannelError>;

fn wall<E: std::fmt::Display>(step: &'static str) -> impl FnOnce(E) -> ImageError {
    move |error| ImageError::Confine { step: step.into(), cause: error.to_string() }
}

/// Confines this process: it has one thread, and nothing of the image has been read.
pub(super) fn confine_process(places: &mut Places, job: &Job, maps: Maps<'_>) -> Result<Confined, ImageError> {
    let filters = filters()?;
    rustix::process::fchdir(&places.work).map_err(wall("fchdir"))?;
    process::unshare_for_unpacking().map_err(wall("unshare"))?;
    maps().map_err(wall("user namespace"))?;
    places.work = File::from(own_root().map_err(wall("mount namespace"))?);
    limits().map_err(wall("rlimits"))?;
    let kept = match job.ownership {
        Ownership::Kept => CapabilitySet::CHOWN | CapabilitySet::DAC_OVERRIDE | CapabilitySet::FOWNER,
        Ownership::Own => CapabilitySet::empty(),
    };
    capabilities(kept).map_err(wall("capabilities"))?;
    process::set_no_new_privs().map_err(wall("no_new_privs"))?;
    process::hide_from_tracers().map_err(wall("dumpable"))?;
    process::die_with_parent().map_err(wall("parent's end"))?;
    let source = match job.input {
        Input::Directory | Input::Blobs(_) => Some(places.source.as_fd()),
        Input::File => None,
    };
    let status = landlock(places.work.as_fd(), source).map_err(wall("Landlock"))?;
    for filter in &filters {
        syscalls::install(filter).map_err(wall("seccomp"))?;
    }
    Ok(Confined { landlock: status.ruleset != RulesetStatus::NotEnforced })
}

/// The working directory becomes the root; the host goes out of view.
fn own_root() -> Result<std::os::fd::OwnedFd, CallError> {
    mount::make_all_private()?;
    // The working directory followed into the new namespace; a descriptor from before would not.
    let here = mount::open_directory(c".")?;
    let tree = mount::clone_tree(here.as_fd(), c"")?;
    let attributes = mount::attribute::NO_SETUID | mount::attribute::NO_DEVICES | mount::attribute::NO_EXEC;
    mount::restrict(tree.as_fd(), attributes)?;
    mount::attach(tree.as_fd(), here.as_fd())?;
    mount::pivot(tree.as_fd())?;
    mount::drop_old_root()?;
    mount::open_directory(c"/")
}

fn limits() -> Result<(), CallError> {
    process::set_rlimit(libc::RLIMIT_CORE, 0)?;
    process::set_rlimit(libc::RLIMIT_AS, ADDRESS_BYTES_MAX)?;
    process::set_rlimit(libc::RLIMIT_NOFILE, DESCRIPTORS_MAX)
}

fn capabilities(kept: CapabilitySet) -> Result<(), CallError> {
    credentials::bound_capabilities(0)?;
    credentials::clear_ambient_set()?;
    credentials::set_capabilities(kept.bits(), kept.bits(), 0)
}

fn filters() -> Result<Vec<Vec<u8>>, ImageError> {
    let profile: SeccompProfile = serde_json::from_str(SECCOMP).map_err(wall("seccomp"))?;
    let arch = Arch::native().ok_or_else(|| wall("seccomp")("this architecture has no filters"))?;
    // No rule of the profile depends on the kernel's version.
    let target = Target { arch, kernel: KernelVersion { major: 0, minor: 0 }, capabilities: &[] };
    let resolved = resolve(&profile, target).map_err(wall("seccomp"))?;
    compile(&resolved).map_err(wall("seccomp"))
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
    use std::path::Path;

    use super::*;
    use crate::seccomp::{Action, Invocation, decide};

    #[test]
    fn the_filters_allow_what_an_import_needs_and_nothing_that_leads_out() {
        let filters = filters().expect("the profile compiles");
        let arch = Arch::native().expect("a known architecture");
        let verdict = |name: &str| {
            let number = arch.number(name).unwrap_or_else(|| panic!("{name} has a number"));
            decide(&filters, &Invocation::native(arch, number, [0; 6])).expect("a verdict")
        };
        for name in ["openat2", "linkat", "fchownat", "write", "sendmsg"] {
            assert_eq!(verdict(name), Action::Allow, "{name}");
        }
        for name in ["execve", "socket", "mount", "unshare", "mknodat", "ptrace", "setuid", "connect", "kill", "recvmsg"] {
            assert!(!verdict(name).permits(), "{name}");
        }
    }

    #[test]
    fn landlock_lets_the_thread_reach_only_what_it_fills_and_copies() {
        let dir = tempfile::tempdir().expect("a directory");
        for name in ["target", "source", "other"] {
            std::fs::create_dir(dir.path().join(name)).expect("a directory");
            std::fs::write(dir.path().join(name).join("file"), "").expect("a file");
        }
        let open = |name: &str| File::open(dir.path().join(name)).expect("the directory");
        let (target, source) = (open("target"), open("source"));
        let path = |name: &str| dir.path().join(name);
        let reads = |path: &Path| File::open(path).is_ok();
        assert!(reads(&path("other/file")), "the control: before");
        let (status, read, written) = std::thread::scope(|scope| {
            let confined = scope.spawn(|| {
                let status = landlock(target.as_fd(), Some(source.as_fd())).expect("confined").ruleset;
                assert!(std::fs::write(path("target/new"), "").is_ok() && reads(&path("source/file")));
                (status, reads(&path("other/file")), std::fs::write(path("source/new"), "").is_ok())
            });
            confined.join().expect("the thread")
        });
        match status {
            RulesetStatus::NotEnforced => eprintln!("skipped: this kernel has no Landlock for the thread's file rules"),
            RulesetStatus::FullyEnforced | RulesetStatus::PartiallyEnforced => assert_eq!((read, written), (false, false)),
        }
        assert!(reads(&path("other/file")), "the thread's confinement ended with it");
    }
}
