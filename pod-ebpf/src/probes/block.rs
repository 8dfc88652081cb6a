//! Requests to block devices, at their completion.
//!
//! That happens in an interrupt, or on behalf of another task that writes back what this one has written:
//! whose request it is, is said by the request itself.

use aya_ebpf::{
    helpers::generated::bpf_ktime_get_ns,
    macros::{btf_tracepoint, map},
    maps::Array,
    programs::BtfTracePointContext,
};
use pod_ebpf::{MAX_SLOTS, NO_SLOT, block::BlockStats};

use crate::{
    counter,
    kernel::{field, offset},
    slot,
};

/// Counters by slot.
#[map]
static BLOCK: Array<BlockStats> = Array::with_max_entries(MAX_SLOTS, 0);

/// Bits of a request's flags that say what it does, and two of their values.
const REQ_OP_MASK: u32 = 0xff;
const REQ_OP_READ: u32 = 0;
const REQ_OP_WRITE: u32 = 1;

/// Arguments: the request, its error, and how many of its bytes are done.
#[btf_tracepoint(function = "block_rq_complete")]
fn block_done(ctx: BtfTracePointContext) -> i32 {
    let request = ctx.arg::<*const u8>(0);
    let (error, bytes) = (ctx.arg::<i32>(1), ctx.arg::<u32>(2));
    // SAFETY: the request is a typed argument, and these are fields of it.
    let (operation, length, began) = unsafe {
        (
            field::<u32>(request, offset!(request_flags)) & REQ_OP_MASK,
            field::<u32>(request, offset!(request_length)),
            field::<u64>(request, offset!(request_began)),
        )
    };
    // A flush is a write of nothing, and one that goes with data is told once more when both are done.
    if operation != REQ_OP_READ && operation != REQ_OP_WRITE || length == 0 {
        return 0;
    }
    // SAFETY: each step is a field of what the step before points at; where that is nothing, so is this.
    let cgroup = unsafe {
        let bio = field::<*const u8>(request, offset!(request_bio));
        let group = field::<*const u8>(bio, offset!(bio_blkg));
        let owner = field::<*const u8>(group, offset!(blkg_blkcg));
        field::<u64>(owner, offset!(blkcg_cgroup))
    };
    let slot = slot::of_cgroup_at(cgroup);
    if slot == NO_SLOT {
        return 0;
    }
    let Some(stats) = BLOCK.get_ptr_mut(slot) else { return 0 };
    // SAFETY: `stats` points into the map's storage, which outlives this program.
    unsafe {
        let stats = if operation == REQ_OP_READ {
            &raw mut (*stats).reads
        } else {
            &raw mut (*stats).writes
        };
        if error != 0 {
            counter::add(&raw mut (*stats).errors, 1);
            return 0;
        }
        counter::add(&raw mut (*stats).bytes, u64::from(bytes));
        // A device may be done with a part of it before the rest.
        if bytes < length {
            return 0;
        }
        if began == 0 {
            counter::add(&raw mut (*stats).untimed, 1);
        } else {
            let now = bpf_ktime_get_ns();
            counter::observe(&raw mut (*stats).latency, now.saturating_sub(began));
        }
    }
    0
}
