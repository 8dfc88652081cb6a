//! One table of results: samples with their quantiles, and targets that are met or missed.

use std::time::Duration;

use serde_json::{Map, Value, json};

use crate::columns::aligned;

/// Results in the making.
pub(super) struct Sheet {
    title: String,
    rows: Vec<[String; 4]>,
    targets: Vec<[String; 3]>,
    numbers: Map<String, Value>,
}

/// Times of the same thing, sorted.
pub(super) struct Times(Vec<Duration>);

impl Times {
    pub(super) fn new(mut times: Vec<Duration>) -> Self {
        times.sort();
        Self(times)
    }

    /// The value below which so many percent of the samples lie, in microseconds.
    pub(super) fn percentile(&self, percent: usize) -> f64 {
        let index = (self.0.len() * percent / 100).min(self.0.len().saturating_sub(1));
        self.0.get(index).map_or(f64::NAN, |time| time.as_secs_f64() * 1e6)
    }

    pub(super) fn p50(&self) -> f64 {
        self.percentile(50)
    }
}

impl Sheet {
    pub(super) fn new(title: &str, columns: [&str; 4]) -> Self {
        let rows = vec![columns.map(str::to_owned)];
        Self { title: title.to_owned(), rows, targets: Vec::new(), numbers: Map::new() }
    }

    /// A row of text, whose numbers were noted otherwise.
    pub(super) fn row(&mut self, cells: [String; 4]) {
        self.rows.push(cells);
    }

    /// A row of a start's times beside what they are compared with.
    pub(super) fn times(&mut self, key: &str, what: &str, times: &Times, peer: Option<&Times>) {
        let ratio = peer.map(|peer| times.p50() / peer.p50());
        self.rows.push([
            what.to_owned(),
            milliseconds(times.p50()),
            milliseconds(times.percentile(95)),
            ratio.map(|ratio| format!("{ratio:.2}")).unwrap_or_default(),
        ]);
        self.note(
            key,
            json!({
                "p50_us": times.p50(),
                "p95_us": times.percentile(95),
                "max_us": times.percentile(100),
                "ratio": ratio,
                "n": times.0.len(),
            }),
        );
    }

    /// Keeps a number for the JSON alone.
    pub(super) fn note(&mut self, key: &str, value: impl Into<Value>) {
        self.numbers.insert(key.to_owned(), value.into());
    }

    /// Says whether a value is at most what it should be.
    pub(super) fn target(&mut self, what: &str, value: f64, most: f64, unit: &str) {
        let met = value <= most;
        let verdict = if met { "met" } else { "MISSED" };
        self.targets.push([
            what.to_owned(),
            format!("{value:.2} of at most {most}{unit}"),
            verdict.to_owned(),
        ]);
        let key = "targets".to_owned();
        let targets = self.numbers.entry(key).or_insert_with(|| json!([]));
        if let Some(targets) = targets.as_array_mut() {
            targets.push(json!({
                "what": what, "value": value, "most": most, "unit": unit.trim(), "met": met,
            }));
        }
    }

    /// Prints everything and hands out the numbers.
    pub(super) fn finish(self) -> Value {
        println!("\n{}\n{}", self.title, aligned(&self.rows));
        println!("{}", aligned(&self.targets));
        Value::Object(self.numbers)
    }
}

/// Microseconds as people read them.
pub(super) fn milliseconds(micros: f64) -> String {
    format!("{:.2} ms", micros / 1e3)
}
