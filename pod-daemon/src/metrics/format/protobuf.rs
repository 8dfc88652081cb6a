//! Prometheus' protocol buffers, with native histograms.
//!
//! `io.prometheus.client.MetricFamily`, each with its length before it. A message is a few fields, so
//! they are written by hand; the `prometheus` crate's types have no native histograms.

use pod_ebpf::latency::{BUCKETS, Latency, bound_seconds};

use super::page::Page;
use crate::metrics::{
    exemplar::Exemplar,
    family::Kind,
    sheet::{Series, Shape, Sink, Value, cumulative},
};

/// The bounds of native histograms of schema 0 are the powers of two.
const SCHEMA: i64 = 0;

/// Writes protocol buffers.
pub(in crate::metrics) struct Protobuf<'a> {
    page: Page<'a>,
    /// The family that is being written.
    family: Vec<u8>,
    metric: Vec<u8>,
    /// Messages in it, by depth.
    inner: [Vec<u8>; 2],
}

impl<'a> Protobuf<'a> {
    pub(in crate::metrics) fn new(page: Page<'a>) -> Self {
        Self { page, family: Vec::new(), metric: Vec::new(), inner: Default::default() }
    }

    /// That was the last family; says whether everything was wanted.
    pub(in crate::metrics) fn finish(self) -> bool {
        self.page.finish()
    }
}

impl Sink for Protobuf<'_> {
    fn begin(&mut self, shape: &Shape<'_>) {
        self.family.clear();
        bytes(&mut self.family, 1, shape.name.as_bytes());
        bytes(&mut self.family, 2, shape.help.as_bytes());
        let kind = match shape.kind {
            Kind::Counter => 0,
            Kind::Gauge => 1,
            Kind::Histogram => 4,
        };
        number(&mut self.family, 3, kind);
    }

    fn series(&mut self, shape: &Shape<'_>, series: &Series<'_>) {
        let [inner, deeper] = &mut self.inner;
        self.metric.clear();
        for (name, value) in shape.label_names().zip(series.label_values()) {
            inner.clear();
            bytes(inner, 1, name.as_bytes());
            bytes(inner, 2, value.as_bytes());
            bytes(&mut self.metric, 1, inner);
        }
        inner.clear();
        let field = match series.value {
            Value::Latency(latency) => {
                histogram(inner, deeper, latency, series.exemplar.as_ref());
                7
            }
            value => {
                double(inner, 1, value.as_f64());
                if let Some(exemplar) = series.exemplar.filter(|_| shape.kind == Kind::Counter) {
                    bytes(inner, 2, &message_of(&exemplar));
                }
                if shape.kind == Kind::Gauge { 2 } else { 3 }
            }
        };
        bytes(&mut self.metric, field, inner);
        bytes(&mut self.family, 4, &self.metric);
    }

    fn end(&mut self, _shape: &Shape<'_>) {
        let out = self.page.bytes();
        varint(out, self.family.len() as u64);
        out.extend_from_slice(&self.family);
        self.page.hand_on();
    }
}

fn message_of(exemplar: &Exemplar) -> Vec<u8> {
    let (mut out, mut inner) = (Vec::with_capacity(128), Vec::with_capacity(64));
    exemplar.each_label(|name, value| {
        inner.clear();
        bytes(&mut inner, 1, name.as_bytes());
        bytes(&mut inner, 2, value.as_bytes());
        bytes(&mut out, 1, &inner);
    });
    double(&mut out, 2, exemplar.value());
    if let Some((seconds, milliseconds)) = exemplar.time() {
        inner.clear();
        number(&mut inner, 1, seconds.cast_unsigned());
        number(&mut inner, 2, (milliseconds * 1_000_000).cast_unsigned());
        bytes(&mut out, 3, &inner);
    }
    out
}

