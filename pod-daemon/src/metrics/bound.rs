//! How many series there are at most: of a pod, a container, a volume, and of what is added up.

use pod_ebpf::{drops::REASONS, process::SIGNALS};

use super::{
    DOMAINS,
    archive::is_summed,
    family::{Family, Kind, Label, Source, Values},
    sheet::BOUNDS,
};
use crate::node::PodSnapshot;

/// The most series that one of each can have.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Bound {
    pub(super) pod: usize,
    /// Those of a pod by what is only found out: the reasons of drops.
    pub(super) pod_found: usize,
    pub(super) container: usize,
    /// Those of a container by what is only found out: signals, and the reasons of drops.
    pub(super) container_found: usize,
    pub(super) volume: usize,
    /// Of a volume of a pod, whichever containers have it; `rootfs` is one.
    pub(super) pod_volume: usize,
    /// Sums of one namespace, those by what is only found out aside.
    pub(super) total: usize,
    /// Of an image, by one of its names.
    pub(super) image: usize,
    /// Of a layer of images.
    pub(super) layer: usize,
    /// Sums of living pods that have no series of their own, with those by what is only found out.
    pub(super) other: usize,
}

impl Bound {
    pub(super) fn new() -> Self {
        let mut bound = Self {
            pod: 0,
            pod_found: 0,
            container: 0,
            container_found: 0,
            volume: 0,
            pod_volume: 0,
            // How many pods there were.
            total: 1,
            image: 0,
            layer: 0,
            other: 0,
        };
        for family in DOMAINS.iter().flat_map(|domain| domain.families) {
            let has = |name| family.labels.iter().any(|label| label.name == name);
            let found: Option<usize> =
                family.labels.iter().find_map(|label| label.few(family.kind));
            if is_summed(family) && found.is_none() {
                bound.total += size(family);
            }
            match (family.source, found) {
                (Source::Pod(_), Some(found)) => bound.pod_found += found,
                (Source::Pod(_), None) if has("volume") => bound.pod_volume += size(family),
                (Source::Pod(_), None) => bound.pod += size(family),
                (Source::Container(_), Some(found)) => bound.container_found += found,
                (Source::Container(_), None) if has("volume") => bound.volume += size(family),
                (Source::Container(_), None) => bound.container += size(family),
                (Source::Node(_), _) => {
                    if has("image_id") {
                        bound.image += size(family);
                    } else if has("layer") {
                        bound.layer += size(family);
                    }
                    continue;
                }
            }
            let variety = |label: &Label| label.variety(family.kind);
            let labels: usize = family.labels.iter().map(variety).product();
            // Of what is not summed there is one at most: see `other`.
            bound.other += if family.is_summable() { labels * family.kind.lines() } else { 1 };
        }
        bound
    }

    /// The most that a pod can come to.
    pub(super) fn of(&self, pod: &PodSnapshot) -> usize {
        let containers = pod.containers.iter();
        let containers: usize = containers
            .map(|container| {
                self.container + self.container_found + self.volume * container.volume_count
            })
            .sum();
        self.pod + self.pod_found + self.pod_volume * pod.volume_count + containers
    }
}

/// Series of one family for one set of free labels.
pub(super) fn size<S>(family: &Family<S>) -> usize {
    let of_labels: usize = family.labels.iter().map(Label::size).product();
    of_labels * family.kind.lines()
}

impl Kind {
    /// Series that Prometheus makes of one: a histogram has its bounds, `+Inf`, sum and count.
    pub(super) const fn lines(self) -> usize {
        match self {
            Self::Histogram => BOUNDS + 3,
            Self::Counter | Self::Gauge => 1,
        }
    }
}

impl Label {
    /// Whether a sum over pods does not tell its values apart, since there is no end of them.
    pub(super) fn is_open(&self, kind: Kind) -> bool {
        matches!(self.values, Values::Free(_)) && self.few(kind).is_none()
    }

    /// How many values it has at most, if they are only found out and yet few.
    fn few(&self, kind: Kind) -> Option<usize> {
        match (&self.values, kind, self.name) {
            (Values::Free(_), Kind::Counter, "signal") => Some(SIGNALS),
            (Values::Free(_), Kind::Counter, "reason") => Some(REASONS as usize),
            _ => None,
        }
    }

    const fn size(&self) -> usize {
        match self.values {
            Values::Each(values) => values.len(),
            Values::OneOf(_) | Values::Free(_) => 1,
        }
    }

    /// How many values a sum over pods can have.
    fn variety(&self, kind: Kind) -> usize {
        match self.values {
            Values::Each(values) | Values::OneOf(values) => values.len(),
            Values::Free(_) => self.few(kind).unwrap_or(1),
        }
    }
}
