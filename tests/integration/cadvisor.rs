//! /metrics/cadvisor says what the kernel's own files say, with cAdvisor's labels.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use nix::unistd::Pid;
use pod_tests::{Daemon, Metrics, eventually, manifest::pod, seconds, skip, state};
use serde_json::{Value, json};

const PAGE: &str = "/metrics/cadvisor";

/// Whether a number only grows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Counter,
    Gauge,
}
use Kind::{Counter, Gauge};

/// Metrics that are a number in a file of the cgroup: name, labels beside those of the cgroup, file,
/// key in the file (if it has keys), and by how much to divide.
type Row =
    (&'static str, Kind, &'static [(&'static str, &'static str)], &'static str, &'static str, f64);

const MINOR: &[(&str, &str)] = &[("failure_type", "pgfault"), ("scope", "container")];
const MAJOR: &[(&str, &str)] = &[("failure_type", "pgmajfault"), ("scope", "hierarchy")];
const TOTAL: &[(&str, &str)] = &[("cpu", "total")];
const CPU: &str = "cpu.stat";
const MEMORY: &str = "memory.stat";

const ROWS: [Row; 24] = [
    ("container_cpu_usage_seconds_total", Counter, TOTAL, CPU, "usage_usec", 1e6),
    ("container_cpu_user_seconds_total", Counter, &[], CPU, "user_usec", 1e6),
    ("container_cpu_system_seconds_total", Counter, &[], CPU, "system_usec", 1e6),
    ("container_cpu_cfs_periods_total", Counter, &[], CPU, "nr_periods", 1.0),
    ("container_cpu_cfs_throttled_periods_total", Counter, &[], CPU, "nr_throttled", 1.0),
    ("container_cpu_cfs_throttled_seconds_total", Counter, &[], CPU, "throttled_usec", 1e6),
    ("container_memory_usage_bytes", Gauge, &[], "memory.current", "", 1.0),
    ("container_memory_max_usage_bytes", Gauge, &[], "memory.peak", "", 1.0),
    ("container_memory_swap", Gauge, &[], "memory.swap.current", "", 1.0),
    ("container_memory_rss", Gauge, &[], MEMORY, "anon", 1.0),
    ("container_memory_cache", Gauge, &[], MEMORY, "file", 1.0),
    ("container_memory_mapped_file", Gauge, &[], MEMORY, "file_mapped", 1.0),
    ("container_memory_kernel_usage", Gauge, &[], MEMORY, "kernel", 1.0),
    ("container_memory_failures_total", Counter, MINOR, MEMORY, "pgfault", 1.0),
    ("container_memory_failures_total", Counter, MAJOR, MEMORY, "pgmajfault", 1.0),
    ("container_memory_failcnt", Counter, &[], "memory.events", "max", 1.0),
    ("container_spec_memory_limit_bytes", Gauge, &[], "memory.max", "", 1.0),
    ("container_spec_memory_reservation_limit_bytes", Gauge, &[], "memory.min", "", 1.0),
    ("container_spec_memory_swap_limit_bytes", Gauge, &[], "memory.swap.max", "", 1.0),
    ("container_threads", Gauge, &[], "pids.current", "", 1.0),
    ("container_threads_max", Gauge, &[], "pids.max", "", 1.0),
    ("container_pressure_cpu_waiting_seconds_total", Counter, &[], "cpu.pressure", "some", 1e6),
    (
        "container_pressure_memory_stalled_seconds_total",
        Counter,
        &[],
        "memory.pressure",
        "full",
        1e6,
    ),
    ("container_pressure_io_waiting_seconds_total", Counter, &[], "io.pressure", "some", 1e6),
];

/// The number in a file, if there is one. 0 stands for `max`.
fn number(file: &Path, key: &str) -> Option<f64> {
    let text = fs::read_to_string(file).ok()?;
    let value = if key.is_empty() {
        text.trim()
    } else {
        let line = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' '))?;
        line.rsplit_once("total=").map_or(line, |(_, total)| total)
    };
    if value == "max" { Some(0.0) } else { value.parse().ok() }
}

