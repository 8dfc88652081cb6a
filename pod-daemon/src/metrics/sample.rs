//! A node with pods that have every metric, for tests.

use std::{cell::Cell, collections::BTreeMap, sync::Arc};

use jiff::Timestamp;
use pod_ebpf::{
    block::{BlockOperation, BlockStats},
    dns::{DnsStats, OUTCOMES},
    file::{FILLED_BY, FileBytes, Operation, OperationStats},
    net::{NetStats, Traffic, UdpTraffic},
    process::ProcessStats,
    runqueue::RunQueueStats,
    tcp::TcpStats,
};

use super::{
    Build,
    archive::{Held, Others, Sums},
    base::Written,
    capacity::Capacity,
    cost::Attributed,
    exemplar::{Exemplar, Observed},
    family::POD_LABELS,
    file::Files,
    looks::Look,
    netns::Netns,
    other::Other,
    own::Own,
    reading::{About, Container, Pod, Reading, Scrapes},
    reconcile,
    trace::{Trace, tests::EXAMPLE},
};
use crate::{
    cgroup::{
        Limits,
        stats::{Cpu, Io, Memory, MemoryEvents, Pids, Pressure, Stats, Throttling},
    },
    image::{ImageSize, LayerSize, Sizes, Totals as ImageTotals},
    manifest::demand::{CPU, Totals},
    node::{ContainerSnapshot, DiskUsage, Exit, Occupancy, PodSnapshot, State},
    pod::Adopted,
    probes::{Drops, Governed, GovernedProbe, MapFill, Origin, ProbeStatus, ProgramCost},
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
        held: Vec::new(),
        folded_early: 0,
        completed: completed().into(),
        others: Others { ceiling: 1000, ..Others::default() },
        other: Other::default(),
        series: Cell::default(),
        images: ImageTotals {
            sizes: images().into(),
            pulled: 2,
            failed: 1,
            ..ImageTotals::default()
        },
        probes: vec![probe("exec", "tracepoint"), probe("file_write", "syscall")],
        governed: Governed {
            budget: 0.01,
            probes: vec![GovernedProbe {
                probe: "runqueue",
                share: Some(0.001),
                switched_off: false,
            }],
        },
        origin: Origin::New,
        layout: "1".to_owned(),
        adopted: BTreeMap::from([(Adopted::Kept, 2)]),
        costs: vec![ProgramCost { program: "exec".to_owned(), runs: 3, seconds: 0.25, missed: 0 }],
        attributed: Attributed { deleted: 0.5, rest: 1.5, other: 0.0 },
        maps: vec![MapFill { map: "SLOTS", entries: 2, capacity: 2048 }],
        lost: vec![("event", 0)],
        build: Build { version: "0.1.0", revision: "abc", rustc: "1.98.0" },
        node: node(),
        own: Own { max_fds: Some(1024), ..Own::default() },
        scrapes: Scrapes { count: 1, last: Some(std::time::Duration::from_millis(3)) },
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

pub(super) fn pod(index: usize) -> Pod {
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
        cgroup: None,
        volumes: Vec::new(),
        volume_count: 2,
        containers: vec![
            container("app", State::Running { started: at }, Some(exit.clone())),
            container("job", State::Terminated(exit), None),
        ],
    };
    let about = Arc::new(about);
    let unenforced = ["cpu", "memory", "pids", "io", "hugetlb"].map(str::to_owned).to_vec();
    let full = Capacity {
        bytes: 4096,
        used_bytes: 4096,
        available_bytes: 0,
        inodes: Some(2),
        inodes_used: 2,
    };
    let volumes = ["rootfs", "data"].map(|volume| (volume.to_owned(), full)).to_vec();
    let containers = About::each(&about).map(counted).collect();
    let netns = Some(Netns::sample());
    let labels = Written::names(&POD_LABELS, &[&about.namespace, &about.name]);
    Pod {
        about,
        labels,
        is_other: false,
        containers,
        unenforced,
        netns,
        look: Look::default(),
        is_idle: false,
        refused_connections: 0,
        volumes,
        probe_seconds: Some(0.25),
        disk: Arc::default(),
        deleted: None,
        traffic: Some(reconcile::Traffic { bytes: [7200, 20_002], packets: [72, 201] }),
    }
}

