//! TCP connections, counted at the container's own cgroup, and what only tracepoints tell of them.
//!
//! The kernel calls `tcp` for a socket under that socket's lock, so what is kept with it has one writer.

pub(crate) mod connect;

use aya_ebpf::{
    bindings::{
        BPF_SK_STORAGE_GET_F_CREATE, BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB,
        BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB, BPF_SOCK_OPS_RETRANS_CB, BPF_SOCK_OPS_RETRANS_CB_FLAG,
        BPF_SOCK_OPS_RTO_CB, BPF_SOCK_OPS_RTO_CB_FLAG, BPF_SOCK_OPS_RTT_CB,
        BPF_SOCK_OPS_RTT_CB_FLAG, BPF_SOCK_OPS_STATE_CB, BPF_SOCK_OPS_STATE_CB_FLAG,
        BPF_SOCK_OPS_TCP_CONNECT_CB, BPF_TCP_CLOSE, BPF_TCP_SYN_RECV, BPF_TCP_SYN_SENT,
    },
    btf_maps::SkStorage,
    helpers::{bpf_ktime_get_ns, generated::bpf_sk_storage_get},
    macros::{btf_map, btf_tracepoint, map, sock_ops},
    maps::Array,
    programs::{BtfTracePointContext, SockOpsContext},
};
use pod_ebpf::{
    Direction, MAX_SLOTS,
    event::Kind,
    latency::Latency,
    lost::Lost,
    slowest::Slowest,
    tcp::{ConnectResult, Ending, Phase, Segment, Socket, TcpStats},
};

use crate::{
    counter, event,
    kernel::{offset, read},
    slot, slowest,
};

/// What the kernel is asked to tell of a connection attempt.
const ATTEMPT: u32 =
    BPF_SOCK_OPS_STATE_CB_FLAG | BPF_SOCK_OPS_RETRANS_CB_FLAG | BPF_SOCK_OPS_RTO_CB_FLAG;

/// What the kernel is asked to tell of an open connection.
const OPEN: u32 = ATTEMPT | BPF_SOCK_OPS_RTT_CB_FLAG;

/// TCP counters by slot.
#[map]
static TCP: Array<TcpStats> = Array::with_max_entries(MAX_SLOTS, 0);

/// The outgoing connections that took longest to be established, by slot.
#[map]
static TCP_SLOWEST: Array<Slowest> = Array::with_max_entries(MAX_SLOTS, 0);

/// What is kept with sockets. It is also the proof that a connection was counted when it was opened: its
/// end takes away nothing that these maps do not have.
#[btf_map]
static TCP_SOCKETS: SkStorage<Socket> = SkStorage::new();

#[sock_ops]
fn tcp(ctx: SockOpsContext) -> u32 {
    let slot = slot::of_attachment();
    let Some(stats) = TCP.get_ptr_mut(slot) else { return 1 };
    // SAFETY: `stats` points into the map's storage, which outlives this program, and the context is
    // valid.
    unsafe {
        match ctx.op() {
            BPF_SOCK_OPS_TCP_CONNECT_CB => {
                connect::sends();
                connecting(&ctx, slot);
            }
            BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB | BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB => {
                established(&ctx, slot, stats);
            }
            BPF_SOCK_OPS_STATE_CB => moved(&ctx, slot, stats),
            BPF_SOCK_OPS_RTT_CB => {
                // The socket still has what it was before this round trip. What it is now is an argument
                // from Linux 6.10 on.
                let srtt = if ctx.arg(1) == 0 { (*ctx.ops).srtt_us } else { ctx.arg(1) };
                measured(&raw mut (*stats).rtt, srtt >> 3);
            }
            BPF_SOCK_OPS_RETRANS_CB => {
                let segment = Segment::of_state((*ctx.ops).state);
                add_at(&raw mut (*stats).retransmits, segment as u32, u64::from(ctx.arg(1)));
            }
            BPF_SOCK_OPS_RTO_CB => {
                let segment = Segment::of_state((*ctx.ops).state);
                add_at(&raw mut (*stats).timeouts, segment as u32, 1);
            }
            _ => {}
        }
    }
    1
}

