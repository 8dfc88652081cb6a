//! What a metric is: one row of the tables that a page and its documentation are both made from.

use super::{
    base::Base,
    reading::{Container, Pod, Reading},
    sheet::{Shape, Sheet},
};

/// The labels of the first so many values of an enumeration, in their order.
macro_rules! labels {
    ($all:expr, $count:expr) => {
        const {
            let mut labels = [""; $count];
            let mut index = 0;
            while index < $count {
                labels[index] = $all[index].label();
                index += 1;
            }
            labels
        }
    };
}
pub(super) use labels;

/// The metrics of one subject.
pub(super) struct Domain<S: 'static = Source> {
    /// Heading in the documentation.
    pub(super) title: &'static str,
    /// What the reader should know about all of them.
    pub(super) text: &'static str,
    /// Neighbours of equal shape share the strings of their labels: see [`Sheet`].
    pub(super) families: &'static [Family<S>],
}

/// All series of one name.
pub(super) struct Family<S = Source> {
    pub(super) name: &'static str,
    pub(super) help: &'static str,
    pub(super) kind: Kind,
    /// Labels beside those that the source implies.
    pub(super) labels: &'static [Label],
    pub(super) source: S,
    /// Probes that count it. While one is off the family is absent: 0 would be a lie.
    pub(super) probes: &'static [&'static str],
    /// Of a gauge: whether it says what a pod was, and so is shown for as long as the pod is held. Other
    /// gauges say what is, and go with it.
    pub(super) is_kept: bool,
    /// Where series of several pods are added up.
    pub(super) summed: Summed,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Counter,
    Gauge,
    Histogram,
}

/// A label and the values it can take.
#[derive(Clone, Copy)]
pub(super) struct Label {
    pub(super) name: &'static str,
    pub(super) values: Values,
    /// Whether no value has a character that a text would have to escape.
    pub(super) is_plain: bool,
}

#[derive(Clone, Copy)]
pub(super) enum Values {
    /// One series for each of these.
    Each(&'static [&'static str]),
    /// One series, for the one of these that applies.
    OneOf(&'static [&'static str]),
    /// Whatever the description says.
    Free(&'static str),
}

/// Whose series they are, and how to write those of one of them into a sheet.
pub(super) trait Origin: Copy + 'static {
    /// What one scrape tells.
    type Reading;

    /// Labels that say whose.
    fn labels(self) -> &'static [&'static str];

    /// Calls `part` for each whose series there are, with the values of the labels.
    fn each(self, reading: &Self::Reading, part: Part<'_>);

    /// Calls `part` for each other series of `family`: those that are held of pods that are gone, and
    /// the sums over pods that have none of their own.
    fn rest(_reading: &Self::Reading, _family: &Family<Self>, _part: Part<'_>)
    where
        Self: Sized,
    {
    }
}

/// Takes the values of the labels that an origin implies, and what writes one's series.
pub(super) type Part<'a> = &'a mut dyn FnMut(Base<'_>, &dyn Fn(&mut Sheet<'_>));

