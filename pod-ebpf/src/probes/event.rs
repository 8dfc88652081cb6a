//! Telling what is rare, one by one: execs with their arguments, ends of processes, victims of the OOM
//! killer, connection attempts that failed.
//!
//! Programs of their own beside those that count: what happens to these leaves the counters alone. Who
//! does not belong to a pod costs a look-up, and who is not watched one more.

use aya_ebpf::{
    bindings::{BPF_RB_AVAIL_DATA, BPF_RB_FORCE_WAKEUP, BPF_RB_NO_WAKEUP},
    helpers::generated::{
        bpf_get_current_pid_tgid, bpf_get_current_uid_gid, bpf_ktime_get_boot_ns,
        bpf_probe_read_user,
    },
    macros::{btf_tracepoint, map},
    maps::{Array, RingBuf},
    programs::{BtfTracePointContext, SockOpsContext},
};
use pod_ebpf::{
    MAX_SLOTS, NO_SLOT,
    event::{EVENT_BYTES, Event, Kind, TEXT_BYTES, TRACE_BYTES, WAKE_BYTES, Watch, Worded},
};

use crate::{
    counter,
    kernel::{offset, read},
    process, slot,
    tcp::connect,
};

/// Rare events of all pods.
#[map]
static EVENTS: RingBuf = RingBuf::with_byte_size(EVENT_BYTES, 0);

/// What is told of pods that are traced.
#[map]
pub(crate) static TRACES: RingBuf = RingBuf::with_byte_size(TRACE_BYTES, 0);

/// What is told, by slot.
#[map]
static WATCHES: Array<Watch> = Array::with_max_entries(MAX_SLOTS, 0);

/// The beginning of an event about a slot, if somebody wants to be told.
#[inline(always)]
pub(crate) fn begin(slot: u32, kind: Kind) -> Option<Event> {
    if slot == NO_SLOT {
        return None;
    }
    let watch = WATCHES.get(slot)?;
    if watch.kinds & kind.bit() == 0 {
        return None;
    }
    // SAFETY: the helper has no preconditions.
    Some(Event::new(kind, watch.owner, unsafe { bpf_ktime_get_boot_ns() }))
}

/// Whether the reader is woken: not before much has come together. It looks by itself now and then, and
/// an interrupt for each event would cost several times what the event does.
#[inline(always)]
pub(crate) fn wake(ring: &RingBuf) -> u64 {
    if ring.query(u64::from(BPF_RB_AVAIL_DATA)) > u64::from(WAKE_BYTES) {
        u64::from(BPF_RB_FORCE_WAKEUP)
    } else {
        u64::from(BPF_RB_NO_WAKEUP)
    }
}

#[inline(always)]
fn tell(ring: &RingBuf, kind: Kind, event: Event) {
    match ring.reserve::<Event>(0) {
        Some(mut place) => {
            place.write(event);
            place.submit(wake(ring));
        }
        None => counter::lose(kind.loss()),
    }
}

/// Process id of the current task.
#[inline(always)]
pub(crate) fn current_pid() -> u32 {
    // SAFETY: the helper has no preconditions.
    (unsafe { bpf_get_current_pid_tgid() } >> 32) as u32
}

/// User id of the current task. The helper's other half is the group.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "the lower half is what is meant")]
fn current_user() -> u32 {
    // SAFETY: the helper has no preconditions.
    unsafe { bpf_get_current_uid_gid() as u32 }
}

/// Arguments: the task, which is the current one, its former process id, and the program.
#[btf_tracepoint(function = "sched_process_exec")]
fn event_exec(ctx: BtfTracePointContext) -> i32 {
    let Some(mut event) = begin(slot::of_current(), Kind::Exec) else { return 0 };
    let task = ctx.arg::<u64>(0);
    event.pid = current_pid();
    event.uid = current_user();
    if let Some(parent) = read::<u64>(task, offset!(task_parent)) {
        event.parent = read(parent, offset!(task_tgid)).unwrap_or(0);
        // Its threads may have names of their own.
        let leader = read::<u64>(parent, offset!(task_leader)).unwrap_or(parent);
        event.name = read(leader, offset!(task_name)).unwrap_or_default();
    }
    let (start, length) = arguments(task).unwrap_or_default();
    let Some(mut place) = EVENTS.reserve::<Worded>(0) else {
        counter::lose(Kind::Exec.loss());
        return 0;
    };
    // In 64 bits: the verifier of Linux 5.10 does not follow a comparison of 32.
    let most = u64::from(TEXT_BYTES);
    let kept = if length > most { most } else { length };
    let record = place.as_mut_ptr();
    #[expect(clippy::cast_possible_truncation, reason = "addresses have 64 bits here")]
    let from = core::ptr::with_exposed_provenance(start as usize);
    // SAFETY: `record` is a reservation of this type, which holds that many bytes of text. The helper
    // checks the address that it reads, and fails instead of faulting.
    unsafe {
        #[expect(clippy::cast_possible_truncation, reason = "it is no more than was just said")]
        let kept = kept as u32;
        let failed = bpf_probe_read_user((&raw mut (*record).text).cast(), kept, from) != 0;
        event.total = if failed { 0 } else { u32::try_from(length).unwrap_or(u32::MAX) };
        (&raw mut (*record).event).write(event);
    }
    place.submit(wake(&EVENTS));
    0
}

