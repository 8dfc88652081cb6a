//! What tests said: read from libtest's output, added up, and shown as one table.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::Duration,
};

use crate::process::Told;

/// How a test says that it cannot run here: `SKIP <test>: <reason>`.
const SKIP: &str = "SKIP ";

/// How a test says how a probe is attached here: `PROBE <probe> <mode> <reason>`.
const PROBE: &str = "PROBE ";

/// Lines and characters that are kept of what a failed test said last.
const LAST_WORDS: (usize, usize) = (12, 400);

/// Reads libtest's output line by line.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    passed: usize,
    failed: usize,
    /// Tests that said so themselves; libtest counts them as passed.
    skipped: BTreeMap<String, String>,
    /// Tests that libtest left out; it counts them as neither.
    ignored: BTreeMap<String, String>,
    failures: BTreeSet<String>,
    /// What failed tests said last.
    words: BTreeMap<String, VecDeque<String>>,
    probes: Vec<Probe>,
    /// Test binaries that began and have not yet said how it went.
    unfinished: usize,
    /// The test that began last.
    current: String,
    in_failures: bool,
    /// The failed test of which libtest shows the output.
    speaker: Option<String>,
}

/// How one runner did: the unit tests, this host, one kernel.
#[derive(Debug)]
pub(crate) struct Report {
    pub(crate) runner: String,
    pub(crate) passed: usize,
    pub(crate) failed: usize,
    /// Tests and their reasons.
    pub(crate) skipped: BTreeMap<String, String>,
    /// Tests, and what else went wrong.
    pub(crate) failures: Vec<String>,
    /// The last lines that failed tests wrote, by test.
    pub(crate) words: BTreeMap<String, Vec<String>>,
    /// How the probes are attached there, if a test has said so.
    pub(crate) probes: Vec<Probe>,
    pub(crate) took: Duration,
}

/// How a probe is attached.
#[derive(Debug)]
pub(crate) struct Probe {
    pub(crate) name: String,
    pub(crate) mode: String,
    /// Why it is not attached in the best way; empty if it is.
    pub(crate) reason: String,
}

impl Tally {
    /// Takes note of one line.
    pub(crate) fn read(&mut self, line: &str) {
        let line = line.trim_end();
        if line.starts_with("running ") && (line.ends_with(" test") || line.ends_with(" tests")) {
            self.unfinished += 1;
        } else if let Some(counts) = line.strip_prefix("test result: ") {
            self.unfinished = self.unfinished.saturating_sub(1);
            self.in_failures = false;
            self.speaker = None;
            self.passed += count(counts, "passed");
            self.failed += count(counts, "failed");
        } else if line == "failures:" {
            // libtest prints this twice: before what the tests said, and before their names.
            self.in_failures = true;
            self.speaker = None;
        } else if let Some(name) = self.in_failures.then(|| speaker(line)).flatten() {
            self.speaker = Some(name.to_owned());
        } else if let Some((name, rest)) = test_line(line) {
            name.clone_into(&mut self.current);
            if let Some(reason) = rest.strip_prefix("ignored") {
                let reason = reason.trim_start_matches(", ");
                let reason = if reason.is_empty() { "ignored" } else { reason };
                self.ignored.insert(name.to_owned(), reason.to_owned());
            }
            self.read_skip(rest);
        } else if let Some(probe) = line.strip_prefix(PROBE) {
            let mut words = probe.splitn(3, ' ').map(str::to_owned);
            let mut word = || words.next().unwrap_or_default();
            self.probes.push(Probe { name: word(), mode: word(), reason: word() });
        } else if self.in_failures && is_name(line) {
            self.failures.insert(line.trim_start().to_owned());
        } else {
            self.read_skip(line);
            self.listen(line);
        }
    }

    /// Keeps a line of the failed test whose output is being shown: what it said last, and why it
    /// failed, but not where that was in the stack.
    fn listen(&mut self, line: &str) {
        let Some(name) = &self.speaker else { return };
        if line == "stack backtrace:" || line == "the daemon's log:" {
            self.speaker = None;
        } else if !line.trim().is_empty() {
            let words = self.words.entry(name.clone()).or_default();
            if words.len() == LAST_WORDS.0 {
                words.pop_front();
            }
            words.push_back(line.chars().take(LAST_WORDS.1).collect());
        }
    }

