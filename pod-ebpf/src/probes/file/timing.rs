//! When the operation began that a task is in, and where.
//!
//! Notes stand in an array, at the task's number: no key is inserted and none is left behind. Two tasks
//! whose numbers end alike share a place; who comes back and finds the other's note has lost its own,
//! which costs that operation its duration and nothing else.

use aya_ebpf::{
    helpers::generated::{bpf_get_current_pid_tgid, bpf_ktime_get_ns},
    macros::map,
    maps::Array,
};

use super::{Duration, Timing, cache::Filled};

/// Bits of a task's number that say where its note stands.
const PLACE_BITS: u32 = 15;

/// The rest of them: numbers have at most 22 bits.
const REST_BITS: u32 = 7;

/// Stands where the id of a mount would.
const CONNECT: u32 = u32::MAX;

/// A note, each word of which is written at once, so that it is of one task.
#[repr(C)]
struct Note {
    /// Nanoseconds since boot of the beginning, and below them the rest of the task's number.
    began: u64,
    /// The task's number, and below it the id of the mount, or [`CONNECT`].
    mount: u64,
    /// What `began` was when the first page came into the page cache during the operation: then
    /// `filled` is about it. So an operation that brings in none need not touch them.
    filling: u64,
    /// How many pages came, and below it the number of the page after the last of them.
    filled: u64,
    /// The task's number, and below it the cell that a page fault counts in that the task is in.
    fault: u64,
}

/// Notes of the tasks that are in an operation.
#[map]
static STARTS: Array<Note> = Array::with_max_entries(1 << PLACE_BITS, 0);

/// The current task's note.
#[derive(Clone, Copy)]
pub(crate) struct Place {
    note: *mut Note,
    task: u64,
}

impl Place {
    /// Where the current task's note stands.
    #[inline(always)]
    pub(crate) fn of_current() -> Option<Self> {
        // SAFETY: the helper has no preconditions.
        Self::of(unsafe { bpf_get_current_pid_tgid() } & 0xffff_ffff)
    }

    /// Where the note of the task of this number stands.
    #[inline(always)]
    pub(crate) fn of(task: u64) -> Option<Self> {
        let place = (task & ((1 << PLACE_BITS) - 1)) as u32;
        Some(Self { note: STARTS.get_ptr_mut(place)?, task })
    }

    /// Notes that an operation begins now.
    #[inline(always)]
    pub(super) fn begin(self) {
        // SAFETY: the helper has no preconditions, and the note is in the map's storage, which outlives
        // this program.
        unsafe {
            let began = (bpf_ktime_get_ns() << REST_BITS) | self.rest();
            (&raw mut (*self.note).began).write_volatile(began);
        }
    }

    /// As [`Self::begin`], for an operation whose mount is to be found out meanwhile.
    #[inline(always)]
    pub(super) fn begin_somewhere(self) {
        // SAFETY: the note is in the map's storage, which outlives this program.
        unsafe { (&raw mut (*self.note).mount).write_volatile(0) };
        self.begin();
    }

    /// How long the operation took that ends now, and what came into the page cache meanwhile. Its
    /// beginning is forgotten: if the next one's is not noted, this must not stand in for it.
    #[inline(always)]
    pub(super) fn end(self) -> (Duration, Filled) {
        // SAFETY: as above.
        unsafe {
            let began = &raw mut (*self.note).began;
            let noted = began.read_volatile();
            if !self.is_ours(noted) {
                return (Duration::LOST, Filled::NONE);
            }
            began.write_volatile(0);
            let now = bpf_ktime_get_ns();
            let shifted = (now << REST_BITS).wrapping_sub(noted & !((1 << REST_BITS) - 1));
            let nanoseconds = shifted >> REST_BITS;
            let duration = Duration { timing: Timing::Known, nanoseconds, now };
            (duration, self.filled_since(noted))
        }
    }

    /// Forgets when the operation began that ends now, for it is none: what comes into the page cache
    /// later is not its doing.
    #[inline(always)]
    pub(super) fn forget(self) {
        // SAFETY: as above.
        unsafe {
            let began = &raw mut (*self.note).began;
            if self.is_ours(began.read_volatile()) {
                began.write_volatile(0);
            }
        }
    }

