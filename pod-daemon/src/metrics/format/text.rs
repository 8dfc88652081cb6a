//! Prometheus' text format, and OpenMetrics, which is much the same.
//!
//! The first is byte for byte what the `prometheus` crate makes of the same families, at a fraction of
//! the cost; a test holds them against each other.

use std::io::Write as _;

use memchr::{memchr2, memchr3};
use pod_ebpf::latency::Latency;

use super::page::Page;
use crate::metrics::{
    base::Base,
    exemplar::Exemplar,
    family::Kind,
    sheet::{Series, Shape, Sink, Value, cumulative},
};

/// Writes text.
pub(in crate::metrics) struct Text<'a> {
    page: Page<'a>,
    is_open: bool,
    /// Those of a histogram with what is behind them, as they are written.
    bounds: Vec<String>,
    /// What each series of the family that is being written begins with.
    head: String,
    /// What stands before the value of each of its labels, with the quote behind the value before that,
    /// beside those that its source implies.
    names: Vec<String>,
    /// What stands between the last label and the number.
    tail: &'static str,
    /// What each bucket of the histogram that is being written begins with.
    bucket: Vec<u8>,
}

/// A number that is less has 15 digits: as many as an `f64` keeps, wherever the point is.
const EXACT: u64 = 1_000_000_000_000_000;

impl<'a> Text<'a> {
    /// Writes Prometheus' own format.
    pub(in crate::metrics) fn new(page: Page<'a>) -> Self {
        Self::with(page, false)
    }

    /// Writes OpenMetrics.
    pub(in crate::metrics) fn open_metrics(page: Page<'a>) -> Self {
        Self::with(page, true)
    }

    fn with(page: Page<'a>, is_open: bool) -> Self {
        let bounds = cumulative(&Latency::ZERO).map(|(bound, _)| written_bound(bound, is_open));
        Self {
            page,
            is_open,
            bounds: bounds.collect(),
            head: String::new(),
            names: Vec::new(),
            tail: "",
            bucket: Vec::new(),
        }
    }

    /// That was the last family; says whether everything was wanted.
    pub(in crate::metrics) fn finish(mut self) -> bool {
        if self.is_open {
            self.page.bytes().extend_from_slice(b"# EOF\n");
        }
        self.page.finish()
    }

    /// The name of a family, which in OpenMetrics is not that of its counters.
    fn family<'n>(&self, shape: &Shape<'n>) -> (&'n str, &'static str) {
        match (self.is_open, shape.kind) {
            (true, Kind::Counter) => shape
                .name
                .strip_suffix("_total")
                .map_or((shape.name, "unknown"), |name| (name, Kind::Counter.label())),
            (_, kind) => (shape.name, kind.label()),
        }
    }

    fn histogram(&mut self, shape: &Shape<'_>, series: &Series<'_>) {
        let Value::Latency(latency) = series.value else { return };
        let out = self.page.bytes();
        // The same on each line.
        let bucket = &mut self.bucket;
        bucket.clear();
        push_all(bucket, &[shape.name, "_bucket{"]);
        let before = bucket.len();
        write_labels(bucket, &self.names, shape, series);
        if !self.names.is_empty() {
            bucket.push(b'"');
        }
        let labels = before..bucket.len();
        push_all(bucket, &[if labels.is_empty() { "le=\"" } else { ",le=\"" }]);
        let mut exemplar = series.exemplar.filter(|_| self.is_open);
        let mut total = 0;
        for (written, (bound, count)) in self.bounds.iter().zip(cumulative(latency)) {
            out.extend_from_slice(bucket);
            out.extend_from_slice(written.as_bytes());
            // Each is in the first of the buckets that count it.
            if let Some(exemplar) = exemplar.take_if(|exemplar| exemplar.value() <= bound) {
                integer(out, "", count, "");
                write_exemplar(out, &exemplar);
                out.push(b'\n');
            } else {
                integer(out, "", count, "\n");
            }
            total = count;
        }
        let begin = |out: &mut Vec<u8>, suffix| {
            push_all(out, &[shape.name, suffix]);
            if !labels.is_empty() {
                out.push(b'{');
                out.extend_from_slice(&bucket[labels.clone()]);
                out.push(b'}');
            }
        };
        begin(out, "_sum");
        fraction(out, " ", latency.sum_ns, 9, "\n");
        begin(out, "_count");
        integer(out, " ", total, "\n");
    }
}

