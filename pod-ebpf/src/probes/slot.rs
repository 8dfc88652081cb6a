//! Which container a task or a socket belongs to.

use aya_ebpf::{
    Global, helpers::generated::bpf_get_current_ancestor_cgroup_id, macros::map, maps::HashMap,
};
use pod_ebpf::{MAX_SLOTS, NO_SLOT};

/// Container cgroup id to slot. The daemon inserts before a container's first process exists.
#[map]
static SLOTS: HashMap<u64, u32> = HashMap::with_max_entries(MAX_SLOTS, 0);

/// Depth of container cgroups below the root of the cgroup v2 hierarchy.
#[unsafe(no_mangle)]
static CONTAINER_LEVEL: Global<i32> = Global::new(0);

/// Depth of container cgroups; cgroups that a workload nests below its own do not matter.
#[inline(always)]
pub(crate) fn container_level() -> i32 {
    CONTAINER_LEVEL.load()
}

/// The slot of a container's cgroup, or [`NO_SLOT`].
#[inline(always)]
pub(crate) fn of_cgroup(id: u64) -> u32 {
    // SAFETY: values are plain `u32`s that only the daemon writes, whole.
    match unsafe { SLOTS.get(&id) } {
        Some(slot) => *slot,
        None => NO_SLOT,
    }
}

/// The slot of the running task. Only right in process context: a softirq runs on whichever task
/// it interrupted.
#[inline(always)]
pub(crate) fn of_current() -> u32 {
    // SAFETY: the helper has no preconditions; at a level that does not exist it returns 0.
    let id = unsafe { bpf_get_current_ancestor_cgroup_id(container_level()) };
    // Most tasks of a node live in cgroups less deep than containers': no look-up for them.
    if id == 0 { NO_SLOT } else { of_cgroup(id) }
}
