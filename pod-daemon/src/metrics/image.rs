//! The node's images: what is here, what was pulled, and what had to go.

use super::{
    family::{Domain, Family, Label, Source::Node},
    other::OTHER,
    sheet::Sheet,
};
use crate::image::{ImageSize, Sizes};

/// Images and layers that have series of their own: the largest. A node hardly has more.
pub(super) const MOST_IMAGES: usize = 100;
pub(super) const MOST_LAYERS: usize = 1000;

const IMAGE: [Label; 2] = [
    Label::free("image", "name of the image, as `podctl image list` has it"),
    Label::free("image_id", "digest of the image"),
];

pub(super) const DOMAIN: Domain = Domain {
    title: "Images",
    text: "Images that are directories are not counted. Sizes are those of files as their layers \
           have them, as in `podctl image list`; directories and what a disk adds are not part of \
           it. They are noted when a layer is unpacked, and no scrape looks at the files. Of the \
           largest images and layers each has series; what the rest come to together is \
           `__other__`. Room is made when the disk with the images \
           is fuller than `--image-gc-high-percent`.",
    families: &[
        Family::gauge(
            "podscope_images",
            "Images that are here, by whatever number of names.",
            Node(|reading, sheet| sheet.count(&[], reading.images.sizes.count)),
        ),
        Family::gauge(
            "podscope_images_bytes",
            "Size of the files of all layers; layers that images share count once.",
            Node(|reading, sheet| sheet.count(&[], reading.images.sizes.bytes())),
        ),
        Family::gauge(
            "podscope_image_size_bytes",
            "Size of the files of an image, by each of its names, with the layers that it shares.",
            Node(|reading, sheet| images(sheet, &reading.images.sizes, |image| image.bytes)),
        )
        .by(&IMAGE),
        Family::gauge(
            "podscope_image_unique_bytes",
            "The part of it that is in layers which no other image has: what goes with the image, when \
             it has no name any more.",
            Node(|reading, sheet| images(sheet, &reading.images.sizes, |image| image.unique_bytes)),
        )
        .by(&IMAGE),
        Family::gauge(
            "podscope_image_layer_size_bytes",
            "Size of the files of a layer, whichever images have it; together as much as \
             `podscope_images_bytes`.",
            Node(|reading, sheet| layers(sheet, &reading.images.sizes)),
        )
        .by(&[Label::free(
            "layer",
            "digest of the layer and of those below it (chain id), with whose beginning \
             the directory is named that `podctl image inspect` shows",
        )]),
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

fn images(sheet: &mut Sheet<'_>, sizes: &Sizes, bytes: fn(&ImageSize) -> u64) {
    let (largest, rest) = sizes.images.split_at(sizes.images.len().min(MOST_IMAGES));
    for image in largest {
        sheet.count(&[&image.reference, &image.id], bytes(image));
    }
    if !rest.is_empty() {
        sheet.count(&[OTHER, OTHER], rest.iter().map(bytes).sum());
    }
}

fn layers(sheet: &mut Sheet<'_>, sizes: &Sizes) {
    let (largest, rest) = sizes.layers.split_at(sizes.layers.len().min(MOST_LAYERS));
    for layer in largest {
        sheet.count(&[&layer.chain_id], layer.bytes);
    }
    if !rest.is_empty() {
        sheet.count(&[OTHER], rest.iter().map(|layer| layer.bytes).sum());
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::tests::{page, series},
        *,
    };
    use crate::{image::LayerSize, metrics::sample};

    #[test]
    fn only_the_largest_have_series_and_the_rest_is_not_lost() {
        let image = |index: usize| ImageSize {
            reference: format!("image-{index}"),
            id: format!("sha256:{index}"),
            bytes: 10,
            unique_bytes: 3,
        };
        let layer = |index: usize| LayerSize { chain_id: format!("sha256:{index}"), bytes: 2 };
        let mut reading = sample::reading(0);
        reading.images.sizes = Sizes {
            images: (0..MOST_IMAGES + 2).map(image).collect(),
            layers: (0..MOST_LAYERS + 5).map(layer).collect(),
            count: 1,
        }
        .into();

        let text = page(&reading);

        let of = |name: &str| {
            let series = series(&text).into_iter();
            series
                .filter(|(key, _)| key.starts_with(name))
                .map(|(_, value)| value)
                .collect::<Vec<_>>()
        };
        let sum = |values: &[f64]| values.iter().sum::<f64>();
        let (images, layers) =
            (of("podscope_image_size_bytes{"), of("podscope_image_layer_size_bytes{"));
        assert_eq!((images.len(), layers.len()), (MOST_IMAGES + 1, MOST_LAYERS + 1));
        assert_eq!((sum(&images), sum(&layers)), (1020.0, 2010.0));
        let rest = r#"podscope_image_unique_bytes{image="__other__",image_id="__other__"} 6"#;
        assert!(text.contains(rest));
    }
}
