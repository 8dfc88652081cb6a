//! How a pod lives and dies, from all that the node knows about it.

use std::{fs, path::Path};

use jiff::Timestamp;
use pod_ebpf::{Direction, NO_SLOT, tcp::ConnectResult};

use super::{ContainerSnapshot, Error, Node, PodSnapshot, Shared, State};
use crate::{
    cgroup::{self, stats},
    events::{
        Connections, ContainerReport, Detail, Event, Report, Ring, Trace, Usage, VolumeReport,
        booted,
    },
    pod::{Key, logs},
    probes::Probes,
};

/// Lines of output that a report shows.
const LOG_LINES: usize = 10;

/// Bytes of output that are looked at for them.
const LOG_BYTES: u64 = 16 << 10;

/// Peers that a report names.
const PEERS: usize = 8;

impl Node {
    /// How a pod lives, or how one that is gone has lived and died.
    pub async fn explain(&self, namespace: &str, name: &str) -> Result<Report, Error> {
        let key = Key::new(namespace, name);
        self.shared.chronicle.settle(Ring::Events).await;
        let Ok(snapshot) = self.shared.table.snapshot(&key) else {
            let report = self.shared.archive.find(namespace, name);
            return report.ok_or_else(|| key.not_found::<k8s_openapi::api::core::v1::Pod>());
        };
        let shared = std::sync::Arc::clone(&self.shared);
        tokio::task::spawn_blocking(move || shared.report(&snapshot))
            .await
            .map_err(|error| Error::Internal { message: format!("cannot explain: {error}") })
    }
}

impl Node {
    /// Has more told of a pod's container, or of all of them, until the trace is dropped.
    pub fn trace(
        &self,
        namespace: &str,
        name: &str,
        container: Option<&str>,
        detail: Detail,
    ) -> Result<Trace, Error> {
        let key = Key::new(namespace, name);
        let pod = self.shared.table.snapshot(&key)?;
        if let Some(wanted) = container {
            self.container(&key, Some(wanted))?;
        }
        let slots: Vec<u32> = pod
            .containers
            .iter()
            .filter(|other| container.is_none_or(|wanted| other.name == wanted))
            .map(|container| container.slot)
            .filter(|slot| *slot != NO_SLOT)
            .collect();
        if slots.is_empty() {
            let message = format!("pod {key} has not been started yet");
            return Err(Error::Conflict { message });
        }
        self.shared.traces.begin(&self.shared.probes, &slots, detail).map_err(|error| {
            Error::Conflict { message: format!("{error}; see podscope_probe_info") }
        })
    }
}

impl Shared {
    /// Keeps what there is to say about a pod that is about to go.
    pub(crate) fn keep_report(&self, snapshot: &PodSnapshot) {
        let report = Report { deleted: Some(Timestamp::now()), ..self.report(snapshot) };
        self.archive.keep(report);
    }

    /// What there is to say about a pod. Reads some files.
    fn report(&self, snapshot: &PodSnapshot) -> Report {
        let now = Timestamp::now();
        let events = self.chronicle.trail(&snapshot.uid);
        let key = Key::new(&snapshot.namespace, &snapshot.name);
        let logs = logs::directory(&self.settings.log_dir, &key, &snapshot.uid);
        // A reboot began all counters anew.
        let born = snapshot.started.unwrap_or(snapshot.created).max(booted());
        let containers = snapshot.containers.iter().map(|container| {
            let life = (born, now);
            let own = |event: &&Event| {
                let is_rare = matches!(event.what.kind(), "limit" | "lifecycle");
                event.container.as_ref() == Some(&container.name) && !is_rare
            };
            ContainerReport {
                events: events.iter().filter(own).cloned().collect(),
                log: last_lines(&logs.join(&container.name), container.restarts),
                ..of_container(&self.probes, container, life)
            }
        });
        let containers = containers.collect();
        let of_pod = |event: &Event| matches!(event.what.kind(), "limit" | "lifecycle");
        Report {
            made: now,
            namespace: snapshot.namespace.clone(),
            name: snapshot.name.clone(),
            uid: snapshot.uid.clone(),
            node: snapshot.node.clone(),
            phase: snapshot.phase.to_owned(),
            created: snapshot.created,
            started: snapshot.started,
            deleted: None,
            containers,
            connections: (!snapshot.host_network).then(|| connections(snapshot)).flatten(),
            events: events.into_iter().filter(of_pod).collect(),
        }
    }
}