#[inline(always)]
fn connecting(ctx: &SockOpsContext, slot: u32) {
    // Without the flags the failure of this attempt would not be reported.
    if !ask_for(ctx, ATTEMPT) {
        counter::lose(Lost::ConnectResult);
    }
    let socket = kept(ctx, BPF_SK_STORAGE_GET_F_CREATE);
    if socket.is_null() {
        counter::lose(Lost::ConnectLatency);
        return;
    }
    // SAFETY: the storage belongs to this socket, which the kernel holds while we run.
    unsafe {
        (*socket).pid = slowest::current_of(slot);
        (*socket).began = bpf_ktime_get_ns();
    }
}

/// # Safety
/// `stats` points into the map's storage.
#[inline(always)]
unsafe fn established(ctx: &SockOpsContext, slot: u32, stats: *mut TcpStats) {
    let socket = kept(ctx, BPF_SK_STORAGE_GET_F_CREATE);
    // SAFETY: by this function's contract; the storage belongs to this socket, which the kernel holds
    // while we run.
    unsafe {
        let began = if socket.is_null() { 0 } else { (*socket).began };
        // Where both sides begin at the same time, or a socket connects to itself, the kernel calls the
        // end of it passive.
        let now = bpf_ktime_get_ns();
        let latency = if began == 0 { 0 } else { now.saturating_sub(began) };
        if began != 0 {
            counter::observe(&raw mut (*stats).connect_latency, latency);
            // By now, whoever else may be interrupted.
            let pid = (*socket).pid;
            if pid != 0
                && let Some(kept) = TCP_SLOWEST.get_ptr_mut(slot)
            {
                slowest::keep(kept, latency, now, || pid);
            }
        }
        if began != 0 || ctx.op() == BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB {
            add_at(&raw mut (*stats).connects, ConnectResult::Established as u32, 1);
            event::connection(ctx, slot, Kind::Connect, 0, latency);
        } else {
            counter::add(&raw mut (*stats).accepts, 1);
            event::connection(ctx, slot, Kind::Accept, 0, 0);
        }
        // What the handshake took, or nothing if a part of it was sent twice.
        measured(&raw mut (*stats).rtt, (*ctx.ops).srtt_us >> 3);
        if socket.is_null() || !ask_for(ctx, OPEN) {
            counter::lose(Lost::Connection);
            return;
        }
        (*socket).counted = 1 + Phase::Established as u32;
        add_at(&raw mut (*stats).open, Phase::Established as u32, 1);
    }
}

/// The state of a socket is about to change.
///
/// # Safety
/// `stats` points into the map's storage.
#[inline(always)]
unsafe fn moved(ctx: &SockOpsContext, slot: u32, stats: *mut TcpStats) {
    let (old, new) = (ctx.arg(0), ctx.arg(1));
    let socket = kept(ctx, 0);
    // SAFETY: by this function's contract; the storage belongs to this socket, which the kernel holds
    // while we run.
    unsafe {
        let counted = if socket.is_null() { 0 } else { (*socket).counted };
        if new != BPF_TCP_CLOSE {
            let phase = Phase::of_state(new) as u32;
            if counted != 0 && counted != 1 + phase {
                add_at(&raw mut (*stats).open, counted - 1, LESS);
                add_at(&raw mut (*stats).open, phase, 1);
                (*socket).counted = 1 + phase;
            }
            return;
        }
        // The kernel sets the socket's error before it changes the state.
        let errno = address(ctx).and_then(|sk| read::<u32>(sk, offset!(sock_err))).unwrap_or(0);
        if counted != 0 {
            add_at(&raw mut (*stats).open, counted - 1, LESS);
            add_at(&raw mut (*stats).closes, Ending::of(counted - 1, errno) as u32, 1);
            measured(&raw mut (*stats).min_rtt, (*ctx.ops).rtt_min);
            (*socket).counted = 0;
            (*socket).began = 0;
        } else if (old == BPF_TCP_SYN_SENT || old == BPF_TCP_SYN_RECV)
            // Somebody else may have asked for this. Then one without a free port ends here, too.
            && (socket.is_null() || (*socket).began != 0)
        {
            add_at(&raw mut (*stats).connects, ConnectResult::of_errno(errno) as u32, 1);
            let began = if socket.is_null() { 0 } else { (*socket).began };
            let took = if began == 0 { 0 } else { bpf_ktime_get_ns().saturating_sub(began) };
            event::connection(ctx, slot, Kind::ConnectFailure, errno, took);
            if !socket.is_null() {
                (*socket).began = 0;
            }
        }
        // The program may use the socket for another connection, or to listen.
        ctx.set_cb_flags((ctx.cb_flags() & !OPEN).cast_signed()).ok();
    }
}