/// What the files of a cgroup say now, by row.
fn numbers(cgroup: &Path) -> Vec<Option<f64>> {
    // Only with a limit, as cAdvisor has it.
    let is_limited =
        fs::read_to_string(cgroup.join("cpu.max")).is_ok_and(|limit| !limit.starts_with("max"));
    let rows = ROWS.iter().map(|(name, _, _, file, key, unit)| {
        let shown = is_limited || !name.contains("_cfs_");
        shown.then_some(number(&cgroup.join(file), key)? / unit)
    });
    rows.collect()
}

/// Received and sent bytes and packets of the interface `eth0`, as `pid` sees it.
fn traffic(pid: Pid) -> [f64; 4] {
    let text = fs::read_to_string(format!("/proc/{pid}/net/dev")).unwrap();
    let line = text.lines().find_map(|line| line.trim_start().strip_prefix("eth0:")).unwrap();
    let numbers: Vec<f64> = line.split_whitespace().map(|word| word.parse().unwrap()).collect();
    [numbers[0], numbers[1], numbers[8], numbers[9]]
}

/// Checks that a page agrees with what the files said `before` and `after`, and says how many of its
/// numbers had no time to change.
fn compare(
    metrics: &Metrics,
    id: &str,
    before: &[Option<f64>],
    after: &[Option<f64>],
) -> (usize, usize) {
    let (mut exact, mut all) = (0, 0);
    for (row, (before, after)) in ROWS.iter().zip(before.iter().zip(after)) {
        let (name, kind, labels, ..) = row;
        let mut wanted = vec![("id", id)];
        wanted.extend_from_slice(labels);
        let shown = metrics.find(name, &wanted);
        let (Some(before), Some(after)) = (before, after) else {
            assert!(
                before.is_none() && after.is_none() && shown.is_none(),
                "{name} of {id}: {shown:?}"
            );
            continue;
        };
        let shown = shown.unwrap_or_else(|| panic!("no {name} of {id}"));
        all += 1;
        if *kind == Counter {
            assert!(
                (*before..=*after).contains(&shown),
                "{name} of {id}: {before} <= {shown} <= {after}"
            );
        }
        // Memory is charged and given back by the kernel for itself, too: both reads the same does
        // not mean that nothing happened between them.
        if before == after && shown == *before {
            exact += 1;
        }
    }
    (exact, all)
}

fn below_the_mount(cgroup: &Path) -> String {
    format!("/{}", cgroup.strip_prefix(state::cgroup_mount()).unwrap().display())
}

fn id_of(pod: &Value) -> &str {
    let id = pod["status"]["containerStatuses"][0]["containerID"].as_str().unwrap();
    id.strip_prefix("podscope://").unwrap()
}

