//! What the kernel accounts for a container's cgroup, beside its limits.

use pod_ebpf::block::{BlockOperation, BlockStats};

use super::{
    family::{Domain, Family, Label, Source::Container},
    file::OPERATIONS,
    reading,
    sheet::Sheet,
};
use crate::cgroup::stats::Pressure;

pub(super) const OPERATION: Label = Label::each("operation", &OPERATIONS);

pub(super) const CPU: Domain = Domain {
    title: "CPU",
    text: "From the container's cgroup. Throttling needs the `cpu` controller, and is absent on a \
           node that has it not.",
    families: &[
        Family::gauge(
            "podscope_cpu_limit_cores",
            "CPU limit; absent when there is none.",
            Container(|c, sheet| cores(sheet, c.about.limits.cpu_millicores)),
        ),
        Family::gauge(
            "podscope_cpu_request_cores",
            "CPU request; absent when there is none.",
            Container(|c, sheet| cores(sheet, c.about.requests.cpu_millicores)),
        ),
        Family::counter(
            "podscope_cpu_periods_total",
            "Enforcement periods of the CPU limit in which the container wanted to run.",
            Container(|c, sheet| count(sheet, c.cgroup.throttling.map(|t| t.periods))),
        ),
        Family::counter(
            "podscope_cpu_throttled_periods_total",
            "Enforcement periods in which the container ran out of its CPU limit.",
            Container(|c, sheet| count(sheet, c.cgroup.throttling.map(|t| t.throttled_periods))),
        ),
        Family::counter(
            "podscope_cpu_throttled_seconds_total",
            "Time that runnable threads were held back by the CPU limit.",
            Container(|c, sheet| {
                if let Some(throttling) = c.cgroup.throttling {
                    sheet.seconds(&[], throttling.throttled_us);
                }
            }),
        ),
        Family::counter(
            "podscope_cpu_seconds_total",
            "CPU time.",
            Container(|c, sheet| {
                if let Some(cpu) = c.cgroup.cpu {
                    sheet.seconds(&["user"], cpu.user_us);
                    sheet.seconds(&["system"], cpu.system_us);
                }
            }),
        )
        .by(&[Label::each("mode", &["user", "system"])]),
    ],
};