/// The origins of /metrics.
#[derive(Clone, Copy)]
pub(super) enum Source {
    /// No labels of its own.
    Node(fn(&Reading, &mut Sheet<'_>)),
    /// Labels `namespace` and `pod`.
    Pod(fn(&Pod, &mut Sheet<'_>)),
    /// Labels `namespace`, `pod` and `container`.
    Container(fn(&Container, &mut Sheet<'_>)),
}

/// Labels that say which pod it is.
pub(super) const POD_LABELS: [&str; 2] = ["namespace", "pod"];

/// Labels that say which container it is.
pub(super) const CONTAINER_LABELS: [&str; 3] = ["namespace", "pod", "container"];

/// Where series of several pods are added up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Summed {
    /// In the totals of those that are gone, and in `__other__`.
    Everywhere,
    /// In the totals.
    InTotals,
    /// In neither.
    Nowhere,
}

impl<S: Copy> Family<S> {
    const fn new(kind: Kind, name: &'static str, help: &'static str, source: S) -> Self {
        Self {
            name,
            help,
            kind,
            labels: &[],
            source,
            probes: &[],
            is_kept: false,
            summed: Summed::Everywhere,
        }
    }

    pub(super) const fn counter(name: &'static str, help: &'static str, source: S) -> Self {
        Self::new(Kind::Counter, name, help, source)
    }

    pub(super) const fn gauge(name: &'static str, help: &'static str, source: S) -> Self {
        Self::new(Kind::Gauge, name, help, source)
    }

    pub(super) const fn histogram(name: &'static str, help: &'static str, source: S) -> Self {
        Self::new(Kind::Histogram, name, help, source)
    }

    /// Adds labels to those that the source implies.
    pub(super) const fn by(self, labels: &'static [Label]) -> Self {
        Self { labels, ..self }
    }

    /// Of a gauge: it is shown for as long as its pod is held.
    pub(super) const fn kept(self) -> Self {
        Self { is_kept: true, ..self }
    }

    /// Of what a sum tells nothing.
    pub(super) const fn never_summed(self) -> Self {
        Self { summed: Summed::Nowhere, ..self }
    }

    /// Of what may begin anew while the pod lives: a sum over the living would drop.
    pub(super) const fn summed_at_end(self) -> Self {
        Self { summed: Summed::InTotals, ..self }
    }

    /// Whether `__other__` has it.
    pub(super) fn is_summable(&self) -> bool {
        self.summed == Summed::Everywhere
    }

    /// Names the probes without which there is nothing to show.
    pub(super) const fn counted_by(self, probes: &'static [&'static str]) -> Self {
        Self { probes, ..self }
    }
}

impl<S: Origin> Family<S> {
    /// Every label name, in the order of exposition.
    pub(super) fn label_names(&self) -> impl Iterator<Item = &'static str> {
        self.shape().label_names().collect::<Vec<_>>().into_iter()
    }

    /// What its series have in common.
    pub(super) fn shape(&self) -> Shape<'static> {
        Shape {
            name: self.name,
            help: self.help,
            kind: self.kind,
            implied: self.source.labels(),
            labels: self.labels,
        }
    }
}

impl Origin for Source {
    type Reading = Reading;

    fn labels(self) -> &'static [&'static str] {
        match self {
            Self::Node(_) => &[],
            Self::Pod(_) => &POD_LABELS,
            Self::Container(_) => &CONTAINER_LABELS,
        }
    }

    fn each(self, reading: &Reading, part: Part<'_>) {
        match self {
            Self::Node(write) => part(Base::Values(&[]), &|sheet| write(reading, sheet)),
            Self::Pod(_) | Self::Container(_) => {
                let pods = reading.pods.iter().filter(|pod| !pod.is_other);
                pods.for_each(|pod| self.each_of(pod, part));
            }
        }
    }

    fn rest(reading: &Reading, family: &Family, part: Part<'_>) {
        reading.held.iter().for_each(|pod| pod.write(family, part));
        reading.other.write(family, part);
    }
}

impl Source {
    /// As [`Origin::each`], for one pod and its containers.
    pub(super) fn each_of(self, pod: &Pod, part: Part<'_>) {
        match self {
            Self::Node(_) => {}
            Self::Pod(write) => part(Base::Written(&pod.labels), &|sheet| write(pod, sheet)),
            Self::Container(write) => {
                for container in &pod.containers {
                    part(Base::Written(&container.labels), &|sheet| write(container, sheet));
                }
            }
        }
    }
}

impl Kind {
    pub(super) const fn label(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
        }
    }
}

impl Label {
    pub(super) const fn each(name: &'static str, values: &'static [&'static str]) -> Self {
        Self { name, values: Values::Each(values), is_plain: true }
    }

    pub(super) const fn one_of(name: &'static str, values: &'static [&'static str]) -> Self {
        Self { name, values: Values::OneOf(values), is_plain: true }
    }

    pub(super) const fn free(name: &'static str, description: &'static str) -> Self {
        Self { name, values: Values::Free(description), is_plain: false }
    }

    /// One whose values are names of Kubernetes' objects.
    pub(super) const fn named(name: &'static str, description: &'static str) -> Self {
        Self { is_plain: true, ..Self::free(name, description) }
    }
}
