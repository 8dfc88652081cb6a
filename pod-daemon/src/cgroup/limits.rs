//! Resource limits as cgroup v2 controls.

use std::{collections::BTreeSet, fmt::Write as _};

use super::{Cgroup, Device, Error};

/// The period of `cpu.max`, in microseconds: the kernel's default, and kubelet's.
const CPU_PERIOD_US: u64 = 100_000;

/// Sizes of huge pages, the smallest first, as the `hugetlb` controller's files have them.
const HUGE_PAGES: [&str; 4] = ["64KB", "2MB", "32MB", "1GB"];

/// Keys of `io.max`.
const IO: [&str; 4] = ["rbps", "wbps", "riops", "wiops"];

/// What a container or pod may use, or asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Thousandths of a CPU.
    pub cpu_millicores: Option<u64>,
    /// Bytes of memory.
    pub memory_bytes: Option<u64>,
    /// Number of processes and threads.
    pub pids: Option<u64>,
    /// Bytes of huge pages, by their size: 64 KiB, 2 MiB, 32 MiB, 1 GiB.
    pub huge_pages: [Option<u64>; HUGE_PAGES.len()],
    /// Bytes read and written, and reads and writes, each per second.
    pub io: [Option<u64>; IO.len()],
}

impl Limits {
    /// Controllers that these limits need and that are not in `available`.
    #[must_use]
    pub fn unenforceable(&self, available: &BTreeSet<String>) -> Vec<&'static str> {
        [
            ("cpu", self.cpu_millicores.is_some()),
            ("memory", self.memory_bytes.is_some()),
            ("pids", self.pids.is_some()),
            ("hugetlb", self.huge_pages.iter().any(Option::is_some)),
            ("io", self.limits_io()),
        ]
        .into_iter()
        .filter(|(controller, wanted)| *wanted && !available.contains(*controller))
        .map(|(controller, _)| controller)
        .collect()
    }

    /// Whether block devices are limited.
    #[must_use]
    pub fn limits_io(&self) -> bool {
        self.io.iter().any(Option::is_some)
    }
}

/// Writes `limits` and the weight that `requests` earn to a cgroup, leaving out what the
/// controllers in `available` cannot do. Limits of block devices are those of `device`.
pub fn apply(
    cgroup: &Cgroup,
    limits: &Limits,
    requests: &Limits,
    available: &BTreeSet<String>,
    device: Option<Device>,
) -> Result<(), Error> {
    let has = |controller: &str| available.contains(controller);
    if has("cpu") {
        if let Some(millicores) = limits.cpu_millicores {
            cgroup.set("cpu.max", &cpu_max(millicores))?;
        }
        // Who asks for nothing gets what the others leave: the kernel's default would be more than
        // a request of two CPUs earns.
        let millicores = requests.cpu_millicores.or(limits.cpu_millicores).unwrap_or(0);
        cgroup.set("cpu.weight", &cpu_weight(millicores).to_string())?;
    }
    if has("memory") {
        if let Some(bytes) = limits.memory_bytes {
            cgroup.set("memory.max", &bytes.to_string())?;
        }
        // As the kubelet: swap would make the limit one of physical memory only.
        if cgroup.path().join("memory.swap.max").exists() {
            cgroup.set("memory.swap.max", "0")?;
        }
    }
    if has("pids")
        && let Some(pids) = limits.pids
    {
        cgroup.set("pids.max", &pids.to_string())?;
    }
    if has("hugetlb") {
        huge_pages(cgroup, limits)?;
    }
    if has("io")
        && let Some(device) = device
        && let Some(line) = io_max(device, limits)
    {
        cgroup.set("io.max", &line)?;
    }
    Ok(())
}

/// Huge pages are few, and set aside for who asked for them: without a limit there are none.
fn huge_pages(cgroup: &Cgroup, limits: &Limits) -> Result<(), Error> {
    for (size, bytes) in HUGE_PAGES.iter().zip(limits.huge_pages) {
        // Pages in use, and pages that are reserved for a mapping (Linux 5.7). A kernel has files
        // for the sizes that its machine has.
        for control in [format!("hugetlb.{size}.max"), format!("hugetlb.{size}.rsvd.max")] {
            if cgroup.path().join(&control).exists() {
                cgroup.set(&control, &bytes.unwrap_or(0).to_string())?;
            }
        }
    }
    Ok(())
}

