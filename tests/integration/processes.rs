//! What processes do beside being started and ending: execs that fail, and waiting for a CPU.

use std::{
    collections::BTreeMap,
    fs, thread,
    time::{Duration, Instant},
};

use pod_tests::{
    Daemon, Metrics, eventually, in_vm,
    manifest::{Pod, pod},
    seconds, skip, state,
};
use serde_json::json;

/// Labels of the container `app` of a pod.
fn app(pod: &str) -> [(&str, &str); 3] {
    [("namespace", "default"), ("pod", pod), ("container", "app")]
}

/// The mode of a probe and the reason for it.
#[track_caller]
fn mode(metrics: &Metrics, probe: &str) -> (String, String) {
    let labels = [("probe", probe)];
    let found = metrics.series("podscope_probe_info", &labels).next().cloned();
    let mut labels = found.unwrap_or_else(|| panic!("no probe {probe}")).labels;
    (labels.remove("mode").unwrap_or_default(), labels.remove("reason").unwrap_or_default())
}

/// Failed execs of a pod by the error's name.
fn failures(metrics: &Metrics, pod: &str) -> BTreeMap<String, f64> {
    metrics
        .series("podscope_exec_failures_total", &app(pod))
        .map(|sample| (sample.labels["errno"].clone(), sample.value))
        .collect()
}

#[test]
fn failed_execs_are_counted_by_error() {
    let daemon = Daemon::start(&[]);
    println!("exec_failure: {:?}", mode(&daemon.metrics(), "exec_failure"));
    let ways = ["missing", "missing-at", "denied", "format", "interpreter", "long", "busy", "loop"];
    let steps: Vec<String> =
        (1..).zip(ways).map(|(n, way)| format!("fail-to-exec {way} {n}")).collect();
    let steps = format!("{} , spawn 2 , exit 0", steps.join(" , "));
    let output = daemon.output_of(pod("failing").container("app", &steps), "failing");

    // What the program was told is what was counted.
    let classes = ["ENOENT", "EACCES", "ENOEXEC", "E2BIG", "ENOMEM", "ETXTBSY"];
    let mut told: BTreeMap<String, f64> = BTreeMap::new();
    for line in output.lines() {
        let mut words = line.split(' ').skip(1);
        let (name, count) = (words.next().unwrap(), words.next().unwrap());
        let class = if classes.contains(&name) { name } else { "other" };
        *told.entry(class.to_owned()).or_default() += count.parse::<f64>().unwrap();
    }
    println!("{told:?}");
    assert_eq!(told.values().sum::<f64>(), 36.0, "{output}");
    assert_eq!(told["ENOENT"], 8.0);
    assert_eq!(told["other"], 8.0);
    let metrics = daemon.metrics();
    if let Some(missed) = metrics.missed() {
        daemon.stop();
        return skip(&missed);
    }
    assert_eq!(failures(&metrics, "failing"), told);
    assert_eq!(metrics.one("podscope_exec_total", &app("failing")), 3.0);
    daemon.stop();
}

#[test]
fn a_command_that_is_not_there_is_a_failed_exec() {
    let daemon = Daemon::start(&[]);
    let absent = json!({"command": ["/bin/absent"]});
    daemon.run(pod("absent").container_with("app", "", absent));
    daemon.wait_over("absent");
    let expected = BTreeMap::from([("ENOENT".to_owned(), 1.0)]);
    assert_eq!(failures(&daemon.metrics(), "absent"), expected);
    assert_eq!(daemon.metrics().one("podscope_exec_total", &app("absent")), 0.0);
    daemon.stop();
}

#[test]
fn failed_execs_of_short_pods_are_all_counted() {
    let pods = if in_vm() { 20 } else { 100 };
    let daemon = Daemon::start(&[]);
    for number in 0..pods {
        daemon.run(pod(&format!("short-{number}")).container("app", "exec-nothing 3 , exit 0"));
    }
    for number in 0..pods {
        daemon.wait_over(&format!("short-{number}"));
    }
    let metrics = daemon.metrics();
    if let Some(missed) = metrics.missed() {
        daemon.stop();
        return skip(&missed);
    }
    let expected = BTreeMap::from([("ENOENT".to_owned(), 3.0)]);
    for number in 0..pods {
        let name = format!("short-{number}");
        assert_eq!(failures(&metrics, &name), expected, "{name}");
    }
    daemon.stop();
}

