//! Exec, fork and exit, at the scheduler's own tracepoints.
//!
//! All three run in process context, so the current task's cgroup is the container's.

use aya_ebpf::{
    EbpfContext as _,
    helpers::generated::bpf_ktime_get_boot_ns,
    macros::{btf_tracepoint, fexit, map},
    maps::Array,
    programs::{BtfTracePointContext, FExitContext},
};
use aya_log_ebpf::debug;
use pod_ebpf::{
    MAX_SLOTS, NO_SLOT,
    lost::Lost,
    process::{
        EXEC_FAILURES, EXIT_CLASSES, ExecFailure, ExitClass, ProcessStats, Run, RunState, SIGNALS,
        Victim,
    },
};

use crate::{
    counter,
    kernel::{offset, read},
    slot,
};

/// Counters by slot.
#[map]
static PROCESS: Array<ProcessStats> = Array::with_max_entries(MAX_SLOTS, 0);

/// The current or last run of each slot's container.
#[map]
static RUNS: Array<Run> = Array::with_max_entries(MAX_SLOTS, 0);

/// Whom the kernel killed for want of memory, by slot.
#[map]
static VICTIMS: Array<Victim> = Array::with_max_entries(MAX_SLOTS, 0);

#[btf_tracepoint(function = "sched_process_exec")]
fn exec(ctx: BtfTracePointContext) -> i32 {
    let slot = slot::of_current();
    if let Some(stats) = PROCESS.get_ptr_mut(slot) {
        // SAFETY: `stats` points into the map's storage, which outlives this program.
        unsafe { counter::add(&raw mut (*stats).execs, 1) };
    }
    if slot != NO_SLOT {
        begin_run(slot, ctx.tgid());
        debug!(&ctx, "exec: pid {} in slot {}", ctx.tgid(), slot);
    }
    0
}

/// A call of `execve` or `execveat` returned.
#[inline(always)]
pub(crate) fn exec_returned(result: i64) {
    let Some(failure) = ExecFailure::of(result) else { return };
    let Some(stats) = PROCESS.get_ptr_mut(slot::of_current()) else { return };
    let index = failure as usize;
    if index < EXEC_FAILURES {
        // SAFETY: `stats` points into the map's storage, which outlives this program, and the index
        // is within the array.
        unsafe {
            counter::add((&raw mut (*stats).exec_failures).cast::<u64>().add(index), 1);
        }
    }
}

/// The system calls themselves, where the kernel allows fexit: else whatever counts at the exit of
/// all system calls does it. What calls them within the kernel, for a program of its own, is not
/// meant.
macro_rules! exec_calls {
    ($($program:ident $function:literal;)*) => {$(
        #[fexit(function = $function)]
        fn $program(ctx: FExitContext) -> i32 {
            exec_returned(ctx.arg(1));
            0
        }
    )*};
}

exec_calls! {
    f_execve "execve";
    f_execveat "execveat";
    f_execve32 "execve";
    f_execveat32 "execveat";
}

/// Takes note of a container's first process, which the daemon has named before. Nothing else runs
/// in the container yet.
#[inline(always)]
fn begin_run(slot: u32, tgid: u32) {
    let Some(run) = RUNS.get_ptr_mut(slot) else { return };
    // SAFETY: `run` points into the map's storage, which outlives this program; no other program
    // writes to it before the process has exec'ed.
    unsafe {
        let is_first = (*run).tgid == 0 || (*run).tgid == tgid;
        if is_first && (*run).state == RunState::Awaited as u32 {
            (*run).tgid = tgid;
            (*run).state = RunState::Running as u32;
        }
    }
}

/// Takes note of how a container's first process ends: with the status of its last thread,
/// which is that of the group once one of them has called `exit_group`.
#[inline(always)]
fn end_run(slot: u32, exit: &Exit) {
    let Some(run) = RUNS.get_ptr_mut(slot) else { return };
    // SAFETY: `run` points into the map's storage, which outlives this program. Threads that end at
    // the same time write the same status.
    unsafe {
        if (*run).tgid != exit.tgid {
            return;
        }
        let state = (*run).state;
        // One that is still awaited has not come as far as to execute its program: it never ran.
        let running = state == RunState::Running as u32;
        // The leader may have ended before the others.
        let lingers = state == RunState::Ended as u32 && !exit.is_leader;
        if running || lingers {
            (*run).status = exit.status;
            (*run).ended = bpf_ktime_get_boot_ns();
            if exit.is_process {
                (*run).state = RunState::Ended as u32;
            }
        }
    }
}

/// Takes note of the name of the process that was chosen, which ends here.
#[inline(always)]
fn name_victim(slot: u32, task: u64, tgid: u32) -> Option<()> {
    let victim = VICTIMS.get_ptr_mut(slot)?;
    // SAFETY: `victim` points into the map's storage, which outlives this program. All threads of the
    // process write the same name.
    unsafe {
        if (*victim).tgid == tgid {
            let leader = read::<u64>(task, offset!(task_leader))?;
            (*victim).name = read(leader, offset!(task_name))?;
        }
    }
    Some(())
}