/// One image, of a single layer.
fn images() -> Sizes {
    let (reference, id) = ("docker.io/library/web:v1".to_owned(), "sha256:1".to_owned());
    let image = ImageSize { reference, id, bytes: 4096, unique_bytes: 4096 };
    let layer = LayerSize { chain_id: "sha256:2".to_owned(), bytes: 4096 };
    Sizes { images: vec![image], layers: vec![layer], count: 1 }
}

/// Two such pods that are held no longer.
fn completed() -> Sums {
    let mut totals = Sums::default();
    for pod in [pod(0), pod(1)] {
        Held::of(&pod, &[]).add_to(&mut totals);
    }
    totals
}

fn container(name: &str, state: State, last_exit: Option<Exit>) -> ContainerSnapshot {
    let limits = Limits {
        cpu_millicores: Some(250),
        memory_bytes: Some(1 << 20),
        pids: Some(64),
        io: [Some(1 << 20); 4],
        ..Limits::default()
    };
    ContainerSnapshot {
        name: name.to_owned(),
        image: "dir:/images/\"web\"".to_owned(),
        image_id: "sha256:1".to_owned(),
        container_id: "c1".to_owned(),
        state,
        last_exit,
        restarts: 3,
        slot: 1,
        cgroup: None,
        volumes: Arc::default(),
        volume_count: 3,
        limits,
        requests: limits,
        ooms: [1, 0, 0],
        traceparent: None,
    }
}

/// What was counted for such a container.
fn counted(about: About) -> Container {
    let mut process = ProcessStats { execs: 5, forks: 4, threads: 3, ..ProcessStats::ZERO };
    process.exec_failures = [1; 7];
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
    let mut runqueue = RunQueueStats::ZERO;
    runqueue.wait_ns[1] = 1_000_000;
    runqueue.latency.sum_ns = 1_000_000;
    runqueue.latency.buckets[8] = 1;
    let mut requests = BlockOperation { bytes: 4096, errors: 1, ..BlockOperation::ZERO };
    requests.latency.buckets[5] = 1;
    let files = ["rootfs", "data", "other"].map(|volume| (volume.into(), files()));
    Container {
        labels: about.labels(),
        about,
        process,
        net: net(),
        dns: dns(),
        tcp,
        block: BlockStats { reads: requests, writes: requests },
        drops: Drops {
            of_sockets: [("socket_rcvbuff", 3)].into(),
            of_network: [("no_socket", 2)].into(),
        },
        runqueue,
        files: files.to_vec(),
        cgroup: cgroup(),
        disk: Some(DiskUsage { rootfs_bytes: 4096, log_bytes: 8192 }),
        first: Exemplar::counted(4711),
        victim: Exemplar::counted(4712),
        slowest_connect: Some(slowest(60_000_000_000)),
        slowest_query: Some(slowest(900_000)),
    }
}

fn files() -> Files {
    let mut once = OperationStats { errors: 1, ..OperationStats::ZERO };
    once.latency.sum_ns = 1000;
    once.latency.buckets[3] = 1;
    Files {
        bytes: FileBytes {
            read_from: [600, 100, 200, 100],
            written: 4096,
            filled_by: [4096; FILLED_BY],
        },
        operations: Operation::ALL.map(|operation| (operation, once)).to_vec(),
        slowest: Operation::ALL.map(|operation| (operation, slowest(1_900))).to_vec(),
    }
}

/// What a process did that is part of a trace.
fn slowest(nanoseconds: u64) -> Exemplar {
    Exemplar {
        pid: 4713,
        trace: Trace::parse(EXAMPLE.as_bytes()),
        observed: Some(Observed { nanoseconds, at: 0, time_ms: 1_700_000_000_012 }),
    }
}

/// Traffic of every kind.
fn net() -> NetStats {
    let mut net = NetStats::ZERO;
    for (index, traffic) in (1..).zip(&mut net.traffic) {
        *traffic = Traffic { bytes: 100 * index, packets: index, more_segments: 1 };
    }
    net.udp = [UdpTraffic { bytes: 100, datagrams: 1 }; 2];
    net
}

/// Answers of every kind, and one query that had none.
fn dns() -> DnsStats {
    let mut dns = DnsStats { queries: 6, answers: [1; OUTCOMES], ..DnsStats::ZERO };
    dns.duration.sum_ns = 5_000_000;
    dns.duration.buckets[12] = OUTCOMES as u64;
    dns
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