    /// Notes that pages came into the page cache, if the task is in an operation.
    #[inline(always)]
    pub(super) fn fill(self, more: Filled) -> bool {
        // SAFETY: as above.
        unsafe {
            let noted = (&raw const (*self.note).began).read_volatile();
            if !self.is_ours(noted) {
                return false;
            }
            let pages = self.filled_since(noted).pages.saturating_add(more.pages);
            let filled = (u64::from(pages) << 32) | u64::from(more.end);
            (&raw mut (*self.note).filled).write_volatile(filled);
            (&raw mut (*self.note).filling).write_volatile(noted);
        }
        true
    }

    #[inline(always)]
    fn filled_since(self, began: u64) -> Filled {
        // SAFETY: as above.
        let filled = unsafe {
            if (&raw const (*self.note).filling).read_volatile() != began {
                return Filled::NONE;
            }
            (&raw const (*self.note).filled).read_volatile()
        };
        #[expect(clippy::cast_possible_truncation, reason = "either half is meant")]
        Filled { pages: (filled >> 32) as u32, end: filled as u32 }
    }

    /// Notes that the task is in a page fault, which counts in this cell.
    #[inline(always)]
    pub(super) fn begin_fault(self, cell: u32) {
        // SAFETY: as above.
        unsafe { (&raw mut (*self.note).fault).write_volatile(self.word(cell)) };
    }

    /// Notes that it no longer is.
    #[inline(always)]
    pub(super) fn end_fault(self) {
        // SAFETY: as above.
        unsafe { (&raw mut (*self.note).fault).write_volatile(0) };
    }

    /// The cell that the page fault counts in that the task is in.
    #[inline(always)]
    pub(super) fn fault(self) -> Option<u32> {
        // SAFETY: as above.
        self.own(unsafe { (&raw const (*self.note).fault).read_volatile() })
    }

    /// Notes the mount that the operation is on. The first counts: those after it are of the file
    /// systems below.
    #[inline(always)]
    pub(super) fn note_mount(self, mnt_id: impl FnOnce() -> Option<u32>) {
        // SAFETY: as above.
        unsafe {
            let mount = &raw mut (*self.note).mount;
            let is_open = self.is_ours((&raw const (*self.note).began).read_volatile());
            if is_open
                && self.own(mount.read_volatile()).is_none()
                && let Some(mnt_id) = mnt_id()
            {
                mount.write_volatile(self.word(mnt_id));
            }
        }
    }

    /// The mount that was noted.
    #[inline(always)]
    pub(super) fn mount(self) -> Option<u32> {
        // SAFETY: as above.
        self.own(unsafe { (&raw const (*self.note).mount).read_volatile() })
    }

    /// Notes whether a connection is attempted.
    #[inline(always)]
    pub(crate) fn note_connect(self, is_attempted: bool) {
        let mount = if is_attempted { self.word(CONNECT) } else { 0 };
        // SAFETY: as above.
        unsafe { (&raw mut (*self.note).mount).write_volatile(mount) };
    }

    /// Whether that was noted last.
    #[inline(always)]
    pub(crate) fn is_connecting(self) -> bool {
        self.mount() == Some(CONNECT)
    }

    /// A word of the note that is about this task.
    #[inline(always)]
    fn word(self, what: u32) -> u64 {
        (self.task << 32) | u64::from(what)
    }

    /// What such a word says, if it is about this task.
    #[inline(always)]
    fn own(self, word: u64) -> Option<u32> {
        #[expect(clippy::cast_possible_truncation, reason = "the lower half is meant")]
        let what = word as u32;
        (word >> 32 == self.task).then_some(what)
    }

    #[inline(always)]
    fn rest(self) -> u64 {
        self.task >> PLACE_BITS
    }

    #[inline(always)]
    fn is_ours(self, began: u64) -> bool {
        let rest = (1 << REST_BITS) - 1;
        began > rest && began & rest == self.rest()
    }
}