impl Sink for Text<'_> {
    fn begin(&mut self, shape: &Shape<'_>) {
        let (name, kind) = self.family(shape);
        let is_open = self.is_open;
        let out = self.page.bytes();
        if is_open {
            out.extend_from_slice(b"# TYPE ");
            push_all(out, &[name, " ", kind, "\n# HELP ", name, " "]);
            escape(out, shape.help, true);
        } else {
            out.extend_from_slice(b"# HELP ");
            push_all(out, &[name, " "]);
            escape(out, shape.help, false);
            push_all(out, &["\n# TYPE ", name, " ", kind]);
        }
        out.push(b'\n');
        let before = |index| match index {
            0 if shape.implied.is_empty() => "",
            0 => ",",
            _ => "\",",
        };
        let labels = shape.labels.iter().enumerate();
        let names = labels.map(|(index, label)| format!("{}{}=\"", before(index), label.name));
        self.names = names.collect();
        self.head.clear();
        self.head.push_str(shape.name);
        self.tail = match (shape.implied, shape.labels) {
            ([], []) => " ",
            (_, []) => "} ",
            _ => "\"} ",
        };
        if self.tail != " " {
            self.head.push('{');
        }
    }

    fn series(&mut self, shape: &Shape<'_>, series: &Series<'_>) {
        if let Value::Latency(_) = series.value {
            self.histogram(shape, series);
        } else {
            let is_open = self.is_open;
            let out = self.page.bytes();
            out.extend_from_slice(self.head.as_bytes());
            write_labels(out, &self.names, shape, series);
            if let Some(exemplar) = series.exemplar.filter(|_| is_open) {
                write_value(out, self.tail, series.value, "");
                write_exemplar(out, &exemplar);
                out.push(b'\n');
            } else {
                write_value(out, self.tail, series.value, "\n");
            }
        }
        self.page.hand_on();
    }

    fn end(&mut self, _shape: &Shape<'_>) {}
}

fn written_bound(bound: f64, is_open: bool) -> String {
    if bound.is_infinite() {
        "+Inf\"} ".to_owned()
    } else if is_open && bound.fract() == 0.0 {
        // A bound is a number there, and not any text.
        format!("{bound}.0\"}} ")
    } else {
        format!("{bound}\"}} ")
    }
}

/// Writes labels, but for the quote behind the last one of the family's own.
fn write_labels(out: &mut Vec<u8>, names: &[String], shape: &Shape<'_>, series: &Series<'_>) {
    match series.base {
        Base::Written(written) => push_all(out, &[written.text()]),
        Base::Values(values) => {
            let mut comma = "";
            for (name, value) in shape.implied.iter().zip(values) {
                push_all(out, &[comma, name, "=\""]);
                escape(out, value, true);
                out.push(b'"');
                comma = ",";
            }
        }
    }
    for ((label, name), value) in shape.labels.iter().zip(names).zip(series.own) {
        out.extend_from_slice(name.as_bytes());
        if label.is_plain {
            debug_assert!(!value.contains(['\\', '\n', '"']), "{value}");
            out.extend_from_slice(value.as_bytes());
        } else {
            escape(out, value, true);
        }
    }
}

fn write_exemplar(out: &mut Vec<u8>, exemplar: &Exemplar) {
    let mut before = " # {";
    exemplar.each_label(|name, value| {
        push_all(out, &[before, name, "=\"", value, "\""]);
        before = ",";
    });
    out.extend_from_slice(b"} ");
    number(out, exemplar.value());
    if let Some((seconds, milliseconds)) = exemplar.time() {
        // Writing to a vector cannot fail.
        _ = write!(out, " {seconds}.{milliseconds:03}");
    }
}

fn write_value(out: &mut Vec<u8>, before: &str, value: Value<'_>, after: &str) {
    match value {
        Value::Count(count) => integer(out, before, count, after),
        Value::Microseconds(microseconds) => fraction(out, before, microseconds, 6, after),
        value => {
            push_all(out, &[before]);
            number(out, value.as_f64());
            push_all(out, &[after]);
        }
    }
}

fn integer(out: &mut Vec<u8>, before: &str, value: u64, after: &str) {
    let mut text = Backwards::new(after);
    text.integer(value);
    text.push(before);
    out.extend_from_slice(text.bytes());
}

