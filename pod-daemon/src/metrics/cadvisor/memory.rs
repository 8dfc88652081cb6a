//! Memory, its limits, and what happened at them.

use super::Source::{self, Cgroup};
use crate::metrics::{
    family::{Domain, Family, Label},
    resource::count,
};

pub(super) const DOMAIN: Domain<Source> = Domain {
    title: "Memory",
    text: "From `memory.*`: absent on a node without the `memory` controller. Of a pod's own cgroup \
           it is the sum of those in it.",
    families: &[
        Family::gauge(
            "container_memory_usage_bytes",
            "All memory that is charged, page cache included (`memory.current`).",
            Cgroup(|c, sheet| count(sheet, c.details.stats.memory.map(|m| m.current))),
        ),
        Family::gauge(
            "container_memory_working_set_bytes",
            "Usage less inactive page cache, which the kubelet evicts by.",
            Cgroup(|c, sheet| count(sheet, c.details.stats.memory.and_then(|m| m.working_set))),
        ),
        Family::gauge(
            "container_memory_rss",
            "Anonymous memory (`anon`), in bytes: not the resident set of the processes.",
            Cgroup(|c, sheet| count(sheet, c.details.stats.memory.map(|m| m.anonymous))),
        ),
        Family::gauge(
            "container_memory_cache",
            "Page cache, tmpfs included (`file`), in bytes.",
            Cgroup(|c, sheet| count(sheet, c.details.stats.memory.map(|m| m.file))),
        ),
        Family::gauge(
            "container_memory_mapped_file",
            "Page cache that processes have mapped (`file_mapped`), in bytes.",
            Cgroup(|c, sheet| count(sheet, c.details.stats.memory.map(|m| m.mapped_file))),
        ),
        Family::gauge(
            "container_memory_swap",
            "Memory that is swapped out (`memory.swap.current`), in bytes.",
            Cgroup(|c, sheet| count(sheet, c.details.stats.memory.and_then(|m| m.swap))),
        ),
        Family::gauge(
            "container_memory_max_usage_bytes",
            "The most memory that was ever charged (`memory.peak`, Linux 5.19).",
            Cgroup(|c, sheet| count(sheet, c.details.stats.memory.and_then(|m| m.peak))),
        ),
        Family::gauge(
            "container_memory_kernel_usage",
            "Memory that the kernel uses on its behalf (`kernel`, Linux 5.18), in bytes.",
            Cgroup(|c, sheet| count(sheet, c.details.stats.memory.and_then(|m| m.kernel))),
        ),
        Family::counter(
            "container_memory_failcnt",
            "How often the limit was met and memory had to be reclaimed (`max` of `memory.events`).",
            Cgroup(|c, sheet| count(sheet, c.details.stats.memory.map(|m| m.events.max))),
        ),
        Family::counter(
            "container_memory_failures_total",
            "Page faults, of any kind and major. Both scopes are the same, as cgroup v2 counts \
             nested cgroups with their parents.",
            Cgroup(|c, sheet| {
                if let Some(memory) = c.details.stats.memory {
                    for scope in SCOPES {
                        sheet.count(&["pgfault", scope], memory.faults);
                        sheet.count(&["pgmajfault", scope], memory.major_faults);
                    }
                }
            }),
        )
        .by(&[
            Label::each("failure_type", &["pgfault", "pgmajfault"]),
            Label::each("scope", &SCOPES),
        ]),
        Family::counter(
            "container_oom_events_total",
            "Processes that the OOM killer ended (`oom_kill` of `memory.events`), whatever limit it \
             was. Containers only. It stays at its last value when the container is dead.",
            Cgroup(|c, sheet| {
                let memory = c.details.stats.memory.filter(|_| c.is_container);
                count(sheet, memory.map(|m| m.events.oom_kill));
            }),
        ),
        Family::gauge(
            "container_spec_memory_limit_bytes",
            "Memory limit (`memory.max`); 0 for none.",
            Cgroup(|c, sheet| count(sheet, c.details.settings.memory_max)),
        ),
        Family::gauge(
            "container_spec_memory_reservation_limit_bytes",
            "Protected memory (`memory.min`); 0 for none.",
            Cgroup(|c, sheet| count(sheet, c.details.settings.memory_min)),
        ),
        Family::gauge(
            "container_spec_memory_swap_limit_bytes",
            "Swap limit (`memory.swap.max`); 0 for no limit as for no swap at all, as cAdvisor has it.",
            Cgroup(|c, sheet| count(sheet, c.details.settings.memory_swap_max)),
        ),
    ],
};

const SCOPES: [&str; 2] = ["container", "hierarchy"];
