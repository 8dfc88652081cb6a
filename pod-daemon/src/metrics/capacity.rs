//! How large and how full file systems are. One of the network may never answer.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
};

use super::patience::Patience;

/// One file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Capacity {
    pub(super) bytes: u64,
    pub(super) used_bytes: u64,
    /// What those who are not root may still use.
    pub(super) available_bytes: u64,
    /// None where they are made as needed.
    pub(super) inodes: Option<u64>,
    pub(super) inodes_used: u64,
}

/// Asks file systems.
#[derive(Default)]
pub(super) struct Capacities(Patience<PathBuf>);

impl Capacities {
    /// The capacity at each of these paths that answers in time.
    pub(super) fn read(&self, paths: &BTreeSet<PathBuf>) -> BTreeMap<PathBuf, Capacity> {
        self.0.ask(paths, of)
    }
}

fn of(path: &PathBuf) -> Option<Capacity> {
    let stat = rustix::fs::statvfs(path).ok()?;
    Some(Capacity {
        bytes: stat.f_blocks * stat.f_frsize,
        used_bytes: stat.f_blocks.saturating_sub(stat.f_bfree) * stat.f_frsize,
        available_bytes: stat.f_bavail * stat.f_frsize,
        inodes: (stat.f_files > 0).then_some(stat.f_files),
        inodes_used: stat.f_files.saturating_sub(stat.f_ffree),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_those_of_the_file_system() {
        let capacity = of(&PathBuf::from("/tmp")).unwrap();
        assert!(capacity.bytes >= capacity.used_bytes + capacity.available_bytes);
        assert_eq!(of(&PathBuf::from("/not-there")), None);
    }
}
