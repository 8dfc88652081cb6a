//! What comes into the page cache, and for whom.
//!
//! A page is brought in by the task that wants it. The tracepoint says which page, but not through which
//! mount: that is known of the operation that the task is in, so the pages are noted there and counted
//! for the operation's volume when it returns. What a task brings in by a page fault is counted at
//! once, for the volume that [`b_fault`] has found.

use aya_ebpf::{
    Global,
    bindings::task_struct,
    helpers::generated::{bpf_get_current_task_btf, bpf_task_pt_regs},
    macros::{btf_tracepoint, fentry, fexit},
    programs::{BtfTracePointContext, FEntryContext, FExitContext},
};
use pod_ebpf::{
    NO_SLOT,
    file::{FilledBy, ReadFrom},
};

use super::{FILES, FMODE_BACKING, Outcome, Timing, call, cell_of, is_regular, timing::Place};
use crate::{
    counter,
    kernel::{has, offset, read},
    slot,
};

/// The number of bytes of a page is 2 to this.
#[unsafe(no_mangle)]
static PAGE_SHIFT: Global<u32> = Global::new(0);

/// What a task that is in no system call has in place of the call's number.
const NO_CALL: u64 = 0xffff_ffff;

/// Pages that a task has brought into the page cache since an operation began.
#[derive(Clone, Copy)]
pub(super) struct Filled {
    pub(super) pages: u32,
    /// The number within the file of the page after the last of them.
    pub(super) end: u32,
}

impl Filled {
    pub(super) const NONE: Self = Self { pages: 0, end: 0 };

    /// How many of `bytes` bytes that were read were not there before, where it is known at what byte of
    /// the file the read has ended. What was read ahead lies behind that, and was not asked for.
    #[inline(always)]
    fn missed(self, bytes: u64, end: Option<u64>) -> u64 {
        let ahead = match end {
            Some(end) => {
                let asked = (end + page_bytes() - 1) >> page_shift();
                u64::from(self.end).saturating_sub(asked)
            }
            None => 0,
        };
        (u64::from(self.pages).saturating_sub(ahead) << page_shift()).min(bytes)
    }
}

#[inline(always)]
fn page_shift() -> u32 {
    PAGE_SHIFT.load() & 31
}

#[inline(always)]
fn page_bytes() -> u64 {
    1 << page_shift()
}

impl Outcome {
    /// Counts the bytes of a read in `cell`, by where they came from.
    #[inline(always)]
    pub(super) fn add_read(self, cell: u32, is_direct: bool, end: impl FnOnce() -> Option<u64>) {
        let Some(counters) = FILES.get_ptr_mut(cell) else { return };
        let bytes = self.result.cast_unsigned();
        // SAFETY: `counters` points into the map's storage, which outlives this program.
        unsafe {
            let read_from = (&raw mut (*counters).read_from).cast::<u64>();
            let from = match self.duration.timing {
                _ if is_direct => ReadFrom::Bypass,
                Timing::Known => ReadFrom::Hit,
                Timing::Lost | Timing::Unknown => ReadFrom::Unknown,
            };
            if self.filled.pages == 0 || from == ReadFrom::Unknown {
                return counter::add(read_from.add(from as usize), bytes);
            }
            let missed = self.filled.missed(bytes, end());
            counter::add(read_from.add(ReadFrom::Miss as usize), missed);
            counter::add(read_from.add(from as usize), bytes - missed);
        }
        fill(cell, FilledBy::Read, self.filled.pages);
    }
}

/// Counts pages that came into the page cache.
#[inline(always)]
fn fill(cell: u32, by: FilledBy, pages: u32) {
    if let Some(counters) = FILES.get_ptr_mut(cell) {
        // SAFETY: `counters` points into the map's storage, which outlives this program.
        unsafe {
            let counter = (&raw mut (*counters).filled_by).cast::<u64>().add(by as usize);
            counter::add(counter, u64::from(pages) << page_shift());
        }
    }
}

/// `mm_filemap_add_to_page_cache(struct folio *)`: pages of a file are about to be filled.
#[btf_tracepoint(function = "mm_filemap_add_to_page_cache")]
fn page_cache(ctx: BtfTracePointContext) -> i32 {
    if slot::may_have_one() {
        added(ctx.arg(0));
    }
    0
}

#[inline(always)]
fn added(folio: u64) -> Option<()> {
    let slot = slot::of_current();
    if slot == NO_SLOT {
        return None;
    }
    let host = read::<u64>(read::<u64>(folio, offset!(folio_mapping))?, offset!(mapping_host))?;
    // What a file system reads to find the bytes of a file is none of the file.
    if !is_regular(read::<u16>(host, offset!(inode_mode))?) {
        return None;
    }
    let is_large = read::<u64>(folio, offset!(folio_flags))? >> (offset!(folio_head) & 63) & 1 == 1;
    let pages =
        if is_large && has!(folio_pages) { read::<u32>(folio, offset!(folio_pages))? } else { 1 };
    let place = Place::of_current()?;
    if let Some(cell) = place.fault() {
        fill(cell, FilledBy::Fault, pages);
    } else if is_in_fault() {
        fill(slot, FilledBy::Fault, pages);
    } else {
        #[expect(clippy::cast_possible_truncation, reason = "files of less than 16 TiB")]
        let first = read::<u64>(folio, offset!(folio_index))? as u32;
        if !place.fill(Filled { pages, end: first.wrapping_add(pages) }) {
            fill(slot, FilledBy::Other, pages);
        }
    }
    Some(())
}

/// Whether the current task has been interrupted by a fault of its program. Linux 5.15 has what this
/// takes.
#[inline(always)]
fn is_in_fault() -> bool {
    if has!(cgroup_ancestor_ids) {
        return false;
    }
    // SAFETY: neither helper has preconditions, and the second's result is a typed `struct pt_regs *`.
    unsafe {
        let task = bpf_get_current_task_btf().cast::<task_struct>();
        let regs = bpf_task_pt_regs(task).cast_unsigned();
        #[expect(clippy::cast_possible_truncation, reason = "kernel addresses have 64 bits here")]
        let regs = core::ptr::with_exposed_provenance(regs as usize);
        call::number(regs) == NO_CALL
    }
}

/// `vm_fault_t filemap_fault(struct vm_fault *)`: a page of a mapping is wanted that could not be
/// mapped at once.
#[fentry(function = "filemap_fault")]
fn b_fault(ctx: FEntryContext) -> i32 {
    let slot = slot::of_current();
    if slot != NO_SLOT
        && let Some(place) = Place::of_current()
    {
        place.begin_fault(cell_of(slot, mount_of_fault(ctx.arg(0))));
    }
    0
}

#[fexit(function = "filemap_fault")]
fn f_fault(_ctx: FExitContext) -> i32 {
    if slot::may_have_one()
        && let Some(place) = Place::of_current()
    {
        place.end_fault();
    }
    0
}

/// The mount of the file that is mapped where the fault happened.
#[inline(always)]
fn mount_of_fault(fault: u64) -> Option<u32> {
    let area = read::<u64>(fault, offset!(fault_vma))?;
    let file = read::<u64>(area, offset!(vma_file))?;
    let is_backing =
        has!(backing_mnt) && read::<u32>(file, offset!(file_mode))? & FMODE_BACKING != 0;
    let mnt = if is_backing {
        read::<u64>(file, offset!(backing_mnt))?
    } else {
        read::<u64>(file, offset!(file_mnt))?
    };
    read::<u32>(mnt, offset!(mnt_id))
}
