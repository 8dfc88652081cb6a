//! Optional probes keep to their budget, or go.

use std::{
    fs, thread,
    time::{Duration, Instant},
};

use pod_tests::{
    Daemon, Metrics, eventually,
    manifest::{pod, reader},
    seconds, skip,
};

const RUNQUEUE: [(&str, &str); 1] = [("probe", "runqueue")];
const PROGRAM: [(&str, &str); 1] = [("program", "runqueue")];

/// The mode of the optional probe, and the reason for it.
#[track_caller]
fn mode(metrics: &Metrics) -> (String, String) {
    let found = metrics.series("podscope_probe_info", &RUNQUEUE).next().cloned();
    let mut labels = found.expect("the probe is listed").labels;
    (labels.remove("mode").unwrap_or_default(), labels.remove("reason").unwrap_or_default())
}

fn is_over_budget(metrics: &Metrics) -> bool {
    let (mode, reason) = mode(metrics);
    mode == "off"
        && reason.starts_with("over budget: ")
        && metrics.one("podscope_probe_switched_off", &RUNQUEUE) == 1.0
        && !metrics.text.contains("podscope_runqueue_wait_seconds_total")
}

#[test]
fn an_optional_probe_is_off_unless_asked_for() {
    let daemon = Daemon::start(&[]);
    let metrics = daemon.metrics();
    assert_eq!(mode(&metrics), ("optional".to_owned(), "needs --probe-runqueue=on".to_owned()));
    assert_eq!(metrics.one("podscope_probe_switched_off", &RUNQUEUE), 0.0);
    assert!(metrics.find("podscope_bpf_program_runs_total", &PROGRAM).is_none());
    daemon.stop();
}

#[test]
fn an_optional_probe_that_costs_too_much_is_detached() {
    let mut daemon =
        Daemon::start(&["--probe-runqueue=on", "--probe-budget=0.000001", "--probe-timing=always"]);
    let (before, reason) = mode(&daemon.metrics());
    if before == "off" {
        daemon.stop();
        return skip(&format!("runqueue is off: {reason}"));
    }
    daemon.run(pod("lasting").container("app", "sleep-ms 1 , repeat"));
    daemon.wait_ready("lasting");
    let metrics = eventually("the probe is switched off", seconds(30), || {
        Some(daemon.metrics()).filter(is_over_budget)
    });
    println!("{:?}", mode(&metrics));
    let spent = metrics.one("podscope_bpf_program_seconds_total", &PROGRAM);
    let runs = metrics.one("podscope_bpf_program_runs_total", &PROGRAM);
    println!("{:.0} ns for each of {runs} switches", spent / runs * 1e9);
    assert!(daemon.log().contains("probe is switched off"), "{}", daemon.log());

    // It does not run any more, once the kernel has let go of it, and everything else goes on.
    let runs = |metrics: &Metrics| metrics.one("podscope_bpf_program_runs_total", &PROGRAM);
    let metrics = eventually("the probe does not run any more", seconds(10), || {
        let before = daemon.metrics();
        thread::sleep(Duration::from_millis(100));
        Some(daemon.metrics()).filter(|after| runs(after) == runs(&before))
    });
    daemon.run(pod("short").container("app", "exec-nothing 3 , spawn 2 , exit 0"));
    daemon.wait_over("short");
    let later = daemon.metrics();
    assert_eq!(runs(&later), runs(&metrics));
    assert_eq!(later.one("podscope_exec_total", &[("pod", "short")]), 3.0);
    assert_eq!(later.sum("podscope_exec_failures_total", &[("pod", "short")]), 3.0);

    // The next daemon leaves it so.
    daemon.kill();
    daemon.restart();
    let adopted = daemon.metrics();
    assert!(is_over_budget(&adopted), "{:?}", mode(&adopted));
    assert_eq!(runs(&adopted), runs(&later));
    assert_eq!(adopted.one("podscope_exec_total", &[("pod", "short")]), 3.0);

    // With another budget it is given another try.
    daemon.kill();
    daemon.restart_with("--probe-budget=100");
    let again = daemon.metrics();
    assert_eq!(mode(&again), ("tracepoint".to_owned(), String::new()));
    assert_eq!(again.one("podscope_probe_switched_off", &RUNQUEUE), 0.0);
    assert_eq!(again.one("podscope_exec_total", &[("pod", "short")]), 3.0);
    let lasting = [("pod", "lasting")];
    let waits =
        |metrics: &Metrics| metrics.sum("podscope_runqueue_latency_seconds_count", &lasting);
    let first = waits(&again);
    eventually("waits are counted again", seconds(10), || {
        (waits(&daemon.metrics()) > first).then_some(())
    });
    daemon.stop();
}

