//! Keeping the slowest of what was timed lately, beside the histograms that all of it is in.

use aya_ebpf::helpers::generated::bpf_get_current_task;
use pod_ebpf::slowest::Slowest;

use crate::{
    kernel::{offset, read},
    slot,
};

/// Keeps what took that long and is over `now`, if it is slower than what is kept or that is old. Most is
/// neither, and costs a look. Of two CPUs that come at the same time the later one's is kept.
///
/// # Safety
/// `kept` points to a [`Slowest`] inside a map's value, aligned to 8 bytes.
#[inline(always)]
pub(crate) unsafe fn keep(
    kept: *mut Slowest,
    nanoseconds: u64,
    now: u64,
    pid: impl FnOnce() -> u32,
) {
    // SAFETY: by this function's contract. Volatile, so that each word is read and written at once.
    unsafe {
        let (what, when) = (&raw mut (*kept).what, &raw mut (*kept).when);
        let last = Slowest { what: what.read_volatile(), when: when.read_volatile() };
        if last.yields_to(nanoseconds, now) {
            let slowest = Slowest::new(pid(), nanoseconds, now);
            what.write_volatile(slowest.what);
            when.write_volatile(slowest.when);
        }
    }
}

/// Process id of the current task if it is a slot's: who asks on behalf of a socket may run in an
/// interrupt, or in a thread of the kernel. Else 0.
#[inline(always)]
pub(crate) fn current_of(slot: u32) -> u32 {
    // SAFETY: the helper has no preconditions.
    let task = unsafe { bpf_get_current_task() };
    if slot::of_task(task) != slot {
        return 0;
    }
    read::<u32>(task, offset!(task_tgid)).unwrap_or(0)
}
