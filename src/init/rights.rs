//! Whose rights init acts with: its own, or those of the session's programs, which file commands are carried out with.
//!
//! Taking them on and giving them back are fourteen system calls, more than most file commands make, so init keeps them from one file
//! command to the next and gives them back when it has anything else to do. Invariants: with the programs' rights init has no effective
//! capability; with either it ends with its parent and nobody may look into it; init's loop calls [`Rights::give_back`] before all that is
//! no file command: the kernel would refuse most of it, the end of a program among it.

use crate::plan::files::{FileError, FileErrorKind};
use crate::sys::{CallError, credentials, process};

/// The rights that init has now.
#[derive(Debug)]
pub struct Rights {
    /// Ids of the session's programs as files see them.
    file_ids: (u32, u32),
    own: Own,
    /// Whether they are the programs'.
    as_programs: bool,
}

/// What init has for itself.
#[derive(Debug)]
struct Own {
    ids: (u32, u32),
    effective: u64,
    permitted: u64,
}

impl Rights {
    /// Of a process that acts with its own; `file_ids` are user and group of the session's programs.
    pub fn new(file_ids: (u32, u32)) -> Result<Self, CallError> {
        let (effective, permitted) = credentials::capabilities()?;
        let ids = (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
        Ok(Self { file_ids, own: Own { ids, effective, permitted }, as_programs: false })
    }

    /// Those of the session's programs from here on: their fs ids and no effective capability. After an error they are init's own.
    pub fn take_on(&mut self) -> Result<(), FileError> {
        if self.as_programs {
            return Ok(());
        }
        self.as_programs = true;
        let (user, group) = self.file_ids;
        let taken = credentials::set_file_ids(user, group)
            .and_then(|()| credentials::set_capabilities(0, self.own.permitted, 0))
            .and_then(|()| guard());
        taken.map_err(|error| {
            self.give_back();
            FileError { kind: FileErrorKind::IoError, operation: error.call.into(), errno: error.raw() }
        })
    }

    /// Does `action` with those of the session's programs, and has init's own after it.
    pub fn act_as_programs<T>(&mut self, action: impl FnOnce() -> Result<T, FileError>) -> Result<T, FileError> {
        self.take_on()?;
        let result = action();
        self.give_back();
        result
    }

    /// Whether they are init's own.
    pub fn are_own(&self) -> bool {
        !self.as_programs
    }

    /// Init's own from here on. Going on with half of them would leave later walls unbuilt: then the sandbox ends.
    pub fn give_back(&mut self) {
        if !self.as_programs {
            return;
        }
        let Own { ids: (user, group), effective, permitted } = self.own;
        let restored = credentials::set_capabilities(effective, permitted, 0)
            .and_then(|()| credentials::set_file_ids(user, group))
            .and_then(|()| guard());
        if restored.is_err() {
            process::exit_now(1);
        }
        self.as_programs = false;
    }
}

/// A change of fs ids disarms the death signal (`commit_creds` in kernel/cred.c) and sets the dumpable flag anew.
fn guard() -> Result<(), CallError> {
    process::die_with_parent()?;
    process::hide_from_tracers()
}
