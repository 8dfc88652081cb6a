//! Packets that the kernel drops, wherever it does so.
//!
//! A buffer that is freed in vain need not be a packet; those of other protocols than IP are left alone.

use aya_ebpf::{
    Global,
    macros::{btf_tracepoint, map},
    maps::{Array, HashMap},
    programs::BtfTracePointContext,
};
use pod_ebpf::{
    MAX_SLOTS,
    drops::{DropStats, MAX_NETWORKS, REASONS, index},
};

use crate::{
    counter,
    kernel::{field, offset, read},
    net::UDP_PROTOCOL,
    slot,
};

/// Dropped packets by slot.
#[map]
static DROPS: Array<DropStats> = Array::with_max_entries(MAX_SLOTS, 0);

/// The inode of a pod's network namespace to the slot of one of its containers.
#[map]
static NETWORKS: HashMap<u32, u32> = HashMap::with_max_entries(MAX_NETWORKS, 0);

/// The kernel's numbers of the reasons that a socket, or all sockets together, had no room.
#[unsafe(no_mangle)]
static DROP_NO_ROOM: Global<u32> = Global::new(u32::MAX);
#[unsafe(no_mangle)]
static DROP_NO_MEMORY: Global<u32> = Global::new(u32::MAX);

/// `ETH_P_IP` and `ETH_P_IPV6`, in network byte order.
const IPV4: u16 = 0x0800_u16.to_be();
const IPV6: u16 = 0x86dd_u16.to_be();

/// In the lowest bits of the address of a packet's route: whether the packet holds a reference to it.
const NOT_COUNTED: u64 = 1;

/// Where the protocol above IP stands in the headers.
const IPV4_PROTOCOL: u64 = 9;
const IPV6_NEXT_HEADER: u64 = 6;

/// `ENOMEM`
const NO_ROOM: i32 = 12;

/// Whose a packet is.
#[derive(Clone, Copy)]
enum Owner {
    /// That of a container's socket.
    Socket(u32),
    /// Somebody's in a pod's network namespace.
    Network(u32),
}

/// Arguments: the packet, where it was dropped, and why.
#[btf_tracepoint(function = "kfree_skb")]
fn packet_drop(ctx: BtfTracePointContext) -> i32 {
    let (packet, reason) = (ctx.arg::<*const u8>(0), ctx.arg::<u32>(2));
    let is_for_room = reason == DROP_NO_ROOM.load() || reason == DROP_NO_MEMORY.load();
    // Of these the socket is told below.
    if !(is_for_room && is_udp(packet)) {
        count(packet, 0, reason);
    }
    0
}

/// The same, and the socket that it was for, if there is one: from Linux 6.11 on.
#[btf_tracepoint(function = "kfree_skb")]
fn packet_drop_to(ctx: BtfTracePointContext) -> i32 {
    count(ctx.arg(0), ctx.arg(3), ctx.arg(2));
    0
}

/// A datagram that its socket did not take. Arguments: the error, and the socket.
#[btf_tracepoint(function = "udp_fail_queue_rcv_skb")]
fn udp_drop(ctx: BtfTracePointContext) -> i32 {
    if let Some(owner) = of_socket(ctx.arg(1)) {
        let is_full = ctx.arg::<i32>(0) == -NO_ROOM;
        add(owner, if is_full { DROP_NO_ROOM.load() } else { DROP_NO_MEMORY.load() });
    }
    0
}

/// Whether a packet is a datagram of UDP, if it is one of IP at all.
#[inline(always)]
fn is_udp(packet: *const u8) -> bool {
    // SAFETY: the packet is a typed argument, and these are fields of it.
    let (protocol, head, header) = unsafe {
        (
            field::<u16>(packet, offset!(skb_protocol)),
            field::<u64>(packet, offset!(skb_head)),
            field::<u16>(packet, offset!(skb_network_header)),
        )
    };
    let at = if protocol == IPV4 { IPV4_PROTOCOL } else { IPV6_NEXT_HEADER };
    read::<u8>(head, u64::from(header) + at) == Some(UDP_PROTOCOL)
}

#[inline(always)]
fn count(packet: *const u8, receiver: u64, reason: u32) {
    // SAFETY: the packet is a typed argument, and these are fields of it.
    let (protocol, sender) =
        unsafe { (field::<u16>(packet, offset!(skb_protocol)), field(packet, offset!(skb_sk))) };
    if protocol != IPV4 && protocol != IPV6 {
        return;
    }
    let owner = of_socket(receiver).or_else(|| of_socket(sender)).or_else(|| {
        // SAFETY: as above. While a packet waits, something else is where its device was, which is no
        // pod's.
        let (device, route) =
            unsafe { (field(packet, offset!(skb_dev)), field::<u64>(packet, offset!(skb_route))) };
        of_device(device).or_else(|| of_device(read(route & !NOT_COUNTED, offset!(route_dev))?))
    });
    if let Some(owner) = owner {
        add(owner, reason);
    }
}

#[inline(always)]
fn of_socket(socket: u64) -> Option<Owner> {
    if socket == 0 {
        return None;
    }
    match slot::of_socket(socket) {
        Some(slot) => Some(Owner::Socket(slot)),
        // What stands for a connection that is over or not yet made has a namespace all the same.
        None => of_network(read(socket, offset!(sock_net))?),
    }
}

#[inline(always)]
fn of_device(device: u64) -> Option<Owner> {
    of_network(read(device, offset!(device_net))?)
}

#[inline(always)]
fn of_network(network: u64) -> Option<Owner> {
    let inode = read::<u32>(network, offset!(net_inode))?;
    // SAFETY: values are plain `u32`s that only the daemon writes, whole.
    unsafe { NETWORKS.get(&inode) }.map(|slot| Owner::Network(*slot))
}

#[inline(always)]
fn add(owner: Owner, reason: u32) {
    let (slot, first) = match owner {
        Owner::Socket(slot) => (slot, 0),
        Owner::Network(slot) => (slot, REASONS),
    };
    let Some(stats) = DROPS.get_ptr_mut(slot) else { return };
    // The compiler may use what it computed the index from, of which verifiers before Linux 6.11 do not
    // see that it was checked.
    let at = core::hint::black_box(first + index(reason)) as usize;
    if at < 2 * REASONS as usize {
        // SAFETY: `stats` points into the map's storage, which outlives this program, and consists of
        // so many counters.
        unsafe { counter::add(stats.cast::<u64>().add(at), 1) };
    }
}
