//! Mounts by descriptor: every mount is made detached, then attached at a target that was opened safely.

use std::ffi::CStr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};
use rustix::mount::{FsMountFlags, FsOpenFlags, FsPickFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags};

use super::error::{CallError, Named};

/// `MOUNT_ATTR_*` of `mount_setattr(2)`, as they travel in a plan.
pub mod attribute {
    /// Read-only.
    pub const READ_ONLY: u64 = libc::MOUNT_ATTR_RDONLY;
    /// No set-id programs.
    pub const NO_SETUID: u64 = libc::MOUNT_ATTR_NOSUID;
    /// No device nodes.
    pub const NO_DEVICES: u64 = libc::MOUNT_ATTR_NODEV;
    /// No programs.
    pub const NO_EXEC: u64 = libc::MOUNT_ATTR_NOEXEC;
}

/// `fsopen`, `fsconfig` for each option, `fsmount`: a detached file system. An empty value is a flag.
pub fn make(kind: &str, options: &[(String, String)], attributes: u64) -> Result<OwnedFd, CallError> {
    let context = rustix::mount::fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC).named("fsopen")?;
    for (key, value) in options {
        if value.is_empty() {
            rustix::mount::fsconfig_set_flag(context.as_fd(), key.as_str()).named("fsconfig(FSCONFIG_SET_FLAG)")?;
        } else {
            rustix::mount::fsconfig_set_string(context.as_fd(), key.as_str(), value.as_str())
                .named("fsconfig(FSCONFIG_SET_STRING)")?;
        }
    }
    rustix::mount::fsconfig_create(context.as_fd()).named("fsconfig(FSCONFIG_CMD_CREATE)")?;
    let attributes = MountAttrFlags::from_bits_retain(attributes as u32);
    rustix::mount::fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes).named("fsmount")
}

/// `fspick(2)`: what the file system whose root directory this is can be changed with, by whoever has the right to.
pub fn pick(root: BorrowedFd<'_>) -> Result<OwnedFd, CallError> {
    let flags = FsPickFlags::FSPICK_CLOEXEC | FsPickFlags::FSPICK_EMPTY_PATH;
    rustix::mount::fspick(root, c"", flags).named("fspick")
}

/// Another size for the tmpfs that was [`pick`]ed. EINVAL when it holds more already.
pub fn resize(context: BorrowedFd<'_>, bytes: u64, inodes: u64) -> Result<(), CallError> {
    for (key, value) in [("size", bytes), ("nr_inodes", inodes)] {
        rustix::mount::fsconfig_set_string(context, key, value.to_string()).named("fsconfig(FSCONFIG_SET_STRING)")?;
    }
    rustix::mount::fsconfig_reconfigure(context).named("fsconfig(FSCONFIG_CMD_RECONFIGURE)")
}

/// `open_tree(2)` with OPEN_TREE_CLONE: a detached copy of the one mount that holds `path`, seen from there.
pub fn clone_tree(at: BorrowedFd<'_>, path: &CStr) -> Result<OwnedFd, CallError> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    if path.is_empty() {
        flags |= OpenTreeFlags::AT_EMPTY_PATH;
    }
    rustix::mount::open_tree(at, path, flags).named("open_tree")
}

/// The same with every mount below.
pub fn clone_trees(at: BorrowedFd<'_>) -> Result<OwnedFd, CallError> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_EMPTY_PATH
        | OpenTreeFlags::AT_RECURSIVE;
    rustix::mount::open_tree(at, c"", flags).named("open_tree")
}

/// `mount_setattr(2)` on a mount given by descriptor: sets `attributes`, clears nothing.
pub fn restrict(mount: BorrowedFd<'_>, attributes: u64) -> Result<(), CallError> {
    set_attributes(mount, attributes, 0, libc::AT_EMPTY_PATH)
}

/// The same on it and every mount below.
pub fn restrict_all(mount: BorrowedFd<'_>, attributes: u64) -> Result<(), CallError> {
    set_attributes(mount, attributes, 0, libc::AT_EMPTY_PATH | libc::AT_RECURSIVE)
}

/// `mount_setattr(2)` with MOUNT_ATTR_IDMAP: files appear owned as the user namespace `users` maps them.
pub fn map_ids(mount: BorrowedFd<'_>, users: BorrowedFd<'_>, attributes: u64) -> Result<(), CallError> {
    set_attributes(mount, attributes | libc::MOUNT_ATTR_IDMAP, users.as_raw_fd() as u64, libc::AT_EMPTY_PATH)
}

fn set_attributes(mount: BorrowedFd<'_>, attributes: u64, users: u64, flags: i32) -> Result<(), CallError> {
    let wanted = libc::mount_attr { attr_set: attributes, attr_clr: 0, propagation: 0, userns_fd: users };
    // SAFETY: the empty path is a literal, `wanted` lives through the call and its size is given.
    let done = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            flags,
            &raw const wanted,
            size_of::<libc::mount_attr>(),
        )
    };
    match done {
        0 => Ok(()),
        _ => Err(CallError::last("mount_setattr")),
    }
}

/// `move_mount(2)`: puts a detached mount over the place that `target` is open on.
pub fn attach(mount: BorrowedFd<'_>, target: BorrowedFd<'_>) -> Result<(), CallError> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    rustix::mount::move_mount(mount, c"", target, c"", flags).named("move_mount")
}

