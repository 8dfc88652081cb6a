//! Connects that fail before their first packet: for want of a route or a free port, or since somebody
//! forbids them.
//!
//! No state of a connection tells of these, only what the call returns; and that does not tell an attempt
//! that failed at once from one that the network has answered, or from the second call of a program that
//! asks how the first one went. So the call's entry notes that there is an attempt, and `tcp`, which the
//! kernel calls before the first packet, takes the note away: from there on the socket's state tells.

use aya_ebpf::{
    helpers::{bpf_probe_read_user, generated::bpf_get_current_task},
    macros::{fentry, fexit},
    programs::{FEntryContext, FExitContext},
};

use super::{ConnectResult, TCP, add_at};
use crate::{
    event,
    file::{Place, call, socket_of},
    kernel::{offset, read},
    slot,
};

/// `SS_UNCONNECTED`: a call is the first of an attempt.
const UNCONNECTED: u32 = 1;

/// `IPPROTO_TCP` and `IPPROTO_MPTCP`.
const PROTOCOLS: [u16; 2] = [6, 262];

/// The head of an address of IPv4 or IPv6: family and port, and what tells whose it is.
pub(crate) type Peer = [u32; 7];

/// `int inet_stream_connect(struct socket *, struct sockaddr *, int, int)`. Not the system call, whose
/// argument has no usable type on 5.10.
#[fentry(function = "inet_stream_connect")]
fn b_connect(ctx: FEntryContext) -> i32 {
    if slot::may_have_one()
        && let Some(place) = Place::of_current()
    {
        place.note_connect(is_attempt(ctx.arg(0)).unwrap_or(false));
    }
    0
}

#[fexit(function = "inet_stream_connect")]
fn f_connect(ctx: FExitContext) -> i32 {
    failed(i64::from(ctx.arg::<i32>(4)), || Some(ctx.arg(0)), || read(ctx.arg(1), 0));
    0
}

/// The current task calls `connect`.
///
/// # Safety
/// `regs` is a typed `struct pt_regs *`, the argument of the program.
#[inline(always)]
pub(crate) unsafe fn begins(regs: *const u8, place: Place) {
    // SAFETY: by this function's contract.
    let socket = socket_of(unsafe { call::argument(regs, 0) });
    place.note_connect(socket.and_then(is_attempt).unwrap_or(false));
}

/// The call has returned.
///
/// # Safety
/// As [`begins`].
#[inline(always)]
pub(crate) unsafe fn returned(regs: *const u8, result: i64) -> Option<()> {
    // SAFETY: by this function's contract.
    let (fd, peer) = unsafe { (call::argument(regs, 0), call::address(regs, 1)) };
    #[expect(clippy::cast_possible_truncation, reason = "addresses have 64 bits here")]
    let peer = core::ptr::with_exposed_provenance(peer as usize);
    // SAFETY: the helper checks the address and fails instead of faulting.
    failed(result, || socket_of(fd), || unsafe { bpf_probe_read_user(peer).ok() })
}

#[inline(always)]
fn is_attempt(socket: u64) -> Option<bool> {
    let sk = read::<u64>(socket, offset!(socket_sk))?;
    let protocol = read::<u16>(sk, offset!(sock_protocol))?;
    let state = read::<u32>(socket, offset!(socket_state))?;
    Some(PROTOCOLS.contains(&protocol) && state == UNCONNECTED)
}

/// A connection of the current task is about to send its first packet.
#[inline(always)]
pub(super) fn sends() {
    // The helper that others ask for the number is not for `sock_ops` programs.
    // SAFETY: the helper has no preconditions.
    let task = unsafe { bpf_get_current_task() };
    if let Some(number) = read::<u32>(task, offset!(task_pid))
        && let Some(place) = Place::of(u64::from(number))
        && place.is_connecting()
    {
        place.note_connect(false);
    }
}

/// Counts a call that has returned, if it has failed and sent nothing.
#[inline(always)]
fn failed(
    result: i64,
    socket: impl FnOnce() -> Option<u64>,
    peer: impl FnOnce() -> Option<Peer>,
) -> Option<()> {
    let place = Place::of_current()?;
    if !place.is_connecting() {
        return None;
    }
    place.note_connect(false);
    let errno = u32::try_from(-result).ok().filter(|errno| *errno != 0)?;
    let failure = ConnectResult::of_unsent(errno)?;
    // As for all other connections, the socket decides, wherever the task is.
    let slot = slot::of_socket(read::<u64>(socket()?, offset!(socket_sk))?)?;
    let stats = TCP.get_ptr_mut(slot)?;
    // SAFETY: `stats` points into the map's storage, which outlives this program.
    unsafe { add_at(&raw mut (*stats).connects, failure as u32, 1) };
    event::unsent(slot, errno, peer)
}
