//! Operations on files, by volume.

use pod_ebpf::{
    Counters as _,
    file::{
        FILLED_BY, FileBytes, FilledBy, OPERATIONS as COUNT, Operation, OperationStats, READ_FROM,
        ReadFrom,
    },
};

use super::{
    exemplar::Exemplar,
    family::{Domain, Family, Label, Source::Container, labels},
};
use crate::probes::Batches;

const VOLUME: Label = Label::named(
    "volume",
    "name of the volume in the pod's manifest; `rootfs` for the container's own filesystem, \
     `other` for mounts that it was not given, such as /proc, and for what cannot be told: a failed \
     open, and in syscall mode an unlink and a rename whose path is more than a name",
);

/// Those that move bytes.
pub(super) const OPERATIONS: [&str; 2] = ["read", "write"];

const ALL: [&str; COUNT] = labels!(Operation::ALL, COUNT);

const OPERATION: Label = Label::each("operation", &ALL);

const RESULT: Label = Label::each("result", &labels!(ReadFrom::ALL, READ_FROM));

const BY: Label = Label::each("by", &labels!(FilledBy::ALL, FILLED_BY));

/// What a container did with the files of one volume.
#[derive(Clone, Default)]
pub(super) struct Files {
    pub(super) bytes: FileBytes,
    /// Those that were tried at all: most are not.
    pub(super) operations: Vec<(Operation, OperationStats)>,
    /// The slowest of each lately.
    pub(super) slowest: Vec<(Operation, Exemplar)>,
}

impl Files {
    pub(super) fn read(counters: &mut Batches<'_>, cell: u32) -> Self {
        let operations = Operation::ALL.into_iter().zip(counters.file_operations(cell).0);
        let tried = |stats: &OperationStats| stats.errors > 0 || stats.count() > 0;
        let operations: Vec<_> = operations.filter(|(_, stats)| tried(stats)).collect();
        // Most have nothing to be asked for.
        let is_timed = operations.iter().any(|(_, stats)| stats.count() > 0);
        let found = is_timed.then(|| counters.alone().slowest_operations(cell));
        let slowest = operations.iter().filter_map(|(operation, stats)| {
            let find = || found?[*operation as usize];
            Some((*operation, Exemplar::slowest(&stats.latency, find)?))
        });
        Self { bytes: counters.file_bytes(cell), slowest: slowest.collect(), operations }
    }

    /// Adds what was done on another volume.
    pub(super) fn add(&mut self, other: Self) {
        self.bytes.add(&other.bytes);
        for (operation, stats) in other.operations {
            match self.operations.iter_mut().find(|(ours, _)| *ours == operation) {
                Some((_, sum)) => sum.add(&stats),
                None => self.operations.push((operation, stats)),
            }
        }
        for (operation, exemplar) in other.slowest {
            match self.slowest.iter_mut().find(|(ours, _)| *ours == operation) {
                Some((_, ours)) if ours.nanoseconds() >= exemplar.nanoseconds() => {}
                Some((_, ours)) => *ours = exemplar,
                None => self.slowest.push((operation, exemplar)),
            }
        }
    }

    /// The slowest lately of an operation.
    fn slowest(&self, operation: Operation) -> Option<Exemplar> {
        let slowest = self.slowest.iter().find(|(done, _)| *done == operation);
        slowest.map(|(_, exemplar)| *exemplar)
    }

    /// How often an operation succeeded.
    pub(super) fn count(&self, operation: Operation) -> u64 {
        let done = self.operations.iter().find(|(done, _)| *done == operation);
        done.map_or(0, |(_, stats)| stats.count())
    }
}

