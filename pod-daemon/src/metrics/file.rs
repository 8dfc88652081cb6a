//! Reads and writes of regular files, by volume.

use super::family::{Domain, Family, Label, Source::Container};

const VOLUME: Label = Label::free(
    "volume",
    "name of the volume in the pod's manifest; `rootfs` for the container's own filesystem, \
     `other` for mounts that it was not given, such as /proc",
);

pub(super) const OPERATIONS: [&str; 2] = ["read", "write"];

pub(super) const DOMAIN: Domain = Domain {
    title: "Files",
    text: "What system calls read from and wrote to regular files, whether a disk was involved or \
           not. Memory-mapped files are not seen. `podscope_probe_info` tells how they are \
           counted on this kernel.",
    families: &[
        Family::counter(
            "podscope_file_read_bytes_total",
            "Bytes read from regular files.",
            Container(|c, sheet| {
                for (volume, stats) in &c.files {
                    sheet.count(&[volume], stats.read_bytes);
                }
            }),
        )
        .by(&[VOLUME])
        .counted_by(&["file_read"]),
        Family::counter(
            "podscope_file_written_bytes_total",
            "Bytes written to regular files.",
            Container(|c, sheet| {
                for (volume, stats) in &c.files {
                    sheet.count(&[volume], stats.written_bytes);
                }
            }),
        )
        .by(&[VOLUME])
        .counted_by(&["file_write"]),
        Family::counter(
            "podscope_file_operations_total",
            "Successful reads and writes of regular files; a read at the end of a file is one.",
            Container(|c, sheet| {
                for (volume, stats) in &c.files {
                    sheet.count(&[volume, OPERATIONS[0]], stats.reads);
                    sheet.count(&[volume, OPERATIONS[1]], stats.writes);
                }
            }),
        )
        .by(&[VOLUME, Label::each("operation", &OPERATIONS)])
        .counted_by(&["file_read", "file_write"]),
    ],
};
