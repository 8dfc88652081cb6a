//! What is kept of a series: its name, its labels and what it came to.
//!
//! Not the counters themselves. Names and labels are what the outside knows, so what one daemon has
//! kept means the same to the next, whatever its counters look like in memory.

use std::{
    borrow::Cow,
    collections::{BTreeMap, HashMap},
    sync::{Arc, LazyLock, Mutex, PoisonError},
};

use pod_ebpf::{
    Counters as _,
    latency::{BUCKETS, Latency},
};
use serde::{Deserialize, Serialize};

use crate::metrics::{
    DOMAINS,
    family::{Family, Kind, Label, Source, Summed, Values},
    of_domains,
    sheet::{Series, Shape, Sink, Value},
};

/// The label that is left out when containers are summed: its values are the manifests'.
const SUMMED_OVER: &str = "volume";

/// Steps of a number that a unit has: sums of as many as fill 2^33 units are exact.
const STEPS: f64 = (1 << 20) as f64;

/// What a series has come to, as it is kept and stored.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(untagged)]
pub(in crate::metrics) enum Kept {
    Count(u64),
    Number(#[serde(with = "exact")] f64),
    Histogram(Box<Histogram>),
}

/// A number as text: what `serde_json` reads of one may be off by a little, and a sum would drop.
mod exact {
    use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};

    pub(super) fn serialize<S: Serializer>(number: &f64, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(number)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

/// A [`Latency`] as it is stored.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
pub(in crate::metrics) struct Histogram {
    sum_ns: u64,
    buckets: Vec<u64>,
}

/// One series of a pod that is gone.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Row {
    /// Index of its family in [`FAMILIES`].
    pub(super) family: u16,
    /// Index of its container; `None` if it is the pod's own.
    pub(super) container: Option<u16>,
    /// Values of the family's own labels.
    pub(super) labels: Labels,
    pub(super) value: Kept,
}

/// Values of labels.
type Labels = Arc<[Cow<'static, str>]>;

/// A [`Row`] on disk.
#[derive(Debug, Deserialize, Serialize)]
pub(super) struct Stored {
    name: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    container: Option<String>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    labels: BTreeMap<String, String>,
    value: Kept,
}

/// The families of which something is kept, in the order of the page.
pub(super) static FAMILIES: LazyLock<Vec<&'static Family>> =
    LazyLock::new(|| of_domains(&DOMAINS).filter(|family| is_held(family)).collect());

static INDEX: LazyLock<HashMap<&'static str, u16>> = LazyLock::new(|| {
    (0..).zip(FAMILIES.iter()).map(|(index, family)| (family.name, index)).collect()
});

/// Most series have labels of closed sets, or none: all rows with the same share them.
static SHARED: LazyLock<Mutex<HashMap<Vec<&'static str>, Labels>>> = LazyLock::new(Mutex::default);

/// The index of a family of which something is kept.
pub(super) fn index(name: &str) -> Option<u16> {
    INDEX.get(name).copied()
}

/// The family of which something is kept, by name.
pub(super) fn family(name: &str) -> Option<&'static Family> {
    index(name).map(|index| FAMILIES[usize::from(index)])
}

/// The values of a family's own labels.
fn labels<'a>(family: &Family, values: impl Iterator<Item = &'a str>) -> Labels {
    let labels: Vec<_> = family.labels.iter().zip(values).map(|(l, value)| l.cow(value)).collect();
    let known = labels.iter().map(|label| match label {
        Cow::Borrowed(known) => Some(*known),
        Cow::Owned(_) => None,
    });
    let Some(known) = known.collect::<Option<Vec<_>>>() else { return labels.into() };
    let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
    Arc::clone(shared.entry(known).or_insert_with(|| labels.into()))
}

/// Whether a pod that is gone still has its series of this family.
fn is_held(family: &Family) -> bool {
    let is_pods = !matches!(family.source, Source::Node(_));
    is_pods && (family.kind != Kind::Gauge || family.is_kept)
}

/// Whether the series of this family are added up when they are held no longer.
pub(in crate::metrics) fn is_summed(family: &Family) -> bool {
    family.kind != Kind::Gauge && family.summed != Summed::Nowhere && is_held(family)
}

/// Labels of a family's own that its sums have.
pub(in crate::metrics) fn summed_labels(family: &Family) -> impl Iterator<Item = &'static Label> {
    family.labels.iter().filter(|label| label.name != SUMMED_OVER)
}

impl Kept {
    pub(in crate::metrics) fn add(&mut self, other: &Self) {
        *self = match (&*self, other) {
            (Self::Count(a), Self::Count(b)) => Self::Count(a.saturating_add(*b)),
            (Self::Histogram(a), Self::Histogram(b)) => {
                let mut sum = a.latency();
                sum.add(&b.latency());
                Self::of(Value::Latency(&sum))
            }
            (a, b) => Self::Number(a.number() + b.number()),
        };
    }

    /// As a sum takes it that must not depend on the order: see [`Other`](crate::metrics::other).
    pub(in crate::metrics) fn in_steps(self) -> Self {
        match self {
            Self::Number(number) => Self::Number((number * STEPS).floor() / STEPS),
            whole => whole,
        }
    }

