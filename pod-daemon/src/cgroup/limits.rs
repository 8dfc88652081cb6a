//! Resource limits as cgroup v2 controls.

use std::{collections::BTreeSet, fmt::Write as _};

use super::{Cgroup, Error};

/// The period of `cpu.max`, in microseconds: the kernel's default, and kubelet's.
const CPU_PERIOD_US: u64 = 100_000;

/// What a container or pod may use, or asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Thousandths of a CPU.
    pub cpu_millicores: Option<u64>,
    /// Bytes of memory.
    pub memory_bytes: Option<u64>,
    /// Number of processes and threads.
    pub pids: Option<u64>,
}

impl Limits {
    /// The sum of both, where a side without a limit makes the sum unlimited.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        let sum = |a: Option<u64>, b: Option<u64>| Some(a?.saturating_add(b?));
        Self {
            cpu_millicores: sum(self.cpu_millicores, other.cpu_millicores),
            memory_bytes: sum(self.memory_bytes, other.memory_bytes),
            pids: sum(self.pids, other.pids),
        }
    }

    /// Controllers that these limits need and that are not in `available`.
    #[must_use]
    pub fn unenforceable(&self, available: &BTreeSet<String>) -> Vec<&'static str> {
        [
            ("cpu", self.cpu_millicores.is_some()),
            ("memory", self.memory_bytes.is_some()),
            ("pids", self.pids.is_some()),
        ]
        .into_iter()
        .filter(|(controller, wanted)| *wanted && !available.contains(*controller))
        .map(|(controller, _)| controller)
        .collect()
    }
}

/// Writes `limits` and the weight that `requests` earn to a cgroup, leaving out what the
/// controllers in `available` cannot do.
pub fn apply(
    cgroup: &Cgroup,
    limits: &Limits,
    requests: &Limits,
    available: &BTreeSet<String>,
) -> Result<(), Error> {
    let has = |controller: &str| available.contains(controller);
    if has("cpu") {
        if let Some(millicores) = limits.cpu_millicores {
            cgroup.set("cpu.max", &cpu_max(millicores))?;
        }
        if let Some(millicores) = requests.cpu_millicores.or(limits.cpu_millicores) {
            cgroup.set("cpu.weight", &cpu_weight(millicores).to_string())?;
        }
    }
    if has("memory")
        && let Some(bytes) = limits.memory_bytes
    {
        cgroup.set("memory.max", &bytes.to_string())?;
    }
    if has("pids")
        && let Some(pids) = limits.pids
    {
        cgroup.set("pids.max", &pids.to_string())?;
    }
    Ok(())
}

/// Makes the kernel kill all of a cgroup that exceeds its memory, not a process at random.
pub fn die_as_one(cgroup: &Cgroup, available: &BTreeSet<String>) -> Result<(), Error> {
    if available.contains("memory") { cgroup.set("memory.oom.group", "1") } else { Ok(()) }
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
        let limits = Limits { memory_bytes: Some(1), pids: Some(1), cpu_millicores: None };
        assert_eq!(limits.unenforceable(&BTreeSet::from(["pids".to_owned()])), ["memory"]);
    }

    #[test]
    fn a_sum_with_an_unlimited_part_is_unlimited() {
        let limited = Limits { cpu_millicores: Some(1), memory_bytes: Some(2), pids: Some(3) };
        assert_eq!(limited.plus(limited).memory_bytes, Some(4));
        assert_eq!(limited.plus(Limits::default()), Limits::default());
    }
}
