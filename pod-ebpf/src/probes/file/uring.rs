//! What is read and written by io_uring, at the completion of a request.
//!
//! A request completes in its own task or in a kernel thread of the same process, so the current task's
//! container is the right one. When it began is not known.

use aya_ebpf::{macros::btf_tracepoint, programs::BtfTracePointContext};
use pod_ebpf::{NO_SLOT, file::Operation};

use super::{Duration, Outcome, cache::Filled, file_at};
use crate::{
    kernel::{field, offset, read},
    slot,
};

/// Arguments up to Linux 6.15: the ring, the request, its mark, its result and more.
#[btf_tracepoint(function = "io_uring_complete")]
fn uring_result(ctx: BtfTracePointContext) -> i32 {
    completed(ctx.arg(1), ctx.arg(3));
    0
}

/// Arguments from then on: the ring, the request, and the entry that the program gets to see.
#[btf_tracepoint(function = "io_uring_complete")]
fn uring_entry(ctx: BtfTracePointContext) -> i32 {
    // SAFETY: the entry is a typed argument, and this is a field of it.
    let result = unsafe { field::<i32>(ctx.arg(2), offset!(cqe_res)) };
    completed(ctx.arg(1), result);
    0
}

/// A request is done. There is none if an entry is not the answer to one.
#[inline(always)]
fn completed(request: u64, result: i32) -> Option<()> {
    let slot = slot::of_current();
    if slot == NO_SLOT {
        return None;
    }
    let operation = match read::<u8>(request, offset!(uring_opcode))? {
        // READV, READ_FIXED, READ, READ_MULTISHOT, READV_FIXED
        1 | 4 | 22 | 49 | 60 => Operation::Read,
        // WRITEV, WRITE_FIXED, WRITE, WRITEV_FIXED
        2 | 5 | 23 | 61 => Operation::Write,
        3 => Operation::Sync,
        _ => return None,
    };
    let file = file_at(read::<u64>(request, offset!(uring_file))?)?;
    if file.is_regular {
        let (duration, filled) = (Duration::UNKNOWN, Filled::NONE);
        let outcome = Outcome { slot, result: i64::from(result), duration, filled };
        match operation {
            Operation::Read => outcome.count_read(file, || None),
            Operation::Write => outcome.count_write(file),
            _ => drop(outcome.count(operation, Some(file.mnt_id))),
        }
    }
    Some(())
}
