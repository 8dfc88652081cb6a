//! Waiting for a CPU, told whenever one is given.
//!
//! The kernel itself notes when a thread begins to wait, and adds up how long it has waited
//! (`/proc/PID/schedstat`). Both are read at the moment that the wait ends, so one program is
//! enough, what it counts is what the kernel counts, and nothing has to be kept between a wake-up
//! and the switch.

use aya_ebpf::{
    macros::{btf_tracepoint, map},
    maps::{Array, PerCpuArray},
    programs::BtfTracePointContext,
};
use pod_ebpf::{
    MAX_SLOTS, NO_SLOT,
    runqueue::{
        HOLDERS, HOST, Holder, IDLE, PodNumber, RunQueueStats, STINTS, Stint, Stints, TASKS,
        Throttled, Waited,
    },
};

use crate::{
    counter,
    kernel::{field, has, offset},
    slot,
};

/// Counters by slot.
#[map]
static RUNQUEUE: Array<RunQueueStats> = Array::with_max_entries(MAX_SLOTS, 0);

/// The pod of each slot.
#[map]
static POD_OF: Array<PodNumber> = Array::with_max_entries(MAX_SLOTS, 0);

/// Whom each CPU was given to.
#[map]
static STINT: PerCpuArray<Stints> = PerCpuArray::with_max_entries(1, 0);

/// How long threads have waited, at the last digits of their ids: of two threads that have these in
/// common the later one is remembered. An array, since a map of threads would have to be cleaned up
/// after each.
#[map]
static WAITED: Array<Waited> = Array::with_max_entries(TASKS, 0);

/// How long each slot was throttled on each CPU.
#[map]
static THROTTLED: PerCpuArray<Throttled> = PerCpuArray::with_max_entries(MAX_SLOTS, 0);

/// Arguments: whether the first task was preempted, the task that had the CPU, and the one that has
/// it from now on. The kernel holds the lock of the CPU's queue, so nothing else happens there
/// meanwhile.
#[btf_tracepoint(function = "sched_switch")]
fn runqueue(ctx: BtfTracePointContext) -> i32 {
    let task = ctx.arg::<*const u8>(2);
    // SAFETY: `task` is the tracepoint's `struct task_struct *`; every task has a place in a queue
    // of the CPU that it is on, whatever its class.
    let (pid, queue, now) = unsafe {
        let queue = field::<*const u8>(task, offset!(task_queue));
        let cpu = field::<*const u8>(queue, offset!(queue_cpu));
        (field::<u32>(task, offset!(task_pid)), queue, field::<u64>(cpu, offset!(cpu_clock)))
    };
    let slot = match pid {
        0 => NO_SLOT,
        // SAFETY: as above.
        _ => unsafe { slot::of_typed_task(task) },
    };
    let pod = match slot {
        _ if pid == 0 => IDLE,
        NO_SLOT => HOST,
        slot => POD_OF.get(slot).copied().unwrap_or(HOST),
    };
    let Some(stints) = STINT.get_ptr_mut(0) else { return 0 };
    if slot != NO_SLOT {
        // SAFETY: `stints` is this CPU's, and points into the map's storage, which outlives this
        // program; `task` and `queue` have the types that are asked for.
        unsafe { end_wait(task, queue, now, (slot, pod), stints) };
    }
    // SAFETY: as above; the index is within the array.
    unsafe {
        let newest = (*stints).newest + 1;
        let stint = (&raw mut (*stints).ring).cast::<Stint>().add(place(newest));
        stint.write(Stint { began: now, pod });
        (*stints).newest = newest;
    }
    0
}

