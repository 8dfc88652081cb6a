//! Processes, threads and times.

use jiff::Timestamp;

use super::Source::{self, Cgroup};
use crate::metrics::{
    family::{Domain, Family},
    resource::count,
    sheet::Sheet,
};

pub(super) const DOMAIN: Domain<Source> = Domain {
    title: "Processes and times",
    text: "From `cgroup.procs`, `pids.*` and what Podscope knows of its containers. Threads need the \
           `pids` controller.",
    families: &[
        Family::gauge(
            "container_processes",
            "Processes, those of nested cgroups included.",
            Cgroup(|c, sheet| count(sheet, c.details.processes)),
        ),
        Family::gauge(
            "container_threads",
            "Threads of all processes.",
            Cgroup(|c, sheet| count(sheet, c.details.stats.pids.map(|pids| pids.current))),
        ),
        Family::gauge(
            "container_threads_max",
            "The most threads that there may be at once; 0 for any number.",
            Cgroup(|c, sheet| count(sheet, c.details.settings.pids_max)),
        ),
        Family::gauge(
            "container_start_time_seconds",
            "When the run began, as a Unix time; of a pod and its infra program, when they did.",
            Cgroup(|c, sheet| time(sheet, c.started)),
        ),
        Family::gauge(
            "container_last_seen",
            "When the scrape was, as a Unix time; of a container that does not run, when it ended.",
            Cgroup(|c, sheet| time(sheet, c.seen)),
        ),
    ],
};

/// Whole seconds, as cAdvisor has them.
fn time(sheet: &mut Sheet<'_>, time: Timestamp) {
    sheet.value(&[], time.as_second() as f64);
}
