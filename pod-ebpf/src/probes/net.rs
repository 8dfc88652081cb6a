//! Packets and bytes, counted at the pod's own cgroup.
//!
//! The cgroup hooks see exactly the traffic of the pod's sockets, so nothing is filtered and no
//! packet is parsed.

use aya_ebpf::{
    EbpfContext as _,
    bindings::__sk_buff,
    helpers::generated::bpf_skb_ancestor_cgroup_id,
    macros::{cgroup_skb, map},
    maps::PerCpuArray,
    programs::SkBuffContext,
};
use pod_ebpf::{Direction, MAX_SLOTS, NO_SLOT, net::NetStats};

use crate::{counter, slot};

/// Verdict that lets the packet through: Podscope observes and never filters.
const PASS: i32 = 1;

/// Traffic by slot.
#[map]
static NET: PerCpuArray<NetStats> = PerCpuArray::with_max_entries(MAX_SLOTS, 0);

#[cgroup_skb(ingress)]
fn net_ingress(ctx: SkBuffContext) -> i32 {
    count(&ctx, Direction::Receive);
    PASS
}

#[cgroup_skb(egress)]
fn net_egress(ctx: SkBuffContext) -> i32 {
    count(&ctx, Direction::Transmit);
    PASS
}

#[inline(always)]
fn count(ctx: &SkBuffContext, direction: Direction) {
    // The socket's cgroup, not the current task's: a softirq runs on whichever task it interrupted.
    let skb = ctx.as_ptr().cast::<__sk_buff>();
    // SAFETY: the pointer is the context that the kernel passed to this program.
    let cgroup = unsafe { bpf_skb_ancestor_cgroup_id(skb, slot::container_level()) };
    let slot = slot::of_cgroup(cgroup);
    if slot == NO_SLOT {
        return;
    }
    let Some(stats) = NET.get_ptr_mut(slot) else { return };
    // SAFETY: the context is valid; `gso_segs` is 0 for a packet that is not segmented.
    let segments = unsafe { (*skb).gso_segs };
    let direction = direction as usize;
    // SAFETY: `stats` points into the map's storage, which outlives this program; `direction` is 0
    // or 1.
    unsafe {
        let at = |counters: *mut [u64; 2]| counters.cast::<u64>().add(direction);
        counter::add(at(&raw mut (*stats).bytes), u64::from(ctx.len()));
        counter::add(at(&raw mut (*stats).packets), 1);
        counter::add(
            at(&raw mut (*stats).segments),
            u64::from(if segments == 0 { 1 } else { segments }),
        );
    }
}
