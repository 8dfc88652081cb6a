//! Which container a task or a socket belongs to.

use aya_ebpf::{
    Global,
    bindings::{BPF_TCP_NEW_SYN_RECV, BPF_TCP_TIME_WAIT},
    helpers::generated::{bpf_get_current_ancestor_cgroup_id, bpf_get_current_task},
    macros::map,
    maps::HashMap,
};
use pod_ebpf::{MAX_SLOTS, NO_SLOT};

use crate::kernel::{has, offset, read};

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
    // Most tasks of a node live in cgroups less deep than containers': no look-up for them.
    match current_ancestor() {
        0 => NO_SLOT,
        id => of_cgroup(id),
    }
}

/// The id of the running task's cgroup at the level of containers; 0 if it is not so deep.
#[inline(always)]
fn current_ancestor() -> u64 {
    let level = container_level();
    if !has!(cgroup_ancestor_ids) {
        // SAFETY: the helper has no preconditions.
        return unsafe { bpf_get_current_ancestor_cgroup_id(level) };
    }
    // Old kernels do not let tracing programs call the helper, but keep the ids at hand.
    // SAFETY: the helper has no preconditions.
    ancestor_of_task(unsafe { bpf_get_current_task() }, level).unwrap_or(0)
}

/// The slot of a task that need not be the running one.
#[inline(always)]
pub(crate) fn of_task(task: u64) -> u32 {
    match ancestor_of_task(task, container_level()) {
        Some(id) => of_cgroup(id),
        None => NO_SLOT,
    }
}

#[inline(always)]
fn ancestor_of_task(task: u64, level: i32) -> Option<u64> {
    let set = read::<u64>(task, offset!(task_cgroups))?;
    ancestor(read::<u64>(set, offset!(css_set_cgroup))?, level)
}

/// The slot of a socket, wherever the program runs. What stands for a connection in TIME_WAIT or before
/// its handshake is complete is no whole socket, and of no cgroup.
#[inline(always)]
pub(crate) fn of_socket(socket: u64) -> Option<u32> {
    let state = u32::from(read::<u8>(socket, offset!(sock_state))?);
    if state == BPF_TCP_TIME_WAIT || state == BPF_TCP_NEW_SYN_RECV {
        return None;
    }
    let cgroup = read::<u64>(socket, offset!(sock_cgroup))?;
    // Before Linux 5.15, one of the root cgroup may have something else there, which this tells.
    if cgroup & 3 != 0 {
        return None;
    }
    Some(of_cgroup(ancestor(cgroup, container_level())?)).filter(|slot| *slot != NO_SLOT)
}

/// The id of a cgroup's ancestor at this level.
#[inline(always)]
fn ancestor(cgroup: u64, level: i32) -> Option<u64> {
    if read::<i32>(cgroup, offset!(cgroup_level))? < level {
        return None;
    }
    let at = 8 * u64::from(level.cast_unsigned());
    if has!(cgroup_ancestor_ids) {
        return read::<u64>(cgroup, offset!(cgroup_ancestor_ids) + at);
    }
    let ancestor = read::<u64>(cgroup, offset!(cgroup_ancestors) + at)?;
    let node = read::<u64>(ancestor, offset!(cgroup_node))?;
    read::<u64>(node, offset!(node_id))
}
