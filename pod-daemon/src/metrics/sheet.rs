//! Walks the families and hands their series, one after the other, to whatever writes a format.
//!
//! A node with a thousand containers has 100,000 series. As values of the `prometheus` crate, all at
//! once, they are tens of megabytes in a million allocations for each scrape. So nothing is built: a
//! series is a few references while it is written, and gone.

use std::cell::Cell;

use pod_ebpf::latency::{BUCKETS, Latency, bound_seconds};

use super::{
    base::Base,
    exemplar::Exemplar,
    family::{Family, Kind, Label, Origin},
};

/// Every second bound of the probes' histograms is exposed, from 238 ns to 16 s.
const BUCKETS_PER_BOUND: usize = 2;

/// Bounds of a histogram, without `+Inf`.
pub(super) const BOUNDS: usize = (BUCKETS - 1).div_ceil(BUCKETS_PER_BOUND);

/// Takes the series of one origin, for the family that is being written.
pub(super) struct Sheet<'a> {
    shape: Shape<'a>,
    /// Values of the labels that the family's source implies.
    base: Base<'a>,
    sink: &'a mut dyn Sink,
}

/// What the series of a family have in common.
#[derive(Clone, Copy)]
pub(super) struct Shape<'a> {
    pub(super) name: &'a str,
    pub(super) help: &'a str,
    pub(super) kind: Kind,
    /// Labels that the family's source implies.
    pub(super) implied: &'a [&'static str],
    /// And those beside them.
    pub(super) labels: &'a [Label],
}

/// One series.
#[derive(Clone, Copy)]
pub(super) struct Series<'a> {
    /// Values of the labels that the family's source implies.
    pub(super) base: Base<'a>,
    /// And of those beside them.
    pub(super) own: &'a [&'a str],
    pub(super) value: Value<'a>,
    pub(super) exemplar: Option<Exemplar>,
}

/// What a series has come to.
#[derive(Clone, Copy)]
pub(super) enum Value<'a> {
    Count(u64),
    Number(f64),
    /// A time that is told in seconds, as the kernel has it: it becomes text without the cost of a fraction.
    Microseconds(u64),
    Latency(&'a Latency),
}

/// Writes a format.
pub(super) trait Sink {
    /// A family that has series begins.
    fn begin(&mut self, shape: &Shape<'_>);

    /// A series of it.
    fn series(&mut self, shape: &Shape<'_>, series: &Series<'_>);

    /// That was the last one.
    fn end(&mut self, shape: &Shape<'_>);
}

impl Shape<'_> {
    /// Every label name, in the order of exposition.
    pub(super) fn label_names(&self) -> impl Iterator<Item = &'static str> {
        self.implied.iter().copied().chain(self.labels.iter().map(|label| label.name))
    }
}

impl Series<'_> {
    /// Every label value, in the order of exposition.
    pub(super) fn label_values(&self) -> impl Iterator<Item = &str> {
        self.base.values().chain(self.own.iter().copied())
    }
}

impl Value<'_> {
    /// A count as every format but the text has it, and 0 for a histogram.
    pub(super) fn as_f64(self) -> f64 {
        match self {
            Self::Count(count) => count as f64,
            Self::Number(number) => number,
            Self::Microseconds(microseconds) => microseconds as f64 / 1e6,
            Self::Latency(_) => 0.0,
        }
    }
}

impl<'a> Sheet<'a> {
    pub(super) fn new(shape: Shape<'a>, base: Base<'a>, sink: &'a mut dyn Sink) -> Self {
        Self { shape, base, sink }
    }

    /// Adds a series whose value is a count.
    pub(super) fn count(&mut self, labels: &[&str], count: u64) {
        self.add(labels, Value::Count(count));
    }

    /// Adds a series; `labels` are the values of the family's own labels, in their order.
    pub(super) fn value(&mut self, labels: &[&str], value: f64) {
        self.add(labels, Value::Number(value));
    }

    /// Adds a series whose value is a time in seconds.
    pub(super) fn seconds(&mut self, labels: &[&str], microseconds: u64) {
        self.add(labels, Value::Microseconds(microseconds));
    }

    /// Adds a histogram of durations, if there was one at all; `labels` as above.
    pub(super) fn latency(&mut self, labels: &[&str], latency: &Latency) {
        self.add(labels, Value::Latency(latency));
    }