/// Where a task's arguments are in its memory, and how many bytes they are.
#[inline(always)]
fn arguments(task: u64) -> Option<(u64, u64)> {
    let mm = read::<u64>(task, offset!(task_mm))?;
    let start = read::<u64>(mm, offset!(mm_arg_start))?;
    let end = read::<u64>(mm, offset!(mm_arg_end))?;
    Some((start, end.saturating_sub(start)))
}

/// Argument: the task that exits, which is the current one.
#[btf_tracepoint(function = "sched_process_exit")]
fn event_exit(ctx: BtfTracePointContext) -> i32 {
    let Some(mut event) = begin(slot::of_current(), Kind::Exit) else { return 0 };
    let task = ctx.arg::<u64>(0);
    let Some(exit) = process::read_exit(task) else {
        counter::lose(Kind::Exit.loss());
        return 0;
    };
    if !exit.is_process {
        return 0;
    }
    event.pid = exit.tgid;
    event.number = i64::from(exit.status);
    let started = read::<u64>(task, offset!(task_started)).unwrap_or(event.time);
    event.duration = event.time.saturating_sub(started);
    event.name = read(task, offset!(task_name)).unwrap_or_default();
    tell(&EVENTS, Kind::Exit, event);
    0
}

/// Argument: the task that the OOM killer chose, or before Linux 6.8 its pid; see `oom_victim`.
#[btf_tracepoint(function = "mark_victim")]
fn event_oom(ctx: BtfTracePointContext) -> i32 {
    let chosen = ctx.arg::<u64>(0);
    let (slot, pid) = match u32::try_from(chosen) {
        Ok(pid) => (slot::of_current(), Some(pid)),
        Err(_address) => (slot::of_task(chosen), None),
    };
    let Some(mut event) = begin(slot, Kind::Oom) else { return 0 };
    match pid {
        Some(pid) => event.pid = pid,
        None => {
            event.pid = read(chosen, offset!(task_tgid)).unwrap_or(0);
            event.name = read(chosen, offset!(task_name)).unwrap_or_default();
        }
    }
    tell(&EVENTS, Kind::Oom, event);
    0
}

/// Tells of a TCP connection. Whose it is, the socket knows; which process, nobody does here.
#[inline(always)]
pub(crate) fn connection(ctx: &SockOpsContext, slot: u32, kind: Kind, errno: u32, took: u64) {
    let Some(mut event) = begin(slot, kind) else { return };
    event.number = i64::from(errno);
    event.duration = took;
    event.family = ctx.family();
    // In network byte order, and in the half that comes first there.
    event.port = u32::from_be(ctx.remote_port()) & 0xffff;
    if event.family == AF_INET {
        event.address[0] = ctx.remote_ip4();
    } else {
        // One by one: the verifier wants each word read at its own offset from the context.
        // SAFETY: the context is valid.
        unsafe {
            let words = &raw const (*ctx.ops).remote_ip6;
            event.address = [
                (&raw const (*words)[0]).read_volatile(),
                (&raw const (*words)[1]).read_volatile(),
                (&raw const (*words)[2]).read_volatile(),
                (&raw const (*words)[3]).read_volatile(),
            ];
        }
    }
    match kind {
        Kind::ConnectFailure => tell(&EVENTS, kind, event),
        _ => tell(&TRACES, kind, event),
    }
}

/// Tells of an attempt that failed before there was a connection, if it can be read with whom.
#[inline(always)]
pub(crate) fn unsent(
    slot: u32,
    errno: u32,
    peer: impl FnOnce() -> Option<connect::Peer>,
) -> Option<()> {
    let mut event = begin(slot, Kind::ConnectFailure)?;
    let [head, v4, v6 @ .., _scope] = peer()?;
    event.number = i64::from(errno);
    event.family = head & 0xffff;
    event.port = u32::from_be(head) & 0xffff;
    match event.family {
        AF_INET => event.address[0] = v4,
        AF_INET6 => event.address = v6,
        _ => return None,
    }
    tell(&EVENTS, Kind::ConnectFailure, event);
    Some(())
}

const AF_INET: u32 = 2;
const AF_INET6: u32 = 10;