    /// Whether libtest said that tests failed.
    pub(crate) fn has_failures(&self) -> bool {
        self.failed > 0
    }

    fn read_skip(&mut self, text: &str) {
        if let Some((name, reason)) = text.strip_prefix(SKIP).and_then(|t| t.split_once(": ")) {
            self.skipped.insert(name.to_owned(), reason.to_owned());
        }
    }

    /// The report of a runner that ended; `problem` is what went wrong beside the tests.
    pub(crate) fn report(
        mut self,
        runner: String,
        took: Duration,
        problem: Option<String>,
    ) -> Report {
        // A skip never hides a failure.
        self.skipped.retain(|name, _| !self.failures.contains(name));
        let passed = self.passed.saturating_sub(self.skipped.len());
        let mut failures: Vec<_> = self.failures.into_iter().collect();
        if self.unfinished > 0 {
            self.failed += 1;
            failures.push(format!("ended during {}", self.current));
        }
        if let Some(problem) = problem {
            self.failed = self.failed.max(1);
            failures.push(problem);
        }
        self.skipped.append(&mut self.ignored);
        let Self { failed, skipped, words, probes, .. } = self;
        let words = words.into_iter().map(|(test, lines)| (test, lines.into())).collect();
        Report { runner, passed, failed, skipped, failures, words, probes, took }
    }
}

impl Report {
    /// A runner that has said nothing yet.
    pub(crate) fn empty(runner: String, took: Duration) -> Self {
        Tally::default().report(runner, took, None)
    }

    /// A runner that could not even begin, or that has no tests to count.
    pub(crate) fn broken(runner: String, took: Duration, problem: String) -> Self {
        Tally::default().report(runner, took, Some(problem))
    }

    /// Adds a failure if nothing ran at all: a suite that runs no test proves nothing.
    pub(crate) fn must_have_run(mut self) -> Self {
        if self.passed + self.failed + self.skipped.len() == 0 {
            self.failed = 1;
            self.failures.push("no test ran".to_owned());
        }
        self
    }
}

/// Prints the table, who skipped and failed what, and the sum as last line; fails if a test did.
pub(crate) fn print(first_column: &str, reports: &[Report]) -> Result<(), Told> {
    let width = reports.iter().map(|report| report.runner.len()).max().unwrap_or(0).max(12);
    println!("\n{first_column:<width$}  passed  failed  skipped  seconds");
    for Report { runner, passed, failed, skipped, took, .. } in reports {
        let (skipped, took) = (skipped.len(), took.as_secs_f64());
        println!("{runner:<width$}  {passed:>6}  {failed:>6}  {skipped:>7}  {took:>7.1}");
    }

    print_merged("skipped", reports, |report| {
        report.skipped.iter().map(|(name, reason)| format!("{name}: {reason}")).collect()
    });
    print_merged("failed", reports, |report| report.failures.clone());
    // Here again, since a log is read from its end, and often no more of it is kept.
    for report in reports {
        for (test, lines) in &report.words {
            println!("\n  {test} on {} said last:", report.runner);
            lines.iter().for_each(|line| println!("    {line}"));
        }
    }

    let passed: usize = reports.iter().map(|report| report.passed).sum();
    let failed: usize = reports.iter().map(|report| report.failed).sum();
    let skipped: usize = reports.iter().map(|report| report.skipped.len()).sum();
    println!("\n{passed} passed, {failed} failed, {skipped} skipped");
    if failed == 0 { Ok(()) } else { Err(Told) }
}

/// Prints each line once, with the runners that it holds for.
fn print_merged(title: &str, reports: &[Report], lines: impl Fn(&Report) -> Vec<String>) {
    let mut merged: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    for report in reports {
        for line in lines(report) {
            // What comes after a space is detail.
            let runner = report.runner.split(' ').next().unwrap_or_default();
            merged.entry(line).or_default().push(runner);
        }
    }
    if !merged.is_empty() {
        println!("\n{title}:");
    }
    for (line, runners) in merged {
        let everywhere = runners.len() > 1 && runners.len() == reports.len();
        let place = if everywhere { "everywhere".to_owned() } else { runners.join(", ") };
        println!("  {line} [{place}]");
    }
}

