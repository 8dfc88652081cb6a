//! An idle container's cgroup is not all read at each scrape, and nobody sees a difference.

use std::{fs, net::UdpSocket, path::Path, thread, time::Duration};

use pod_tests::{Daemon, Metrics, eventually, manifest::pod, seconds};

/// Scrapes in this interval, after which an idle container is known for one.
const SCRAPES: usize = 3;
const INTERVAL: Duration = Duration::from_secs(2);

const LABELS: [(&str, &str); 2] = [("pod", "idle"), ("container", "app")];

/// What a page says of a container's cgroup: name, a label beside its own, file, key, and by how much
/// to divide.
type Row = (&'static str, Option<(&'static str, &'static str)>, &'static str, &'static str, f64);

const ROWS: [Row; 9] = [
    ("podscope_cpu_seconds_total", Some(("mode", "user")), "cpu.stat", "user_usec", 1e6),
    ("podscope_cpu_seconds_total", Some(("mode", "system")), "cpu.stat", "system_usec", 1e6),
    ("podscope_memory_current_bytes", None, "memory.current", "", 1.0),
    ("podscope_memory_anonymous_bytes", None, "memory.stat", "anon", 1.0),
    ("podscope_memory_file_bytes", None, "memory.stat", "file", 1.0),
    ("podscope_memory_kernel_bytes", None, "memory.stat", "kernel", 1.0),
    ("podscope_pids_current", None, "pids.current", "", 1.0),
    ("podscope_pressure_seconds_total", Some(("resource", "cpu")), "cpu.pressure", "some", 1e6),
    ("podscope_pressure_seconds_total", Some(("resource", "io")), "io.pressure", "some", 1e6),
];

/// What the files of a cgroup say; those that are not there are left out.
fn files(cgroup: &Path) -> Vec<(usize, f64)> {
    let rows = ROWS.iter().enumerate().filter_map(|(index, (_, _, file, key, unit))| {
        let text = fs::read_to_string(cgroup.join(file)).ok()?;
        let line = text.lines().find_map(|line| line.strip_prefix(key))?;
        let value = line.rsplit_once("total=").map_or(line, |(_, total)| total);
        Some((index, value.trim().parse::<f64>().ok()? / unit))
    });
    rows.collect()
}

/// What a page says of the same.
fn shown(metrics: &Metrics, there: &[(usize, f64)]) -> Vec<(usize, f64)> {
    let value = |(index, _): &(usize, f64)| {
        let (name, label, ..) = ROWS[*index];
        let mut labels = LABELS.to_vec();
        labels.extend(label);
        if name == "podscope_pressure_seconds_total" {
            labels.push(("kind", "some"));
        }
        (*index, metrics.one(name, &labels))
    };
    there.iter().map(value).collect()
}

/// Scrapes until the files say the same before and after, and the page as well.
fn agree(daemon: &Daemon, cgroup: &Path, when: &str) {
    let mut scrapes = 0;
    eventually(when, seconds(30), || {
        let before = files(cgroup);
        let metrics = daemon.metrics();
        if before != files(cgroup) {
            return None;
        }
        scrapes += 1;
        let page = shown(&metrics, &before);
        // The kernel adds some of what it counts up a moment later.
        (page == before).then_some(()).or_else(|| {
            println!("{when}: {page:?} instead of {before:?}");
            None
        })
    });
    // Not only since everything is read anew once in a while.
    assert!(scrapes < 8, "{when}: after {scrapes} scrapes");
}

/// Scrapes until idle pods are known for it.
fn rest(daemon: &Daemon) {
    for _ in 0..SCRAPES {
        drop(daemon.metrics());
        thread::sleep(INTERVAL);
    }
}

#[test]
fn what_an_idle_container_has_is_what_its_cgroup_says() {
    let daemon = Daemon::start(&[]);
    daemon.run(pod("idle").container("app", "pause"));
    daemon.wait_ready("idle");
    let idle = daemon.pod("idle");
    let cgroup = daemon.cgroup(&idle, "app");
    let rest = || rest(&daemon);

    rest();
    agree(&daemon, &cgroup, "an idle container");
    // Somebody works in it, of whom nothing is left but what was written.
    rest();
    let work = ["exec", "idle", "--", "/bin/workload", "write", "/file", "8388608"];
    daemon.podctl(&work).success();
    agree(&daemon, &cgroup, "after work");
    // What it had in the page cache goes, and nobody in the container does anything.
    rest();
    let charged = || fs::read_to_string(cgroup.join("memory.current")).ok();
    let before = charged();
    let file = format!("/proc/{}/root/file", daemon.pid_of(&idle, "app"));
    fs::remove_file(file).unwrap();
    if before.is_some() {
        eventually("the memory is given back", seconds(10), || (charged() != before).then_some(()));
    }
    agree(&daemon, &cgroup, "after somebody else's work");
    daemon.stop();
}

#[test]
fn what_comes_to_an_idle_pod_is_seen_at_the_next_scrape() {
    const DATAGRAMS: u16 = 10;
    let daemon = Daemon::start(&[]);
    daemon.run(pod("idle").container("app", "pause"));
    daemon.wait_ready("idle");
    let address = daemon.pod("idle")["status"]["podIP"].as_str().unwrap().to_owned();
    let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
    // There is no socket that it would be counted for.
    let unheard = || {
        let labels = [("pod", "idle"), ("direction", "receive")];
        daemon.metrics().one("podscope_reconcile_difference_network_packets", &labels)
    };
    // The first one is asked for the pod's hardware address.
    socket.send_to(b"x", (address.as_str(), 9)).unwrap();
    rest(&daemon);
    let before = unheard();
    for _ in 0..DATAGRAMS {
        socket.send_to(b"x", (address.as_str(), 9)).unwrap();
    }
    let after = unheard();
    assert!(after >= before + f64::from(DATAGRAMS), "{before} {after}");
    daemon.stop();
}
