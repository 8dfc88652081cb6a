//! Operations on files, by volume.

use pod_ebpf::{
    Counters as _,
    file::{FileBytes, OPERATIONS as COUNT, Operation, OperationStats},
};

use super::family::{Domain, Family, Label, Source::Container};
use crate::probes::Probes;

const VOLUME: Label = Label::free(
    "volume",
    "name of the volume in the pod's manifest; `rootfs` for the container's own filesystem, \
     `other` for mounts that it was not given, such as /proc, and for what cannot be told: a failed \
     open, and in syscall mode every unlink and rename",
);

/// Those that move bytes.
pub(super) const OPERATIONS: [&str; 2] = ["read", "write"];

const ALL: [&str; COUNT] = {
    let mut labels = [""; COUNT];
    let mut index = 0;
    while index < COUNT {
        labels[index] = Operation::ALL[index].label();
        index += 1;
    }
    labels
};

const OPERATION: Label = Label::each("operation", &ALL);

/// What a container did with the files of one volume.
#[derive(Clone, Default)]
pub(super) struct Files {
    pub(super) bytes: FileBytes,
    /// Those that were tried at all: most are not.
    pub(super) operations: Vec<(Operation, OperationStats)>,
}

impl Files {
    pub(super) fn read(probes: &Probes, cell: u32) -> Self {
        let operations = Operation::ALL.into_iter().zip(probes.file_operations(cell).0);
        let tried = |stats: &OperationStats| stats.errors > 0 || stats.count() > 0;
        Self {
            bytes: probes.file_bytes(cell),
            operations: operations.filter(|(_, stats)| tried(stats)).collect(),
        }
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
           syncs are those of regular files. Memory-mapped files are not seen. \
           `podscope_probe_info` tells how they are counted on this kernel, and \
           [probes.md](probes.md) what each way does not see. An operation that a volume has not met \
           has no series there, but for `podscope_file_operations_total` of reads and writes.",
    families: &[
        Family::counter(
            "podscope_file_read_bytes_total",
            "Bytes read from regular files.",
            Container(|c, sheet| {
                for (volume, files) in &c.files {
                    sheet.count(&[volume], files.bytes.read);
                }
            }),
        )
        .by(&[VOLUME])
        .counted_by(&["file_read"]),
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
            "How long successful operations took, from the call to its return.",
            Container(|c, sheet| {
                for (volume, files) in &c.files {
                    for (operation, stats) in &files.operations {
                        sheet.latency(&[volume, operation.label()], &stats.latency);
                    }
                }
            }),
        )
        .by(&[VOLUME, OPERATION])
        .counted_by(&["file_read", "file_write"]),
    ],
};
