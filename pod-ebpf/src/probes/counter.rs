//! Adding to counters, and counting what could not be counted.

use core::intrinsics::{AtomicOrdering, atomic_xadd};

use aya_ebpf::{macros::map, maps::Array};
use pod_ebpf::{
    latency::{self, BUCKETS, Latency},
    lost::{LOST_KINDS, Lost},
};

/// Losses by kind.
#[map]
static LOST: Array<u64> = Array::with_max_entries(LOST_KINDS, 0);

/// Adds to a counter.
///
/// Atomic even in this CPU's own copy of a per-CPU value: a softirq may interrupt the same program
/// of a task, and a preemptible kernel may switch tasks between a load and a store. On a line that
/// no other CPU touches this is one cheap instruction.
///
/// # Safety
/// `counter` points to a `u64` inside a map's value, aligned to 8 bytes.
#[inline(always)]
pub(crate) unsafe fn add(counter: *mut u64, n: u64) {
    // SAFETY: by this function's contract.
    unsafe { atomic_xadd::<u64, u64, { AtomicOrdering::Relaxed }>(counter, n) };
}

/// Adds a duration to a histogram.
///
/// # Safety
/// `latency` points to a [`Latency`] inside a map's value, aligned to 8 bytes.
#[inline(always)]
pub(crate) unsafe fn observe(latency: *mut Latency, nanoseconds: u64) {
    let bucket = latency::bucket(nanoseconds);
    // The verifier does not see that it always is.
    if bucket < BUCKETS {
        // SAFETY: by this function's contract, and the bucket is within the array.
        unsafe {
            add((&raw mut (*latency).buckets).cast::<u64>().add(bucket), 1);
            add(&raw mut (*latency).sum_ns, nanoseconds);
        }
    }
}

/// Counts an event that is missing from the counters.
#[inline(always)]
pub(crate) fn lose(kind: Lost) {
    if let Some(count) = LOST.get_ptr_mut(kind as u32) {
        // SAFETY: `count` points into the map's storage, which outlives this program.
        unsafe { add(count, 1) };
    }
}
