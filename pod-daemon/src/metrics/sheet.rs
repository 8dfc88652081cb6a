//! Fills one metric family after the other in the `prometheus` crate's types.
//!
//! A node with 400 containers has 30,000 series. As `prometheus` types, all at once, they are
//! 20 MB in 300,000 allocations for each scrape. So there is one family at a time, and the series
//! of earlier families with as many labels are kept: where the label values are the same, as for
//! all counters of a container, only the numbers change.

use std::mem;

use pod_ebpf::latency::{BUCKETS, Latency, bound_seconds};
use prometheus::proto::{Bucket, Counter, Gauge, Histogram, LabelPair, Metric, MetricFamily};

use super::family::{Family, Kind, Label, Origin};

/// Every second bound of the probes' histograms is exposed, from 238 ns to 16 s.
const BUCKETS_PER_BOUND: usize = 2;

/// Bounds of a histogram, without `+Inf`.
pub(super) const BOUNDS: usize = (BUCKETS - 1).div_ceil(BUCKETS_PER_BOUND);

/// The family that is being filled.
pub(super) struct Sheet<'a> {
    shape: Shape,
    /// Values of the labels that the family's source implies.
    base: &'a [&'a str],
    metrics: &'a mut Vec<Metric>,
    /// How many of `metrics` are of this family; the rest are left from earlier ones.
    len: usize,
}

/// What the series of a family have in common.
#[derive(Clone, Copy)]
struct Shape {
    name: &'static str,
    kind: Kind,
    /// Labels that the family's source implies.
    implied: &'static [&'static str],
    /// And those beside them.
    labels: &'static [Label],
}

impl<'a> Sheet<'a> {
    /// Adds a series whose value is a count.
    pub(super) fn count(&mut self, labels: &[&str], count: u64) {
        self.value(labels, count as f64);
    }

    /// Adds a series; `labels` are the values of the family's own labels, in their order.
    pub(super) fn value(&mut self, labels: &[&str], value: f64) {
        let kind = self.shape.kind;
        let metric = self.series(labels);
        if kind == Kind::Counter {
            let mut counter = Counter::default();
            counter.set_value(value);
            metric.set_counter(counter);
        } else {
            let mut gauge = Gauge::default();
            gauge.set_value(value);
            metric.set_gauge(gauge);
        }
    }

    /// Adds a histogram of durations; `labels` as above.
    pub(super) fn latency(&mut self, labels: &[&str], latency: &Latency) {
        let mut histogram = Histogram::default();
        let mut buckets = Vec::with_capacity(BOUNDS);
        let mut count = 0;
        for (index, more) in latency.buckets.into_iter().enumerate() {
            count += more;
            if index % BUCKETS_PER_BOUND == 0 && index < BUCKETS - 1 {
                let mut bucket = Bucket::default();
                bucket.set_upper_bound(bound_seconds(index));
                bucket.set_cumulative_count(count);
                buckets.push(bucket);
            }
        }
        histogram.set_bucket(buckets);
        histogram.set_sample_count(count);
        histogram.set_sample_sum(latency.sum_ns as f64 / 1e9);
        self.series(labels).set_histogram(histogram);
    }

    fn series(&mut self, labels: &[&str]) -> &mut Metric {
        let Shape { name, implied, labels: own, .. } = self.shape;
        debug_assert_eq!(labels.len(), own.len(), "{name}");
        let names = implied.iter().copied().chain(own.iter().map(|label| label.name));
        let wanted = names.zip(self.base.iter().chain(labels).copied());
        let at = self.len;
        self.len += 1;
        if let Some(metric) = self.metrics.get_mut(at) {
            for (pair, (name, value)) in metric.mut_label().iter_mut().zip(wanted) {
                if pair.name() != name {
                    pair.set_name(name.to_owned());
                }
                if pair.value() != value {
                    pair.set_value(value.to_owned());
                }
            }
        } else {
            self.metrics.push(Metric::from_label(wanted.map(pair).collect()));
        }
        &mut self.metrics[at]
    }
}

/// Fills `families` from `reading` and hands each that has series to `write`.
pub(super) fn fill<S: Origin, E>(
    families: impl Iterator<Item = &'static Family<S>>,
    reading: &S::Reading,
    mut write: impl FnMut(&MetricFamily) -> Result<(), E>,
) -> Result<(), E> {
    // By number of labels.
    let mut kept: Vec<Vec<Metric>> = Vec::new();
    for family in families {
        let labels = family.label_names().count();
        if kept.len() <= labels {
            kept.resize_with(labels + 1, Vec::new);
        }
        let mut metrics = mem::take(&mut kept[labels]);
        let len = fill_one(family, reading, &mut metrics);
        let mut rest = metrics.split_off(len);

        let mut filled = MetricFamily::default();
        filled.set_name(family.name.to_owned());
        filled.set_help(family.help.to_owned());
        filled.set_field_type(family.kind.proto());
        filled.set_metric(metrics);
        if len > 0 {
            write(&filled)?;
        }

        metrics = filled.take_metric();
        metrics.append(&mut rest);
        kept[labels] = metrics;
    }
    Ok(())
}

/// Writes the series of `family` to the front of `metrics` and says how many they are.
fn fill_one<S: Origin>(
    family: &Family<S>,
    reading: &S::Reading,
    metrics: &mut Vec<Metric>,
) -> usize {
    let shape = Shape {
        name: family.name,
        kind: family.kind,
        implied: family.source.labels(),
        labels: family.labels,
    };
    let mut len = 0;
    family.source.each(reading, &mut |base, write| {
        let mut sheet = Sheet { shape, base, metrics, len };
        write(&mut sheet);
        len = sheet.len;
    });
    len
}

fn pair((name, value): (&str, &str)) -> LabelPair {
    let mut pair = LabelPair::default();
    pair.set_name(name.to_owned());
    pair.set_value(value.to_owned());
    pair
}
