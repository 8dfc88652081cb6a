//! The `prometheus` crate's own types, for programs that gather metrics with it.

use prometheus::proto::{
    Bucket, Counter, Gauge, Histogram, LabelPair, Metric, MetricFamily, MetricType,
};

use crate::metrics::{
    family::Kind,
    sheet::{Series, Shape, Sink, Value, cumulative},
};

/// Families as the `prometheus` crate has them.
#[derive(Default)]
pub(in crate::metrics) struct Collected {
    pub(in crate::metrics) families: Vec<MetricFamily>,
    metrics: Vec<Metric>,
}

impl Sink for Collected {
    fn begin(&mut self, _shape: &Shape<'_>) {}

    fn series(&mut self, shape: &Shape<'_>, series: &Series<'_>) {
        let labels = shape.label_names().zip(series.label_values()).map(pair).collect();
        let mut metric = Metric::from_label(labels);
        match (series.value, shape.kind) {
            (Value::Latency(latency), _) => {
                let mut histogram = Histogram::default();
                let mut buckets = Vec::new();
                for (bound, count) in cumulative(latency).filter(|(bound, _)| bound.is_finite()) {
                    let mut bucket = Bucket::default();
                    bucket.set_upper_bound(bound);
                    bucket.set_cumulative_count(count);
                    buckets.push(bucket);
                }
                histogram.set_bucket(buckets);
                histogram.set_sample_count(latency.count());
                histogram.set_sample_sum(latency.sum_ns as f64 / 1e9);
                metric.set_histogram(histogram);
            }
            (value, Kind::Counter) => {
                let mut counter = Counter::default();
                counter.set_value(value.as_f64());
                metric.set_counter(counter);
            }
            (value, _) => {
                let mut gauge = Gauge::default();
                gauge.set_value(value.as_f64());
                metric.set_gauge(gauge);
            }
        }
        self.metrics.push(metric);
    }

    fn end(&mut self, shape: &Shape<'_>) {
        let mut family = MetricFamily::default();
        family.set_name(shape.name.to_owned());
        family.set_help(shape.help.to_owned());
        family.set_field_type(match shape.kind {
            Kind::Counter => MetricType::COUNTER,
            Kind::Gauge => MetricType::GAUGE,
            Kind::Histogram => MetricType::HISTOGRAM,
        });
        family.set_metric(std::mem::take(&mut self.metrics));
        self.families.push(family);
    }
}

fn pair((name, value): (&str, &str)) -> LabelPair {
    let mut pair = LabelPair::default();
    pair.set_name(name.to_owned());
    pair.set_value(value.to_owned());
    pair
}