/// One less: counters wrap.
const LESS: u64 = u64::MAX;

/// Adds to an element of an array of counters.
///
/// # Safety
/// `counters` points into a map's value, aligned to 8 bytes.
#[inline(always)]
unsafe fn add_at<const N: usize>(counters: *mut [u64; N], index: u32, n: u64) {
    // The compiler may check what it computed the index from, and use the index: then verifiers before
    // Linux 6.11 do not see that it was checked.
    let index = core::hint::black_box(index) as usize;
    if index < N {
        // SAFETY: by this function's contract, and the index is within the array.
        unsafe { counter::add(counters.cast::<u64>().add(index), n) };
    }
}

/// Adds a round-trip time. The kernel has none before the first acknowledgement: that is 0, or, as a
/// minimum, the greatest number there is.
///
/// # Safety
/// `histogram` points into a map's value, aligned to 8 bytes.
#[inline(always)]
unsafe fn measured(histogram: *mut Latency, microseconds: u32) {
    if microseconds != 0 && microseconds != u32::MAX {
        // SAFETY: by this function's contract.
        unsafe { counter::observe(histogram, u64::from(microseconds) * 1000) };
    }
}

/// Asks the kernel for these callbacks, too. Other programs may have asked for others.
#[inline(always)]
fn ask_for(ctx: &SockOpsContext, flags: u32) -> bool {
    ctx.set_cb_flags((ctx.cb_flags() | flags).cast_signed()).is_ok()
}

/// The address of the socket, as a number: the verifier allows no arithmetic on the pointer, but a
/// copy of where it was spilled to has lost its type.
#[inline(always)]
fn address(ctx: &SockOpsContext) -> Option<u64> {
    // SAFETY: the context is valid.
    let spilled = core::hint::black_box(unsafe { (*ctx.ops).__bindgen_anon_2.sk });
    read::<u64>((&raw const spilled) as u64, 0).filter(|sk| *sk != 0)
}

/// What is kept with the socket; null if nothing is. Not an `Option`, which has no room for its mark in a
/// pointer that may be null: the verifier refuses the half of it that is not set.
#[inline(always)]
fn kept(ctx: &SockOpsContext, flags: u32) -> *mut Socket {
    // SAFETY: the context is valid.
    let sk = unsafe { (*ctx.ops).__bindgen_anon_2.sk };
    if sk.is_null() {
        return core::ptr::null_mut();
    }
    // SAFETY: `sk` is not null and belongs to the running callback.
    unsafe {
        bpf_sk_storage_get(
            (&raw const TCP_SOCKETS).cast_mut().cast(),
            sk.cast(),
            core::ptr::null_mut(),
            u64::from(flags),
        )
        .cast()
    }
}

/// Argument: the socket; null, from Linux 6.10 on, where there is none.
#[btf_tracepoint(function = "tcp_send_reset")]
fn tcp_reset_sent(ctx: BtfTracePointContext) -> i32 {
    count_reset(ctx.arg(0), Direction::Transmit);
    0
}

/// Argument: the socket.
#[btf_tracepoint(function = "tcp_receive_reset")]
fn tcp_reset_got(ctx: BtfTracePointContext) -> i32 {
    count_reset(ctx.arg(0), Direction::Receive);
    0
}

#[inline(always)]
fn count_reset(socket: u64, direction: Direction) {
    let Some(stats) = of_socket(socket) else { return };
    // SAFETY: `stats` points into the map's storage, which outlives this program.
    unsafe { add_at(&raw mut (*stats).resets, direction as u32, 1) };
}

/// Argument: the listening socket.
#[btf_tracepoint(function = "tcp_retransmit_synack")]
fn tcp_syn_ack(ctx: BtfTracePointContext) -> i32 {
    let Some(stats) = of_socket(ctx.arg(0)) else { return 0 };
    // SAFETY: `stats` points into the map's storage, which outlives this program.
    unsafe { add_at(&raw mut (*stats).retransmits, Segment::SynAck as u32, 1) };
    0
}

/// The counters of a socket's container.
#[inline(always)]
fn of_socket(socket: u64) -> Option<*mut TcpStats> {
    if socket == 0 {
        return None;
    }
    TCP.get_ptr_mut(slot::of_socket(socket)?)
}