/// A daemon that counts waits for a CPU, if it can here.
fn start_with_runqueue() -> Option<Daemon> {
    let daemon = Daemon::start(&["--probe-runqueue=on", "--probe-budget=0"]);
    let (mode, reason) = mode(&daemon.metrics(), "runqueue");
    if mode == "off" {
        daemon.stop();
        skip(&format!("runqueue is off: {reason}"));
        return None;
    }
    Some(daemon)
}

/// Seconds that the threads of a container waited for a CPU, as the kernel adds them up.
fn scheduled(daemon: &Daemon, name: &str) -> f64 {
    let cgroup = daemon.cgroup(&daemon.pod(name), "app").join("cgroup.procs");
    let wait = |pid: i32| {
        let text = fs::read_to_string(format!("/proc/{pid}/schedstat")).unwrap();
        text.split_whitespace().nth(1).unwrap().parse::<f64>().unwrap() / 1e9
    };
    state::pids(&cgroup).into_iter().map(wait).sum()
}

/// Seconds that they waited by who had the CPU, and by the histogram.
fn waited(metrics: &Metrics, name: &str) -> (BTreeMap<String, f64>, f64) {
    let by = metrics
        .series("podscope_runqueue_wait_seconds_total", &app(name))
        .map(|sample| (sample.labels["by"].clone(), sample.value))
        .collect();
    (by, metrics.one("podscope_runqueue_latency_seconds_sum", &app(name)))
}

/// Waits until the children of a pod's `burn` sleep, and returns what they waited: which is what
/// the kernel says, to a microsecond.
#[track_caller]
fn settled(daemon: &Daemon, name: &str) -> BTreeMap<String, f64> {
    daemon.wait_logged(name, "", "burned");
    eventually(&format!("the waits of {name} are the kernel's"), seconds(10), || {
        let before = scheduled(daemon, name);
        let (by, sum) = waited(&daemon.metrics(), name);
        let after = scheduled(daemon, name);
        println!("{name}: kernel {before:.9} s, counted {sum:.9} s, {by:.6?}");
        // Read while a wait is being counted, they may be apart.
        let is_whole = (by.values().sum::<f64>() - sum).abs() < 1e-6;
        (before == after && is_whole && (sum - before).abs() < 1e-6).then_some(by)
    })
}

fn burning(name: &str, children: u32) -> Pod {
    pod(name).container("app", &format!("burn {children} 1500 , pause"))
}

#[test]
fn waits_for_a_cpu_are_those_of_the_kernel() {
    let Some(daemon) = start_with_runqueue() else { return };
    daemon.run(burning("first", 5));
    let alone = settled(&daemon, "first");
    // More threads than CPUs wait for each other.
    assert!(alone["same_pod"] > 0.1 && alone["other_pod"] < alone["same_pod"], "{alone:?}");

    daemon.run(burning("second", 4));
    daemon.run(burning("third", 4));
    let shares = ["second", "third"].map(|name| settled(&daemon, name));
    for by in &shares {
        assert!(by["other_pod"] > 0.1, "{shares:?}");
    }
    daemon.stop();
}

#[test]
fn waits_for_a_throttled_container_are_its_own_doing() {
    let controllers = fs::read_to_string(state::cgroup_mount().join("cgroup.controllers"));
    if !controllers.unwrap_or_default().split_whitespace().any(|controller| controller == "cpu") {
        return skip("cgroup v2 has no cpu controller here");
    }
    let Some(daemon) = start_with_runqueue() else { return };
    let limits = json!({"resources": {"limits": {"cpu": "200m"}}});
    let began = Instant::now();
    daemon.run(pod("held").container_with("app", "burn 1 3000 , pause", limits));
    // Asking meanwhile would keep the CPU busy, and all that waits then waits for the node.
    thread::sleep(Duration::from_secs(4));
    let by = settled(&daemon, "held");
    let throttled = daemon.metrics().one("podscope_cpu_throttled_seconds_total", &app("held"));
    // Told, not compared: on Linux 6.12 the kernel's own account was a fifth of what the limit took.
    println!("throttled for {throttled} s, waited {by:?}");
    let own = by["own_throttle"];
    // A fifth of a CPU for three seconds leaves 2.4 s to wait; emulation is not so punctual, and stops
    // now and then, though not its clock.
    assert!((1.0..began.elapsed().as_secs_f64()).contains(&own), "{by:?}");
    assert!(by.values().all(|seconds| *seconds <= own), "{by:?}");
    daemon.stop();
}
