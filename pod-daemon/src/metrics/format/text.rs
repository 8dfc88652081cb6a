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
    /// Those of a histogram, as they are written.
    bounds: Vec<String>,
    /// What stands before the value of each label of the family that is being written, beside those that
    /// its source implies.
    names: Vec<String>,
    /// Labels of the histogram that is being written.
    labels: Vec<u8>,
}

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
        Self { page, is_open, bounds: bounds.collect(), names: Vec::new(), labels: Vec::new() }
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
        // The labels are the same on each line.
        self.labels.clear();
        write_labels(&mut self.labels, &self.names, shape, series);
        let labels = &self.labels;
        let mut exemplar = series.exemplar.filter(|_| self.is_open);
        let mut total = 0;
        for (written, (bound, count)) in self.bounds.iter().zip(cumulative(latency)) {
            out.extend_from_slice(shape.name.as_bytes());
            out.extend_from_slice(b"_bucket{");
            out.extend_from_slice(labels);
            out.extend_from_slice(if labels.is_empty() { b"le=\"" } else { b",le=\"" });
            out.extend_from_slice(written.as_bytes());
            out.extend_from_slice(b"\"} ");
            integer(out, count);
            // Each is in the first of the buckets that count it.
            if let Some(exemplar) = exemplar.take_if(|exemplar| exemplar.value() <= bound) {
                write_exemplar(out, &exemplar);
            }
            out.push(b'\n');
            total = count;
        }
        for (suffix, value) in
            [("_sum", Value::Number(latency.sum_ns as f64 / 1e9)), ("_count", Value::Count(total))]
        {
            out.extend_from_slice(shape.name.as_bytes());
            out.extend_from_slice(suffix.as_bytes());
            braced(out, labels);
            write_value(out, value);
            out.push(b'\n');
        }
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
        let comma = |index| if index + shape.implied.len() == 0 { "" } else { "," };
        let labels = shape.labels.iter().enumerate();
        let names = labels.map(|(index, label)| format!("{}{}=\"", comma(index), label.name));
        self.names = names.collect();
    }

    fn series(&mut self, shape: &Shape<'_>, series: &Series<'_>) {
        if let Value::Latency(_) = series.value {
            self.histogram(shape, series);
        } else {
            let is_open = self.is_open;
            let out = self.page.bytes();
            out.extend_from_slice(shape.name.as_bytes());
            if shape.implied.len() + shape.labels.len() > 0 {
                out.push(b'{');
                write_labels(out, &self.names, shape, series);
                out.push(b'}');
            }
            out.push(b' ');
            write_value(out, series.value);
            if let Some(exemplar) = series.exemplar.filter(|_| is_open) {
                write_exemplar(out, &exemplar);
            }
            out.push(b'\n');
        }
        self.page.hand_on();
    }

    fn end(&mut self, _shape: &Shape<'_>) {}
}

fn written_bound(bound: f64, is_open: bool) -> String {
    if bound.is_infinite() {
        "+Inf".to_owned()
    } else if is_open && bound.fract() == 0.0 {
        // A bound is a number there, and not any text.
        format!("{bound}.0")
    } else {
        bound.to_string()
    }
}

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
        out.push(b'"');
    }
}

fn braced(out: &mut Vec<u8>, labels: &[u8]) {
    if !labels.is_empty() {
        out.push(b'{');
        out.extend_from_slice(labels);
        out.push(b'}');
    }
    out.push(b' ');
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

fn write_value(out: &mut Vec<u8>, value: Value<'_>) {
    match value {
        Value::Count(count) => integer(out, count),
        value => number(out, value.as_f64()),
    }
}

fn integer(out: &mut Vec<u8>, mut value: u64) {
    // As many digits as the largest has.
    let mut digits = [0; 20];
    let mut at = digits.len();
    loop {
        at -= 1;
        digits[at] = b'0' + u8::try_from(value % 10).unwrap_or(0);
        value /= 10;
        if value == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[at..]);
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
