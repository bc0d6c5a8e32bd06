//! The interpreter of a plan's inside steps: one arm a step, no decisions.
//!
//! Targets below the new root are opened component by component without following any link, so an image can't lead a mount
//! elsewhere.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::io::Errno;

use crate::plan::messages::Go;
use crate::plan::{Missing, Place, Plan, Slot, Step, StepFailure};
use crate::sys::channel::Received;
use crate::sys::{CallError, credentials, landlock, mount, network, process};

/// What the steps leave for the time after them.
#[derive(Debug)]
pub struct Built {
    /// The sandbox's `/`.
    pub root: OwnedFd,
    /// Something on each file system that carries the quota.
    pub quotas: Vec<OwnedFd>,
    /// Landlock rules for programs.
    pub rules: Option<OwnedFd>,
    /// Group that programs are born in.
    pub programs_born_in: Option<OwnedFd>,
    /// The mount namespace of installers.
    pub installers_view: Option<OwnedFd>,
}

struct Builder {
    slots: BTreeMap<Slot, OwnedFd>,
    root: Option<OwnedFd>,
    quotas: Vec<OwnedFd>,
    rules: Option<OwnedFd>,
    installers_view: Option<OwnedFd>,
    /// The place that was opened last; no step since then can have put anything over it.
    kept: Option<(Place, OwnedFd)>,
}

/// Carries out every inside step in order; the first failure ends it.
pub fn run(plan: &Plan, go: Received<Go>) -> Result<Built, StepFailure> {
    // The group's directory is a host path: it is opened while the host is still in view.
    let programs_born_in = plan
        .programs_born_in
        .as_ref()
        .map(|directory| mount::open_directory(&text(directory)))
        .transpose()
        .map_err(|error| super::failure("cgroup", "open the programs' group", error))?;
    let slots = go.message.slots.into_iter().zip(go.descriptors).collect();
    let mut builder = Builder { slots, root: None, quotas: Vec::new(), rules: None, installers_view: None, kept: None };
    for step in &plan.inside {
        builder.step(step).map_err(|error| super::failure(step.wall(), &step.to_string(), error))?;
    }
    let root = builder.root.ok_or_else(|| super::failure("mount", "take the root", missing_slot()))?;
    process::hide_from_tracers().map_err(|error| super::failure("pid", "hide init from tracers", error))?;
    let Builder { quotas, rules, installers_view, .. } = builder;
    Ok(Built { root, quotas, rules, programs_born_in, installers_view })
}

/// A plan's strings hold no NUL: `sandbox` built them. One that does is cut there and then not found.
fn text(path: &str) -> CString {
    let bytes: Vec<u8> = path.bytes().take_while(|byte| *byte != 0).collect();
    CString::new(bytes).unwrap_or_default()
}

fn missing_slot() -> CallError {
    CallError { call: "plan", errno: Errno::BADF }
}

/// Whether a place is, or may be, another one or below it.
fn is_below(place: &Place, other: &Place) -> bool {
    match (place, other) {
        (Place::Host(place), Place::Host(other)) | (Place::Root(place), Place::Root(other)) => {
            Path::new(place).starts_with(other)
        }
        // Before the pivot the new root is somewhere in the host's view: nobody can tell by the names.
        _ => true,
    }
}

/// Whether every place, but what it covers and what is below that, is after the step what it was before.
fn leaves_places(step: &Step) -> bool {
    matches!(step, Step::Directory { .. } | Step::File { .. } | Step::Symlink { .. } | Step::Own { .. } | Step::Cover { .. })
}

fn clone_tree(source: BorrowedFd<'_>, attributes: u64) -> Result<OwnedFd, CallError> {
    let tree = mount::clone_tree(source, c"")?;
    if attributes != 0 {
        mount::restrict(tree.as_fd(), attributes)?;
    }
    Ok(tree)
}

impl Builder {
    fn step(&mut self, step: &Step) -> Result<(), CallError> {
        if !leaves_places(step) {
            self.kept = None;
        }
        match step {
            Step::JoinCgroup { tasks } => process::join_group(tasks),
            Step::PrivateMounts => mount::make_all_private(),
            Step::Mount { slot, kind, options, attributes } => {
                self.slots.insert(*slot, mount::make(kind, options, *attributes)?);
                Ok(())
            }
            Step::CloneTree { slot, source, attributes } => {
                let tree = clone_tree(self.open(source)?.as_fd(), *attributes)?;
                self.slots.insert(*slot, tree);
                Ok(())
            }
            Step::Cover { path, source, attributes, missing } => match self.open(path) {
                Err(error) if error.errno == Errno::NOENT && *missing == Missing::Skips => Ok(()),
                target => {
                    let (target, tree) = (target?, clone_tree(self.opened(source)?, *attributes)?);
                    if is_below(source, path) {
                        self.kept = None;
                    }
                    mount::attach(tree.as_fd(), target.as_fd())
                }
            },
            Step::Own { path, owner: (uid, gid) } => {
                let (parent, name) = self.parent(path)?;
                mount::change_owner(parent, &name, *uid, *gid)
            }
            Step::CloneHostTree { slot, source, attributes } => self.clone_host_tree(*slot, source, *attributes),
            Step::Attach { slot, target } => self.attach(*slot, target),
            Step::Directory { path, mode, owner } => self.directory(path, *mode, *owner),
            Step::File { path } => {
                let (parent, name) = self.parent(path)?;
                mount::make_file(parent, &name)
            }
            Step::Symlink { target, path } => {
                let (parent, name) = self.parent(path)?;
                mount::make_symlink(target, parent, &name)
            }
            Step::TakeRoot { slot } => {
                self.root = Some(self.slots.remove(slot).ok_or_else(missing_slot)?);
                Ok(())
            }
            Step::TakeOwnRoot => {
                self.root = Some(mount::open_directory(c"/")?);
                Ok(())
            }
            Step::WatchQuota { path } => {
                self.quotas.push(self.open_directory(path)?);
                Ok(())
            }
            Step::PivotRoot => {
                mount::pivot(self.root()?)?;
                mount::drop_old_root()
            }
            Step::Restrict { path, attributes } => mount::restrict(self.open(path)?.as_fd(), *attributes),
            Step::InstallersView { slot, target } => self.make_installers_view(*slot, target),
            Step::UserLimit { path, limit } => self.user_limit(path, *limit),
            Step::Hostname(name) => process::set_hostname(name),
            Step::LoopbackUp => network::loopback_up(),
            Step::CgroupNamespace => process::unshare_cgroup_namespace(),
            Step::BoundingSet { keep } => credentials::bound_capabilities(*keep),
            Step::LandlockScopes => landlock::restrict_scopes().map(drop),
            Step::LandlockRules { writable } => {
                self.rules = Some(landlock::file_rules(writable)?);
                Ok(())
            }
            Step::BecomeRoot => {
                credentials::clear_groups()?;
                credentials::set_gid(0)?;
                credentials::set_uid(0)?;
                // A change of credentials disarms the death signal.
                process::die_with_parent()
            }
        }
    }

