//! What the probes have seen of each container, as a table.

use std::{collections::BTreeMap, fmt::Write as _, time::Instant};

use crate::{columns::aligned, daemon::Daemon, metrics::Metrics};

/// Pod and container.
type Key = (String, String);

const COUNTS: [&str; 12] = [
    "CONTAINER",
    "CPU",
    "EXECS",
    "FORKS",
    "EXITS",
    "FAILED",
    "RECEIVED",
    "SENT",
    "CONNECTS",
    "P50",
    "REFUSED",
    "ACCEPTS",
];
const FILES: [&str; 5] = ["CONTAINER", "VOLUME", "READ", "WRITTEN", "OPERATIONS"];

/// One look at the daemon's metrics.
pub(super) struct Seen {
    at: Instant,
    containers: BTreeMap<Key, Container>,
    /// How files are counted here.
    file_mode: String,
    lost: f64,
}

/// The sums of one container.
#[derive(Default)]
struct Container {
    execs: f64,
    forks: f64,
    exits: f64,
    failed_exits: f64,
    received: f64,
    sent: f64,
    connects: f64,
    refused: f64,
    accepts: f64,
    connect_p50: Option<f64>,
    cpu: f64,
    volumes: BTreeMap<String, Files>,
}

/// What a container did to the files of one volume, in bytes and calls.
#[derive(Default)]
struct Files {
    read: f64,
    written: f64,
    operations: f64,
}

impl Seen {
    pub(super) fn read(daemon: &Daemon) -> anyhow::Result<Self> {
        let metrics = daemon.scrape()?;
        let containers = metrics
            .matching("podscope_container_info", &[])
            .map(|sample| {
                let (pod, container) = (sample.label("pod"), sample.label("container"));
                ((pod.to_owned(), container.to_owned()), Container::read(&metrics, pod, container))
            })
            .collect();
        let file_mode = metrics
            .matching("podscope_probe_info", &[("probe", "file_read")])
            .map(|sample| sample.label("mode").to_owned())
            .collect();
        let lost = metrics.sum("podscope_events_lost_total", &[]);
        Ok(Self { at: Instant::now(), containers, file_mode, lost })
    }

    /// Totals, with CPU as a rate since the `earlier` look.
    pub(super) fn table(&self, earlier: Option<&Self>) -> String {
        let mut rows = vec![COUNTS.map(str::to_owned)];
        let mut files = vec![FILES.map(str::to_owned)];
        for (key, now) in &self.containers {
            let before = earlier.and_then(|seen| Some((seen.at, seen.containers.get(key)?)));
            let cpu = before.map_or_else(String::new, |(at, before)| {
                let seconds = (self.at - at).as_secs_f64();
                format!("{:.1} %", (now.cpu - before.cpu).max(0.0) / seconds * 100.0)
            });
            let p50 = now.connect_p50.map(|p50| format!("{:.0} us", p50 * 1e6));
            let name = format!("{}/{}", key.0, key.1);
            rows.push([
                name.clone(),
                cpu,
                now.execs.to_string(),
                now.forks.to_string(),
                now.exits.to_string(),
                now.failed_exits.to_string(),
                bytes(now.received),
                bytes(now.sent),
                now.connects.to_string(),
                p50.unwrap_or_default(),
                now.refused.to_string(),
                now.accepts.to_string(),
            ]);
            for (volume, file) in now.volumes.iter().filter(|(_, file)| file.operations > 0.0) {
                files.push([
                    name.clone(),
                    volume.clone(),
                    bytes(file.read),
                    bytes(file.written),
                    file.operations.to_string(),
                ]);
            }
        }
        let mut text = aligned(&rows);
        text.push('\n');
        text.push_str(&aligned(&files));
        writeln!(
            text,
            "counted in the kernel from each container's first exec on; files by {}; {} lost",
            self.file_mode, self.lost
        )
        .expect("a string takes all");
        text
    }
}

impl Container {
    fn read(metrics: &Metrics, pod: &str, container: &str) -> Self {
        let of = [("pod", pod), ("container", container)];
        let sum = |name: &str| metrics.sum(name, &of);
        let with =
            |name: &str, key: &str, value: &str| metrics.sum(name, &[of[0], of[1], (key, value)]);
        let mut volumes = BTreeMap::<String, Files>::new();
        for sample in metrics.matching("podscope_file_operations_total", &of) {
            let volume = sample.label("volume");
            let file = volumes.entry(volume.to_owned()).or_default();
            file.read = with("podscope_file_read_bytes_total", "volume", volume);
            file.written = with("podscope_file_written_bytes_total", "volume", volume);
            file.operations += sample.value;
        }
        let exits = sum("podscope_process_exits_total");
        Self {
            execs: sum("podscope_exec_total"),
            forks: sum("podscope_forks_total"),
            exits: exits + sum("podscope_process_signals_total"),
            failed_exits: exits - with("podscope_process_exits_total", "code", "0"),
            received: with("podscope_network_bytes_total", "direction", "receive"),
            sent: with("podscope_network_bytes_total", "direction", "transmit"),
            connects: with("podscope_tcp_connects_total", "result", "established"),
            refused: with("podscope_tcp_connects_total", "result", "refused"),
            accepts: sum("podscope_tcp_accepts_total"),
            connect_p50: metrics.quantile(0.5, "podscope_tcp_connect_duration_seconds", &of),
            cpu: sum("podscope_cpu_seconds_total"),
            volumes,
        }
    }
}

/// Bytes with the unit that keeps them short.
fn bytes(count: f64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = count;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < units.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{value} B") } else { format!("{value:.1} {}", units[unit]) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_short() {
        assert_eq!(bytes(1023.0), "1023 B");
        assert_eq!(bytes(1536.0), "1.5 KiB");
        assert_eq!(bytes(3.0 * 1024.0 * 1024.0 * 1024.0), "3.0 GiB");
    }
}
