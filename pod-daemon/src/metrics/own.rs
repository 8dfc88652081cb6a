//! The daemon's own process, under the names that Prometheus client libraries use everywhere.

use std::fs;

use rustix::process::{Resource, getrlimit};

use super::family::{Domain, Family, Source::Node};

/// Clock ticks per second in `/proc`: 100 in the ABI of every architecture that Podscope runs on.
const TICKS_PER_SECOND: f64 = 100.0;

pub(super) const DOMAIN: Domain = Domain {
    title: "The daemon's process",
    text: "As every Prometheus client library exports them.",
    families: &[
        Family::counter(
            "process_cpu_seconds_total",
            "User and system CPU time of the daemon.",
            Node(|reading, sheet| sheet.value(&[], reading.own.cpu_seconds)),
        ),
        Family::gauge(
            "process_resident_memory_bytes",
            "Resident memory of the daemon.",
            Node(|reading, sheet| sheet.count(&[], reading.own.resident_bytes)),
        ),
        Family::gauge(
            "process_virtual_memory_bytes",
            "Virtual memory of the daemon.",
            Node(|reading, sheet| sheet.count(&[], reading.own.virtual_bytes)),
        ),
        Family::gauge(
            "process_threads",
            "Threads of the daemon.",
            Node(|reading, sheet| sheet.count(&[], reading.own.threads)),
        ),
        Family::gauge(
            "process_open_fds",
            "File descriptors that the daemon has open.",
            Node(|reading, sheet| sheet.count(&[], reading.own.open_fds)),
        ),
        Family::gauge(
            "process_max_fds",
            "File descriptors that the daemon may open; absent when there is no limit.",
            Node(|reading, sheet| {
                if let Some(limit) = reading.own.max_fds {
                    sheet.count(&[], limit);
                }
            }),
        ),
        Family::gauge(
            "process_start_time_seconds",
            "When the daemon started, as a Unix time.",
            Node(|reading, sheet| sheet.value(&[], reading.own.start_seconds)),
        ),
    ],
};

/// Numbers of this process.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Own {
    pub(super) cpu_seconds: f64,
    pub(super) resident_bytes: u64,
    pub(super) virtual_bytes: u64,
    pub(super) threads: u64,
    pub(super) open_fds: u64,
    pub(super) max_fds: Option<u64>,
    pub(super) start_seconds: f64,
}

impl Own {
    /// Reads this process; what `/proc` does not tell is 0.
    pub(super) fn read(start_seconds: f64) -> Self {
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        let number = |key: &str| -> u64 {
            let line = status.lines().find_map(|line| line.strip_prefix(key));
            let value = line.and_then(|line| line.split_ascii_whitespace().next());
            value.and_then(|value| value.parse().ok()).unwrap_or(0)
        };
        let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
        let ticks = stat_field(&stat, 14).unwrap_or(0) + stat_field(&stat, 15).unwrap_or(0);
        Self {
            cpu_seconds: ticks as f64 / TICKS_PER_SECOND,
            resident_bytes: 1024 * number("VmRSS:"),
            virtual_bytes: 1024 * number("VmSize:"),
            threads: number("Threads:"),
            open_fds: open_fds(),
            max_fds: getrlimit(Resource::Nofile).current,
            start_seconds,
        }
    }
}

/// Descriptors that are open.
fn open_fds() -> u64 {
    // Of a thousand containers it has many thousands, so it is asked for their number where the kernel
    // tells it (since Linux 6.2; 0 before).
    let count = fs::metadata("/proc/self/fd").map_or(0, |directory| directory.len());
    if count > 0 {
        return count;
    }
    let listed = fs::read_dir("/proc/self/fd").map_or(0, Iterator::count);
    // One of them is that of the listing itself.
    u64::try_from(listed).unwrap_or(0).saturating_sub(1)
}

/// When this process started, in seconds since 1970; 0 if `/proc` does not tell.
pub(super) fn start_seconds() -> f64 {
    let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let node = fs::read_to_string("/proc/stat").unwrap_or_default();
    let boot = node.lines().find_map(|line| line.strip_prefix("btime "));
    let boot = boot.and_then(|seconds| seconds.parse::<u64>().ok());
    match (boot, stat_field(&stat, 22)) {
        (Some(boot), Some(ticks)) => boot as f64 + ticks as f64 / TICKS_PER_SECOND,
        _ => 0.0,
    }
}

/// A field of `/proc/PID/stat`, numbered as in proc_pid_stat(5). The second is the program's name
/// in parentheses, which may itself hold spaces and parentheses.
fn stat_field(stat: &str, number: usize) -> Option<u64> {
    let (_, rest) = stat.rsplit_once(") ")?;
    rest.split_ascii_whitespace().nth(number.checked_sub(3)?)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_found_behind_a_name_with_parentheses() {
        let stat = "42 (a) b) c) S 1 2 3 4 5 6 7 8 9 10 140 150 0 0 20 0 7 0 2200";

        assert_eq!(stat_field(stat, 14), Some(140));
        assert_eq!(stat_field(stat, 15), Some(150));
        assert_eq!(stat_field(stat, 22), Some(2200));
        assert_eq!(stat_field(stat, 60), None);
    }

    #[test]
    fn this_process_is_read() {
        let own = Own::read(start_seconds());

        assert!(own.resident_bytes > 100_000 && own.virtual_bytes > own.resident_bytes);
        assert!(own.threads >= 1 && own.open_fds >= 3);
        assert!(own.start_seconds > 1.7e9);
    }
}