/// Splits `test NAME ... REST`.
fn test_line(line: &str) -> Option<(&str, &str)> {
    let (name, rest) = line.strip_prefix("test ")?.split_once(" ...")?;
    (!name.contains(char::is_whitespace)).then(|| (name, rest.trim_start()))
}

/// The test whose output follows: `---- NAME stdout ----`.
fn speaker(line: &str) -> Option<&str> {
    line.strip_prefix("---- ")?.strip_suffix(" stdout ----")
}

/// Whether a line is one of libtest's list of failures.
fn is_name(line: &str) -> bool {
    line.strip_prefix("    ").is_some_and(|name| {
        !name.is_empty() && name.chars().all(|c| c.is_alphanumeric() || c == '_' || c == ':')
    })
}

/// Finds `N what` in `ok. 1 passed; 0 failed; 0 ignored; …`.
fn count(counts: &str, what: &str) -> usize {
    counts
        .split([';', '.'])
        .find_map(|part| part.trim().strip_suffix(what)?.trim().parse().ok())
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(output: &str) -> Report {
        let mut tally = Tally::default();
        output.lines().for_each(|line| tally.read(line));
        tally.report("here".to_owned(), Duration::ZERO, None).must_have_run()
    }

    #[test]
    fn a_skip_is_not_a_pass_and_does_not_hide_a_failure() {
        let report = read(
            "\nrunning 5 tests\ntest a::one ... ok\ntest two ... FAILED\ntest three ... noise\nok\n\
             test four ... SKIP four: no fentry: EPERM\nok\ntest five ... ignored, slow\n\nsuccesses:\n\n\
             ---- three stdout ----\nSKIP three: no nft\n\nfailures:\n\n---- two stdout ----\nSKIP two: no\n\
             thread 'two' panicked\n\nfailures:\n    two\n\n\
             test result: FAILED. 3 passed; 1 failed; 1 ignored; 0 measured; 0 filtered out; finished in 1.00s\n",
        );

        assert_eq!((report.passed, report.failed), (1, 1));
        assert_eq!(report.failures, ["two"]);
        let skipped: Vec<_> = report.skipped.iter().map(|(n, r)| format!("{n}: {r}")).collect();
        assert_eq!(skipped, ["five: slow", "four: no fentry: EPERM", "three: no nft"]);
    }

    #[test]
    fn what_failed_tests_said_last_is_kept() {
        let noise: String = (0..20).map(|at| format!("line {at}\n")).collect();
        let report = read(&format!(
            "running 2 tests\ntest one ... ok\ntest two ... FAILED\n\nsuccesses:\n\n\
             ---- one stdout ----\nall is well\n\nfailures:\n\n---- two stdout ----\n{noise}\n\
             thread 'two' panicked at tests/two.rs:1:2:\n1 is not {}\nstack backtrace:\n   0: somewhere\nthe daemon's log:\n\nfailures:\n    two\n\n\
             test result: FAILED. 1 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out\n",
            "2".repeat(500),
        ));

        assert_eq!(report.words.keys().collect::<Vec<_>>(), ["two"]);
        let words = &report.words["two"];
        assert_eq!((words.len(), &*words[0]), (LAST_WORDS.0, "line 10"));
        assert_eq!(words[10], "thread 'two' panicked at tests/two.rs:1:2:");
        assert_eq!(words[11].len(), LAST_WORDS.1);
    }

    #[test]
    fn a_run_that_breaks_off_has_failed() {
        let report = read("running 2 tests\ntest one ... ok\ntest two ... ");

        assert_eq!(report.failed, 1);
        assert_eq!(report.failures, ["ended during two"]);
    }

    #[test]
    fn no_tests_are_a_failure() {
        assert_eq!(read("").failures, ["no test ran"]);
        let none = "running 0 tests\n\ntest result: ok. 0 passed; 0 failed; 0 ignored\n";
        assert_eq!(read(none).failed, 1);
    }
}