#[test]
fn cadvisors_numbers_are_the_kernels() {
    let daemon = Daemon::start(&[]);
    let there = fs::read_to_string(state::cgroup_mount().join("cgroup.controllers"));
    let there = there.unwrap_or_default();
    let has = |controller: &str| there.split_whitespace().any(|name| name == controller);
    let limits = if has("cpu") && has("memory") && has("pids") {
        let limits = json!({"cpu": "500m", "memory": "64Mi", "podscope.dev/pids": "40"});
        json!({"resources": {"limits": limits}})
    } else {
        println!("of {there:?} only: all metrics of other controllers must be absent");
        json!({})
    };
    let steps = "spawn 20 , threads 3 , serve 7000";
    daemon.run(pod("server").container_with("app", steps, limits).container("idle", "pause"));
    daemon.wait_logged("server", "container=app", "listening");
    let server = daemon.pod("server");
    let address = server["status"]["podIP"].as_str().unwrap();
    daemon.run(pod("client").container("app", &format!("send {address}:7000 1000000")));
    daemon.wait_logged("server", "container=app", "received 1000000");
    daemon.run(pod("host").with("hostNetwork", true).container("app", "pause"));
    daemon.wait_ready("host");

    let names = ["", "_infra", "app", "idle"];
    let cgroups: BTreeMap<String, PathBuf> = names
        .map(|name| daemon.cgroup(&server, name))
        .map(|path| {
            // Of the pod itself, the path ends in a slash.
            let path: PathBuf = path.components().collect();
            (below_the_mount(&path), path)
        })
        .into();
    let pid = daemon.pid_of(&server, "app");
    let read = || -> Vec<_> { cgroups.values().map(|path| numbers(path)).collect() };
    let network = |metrics: &Metrics| {
        let labels = [("pod", "server"), ("interface", "eth0"), ("container", "")];
        [
            ("receive", "bytes"),
            ("receive", "packets"),
            ("transmit", "bytes"),
            ("transmit", "packets"),
        ]
        .map(|(direction, what)| {
            metrics.one(&format!("container_network_{direction}_{what}_total"), &labels)
        })
    };
    // A pod that waits is quiet, so soon everything is the same before and after a scrape.
    let metrics = eventually("all numbers are exact", seconds(30), || {
        let (before, sent_before) = (read(), traffic(pid));
        let metrics = daemon.scrape(PAGE);
        let (sent_after, after) = (traffic(pid), read());
        let (mut exact, mut all) = (0, 0);
        for ((id, before), after) in cgroups.keys().zip(&before).zip(&after) {
            let (same, compared) = compare(&metrics, id, before, after);
            (exact, all) = (exact + same, all + compared);
        }
        let shown = network(&metrics);
        for (shown, (before, after)) in shown.iter().zip(sent_before.iter().zip(&sent_after)) {
            assert!((before..=after).contains(&shown), "{before} <= {shown} <= {after}");
        }
        println!("{exact} of {all} numbers of cgroups are exact");
        (exact == all && sent_before == sent_after).then_some(metrics)
    });

    let [received, packets, sent, _] = network(&metrics);
    assert!((1e6..1.1e6).contains(&received) && packets > 10.0 && sent < 1e5, "{received} {sent}");
    let app = [("pod", "server"), ("container", "app"), ("namespace", "default")];
    assert!(metrics.one("container_cpu_usage_seconds_total", &app) > 0.0);
    assert_eq!(metrics.one("container_processes", &app), 1.0);
    let series: Vec<_> = metrics.series("container_processes", &app).collect();
    let labels = &series[0].labels;
    assert_eq!(labels["id"], below_the_mount(&daemon.cgroup(&server, "app")));
    assert_eq!((&*labels["image"], &*labels["name"]), (&*daemon.image(), id_of(&server)));
    let cpus = fs::read_to_string("/proc/cpuinfo").unwrap();
    let cpus = cpus.lines().filter(|line| line.starts_with("processor")).count();
    if cpus > 0 {
        assert_eq!(metrics.one("machine_cpu_cores", &[]), cpus as f64);
    }

    // What kubernetes-mixin's queries tell containers from pods by.
    let usage = "container_cpu_usage_seconds_total";
    let of_server = |labels: &[(&str, &str)]| {
        let mut wanted = vec![("pod", "server")];
        wanted.extend_from_slice(labels);
        metrics.series(usage, &wanted).count()
    };
    assert_eq!(of_server(&[]), 4);
    assert_eq!(of_server(&[("container", "")]), 2);
    assert_eq!(of_server(&[("image", "")]), 1);
    let host = metrics.series("container_network_receive_bytes_total", &[("pod", "host")]).count();
    assert_eq!(host, 0, "the interfaces of the node are not the pod's");
    daemon.stop();
}