/// Argument: the task that the OOM killer chose, or before Linux 6.8 its pid, which no address is as
/// small as; of that the slot is not known, but who asks for too much is mostly of the same container.
/// Then come all others of the container, if it dies as one. The kernel holds a lock meanwhile.
#[btf_tracepoint(function = "mark_victim")]
fn oom_victim(ctx: BtfTracePointContext) -> i32 {
    let chosen = ctx.arg::<u64>(0);
    let (slot, tgid) = match u32::try_from(chosen) {
        Ok(pid) => (slot::of_current(), Some(pid)),
        Err(_address) => (slot::of_task(chosen), read::<u32>(chosen, offset!(task_tgid))),
    };
    let Some(tgid) = tgid else {
        counter::lose(Lost::Task);
        return 0;
    };
    if slot == NO_SLOT {
        return 0;
    }
    let (Some(run), Some(victim)) = (RUNS.get_ptr(slot), VICTIMS.get_ptr_mut(slot)) else {
        return 0;
    };
    // SAFETY: both point into their map's storage, which outlives this program.
    unsafe {
        let run = (*run).number;
        if (*victim).tgid == 0 || (*victim).run != run {
            *victim = Victim { run, tgid, ..Victim::NONE };
        }
    }
    0
}

/// Arguments: the parent, which is the current task, and the child.
#[btf_tracepoint(function = "sched_process_fork")]
fn fork(ctx: BtfTracePointContext) -> i32 {
    let child = ctx.arg::<u64>(1);
    let (Some(pid), Some(tgid)) =
        (read::<u32>(child, offset!(task_pid)), read::<u32>(child, offset!(task_tgid)))
    else {
        counter::lose(Lost::Task);
        return 0;
    };
    let Some(stats) = PROCESS.get_ptr_mut(slot::of_current()) else { return 0 };
    // SAFETY: `stats` points into the map's storage, which outlives this program.
    unsafe {
        if pid == tgid {
            counter::add(&raw mut (*stats).forks, 1);
        } else {
            counter::add(&raw mut (*stats).threads, 1);
        }
    }
    0
}

/// Argument: the task that exits, which is the current one.
///
/// A process is counted when its leader exits, which happens once. Counting when the last thread
/// has gone would count twice when the last two leave at the same time on two CPUs. The exception
/// is an exec by another thread than the leader: the old leader exits and the process lives on.
#[btf_tracepoint(function = "sched_process_exit")]
fn exit(ctx: BtfTracePointContext) -> i32 {
    let task = ctx.arg(0);
    let Some(exit) = read_exit(task) else {
        counter::lose(Lost::Task);
        return 0;
    };
    let slot = slot::of_current();
    if slot != NO_SLOT {
        end_run(slot, &exit);
        if name_victim(slot, task, exit.tgid).is_none() {
            counter::lose(Lost::Task);
        }
    }
    let Exit { tgid, is_process, status, .. } = exit;
    if !is_process {
        return 0;
    }

    let Some(stats) = PROCESS.get_ptr_mut(slot) else { return 0 };
    let signal = (status & 0x7f) as usize;
    // SAFETY: `stats` points into the map's storage, which outlives this program, and both indexes
    // are checked against the arrays' lengths.
    unsafe {
        if signal == 0 {
            let class = ExitClass::of((status >> 8) & 0xff) as usize;
            if class < EXIT_CLASSES {
                counter::add((&raw mut (*stats).exits).cast::<u64>().add(class), 1);
            }
        } else if signal < SIGNALS {
            counter::add((&raw mut (*stats).signals).cast::<u64>().add(signal), 1);
        }
    }
    if slot != NO_SLOT {
        debug!(&ctx, "exit: pid {} in slot {} with status {}", tgid, slot, status);
    }
    0
}

/// What the exit of a task means.
pub(crate) struct Exit {
    pub(crate) tgid: u32,
    is_leader: bool,
    /// Whether it is the end of the process, and not of a thread.
    pub(crate) is_process: bool,
    /// As `wait` gives it.
    pub(crate) status: u32,
}

/// All of the process ends, by `exit_group` or a signal (include/linux/sched/signal.h).
const SIGNAL_GROUP_EXIT: u32 = 4;

/// Reads how a task ends. If its process does, that is the process's end, as it is to `wait`: threads that
/// the kernel has made for io_uring end with 0 whatever the others end with.
#[inline(always)]
pub(crate) fn read_exit(task: u64) -> Option<Exit> {
    let tgid = read::<u32>(task, offset!(task_tgid))?;
    let signal = read::<u64>(task, offset!(task_signal))?;
    let is_leader = read::<u32>(task, offset!(task_pid))? == tgid;
    let replaced = read::<u64>(signal, offset!(signal_exec_task))? != 0;
    let is_group = read::<u32>(signal, offset!(signal_flags))? & SIGNAL_GROUP_EXIT != 0;
    let status = if is_group {
        read::<u32>(signal, offset!(signal_exit_code))?
    } else {
        read::<u32>(task, offset!(task_exit_code))?
    };
    Some(Exit { tgid, is_leader, is_process: is_leader && !replaced, status })
}
