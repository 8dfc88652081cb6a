//! Waiting for a CPU, told whenever one is given.
//!
//! The kernel itself notes when a thread begins to wait, and adds up how long it has waited
//! (`/proc/PID/schedstat`). Both are read at the moment that the wait ends, so one program is
//! enough, what it counts is what the kernel counts, and nothing has to be kept between a wake-up
//! and the switch.

use aya_ebpf::{
    Global,
    helpers::generated::bpf_get_smp_processor_id,
    macros::{btf_tracepoint, map},
    maps::{Array, PerCpuArray},
    programs::BtfTracePointContext,
};
use pod_ebpf::{
    MAX_SLOTS, NO_SLOT,
    runqueue::{
        CPUS, HOLDERS, HOST, Holder, IDLE, PodNumber, RunQueueStats, STINTS, Stint, Stints, TASKS,
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

/// When this program was loaded, in nanoseconds since boot.
#[unsafe(no_mangle)]
static LOADED_AT: Global<u64> = Global::new(0);

/// Whom each CPU was given to. No per-CPU map: what another CPU did is asked for, too.
#[map]
static STINTS_OF: Array<Stints> = Array::with_max_entries(CPUS, 0);

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
    // SAFETY: the helper has no preconditions.
    let cpu = unsafe { bpf_get_smp_processor_id() };
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
    let Some(stints) = STINTS_OF.get_ptr_mut(cpu % CPUS) else { return 0 };
    if slot != NO_SLOT {
        // SAFETY: `task` and `queue` have the types that are asked for.
        unsafe { end_wait(task, queue, now, (slot, pod), cpu) };
    }
    // SAFETY: `stints` points into the map's storage, which outlives this program, and only this CPU
    // writes there; the index is within the array.
    unsafe {
        let newest = (*stints).newest;
        let ring = (&raw mut (*stints).ring).cast::<Stint>();
        let last = ring.add(place(newest));
        // A stint goes on while the pod stays the same: what is remembered lasts longer.
        if (*last).began == 0 || (*last).pod != pod {
            ring.add(place(newest + 1)).write(Stint { began: now, pod });
            (*stints).newest = newest + 1;
        }
    }
    0
}

/// Counts a wait that ends `now`.
///
/// # Safety
/// `task` is a `struct task_struct *` and `queue` a `struct cfs_rq *` to the verifier.
#[inline(always)]
unsafe fn end_wait(
    task: *const u8,
    queue: *const u8,
    now: u64,
    (slot, pod): (u32, PodNumber),
    cpu: u32,
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
    let waited = WAITED.get_ptr_mut(pid % TASKS)?;
    // SAFETY: `waited` points into the map's storage, which outlives this program; no other CPU has
    // this thread, and what one with the same digits writes at the same time is not taken for this
    // one's.
    let last = unsafe { waited.replace(Waited { pid, cpu, nanoseconds: before + here }) };
    // When a thread is moved while it waits, the kernel adds what it has waited so far; and Linux 6.18
    // now and then gives a thread a CPU without telling anybody.
    let is_known = last.pid == pid && !is_first;
    let elsewhere = match is_known {
        true => before.saturating_sub(last.nanoseconds),
        // SAFETY: by this function's contract.
        false if unsafe { field::<u64>(task, offset!(task_started)) } > LOADED_AT.load() => before,
        // What it waited before anybody looked.
        false => 0,
    };
    let stats = RUNQUEUE.get_ptr_mut(slot)?;
    // SAFETY: `stats` points into the map's storage, which outlives this program.
    unsafe { counter::observe(&raw mut (*stats).latency, here + elsewhere) };
    // SAFETY: by this function's contract.
    let throttled = unsafe { throttled_since(slot, queue) }.unwrap_or(0).min(here);
    count(stats, Holder::OwnThrottle, throttled);
    // The throttling came before the rest of the wait.
    attribute(stats, pod, cpu, now, here - throttled);
    // It waited where it ran before, for that is what made it wait.
    match is_known {
        true => attribute(stats, pod, last.cpu, queued, elsewhere),
        false => count(stats, Holder::Unknown, elsewhere),
    }
    Some(())
}

/// Counts `left` nanoseconds of waiting that ended at `end`, by who had the CPU.
#[inline(always)]
fn attribute(stats: *mut RunQueueStats, pod: PodNumber, cpu: u32, end: u64, left: u64) {
    let (mut end, mut left) = (end, left);
    if let Some(stints) = STINTS_OF.get_ptr(cpu % CPUS) {
        // SAFETY: `stints` points into the map's storage, which outlives this program. Another CPU may
        // write there meanwhile: then a stint is taken for a neighbour of its.
        let newest = unsafe { (*stints).newest };
        for age in 0..STINTS as u64 {
            if left == 0 {
                return;
            }
            // SAFETY: as above, and the index is within the array.
            let stint = unsafe {
                let ring = (&raw const (*stints).ring).cast::<Stint>();
                ring.add(place(newest.wrapping_sub(age))).read()
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
            count(stats, holder, held);
            left -= held;
            end = end.min(stint.began);
        }
    }
    count(stats, Holder::Unknown, left);
}

/// Adds to what a slot waited.
#[inline(always)]
fn count(stats: *mut RunQueueStats, holder: Holder, nanoseconds: u64) {
    let index = holder as usize;
    if nanoseconds > 0 && index < HOLDERS {
        // SAFETY: `stats` points into the map's storage, which outlives this program, and the index is
        // within the array.
        unsafe {
            counter::add((&raw mut (*stats).wait_ns).cast::<u64>().add(index), nanoseconds);
        }
    }
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
