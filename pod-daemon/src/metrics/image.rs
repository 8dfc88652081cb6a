//! The node's images: what is here, what was pulled, and what had to go.

use super::family::{Domain, Family, Label, Source::Node};

pub(super) const DOMAIN: Domain = Domain {
    title: "Images",
    text: "Images that are directories are not counted. Room is made when the disk with the images \
           is fuller than `--image-gc-high-percent`.",
    families: &[
        Family::gauge(
            "podscope_images",
            "Images that are here, by whatever number of names.",
            Node(|reading, sheet| sheet.count(&[], reading.images.images)),
        ),
        Family::gauge(
            "podscope_images_bytes",
            "Size of the files of all layers; layers that images share count once.",
            Node(|reading, sheet| sheet.count(&[], reading.images.bytes)),
        ),
        Family::counter(
            "podscope_image_pulls_total",
            "Pulls from registries that have ended, by result. A pull that found everything here \
             counts, too.",
            Node(|reading, sheet| {
                sheet.count(&["success"], reading.images.pulled);
                sheet.count(&["failure"], reading.images.failed);
            }),
        )
        .by(&[Label::each("result", &["success", "failure"])]),
        Family::counter(
            "podscope_image_gc_runs_total",
            "Times that the disk was too full and room had to be made.",
            Node(|reading, sheet| sheet.count(&[], reading.images.collections)),
        ),
        Family::counter(
            "podscope_image_gc_images_total",
            "Images that went to make room.",
            Node(|reading, sheet| sheet.count(&[], reading.images.collected_images)),
        ),
        Family::counter(
            "podscope_image_gc_bytes_total",
            "Bytes of files that went to make room.",
            Node(|reading, sheet| sheet.count(&[], reading.images.collected_bytes)),
        ),
    ],
};
