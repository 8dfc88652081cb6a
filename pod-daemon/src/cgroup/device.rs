//! The block device that a directory's files are on, as the `io` controller names it.

use std::{fmt, fs, io, os::unix::fs::MetadataExt as _, path::Path};

/// A whole block device: the `io` controller knows no partitions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Device {
    major: u32,
    minor: u32,
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.major, self.minor)
    }
}

impl Device {
    /// No device, for tests of what is written about one.
    #[cfg(test)]
    pub(super) const fn null() -> Self {
        Self { major: 0, minor: 0 }
    }

    /// The device below `directory`, or why there is none: a tmpfs, an overlay, a network's files.
    pub fn below(directory: &Path) -> io::Result<Self> {
        let device = fs::metadata(directory)?.dev();
        let device = Self { major: libc::major(device), minor: libc::minor(device) };
        device.whole(Path::new("/sys/dev/block"))
    }

    /// The device itself, or the one that it is a partition of.
    fn whole(self, devices: &Path) -> io::Result<Self> {
        let link = devices.join(self.to_string());
        if !link.exists() {
            return Err(io::Error::new(
                io::ErrorKind::NotFound,
                format!("{self} is not a block device"),
            ));
        }
        if !link.join("partition").exists() {
            return Ok(self);
        }
        let text = fs::read_to_string(link.canonicalize()?.join("../dev"))?;
        let parsed = text.trim().split_once(':').and_then(|(major, minor)| {
            Some(Self { major: major.parse().ok()?, minor: minor.parse().ok()? })
        });
        parsed.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, text))
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn a_partition_leads_to_its_disk() {
        let sys = tempfile::tempdir().unwrap();
        let disk = sys.path().join("sda");
        fs::create_dir_all(disk.join("sda1")).unwrap();
        fs::write(disk.join("dev"), "8:0\n").unwrap();
        fs::write(disk.join("sda1/partition"), "1\n").unwrap();
        symlink(&disk, sys.path().join("8:0")).unwrap();
        symlink(disk.join("sda1"), sys.path().join("8:1")).unwrap();
        let whole = |minor| Device { major: 8, minor }.whole(sys.path());
        assert_eq!(whole(1).unwrap(), Device { major: 8, minor: 0 });
        assert_eq!(whole(0).unwrap(), Device { major: 8, minor: 0 });
        let error = whole(2).unwrap_err();
        assert_eq!(error.to_string(), "8:2 is not a block device");
    }
}
