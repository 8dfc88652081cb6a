//! docs/metrics.md, from the same tables as /metrics.

use std::fmt::Write as _;

use pod_ebpf::drops::REASONS;

use super::{
    DOMAINS,
    archive::{MOST_NAMESPACES, completed_name, is_summed, summed_labels},
    bound::Bound,
    family::{Domain, Family, Label, Origin, Values},
    image::{MOST_IMAGES, MOST_LAYERS},
};

const HEAD: &str = "\
# Metrics

<!-- Made from the code. To make it again: PODSCOPE_BLESS=1 cargo test -p pod-daemon metrics_doc -->

`http://127.0.0.1:9464/metrics` (`--metrics-address`) serves everything below in Prometheus' text
format; `/healthz` and `/readyz` stand beside it, and `/metrics/cadvisor`, whose metrics are in
[cadvisor.md](cadvisor.md). Names have base units and counters end in
`_total`. A counter starts at 0 when its container is created, so `rate()` and `increase()` see the
first event; it goes on counting when the container restarts. Counters of what most containers never meet
(a signal, an error, a reason of a drop, an outcome other than the usual, a network scope) appear with their
first event instead, which only `increase(x[5m]) or (x unless x offset 5m)` sees.

A histogram, all of its bounds at once, appears with the first duration that it has, and stays for as
long as the pod does: most containers never do most of what is timed. So `rate()` of a histogram does not
see what the scrape that first shows it has found; how often a thing happened, its counter says from the
first time on. Where nothing was timed, a quantile has no series rather than one that is `NaN`.

By the header `Accept` a client chooses the format: Prometheus' text (0.0.4), which is what everybody
gets who does not ask; OpenMetrics 1.0 as text (`application/openmetrics-text`), where some counters and
histograms name a process as exemplar; or Prometheus' protocol buffers, where they do, too, and each
histogram is there twice: with the bounds of the text, and as a native histogram of schema 0. Its bounds are the powers of two of a
second, which are those of the probes, so a bucket there is a bucket of the kernel's: what took at most
2^-22 s (238 ns) is the zero bucket, and what took longer than 16 s is in the last one, up to 32 s.
A Prometheus that takes native histograms (`scrape_native_histograms: true`, in older versions
`--enable-feature=native-histograms`) drops the others, which the dashboard asks for, unless it is told
`always_scrape_classic_histograms: true` (before 3.0 `scrape_classic_histograms`).
Who sends `Accept-Encoding: gzip`, as Prometheus does, gets the page compressed.
There are no `_created` series: before Prometheus 3 each would be a series of its own.