fn of_container(
    probes: &Probes,
    container: &ContainerSnapshot,
    life: (Timestamp, Timestamp),
) -> ContainerReport {
    let (state, reason, message, since) = match &container.state {
        State::Waiting { reason, message } => ("waiting", reason.clone(), message.clone(), None),
        State::Running { started } => ("running", String::new(), String::new(), Some(*started)),
        State::Terminated(_) => ("terminated", String::new(), String::new(), None),
    };
    let usage = usage(container, life);
    let ooms = container.ooms.iter().sum();
    let mut report = ContainerReport {
        name: container.name.clone(),
        image: container.image.clone(),
        state: state.to_owned(),
        reason,
        message,
        since,
        last_exit: container.last_exit.clone(),
        restarts: container.restarts,
        oom_kills: ooms,
        nearest: usage.nearest(),
        // The pod's and the node's memory are not this limit's business.
        advice: usage.advice(container.ooms[0]),
        usage,
        ..ContainerReport::default()
    };
    if container.slot != NO_SLOT {
        count(probes, container, &mut report);
    }
    report
}

/// What the probes have counted.
fn count(probes: &Probes, container: &ContainerSnapshot, report: &mut ContainerReport) {
    let process = probes.process(container.slot);
    report.execs = process.execs;
    report.exits = process.exits.iter().chain(&process.signals).sum();
    let net = probes.net(container.slot);
    [report.received_bytes, report.transmitted_bytes] =
        Direction::ALL.map(|direction| net.bytes(direction));
    let tcp = probes.tcp(container.slot);
    report.accepts = tcp.accepts;
    let results = ConnectResult::ALL.into_iter().zip(tcp.connects);
    let results = results.filter(|(_, count)| *count > 0);
    report.connects = results.map(|(result, count)| (result.label().to_owned(), count)).collect();
    let volumes = container.volumes.iter().map(|(name, cell)| {
        let bytes = probes.file_bytes(*cell);
        VolumeReport {
            name: name.to_string(),
            read_bytes: bytes.read(),
            written_bytes: bytes.written,
        }
    });
    report.volumes = volumes.collect();
}

fn usage(container: &ContainerSnapshot, (born, now): (Timestamp, Timestamp)) -> Usage {
    let stats = container.cgroup.as_deref().map(stats::read).unwrap_or_default();
    let end = match &container.state {
        State::Terminated(exit) => exit.finished,
        _ => now,
    };
    let seconds = |microseconds: u64| microseconds as f64 / 1e6;
    let cores = |millicores: Option<u64>| millicores.map(|millicores| millicores as f64 / 1e3);
    let throttling = stats.throttling.unwrap_or_default();
    let pressure = [stats.cpu_pressure, stats.memory_pressure, stats.io_pressure];
    let limits = &container.limits;
    Usage {
        life_seconds: end.duration_since(born).as_secs_f64().max(0.0),
        cpu_seconds: stats.cpu.map(|cpu| seconds(cpu.usage_us)),
        cpu_limit: cores(limits.cpu_millicores),
        cpu_request: cores(container.requests.cpu_millicores),
        cpu_periods: throttling.periods,
        cpu_throttled_periods: throttling.throttled_periods,
        cpu_throttled_seconds: seconds(throttling.throttled_us),
        memory_bytes: stats.memory.map(|memory| memory.current).or(stats.resident),
        memory_peak: stats.memory.and_then(|memory| memory.peak),
        memory_cache: stats
            .memory
            .and_then(|memory| Some(memory.current.saturating_sub(memory.working_set?))),
        memory_request: container.requests.memory_bytes,
        memory_limit: limits.memory_bytes,
        pids: stats.pids.map(|pids| pids.current),
        pids_peak: stats.pids.and_then(|pids| pids.peak),
        pids_limit: limits.pids,
        pids_refused: stats.pids.map_or(0, |pids| pids.refused),
        io_read_bytes: stats.io.map(|io| io.read_bytes),
        io_written_bytes: stats.io.map(|io| io.written_bytes),
        io_limits: [limits.io[0], limits.io[1]],
        pressure_seconds: pressure.map(|one| one.map(|one| seconds(one.some_us))),
    }
}

/// The last lines of a container's output, of the last run that has any.
fn last_lines(directory: &Path, run: u32) -> Vec<String> {
    // A run that has just begun has none, and neither has a file that has.
    let runs = (run.saturating_sub(1)..=run).rev();
    let files = runs.flat_map(|run| logs::files(directory, run).into_iter().rev());
    let mut lines = files.map(|path| end_of(&path));
    lines.find(|lines| !lines.is_empty()).unwrap_or_default()
}

