//! What the kernel accounts for one cgroup.
//!
//! A file that is not there means a controller that is not there (or a kernel that is too old for
//! it), which is an answer and not an error.

mod details;
mod files;
mod last;

use self::files::Files;
pub use self::{
    details::{Details, Settings, details},
    last::{Last, Used},
};
use super::{Cgroup, file::Reader};

/// Everything that the kernel accounts for one cgroup, as far as its controllers are enabled.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// CPU time: there on every kernel, whether the controller is enabled or not.
    pub cpu: Option<Cpu>,
    /// How the CPU limit was enforced (`cpu` controller).
    pub throttling: Option<Throttling>,
    /// Memory (`memory` controller).
    pub memory: Option<Memory>,
    /// Without the `memory` controller: resident memory of the processes, in bytes, where a page
    /// that several of them share counts for each.
    pub resident: Option<u64>,
    /// Processes and threads (`pids` controller).
    pub pids: Option<Pids>,
    /// Block devices (`io` controller).
    pub io: Option<Io>,
    /// Time that tasks waited for a CPU.
    pub cpu_pressure: Option<Pressure>,
    /// Time that tasks waited for memory.
    pub memory_pressure: Option<Pressure>,
    /// Time that tasks waited for block devices.
    pub io_pressure: Option<Pressure>,
}

/// CPU time in microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cpu {
    /// User and kernel time.
    pub usage_us: u64,
    /// Time in user mode.
    pub user_us: u64,
    /// Time in kernel mode.
    pub system_us: u64,
}

/// Enforcement of `cpu.max`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Throttling {
    /// Periods in which the cgroup wanted to run.
    pub periods: u64,
    /// Periods in which it ran out of its quota.
    pub throttled_periods: u64,
    /// Time that its runnable tasks were held back, in microseconds.
    pub throttled_us: u64,
}

/// Memory in bytes, and the events of its limits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    /// All that is charged to the cgroup.
    pub current: u64,
    /// The most that ever was (Linux 5.19).
    pub peak: Option<u64>,
    /// What cannot be had back cheaply, which is `current` less inactive page cache: the figure
    /// that the kubelet evicts by.
    pub working_set: Option<u64>,
    /// Swapped out.
    pub swap: Option<u64>,
    /// Anonymous memory: heaps, stacks, shared anonymous mappings.
    pub anonymous: u64,
    /// Page cache, tmpfs included.
    pub file: u64,
    /// The part of that which processes have mapped.
    pub mapped_file: u64,
    /// Memory that the kernel uses on behalf of the cgroup (Linux 5.18).
    pub kernel: Option<u64>,
    /// Page faults, the major ones included.
    pub faults: u64,
    /// Page faults that waited for a disk.
    pub major_faults: u64,
    /// Pages that were evicted and soon needed again.
    pub refaults: u64,
    /// What happened at the limits.
    pub events: MemoryEvents,
}

/// Events of `memory.events`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemoryEvents {
    /// Reclaims although usage was below `memory.low`.
    pub low: u64,
    /// Throttled at `memory.high`.
    pub high: u64,
    /// Reclaims at `memory.max`.
    pub max: u64,
    /// Allocations that found no memory even so.
    pub oom: u64,
    /// Processes that the OOM killer ended.
    pub oom_kill: u64,
}

/// Processes and threads together: the kernel counts tasks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pids {
    /// Tasks now.
    pub current: u64,
    /// The most there ever were (Linux 6.10).
    pub peak: Option<u64>,
    /// Forks that `pids.max` refused.
    pub refused: u64,
}

/// Transfers to and from block devices, summed over the devices.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Io {
    /// Bytes read.
    pub read_bytes: u64,
    /// Bytes written.
    pub written_bytes: u64,
    /// Read requests.
    pub reads: u64,
    /// Write requests.
    pub writes: u64,
}

/// Time that tasks waited for a resource, in microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pressure {
    /// At least one task waited.
    pub some_us: u64,
    /// All tasks that were not idle waited (`cpu`: Linux 5.13).
    pub full_us: Option<u64>,
}

/// Reads what the kernel accounts for the tasks of `cgroup`.
#[must_use]
pub fn pids(cgroup: &Cgroup) -> Option<Pids> {
    Files::of(cgroup, &mut Reader::new()).pids()
}

/// Reads the CPU time of `cgroup`.
#[must_use]
pub fn cpu(cgroup: &Cgroup) -> Option<Cpu> {
    Files::of(cgroup, &mut Reader::new()).cpu().0
}

/// Reads what the kernel accounts for `cgroup`; nothing of one that has been removed.
#[must_use]
pub fn read(cgroup: &Cgroup) -> Stats {
    whole(&mut Files::of(cgroup, &mut Reader::new()))
}

/// What stands in the cgroup's own files.
fn accounted(files: &mut Files<'_>) -> Stats {
    let (cpu, throttling) = files.cpu();
    Stats {
        cpu,
        throttling,
        memory: files.memory(),
        resident: None,
        pids: files.pids(),
        io: files.io(),
        cpu_pressure: files.pressure("cpu.pressure"),
        memory_pressure: files.pressure("memory.pressure"),
        io_pressure: files.pressure("io.pressure"),
    }
}

/// All of [`Stats`].
fn whole(files: &mut Files<'_>) -> Stats {
    let mut stats = accounted(files);
    if stats.memory.is_none() {
        stats.resident = files.resident();
    }
    stats
}
