//! docs/cadvisor.md, from the same tables as /metrics/cadvisor.

use super::{DOMAINS, Source, interface};
use crate::metrics::{
    bound::size,
    document::{code, push, tables},
    of_domains,
};

/// What the kubelet has under this path, and why some of it is not here.
pub(super) const NAMES: &str = include_str!("names.txt");

const HEAD: &str = "\
# The page of cAdvisor

<!-- Made from the code. To make it again: PODSCOPE_BLESS=1 cargo test -p pod-daemon cadvisor_doc -->

`http://127.0.0.1:9464/metrics/cadvisor` (`--metrics-address`) serves `container_*` and `machine_*`
metrics with the names, labels and units that the kubelet serves under that path. Dashboards and
rules that were written for Kubernetes (kubernetes-mixin, for one) find there what they ask cAdvisor for. For
anything new, [`/metrics`](metrics.md) is the better page: it tells a pod's containers apart on the
network, sees what a container that lived for 5 ms did, and goes on counting over restarts.

Numbers are read when they are asked for: they carry no timestamps, and a page has no caches to be
behind. What `/metrics` costs does not change. Do not scrape this page on a node whose kubelet runs
the same containers: each would be there twice.

## Whose series

| series of | `container` | `id` | `image` | `name` |
|---|---|---|---|---|
| a container | its name | `/podscope/UID/NAME` | as in the manifest | id of its last run |
| the infra program | empty | `/podscope/UID/_infra` | `podscope.dev/pause:VERSION` | uid of the pod |
| a pod | empty | `/podscope/UID` | empty | empty |

All have `namespace` and `pod`. These are the values that a kubelet with containerd shows, and so
`container!=\"\"` selects containers, `image!=\"\"` containers and infra programs, and
`container=\"\", image=\"\"` whole pods, whose numbers include those of all their containers. Series of the
network are the infra program's; a query that filters them by `container!=\"\"` finds nothing there
either.

- A container has series from its first run on and for as long as its pod is there. When it has ended,
  counters stay at their last value and `container_last_seen` at the time of its end, so that the OOM
  kill or the CPU time of a short run can still be read. The kubelet drops them.
- A container that restarts gets another `name`, but keeps its cgroup: the new series begins where the
  old one ended, and not at 0. No series ever falls.
- Where a controller is absent there are no series, and never a 0 in their place.
- What joins these metrics with `kube_pod_info` or requests and limits needs kube-state-metrics beside them,
  and that needs a cluster: kubernetes-mixin's rules for CPU and memory do, and its newer dashboards of the
  network. Queries of `container_*` alone work.
- There are no series of other cgroups (`id=\"/\"`, system services): node-exporter has those numbers.
";

/// Why a metric is left out, by the word in the list of names.
const REASONS: [(&str, &str); 10] = [
    (
        "usage",
        "The kubelet itself shows them with a few runtimes only, and not with containerd. Podscope \
         measures what pods with a limit write, every ten seconds, and knows it of no others.",
    ),
    ("descriptors", "They would mean to list `/proc/PID/fd` of every process in each scrape."),
    ("load", "cAdvisor asks the kernel through netlink if it is told to, and the kubelet shows 0."),
    ("v1", "cgroup v2 does not say."),
    ("burst", "Podscope sets no `cpu.max.burst`."),
    ("cost", "Podscope sets no `io.cost.qos`."),
    (
        "new",
        "Newer than the others, and no dashboard of kubernetes-mixin asks for them; events and \
         refaults are in [`/metrics`](metrics.md).",
    ),
    ("health", "Docker's health checks."),
    ("errors", "A scrape that fails is answered with status 500, so that `up` is 0."),
    ("hardware", "node-exporter's."),
];

/// The text of docs/cadvisor.md.
#[must_use]
pub fn documentation() -> String {
    let mut text = HEAD.to_owned();
    let Bound { cgroup, device, interface, node } = Bound::new();
    push(
        &mut text,
        format_args!(
            "\n## How many series\n\nAt most {cgroup} for each container, infra program and pod, {device} \
             more for each block device that it used, and {interface} for each interface of a pod, of \
             which at most {} are shown; {node} for the node. A pod of two containers with one disk \
             and one interface has at most {}.\n",
            interface::MAX,
            4 * (cgroup + device) + interface,
        ),
    );
    tables(&mut text, &DOMAINS);
    text.push_str("\n## What is left out\n\n");
    for (word, reason) in REASONS {
        let names = left_out().filter(|(_, why)| *why == word).map(|(name, _)| name);
        push(&mut text, format_args!("- {}: {reason}\n", code(names)));
    }
    text
}

/// The most series that one of each can have.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Bound {
    pub(super) cgroup: usize,
    pub(super) device: usize,
    pub(super) interface: usize,
    pub(super) node: usize,
}

impl Bound {
    pub(super) fn new() -> Self {
        let mut bound = Self::default();
        for family in of_domains(&DOMAINS) {
            let has = |name| family.labels.iter().any(|label| label.name == name);
            *match family.source {
                Source::Node(_) => &mut bound.node,
                Source::Cgroup(_) if has("device") => &mut bound.device,
                Source::Cgroup(_) if has("interface") => &mut bound.interface,
                Source::Cgroup(_) => &mut bound.cgroup,
            } += size(family);
        }
        bound
    }
}

/// Names that the kubelet has and Podscope has not, each with the word for the reason.
pub(super) fn left_out() -> impl Iterator<Item = (&'static str, &'static str)> {
    NAMES.lines().filter(|line| !line.starts_with('#')).filter_map(|line| {
        let (metric, why) = line.split_once(" ! ")?;
        Some((metric.split(' ').next()?, why))
    })
}

#[cfg(test)]
mod tests {
    use std::{env, fs};

    use super::*;

    const PATH: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/cadvisor.md");

    #[test]
    fn cadvisor_doc_is_what_the_code_says() {
        let expected = documentation();
        if env::var_os("PODSCOPE_BLESS").is_some() {
            fs::write(PATH, &expected).unwrap();
        }
        let found = fs::read_to_string(PATH).unwrap_or_default();
        assert!(
            found == expected,
            "docs/cadvisor.md is out of date: PODSCOPE_BLESS=1 cargo test -p pod-daemon cadvisor_doc",
        );
    }

    #[test]
    fn whatever_is_left_out_has_a_reason() {
        for (name, why) in left_out() {
            assert!(REASONS.iter().any(|(word, _)| *word == why), "{name}: {why}");
        }
    }
}