/// Makes the kernel kill all of a cgroup that exceeds its memory, not a process at random.
pub fn die_as_one(cgroup: &Cgroup, available: &BTreeSet<String>) -> Result<(), Error> {
    if available.contains("memory") { cgroup.set("memory.oom.group", "1") } else { Ok(()) }
}

/// A line of `io.max`; nothing where nothing is limited.
fn io_max(device: Device, limits: &Limits) -> Option<String> {
    if !limits.limits_io() {
        return None;
    }
    let mut line = device.to_string();
    for (key, limit) in IO.iter().zip(limits.io) {
        if let Some(limit) = limit {
            write!(line, " {key}={limit}").ok();
        }
    }
    Some(line)
}

/// `cpu.max`: quota and period. The kernel refuses a quota below one millisecond.
fn cpu_max(millicores: u64) -> String {
    let quota = (millicores * CPU_PERIOD_US / 1000).max(1000);
    let mut text = String::new();
    write!(text, "{quota} {CPU_PERIOD_US}").ok();
    text
}

/// `cpu.weight` as kubelet computes it: requests become cgroup v1 shares (2 to 262144), and shares
/// become a weight (1 to 10000).
fn cpu_weight(millicores: u64) -> u64 {
    let shares = (millicores * 1024 / 1000).clamp(2, 262_144);
    1 + ((shares - 2) * 9999) / 262_142
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn half_a_cpu_is_half_a_period() {
        assert_eq!(cpu_max(500), "50000 100000");
        assert_eq!(cpu_max(2000), "200000 100000");
        assert_eq!(cpu_max(1), "1000 100000");
    }

    #[test]
    fn weights_are_those_of_kubelet() {
        assert_eq!(cpu_weight(0), 1);
        assert_eq!(cpu_weight(100), 4);
        assert_eq!(cpu_weight(1000), 39);
        assert_eq!(cpu_weight(256_000), 10_000);
    }

    #[test]
    fn a_limit_without_its_controller_is_named() {
        let limits = Limits {
            memory_bytes: Some(1),
            pids: Some(1),
            huge_pages: [None, Some(0), None, None],
            io: [None, None, None, Some(1)],
            ..Limits::default()
        };
        let available = BTreeSet::from(["pids".to_owned()]);
        assert_eq!(limits.unenforceable(&available), ["memory", "hugetlb", "io"]);
    }

    #[test]
    fn every_limit_has_its_file() {
        let directory = tempfile::tempdir().unwrap();
        let cgroup = Cgroup::create(directory.path(), "pod").unwrap();
        let there =
            ["memory.swap.max", "hugetlb.2MB.max", "hugetlb.2MB.rsvd.max", "hugetlb.1GB.max"];
        for file in there {
            fs::write(cgroup.path().join(file), "max").unwrap();
        }
        let limits = Limits {
            memory_bytes: Some(1 << 20),
            huge_pages: [Some(1), Some(4 << 20), None, None],
            io: [Some(1000), None, None, Some(5)],
            ..Limits::default()
        };
        let available = ["cpu", "memory", "pids", "io", "hugetlb"].map(str::to_owned).into();

        apply(&cgroup, &limits, &Limits::default(), &available, Some(Device::null())).unwrap();

        let read = |file: &str| fs::read_to_string(cgroup.path().join(file)).unwrap();
        assert_eq!(read("memory.max"), "1048576");
        assert_eq!(read("memory.swap.max"), "0");
        assert_eq!(read("cpu.weight"), "1");
        assert_eq!(read("hugetlb.2MB.max"), "4194304");
        assert_eq!(read("hugetlb.2MB.rsvd.max"), "4194304");
        assert_eq!(read("hugetlb.1GB.max"), "0");
        assert_eq!(read("io.max"), "0:0 rbps=1000 wiops=5");
        assert!(!cgroup.path().join("hugetlb.64KB.max").exists());
        assert!(!cgroup.path().join("pids.max").exists());
    }
}