pub(super) const MEMORY: Domain = Domain {
    title: "Memory",
    text: "From the container's cgroup, with the `memory` controller. On a node that has it not, \
           there are the limits and `podscope_memory_resident_bytes`. While no thread of the container \
           runs or waits, and it has as much memory as before, what that consists of is read anew once \
           in a while (in the 16th scrape at the latest).",
    families: &[
        Family::gauge(
            "podscope_memory_limit_bytes",
            "Memory limit; absent when there is none.",
            Container(|c, sheet| count(sheet, c.about.limits.memory_bytes)),
        ),
        Family::gauge(
            "podscope_memory_request_bytes",
            "Memory request; absent when there is none.",
            Container(|c, sheet| count(sheet, c.about.requests.memory_bytes)),
        ),
        Family::gauge(
            "podscope_memory_current_bytes",
            "All memory that is charged to the container, page cache included.",
            Container(|c, sheet| count(sheet, c.cgroup.memory.map(|m| m.current))),
        ),
        Family::gauge(
            "podscope_memory_working_set_bytes",
            "Memory that cannot be had back cheaply: current less inactive page cache.",
            Container(|c, sheet| count(sheet, c.cgroup.memory.and_then(|m| m.working_set))),
        ),
        Family::gauge(
            "podscope_memory_peak_bytes",
            "The most memory that was ever charged at once (Linux 5.19).",
            Container(|c, sheet| count(sheet, c.cgroup.memory.and_then(|m| m.peak))),
        )
        .kept(),
        Family::gauge(
            "podscope_memory_anonymous_bytes",
            "Anonymous memory: heaps, stacks, shared anonymous mappings.",
            Container(|c, sheet| count(sheet, c.cgroup.memory.map(|m| m.anonymous))),
        ),
        Family::gauge(
            "podscope_memory_file_bytes",
            "Page cache, and memory of tmpfs files.",
            Container(|c, sheet| count(sheet, c.cgroup.memory.map(|m| m.file))),
        ),
        Family::gauge(
            "podscope_memory_kernel_bytes",
            "Memory that the kernel uses on behalf of the container (Linux 5.18).",
            Container(|c, sheet| count(sheet, c.cgroup.memory.and_then(|m| m.kernel))),
        ),
        Family::gauge(
            "podscope_memory_swap_bytes",
            "Memory that is swapped out.",
            Container(|c, sheet| count(sheet, c.cgroup.memory.and_then(|m| m.swap))),
        ),
        Family::gauge(
            "podscope_memory_resident_bytes",
            "Resident memory of the container's processes, where a page that several share counts \
             for each. Only on a node without the `memory` controller.",
            Container(|c, sheet| count(sheet, c.cgroup.resident)),
        ),
        Family::counter(
            "podscope_memory_refaults_total",
            "Pages that were evicted and soon needed again.",
            Container(|c, sheet| count(sheet, c.cgroup.memory.map(|m| m.refaults))),
        ),
        Family::counter(
            "podscope_memory_page_faults_total",
            "Page faults, those included that waited for a disk.",
            Container(|c, sheet| count(sheet, c.cgroup.memory.map(|m| m.faults))),
        ),
        // Not two kinds of one metric: the kernel counts a fault as major before it counts it at all, so
        // what is left would drop now and then.
        Family::counter(
            "podscope_memory_major_page_faults_total",
            "Page faults that waited for a disk.",
            Container(|c, sheet| count(sheet, c.cgroup.memory.map(|m| m.major_faults))),
        ),
        Family::counter(
            "podscope_memory_events_total",
            "What happened at the memory limits: reclaims below the request (`low`), throttling \
             (`high`), reclaims at the limit (`max`), allocations that failed even so (`oom`), and \
             processes that the OOM killer ended (`oom_kill`).",
            Container(|c, sheet| {
                if let Some(events) = c.cgroup.memory.map(|m| m.events) {
                    sheet.count(&["low"], events.low);
                    sheet.count(&["high"], events.high);
                    sheet.count(&["max"], events.max);
                    sheet.count(&["oom"], events.oom);
                    sheet.count(&["oom_kill"], events.oom_kill);
                }
            }),
        )
        .by(&[Label::each("event", &["low", "high", "max", "oom", "oom_kill"])]),
    ],
};

pub(super) const PIDS: Domain = Domain {
    title: "Processes and threads at a time",
    text: "From the container's cgroup; apart from the limit, it needs the `pids` controller, and \
           is absent on a node that has it not.",
    families: &[
        Family::gauge(
            "podscope_pids_limit",
            "The most processes and threads that there may be at once; absent when there is no \
             limit.",
            Container(|c, sheet| count(sheet, c.about.limits.pids)),
        ),
        Family::gauge(
            "podscope_pids_current",
            "Processes and threads now.",
            Container(|c, sheet| count(sheet, c.cgroup.pids.map(|p| p.current))),
        ),
        Family::gauge(
            "podscope_pids_peak",
            "The most processes and threads that there ever were at once (Linux 6.10).",
            Container(|c, sheet| count(sheet, c.cgroup.pids.and_then(|p| p.peak))),
        )
        .kept(),
        Family::counter(
            "podscope_pids_refused_total",
            "Forks that the limit refused.",
            Container(|c, sheet| count(sheet, c.cgroup.pids.map(|p| p.refused))),
        ),
    ],
};