/// Seconds that all programs ran, and all that is said of whose doing it was.
fn both_sums(metrics: &Metrics) -> (f64, f64) {
    let names = ["pod", "deleted_pod", "unattributed"];
    let attributed = names.map(|of| metrics.sum(&format!("podscope_bpf_{of}_seconds_total"), &[]));
    (metrics.sum("podscope_bpf_program_seconds_total", &[]), attributed.iter().sum())
}

#[test]
fn the_cost_of_the_probes_is_attributed_to_pods() {
    let daemon = Daemon::start(&["--probe-timing=always"]);
    let before = daemon.metrics();
    daemon.run(pod("busy").container("app", "fork 300 , spawn 20 , exit 0"));
    daemon.run(pod("idle").container("app", "pause"));
    daemon.wait_over("busy");
    daemon.wait_ready("idle");
    let after = daemon.metrics();
    let of =
        |metrics: &Metrics, pod| metrics.one("podscope_bpf_pod_seconds_total", &[("pod", pod)]);
    println!("busy {:.6} s, idle {:.6} s", of(&after, "busy"), of(&after, "idle"));
    assert!(of(&after, "busy") > 5.0 * of(&after, "idle") && of(&after, "idle") > 0.0);

    daemon.delete("busy");
    let deleted = daemon.metrics();
    let ended = deleted.one("podscope_bpf_deleted_pod_seconds_total", &[]);
    assert!(ended >= of(&after, "busy"), "{ended}");
    let start = both_sums(&before);
    for metrics in [&after, &deleted] {
        let sums = both_sums(metrics);
        let (spent, attributed) = (sums.0 - start.0, sums.1 - start.1);
        println!("spent {spent:.6} s, attributed {attributed:.6} s");
        assert!(spent > 0.0 && (spent - attributed).abs() < 1e-6, "{spent} {attributed}");
    }
    daemon.stop();
}

/// Whether the daemon has the kernel measure the probes at this moment.
fn is_measuring(daemon: &Daemon) -> bool {
    let descriptors = fs::read_dir(format!("/proc/{}/fd", daemon.pid())).unwrap().flatten();
    descriptors
        .filter_map(|entry| fs::read_link(entry.path()).ok())
        .any(|target| target.to_string_lossy().contains("bpf-stats"))
}

#[test]
fn the_cost_of_the_probes_is_estimated_from_samples() {
    let daemon = Daemon::start(&["--probe-runqueue=on", "--probe-budget=100"]);
    daemon.run(reader("reader"));
    daemon.wait_ready("reader");
    let programs = ["file_read", "file_syscall"];
    let estimate = |metrics: &Metrics| -> f64 {
        let runs =
            |program| metrics.sum("podscope_bpf_program_runs_total", &[("program", program)]);
        programs.map(runs).iter().sum()
    };
    // An estimate comes when its interval is over, for all of it.
    let next = |before: f64| {
        let (mut looks, mut measuring) = (0, 0);
        let metrics = eventually("the estimate grows", seconds(30), || {
            looks += 1;
            measuring += u32::from(is_measuring(&daemon));
            Some(daemon.metrics()).filter(|metrics| estimate(metrics) > before)
        });
        (metrics, Instant::now(), f64::from(measuring) / f64::from(looks))
    };
    let (first, began, _) = next(0.0);
    let (second, ended, share) = next(estimate(&first));
    let reads = |metrics: &Metrics| {
        metrics.one(
            "podscope_file_operations_total",
            &[("pod", "reader"), ("volume", "data"), ("operation", "read")],
        )
    };
    let (estimated, counted) =
        (estimate(&second) - estimate(&first), reads(&second) - reads(&first));
    println!(
        "{estimated:.0} runs estimated for {counted} reads in {:?}, measured {:.0} % of the time",
        ended - began,
        share * 100.0
    );
    let is_near = |ratio: f64| (0.5..2.0).contains(&ratio);
    assert!(is_near(estimated / counted), "{estimated} {counted}");
    assert!(share < 0.3, "the kernel measured for {share} of the time");

    // The pod's share is told from the samples, too, and so is that of an optional probe.
    let spent = second.one("podscope_bpf_pod_seconds_total", &[("pod", "reader")]);
    let all = second.sum("podscope_bpf_program_seconds_total", &[]);
    println!("{spent:.6} s for the pod, {all:.6} s for all");
    assert!(spent > 0.0);
    if mode(&second).0 != "off" {
        let ratio = second.one("podscope_probe_cpu_ratio", &RUNQUEUE);
        assert!((0.0..1.0).contains(&ratio), "{ratio}");
    }
    daemon.delete("reader");
    daemon.stop();
}
