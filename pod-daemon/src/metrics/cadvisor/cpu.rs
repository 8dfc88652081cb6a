//! CPU time, its limit, and pressure of every kind.

use super::{
    Source::{self, Cgroup},
    reading,
};
use crate::{
    cgroup::stats::{Pressure, Throttling},
    metrics::{
        family::{Domain, Family, Label},
        resource::count,
        sheet::Sheet,
    },
};

pub(super) const CPU: Domain<Source> = Domain {
    title: "CPU",
    text: "From `cpu.stat`, `cpu.max` and `cpu.weight`. Usage is there on every node; all else needs \
           the `cpu` controller.",
    families: &[
        Family::counter(
            "container_cpu_usage_seconds_total",
            "CPU time; for all CPUs together, as cgroup v2 has it.",
            Cgroup(|c, sheet| {
                if let Some(cpu) = c.details.stats.cpu {
                    sheet.seconds(&["total"], cpu.usage_us);
                }
            }),
        )
        .by(&[Label::each("cpu", &["total"])]),
        Family::counter(
            "container_cpu_user_seconds_total",
            "CPU time in user mode.",
            Cgroup(|c, sheet| time(sheet, c.details.stats.cpu.map(|cpu| cpu.user_us))),
        ),
        Family::counter(
            "container_cpu_system_seconds_total",
            "CPU time in the kernel.",
            Cgroup(|c, sheet| time(sheet, c.details.stats.cpu.map(|cpu| cpu.system_us))),
        ),
        Family::counter(
            "container_cpu_cfs_periods_total",
            "Enforcement periods in which it wanted to run; only with a CPU limit.",
            Cgroup(|c, sheet| count(sheet, throttling(c).map(|t| t.periods))),
        ),
        Family::counter(
            "container_cpu_cfs_throttled_periods_total",
            "Enforcement periods in which it ran out of its limit; only with a CPU limit.",
            Cgroup(|c, sheet| count(sheet, throttling(c).map(|t| t.throttled_periods))),
        ),
        Family::counter(
            "container_cpu_cfs_throttled_seconds_total",
            "Time that runnable threads were held back; only with a CPU limit.",
            Cgroup(|c, sheet| time(sheet, throttling(c).map(|t| t.throttled_us))),
        ),
        Family::gauge(
            "container_spec_cpu_period",
            "Enforcement period of the CPU limit, in microseconds.",
            Cgroup(|c, sheet| count(sheet, c.details.settings.cpu_period_us)),
        ),
        Family::gauge(
            "container_spec_cpu_quota",
            "CPU time in each period, in microseconds; only with a CPU limit.",
            Cgroup(|c, sheet| count(sheet, quota(c))),
        ),
        Family::gauge(
            "container_spec_cpu_shares",
            "`cpu.weight` on the scale of cgroup v1's shares, by cAdvisor's formula.",
            Cgroup(|c, sheet| count(sheet, c.details.settings.cpu_weight.map(shares))),
        ),
    ],
};

pub(super) const PRESSURE: Domain<Source> = Domain {
    title: "Pressure",
    text: "Pressure stall information: it needs no controller, only a kernel with PSI switched on. \
           Waiting is `some`, stalled is `full`.",
    families: &[
        Family::counter(
            "container_pressure_cpu_waiting_seconds_total",
            "Time that some threads waited for a CPU.",
            Cgroup(|c, sheet| time(sheet, waiting(c.details.stats.cpu_pressure))),
        ),
        Family::counter(
            "container_pressure_cpu_stalled_seconds_total",
            "Time that all threads waited for a CPU (Linux 5.13).",
            Cgroup(|c, sheet| time(sheet, stalled(c.details.stats.cpu_pressure))),
        ),
        Family::counter(
            "container_pressure_memory_waiting_seconds_total",
            "Time that some threads waited for memory.",
            Cgroup(|c, sheet| time(sheet, waiting(c.details.stats.memory_pressure))),
        ),
        Family::counter(
            "container_pressure_memory_stalled_seconds_total",
            "Time that all threads waited for memory.",
            Cgroup(|c, sheet| time(sheet, stalled(c.details.stats.memory_pressure))),
        ),
        Family::counter(
            "container_pressure_io_waiting_seconds_total",
            "Time that some threads waited for block devices.",
            Cgroup(|c, sheet| time(sheet, waiting(c.details.stats.io_pressure))),
        ),
        Family::counter(
            "container_pressure_io_stalled_seconds_total",
            "Time that all threads waited for block devices.",
            Cgroup(|c, sheet| time(sheet, stalled(c.details.stats.io_pressure))),
        ),
    ],
};

fn time(sheet: &mut Sheet<'_>, microseconds: Option<u64>) {
    if let Some(microseconds) = microseconds {
        sheet.seconds(&[], microseconds);
    }
}

/// The CPU limit, if there is one.
fn quota(cgroup: &reading::Cgroup) -> Option<u64> {
    cgroup.details.settings.cpu_quota_us.filter(|quota| *quota != 0)
}

/// Shown with a limit only, as cAdvisor has it: a rate of throttled by all periods is then defined.
fn throttling(cgroup: &reading::Cgroup) -> Option<Throttling> {
    quota(cgroup).and(cgroup.details.stats.throttling)
}

/// Weights from 1 to 10000 as shares from 2 to 262144.
fn shares(weight: u64) -> u64 {
    2 + weight.saturating_sub(1).saturating_mul(262_142) / 9_999
}

fn waiting(pressure: Option<Pressure>) -> Option<u64> {
    pressure.map(|pressure| pressure.some_us)
}

fn stalled(pressure: Option<Pressure>) -> Option<u64> {
    pressure.and_then(|pressure| pressure.full_us)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_have_the_ends_of_their_scale() {
        assert_eq!([1, 10_000].map(shares), [2, 262_144]);
    }
}
