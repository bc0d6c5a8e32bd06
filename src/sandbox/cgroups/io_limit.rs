//! `io.max`: how much a session may read from the disks of its image, and write to them.
//!
//! A session's own files are on a tmpfs, so what this holds back is a session that reads its image cold, again and again. The
//! kernel takes whole disks only (cgroup-v2.rst, "IO Interface Files"); a file system without one of its own (btrfs, overlay,
//! NFS) has a device that is not known here.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// A whole disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Device {
    /// Major number.
    pub major: u32,
    /// Minor number.
    pub minor: u32,
}

/// The bound of every session.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct IoLimit {
    /// Reads and writes each; 0 = none.
    pub bytes_per_s: u64,
    /// The disks it holds for.
    pub devices: BTreeSet<Device>,
}

impl IoLimit {
    /// The same bound on every disk that holds one of `paths`.
    pub fn on_disks_of(paths: &[&Path], bytes_per_s: u64) -> Self {
        let disks = paths.iter().filter_map(|path| Device::of(fs::metadata(path).ok()?.dev(), Path::new("/sys/dev/block")));
        Self { bytes_per_s, devices: disks.collect() }
    }

    /// Writes it; what holds then, or why nothing does.
    pub(super) fn apply(&self, group: &Path) -> Result<String, String> {
        if self.bytes_per_s == 0 {
            return Err("sandbox.io_bytes_per_s_max is 0".into());
        }
        if self.devices.is_empty() {
            return Err("the disk below the images is not known".into());
        }
        for Device { major, minor } in &self.devices {
            let line = format!("{major}:{minor} rbps={0} wbps={0}", self.bytes_per_s);
            fs::write(group.join("io.max"), line).map_err(|error| format!("io.max of the disk {major}:{minor}: {error}"))?;
        }
        Ok(format!("cgroup v2 io.max: {} MiB/s each way on {} disk(s)", self.bytes_per_s >> 20, self.devices.len()))
    }
}

impl Device {
    /// The disk behind `st_dev`: of a partition its parent. `block` is `/sys/dev/block`.
    fn of(st_dev: u64, block: &Path) -> Option<Self> {
        let name = format!("{}:{}", rustix::fs::major(st_dev), rustix::fs::minor(st_dev));
        let entry: PathBuf = fs::canonicalize(block.join(name)).ok()?;
        let disk = if entry.join("partition").exists() { entry.parent()? } else { &entry };
        let text = fs::read_to_string(disk.join("dev")).ok()?;
        let (major, minor) = text.trim().split_once(':')?;
        Some(Self { major: major.parse().ok()?, minor: minor.parse().ok()? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_partition_counts_as_its_disk_and_what_has_no_disk_is_not_known() {
        let sys = tempfile::tempdir().expect("a temporary directory");
        let disk = sys.path().join("devices/vda");
        fs::create_dir_all(disk.join("vda1")).expect("an own directory");
        fs::create_dir(sys.path().join("block")).expect("an own directory");
        for (path, file, text) in [("", "dev", "254:0\n"), ("vda1", "dev", "254:1\n"), ("vda1", "partition", "1\n")] {
            fs::write(disk.join(path).join(file), text).expect("an own directory");
        }
        let block = sys.path().join("block");
        std::os::unix::fs::symlink(&disk, block.join("254:0")).expect("an own directory");
        std::os::unix::fs::symlink(disk.join("vda1"), block.join("254:1")).expect("an own directory");
        let of = |major, minor| Device::of(rustix::fs::makedev(major, minor), &block);
        let whole = Some(Device { major: 254, minor: 0 });
        assert_eq!([of(254, 0), of(254, 1), of(0, 40)], [whole, whole, None]);
    }

    #[test]
    fn what_can_not_be_held_says_why() {
        let group = tempfile::tempdir().expect("a temporary directory");
        let devices = BTreeSet::from([Device { major: 254, minor: 0 }]);
        let apply =
            |bytes_per_s, devices: &BTreeSet<Device>| IoLimit { bytes_per_s, devices: devices.clone() }.apply(group.path());
        assert!(apply(0, &devices).is_err_and(|why| why.contains("io_bytes_per_s_max")));
        assert!(apply(1 << 20, &BTreeSet::new()).is_err_and(|why| why.contains("not known")));
        assert!(apply(1 << 20, &devices).is_ok_and(|detail| detail.contains("1 MiB/s each way on 1 disk")));
        let written = fs::read_to_string(group.path().join("io.max")).expect("written");
        assert_eq!(written, "254:0 rbps=1048576 wbps=1048576");
    }
}
