//! How large and how full volumes are.

use super::{
    family::{Domain, Family, Label, Source::Pod},
    reading,
    sheet::Sheet,
};

const VOLUME: Label = Label::named(
    "volume",
    "name of the volume in the pod's manifest; `rootfs` for what the containers write elsewhere",
);

pub(super) const DOMAIN: Domain = Domain {
    title: "Volumes",
    text: "Of the whole file system that a volume is on, as `df` shows it: volumes that share one show \
           the same numbers. Each file system is asked once for a scrape, and one that does not answer \
           at once is left out until it does.",
    families: &[
        Family::gauge(
            "podscope_volume_capacity_bytes",
            "Size of the file system.",
            Pod(|pod, sheet| each(pod, sheet, |capacity| Some(capacity.bytes))),
        )
        .by(&[VOLUME]),
        Family::gauge(
            "podscope_volume_used_bytes",
            "Bytes in use.",
            Pod(|pod, sheet| each(pod, sheet, |capacity| Some(capacity.used_bytes))),
        )
        .by(&[VOLUME]),
        Family::gauge(
            "podscope_volume_available_bytes",
            "Bytes that are left for those who are not root.",
            Pod(|pod, sheet| each(pod, sheet, |capacity| Some(capacity.available_bytes))),
        )
        .by(&[VOLUME]),
        Family::gauge(
            "podscope_volume_inodes",
            "Files that the file system can hold; absent where there is no such number.",
            Pod(|pod, sheet| each(pod, sheet, |capacity| capacity.inodes)),
        )
        .by(&[VOLUME]),
        Family::gauge(
            "podscope_volume_inodes_used",
            "Files that there are; absent as above.",
            Pod(|pod, sheet| {
                each(pod, sheet, |capacity| capacity.inodes.map(|_| capacity.inodes_used));
            }),
        )
        .by(&[VOLUME]),
    ],
};

fn each(
    pod: &reading::Pod,
    sheet: &mut Sheet<'_>,
    number: fn(&super::capacity::Capacity) -> Option<u64>,
) {
    for (volume, capacity) in &pod.volumes {
        if let Some(number) = number(capacity) {
            sheet.count(&[volume], number);
        }
    }
}
