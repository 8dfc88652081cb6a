//! Packets and bytes, counted at the container's own cgroup.
//!
//! The cgroup hooks see exactly the traffic of the container's sockets, so nothing is filtered. Of a
//! packet only the other end's address and port are looked at, and more of it only if it is to or from
//! a name server.

use aya_ebpf::{
    EbpfContext as _, Global,
    bindings::__sk_buff,
    macros::{cgroup_skb, map},
    maps::{HashMap, PerCpuArray},
    programs::SkBuffContext,
};
use pod_ebpf::{
    Direction, MAX_SLOTS,
    net::{Address, Family, MAPPED, MAX_ADDRESSES, NetStats, Scope, Traffic, UdpTraffic, cell},
};

use crate::{counter, dns, slot};

/// Verdict that lets the packet through: Podscope observes and never filters.
const PASS: i32 = 1;

/// Traffic by slot.
#[map]
static NET: PerCpuArray<NetStats> = PerCpuArray::with_max_entries(MAX_SLOTS, 0);

/// The node's own addresses.
#[map]
static ADDRESSES: HashMap<Address, u32> = HashMap::with_max_entries(MAX_ADDRESSES, 0);

/// The pods' network and its mask, and the node's address in it, in network byte order.
#[unsafe(no_mangle)]
static POD_NETWORK: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static POD_MASK: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static POD_GATEWAY: Global<u32> = Global::new(0);

/// `ETH_P_IP`, in network byte order.
const IPV4: u32 = 0x0800_u16.to_be() as u32;

/// Index of the interface `lo` in every network namespace.
const LOOPBACK: u32 = 1;

/// `IPPROTO_TCP`
pub(crate) const TCP_PROTOCOL: u8 = 6;

/// `IPPROTO_UDP`
pub(crate) const UDP_PROTOCOL: u8 = 17;

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

/// What of a packet's headers matters.
pub(crate) struct Packet {
    pub(crate) family: Family,
    /// The other end.
    pub(crate) peer: Address,
    /// Protocol above IP.
    pub(crate) protocol: u8,
    /// Where its header begins.
    pub(crate) transport: u32,
    /// This end's port and the other's, in network byte order; 0 if there is none.
    pub(crate) port: u16,
    pub(crate) peer_port: u16,
}

#[inline(always)]
fn count(ctx: &SkBuffContext, direction: Direction) {
    let slot = slot::of_attachment();
    let Some(stats) = NET.get_ptr_mut(slot) else { return };
    let skb = ctx.as_ptr().cast::<__sk_buff>();
    let Some(packet) = parse(skb, direction) else { return };
    let scope = scope(skb, &packet);
    let bytes = u64::from(ctx.len());
    // SAFETY: the context is valid; `gso_segs` is 0 for a packet that is not segmented.
    let segments = u64::from(unsafe { (*skb).gso_segs });
    let cell = cell(direction, packet.family, scope);
    // SAFETY: `stats` points into the map's storage, which outlives this program; a cell and a
    // direction are within their arrays.
    unsafe {
        let traffic = (&raw mut (*stats).traffic).cast::<Traffic>().add(cell);
        counter::add(&raw mut (*traffic).bytes, bytes);
        counter::add(&raw mut (*traffic).packets, 1);
        if segments > 1 {
            counter::add(&raw mut (*traffic).more_segments, segments - 1);
        }
        if packet.protocol == UDP_PROTOCOL {
            let udp = (&raw mut (*stats).udp).cast::<UdpTraffic>().add(direction as usize);
            counter::add(&raw mut (*udp).bytes, bytes);
            counter::add(&raw mut (*udp).datagrams, if segments > 1 { segments } else { 1 });
        }
    }
    if packet.peer_port == dns::PORT.to_be() {
        match direction {
            Direction::Transmit => dns::query(ctx, &packet, slot),
            Direction::Receive => dns::answer(ctx, &packet, slot),
        }
    }
}

/// Looks at a packet's headers, which the kernel keeps in one piece; `None` if there are none.
#[inline(always)]
fn parse(skb: *const __sk_buff, direction: Direction) -> Option<Packet> {
    // SAFETY: the context is valid. It begins at the IP header.
    let (begin, end, kind) =
        unsafe { ((*skb).data as usize, (*skb).data_end as usize, (*skb).protocol) };
    let is_sent = matches!(direction, Direction::Transmit);
    let at = begin as *const u8;
    let (family, peer, protocol, transport);
    // SAFETY: what is read is before the end of what the kernel lets programs read, and of the machines
    // that this is for none minds if it is not aligned.
    unsafe {
        if kind == IPV4 {
            if begin + 20 > end {
                return None;
            }
            family = Family::Ipv4;
            let address = at.add(if is_sent { 16 } else { 12 }).cast::<u32>().read();
            peer = [0, 0, MAPPED, address];
            protocol = at.add(9).read();
            transport = 4 * u32::from(at.read() & 0xf);
        } else {
            if begin + 40 > end {
                return None;
            }
            family = Family::Ipv6;
            peer = at.add(if is_sent { 24 } else { 8 }).cast::<Address>().read();
            protocol = at.add(6).read();
            transport = 40;
        }
    }
    let mut packet = Packet { family, peer, protocol, transport, port: 0, peer_port: 0 };
    if protocol == TCP_PROTOCOL || protocol == UDP_PROTOCOL {
        let ports = begin + transport as usize;
        if ports + 4 <= end {
            // SAFETY: as above.
            let [source, destination] = unsafe { (ports as *const [u16; 2]).read() };
            (packet.port, packet.peer_port) =
                if is_sent { (source, destination) } else { (destination, source) };
        }
    }
    Some(packet)
}

/// Who is at the other end.
#[inline(always)]
fn scope(skb: *const __sk_buff, packet: &Packet) -> Scope {
    // SAFETY: the context is valid.
    if unsafe { (*skb).ifindex } == LOOPBACK {
        return Scope::Loopback;
    }
    if matches!(packet.family, Family::Ipv4) {
        let address = packet.peer[3];
        if address & POD_MASK.load() == POD_NETWORK.load() {
            return if address == POD_GATEWAY.load() { Scope::Node } else { Scope::Pod };
        }
    }
    // A copy: of what a helper has a pointer to, the verifier forgets what is in it and beside it.
    let peer = packet.peer;
    // SAFETY: only whether there is a value matters.
    if unsafe { ADDRESSES.get(&peer) }.is_some() { Scope::Node } else { Scope::External }
}