    fn root(&self) -> Result<BorrowedFd<'_>, CallError> {
        self.root.as_ref().map(AsFd::as_fd).ok_or_else(missing_slot)
    }

    fn open(&self, place: &Place) -> Result<OwnedFd, CallError> {
        match place {
            Place::Host(path) => mount::open_path(&text(path)),
            Place::Root(path) => mount::open_inside(self.root()?, &text(path)),
        }
    }

    fn open_directory(&self, place: &Place) -> Result<OwnedFd, CallError> {
        match place {
            Place::Host(path) => mount::open_directory(&text(path)),
            Place::Root(path) => mount::open_directory_inside(self.root()?, &text(path)),
        }
    }

    /// The same, also for the steps after this one.
    fn opened(&mut self, place: &Place) -> Result<BorrowedFd<'_>, CallError> {
        let kept = match self.kept.take() {
            Some(kept) if kept.0 == *place => kept,
            _ => (place.clone(), self.open(place)?),
        };
        Ok(self.kept.insert(kept).1.as_fd())
    }

    /// The directory that holds `place`, and its last component.
    fn parent(&mut self, place: &Place) -> Result<(BorrowedFd<'_>, CString), CallError> {
        let (Place::Host(path) | Place::Root(path)) = place;
        let (parent, name) = path.rsplit_once('/').unwrap_or(("", path));
        let parent = if parent.is_empty() { "/" } else { parent };
        let place = match place {
            Place::Host(_) => Place::Host(parent.into()),
            Place::Root(_) => Place::Root(parent.into()),
        };
        Ok((self.opened(&place)?, text(name)))
    }

    fn user_limit(&self, path: &str, limit: u32) -> Result<(), CallError> {
        match mount::write_inside(self.root()?, &text(path), &limit.to_string()) {
            Err(error) if error.errno == Errno::NOENT => Ok(()),
            written => written,
        }
    }

    fn clone_host_tree(&mut self, slot: Slot, source: &str, attributes: u64) -> Result<(), CallError> {
        let tree = mount::clone_trees(mount::open_path(&text(source))?.as_fd())?;
        mount::restrict_all(tree.as_fd(), attributes)?;
        self.slots.insert(slot, tree);
        Ok(())
    }

    fn attach(&self, slot: Slot, target: &Place) -> Result<(), CallError> {
        let tree = self.slots.get(&slot).ok_or_else(missing_slot)?;
        mount::attach(tree.as_fd(), self.open(target)?.as_fd())
    }

    /// Init itself goes back to the view of programs: everything else that it does, it does there.
    fn make_installers_view(&mut self, slot: Slot, target: &Place) -> Result<(), CallError> {
        let tree = self.slots.remove(&slot).ok_or_else(missing_slot)?;
        let (Place::Host(target) | Place::Root(target)) = target;
        let programs = mount::open_readable(c"/proc/self/ns/mnt")?;
        process::unshare_mount_namespace()?;
        // The descriptor of the root is of the other namespace; this process's own root has moved along.
        let root = mount::open_path(c"/")?;
        mount::attach(tree.as_fd(), mount::open_inside(root.as_fd(), &text(target))?.as_fd())?;
        self.installers_view = Some(mount::open_readable(c"/proc/self/ns/mnt")?);
        process::enter_mount_namespace(programs.as_fd())
    }

    fn directory(&mut self, path: &Place, mode: u32, (uid, gid): (u32, u32)) -> Result<(), CallError> {
        let (parent, name) = self.parent(path)?;
        if mount::make_directory(parent, &name, mode)? {
            // mkdir is subject to the umask, and the owner is init.
            mount::change_mode(parent, &name, mode)?;
            return match (uid, gid) {
                (0, 0) => Ok(()),
                _ => mount::change_owner(parent, &name, uid, gid),
            };
        }
        mount::open_directory_inside(parent, &name).map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_let_go_when_what_is_covered_may_hold_it() {
        let below = |place: &str, other: &str| is_below(&Place::Root(place.into()), &Place::Root(other.into()));
        assert!(below("/proc/sys", "/proc") && below("/proc", "/proc"));
        assert!(!below("/proc", "/proc/sys") && !below("/process", "/proc"));
        assert!(is_below(&Place::Host("/tmp/root/proc".into()), &Place::Root("/proc".into())), "in doubt");
    }
}
