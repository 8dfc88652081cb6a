//! `docs/kernels.md`: which probe runs how on which kernel, made from what the kernel tests said there.

use std::{collections::BTreeMap, fmt::Write as _, fs};

use anyhow::Context as _;

use super::fetch::NEWEST;
use crate::{
    process::root,
    report::{Probe, Report},
};

const PATH: &str = "docs/kernels.md";

const HEAD: &str = "\
# Kernels

<!-- Made from a run of the matrix. To make it again: cargo xtask vm-test --bless kernels -->

What each probe sees is in [probes.md](probes.md); this is how it is attached on Debian's kernels, by
the word of `podscope_probe_info` in the tests' VMs. `newest` is that of the backports. On a kernel that
refuses trampolines (`fexit`), as hardened ones do, the file probes run in the mode `syscall`, and what is
`fexit` here and has no such mode is off.

";

/// What a run has found, by kernel.
pub(super) type Found = Vec<(String, Vec<Probe>)>;

/// Writes the table.
pub(super) fn bless(found: &Found) -> anyhow::Result<()> {
    fs::write(root().join(PATH), table(found)).context("write docs/kernels.md")
}

/// Compares the table with what a run has found; nothing to say if that was only a part. The newest
/// kernel may change any day: that is told, and no failure.
pub(super) fn check(found: &Found) -> Option<Report> {
    let written = fs::read_to_string(root().join(PATH)).unwrap_or_default();
    let (written, found) = (columns(&written), columns(&table(found)));
    let mut outdated = Vec::new();
    for (series, modes) in &found {
        match written.get(series) {
            Some(known) if known == modes => {}
            _ if series == NEWEST => println!("vm-test: {PATH} is out of date for {series}"),
            _ => outdated.push(series.as_str()),
        }
    }
    let problem =
        format!("out of date for {}: cargo xtask vm-test --bless kernels", outdated.join(", "));
    (!outdated.is_empty())
        .then(|| Report::broken(PATH.to_owned(), std::time::Duration::ZERO, problem))
}

fn table(found: &Found) -> String {
    let mut text = HEAD.to_owned();
    let mut rows: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    let mut reasons: BTreeMap<(&str, &str), Vec<&str>> = BTreeMap::new();
    for (index, (series, probes)) in found.iter().enumerate() {
        for Probe { name, mode, reason } in probes {
            let row = rows.entry(name).or_insert_with(|| vec![""; found.len()]);
            row[index] = mode;
            if !reason.is_empty() {
                reasons.entry((name, reason)).or_default().push(series);
            }
        }
    }
    let series: Vec<_> = found.iter().map(|(series, _)| series.as_str()).collect();
    line(&mut text, "probe", &series);
    line(&mut text, "---", &vec!["---"; series.len()]);
    for (probe, modes) in rows {
        line(&mut text, &format!("`{probe}`"), &modes);
    }
    if !reasons.is_empty() {
        text.push_str("\n## Why\n\n");
    }
    for ((probe, reason), series) in reasons {
        // Writing to a string cannot fail.
        _ = writeln!(text, "- `{probe}` on {}: {reason}", series.join(", "));
    }
    text
}

fn line(text: &mut String, first: &str, rest: &[&str]) {
    _ = writeln!(text, "| {first} | {} |", rest.join(" | "));
}

/// The modes of each kernel, by probe.
fn columns(table: &str) -> BTreeMap<String, BTreeMap<String, String>> {
    let mut rows = table.lines().filter(|line| line.starts_with('|')).map(|line| {
        line.trim_matches('|').split('|').map(|cell| cell.trim().to_owned()).collect::<Vec<_>>()
    });
    let series = rows.next().unwrap_or_default();
    let mut columns: BTreeMap<_, BTreeMap<_, _>> = BTreeMap::new();
    for row in rows.skip(1) {
        for (series, mode) in series.iter().zip(&row).skip(1) {
            columns.entry(series.clone()).or_default().insert(row[0].clone(), mode.clone());
        }
    }
    columns
}

#[cfg(test)]
mod tests {
    use super::*;

    fn probe(name: &str, mode: &str, reason: &str) -> Probe {
        Probe { name: name.to_owned(), mode: mode.to_owned(), reason: reason.to_owned() }
    }

    #[test]
    fn a_table_says_what_it_was_made_from() {
        let found = vec![
            (
                "5.10".to_owned(),
                vec![probe("exec", "tracepoint", ""), probe("drops", "off", "old")],
            ),
            (
                "6.1".to_owned(),
                vec![probe("exec", "tracepoint", ""), probe("drops", "tracepoint", "")],
            ),
        ];
        let text = table(&found);

        assert!(text.contains("| probe | 5.10 | 6.1 |\n"), "{text}");
        assert!(text.contains("| `drops` | off | tracepoint |\n"), "{text}");
        assert!(text.ends_with("- `drops` on 5.10: old\n"), "{text}");
        assert_eq!(columns(&text)["5.10"]["`drops`"], "off");
        assert_eq!(columns(&text)["6.1"]["`exec`"], "tracepoint");
    }
}