    pub(in crate::metrics) fn of(value: Value<'_>) -> Self {
        match value {
            Value::Count(count) => Self::Count(count),
            Value::Number(_) | Value::Microseconds(_) => Self::Number(value.as_f64()),
            Value::Latency(latency) => {
                let used = latency.buckets.iter().rposition(|count| *count > 0);
                let buckets = latency.buckets[..used.map_or(0, |last| last + 1)].to_vec();
                Self::Histogram(Box::new(Histogram { sum_ns: latency.sum_ns, buckets }))
            }
        }
    }

    fn number(&self) -> f64 {
        match self {
            Self::Count(count) => *count as f64,
            Self::Number(number) => *number,
            Self::Histogram(_) => 0.0,
        }
    }

    /// Calls `write` with the value, as one of this kind of family.
    pub(in crate::metrics) fn with(&self, kind: Kind, write: impl FnOnce(Value<'_>)) {
        match (self, kind) {
            (Self::Histogram(histogram), Kind::Histogram) => {
                write(Value::Latency(&histogram.latency()));
            }
            (Self::Count(count), Kind::Counter | Kind::Gauge) => write(Value::Count(*count)),
            (Self::Number(number), Kind::Counter | Kind::Gauge) => write(Value::Number(*number)),
            // What was stored under this name was of another kind.
            _ => {}
        }
    }
}

impl Histogram {
    fn latency(&self) -> Latency {
        let mut latency = Latency { sum_ns: self.sum_ns, ..Latency::ZERO };
        for (index, count) in self.buckets.iter().enumerate() {
            latency.buckets[index.min(BUCKETS - 1)] += count;
        }
        latency
    }
}

impl Row {
    pub(super) fn family(&self) -> &'static Family {
        FAMILIES[usize::from(self.family)]
    }

    /// What a later daemon needs to know.
    pub(super) fn stored(&self, containers: &[String]) -> Stored {
        let family = self.family();
        let names = family.labels.iter().map(|label| label.name.to_owned());
        let container = self.container.and_then(|index| containers.get(usize::from(index)));
        Stored {
            name: family.name.to_owned(),
            container: container.cloned(),
            labels: names.zip(self.labels.iter().map(|value| value.clone().into_owned())).collect(),
            value: self.value.clone(),
        }
    }

    /// Series that it is on a page.
    pub(super) fn lines(&self) -> usize {
        self.family().kind.lines()
    }

    /// Labels and their values that its sum has.
    pub(super) fn summed(&self) -> impl Iterator<Item = (&'static str, &str)> {
        let labels = self.family().labels.iter().zip(&*self.labels);
        let summed = labels.filter(|(label, _)| label.name != SUMMED_OVER);
        summed.map(|(label, value)| (label.name, &**value))
    }
}

/// The series of one pod.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Rows {
    pub(super) containers: Vec<String>,
    pub(super) rows: Vec<Row>,
}

impl Rows {
    /// What an earlier daemon has stored; what this one does not know is left out. A label that it did
    /// not have is empty, which is the same as none.
    pub(super) fn restored(stored: Vec<Stored>) -> Self {
        let mut rows = Self::default();
        for stored in stored {
            let Some(index) = index(&stored.name) else { continue };
            let family = FAMILIES[usize::from(index)];
            let value = |name| stored.labels.get(name).map_or("", String::as_str);
            let labels = labels(family, family.labels.iter().map(|label| value(label.name)));
            let container = rows.container(stored.container.as_deref());
            // Of a family that has lost a label several are one.
            let last = rows.rows.iter_mut().rev();
            let mut same = last.take_while(|row| (row.family, row.container) == (index, container));
            match same.find(|row| row.labels == labels) {
                Some(row) => row.value.add(&stored.value),
                None => {
                    rows.rows.push(Row { family: index, container, labels, value: stored.value });
                }
            }
        }
        rows
    }

    fn push(&mut self, family: u16, container: Option<&str>, labels: Labels, value: Kept) {
        let container = self.container(container);
        self.rows.push(Row { family, container, labels, value });
    }

    /// The index of a container.
    fn container(&mut self, name: Option<&str>) -> Option<u16> {
        name.and_then(|name| {
            let known = self.containers.iter().position(|known| known == name);
            let index = known.unwrap_or_else(|| {
                self.containers.push(name.to_owned());
                self.containers.len() - 1
            });
            u16::try_from(index).ok()
        })
    }

    /// Brings them into the order in which they are written.
    pub(super) fn sort(&mut self) {
        self.rows.sort_by_key(|row| (row.family, row.container));
        self.rows.shrink_to_fit();
    }
}

impl Sink for Rows {
    fn begin(&mut self, _shape: &Shape<'_>) {}

    fn series(&mut self, shape: &Shape<'_>, series: &Series<'_>) {
        let Some(index) = index(shape.name) else { return };
        let labels = labels(FAMILIES[usize::from(index)], series.own.iter().copied());
        // Behind namespace and pod.
        self.push(index, series.base.get(2), labels, Kept::of(series.value));
    }

    fn end(&mut self, _shape: &Shape<'_>) {}
}

impl Label {
    /// A value of this label, without a copy if it is one of a closed set.
    fn cow(&self, value: &str) -> Cow<'static, str> {
        match self.values {
            Values::Each(values) | Values::OneOf(values) => {
                values.iter().find(|known| **known == value).map(|known| Cow::Borrowed(*known))
            }
            Values::Free(_) => None,
        }
        .unwrap_or_else(|| Cow::Owned(value.to_owned()))
    }
}