/// `mount(2)` with MS_REC | MS_PRIVATE on `/`: nothing done here is seen outside.
pub fn make_all_private() -> Result<(), CallError> {
    use rustix::mount::MountPropagationFlags as Propagation;
    rustix::mount::mount_change("/", Propagation::PRIVATE | Propagation::REC).named("mount(MS_PRIVATE)")
}

/// `openat2(2)` with O_PATH below `root`: no link of any kind is followed, nothing above `root` is reached.
pub fn open_inside(root: BorrowedFd<'_>, path: &CStr) -> Result<OwnedFd, CallError> {
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    rustix::fs::openat2(root, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), resolve).named("openat2")
}

/// `openat2(2)` below `root` as [`open_inside`] does it, and `write(2)` of a short text to what is there.
pub fn write_inside(root: BorrowedFd<'_>, path: &CStr, text: &str) -> Result<(), CallError> {
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let file = rustix::fs::openat2(root, path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty(), resolve).named("openat2")?;
    rustix::io::write(&file, text.as_bytes()).map(drop).named("write")
}

/// `open(2)` with O_PATH of a path in this process's own view, links followed.
pub fn open_path(path: &CStr) -> Result<OwnedFd, CallError> {
    rustix::fs::openat(CWD, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).named("openat")
}

/// The same, and it must be a directory.
pub fn open_directory_inside(root: BorrowedFd<'_>, path: &CStr) -> Result<OwnedFd, CallError> {
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::openat2(root, path, flags, Mode::empty(), resolve).named("openat2")
}

/// `open(2)` of a directory in this process's own view, links followed.
pub fn open_directory(path: &CStr) -> Result<OwnedFd, CallError> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::openat(CWD, path, flags, Mode::empty()).named("openat")
}

/// `open(2)` for reading, of something the kernel shows as a file (a namespace, as a rule).
pub fn open_readable(path: &CStr) -> Result<OwnedFd, CallError> {
    rustix::fs::openat(CWD, path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).named("openat")
}

/// `pivot_root(".", ".")` after `fchdir(root)`: the old root lies under the new one until [`drop_old_root`].
pub fn pivot(root: BorrowedFd<'_>) -> Result<(), CallError> {
    rustix::process::fchdir(root).named("fchdir")?;
    rustix::process::pivot_root(c".", c".").named("pivot_root")
}

/// `umount2(".", MNT_DETACH)` and `chdir("/")`: the old root is gone from view.
pub fn drop_old_root() -> Result<(), CallError> {
    rustix::mount::unmount(c".", rustix::mount::UnmountFlags::DETACH).named("umount2")?;
    rustix::process::chdir(c"/").named("chdir")
}

/// `mkdirat(2)`; answers false when something is there already.
pub fn make_directory(at: BorrowedFd<'_>, name: &CStr, mode: u32) -> Result<bool, CallError> {
    match rustix::fs::mkdirat(at, name, Mode::from_raw_mode(mode)) {
        Ok(()) => Ok(true),
        Err(rustix::io::Errno::EXIST) => Ok(false),
        Err(errno) => Err(CallError { call: "mkdirat", errno }),
    }
}

/// `openat(2)` with O_CREAT | O_EXCL: an empty file to mount over.
pub fn make_file(at: BorrowedFd<'_>, name: &CStr) -> Result<(), CallError> {
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    rustix::fs::openat(at, name, flags, Mode::from_raw_mode(0o644)).map(drop).named("openat(O_CREAT)")
}

/// `symlinkat(2)`.
pub fn make_symlink(target: &str, at: BorrowedFd<'_>, name: &CStr) -> Result<(), CallError> {
    rustix::fs::symlinkat(target, at, name).named("symlinkat")
}

/// `fchownat(2)` of the entry itself.
pub fn change_owner(at: BorrowedFd<'_>, name: &CStr, uid: u32, gid: u32) -> Result<(), CallError> {
    use rustix::fs::{AtFlags, Gid, Uid};
    rustix::fs::chownat(at, name, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)), AtFlags::SYMLINK_NOFOLLOW)
        .named("fchownat")
}

/// `fchownat(2)` of a file in this process's own view; its group stays.
pub fn give_to(path: &CStr, uid: u32) -> Result<(), CallError> {
    let owner = Some(rustix::fs::Uid::from_raw(uid));
    rustix::fs::chownat(CWD, path, owner, None, rustix::fs::AtFlags::SYMLINK_NOFOLLOW).named("fchownat")
}

/// `fchmodat(2)`.
pub fn change_mode(at: BorrowedFd<'_>, name: &CStr, mode: u32) -> Result<(), CallError> {
    rustix::fs::chmodat(at, name, Mode::from_raw_mode(mode), rustix::fs::AtFlags::empty()).named("fchmodat")
}

/// `fstatfs(2)`: true when the file system has no free block or no free inode left.
pub fn is_full(at: BorrowedFd<'_>) -> Result<bool, CallError> {
    let state = rustix::fs::fstatfs(at).named("fstatfs")?;
    Ok((state.f_blocks > 0 && state.f_bavail == 0) || (state.f_files > 0 && state.f_ffree == 0))
}