#[test]
fn what_a_disk_did_is_told_by_device() {
    let Some(disk) = state::disk() else { return skip("there is no disk for the tests alone") };
    let data = disk.join("cadvisor");
    let daemon = Daemon::start(&[&format!("--data-dir={}", data.display())]);
    let mount = json!({"volumeMounts": [{"name": "data", "mountPath": "/data"}]});
    let writer = pod("writer").volume("data", "emptyDir", json!({}));
    daemon.run(writer.container_with("app", "write-direct /data/file 16 , pause", mount));
    daemon.wait_logged("writer", "", "written in");
    let cgroup = daemon.cgroup(&daemon.pod("writer"), "app");
    let read = || fs::read_to_string(cgroup.join("io.stat"));
    if read().is_err() {
        return skip("cgroup v2 has no io controller here");
    }
    let (before, metrics) = eventually("the disk is quiet", seconds(30), || {
        let (before, metrics) = (read().unwrap(), daemon.scrape(PAGE));
        (before == read().unwrap()).then_some((before, metrics))
    });
    let labels = [("pod", "writer"), ("container", "app")];
    let mut devices = 0;
    for line in before.lines().filter(|line| line.contains("rbytes=")) {
        let (device, rest) = line.split_once(' ').unwrap();
        let (major, minor) = device.split_once(':').unwrap();
        let field = |key: &str| -> f64 {
            let value = rest.split(' ').find_map(|word| word.strip_prefix(key)?.strip_prefix('='));
            value.unwrap().parse().unwrap()
        };
        for (operation, key) in [("Read", "rbytes"), ("Write", "wbytes")] {
            let [pod, app] = labels;
            let labels = [pod, app, ("major", major), ("minor", minor), ("operation", operation)];
            let shown = metrics.one("container_blkio_device_usage_total", &labels);
            assert_eq!(shown, field(key), "{before}");
        }
        let link = fs::read_link(format!("/sys/dev/block/{device}")).unwrap();
        let name = format!("/dev/{}", link.file_name().unwrap().to_str().unwrap());
        let [pod, app] = labels;
        let labels = [pod, app, ("device", &*name)];
        for (metric, key) in [
            ("container_fs_reads_total", "rios"),
            ("container_fs_writes_total", "wios"),
            ("container_fs_reads_bytes_total", "rbytes"),
            ("container_fs_writes_bytes_total", "wbytes"),
        ] {
            assert_eq!(metrics.one(metric, &labels), field(key), "{metric} of {before}");
        }
        devices += 1;
    }
    assert!(devices > 0, "{before}");
    assert!(metrics.sum("container_fs_writes_bytes_total", &labels) >= f64::from(1 << 20));
    daemon.stop();
    fs::remove_dir_all(data).unwrap();
}

#[test]
fn counters_go_on_under_the_next_runs_name() {
    let daemon = Daemon::start(&[]);
    let app = [("pod", "again"), ("container", "app")];
    let usage = "container_cpu_usage_seconds_total";
    let steps = "spawn 3 , sleep-ms 200 , exit 3";
    daemon.run(pod("again").with("restartPolicy", "Always").container("app", steps));
    // Of the last run at a time, and of nothing before the first.
    let mut seen: Vec<(String, f64)> = Vec::new();
    eventually("three runs", seconds(40), || {
        let metrics = daemon.scrape(PAGE);
        let series: Vec<_> = metrics.series(usage, &app).collect();
        assert!(series.len() < 2, "{series:?}");
        let now = series.first()?;
        let name = &now.labels["name"];
        if let Some((last, value)) = seen.last_mut().filter(|(last, _)| last == name) {
            assert!(now.value >= *value, "{last}: {value}, then {}", now.value);
            *value = now.value;
        } else {
            let before = seen.last().map_or(0.0, |(_, value)| *value);
            assert!(now.value >= before, "{before}, then {} of {name}", now.value);
            seen.push((name.clone(), now.value));
        }
        (seen.len() >= 3).then_some(())
    });

    daemon.run(pod("once").container("app", "spawn 3 , exit 0"));
    let over = daemon.wait_over("once");
    let state = &over["status"]["containerStatuses"][0]["state"]["terminated"];
    let time = |field: &str| -> f64 {
        let time: jiff::Timestamp = state[field].as_str().unwrap().parse().unwrap();
        time.as_second() as f64
    };
    let metrics = daemon.scrape(PAGE);
    let once = [("pod", "once"), ("container", "app")];
    assert!(metrics.one(usage, &once) > 0.0, "what ended can still be read");
    assert_eq!(metrics.one("container_start_time_seconds", &once), time("startedAt"));
    assert_eq!(metrics.one("container_last_seen", &once), time("finishedAt"));
    assert_eq!(metrics.one("container_processes", &once), 0.0);
    daemon.delete("once");
    assert_eq!(daemon.scrape(PAGE).series(usage, &once).count(), 0);
    daemon.stop();
}
