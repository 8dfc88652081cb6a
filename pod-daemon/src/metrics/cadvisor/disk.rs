//! Block devices.

use std::{fs, path::Path};

use super::{
    Source::{self, Cgroup},
    reading,
};
use crate::{
    cgroup::stats::Io,
    metrics::{
        family::{Domain, Family, Label},
        sheet::Sheet,
    },
};

/// Where the kernel links devices' numbers to their folders, which have their names.
const DEVICES: &str = "/sys/dev/block";

const DEVICE: Label = Label::free("device", "as `/dev/sda`, or `8:0` if it has no name");

pub(super) const DOMAIN: Domain<Source> = Domain {
    title: "Block devices",
    text: "From `io.stat`: absent on a node without the `io` controller, and for a device that the \
           container has not used. It is what reached a disk, often later than the write that \
           caused it; what is written through a cache is only counted if the kernel knows whose it \
           was.",
    families: &[
        Family::counter(
            "container_fs_reads_bytes_total",
            "Bytes read.",
            Cgroup(|c, sheet| each(sheet, c, |io| io.read_bytes)),
        )
        .by(&[DEVICE]),
        Family::counter(
            "container_fs_reads_total",
            "Read requests.",
            Cgroup(|c, sheet| each(sheet, c, |io| io.reads)),
        )
        .by(&[DEVICE]),
        Family::counter(
            "container_fs_writes_bytes_total",
            "Bytes written.",
            Cgroup(|c, sheet| each(sheet, c, |io| io.written_bytes)),
        )
        .by(&[DEVICE]),
        Family::counter(
            "container_fs_writes_total",
            "Write requests.",
            Cgroup(|c, sheet| each(sheet, c, |io| io.writes)),
        )
        .by(&[DEVICE]),
        Family::counter(
            "container_blkio_device_usage_total",
            "Bytes read and written.",
            Cgroup(|c, sheet| {
                for (number, io) in &c.details.devices {
                    let device = name(number);
                    let (major, minor) = number.split_once(':').unwrap_or_default();
                    sheet.count(&[&device, major, minor, "Read"], io.read_bytes);
                    sheet.count(&[&device, major, minor, "Write"], io.written_bytes);
                }
            }),
        )
        .by(&[
            DEVICE,
            Label::free("major", "first number of the device"),
            Label::free("minor", "its second number"),
            Label::each("operation", &["Read", "Write"]),
        ]),
    ],
};

fn each(sheet: &mut Sheet<'_>, cgroup: &reading::Cgroup, value: impl Fn(&Io) -> u64) {
    for (device, io) in &cgroup.details.devices {
        sheet.count(&[&name(device)], value(io));
    }
}

/// The file of a device that is known by its numbers.
fn name(device: &str) -> String {
    let link = fs::read_link(Path::new(DEVICES).join(device));
    let name = link.ok().and_then(|link| Some(link.file_name()?.to_str()?.replace('!', "/")));
    name.map_or_else(|| device.to_owned(), |name| format!("/dev/{name}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_that_is_unknown_is_called_by_its_numbers() {
        assert_eq!(name("4095:1048575"), "4095:1048575");
    }
}