/// Counts a wait that ends `now`.
///
/// # Safety
/// `task` is a `struct task_struct *` and `queue` a `struct cfs_rq *` to the verifier, and `stints`
/// this CPU's.
#[inline(always)]
unsafe fn end_wait(
    task: *const u8,
    queue: *const u8,
    now: u64,
    (slot, pod): (u32, PodNumber),
    stints: *const Stints,
) -> Option<()> {
    // SAFETY: by this function's contract.
    let (pid, queued, before, is_first) = unsafe {
        (
            field::<u32>(task, offset!(task_pid)),
            field::<u64>(task, offset!(task_last_queued)),
            field::<u64>(task, offset!(task_run_delay)),
            field::<u64>(task, offset!(task_times_run)) == 0,
        )
    };
    // It was not waiting: the kernel counts nothing either.
    if queued == 0 {
        return None;
    }
    let here = now.saturating_sub(queued);
    // When a thread is moved while it waits, the kernel adds what it has waited so far.
    let waited = WAITED.get_ptr_mut(pid % TASKS)?;
    // SAFETY: `waited` points into the map's storage, which outlives this program; no other CPU has
    // this thread, and what one with the same digits writes at the same time is not taken for this
    // one's.
    let elsewhere = unsafe {
        let last = *waited;
        waited.write(Waited { pid: pid.into(), nanoseconds: before + here });
        match last.pid == u64::from(pid) {
            _ if is_first => before,
            true => before.saturating_sub(last.nanoseconds),
            false => 0,
        }
    };
    let stats = RUNQUEUE.get_ptr_mut(slot)?;
    // SAFETY: `stats` points into the map's storage, which outlives this program.
    unsafe { counter::observe(&raw mut (*stats).latency, here + elsewhere) };
    let count = |holder: Holder, nanoseconds: u64| {
        let index = holder as usize;
        if nanoseconds > 0 && index < HOLDERS {
            // SAFETY: as above, and the index is within the array.
            unsafe {
                let held = (&raw mut (*stats).wait_ns).cast::<u64>().add(index);
                counter::add(held, nanoseconds);
            }
        }
    };
    count(Holder::Unknown, elsewhere);
    // SAFETY: by this function's contract.
    let throttled = unsafe { throttled_since(slot, queue) }.unwrap_or(0).min(here);
    count(Holder::OwnThrottle, throttled);

    // Backwards from now, since the throttling came before the rest of the wait.
    let mut left = here - throttled;
    let mut end = now;
    // SAFETY: by this function's contract.
    let newest = unsafe { (*stints).newest };
    for age in 0..STINTS as u64 {
        if left == 0 {
            break;
        }
        // SAFETY: the index is within the array.
        let stint = unsafe {
            (&raw const (*stints).ring).cast::<Stint>().add(place(newest.wrapping_sub(age))).read()
        };
        if stint.began == 0 {
            break;
        }
        let held = end.saturating_sub(stint.began).min(left);
        let holder = match stint.pod {
            IDLE => Holder::Idle,
            HOST => Holder::Host,
            other if other == pod => Holder::SamePod,
            _ => Holder::OtherPod,
        };
        count(holder, held);
        left -= held;
        end = stint.began;
    }
    count(Holder::Unknown, left);
    Some(())
}

/// Where the stint of that number is in the ring.
#[inline(always)]
const fn place(number: u64) -> usize {
    #[expect(clippy::cast_possible_truncation, reason = "only the last bits count")]
    let number = number as usize;
    number % STINTS
}

/// How long a queue was throttled since one of its slot's threads was last given this CPU.
///
/// # Safety
/// `queue` is a `struct cfs_rq *` to the verifier.
#[inline(always)]
unsafe fn throttled_since(slot: u32, queue: *const u8) -> Option<u64> {
    if !has!(queue_throttled) {
        return None;
    }
    // SAFETY: by this function's contract.
    let nanoseconds = unsafe { field::<u64>(queue, offset!(queue_throttled)) };
    let throttled = THROTTLED.get_ptr_mut(slot)?;
    let now = Throttled { queue: queue as u64, nanoseconds };
    // SAFETY: `throttled` is this CPU's, and points into the map's storage, which outlives this
    // program.
    let last = unsafe { throttled.replace(now) };
    (last.queue == now.queue).then(|| nanoseconds.saturating_sub(last.nanoseconds))
}
