//! A node with pods that have every metric, for tests.

use std::{collections::BTreeMap, path::PathBuf};

use jiff::Timestamp;
use pod_ebpf::{file::FileStats, net::NetStats, process::ProcessStats, tcp::TcpStats};

use super::{
    Build,
    own::Own,
    reading::{Container, Pod, Reading, Scrapes},
};
use crate::{
    cgroup::{
        Limits,
        stats::{Cpu, Io, Memory, MemoryEvents, Pids, Pressure, Stats, Throttling},
    },
    image::Totals as ImageTotals,
    manifest::demand::{CPU, Totals},
    node::{Completed, ContainerSnapshot, Exit, Occupancy, PodSnapshot, State},
    pod::Adopted,
    probes::{MapFill, Origin, ProbeStatus, ProgramCost},
};

/// A node with `pods` pods of two containers: `app`, which runs, and `job`, which has ended.
pub(super) fn reading(pods: usize) -> Reading {
    let probe = |probe: &'static str, mode: &'static str| ProbeStatus {
        probe: probe.into(),
        mode: mode.into(),
        reason: String::new(),
    };
    Reading {
        pods: (0..pods).map(pod).collect(),
        completed: vec![("default".to_owned(), Completed { pods: 2, ..Completed::default() })],
        images: ImageTotals {
            images: 3,
            bytes: 4096,
            pulled: 2,
            failed: 1,
            ..ImageTotals::default()
        },
        probes: vec![probe("exec", "tracepoint"), probe("file_write", "syscall")],
        origin: Origin::New,
        layout: "1".to_owned(),
        adopted: BTreeMap::from([(Adopted::Kept, 2)]),
        costs: vec![ProgramCost { program: "exec".to_owned(), runs: 3, seconds: 0.25, missed: 0 }],
        maps: vec![MapFill { map: "SLOTS", entries: 2, capacity: 2048 }],
        lost: vec![("event", 0)],
        build: Build { version: "0.1.0", revision: "abc", rustc: "1.98.0" },
        node: node(),
        own: Own { max_fds: Some(1024), ..Own::default() },
        scrapes: Scrapes { count: 1, last: Some(std::time::Duration::from_millis(3)), bytes: 9 },
    }
}

fn node() -> super::reading::Node {
    let mut totals = Totals::default();
    totals[CPU] = 1500;
    let waiting = [("cpu".to_owned(), 1)].into();
    super::reading::Node {
        occupancy: Occupancy {
            capacity: totals,
            allocatable: totals,
            requested: Totals::default(),
            waiting,
        },
        disruptions: vec![("Preempted", 1)],
        is_full: false,
        oom_scores_refused: 0,
        connection_limit: 4096,
    }
}

fn pod(index: usize) -> Pod {
    let at = Timestamp::UNIX_EPOCH;
    let exit = Exit {
        code: 137,
        signal: Some(9),
        reason: "OOMKilled".to_owned(),
        message: String::new(),
        started: at,
        finished: at,
    };
    let about = PodSnapshot {
        namespace: "default".to_owned(),
        name: format!("web-{index}"),
        uid: format!("8f2e5a52-{index:04}"),
        ip: Some("10.88.0.2".to_owned()),
        node: "node".to_owned(),
        host_network: false,
        phase: "Running",
        qos_class: "Burstable",
        ready: true,
        created: at,
        started: Some(at),
        observed_from: at,
        containers: Vec::new(),
    };
    let running = container("app", State::Running { started: at }, Some(exit.clone()));
    let ended = container("job", State::Terminated(exit), None);
    let unenforced = ["cpu", "memory", "pids", "io", "hugetlb"].map(str::to_owned).to_vec();
    Pod { about, containers: vec![running, ended], unenforced, refused_connections: 0 }
}

fn container(name: &str, state: State, last_exit: Option<Exit>) -> Container {
    let limits = Limits {
        cpu_millicores: Some(250),
        memory_bytes: Some(1 << 20),
        pids: Some(64),
        io: [Some(1 << 20); 4],
        ..Limits::default()
    };
    let about = ContainerSnapshot {
        name: name.to_owned(),
        image: "dir:/images/\"web\"".to_owned(),
        image_id: "sha256:1".to_owned(),
        container_id: "c1".to_owned(),
        state,
        last_exit,
        restarts: 3,
        slot: 1,
        cgroup: Some(PathBuf::from("/nonexistent")),
        volumes: Vec::new(),
        limits,
        requests: limits,
        ooms: [1, 0, 0],
    };
    let mut process = ProcessStats { execs: 5, forks: 4, threads: 3, ..ProcessStats::ZERO };
    process.exits[2] = 7;
    process.signals[9] = 1;
    let mut tcp = TcpStats { accepts: 2, ..TcpStats::ZERO };
    tcp.connects[0] = 3;
    tcp.connect_latency.sum_ns = 5_000_000;
    tcp.connect_latency.buckets[9] = 2;
    tcp.connect_latency.buckets[27] = 1;
    tcp.open = [2, 1, 0];
    tcp.closes[0] = 2;
    tcp.rtt.buckets[12] = 5;
    tcp.min_rtt.buckets[11] = 2;
    tcp.retransmits[0] = 4;
    tcp.timeouts[0] = 1;
    tcp.resets = [1, 0];
    let file = FileStats { read_bytes: 1000, reads: 1, written_bytes: 4096, writes: 1 };
    let files = ["rootfs", "data", "other"].map(|volume| (volume.to_owned(), file));
    Container {
        about,
        process,
        net: NetStats { bytes: [10, 20], packets: [1, 2], segments: [3, 4] },
        tcp,
        files: files.to_vec(),
        cgroup: cgroup(),
    }
}

pub(super) fn cgroup() -> Stats {
    let pressure = Some(Pressure { some_us: 1_500_000, full_us: Some(500_000) });
    Stats {
        cpu: Some(Cpu { usage_us: 3_500_000, user_us: 2_500_000, system_us: 1_000_000 }),
        throttling: Some(Throttling { periods: 10, throttled_periods: 4, throttled_us: 250_000 }),
        memory: Some(Memory {
            current: 5000,
            peak: Some(6000),
            swap: Some(0),
            kernel: Some(10),
            working_set: Some(4000),
            events: MemoryEvents { oom_kill: 1, ..MemoryEvents::default() },
            ..Memory::default()
        }),
        resident: None,
        pids: Some(Pids { current: 2, peak: Some(3), refused: 0 }),
        io: Some(Io { read_bytes: 1, written_bytes: 2, reads: 3, writes: 4 }),
        cpu_pressure: pressure,
        memory_pressure: pressure,
        io_pressure: pressure,
    }
}
