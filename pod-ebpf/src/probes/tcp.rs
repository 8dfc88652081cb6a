//! TCP connections, counted at the container's own cgroup.

use aya_ebpf::{
    bindings::{
        BPF_SK_STORAGE_GET_F_CREATE, BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB,
        BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB, BPF_SOCK_OPS_STATE_CB, BPF_SOCK_OPS_STATE_CB_FLAG,
        BPF_SOCK_OPS_TCP_CONNECT_CB, BPF_TCP_CLOSE, BPF_TCP_SYN_SENT,
    },
    btf_maps::SkStorage,
    helpers::{bpf_ktime_get_ns, generated::bpf_sk_storage_get},
    macros::{btf_map, map, sock_ops},
    maps::Array,
    programs::SockOpsContext,
};
use pod_ebpf::{
    MAX_SLOTS,
    lost::Lost,
    tcp::{CONNECT_RESULTS, ConnectResult, TcpStats},
};

use crate::{
    counter,
    kernel::{offset, read},
    slot,
};

/// TCP counters by slot.
#[map]
static TCP: Array<TcpStats> = Array::with_max_entries(MAX_SLOTS, 0);

/// When a connection attempt began, in nanoseconds of `bpf_ktime_get_ns`.
#[btf_map]
static CONNECT_TIME: SkStorage<u64> = SkStorage::new();

#[sock_ops]
fn tcp(ctx: SockOpsContext) -> u32 {
    let Some(stats) = TCP.get_ptr_mut(slot::of_attachment()) else { return 1 };
    match ctx.op() {
        BPF_SOCK_OPS_TCP_CONNECT_CB => connecting(&ctx),
        BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB => established(&ctx, stats),
        BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB => {
            // SAFETY: `stats` points into the map's storage, which outlives this program.
            unsafe { counter::add(&raw mut (*stats).accepts, 1) };
        }
        BPF_SOCK_OPS_STATE_CB if ctx.arg(0) == BPF_TCP_SYN_SENT && ctx.arg(1) == BPF_TCP_CLOSE => {
            failed(&ctx, stats);
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
fn established(ctx: &SockOpsContext, stats: *mut TcpStats) {
    // Later state changes are of no interest.
    let _unset = ctx.set_cb_flags(0);
    // SAFETY: `stats` points into the map's storage, which outlives this program.
    unsafe {
        counter::add((&raw mut (*stats).connects).cast::<u64>(), 1);
        if let Some(begin) = connect_time(ctx, 0) {
            let latency = bpf_ktime_get_ns().saturating_sub(*begin);
            counter::observe(&raw mut (*stats).connect_latency, latency);
        }
    }
}

#[inline(always)]
fn failed(ctx: &SockOpsContext, stats: *mut TcpStats) {
    // The kernel sets the socket's error before it changes the state.
    let errno = socket(ctx).and_then(|sk| read::<u32>(sk, offset!(sock_err))).unwrap_or(0);
    let result = ConnectResult::of_errno(errno) as usize;
    if result < CONNECT_RESULTS {
        // SAFETY: `stats` points into the map's storage; the index was checked.
        unsafe { counter::add((&raw mut (*stats).connects).cast::<u64>().add(result), 1) };
    }
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
