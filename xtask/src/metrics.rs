//! What stands on a /metrics page.

use std::{collections::BTreeMap, net::SocketAddr};

use crate::http::Client;

/// All samples of one scrape.
#[derive(Debug, Default)]
pub(crate) struct Metrics {
    samples: Vec<Sample>,
}

/// One line of the page.
#[derive(Debug)]
pub(crate) struct Sample {
    name: String,
    labels: BTreeMap<String, String>,
    pub(crate) value: f64,
}

impl Metrics {
    pub(crate) fn scrape(address: SocketAddr) -> anyhow::Result<Self> {
        let text = Client::tcp(address)?.request("GET", "/metrics", "")?.text()?;
        Ok(Self::parse(&text))
    }

    /// Reads the text format; comments and lines that are none of it are left out.
    fn parse(text: &str) -> Self {
        Self { samples: text.lines().filter_map(Sample::parse).collect() }
    }

    /// The samples of a metric that have these labels.
    pub(crate) fn matching<'a>(
        &'a self,
        name: &'a str,
        labels: &'a [(&'a str, &'a str)],
    ) -> impl Iterator<Item = &'a Sample> {
        self.samples.iter().filter(move |sample| {
            sample.name == name && labels.iter().all(|(key, value)| sample.label(key) == *value)
        })
    }

    /// Their sum; 0 if there are none.
    pub(crate) fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        self.matching(name, labels).map(|sample| sample.value).sum()
    }

    /// A quantile of a histogram, interpolated as Prometheus does.
    pub(crate) fn quantile(&self, q: f64, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        let name = format!("{name}_bucket");
        let mut buckets: Vec<(f64, f64)> = self
            .matching(&name, labels)
            .filter_map(|sample| Some((sample.label("le").parse().ok()?, sample.value)))
            .collect();
        buckets.sort_by(|a, b| a.0.total_cmp(&b.0));
        let rank = q * buckets.last().map(|last| last.1).filter(|total| *total > 0.0)?;
        let (mut from, mut before) = (0.0, 0.0);
        for (bound, count) in buckets {
            if count >= rank {
                let within = (rank - before) / (count - before);
                return Some(if bound.is_finite() { from + (bound - from) * within } else { from });
            }
            (from, before) = (bound, count);
        }
        None
    }
}

impl Sample {
    /// A label's value; empty if it has none, as Prometheus sees it.
    pub(crate) fn label(&self, key: &str) -> &str {
        self.labels.get(key).map_or("", String::as_str)
    }

    fn parse(line: &str) -> Option<Self> {
        if line.starts_with('#') {
            return None;
        }
        let (series, value) = line.rsplit_once(' ')?;
        let value = value.parse().ok()?;
        let Some((name, rest)) = series.split_once('{') else {
            return Some(Self { name: series.to_owned(), labels: BTreeMap::new(), value });
        };
        let mut labels = BTreeMap::new();
        let mut rest = rest.strip_suffix('}')?;
        while let Some((key, after)) = rest.split_once("=\"") {
            let mut text = String::new();
            let mut characters = after.char_indices();
            let end = loop {
                match characters.next()? {
                    (at, '"') => break at,
                    (_, '\\') => match characters.next()?.1 {
                        'n' => text.push('\n'),
                        other => text.push(other),
                    },
                    (_, other) => text.push(other),
                }
            };
            labels.insert(key.trim_start_matches(',').to_owned(), text);
            rest = &after[end + 1..];
        }
        Some(Self { name: name.to_owned(), labels, value })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_read() {
        let page = Metrics::parse(
            "# TYPE a counter\na{x=\"1\",y=\"say \\\"no\\\"\"} 2\na{x=\"2\"} 3.5\nb 1e3\n",
        );

        assert_eq!(page.sum("a", &[]), 5.5);
        assert_eq!(page.sum("a", &[("y", "say \"no\"")]), 2.0);
        assert_eq!(page.sum("b", &[]), 1000.0);
        assert_eq!(page.sum("c", &[]), 0.0);
    }

    #[test]
    fn a_quantile_lies_within_its_bucket() {
        let page = Metrics::parse(
            "h_bucket{le=\"1\"} 0\nh_bucket{le=\"4\"} 10\nh_bucket{le=\"+Inf\"} 10\n",
        );

        assert_eq!(page.quantile(0.5, "h", &[]), Some(2.5));
        assert_eq!(page.quantile(0.5, "none", &[]), None);
    }
}