An exemplar has the label `pid`, a process id as the node sees it; in a histogram it is the slowest
observation lately, with its time and what it took: it gives way to what is slower, and after a minute to whatever comes
next, so that a server that scrapes once a minute sees each. A process that has the variable
`TRACEPARENT`, as [W3C's Trace Context](https://www.w3.org/TR/trace-context/) writes it
(`00-TRACE-SPAN-FLAGS`), is part of a trace: then there are also the labels `trace_id` and `span_id`, by
which Grafana can lead to the trace. The daemon reads the variable once for each exemplar, when it is first
scraped, from the environment that the program was executed with; a process that is gone by then is taken
to have had the value that its container's manifest gives in `env`, and so are those that counters name. Another
value, such as an id of zeros, is ignored. Where nobody of the container has begun it, as a thread of the
kernel that adds a subflow of MPTCP, nobody is named. A Prometheus keeps exemplars with
`--enable-feature=exemplar-storage`.

";

/// The text of docs/metrics.md.
#[must_use]
pub fn documentation() -> String {
    let mut text = HEAD.to_owned();
    text.push_str(&series());
    tables(&mut text, &DOMAINS);
    totals(&mut text);
    text
}

/// What the series of deleted pods are added to.
fn totals(text: &mut String) {
    text.push_str(
        "\n## Totals of deleted pods\n\nSee Deleted pods.\n\n| metric | type | labels | sum of |\n|---|---|---|---|\n",
    );
    let families = DOMAINS.iter().flat_map(|domain| domain.families);
    for family in families.filter(|family| is_summed(family)) {
        let labels = summed_labels(family).map(|label| label.name);
        push(
            text,
            format_args!(
                "| `{}` | {} | {} | `{}` |\n",
                completed_name(family.name),
                family.kind.label(),
                code(std::iter::once("namespace").chain(labels)),
                family.name,
            ),
        );
    }
}

/// A chapter for each domain, with a table of its families.
pub(super) fn tables<S: Origin>(text: &mut String, domains: &[Domain<S>]) {
    for domain in domains {
        push(text, format_args!("\n## {}\n\n", domain.title));
        if !domain.text.is_empty() {
            push(text, format_args!("{}\n\n", domain.text));
        }
        text.push_str("| metric | type | labels | meaning |\n|---|---|---|---|\n");
        for family in domain.families {
            push(
                text,
                format_args!(
                    "| `{}` | {} | {} | {}{} |\n",
                    family.name,
                    family.kind.label(),
                    code(family.label_names()),
                    family.help,
                    probes(family),
                ),
            );
        }
        let mut described = Vec::new();
        for label in domain.families.iter().flat_map(|family| family.labels) {
            if described.is_empty() {
                text.push('\n');
            }
            if !described.contains(&label.name) {
                described.push(label.name);
                text.push_str(&description(label));
            }
        }
    }
}

/// How many series there are at most.
fn series() -> String {
    let bound = Bound::new();
    format!(
        "## How many series\n\n\
         At most {} for each pod, {} for each container and {} for each of its volumes (`rootfs` \
         and `other` are two of them), most of which are histograms of operations that few volumes \
         meet; {} for each volume of the pod and for `rootfs`, one for each signal that ended a \
         process of it, and for each reason for which the kernel dropped a packet of it, one and \
         another one for each container; of these there are at most {REASONS}. A pod of two \
         containers that share one volume has at most {}. A limit, a \
         request or a controller that is not there has no series. A namespace whose pods are gone \
         has at most {} totals, beside those by signal and by such reasons; {MOST_NAMESPACES} namespaces have \
         them, and `__other__`, which (see The ceiling) has at most {} series itself. Images have {} for each of their names and {} for each of their \
         layers, of at most {MOST_IMAGES} names and {MOST_LAYERS} layers and `__other__`.\n",
        bound.pod,
        bound.container,
        bound.volume,
        bound.pod_volume,
        bound.pod + 2 * bound.pod_volume + 2 * (bound.container + 3 * bound.volume),
        bound.total,
        bound.other,
        bound.image,
        bound.layer,
    )
}

fn probes<S>(family: &Family<S>) -> String {
    match family.probes {
        [] => String::new(),
        [_] => format!(" Probe: {}.", code(family.probes.iter().copied())),
        _ => format!(" Probes: {}.", code(family.probes.iter().copied())),
    }
}

fn description(label: &Label) -> String {
    let values = match label.values {
        Values::Each(values) | Values::OneOf(values) => code(values.iter().copied()),
        Values::Free(description) => description.to_owned(),
    };
    format!("- `{}`: {values}\n", label.name)
}

pub(super) fn code<'a>(names: impl Iterator<Item = &'a str>) -> String {
    let quoted: Vec<_> = names.map(|name| format!("`{name}`")).collect();
    quoted.join(", ")
}

pub(super) fn push(text: &mut String, arguments: std::fmt::Arguments<'_>) {
    // Writing to a string cannot fail.
    _ = text.write_fmt(arguments);
}

#[cfg(test)]
mod tests {
    use std::{env, fs};

    use super::*;

    const PATH: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/metrics.md");

    #[test]
    fn metrics_doc_is_what_the_code_says() {
        let expected = documentation();
        if env::var_os("PODSCOPE_BLESS").is_some() {
            fs::write(PATH, &expected).unwrap();
        }
        let found = fs::read_to_string(PATH).unwrap_or_default();
        assert!(
            found == expected,
            "docs/metrics.md is out of date: PODSCOPE_BLESS=1 cargo test -p pod-daemon metrics_doc",
        );
    }
}
