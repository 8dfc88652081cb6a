//! Which container a task or a socket belongs to.

#![expect(
    deprecated,
    reason = "the successor of cgroup storage needs Linux 6.2, and a cgroup pointer"
)]

use aya_ebpf::{
    Global,
    bindings::{BPF_TCP_NEW_SYN_RECV, BPF_TCP_TIME_WAIT},
    btf_maps::CgroupStorage,
    helpers::generated::{
        bpf_get_current_ancestor_cgroup_id, bpf_get_current_task, bpf_get_current_task_btf,
    },
    macros::{btf_map, map},
    maps::HashMap,
};
use pod_ebpf::{AttachmentSlot, MAX_SLOTS, NO_SLOT};

use crate::kernel::{field, has, offset, read};

/// Container cgroup id to slot. The daemon inserts before a container's first process exists.
#[map]
static SLOTS: HashMap<u64, u32> = HashMap::with_max_entries(MAX_SLOTS, 0);

/// The slot of the cgroup that a program is attached to. A program that hangs on a container's cgroup
/// need not ask whose packet or socket it runs for, and no helper would tell a `sock_ops` program: the
/// daemon leaves the slot in the attachment's storage.
#[btf_map]
static SLOT_OF: CgroupStorage<AttachmentSlot> = CgroupStorage::new();

/// Depth of container cgroups below the root of the cgroup v2 hierarchy.
#[unsafe(no_mangle)]
static CONTAINER_LEVEL: Global<i32> = Global::new(0);

/// Depth of container cgroups; cgroups that a workload nests below its own do not matter.
#[inline(always)]
pub(crate) fn container_level() -> i32 {
    CONTAINER_LEVEL.load()
}

/// The slot of the container to whose cgroup the running program is attached.
#[inline(always)]
pub(crate) fn of_attachment() -> u32 {
    // SAFETY: the storage belongs to the attachment that runs this program.
    unsafe { (*SLOT_OF.get_ptr_mut()).slot }
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

/// Whether the running task's cgroup is as deep as those of containers: a cheap answer for most tasks of
/// a node. Where that is not cheap, before Linux 6.1, every task may be.
#[inline(always)]
pub(crate) fn may_have_one() -> bool {
    has!(cgroup_ancestor_ids) || depth(current_cgroup()) >= container_level()
}

/// The id of the running task's cgroup at the level of containers; 0 if it is not so deep.
#[inline(always)]
fn current_ancestor() -> u64 {
    let level = container_level();
    if has!(cgroup_ancestor_ids) {
        // Old kernels do not let tracing programs call the helper, but keep the ids at hand.
        // SAFETY: the helper has no preconditions.
        return ancestor_of_task(unsafe { bpf_get_current_task() }, level).unwrap_or(0);
    }
    let cgroup = current_cgroup();
    let depth = depth(cgroup);
    if depth < level {
        0
    } else if depth == level {
        // SAFETY: both steps are fields of what the step before points at.
        unsafe { field(field::<*const u8>(cgroup, offset!(cgroup_node)), offset!(node_id)) }
    } else {
        // SAFETY: the helper has no preconditions.
        unsafe { bpf_get_current_ancestor_cgroup_id(level) }
    }
}

/// The running task's cgroup. Linux 6.1 has all that this takes.
#[inline(always)]
fn current_cgroup() -> *const u8 {
    // SAFETY: the helper has no preconditions, and each step is a field of the structure that the step
    // before it points at.
    unsafe {
        let task = bpf_get_current_task_btf() as *const u8;
        let set = field::<*const u8>(task, offset!(task_cgroups));
        field(set, offset!(css_set_cgroup))
    }
}

#[inline(always)]
fn depth(cgroup: *const u8) -> i32 {
    // SAFETY: the cgroup was read from a typed pointer.
    unsafe { field(cgroup, offset!(cgroup_level)) }
}

/// The slot of a task that need not be the running one.
#[inline(always)]
pub(crate) fn of_task(task: u64) -> u32 {
    match ancestor_of_task(task, container_level()) {
        Some(id) => of_cgroup(id),
        None => NO_SLOT,
    }
}

/// The slot of what belongs to the cgroup at this address.
#[inline(always)]
pub(crate) fn of_cgroup_at(cgroup: u64) -> u32 {
    match ancestor_of_cgroup(cgroup, container_level()) {
        Some(id) => of_cgroup(id),
        None => NO_SLOT,
    }
}

#[inline(always)]
fn ancestor_of_task(task: u64, level: i32) -> Option<u64> {
    let set = read::<u64>(task, offset!(task_cgroups))?;
    ancestor_of_cgroup(read::<u64>(set, offset!(css_set_cgroup))?, level)
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
    Some(of_cgroup(ancestor_of_cgroup(cgroup, container_level())?)).filter(|slot| *slot != NO_SLOT)
}

/// The id of a cgroup's ancestor at this level.
#[inline(always)]
fn ancestor_of_cgroup(cgroup: u64, level: i32) -> Option<u64> {
    if read::<i32>(cgroup, offset!(cgroup_level))? < level {
        return None;
    }
    ancestor(cgroup, level)
}

/// The slot of a task that need not be the running one, without helpers for most tasks of a node,
/// which live in cgroups less deep than containers'.
///
/// # Safety
/// `task` is a `struct task_struct *` to the verifier.
#[inline(always)]
pub(crate) unsafe fn of_typed_task(task: *const u8) -> u32 {
    let level = container_level();
    // SAFETY: by this function's contract; each step is a field of what the one before points at.
    let (cgroup, depth) = unsafe {
        let set = field::<*const u8>(task, offset!(task_cgroups));
        let cgroup = field::<*const u8>(set, offset!(css_set_cgroup));
        (cgroup, field::<i32>(cgroup, offset!(cgroup_level)))
    };
    if depth < level {
        return NO_SLOT;
    }
    match ancestor(cgroup as u64, level) {
        Some(id) => of_cgroup(id),
        None => NO_SLOT,
    }
}

/// The id of the ancestor at `level` of a cgroup that is at least that deep.
#[inline(always)]
fn ancestor(cgroup: u64, level: i32) -> Option<u64> {
    let at = 8 * u64::from(level.cast_unsigned());
    if has!(cgroup_ancestor_ids) {
        return read::<u64>(cgroup, offset!(cgroup_ancestor_ids) + at);
    }
    let ancestor = read::<u64>(cgroup, offset!(cgroup_ancestors) + at)?;
    let node = read::<u64>(ancestor, offset!(cgroup_node))?;
    read::<u64>(node, offset!(node_id))
}
