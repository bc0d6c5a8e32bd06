//! Users, groups, capabilities(7) and securebits.

use rustix::thread::{CapabilitySet, CapabilitySets};

use super::error::{CallError, Named};

/// Whether this process is root of the host, and not only of a user namespace: only then files can be given to any id, and ids
/// be mapped as ranges.
pub fn is_root_of_the_host() -> bool {
    rustix::process::geteuid().is_root() && maps_every_id(&std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default())
}

/// The text of `/proc/self/uid_map` in the initial user namespace: every id is itself.
pub fn maps_every_id(uid_map: &str) -> bool {
    uid_map.split_whitespace().eq(["0", "0", "4294967295"])
}

/// `setgroups(2)` with an empty list, by the raw call: one thread.
pub fn clear_groups() -> Result<(), CallError> {
    // SAFETY: an empty list needs no pointer.
    match unsafe { libc::syscall(libc::SYS_setgroups, 0, std::ptr::null::<libc::gid_t>()) } {
        0 => Ok(()),
        _ => Err(CallError::last("setgroups")),
    }
}

/// `setresgid(2)` with one id for all three, by the raw call: one thread.
pub fn set_gid(gid: u32) -> Result<(), CallError> {
    // SAFETY: integers only.
    match unsafe { libc::syscall(libc::SYS_setresgid, gid, gid, gid) } {
        0 => Ok(()),
        _ => Err(CallError::last("setresgid")),
    }
}

/// `setresuid(2)` with one id for all three, by the raw call: one thread.
pub fn set_uid(uid: u32) -> Result<(), CallError> {
    // SAFETY: integers only.
    match unsafe { libc::syscall(libc::SYS_setresuid, uid, uid, uid) } {
        0 => Ok(()),
        _ => Err(CallError::last("setresuid")),
    }
}

/// `setfsuid(2)` and `setfsgid(2)`: whose files the next calls touch. These calls report no error; the second call asks what
/// holds now, so a refusal is seen.
pub fn set_file_ids(uid: u32, gid: u32) -> Result<(), CallError> {
    // SAFETY: integers only; an id of -1 changes nothing and returns the one in force.
    let in_force = unsafe {
        libc::syscall(libc::SYS_setfsgid, gid);
        libc::syscall(libc::SYS_setfsuid, uid);
        (libc::syscall(libc::SYS_setfsuid, -1), libc::syscall(libc::SYS_setfsgid, -1))
    };
    if in_force == (i64::from(uid), i64::from(gid)) {
        Ok(())
    } else {
        Err(CallError { call: "setfsuid", errno: rustix::io::Errno::PERM })
    }
}

/// `capset(2)` with these bits (bit n is capability n) in the effective, permitted and inheritable set.
pub fn set_capabilities(effective: u64, permitted: u64, inheritable: u64) -> Result<(), CallError> {
    rustix::thread::set_capabilities(
        None,
        CapabilitySets {
            effective: CapabilitySet::from_bits_retain(effective),
            permitted: CapabilitySet::from_bits_retain(permitted),
            inheritable: CapabilitySet::from_bits_retain(inheritable),
        },
    )
    .named("capset")
}

/// `capget(2)`: the effective and permitted set of this process.
pub fn capabilities() -> Result<(u64, u64), CallError> {
    let sets = rustix::thread::capabilities(None).named("capget")?;
    Ok((sets.effective.bits(), sets.permitted.bits()))
}

/// `prctl(PR_CAPBSET_DROP)` for each capability that the bounding set has and `keep` (bit n is capability n) does not. The kernel makes
/// new credentials for each that is dropped, also for one that was not there, so they are asked for first, unless the set looks as that of
/// a new user namespace does, where all are.
pub fn bound_capabilities(keep: u64) -> Result<(), CallError> {
    let looks_full = is_in_bounding_set(0)? == Some(true);
    // Numbers have no gaps.
    for capability in 0..u64::BITS {
        if keep & (1 << capability) != 0 {
            continue;
        }
        if !looks_full {
            match is_in_bounding_set(capability)? {
                Some(true) => {}
                Some(false) => continue,
                None => break,
            }
        }
        match drop_from_bounding_set(capability) {
            Err(error) if error.errno == rustix::io::Errno::INVAL => break,
            dropped => dropped?,
        }
    }
    Ok(())
}

/// `prctl(PR_CAPBSET_READ)`; none for a number that the kernel does not know.
fn is_in_bounding_set(capability: u32) -> Result<Option<bool>, CallError> {
    // SAFETY: integers only.
    match unsafe { libc::prctl(libc::PR_CAPBSET_READ, u64::from(capability), 0, 0, 0) } {
        0 => Ok(Some(false)),
        1 => Ok(Some(true)),
        _ if std::io::Error::last_os_error().raw_os_error() == Some(libc::EINVAL) => Ok(None),
        _ => Err(CallError::last("prctl(PR_CAPBSET_READ)")),
    }
}

fn drop_from_bounding_set(capability: u32) -> Result<(), CallError> {
    // SAFETY: integers only.
    match unsafe { libc::prctl(libc::PR_CAPBSET_DROP, u64::from(capability), 0, 0, 0) } {
        0 => Ok(()),
        _ => Err(CallError::last("prctl(PR_CAPBSET_DROP)")),
    }
}

/// `prctl(PR_CAP_AMBIENT_CLEAR_ALL)`.
pub fn clear_ambient_set() -> Result<(), CallError> {
    // SAFETY: integers only.
    match unsafe { libc::prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0) } {
        0 => Ok(()),
        _ => Err(CallError::last("prctl(PR_CAP_AMBIENT)")),
    }
}

/// `prctl(PR_SET_SECUREBITS)`, bits of `linux/securebits.h`.
pub fn set_securebits(bits: u32) -> Result<(), CallError> {
    // SAFETY: integers only.
    match unsafe { libc::prctl(libc::PR_SET_SECUREBITS, u64::from(bits), 0, 0, 0) } {
        0 => Ok(()),
        _ => Err(CallError::last("prctl(PR_SET_SECUREBITS)")),
    }
}