/// The last lines of a log.
fn end_of(path: &Path) -> Vec<String> {
    use std::io::{Read as _, Seek as _, SeekFrom};
    let Ok(mut file) = fs::File::open(path) else { return Vec::new() };
    let length = file.metadata().map_or(0, |metadata| metadata.len());
    let begin = length.saturating_sub(LOG_BYTES);
    let mut text = Vec::new();
    if file.seek(SeekFrom::Start(begin)).and_then(|_| file.read_to_end(&mut text)).is_err() {
        return Vec::new();
    }
    let text = String::from_utf8_lossy(&text);
    // The first line may be the rest of one. `TIME STREAM F|P MESSAGE`, see `pod/logs`.
    let lines = text.lines().skip(usize::from(begin > 0));
    let lines = lines.filter_map(|line| line.splitn(4, ' ').nth(3).map(str::to_owned));
    let mut lines: Vec<String> = lines.collect();
    lines.split_off(lines.len().saturating_sub(LOG_LINES))
}

/// The TCP sockets of the pod's network namespace, which all its processes see.
fn connections(pod: &PodSnapshot) -> Option<Connections> {
    let cgroups = pod.containers.iter().filter_map(|container| container.cgroup.as_deref());
    let pid = cgroups.flat_map(|cgroup| cgroup::processes(cgroup.path())).next()?;
    let tables = ["tcp", "tcp6"]
        .map(|table| fs::read_to_string(format!("/proc/{pid}/net/{table}")).unwrap_or_default());
    Some(count_sockets(tables.iter().flat_map(|table| table.lines())))
}

/// Reads lines such as `0: 0100007F:1F90 0200007F:D3C2 01 …`: numbers of the host's byte order.
fn count_sockets<'a>(lines: impl Iterator<Item = &'a str>) -> Connections {
    const ESTABLISHED: &str = "01";
    const LISTEN: &str = "0A";
    let mut found = Connections::default();
    let mut peers = std::collections::BTreeMap::<String, u64>::new();
    for line in lines {
        let mut words = line.split_whitespace().skip(1);
        let (Some(local), Some(peer), Some(state)) = (words.next(), words.next(), words.next())
        else {
            continue;
        };
        match state {
            ESTABLISHED => {
                found.established += 1;
                if let Some(peer) = socket_address(peer) {
                    *peers.entry(peer).or_default() += 1;
                }
            }
            LISTEN => {
                let port = local.rsplit(':').next();
                let port = port.and_then(|port| u16::from_str_radix(port, 16).ok());
                found.listening.extend(port);
            }
            _ => {}
        }
    }
    found.listening.sort_unstable();
    found.listening.dedup();
    found.peers = peers.into_iter().collect();
    found.peers.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    found.peers.truncate(PEERS);
    found
}

/// An address as those tables have it.
fn socket_address(text: &str) -> Option<String> {
    let (address, port) = text.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let mut bytes = Vec::new();
    for at in (0..address.len()).step_by(8) {
        let word = u32::from_str_radix(address.get(at..at + 8)?, 16).ok()?;
        bytes.extend(word.to_ne_bytes());
    }
    let address: std::net::IpAddr = if let Ok(four) = <[u8; 4]>::try_from(&*bytes) {
        four.into()
    } else {
        std::net::Ipv6Addr::from(<[u8; 16]>::try_from(&*bytes).ok()?).to_canonical()
    };
    Some(std::net::SocketAddr::new(address, port).to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sockets_are_counted_by_peer() {
        let text = "\
  sl  local_address rem_address   st tx_queue rx_queue
   0: 00000000:1F90 00000000:0000 0A 00000000:00000000
   1: 0200000A:1F90 0100000A:9C40 01 00000000:00000000
   2: 0200000A:9C42 0300000A:0050 01 00000000:00000000
   3: 0200000A:9C44 0300000A:0050 01 00000000:00000000
   4: 0200000A:9C46 0300000A:0050 06 00000000:00000000
   5: 0000000000000000FFFF00000200000A:9C42 0000000000000000FFFF00000300000A:0050 01 0:0";
        let found = count_sockets(text.lines());
        assert_eq!(found.established, 4);
        assert_eq!(found.listening, [8080]);
        let peers = [("10.0.0.3:80".to_owned(), 3), ("10.0.0.1:40000".to_owned(), 1)];
        assert_eq!(found.peers, peers);
    }

    #[test]
    fn the_last_lines_are_those_of_the_log() {
        let place = tempfile::tempdir().unwrap();
        let line = |number: u32| format!("2026-01-01T00:00:00.000000000Z stdout F line {number}\n");
        fs::write(place.path().join("0.log"), (0..5000).map(line).collect::<String>()).unwrap();
        let lines = last_lines(place.path(), 0);
        assert_eq!((lines.len(), &*lines[0], &*lines[9]), (10, "line 4990", "line 4999"));
        // The next run has said nothing yet.
        fs::write(place.path().join("1.log"), "").unwrap();
        assert_eq!(last_lines(place.path(), 1), lines);
        assert!(last_lines(place.path(), 2).is_empty());
    }
}