/// A histogram twice: with the bounds of the text formats, and native, for whom every bound counts.
fn histogram(
    out: &mut Vec<u8>,
    message: &mut Vec<u8>,
    latency: &Latency,
    exemplar: Option<&Exemplar>,
) {
    let slowest = exemplar.map(message_of);
    let mut bounded = exemplar.zip(slowest.as_ref());
    number(out, 1, latency.count());
    double(out, 2, latency.sum_ns as f64 / 1e9);
    for (bound, count) in cumulative(latency) {
        message.clear();
        number(message, 1, count);
        double(message, 2, bound);
        // Each is in the first of the buckets that count it.
        if let Some((_, slowest)) = bounded.take_if(|(exemplar, _)| exemplar.value() <= bound) {
            bytes(message, 3, slowest);
        }
        bytes(out, 3, message);
    }
    number(out, 5, zigzag(SCHEMA));
    // What took at most the first bound is all that is in the first bucket: the zero bucket.
    double(out, 6, bound_seconds(0));
    number(out, 7, latency.buckets[0]);
    slowest.iter().for_each(|slowest| bytes(out, 16, slowest));
    let counts = &latency.buckets[1..];
    let Some(last) = counts.iter().rposition(|count| *count > 0) else { return };
    let first = counts.iter().position(|count| *count > 0).unwrap_or(last);
    message.clear();
    number(message, 1, zigzag(index(first + 1)));
    number(message, 2, (last - first + 1) as u64);
    bytes(out, 12, message);
    message.clear();
    let mut before = 0;
    for count in &counts[first..=last] {
        // Prometheus takes no more than what fits there.
        let count = i64::try_from(*count).unwrap_or(i64::MAX);
        varint(message, zigzag(count.wrapping_sub(before)));
        before = count;
    }
    bytes(out, 13, message);
}

/// The number of a bucket in schema 0, where bucket `i` ends at 2^i. What is beyond the last bound is
/// said to be in the next bucket: it has no other.
fn index(bucket: usize) -> i64 {
    // 2^0 is one of the bounds.
    let one = (0..BUCKETS).position(|bucket| bound_seconds(bucket) == 1.0).unwrap_or(0);
    let signed = |number| i64::try_from(number).unwrap_or(i64::MAX);
    signed(bucket) - signed(one)
}

fn zigzag(value: i64) -> u64 {
    ((value << 1) ^ (value >> 63)).cast_unsigned()
}

fn varint(out: &mut Vec<u8>, mut value: u64) {
    loop {
        let [low, ..] = value.to_le_bytes();
        value >>= 7;
        if value == 0 {
            out.push(low);
            break;
        }
        out.push(low | 0x80);
    }
}

fn number(out: &mut Vec<u8>, field: u64, value: u64) {
    varint(out, field << 3);
    varint(out, value);
}

fn double(out: &mut Vec<u8>, field: u64, value: f64) {
    varint(out, field << 3 | 1);
    out.extend_from_slice(&value.to_le_bytes());
}

fn bytes(out: &mut Vec<u8>, field: u64, value: &[u8]) {
    varint(out, field << 3 | 2);
    varint(out, value.len() as u64);
    out.extend_from_slice(value);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::exemplar::Observed;

    #[test]
    fn buckets_have_the_numbers_of_their_bounds() {
        assert_eq!((index(1), index(22), index(BUCKETS - 2), index(BUCKETS - 1)), (-21, 0, 4, 5));
    }

    #[test]
    fn an_exemplar_is_in_its_bucket_and_in_the_native_histogram() {
        let mut latency = Latency { sum_ns: 1_900, ..Latency::ZERO };
        latency.buckets[3] = 1;
        let observed = Observed { nanoseconds: 1_900, at: 0, time_ms: 1_700_000_000_012 };
        let slowest = Exemplar { pid: 7, trace: None, observed: Some(observed) };
        let message = message_of(&slowest);
        let mut expected = b"\x0a\x08\x0a\x03pid\x12\x017\x11".to_vec();
        expected.extend(0.000_001_9_f64.to_le_bytes());
        // 1,700,000,000 seconds, and 12,000,000 nanoseconds.
        expected.extend(b"\x1a\x0b\x08\x80\xe2\xcf\xaa\x06\x10\x80\xb6\xdc\x05");
        assert_eq!(message, expected);

        let written = |exemplar| {
            let (mut out, mut inner) = (Vec::new(), Vec::new());
            histogram(&mut out, &mut inner, &latency, exemplar);
            out
        };
        let (with, without) = (written(Some(&slowest)), written(None));
        // Field 3 of the bucket up to 3.8 µs, and field 16 of the histogram.
        let mut bucket = vec![0x08, 1, 0x11];
        bucket.extend(bound_seconds(4).to_le_bytes());
        let mut field = Vec::new();
        bytes(&mut field, 3, &message);
        bucket.extend(&field);
        let places = |part: &[u8]| with.windows(part.len()).filter(|at| at == &part).count();
        assert_eq!((places(&bucket), places(&message)), (1, 2));
        let mut native = Vec::new();
        bytes(&mut native, 16, &message);
        assert_eq!(places(&native), 1);
        assert_eq!(with.len(), without.len() + field.len() + native.len());
    }

    #[test]
    fn numbers_are_written_in_sevens_of_bits() {
        let mut out = Vec::new();
        varint(&mut out, 300);
        assert_eq!(out, [0xac, 2]);
        assert_eq!([0, -1, 1, -2, i64::MIN].map(zigzag), [0, 1, 2, 3, u64::MAX]);
    }
}
