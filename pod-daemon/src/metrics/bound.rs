//! How many series there are at most: of a pod, a container, a volume, and of what is added up.

use pod_ebpf::process::SIGNALS;

use super::{
    DOMAINS,
    archive::is_summed,
    family::{Family, Kind, Label, Source, Values},
    sheet::BOUNDS,
};
use crate::node::PodSnapshot;

/// The label whose values are few, although no list has them.
const SIGNAL: &str = "signal";

/// The most series that one of each can have, those by signal aside.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Bound {
    pub(super) pod: usize,
    pub(super) container: usize,
    pub(super) volume: usize,
    /// Of a volume of a pod, whichever containers have it; `rootfs` is one.
    pub(super) pod_volume: usize,
    /// Sums of one namespace.
    pub(super) total: usize,
    /// Sums of living pods that have no series of their own, with those by signal.
    pub(super) other: usize,
}

impl Bound {
    pub(super) fn new() -> Self {
        // One is that of how many pods there were.
        let mut bound = Self { pod: 0, container: 0, volume: 0, pod_volume: 0, total: 1, other: 0 };
        for family in DOMAINS.iter().flat_map(|domain| domain.families) {
            let has = |name| family.labels.iter().any(|label| label.name == name);
            if is_summed(family) && !has(SIGNAL) {
                bound.total += size(family);
            }
            match family.source {
                Source::Pod(_) if has("volume") => bound.pod_volume += size(family),
                Source::Pod(_) => bound.pod += size(family),
                Source::Container(_) if has("volume") => bound.volume += size(family),
                Source::Container(_) if has(SIGNAL) && family.kind == Kind::Counter => {}
                Source::Container(_) => bound.container += size(family),
                Source::Node(_) => continue,
            }
            let labels: usize = family.labels.iter().map(Label::variety).product();
            // Of what is not summed there is one at most: see `other`.
            bound.other += if family.is_summable { labels * family.kind.lines() } else { 1 };
        }
        bound
    }

    /// The most that a pod can come to.
    pub(super) fn of(&self, pod: &PodSnapshot) -> usize {
        let containers = pod.containers.iter();
        let containers: usize = containers
            .map(|container| self.container + SIGNALS + self.volume * container.volume_count)
            .sum();
        self.pod + self.pod_volume * pod.volume_count + containers
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
    pub(super) fn is_open(&self) -> bool {
        matches!(self.values, Values::Free(_)) && self.name != SIGNAL
    }

    const fn size(&self) -> usize {
        match self.values {
            Values::Each(values) => values.len(),
            Values::OneOf(_) | Values::Free(_) => 1,
        }
    }

    /// How many values a sum over pods can have.
    fn variety(&self) -> usize {
        match self.values {
            Values::Each(values) | Values::OneOf(values) => values.len(),
            Values::Free(_) if self.name == SIGNAL => SIGNALS,
            Values::Free(_) => 1,
        }
    }
}
