//! The node: what it has for pods, and who waits for it.

use super::{
    family::{Domain, Family, Label, Source::Node},
    sheet::Sheet,
};
use crate::manifest::demand::{RESOURCES, Totals, Unit};

const RESOURCE: Label =
    Label::free("resource", "as manifests name it, such as `cpu` and `memory`; see below");

pub(super) const DOMAIN: Domain = Domain {
    title: "The node",
    text: "By resource: `cpu` in cores, `memory`, `ephemeral-storage` and `hugepages-…` in bytes, \
           `podscope.dev/pids`, and what the daemon itself has a limited number of: counters of \
           `podscope.dev/containers` and `podscope.dev/volumes`, and `podscope.dev/addresses` of \
           the pods' network.",
    families: &[
        Family::gauge(
            "podscope_node_capacity",
            "What the node has.",
            Node(|reading, sheet| amounts(sheet, reading.node.occupancy.capacity)),
        )
        .by(&[RESOURCE]),
        Family::gauge(
            "podscope_node_allocatable",
            "What of that is for pods.",
            Node(|reading, sheet| amounts(sheet, reading.node.occupancy.allocatable)),
        )
        .by(&[RESOURCE]),
        Family::gauge(
            "podscope_node_requested",
            "What the pods asked for that have a place on the node.",
            Node(|reading, sheet| amounts(sheet, reading.node.occupancy.requested)),
        )
        .by(&[RESOURCE]),
        Family::gauge(
            "podscope_pods_pending",
            "Pods that wait for a place, by what they lack; one that lacks several things counts \
             for each.",
            Node(|reading, sheet| {
                let others = ["host-ports", "disk-pressure"];
                for reason in RESOURCES.iter().map(|resource| resource.name).chain(others) {
                    let count = reading.node.occupancy.waiting.get(reason).copied();
                    sheet.count(&[reason], count.unwrap_or(0));
                }
            }),
        )
        .by(&[Label::free("reason", "a resource, `host-ports` or `disk-pressure`")]),
        Family::counter(
            "podscope_pod_evictions_total",
            "Pods that were ended against their will: `Preempted` for one of a higher priority, or \
             `Evicted` since they used more disk than they may.",
            Node(|reading, sheet| {
                for (reason, count) in &reading.node.disruptions {
                    sheet.count(&[reason], *count);
                }
            }),
        )
        .by(&[Label::each("reason", &crate::node::admission::DISRUPTIONS)]),
        Family::gauge(
            "podscope_node_disk_pressure",
            "1 while no pod may start, since less than `--reserve-disk` is free below the data \
             directory, else 0.",
            Node(|reading, sheet| sheet.count(&[], reading.node.is_full.into())),
        ),
        Family::counter(
            "podscope_oom_score_adj_refused_total",
            "Processes whose `oom_score_adj` the kernel refused, for want of CAP_SYS_RESOURCE: they \
             have the daemon's.",
            Node(|reading, sheet| sheet.count(&[], reading.node.oom_scores_refused)),
        ),
    ],
};

fn amounts(sheet: &mut Sheet<'_>, totals: Totals) {
    for (at, resource) in RESOURCES.iter().enumerate() {
        match resource.unit {
            Unit::Millicores => sheet.value(&[resource.name], totals[at] as f64 / 1e3),
            Unit::Bytes | Unit::Count => sheet.count(&[resource.name], totals[at]),
        }
    }
}
