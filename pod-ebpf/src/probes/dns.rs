//! Queries of name servers and their answers, in the packets to and from port 53.

use aya_ebpf::{
    helpers::bpf_ktime_get_ns,
    macros::map,
    maps::{Array, LruHashMap},
    programs::SkBuffContext,
};
use pod_ebpf::{
    Direction, MAX_SLOTS,
    dns::{DnsStats, MAX_PENDING, OUTCOMES, Outcome, Pending, Query},
    slowest::Slowest,
};

pub(crate) use pod_ebpf::dns::PORT;

use crate::{
    counter,
    net::{Packet, TCP_PROTOCOL},
    slowest,
};

/// What was asked and answered, by slot.
#[map]
static DNS: Array<DnsStats> = Array::with_max_entries(MAX_SLOTS, 0);

/// The queries that took longest to be answered, by slot.
#[map]
static DNS_SLOWEST: Array<Slowest> = Array::with_max_entries(MAX_SLOTS, 0);

/// When queries that are not answered yet were sent. Only the programs see both packets, so they
/// insert the keys here; what is never answered makes room for what comes later.
#[map]
static DNS_PENDING: LruHashMap<Query, Pending> = LruHashMap::with_max_entries(MAX_PENDING, 0);

/// The bit of an answer, and those of what is asked for other than names, in the third byte of a
/// message.
const ANSWER: u8 = 0x80;
const OPCODE: u8 = 0x78;

/// Bytes of a message before its questions.
const HEADER: u32 = 12;

/// The beginning of a message: id, flags and result.
type Beginning = [u8; 4];

/// Counts a packet that a container sends to a name server, if it is a query.
#[inline(always)]
pub(crate) fn query(ctx: &SkBuffContext, packet: &Packet, slot: u32) {
    let Some(message) = message(ctx, packet, Direction::Transmit) else { return };
    if message[2] & (ANSWER | OPCODE) != 0 {
        return;
    }
    let query = key(packet, slot, &message);
    // TCP sends what was lost again by itself, which is no query of the container's.
    // SAFETY: only whether there is a value matters.
    if packet.protocol == TCP_PROTOCOL && unsafe { DNS_PENDING.get(&query) }.is_some() {
        return;
    }
    let Some(stats) = DNS.get_ptr_mut(slot) else { return };
    // A datagram is sent by whoever asks; TCP may send what was asked before, whoever runs.
    let pid = if packet.protocol == TCP_PROTOCOL { 0 } else { slowest::current_of(slot) };
    // SAFETY: the helper has no preconditions.
    let pending = Pending { began: unsafe { bpf_ktime_get_ns() }, pid, unused: 0 };
    // Where it fails, the query will seem to be unanswered.
    DNS_PENDING.insert(&query, &pending, 0).ok();
    // SAFETY: `stats` points into the map's storage, which outlives this program.
    unsafe { counter::add(&raw mut (*stats).queries, 1) };
}

/// Counts a packet that a name server sends to a container, if it answers a query that waits for it.
#[inline(always)]
pub(crate) fn answer(ctx: &SkBuffContext, packet: &Packet, slot: u32) {
    let Some(message) = message(ctx, packet, Direction::Receive) else { return };
    if message[2] & ANSWER == 0 {
        return;
    }
    let query = key(packet, slot, &message);
    // SAFETY: values are plain numbers, which are written before there is the key.
    let Some(pending) = (unsafe { DNS_PENDING.get(&query) }).copied() else { return };
    if DNS_PENDING.remove(&query).is_err() {
        // Another CPU has just counted the same answer.
        return;
    }
    let Some(stats) = DNS.get_ptr_mut(slot) else { return };
    let outcome = Outcome::of_code(message[3] & 0xf) as usize;
    // SAFETY: `stats` points into the map's storage, which outlives this program; the index is checked.
    unsafe {
        if outcome < OUTCOMES {
            counter::add((&raw mut (*stats).answers).cast::<u64>().add(outcome), 1);
        }
        let now = bpf_ktime_get_ns();
        let duration = now.saturating_sub(pending.began);
        counter::observe(&raw mut (*stats).duration, duration);
        if pending.pid != 0
            && let Some(kept) = DNS_SLOWEST.get_ptr_mut(slot)
        {
            slowest::keep(kept, duration, now, || pending.pid);
        }
    }
}

#[inline(always)]
fn key(packet: &Packet, slot: u32, message: &Beginning) -> Query {
    let id = u16::from_ne_bytes([message[0], message[1]]);
    Query { server: packet.peer, slot, port: packet.port, id }
}

/// The beginning of the message in a packet, if there is one. Its bytes need not be where a program
/// can read them directly.
#[inline(always)]
fn message(ctx: &SkBuffContext, packet: &Packet, direction: Direction) -> Option<Beginning> {
    if packet.protocol != TCP_PROTOCOL {
        return ctx.load(packet.transport as usize + 8).ok();
    }
    let words: u8 = ctx.load(packet.transport as usize + 12).ok()?;
    let payload = packet.transport + 4 * u32::from(words >> 4);
    // A message begins with its length. What comes in pieces is told by its first.
    let length: [u8; 2] = ctx.load(payload as usize).ok()?;
    let length = u32::from(u16::from_be_bytes(length));
    if length < HEADER {
        return None;
    }
    // A query is never longer than a packet: the length was in one of its own, and this is the id.
    let is_bare = direction == Direction::Transmit && payload + 2 + length > ctx.len();
    ctx.load((if is_bare { payload } else { payload + 2 }) as usize).ok()
}
