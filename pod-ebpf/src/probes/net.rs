//! Packets, bytes and TCP connections, counted at the container's own cgroup.
//!
//! The cgroup hooks see exactly the traffic of the container's sockets, so nothing is filtered. Of a
//! packet only the other end's address and port are looked at, and more of it only if it is to or from
//! a name server.

use aya_ebpf::{
    EbpfContext as _, Global,
    bindings::{
        __sk_buff, BPF_SK_STORAGE_GET_F_CREATE, BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB,
        BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB, BPF_SOCK_OPS_STATE_CB, BPF_SOCK_OPS_STATE_CB_FLAG,
        BPF_SOCK_OPS_TCP_CONNECT_CB, BPF_TCP_CLOSE, BPF_TCP_SYN_SENT,
    },
    btf_maps::SkStorage,
    helpers::{bpf_ktime_get_ns, generated::bpf_sk_storage_get},
    macros::{btf_map, cgroup_skb, map, sock_ops},
    maps::{Array, HashMap, PerCpuArray},
    programs::{SkBuffContext, SockOpsContext},
};
use pod_ebpf::{
    Direction, MAX_SLOTS,
    lost::Lost,
    net::{
        Address, CONNECT_RESULTS, ConnectResult, Family, MAPPED, MAX_ADDRESSES, NetStats, Scope,
        TcpStats, Traffic, UdpTraffic, cell,
    },
};

use crate::{
    counter, dns,
    kernel::{offset, read},
    slot,
};

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
