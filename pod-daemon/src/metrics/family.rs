//! What a metric is: one row of the tables that a page and its documentation are both made from.

use prometheus::proto::MetricType;

use super::{
    reading::{Container, Pod, Reading},
    sheet::Sheet,
};

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
}

/// Takes the values of the labels that an origin implies, and what writes one's series.
pub(super) type Part<'a> = &'a mut dyn FnMut(&[&str], &dyn Fn(&mut Sheet<'_>));

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

impl<S: Copy> Family<S> {
    pub(super) const fn counter(name: &'static str, help: &'static str, source: S) -> Self {
        Self { name, help, kind: Kind::Counter, labels: &[], source, probes: &[] }
    }

    pub(super) const fn gauge(name: &'static str, help: &'static str, source: S) -> Self {
        Self { name, help, kind: Kind::Gauge, labels: &[], source, probes: &[] }
    }

    pub(super) const fn histogram(name: &'static str, help: &'static str, source: S) -> Self {
        Self { name, help, kind: Kind::Histogram, labels: &[], source, probes: &[] }
    }

    /// Adds labels to those that the source implies.
    pub(super) const fn by(self, labels: &'static [Label]) -> Self {
        Self { labels, ..self }
    }

    /// Names the probes without which there is nothing to show.
    pub(super) const fn counted_by(self, probes: &'static [&'static str]) -> Self {
        Self { probes, ..self }
    }
}

impl<S: Origin> Family<S> {
    /// Every label name, in the order of exposition.
    pub(super) fn label_names(&self) -> impl Iterator<Item = &'static str> {
        self.source.labels().iter().copied().chain(self.labels.iter().map(|label| label.name))
    }
}

impl Origin for Source {
    type Reading = Reading;

    fn labels(self) -> &'static [&'static str] {
        match self {
            Self::Node(_) => &[],
            Self::Pod(_) => &["namespace", "pod"],
            Self::Container(_) => &["namespace", "pod", "container"],
        }
    }

    fn each(self, reading: &Reading, part: Part<'_>) {
        match self {
            Self::Node(write) => part(&[], &|sheet| write(reading, sheet)),
            Self::Pod(write) => {
                for pod in &reading.pods {
                    part(&[&pod.about.namespace, &pod.about.name], &|sheet| write(pod, sheet));
                }
            }
            Self::Container(write) => {
                for pod in &reading.pods {
                    for container in &pod.containers {
                        let base =
                            [&*pod.about.namespace, &*pod.about.name, &*container.about.name];
                        part(&base, &|sheet| write(container, sheet));
                    }
                }
            }
        }
    }
}

impl Kind {
    pub(super) const fn proto(self) -> MetricType {
        match self {
            Self::Counter => MetricType::COUNTER,
            Self::Gauge => MetricType::GAUGE,
            Self::Histogram => MetricType::HISTOGRAM,
        }
    }

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
        Self { name, values: Values::Each(values) }
    }

    pub(super) const fn one_of(name: &'static str, values: &'static [&'static str]) -> Self {
        Self { name, values: Values::OneOf(values) }
    }

    pub(super) const fn free(name: &'static str, description: &'static str) -> Self {
        Self { name, values: Values::Free(description) }
    }
}