pub(super) const IO: Domain = Domain {
    title: "Block devices",
    text: "What reached a disk, often later than the write that caused it; for what the container \
           asked for, see Files. `podscope_io_*` is from the container's cgroup, summed over the \
           devices, and has a number for each that a request passes; `podscope_block_*` is counted \
           when a device is done, and those that the kernel has merged are one. Both need the `io` \
           controller, which says whose a request is, and are absent on a node that has it not.",
    families: &[
        Family::gauge(
            "podscope_io_limit_bytes_per_second",
            "The most that block devices transfer for the container; absent when there is no limit.",
            Container(|c, sheet| {
                let [read, write, _, _] = c.about.limits.io;
                each_limit(sheet, [read, write]);
            }),
        )
        .by(&[OPERATION]),
        Family::gauge(
            "podscope_io_limit_operations_per_second",
            "The most requests that block devices serve for the container; absent when there is no \
             limit.",
            Container(|c, sheet| {
                let [_, _, read, write] = c.about.limits.io;
                each_limit(sheet, [read, write]);
            }),
        )
        .by(&[OPERATION]),
        Family::counter(
            "podscope_io_bytes_total",
            "Bytes that block devices transferred for the container.",
            Container(|c, sheet| {
                if let Some(io) = c.cgroup.io {
                    sheet.count(&[OPERATIONS[0]], io.read_bytes);
                    sheet.count(&[OPERATIONS[1]], io.written_bytes);
                }
            }),
        )
        .by(&[OPERATION]),
        Family::counter(
            "podscope_io_operations_total",
            "Requests that block devices served for the container.",
            Container(|c, sheet| {
                if let Some(io) = c.cgroup.io {
                    sheet.count(&[OPERATIONS[0]], io.reads);
                    sheet.count(&[OPERATIONS[1]], io.writes);
                }
            }),
        )
        .by(&[OPERATION]),
        Family::counter(
            "podscope_block_bytes_total",
            "Bytes of requests that devices have served.",
            Container(|c, sheet| {
                for (operation, requests) in requests(c) {
                    sheet.count(&[operation], requests.bytes);
                }
            }),
        )
        .by(&[OPERATION])
        .counted_by(&["block"]),
        Family::counter(
            "podscope_block_operations_total",
            "Requests that devices have served.",
            Container(|c, sheet| {
                for (operation, requests) in requests(c) {
                    sheet.count(&[operation], requests.count());
                }
            }),
        )
        .by(&[OPERATION])
        .counted_by(&["block"]),
        Family::counter(
            "podscope_block_errors_total",
            "Requests that failed.",
            Container(|c, sheet| {
                for (operation, requests) in requests(c) {
                    sheet.count(&[operation], requests.errors);
                }
            }),
        )
        .by(&[OPERATION])
        .counted_by(&["block"]),
        Family::histogram(
            "podscope_block_operation_duration_seconds",
            "How long requests took, with the time in the kernel's queues.",
            Container(|c, sheet| {
                for (operation, requests) in requests(c) {
                    sheet.latency(&[operation], &requests.latency);
                }
            }),
        )
        .by(&[OPERATION])
        .counted_by(&["block"]),
    ],
};

/// Requests by operation; none if they cannot be told from others'.
fn requests(container: &reading::Container) -> Vec<(&'static str, &BlockOperation)> {
    if container.cgroup.io.is_none() {
        return Vec::new();
    }
    let BlockStats { reads, writes } = &container.block;
    vec![(OPERATIONS[0], reads), (OPERATIONS[1], writes)]
}

pub(super) const PRESSURE: Domain = Domain {
    title: "Pressure",
    text: "Pressure stall information of the container's cgroup: it needs no controller, only a \
           kernel with PSI switched on.",
    families: &[Family::counter(
        "podscope_pressure_seconds_total",
        "Time that some or all (`full`) of the container's threads waited for a resource. \
             `full` for `cpu` needs Linux 5.13.",
        Container(|c, sheet| {
            for (resource, pressure) in [
                ("cpu", c.cgroup.cpu_pressure),
                ("memory", c.cgroup.memory_pressure),
                ("io", c.cgroup.io_pressure),
            ] {
                stalls(sheet, resource, pressure);
            }
        }),
    )
    .by(&[
        Label::each("resource", &["cpu", "memory", "io"]),
        Label::each("kind", &["some", "full"]),
    ])],
};

fn each_limit(sheet: &mut Sheet<'_>, limits: [Option<u64>; 2]) {
    for (operation, limit) in OPERATIONS.iter().zip(limits) {
        if let Some(limit) = limit {
            sheet.count(&[operation], limit);
        }
    }
}

fn stalls(sheet: &mut Sheet<'_>, resource: &str, pressure: Option<Pressure>) {
    let Some(pressure) = pressure else { return };
    sheet.seconds(&[resource, "some"], pressure.some_us);
    if let Some(full_us) = pressure.full_us {
        sheet.seconds(&[resource, "full"], full_us);
    }
}

pub(super) fn count(sheet: &mut Sheet<'_>, count: Option<u64>) {
    if let Some(count) = count {
        sheet.count(&[], count);
    }
}

fn cores(sheet: &mut Sheet<'_>, millicores: Option<u64>) {
    if let Some(millicores) = millicores {
        sheet.value(&[], millicores as f64 / 1e3);
    }
}