pub(super) const DOMAIN: Domain = Domain {
    title: "Files",
    text: "What system calls did with files, whether a disk was involved or not. Reads, writes and \
           syncs are those of regular files. Of a mapped file is seen what page faults bring in, and \
           not what the program reads and writes in memory. \
           `podscope_probe_info` tells how they are counted on this kernel, and \
           [probes.md](probes.md) what each way does not see. An operation that a volume has not met \
           has no series there, but for `podscope_file_operations_total` of reads and writes.",
    families: &[
        Family::counter(
            "podscope_file_read_bytes_total",
            "Bytes read from regular files.",
            Container(|c, sheet| {
                for (volume, files) in &c.files {
                    sheet.count(&[volume], files.bytes.read());
                }
            }),
        )
        .by(&[VOLUME])
        .counted_by(&["file_read"]),
        Family::counter(
            "podscope_file_cache_read_bytes_total",
            "The same bytes by where they came from: the page cache (`hit`), which had to be filled for \
             it (`miss`), or past it (`bypass`, with O_DIRECT). What the kernel read ahead before it was \
             asked for is a hit when it is. Where one call copies from file to file, new pages of the \
             target count as misses of the source. `unknown`: read by io_uring, or since before the daemon \
             started. The last two appear with their first byte.",
            Container(|c, sheet| {
                for (volume, files) in &c.files {
                    for (from, bytes) in ReadFrom::ALL.into_iter().zip(files.bytes.read_from) {
                        if bytes > 0 || matches!(from, ReadFrom::Hit | ReadFrom::Miss) {
                            sheet.count(&[volume, from.label()], bytes);
                        }
                    }
                }
            }),
        )
        .by(&[VOLUME, RESULT])
        .counted_by(&["file_read", "page_cache"]),
        Family::counter(
            "podscope_file_cache_filled_bytes_total",
            "Bytes of whole pages of regular files that were brought into the page cache: by reads, with \
             what the kernel read ahead; by page faults on mappings, which are the page-ins of mapped \
             files; by something else, such as an exec, `readahead`, or io_uring. What a write makes \
             is not brought in. In syscall mode only those by reads have a volume. A cause has no series \
             before it first happens.",
            Container(|c, sheet| {
                for (volume, files) in &c.files {
                    for (by, bytes) in FilledBy::ALL.into_iter().zip(files.bytes.filled_by) {
                        if bytes > 0 {
                            sheet.count(&[volume, by.label()], bytes);
                        }
                    }
                }
            }),
        )
        .by(&[VOLUME, BY])
        .counted_by(&["page_cache"]),
        Family::counter(
            "podscope_file_written_bytes_total",
            "Bytes written to regular files.",
            Container(|c, sheet| {
                for (volume, files) in &c.files {
                    sheet.count(&[volume], files.bytes.written);
                }
            }),
        )
        .by(&[VOLUME])
        .counted_by(&["file_write"]),
        Family::counter(
            "podscope_file_operations_total",
            "Successful operations; a read at the end of a file is one. An open that makes the file \
             is an `open` and a `create`.",
            Container(|c, sheet| {
                for (volume, files) in &c.files {
                    for operation in [Operation::Read, Operation::Write] {
                        sheet.count(&[volume, operation.label()], files.count(operation));
                    }
                    for (operation, stats) in &files.operations {
                        let is_shown = matches!(operation, Operation::Read | Operation::Write);
                        if !is_shown && stats.count() > 0 {
                            sheet.count(&[volume, operation.label()], stats.count());
                        }
                    }
                }
            }),
        )
        .by(&[VOLUME, OPERATION])
        .counted_by(&["file_read", "file_write"]),
        Family::counter(
            "podscope_file_errors_total",
            "Operations that failed.",
            Container(|c, sheet| {
                for (volume, files) in &c.files {
                    for (operation, stats) in &files.operations {
                        if stats.errors > 0 {
                            sheet.count(&[volume, operation.label()], stats.errors);
                        }
                    }
                }
            }),
        )
        .by(&[VOLUME, OPERATION])
        .counted_by(&["file_read", "file_write"]),
        Family::histogram(
            "podscope_file_operation_duration_seconds",
            "How long successful operations took, from the call to its return. Exemplar: the slowest \
             lately.",
            Container(|c, sheet| {
                for (volume, files) in &c.files {
                    for (operation, stats) in &files.operations {
                        let labels = [&**volume, operation.label()];
                        let slowest = files.slowest(*operation);
                        sheet.latency_such_as(&labels, &stats.latency, slowest);
                    }
                }
            }),
        )
        .by(&[VOLUME, OPERATION])
        .counted_by(&["file_read", "file_write"]),
    ],
};