/// Writes `value` with the last `places` of its digits behind the point: what an `f64` would be
/// written as.
fn fraction(out: &mut Vec<u8>, before: &str, value: u64, places: u32, after: &str) {
    let unit = 10_u64.pow(places);
    if value >= EXACT {
        push_all(out, &[before]);
        number(out, value as f64 / unit as f64);
        push_all(out, &[after]);
        return;
    }
    let mut text = Backwards::new(after);
    let (whole, mut rest, mut places) = (value / unit, value % unit, places);
    if rest > 0 {
        while rest % 10 == 0 {
            (rest, places) = (rest / 10, places - 1);
        }
        for _ in 0..places {
            text.digit(rest);
            rest /= 10;
        }
        text.push(".");
    }
    text.integer(whole);
    text.push(before);
    out.extend_from_slice(text.bytes());
}

/// A short text that is put together from its end, as digits come.
struct Backwards {
    /// The largest number has 20 digits; with what is around it, there are some more.
    bytes: [u8; 32],
    at: usize,
}

impl Backwards {
    fn new(end: &str) -> Self {
        let mut text = Self { bytes: [0; 32], at: 32 };
        text.push(end);
        text
    }

    fn push(&mut self, before: &str) {
        let end = self.at;
        self.at -= before.len();
        self.bytes[self.at..end].copy_from_slice(before.as_bytes());
    }

    /// Adds the last digit of a number.
    fn digit(&mut self, number: u64) {
        self.at -= 1;
        self.bytes[self.at] = b'0' + u8::try_from(number % 10).unwrap_or(0);
    }

    fn integer(&mut self, mut value: u64) {
        loop {
            self.digit(value);
            value /= 10;
            if value == 0 {
                break;
            }
        }
    }

    fn bytes(&self) -> &[u8] {
        &self.bytes[self.at..]
    }
}

fn number(out: &mut Vec<u8>, value: f64) {
    if value.is_infinite() {
        out.extend_from_slice(if value > 0.0 { b"+Inf" } else { b"-Inf" });
    } else {
        // Writing to a vector cannot fail.
        _ = write!(out, "{value}");
    }
}

fn push_all(out: &mut Vec<u8>, texts: &[&str]) {
    for text in texts {
        out.extend_from_slice(text.as_bytes());
    }
}

fn escape(out: &mut Vec<u8>, text: &str, quotes: bool) {
    let mut rest = text.as_bytes();
    let special = |rest: &[u8]| {
        if quotes { memchr3(b'\\', b'\n', b'"', rest) } else { memchr2(b'\\', b'\n', rest) }
    };
    while let Some(at) = special(rest) {
        out.extend_from_slice(&rest[..at]);
        out.extend_from_slice(match rest[at] {
            b'\n' => b"\\n",
            b'"' => b"\\\"",
            _ => b"\\\\",
        });
        rest = &rest[at + 1..];
    }
    out.extend_from_slice(rest);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(value: Value<'_>) -> String {
        let mut out = Vec::new();
        write_value(&mut out, "\"} ", value, "\n");
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn a_time_is_written_as_the_number_that_it_is() {
        let ends =
            [0, 1, 9, 10, 999_999, 1_000_000, 1_500_000, EXACT - 1, EXACT, EXACT + 1, u64::MAX];
        let near = (1..16).flat_map(|digits| {
            let power = 10_u64.pow(digits);
            (0..200).flat_map(move |offset| [power + offset, power.saturating_sub(offset)])
        });
        let mut random = fastrand::Rng::with_seed(7);
        let any = (0..200_000).map(|_| random.u64(..) >> random.u32(..64));
        for count in ends.into_iter().chain(near).chain(any) {
            for places in [6, 9] {
                let mut out = Vec::new();
                fraction(&mut out, " ", count, places, "\n");
                let expected = count as f64 / f64::from(10_u32.pow(places));
                assert_eq!(str::from_utf8(&out), Ok(&*format!(" {expected}\n")), "{count}");
            }
            let value = Value::Microseconds(count);
            assert_eq!(written(value), written(Value::Number(value.as_f64())), "{count}");
        }
    }

    #[test]
    fn a_count_has_all_its_digits() {
        for count in [0, 7, 10, 1_234_567_890, u64::MAX] {
            assert_eq!(written(Value::Count(count)), format!("\"}} {count}\n"));
        }
    }
}
