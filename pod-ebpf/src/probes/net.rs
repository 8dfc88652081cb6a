//! Packets, bytes and TCP connections, counted at the pod's and the container's own cgroup.
//!
//! The cgroup hooks see exactly the traffic of the pod's sockets, so nothing is filtered and no
//! packet is parsed.

#![expect(
    deprecated,
    reason = "the successor of cgroup storage needs Linux 6.2, and a cgroup pointer"
)]

use aya_ebpf::{
    EbpfContext as _,
    bindings::{
        __sk_buff, BPF_SK_STORAGE_GET_F_CREATE, BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB,
        BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB, BPF_SOCK_OPS_STATE_CB, BPF_SOCK_OPS_STATE_CB_FLAG,
        BPF_SOCK_OPS_TCP_CONNECT_CB, BPF_TCP_CLOSE, BPF_TCP_SYN_SENT,
    },
    btf_maps::{CgroupStorage, SkStorage},
    helpers::{
        bpf_ktime_get_ns,
        generated::{bpf_sk_storage_get, bpf_skb_ancestor_cgroup_id},
    },
    macros::{btf_map, cgroup_skb, map, sock_ops},
    maps::{Array, PerCpuArray},
    programs::{SkBuffContext, SockOpsContext},
};
use pod_ebpf::{
    Direction, MAX_SLOTS, NO_SLOT,
    event::Kind,
    lost::Lost,
    net::{AttachmentSlot, CONNECT_RESULTS, ConnectResult, NetStats, TcpStats},
};

use crate::{
    counter, event,
    kernel::{offset, read},
    slot,
};

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

/// TCP counters by slot.
#[map]
static TCP: Array<TcpStats> = Array::with_max_entries(MAX_SLOTS, 0);

/// The slot of the cgroup that `tcp` is attached to. No helper tells a `sock_ops` program whose
/// socket it runs for, so it is attached to each container's cgroup and the daemon leaves the slot
/// in that attachment's storage.
#[expect(
    deprecated,
    reason = "its successor needs Linux 6.2, and a helper that sock_ops may not call"
)]
#[btf_map]
static SLOT_OF: CgroupStorage<AttachmentSlot> = CgroupStorage::new();

/// When a connection attempt began, in nanoseconds of `bpf_ktime_get_ns`.
#[btf_map]
static CONNECT_TIME: SkStorage<u64> = SkStorage::new();

#[sock_ops]
fn tcp(ctx: SockOpsContext) -> u32 {
    // SAFETY: the storage belongs to the attachment that runs this program.
    let slot = unsafe { (*SLOT_OF.get_ptr_mut()).slot };
    let Some(stats) = TCP.get_ptr_mut(slot) else { return 1 };
    match ctx.op() {
        BPF_SOCK_OPS_TCP_CONNECT_CB => connecting(&ctx),
        BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB => established(&ctx, slot, stats),
        BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB => {
            // SAFETY: `stats` points into the map's storage, which outlives this program.
            unsafe { counter::add(&raw mut (*stats).accepts, 1) };
            event::connection(&ctx, slot, Kind::Accept, 0, 0);
        }
        BPF_SOCK_OPS_STATE_CB if ctx.arg(0) == BPF_TCP_SYN_SENT && ctx.arg(1) == BPF_TCP_CLOSE => {
            failed(&ctx, slot, stats);
        }
        _ => {}
    }
    1
}

#[inline(always)]
fn connecting(ctx: &SockOpsContext) {
    // Without the flag the failure of this attempt would not be reported.
    if ctx.set_cb_flags(BPF_SOCK_OPS_STATE_CB_FLAG.cast_signed()).is_err() {
        counter::lose(Lost::ConnectResult);
    }
    match connect_time(ctx, u64::from(BPF_SK_STORAGE_GET_F_CREATE)) {
        // SAFETY: the storage belongs to this socket, which the kernel holds while we run.
        Some(time) => unsafe { *time = bpf_ktime_get_ns() },
        None => counter::lose(Lost::ConnectLatency),
    }
}

#[inline(always)]
fn established(ctx: &SockOpsContext, slot: u32, stats: *mut TcpStats) {
    // Later state changes are of no interest.
    let _unset = ctx.set_cb_flags(0);
    let mut took = 0;
    // SAFETY: `stats` points into the map's storage, which outlives this program.
    unsafe {
        counter::add((&raw mut (*stats).connects).cast::<u64>(), 1);
        if let Some(begin) = connect_time(ctx, 0) {
            let latency = bpf_ktime_get_ns().saturating_sub(*begin);
            counter::observe(&raw mut (*stats).connect_latency, latency);
            took = latency;
        }
    }
    event::connection(ctx, slot, Kind::Connect, 0, took);
}

#[inline(always)]
fn failed(ctx: &SockOpsContext, slot: u32, stats: *mut TcpStats) {
    // The kernel sets the socket's error before it changes the state.
    let errno = socket(ctx).and_then(|sk| read::<u32>(sk, offset!(sock_err))).unwrap_or(0);
    let result = ConnectResult::of_errno(errno) as usize;
    if result < CONNECT_RESULTS {
        // SAFETY: `stats` points into the map's storage; the index was checked.
        unsafe { counter::add((&raw mut (*stats).connects).cast::<u64>().add(result), 1) };
    }
    // SAFETY: the storage belongs to this socket, which the kernel holds while we run.
    let begin = connect_time(ctx, 0).map(|time| unsafe { *time });
    // SAFETY: the helper has no preconditions.
    let took = begin.map_or(0, |begin| unsafe { bpf_ktime_get_ns() }.saturating_sub(begin));
    event::connection(ctx, slot, Kind::ConnectFailure, errno, took);
}

/// The address of the socket, as a number: the verifier allows no arithmetic on the pointer, but a
/// copy of where it was spilled to has lost its type.
#[inline(always)]
fn socket(ctx: &SockOpsContext) -> Option<u64> {
    // SAFETY: the context is valid.
    let spilled = core::hint::black_box(unsafe { (*ctx.ops).__bindgen_anon_2.sk });
    read::<u64>((&raw const spilled) as u64, 0).filter(|sk| *sk != 0)
}

#[inline(always)]
fn connect_time(ctx: &SockOpsContext, flags: u64) -> Option<*mut u64> {
    // SAFETY: the context is valid.
    let sk = unsafe { (*ctx.ops).__bindgen_anon_2.sk };
    if sk.is_null() {
        return None;
    }
    // SAFETY: `sk` is not null and belongs to the running callback.
    let time = unsafe {
        bpf_sk_storage_get(
            (&raw const CONNECT_TIME).cast_mut().cast(),
            sk.cast(),
            core::ptr::null_mut(),
            flags,
        )
    };
    if time.is_null() { None } else { Some(time.cast()) }
}