    /// As above, and names one of those that took long.
    pub(super) fn latency_such_as(
        &mut self,
        labels: &[&str],
        latency: &Latency,
        exemplar: Option<Exemplar>,
    ) {
        self.write(labels, Value::Latency(latency), exemplar);
    }

    /// Adds a series whose value is a count, and names one of those that were counted.
    pub(super) fn count_such_as(
        &mut self,
        labels: &[&str],
        count: u64,
        exemplar: Option<Exemplar>,
    ) {
        self.write(labels, Value::Count(count), exemplar.filter(|_| count > 0));
    }

    /// Adds a series.
    pub(super) fn add(&mut self, labels: &[&str], value: Value<'_>) {
        self.write(labels, value, None);
    }

    fn write(&mut self, labels: &[&str], value: Value<'_>, exemplar: Option<Exemplar>) {
        debug_assert_eq!(labels.len(), self.shape.labels.len(), "{}", self.shape.name);
        // Most containers never do most of what is timed, and each such histogram would be as many
        // series of zeros as it has bounds.
        if matches!(value, Value::Latency(latency) if latency.count() == 0) {
            return;
        }
        let series = Series { base: self.base, own: labels, value, exemplar };
        self.sink.series(&self.shape, &series);
    }
}

/// The bounds of a histogram that are exposed, with how many were at most that long; the last bound
/// is infinite, and its count that of all.
pub(super) fn cumulative(latency: &Latency) -> impl Iterator<Item = (f64, u64)> {
    let mut count = 0;
    latency.buckets.into_iter().enumerate().filter_map(move |(index, more)| {
        count += more;
        let is_exposed = index % BUCKETS_PER_BOUND == 0 || index == BUCKETS - 1;
        is_exposed.then(|| (bound_seconds(index), count))
    })
}

/// Writes `families` from `reading`.
pub(super) fn fill<S: Origin>(
    families: impl Iterator<Item = &'static Family<S>>,
    reading: &S::Reading,
    sink: &mut dyn Sink,
) {
    for family in families {
        let mut sink = Lazy::new(&mut *sink);
        let shape = family.shape();
        family.source.each(reading, &mut |base, write| {
            write(&mut Sheet::new(shape, base, &mut sink));
        });
        S::rest(reading, family, &mut |base, write| {
            write(&mut Sheet::new(shape, base, &mut sink));
        });
        sink.finish(&shape);
    }
}

/// Counts the series of pods on their way.
pub(super) struct Counted<'a> {
    sink: &'a mut dyn Sink,
    series: &'a Cell<usize>,
    /// As many as each one is of the family that is being written.
    lines: usize,
}

impl<'a> Counted<'a> {
    pub(super) fn new(sink: &'a mut dyn Sink, series: &'a Cell<usize>) -> Self {
        series.set(0);
        Self { sink, series, lines: 0 }
    }
}

impl Sink for Counted<'_> {
    fn begin(&mut self, shape: &Shape<'_>) {
        let is_of_pods = shape.implied.contains(&"pod");
        self.lines = if is_of_pods { shape.kind.lines() } else { 0 };
        self.sink.begin(shape);
    }

    fn series(&mut self, shape: &Shape<'_>, series: &Series<'_>) {
        self.series.update(|count| count + self.lines);
        self.sink.series(shape, series);
    }

    fn end(&mut self, shape: &Shape<'_>) {
        self.sink.end(shape);
    }
}

/// Begins a family with its first series: one without is left out.
pub(super) struct Lazy<'a> {
    sink: &'a mut dyn Sink,
    has_begun: bool,
}

impl<'a> Lazy<'a> {
    pub(super) fn new(sink: &'a mut dyn Sink) -> Self {
        Self { sink, has_begun: false }
    }

    pub(super) fn finish(self, shape: &Shape<'_>) {
        if self.has_begun {
            self.sink.end(shape);
        }
    }
}

impl Sink for Lazy<'_> {
    fn begin(&mut self, _shape: &Shape<'_>) {}

    fn series(&mut self, shape: &Shape<'_>, series: &Series<'_>) {
        if !self.has_begun {
            self.has_begun = true;
            self.sink.begin(shape);
        }
        self.sink.series(shape, series);
    }

    fn end(&mut self, _shape: &Shape<'_>) {}
}
