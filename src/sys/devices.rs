//! A directory of device nodes on a file system of its own, which can be cloned for as many sandboxes as there are.

use std::ffi::CString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{FileType, Mode, makedev};

use super::error::{CallError, Named};
use super::mount;

/// What is to be in it.
#[derive(Debug, Clone, Copy)]
pub struct Contents<'a> {
    /// Character devices, for everyone to read and write: name, major, minor.
    pub nodes: &'a [(&'a str, u32, u32)],
    /// Symbolic links: name, target.
    pub links: &'a [(&'a str, &'a str)],
    /// Directories: name, permission bits.
    pub directories: &'a [(&'a str, u32)],
}

/// A tmpfs with these contents that nobody can change any more, mounted nowhere. Its owner is the caller, who needs CAP_SYS_ADMIN and
/// CAP_MKNOD in the initial user namespace.
pub fn directory(contents: Contents<'_>) -> Result<OwnedFd, CallError> {
    // Twice what is made: labels that a security module gives to new files count as well.
    let inodes = 2 * (contents.nodes.len() + contents.links.len() + contents.directories.len() + 1);
    let options = [("mode", "755".into()), ("size", "64k".into()), ("nr_inodes", inodes.to_string())];
    let directory = mount::make("tmpfs", &options.map(|(key, value)| (key.to_owned(), value)), 0)?;
    fill(directory.as_fd(), contents)?;
    let context = mount::pick(directory.as_fd())?;
    rustix::mount::fsconfig_set_flag(context.as_fd(), "ro").named("fsconfig(FSCONFIG_SET_FLAG)")?;
    rustix::mount::fsconfig_reconfigure(context.as_fd()).named("fsconfig(FSCONFIG_CMD_RECONFIGURE)")?;
    Ok(directory)
}

fn fill(directory: BorrowedFd<'_>, contents: Contents<'_>) -> Result<(), CallError> {
    // The permission bits are set once more because those of a new file are subject to the umask.
    for (name, major, minor) in contents.nodes {
        let (name, mode) = (text(name), 0o666);
        rustix::fs::mknodat(directory, &name, FileType::CharacterDevice, Mode::from_raw_mode(mode), makedev(*major, *minor))
            .named("mknodat")?;
        mount::change_mode(directory, &name, mode)?;
    }
    for (name, target) in contents.links {
        mount::make_symlink(target, directory, &text(name))?;
    }
    for (name, mode) in contents.directories {
        let name = text(name);
        mount::make_directory(directory, &name, *mode)?;
        mount::change_mode(directory, &name, *mode)?;
    }
    Ok(())
}

/// Names hold no NUL; one that does is refused by the kernel.
fn text(name: &str) -> CString {
    CString::new(name).unwrap_or_default()
}
