//! What the node has, and what of that is for pods.

use std::{fs, io, path::Path};

use pod_ebpf::{MAX_SLOTS, file::MAX_VOLUMES};

use crate::manifest::{
    HUGE_PAGES,
    demand::{ADDRESSES, CONTAINERS, CPU, HUGE, MEMORY, PROCESSES, STORAGE, Totals, VOLUMES},
};

/// Of every twenty bytes of the disk, one is not for pods.
const DISK_SHARE: u64 = 20;

/// The most disk that is kept free unless the node's owner says otherwise.
const MAX_DISK_RESERVE: u64 = 1 << 30;

/// What pods do not get.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reserve {
    /// Thousandths of a CPU.
    pub cpu_millicores: u64,
    /// Bytes of memory.
    pub memory_bytes: u64,
    /// Processes and threads.
    pub pids: u64,
    /// Bytes of the data directory's file system; by default a twentieth of it, at most 1 GiB.
    pub disk_bytes: Option<u64>,
}

impl Default for Reserve {
    fn default() -> Self {
        Self { cpu_millicores: 0, memory_bytes: 100 << 20, pids: 1024, disk_bytes: None }
    }
}

impl Reserve {
    /// What of `capacity` is for pods.
    #[must_use]
    pub fn allocatable(&self, capacity: Totals) -> Totals {
        let mut reserved = Totals::default();
        reserved[CPU] = self.cpu_millicores;
        // Pages that are set aside are nobody else's memory.
        let huge: u64 = (0..HUGE_PAGES.len()).map(|size| capacity[HUGE + size]).sum();
        reserved[MEMORY] = self.memory_bytes.saturating_add(huge);
        reserved[PROCESSES] = self.pids;
        reserved[STORAGE] = self.disk_bytes(capacity[STORAGE]);
        capacity.less(reserved)
    }

    /// Bytes of a disk of that size that are to stay free.
    #[must_use]
    pub fn disk_bytes(&self, capacity: u64) -> u64 {
        self.disk_bytes.unwrap_or_else(|| (capacity / DISK_SHARE).min(MAX_DISK_RESERVE))
    }
}

/// What the node has, with pods' files below `data_dir` and `addresses` for pods.
pub fn capacity(data_dir: &Path, addresses: u64) -> io::Result<Totals> {
    let mut capacity = Totals::default();
    let cpus = nix::unistd::sysconf(nix::unistd::SysconfVar::_NPROCESSORS_ONLN)?;
    capacity[CPU] = cpus.and_then(|cpus| u64::try_from(cpus).ok()).unwrap_or(1) * 1000;
    capacity[MEMORY] = memory_bytes()?;
    let disk = rustix::fs::statvfs(data_dir)?;
    capacity[STORAGE] = disk.f_blocks.saturating_mul(disk.f_frsize);
    let limit = |file: &str| -> io::Result<u64> {
        let text = fs::read_to_string(file)?;
        let number = text.trim().parse();
        number.map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
    };
    capacity[PROCESSES] =
        limit("/proc/sys/kernel/pid_max")?.min(limit("/proc/sys/kernel/threads-max")?);
    for (size, pages) in HUGE_PAGES.iter().enumerate() {
        // A machine has files for the sizes that it has.
        let kilobytes = pages.bytes >> 10;
        let file = format!("/sys/kernel/mm/hugepages/hugepages-{kilobytes}kB/nr_hugepages");
        capacity[HUGE + size] = limit(&file).unwrap_or(0).saturating_mul(pages.bytes);
    }
    // The first slot is everybody else's.
    capacity[CONTAINERS] = u64::from(MAX_SLOTS - 1);
    capacity[VOLUMES] = u64::from(MAX_VOLUMES);
    capacity[ADDRESSES] = addresses;
    Ok(capacity)
}

/// The node's memory.
fn memory_bytes() -> io::Result<u64> {
    let text = fs::read_to_string("/proc/meminfo")?;
    memory_total(&text).ok_or_else(|| {
        io::Error::new(io::ErrorKind::InvalidData, "there is no MemTotal in /proc/meminfo")
    })
}

fn memory_total(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kilobytes: u64 = line.trim().strip_suffix(" kB")?.parse().ok()?;
    Some(kilobytes << 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pods_get_what_is_not_reserved() {
        let mut capacity = Totals::default();
        capacity[CPU] = 2000;
        capacity[MEMORY] = 1 << 30;
        capacity[STORAGE] = 100 << 30;
        capacity[PROCESSES] = 32_768;
        capacity[HUGE + 1] = 256 << 20;

        let pods = Reserve { cpu_millicores: 500, ..Reserve::default() }.allocatable(capacity);

        assert_eq!(pods[CPU], 1500);
        assert_eq!(pods[MEMORY], (1024 - 100 - 256) << 20);
        assert_eq!(pods[STORAGE], 99 << 30);
        assert_eq!(pods[PROCESSES], 32_768 - 1024);
        assert_eq!(pods[HUGE + 1], 256 << 20);
    }

    #[test]
    fn a_small_disk_keeps_a_share_free() {
        let reserve = Reserve::default();
        assert_eq!(reserve.disk_bytes(10 << 30), 512 << 20);
        assert_eq!(Reserve { disk_bytes: Some(7), ..reserve }.disk_bytes(10 << 30), 7);
    }

    #[test]
    fn memory_is_read_in_bytes() {
        let meminfo = "MemTotal:        8015880 kB\nMemFree:         1 kB\n";
        assert_eq!(memory_total(meminfo), Some(8_015_880 << 10));
        assert_eq!(memory_total("MemFree: 1 kB"), None);
    }

    #[test]
    fn this_node_has_something_of_everything_that_every_node_has() {
        let capacity = capacity(Path::new("/"), 9).unwrap();
        for at in [CPU, MEMORY, STORAGE, PROCESSES, CONTAINERS, VOLUMES, ADDRESSES] {
            assert!(capacity[at] > 0, "{at}");
        }
    }
}
