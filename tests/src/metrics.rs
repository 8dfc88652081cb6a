//! What /metrics says, in the text format of Prometheus.

use std::collections::BTreeMap;

/// How often the kernel has skipped a program.
const MISSED: &str = "podscope_bpf_program_missed_total";

/// One scrape.
#[derive(Clone, Debug)]
pub struct Metrics {
    /// As it came.
    pub text: String,
    samples: Vec<Sample>,
    /// How often the kernel had skipped each program when the test began.
    skipped_before: BTreeMap<String, f64>,
}

/// One series and its value.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// Name of the metric.
    pub name: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Its value.
    pub value: f64,
}

impl Metrics {
    /// Reads what /metrics has answered.
    ///
    /// # Panics
    /// When a line is not what it should be.
    #[must_use]
    pub fn parse(text: String) -> Self {
        let lines = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
        let samples = lines
            .map(|line| parse(line).unwrap_or_else(|| panic!("no sample: {line:?}")))
            .collect();
        Self { samples, text, skipped_before: BTreeMap::new() }
    }

    /// The same for a test that began when the kernel had skipped the programs so often.
    pub(crate) fn since(self, skipped_before: BTreeMap<String, f64>) -> Self {
        Self { skipped_before, ..self }
    }

    /// How often the kernel has skipped each program, whatever test that was in.
    pub(crate) fn skipped(&self) -> BTreeMap<String, f64> {
        let programs = self.series(MISSED, &[]);
        programs.map(|sample| (sample.labels["program"].clone(), sample.value)).collect()
    }

    /// All series.
    pub fn all(&self) -> impl Iterator<Item = &Sample> {
        self.samples.iter()
    }

    /// The series of that name that have these labels, among others.
    pub fn series<'a>(
        &'a self,
        name: &'a str,
        labels: &'a [(&'a str, &'a str)],
    ) -> impl Iterator<Item = &'a Sample> {
        self.samples.iter().filter(move |sample| {
            sample.name == name
                && labels.iter().all(|(label, value)| {
                    sample.labels.get(*label).is_some_and(|found| found == value)
                })
        })
    }

    /// The value of the only such series, if there is one.
    ///
    /// # Panics
    /// When there are several.
    #[track_caller]
    #[must_use]
    pub fn find(&self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        let found: Vec<&Sample> = self.series(name, labels).collect();
        assert!(found.len() < 2, "which {name}{labels:?}? {found:?}");
        found.first().map(|sample| sample.value)
    }

    /// The value of the only such series.
    ///
    /// # Panics
    /// When there is none.
    #[track_caller]
    #[must_use]
    pub fn one(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let found = self.find(name, labels);
        found.unwrap_or_else(|| panic!("no {name}{labels:?} among\n{}", self.about(name)))
    }

    /// The sum of all such series; 0 if there is none.
    #[must_use]
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        self.series(name, labels).map(|sample| sample.value).sum()
    }

    /// Why numbers may be too small, on a kernel that preempts tasks within the probes.
    #[must_use]
    pub fn missed(&self) -> Option<String> {
        let missed = self.missed_of(|_| true);
        (missed > 0.0).then(|| format!("the kernel skipped the probes {missed} times"))
    }

    /// As [`Self::missed`], of what these programs count.
    #[must_use]
    pub fn missed_by(&self, programs: &[&str]) -> Option<String> {
        let missed = self.missed_of(|program| programs.contains(&program));
        (missed > 0.0).then(|| format!("the kernel skipped {} {missed} times", programs.join(", ")))
    }

    /// How often the kernel has skipped such programs since the test began.
    fn missed_of(&self, is_meant: impl Fn(&str) -> bool) -> f64 {
        let before = |program: &String| self.skipped_before.get(program).copied().unwrap_or(0.0);
        let programs = self.skipped().into_iter().filter(|(program, _)| is_meant(program));
        programs.map(|(program, times)| (times - before(&program)).max(0.0)).sum()
    }

    /// The lines about a metric.
    #[must_use]
    pub fn about(&self, name: &str) -> String {
        let lines = self.text.lines().filter(|line| line.starts_with(name));
        lines.collect::<Vec<_>>().join("\n")
    }
}

/// A counter as the whole number that it is.
///
/// # Panics
/// When it is none.
#[must_use]
pub fn number(value: f64) -> u64 {
    format!("{value:.0}").parse().unwrap_or_else(|_error| panic!("no count: {value}"))
}

fn parse(line: &str) -> Option<Sample> {
    let (series, value) = line.rsplit_once(' ')?;
    let value = value.parse().ok()?;
    let Some((name, rest)) = series.split_once('{') else {
        return Some(Sample { name: series.to_owned(), labels: BTreeMap::new(), value });
    };
    let mut rest = rest.strip_suffix('}')?;
    let mut labels = BTreeMap::new();
    while !rest.is_empty() {
        let (label, text) = rest.split_once("=\"")?;
        let mut content = String::new();
        let mut characters = text.char_indices();
        let end = loop {
            match characters.next()? {
                (index, '"') => break index,
                (_, '\\') => match characters.next()?.1 {
                    'n' => content.push('\n'),
                    other => content.push(other),
                },
                (_, other) => content.push(other),
            }
        };
        labels.insert(label.to_owned(), content);
        rest = text.get(end + 1..)?.trim_start_matches(',');
    }
    Some(Sample { name: name.to_owned(), labels, value })
}
