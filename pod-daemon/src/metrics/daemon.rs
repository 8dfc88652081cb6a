//! Podscope itself: what it can see, what that costs, and what it lost.

use super::family::{Domain, Family, Label, Source::Node};
use crate::{pod::Adopted, probes::UNSEEN};

const PROGRAM: Label = Label::free("program", "name of the eBPF program");
const MAP: Label = Label::free("map", "name of the eBPF map");

pub(super) const DOMAIN: Domain = Domain {
    title: "Podscope itself",
    text: "A probe that this kernel does not allow is never silently absent: \
           `podscope_probe_info` names it, and the metrics that it would count are not exported.",
    families: &[
        Family::gauge(
            "podscope_build_info",
            "What runs here; always 1.",
            Node(|reading, sheet| {
                let build = reading.build;
                sheet.count(&[build.version, build.revision, build.rustc], 1);
            }),
        )
        .by(&[
            Label::free("version", "version of Podscope"),
            Label::free("revision", "commit that it was built from"),
            Label::free("rustc", "compiler that built it"),
        ]),
        Family::gauge(
            "podscope_probe_info",
            "How each probe is attached on this kernel; always 1. `optional`: it was not asked for.",
            Node(|reading, sheet| {
                for status in &reading.probes {
                    sheet.count(&[&status.probe, &status.mode, &status.reason], 1);
                }
            }),
        )
        .by(&[
            Label::free("probe", "name of the probe"),
            Label::one_of(
                "mode",
                &["tracepoint", "cgroup", "fexit", "syscall", "optional", "on_demand", "off"],
            ),
            Label::free("reason", "why it is not the best mode; empty when it is"),
        ]),
        Family::gauge(
            "podscope_probe_coverage",
            "How much each probe sees on this kernel of what it is for; always 1. `attached`: all \
             that it can on any. `degraded`: not for which volume, or of dropped packets not always \
             for which container. `missing`: nothing, as no probe can of what goes into a file \
             through a mapping of it.",
            Node(|reading, sheet| {
                for status in &reading.probes {
                    sheet.count(&[&status.probe, status.coverage()], 1);
                }
                for path in UNSEEN {
                    sheet.count(&[path, "missing"], 1);
                }
            }),
        )
        .by(&[
            Label::free("probe", "name of the probe, or of what there is none for"),
            Label::one_of("state", &["attached", "degraded", "missing"]),
        ]),
        Family::gauge(
            "podscope_probe_object_info",
            "What this daemon found of an earlier one's probes; always 1. `adopted`: the very same, \
             which ran on. `migrated`: other programs, whose counters went on. `replaced`: counters \
             of another layout, so every count began at zero.",
            Node(|reading, sheet| sheet.count(&[reading.origin.label(), &reading.layout], 1)),
        )
        .by(&[
            Label::one_of("origin", &["new", "adopted", "migrated", "replaced"]),
            Label::free("layout", "version of the layout of the maps"),
        ]),
        Family::gauge(
            "podscope_adopted_pods",
            "Pods of an earlier daemon that this one took over when it started. `kept`: they ran on. \
             `restarted`: their sandbox was gone, as after a reboot. `reset`: what was stored about \
             them could not be used.",
            Node(|reading, sheet| {
                for outcome in Adopted::ALL {
                    let count = reading.adopted.get(&outcome).copied().unwrap_or(0);
                    sheet.count(&[outcome.label()], count);
                }
            }),
        )
        .by(&[Label::one_of("outcome", &["kept", "restarted", "reset"])]),
        Family::counter(
            "podscope_bpf_program_runs_total",
            "Runs of each eBPF program: since this daemon started and as estimated from samples, or \
             with `--probe-timing=always` all, by the kernel's own account.",
            Node(|reading, sheet| {
                for cost in &reading.costs {
                    sheet.count(&[&cost.program], cost.runs);
                }
            }),
        )
        .by(&[PROGRAM]),
        Family::counter(
            "podscope_bpf_program_seconds_total",
            "Time spent in each eBPF program, likewise.",
            Node(|reading, sheet| {
                for cost in &reading.costs {
                    sheet.value(&[&cost.program], cost.seconds);
                }
            }),
        )
        .by(&[PROGRAM]),
        Family::counter(
            "podscope_bpf_program_missed_total",
            "Times that an eBPF program should have run and did not, since it was running on that \
             CPU already: on kernels that preempt at any time, a task may be stopped within it \
             (counted from Linux 5.12 on).",
            Node(|reading, sheet| {
                for cost in &reading.costs {
                    sheet.count(&[&cost.program], cost.missed);
                }
            }),
        )
        .by(&[PROGRAM]),
        Family::gauge(
            "podscope_bpf_map_entries",
            "Entries in use of each eBPF map that can run full.",
            Node(|reading, sheet| {
                for map in &reading.maps {
                    sheet.count(&[map.map], map.entries);
                }
            }),
        )
        .by(&[MAP]),
        Family::gauge(
            "podscope_bpf_map_capacity",
            "Entries that each eBPF map can hold.",
            Node(|reading, sheet| {
                for map in &reading.maps {
                    sheet.count(&[map.map], map.capacity);
                }
            }),
        )
        .by(&[MAP]),
        Family::counter(
            "podscope_events_lost_total",
            "What could not be counted or told, by kind. Anything but 0 makes other numbers too low, \
             except for the kinds that begin with `event_`: those are missing from the stream of \
             events alone.",
            Node(|reading, sheet| {
                for (kind, count) in &reading.lost {
                    sheet.count(&[kind], *count);
                }
            }),
        )
        .by(&[Label::free("kind", "what was lost")]),
        Family::counter(
            "podscope_scrapes_total",
            "Scrapes of /metrics before this one.",
            Node(|reading, sheet| sheet.count(&[], reading.scrapes.count)),
        ),
        Family::gauge(
            "podscope_scrape_duration_seconds",
            "How long the scrape before this one took to read and write; absent in the first.",
            Node(|reading, sheet| {
                if let Some(last) = reading.scrapes.last {
                    sheet.value(&[], last.as_secs_f64());
                }
            }),
        ),
    ],
};
